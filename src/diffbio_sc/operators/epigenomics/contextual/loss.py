"""The terms of the loss: labels, and the structure that the contacts show."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

#: Shares of contacts beyond which classes are not balanced any further: a map without contacts has weights still.
_LEAST_SHARE = 0.01


class Sums(NamedTuple):
    """Sum over positions or pairs of each example, and their number."""

    total: Float[Array, " batch"]
    number: Float[Array, " batch"]

    def mean(self, weight: Float[Array, " batch"] | None = None) -> Float[Array, ""]:
        """Mean over all positions or pairs, those of each example weighted; 0 if there are none."""
        total, number = self if weight is None else (self.total * weight, self.number * weight)
        count = number.sum()
        return total.sum() / jnp.where(count > 0, count, 1.0)


def label_loss(
    logits: Float[Array, "batch contexts tokens outputs"],
    targets: Float[Array, "batch contexts tokens"],
    mask: Bool[Array, "batch tokens"],
) -> Sums:
    """Cross-entropy of labels at positions that are not masked.

    Logits of one context serve all contexts of the targets.
    """
    counted = jnp.broadcast_to(mask[:, None], targets.shape)
    targets = jnp.where(counted, targets, 0.0)
    logits = jnp.broadcast_to(logits, (*targets.shape, logits.shape[-1]))
    if logits.shape[-1] == 1:
        # softplus(z) - y z = -y log p - (1 - y) log(1 - p)
        values = jax.nn.softplus(logits[..., 0]) - targets * logits[..., 0]
    else:
        chosen = jnp.take_along_axis(logits, targets.astype(jnp.int32)[..., None], axis=-1)[..., 0]
        values = jax.nn.logsumexp(logits, axis=-1) - chosen
    values = jnp.where(counted, values, 0.0)
    return Sums(values.sum((1, 2)), counted.sum((1, 2)).astype(values.dtype))


def contact_loss(
    logits: Float[Array, "batch tokens tokens"],
    contacts: Float[Array, "batch tokens tokens"],
    mask: Bool[Array, "batch tokens"],
) -> Sums:
    """Excess of the balanced cross-entropy of contacts over its smallest value, which is 0 where odds are right.

    Contacts weigh as much as their absence: with p the contact of a pair and q its mean over the map, the term is
    -p / (2 q) log s(z) - (1 - p) / (2 (1 - q)) log s(-z), minus its minimum over z. A token's contact with itself says
    nothing and is left out.
    """
    counted = _pairs(mask)
    number = counted.sum((1, 2)).astype(logits.dtype)
    contacts = jnp.where(counted, contacts, 0.0)
    share = jnp.clip(contacts.sum((1, 2)) / jnp.maximum(number, 1.0), _LEAST_SHARE, 1.0 - _LEAST_SHARE)[:, None, None]
    present, absent = contacts / (2.0 * share), (1.0 - contacts) / (2.0 * (1.0 - share))
    entropy = present * jax.nn.softplus(-logits) + absent * jax.nn.softplus(logits)
    total = present + absent
    smallest = -_x_log_y(present, present / total) - _x_log_y(absent, absent / total)
    return Sums(jnp.where(counted, entropy - smallest, 0.0).sum((1, 2)), number)


def similarity_loss(
    tokens: Float[Array, "batch tokens features"],
    contacts: Float[Array, "batch tokens tokens"],
    mask: Bool[Array, "batch tokens"],
) -> Sums:
    """Squared difference of (1 + cosine) / 2 of embeddings and contacts, over pairs of different tokens."""
    counted = _pairs(mask)
    length = jnp.sqrt(jnp.maximum((tokens**2).sum(-1, keepdims=True), 1e-12))
    unit = tokens / length
    similarity = (1.0 + unit @ unit.swapaxes(-1, -2)) / 2.0
    values = jnp.where(counted, (similarity - jnp.where(counted, contacts, 0.0)) ** 2, 0.0)
    return Sums(values.sum((1, 2)), counted.sum((1, 2)).astype(values.dtype))


def _pairs(mask: Bool[Array, "batch tokens"]) -> Bool[Array, "batch tokens tokens"]:
    return mask[:, :, None] & mask[:, None, :] & ~np.eye(mask.shape[1], dtype=bool)


def _x_log_y(x, y):
    return jnp.where(x > 0, x * jnp.log(jnp.where(x > 0, y, 1.0)), 0.0)
