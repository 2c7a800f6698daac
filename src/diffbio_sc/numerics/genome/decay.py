r"""Decay of contacts with distance, and how many contacts are expected of a pair of bins.

With balancing weights w and exposures b = 1 / w, counts at distance d are Poisson of mean P(d) b_i b_j. The sum of
exposures over all pairs at each distance is an autocorrelation of b, one fast Fourier transform for all distances, so
that no pair is visited that has no contacts. log P is piecewise linear in log distance: a Poisson regression on hat
functions with a penalty on changes of slope, chosen by generalised cross-validation (Wood 2006, section 4.5). P is over
0 at every distance, also where no contact was seen.

:func:`log_smooth` is the Gaussian smoother in log distance of cooltools (Open2C et al. 2024, PLoS Computational Biology
20:e1012067), for results that equal its own. :mod:`diffbio_sc.numerics.genome.decay_jax` is the differentiable twin.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
from numba import njit
from scipy.optimize import lsq_linear

from diffbio_sc.numerics.genome.pixels import PixelRows

KNOTS_A_DECADE = 10
PENALTIES = 10.0 ** np.arange(-2, 5)
FEWEST_CONTACTS = 20
"""Contacts a knot below which a region takes the shape of the decay from all regions together."""
_NEWTON_STEPS = 50


class DistanceSums(NamedTuple):
    """Sums over the pairs of usable bins of a region, by distance in bins.

    Attributes
    ----------
    pairs
        Number of pairs.
    count, balanced
        Sums of raw and of balanced counts.
    exposure
        Sum of the products of exposures.
    """

    pairs: np.ndarray
    count: np.ndarray
    balanced: np.ndarray
    exposure: np.ndarray

    def __add__(self, other: DistanceSums) -> DistanceSums:  # type: ignore[override]
        size = max(len(self.pairs), len(other.pairs))

        def padded(values: np.ndarray) -> np.ndarray:
            return np.pad(values, (0, size - len(values)))

        return DistanceSums(*(padded(a) + padded(b) for a, b in zip(self, other, strict=True)))


class Decay(NamedTuple):
    """Decay of one region.

    Attributes
    ----------
    value
        P at each distance in bins, NaN at distances left out.
    slope
        d log P / d log distance.
    knots, log_value
        Distances of the knots and log P there.
    penalty, edf
        Chosen penalty and the effective number of parameters.
    """

    value: np.ndarray
    slope: np.ndarray
    knots: np.ndarray
    log_value: np.ndarray
    penalty: float
    edf: float


def autocorrelation(values: np.ndarray) -> np.ndarray:
    """Sums over i of values[i] values[i + d], for all d from 0."""
    size = scipy.fft.next_fast_len(2 * len(values), real=True)
    spectrum = scipy.fft.rfft(values, size)
    return scipy.fft.irfft(spectrum * np.conj(spectrum), size)[: len(values)]


def distance_sums(rows: PixelRows, weights: np.ndarray) -> DistanceSums:
    """Sum counts and exposures of a region by distance.

    Parameters
    ----------
    rows
        Its contacts.
    weights
        Balancing weights of its bins, NaN for bins left out.
    """
    used = np.isfinite(weights)
    exposure = np.where(used, 1.0 / np.where(used, weights, 1.0), 0.0)
    count, balanced = np.zeros((2, len(used)))
    _sums_by_distance(*rows, np.where(used, weights, 0.0), used, count, balanced)
    # Rounding of the transform must not leave pairs where there are none.
    pairs = np.rint(autocorrelation(used.astype(np.float64)))
    scale = exposure.max(initial=0.0) or 1.0
    products = np.where(pairs > 0, np.maximum(autocorrelation(exposure / scale), 0.0) * scale**2, 0.0)
    return DistanceSums(pairs, count, balanced, products)


@njit(cache=True, nogil=True)
def _sums_by_distance(begin, end, indices, data, offset, diagonal, weights, used, count, balanced):
    for i in range(len(begin)):
        if not used[i]:
            continue
        count[0] += diagonal[i]
        balanced[0] += diagonal[i] * weights[i] ** 2
        for k in range(begin[i], end[i]):
            j = indices[k] - offset
            if used[j]:
                count[j - i] += data[k]
                balanced[j - i] += data[k] * weights[i] * weights[j]


def decay_knots(nearest: int, farthest: int) -> np.ndarray:
    """Distances of the knots: whole numbers, about equally far in log distance, at least 1."""
    nearest, farthest = max(nearest, 1), max(farthest, nearest, 1)
    number = max(int(np.ceil(np.log10(farthest / nearest) * KNOTS_A_DECADE)), 1) + 1
    return np.unique(np.rint(np.geomspace(nearest, farthest, number)).astype(np.int64))


def hat_functions(knots: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the knot at or below each distance, and the share of the next knot, linear in log distance."""
    if len(knots) == 1:
        return np.zeros(len(distances), np.int64), np.zeros(len(distances))
    left = np.clip(np.searchsorted(knots, distances, side="right") - 1, 0, len(knots) - 2)
    logs = np.log(knots.astype(np.float64))
    share = (np.log(np.maximum(distances, 1)) - logs[left]) / (logs[left + 1] - logs[left])
    return left, np.clip(share, 0.0, 1.0)


def roughness(knots: np.ndarray) -> np.ndarray:
    """Matrix of the penalty: squared changes of the slope in log distance, at the typical spacing of the knots."""
    if len(knots) < 3:
        return np.zeros((len(knots), len(knots)))
    logs = np.log(knots.astype(np.float64))
    gap = np.diff(logs)
    change = np.zeros((len(knots) - 2, len(knots)))
    rows = np.arange(len(knots) - 2)
    change[rows, rows] = 1.0 / gap[:-1]
    change[rows, rows + 1] = -1.0 / gap[:-1] - 1.0 / gap[1:]
    change[rows, rows + 2] = 1.0 / gap[1:]
    change *= np.log(10.0) / KNOTS_A_DECADE
    return change.T @ change


def fit_decay(sums: DistanceSums, nearest: int, shape: Decay | None = None, monotone: bool = False) -> Decay:
    """Fit P to the sums of a region.

    Parameters
    ----------
    sums
        Counts and exposures by distance.
    nearest
        Smallest distance, in bins, that is used.
    shape
        Decay of which the region takes the shape, fitting its level alone.
    monotone
        Whether P may nowhere rise with distance: the maximum of the same penalised likelihood among such curves.
    """
    size = len(sums.pairs)
    distances = np.arange(size)
    good = (distances >= nearest) & (sums.exposure > 0)
    counts, exposure = sums.count[good], sums.exposure[good]
    if not good.any() or counts.sum() <= 0:
        nothing = np.full(size, np.nan)
        return Decay(nothing, nothing, np.zeros(0, np.int64), np.zeros(0), np.nan, np.nan)
    if shape is not None and len(shape.knots):
        level = _evaluate(shape.knots, shape.log_value, distances[good])
        log_value = shape.log_value + np.log(counts.sum() / (exposure * np.exp(level)).sum())
        return _decay(size, nearest, shape.knots, log_value, shape.penalty, 1.0)
    knots = decay_knots(nearest, int(distances[good][-1]))
    left, share = hat_functions(knots, distances[good])
    penalty_matrix = roughness(knots)
    level = np.log(counts.sum() / exposure.sum())
    theta = _start(knots, left, counts, exposure, level)
    best, lowest = None, np.inf
    for penalty in PENALTIES:
        theta, hessian, fisher = _newton(theta, left, share, counts, exposure, penalty * penalty_matrix)
        edf = float(np.trace(np.linalg.solve(hessian, fisher)))
        mean = exposure * np.exp(theta[left] * (1.0 - share) + theta[_right(left, knots)] * share)
        deviance = 2.0 * (_xlogy(counts, counts / mean) - counts + mean).sum()
        number = len(counts)
        score = deviance / max(number - edf, 0.5) ** 2
        if score < lowest:
            best, lowest = (theta, penalty, edf), score
    assert best is not None
    if monotone and (np.diff(best[0]) > 0).any():
        theta = _falling_newton(best[0], left, share, counts, exposure, best[1] * penalty_matrix)
        best = (theta, *best[1:])
    return _decay(size, nearest, knots, *best)


def _right(left: np.ndarray, knots: np.ndarray) -> np.ndarray:
    return np.minimum(left + 1, len(knots) - 1)


def _xlogy(x: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.where(x > 0, ratio, 1.0)), 0.0)


def _start(knots, left, counts, exposure, level) -> np.ndarray:
    """Log ratios of the counts about each knot, drawn to the mean level where there are few."""
    number = len(knots)
    seen = np.bincount(left, counts, number)
    offered = np.bincount(left, exposure, number)
    return np.log((seen + 0.5) / (offered + 0.5 * np.exp(-level)))


def _falling_newton(theta, left, share, counts, exposure, penalty):
    """Maximum under the condition that no knot lies above the one before: each Newton step is a bounded least squares.

    With the first value and the falls as coordinates the condition is that falls are not negative.
    """
    number = len(theta)
    to_theta = np.hstack([np.ones((number, 1)), -np.tril(np.ones((number, number)), -1)[:, : number - 1]])
    bounds = (np.r_[-np.inf, np.zeros(number - 1)], np.full(number, np.inf))
    theta = np.minimum.accumulate(theta)
    for _ in range(_NEWTON_STEPS):
        gradient, fisher = _score(theta, left, share, counts, exposure)
        hessian = fisher + penalty
        hessian[np.diag_indices(number)] += 1e-9 * (1.0 + fisher.max())
        root = np.linalg.cholesky(hessian).T
        wanted = np.linalg.solve(root.T, hessian @ theta + gradient - penalty @ theta)
        step = to_theta @ lsq_linear(root @ to_theta, wanted, bounds, method="bvls").x - theta
        theta = theta + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-8:
            break
    return theta


def _newton(theta, left, share, counts, exposure, penalty):
    number = len(theta)
    for _ in range(_NEWTON_STEPS):
        gradient, fisher = _score(theta, left, share, counts, exposure)
        gradient = gradient - penalty @ theta
        hessian = fisher + penalty
        hessian[np.diag_indices(number)] += 1e-9 * (1.0 + fisher.max())
        step = np.linalg.solve(hessian, gradient)
        theta = theta + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-8:
            break
    return theta, hessian, fisher


def _score(theta, left, share, counts, exposure):
    """Gradient of the log-likelihood, and Fisher's information."""
    number = len(theta)
    right = np.minimum(left + 1, number - 1)
    mean = exposure * np.exp(theta[left] * (1.0 - share) + theta[right] * share)
    residual = counts - mean
    gradient = np.bincount(left, residual * (1 - share), number) + np.bincount(right, residual * share, number)
    fisher = np.diag(np.bincount(left, mean * (1 - share) ** 2, number) + np.bincount(right, mean * share**2, number))
    if number > 1:
        cross = np.bincount(left, mean * share * (1 - share), number)[: number - 1]
        fisher[np.arange(number - 1), np.arange(1, number)] += cross
        fisher[np.arange(1, number), np.arange(number - 1)] += cross
    return gradient, fisher


def _evaluate(knots: np.ndarray, log_value: np.ndarray, distances: np.ndarray) -> np.ndarray:
    left, share = hat_functions(knots, distances)
    return log_value[left] * (1.0 - share) + log_value[_right(left, knots)] * share


def _decay(size, nearest, knots, log_value, penalty, edf) -> Decay:
    distances = np.arange(size)
    value = np.exp(_evaluate(knots, log_value, distances))
    slope = np.full(size, np.nan)
    if len(knots) > 1:
        at_knots = np.gradient(log_value, np.log(knots.astype(np.float64)))
        slope = np.interp(np.log(np.maximum(distances, 1)), np.log(knots), at_knots)
    value[:nearest] = slope[:nearest] = np.nan
    return Decay(value, slope, knots, log_value, float(penalty), float(edf))


def log_smooth(
    distances: np.ndarray, values: np.ndarray, sigma: float = 0.1, window: float = 5.0, points: float = 10.0
) -> np.ndarray:
    """Smooth rows of values with a Gaussian kernel in log10 distance, as cooltools does.

    Parameters
    ----------
    distances
        Rising distances above 0.
    values
        Rows of values at the distances.
    sigma
        Standard deviation of the kernel, in decades.
    window
        Where the kernel is cut off, in standard deviations.
    points
        Number of points for each standard deviation at which sums are taken; values between are interpolated in log
        distance and log value.
    """
    logs = np.log10(distances)
    thinned = _thin(distances, sigma / points)
    smoothed = np.empty((len(values), len(thinned)))
    low = np.searchsorted(logs, logs[thinned] - sigma * window, side="left")
    high = np.searchsorted(logs, logs[thinned] + sigma * window, side="left")
    for k, at in enumerate(thinned):
        part = slice(low[k], high[k])
        kernel = np.exp(-((logs[at] - logs[part]) ** 2) / 2.0 / sigma**2)
        smoothed[:, k] = (values[:, part] * kernel).sum(1) / kernel.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(
            np.stack([np.interp(np.log(distances), np.log(distances[thinned]), np.log(row)) for row in smoothed])
        )


def _thin(distances: np.ndarray, step: float) -> np.ndarray:
    """Positions of distances at least a step apart in log10, the first and the last among them."""
    kept = [0]
    while True:
        following = int(np.searchsorted(distances, distances[kept[-1]] * 10.0**step, side="right"))
        if following >= len(distances):
            break
        kept.append(following)
    if kept[-1] != len(distances) - 1:
        kept.append(len(distances) - 1)
    return np.array(kept)
