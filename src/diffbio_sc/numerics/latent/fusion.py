"""Fusion of several Gaussian opinions ("experts") on one latent vector, some of which may be absent.

Each modality m that a cell has gives a diagonal Gaussian N(mu_m, s_m^2). An absent expert is left out exactly: nothing
stands in for it, its mean and variance are never read (they may be NaN) and get no gradient. A cell without any expert
gets the prior N(0, I).

Product of experts: Hinton 2002, Neural Computation 14:1771; for missing modalities Wu and Goodman 2018, NeurIPS.
Mixture of experts: Shi et al. 2019, NeurIPS. Mean of the modalities: Ashuach et al. 2023, Nature Methods 20:1222.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

_LOG_TWO_PI = float(np.log(2 * np.pi))


class FusedGaussian(NamedTuple):
    """Gaussian that several experts agree on.

    Attributes
    ----------
    mean, log_variance
        Moments for each cell and latent dimension.
    shares
        Share of each expert in the mean; sums to 1 over the experts, with the prior's share where there is a prior.
    """

    mean: Float[Array, "cells dimensions"]
    log_variance: Float[Array, "cells dimensions"]
    shares: Float[Array, "experts cells dimensions"]


class MixtureSample(NamedTuple):
    """Draw from the mixture of the experts, and which expert it is from (-1: none, the prior)."""

    sample: Float[Array, "cells dimensions"]
    expert: Int[Array, " cells"]


def _log_weights(
    present: Bool[Array, "experts cells"], weights: Float[Array, "experts ..."] | None
) -> Float[Array, "experts cells"]:
    """Logarithm of the weights, -inf where an expert is absent or has no weight."""
    present = jnp.asarray(present) > 0
    if weights is None:
        return jnp.where(present, 0.0, -jnp.inf)
    weights = jnp.asarray(weights)
    weights = jnp.broadcast_to(weights[:, None] if weights.ndim == 1 else weights, present.shape)
    used = present & (weights > 0)
    return jnp.where(used, jnp.log(jnp.where(used, weights, 1.0)), -jnp.inf)


def _masked(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    weights: Float[Array, "experts ..."] | None,
) -> tuple[Array, Array, Array, Array]:
    """Standard normals instead of absent experts, log weights, and which cells have an expert."""
    log_weights = _log_weights(present, weights)
    used = log_weights > -jnp.inf
    mean = jnp.where(used[..., None], mean, 0.0)
    log_variance = jnp.where(used[..., None], log_variance, 0.0)
    return mean, log_variance, log_weights, used.any(0)


def product_of_experts(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    weights: Float[Array, "experts ..."] | None = None,
    prior: bool = True,
) -> FusedGaussian:
    """Product of the present experts' densities, normalised: precisions add up.

    Parameters
    ----------
    mean, log_variance
        Experts.
    present
        Whether the expert has an opinion on the cell.
    weights
        Power to which each expert's density is raised, for each expert or each expert and cell; 1 by default, 0 as if
        absent.
    prior
        Whether N(0, I) is one more expert. Without it, cells that no expert knows still get the prior.
    """
    mean, log_variance, log_weights, known = _masked(mean, log_variance, present, weights)
    log_precision = log_weights[..., None] - log_variance
    log_prior = jnp.zeros_like(mean[0]) if prior else jnp.where(known[:, None], -jnp.inf, jnp.zeros_like(mean[0]))
    total = logsumexp(jnp.concatenate([log_precision, log_prior[None]]), axis=0)
    shares = jnp.exp(log_precision - total)
    return FusedGaussian((shares * mean).sum(0), -total, shares)


def _mixing(log_weights: Float[Array, "experts cells"], known: Bool[Array, " cells"]) -> Float[Array, "experts cells"]:
    """Weights of the present experts that sum to 1 over them; all 0 where there is none."""
    safe = jnp.where(known, log_weights, 0.0)
    return jnp.where(known, jax.nn.softmax(safe, axis=0), 0.0)


def mixture_of_experts(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    weights: Float[Array, "experts ..."] | None = None,
) -> FusedGaussian:
    """Mean and variance of the mixture of the present experts, with mixing weights proportional to ``weights``.

    The mixture itself is not Gaussian: draw from it with :func:`sample_mixture`, its density is
    :func:`mixture_log_density`.
    """
    mean, log_variance, log_weights, known = _masked(mean, log_variance, present, weights)
    mixing = _mixing(log_weights, known)[..., None]
    centre = (mixing * mean).sum(0)
    # Scaled by the largest variance, which neither overflows nor underflows.
    scale = jax.lax.stop_gradient(log_variance.max(0))
    spread = (mixing * (jnp.exp(log_variance - scale) + ((mean - centre) * jnp.exp(-0.5 * scale)) ** 2)).sum(0)
    known = known[:, None]
    variance = jnp.where(known, scale + jnp.log(jnp.where(known, spread, 1.0)), 0.0)
    return FusedGaussian(centre, variance, jnp.broadcast_to(mixing, mean.shape))


def mixture_log_density(
    points: Float[Array, "cells dimensions"],
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    weights: Float[Array, "experts ..."] | None = None,
) -> Float[Array, " cells"]:
    """Log-density of the mixture of the present experts at one point for each cell."""
    mean, log_variance, log_weights, known = _masked(mean, log_variance, present, weights)
    densities = gaussian_log_density(points, mean, log_variance)
    safe = jnp.where(known, log_weights, 0.0)
    mixture = logsumexp(jax.nn.log_softmax(safe, axis=0) + densities, axis=0)
    return jnp.where(known, mixture, gaussian_log_density(points, jnp.zeros_like(points), jnp.zeros_like(points)))


def sample_mixture(
    key: Array,
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    weights: Float[Array, "experts ..."] | None = None,
) -> MixtureSample:
    """Draw once from the mixture for each cell; differentiable in the mean and variance of the chosen expert.

    The choice is stratified over the cells: each is drawn with its own probabilities, but the numbers that decide are
    spread evenly over the cells, so that every expert is chosen about as often as expected.
    """
    mean, log_variance, log_weights, known = _masked(mean, log_variance, present, weights)
    mixing = _mixing(log_weights, known)
    cells = mean.shape[1]
    order_key, offset_key, noise_key = jax.random.split(key, 3)
    strata = jax.random.permutation(order_key, cells)
    uniform = (strata + jax.random.uniform(offset_key, (cells,))) / cells
    # The first expert whose cumulated weight exceeds the number, never one without weight.
    cumulated = jnp.cumsum(mixing, axis=0)
    expert = jnp.argmax((cumulated > uniform * cumulated[-1]) & (mixing > 0), axis=0)
    chosen = jnp.where(known, expert, 0)[None, :, None]
    chosen_mean = jnp.take_along_axis(mean, chosen, axis=0)[0]
    chosen_log_variance = jnp.take_along_axis(log_variance, chosen, axis=0)[0]
    sample = chosen_mean + jnp.exp(0.5 * chosen_log_variance) * jax.random.normal(noise_key, chosen_mean.shape)
    return MixtureSample(sample, jnp.where(known, expert, -1))


def mean_fusion(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    weights: Float[Array, "experts ..."] | None = None,
) -> FusedGaussian:
    """Distribution of the weighted mean of independent draws from the present experts.

    With weights w that sum to 1 over them: mean sum(w mu), variance sum(w^2 s^2).
    """
    mean, log_variance, log_weights, known = _masked(mean, log_variance, present, weights)
    mixing = _mixing(log_weights, known)
    log_mixing = jnp.where(mixing > 0, jnp.log(jnp.where(mixing > 0, mixing, 1.0)), -jnp.inf)
    terms = jnp.where(known[:, None], 2 * log_mixing[..., None] + log_variance, 0.0)
    variance = jnp.where(known[:, None], logsumexp(terms, axis=0), 0.0)
    shares = jnp.broadcast_to(mixing[..., None], mean.shape)
    return FusedGaussian((shares * mean).sum(0), variance, shares)


def gaussian_log_density(
    points: Float[Array, "... dimensions"],
    mean: Float[Array, "... dimensions"],
    log_variance: Float[Array, "... dimensions"],
) -> Float[Array, "..."]:
    """Log-density of a diagonal Gaussian, summed over the dimensions."""
    standard = (points - mean) * jnp.exp(-0.5 * log_variance)
    return -0.5 * (standard**2 + log_variance + _LOG_TWO_PI).sum(-1)


def kl_to_standard_normal(
    mean: Float[Array, "... dimensions"], log_variance: Float[Array, "... dimensions"]
) -> Float[Array, "..."]:
    """Kullback-Leibler divergence from the diagonal Gaussian to N(0, I), summed over the dimensions, in nats."""
    # expm1 keeps the digits of a variance near 1, where the divergence is nearly 0.
    return 0.5 * (mean**2 + jnp.expm1(log_variance) - log_variance).sum(-1)
