"""A learnable correction that several operators share."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.operators.contract import FittedStatistic


class NetworkMinusStart(nnx.Module):
    """A small network (tanh between layers) minus its own initial state.

    Exactly 0 until trained, with gradients in every parameter: an operator with this correction starts from its
    classic answer, and no parameter starts where its gradient vanishes.

    Parameters
    ----------
    sizes
        Width of the input, of the hidden layers and of the output.
    rngs
        Random streams of the initial parameters.
    """

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(before, after, rngs=rngs) for before, after in pairwise(sizes)])
        self.initial_kernels = nnx.List([FittedStatistic(jnp.array(layer.kernel[...])) for layer in self.layers])
        self.initial_biases = nnx.List([FittedStatistic(jnp.array(layer.bias[...])) for layer in self.layers])

    def __call__(self, features: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """Return what training has added."""
        now, start = self._states()
        return _network(features, now) - _network(features, jax.lax.stop_gradient(start))

    def is_zero(self) -> bool:
        """Whether training is known to have added nothing: nothing is being traced, and all is as it began."""
        pairs = list(zip(*map(jax.tree.leaves, self._states()), strict=True))
        if any(isinstance(array, jax.core.Tracer) for pair in pairs for array in pair):
            return False
        return all(np.array_equal(*pair) for pair in pairs)

    def _states(self):
        now = [(layer.kernel[...], layer.bias[...]) for layer in self.layers]
        return now, [(k[...], b[...]) for k, b in zip(self.initial_kernels, self.initial_biases, strict=True)]


def _network(values, layers):
    for number, (weights, bias) in enumerate(layers):
        values = (jnp.tanh(values) if number else values) @ weights + bias
    return values
