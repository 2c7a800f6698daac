"""Runs as plain local JSON files, in the layout that Calibrax reads. Written whole or not at all; nothing is unpickled.

::

    <store>/
      runs/<id>.json         one file a run
      baselines/main.json    the run that others are compared with
      config.json            optional: {"metric_defs": {name: definition}}
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffbio_sc._files import replacing
from diffbio_sc.benchmarks.records import MetricDef, RecordError, Run, as_run, check_id

_ADVICE = "Restore the file from version control or a copy, or delete it and store the run again."


class StoreError(ValueError):
    """A file of a store cannot be read; the message says which, what is wrong with it and what to do."""


class Store:
    """A folder of benchmark runs, in the layout that Calibrax reads.

    Parameters
    ----------
    path
        Folder; made when the first run is saved.

    Examples
    --------
    >>> import tempfile
    >>> from diffbio_sc.benchmarks import Metric, MetricDef, Point, Run, Store
    >>> point = Point(name="demo", scenario="demo", metrics={"f1": Metric.of([0.8, 0.9])})
    >>> run = Run(points=(point,), metric_defs={"f1": MetricDef(name="f1")})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder)
    ...     path = store.save(run)
    ...     store.set_baseline(run.id)
    ...     value = store.get_baseline().points[0].metrics["f1"].value
    >>> round(value, 2)
    0.85
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"the store {str(self.path)!r} must be a folder, found a file.")

    @property
    def baseline_path(self) -> Path:
        """File of the baseline."""
        return self.path / "baselines" / "main.json"

    @property
    def metric_defs(self) -> dict[str, MetricDef]:
        """Definitions of ``config.json``; empty without one."""
        path = self.path / "config.json"
        if not path.exists():
            return {}
        data = _read_json(path)
        found = data.get("metric_defs", {}) if isinstance(data, dict) else None
        if not isinstance(found, dict):
            raise StoreError(f"{str(path)!r} must be an object with 'metric_defs', another object. {_ADVICE}")
        try:
            return {name: MetricDef.from_dict(value, f"metric_defs[{name!r}]") for name, value in found.items()}
        except RecordError as error:
            raise StoreError(f"{str(path)!r} holds no valid definitions: {error} {_ADVICE}") from error

    def save(self, run: Any) -> Path:
        """Write a run and return its file.

        Raises
        ------
        FileExistsError
            If another run with this id is stored.
        """
        run = as_run(run)
        path = self._run_path(run.id)
        if path.exists() and _as_text(self.load(run.id)) != _as_text(run):
            raise FileExistsError(f"{str(path)!r} holds another run with the id {run.id!r}; give this one its own id.")
        _write(path, run)
        return path

    def load(self, run_id: str) -> Run:
        """Read a run by its id.

        Raises
        ------
        FileNotFoundError
            If there is none.
        StoreError
            If its file is corrupt, cut short or of another run.
        """
        path = self._run_path(run_id)
        if not path.exists():
            known = [file.stem for file in self._run_files()]
            raise FileNotFoundError(f"{str(self.path)!r} holds no run {run_id!r}; runs: {known[:5]} ({len(known)}).")
        run = read_run(path)
        if run.id != run_id:
            raise StoreError(f"{str(path)!r} holds the run {run.id!r}, not {run_id!r}. {_ADVICE}")
        return run

    def list_runs(self, branch: str | None = None) -> list[Run]:
        """All runs, newest first; those of one branch, if given."""
        runs = [self.load(path.stem) for path in self._run_files()]
        chosen = [run for run in runs if branch is None or run.branch == branch]
        return sorted(chosen, key=lambda run: run.timestamp, reverse=True)

    def latest(self) -> Run:
        """Return the newest run, or raise FileNotFoundError if there is none."""
        runs = self.list_runs()
        if not runs:
            raise FileNotFoundError(f"{str(self.path)!r} holds no runs.")
        return runs[0]

    def query(self, **tags: str) -> list[Run]:
        """Runs with a point that has all these tags."""
        return [
            run
            for run in self.list_runs()
            if any(all(point.tags.get(key) == value for key, value in tags.items()) for point in run.points)
        ]

    def set_baseline(self, run: Any) -> None:
        """Make a run, or the stored run of an id, the one that others are compared with.

        Raises
        ------
        ValueError
            If a judged metric of it is not finite: nothing could be worse than it.
        """
        chosen = self.load(run) if isinstance(run, str) else as_run(run)
        bad = [
            f"{point.name}: {name}"
            for point in chosen.points
            for name, metric in point.metrics.items()
            if not metric.finite and (name not in chosen.metric_defs or chosen.metric_defs[name].direction != "info")
        ]
        if bad:
            raise ValueError(
                f"run {chosen.id} cannot be a baseline: {len(bad)} of its metrics are not finite, first: {bad[:3]}."
            )
        _write(self.baseline_path, chosen)

    def get_baseline(self) -> Run | None:
        """Return the baseline, or None if none has been set."""
        return read_run(self.baseline_path) if self.baseline_path.exists() else None

    def _run_path(self, run_id: str) -> Path:
        return self.path / "runs" / f"{check_id(run_id)}.json"

    def _run_files(self) -> Iterator[Path]:
        # A name with a dot in front is the rest of a writer that was killed.
        return (path for path in sorted((self.path / "runs").glob("*.json")) if not path.name.startswith("."))


class _CalibraxStore:
    """A store of Calibrax behind the calls that this package makes."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def metric_defs(self) -> dict[str, MetricDef]:
        return {name: MetricDef.from_dict(value.to_dict()) for name, value in self._store.metric_defs.items()}

    def save(self, run: Any) -> Path:
        return Path(self._store.save(to_calibrax(run)))

    def load(self, run_id: str) -> Run:
        return as_run(self._store.load(run_id))

    def latest(self) -> Run:
        return as_run(self._store.latest())

    def get_baseline(self) -> Run | None:
        found = self._store.get_baseline()
        return None if found is None else as_run(found)

    def set_baseline(self, run: Any) -> None:
        self._store.set_baseline(run if isinstance(run, str) else run.id)


def open_store(store: Any) -> Any:
    """Return a store for a path, a :class:`Store`, or a store of Calibrax."""
    if isinstance(store, str | os.PathLike):
        return Store(store)
    if isinstance(store, Store):
        return store
    if all(hasattr(store, name) for name in ("save", "load", "latest", "get_baseline", "set_baseline")):
        return _CalibraxStore(store)
    raise TypeError(f"store must be a path, a Store or one of calibrax, found {type(store).__name__}.")


def to_calibrax(run: Any) -> Any:
    """Return a run as Calibrax's own type.

    Parameters
    ----------
    run
        Run of this package.

    Returns
    -------
    ``calibrax.core.models.Run`` with the same content.

    Raises
    ------
    ImportError
        Without Calibrax: ``pip install "diffbio-sc[calibrax]"``, which asks for a JAX of its own.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Run, to_calibrax
    >>> to_calibrax(Run(points=()))  # doctest: +SKIP
    Run(id=...)
    """
    if importlib.util.find_spec("calibrax") is None:
        raise ImportError('this needs Calibrax: pip install "diffbio-sc[calibrax]", in an environment of its own.')
    from calibrax.core.models import Run as CalibraxRun

    return CalibraxRun.from_dict(as_run(run).to_dict())


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read the file of a run.

    Parameters
    ----------
    path
        JSON file, as a store writes it.

    Returns
    -------
    The run.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If it is empty, cut short, not JSON, or not a run.

    Examples
    --------
    >>> from diffbio_sc.benchmarks import Run, Store, read_run
    >>> path = Store("benchmark_runs").save(Run(points=(), id="first"))
    >>> read_run(path).id
    'first'
    """
    data = _read_json(Path(path))
    try:
        return Run.from_dict(data)
    except RecordError as error:
        raise StoreError(f"{os.fspath(path)!r} is no benchmark run: {error} {_ADVICE}") from error


def _read_json(path: Path) -> Any:
    content = path.read_bytes()
    name = repr(str(path))
    if not content.strip():
        raise StoreError(f"{name} is empty. {_ADVICE}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "a pickle, which is never loaded" if content[:1] == b"\x80" else "binary"
        raise StoreError(f"{name} must be JSON text, found {kind} (byte {error.start}). {_ADVICE}") from error
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecordError as error:
        raise StoreError(f"{name}: {error} {_ADVICE}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        where = getattr(error, "pos", 0)
        short = where >= len(text.rstrip()) or str(error).startswith("Unterminated")
        what = "is cut short" if short else "is not valid JSON"
        raise StoreError(f"{name} {what}: {error}. {_ADVICE}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise RecordError(f"a key is there twice: {next(name for name in names if names.count(name) > 1)!r}.")
    return found


def _as_text(run: Run) -> str:
    return json.dumps(run.to_dict(), indent=2) + "\n"


def _write(path: Path, run: Run) -> None:
    text = _as_text(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
