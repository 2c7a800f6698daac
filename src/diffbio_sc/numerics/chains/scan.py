"""Forward-backward and Viterbi along sequences of any length in bounded memory, in float64 on the host.

The sequence is read in blocks. A first pass keeps the forward message at the border of each block, a second one goes
back through the blocks, runs each forward again from its border, and then backward; only one block's messages are ever
held. Messages at the borders are the exact ones, not those of a burn-in. Observations enter through a function that
gives the log-likelihoods of the positions asked for, so that neither they nor posteriors need exist as a whole.

The compiled loops are twins of those in :mod:`diffbio_sc.numerics.chains.hmm`, which also has gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

__all__ = ["LogLikelihoods", "Visitor", "forward_backward", "log_likelihood", "viterbi"]

LogLikelihoods = Callable[[int, int], np.ndarray]
"""Gives the log-likelihoods (stop - start, K) of positions from ``start`` to before ``stop``."""

Visitor = Callable[[int, int, np.ndarray], None]
"""Takes the posterior (stop - start, K) of positions from ``start`` to before ``stop``; may keep no reference to it."""

_LANES = 8
_BLOCK_BYTES = 2**24
_FAST: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}


class Expected(NamedTuple):
    """Log-likelihood of one sequence, posterior of its first state (K,), expected transitions (K, K)."""

    log_likelihood: float
    initial: np.ndarray
    transitions: np.ndarray


def forward_backward(
    initial: np.ndarray,
    transition: np.ndarray,
    log_likelihoods: LogLikelihoods,
    length: int,
    visit: Visitor | None = None,
    *,
    block: int | None = None,
) -> Expected:
    """Return expected statistics of one sequence, and show the posterior to ``visit`` block by block, from the end.

    Parameters
    ----------
    initial, transition
        Probabilities (K,) and (K, K). Exact zeros are honoured.
    log_likelihoods
        Log-likelihoods of positions; asked for twice.
    length
        Positions of the sequence, at least 1.
    visit
        Called with the posterior of each block.
    block
        Positions a block; default such that a block's messages take 16 MiB.

    Returns
    -------
    Expected statistics. If the model cannot make the sequence, the log-likelihood is minus infinity, the statistics are
    zero, and ``visit`` is not called.
    """
    sweep = _Sweep(initial, transition, log_likelihoods, length, block)
    total, borders = sweep.forward()
    states = len(initial)
    if not np.isfinite(total):
        return Expected(-np.inf, np.zeros(states), np.zeros((states, states)))
    beta = np.ones(sweep.width)
    raw = np.zeros((sweep.width, sweep.width))
    first = np.zeros(states)
    for number in range(len(borders) - 1, -1, -1):
        start, stop = sweep.bounds(number)
        messages, scaled = sweep.messages[: stop - start + 1], sweep.buffer[: stop - start]
        if number < len(borders) - 1:  # of the last block the first pass has left both
            scaled, _ = sweep.scaled(start, stop)
            messages[0] = borders[number]
            sweep.kernels.forward(scaled, sweep.start, sweep.padded, messages, start == 0)
        posterior = sweep.posterior[: stop - start]
        sweep.kernels.backward(scaled, sweep.turned, messages, beta, raw, posterior, start == 0)
        if start == 0:
            first = posterior[0, :states].copy()
        if visit is not None:
            visit(start, stop, posterior[:, :states])
    return Expected(total, first, raw[:states, :states] * transition)


def log_likelihood(
    initial: np.ndarray,
    transition: np.ndarray,
    log_likelihoods: LogLikelihoods,
    length: int,
    *,
    block: int | None = None,
) -> float:
    """Return the log-likelihood of one sequence; parameters are those of :func:`forward_backward`."""
    return _Sweep(initial, transition, log_likelihoods, length, block).forward()[0]


def viterbi(
    initial: np.ndarray,
    transition: np.ndarray,
    log_likelihoods: LogLikelihoods,
    length: int,
    *,
    block: int | None = None,
) -> tuple[np.ndarray, float]:
    """Return the most probable path of one sequence and its log-probability, by back-tracking.

    Parameters are those of :func:`forward_backward`. Of equally probable states the one with the lower number is taken.
    Back-pointers take one byte a state and position (two beyond 256 states).

    Returns
    -------
    Path (length,) of int16, and the log-probability of path and observations together, minus infinity if no path can
    make them.
    """
    states = len(initial)
    pointers = np.empty((length, states), np.uint8 if states <= 256 else np.uint16)
    with np.errstate(divide="ignore"):
        log_transition, score = np.log(transition), np.log(initial)
    size = block or max(_BLOCK_BYTES // (8 * states), 1)
    for start in range(0, length, size):
        stop = min(start + size, length)
        rows = np.ascontiguousarray(log_likelihoods(start, stop), np.float64)
        score = _best_scores(rows, log_transition, score, pointers[start:stop], start == 0)
    last = int(np.argmax(score))
    return _trace_back(pointers, last), float(score[last])


class _Sweep:
    """One sequence under one model: padded parameters, blocks and buffers."""

    def __init__(self, initial, transition, log_likelihoods, length, block):
        self.states = len(initial)
        self.width = -(-self.states // _LANES) * _LANES
        self.kernels = _kernels(self.width)
        self.log_likelihoods, self.length = log_likelihoods, int(length)
        self.block = min(block or max(_BLOCK_BYTES // (8 * self.width), 1), self.length)
        self.start = np.zeros(self.width)
        self.start[: self.states] = initial
        self.padded = np.zeros((self.width, self.width))
        self.padded[: self.states, : self.states] = transition
        self.turned = np.ascontiguousarray(self.padded.T)
        self.messages = np.zeros((self.block + 1, self.width))
        self.posterior = np.zeros((self.block, self.width))
        self.buffer = np.zeros((self.block, self.width))

    def bounds(self, number: int) -> tuple[int, int]:
        start = number * self.block
        return start, min(start + self.block, self.length)

    def scaled(self, start: int, stop: int) -> tuple[np.ndarray, float]:
        """Likelihoods of a block over the largest of each position, and the sum of the logarithms of those."""
        rows = np.ascontiguousarray(self.log_likelihoods(start, stop), np.float64)
        scaled = self.buffer[: stop - start]
        total = _lower_to_zero(rows, scaled)
        inside = scaled[:, : self.states]
        np.exp(inside, out=inside)
        return scaled, float(total)

    def forward(self) -> tuple[float, list[np.ndarray]]:
        """Log-likelihood, and the message before each block."""
        total, borders, message = 0.0, [], np.zeros(self.width)
        for number in range(-(-self.length // self.block)):
            start, stop = self.bounds(number)
            scaled, scale = self.scaled(start, stop)
            borders.append(message)
            self.messages[0] = message
            total += scale + self.kernels.forward(scaled, self.start, self.padded, self.messages, start == 0)
            if not np.isfinite(total):
                return -np.inf, borders
            message = self.messages[stop - start].copy()
        return total, borders


class _Kernels(NamedTuple):
    forward: Any
    backward: Any


@functools.cache
def _kernels(width: int) -> _Kernels:
    """Loops over positions for a number of states, a multiple of eight, that the compiler knows."""

    @numba.njit(cache=True, **_FAST)
    def forward(scaled, initial, transition, messages, first):
        # Each message is scaled to sum 1: chains of zeros and near-zeros lose nothing however long they are.
        log_scale = 0.0
        for t in range(len(scaled)):
            now, new = messages[t], messages[t + 1]
            if first and t == 0:
                for j in range(width):
                    new[j] = initial[j] * scaled[t, j]
            else:
                for j in range(width):
                    value = 0.0
                    for i in range(width):
                        value += now[i] * transition[i, j]
                    new[j] = value * scaled[t, j]
            total = 0.0
            for j in range(width):
                total += new[j]
            if total <= 0.0:
                return -np.inf
            log_scale += np.log(total)
            factor = 1.0 / total
            for j in range(width):
                new[j] *= factor
        return log_scale

    @numba.njit(cache=True, **_FAST)
    def backward(scaled, turned, messages, beta, raw, posterior, first):
        ahead, new, left = np.empty(width), np.empty(width), np.empty(width)
        for t in range(len(scaled) - 1, -1, -1):
            here = messages[t + 1]
            total = 0.0
            for j in range(width):
                posterior[t, j] = here[j] * beta[j]
                total += posterior[t, j]
            factor = 1.0 / total
            for j in range(width):
                posterior[t, j] *= factor
                ahead[j] = scaled[t, j] * beta[j]
            if first and t == 0:
                break
            now = messages[t]
            for i in range(width):
                value = 0.0
                for j in range(width):
                    value += ahead[j] * turned[j, i]
                new[i] = value
            likelihood = total = 0.0
            for i in range(width):
                likelihood += now[i] * new[i]
                total += new[i]
            factor = 1.0 / likelihood
            for i in range(width):
                left[i] = now[i] * factor
            for i in range(width):
                value = left[i]
                for j in range(width):
                    raw[i, j] += value * ahead[j]
            factor = 1.0 / total
            for i in range(width):
                beta[i] = new[i] * factor

    return _Kernels(forward, backward)


@numba.njit(cache=True, nogil=True)
def _lower_to_zero(rows, lowered):
    """Take the largest of each row off it, and return the sum of what was taken off."""
    total = 0.0
    for t in range(len(rows)):
        highest = -np.inf
        for j in range(rows.shape[1]):
            highest = max(highest, rows[t, j])
        if highest == -np.inf:  # nothing can make this position: its likelihoods are zero
            highest = 0.0
        total += highest
        for j in range(rows.shape[1]):
            lowered[t, j] = rows[t, j] - highest
    return total


@numba.njit(cache=True, nogil=True)
def _best_scores(rows, log_transition, score, pointers, first):
    states = len(score)
    now = score.copy()
    best, source = np.empty(states), np.empty(states, np.int64)
    for t in range(len(rows)):
        if first and t == 0:
            for j in range(states):
                now[j] += rows[t, j]
                pointers[t, j] = 0
            continue
        for j in range(states):
            best[j] = now[0] + log_transition[0, j]
            source[j] = 0
        for i in range(1, states):
            before = now[i]
            for j in range(states):
                value = before + log_transition[i, j]
                better = value > best[j]
                best[j] = value if better else best[j]
                source[j] = i if better else source[j]
        for j in range(states):
            now[j] = best[j] + rows[t, j]
            pointers[t, j] = source[j]
    return now


@numba.njit(cache=True, nogil=True)
def _trace_back(pointers, last):
    path = np.empty(len(pointers), np.int16)
    state = last
    for t in range(len(pointers) - 1, -1, -1):
        path[t] = state
        state = pointers[t, state]
    return path
