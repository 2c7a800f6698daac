"""Lazy matrices: dask arrays with dense or sparse chunks, worked through here or by the workers of a cluster."""

from __future__ import annotations

import importlib.metadata
import pickle
import sys
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.cluster import (
    active_client,
    in_order,
    load_stored,
    on_worker,
    shared_folder,
    stored_for_workers,
    threads_of,
    workers_of,
)
from diffbio_sc.blocks.interface import CountMatrix, as_working, bytes_of, dense_block, no_rows, pieces_of, tell_pass
from diffbio_sc.blocks.kept import KeptReads, file_at, keep, load_kept
from diffbio_sc.blocks.plan import Plan, Task, plan_rows
from diffbio_sc.blocks.shuffle import ColumnBlocks, FilePiece, HeldPiece, assemble
from diffbio_sc.blocks.steps import Step, combine_in_order

__all__ = ["ChunkError", "Dask"]

Item = TypeVar("Item")
Result = TypeVar("Result")
_TASKS_A_THREAD = 8  # of light work on kept files: fewer would be uneven, more cost more than their work does
_MOST_TOGETHER = 8  # kept files of a task, whose results it holds
_LIGHT = 100_000  # bytes of what chunks share (a store, a path) that each task may carry along


class ChunkError(RuntimeError):
    """A chunk of a lazy matrix could not be read."""


class Place:
    """Where a chunk lies, for messages, and its shape.

    Not a tuple: dask would look into it.
    """

    def __init__(self, name: str, shape: tuple[int, int]):
        self.name, self.shape = name, shape

    def working(self, make: Callable[[], Any]) -> Any:
        """The chunk that ``make`` makes, in the working type; what is wrong with it is told with its name."""
        try:
            chunk = as_working(make())
            if chunk.shape != self.shape:
                raise ValueError(f"its shape is {chunk.shape}, dask was told {self.shape}.")
        except Exception as error:
            raise ChunkError(f"{self.name} could not be read: {type(error).__name__}: {error}") from error
        return chunk


class Chunks:
    """Chunks that lie beside and below each other, with the part of dask's graph that makes them.

    Parameters
    ----------
    graph
        What the chunks are made from.
    keys
        Keys of the chunks, a list for each row of chunks.
    places
        Where each lies.
    """

    def __init__(self, graph: dict, keys: list[list[Any]], places: list[list[Place]]):
        self.graph, self.keys, self.places = graph, keys, places

    def read(self) -> Any:
        """Make the chunks, one after the other in this thread, and put them together."""
        import dask

        _ask_versions_once()
        return put_together(
            [
                [place.working(partial(dask.get, self.graph, key)) for key, place in zip(keys, places, strict=True)]
                for keys, places in zip(self.keys, self.places, strict=True)
            ]
        )


def _ask_versions_once() -> None:
    """Let anndata look up the version of scipy once in this process.

    It asks at every read of a sparse chunk, and each time scipy's metadata are parsed: 6 to 12 ms of CPU, most of what
    a chunk of 1,000 rows costs.
    """
    module: Any = sys.modules.get("anndata._core.sparse_dataset")
    if getattr(module, "version", None) is importlib.metadata.version:
        module.version = cache(importlib.metadata.version)


def put_together(parts: list[list[Any]]) -> Any:
    """Chunks in the working type, beside and below each other, as one matrix: by hand, as dask copies sparse ones."""
    rows = [row[0] if len(row) == 1 else _join(row, 1) for row in parts]
    return rows[0] if len(rows) == 1 else _join(rows, 0)


def _join(parts: list[Any], axis: int) -> Any:
    if any(sp.issparse(part) for part in parts):
        stack = (sp.vstack, sp.hstack)[axis]
        return sp.csr_array(stack([sp.csr_array(part) for part in parts], format="csr"))
    return np.concatenate(parts, axis)


class Dask(CountMatrix):
    """A dask array, with dense or sparse chunks, of which no more is computed at once than a block needs.

    With a client of ``dask.distributed`` reads are tasks of its workers, which make their chunks themselves: only
    results travel, and a task that is lost with its worker is run again. Without one they are made here, in order.
    """

    def __init__(self, matrix: Any):
        if any(np.isnan(size) for axis in matrix.chunks for size in axis):
            raise ValueError("the dask array has chunks of unknown size: call .compute_chunk_sizes() on it first.")
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, np.dtype(matrix.dtype)

    def plan(self, size: int | None = None) -> Plan:
        """Cut the rows into blocks of at most ``size``, along the chunks."""
        return plan_rows(self.shape[0], self._most_rows(size), self.matrix.chunks[0])

    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``; the chunks that hold them are computed whole."""
        chunks, first = self._chunks(start, stop)
        if self._owner is not None:
            import dask

            whole = _from_parts(dask.compute(self._tasks_of(chunks))[0], chunks.places)
        else:
            whole = chunks.read()
        return whole if whole.shape[0] == stop - start else whole[start - first : stop - first]

    @cached_property
    def _graph(self) -> tuple[dict, str]:
        """Dask's graph, and the name of the chunks in it."""
        import dask

        if self._owner is not None:  # dask's optimisation drops them
            return dict(self.matrix.__dask_graph__()), self.matrix.name
        (optimised,) = dask.optimize(self.matrix)
        return dict(optimised.__dask_graph__()), optimised.name

    @cached_property
    def _owner(self) -> Any | None:
        """The client whose workers hold chunks already, of an array that was persisted; else None."""
        if "distributed" not in sys.modules:
            return None
        from distributed import Future

        values = (getattr(node, "value", node) for node in dict(self.matrix.__dask_graph__()).values())
        return next((value.client for value in values if isinstance(value, Future)), None)

    def _client(self) -> Any | None:
        """The client whose workers do the work; None for this process."""
        client = active_client()
        if client is not None or self._owner is None or on_worker():
            return client
        if self._owner.status != "running":
            raise RuntimeError(
                f"the chunks of the dask array {self.matrix.name!r} were held by a cluster (persist()) whose client is "
                "closed: make the array again."
            )
        return self._owner

    @cached_property
    def _stops(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the chunks end, along the rows and along the columns."""
        rows, columns = (np.cumsum(sizes) for sizes in self.matrix.chunks)
        return rows, columns

    def _positions(self, start: int, stop: int) -> list[int]:
        """Numbers of the chunks along the rows that hold some of the rows."""
        first, last = np.searchsorted(self._stops[0], [start, stop - 1], side="right")
        return [index for index in range(first, last + 1) if self.matrix.chunks[0][index]]

    def _chunks(self, start: int, stop: int) -> tuple[Chunks, int]:
        """Chunks that hold some of the rows, and the first row of the first of them."""
        from dask.optimization import cull

        graph, name = self._graph
        positions = self._positions(start, stop)
        beside = [index for index, size in enumerate(self.matrix.chunks[1]) if size]
        keys = [[(name, row, column) for column in beside] for row in positions]
        needed, _ = cull(graph, [key for row in keys for key in row])
        places = [[self._place(row, column) for column in beside] for row in positions]
        return Chunks(needed, keys, places), self._first(0, positions[0])

    def _first(self, axis: int, index: int) -> int:
        return int(self._stops[axis][index]) - self.matrix.chunks[axis][index]

    def _place(self, row: int, column: int) -> Place:
        (top, bottom), (left, right) = (
            (self._first(axis, index), int(self._stops[axis][index])) for axis, index in ((0, row), (1, column))
        )
        name = (
            f"chunk ({row}, {column}) of the dask array {self.matrix.name!r}, rows {top} to {bottom - 1} and columns "
            f"{left} to {right - 1},"
        )
        return Place(name, (bottom - top, right - left))

    def _sources(self, reads: list[tuple[int, int]]) -> Iterator[Any]:
        """For each read the chunks as an argument of a task: with the graph that makes them, or as dask's own tasks.

        The graph goes along where tasks have nothing in common but a store or a path. What is heavy, what several reads
        are cut from, and what workers hold already (a persisted array) stays with dask.
        """
        chunks = [self._chunks(start, stop)[0] for start, stop in reads]
        if self._owner is None and _independent([one.graph for one in chunks]):
            yield from chunks
        else:
            yield from ([self._tasks_of(one), one.places] for one in chunks)

    def _tasks_of(self, chunks: Chunks) -> list[list[Any]]:
        """Chunks as delayed values."""
        delayed = self.matrix.to_delayed()
        return [[delayed[key[1:]] for key in row] for row in chunks.keys]

    def _submit(self, client: Any, function: Any, reads: list[tuple[int, int]], arguments: Iterable, name: str) -> list:
        """Delayed ``function`` of each read, with an argument of its own; each returns its bytes and a result."""
        import dask

        paths, files = self._kept_files(client, reads)
        sources = self._sources([read for read, file in zip(reads, files, strict=True) if file is None])

        # A node of the graph of its own: what the function holds travels to each worker once, not with every task, and
        # is sent again to a worker that takes the place of a lost one.
        shared, run = dask.delayed(function, pure=False, traverse=False), dask.delayed(_on_source, pure=False)
        label, token = name.lower().replace(" ", "-"), uuid.uuid4().hex[:8]
        return [
            run(shared, file or next(sources), argument, path, dask_key_name=f"{label}-rows-{start}-{stop}-{token}")
            for (start, stop), file, argument, path in zip(reads, files, arguments, paths, strict=True)
        ]

    def _kept_files(self, client: Any, reads: list[tuple[int, int]]) -> tuple[list[Path | None], list[Path | None]]:
        """Where each read is kept, if it is to be, and the files that are there."""
        kept = self._kept_reads(client)
        paths = [None if kept is None else kept.path(*read) for read in reads]
        return paths, [file_at(path) for path in paths]

    def _results(
        self,
        client: Any,
        function: Any,
        reads: list[tuple[int, int]],
        arguments: Iterable,
        name: str,
        description: str | None = None,
        *,
        light: bool = True,
    ) -> Iterator[Any]:
        """Bytes and result of ``function`` of each read, in order.

        If it is ``light``, a task takes several reads that are all kept: a task costs more than the work on one.
        """
        files = [file for file in self._kept_files(client, reads)[1] if file is not None]
        if light and reads and len(files) == len(reads):
            yield from _results_of_files(client, function, files, list(arguments), name, description)
            return
        tasks = self._submit(client, function, reads, arguments, name)
        yield from in_order(client, tasks, description, lambda number, error: self._explained(error, reads[number]))

    def _explained(self, error: BaseException, read: tuple[int, int] | None = None) -> BaseException:
        """An error of a task; if it is one of dask's own tasks, which make the chunks, with the rows that they hold."""
        if isinstance(error, ChunkError) or type(error).__module__.startswith("distributed") or _in_our_task(error):
            return error
        where = "" if read is None else f", in rows {read[0]} to {read[1] - 1},"
        if read is not None:
            places = self._chunks(*read)[0].places
            where = places[0][0].name if len(places) == len(places[0]) == 1 else where
        name = where if where.startswith("chunk") else f"a chunk of the dask array {self.matrix.name!r}{where}"
        return ChunkError(f"{name} could not be read: {type(error).__name__}: {error}")

    def _kept_reads(self, client: Any | None = None) -> KeptReads | None:
        return None if self._owner is not None else super()._kept_reads(client)

    def stream(
        self, function: Callable[[int, Any], Result], size: int | None = None, *, description: str | None = None
    ) -> Iterator[Result]:
        """Yield ``function(first row, block)`` of all blocks, in order; one task of a cluster for each read."""
        client = self._client()
        if client is None:
            yield from super().stream(function, size, description=description)
            return
        plan, name, total = self.plan(size), description or "Blocks", 0
        found = self._results(client, _Mapped(function), _spans(plan), plan.tasks, name, description, light=False)
        for number, results in found:
            total += number
            yield from results
        tell_pass(name, plan, total, workers_of(client))

    def _reduce(self, step: Step, size: int | None, description: str | None) -> Any:
        client = self._client()
        if client is None:
            return super()._reduce(step, size, description)
        plan, name, total = self.plan(size), description or "Sums", 0

        def parts() -> Iterator[Any]:
            nonlocal total
            found = self._results(client, _Reduced(step), _spans(plan), plan.tasks, name, description)
            for number, part in found:
                total += number
                yield part

        result = combine_in_order(parts(), step.combine)
        tell_pass(name, plan, total, workers_of(client))
        return result

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, one task of a cluster each.

        Every chunk is read once and cut into the blocks of columns. The pieces lie in a folder that all workers see, so
        that a lost worker takes none with it; without such a folder the workers send them to each other.
        """
        client = self._client()
        if client is None or not blocks:
            return super().map_columns(function, blocks, description=description)
        import dask

        plan, columns = self.plan(), ColumnBlocks(blocks)
        reads, name = _spans(plan), f"{description}: reading"
        run = dask.delayed(_on_columns, pure=False)
        with shared_folder(client) as folder:
            if folder is None:
                shared = dask.delayed(function, pure=False, traverse=False)
                cut = self._submit(client, _Cut(columns), reads, [None] * len(reads), name)
                tasks = [run(shared, [part[1][k] for part in cut], None, block) for k, block in enumerate(blocks)]
                return list(in_order(client, tasks, description, lambda _, error: self._explained(error)))
            paths = [folder / str(start) for start, _ in reads]
            sizes = self._results(client, _Store(columns), reads, paths, name, name)
            tell_pass(name, plan, sum(size for size, _ in sizes), workers_of(client))
            with stored_for_workers(client, function, folder / "function") as stored:
                tasks = [
                    run(stored, paths, stretch, block) for stretch, block in zip(columns.stretches, blocks, strict=True)
                ]
                return list(in_order(client, tasks, description))

    def map_items(self, function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> list[Result]:
        """Apply ``function`` to items that need no rows, in order, one task of a cluster each."""
        client = self._client()
        if client is None:
            return super().map_items(function, items, description=description)
        import dask

        run, token = dask.delayed(_on_item, pure=False), uuid.uuid4().hex[:8]
        label = description.lower().replace(" ", "-")

        def results(shared: Any) -> list[Result]:
            tasks = [run(shared, item, dask_key_name=f"{label}-{k}-{token}") for k, item in enumerate(items)]
            return list(in_order(client, tasks, description))

        with shared_folder(client) as folder:
            if folder is None:
                return results(dask.delayed(function, pure=False, traverse=False))
            with stored_for_workers(client, function, folder / "function") as stored:
                return results(stored)

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices; only the chunks that hold them are computed."""
        rows = np.asarray(rows)
        stops = self._stops[0]
        wanted = np.searchsorted(stops, rows, side="right")
        positions = np.unique(wanted)
        if not len(positions):
            return no_rows(self.shape[1], columns)
        reads = [(self._first(0, index), int(stops[index])) for index in positions]
        inside = [rows[wanted == index] - start for index, (start, _) in zip(positions, reads, strict=True)]
        function, client = _Take(columns), self._client()
        if client is None:
            parts = [function(self.read(*read), some)[1] for read, some in zip(reads, inside, strict=True)]
        else:
            parts = [part for _, part in self._results(client, function, reads, inside, "Rows")]
        return np.concatenate(parts)


def _spans(plan: Plan) -> list[tuple[int, int]]:
    return [(task[0][0], task[-1][1]) for task in plan.tasks]


def _independent(graphs: list[dict]) -> bool:
    """Whether graphs share nothing but what is light to carry along."""
    from dask._task_spec import Task as DaskTask

    seen: dict[Any, Any] = {}
    shared: dict[Any, Any] = {}
    for graph in graphs:
        for key, node in graph.items():
            if key in seen:
                shared[key] = node
            seen[key] = node
    if any(isinstance(node, DaskTask) for node in shared.values()):
        return False
    return not shared or len(pickle.dumps(shared)) <= _LIGHT


def _on_source(function: Callable[[Any, Any], Result], source: Any, argument: Any, path: Path | None) -> Result:
    """Run in a worker: read the chunks, and keep them if there is a path, or what was kept; then apply the function."""
    if isinstance(source, Path):
        return function(load_kept(source), argument)
    if isinstance(source, Chunks):
        if (kept := file_at(path)) is not None:  # by this task before, of which the result was lost with its worker
            return function(load_kept(kept), argument)
        whole = source.read()
    else:
        whole = _from_parts(*source)
    keep(whole, path)
    return function(whole, argument)


def _results_of_files(
    client: Any, function: Any, files: list[Path], arguments: list[Any], name: str, description: str | None
) -> Iterator[Any]:
    """Bytes and result of ``function`` of each kept file, in order, several files a task."""
    import dask

    each = min(max(len(files) // (_TASKS_A_THREAD * max(threads_of(client), 1)), 1), _MOST_TOGETHER)
    shared, run = dask.delayed(function, pure=False, traverse=False), dask.delayed(_on_files, pure=False)
    label, token = name.lower().replace(" ", "-"), uuid.uuid4().hex[:8]
    tasks = [
        run(
            shared,
            files[first : first + each],
            arguments[first : first + each],
            dask_key_name=f"{label}-kept-{first}-{token}",
        )
        for first in range(0, len(files), each)
    ]
    for results in in_order(client, tasks, description):
        yield from results


def _on_files(function: Callable[[Any, Any], Result], files: list[Path], arguments: list[Any]) -> list[Result]:
    """Run in a worker: apply the function to what was kept, file by file."""
    return [function(load_kept(file), argument) for file, argument in zip(files, arguments, strict=True)]


def _in_our_task(error: BaseException) -> bool:
    """Whether an error comes from :func:`_on_source` or :func:`_on_columns`, not from what dask did before."""
    names = {function.__name__ for function in (_on_source, _on_columns)}
    return any(frame.f_code.co_name in names for frame, _ in traceback.walk_tb(error.__traceback__))


def _from_parts(parts: list[list[Any]], places: list[list[Place]]) -> Any:
    def as_made(chunk: Any, place: Place) -> Any:
        return place.working(lambda: chunk)

    return put_together([list(map(as_made, *row)) for row in zip(parts, places, strict=True)])


class _Mapped:
    def __init__(self, function: Callable[[int, Any], Any]):
        self.function = function

    def __call__(self, whole: Any, task: Task) -> tuple[int, list[Any]]:
        return bytes_of(whole), [self.function(start, block) for start, block in pieces_of(whole, task)]


class _Reduced:
    def __init__(self, step: Step):
        self.step = step

    def __call__(self, whole: Any, task: Task) -> tuple[int, Any]:
        return bytes_of(whole), self.step.over(pieces_of(whole, task))


class _Take:
    def __init__(self, columns: np.ndarray | None):
        self.columns = columns

    def __call__(self, whole: Any, rows: np.ndarray) -> tuple[int, np.ndarray]:
        return bytes_of(whole), dense_block(whole[rows], self.columns)


class _Cut:
    """Pieces of a read for each block of columns."""

    def __init__(self, columns: ColumnBlocks):
        self.columns = columns

    def __call__(self, whole: Any, _: None) -> tuple[int, list[HeldPiece]]:
        piece = HeldPiece.cut(whole, self.columns.columns)
        return bytes_of(whole), [piece.stretch(first, last) for first, last in self.columns.stretches]


class _Store:
    """Pieces of a read in a file."""

    def __init__(self, columns: ColumnBlocks):
        self.columns = columns

    def __call__(self, whole: Any, path: Path) -> tuple[int, None]:
        HeldPiece.cut(whole, self.columns.columns).save(path)
        return bytes_of(whole), None


def _on_columns(
    function: Any,
    pieces: list[Any],
    stretch: tuple[int, int] | None,
    block: np.ndarray,
) -> Any:
    """Run in a worker: put the pieces of a block of columns together, then apply the function, or the one at a path."""
    if stretch is None:
        return function(assemble(pieces, 0, len(block)), block)
    function = load_stored(function)
    return function(assemble([FilePiece(path) for path in pieces], *stretch), block)


def _on_item(function: Any, item: Any) -> Any:
    """Run in a worker: apply the function, or the one at a path."""
    return (load_stored(function) if isinstance(function, Path) else function)(item)
