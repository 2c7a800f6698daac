"""The check of what work block by block costs: a rise of a fifth fails, on a machine of any speed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "scale_records.py"
ROWS = [
    {
        "table": "cost",
        "function": "deconvolve",
        "source": "memory",
        "rows": 7500,
        "CPU s first": 9.0,
        "CPU s second": 4.0,
    },
    {
        "table": "cost",
        "function": "deconvolve",
        "source": "workers 2 warm",
        "rows": 7500,
        "CPU s second": 3.0,
        "workers CPU s second": 2.0,
        "client MB first": 200,
        "worker MB before": 900,
        "worker MB first": 400,
    },
    {"table": "peaks", "peaks": "one file", "million fragments": 2, "MB": 20, "CPU s": 0.4},
]


@pytest.fixture(scope="module")
def records():
    if not PATH.exists():
        pytest.skip("needs benchmarks/ of the repository")
    spec = importlib.util.spec_from_file_location("scale_records", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stored(records, tmp_path):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(records.as_run(ROWS, 0.5).to_dict()))
    return path


def changed(index, **values):
    return [{**row, **(values if number == index else {})} for number, row in enumerate(ROWS)]


def test_rows_are_told_by_what_they_ran_and_judged_by_their_largest_figures(records):
    run = records.as_run(ROWS, 0.5)
    assert [point.name for point in run.points] == [
        "scale, cost, deconvolve, memory, 7500",
        "scale, cost, deconvolve, workers 2 warm, 7500",
        "scale, peaks, one file, 2",
    ]
    values = [{name: metric.value for name, metric in point.metrics.items()} for point in run.points]
    assert values == [
        {records.CPU: 8.0},
        {records.CPU: 10.0, records.MEMORY: 400.0},  # of client and workers; the largest process
        {records.CPU: 2.0, records.MEMORY: 50.0},  # less counts as one second and 50 MB
    ]


@pytest.mark.parametrize(
    ("rows", "worse"),
    [
        (ROWS, []),
        (changed(0, **{"CPU s second": 4.7}), []),
        (changed(0, **{"CPU s second": 4.9}), [("scale, cost, deconvolve, memory, 7500", "worse")]),
        (changed(1, **{"workers CPU s second": 3.1}), [("scale, cost, deconvolve, workers 2 warm, 7500", "worse")]),
        (changed(1, **{"worker MB first": 490}), [("scale, cost, deconvolve, workers 2 warm, 7500", "worse")]),
        (changed(1, **{"client MB first": 390}), []),
        (changed(2, **{"CPU s": 0.9, "MB": 45}), []),
        (ROWS[:2], [("scale, peaks, one file, 2", "missing")]),
    ],
)
def test_a_rise_of_a_fifth_fails(records, stored, rows, worse):
    result = records.judge(records.as_run(rows, 0.5), stored)
    assert [(row.point, row.verdict) for row in result.regressions] == worse


def test_a_slower_machine_is_no_rise(records, stored):
    rows = [{key: 2 * value if "CPU" in key else value for key, value in row.items()} for row in ROWS]
    assert records.judge(records.as_run(rows, 1.0), stored).passed


def test_the_yardstick_is_some_work(records):
    assert 0.01 < records.yardstick() < 60
    assert records.machine()["cores"] > 0
