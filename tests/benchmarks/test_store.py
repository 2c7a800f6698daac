"""The store: layout, whole files, and clear errors for what cannot be read."""

import json
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest

from diffbio_sc.benchmarks import Metric, MetricDef, Point, RecordError, Run, Store, StoreError, read_run
from diffbio_sc.benchmarks.store import open_store


def a_run(value=0.8, **options):
    point = Point(
        name="suite/data/task/one",
        scenario="suite",
        tags={"dataset": "data", "task": "task", "variant": "one"},
        metrics={"f1": Metric.of([value - 0.1, value, value + 0.1]), "seconds": Metric.of([1.0])},
    )
    definitions = {"f1": MetricDef(name="f1"), "seconds": MetricDef(name="seconds", unit="s", direction="info")}
    return Run(points=(point,), metric_defs=definitions, **options)


def test_layout_is_that_of_calibrax(tmp_path):
    store = Store(tmp_path)
    run = a_run(commit="abc", branch="main", environment={"python": "3"}, metadata={"seeds": [np.int64(0)]})
    path = store.save(run)
    store.set_baseline(run.id)
    assert len(run.id) == 12
    assert set(run.id) <= set("0123456789abcdef")
    assert path == tmp_path / "runs" / f"{run.id}.json"
    stored = json.loads((tmp_path / "baselines" / "main.json").read_text())
    assert list(stored) == [
        "id", "timestamp", "commit", "branch", "environment", "metadata", "metric_defs", "points",
    ]  # fmt: skip
    assert datetime.fromisoformat(stored["timestamp"]).tzinfo is not None
    assert stored["metric_defs"]["seconds"] == {
        "name": "seconds", "unit": "s", "direction": "info", "group": "", "priority": "secondary", "description": "",
    }  # fmt: skip
    low, high = 0.8 - 0.1, 0.8 + 0.1
    assert stored["points"][0]["metrics"]["f1"] == {
        "value": 0.8,
        "lower": low,
        "upper": high,
        "samples": [low, 0.8, high],
    }
    assert stored["metadata"] == {"seeds": [0]}
    assert store.load(run.id) == store.get_baseline() == Run.from_dict(run.to_dict())


def test_runs_are_listed_newest_first_and_found_by_tags(tmp_path):
    store = Store(tmp_path)
    old = a_run(timestamp=datetime(2026, 1, 1, tzinfo=UTC), branch="main")
    new = a_run(timestamp=datetime(2026, 2, 1, tzinfo=UTC), branch="other")
    for run in (old, new):
        store.save(run)
    (tmp_path / "runs" / ".half.written.json").write_text("{")  # the rest of a writer that was killed
    assert [run.id for run in store.list_runs()] == [new.id, old.id]
    assert store.latest().id == new.id
    assert [run.id for run in store.list_runs(branch="main")] == [old.id]
    assert len(store.query(task="task", variant="one")) == 2
    assert store.query(task="task", variant="two") == []


def test_a_run_is_saved_once_and_never_replaced_by_another(tmp_path):
    store = Store(tmp_path)
    run = a_run()
    store.save(run)
    store.save(run)
    with pytest.raises(FileExistsError, match="another run with the id"):
        store.save(a_run(0.5, id=run.id))
    assert store.load(run.id).points[0].metrics["f1"].value == 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"not json", "is not valid JSON"),
        (b"[1, 2]", "must be a JSON object, found list"),
        (b"{}", "no list of 'points'"),
        (pickle.dumps({"id": "a"}), "a pickle, which is never loaded"),
        (b"\xff\xfe\x00", "must be JSON text, found binary"),
        (b'{"id": "a", "id": "b"}', "a key is there twice: 'id'"),
    ],
)
def test_corrupt_files_are_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "baselines" / "main.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message) as caught:
        Store(tmp_path).get_baseline()
    assert str(path) in str(caught.value)
    assert "Restore the file" in str(caught.value)


def test_truncated_anywhere_is_an_error(tmp_path):
    store = Store(tmp_path)
    run = a_run()
    path = store.save(run)
    whole = path.read_text().rstrip()
    for length in range(1, len(whole), 7):
        path.write_text(whole[:length])
        with pytest.raises(StoreError):
            store.load(run.id)
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="is cut short"):
        store.list_runs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(id="../../etc"), "id of a run must be letters"),
        (lambda data: data.update(timestamp="yesterday"), "ISO 8601"),
        (lambda data: data.pop("timestamp"), "has no 'timestamp'"),
        (lambda data: data["points"][0].pop("name"), r"points\[0\] has no 'name'"),
        (lambda data: data["points"][0]["tags"].update(task=3), "must be text, found 3"),
        (lambda data: data["points"][0]["metrics"]["f1"].update(value="high"), "must be a number, found 'high'"),
        (lambda data: data["points"][0]["metrics"]["f1"].update(samples=[0.1, None]), r"samples\[1\]"),
        (lambda data: data["metric_defs"]["f1"].update(direction="up"), "must be one of"),
        (lambda data: data["points"].append(data["points"][0]), "two points"),
        (lambda data: data.update(metadata=[1]), "metadata must be a JSON object"),
    ],
)
def test_what_is_no_run_is_refused_by_its_place(tmp_path, change, message):
    data = a_run().to_dict()
    change(data)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=message):
        read_run(path)


def test_a_file_of_another_run_is_refused(tmp_path):
    store = Store(tmp_path)
    run = a_run()
    path = store.save(run)
    path.rename(path.with_name("0123456789ab.json"))
    with pytest.raises(StoreError, match="holds the run"):
        store.load("0123456789ab")


def test_missing_runs_and_bad_names(tmp_path):
    store = Store(tmp_path)
    assert store.get_baseline() is None
    assert store.list_runs() == []
    with pytest.raises(FileNotFoundError, match="holds no run 'abc'"):
        store.load("abc")
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        store.latest()
    with pytest.raises(RecordError, match="letters"):
        store.load("../config")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="must be a folder"):
        Store(tmp_path / "file")
    with pytest.raises(TypeError, match="must be a path"):
        open_store(3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    store = Store(tmp_path)
    run = a_run()
    store.save(run)
    store.set_baseline(run.id)
    before = store.baseline_path.read_bytes()

    def full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        store.set_baseline(a_run(0.9))
    assert store.baseline_path.read_bytes() == before
    assert [path.name for path in (tmp_path / "baselines").iterdir()] == ["main.json"]


def test_values_that_json_cannot_hold_write_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RecordError, match=r"metadata.model must hold text"):
        store.save(a_run(metadata={"model": object()}))
    assert not (tmp_path / "runs").exists()


def test_nan_is_stored_in_a_run_but_never_in_a_baseline(tmp_path):
    store = Store(tmp_path)
    run = a_run(np.nan)
    store.save(run)
    assert np.isnan(store.load(run.id).points[0].metrics["f1"].value)
    with pytest.raises(ValueError, match=r"cannot be a baseline: 1 of .* first: \['suite/data/task/one: f1"):
        store.set_baseline(run.id)
    assert store.get_baseline() is None


def test_definitions_of_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"metric_defs": {"f1": MetricDef(name="f1").to_dict()}}))
    assert Store(tmp_path).metric_defs == {"f1": MetricDef(name="f1")}
    (tmp_path / "config.json").write_text('{"metric_defs": {"f1": {"name": "f1"}}}')
    with pytest.raises(StoreError, match="has no 'direction'"):
        _ = Store(tmp_path).metric_defs
