r"""Loops: pixels with more contacts than their surroundings explain.

Of each pair (i, j) of bins the expected count is L = P(d) b_i b_j. Backgrounds about the pixel, the donut, its lower
left corner, and the horizontal and vertical strips of HiCCUPS (Rao et al. 2014, Cell 159:1665), tell how many times
more contacts the neighbourhood has,

    r_q = (sum_q O + a r_donut) / (sum_q L + a),   the donut shrunk to 1 and the others to the donut,

of which the largest counts. A Gaussian filter g, matched to the shape of a loop, then collects the evidence

    S = sum g O,   m = r sum g L,   var = r sum g^2 L + r (sum g L)^2 / (sum_q L + a) + phi m^2

(counting noise, uncertainty of the background, overdispersion), scored on the scale where the variance of a count is
constant: z = 2 sqrt(f S + 3/8) - 2 sqrt(f m + 3/8) with f = m / var. The overdispersion phi of each stratum of distance
is the one with which the lower half of its scores, which no loop reaches, spreads as it should.

All boxes are differences of summed areas in dense tiles along the diagonal, so that memory does not grow with the map.
:mod:`diffbio_sc.numerics.genome.loops_jax` is the differentiable twin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc.numerics.genome.pixels import PixelRows
from diffbio_sc.numerics.lines import inner_loop

SHRINKAGE = 64.0
"""Expected contacts at which a background counts half. ``benchmarks/contacts.py shapes`` shows the choice."""
TILE = 256
N_STRATA = 8
"""Strata of distance, equally wide in log distance."""
_FILTER_REACH = 2


class LoopShape(NamedTuple):
    """Geometry of the filter and the backgrounds, in bins.

    Attributes
    ----------
    inner, outer
        Half-widths of the part that backgrounds leave out, and of their window.
    width
        Standard deviation of the Gaussian filter.
    """

    inner: int
    outer: int
    width: float

    def kernel(self) -> np.ndarray:
        """One axis of the filter."""
        return np.exp(-0.5 * (np.arange(-_FILTER_REACH, _FILTER_REACH + 1) / self.width) ** 2)


class LoopTile(NamedTuple):
    """Evidence of the pairs of bins of one tile, (bins, distances).

    Attributes
    ----------
    observed
        S.
    expected
        m, NaN where a pair is not scored.
    variance
        Variance without overdispersion.
    level
        sum g L, what the decay alone expects.
    ratios
        r of the donut, lower left, horizontal and vertical background; (4, bins, distances).
    """

    observed: np.ndarray
    expected: np.ndarray
    variance: np.ndarray
    level: np.ndarray
    ratios: np.ndarray


def default_shape(resolution: int) -> LoopShape:
    """Geometry for a resolution in base pairs: that of HiCCUPS, of the same size in base pairs."""
    if resolution >= 18_000:
        return LoopShape(1, 3, 0.7)
    if resolution >= 8_000:
        return LoopShape(2, 5, 0.8)
    return LoopShape(4, 7, 1.2)


def loop_tile(
    rows: PixelRows,
    decay: np.ndarray,
    weights: np.ndarray,
    shape: LoopShape,
    first: int,
    last: int,
    nearest: int,
    smallest: int,
    largest: int,
    valid: float,
) -> LoopTile:
    """Evidence of the pairs whose first bin lies between ``first`` and ``last``.

    Parameters
    ----------
    rows
        Contacts of one region, those nearer than ``nearest`` left out.
    decay, weights
        P at each distance; balancing weights, NaN for bins left out.
    shape
        Geometry.
    first, last
        Range of first bins; outside of the region nothing is scored.
    nearest
        Smallest distance, in bins, of pixels in backgrounds.
    smallest, largest
        Range of distances that are scored, both included.
    valid
        Share of usable bins that the window of a scored pair must have.
    """
    used = np.isfinite(weights)
    exposure = np.where(used, 1.0 / np.where(used, weights, 1.0), 0.0)
    decay = np.where(np.isfinite(decay), decay, 0.0)
    decay[:nearest] = 0.0
    top = first - shape.outer  # row 0 and column 0 of the tile
    size = last - first + 2 * shape.outer
    observed, expected = np.zeros((2, size, size + largest))
    # Arrays are made here and filled by compiled code: making one takes a tenth of a second more to compile.
    _fill_tile(*rows[:5], decay, used, exposure, top, observed, expected)
    observed_area, expected_area = (
        np.pad(values.cumsum(1).cumsum(0), ((1, 0), (1, 0))) for values in (observed, expected)
    )
    kernel = shape.kernel()
    level, squared = _filtered(expected, kernel), _filtered(expected, kernel * kernel)
    usable = np.concatenate([[0], np.cumsum(used)])
    scores = np.zeros((4, last - first, largest - smallest + 1), np.float32)
    scores[1] = np.nan
    ratios = np.zeros(scores.shape, np.float32)
    _score_pairs(
        observed_area, expected_area, _filtered(observed, kernel), level, squared, decay, used, usable,
        shape.inner, shape.outer, top, first, last, smallest, largest, valid, SHRINKAGE, scores, ratios,
    )  # fmt: skip
    return LoopTile(scores[0], scores[1], scores[2], scores[3], ratios)


@inner_loop
def _box(area, top, bottom, left, right):
    """Sum over rows top..bottom and columns left..right, ends included."""
    return area[bottom + 1, right + 1] - area[top, right + 1] - area[bottom + 1, left] + area[top, left]


@inner_loop
def _backgrounds(area, i, j, p, w):
    """Sums over donut, lower left, horizontal and vertical background of the pixel at (i, j)."""
    window = _box(area, i - w, i + w, j - w, j + w)
    centre = _box(area, i - p, i + p, j - p, j + p)
    cross = (
        _box(area, i - w, i - p - 1, j, j)
        + _box(area, i + p + 1, i + w, j, j)
        + _box(area, i, i, j - w, j - p - 1)
        + _box(area, i, i, j + p + 1, j + w)
    )
    lower = _box(area, i + 1, i + w, j - w, j - 1) - _box(area, i + 1, i + p, j - p, j - 1)
    across = _box(area, i - 1, i + 1, j - w, j - p - 1) + _box(area, i - 1, i + 1, j + p + 1, j + w)
    down = _box(area, i - w, i - p - 1, j - 1, j + 1) + _box(area, i + p + 1, i + w, j - 1, j + 1)
    return window - centre - cross, lower, across, down


def _filtered(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter; the outermost rows and columns are left at 0."""
    once, twice = np.zeros((2, *values.shape))
    _filter(values, kernel, once, twice)
    return twice


@njit(cache=True, nogil=True)
def _filter(values, kernel, once, twice):
    reach = len(kernel) // 2
    rows, columns = values.shape
    for i in range(rows):
        for a in range(-reach, reach + 1):
            weight = kernel[a + reach]
            for j in range(reach, columns - reach):
                once[i, j] += weight * values[i, j + a]
    for i in range(reach, rows - reach):
        for a in range(-reach, reach + 1):
            weight = kernel[a + reach]
            for j in range(columns):
                twice[i, j] += weight * once[i + a, j]


@njit(cache=True, nogil=True)
def _fill_tile(begin, end, indices, data, offset, decay, used, exposure, top, observed, expected):
    n = len(begin)
    n_rows, n_columns = observed.shape
    for i in range(max(top, 0), min(top + n_rows, n)):
        if not used[i]:
            continue
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            if j - top >= n_columns:
                break
            if used[j]:
                observed[i - top, j - top] = data[k]
        for j in range(i, min(top + n_columns, n)):
            expected[i - top, j - top] = decay[j - i] * exposure[i] * exposure[j]


@njit(cache=True, nogil=True)
def _score_pairs(
    observed_area,
    expected_area,
    filtered,
    level,
    squared,
    decay,
    used,
    usable,
    p,
    w,
    top,
    first,
    last,
    smallest,
    largest,
    valid,
    shrink,
    scores,
    ratios,
):
    """Fill S, m, variance and sum g L of each pair, and the ratios of its backgrounds."""
    n = len(used)
    for i in range(first, last):
        if i - w < 0 or i + w >= n or not used[i]:
            continue
        rows_used = usable[i + w + 1] - usable[i - w]
        for d in range(smallest, largest + 1):
            j = i + d
            if j + w >= n:
                break
            if not used[j] or decay[d] <= 0:
                continue
            if rows_used * (usable[j + w + 1] - usable[j - w]) < valid * (2 * w + 1) ** 2:
                continue
            a, b = i - top, j - top
            row, column = i - first, d - smallest
            seen = _backgrounds(observed_area, a, b, p, w)
            awaited = _backgrounds(expected_area, a, b, p, w)
            donut = (seen[0] + shrink) / (awaited[0] + shrink)
            largest_ratio, weight = donut, awaited[0]
            ratios[0, row, column] = donut
            for q in range(1, 4):
                ratio = (seen[q] + shrink * donut) / (awaited[q] + shrink)
                ratios[q, row, column] = ratio
                if ratio > largest_ratio:
                    largest_ratio, weight = ratio, awaited[q]
            own = level[a, b]
            scores[0, row, column] = filtered[a, b]
            scores[1, row, column] = largest_ratio * own
            scores[2, row, column] = largest_ratio * squared[a, b] + own * own * largest_ratio / (weight + shrink)
            scores[3, row, column] = own


def z_scores(tile: LoopTile, dispersion: np.ndarray) -> np.ndarray:
    """Variance-stabilised scores; NaN where a pair is not scored. ``dispersion`` is phi at each distance."""
    total = tile.variance + dispersion * tile.expected**2
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = tile.expected / total
        return 2.0 * (np.sqrt(factor * tile.observed + 0.375) - np.sqrt(factor * tile.expected + 0.375))


def strata(smallest: int, largest: int, number: int = N_STRATA) -> np.ndarray:
    """First distances of strata equally wide in log distance, at least four distances each, and the end behind them."""
    edges = np.unique(np.rint(np.geomspace(smallest, largest + 1, number + 1)).astype(np.int64))
    kept = [int(edges[0])]
    for edge in edges[1:-1]:
        if edge - kept[-1] >= 4 and largest + 1 - edge >= 4:
            kept.append(int(edge))
    return np.array([*kept, largest + 1])


class NullModel(NamedTuple):
    """What scores look like where there is no loop, by stratum of distance.

    Attributes
    ----------
    edges
        First distances of the strata and the end behind them.
    dispersion
        Overdispersion phi.
    centre, spread
        Median score, and standard deviation of the scores below it.
    """

    edges: np.ndarray
    dispersion: np.ndarray
    centre: np.ndarray
    spread: np.ndarray

    def of_distance(self, values: np.ndarray) -> np.ndarray:
        """Values of the strata, at each scored distance."""
        return np.repeat(values, np.diff(self.edges))


def fit_null(tiles: list[LoopTile], edges: np.ndarray) -> NullModel:
    """Estimate the overdispersion of each stratum, and centre and spread of its scores."""
    number = len(edges) - 1
    dispersion, centre, spread = np.zeros(number), np.zeros(number), np.ones(number)
    for k in range(number):
        part = slice(edges[k] - edges[0], edges[k + 1] - edges[0])
        fields = [
            np.concatenate([getattr(tile, name)[:, part].ravel() for tile in tiles]) for name in LoopTile._fields[:3]
        ]
        good = np.isfinite(fields[1]) & (fields[1] > 0)
        if good.sum() < 100:
            continue
        observed, expected, variance = (field[good].astype(np.float64) for field in fields)
        sample = LoopTile(observed, expected, variance, expected, expected)

        def half_width(phi: float, sample: LoopTile = sample) -> tuple[float, float]:
            scores = z_scores(sample, np.float64(phi))
            low, middle = np.quantile(scores, [0.15865525, 0.5])
            return middle, middle - low

        low, high = 0.0, 1.0
        if half_width(0.0)[1] > 1.0:
            for _ in range(20):
                middle = 0.5 * (low + high) if low else high * 0.25
                if half_width(middle)[1] > 1.0:
                    low = middle
                else:
                    high = middle
                if low and high / low < 1.05:
                    break
            dispersion[k] = high
        centre[k], spread[k] = half_width(dispersion[k])
    return NullModel(edges, dispersion, centre, spread)
