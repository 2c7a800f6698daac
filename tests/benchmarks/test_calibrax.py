"""Files and types of Calibrax: its file read by us always, both ways where it is installed."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from diffbio_sc.benchmarks import Metric, MetricDef, Point, Run, Store, compare, read_run, to_calibrax
from diffbio_sc.benchmarks.store import open_store

# Written by Store.save and Store.set_baseline of Calibrax 0.1.1.
FILE = Path(__file__).parent / "data" / "calibrax_run.json"
installed = pytest.mark.skipif(
    importlib.util.find_spec("calibrax") is None, reason="needs calibrax, in an environment of its own: it pins JAX"
)


def a_run(value=0.8, seeds=(0, 1, 2)):
    point = Point(
        name="suite/data/task/one",
        scenario="suite",
        tags={"dataset": "data", "task": "task", "variant": "one"},
        metrics={"f1": Metric.of([value - 0.01, value, value + 0.01]), "seconds": Metric.of([1.0, 2.0, 3.0])},
    )
    definitions = {
        "f1": MetricDef(name="f1", priority="primary", description="F1."),
        "seconds": MetricDef(name="seconds", unit="s", direction="info"),
    }
    return Run(points=(point,), metric_defs=definitions, metadata={"seeds": {point.name: list(seeds)}})


def test_file_of_calibrax_is_read(tmp_path):
    run = read_run(FILE)
    assert run.id == "c0ffee012345"
    assert run.timestamp.isoformat() == "2026-01-02T03:04:05+00:00"
    assert run.metric_defs["loss"] == MetricDef(name="loss", unit="nat", direction="lower")
    tags = {"dataset": "synthetic", "task": "contextual_peak_calling", "contextual_variant": "tf_context"}
    point = next(point for point in run.points if point.tags == tags)
    assert point.metrics["f1"] == Metric(value=0.62, lower=0.6, upper=0.64, samples=(0.6, 0.62, 0.64))
    assert point.metrics["seconds"] == Metric(value=3.0)
    assert run.metadata == {"suite": "contextual", "n": 6}
    assert run.to_dict() == json.loads(FILE.read_text())
    store = Store(tmp_path)
    store.save(run)
    store.set_baseline(run.id)
    assert store.get_baseline() == run
    assert compare(run, run).passed


def test_time_without_a_zone_is_local_time(tmp_path):
    data = json.loads(FILE.read_text())
    data["timestamp"] = "2026-01-02T03:04:05"  # the default of Calibrax 0.1.1
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    run = read_run(path)
    assert run.timestamp.tzinfo is not None
    assert run.timestamp.replace(tzinfo=None).isoformat() == data["timestamp"]


@pytest.mark.skipif(importlib.util.find_spec("calibrax") is not None, reason="calibrax is installed")
def test_without_calibrax_the_error_says_how_to_get_it():
    with pytest.raises(ImportError, match=r"diffbio-sc\[calibrax\]"):
        to_calibrax(a_run())


@installed
def test_our_store_is_read_by_calibrax(tmp_path):
    from calibrax.storage.store import Store as CalibraxStore

    ours, run = Store(tmp_path), a_run()
    ours.save(run)
    ours.set_baseline(run.id)
    theirs = CalibraxStore(tmp_path)
    assert theirs.load(run.id).to_dict() == run.to_dict()
    assert theirs.get_baseline().to_dict() == run.to_dict()
    assert theirs.latest().timestamp == run.timestamp
    assert [found.id for found in theirs.query(variant="one")] == [run.id]


@installed
def test_guard_of_calibrax_works_on_our_store(tmp_path):
    from calibrax.ci.guard import CIGuard
    from calibrax.storage.store import Store as CalibraxStore

    ours, good, bad = Store(tmp_path), a_run(), a_run(0.5)
    for run in (good, bad):
        ours.save(run)
    ours.set_baseline(good.id)
    guard = CIGuard(CalibraxStore(tmp_path))
    assert guard.check(good.id).passed
    assert [found.metric for found in guard.check(bad.id).regressions] == ["f1"]


@installed
def test_store_and_runs_of_calibrax_are_taken_by_us(tmp_path):
    from calibrax.storage.store import Store as CalibraxStore

    store, run = open_store(CalibraxStore(tmp_path)), a_run()
    path = store.save(run)
    assert path == tmp_path / "runs" / f"{run.id}.json"
    assert store.get_baseline() is None
    store.set_baseline(run)
    assert store.get_baseline() == store.load(run.id) == store.latest() == run
    assert store.metric_defs == {}
    theirs = to_calibrax(a_run(math.nan))
    assert [row.verdict for row in compare(theirs, run).regressions] == ["not finite"]
    assert read_run(path) == run


@installed
def test_the_stored_file_is_what_calibrax_reads_and_writes():
    from calibrax.core.models import Run as CalibraxRun

    data = json.loads(FILE.read_text())
    assert CalibraxRun.from_dict(data).to_dict() == data
