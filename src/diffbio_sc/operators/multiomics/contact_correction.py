"""Learned corrections of the contact statistics: networks minus their own initial state, so exactly 0 until trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.operators.contract import FittedStatistic

KERNEL = 5


class CorrectionWeight(nnx.Param):
    """A parameter of a network, as against the statistical settings."""


class Correction(nnx.Module):
    """A stack of layers over the last axis, or of convolutions along the one before it.

    Parameters
    ----------
    inputs, outputs
        Number of features and of corrections.
    hidden, layers
        Width, and number of hidden layers.
    kernel
        Positions that a layer sees; 1 for layers of single positions.
    rngs
        Random streams; ``params`` makes the weights.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, layers: int, kernel: int, *, rngs: nnx.Rngs):
        sizes = [inputs, *[hidden] * layers, outputs]
        self.kernel, self.layers = kernel, layers + 1
        for layer, (before, behind) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            weights = rngs.params.normal((kernel, before, behind)) / np.sqrt(kernel * before)
            for kind, prefix in ((CorrectionWeight, "weight"), (FittedStatistic, "start_weight")):
                setattr(self, f"{prefix}_{layer}", kind(weights))
            for kind, prefix in ((CorrectionWeight, "bias"), (FittedStatistic, "start_bias")):
                setattr(self, f"{prefix}_{layer}", kind(jnp.zeros(behind)))

    def __call__(self, features: Float[Array, "positions inputs"]) -> Float[Array, "positions outputs"]:
        """Return the corrections."""
        # The start is subtracted with its gradient by the features: untrained, these have no influence. A gradient step
        # changes none of its weights.
        return self._network(features, "") - self._network(features, "start_")

    def is_zero(self) -> bool:
        """Whether the network is known to be in its initial state: not being traced, and nothing trained."""
        for layer in range(self.layers):
            for name in ("weight", "bias"):
                pair = [getattr(self, f"{prefix}{name}_{layer}")[...] for prefix in ("", "start_")]
                if any(isinstance(array, jax.core.Tracer) for array in pair) or not np.array_equal(*pair):
                    return False
        return True

    def _network(self, values, prefix):
        for layer in range(self.layers):
            weight = getattr(self, f"{prefix}weight_{layer}")[...]
            bias = getattr(self, f"{prefix}bias_{layer}")[...]
            reach = self.kernel // 2
            padded = jnp.pad(values, ((reach, reach), (0, 0)))
            size = values.shape[0]
            values = sum(padded[tap : tap + size] @ weight[tap] for tap in range(self.kernel)) + bias
            if layer < self.layers - 1:
                values = jnp.tanh(values)
        return values
