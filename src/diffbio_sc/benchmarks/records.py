"""What a benchmark run is: points of metrics, and how to read each metric; as JSON, in the layout of Calibrax."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

DIRECTIONS = ("higher", "lower", "info")
PRIORITIES = ("primary", "secondary")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")

PointKey = tuple[str, tuple[tuple[str, str], ...]]


class RecordError(ValueError):
    """A stored record is not what it should be."""


@dataclass(frozen=True, kw_only=True)
class MetricDef:
    """How to read a metric.

    Parameters
    ----------
    name, unit
        Name and unit; the unit is empty for a share or an index.
    direction
        ``"higher"`` or ``"lower"``, whichever is better; ``"info"`` is never judged.
    group, priority, description
        Where it belongs, ``"primary"`` or ``"secondary"``, and a sentence on what it measures.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import MetricDef
    >>> MetricDef(name="rmse", direction="lower").direction
    'lower'
    """

    name: str
    unit: str = ""
    direction: str = "higher"
    group: str = ""
    priority: str = "secondary"
    description: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise RecordError(
                f"direction of metric {self.name!r} must be one of {DIRECTIONS}, found {self.direction!r}."
            )
        if self.priority not in PRIORITIES:
            raise RecordError(f"priority of metric {self.name!r} must be one of {PRIORITIES}, found {self.priority!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the definition as JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "direction": self.direction,
            "group": self.group,
            "priority": self.priority,
            "description": self.description,
        }

    @classmethod
    def from_dict(cls, data: Any, place: str = "metric_defs") -> MetricDef:
        """Read a definition, or raise :class:`RecordError` that says what is wrong with it."""
        data = _mapping(data, place)
        return cls(
            name=_text(data, "name", place),
            unit=_text(data, "unit", place, ""),
            direction=_text(data, "direction", place),
            group=_text(data, "group", place, ""),
            priority=_text(data, "priority", place, "secondary"),
            description=_text(data, "description", place, ""),
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured value: the median over seeds, its range, and the value of each seed.

    Parameters
    ----------
    value
        The median.
    lower, upper
        Least and largest value of a seed, if there are several.
    samples
        Value of each seed, in the order of the seeds.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Metric
    >>> Metric.of([0.8, 0.9, 0.7]).value
    0.8
    """

    value: float
    lower: float | None = None
    upper: float | None = None
    samples: tuple[float, ...] | None = None

    @classmethod
    def of(cls, samples: tuple[float, ...] | list[float]) -> Metric:
        """Median, least and largest of some samples; NaN if one of them is."""
        values = [float(value) for value in samples]
        if not values:
            raise ValueError("a metric needs one sample or more.")
        if any(math.isnan(value) for value in values):
            return cls(value=math.nan, samples=tuple(values))
        ordered = sorted(values)
        middle = len(ordered) // 2
        median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        return cls(value=median, lower=ordered[0], upper=ordered[-1], samples=tuple(values))

    @property
    def finite(self) -> bool:
        """Whether the value and all samples are finite."""
        return all(math.isfinite(value) for value in (self.value, *(self.samples or ())))

    def to_dict(self) -> dict[str, Any]:
        """Return the metric as JSON values, without what it lacks."""
        data: dict[str, Any] = {"value": float(self.value)}
        if self.lower is not None:
            data["lower"] = float(self.lower)
        if self.upper is not None:
            data["upper"] = float(self.upper)
        if self.samples is not None:
            data["samples"] = [float(value) for value in self.samples]
        return data

    @classmethod
    def from_dict(cls, data: Any, place: str = "metric") -> Metric:
        """Read a metric, or raise :class:`RecordError`."""
        data = _mapping(data, place)
        if "value" not in data:
            raise RecordError(f"{place} has no 'value'; keys: {sorted(data)}.")
        samples = data.get("samples")
        if samples is not None and not isinstance(samples, list | tuple):
            raise RecordError(f"{place}.samples must be a list of numbers, found {type(samples).__name__}.")
        return cls(
            value=_number(data["value"], f"{place}.value"),
            lower=None if data.get("lower") is None else _number(data["lower"], f"{place}.lower"),
            upper=None if data.get("upper") is None else _number(data["upper"], f"{place}.upper"),
            samples=None
            if samples is None
            else tuple(_number(value, f"{place}.samples[{i}]") for i, value in enumerate(samples)),
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """The metrics of one configuration, told from others by its name and tags.

    Parameters
    ----------
    name
        Suite, dataset, task and variant, as ``"peaks/planted/fragments/call_peaks"``.
    scenario
        Name of the suite.
    tags
        Dataset, task and variant by themselves, and the role of what is not the subject.
    metrics
        What was measured, by name.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Metric, Point
    >>> tags = {"dataset": "planted", "task": "fragments", "variant": "ours"}
    >>> Point(name="peaks", scenario="peaks", tags=tags, metrics={"f1": Metric(value=0.9)}).key[0]
    'peaks'
    """

    name: str
    scenario: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    @property
    def key(self) -> PointKey:
        """Name and sorted tags, by which points of two runs are matched."""
        return self.name, tuple(sorted(self.tags.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return the point as JSON values."""
        return {
            "name": self.name,
            "scenario": self.scenario,
            "tags": dict(self.tags),
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
        }

    @classmethod
    def from_dict(cls, data: Any, place: str = "point") -> Point:
        """Read a point, or raise :class:`RecordError`."""
        data = _mapping(data, place)
        tags = _mapping(data.get("tags", {}), f"{place}.tags")
        for key, value in tags.items():
            if not isinstance(value, str):
                raise RecordError(f"{place}.tags[{key!r}] must be text, found {value!r}.")
        metrics = _mapping(data.get("metrics", {}), f"{place}.metrics")
        return cls(
            name=_text(data, "name", place),
            scenario=_text(data, "scenario", place),
            tags=dict(tags),
            metrics={key: Metric.from_dict(value, f"{place}.metrics[{key!r}]") for key, value in metrics.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of one suite or several.

    Parameters
    ----------
    points
        What was measured; no two with the same name and tags.
    id
        Twelve hexadecimal digits by default.
    timestamp
        When, with its time zone.
    commit, branch
        State of the sources, if known.
    environment, metadata
        Versions of packages and the like; what the suites say of themselves.
    metric_defs
        How to read each metric.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Metric, MetricDef, Point, Run
    >>> point = Point(name="mine", scenario="mine", metrics={"f1": Metric(value=0.9)})
    >>> run = Run(points=(point,), metric_defs={"f1": MetricDef(name="f1")})
    >>> Run.from_dict(run.to_dict()) == run
    True
    """

    points: tuple[Point, ...]
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: str | None = None
    branch: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    metric_defs: dict[str, MetricDef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.id)
        seen: set[PointKey] = set()
        for point in self.points:
            if point.key in seen:
                raise RecordError(f"run {self.id} has two points {point.name!r} with the tags {point.tags}.")
            seen.add(point.key)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as JSON values; scalars of numpy and JAX become numbers."""
        return {
            "id": self.id,
            "timestamp": self.timestamp.isoformat(),
            "commit": self.commit,
            "branch": self.branch,
            "environment": _plain(self.environment, "environment"),
            "metadata": _plain(self.metadata, "metadata"),
            "metric_defs": {name: definition.to_dict() for name, definition in self.metric_defs.items()},
            "points": [point.to_dict() for point in self.points],
        }

    @classmethod
    def from_dict(cls, data: Any, place: str = "run") -> Run:
        """Read a run, or raise :class:`RecordError` that names the place of the fault."""
        data = _mapping(data, place)
        points = data.get("points")
        if not isinstance(points, list | tuple):
            raise RecordError(f"{place} has no list of 'points'; keys: {sorted(data)}.")
        text = _text(data, "timestamp", place)
        try:
            timestamp = datetime.fromisoformat(text)
        except ValueError:
            raise RecordError(f"{place}.timestamp must be a date and time of ISO 8601, found {text!r}.") from None
        if timestamp.tzinfo is None:  # as early versions of Calibrax wrote it, in local time
            timestamp = timestamp.astimezone()
        definitions = _mapping(data.get("metric_defs", {}), f"{place}.metric_defs")
        return cls(
            points=tuple(Point.from_dict(point, f"{place}.points[{i}]") for i, point in enumerate(points)),
            id=_text(data, "id", place),
            timestamp=timestamp,
            commit=_text_or_none(data, "commit", place),
            branch=_text_or_none(data, "branch", place),
            environment=dict(_mapping(data.get("environment", {}), f"{place}.environment")),
            metadata=dict(_mapping(data.get("metadata", {}), f"{place}.metadata")),
            metric_defs={
                name: MetricDef.from_dict(value, f"{place}.metric_defs[{name!r}]")
                for name, value in definitions.items()
            },
        )


def check_id(identifier: str) -> str:
    """Return an identifier of a run, or raise if it cannot be the name of a file."""
    if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
        raise RecordError(
            f"the id of a run must be letters, digits, '-' and '_' (twelve hexadecimal digits by default), found "
            f"{identifier!r}."
        )
    return identifier


def as_run(run: Any) -> Run:
    """Return a run of this package, or of any other that has the same ``to_dict``, such as Calibrax's."""
    if isinstance(run, Run):
        return run
    if hasattr(run, "to_dict"):
        return Run.from_dict(run.to_dict())
    raise TypeError(f"a run must be a diffbio_sc.benchmarks.Run or one of calibrax, found {type(run).__name__}.")


def _plain(value: Any, place: str) -> Any:
    """JSON values; anything else is refused, by its place."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return value.item()
    raise RecordError(f"{place} must hold text, numbers, lists and mappings, found {type(value).__name__}.")


def _mapping(data: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise RecordError(f"{place} must be a JSON object, found {type(data).__name__}.")
    return data


_REQUIRED: Any = object()


def _text(data: Mapping[str, Any], key: str, place: str, default: Any = _REQUIRED) -> str:
    if key not in data:
        if default is not _REQUIRED:
            return default
        raise RecordError(f"{place} has no {key!r}; keys: {sorted(data)}.")
    value = data[key]
    if not isinstance(value, str):
        raise RecordError(f"{place}.{key} must be text, found {value!r}.")
    return str(value)


def _text_or_none(data: Mapping[str, Any], key: str, place: str) -> str | None:
    return None if data.get(key) is None else _text(data, key, place)


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"{place} must be a number, found {value!r}.")
    return float(value)
