"""Local background and breadth of a mark on host arrays: compiled loops, float64 inside, one sequence at a time.

The twin of :mod:`diffbio_sc.numerics.genome.background`, for forward passes on the CPU that ask for no gradient. It
loads without JAX, and the constants of both stand here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np

from diffbio_sc.numerics.genome.marks import LIMIT
from diffbio_sc.numerics.lines import as_line, compiled_sigmoid, sigmoid

__all__ = [
    "BREADTH_BETWEEN",
    "BREADTH_SLOPE",
    "CONTRAST_BETWEEN",
    "CONTRAST_SLOPE",
    "FEW_COUNTS",
    "MIXTURE_STEPS",
    "breadth",
    "broad_weight",
    "lags",
    "level_contrast",
    "local_background",
    "own_windows",
    "robust_level",
    "upper_limit",
    "window_mean",
]

# The peaks of narrow marks are over within SHORT_LAG to LONG_LAG, the domains of broad ones are not. What is slower
# than SLOW_WINDOW, such as copy number or early and late replication, is no mark.
SHORT_LAG, LONG_LAG, SLOW_WINDOW = 500, 5000, 100_000  # base pairs
# Borders between narrow and broad, from benchmarks/peaks.py breadths: sharp marks have breadths up to .21, H3K36me3 of
# .44 to .56, domains of 30 to 200 kb above .7. An input (.44) and a smoothly uneven background (.59) reach as far, but
# have no two levels: their contrast is 1.3 and 2.3, that of H3K36me3 2.7 to 6.2, of threefold domains 2.9. Below this
# border nothing is lost either: a chain of enrichment 5 takes no domain of less than 4 / log 5 = 2.49 times its level.
BREADTH_BETWEEN = 0.3
CONTRAST_BETWEEN = 2.5
BREADTH_SLOPE = 0.02  # in which the weight of broad settings rises, so that it has a value at the border
CONTRAST_SLOPE = 0.05
MIXTURE_STEPS = 60
FEW_COUNTS = 10.0  # of a typical window; windows without any are gaps of the assembly if a typical one has more


def window_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` positions around each, of those in the sequence (length,), float64."""
    values = as_line(values)
    result = np.zeros(len(values))
    _raise_to_mean(result, values, int(width), 1.0)
    return result


def local_background(
    counts: np.ndarray,
    windows: Sequence[int],
    *,
    control: np.ndarray | None = None,
    control_scale: float | None = None,
    own_width: int | None = None,
    level: float | None = None,
    smallest: float = 1e-6,
) -> np.ndarray:
    """Background rate of one sequence (length,), float64.

    Parameters are those of :func:`diffbio_sc.numerics.genome.background.local_background`. When a chromosome is one of
    many, pass ``level`` and ``control_scale`` of the whole genome.
    """
    counts = as_line(counts)
    source, scale = counts, 1.0
    if control is not None:
        source = as_line(control)
        if source.shape != counts.shape:
            raise ValueError(f"control must have shape {counts.shape} as counts has, found {source.shape}.")
        depth = source.sum(dtype=np.float64)
        if control_scale is None:
            control_scale = float(counts.sum(dtype=np.float64) / depth) if depth > 0 else 1.0
        scale = control_scale
    if level is None:
        level = float(counts.mean(dtype=np.float64)) if counts.size else 0.0
    rate = np.full(counts.shape, max(level, smallest))
    for width in windows:
        _raise_to_mean(rate, source, int(width), float(scale))
    if control is not None and own_width is not None and scale > 1.0:
        for width in own_windows(windows, own_width):
            limit = scale * upper_limit(window_mean(source, width) * width, 1.0 - 1.0 / scale) / width
            rate = np.maximum(rate, np.minimum(limit, window_mean(counts, width)))
    return rate


def own_windows(windows: Sequence[int], own_width: int) -> list[int]:
    """Windows in which the signal has a say beside a shallow control: ``own_width`` and all that are wider."""
    return sorted({int(own_width), *(int(width) for width in windows if width > own_width)})


def upper_limit(count: Any, excess: Any) -> Any:
    """Upper limit of a count in a window of a shallow control, numpy or JAX; ``excess`` is its share of noise."""
    return count + 0.5 * excess * LIMIT**2 + LIMIT * (excess * (count + 0.25 * excess * LIMIT**2)) ** 0.5


def robust_level(sequences: Sequence[np.ndarray], width: int) -> float:
    """Background rate a position over all sequences (a genome's chromosomes), from a mixture of two Poisson laws.

    The lower of the two means; the upper one where they are so close that both are background, which is uneven then.
    The twin of :func:`diffbio_sc.numerics.genome.background.robust_level`, for any number of sequences at once.

    Parameters
    ----------
    sequences
        Counts, each read counted once.
    width
        Positions in a window; windows do not run across sequences.
    """
    windows = _window_sums(sequences, width)
    if len(windows) < 2:
        size = sum(map(len, sequences))
        return float(sum(part.sum(dtype=np.float64) for part in sequences) / size) if size else 0.0
    low, high = _two_levels(windows)
    together = sigmoid((CONTRAST_BETWEEN - high / max(low, 1e-3)) / CONTRAST_SLOPE)
    return (low + together * (high - low)) / width


def level_contrast(sequences: Sequence[np.ndarray], width: int) -> float:
    """Ratio of the two levels of :func:`robust_level`; 1 where there are too few windows to tell."""
    windows = _window_sums(sequences, width)
    if len(windows) < 2 or not windows.any():
        return 1.0
    low, high = _two_levels(windows)
    return high / max(low, 1e-3)


def _lines(sequences: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Sequences one by one: those that lie in files need not be in memory together."""
    return map(as_line, sequences)


def _window_sums(sequences: Sequence[np.ndarray], width: int) -> np.ndarray:
    parts = _lines(sequences)
    sums = [part[: len(part) // width * width].reshape(-1, width).sum(1, dtype=np.float64) for part in parts]
    return np.concatenate(sums) if sums else np.zeros(0)


def _two_levels(windows: np.ndarray) -> tuple[float, float]:
    """Mean counts of windows of the lower and of the upper level."""
    filled = windows[windows > 0]
    mean_filled = filled.mean() if len(filled) else 0.0
    used = filled if mean_filled >= FEW_COUNTS else windows
    return _mixture_means(used, max(float(mean_filled), 1e-3))


def breadth(sequences: Sequence[np.ndarray], bin_width: float, *, limit: float = np.inf) -> float:
    """Covariance of counts 5 kb apart over that of counts 500 bp apart, over all sequences of one sample.

    Of each count the mean over 100 kb about it is taken away first. Counts are cut at ``limit``. The twin of
    :func:`diffbio_sc.numerics.genome.background.breadth`.
    """
    short, long = lags(bin_width)
    sizes = [len(part) for part in sequences if len(part) >= 2 * long]
    if not sizes or short == long:
        return 0.0
    total = sum(part.sum(dtype=np.float64) for part in _lines(sequences) if len(part) >= 2 * long) / sum(sizes)
    near = far = 0.0
    for part in _lines(sequences):
        if len(part) < 2 * long:
            continue
        # One sequence is copied at a time.
        cut = part.astype(np.float64) if np.isinf(limit) else np.minimum(part, limit, dtype=np.float64)
        cut -= window_mean(cut, max(round(SLOW_WINDOW / bin_width), 1))
        near += float(cut[short:] @ cut[:-short])
        far += float(cut[long:] @ cut[:-long])
    near /= sum(size - short for size in sizes)
    far /= sum(size - long for size in sizes)
    return far / near if near > 1e-6 * total**2 else 0.0


def lags(bin_width: float) -> tuple[int, int]:
    """Positions of the two lags of :func:`breadth`."""
    return max(round(SHORT_LAG / bin_width), 1), max(round(LONG_LAG / bin_width), 1)


def broad_weight(breadth: float, contrast: float) -> float:
    """Weight of broad settings, from 0 to 1, of a mark's breadth and of the contrast of its two levels."""
    reaches = sigmoid((breadth - BREADTH_BETWEEN) / BREADTH_SLOPE)
    return float(reaches * sigmoid((contrast - CONTRAST_BETWEEN) / CONTRAST_SLOPE))


@numba.njit(cache=True, nogil=True)
def _raise_to_mean(rate, values, width, scale):
    """Raise ``rate`` to ``scale`` times the window's mean of ``values`` where that is larger."""
    # Without min and max, which are functions to compile by themselves.
    length = len(values)
    before = width // 2
    after = width - 1 - before
    total, size = 0.0, 0
    while size < after and size < length:
        total += values[size]
        size += 1
    for t in range(length):
        # A running sum of counts is exact in float64; of fractions it errs by less than 1e-9 over a genome.
        if t + after < length:
            total += values[t + after]
            size += 1
        if t - before - 1 >= 0:
            total -= values[t - before - 1]
            size -= 1
        mean = scale * total / size
        if mean > rate[t]:
            rate[t] = mean


def _mixture_means(windows: np.ndarray, typical: float) -> tuple[float, float]:
    low, high, share = 0.5 * typical, 2.0 * typical, 0.5
    for step in range(MIXTURE_STEPS + 1):
        log_share = math.log(share) - math.log1p(-share)
        upper, upper_sum, lower, lower_sum = _mixture_sums(windows, log_share, math.log(high / low), high - low)
        if step == MIXTURE_STEPS:
            return lower_sum / max(lower, 1e-6), upper_sum / max(upper, 1e-6)
        share = min(max(upper / max(float(len(windows)), 1e-6), 0.01), 0.99)
        low = max(lower_sum / max(lower, 1e-6), 1e-3)
        high = max(upper_sum / max(upper, 1e-6), 1.01 * low)
    return low, high


@numba.njit(cache=True, nogil=True)
def _mixture_sums(windows, log_share, slope, offset):
    """Weight of the upper level over all windows and its sum of counts, then those of the lower level."""
    upper = upper_sum = lower = lower_sum = 0.0
    for value in windows:
        weight = compiled_sigmoid(log_share + value * slope - offset)
        upper += weight
        upper_sum += weight * value
        lower += 1.0 - weight
        lower_sum += (1.0 - weight) * value
    return upper, upper_sum, lower, lower_sum
