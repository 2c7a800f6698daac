"""Losses of training recipes, as functions: add them to an operator's own loss, or train with them alone.

Most are of :mod:`diffbio_sc.training.losses`, which operators use too; here they stand in one place with those that
need to know an operator's outputs.
"""

from __future__ import annotations

from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.counts.negative_binomial import negative_binomial_deviance
from diffbio_sc.operators.epigenomics.contextual.loss import similarity_loss
from diffbio_sc.training.losses import (
    balanced_loss,
    binary_cross_entropy,
    entropy,
    masked_mean,
    poisson_deviance,
    squared_error,
)

__all__ = [
    "balanced_loss",
    "binary_cross_entropy",
    "chromatin_guidance",
    "entropy",
    "masked_mean",
    "negative_binomial_deviance",
    "poisson_deviance",
    "squared_error",
]


def chromatin_guidance(
    embeddings: Float[Array, "*batch positions features"],
    contacts: Float[Array, "*batch positions positions"],
    mask: Bool[Array, "*batch positions"] | None = None,
) -> Float[Array, ""]:
    r"""Mean squared difference of the similarity of positions' embeddings and their contacts.

    Parameters
    ----------
    embeddings
        ``token_embeddings`` of one sequence or a batch.
    contacts
        Contact map of the same positions, from 0 to 1.
    mask
        Positions that are counted; default all.

    Returns
    -------
    Mean over pairs of different positions of :math:`((1 + \cos(h_i, h_j)) / 2 - c_{ij})^2`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> alike = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> (
    ...     float(losses.chromatin_guidance(alike, contacts=jnp.ones((2, 2)))),
    ...     float(losses.chromatin_guidance(alike, contacts=jnp.zeros((2, 2)))),
    ... )
    (0.0, 1.0)
    """
    mask = jnp.ones(embeddings.shape[:-1], bool) if mask is None else jnp.asarray(mask) > 0
    if embeddings.ndim == 2:
        embeddings, contacts, mask = embeddings[None], contacts[None], mask[None]
    return similarity_loss(embeddings, contacts, mask).mean()
