r"""Eigenvectors of observed over expected contacts as cooltools defines them, for numbers that equal its own.

Balanced contacts are divided by the mean of their distance, in bins of distance 3 % wide; diagonals left out count as 1
before that. What exceeds a percentile of all pairs is clipped, 1 is taken away, and the eigenvectors of the largest
absolute eigenvalues, scaled by the square roots of these, are the result (Open2C et al. 2024, PLoS Computational
Biology 20:e1012067). Of the pairs only those with contacts are visited: the matrix is sparse, minus 1 for all pairs of
usable bins.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, eigsh

from diffbio_sc.numerics.genome.compartments import EigenPairs
from diffbio_sc.numerics.genome.pixels import PixelRows

EDGE_RATIO = 1.03
CLIP_PERCENTILE = 99.9


def plain_eigenvectors(
    rows: PixelRows, weights: np.ndarray, nearest: int, count: int, percentile: float = CLIP_PERCENTILE
) -> EigenPairs:
    """Eigenvectors of one region.

    Parameters
    ----------
    rows
        Its contacts, the diagonal among them.
    weights
        Balancing weights of its bins, NaN for bins left out.
    nearest
        Smallest distance in bins that is used.
    count
        Number of vectors.
    percentile
        Of observed over expected among all pairs of usable bins, above which values are clipped.
    """
    n = len(weights)
    matrix = _balanced(rows, np.nan_to_num(weights))
    mask = np.asarray(matrix.sum(0) + matrix.sum(1)).ravel() > 0
    nothing = EigenPairs(np.full(count, np.nan), np.full((count, n), np.nan), np.full((count, n), np.nan))
    if n <= nearest + 3 or mask.sum() <= nearest + 3:
        return nothing
    pixels = matrix.tocoo()
    far = (pixels.col - pixels.row >= nearest) & mask[pixels.row] & mask[pixels.col]
    row, column, value = pixels.row[far], pixels.col[far], pixels.data[far]
    mean = _mean_by_distance(column - row, value, mask, nearest)
    value = value / mean[column - row]
    fill = 1.0 / np.where(mean[:nearest] > 0, mean[:nearest], 1.0)
    pairs = np.array([np.count_nonzero(mask[d:] & mask[: n - d]) for d in range(nearest)], np.int64)
    sides = np.where(np.arange(nearest) == 0, 1, 2)
    limit = _percentile(
        np.concatenate([value, fill]),
        np.concatenate([np.where(column == row, 1, 2), pairs * sides]),
        int(mask.sum()) ** 2,
        percentile,
    )
    value, fill = np.minimum(value, limit), np.minimum(fill, limit)
    upper = sp.csr_array((value, (row, column)), shape=(n, n))
    upper = upper + sp.dia_array(
        (np.repeat(fill[:, None], n, 1) * _both(mask, nearest), np.arange(nearest)), shape=(n, n)
    )
    index = np.flatnonzero(mask)
    full = sp.csr_array(upper + sp.triu(upper, 1).T)[index][:, index]

    def product(vector: np.ndarray) -> np.ndarray:
        vector = np.ravel(vector)
        return full @ vector - vector.sum()

    operator = LinearOperator(full.shape, matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(len(index))
    found, basis = eigsh(operator, k=min(count, len(index) - 1), v0=start)
    for k, place in enumerate(np.argsort(-np.abs(found))):
        nothing.values[k] = found[place]
        nothing.vectors[k, index] = basis[:, place] * np.sqrt(np.abs(found[place]))
    return nothing


def _balanced(rows: PixelRows, weights: np.ndarray) -> sp.csr_array:
    """Balanced contacts of the upper triangle."""
    number = rows.end - rows.begin
    n = rows.n_rows
    row = np.repeat(np.arange(n), number)
    at = np.repeat(rows.begin - (np.cumsum(number) - number), number) + np.arange(number.sum())
    column = rows.indices[at] - rows.offset
    value = rows.data[at] * weights[row] * weights[column]
    on = np.flatnonzero(rows.diagonal)
    value = np.concatenate([value, rows.diagonal[on] * weights[on] ** 2])
    row, column = np.concatenate([row, on]), np.concatenate([column, on])
    kept = value > 0
    return sp.csr_array((value[kept], (row[kept], column[kept])), shape=(n, n))


def _both(mask: np.ndarray, depth: int) -> np.ndarray:
    """Whether the bins of each pair are usable, as the diagonals of scipy: entry (d, j) is the pair (j - d, j)."""
    result = np.zeros((depth, len(mask)))
    for d in range(depth):
        result[d, d:] = mask[d:] & mask[: len(mask) - d]
    return result


def _mean_by_distance(distance: np.ndarray, value: np.ndarray, mask: np.ndarray, nearest: int) -> np.ndarray:
    """Mean over the usable pairs of each bin of distances, at each distance; 1 where it is 0."""
    n = len(mask)
    steps = int(np.log(n) / np.log(EDGE_RATIO))
    edges = np.concatenate([[0], np.unique(np.rint(10.0 ** np.linspace(0.0, np.log10(n), steps)).astype(np.int64))])
    size = len(edges) - 1
    stratum = np.searchsorted(edges, np.arange(n), side="right") - 1
    usable = mask.astype(np.float64)
    spectrum = np.fft.rfft(usable, 2 * n)
    pairs = np.rint(np.fft.irfft(spectrum * np.conj(spectrum), 2 * n)[:n])
    sums = np.bincount(distance, value, n)
    sums[:nearest] = pairs[:nearest]  # diagonals left out count as 1
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(stratum, sums, size) / np.bincount(stratum, pairs, size)
    return np.where(mean > 0, mean, 1.0)[stratum]


def _percentile(values: np.ndarray, copies: np.ndarray, total: int, percentile: float) -> float:
    """Percentile, linear between order statistics, of values that each occur several times; the rest are 0."""
    order = np.argsort(values)
    behind = np.cumsum(copies[order]) + (total - int(copies.sum()))
    at = percentile / 100.0 * (total - 1)
    low, high = (
        float(values[order[k]]) if k < len(order) and place >= total - int(copies.sum()) else 0.0
        for place in (int(np.floor(at)), int(np.ceil(at)))
        for k in [int(np.searchsorted(behind, place, side="right"))]
    )
    return low + (high - low) * (at - np.floor(at))
