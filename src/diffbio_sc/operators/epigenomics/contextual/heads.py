"""What is read from tokens: labels in a context, and contacts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.operators.epigenomics.contextual.attention import by_distance, distance_features

_KNOTS = distance_features(1, 1).shape[1]


class ContextEncoder(nnx.Module):
    """Code of a context.

    Parameters
    ----------
    features
        Number of transcription-factor features.
    width
        Width of the code.
    dropout
        Share of the code left out in training.
    rngs
        Random streams.
    """

    def __init__(self, features: int, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.shift = FittedStatistic(jnp.zeros(features))
        self.scale = FittedStatistic(jnp.ones(features))
        self.encode = nnx.Linear(features, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs)

    def __call__(self, context: Float[Array, "batch contexts features"]) -> Float[Array, "batch contexts width"]:
        """Return codes of contexts."""
        standard = (context - self.shift[...]) / self.scale[...]
        return self.dropout(jnp.tanh(self.encode(standard)))


class Readout(nnx.Module):
    """Logits of each token, in each context: the base rate at the start.

    Parameters
    ----------
    features
        Width of tokens.
    width
        Width of the layer that contexts act on.
    outputs
        Logits of a token.
    code
        Width of a context's code, or None for a readout without contexts.
    dropout
        Share of the layer left out in training.
    rngs
        Random streams.
    """

    def __init__(self, features: int, width: int, outputs: int, code: int | None, dropout: float, *, rngs: nnx.Rngs):
        self.narrow = nnx.Linear(features, width, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros((width, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs)
        self.modulate = None if code is None else nnx.Linear(code, 2 * width, rngs=rngs)
        self.context_weights = None if code is None else nnx.Param(jnp.zeros((code, width, outputs)))
        self.context_bias = None if code is None else nnx.Param(jnp.zeros((code, outputs)))

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        codes: Float[Array, "#batch contexts code"] | None = None,
    ) -> Float[Array, "batch contexts tokens outputs"]:
        """Return logits; one context without codes."""
        narrow = self.dropout(self.narrow(tokens))[:, None]
        if self.modulate is None:
            return jax.nn.gelu(narrow) @ self.weights[...] + self.bias[...]
        assert codes is not None
        assert self.context_weights is not None
        assert self.context_bias is not None
        gain, shift = jnp.split(self.modulate(codes)[:, :, None], 2, axis=-1)
        weights = self.weights[...] + jnp.einsum("bce,ewk->bcwk", codes, self.context_weights[...])
        bias = self.bias[...] + codes @ self.context_bias[...]
        return jax.nn.gelu(narrow * (1.0 + gain) + shift) @ weights + bias[:, :, None]


class ContactHead(nnx.Module):
    """Logits of contacts of all pairs of tokens: a product of two vectors, and a function of distance.

    Parameters
    ----------
    features
        Width of tokens.
    width
        Width of the vectors.
    longest
        Largest number of tokens.
    rngs
        Random streams.
    """

    def __init__(self, features: int, width: int, longest: int, *, rngs: nnx.Rngs):
        self.longest = longest
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.project = nnx.Linear(features, width, rngs=rngs)
        self.decay = nnx.Param(jnp.zeros(_KNOTS))

    def __call__(self, tokens: Float[Array, "batch tokens features"]) -> Float[Array, "batch tokens tokens"]:
        """Return logits, symmetric."""
        vectors = self.project(self.norm(tokens))
        products = vectors @ vectors.swapaxes(-1, -2) / math.sqrt(vectors.shape[-1])
        features = distance_features(tokens.shape[1], self.longest)
        return products + by_distance(features @ self.decay[...])
