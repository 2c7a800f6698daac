"""The pixels of a contact map as a CSR matrix: one triangle of it, one block of it, its storage.

Scipy's own ``triu`` goes through coordinates and takes several times the memory of the matrix; these kernels read rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
from numba import njit

Storage = Literal["symmetric", "upper", "lower", "diagonal"]


@njit(cache=True, nogil=True)
def _count_triangles(indptr, indices, place):
    below = above = 0
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            below += place[indices[k]] < place[i]
            above += place[indices[k]] > place[i]
    return below, above


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
    below, above = _count_triangles(matrix.indptr, matrix.indices, np.ascontiguousarray(place, np.int64))
    if not below and not above:
        return "diagonal"
    if not below:
        return "upper"
    if not above:
        return "lower"
    # Products with random whole numbers are exact in float64, and equal for A and its transpose by chance alone only.
    probe = np.random.default_rng(0).integers(1, 1 << 16, matrix.shape[0]).astype(np.float64)
    forward, backward = matrix @ probe, matrix.T @ probe
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
