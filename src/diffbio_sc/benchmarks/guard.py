r"""What got worse between two runs.

The change of a metric is that of its median over seeds; where both runs tell the same seeds (``metadata["seeds"]``),
the median of the paired changes. It counts as worse when it goes in the bad direction by more than

.. math:: \max(0.05\,|m|,\; t_{n-1}\, s \sqrt{\pi / 2}\, \sqrt{1/n + 1/n'})

with :math:`m` and :math:`s` median and standard deviation of the :math:`n` stored seeds, :math:`n'` the new ones, and
:math:`t` the 0.995 quantile of Student's distribution: medians of seeds drawn from what is stored differ by more once
in about two hundred times. Where seeds are paired, the spread of the paired changes, if smaller, takes the place of
:math:`s`, over :math:`\sqrt{n}`. A score of which more than half is lost is worse whatever its spread; at a stored
median of 0 an absolute tolerance stands in for the relative one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffbio_sc.benchmarks.records import Metric, MetricDef, Point, Run, as_run

THRESHOLD = 0.05
ABSOLUTE = 0.01
_LEVEL = 0.995
_LARGEST_LOSS = 0.5
FAILING = ("worse", "not finite", "missing", "undefined", "redefined")


@dataclass(frozen=True)
class Row:
    """The verdict on one metric of one point, or on a point as a whole (``metric`` is then empty)."""

    scenario: str
    point: str
    tags: Mapping[str, str]
    metric: str
    verdict: str
    stored: float = math.nan
    current: float = math.nan
    change: float = math.nan
    tolerance: float = math.nan

    @property
    def failed(self) -> bool:
        """Whether this row alone makes the check fail."""
        return self.verdict in FAILING


@dataclass(frozen=True)
class GuardResult:
    """What a check found.

    Parameters
    ----------
    rows
        Verdict on each metric.
    threshold
        Share of the stored median by which a metric may get worse in any case.
    baseline_id, current_id
        Names of the two runs.

    Examples
    --------
    See :func:`compare`, which makes it.

    >>> from diffbio_sc.benchmarks import GuardResult
    >>> GuardResult(rows=(), threshold=0.05, baseline_id="a", current_id="b").exit_code
    0
    """

    rows: tuple[Row, ...]
    threshold: float
    baseline_id: str
    current_id: str

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.regressions

    @property
    def regressions(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.failed)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, otherwise 1."""
        return 0 if self.passed else 1

    def table(self, *, every: bool = True) -> str:
        """One line a metric: point, metric, stored median, current median, change, tolerance, verdict."""
        rows = self.rows if every else self.regressions
        head = ("point", "metric", "stored", "now", "change", "allowed", "verdict")
        cells = [
            (row.point, row.metric or "(all)", *map(_digits, (row.stored, row.current)), _signed(row.change))
            + (_digits(row.tolerance), row.verdict.upper() if row.failed else row.verdict)
            for row in rows
        ]
        return align([head, *cells], right=(2, 3, 4, 5))

    def summary(self) -> str:
        """One sentence, and a line for each thing that got worse."""
        judged = [row for row in self.rows if row.verdict not in ("info", "new", "control")]
        if self.passed:
            better = sum(row.verdict == "better" for row in judged)
            return f"Nothing got worse: {len(judged)} metrics judged, {better} better than stored."
        lines = [f"{len(self.regressions)} of {len(judged)} metrics got worse:"]
        lines += [f"  {_sentence(row)}" for row in self.regressions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "passed": self.passed,
            "threshold": self.threshold,
            "baseline_id": self.baseline_id,
            "current_id": self.current_id,
            "regressions": [{**row.__dict__, "tags": dict(row.tags)} for row in self.regressions],
        }


def compare(
    run: Any,
    baseline: Any,
    *,
    threshold: float = THRESHOLD,
    absolute: float = ABSOLUTE,
    scenarios: Collection[str] | None = None,
    metric_defs: Mapping[str, MetricDef] | None = None,
) -> GuardResult:
    """Tell what of a run is worse than in the baseline.

    Parameters
    ----------
    run, baseline
        Runs of this package or of Calibrax. Points are matched by name and tags.
    threshold
        Share of the stored median by which a metric may get worse in any case.
    absolute
        What takes its place where the stored median is 0, in the unit of the metric.
    scenarios
        Scenarios of the baseline to compare; default all. Name those that were run, if some were left out on purpose.
    metric_defs
        Definitions of metrics that neither run defines.

    Returns
    -------
    Result with a row for each metric. The verdict is ``"ok"``, ``"better"``, ``"new"``, ``"info"`` or ``"control"``
    (what the package is compared with must be there, whatever its value); or it fails the check: ``"worse"``,
    ``"not finite"``, ``"missing"`` (a metric, or a point: a variant or all of a task), ``"undefined"`` (no direction is
    known) or ``"redefined"`` (the direction differs from the stored one).

    Raises
    ------
    ValueError
        If a tolerance is negative, or the baseline has no point of a scenario.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Metric, MetricDef, Point, Run, compare
    >>> def run_with(f1):
    ...     point = Point(name="mine", scenario="mine", metrics={"f1": Metric(value=f1)})
    ...     return Run(points=(point,), metric_defs={"f1": MetricDef(name="f1")})
    >>> compare(run_with(0.89), run_with(0.90)).passed
    True
    >>> compare(run_with(0.60), run_with(0.90)).regressions[0].verdict
    'worse'
    """
    run, baseline = as_run(run), as_run(baseline)
    for name, value in (("threshold", threshold), ("absolute", absolute)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, found {value!r}.")
    known = {point.scenario for point in baseline.points}
    if scenarios is not None and not set(scenarios) <= known:
        lacking = sorted(set(scenarios) - known)
        raise ValueError(f"the baseline {baseline.id} has no points of {lacking}; scenarios: {sorted(known)}.")
    chosen = known if scenarios is None else set(scenarios)
    definitions = {**(metric_defs or {}), **run.metric_defs, **baseline.metric_defs}
    current = {point.key: point for point in run.points}
    rows: list[Row] = []
    for stored in baseline.points:
        if stored.scenario not in chosen:
            continue
        if stored.key in current:
            paired = _seeds(run, stored.name) is not None and _seeds(run, stored.name) == _seeds(baseline, stored.name)
            rule = (threshold, absolute, paired)
            rows += _compare_points(current[stored.key], stored, definitions, run.metric_defs, rule)
        elif _judged(stored, definitions):
            rows.append(Row(stored.scenario, stored.name, stored.tags, "", "missing"))
    keys = {point.key for point in baseline.points}
    for point in run.points:
        if point.key not in keys and (scenarios is None or point.scenario in chosen):
            rows += [_new(point, name, metric, definitions) for name, metric in point.metrics.items()]
    return GuardResult(tuple(rows), threshold, baseline.id, run.id)


def _judged(point: Point, definitions: Mapping[str, MetricDef]) -> bool:
    """Whether a point has a metric that is not for information only; peers may or may not be installed."""
    return point.tags.get("role") != "peer" and any(
        name not in definitions or definitions[name].direction != "info" for name in point.metrics
    )


def _seeds(run: Run, point: str) -> list[int] | None:
    """Seeds of a point's samples, where the run tells them."""
    seeds = run.metadata.get("seeds")
    return seeds.get(point) if isinstance(seeds, Mapping) else None


def _compare_points(point, stored, definitions, redefinitions, rule) -> list[Row]:
    rows = []
    for name, before in stored.metrics.items():
        place = (stored.scenario, stored.name, stored.tags, name)
        after = point.metrics.get(name)
        definition = definitions.get(name)
        if stored.tags.get("role") == "peer" or (definition is not None and definition.direction == "info"):
            rows.append(Row(*place, "info", before.value, math.nan if after is None else after.value))
        elif definition is None:
            rows.append(Row(*place, "undefined", before.value, math.nan if after is None else after.value))
        elif after is None:
            rows.append(Row(*place, "missing", before.value))
        elif name in redefinitions and redefinitions[name].direction != definition.direction:
            rows.append(Row(*place, "redefined", before.value, after.value))
        elif not (before.finite and after.finite):
            rows.append(Row(*place, "not finite", before.value, after.value))
        else:
            change, allowed = _change(before, after, definition.direction == "higher", *rule)
            gain = change if definition.direction == "higher" else -change
            verdict = "worse" if gain < -allowed else "better" if gain > allowed else "ok"
            if stored.tags.get("role") == "control":
                verdict = "control"
            rows.append(Row(*place, verdict, before.value, after.value, change, allowed))
    for name, metric in point.metrics.items():
        if name not in stored.metrics:
            rows.append(_new(point, name, metric, definitions))
    return rows


def _new(point: Point, name: str, metric: Metric, definitions: Mapping[str, MetricDef]) -> Row:
    definition = definitions.get(name)
    info = point.tags.get("role") == "peer" or (definition is not None and definition.direction == "info")
    verdict = "info" if info else "new" if metric.finite else "not finite"
    return Row(point.scenario, point.name, point.tags, name, verdict, current=metric.value)


def _change(
    before: Metric, after: Metric, higher: bool, threshold: float, absolute: float, paired: bool
) -> tuple[float, float]:
    """Change of the median, and how far it may go in the bad direction."""
    from scipy.stats import t

    floor = threshold * abs(before.value) if before.value != 0 else absolute
    old, new = np.array(before.samples or (before.value,)), np.array(after.samples or (after.value,))
    change = after.value - before.value
    if len(old) < 2:
        return change, floor
    # A median of normal values varies sqrt(pi / 2) times as much as their mean.
    quantile = float(t.ppf(_LEVEL, len(old) - 1)) * math.sqrt(math.pi / 2)
    spread = quantile * float(old.std(ddof=1)) * math.sqrt(1 / len(old) + 1 / len(new))
    if paired and len(old) == len(new):
        differences = new - old
        change = float(np.median(differences))
        spread = min(spread, quantile * float(differences.std(ddof=1)) / math.sqrt(len(old)))
    if higher and before.value > 0:
        spread = min(spread, _LARGEST_LOSS * before.value)
    return change, max(floor, spread)


def align(rows: list[tuple[str, ...]], right: Collection[int] = ()) -> str:
    """Rows of text as a table, the first one its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.2g}"


def _sentence(row: Row) -> str:
    name = f"{row.point}, {row.metric}" if row.metric else row.point
    if row.verdict == "missing":
        return f"{name}: stored, but not in this run"
    if row.verdict == "not finite":
        return f"{name}: {row.current:.4g}, stored {row.stored:.4g}"
    if row.verdict == "undefined":
        return f"{name}: neither run says whether higher or lower is better"
    if row.verdict == "redefined":
        return f"{name}: its direction differs from the stored one"
    return f"{name}: {row.stored:.4g} stored, {row.current:.4g} now ({row.change:+.2g}, {row.tolerance:.2g} allowed)"
