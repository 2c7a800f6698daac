"""The one interface of count matrices: passes over blocks of rows, and what blocks are."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse as sp

from diffbio_sc._checks import counted
from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc._settings import settings
from diffbio_sc.blocks.kept import KeptReads
from diffbio_sc.blocks.plan import Plan, Task, block_rows, plan_rows
from diffbio_sc.blocks.shuffle import ColumnSpool
from diffbio_sc.blocks.steps import ColumnSums, GroupSums, RowSums, Step, Together, combine_in_order

Item = TypeVar("Item")
Result = TypeVar("Result")


class CountMatrix(abc.ABC):
    """Rows (observations) by columns (variables) of counts, read in blocks of rows.

    ``shape``, ``dtype``, ``plan`` and ``read`` say what lies where; all else builds on them. No method holds more than
    one read of the storage, the columns asked for, and its own result. Blocks are numpy arrays or CSR matrices in
    float32, or float64 where the stored type has numbers that float32 has not: arithmetic never happens in the stored
    type, in which squares and sums may overflow.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    _stored = True  # whether a pass reads from somewhere else than memory
    _kept: KeptReads | None = None
    _keeps = False

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Any:
        """Rows from ``start`` to before ``stop``, dense or CSR, in the working type."""

    def keep(self) -> Self:
        """Let the next pass keep what it reads in temporary files, from which those after it read; return the matrix.

        For a function of several passes. The files go with this object. What is in memory stays there alone.
        """
        self._keeps = self._stored
        return self

    def _kept_reads(self, client: Any | None = None) -> KeptReads | None:
        """Files of what has been read, here or by the workers of a client; None if they are not wanted."""
        if self._keeps and (self._kept is None or self._kept.client is not client):
            self._kept = KeptReads(client)
        return self._kept

    def plan(self, size: int | None = None) -> Plan:
        """Cut the rows into blocks of at most ``size``, by default what ``settings.block_bytes`` allows."""
        return plan_rows(self.shape[0], self._most_rows(size))

    def _most_rows(self, size: int | None) -> int:
        return block_rows(self.shape[1], settings.block_bytes) if size is None else size

    def blocks(self, size: int | None = None, *, description: str | None = None) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""
        for task, whole in self._pass(self.plan(size), description):
            yield from pieces_of(whole, task)

    def _wholes(self, plan: Plan) -> Iterator[tuple[Task, Any]]:
        """Each task of a plan with the rows that it reads, in order."""
        for task in plan.tasks:
            yield task, self.read(task[0][0], task[-1][1])

    def _pass(self, plan: Plan, description: str | None) -> Iterator[tuple[Task, Any]]:
        """One pass over all rows, with a progress bar if it has a name, told in the log at its end."""
        kept = self._kept_reads()
        wholes: Any = self._wholes(plan) if kept is None else kept.wholes(plan, self._wholes)
        if description is not None:
            wholes = progress(wholes, description, total=len(plan.tasks))
        total = 0
        for task, whole in wholes:
            total += bytes_of(whole)
            yield task, whole
        if self._stored:
            tell_pass(description or "Pass", plan, total)

    def map(
        self, function: Callable[[int, Any], Result], size: int | None = None, *, description: str | None = None
    ) -> list[Result]:
        """Apply ``function(first row, block)`` to all blocks, in order.

        Blocks of a lazy matrix are tasks of the cluster, if a client is active, and only the results are gathered; the
        function must be picklable then.
        """
        return list(self.stream(function, size, description=description))

    def stream(
        self, function: Callable[[int, Any], Result], size: int | None = None, *, description: str | None = None
    ) -> Iterator[Result]:
        """Yield the results of :meth:`map` one by one, so that the caller need not hold them all."""
        for start, block in self.blocks(size, description=description):
            yield function(start, block)

    def reduce(self, *steps: Step, size: int | None = None, description: str | None = None) -> tuple[Any, ...]:
        """Run ``steps`` in one pass over the blocks; the result of each, combined in a fixed order."""
        step = Together(*steps)
        return step.finish(self._reduce(step, size, description))

    def _reduce(self, step: Step, size: int | None, description: str | None) -> Any:
        wholes = self._pass(self.plan(size), description)
        # Blocks of one read first, as a worker of a cluster does: the same sums in the same order.
        return combine_in_order((step.over(pieces_of(whole, task)) for task, whole in wholes), step.combine)

    def map_columns(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        blocks: list[np.ndarray],
        *,
        description: str = "Columns",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, in order, in one pass over the rows.

        The rows are read once and dealt out to the blocks of columns, which wait in memory up to a limit, then in
        temporary files. On a lazy matrix every block of columns is a task, as in :meth:`map`.
        """
        if not blocks:
            return []
        with ColumnSpool(blocks, rows=self.shape[0]) as spool:
            for _, whole in self._pass(self.plan(), f"{description}: reading"):
                spool.deal(whole)
            numbers = progress(range(len(blocks)), description)
            return [function(spool.collect(number), blocks[number]) for number in numbers]

    def map_items(self, function: Callable[[Item], Result], items: Sequence[Item], *, description: str) -> list[Result]:
        """Apply ``function`` to items that need no rows, in order, where the blocks of the matrix are worked on.

        For work before a pass that is shared out: on a lazy matrix every item is a task of the cluster, if a client is
        active. The function, which may hold large constants, must be picklable then.
        """
        return [function(item) for item in progress(items, description)]

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(sp.vstack(self.map(_Columns(indices))))

    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing indices; only the chunks that hold them are read."""
        rows = np.asarray(rows)
        parts = [
            dense_block(self.read(task[0][0], task[-1][1])[inside - task[0][0]], columns)
            for task, inside in _tasks_with(self._grain(), rows)
        ]
        return np.concatenate(parts) if parts else no_rows(self.shape[1], columns)

    def _grain(self) -> Plan:
        """The smallest reads, for a few rows."""
        return self.plan()

    def column_sums(self) -> np.ndarray:
        """Sum of each column, in float64."""
        return self.reduce(ColumnSums())[0]

    def row_sums(self) -> np.ndarray:
        """Sum of each row, in float64."""
        return self.reduce(RowSums())[0]

    def sum_by_group(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """Sum of the rows of each group (groups, columns), in float64; rows of code -1 are left out."""
        return self.reduce(GroupSums(codes, groups))[0]


def as_working(block: Any) -> Any:
    """Return a block (dense or CSR) in the type that it is computed with, sparse ones without duplicate entries.

    float32 has all numbers of the types up to 16 bits, float64 serves the wider ones.
    """
    if not hasattr(block, "dtype"):
        raise TypeError(f"the matrix must hold real numbers, found a {type(block).__name__}.")
    if block.dtype.kind not in "biuf":
        raise TypeError(f"the matrix must hold real numbers, found dtype {block.dtype}.")
    refuse_masked(block)
    dtype = np.float64 if block.dtype.itemsize > 8 else np.result_type(block.dtype, np.float32)
    if sp.issparse(block):
        block = sp.csr_array(block if block.dtype == dtype else block.astype(dtype))
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        return block
    return np.asarray(block, dtype=dtype)


def refuse_masked(matrix: Any) -> None:
    """Raise TypeError if values are masked: what lies below a mask is no value."""
    if np.ma.is_masked(matrix):
        raise TypeError("the matrix has masked values, which are no numbers: call .filled(0), or another value, first.")


def dense_block(block: Any, columns: np.ndarray | None = None) -> np.ndarray:
    """Return a block as a dense float32 array, of the given columns."""
    if columns is not None:
        block = block[:, columns]
    if sp.issparse(block):
        block = block.astype(np.float32).toarray()
    return np.ascontiguousarray(block, dtype=np.float32)


def bytes_of(block: Any) -> int:
    """Memory that a block takes."""
    if sp.issparse(block):
        return block.data.nbytes + block.indices.nbytes + block.indptr.nbytes
    return block.nbytes


def tell_pass(name: str, plan: Plan, size: int, workers: int | None = None) -> None:
    """Say in the log what a pass over a stored matrix cost."""
    where = "in this process" if workers is None else f"on {counted(workers, 'worker')}"
    blocks, reads = counted(len(plan.blocks), "block"), counted(len(plan.tasks), "read")
    logger.info(f"{name}: {blocks} of at most {plan.rows} rows in {reads}, {size / 1e6:,.1f} MB, {where}.")


def pieces_of(whole: Any, task: Task) -> Iterator[tuple[int, Any]]:
    """Blocks of one read."""
    if len(task) == 1:
        yield task[0][0], whole
        return
    for start, stop in task:
        yield start, whole[start - task[0][0] : stop - task[0][0]]


def _tasks_with(plan: Plan, rows: np.ndarray) -> list[tuple[Task, np.ndarray]]:
    """Reads that hold some of the rows, each with those."""
    found = []
    for task in plan.tasks:
        inside = rows[(rows >= task[0][0]) & (rows < task[-1][1])]
        if len(inside):
            found.append((task, inside))
    return found


def no_rows(width: int, columns: np.ndarray | None) -> np.ndarray:
    """Return no rows of the width of some columns."""
    return np.empty((0, width if columns is None else len(columns)), np.float32)


class _Columns:
    def __init__(self, indices: np.ndarray):
        self.indices = indices

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        return sp.csr_array(block[:, self.indices])
