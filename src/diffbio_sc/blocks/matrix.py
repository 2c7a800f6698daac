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

Result = TypeVar("Result")

BLOCK_ROWS = 2048


class CountMatrix(abc.ABC):
    """Rows (observations) by columns (variables) of counts, read in blocks of rows.

    ``blocks`` gives the matrix piece by piece as numpy arrays or CSR matrices; everything else builds on it. No method
    holds more than one block, the columns asked for, and its own result.
    """

    shape: tuple[int, int]

    @abc.abstractmethod
    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""

    @abc.abstractmethod
    def rows(self, indices: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing ``indices``."""

    def map_blocks(self, function: Callable[[int, Any], Result], size: int = BLOCK_ROWS) -> list[Result]:
        """Apply ``function(first row, block)`` to all blocks, in order."""
        return [function(start, block) for start, block in self.blocks(size)]

    def map_row_blocks(
        self,
        function: Callable[[np.ndarray, int], Result],
        *,
        columns: np.ndarray | None = None,
        size: int = BLOCK_ROWS,
        description: str = "Blocks",
    ) -> list[Result]:
        """Apply ``function(dense float32 block, first row)`` to all blocks of rows, in order.

        On a dask matrix each block is one task on the active scheduler and only the results are gathered; the function
        must be picklable then.
        """
        total = -(-self.shape[0] // size)
        steps = progress(self.blocks(size), description, total=total)
        return [function(dense_block(block, columns), start) for start, block in steps]

    def map_column_blocks(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        columns: list[np.ndarray],
        *,
        description: str = "Blocks",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, in order.

        On a dask matrix each block is one task, as in :meth:`map_row_blocks`.
        """
        return [function(self.columns(block), block) for block in progress(columns, description)]

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(sp.vstack(self.map_blocks(_Columns(indices))))

    def column_sums(self) -> np.ndarray:
        """Sum of each column, in float64."""
        return np.sum(self.map_blocks(_column_sums), axis=0)

    def row_sums(self) -> np.ndarray:
        """Sum of each row, in float64."""
        return np.concatenate(self.map_blocks(_row_sums))

    def sum_by_group(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """Sum of the rows of each group (groups, columns), in float64; rows of code -1 are left out."""
        return np.sum(self.map_blocks(_GroupSums(np.asarray(codes), groups)), axis=0)


class InMemory(CountMatrix):
    """A numpy array or a CSR matrix."""

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape = matrix.shape

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""
        for start in range(0, self.shape[0], size):
            yield start, self.matrix[start : start + size]

    def rows(self, indices: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing ``indices``."""
        return dense_block(self.matrix[indices], columns)

    def columns(self, indices: np.ndarray) -> sp.csc_array:
        """Sparse columns at ``indices``."""
        return sp.csc_array(self.matrix[:, indices])


class Backed(CountMatrix):
    """A matrix in a file, dense or sparse, of which slices of rows can be read.

    Rows of a CSC matrix on disk are all over the file: it is read once and kept as CSR in memory.
    """

    def __init__(self, matrix: Any):
        self.matrix = matrix.to_memory().tocsr() if getattr(matrix, "format", None) == "csc" else matrix
        self.shape = matrix.shape

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""
        for start in range(0, self.shape[0], size):
            yield start, self.matrix[start : min(start + size, self.shape[0])]

    def rows(self, indices: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing ``indices``."""
        width = self.shape[1] if columns is None else len(columns)
        result = np.empty((len(indices), width), np.float32)
        for start, block in self.blocks():
            inside = (indices >= start) & (indices < start + block.shape[0])
            if inside.any():
                result[inside] = dense_block(block[indices[inside] - start], columns)
        return result


class Dask(CountMatrix):
    """A dask array, with dense or sparse chunks; blocks are tasks of the active scheduler."""

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape = matrix.shape

    def _delayed(self, size: int) -> list[tuple[int, Any]]:
        matrix = self.matrix.rechunk({0: size, 1: -1})
        starts = np.concatenate([[0], np.cumsum(matrix.chunks[0])[:-1]])
        return [(int(start), block) for start, block in zip(starts, matrix.to_delayed().ravel(), strict=True)]

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
        """Yield (first row, block) in order."""
        for start, block in self._delayed(size):
            yield start, block.compute()

    def map_blocks(self, function: Callable[[int, Any], Result], size: int = BLOCK_ROWS) -> list[Result]:
        """Apply ``function(first row, block)`` to all blocks, one dask task each."""
        import dask

        return list(dask.compute(*[dask.delayed(function)(start, block) for start, block in self._delayed(size)]))

    def map_row_blocks(
        self,
        function: Callable[[np.ndarray, int], Result],
        *,
        columns: np.ndarray | None = None,
        size: int = BLOCK_ROWS,
        description: str = "Blocks",
    ) -> list[Result]:
        """Apply ``function(dense float32 block, first row)`` to all blocks, one dask task each."""
        return self.map_blocks(_OnDense(function, columns), size)

    def map_column_blocks(
        self,
        function: Callable[[sp.csc_array, np.ndarray], Result],
        columns: list[np.ndarray],
        *,
        description: str = "Blocks",
    ) -> list[Result]:
        """Apply ``function(sparse columns, their indices)`` to blocks of columns, one dask task each."""
        import dask

        task = dask.delayed(_on_columns)
        return list(dask.compute(*[task(function, self.matrix[:, block], block) for block in columns]))

    def rows(self, indices: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense float32 rows at increasing ``indices``."""
        return np.concatenate(self.map_blocks(_Rows(np.asarray(indices), columns)))


def dense_block(block: Any, columns: np.ndarray | None = None) -> np.ndarray:
    """Return a block as a dense float32 array, of the given columns."""
    if columns is not None:
        block = block[:, columns]
    if sp.issparse(block):
        block = block.astype(np.float32).toarray()
    return np.ascontiguousarray(block, dtype=np.float32)


class _OnDense:
    def __init__(self, function: Callable[[np.ndarray, int], Any], columns: np.ndarray | None):
        self.function, self.columns = function, columns

    def __call__(self, start: int, block: Any) -> Any:
        return self.function(dense_block(block, self.columns), start)


class _Rows:
    def __init__(self, indices: np.ndarray, columns: np.ndarray | None):
        self.indices, self.columns = indices, columns

    def __call__(self, start: int, block: Any) -> np.ndarray:
        inside = (self.indices >= start) & (self.indices < start + block.shape[0])
        return dense_block(block[self.indices[inside] - start], self.columns)


class _Columns:
    def __init__(self, indices: np.ndarray):
        self.indices = indices

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        return sp.csr_array(block[:, self.indices])


def _on_columns(function: Callable[[sp.csc_array, np.ndarray], Any], matrix: Any, block: np.ndarray) -> Any:
    return function(sp.csc_array(matrix), block)


class _GroupSums:
    def __init__(self, codes: np.ndarray, groups: int):
        self.codes, self.groups = codes, groups

    def __call__(self, start: int, block: Any) -> np.ndarray:
        codes = self.codes[start : start + block.shape[0]]
        kept = np.flatnonzero(codes >= 0)
        indicator = sp.csr_array((np.ones(len(kept)), (codes[kept], kept)), shape=(self.groups, block.shape[0]))
        summed = indicator @ (sp.csr_array(block) if sp.issparse(block) else np.asarray(block, np.float64))
        return summed.toarray() if sp.issparse(summed) else summed


def _column_sums(start: int, block: Any) -> np.ndarray:
    return np.asarray(block.sum(axis=0, dtype=np.float64), np.float64).ravel()


def _row_sums(start: int, block: Any) -> np.ndarray:
    return np.asarray(block.sum(axis=1, dtype=np.float64), np.float64).ravel()


@singledispatch
def as_count_matrix(matrix: Any) -> CountMatrix:
    """Matrix of any kind behind the one interface."""
    if hasattr(matrix, "to_memory") and hasattr(matrix, "format"):  # anndata's backed sparse classes
        return Backed(matrix)
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
    return InMemory(sp.csr_array(matrix))


@as_count_matrix.register(h5py.Dataset)
def _(matrix: h5py.Dataset) -> CountMatrix:
    return Backed(matrix)
