"""Presence or absence of each component: a spike at 0 and an exponential slab, with weights learned from all spots.

A regression never returns exactly nothing for a component that is absent: noise alone gives it some weight. Here each
weight, known as a Gaussian (estimate, standard deviation) cut at 0, is either absent or drawn from an exponential
distribution; how often, and how much, is learned per component by expectation maximisation (empirical Bayes).

Taken one at a time, components that could stand in for each other are all found dispensable, and what they shared is
lost. The sum of the weights is known, however. A pull, one number a spot, tilts the posterior (its density times
exp(pull * weight)) until its expected sum is the one asked for: the posterior given the sum, to saddle-point accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import log_ndtr

_LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))
# Chosen by benchmarks/deconvolution.py constants: small beside the spots of a slide, large beside a handful of them.
PSEUDO_SPOTS = 20.0
_PULL_STEPS = 40  # at most, of Newton's method kept inside an interval; most rows need fewer than ten
_PULL_ACCURACY = 1e-5  # of the sum
_RANGE = 50.0  # log odds beyond this are 0 or 1 in float32


class PresencePrior(NamedTuple):
    """Prior of each component.

    Attributes
    ----------
    probability
        Probability that the component is present in a spot.
    typical_weight
        Mean weight where it is present.
    total
        Mean sum of the weights.
    """

    probability: np.ndarray
    typical_weight: np.ndarray
    total: float

    def in_spots_of(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability and typical weight of each component in spots of so many cells."""
        return presence_from_cells(self.probability * self.typical_weight / self.total, cells, self.total)


class Posterior(NamedTuple):
    """Posterior of each weight: probability of presence, mean and variance."""

    presence: Array
    mean: Array
    variance: Array


def spike_and_slab(
    estimate: Float[Array, "..."],
    deviation: Float[Array, "..."],
    probability: Float[Array, "..."],
    typical_weight: Float[Array, "..."],
    pull: Float[Array, "..."] | float = 0.0,
) -> Posterior:
    """Posterior of weights observed as ``estimate`` with standard deviation ``deviation``, under the prior.

    ``pull`` tilts it, see :func:`pull_to_sum`. Numpy arrays are worked on by numpy, which spares compiling for each
    number of spots; JAX arrays by JAX.
    """
    xp, log_cdf = _library(estimate)
    standard = (estimate + deviation**2 * (pull - 1.0 / typical_weight)) / deviation
    log_mass = log_cdf(standard)
    log_odds = xp.log(deviation / typical_weight) + _LOG_SQRT_2PI + 0.5 * standard**2 + log_mass
    log_odds = log_odds + xp.log(probability) - xp.log1p(-probability)
    presence = 1.0 / (1.0 + xp.exp(-xp.clip(log_odds, -_RANGE, _RANGE)))
    # Mean and variance of a Gaussian cut at 0; the ratio density / mass is taken in log space.
    ratio = xp.exp(-0.5 * standard**2 - _LOG_SQRT_2PI - log_mass)
    slab_mean = xp.maximum(deviation * (standard + ratio), 0.0)
    slab_variance = deviation**2 * xp.clip(1.0 - ratio * (standard + ratio), 0.0, 1.0)
    mean = presence * slab_mean
    return Posterior(presence, mean, presence * (slab_variance + slab_mean**2) - mean**2)


def _library(array):
    return (np, log_ndtr) if isinstance(array, np.ndarray) else (jnp, jax.scipy.special.log_ndtr)


def pull_to_sum(
    estimate: Float[Array, "spots types"],
    deviation: Float[Array, "spots types"],
    probability: Float[Array, "..."],
    typical_weight: Float[Array, "..."],
    kept: Float[Array, ""] | float,
) -> Float[Array, "spots 1"]:
    """Pull under which the posterior keeps the share ``kept`` of the sum of the estimates that it would lose.

    0 where nothing is lost. The derivative of the expected sum by the pull is the posterior variance, so that Newton's
    method needs nothing else; it is kept inside an interval that shrinks. Gradients are those of the exact solution.
    """
    xp, _ = _library(estimate)
    sum_of_means, _ = _sums(estimate, deviation, probability, typical_weight, 0.0)
    lost = estimate.sum(-1, keepdims=True) - sum_of_means
    wanted = sum_of_means + kept * xp.maximum(lost, 0.0)
    widest = (1.0 / typical_weight).max(-1, keepdims=True) + xp.zeros_like(wanted)
    problem = (estimate, deviation, probability, typical_weight)
    if xp is np:
        prior = (np.broadcast_to(part, estimate.shape) for part in (probability, typical_weight))
        return _pull_on_host((estimate, deviation, *prior), wanted, widest, lost * kept)

    zeros = jnp.zeros_like(wanted)
    start = jax.lax.stop_gradient(_Search(zeros, zeros, jnp.full_like(wanted, jnp.inf)))

    def step(_, now: _Search) -> _Search:
        total, slope = _sums(*problem, now.pull)
        return _search_step(now, total, slope, wanted, widest)

    pull = jax.lax.stop_gradient(jax.lax.fori_loop(0, _PULL_STEPS, step, start).pull)
    total, slope = _sums(*problem, pull)
    pull = pull + (wanted - total) / jax.lax.stop_gradient(jnp.maximum(slope, 1e-12))
    return jnp.where(lost * kept > 0, pull, 0.0)


class _Search(NamedTuple):
    """Pull, and the interval that holds it."""

    pull: Array
    low: Array
    high: Array


def _sums(estimate, deviation, probability, typical_weight, pull):
    """Expected sum of the weights, and its derivative by the pull."""
    posterior = spike_and_slab(estimate, deviation, probability, typical_weight, pull)
    return posterior.mean.sum(-1, keepdims=True), posterior.variance.sum(-1, keepdims=True)


def _search_step(now: _Search, total, slope, wanted, widest) -> _Search:
    xp = np if isinstance(total, np.ndarray) else jnp
    low, high = xp.where(total < wanted, now.pull, now.low), xp.where(total < wanted, now.high, now.pull)
    newton = now.pull + (wanted - total) / xp.maximum(slope, 1e-12)
    # No more than threefold at a time: the sum grows slowly until a type is present, and then at once.
    limit = 3.0 * now.pull + widest
    open_end = xp.isinf(high)
    halfway = xp.where(open_end, limit, 0.5 * (low + xp.where(open_end, low, high)))
    newton = xp.where((newton > low) & (newton < high) & (newton <= limit), newton, halfway)
    return _Search(newton, low, high)


def _pull_on_host(problem, wanted, widest, asked):
    """Search of each row until it is found, the rows that are left in float64."""
    found = np.zeros(wanted.shape)
    rows = np.flatnonzero(asked[:, 0] > 0)
    now = _Search(*(np.full((len(rows), 1), value) for value in (0.0, 0.0, np.inf)))
    for _ in range(_PULL_STEPS):
        weight, spread, prior, typical = (part[rows].astype(np.float64) for part in problem)
        total, slope = _sums(weight, spread, prior, typical, now.pull)
        found[rows] = now.pull
        left = np.abs(total - wanted[rows])[:, 0] > _PULL_ACCURACY * wanted[rows][:, 0]
        now = _search_step(now, total, slope, wanted[rows], widest[rows])
        rows, now = rows[left], _Search(*(part[left] for part in now))
        if not len(rows):
            break
    return found.astype(problem[0].dtype)


def learn_presence(
    estimate: np.ndarray,
    deviation: np.ndarray,
    *,
    cells: np.ndarray | None = None,
    kept: float = 0.0,
    iterations: int = 30,
) -> PresencePrior:
    """Learn the prior from all spots (rows) by expectation maximisation, in float64.

    Each component is shrunk toward the average of all by so much as :data:`PSEUDO_SPOTS` spots would.

    Parameters
    ----------
    estimate, deviation
        Weights and their standard deviations, spots by components.
    cells
        Cells in each spot, if known. A component with share q of all cells is then present in a spot of n cells with
        probability 1 - (1 - q)^n, and the prior differs from spot to spot.
    kept
        Share of the sum of the weights that is kept where the posterior would lose it, see :func:`pull_to_sum`.
    iterations
        Rounds of expectation maximisation.

    Returns
    -------
    The prior; with ``cells``, that of a spot is :meth:`PresencePrior.in_spots_of`.
    """
    estimate, deviation = np.asarray(estimate, np.float64), np.asarray(deviation, np.float64)
    spots, components = estimate.shape
    total = max(estimate.sum() / max(spots, 1), 1e-12)
    prior = PresencePrior(np.full(components, 0.5), np.full(components, total / 3), total)
    for _ in range(iterations):
        here = (prior.probability, prior.typical_weight) if cells is None else prior.in_spots_of(cells)
        pull = pull_to_sum(estimate, deviation, *here, kept) if kept > 0 and spots else 0.0
        posterior = spike_and_slab(estimate, deviation, *here, pull)
        presence, weight = posterior.presence, posterior.mean
        common = (presence.sum() + 0.5) / (presence.size + 1)
        probability = (presence.sum(0) + PSEUDO_SPOTS * common) / (spots + PSEUDO_SPOTS)
        common_weight = max(weight.sum() / max(presence.sum(), 1e-12), 1e-12)
        typical = (weight.sum(0) + PSEUDO_SPOTS * common_weight) / (presence.sum(0) + PSEUDO_SPOTS)
        prior = PresencePrior(np.clip(probability, 1e-3, 1 - 1e-3), typical, total)
    return prior


def presence_from_cells(share: np.ndarray, cells: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability and typical weight of each component in spots of known cell number, from its share of all cells."""
    share = np.clip(share / max(share.sum(), 1e-12), 1e-4, 1 - 1e-4)
    probability = -np.expm1(np.asarray(cells, np.float64)[:, None] * np.log1p(-share)[None, :])
    probability = np.clip(probability, 1e-3, 1 - 1e-3)
    return probability, share * total / probability
