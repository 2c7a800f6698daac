"""What the modalities say of a cell's latent vector, each alone (the experts) and together (the posterior)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.latent import fusion
from diffbio_sc.operators.multiomics.multiomics_vae.features import ACCESSIBILITY
from diffbio_sc.operators.multiomics.multiomics_vae.networks import Networks, expert

#: Means and log variances (modalities, cells, latent).
Gaussians = tuple[Array, Array]

_CHOICE = 1  # folded into the key of a mixture's choice of experts


def product_of_experts(
    means: Float[Array, "experts cells latent"], log_variances: Float[Array, "experts cells latent"]
) -> tuple[Float[Array, "cells latent"], Float[Array, "cells latent"]]:
    """Multiply Gaussian densities: precisions add up, means are averaged by precision.

    Without a prior; :func:`diffbio_sc.numerics.latent.fusion.product_of_experts` has one, and absent experts.

    Parameters
    ----------
    means, log_variances
        Mean and log variance of each expert.

    Returns
    -------
    Mean and log variance of the product (cells, latent).
    """
    means, log_variances = jnp.asarray(means), jnp.asarray(log_variances)
    present = jnp.ones(means.shape[:2], bool)
    fused = fusion.product_of_experts(means, log_variances, present, prior=False)
    return fused.mean, fused.log_variance


def experts(
    networks: Networks, cells: Mapping[str, Array], *, key: Array | None = None, training: Array | bool = False
) -> Gaussians:
    """Gaussian opinion of each modality on each cell, the prior not included.

    Parameters
    ----------
    networks
        Operator.
    cells
        ``features`` (cells, modalities, inputs), ``log_size`` (cells, modalities) and ``batch`` (cells,).
    key
        Random key of the dropout; None drops nothing.
    training
        Whether to drop hidden units.
    """
    config = networks.config
    keep, names = 1.0 - config.dropout_rate, config.modality_likelihoods
    kept = jnp.ones((len(names), 1, 1))
    if key is not None and keep < 1:
        shape = (len(names), len(cells["batch"]), config.hidden_dim)
        kept = jnp.where(training, jax.random.bernoulli(key, keep, shape) / keep, 1.0)
    by_depth = jnp.array([float(name in ACCESSIBILITY) for name in names])
    # All modalities at once: their experts have the same shapes, and code is compiled for one.
    arrays = jax.tree.map(lambda *parts: jnp.stack(parts), *(encoder.arrays() for encoder in networks.encoders))
    features, log_size = jnp.swapaxes(cells["features"], 0, 1), cells["log_size"].T
    return jax.vmap(expert, in_axes=(0, 0, 0, 0, 0, None))(arrays, features, log_size, by_depth, kept, cells["batch"])


def alone(opinions: Gaussians) -> Gaussians:
    """Posterior from each modality alone: its expert times the prior."""
    present = jnp.ones((1, opinions[0].shape[1]), bool)
    fused = jax.vmap(lambda mean, log_variance: fusion.product_of_experts(mean[None], log_variance[None], present))(
        *opinions
    )
    return fused.mean, fused.log_variance


def fuse(method: str, opinions: Gaussians, present: Bool[Array, "cells modalities"]) -> fusion.FusedGaussian:
    """Mean and variance of the posterior from all modalities that a cell has.

    Parameters
    ----------
    method
        ``config.fusion``. A mixture and a mean are of the posteriors from each modality alone, so that a cell with one
        modality has the posterior of that modality, whatever the method.
    opinions
        Experts.
    present
        Which modalities each cell has.
    """
    if method == "poe":
        return fusion.product_of_experts(*opinions, present.T)
    combine = {"moe": fusion.mixture_of_experts, "mean": fusion.mean_fusion}[method]
    return combine(*alone(opinions), present.T)


def draw(
    method: str,
    opinions: Gaussians,
    present: Bool[Array, "cells modalities"],
    noise: Float[Array, "cells latent"],
    key: Array,
) -> tuple[Float[Array, "cells latent"], Float[Array, " cells"]]:
    """Draw each cell's latent vector from its posterior: the draw, and the divergence of the posterior from the prior.

    Parameters
    ----------
    method, opinions, present
        As of :func:`fuse`.
    noise
        Standard normal draws.
    key
        Random key by which a mixture chooses a modality for each cell. The divergence of a mixture has no closed form:
        it is estimated from the draw.
    """
    if method == "moe":
        posteriors = alone(opinions)
        drawn = fusion.sample_mixture(jax.random.fold_in(key, _CHOICE), *posteriors, present.T, noise=noise)
        return drawn.sample, fusion.mixture_divergence(drawn, *posteriors, present.T)
    posterior = fuse(method, opinions, present)
    latent = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise
    return latent, fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)


def divergence(
    method: str, opinions: Gaussians, present: Bool[Array, "cells modalities"], *, draws: int = 64
) -> Float[Array, " cells"]:
    """Divergence of the posterior from the prior; of a mixture the average over fixed draws."""
    if method != "moe":
        posterior = fuse(method, opinions, present)
        return fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)

    def estimate(total: Array, key: Array) -> tuple[Array, None]:
        noise = jax.random.normal(key, opinions[0].shape[1:])
        return total + draw(method, opinions, present, noise, key)[1], None

    keys = jax.random.split(jax.random.key(0), draws)
    return jax.lax.scan(estimate, jnp.zeros(present.shape[0]), keys)[0] / draws
