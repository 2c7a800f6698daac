r"""First models of a hidden Markov chain, from hard partitions of the positions and from chance.

A partition is a tree of yes-or-no questions, whether a mark is high in a bin, grown leaf by leaf. Three measures of
the next question give three starts of different kind:

- ``information``: the mutual information of neighbouring bins' leaves, as ChromHMM's nested initialisation;
- ``presence``: the entropy of the marks that the leaves explain;
- ``likelihood``: both, the likelihood of bins and leaves together.

A mark is high where it is present, and for counts and signal where it is above its mean. The tree is grown on distinct
patterns of high and low marks and the counts of neighbouring patterns, on at most some hundred thousand bins. More
leaves than patterns can give are filled with copies that differ by chance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import xlogy

from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations
from diffbio_sc.numerics.chains.emissions import dense_rows, family_from_moments

__all__ = ["CRITERIA", "Sample", "partition_start", "random_start", "sample_bins"]

CRITERIA = ("information", "likelihood", "presence")

_SAMPLE_BINS = 400_000
_SMOOTHING = 0.02


class Sample(NamedTuple):
    """Bins that starts are made from.

    Attributes
    ----------
    rows
        Distinct rows, or all rows of the sample (n, M), NaN where missing.
    counts
        Bins of each row.
    bits
        Whether a mark is high in each distinct pattern (patterns, M).
    pattern
        Pattern of each row.
    neighbours
        How often a pattern is followed by another (patterns, patterns).
    mean, variance
        Of each mark (M,).
    """

    rows: np.ndarray
    counts: np.ndarray
    bits: np.ndarray
    pattern: np.ndarray
    neighbours: sp.csr_array
    mean: np.ndarray
    variance: np.ndarray


def sample_bins(observations: Observations, *, most_bins: int = _SAMPLE_BINS) -> Sample:
    """Read what starts need.

    Rows that repeat are all used; of others every sequence gives a stretch from its middle, in proportion to its
    length.
    """
    if observations.index is not None:
        rows, counts = observations.distinct, observations.counts
        index, starts = observations.index, observations.starts
    else:
        share = min(1.0, most_bins / observations.n_positions)
        parts, lengths = [], []
        for start, length in zip(observations.starts, observations.lengths, strict=True):
            size = max(int(np.ceil(share * length)), 1)
            first = int(start) + (int(length) - size) // 2
            parts.append(dense_rows(observations.rows[first : first + size]))
            lengths.append(size)
        rows = np.concatenate(parts)
        counts = np.ones(len(rows))
        index = np.arange(len(rows))
        starts = np.cumsum([0, *lengths[:-1]])
    known = np.isfinite(rows)
    values = np.where(known, rows, 0.0)
    weight = np.maximum(counts @ known, 1.0)
    mean = (counts @ values) / weight
    variance = np.maximum((counts @ values**2) / weight - mean**2, 0.0)
    high = known & (rows > mean)
    bits, pattern = _unique_rows(high)
    codes = pattern[index]
    follows = np.ones(len(codes) - 1, bool)
    follows[starts[1:] - 1] = False
    left, right = codes[:-1][follows], codes[1:][follows]
    size = len(bits)
    pairs, number = np.unique(left.astype(np.int64) * size + right, return_counts=True)
    neighbours = sp.csr_array((number.astype(float), (pairs // size, pairs % size)), shape=(size, size))
    return Sample(rows, counts, bits.astype(np.float64), pattern, neighbours, mean, variance)


def partition_start(
    sample: Sample, n_states: int, family: str, criterion: str, rng: np.random.Generator
) -> MarkovModel:
    """Return the model of a partition into ``n_states`` leaves, smoothed.

    Parameters
    ----------
    sample
        Bins.
    n_states
        Leaves.
    family
        Family of emissions.
    criterion
        One of :data:`CRITERIA`.
    rng
        Of the copies, if the patterns are too few for so many leaves.
    """
    return _model_of_leaves(sample, _grow(sample, n_states, criterion), n_states, family, rng)


def random_start(sample: Sample, n_states: int, family: str, rng: np.random.Generator) -> MarkovModel:
    """Return the model of a random partition of the patterns around randomly chosen ones."""
    weight = np.bincount(sample.pattern, sample.counts, minlength=len(sample.bits))
    number = min(n_states, len(sample.bits))
    # Rare patterns are drawn as well: the square root of how often they occur.
    chance = np.sqrt(weight) / np.sqrt(weight).sum()
    centres = sample.bits[rng.choice(len(chance), number, replace=False, p=chance)]
    importance = rng.gamma(2.0, size=sample.bits.shape[1]) / np.sqrt(
        sample.variance + 1e-3 * sample.variance.max() + 1e-12
    )
    distance = (
        (sample.bits @ importance)[:, None]
        + (centres @ importance)[None]
        - 2.0 * (sample.bits * importance) @ centres.T
    )
    return _model_of_leaves(sample, np.argmin(distance, 1), n_states, family, rng)


def _unique_rows(high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    packed = np.ascontiguousarray(np.packbits(high, axis=1))
    view = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, inverse = np.unique(view, return_index=True, return_inverse=True)
    return high[first], inverse


def _grow(sample: Sample, n_leaves: int, criterion: str) -> np.ndarray:
    """Leaf of each pattern."""
    bits, neighbours = sample.bits, sample.neighbours
    backwards = sp.csr_array(neighbours.T)
    weight = np.bincount(sample.pattern, sample.counts, minlength=len(bits))
    leaves = np.zeros(len(bits), np.int64)
    for number in range(1, n_leaves):
        member = sp.csr_array((np.ones(len(bits)), (np.arange(len(bits)), leaves)), shape=(len(bits), number))
        after, before = (neighbours @ member).toarray(), (backwards @ member).toarray()  # (patterns, leaves)
        table = member.T @ after
        best = (-np.inf, 0, 0)
        for leaf in range(number):
            inside = np.flatnonzero(leaves == leaf)
            if len(inside) < 2:
                continue
            own = bits[inside]
            gains = _gains(
                own,
                weight[inside],
                after[inside],
                before[inside],
                neighbours[inside][:, inside],
                table,
                leaf,
                criterion,
            )
            mark = int(np.argmax(gains))
            if gains[mark] > best[0]:
                best = (float(gains[mark]), leaf, mark)
        if not np.isfinite(best[0]):
            break
        leaves[(leaves == best[1]) & (bits[:, best[2]] > 0)] = number
    return leaves


def _gains(own, weight, after, before, inner, table, leaf, criterion) -> np.ndarray:
    """Gain (M,) of splitting a leaf by each mark; minus infinity where all its patterns agree."""
    out, into = (
        own.T @ after,
        own.T @ before,
    )  # (M, leaves): pairs that begin, or end, in the part where the mark is high
    both = (own * (inner @ own)).sum(0)
    high = weight @ own
    possible = (own.min(0) < own.max(0)) & (high > 0) & (high < weight.sum())
    gain = np.zeros(own.shape[1])
    if criterion in ("information", "likelihood"):
        row, column = table[leaf], table[:, leaf]
        other = np.arange(len(table)) != leaf
        new = xlogy(out, out).sum(1) - xlogy(out[:, leaf], out[:, leaf])
        new += xlogy(row - out, row - out)[:, other].sum(1)
        new += xlogy(into, into)[:, other].sum(1) + xlogy(column - into, column - into)[:, other].sum(1)
        high_low, low_high = out[:, leaf] - both, into[:, leaf] - both
        low_low = table[leaf, leaf] - both - high_low - low_high
        new += sum(xlogy(part, part) for part in (both, high_low, low_high, np.maximum(low_low, 0.0)))
        old = xlogy(row, row).sum() + xlogy(column, column).sum() - xlogy(row[leaf], row[leaf])
        left = _split_entropy(out.sum(1), row.sum())
        right = _split_entropy(into.sum(1), column.sum())
        # Mutual information loses the entropy of both ends, the likelihood of leaves that of the first alone.
        gain += new - old - left - (right if criterion == "information" else 0.0)
    if criterion in ("presence", "likelihood"):
        total = weight.sum()
        joint = (own * weight[:, None]).T @ own  # (M, M): bins where both marks are high
        sums = weight @ own
        low = total - high
        gain += (_present(joint, high[:, None]) + _present(sums - joint, low[:, None]) - _present(sums, total)).sum(1)
    return np.where(possible, gain, -np.inf)


def _split_entropy(part, whole):
    return xlogy(part, part) + xlogy(whole - part, whole - part) - xlogy(whole, whole)


def _present(high, total):
    return xlogy(high, high) + xlogy(total - high, total - high) - xlogy(total, total)


def _model_of_leaves(sample: Sample, leaves: np.ndarray, n_states: int, family: str, rng) -> MarkovModel:
    used, leaves = np.unique(leaves, return_inverse=True)
    number = len(used)
    label = leaves[sample.pattern]
    rows = np.where(np.isfinite(sample.rows), sample.rows, sample.mean)
    member = sp.csr_array((sample.counts, (label, np.arange(len(label)))), shape=(number, len(label)))
    weight = member.sum(1)
    prior = _SMOOTHING * weight.sum() / number
    mean = (member @ rows + prior * sample.mean) / (weight + prior)[:, None]
    square = member @ rows**2 + prior * (sample.variance + sample.mean**2)
    variance = np.maximum(square / (weight + prior)[:, None] - mean**2, 0.0)
    group = sp.csr_array((np.ones(len(leaves)), (leaves, np.arange(len(leaves)))), shape=(number, len(leaves)))
    transition = (group @ sample.neighbours @ group.T).toarray()
    share = weight / weight.sum()
    transition += _SMOOTHING * (transition.sum(1, keepdims=True) + 1.0) * share
    initial = share.copy()
    if number < n_states:
        copies = rng.choice(number, n_states - number, p=share)
        order = np.concatenate([np.arange(number), copies])
        times = np.bincount(order, minlength=number)[order]
        mean, variance, initial = mean[order], variance[order], initial[order] / times
        transition = transition[np.ix_(order, order)] / times
        noise = rng.uniform(-0.2, 0.2, mean[number:].shape)
        mean[number:] += noise * np.sqrt(variance[number:] + 1e-3 * sample.variance)
    if family in ("bernoulli", "multinomial", "poisson", "negative_binomial"):
        mean = np.maximum(mean, 1e-4)
    if family == "bernoulli":
        mean = np.minimum(mean, 1 - 1e-4)
    transition /= transition.sum(1, keepdims=True)
    return MarkovModel(
        initial / initial.sum(), transition, family_from_moments(family, mean, variance, sample.variance)
    )
