r"""Chromatin states of whole genomes: fit, decoding, uncertainty, and the number of states.

A hidden Markov model whose states emit marks independently of each other (Ernst, Kellis 2010, Nature Biotechnology
28:817; 2012, Nature Methods 9:215) is fitted to all sequences by expectation maximisation. Several starts run for some
steps, the best is trained on, and improved by moves that merge and split states. On large data the search runs on part
of the sequences, the last training on all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from diffbio_sc._logging import logger
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel
from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations, fit, log_likelihoods
from diffbio_sc.numerics.chains.emissions import Bernoulli, Emission, Gaussian, Multinomial, NegativeBinomial, Poisson
from diffbio_sc.numerics.chains.scan import forward_backward, viterbi
from diffbio_sc.numerics.chains.split_merge import split_merge
from diffbio_sc.numerics.chains.starts import CRITERIA, Sample, partition_start, random_start, sample_bins

__all__ = [
    "EFFORTS",
    "Decoded",
    "Effort",
    "StateFit",
    "decode",
    "HeldOut",
    "fit_states",
    "from_state_model",
    "held_out",
    "order_states",
    "standard_errors",
    "to_state_model",
]


class Effort(NamedTuple):
    """How long to look for a good optimum.

    Attributes
    ----------
    random_starts
        Starts by chance, beside the partitions.
    start_steps
        EM steps of each start.
    kept
        Starts that are trained on.
    search_steps
        EM steps of all moves together, at most.
    failures
        Moves that may fail in a row.
    """

    random_starts: int
    start_steps: int
    kept: int
    search_steps: int
    failures: int


# benchmarks/chromatin_states.py effort
EFFORTS = {"fast": Effort(0, 20, 1, 120, 8), "default": Effort(5, 30, 2, 1800, 60)}

_PIECES = 20  # sequences, or pieces of sequences, that errors and folds are made of at least
_RARE = 1e-7  # probability of a transition that training never saw, where other data are judged
_SEARCH_POSITIONS = 2_000_000
_START_TOLERANCE = 1e-6  # of the log-likelihood of a position: gains below it end a start or a move


class StateFit(NamedTuple):
    """A fitted model.

    Attributes
    ----------
    model
        Parameters, states in the order of :func:`order_states`, or of the model that training started from.
    log_likelihood
        Of all sequences.
    history
        Log-likelihood of each step of the last training.
    converged
        Whether the last training met its tolerance.
    steps
        EM steps of starts, search and last training together.
    starts
        Log-likelihood that each start reached, by its name.
    moves
        Moves tried and kept.
    seconds
        Wall time.
    """

    model: MarkovModel
    log_likelihood: float
    history: np.ndarray
    converged: bool
    steps: int
    starts: dict[str, float]
    moves: tuple[int, int]
    seconds: float

    def as_dict(self) -> dict:
        """Return the report in types that h5ad and zarr store."""
        return {
            "history": {"log_likelihood": np.asarray(self.history, np.float64)},
            "converged": bool(self.converged),
            "steps": int(self.steps),
            "seconds": float(self.seconds),
            "starts": {name: float(value) for name, value in self.starts.items()},
            "moves_tried": int(self.moves[0]),
            "moves_kept": int(self.moves[1]),
        }


class Decoded(NamedTuple):
    """States of all positions.

    Attributes
    ----------
    state
        Most probable state of each position, from the posterior (positions,).
    path
        State of each position on the most probable path (positions,).
    posterior
        Probability of each state (positions, K), float32; None if only the top states were asked for.
    top, top_probability
        The most probable states of each position, in falling order, and their probabilities (positions, n); None unless
        asked for.
    log_likelihood
        Of each sequence.
    """

    state: np.ndarray
    path: np.ndarray
    posterior: np.ndarray | None
    top: np.ndarray | None
    top_probability: np.ndarray | None
    log_likelihood: np.ndarray


def fit_states(
    observations: Observations,
    n_states: int,
    *,
    family: str = "bernoulli",
    effort: Literal["fast", "default"] | Effort = "default",
    max_steps: int = 400,
    tolerance: float = 1e-8,
    rng: np.random.Generator | int | None = 0,
    start: MarkovModel | None = None,
) -> StateFit:
    """Fit a chain of states.

    Parameters
    ----------
    observations
        Sequences.
    n_states
        Number of states K.
    family
        Family of emissions, one of :data:`diffbio_sc.numerics.chains.emissions.FAMILIES`.
    effort
        How long to look for a good optimum: a key of :data:`EFFORTS`, or numbers of one's own.
    max_steps
        Most EM steps of the last training.
    tolerance
        The last training ends when a plain step gains less than this for each position.
    rng
        Seed or generator of starts and moves.
    start
        Train from this model alone: no starts, no moves, and its states keep their order.
    """
    began = time.perf_counter()
    generator = np.random.default_rng(rng)
    spent, starts, moves = 0, {}, (0, 0)
    given = start is not None
    positions = observations.n_positions
    if start is None:
        search = _part_to_search(observations, generator)
        sample = sample_bins(search)
        chosen = effort if isinstance(effort, Effort) else EFFORTS[effort]
        small = _START_TOLERANCE * search.n_positions
        candidates = []
        for name, model in _starts(sample, n_states, family, chosen, generator):
            found = fit(search, model, max_steps=chosen.start_steps, tolerance=small)
            spent += found.steps
            starts[name] = found.objective
            candidates.append(found)
            logger.debug(f"start {name}: {found.objective:.1f}")
        candidates.sort(key=lambda found: -found.objective if np.isfinite(found.objective) else np.inf)
        best, value = candidates[0].parameters, -np.inf
        for found in candidates[: chosen.kept]:
            longer = fit(search, found.parameters, max_steps=60, tolerance=small)
            spent += longer.steps
            if longer.objective > value:
                best, value = longer.parameters, longer.objective
        result = split_merge(
            search,
            best,
            value,
            sample,
            budget=chosen.search_steps,
            rng=generator,
            tolerance=small,
            most_failures=chosen.failures,
            report=logger.debug,
        )
        spent, moves, start = spent + result.steps, (result.tried, result.kept), result.model
    final = fit(observations, start, max_steps=max_steps, tolerance=tolerance * positions)
    model = final.parameters if given else order_states(final.parameters)
    seconds = time.perf_counter() - began
    return StateFit(model, final.objective, final.history, final.converged, spent + final.steps, starts, moves, seconds)


def _starts(
    sample: Sample, n_states: int, family: str, effort: Effort, rng: np.random.Generator
) -> Iterator[tuple[str, MarkovModel]]:
    for criterion in CRITERIA:
        yield criterion, partition_start(sample, n_states, family, criterion, rng)
    for number in range(effort.random_starts):
        yield f"random {number + 1}", random_start(sample, n_states, family, rng)


def _part_to_search(observations: Observations, rng: np.random.Generator) -> Observations:
    """All sequences, or as many drawn at random as make up the positions that a search needs."""
    if observations.n_positions <= 1.5 * _SEARCH_POSITIONS or len(observations.lengths) < 2:
        return observations
    order = rng.permutation(len(observations.lengths))
    total = np.cumsum(observations.lengths[order])
    number = int(np.searchsorted(total, _SEARCH_POSITIONS)) + 1
    return observations.subset(np.sort(order[:number]))


def order_states(model: MarkovModel) -> MarkovModel:
    """Return the model with similar states side by side, those with the most marks first.

    Leaves of a hierarchical clustering of emissions in their best order, the same whatever order the states came in.
    """
    if model.n_states < 3:
        return model.select(np.lexsort((*model.emission.mean.T, -model.emission.mean.sum(1))))
    canonical = model.select(np.lexsort((*model.emission.mean.T, -model.emission.mean.sum(1))))
    mean = canonical.emission.mean
    scaled = mean / np.maximum(mean.max(0), 1e-300)
    order = leaves_list(linkage(pdist(scaled), "average", optimal_ordering=True))
    strength = scaled[order].sum(1)
    half = len(order) // 2
    if strength[:half].sum() < strength[-half:].sum():
        order = order[::-1]
    return canonical.select(order)


def decode(observations: Observations, model: MarkovModel, *, top: int | None = None) -> Decoded:
    """Return posterior and most probable path of all positions, sequence after sequence.

    Parameters
    ----------
    observations
        Sequences.
    model
        Parameters.
    top
        Keep the probabilities of only so many states of each position.

    Raises
    ------
    ValueError
        If the model cannot make a sequence: its probability is zero.
    """
    positions, states = observations.n_positions, model.n_states
    state, path = np.empty(positions, np.int16), np.empty(positions, np.int16)
    posterior = None if top is not None else np.empty((positions, states), np.float32)
    best = None if top is None else np.empty((positions, top), np.int16)
    probability = None if top is None else np.empty((positions, top), np.float32)
    values = np.empty(len(observations.lengths))
    for number, length in enumerate(observations.lengths):
        offset, size = int(observations.starts[number]), int(length)
        source = observations.log_likelihood_source(model.emission, number)

        def visit(start, stop, found, offset=offset):
            where = slice(offset + start, offset + stop)
            state[where] = found.argmax(1)
            if posterior is not None:
                posterior[where] = found
            if best is not None and probability is not None:
                order = np.argsort(-found, 1, kind="stable")[:, : best.shape[1]]
                best[where] = order
                probability[where] = np.take_along_axis(found, order, 1)

        block = observations.block_size(states)
        found = forward_backward(model.initial, model.transition, source, size, visit, block=block)
        values[number] = found.log_likelihood
        if not np.isfinite(found.log_likelihood):
            raise ValueError(
                f"the model cannot make sequence {number} ({size} bins): its probability is zero. A transition, start "
                "or emission of exactly 0 forbids what the data show; give it a small probability instead."
            )
        path[offset : offset + size] = viterbi(model.initial, model.transition, source, size, block=block)[0]
    return Decoded(state, path, posterior, best, probability, values)


def standard_errors(
    observations: Observations,
    model: MarkovModel,
    *,
    n_resamples: int = 20,
    steps: int = 15,
    rng: np.random.Generator | int | None = 0,
) -> dict[str, np.ndarray]:
    """Return standard errors of emissions (K, M) and transitions (K, K), by resampling sequences.

    Sequences are drawn with replacement and the model is trained on from where it is: the statistics of a sequence
    count as often as it was drawn, nothing is read again. Fewer than 20 sequences are cut into pieces first, since a
    sequence is longer by far than what its bins remember.

    Parameters
    ----------
    observations
        Sequences the model was fitted to.
    model
        Fitted model.
    n_resamples
        How often sequences are drawn.
    steps
        Steps of EM for each draw. They start at the estimate, and need no more than the distance of a few errors.
    rng
        Seed or generator.
    """
    generator = np.random.default_rng(rng)
    pieces = observations.pieces(_PIECES)
    number = len(pieces.lengths)
    means, transitions = [], []
    for _ in range(n_resamples):
        weights = generator.multinomial(number, np.full(number, 1.0 / number)).astype(float)
        found = fit(pieces, model, max_steps=steps, tolerance=0.0, weights=weights).parameters
        means.append(found.emission.mean)
        transitions.append(found.transition)
    return {"emission": np.std(means, 0, ddof=1), "transition": np.std(transitions, 0, ddof=1)}


class HeldOut(NamedTuple):
    """Likelihood of sequences that models were not fitted to.

    Attributes
    ----------
    n_states
        Numbers of states tried (n,).
    log_likelihood
        Held-out log-likelihood for each bin (n,).
    standard_error
        Its standard error over pieces of sequences (n,).
    difference, difference_error
        To the best number of states, piece by piece, and its standard error (n,).
    best
        Number of states of the largest held-out likelihood.
    chosen
        Smallest number of states that is not worse than the best by more than one standard error of the difference.
    """

    n_states: np.ndarray
    log_likelihood: np.ndarray
    standard_error: np.ndarray
    difference: np.ndarray
    difference_error: np.ndarray
    best: int
    chosen: int


def held_out(
    observations: Observations,
    n_states: Sequence[int],
    *,
    family: str = "bernoulli",
    folds: int = 3,
    effort: Literal["fast", "default"] = "fast",
    rng: np.random.Generator | int | None = 0,
    report: Callable[[int, float], None] | None = None,
) -> HeldOut:
    """Return the likelihood of held-out sequences for several numbers of states.

    Sequences are dealt to folds; each fold is judged by models fitted to the others. Fewer than 20 sequences are cut
    into pieces first.

    Parameters
    ----------
    observations
        Sequences.
    n_states
        Numbers of states.
    family, effort, rng
        As for :func:`fit_states`.
    folds
        Number of folds.
    report
        Told each number of states and its held-out log-likelihood for each bin.
    """
    generator = np.random.default_rng(rng)
    pieces = observations.pieces(_PIECES)
    number = len(pieces.lengths)
    if number < folds:
        raise ValueError(f"{folds} folds need at least as many sequences or {2 * _PIECES} bins, found {number}.")
    fold = generator.permutation(np.arange(number) % folds)
    seed = int(generator.integers(2**31))
    values = np.zeros((len(n_states), number))
    for one in range(folds):
        training = pieces.subset(np.flatnonzero(fold != one))
        judged = np.flatnonzero(fold == one)
        test = pieces.subset(judged)
        for row, states in enumerate(n_states):
            fitted = fit_states(training, int(states), family=family, effort=effort, rng=seed)
            values[row, judged] = log_likelihoods(test, _open(fitted.model))
    bins = pieces.lengths
    mean = values.sum(1) / bins.sum()
    best = int(np.argmax(mean))
    errors = np.array([_ratio_error(value, bins) for value in values])
    gaps = np.array([_ratio_error(value - values[best], bins) for value in values])
    numbers = np.asarray(n_states, np.int64)
    good = mean >= mean[best] - gaps
    if report is not None:
        for states, value in zip(numbers, mean, strict=True):
            report(int(states), float(value))
    return HeldOut(numbers, mean, errors, mean - mean[best], gaps, int(numbers[best]), int(numbers[good].min()))


def _open(model: MarkovModel) -> MarkovModel:
    """The model with nothing impossible: what never occurred in training may occur elsewhere."""
    transition = model.transition + _RARE
    emission = model.emission.from_vector(model.emission.to_vector())
    return MarkovModel(
        (model.initial + 1.0 / model.n_states) / 2.0, transition / transition.sum(1, keepdims=True), emission
    )


def _ratio_error(values: np.ndarray, bins: np.ndarray) -> float:
    """Standard error of sum(values) / sum(bins) over pieces of different length."""
    residual = values - bins * (values.sum() / bins.sum())
    number = len(bins)
    return float(np.sqrt(number / (number - 1.0) * (residual**2).sum()) / bins.sum())


def from_state_model(model: ChromatinStateModel, marginal: Sequence[str] | None = None) -> MarkovModel:
    """Return the chain of a model object, of the marks named; the others are summed out."""
    if marginal is not None:
        model = model.marginalise(marginal)
    mean, extra = model.emission, model.emission_parameters
    emission: Emission
    if model.emission_kind == "bernoulli":
        emission = Bernoulli(mean)
    elif model.emission_kind == "poisson":
        emission = Poisson(mean)
    elif model.emission_kind == "negative_binomial":
        emission = NegativeBinomial(mean, np.asarray(extra["dispersion"]))
    elif model.emission_kind == "gaussian":
        variance = np.asarray(extra["variance"])
        emission = Gaussian(mean, variance, variance.min(0))
    else:
        emission = Multinomial(mean)
    initial, transition = model.initial, model.transition
    return MarkovModel(initial / initial.sum(), transition / transition.sum(1, keepdims=True), emission)


def to_state_model(
    model: MarkovModel, marks: Sequence[str], *, log_likelihood: float | None = None, n_iterations: int | None = None
) -> ChromatinStateModel:
    """Return a fitted chain as a model object."""
    return ChromatinStateModel(
        initial=model.initial,
        transition=model.transition,
        emission=model.emission.mean,
        marks=tuple(marks),
        emission_kind=model.emission.name,  # type: ignore[arg-type]
        emission_parameters=model.emission.parameters,
        log_likelihood=log_likelihood,
        n_iterations=n_iterations,
    )
