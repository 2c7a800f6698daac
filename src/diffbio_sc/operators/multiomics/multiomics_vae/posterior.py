"""What the modalities say of a cell's latent vector, each alone (the experts) and together (the posterior)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators.multiomics import product_of_experts
    >>> mean, log_variance = product_of_experts(jnp.array([[[0.0]], [[3.0]]]), jnp.log(jnp.array([[[1.0]], [[0.5]]])))
    >>> round(float(mean[0, 0]), 4), round(float(jnp.exp(log_variance)[0, 0]), 4)
    (2.0, 0.3333)
    """
    means, log_variances = jnp.asarray(means), jnp.asarray(log_variances)
    present = jnp.ones(means.shape[:2], bool)
    fused = fusion.product_of_experts(means, log_variances, present, prior=False)
    return fused.mean, fused.log_variance


class StackedEncoders(NamedTuple):
    """The encoders of all modalities in arrays of one shape: code is compiled for one, and for any features alike.

    Attributes
    ----------
    arrays
        Parameters by name, with the modalities along the first axis.
    by_depth
        For each modality, whether its expert is the more precise the deeper the cell is (1.0 or 0.0).
    """

    arrays: dict[str, Array]
    by_depth: Array


def stack_encoders(networks: Networks, *, library: Any = jnp) -> StackedEncoders:
    """Stack the encoders of an operator, by ``library``: numpy outside of compiled code, where JAX compiles each."""
    arrays = jax.tree.map(lambda *parts: library.stack(parts), *(encoder.arrays() for encoder in networks.encoders))
    by_depth = np.array([name in ACCESSIBILITY for name in networks.config.modality_likelihoods], np.float32)
    return StackedEncoders(arrays, library.asarray(by_depth))


def experts(
    encoders: StackedEncoders, cells: Mapping[str, Array], *, kept: Float[Array, "modalities cells width"] | None = None
) -> Gaussians:
    """Gaussian opinion of each modality on each cell, the prior not included.

    Parameters
    ----------
    encoders
        Encoders.
    cells
        ``features`` (cells, modalities, inputs), ``log_size`` (cells, modalities) and ``batch`` (cells,).
    kept
        What the hidden units are multiplied by, where some are dropped.
    """
    kept = jnp.ones((len(encoders.by_depth), 1, 1)) if kept is None else kept
    features, log_size = jnp.swapaxes(cells["features"], 0, 1), cells["log_size"].T
    return jax.vmap(expert, in_axes=(0, 0, 0, 0, 0, None))(
        encoders.arrays, features, log_size, encoders.by_depth, kept, cells["batch"]
    )


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
