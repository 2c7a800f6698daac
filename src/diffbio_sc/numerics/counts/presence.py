"""Presence or absence of each component: a spike at 0 and an exponential slab, with weights learned from all spots.

A regression never returns exactly nothing for a component that is absent: noise alone gives it some weight. Here each
weight, known as a Gaussian (estimate, standard deviation) cut at 0, is either absent or drawn from an exponential
distribution; how often, and how much, is learned per component by expectation maximisation (empirical Bayes).
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
_RANGE = 50.0  # log odds beyond this are 0 or 1 in float32


class PresencePrior(NamedTuple):
    """Prior of each component.

    Attributes
    ----------
    probability
        Probability that the component is present in a spot.
    typical_weight
        Mean weight where it is present.
    """

    probability: np.ndarray
    typical_weight: np.ndarray


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
) -> Posterior:
    """Posterior of weights observed as ``estimate`` with standard deviation ``deviation``, under the prior.

    Numpy arrays are worked on by numpy, which spares compiling for each number of spots; JAX arrays by JAX.
    """
    on_host = isinstance(estimate, np.ndarray)
    xp, log_cdf = (np, log_ndtr) if on_host else (jnp, jax.scipy.special.log_ndtr)
    log_odds, standard = _log_odds(estimate, deviation, probability, typical_weight, xp, log_cdf)
    presence = 1.0 / (1.0 + xp.exp(-xp.clip(log_odds, -_RANGE, _RANGE)))
    # Mean and variance of a Gaussian cut at 0; the ratio density / mass is taken in log space.
    ratio = xp.exp(-0.5 * standard**2 - _LOG_SQRT_2PI - log_cdf(standard))
    slab_mean = xp.maximum(deviation * (standard + ratio), 0.0)
    slab_variance = deviation**2 * xp.clip(1.0 - ratio * (standard + ratio), 0.0, 1.0)
    mean = presence * slab_mean
    return Posterior(presence, mean, presence * (slab_variance + slab_mean**2) - mean**2)


def _log_odds(estimate, deviation, probability, typical_weight, xp, log_cdf):
    standard = (estimate - deviation**2 / typical_weight) / deviation
    bayes_factor = xp.log(deviation / typical_weight) + _LOG_SQRT_2PI + 0.5 * standard**2 + log_cdf(standard)
    return bayes_factor + xp.log(probability) - xp.log1p(-probability), standard


def learn_presence(
    estimate: np.ndarray,
    deviation: np.ndarray,
    *,
    cells: np.ndarray | None = None,
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
    iterations
        Rounds of expectation maximisation.

    Returns
    -------
    The prior; with ``cells``, ``probability`` and ``typical_weight`` have a row for each spot.
    """
    estimate, deviation = np.asarray(estimate, np.float64), np.asarray(deviation, np.float64)
    spots, components = estimate.shape
    total = max(estimate.sum() / max(spots, 1), 1e-12)
    probability = np.full(components, 0.5)
    typical = np.full(components, total / 3)
    for _ in range(iterations):
        if cells is None:
            row_probability, row_typical = probability, typical
        else:
            row_probability, row_typical = presence_from_cells(probability * typical / total, cells, total)
        log_odds, _ = _log_odds(estimate, deviation, row_probability, row_typical, np, log_ndtr)
        presence = 1 / (1 + np.exp(-np.clip(log_odds, -_RANGE, _RANGE)))
        weight = estimate * presence
        common = (presence.sum() + 0.5) / (presence.size + 1)
        probability = (presence.sum(0) + PSEUDO_SPOTS * common) / (spots + PSEUDO_SPOTS)
        probability = np.clip(probability, 1e-3, 1 - 1e-3)
        common_weight = max(weight.sum() / max(presence.sum(), 1e-12), 1e-12)
        typical = (weight.sum(0) + PSEUDO_SPOTS * common_weight) / (presence.sum(0) + PSEUDO_SPOTS)
    return PresencePrior(probability, typical)


def presence_from_cells(share: np.ndarray, cells: np.ndarray, total: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability and typical weight of each component in spots of known cell number, from its share of all cells."""
    share = np.clip(share / max(share.sum(), 1e-12), 1e-4, 1 - 1e-4)
    probability = -np.expm1(np.asarray(cells, np.float64)[:, None] * np.log1p(-share)[None, :])
    probability = np.clip(probability, 1e-3, 1 - 1e-3)
    return probability, share * total / probability
