"""Thresholds by which counts in bins become presence or absence of a mark, as ChromHMM sets them.

A mark is present in a bin whose count meets the largest of: the tail of a Poisson distribution about the expected
count, a fold enrichment over it, an absolute count, and one read. The expected count is the mean of the genome, or
follows the smoothed control (Ernst and Kellis 2012, 2017).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import special


def presence_thresholds(
    expected: Float[np.ndarray, "*bins"],
    *,
    tail: float = 1e-4,
    fold: float = 0.0,
    least: float = 0.0,
    strict: bool = False,
) -> Int[np.ndarray, "*bins"]:
    """Smallest count at which a mark is present, for each expected count.

    The Poisson threshold is the largest count whose upper tail, that count included, still holds the probability
    ``tail``; with ``strict`` the smallest whose upper tail is below it.
    """
    mean = np.asarray(expected, np.float64)
    level = poisson_isf(tail, mean) + strict
    return np.maximum.reduce(
        [level, np.ceil(fold * mean), np.full_like(mean, np.ceil(least)), np.ones_like(mean)]
    ).astype(np.int64)


def poisson_isf(tail: float, mean: Float[np.ndarray, "*bins"]) -> Float[np.ndarray, "*bins"]:
    """Smallest n with P(X > n) at most ``tail``, which is above 0 and below 1.

    As ``scipy.stats.poisson.isf``, whose module takes a third of a second to load.
    """
    count = np.ceil(special.pdtrik(1.0 - tail, mean))
    below = np.maximum(count - 1, 0)
    return np.where(special.pdtr(below, mean) >= 1.0 - tail, below, count)


def smoothed_control(
    counts: Float[np.ndarray, " bins"], sequences: list[np.ndarray], *, flank: int = 5, pseudocount: float = 1.0
) -> Float[np.ndarray, " bins"]:
    """Mean of the control, with a pseudocount, over the bins within ``flank`` of each, not across sequences.

    At the ends of a sequence the mean is over the bins that are there.
    """
    smoothed = np.empty(len(counts))
    for sequence in sequences:
        total = np.concatenate([[0.0], np.cumsum(counts[sequence] + pseudocount)])
        place = np.arange(len(sequence))
        first, last = np.maximum(place - flank, 0), np.minimum(place + flank + 1, len(sequence))
        smoothed[sequence] = (total[last] - total[first]) / (last - first)
    return smoothed
