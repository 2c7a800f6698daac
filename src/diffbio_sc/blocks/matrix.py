"""Count matrices of any kind (dense, CSR, CSC, backed, dask) behind one interface that works block by block."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any, TypeVar

import h5py
import numpy as np
import scipy.sparse as sp

from diffbio_sc._progress import progress
from diffbio_sc.blocks.plan import BLOCK_ROWS, Plan, plan_rows
from diffbio_sc.blocks.shuffle import ColumnSpool
from diffbio_sc.blocks.steps import ColumnSums, GroupSums, RowSums, Step, Together, combine_in_order

__all__ = ["BLOCK_ROWS", "Backed", "BackedColumns", "CountMatrix", "Dask", "InMemory", "as_count_matrix", "dense_block"]

Result = TypeVar("Result")
_PIECES = 32  # of rows that the columns of a file are dealt out to
_SLAB_VALUES = 4_000_000  # of columns that are read at once


class CountMatrix(abc.ABC):
    """Rows (observations) by columns (variables) of counts, read in blocks of rows.

    ``shape``, ``dtype``, ``plan`` and ``read`` say what lies where; all else builds on them. No method holds more than
    one read of the storage, the columns asked for, and its own result. Blocks are numpy arrays or CSR matrices in
    float32, or float64 where the stored type has numbers that float32 has not: arithmetic never happens in the stored
    type, in which squares and sums may overflow.
    """

    shape: tuple[int, int]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``, dense or CSR, in the working type."""

    def plan(self, size: int = BLOCK_ROWS) -> Plan:
        """Cut the rows into blocks of at most ``size``."""
        return plan_rows(self.shape[0], size)

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""
        for task, whole in self._wholes(self.plan(size)):
            yield from _pieces(whole, task)

    def _wholes(self, plan: Plan) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        """Each task of a plan with the rows that it reads, in order."""
        for task in plan.tasks:
            yield task, self.read(task[0][0], task[-1][1])

    def map(
        self, function: Callable[[int, Any], Result], size: int = BLOCK_ROWS, *, description: str | None = None
    ) -> list[Result]:
        """Apply ``function(first row, block)`` to all blocks, in order.

        On a dask matrix blocks are tasks of the active scheduler and only the results are gathered; the function must
        be picklable then.
        """
        blocks: Any = self.blocks(size)
        if description is not None:
            blocks = progress(blocks, description, total=len(self.plan(size).blocks))
        return [function(start, block) for start, block in blocks]

    def reduce(self, *steps: Step, size: int = BLOCK_ROWS, description: str | None = None) -> tuple[Any, ...]:
        """Run ``steps`` in one pass over the blocks; the result of each, combined in a fixed order."""
        step = Together(*steps)
        return step.finish(self._reduce(step, size, description))

    def _reduce(self, step: Step, size: int, description: str | None) -> Any:
        plan = self.plan(size)
        wholes: Any = self._wholes(plan)
        if description is not None:
            wholes = progress(wholes, description, total=len(plan.tasks))
        return combine_in_order((_run(step, whole, task) for task, whole in wholes), step.combine)

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, in order, in one pass over the rows.

        The rows are read once and dealt out to the blocks of columns, which wait in memory up to a limit, then in
        temporary files. On a dask matrix every block of columns is a task, as in :meth:`map`.
        """
        if len(blocks) == 1:
            return [function(self.columns(blocks[0]), blocks[0])]
        with ColumnSpool(blocks) as spool:
            for _, block in progress(self.blocks(), f"{description}: reading", total=len(self.plan().blocks)):
                spool.deal(block)
            numbers = progress(range(len(blocks)), description)
            return [function(spool.collect(number), blocks[number]) for number in numbers]

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(sp.vstack(self.map(_Columns(indices))))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices; only the chunks that hold them are read."""
        rows = np.asarray(rows)
        parts = [
            dense_block(self.read(task[0][0], task[-1][1])[inside - task[0][0]], columns)
            for task, inside in _tasks_with(self.plan(), rows)
        ]
        return np.concatenate(parts) if parts else _no_rows(self.shape[1], columns)

    def column_sums(self) -> np.ndarray:
        """Sum of each column, in float64."""
        return self.reduce(ColumnSums())[0]

    def row_sums(self) -> np.ndarray:
        """Sum of each row, in float64."""
        return self.reduce(RowSums())[0]

    def sum_by_group(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """Sum of the rows of each group (groups, columns), in float64; rows of code -1 are left out."""
        return self.reduce(GroupSums(codes, groups))[0]


class InMemory(CountMatrix):
    """A numpy array or a CSR matrix."""

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, np.dtype(matrix.dtype)

    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``."""
        return as_working(self.matrix[start:stop])

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, in order."""
        return [function(self.columns(block), block) for block in progress(blocks, description)]

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(as_working(self.matrix[:, indices]))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices."""
        return dense_block(as_working(self.matrix[np.asarray(rows)]), columns)


class Backed(CountMatrix):
    """A matrix in a file, dense or sparse, of which slices of rows can be read."""

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape, self.dtype = tuple(matrix.shape), np.dtype(matrix.dtype)

    def plan(self, size: int = BLOCK_ROWS) -> Plan:
        """Cut the rows into blocks of at most ``size``, along the file's chunks."""
        chunks = None if hasattr(self.matrix, "format") else getattr(self.matrix, "chunks", None)
        if chunks is None:
            return plan_rows(self.shape[0], size)
        starts = range(0, self.shape[0], chunks[0])
        return plan_rows(self.shape[0], size, [min(chunks[0], self.shape[0] - start) for start in starts])

    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``."""
        return as_working(self.matrix[start:stop])


class BackedColumns(CountMatrix):
    """A CSC matrix in a file, of which slices of columns can be read.

    Its rows are all over the file. A pass over them reads the columns once and deals them out to a few large pieces of
    rows, which wait in memory up to a limit, then in temporary files.
    """

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape, self.dtype = tuple(matrix.shape), np.dtype(matrix.dtype)

    def plan(self, size: int = BLOCK_ROWS) -> Plan:
        """Cut the rows into blocks of at most ``size``, several of them in each piece that is dealt out."""
        rows = self.shape[0]
        each = max(-(-rows // _PIECES), size)
        return plan_rows(rows, size, [min(each, rows - start) for start in range(0, rows, each)])

    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``, by a pass over all columns."""
        return self._rows(np.arange(start, stop))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices, by one pass over all columns."""
        return dense_block(self._rows(np.asarray(rows)), columns)

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(as_working(self.matrix[:, np.asarray(indices)]))

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, in order."""
        return [function(self.columns(block), block) for block in progress(blocks, description)]

    def _wholes(self, plan: Plan) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        if not plan.tasks:
            return
        with ColumnSpool([np.arange(task[0][0], task[-1][1]) for task in plan.tasks]) as spool:
            for slab in self._slabs():
                spool.deal(slab)
            for number, task in enumerate(plan.tasks):
                yield task, sp.csr_array(spool.collect(number).T)

    def _slabs(self) -> Iterator[sp.csr_array]:
        """Some columns after the other, as rows of a CSR matrix."""
        columns = self.shape[1]
        each = max(int(_SLAB_VALUES * columns / max(self.matrix.group["data"].shape[0], 1)), 1)
        for first in range(0, columns, each):
            yield as_working(self.matrix[:, first : min(first + each, columns)].T)

    def _rows(self, rows: np.ndarray) -> sp.csr_array:
        parts = [slab[:, rows] for slab in self._slabs()]
        return sp.csr_array(sp.vstack(parts).T) if parts else sp.csr_array((len(rows), 0), dtype=np.float32)


class Dask(CountMatrix):
    """A dask array, with dense or sparse chunks; blocks are tasks of the active scheduler."""

    def __init__(self, matrix: Any):
        if any(np.isnan(size) for axis in matrix.chunks for size in axis):
            raise ValueError("the dask array has chunks of unknown size: call .compute_chunk_sizes() on it first.")
        self.matrix = matrix
        self.shape, self.dtype = matrix.shape, np.dtype(matrix.dtype)

    def plan(self, size: int = BLOCK_ROWS) -> Plan:
        """Cut the rows into blocks of at most ``size``, along the chunks."""
        return plan_rows(self.shape[0], size, self.matrix.chunks[0])

    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``."""
        block = self.matrix[start:stop].rechunk(-1).compute()
        return as_working(block)

    def _reads(self, plan: Plan) -> list[Any]:
        """One delayed read for each task of the plan."""
        rows = tuple(task[-1][1] - task[0][0] for task in plan.tasks)
        return list(self.matrix.rechunk({0: rows, 1: -1}).to_delayed().ravel())

    def map(
        self, function: Callable[[int, Any], Result], size: int = BLOCK_ROWS, *, description: str | None = None
    ) -> list[Result]:
        """Apply ``function(first row, block)`` to all blocks; one dask task for each read."""
        import dask

        plan = self.plan(size)
        # A node of the graph of its own: what the function holds travels to each worker once, not with every task.
        shared, run = dask.delayed(function, pure=False, traverse=False), dask.delayed(_map_task, pure=False)
        results = dask.compute(
            *[run(shared, block, task) for block, task in zip(self._reads(plan), plan.tasks, strict=True)]
        )
        return [result for part in results for result in part]

    def _reduce(self, step: Step, size: int, description: str | None) -> Any:
        import dask

        plan = self.plan(size)
        shared, run = dask.delayed(step, pure=False, traverse=False), dask.delayed(_run, pure=False)
        combine = dask.delayed(_combine, pure=False)
        parts = [run(shared, block, task) for block, task in zip(self._reads(plan), plan.tasks, strict=True)]
        return combine_in_order(parts, lambda left, right: combine(shared, left, right)).compute()

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, one dask task each.

        Every chunk is read once and cut into the blocks of columns; the pieces are shuffled between the workers.
        """
        import dask

        shared = dask.delayed(function, pure=False, traverse=False)
        cut = dask.delayed(_cut_columns, pure=False, nout=len(blocks))
        gather = dask.delayed(_on_columns, pure=False)
        pieces = [cut(block, blocks) for block in self._reads(self.plan())]
        tasks = [gather(shared, [piece[number] for piece in pieces], block) for number, block in enumerate(blocks)]
        return list(dask.compute(*tasks))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices; only the chunks that hold them are computed."""
        import dask

        rows = np.asarray(rows)
        plan = self.plan()
        position = {task[0][0]: number for number, task in enumerate(plan.tasks)}
        reads, run = self._reads(plan), dask.delayed(_take_task, pure=False)
        chosen = _tasks_with(plan, rows)
        parts = [run(reads[position[task[0][0]]], inside - task[0][0], columns) for task, inside in chosen]
        if not parts:
            return _no_rows(self.shape[1], columns)
        return np.concatenate(dask.compute(*parts))


def as_working(block: Any) -> Any:
    """Return a block (dense or CSR) in the type that it is computed with, sparse ones without duplicate entries.

    float32 has all numbers of the types up to 16 bits, float64 serves the wider ones.
    """
    if block.dtype.kind not in "biuf":
        raise TypeError(f"the matrix must hold real numbers, found dtype {block.dtype}.")
    dtype = np.float64 if block.dtype.itemsize > 8 else np.result_type(block.dtype, np.float32)
    if sp.issparse(block):
        block = sp.csr_array(block if block.dtype == dtype else block.astype(dtype))
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        return block
    return np.asarray(block, dtype=dtype)


def dense_block(block: Any, columns: np.ndarray | None = None) -> np.ndarray:
    """Return a block as a dense float32 array, of the given columns."""
    if columns is not None:
        block = block[:, columns]
    if sp.issparse(block):
        block = block.astype(np.float32).toarray()
    return np.ascontiguousarray(block, dtype=np.float32)


def _pieces(whole: Any, task: list[tuple[int, int]]) -> Iterator[tuple[int, Any]]:
    """Blocks of one read."""
    if len(task) == 1:
        yield task[0][0], whole
        return
    for start, stop in task:
        yield start, whole[start - task[0][0] : stop - task[0][0]]


def _run(step: Step, whole: Any, task: list[tuple[int, int]]) -> Any:
    """Combine the parts of one read's blocks."""
    return combine_in_order((step(start, block) for start, block in _pieces(as_working(whole), task)), step.combine)


def _combine(step: Step, left: Any, right: Any) -> Any:
    return step.combine(left, right)


def _map_task(function: Callable[[int, Any], Result], whole: Any, task: list[tuple[int, int]]) -> list[Result]:
    return [function(start, block) for start, block in _pieces(as_working(whole), task)]


def _take_task(whole: Any, rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
    return dense_block(as_working(whole)[rows], columns)


def _tasks_with(plan: Plan, rows: np.ndarray) -> list[tuple[list[tuple[int, int]], np.ndarray]]:
    """Reads that hold some of the rows, each with those."""
    found = []
    for task in plan.tasks:
        inside = rows[(rows >= task[0][0]) & (rows < task[-1][1])]
        if len(inside):
            found.append((task, inside))
    return found


def _no_rows(width: int, columns: np.ndarray | None) -> np.ndarray:
    return np.empty((0, width if columns is None else len(columns)), np.float32)


class _Columns:
    def __init__(self, indices: np.ndarray):
        self.indices = indices

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        return sp.csr_array(block[:, self.indices])


def _cut_columns(whole: Any, blocks: list[np.ndarray]) -> list[sp.csr_array]:
    block = as_working(whole)
    return [sp.csr_array(block[:, indices]) for indices in blocks]


def _on_columns(
    function: Callable[[sp.csc_array, np.ndarray], Result], pieces: list[sp.csr_array], block: np.ndarray
) -> Result:
    return function(sp.csc_array(sp.vstack(pieces, format="csc")), block)


@singledispatch
def as_count_matrix(matrix: Any) -> CountMatrix:
    """Matrix of any kind behind the one interface."""
    if hasattr(matrix, "to_memory") and hasattr(matrix, "format"):  # anndata's backed sparse classes
        return BackedColumns(matrix) if matrix.format == "csc" else Backed(matrix)
    if hasattr(matrix, "rechunk"):  # dask need not be installed
        return Dask(matrix)
    if type(matrix).__module__.startswith("zarr"):
        return Backed(matrix)
    raise TypeError(f"a matrix of type {type(matrix).__module__}.{type(matrix).__name__} is not supported.")


@as_count_matrix.register(np.ndarray)
def _(matrix: np.ndarray) -> CountMatrix:
    return InMemory(np.asarray(matrix))


@as_count_matrix.register(sp.spmatrix)
@as_count_matrix.register(sp.sparray)
def _(matrix: Any) -> CountMatrix:
    if matrix.dtype == np.float16:  # scipy can hold it, and do nothing with it
        matrix = matrix.astype(np.float32)
    return InMemory(sp.csr_array(matrix))


@as_count_matrix.register(h5py.Dataset)
def _(matrix: h5py.Dataset) -> CountMatrix:
    return Backed(matrix)
