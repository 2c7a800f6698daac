"""The guard: each fault is caught, and another seed within noise is none."""

import math

import numpy as np
import pytest

from diffbio_sc.benchmarks import Metric, MetricDef, Point, Run, compare

DEFINITIONS = {
    "f1": MetricDef(name="f1"),
    "rmse": MetricDef(name="rmse", direction="lower"),
    "seconds": MetricDef(name="seconds", direction="info"),
}


def a_point(variant="one", task="calling", role=None, **metrics):
    tags = {"dataset": "data", "task": task, "variant": variant}
    if role:
        tags["role"] = role
    samples = {name: Metric.of(value if isinstance(value, list) else [value]) for name, value in metrics.items()}
    return Point(name=f"suite/data/{task}/{variant}", scenario="suite", tags=tags, metrics=samples)


def a_run(*points, seeds=None, definitions=DEFINITIONS):
    metadata = {} if seeds is None else {"seeds": {point.name: seeds for point in points}}
    return Run(points=points, metric_defs=definitions, metadata=metadata)


BASE = a_run(
    a_point("one", f1=[0.80, 0.82, 0.79, 0.81, 0.80], rmse=[0.1, 0.11, 0.1, 0.1, 0.1], seconds=1.0),
    a_point("two", f1=0.9),
    a_point("one", task="states", f1=0.7),
)


def replaced(index, point):
    points = list(BASE.points)
    points[index] = point
    return a_run(*[point for point in points if point is not None])


def verdicts(run, base=BASE, **options):
    result = compare(run, base, **options)
    assert result.exit_code == (0 if result.passed else 1)
    return {(row.tags["task"], row.tags["variant"], row.metric): row.verdict for row in result.regressions}


def test_the_same_run_passes():
    result = compare(BASE, BASE)
    assert result.passed
    assert result.exit_code == 0
    assert [row.verdict for row in result.rows] == ["ok", "ok", "info", "ok", "ok"]
    assert "Nothing got worse: 4 metrics judged" in result.summary()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metric_not_finite(value):
    run = replaced(1, a_point("two", f1=value))
    assert verdicts(run) == {("calling", "two", "f1"): "not finite"}
    hidden = Metric(value=0.9, samples=(0.9, 0.9, value))  # the median alone would pass
    run = replaced(
        1, Point(name=BASE.points[1].name, scenario="suite", tags=BASE.points[1].tags, metrics={"f1": hidden})
    )
    assert verdicts(run) == {("calling", "two", "f1"): "not finite"}


def test_variant_missing():
    assert verdicts(replaced(1, None)) == {("calling", "two", ""): "missing"}


def test_task_missing():
    run = a_run(*[point for point in BASE.points if point.tags["task"] != "states"])
    result = compare(run, BASE)
    assert [(row.point, row.verdict) for row in result.regressions] == [("suite/data/states/one", "missing")]
    assert "suite/data/states/one: stored, but not in this run" in result.summary()
    assert result.exit_code == 1


def test_metric_missing():
    run = replaced(0, a_point("one", f1=[0.80, 0.82, 0.79, 0.81, 0.80], seconds=1.0))
    assert verdicts(run) == {("calling", "one", "rmse"): "missing"}


def test_score_zero():
    zero = a_point("one", f1=[0.0] * 5, rmse=[0.1] * 5, seconds=1.0)
    assert verdicts(replaced(0, zero)) == {("calling", "one", "f1"): "worse"}


def test_score_zero_is_caught_whatever_the_stored_spread():
    base = a_run(a_point(f1=[0.2, 0.9, 0.5]))
    assert list(verdicts(a_run(a_point(f1=[0.0, 0.0, 0.0])), base).values()) == ["worse"]


def test_lower_is_better_where_it_says_so():
    assert verdicts(replaced(0, a_point("one", f1=[0.8] * 5, rmse=[0.2] * 5))) == {("calling", "one", "rmse"): "worse"}
    result = compare(replaced(0, a_point("one", f1=[0.95] * 5, rmse=[0.05] * 5)), BASE)
    assert [row.verdict for row in result.rows][:2] == ["better", "better"]


def test_five_percent_without_a_spread():
    for value, bad in ((0.856, False), (0.854, True), (1.0, False)):
        assert bool(verdicts(replaced(1, a_point("two", f1=value)))) is bad


def test_baseline_zero_has_an_absolute_tolerance():
    base = a_run(a_point(rmse=0.0))
    assert compare(a_run(a_point(rmse=0.009)), base).passed
    assert not compare(a_run(a_point(rmse=0.011)), base).passed
    assert compare(a_run(a_point(rmse=0.04)), base, absolute=0.05).passed
    higher = a_run(a_point(f1=0.0))
    assert not compare(a_run(a_point(f1=-0.2)), higher).passed
    assert compare(a_run(a_point(f1=0.5)), higher).rows[0].verdict == "better"


def test_other_seeds_within_noise_pass_and_a_real_drop_fails():
    rng = np.random.default_rng(0)
    base_seeds, new_seeds = list(range(8)), list(range(100, 108))
    alarms = caught = 0
    for _ in range(400):
        base = a_run(a_point(f1=list(rng.normal(0.8, 0.04, 8))), seeds=base_seeds)
        alarms += not compare(a_run(a_point(f1=list(rng.normal(0.8, 0.04, 8))), seeds=new_seeds), base).passed
        caught += not compare(a_run(a_point(f1=list(rng.normal(0.6, 0.04, 8))), seeds=new_seeds), base).passed
    assert alarms <= 8
    assert caught >= 360


def test_allowed_change_is_the_formula_of_the_module():
    from scipy.stats import t

    stored, new = [0.5, 0.6, 0.7, 0.6], [0.55, 0.6]
    row = compare(a_run(a_point(f1=new)), a_run(a_point(f1=stored))).rows[0]
    expected = t.ppf(0.995, 3) * np.sqrt(np.pi / 2) * np.std(stored, ddof=1) * np.sqrt(1 / 4 + 1 / 2)
    assert expected > 0.3
    assert row.tolerance == pytest.approx(0.3)  # half of the score is the limit
    row = compare(a_run(a_point(rmse=new)), a_run(a_point(rmse=stored))).rows[0]
    assert row.tolerance == pytest.approx(expected)
    assert row.change == pytest.approx(0.575 - 0.6)


def test_paired_seeds_show_a_drop_that_the_spread_would_hide():
    stored = [0.5, 0.6, 0.7, 0.8, 0.65]
    dropped = [value - 0.08 for value in stored]
    paired = compare(
        a_run(a_point(f1=dropped), seeds=[0, 1, 2, 3, 4]), a_run(a_point(f1=stored), seeds=[0, 1, 2, 3, 4])
    )
    other = compare(a_run(a_point(f1=dropped), seeds=[5, 6, 7, 8, 9]), a_run(a_point(f1=stored), seeds=[0, 1, 2, 3, 4]))
    assert not paired.passed
    assert paired.rows[0].change == pytest.approx(-0.08)
    assert other.passed


def test_info_metrics_peers_and_controls():
    base = a_run(
        a_point("ours", f1=0.8, seconds=1.0),
        a_point("peer", role="peer", f1=0.8),
        a_point("floor", role="control", f1=0.8),
    )
    ours, floor = a_point("ours", f1=0.8, seconds=math.nan), a_point("floor", role="control", f1=0.1)
    assert compare(a_run(ours, floor), base).passed  # a peer may not be installed, a floor may be of any value
    assert verdicts(a_run(ours), base) == {("calling", "floor", ""): "missing"}
    nan = a_point("floor", role="control", f1=math.nan)
    assert verdicts(a_run(ours, nan), base) == {("calling", "floor", "f1"): "not finite"}


def test_new_points_pass_unless_they_are_not_finite():
    new = a_run(*BASE.points, a_point("three", f1=0.1, seconds=2.0))
    result = compare(new, BASE)
    assert result.passed
    assert [row.verdict for row in result.rows[-2:]] == ["new", "info"]
    assert not compare(a_run(*BASE.points, a_point("three", f1=math.nan)), BASE).passed


def test_definitions_cannot_be_evaded():
    relaxed = a_run(a_point("two", f1=0.1), definitions={"f1": MetricDef(name="f1", direction="info")})
    base = a_run(a_point("two", f1=0.9))
    assert [row.verdict for row in compare(relaxed, base).rows] == ["redefined"]
    undefined = a_run(a_point("two", f1=0.9), definitions={})
    assert [row.verdict for row in compare(undefined, undefined).rows] == ["undefined"]
    assert compare(undefined, undefined, metric_defs=DEFINITIONS).passed


def test_scenarios_that_were_left_out_on_purpose():
    other = Point(name="other/x", scenario="other", metrics={"f1": Metric.of([0.5])})
    base = a_run(*BASE.points, other)
    assert not compare(BASE, base).passed
    assert compare(BASE, base, scenarios=["suite"]).passed
    with pytest.raises(ValueError, match=r"no points of \['absent'\]"):
        compare(BASE, base, scenarios=["absent"])
    with pytest.raises(ValueError, match="threshold must be 0 or more"):
        compare(BASE, base, threshold=-1)


def test_table_has_a_line_a_metric():
    result = compare(replaced(1, a_point("two", f1=0.5)), BASE)
    lines = result.table().splitlines()
    assert lines[0].split() == ["point", "metric", "stored", "now", "change", "allowed", "verdict"]
    assert len(lines) == 2 + len(result.rows)
    assert lines[5].split() == ["suite/data/calling/two", "f1", "0.9", "0.5", "-0.4", "0.045", "WORSE"]
    assert result.table(every=False).count("\n") == 2
    assert result.to_dict()["regressions"][0]["metric"] == "f1"
