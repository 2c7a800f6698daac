"""Variance of a spot's counts that comes from the cells in it: few, and unlike each other.

The sum of n cells of one type has n times the mean and n times the variance of one cell, so that its variance over its
mean is that of single cells, whatever n. Genes that vary much between the reference cells of a type are therefore worth
less in a spot than their mean counts suggest.

In float64 numpy: small tables, or a few hundred spots.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PSEUDO_COUNTS = 10.0  # counts with which a gene's index is shrunk toward that of all genes
_PSEUDO_CELLS = 5.0
_MOST_SPOTS = 500  # the one number fitted to them is known to a per cent from fewer
_SMALLEST_MEAN = 1e-2
_ROWS_AT_ONCE = 256  # of what float64 makes of a table of float32
# Halfway, on the log scale, between genes that all vary alike and genes that vary in spots as in reference cells.
SHAPE_POWER = 0.5


def dispersion_index(sums: np.ndarray, squares: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Variance over mean of each gene's counts in single cells of one group, pooled over groups; at least 1.

    Parameters
    ----------
    sums
        Counts summed over the cells of each group (groups, genes).
    squares
        Squared counts summed over all cells (genes,).
    cells
        Cells in each group. A group of one cell says nothing about variance and is left out.
    """
    number = np.asarray(cells, np.float64)[:, None]
    mean = sums / np.maximum(number, 1.0)
    variance = np.maximum(squares - (number * mean**2).sum(0), 0.0)
    expected = (np.maximum(number - 1.0, 0.0) * mean).sum(0)
    if expected.sum() <= 0:
        return np.full(sums.shape[1], 2.0)
    pooled = variance.sum() / expected.sum()
    return np.maximum((variance + _PSEUDO_COUNTS * pooled) / (expected + _PSEUDO_COUNTS), 1.0)


def excess_shape(index: np.ndarray) -> np.ndarray:
    """Relative excess variance of genes in spots, from their index of dispersion in reference cells.

    Genes differ less in spots of another platform than in the reference (``benchmarks/deconvolution.py left_out``).
    """
    return np.maximum(index - 1.0, 1e-3) ** SHAPE_POWER


def fit_excess(counts: np.ndarray, mean: np.ndarray, shape: np.ndarray, dispersion: float, parameters: float) -> float:
    """Factor c for which variance = mean * (1 + c * shape + dispersion * mean) is likeliest for the residuals.

    The Gaussian pseudo-likelihood is used, its log determinant reduced by the share of ``parameters`` fitted to each
    spot (restricted likelihood).
    """
    from scipy.optimize import minimize_scalar

    rows = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _MOST_SPOTS)).astype(int))
    mean = np.maximum(np.asarray(mean[rows], np.float64), _SMALLEST_MEAN)
    squared = (np.asarray(counts[rows], np.float64) - mean) ** 2
    freedom = max(1.0 - parameters / counts.shape[1], 0.05)

    def loss(log_factor: float) -> float:
        variance = mean * (1.0 + np.exp(log_factor) * shape + dispersion * mean)
        return float((freedom * np.log(variance) + squared / variance).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-7, 5), method="bounded", options={"xatol": 0.02}).x))


def share_beyond_counting(counts: np.ndarray, mean: np.ndarray, active: np.ndarray) -> float:
    """Share of the residual variance of a typical spot that random counting does not explain.

    ``active`` is the number of weights fitted to each spot.
    """
    chi_square = np.empty(len(counts))
    for rows in _some_rows(len(counts)):
        expected = np.maximum(np.asarray(mean[rows], np.float64), _SMALLEST_MEAN)
        chi_square[rows] = ((counts[rows] - expected) ** 2 / expected).sum(1)
    chi_square /= np.maximum(counts.shape[1] - active, 1.0)
    return 1.0 - 1.0 / max(float(np.median(chi_square)), 1.0)


def _some_rows(rows: int) -> Iterator[slice]:
    for first in range(0, rows, _ROWS_AT_ONCE):
        yield slice(first, first + _ROWS_AT_ONCE)


def variation_beyond_counting(
    counts: np.ndarray, mean: np.ndarray, freedom: np.ndarray | float, weight: np.ndarray | float = 1.0
) -> float:
    """Squared coefficient of variation of counts beyond random counting, averaged over entries by their mean.

    The same at any depth, and 1 / n of it in sums of n. ``freedom`` is the share of the residuals' variance that
    fitting the mean has left; rows may have a ``weight``.
    """
    freedom, weight = (np.broadcast_to(part, (len(counts), 1)) for part in (freedom, weight))
    above = below = 0.0
    for rows in _some_rows(len(counts)):
        expected = np.maximum(np.asarray(mean[rows], np.float64), _SMALLEST_MEAN)
        beyond = (counts[rows] - expected) ** 2 / expected / freedom[rows] - 1.0
        above += float((weight[rows] * beyond).sum())
        below += float((weight[rows] * expected).sum())
    return above / below


def size_variation(totals: np.ndarray, codes: np.ndarray, groups: int) -> np.ndarray:
    """Squared coefficient of variation of the counts of a cell in each group, counting noise taken off.

    Groups are shrunk toward the average of all by so much as :data:`_PSEUDO_CELLS` cells would; one cell alone says
    nothing.

    Parameters
    ----------
    totals
        Counts of each cell.
    codes
        Group of each cell; cells of code -1 are left out.
    groups
        Number of groups.
    """
    totals, codes = totals[codes >= 0], codes[codes >= 0]
    cells = np.bincount(codes, minlength=groups)
    mean = np.bincount(codes, totals, groups) / np.maximum(cells, 1)
    squared = np.bincount(codes, ((totals - mean[codes]) / np.maximum(mean[codes], 1e-12)) ** 2, groups)
    freedom = np.maximum(cells - 1, 0)
    # Poisson counts of mean m have a squared coefficient of variation of 1 / m.
    excess = np.maximum(squared - freedom / np.maximum(mean, 1e-12), 0.0)
    average = excess.sum() / max(freedom.sum(), 1)
    return (excess + _PSEUDO_CELLS * average) / (freedom + _PSEUDO_CELLS)
