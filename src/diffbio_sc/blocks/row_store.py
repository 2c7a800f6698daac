"""Rows of a matrix in temporary files: its source is read once, then any rows can be read, as often as one likes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc._files import TemporaryFolder, room_for

_GAP = 32  # rows that are not asked for, up to which reading on is quicker than beginning anew
_MOST_READ = 1 << 22  # entries that are read at once to find some rows among them
_COPY = 1 << 22  # values that are written anew at a time
_TYPES = (np.uint8, np.uint16, np.float32)  # of values, from the smallest


class RowStore:
    """A CSR matrix in files, in the smallest types that hold it; indexed by rows, it gives CSR in float32.

    An entry takes 3 to 8 bytes on disk. In memory are the place and the sum of each row alone. The files lie where
    temporary ones do (``TMPDIR``) and go with the object.

    Parameters
    ----------
    n_columns
        Number of columns.
    """

    def __init__(self, n_columns: int):
        self._folder = TemporaryFolder()
        self._columns, self._values = (self._folder.path / name for name in ("columns", "values"))
        self._columns.touch()
        self._values.touch()
        self._column_type = np.uint16 if n_columns <= 2**16 else np.int32
        self._type = np.dtype(_TYPES[0])
        # A row more, without entries: what a row that is missing reads.
        self.dtype = np.dtype(np.float32)
        self._starts, self._sums = np.zeros(2, np.int64), np.zeros(1)
        self._written: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows: np.ndarray | None = None
        self.is_dense = False
        self.n_columns = n_columns

    @classmethod
    def of(cls, blocks: Iterable[Any], n_columns: int) -> RowStore:
        """Write blocks of rows, dense or sparse, in order."""
        store = cls(n_columns)
        for block in blocks:
            store.append(block)
        return store.finish()

    def append(self, block: Any) -> None:
        """Write the next rows, dense or sparse."""
        block = canonical(block)
        if block.shape[1] != self.n_columns:
            raise ValueError(f"a block of rows has {block.shape[1]} columns, {self.n_columns} were announced.")
        needed = smallest_type(block.data)
        if _TYPES.index(needed) > _TYPES.index(self._type.type):
            self._widen(np.dtype(needed))
        parts = ((self._columns, block.indices, self._column_type), (self._values, block.data, self._type))
        with room_for(sum(block.nnz * np.dtype(kind).itemsize for *_, kind in parts), self._folder.path):
            for path, values, kind in parts:
                with open(path, "ab") as file:
                    values.astype(kind).tofile(file)
        self._written.append((np.diff(block.indptr), np.asarray(block.sum(1), np.float64).ravel()))

    def finish(self) -> RowStore:
        """Return the store, which now can be read."""
        lengths = [lengths for lengths, _ in self._written]
        self._starts = np.concatenate([[0], *lengths, [0]]).cumsum()
        self._sums = np.concatenate([*(sums for _, sums in self._written), [0.0]])
        self._written = []
        return self

    def _widen(self, dtype: np.dtype) -> None:
        """Write the values so far in a larger type."""
        wider = self._values.with_suffix(".wider")
        number = self._values.stat().st_size // self._type.itemsize
        with room_for(number * dtype.itemsize, self._folder.path):
            with open(wider, "wb") as target, open(self._values, "rb") as source:
                while len(part := np.fromfile(source, self._type, _COPY)):
                    part.astype(dtype).tofile(target)
        wider.replace(self._values)
        self._type = dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self._starts) - 2 if self._rows is None else len(self._rows), self.n_columns

    @property
    def lengths(self) -> np.ndarray:
        """Number of entries of each row."""
        lengths = np.diff(self._starts)
        return lengths[:-1] if self._rows is None else lengths[self._rows]

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.lengths.sum())

    def sum(self, axis: int | None = None) -> Any:
        """Sum of each row (``axis=1``), or of all."""
        sums = self._sums[:-1] if self._rows is None else self._sums[self._rows]
        if axis == 1:
            return sums
        if axis is not None:
            raise ValueError(f"axis must be 1 or None, found {axis}.")
        return sums.sum()

    def placed(self, rows: np.ndarray) -> RowStore:
        """Return the same files seen as other rows: ``rows`` of the stored ones, empty ones where it is -1."""
        view = copy.copy(self)
        view._rows = np.where(rows < 0, len(self._starts) - 2, rows)
        return view

    def dense(self) -> RowStore:
        """Return the same files, whose rows are given as arrays."""
        view = copy.copy(self)
        view.is_dense = True
        return view

    def to_memory(self) -> Any:
        """Return all rows."""
        return self[:]

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        """Return rows as CSR in float32, or as an array."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(self.shape[0]))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        matrix = self._read(rows if self._rows is None else self._rows[rows])
        return matrix.toarray() if self.is_dense else matrix

    def _read(self, rows: np.ndarray) -> sp.csr_array:
        wanted, place = np.unique(rows, return_inverse=True)
        indptr = np.concatenate([[0], np.cumsum(self._starts[wanted + 1] - self._starts[wanted])])
        columns, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        for first, last in self._pieces(wanted):
            here = slice(indptr[first], indptr[last])
            self._read_piece(wanted[first:last], columns[here], values[here])
        shape = (len(wanted), self.n_columns)
        matrix = sp.csr_array((values, columns, indptr.astype(np.int32)), shape=shape)
        place = place.ravel()
        return matrix if np.array_equal(place, np.arange(len(wanted))) else matrix[place]

    def _pieces(self, wanted: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cut rows, ascending, where what lies between them would be too much to read at once."""
        first = 0
        while first < len(wanted):
            limit = self._starts[wanted[first]] + _MOST_READ
            last = max(int(np.searchsorted(self._starts[wanted + 1], limit, side="right")), first + 1)
            yield first, last
            first = last

    def _read_piece(self, wanted: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Read rows, ascending, and what lies in small gaps between them; keep the rows."""
        end = 0
        for part in _spans(wanted):
            inside = wanted[part]
            start, stop = int(inside[0]), int(inside[-1]) + 1
            bounds = (int(self._starts[start]), int(self._starts[stop]))
            kept: Any = slice(None)
            if len(inside) < stop - start:
                marked = np.zeros(stop - start, bool)
                marked[inside - start] = True
                kept = np.repeat(marked, np.diff(self._starts[start : stop + 1]))
            for path, kind, target in (
                (self._columns, self._column_type, columns),
                (self._values, self._type, values),
            ):
                found = _part(path, kind, *bounds)[kept]
                target[end : end + len(found)] = found
            end += len(found)


class ArrayStore:
    """Rows of an array in a temporary file, which goes with the object; indexed by ascending rows.

    Parameters
    ----------
    blocks
        Blocks of rows in order, all of one type and width.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._folder = TemporaryFolder()
        self._path = self._folder.path / "values"
        with open(self._path, "wb") as file:
            for block in blocks:
                self._shape, self.dtype = block.shape[1:], block.dtype
                with room_for(block.nbytes, self._folder.path):
                    block.tofile(file)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows at ascending indices."""
        result = np.empty((len(rows), *self._shape), self.dtype)
        width = int(np.prod(self._shape))
        for part in _spans(rows):
            start, stop = int(rows[part.start]), int(rows[part.stop - 1]) + 1
            found = _part(self._path, self.dtype, start * width, stop * width).reshape(-1, *self._shape)
            result[part] = found[rows[part] - start]
        return result


def _spans(rows: np.ndarray) -> Iterator[slice]:
    """Parts of ascending rows between which no more lies than is read on over."""
    bounds = [0, *(np.flatnonzero(np.diff(rows) > _GAP) + 1).tolist(), len(rows)]
    return (slice(first, last) for first, last in pairwise(bounds) if last > first)


def _part(path: Path, dtype: Any, start: int, stop: int) -> np.ndarray:
    return np.fromfile(path, dtype, stop - start, offset=start * np.dtype(dtype).itemsize)


def smallest_type(values: np.ndarray) -> Any:
    """Type that holds the values without loss, or float32."""
    if values.size == 0:
        return _TYPES[0]
    whole = values.min() >= 0 and values.max() < 2**16 and np.array_equal(np.rint(values), values)
    return (_TYPES[0] if values.max() < 2**8 else _TYPES[1]) if whole else _TYPES[2]


def entries_of_rows(matrix: Any) -> np.ndarray:
    """Number of entries of each row, of a CSR matrix in memory or in files."""
    return matrix.lengths if isinstance(matrix, RowStore) else np.diff(matrix.indptr)


def type_of_values(matrix: Any) -> Any:
    """Smallest type that holds the values, of a CSR matrix in memory or in files."""
    return matrix._type.type if isinstance(matrix, RowStore) else smallest_type(matrix.data)


def canonical(block: Any) -> sp.csr_array:
    """Return float32 CSR, canonical and without stored zeros, of a dense or sparse block, which stays as it is."""
    matrix = sp.csr_array(block, dtype=np.float32)
    if matrix.has_canonical_format and np.count_nonzero(matrix.data) == matrix.nnz:
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix
