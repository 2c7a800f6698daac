"""Count matrices of any kind (dense, CSR, CSC, backed, dask) behind one interface that works block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any, TypeVar

import h5py
import numpy as np
import scipy.sparse as sp

from diffbio_sc._progress import progress
from diffbio_sc.blocks.interface import CountMatrix, as_working, dense_block, refuse_masked
from diffbio_sc.blocks.plan import BLOCK_ROWS, Plan, Task, plan_rows
from diffbio_sc.blocks.shuffle import ColumnSpool

__all__ = [
    "BLOCK_ROWS",
    "Backed",
    "BackedColumns",
    "CountMatrix",
    "InMemory",
    "as_count_matrix",
    "as_working",
    "dense_block",
]

Result = TypeVar("Result")
_PIECES = 32  # of rows that the columns of a file are dealt out to
_SLAB_VALUES = 4_000_000  # of columns that are read at once


class InMemory(CountMatrix):
    """A numpy array or a CSR matrix."""

    _stored = False

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

    def plan(self, size: int | None = None) -> Plan:
        """Cut the rows into blocks of at most ``size``, along the file's chunks."""
        return plan_rows(self.shape[0], self._most_rows(size), self._chunks())

    def _grain(self) -> Plan:
        chunks = self._chunks()
        return self.plan() if chunks is None else plan_rows(self.shape[0], max(chunks, default=1), chunks)

    def _chunks(self) -> list[int] | None:
        """Rows of each chunk of a dense matrix; None where rows can be read anywhere."""
        chunks = None if hasattr(self.matrix, "format") else getattr(self.matrix, "chunks", None)
        if chunks is None:
            return None
        return [min(chunks[0], self.shape[0] - start) for start in range(0, self.shape[0], chunks[0])]

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

    def plan(self, size: int | None = None) -> Plan:
        """Cut the rows into blocks of at most ``size``, several of them in each piece that is dealt out."""
        rows, size = self.shape[0], self._most_rows(size)
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

    def _wholes(self, plan: Plan) -> Iterator[tuple[Task, Any]]:
        if not plan.tasks:
            return
        parts = [np.arange(task[0][0], task[-1][1]) for task in plan.tasks]
        with ColumnSpool(parts, rows=self.shape[1]) as spool:
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


@singledispatch
def as_count_matrix(matrix: Any) -> CountMatrix:
    """Matrix of any kind behind the one interface."""
    if hasattr(matrix, "to_memory") and hasattr(matrix, "format"):  # anndata's backed sparse classes
        return BackedColumns(matrix) if matrix.format == "csc" else Backed(matrix)
    if hasattr(matrix, "rechunk"):  # dask need not be installed
        from diffbio_sc.blocks.lazy import Dask

        return Dask(matrix)
    if type(matrix).__module__.startswith("zarr"):
        return Backed(matrix)
    raise TypeError(f"a matrix of type {type(matrix).__module__}.{type(matrix).__name__} is not supported.")


@as_count_matrix.register(np.ndarray)
def _(matrix: np.ndarray) -> CountMatrix:
    refuse_masked(matrix)
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
