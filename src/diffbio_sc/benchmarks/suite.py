"""One form for the benchmarks of all systems: cases of a dataset, a task and a variant, each run with a few seeds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal

from diffbio_sc._logging import logger
from diffbio_sc._settings import settings
from diffbio_sc.benchmarks.records import Metric, MetricDef, Point, Run

SECONDS = MetricDef(
    name="seconds",
    unit="s",
    direction="info",
    group="cost",
    description="CPU seconds of one seed, compilation included.",
)

# What several systems measure.
F1 = MetricDef(name="f1", group="labels", priority="primary", description="F1 of what is found against the truth.")
ACCURACY = MetricDef(name="accuracy", group="labels", priority="primary", description="Share in the true class.")
AVERAGE_PRECISION = MetricDef(
    name="average_precision", group="ranking", priority="primary", description="Average precision of the ranking."
)

Role = Literal["subject", "control", "peer"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration to be measured.

    Parameters
    ----------
    dataset, task, variant
        Name it; the guard matches runs by them.
    run
        Takes a seed, from which data and fit are drawn, and returns the metrics by name.
    seeds
        Seeds to run; one suffices where nothing is random.
    role
        ``"subject"``: what the suite is about. ``"control"``: what it must beat. ``"peer"``: another package, recorded
        where it is installed, and never judged.
    lacking
        Why the case cannot run here, such as a package or data set that is missing.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Case
    >>> Case(dataset="data", task="task", variant="ours", run=lambda seed: {"f1": 0.9}).seeds
    (0, 1, 2)
    """

    dataset: str
    task: str
    variant: str
    run: Callable[[int], Mapping[str, float]]
    seeds: tuple[int, ...] = (0, 1, 2)
    role: Role = "subject"
    lacking: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The benchmarks of a system.

    Parameters
    ----------
    name
        Name of the system, and scenario of its points.
    metrics
        How to read each metric that its cases return.
    cases
        Takes whether the run is quick (small bundled data, seconds) and returns the cases.
    variant_axis
        Tag that holds the variant.
    describe
        Takes whether the run is quick and returns what the suite says of itself, as JSON values.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Case, MetricDef, Suite
    >>> case = Case(dataset="data", task="task", variant="ours", run=lambda seed: {"f1": 0.9})
    >>> suite = Suite(name="mine", metrics=(MetricDef(name="f1"),), cases=lambda quick: [case])
    >>> suite.point_name(case)
    'mine/data/task/ours'
    """

    name: str
    metrics: tuple[MetricDef, ...]
    cases: Callable[[bool], Sequence[Case]]
    variant_axis: str = "variant"
    describe: Callable[[bool], Mapping[str, Any]] | None = None

    def point_name(self, case: Case) -> str:
        """Name of a case's point."""
        return f"{self.name}/{case.dataset}/{case.task}/{case.variant}"


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """What a suite measured.

    Parameters
    ----------
    name
        Name of the suite.
    quick
        Whether the small bundled cases were run.
    points
        What was measured.
    seeds
        Seeds of each point, by its name.
    metric_defs
        How to read each metric.
    metadata
        What the suite says of itself.
    skipped, failures
        By point, why a case did not run, and what error it met.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Case, MetricDef, Suite, as_one_run, run_suite
    >>> case = Case(dataset="data", task="task", variant="ours", run=lambda seed: {"f1": 0.9 - seed / 100})
    >>> suite = Suite(name="mine", metrics=(MetricDef(name="f1"),), cases=lambda quick: [case])
    >>> report = run_suite(suite)
    >>> report.value("data", "task", "ours", "f1")
    0.89
    """

    name: str
    quick: bool
    points: tuple[Point, ...]
    seeds: Mapping[str, list[int]]
    metric_defs: Mapping[str, MetricDef]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def value(self, dataset: str, task: str, variant: str, metric: str) -> float:
        """Median of a metric of one case."""
        return self.point(dataset, task, variant).metrics[metric].value

    def point(self, dataset: str, task: str, variant: str) -> Point:
        """Point of one case."""
        name = f"{self.name}/{dataset}/{task}/{variant}"
        for point in self.points:
            if point.name == name:
                return point
        raise KeyError(f"suite {self.name!r} has no point {name!r}; points: {[point.name for point in self.points]}.")


def run_suite(
    suite: Suite, *, quick: bool = True, seeds: Sequence[int] | None = None, strict: bool = True
) -> SuiteReport:
    """Run all cases of a suite.

    Parameters
    ----------
    suite
        The suite.
    quick
        Whether to run the small bundled cases, or the full ones, which need real data (``DIFFBIO_SC_DATA``).
    seeds
        Seeds in place of those of the cases; cases of one seed have nothing random and keep theirs.
    strict
        Whether an error of a case is raised, or kept in ``failures``.

    Returns
    -------
    What was measured, by point; what was skipped, and why.

    Raises
    ------
    ValueError
        If a case returns a metric that the suite does not define.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Case, MetricDef, Suite, as_one_run, run_suite
    >>> case = Case(dataset="data", task="task", variant="ours", run=lambda seed: {"f1": 0.9 - seed / 100})
    >>> suite = Suite(name="mine", metrics=(MetricDef(name="f1"),), cases=lambda quick: [case])
    >>> report = run_suite(suite)
    >>> report.value("data", "task", "ours", "f1")
    0.89
    """
    definitions = {SECONDS.name: SECONDS, **{definition.name: definition for definition in suite.metrics}}
    points, used, skipped, failures = [], {}, {}, {}
    for case in suite.cases(quick):
        name = suite.point_name(case)
        if case.lacking is not None:
            skipped[name] = case.lacking
            continue
        chosen = list(case.seeds if seeds is None or len(case.seeds) == 1 else seeds)
        samples: dict[str, list[float]] = {}
        try:
            for seed in chosen:
                for metric, value in _measure(case, seed).items():
                    samples.setdefault(metric, []).append(value)
            unknown = sorted(set(samples) - set(definitions))
            if unknown:
                raise ValueError(f"suite {suite.name!r} does not define the metrics {unknown} of {name!r}.")
        except Exception as error:
            if strict:
                raise
            failures[name] = f"{type(error).__name__}: {error}"
            continue
        tags = {"dataset": case.dataset, "task": case.task, suite.variant_axis: case.variant}
        if case.role != "subject":
            tags["role"] = case.role
        metrics = {metric: Metric.of(values) for metric, values in samples.items()}
        points.append(Point(name=name, scenario=suite.name, tags=tags, metrics=metrics))
        used[name] = chosen
        shown = ", ".join(f"{metric} {value.value:.3g}" for metric, value in metrics.items())
        logger.info(f"{name}: {shown}")
    return SuiteReport(
        name=suite.name,
        quick=quick,
        points=tuple(points),
        seeds=used,
        metric_defs=definitions,
        metadata={} if suite.describe is None else dict(suite.describe(quick)),
        skipped=skipped,
        failures=failures,
    )


def _measure(case: Case, seed: int) -> dict[str, float]:
    started = time.process_time()
    with warnings.catch_warnings(), settings.override(verbosity=0, progress_bar=False):
        warnings.simplefilter("ignore")  # the figures say what there is to say
        measured = case.run(seed)
    return {**{name: float(value) for name, value in measured.items()}, SECONDS.name: time.process_time() - started}


def as_one_run(
    reports: Sequence[SuiteReport],
    *,
    commit: str | None = None,
    branch: str | None = None,
    environment: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Run:
    """Put the reports of some suites into one run, ready to be stored.

    Parameters
    ----------
    reports
        Reports of different suites, all quick or all full.
    commit, branch
        State of the sources; by default as git tells it, if the package lies in a repository.
    environment
        Added to the versions of Python and of the packages that matter.
    metadata
        Added to what the suites say of themselves.

    Returns
    -------
    Run with the points of all reports.

    Raises
    ------
    ValueError
        If two suites define a metric differently, or quick and full reports are mixed.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Case, MetricDef, Suite, as_one_run, run_suite
    >>> case = Case(dataset="data", task="task", variant="ours", run=lambda seed: {"f1": 0.9 - seed / 100})
    >>> suite = Suite(name="mine", metrics=(MetricDef(name="f1"),), cases=lambda quick: [case])
    >>> report = run_suite(suite)
    >>> as_one_run([report]).metadata["size"]
    'quick'
    """
    if len({report.quick for report in reports}) > 1:
        raise ValueError("reports must be all quick or all full, found both.")
    definitions: dict[str, MetricDef] = {}
    for report in reports:
        for name, definition in report.metric_defs.items():
            if definitions.setdefault(name, definition) != definition:
                raise ValueError(f"suites define the metric {name!r} differently; the second is {report.name!r}.")
    known = source_state()
    return Run(
        points=tuple(point for report in reports for point in report.points),
        commit=known[0] if commit is None else commit,
        branch=known[1] if branch is None else branch,
        environment={**environment_of_run(), **(environment or {})},
        metadata={
            "size": "quick" if all(report.quick for report in reports) else "full",
            "seeds": {name: list(seeds) for report in reports for name, seeds in report.seeds.items()},
            "suites": {report.name: dict(report.metadata) for report in reports},
            "skipped": {name: reason for report in reports for name, reason in report.skipped.items()},
            **(metadata or {}),
        },
        metric_defs=definitions,
    )


def environment_of_run() -> dict[str, Any]:
    """Versions of what results depend on."""
    names = ("diffbio-sc", "numpy", "scipy", "jax", "flax", "numba", "anndata", "scikit-learn")
    versions = {}
    for name in names:
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": sys.platform, "machine": platform.machine(), **versions}


def source_state() -> tuple[str | None, str | None]:
    """Commit and branch of the repository that holds this package, as git tells them; None without one."""
    here = Path(__file__).parent
    found = []
    for arguments in (("rev-parse", "HEAD"), ("rev-parse", "--abbrev-ref", "HEAD")):
        try:
            result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None, None
        if result.returncode != 0:
            return None, None
        found.append(result.stdout.strip())
    return found[0], None if found[1] == "HEAD" else found[1]


def data_folder(*parts: str) -> Path | None:
    """Return a file or folder of the real data sets, or None if ``DIFFBIO_SC_DATA`` is unset or lacks it."""
    root = os.environ.get("DIFFBIO_SC_DATA")
    path = Path(root, *parts) if root else None
    return path if path is not None and path.exists() else None


def lacking_data(*parts: str) -> str | None:
    """Why real data are not there, or None."""
    if data_folder(*parts) is not None:
        return None
    return f"needs {'/'.join(parts)} in the folder that DIFFBIO_SC_DATA names"


def lacking_package(name: str) -> str | None:
    """Why a peer cannot run, or None."""
    from importlib.util import find_spec

    return None if find_spec(name) is not None else f"needs the package {name}"
