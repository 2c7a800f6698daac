"""How sure is it that a bin's state comes back in another replicate?

Two replicates are annotated. R_t = 1 if the state of bin t in the first is found again, as the state matched to it, at
t (or near by) in the second. What is estimated is

    P(R_t = 1 | state k of the bin, its posterior q, bins d to the nearest end of its segment),

a table of rates over strata of (k, q, d). Rates of rare strata are drawn toward those of their parents,

    r_kqd = (s_kqd + m r_kq) / (n_kqd + m),   r_kq = (s_kq + m r_k) / (n_kq + m),   r_k = (s_k + m r) / (n_k + m),

with s of n bins found again, and r_kq made monotone in q. Bins beside each other are no independent draws, so the
strength m is no binomial quantity: it is the one, of a few, with the best likelihood on folds that were left out. The
probability of a bin comes from a table to which its own fold has given nothing, nor has it to that table's m.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import isotonic_regression

POSTERIOR_EDGES = np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999])
"""Borders between strata of the posterior; finer toward 1, where most bins are."""
DISTANCE_EDGES = np.array([1, 2, 3, 5, 9, 17, 33])
"""First distance, in bins, of each stratum after that of the end bins themselves."""
_STRENGTHS = np.array([1.0, 10.0, 100.0, 1e3, 1e4, 1e6])
_LEAST = 1e-6


class Rates(NamedTuple):
    """Bins and those found again, by fold and stratum."""

    bins: Float[np.ndarray, "folds states posteriors distances"]
    found: Float[np.ndarray, "folds states posteriors distances"]


def border_distance(
    codes: Int[np.ndarray, " bins"], sequences: list[Int[np.ndarray, " positions"]]
) -> Int[np.ndarray, " bins"]:
    """Bins between each bin and the nearest end of its segment; 0 at the ends.

    The ends of a sequence are ends of segments too.
    """
    distance = np.zeros(len(codes), np.int64)
    for sequence in sequences:
        labels = codes[sequence]
        place = np.arange(len(labels))
        change = np.flatnonzero(np.diff(labels)) + 1
        segment = np.zeros(len(labels), np.int64)
        segment[change] = 1
        segment = np.cumsum(segment)
        first = np.concatenate([[0], change])
        last = np.concatenate([change, [len(labels)]]) - 1
        distance[sequence] = np.minimum(place - first[segment], last[segment] - place)
    return distance


def found_again(
    codes: Int[np.ndarray, " bins"],
    other: Int[np.ndarray, " bins"],
    matched: Bool[np.ndarray, "states others"],
    sequences: list[Int[np.ndarray, " positions"]],
    tolerance: int = 0,
) -> Bool[np.ndarray, " bins"]:
    """Whether a state matched to a bin's own is in the other annotation there, or at most ``tolerance`` bins away.

    Codes of -1 are bins without a state; they are not found.
    """
    found = np.zeros(len(codes), bool)
    for sequence in sequences:
        mine, theirs = codes[sequence], other[sequence]
        here = np.zeros(len(mine), bool)
        reach = min(tolerance, len(mine) - 1)
        for offset in range(-reach, reach + 1):
            inside = slice(max(0, -offset), min(len(mine), len(mine) - offset))
            there = slice(inside.start + offset, inside.stop + offset)
            one, two = mine[inside], theirs[there]
            here[inside] |= (one >= 0) & (two >= 0) & matched[one, two]
        found[sequence] = here
    return found


def strata(
    posterior: Float[np.ndarray, " bins"], distance: Int[np.ndarray, " bins"]
) -> tuple[Int[np.ndarray, " bins"], Int[np.ndarray, " bins"]]:
    """Strata of the posterior and of the distance to the end of the segment."""
    return (
        np.searchsorted(POSTERIOR_EDGES, posterior, side="right"),
        np.searchsorted(DISTANCE_EDGES, distance, side="right"),
    )


def count_rates(
    codes: Int[np.ndarray, " bins"],
    posterior: Float[np.ndarray, " bins"],
    distance: Int[np.ndarray, " bins"],
    found: Bool[np.ndarray, " bins"],
    folds: Int[np.ndarray, " bins"],
    n_states: int,
    n_folds: int,
) -> Rates:
    """Count bins, and those found again, in each fold and stratum; codes of -1 are left out."""
    shape = (n_folds, n_states, len(POSTERIOR_EDGES) + 1, len(DISTANCE_EDGES) + 1)
    kept = codes >= 0
    one, two = strata(posterior[kept], distance[kept])
    cell = np.ravel_multi_index((folds[kept], codes[kept], one, two), shape)
    size = int(np.prod(shape))
    bins = np.bincount(cell, minlength=size).reshape(shape).astype(np.float64)
    hits = np.bincount(cell, found[kept].astype(np.float64), minlength=size).reshape(shape)
    return Rates(bins, hits)


def shrunken_rates(
    bins: Float[np.ndarray, "states posteriors distances"],
    found: Float[np.ndarray, "states posteriors distances"],
    strength: float,
) -> Float[np.ndarray, "states posteriors distances"]:
    """Rates of all strata, each drawn toward its parent's with the weight of ``strength`` bins."""
    total = found.sum() / max(bins.sum(), 1.0)
    state = (found.sum((1, 2)) + strength * total) / (bins.sum((1, 2)) + strength)
    weight = bins.sum(2) + strength
    level = (found.sum(2) + strength * state[:, None]) / weight
    level = np.stack([isotonic_regression(rate, weights=heavy).x for rate, heavy in zip(level, weight, strict=True)])
    return (found + strength * level[:, :, None]) / (bins + strength)


def cross_fitted_rates(rates: Rates) -> tuple[Float[np.ndarray, "folds states posteriors distances"], np.ndarray]:
    """Rates for the bins of each fold, from the other folds alone, and the strength of shrinkage of each."""
    folds = len(rates.bins)
    bins, found = rates.bins.sum(0), rates.found.sum(0)
    result = np.empty_like(rates.bins)
    strengths = np.empty(folds)
    for left_out in range(folds):
        rest = bins - rates.bins[left_out], found - rates.found[left_out]
        score = np.zeros(len(_STRENGTHS))
        for inner in range(folds):
            if inner == left_out or folds < 3:
                continue
            train = rest[0] - rates.bins[inner], rest[1] - rates.found[inner]
            for index, strength in enumerate(_STRENGTHS):
                score[index] += _log_likelihood(shrunken_rates(*train, strength), rates.bins[inner], rates.found[inner])
        # Two folds leave none to choose by: a stratum then counts as much as a hundred bins of its parent.
        strengths[left_out] = _STRENGTHS[int(np.argmax(score))] if folds >= 3 else 100.0
        result[left_out] = shrunken_rates(*rest, strengths[left_out])
    return result, strengths


def _log_likelihood(rate: np.ndarray, bins: np.ndarray, found: np.ndarray) -> float:
    rate = np.clip(rate, _LEAST, 1 - _LEAST)
    return float((found * np.log(rate) + (bins - found) * np.log1p(-rate)).sum())


def overlap_matches(joint: Float[np.ndarray, "states others"]) -> Int[np.ndarray, " states"]:
    """For each state the other annotation's state with the greatest overlap over union of bins.

    Several states may have the same one, so that a finer annotation can be held against a coarser.
    """
    union = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
    return np.argmax(joint / np.maximum(union, 1.0), 1)


def reliability(
    predicted: Float[np.ndarray, " bins"], found: Bool[np.ndarray, " bins"], n_bins: int = 10
) -> tuple[Float[np.ndarray, " levels"], Float[np.ndarray, " levels"], Float[np.ndarray, " levels"]]:
    """Number of bins, mean prediction and rate found, in levels of the prediction of equal width; NaN where empty."""
    level = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)
    number = np.bincount(level, minlength=n_bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(level, predicted, minlength=n_bins) / number
        rate = np.bincount(level, found.astype(np.float64), minlength=n_bins) / number
    return number, mean, rate
