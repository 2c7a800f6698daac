r"""Expected statistics of a hidden Markov model from compressed sequences of repeating observations, exactly.

A sequence of observation patterns in which few patterns occur often (binary marks along a genome: nine bins of ten
hold nothing) is compressed by merging frequent neighbours into tokens, as byte-pair encoding does. With M_p = A
diag(e_p) for a pattern p, and M_v = M_a M_b for the token v that stands for a followed by b, the forward and backward
recursions run over tokens,

    alpha_t = alpha_{t-1} M_{v_t},      beta_{t-1} = M_{v_t} beta_t,

a tenth of the bins. With X_v = sum over the occurrences of v of alpha_{t-1} beta_t^T / L, which is the derivative of
the log-likelihood by M_v, the statistics of the merged tokens are handed down to their parts,

    X_a += X_v M_b^T,      X_b += M_a^T X_v,

and those of the patterns are the expected numbers of transitions X_p * M_p. All terms are positive, nothing cancels
(Lifshits, Mozes, Weimann, Ziv-Ukelson 2009, Algorithmica 54:379; Sand et al. 2013, BMC Bioinformatics 14:339).

Everything runs in float64 in compiled loops, whose width is fixed when they are compiled: eight states at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np

from diffbio_sc.numerics.chains.statistics import ChainStatistics

__all__ = ["CompressedChains", "Tokens", "compress"]

_LANES = 8
_TABLE_BYTES = 2**28
_FAST: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}
# A message is scaled only when its sum leaves this range: that keeps the division off the chain of dependences.
_SMALL, _LARGE = 1e-100, 1e100


class Tokens(NamedTuple):
    """Compressed sequences.

    Attributes
    ----------
    sequences
        Tokens of each sequence, its first pattern left out.
    pairs
        The two tokens that each merged token stands for, (merged, 2); token ``n_patterns + i`` is row i.
    n_patterns
        Number of patterns; tokens below it are patterns.
    """

    sequences: list[np.ndarray]
    pairs: np.ndarray
    n_patterns: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(map(len, self.sequences))


def compress(
    sequences: Sequence[np.ndarray], n_patterns: int, *, most_tokens: int = 2048, fewest_uses: int = 32
) -> Tokens:
    """Merge frequent neighbours of all sequences.

    Parameters
    ----------
    sequences
        Numbers of patterns, below ``n_patterns``.
    n_patterns
        How many patterns there are.
    most_tokens
        Patterns and merged tokens together at most; each costs K^3 operations a step, where an occurrence costs K^2.
    fewest_uses
        A pair that occurs less often is not merged.
    """
    line = np.empty(sum(map(len, sequences)) + len(sequences), np.int32)
    place = 0
    for sequence in sequences:
        line[place : place + len(sequence)] = sequence
        line[place + len(sequence)] = -1
        place += len(sequence) + 1
    pairs = np.zeros((0, 2), np.int32)
    known = n_patterns
    while known < most_tokens:
        size = 1 << int(min(2 * len(line), known * known) + 16).bit_length()
        keys, uses = np.full(size, -1, np.int64), np.zeros(size, np.int32)
        _count_pairs(line, keys, uses)
        found = np.flatnonzero(uses >= fewest_uses)
        if not len(found):
            break
        # The pairs of one round are few and of similar frequency, so that merging them together is close to merging
        # them one after the other.
        number = min(most_tokens - known, max(8, known // 4), len(found))
        order = np.lexsort((keys[found], -uses[found]))[:number]
        chosen = found[order]
        chosen = chosen[uses[chosen] >= uses[chosen[0]] // 8]
        uses[:] = -1
        uses[chosen] = np.arange(known, known + len(chosen))
        pairs = np.concatenate([pairs, np.stack([keys[chosen] >> 32, keys[chosen] & 0xFFFFFFFF], 1).astype(np.int32)])
        known += len(chosen)
        line = line[: _merge_pairs(line, keys, uses)]
    ends = np.flatnonzero(line < 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return Tokens([line[start:end].copy() for start, end in zip(starts, ends, strict=True)], pairs, n_patterns)


class CompressedChains:
    """Sequences of patterns, compressed once, of which expected statistics are asked for many models.

    Parameters
    ----------
    sequences
        Numbers of patterns of each sequence, at least one each.
    n_patterns
        How many patterns there are.
    most_tokens, fewest_uses
        As for :func:`compress`.
    """

    def __init__(
        self, sequences: Sequence[np.ndarray], n_patterns: int, *, most_tokens: int = 2048, fewest_uses: int = 32
    ):
        self.n_patterns = n_patterns
        self.lengths = np.array([len(sequence) for sequence in sequences])
        self.first = np.array([sequence[0] for sequence in sequences], np.int64)
        self.tokens = compress(
            [sequence[1:] for sequence in sequences], n_patterns, most_tokens=most_tokens, fewest_uses=fewest_uses
        )
        self._counts = [
            np.bincount(tokens, minlength=n_patterns + len(self.tokens.pairs)) for tokens in self.tokens.sequences
        ]
        self._buffers: dict[int, tuple[np.ndarray, ...]] = {}

    def fits(self, n_states: int) -> bool:
        """Whether the tables of so many states stay small."""
        width = _width(n_states)
        return 3 * 8 * (self.n_patterns + len(self.tokens.pairs)) * width * width <= _TABLE_BYTES

    def expect(
        self,
        initial: np.ndarray,
        transition: np.ndarray,
        log_likelihoods: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        statistics: bool = True,
    ) -> ChainStatistics | np.ndarray:
        """Return the expected statistics of all sequences under a model.

        Parameters
        ----------
        initial, transition
            Probabilities (K,) and (K, K).
        log_likelihoods
            Log-likelihood of each pattern in each state (patterns, K).
        weights
            Weight of each sequence; default 1.
        statistics
            Whether to return the statistics, or the log-likelihood of each sequence alone.

        Returns
        -------
        The statistics, or log-likelihoods (sequences,). A sequence that the model cannot make has minus infinity.
        """
        states, width = len(initial), _width(len(initial))
        kernels = _kernels(width)
        patterns, pairs = self.n_patterns, self.tokens.pairs
        highest = log_likelihoods.max(1)
        highest = np.where(np.isfinite(highest), highest, 0.0)
        scaled = np.zeros((patterns, width))
        scaled[:, :states] = np.exp(log_likelihoods - highest[:, None])
        padded = np.zeros((width, width))
        padded[:states, :states] = transition
        matrices, turned, derivatives, messages = self._tables(width)
        scales = np.zeros(len(matrices))
        scales[:patterns] = highest
        kernels.tables(padded, scaled, pairs, matrices, turned, scales)
        derivatives[:] = 0.0
        log_likelihood = np.zeros(len(self.first))
        start, ends = np.zeros(width), np.zeros(width)
        first_states = np.zeros((len(self.first), states))
        for number, tokens in enumerate(self.tokens.sequences):
            weight = 1.0 if weights is None else float(weights[number])
            if weight == 0.0 and statistics:
                continue
            first = self.first[number]
            start[:states] = initial * scaled[first, :states]
            found = kernels.forward(tokens, start, matrices, messages)
            log_likelihood[number] = found + highest[first] + self._counts[number] @ scales
            if statistics and np.isfinite(found):
                kernels.backward(tokens, matrices, turned, messages, derivatives, ends, weight)
                first_states[number] = ends[:states] * weight
        if not statistics:
            return log_likelihood
        if len(pairs):
            factor = np.zeros(len(matrices))
            factor[patterns:] = np.exp(scales[pairs[:, 0]] + scales[pairs[:, 1]] - scales[patterns:])
            kernels.hand_down(pairs, patterns, matrices, derivatives, factor)
        expected = derivatives[:patterns] * matrices[:patterns]
        occupancy = expected.sum(1)[:, :states]
        np.add.at(occupancy, self.first, first_states)
        return ChainStatistics(
            float(log_likelihood.sum() if weights is None else weights @ log_likelihood),
            first_states.sum(0),
            expected.sum(0)[:states, :states],
            occupancy,
        )

    def _tables(self, width: int) -> tuple[np.ndarray, ...]:
        if width not in self._buffers:
            tokens = self.n_patterns + len(self.tokens.pairs)
            longest = max(map(len, self.tokens.sequences)) + 1
            self._buffers = {
                width: (
                    *(np.zeros((tokens, width, width)) for _ in range(3)),
                    np.zeros((longest, width)),
                )
            }
        return self._buffers[width]


def _width(states: int) -> int:
    return -(-states // _LANES) * _LANES


@numba.njit(cache=True, nogil=True)
def _find(keys, key):
    """Place of a key in an open hash table, or the free place where it belongs."""
    place = (key * 0x9E3779B97F4A7C15 >> 20) & (len(keys) - 1)
    while keys[place] != key and keys[place] != -1:
        place = (place + 1) & (len(keys) - 1)
    return place


@numba.njit(cache=True, nogil=True)
def _count_pairs(line, keys, uses):
    repeated = False
    for t in range(len(line) - 1):
        left, right = np.int64(line[t]), np.int64(line[t + 1])
        if left < 0 or right < 0:
            repeated = False
            continue
        # Of a run of one token only every other pair can be merged.
        repeated = left == right and not repeated
        if left == right and not repeated:
            continue
        place = _find(keys, (left << 32) | right)
        keys[place] = (left << 32) | right
        uses[place] += 1


@numba.njit(cache=True, nogil=True)
def _merge_pairs(line, keys, tokens):
    """Replace pairs that have a token, from left to right, in place; return the new length."""
    end = t = 0
    while t < len(line):
        token = np.int32(-1)
        if t + 1 < len(line) and line[t] >= 0 and line[t + 1] >= 0:
            key = (np.int64(line[t]) << 32) | np.int64(line[t + 1])
            place = _find(keys, key)
            if keys[place] == key:
                token = tokens[place]
        if token >= 0:
            line[end] = token
            t += 2
        else:
            line[end] = line[t]
            t += 1
        end += 1
    return end


class _Kernels(NamedTuple):
    tables: Any
    forward: Any
    backward: Any
    hand_down: Any


@functools.cache
def _kernels(width: int) -> _Kernels:
    """Loops over tokens for a number of states, a multiple of eight, that the compiler knows."""

    @numba.njit(cache=True, **_FAST)
    def tables(transition, scaled, pairs, matrices, turned, scales):
        patterns = len(scaled)
        for p in range(patterns):
            for i in range(width):
                for j in range(width):
                    value = transition[i, j] * scaled[p, j]
                    matrices[p, i, j] = value
                    turned[p, j, i] = value
        row = np.empty(width)
        for q in range(len(pairs)):
            a, b, v = pairs[q, 0], pairs[q, 1], patterns + q
            highest = 0.0
            for i in range(width):
                row[:] = 0.0
                for k in range(width):
                    value = matrices[a, i, k]
                    for j in range(width):
                        row[j] += value * matrices[b, k, j]
                for j in range(width):
                    matrices[v, i, j] = row[j]
                    highest = max(highest, row[j])
            # A token that the model cannot make is a matrix of zeros.
            factor = 1.0 / highest if highest > 0.0 else 1.0
            for i in range(width):
                for j in range(width):
                    value = matrices[v, i, j] * factor
                    matrices[v, i, j] = value
                    turned[v, j, i] = value
            scales[v] = scales[a] + scales[b] - np.log(factor)

    @numba.njit(cache=True, **_FAST)
    def forward(tokens, start, matrices, messages):
        log_scale = 0.0
        for j in range(width):
            messages[0, j] = start[j]
        for t in range(len(tokens)):
            matrix, now, new = matrices[tokens[t]], messages[t], messages[t + 1]
            for j in range(width):
                value = 0.0
                for i in range(width):
                    value += now[i] * matrix[i, j]
                new[j] = value
            total = 0.0
            for j in range(width):
                total += new[j]
            if total < _SMALL or total > _LARGE:
                if total <= 0.0:
                    return -np.inf
                log_scale += np.log(total)
                factor = 1.0 / total
                for j in range(width):
                    new[j] *= factor
        total = 0.0
        for j in range(width):
            total += messages[len(tokens), j]
        return log_scale + np.log(total)

    @numba.njit(cache=True, **_FAST)
    def backward(tokens, matrices, turned, messages, derivatives, first, weight):
        beta, new, left = np.ones(width), np.empty(width), np.empty(width)
        for t in range(len(tokens) - 1, -1, -1):
            matrix, now = turned[tokens[t]], messages[t]
            for i in range(width):
                value = 0.0
                for j in range(width):
                    value += beta[j] * matrix[j, i]
                new[i] = value
            likelihood = 0.0
            for i in range(width):
                likelihood += now[i] * new[i]
            factor = weight / likelihood
            for i in range(width):
                left[i] = now[i] * factor
            derivative = derivatives[tokens[t]]
            for i in range(width):
                value = left[i]
                for j in range(width):
                    derivative[i, j] += value * beta[j]
            total = 0.0
            for i in range(width):
                total += new[i]
            factor = 1.0 / total if total < _SMALL or total > _LARGE else 1.0
            for i in range(width):
                beta[i] = new[i] * factor
        likelihood = 0.0
        for j in range(width):
            likelihood += messages[0, j] * beta[j]
        for j in range(width):
            first[j] = messages[0, j] * beta[j] / likelihood

    @numba.njit(cache=True, **_FAST)
    def hand_down(pairs, patterns, matrices, derivatives, factors):
        for q in range(len(pairs) - 1, -1, -1):
            a, b, v = pairs[q, 0], pairs[q, 1], patterns + q
            factor = factors[v]
            derivative = derivatives[v]
            for i in range(width):
                for k in range(width):
                    value = 0.0
                    for j in range(width):
                        value += derivative[i, j] * matrices[b, k, j]
                    derivatives[a, i, k] += factor * value
            for i in range(width):
                for k in range(width):
                    value = factor * matrices[a, i, k]
                    for j in range(width):
                        derivatives[b, k, j] += value * derivative[i, j]

    return _Kernels(tables, forward, backward, hand_down)
