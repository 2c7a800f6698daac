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


def _masked(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
) -> tuple[Array, Array, Array, Array]:
    """Standard normals instead of absent experts, which experts are present, and which cells have one."""
    used = jnp.asarray(present) > 0
    mean = jnp.where(used[..., None], mean, 0.0)
    log_variance = jnp.where(used[..., None], log_variance, 0.0)
    return mean, log_variance, used, used.any(0)


def product_of_experts(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    prior: bool = True,
) -> FusedGaussian:
    """Product of the present experts' densities, normalised: precisions add up.

    Parameters
    ----------
    mean, log_variance
        Experts.
    present
        Whether the expert has an opinion on the cell.
    prior
        Whether N(0, I) is one more expert. Without it, cells that no expert knows still get the prior.
    """
    mean, log_variance, used, known = _masked(mean, log_variance, present)
    log_precision = jnp.where(used[..., None], -log_variance, -jnp.inf)
    log_prior = jnp.zeros_like(mean[0]) if prior else jnp.where(known[:, None], -jnp.inf, jnp.zeros_like(mean[0]))
    total = logsumexp(jnp.concatenate([log_precision, log_prior[None]]), axis=0)
    shares = jnp.exp(log_precision - total)
    return FusedGaussian((shares * mean).sum(0), -total, shares)


def _mixing(used: Bool[Array, "experts cells"]) -> Float[Array, "experts cells"]:
    """Equal weights of the present experts, which sum to 1 over them; all 0 where there is none."""
    return used / jnp.maximum(used.sum(0), 1)


def mixture_of_experts(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
) -> FusedGaussian:
    """Mean and variance of the mixture of the present experts in equal parts.

    The mixture itself is not Gaussian: draw from it with :func:`sample_mixture`; its density is
    :func:`mixture_log_density`, its divergence from the prior :func:`mixture_divergence`.
    """
    mean, log_variance, used, known = _masked(mean, log_variance, present)
    mixing = _mixing(used)[..., None]
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
) -> Float[Array, " cells"]:
    """Log-density of the mixture of the present experts in equal parts, at one point for each cell."""
    mean, log_variance, used, known = _masked(mean, log_variance, present)
    densities = jnp.where(used | ~known, gaussian_log_density(points, mean, log_variance), -jnp.inf)
    # Where there is no expert each row holds the density of the prior.
    number = jnp.where(known, used.sum(0), len(mean))
    return logsumexp(densities, axis=0) - jnp.log(number)


def sample_mixture(
    key: Array,
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
    *,
    noise: Float[Array, "cells dimensions"] | None = None,
) -> MixtureSample:
    """Draw once from the mixture for each cell; differentiable in the mean and variance of the chosen expert.

    The choice is stratified over the cells: each is drawn with its own probabilities, but the numbers that decide are
    spread evenly over the cells, so that every expert is chosen about as often as expected.

    Parameters
    ----------
    key
        Random key of the choice and, without ``noise``, of the draw.
    mean, log_variance, present
        Experts, as of :func:`mixture_of_experts`.
    noise
        Standard normal draws, to which the chosen expert's mean and deviation are applied.
    """
    mean, log_variance, used, known = _masked(mean, log_variance, present)
    mixing = _mixing(used)
    cells = mean.shape[1]
    order_key, offset_key, noise_key = jax.random.split(key, 3)
    strata = jax.random.permutation(order_key, cells)
    uniform = (strata + jax.random.uniform(offset_key, (cells,))) / cells
    # The first expert whose cumulated weight exceeds the number, never one without weight.
    cumulated = jnp.cumsum(mixing, axis=0)
    expert = jnp.argmax((cumulated > uniform * cumulated[-1]) & used, axis=0)
    expert = jnp.where(known, expert, -1)
    if noise is None:
        noise = jax.random.normal(noise_key, mean.shape[1:])
    chosen_mean, chosen_log_variance = _of_expert(mean, expert), _of_expert(log_variance, expert)
    return MixtureSample(chosen_mean + jnp.exp(0.5 * chosen_log_variance) * noise, expert)


def _of_expert(values: Float[Array, "experts cells dimensions"], expert: Int[Array, " cells"]) -> Array:
    """Values of each cell's expert; those of the first, masked, where there is none."""
    return jnp.take_along_axis(values, jnp.maximum(expert, 0)[None, :, None], axis=0)[0]


def mixture_divergence(
    drawn: MixtureSample,
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
) -> Float[Array, " cells"]:
    """Kullback-Leibler divergence from the mixture of the experts to N(0, I), estimated without bias from a draw of it.

    The divergence of a mixture q of Gaussians q_k is the mean over k of KL(q_k, prior) + E_k[log q(z) - log q_k(z)].
    The first term is a closed form, the second is what the draw estimates: it lies above -log(experts), and is 0 for a
    cell with a single expert, whose divergence is exact.
    """
    mean, log_variance, _, _ = _masked(mean, log_variance, present)
    own_mean, own_log_variance = _of_expert(mean, drawn.expert), _of_expert(log_variance, drawn.expert)
    excess = mixture_log_density(drawn.sample, mean, log_variance, present) - gaussian_log_density(
        drawn.sample, own_mean, own_log_variance
    )
    return kl_to_standard_normal(own_mean, own_log_variance) + excess


def mean_fusion(
    mean: Float[Array, "experts cells dimensions"],
    log_variance: Float[Array, "experts cells dimensions"],
    present: Bool[Array, "experts cells"],
) -> FusedGaussian:
    """Distribution of the mean of independent draws, one from each of n present experts.

    Its mean is sum(mu) / n, its variance sum(s^2) / n^2.
    """
    mean, log_variance, used, known = _masked(mean, log_variance, present)
    log_mixing = jnp.where(used, -jnp.log(jnp.maximum(used.sum(0), 1).astype(mean.dtype)), -jnp.inf)
    terms = jnp.where(known[:, None], 2 * log_mixing[..., None] + log_variance, 0.0)
    variance = jnp.where(known[:, None], logsumexp(terms, axis=0), 0.0)
    shares = jnp.broadcast_to(jnp.exp(log_mixing)[..., None], mean.shape)
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
