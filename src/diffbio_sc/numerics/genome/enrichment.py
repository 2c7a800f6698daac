"""Overlap of two features of the genome, against what shifting one along the other gives.

Bins beside each other are alike, so tests that take them as independent find significance everywhere. A circular shift
of the annotation along its sequence keeps both features' lengths and clusters and breaks what ties them. The overlaps
at all shifts are one cross-correlation, by Fourier transform; their mean, variance and skewness over all shifts are
exact, and those of several chromosomes, shifted independently, add up. The tail is that of Pearson's type III
distribution with these three moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import fft
from scipy.stats import hypergeom, norm, pearson3

_LEAST_SKEWNESS = 1e-4  # below it the distribution is normal, and its own formula loses digits


class ShiftMoments(NamedTuple):
    """Moments of the overlap over all circular shifts, summed over sequences."""

    mean: Float[np.ndarray, "states annotations"]
    variance: Float[np.ndarray, "states annotations"]
    third: Float[np.ndarray, "states annotations"]


def covered_bases(
    start: Int[np.ndarray, " bins"],
    end: Int[np.ndarray, " bins"],
    first: Int[np.ndarray, " intervals"],
    last: Int[np.ndarray, " intervals"],
) -> Float[np.ndarray, " bins"]:
    """Bases of each bin that lie in any of the intervals, which are sorted and disjoint."""
    if not len(first):
        return np.zeros(len(start))
    edges = np.empty(2 * len(first))
    edges[::2], edges[1::2] = first, last
    height = np.repeat(np.cumsum(last - first, dtype=np.float64), 2)
    height[::2] -= last - first
    return np.interp(end, edges, height) - np.interp(start, edges, height)


def shift_moments(
    states: Int[np.ndarray, " bins"], weights: Float[np.ndarray, "annotations bins"], n_states: int
) -> ShiftMoments:
    """Moments of the overlap of states and annotations over all circular shifts of one sequence.

    ``states`` of -1 belong to none. An overlap is the sum of an annotation's weights over the bins of a state.
    """
    length = states.shape[0]
    annotations = weights.shape[0]
    shape = (n_states, annotations)
    total = np.bincount(states[states >= 0], minlength=n_states)
    mean = total[:, None] * weights.sum(1)[None] / length
    variance, third = np.zeros(shape), np.zeros(shape)
    if length < 2:
        return ShiftMoments(mean, variance, third)
    transformed = [fft.rfft(row - row.mean()) for row in weights]
    for state in np.flatnonzero((total > 0) & (total < length)):
        indicator = np.conj(fft.rfft((states == state).astype(np.float64)))
        for index, row in enumerate(transformed):
            overlap = fft.irfft(row * indicator, n=length)
            square = overlap * overlap
            variance[state, index] = square.mean()
            third[state, index] = (square * overlap).mean()
    return ShiftMoments(mean, variance, third)


def shift_pvalues(observed: Float[np.ndarray, "*shape"], moments: ShiftMoments) -> Float[np.ndarray, "*shape"]:
    """Two-sided p-values of overlaps under independent circular shifts; NaN where no shift changes the overlap."""
    spread = np.sqrt(moments.variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (observed - moments.mean) / spread
        skewness = moments.third / spread**3
    symmetric = abs(skewness) < _LEAST_SKEWNESS
    skewed = np.where(symmetric | ~np.isfinite(skewness), 1.0, skewness)
    upper = np.where(symmetric, norm.sf(score), pearson3.sf(score, skewed))
    lower = np.where(symmetric, norm.cdf(score), pearson3.cdf(score, skewed))
    return np.where(spread > 0, np.clip(2 * np.minimum(upper, lower), 0, 1), np.nan)


def bin_pvalues(
    both: Int[np.ndarray, "*shape"],
    in_state: Int[np.ndarray, "*shape"],
    annotated: Int[np.ndarray, "*shape"],
    bins: int,
) -> Float[np.ndarray, "*shape"]:
    """Two-sided hypergeometric p-values of bins counted as independent."""
    upper = hypergeom.sf(both - 1, bins, in_state, annotated)
    lower = hypergeom.cdf(both, bins, in_state, annotated)
    return np.clip(2 * np.minimum(upper, lower), 0, 1)
