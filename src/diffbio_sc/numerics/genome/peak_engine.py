"""Peak calling on host arrays: compiled loops in flat memory, float64 inside, for one sequence at a time.

Twins of :mod:`diffbio_sc.numerics.chains.two_state` and :mod:`diffbio_sc.numerics.genome.background`, for forward
passes on the CPU that ask for no gradient. Sums run in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

__all__ = [
    "ChainPosterior",
    "chain_margins",
    "chain_posterior",
    "breadth",
    "broad_weight",
    "local_background",
    "robust_level",
    "window_mean",
]

# As in local_background, which this module does not import: it loads without JAX.
SHORT_LAG, LONG_LAG = 500, 5000
BREADTH_BETWEEN, BREADTH_WIDTH = 0.4, 0.02
_MIXTURE_STEPS = 60
_FEW = 10.0


class ChainPosterior(NamedTuple):
    """Posterior of one sequence, float32: probability of state 1, of a start, of an end, and log-odds of state 1."""

    inside: np.ndarray
    start: np.ndarray
    end: np.ndarray
    logits: np.ndarray


def chain_margins(log_odds: np.ndarray, enter: float, leave: float, *, initial: float | None = None) -> np.ndarray:
    """Max-marginal margins of one sequence (length,), float32; the most probable path is where they are above 0.

    Parameters are those of :func:`diffbio_sc.numerics.chains.two_state.margins`.
    """
    initial = enter if initial is None else initial
    return _margins(_as_line(log_odds), float(enter), float(leave), float(initial))


def chain_posterior(
    log_odds: np.ndarray, enter: float, leave: float, temperature: float = 1.0, *, initial: float | None = None
) -> ChainPosterior:
    """Posterior of one sequence (length,) at a temperature above 0.

    Parameters are those of :func:`diffbio_sc.numerics.chains.two_state.switch_posterior`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature!r}; chain_margins is its limit at 0.")
    initial = enter if initial is None else initial
    return ChainPosterior(
        *_posterior(_as_line(log_odds), float(enter), float(leave), float(initial), float(temperature))
    )


def window_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` positions around each, of those in the sequence (length,), float64."""
    values = _as_line(values)
    return _window_mean(values, int(width))


def local_background(
    counts: np.ndarray,
    windows: Sequence[int],
    *,
    control: np.ndarray | None = None,
    control_scale: float | None = None,
    level: float | None = None,
    smallest: float = 1e-6,
) -> np.ndarray:
    """Background rate of one sequence (length,), float64.

    Parameters are those of :func:`diffbio_sc.numerics.genome.background.local_background`. When a chromosome is one of
    many, pass ``level`` and ``control_scale`` of the whole genome.
    """
    counts = _as_line(counts)
    source, scale = counts, 1.0
    if control is not None:
        source = _as_line(control)
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
    return rate


def robust_level(sequences: Sequence[np.ndarray], width: int) -> float:
    """Background rate a position over all sequences (a genome's chromosomes), from a mixture of two Poisson laws.

    The twin of :func:`diffbio_sc.numerics.genome.background.robust_level`, for any number of sequences at once.

    Parameters
    ----------
    sequences
        Counts, each read counted once.
    width
        Positions in a window; windows do not run across sequences.
    """
    parts = [_as_line(counts) for counts in sequences]
    sums = [part[: len(part) // width * width].reshape(-1, width).sum(1, dtype=np.float64) for part in parts]
    windows = np.concatenate(sums) if sums else np.zeros(0)
    if len(windows) < 2:
        size = sum(map(len, parts))
        return float(sum(part.sum(dtype=np.float64) for part in parts) / size) if size else 0.0
    filled = windows[windows > 0]
    mean_filled = filled.mean() if len(filled) else 0.0
    used = filled if mean_filled >= _FEW else windows
    return _lower_mean(used, max(float(mean_filled), 1e-3)) / width


def breadth(sequences: Sequence[np.ndarray], bin_width: float, *, limit: float = np.inf) -> float:
    """Covariance of counts 5 kb apart over that of counts 500 bp apart, over all sequences of one sample.

    Counts are cut at ``limit``. The twin of :func:`diffbio_sc.numerics.genome.background.breadth`.
    """
    short, long = max(round(SHORT_LAG / bin_width), 1), max(round(LONG_LAG / bin_width), 1)
    parts = [part for part in map(_as_line, sequences) if len(part) >= 2 * long]
    if not parts or short == long:
        return 0.0

    def total(function: Callable[[np.ndarray], float]) -> float:
        # One sequence is copied at a time.
        return sum(function(part if np.isinf(limit) else np.minimum(part, limit)) for part in parts)

    mean = total(lambda part: part.sum(dtype=np.float64)) / sum(map(len, parts))
    near = total(lambda part: _lagged_products(part, short, mean)) / sum(len(part) - short for part in parts)
    far = total(lambda part: _lagged_products(part, long, mean)) / sum(len(part) - long for part in parts)
    return float(far / near) if near > 1e-6 * mean**2 else 0.0


def broad_weight(breadth: float) -> float:
    """Weight of broad settings, from 0 to 1."""
    return float(_sigmoid((breadth - BREADTH_BETWEEN) / BREADTH_WIDTH))


def _as_line(values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"expected one sequence (length,), found shape {values.shape}.")
    return np.ascontiguousarray(values)


@numba.njit(cache=True, nogil=True)
def _margins(log_odds, enter, leave, initial):
    length = len(log_odds)
    result = np.empty(length, np.float32)
    forward = np.empty(length, np.float64)
    margin = 0.0
    for t in range(length):
        margin = -initial if t == 0 else min(max(margin, -enter), leave)
        margin += log_odds[t]
        forward[t] = margin
    margin = 0.0
    for t in range(length - 1, -1, -1):
        if t < length - 1:
            margin = min(max(margin + log_odds[t + 1], -leave), enter)
        result[t] = forward[t] + margin
    return result


@numba.njit(cache=True, nogil=True, inline="always")
def _log_add(x, y):
    if x > y:
        return x + math.log1p(math.exp(y - x))
    return y + math.log1p(math.exp(x - y))


@numba.njit(cache=True, nogil=True, inline="always")
def _sigmoid(x):
    if x > 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


@numba.njit(cache=True, nogil=True)
def _posterior(log_odds, enter, leave, initial, temperature):
    length = len(log_odds)
    inside = np.empty(length, np.float32)
    start = np.empty(length, np.float32)
    end = np.empty(length, np.float32)
    logits = np.empty(length, np.float32)
    forward = np.empty(length, np.float64)
    enter, leave, initial = enter / temperature, leave / temperature, initial / temperature
    odds = 0.0
    for t in range(length):
        if t == 0:
            odds = -initial
        else:
            odds = _log_add(odds, -enter) - _log_add(0.0, odds - leave)
        odds += log_odds[t] / temperature
        forward[t] = odds
    backward = 0.0
    for t in range(length - 1, -1, -1):
        logit = forward[t] + backward
        logits[t] = logit
        probability = _sigmoid(logit)
        inside[t] = probability
        if t == length - 1:
            end[t] = probability
        after = backward + log_odds[t] / temperature
        if t == 0:
            start[t] = probability
        else:
            before = forward[t - 1]
            rise, fall = after - enter, before - leave
            total = _log_add(_log_add(0.0, rise), _log_add(fall, before + after))
            start[t] = math.exp(rise - total)
            end[t - 1] = math.exp(fall - total)
        backward = _log_add(after, -leave) - _log_add(0.0, after - enter)
    return inside, start, end, logits


@numba.njit(cache=True, nogil=True)
def _window_mean(values, width):
    result = np.zeros(len(values))
    _raise_to_mean(result, values, width, 1.0)
    return result


@numba.njit(cache=True, nogil=True)
def _raise_to_mean(rate, values, width, scale):
    """Raise ``rate`` to ``scale`` times the window's mean of ``values`` where that is larger."""
    length = len(values)
    before = width // 2
    after = width - 1 - before
    total = 0.0
    for index in range(min(after, length)):
        total += values[index]
    for t in range(length):
        # A running sum of counts is exact in float64; of fractions it errs by less than 1e-9 over a genome.
        if t + after < length:
            total += values[t + after]
        if t - before - 1 >= 0:
            total -= values[t - before - 1]
        size = min(t + after, length - 1) - max(t - before, 0) + 1
        rate[t] = max(rate[t], scale * total / size)


@numba.njit(cache=True, nogil=True)
def _lagged_products(values, lag, mean):
    total = 0.0
    for t in range(len(values) - lag):
        total += (values[t] - mean) * (values[t + lag] - mean)
    return total


@numba.njit(cache=True, nogil=True)
def _lower_mean(windows, typical):
    low, high, share = 0.5 * typical, 2.0 * typical, 0.5
    for step in range(_MIXTURE_STEPS + 1):
        log_share = math.log(share) - math.log1p(-share)
        slope, offset = math.log(high / low), high - low
        upper = upper_sum = lower = lower_sum = 0.0
        for value in windows:
            weight = _sigmoid(log_share + value * slope - offset)
            upper += weight
            upper_sum += weight * value
            lower += 1.0 - weight
            lower_sum += (1.0 - weight) * value
        if step == _MIXTURE_STEPS:
            return lower_sum / max(lower, 1e-6)
        share = min(max(upper / max(float(len(windows)), 1e-6), 0.01), 0.99)
        low = max(lower_sum / max(lower, 1e-6), 1e-3)
        high = max(upper_sum / max(upper, 1e-6), 1.01 * low)
    return low
