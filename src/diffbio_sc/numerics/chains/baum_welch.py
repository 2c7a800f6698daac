"""Hidden Markov models of many marks, trained by expectation maximisation on whole genomes.

Observations are told apart where they repeat: rows that are equal are one pattern, with one row of log-likelihoods. Few
patterns are compressed (:mod:`diffbio_sc.numerics.chains.compressed`), many are streamed
(:mod:`diffbio_sc.numerics.chains.scan`); the statistics are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np

from diffbio_sc.numerics import em
from diffbio_sc.numerics.chains.compressed import CompressedChains
from diffbio_sc.numerics.chains.emissions import Emission, Sums, dense_rows
from diffbio_sc.numerics.chains.scan import forward_backward, log_likelihood
from diffbio_sc.numerics.chains.statistics import ChainStatistics

__all__ = ["MarkovModel", "Observations", "expect", "fit", "log_likelihoods", "maximize"]

# A pattern is worth a row of its own if there are this many times more positions than patterns.
_FEWEST_REPEATS = 4
_COMPRESSIBLE_PATTERNS = 4096
_SMALLEST = 1e-12
_BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovModel:
    """A hidden Markov model: initial (K,) and transition (K, K) probabilities, and a family of emissions."""

    initial: np.ndarray
    transition: np.ndarray
    emission: Emission

    @property
    def n_states(self) -> int:
        """Number of states K."""
        return len(self.initial)

    def to_vector(self) -> np.ndarray:
        """Parameters as one vector: square roots of probabilities, and what the family says."""
        return np.concatenate([np.sqrt(self.initial), np.sqrt(self.transition).ravel(), self.emission.to_vector()])

    def from_vector(self, vector: np.ndarray) -> MarkovModel:
        """Return the model of a vector, brought back into range. Exact zeros of this model stay zero."""
        states = self.n_states
        initial = np.maximum(vector[:states], 0.0) ** 2
        transition = np.maximum(vector[states : states * (states + 1)].reshape(states, states), 0.0) ** 2
        return MarkovModel(
            _normalised(np.where(self.initial > 0, np.maximum(initial, _SMALLEST), 0.0), self.initial),
            _normalised(np.where(self.transition > 0, np.maximum(transition, _SMALLEST), 0.0), self.transition),
            self.emission.from_vector(vector[states * (states + 1) :]),
        )

    def select(self, states: Sequence[int] | np.ndarray) -> MarkovModel:
        """Return the model of these states in this order, each once."""
        order = np.asarray(states)
        return MarkovModel(self.initial[order], self.transition[np.ix_(order, order)], self.emission.select(order))


class Observations:
    """Sequences of rows of marks.

    Parameters
    ----------
    rows
        Rows of all sequences one after the other (positions, M), NaN where missing: an array, or anything of which a
        slice gives an array or a sparse matrix. Or, with ``index``, the distinct rows.
    lengths
        Positions of each sequence; they sum to the number of positions.
    index
        Row of each position, where rows repeat.
    compress
        Whether to compress sequences of few patterns.
    """

    def __init__(
        self,
        rows: Any,
        lengths: Sequence[int] | np.ndarray,
        *,
        index: np.ndarray | None = None,
        compress: bool = True,
        most_tokens: int = 2048,
    ):
        self.rows, self.index = rows, index
        self.lengths = np.asarray(lengths, np.int64)
        self.ends = np.cumsum(self.lengths)
        self.starts = self.ends - self.lengths
        self.compressed: CompressedChains | None = None
        self.counts: np.ndarray | None = None
        if index is not None:
            self.distinct = dense_rows(rows)
            self.counts = np.bincount(index, minlength=len(self.distinct)).astype(np.float64)
            if compress and len(self.distinct) <= _COMPRESSIBLE_PATTERNS:
                most = max(most_tokens, len(self.distinct) + 512)
                self.compressed = CompressedChains(
                    [index[start:end] for start, end in zip(self.starts, self.ends, strict=True)],
                    len(self.distinct),
                    most_tokens=most,
                )

    @property
    def n_positions(self) -> int:
        """Positions of all sequences together."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def n_marks(self) -> int:
        """Number of marks M."""
        return self.rows.shape[1]

    def subset(self, sequences: np.ndarray, *, most_tokens: int = 1024) -> Observations:
        """Return the observations of some sequences, by their numbers."""
        parts = [slice(self.starts[number], self.ends[number]) for number in sequences]
        lengths = self.lengths[sequences]
        if self.index is not None:
            index = np.concatenate([self.index[part] for part in parts])
            return Observations(
                self.rows, lengths, index=index, compress=self.compressed is not None, most_tokens=most_tokens
            )
        return Observations(np.concatenate([dense_rows(self.rows[part]) for part in parts]), lengths)

    def pieces(self, number: int) -> Observations:
        """Return the same positions with long sequences cut, so that there are at least ``number`` of similar length.

        A cut loses one transition.
        """
        if len(self.lengths) >= number or self.n_positions < 2 * number:
            return self
        size = max(self.n_positions // number, 2)
        lengths = [
            len(part)
            for length in self.lengths
            for part in np.array_split(np.empty(length, np.int8), max(int(np.ceil(length / size)), 1))
        ]
        return Observations(self.rows, lengths, index=self.index, compress=self.compressed is not None)

    def block_size(self, states: int) -> int:
        """Positions of which messages, and where rows do not repeat the rows too, take little memory."""
        width = states if self.index is not None else max(states, self.n_marks)
        return max(_BLOCK_BYTES // (8 * width), 256)

    def log_likelihood_source(self, emission: Emission, sequence: int) -> Callable[[int, int], np.ndarray]:
        """Return a function that gives the log-likelihoods of positions of one sequence."""
        offset = int(self.starts[sequence])
        if self.index is not None:
            index, table = self.index, emission.log_likelihood(self.distinct)
            return lambda start, stop: table[index[offset + start : offset + stop]]
        kept: dict[tuple[int, int], np.ndarray] = {}

        def rows(start: int, stop: int) -> np.ndarray:
            # Blocks are asked for forward and then backward: the last one need not be worked out twice.
            if (start, stop) not in kept:
                kept.clear()
                block = dense_rows(self.rows[offset + start : offset + stop])
                kept[start, stop] = emission.log_likelihood(block)
            return kept[start, stop]

        return rows


def expect(
    observations: Observations, model: MarkovModel, *, weights: np.ndarray | None = None
) -> tuple[ChainStatistics, Sums]:
    """Return the expected statistics of the chain and of the emissions.

    Parameters
    ----------
    observations
        Sequences.
    model
        Parameters.
    weights
        Weight of each sequence; default 1.

    Returns
    -------
    Statistics of the chain, and sufficient statistics of the emissions. A sequence that the model cannot make gives a
    log-likelihood of minus infinity.
    """
    compressed = observations.compressed
    if compressed is not None and compressed.fits(model.n_states):
        table = model.emission.log_likelihood(observations.distinct)
        statistics = compressed.expect(model.initial, model.transition, table, weights=weights)
        assert isinstance(statistics, ChainStatistics)
        if np.isfinite(statistics.log_likelihood):
            return statistics, model.emission.sums(observations.distinct, statistics.occupancy)
        # Tokens of states that cannot leave each other may leave the range of float64 where bins do not.
    return _expect_streamed(observations, model, weights)


def _expect_streamed(observations, model, weights):
    states = model.n_states
    total, initial, transitions = 0.0, np.zeros(states), np.zeros((states, states))
    occupancy = np.zeros((1 if observations.index is None else len(observations.distinct), states))
    emission_sums: Sums | None = None
    for number, length in enumerate(observations.lengths):
        weight = 1.0 if weights is None else float(weights[number])
        if weight == 0:
            continue
        offset = int(observations.starts[number])

        def visit(start, stop, posterior, offset=offset, weight=weight):
            nonlocal emission_sums
            if observations.index is not None:
                _add_rows(occupancy, observations.index[offset + start : offset + stop], posterior, weight)
                return
            occupancy[0] += weight * posterior.sum(0)
            rows = dense_rows(observations.rows[offset + start : offset + stop])
            part = model.emission.sums(rows, weight * posterior)
            emission_sums = part if emission_sums is None else emission_sums + part

        source = observations.log_likelihood_source(model.emission, number)
        block = observations.block_size(states)
        found = forward_backward(model.initial, model.transition, source, int(length), visit, block=block)
        total += weight * found.log_likelihood
        initial += weight * found.initial
        transitions += weight * found.transitions
    if observations.index is not None:
        emission_sums = model.emission.sums(observations.distinct, occupancy)
    if emission_sums is None:
        emission_sums = model.emission.sums(np.zeros((1, observations.n_marks)), np.zeros((1, states)))
    return ChainStatistics(total, initial, transitions, occupancy), emission_sums


def log_likelihoods(observations: Observations, model: MarkovModel) -> np.ndarray:
    """Return the log-likelihood of each sequence (sequences,), minus infinity where the model cannot make it."""
    result = np.full(len(observations.lengths), -np.inf)
    compressed = observations.compressed
    if compressed is not None and compressed.fits(model.n_states):
        table = model.emission.log_likelihood(observations.distinct)
        found = compressed.expect(model.initial, model.transition, table, statistics=False)
        result = np.array(found)
    for number in np.flatnonzero(~np.isfinite(result)):
        source = observations.log_likelihood_source(model.emission, int(number))
        length = int(observations.lengths[number])
        block = observations.block_size(model.n_states)
        result[number] = log_likelihood(model.initial, model.transition, source, length, block=block)
    return result


def maximize(model: MarkovModel, statistics: ChainStatistics, sums: Sums, *, pseudo_count: float = 0.0) -> MarkovModel:
    """Return the model of largest expected log-likelihood.

    Parameters
    ----------
    model
        The model of the statistics. Its exact zeros stay zero, and a state without weight keeps its parameters.
    statistics, sums
        Expected statistics.
    pseudo_count
        Added to each expected transition and start that is possible.
    """
    initial = statistics.initial + pseudo_count * (model.initial > 0)
    transitions = statistics.transitions + pseudo_count * (model.transition > 0)
    return MarkovModel(
        _normalised(initial, model.initial),
        _normalised(transitions, model.transition),
        model.emission.maximize(sums),
    )


def fit(
    observations: Observations,
    start: MarkovModel,
    *,
    max_steps: int = 200,
    tolerance: float = 1e-3,
    accelerate: bool = True,
    pseudo_count: float = 0.0,
    weights: np.ndarray | None = None,
    stop: Callable[[np.ndarray], bool] | None = None,
) -> em.EMResult[MarkovModel]:
    """Train a model by expectation maximisation from a start.

    Parameters
    ----------
    observations
        Sequences.
    start
        First model.
    max_steps, tolerance, accelerate, stop
        As for :func:`diffbio_sc.numerics.em.maximize`; the objective is the log-likelihood of all sequences.
    pseudo_count
        As for :func:`maximize`.
    weights
        Weight of each sequence; default 1.
    """

    def step(model: MarkovModel) -> tuple[MarkovModel, float]:
        statistics, sums = expect(observations, model, weights=weights)
        if not np.isfinite(statistics.log_likelihood):
            return model, statistics.log_likelihood
        return maximize(model, statistics, sums, pseudo_count=pseudo_count), statistics.log_likelihood

    return em.maximize(
        step,
        start,
        to_vector=MarkovModel.to_vector,
        from_vector=lambda vector, model: model.from_vector(vector),
        max_steps=max_steps,
        tolerance=tolerance,
        accelerate=accelerate,
        stop=stop,
    )


def _normalised(values: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    total = values.sum(-1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), otherwise)


@numba.njit(cache=True, nogil=True)
def _add_rows(target, index, rows, weight):
    for t in range(len(index)):
        place = index[t]
        for k in range(rows.shape[1]):
            target[place, k] += weight * rows[t, k]
