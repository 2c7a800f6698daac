r"""Insulation: how much fewer contacts cross a position than lie to either side of it.

At the start of bin i and for a window of w bins the diamond holds the pairs of the w bins before it with the w bins
after it, and two triangles hold the pairs among the w bins on either side. A pixel lies in the diamonds, and in the
triangles, of a run of positions; adding it at the run's first position and taking it away behind its last gives all
sums after one cumulative sum, in O(1) for a pixel. The contrast

    log [(up + down + c) / (expected + c)] - log [(diamond + c) / (expected + c)]

of observed and expected counts needs no normalisation by neighbours. It is averaged over windows, each over its own
standard deviation.

``cooltools_insulation`` is the diamond score of cooltools (Open2C et al. 2024, PLoS Computational Biology 20:e1012067).
:mod:`diffbio_sc.numerics.genome.insulation_jax` is the differentiable twin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view

from diffbio_sc.numerics.genome.pixels import PixelRows
from diffbio_sc.numerics.lines import inner_loop

PSEUDOCOUNT = 2.0
LEAST_EXPECTED = 0.3
"""Share of the median expected count of a window below which a position has no score: edges and gaps."""


class WindowSums(NamedTuple):
    """Sums over the diamond and both triangles of each position, for one window.

    Attributes
    ----------
    diamond, sides
        Observed counts.
    diamond_expected, sides_expected
        Expected counts.
    """

    diamond: np.ndarray
    sides: np.ndarray
    diamond_expected: np.ndarray
    sides_expected: np.ndarray


def window_sums(rows: PixelRows, decay: np.ndarray, weights: np.ndarray, window: int, nearest: int) -> WindowSums:
    """Sum observed and expected counts about the start of each bin.

    Parameters
    ----------
    rows
        Contacts of one region, those nearer than ``nearest`` bins left out.
    decay
        P at each distance.
    weights
        Balancing weights, NaN for bins left out.
    window
        Bins on either side.
    nearest
        Smallest distance in bins.
    """
    used = np.isfinite(weights)
    exposure = np.where(used, 1.0 / np.where(used, weights, 1.0), 0.0)
    near = np.where(np.isfinite(decay), decay, 0.0)[: 2 * window]
    near[:nearest] = 0.0
    # What pixels change at the first position of a run and behind its last. Compiled code fills arrays that are made
    # here: making one takes a tenth of a second more to compile.
    steps = np.zeros((4, len(used) + 2))
    _window_sums(*rows, used, exposure, near, window, *steps)
    diamond, sides, diamond_expected, sides_expected = steps.cumsum(1)[:, : len(used)]
    return WindowSums(diamond, sides, np.maximum(diamond_expected, 0.0), np.maximum(sides_expected, 0.0))


@inner_loop
def _add(diamond, sides, i, j, value, window, n):
    """Add a pixel to the sums of the positions whose windows hold it."""
    if j - i < 2 * window:
        first, last = max(i + 1, j - window + 1), min(j, i + window)
        if first <= last:
            diamond[first] += value
            diamond[last + 1] -= value
        if j - i < window:
            first, last = j + 1, min(i + window, n)
            if first <= last:  # pairs before the position
                sides[first] += value
                sides[last + 1] -= value
            first, last = max(j - window + 1, 0), i
            if first <= last:  # pairs after it
                sides[first] += value
                sides[last + 1] -= value


@njit(cache=True, nogil=True)
def _window_sums(
    begin, end, indices, data, offset, diagonal, used, exposure, decay, window,
    diamond, sides, diamond_expected, sides_expected,
):  # fmt: skip
    n = len(begin)
    reach = len(decay)
    for i in range(n):
        if not used[i]:
            continue
        _add(diamond, sides, i, i, diagonal[i], window, n)
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            if j - i >= 2 * window:
                break
            if used[j]:
                _add(diamond, sides, i, j, float(data[k]), window, n)
        for d in range(min(reach, n - i)):
            if decay[d] > 0 and exposure[i + d] > 0:
                _add(diamond_expected, sides_expected, i, i + d, decay[d] * exposure[i] * exposure[i + d], window, n)


def contrast(sums: WindowSums) -> tuple[np.ndarray, np.ndarray]:
    """Log enrichment of diamonds (insulation score, low at boundaries) and of the sides over the diamond (contrast).

    NaN where less than a share :data:`LEAST_EXPECTED` of the median window was expected.
    """
    diamond = np.log((sums.diamond + PSEUDOCOUNT) / (sums.diamond_expected + PSEUDOCOUNT))
    sides = np.log((sums.sides + PSEUDOCOUNT) / (sums.sides_expected + PSEUDOCOUNT))
    good = (sums.diamond_expected > 0) & (sums.sides_expected > 0)
    for expected in (sums.diamond_expected, sums.sides_expected):
        if good.any():
            good = good & (expected >= LEAST_EXPECTED * np.median(expected[expected > 0]))
    score = np.where(good, diamond, np.nan)
    return score, np.where(good, sides - diamond, np.nan)


def cooltools_insulation(
    rows: PixelRows, weights: np.ndarray, window: int, nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log2 of the mean balanced contact in each bin's diamond over the region's median mean, and its number of pixels.

    The diamond of bin i holds pairs of the ``window`` bins up to it with the ``window`` bins from it on, bin i among
    both, at least ``nearest`` apart; NaN where it is empty.
    """
    used = np.isfinite(weights)
    total, (number, filled) = np.zeros(len(used) + 1), np.zeros((2, len(used) + 1), np.int64)
    _diamond_means(*rows, used, np.where(used, weights, 0.0), window, nearest, total, number, filled)
    total, number, filled = (np.cumsum(steps)[: len(used)] for steps in (total, number, filled))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Running sums leave a rounding error where nothing is left.
        mean = np.where(number > 0, np.where(filled > 0, total, 0.0) / number, np.nan)
        mean = mean / np.nanmedian(mean) if np.isfinite(mean).any() else mean
        score = np.log2(np.where(mean > 0, mean, np.nan))
    return score, number


@njit(cache=True, nogil=True)
def _diamond_means(
    begin, end, indices, data, offset, diagonal, used, weights, window, nearest, total, number, filled
):  # fmt: skip
    n = len(begin)
    for i in range(n):
        if not used[i]:
            continue
        total[i] += diagonal[i] * weights[i] ** 2
        total[i + 1] -= diagonal[i] * weights[i] ** 2
        filled[i] += diagonal[i] > 0
        filled[i + 1] -= diagonal[i] > 0
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            if j - i > 2 * window - 2:
                break
            first, last = max(i, j - window + 1), min(j, i + window - 1)
            if used[j] and first <= last:
                value = data[k] * weights[i] * weights[j]
                total[first] += value
                total[last + 1] -= value
                filled[first] += 1
                filled[last + 1] -= 1
        for j in range(i + nearest, min(i + 2 * window - 1, n)):
            first, last = max(i, j - window + 1), min(j, i + window - 1)
            if used[j] and first <= last:
                number[first] += 1
                number[last + 1] -= 1


def local_maxima(score: np.ndarray, distance: int) -> np.ndarray:
    """Positions that no other within ``distance`` exceeds; NaN is below everything, the first of equals counts."""
    known = ~np.isnan(score)
    beyond = np.full(distance, -np.inf)
    around = sliding_window_view(np.concatenate([beyond, np.where(known, score, -np.inf), beyond]), distance)
    before, after = (around[first : first + len(score)].max(1) for first in (0, distance + 1))
    return np.flatnonzero(known & (score > before) & (score >= after))


def prominence(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local maxima of an array, and how far each stands above the lowest point before a higher one.

    The convention of cooltools: of the two sides the smaller; the highest of all above the lowest local minimum.
    """
    kept = np.flatnonzero(np.isfinite(score))
    values = score[kept]
    if len(values) < 3:
        return np.zeros(0, np.int64), np.zeros(0)
    left, right = values[1:-1] > values[:-2], values[1:-1] > values[2:]
    peak = np.flatnonzero(left & right) + 1
    valley = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])) + 1
    size = np.full(len(peak), np.nan)
    _prominence(values, peak, size)
    open_both = np.isnan(size)
    if open_both.any():
        lowest = values[valley].min() if len(valley) else values.min()
        first = int(np.flatnonzero(open_both)[0])
        size[first] = values[peak[first]] - lowest
    return kept[peak], size


@njit(cache=True, nogil=True)
def _prominence(values, peak, result):
    for k in range(len(peak)):
        at = peak[k]
        lowest = values[at]
        j = at - 1
        while j >= 0 and values[j] <= values[at]:
            lowest = min(lowest, values[j])
            j -= 1
        if j >= 0:
            result[k] = values[at] - lowest
        lowest = values[at]
        j = at + 1
        while j < len(values) and values[j] <= values[at]:
            lowest = min(lowest, values[j])
            j += 1
        if j < len(values):
            other = values[at] - lowest
            result[k] = other if np.isnan(result[k]) else min(result[k], other)


def li_threshold(values: np.ndarray) -> float:
    """Threshold of Li's minimum cross entropy (Li and Tam 1998, Pattern Recognition Letters 19:771)."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan
    low = values.min()
    values = values - low
    unique = np.unique(values)
    tolerance = np.diff(unique).min() / 2 if len(unique) > 1 else 0.0
    threshold, previous = values.mean(), np.inf
    while abs(threshold - previous) > tolerance:
        previous = threshold
        above, below = values[values > threshold], values[values <= threshold]
        if not len(above) or not len(below) or below.mean() <= 0:
            break
        threshold = (below.mean() - above.mean()) / (np.log(below.mean()) - np.log(above.mean()))
    return float(threshold + low)
