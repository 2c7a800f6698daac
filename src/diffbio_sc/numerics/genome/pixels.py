"""The pixels of a contact map as a CSR matrix: one triangle of it, one block of it, its storage.

Scipy's own ``triu`` goes through coordinates and takes several times the memory of the matrix; these kernels read rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import njit

from diffbio_sc.numerics.genome.searching import first_at_least

Storage = Literal["symmetric", "upper", "lower", "diagonal"]


@njit(cache=True, nogil=True)
def _count_triangles(indptr, indices, place):
    below = above = 0
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            below += place[j] < place[i]
            above += place[j] > place[i]
    return below, above


@njit(cache=True, nogil=True)
def _find_columns(indptr, indices, columns, result):
    for i in range(len(result)):
        result[i] = first_at_least(indices, indptr[i], indptr[i + 1], columns[i])


def _positions_of(indptr: np.ndarray, indices: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Where in rows of sorted columns one column of each is, or would be."""
    result = np.empty(len(indptr) - 1, np.int64)
    _find_columns(indptr, indices, np.ascontiguousarray(columns, np.int64), result)
    return result


@njit(cache=True, nogil=True)
def _copy_rows(begin, end, indices, data, new_indptr, new_indices, new_data):
    for i in range(len(begin)):
        at = new_indptr[i]
        for k in range(begin[i], end[i]):
            new_indices[at] = indices[k]
            new_data[at] = data[k]
            at += 1


@njit(cache=True, nogil=True)
def _products(indptr, indices, data, probe, forward, backward):
    """Products of a matrix and of its transpose with a vector."""
    for i in range(len(indptr) - 1):
        own, total = probe[i], 0.0
        for k in range(indptr[i], indptr[i + 1]):
            total += data[k] * probe[indices[k]]
            backward[indices[k]] += data[k] * own
        forward[i] = total


@njit(cache=True, nogil=True)
def _count_upper(indptr, indices, place, keep_lower, n_bins):
    counts = np.zeros(n_bins, np.int64)
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            row, column = place[i], place[indices[k]]
            if row <= column:
                counts[row] += 1
            elif keep_lower:
                counts[column] += 1
    return counts


@njit(cache=True, nogil=True)
def _fill_upper(indptr, indices, data, place, keep_lower, new_indptr, new_indices, new_data):
    cursor = new_indptr[:-1].copy()
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            row, column = place[i], place[indices[k]]
            if row > column:
                if not keep_lower:
                    continue
                row, column = column, row
            new_indices[cursor[row]] = column
            new_data[cursor[row]] = data[k]
            cursor[row] += 1


def storage_of(matrix: sp.csr_array, place: np.ndarray) -> Storage:
    """Which triangles of a square matrix hold values, once row and column ``i`` are moved to ``place[i]``.

    Raises
    ------
    ValueError
        If both do and they differ: the matrix is not symmetric.
    """
    if _is_identity(place) and matrix.has_sorted_indices:
        at = _positions_of(matrix.indptr, matrix.indices, place)
        below = int((at - matrix.indptr[:-1]).sum())
        above = matrix.nnz - below - np.count_nonzero(matrix.diagonal())
    else:
        below, above = _count_triangles(matrix.indptr, matrix.indices, np.ascontiguousarray(place, np.int64))
    if not below and not above:
        return "diagonal"
    if not below:
        return "upper"
    if not above:
        return "lower"
    # Products with random whole numbers are exact in float64, and equal for A and its transpose by chance alone only.
    probe = np.random.default_rng(0).integers(1, 1 << 16, matrix.shape[0]).astype(np.float64)
    forward, backward = np.zeros((2, len(probe)))
    _products(matrix.indptr, matrix.indices, matrix.data, probe, forward, backward)
    differs = ~np.isclose(forward, backward, rtol=1e-12, atol=0.0)
    if differs.any():
        raise ValueError(
            f"both triangles hold values and they differ ({int(differs.sum())} bins, the first at position "
            f"{int(np.flatnonzero(differs)[0])})"
        )
    return "symmetric"


def upper_triangle(matrix: sp.csr_array, storage: Storage, place: np.ndarray, n_bins: int) -> sp.csr_array:
    """Upper triangle, diagonal included, with row and column ``i`` moved to ``place[i]`` of ``n_bins``."""
    if (storage == "upper" or storage == "diagonal") and n_bins == matrix.shape[0] and _is_identity(place):
        result = sp.csr_array(matrix)
    elif storage == "symmetric" and n_bins == matrix.shape[0] and _is_identity(place) and matrix.has_sorted_indices:
        begin, end = _positions_of(matrix.indptr, matrix.indices, place), matrix.indptr[1:]
        indptr = np.zeros(n_bins + 1, np.int64)
        np.cumsum(end - begin, out=indptr[1:])
        indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], matrix.dtype)
        _copy_rows(begin, end, matrix.indices, matrix.data, indptr, indices, data)
        result = sp.csr_array((data, indices, indptr), shape=(n_bins, n_bins))
        result.has_sorted_indices = True
    else:
        # Of a symmetric matrix each pair occurs twice: the copy that already lies above the diagonal stays.
        keep_lower = storage != "symmetric"
        place = np.ascontiguousarray(place, np.int64)
        counts = _count_upper(matrix.indptr, matrix.indices, place, keep_lower, n_bins)
        indptr = np.zeros(n_bins + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        data = np.empty(indptr[-1], matrix.dtype)
        _fill_upper(matrix.indptr, matrix.indices, matrix.data, place, keep_lower, indptr, indices, data)
        result = sp.csr_array((data, indices, indptr), shape=(n_bins, n_bins))
    if not result.has_sorted_indices:
        result = result.sorted_indices()
    return result


def _is_identity(place: np.ndarray) -> bool:
    return bool((place == np.arange(len(place))).all())


class PixelRows(NamedTuple):
    """Part of an upper triangle without copying it: of each row the columns from one up to another.

    Attributes
    ----------
    begin, end
        Where in ``indices`` and ``data`` the part of each row begins and ends; the diagonal is not among them.
    indices, data
        Columns and counts of the whole matrix.
    offset
        Column that counts as 0.
    diagonal
        Value on the diagonal, 0 where it is left out.
    """

    begin: np.ndarray
    end: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    offset: int
    diagonal: np.ndarray

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.begin)

    def product(self, vector: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Product of the symmetric matrix, of which this is one triangle, with a vector.

        Rows and columns that are not ``used`` count as zero.
        """
        result = np.zeros(len(vector))
        _symmetric_product(*self, np.asarray(vector, np.float64), used, result)
        return np.where(used, result, 0.0)

    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums and numbers of the values of each bin."""
        total, number = np.zeros(self.n_rows), np.zeros(self.n_rows, np.int64)
        _marginals(*self, total, number)
        return total, number


def pixel_rows(
    matrix: sp.csr_array, first: int, last: int, first_column: np.ndarray, last_column: np.ndarray
) -> PixelRows:
    """Rows ``first`` to ``last`` of an upper triangle, of each the columns from one up to, not including, another."""
    indptr = matrix.indptr[first : last + 1]
    begin, end = (_positions_of(indptr, matrix.indices, columns) for columns in (first_column, last_column))
    end = np.maximum(begin, end)
    diagonal = np.zeros(last - first)
    at = begin < end
    on = np.flatnonzero(at)[matrix.indices[begin[at]] == np.arange(first, last)[at]]
    diagonal[on] = matrix.data[begin[on]]
    begin[on] += 1
    return PixelRows(begin, end, matrix.indices, matrix.data, first, diagonal)


def cis_rows(matrix: sp.csr_array, first: int, last: int, nearest: int = 0) -> PixelRows:
    """Contacts among bins ``first`` to ``last``, at least ``nearest`` bins apart."""
    rows = np.arange(first, last)
    return pixel_rows(matrix, first, last, rows + nearest, np.full(last - first, last))


@njit(cache=True, nogil=True)
def _symmetric_product(begin, end, indices, data, offset, diagonal, vector, used, result):
    """Add products to ``result``; those of columns that are not used are no product."""
    for i in range(len(begin)):
        if not used[i]:
            continue
        own = vector[i]
        total = diagonal[i] * own
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            total += data[k] * vector[j]
            result[j] += data[k] * own
        result[i] += total


@njit(cache=True, nogil=True)
def _marginals(begin, end, indices, data, offset, diagonal, total, number):
    for i in range(len(begin)):
        if diagonal[i] != 0:
            total[i] += diagonal[i]
            number[i] += 1
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            total[i] += data[k]
            total[j] += data[k]
            number[i] += 1
            number[j] += 1
