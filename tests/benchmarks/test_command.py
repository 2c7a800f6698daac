"""``python -m diffbio_sc.benchmarks``: exit codes, the table, the baseline."""

import json

import pytest

from diffbio_sc.benchmarks import Case, MetricDef, Store, Suite, command


class Figures:
    """Two suites whose figures a test sets."""

    def __init__(self):
        self.values = {"one": 0.8, "two": 0.5}
        self.error = None

    def suite(self, name):
        def run(seed):
            if self.error == name:
                raise RuntimeError("broken")
            return {"f1": self.values[name] + 0.001 * seed}

        case = Case(dataset="data", task="task", variant="ours", run=run)
        return Suite(
            name=name, metrics=(MetricDef(name="f1"),), cases=lambda quick: [case] if name in self.values else []
        )


@pytest.fixture
def figures(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Figures()
    monkeypatch.setattr(command, "SUITES", {"one": None, "two": None})
    monkeypatch.setattr(command, "find_suite", made.suite)
    return made


def test_first_run_has_nothing_to_compare_with(figures, capsys):
    assert command.main([]) == 0
    text = capsys.readouterr().out
    assert "There is no baseline to compare with" in text
    assert "one/data/task/ours" in text
    assert len(Store("benchmark_runs").list_runs()) == 1
    assert Store("benchmark_runs").get_baseline() is None


def test_update_then_the_same_passes_and_a_drop_fails(figures, capsys):
    assert command.main(["--update"]) == 0
    assert command.main(["--quick"]) == 0
    assert "Nothing got worse: 2 metrics judged" in capsys.readouterr().out
    figures.values["two"] = 0.3
    assert command.main([]) == 1
    text = capsys.readouterr().out
    assert "1 of 2 metrics got worse" in text
    assert "two/data/task/ours, f1: 0.501 stored, 0.301 now" in text
    assert command.main(["--suite", "one"]) == 0
    assert command.main(["--seeds", "7,8,9", "--suite", "one"]) == 0
    assert len(Store("benchmark_runs").list_runs()) == 5


def test_missing_and_failing_cases_fail(figures, capsys):
    command.main(["--update"])
    del figures.values["two"]
    assert command.main([]) == 1
    assert "two/data/task/ours: stored, but not in this run" in capsys.readouterr().out
    figures.values["two"] = 0.5
    figures.error = "one"
    assert command.main(["--update"]) == 1
    text = capsys.readouterr().out
    assert "FAILED one/data/task/ours: RuntimeError: broken" in text
    assert "The baseline stays as it was" in text
    assert {point.scenario for point in Store("benchmark_runs").get_baseline().points} == {"one", "two"}


def test_update_of_one_suite_keeps_the_others(figures):
    command.main(["--update"])
    figures.values = {"one": 0.9, "two": 0.1}
    assert command.main(["--suite", "one", "--update"]) == 0
    found = {point.scenario: point.metrics["f1"].value for point in Store("benchmark_runs").get_baseline().points}
    assert found == pytest.approx({"one": 0.901, "two": 0.501})
    seeds = Store("benchmark_runs").get_baseline().metadata["seeds"]
    assert seeds == {"one/data/task/ours": [0, 1, 2], "two/data/task/ours": [0, 1, 2]}
    assert command.main([]) == 1


def test_baseline_of_its_own(figures, tmp_path, capsys):
    assert command.main(["--baseline", "base"]) == 2
    assert "holds no baseline; make one with --update" in capsys.readouterr().err
    assert command.main(["--baseline", "base", "--update"]) == 0
    assert command.main(["--baseline", "base"]) == 0
    assert command.main(["--baseline", "base/baselines/main.json"]) == 0
    figures.values["one"] = 0.1
    assert command.main(["--baseline", "base"]) == 1
    capsys.readouterr()


def test_corrupt_baseline_is_told_before_any_work(figures, tmp_path, capsys):
    command.main(["--update"])
    path = tmp_path / "benchmark_runs" / "baselines" / "main.json"
    path.write_text(path.read_text()[:100])
    figures.error = "one"
    assert command.main([]) == 2
    error = capsys.readouterr().err
    assert "is cut short" in error
    assert str(path.name) in error
    assert len(Store("benchmark_runs").list_runs()) == 1


def test_quick_and_full_are_not_compared(figures, capsys):
    command.main(["--update"])
    assert command.main(["--full"]) == 2
    assert "the baseline is quick, this run full" in capsys.readouterr().err


def test_nan_is_no_baseline(figures, capsys):
    figures.values["one"] = float("nan")
    assert command.main(["--update"]) == 2
    assert "cannot be a baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--suite", "three"], ["--seeds", "a"], ["--seeds", "1,1"], ["--quick", "--full"]]
)
def test_bad_arguments(figures, arguments):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2


def test_stored_run_is_json_that_says_where_it_comes_from(figures, tmp_path):
    command.main([])
    data = json.loads(next((tmp_path / "benchmark_runs" / "runs").glob("*.json")).read_text())
    assert data["metadata"]["size"] == "quick"
    assert {"python", "numpy", "jax"} <= set(data["environment"])
