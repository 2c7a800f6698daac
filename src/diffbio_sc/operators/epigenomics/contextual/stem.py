"""From bases to tokens: filters on both strands, and the best match of each within a token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def reverse_complement(sequence: Float[Array, "*batch length 4"]) -> Float[Array, "*batch length 4"]:
    """Reverse complement of one-hot bases in the order A, C, G, T."""
    return sequence[..., ::-1, ::-1]


def token_mask(mask: Bool[Array, "batch length"], width: int) -> Bool[Array, "batch tokens"]:
    """Which tokens have a base."""
    return mask.reshape(len(mask), -1, width).any(-1)


class SequenceStem(nnx.Module):
    """Embeds a sequence in tokens.

    Each filter is matched to both strands. A token keeps the better match of the two, and their difference, which says
    how the motif is oriented.

    Parameters
    ----------
    filters
        Number of filters.
    width
        Their width in bases.
    token_width
        Bases of a token.
    features
        Width of the embedding.
    rngs
        Random streams of the initial parameters.
    """

    def __init__(self, filters: int, width: int, token_width: int, features: int, *, rngs: nnx.Rngs):
        self.token_width = token_width
        # One base of four is 1, so that scores of a random sequence have variance 1.
        scale = math.sqrt(1.0 / width)
        self.kernel = nnx.Param(scale * rngs.params.normal((width, 4, filters)))
        # About the expected best of 2 token_width scores: the start keeps the matches above it.
        self.threshold = nnx.Param(jnp.full(filters, math.sqrt(2.0 * math.log(2.0 * token_width))))
        self.project = nnx.Linear(2 * filters, features, rngs=rngs)

    def __call__(
        self, sequence: Float[Array, "batch length 4"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch tokens features"]:
        """Return tokens; those without a base are 0."""
        return self.embed(self.best_matches(sequence, mask))

    def best_matches(
        self, sequence: Float[Array, "batch length 4"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch tokens both_strands"]:
        """Best score of each filter in each token, first of the forward strand, then of the other; -inf without base.

        Bases that are masked must be 0.
        """
        kernel = self.kernel[...]
        both = jnp.concatenate([kernel, kernel[::-1, ::-1]], -1)
        scores = jax.lax.conv_general_dilated(sequence, both, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        scores = jnp.where(mask[..., None], scores, -jnp.inf)
        batch, length, channels = scores.shape
        return scores.reshape(batch, length // self.token_width, self.token_width, channels).max(2)

    def embed(
        self, matches: Float[Array, "batch tokens both_strands"]
    ) -> Float[Array, "batch tokens features"]:
        """Embedding of best matches; 0 for tokens without base."""
        present = jnp.isfinite(matches)
        forward, backward = jnp.split(jnp.where(present, matches, 0.0), 2, axis=-1)
        better = jax.nn.gelu(jnp.maximum(forward, backward) - self.threshold[...])
        tokens = self.project(jnp.concatenate([better, forward - backward], -1))
        return jnp.where(present[..., :1], tokens, 0.0)
