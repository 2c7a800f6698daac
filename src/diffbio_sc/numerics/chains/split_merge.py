r"""Better optima of a chain of states than a start leads to: states are split, others merged, and the chain trained on.

Expectation maximisation ends in one of many optima. Two states that are nearly the same spend parameters that a state
with a mixture of two kinds of bins lacks. A move merges a pair, splits another state and trains the chain for some
steps; it is kept where the likelihood ends higher (Ueda, Nakano, Ghahramani, Hinton 2000, Neural Computation 12:2109).
Moves are tried in the order of what they promise, from the expected statistics alone:

- merging i and j costs Q_i + Q_j - Q_ij, with Q the expected log-likelihood of a state's bins and transitions;
- splitting k gains what a mixture of two emissions fits its bins better than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations, expect, fit
from diffbio_sc.numerics.chains.emissions import Emission, Sums
from diffbio_sc.numerics.chains.starts import Sample
from diffbio_sc.numerics.chains.statistics import ChainStatistics

__all__ = ["SearchResult", "split_merge"]

_MIXTURE_STEPS = 12
_MOVE_STEPS = 40
_MOST_ROWS = 20_000


class SearchResult(NamedTuple):
    """Best model found, its log-likelihood, EM steps spent, moves tried and kept."""

    model: MarkovModel
    log_likelihood: float
    steps: int
    tried: int
    kept: int


class _Split(NamedTuple):
    state: int
    gain: float
    emission: Emission  # of the two parts
    share: np.ndarray  # (2,)


def split_merge(
    observations: Observations,
    model: MarkovModel,
    log_likelihood: float,
    sample: Sample,
    *,
    budget: int,
    rng: np.random.Generator,
    tolerance: float,
    most_failures: int = 30,
    report: Callable[[str], None] | None = None,
) -> SearchResult:
    """Improve a trained model by moves until the budget is spent or moves fail many times in a row.

    Parameters
    ----------
    observations
        Sequences.
    model, log_likelihood
        Where to begin.
    sample
        Rows that mixtures are fitted to.
    budget
        EM steps to spend at most.
    rng
        Of the directions of splits.
    tolerance
        Gain of the log-likelihood below which training of a move ends.
    most_failures
        Moves in a row that may fail before the search ends.
    report
        Told about each move that is kept.
    """
    spent = tried = kept = failures = 0
    if model.n_states < 3:
        return SearchResult(model, log_likelihood, 0, 0, 0)
    while spent < budget and failures < most_failures:
        statistics, sums = expect(observations, model)
        spent += 1
        improved = False
        for merged, split in _moves(model, statistics, sums, sample, rng):
            if spent >= budget or failures >= most_failures:
                break
            tried += 1
            start = _apply(model, statistics, merged, split, rng)
            stop = _Hopeless(log_likelihood)
            result = fit(
                observations, start, max_steps=min(_MOVE_STEPS, budget - spent), tolerance=tolerance, stop=stop
            )
            spent += result.steps
            if result.objective > log_likelihood + tolerance:
                gain = result.objective - log_likelihood
                model, log_likelihood, improved = result.parameters, result.objective, True
                kept, failures = kept + 1, 0
                if report is not None:
                    report(f"merged {merged}, split {split.state}: {gain:+.1f} to {log_likelihood:.1f}")
                break
            failures += 1
        if not improved:
            break
    return SearchResult(model, log_likelihood, spent, tried, kept)


class _Hopeless:
    """Ends a move that will not get there: at its present pace it would need many times the steps it has had."""

    def __init__(self, target: float):
        self.target = target

    def __call__(self, history: np.ndarray) -> bool:
        steps = len(history)
        if steps < 10 or history[-1] > self.target:
            return False
        pace = (history[-1] - history[-4]) / 3.0
        return history[-1] + 12.0 * pace < self.target


def _moves(
    model: MarkovModel, statistics: ChainStatistics, sums: Sums, sample: Sample, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, int], _Split]]:
    """Moves, the most promising first; each split and each merge a few times at most."""
    merges = _merge_losses(model, statistics, sums)
    splits = [split for state in range(model.n_states) for split in _splits(model, statistics, state, sample, rng)]
    candidates = [
        (split.gain - loss, merged, split) for loss, merged in merges for split in splits if split.state not in merged
    ]
    candidates.sort(key=lambda candidate: -candidate[0])
    uses: dict[object, int] = {}
    for _, merged, split in candidates:
        keys = (merged, (split.state, round(split.gain, 6)))
        if any(uses.get(key, 0) >= 3 for key in keys):
            continue
        for key in keys:
            uses[key] = uses.get(key, 0) + 1
        yield merged, split


def _merge_losses(model: MarkovModel, statistics: ChainStatistics, sums: Sums) -> list[tuple[float, tuple[int, int]]]:
    states = model.n_states
    pairs = [(i, j) for i in range(states) for j in range(i + 1, states)]
    combined = np.zeros((len(pairs), states))
    for row, (i, j) in enumerate(pairs):
        combined[row, [i, j]] = 1.0
    own = model.emission.maximize(sums).expected(sums)
    first = np.array([i for i, _ in pairs])
    both = sums.combine(combined)
    together = model.emission.select(first).maximize(both).expected(both)
    counts = statistics.transitions
    before = _transition_score(counts)
    result = []
    for row, (i, j) in enumerate(pairs):
        joined = counts.copy()
        joined[i] += joined[j]
        joined[:, i] += joined[:, j]
        kept = np.delete(np.arange(states), j)
        loss = own[i] + own[j] - together[row] + before - _transition_score(joined[np.ix_(kept, kept)])
        result.append((float(loss), (i, j)))
    return sorted(result)


def _transition_score(counts: np.ndarray) -> float:
    total = counts.sum(1)
    return float(xlogy(counts, counts).sum() - xlogy(total, total).sum())


def _splits(
    model: MarkovModel, statistics: ChainStatistics, state: int, sample: Sample, rng: np.random.Generator
) -> Iterator[_Split]:
    """Mixtures of two emissions for the bins of a state, by two directions of the first perturbation."""
    rows, weight = _rows_of_state(model, statistics, state, sample)
    if not weight.sum() > 2.0:
        return
    pair = model.emission.select(np.array([state, state]))
    alone = float((weight * pair.log_likelihood(rows)[:, 0]).sum())
    known = np.isfinite(rows)
    values = np.where(known, rows, 0.0)
    centre = (weight @ values) / np.maximum(weight @ known, 1e-9)
    spread = np.sqrt(np.maximum((weight @ values**2) / np.maximum(weight @ known, 1e-9) - centre**2, 0.0)) + 1e-9
    standard = np.where(known, (rows - centre) / spread, 0.0)
    for attempt in range(2):
        if attempt == 0:  # the principal direction of the state's bins
            direction = np.ones(rows.shape[1]) + 0.1 * rng.normal(size=rows.shape[1])
            for _ in range(8):
                direction = standard.T @ (weight * (standard @ direction))
                direction /= np.linalg.norm(direction) + 1e-300
        else:
            direction = rng.normal(size=rows.shape[1]) * spread
        score = standard @ direction
        score /= np.sqrt((weight * score**2).sum() / weight.sum()) + 1e-300
        part = 1.0 / (1.0 + np.exp(-2.0 * np.clip(score, -10, 10)))
        emission, share, gain = pair, np.array([0.5, 0.5]), 0.0
        for _ in range(_MIXTURE_STEPS):
            weights = weight[:, None] * np.stack([part, 1.0 - part], 1)
            share = weights.sum(0) / weights.sum()
            emission = emission.maximize(emission.sums(rows, weights))
            joint = emission.log_likelihood(rows) + np.log(np.maximum(share, 1e-12))
            total = np.logaddexp(joint[:, 0], joint[:, 1])
            part = np.exp(joint[:, 0] - total)
            gain = float((weight * total).sum()) - alone
        if np.isfinite(gain) and share.min() > 1e-6:
            yield _Split(state, gain, emission, share)


def _rows_of_state(model, statistics, state, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and their weight in a state: as expected where patterns are told apart, else from the rows alone."""
    if len(statistics.occupancy) == len(sample.rows):
        weight = statistics.occupancy[:, state]
        used = np.flatnonzero(weight > 1e-3)
        return sample.rows[used], weight[used]
    step = max(len(sample.rows) // _MOST_ROWS, 1)
    rows = sample.rows[::step]
    share = statistics.occupancy.sum(0)
    joint = model.emission.log_likelihood(rows) + np.log(np.maximum(share, 1e-12))
    joint -= joint.max(1, keepdims=True)
    posterior = np.exp(joint)
    weight = posterior[:, state] / posterior.sum(1) * (share.sum() / len(rows))
    used = np.flatnonzero(weight > 1e-3 * weight.max())
    return rows[used], weight[used]


def _apply(
    model: MarkovModel, statistics: ChainStatistics, merged: tuple[int, int], split: _Split, rng: np.random.Generator
) -> MarkovModel:
    """The model with a pair merged into its first state and the second taken by a part of the split state."""
    (i, j), k = merged, split.state
    weight = statistics.occupancy.sum(0)
    share = weight[[i, j]] / max(weight[[i, j]].sum(), 1e-300)
    transition, initial = model.transition.copy(), model.initial.copy()
    transition[i] = share @ transition[[i, j]]
    transition[:, i] += transition[:, j]
    initial[i] += initial[j]
    # Parts of a state: entered in proportion to their shares, and mostly stayed in.
    into = transition[:, k].copy()
    tilt = np.clip(split.share[0] + rng.uniform(-0.1, 0.1, len(into)), 0.05, 0.95)
    transition[:, k], transition[:, j] = into * tilt, into * (1.0 - tilt)
    transition[j] = transition[k]
    stay = into[k]
    for own, other, part in ((k, j, split.share[0]), (j, k, split.share[1])):
        transition[own, own], transition[own, other] = stay * (0.7 + 0.3 * part), stay * 0.3 * (1.0 - part)
    initial[k], initial[j] = initial[k] * split.share
    size = model.n_states
    order = np.arange(size)
    emission = _replaced(model.emission, split.emission, order, (i, j), k, share)
    transition /= transition.sum(1, keepdims=True)
    return MarkovModel(initial / initial.sum(), transition, emission)


def _replaced(emission: Emission, parts: Emission, order, merged, k, share) -> Emission:
    import dataclasses

    i, j = merged
    changes = {}
    for field in dataclasses.fields(emission):
        values = getattr(emission, field.name)
        if values.ndim != 2:
            continue
        new = values.copy()
        new[i] = share @ values[[i, j]]
        new[k], new[j] = getattr(parts, field.name)
        changes[field.name] = new
    found = dataclasses.replace(emission, **changes)
    return found.from_vector(found.to_vector())  # within bounds: a part of a split may hold an exact zero
