"""The baseline of the repository, for tests that need real figures without running the suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbio_sc.benchmarks import Run, Store, SuiteReport

FOLDER = Path(__file__).parents[1] / "benchmarks" / "baseline"


def baseline() -> Run:
    found = Store(FOLDER).get_baseline() if FOLDER.exists() else None
    if found is None:
        pytest.skip("needs benchmarks/baseline of the repository")
    return found


def report_of(run: Run, name: str) -> SuiteReport:
    """The report of a suite that a stored run was made of."""
    points = tuple(point for point in run.points if point.scenario == name)
    return SuiteReport(
        name=name,
        quick=True,
        points=points,
        seeds={point.name: run.metadata["seeds"][point.name] for point in points},
        metric_defs=run.metric_defs,
        metadata=run.metadata["suites"][name],
    )
