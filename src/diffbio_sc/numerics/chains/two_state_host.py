"""The two-state chain on host arrays: compiled loops in flat memory, float64 inside, one sequence at a time.

The twin of :mod:`diffbio_sc.numerics.chains.two_state`, for forward passes on the CPU that ask for no gradient. It
loads without JAX.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from diffbio_sc.numerics.lines import as_line, compiled_sigmoid

__all__ = ["ChainPosterior", "chain_margins", "chain_posterior"]


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
    return _margins(as_line(log_odds), float(enter), float(leave), float(initial))


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
        *_posterior(as_line(log_odds), float(enter), float(leave), float(initial), float(temperature))
    )


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
        probability = compiled_sigmoid(logit)
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
