"""Adam on the vectors of a training run, with rates that differ between parts of an operator."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffbio_sc.training.vectors import Layout, Vectors, piecewise

_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.999


class AdamState(NamedTuple):
    """State of :class:`Adam`.

    Attributes
    ----------
    step
        Steps taken.
    mean, square
        Running averages of the gradient and of its square.
    rates
        Learning rate of each part; data, so that other rates need no other code.
    """

    step: Int[Array, ""]
    mean: Vectors
    square: Vectors
    rates: Float[Array, " parts"]


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, ICLR), element by element as optax has it.

    Parameters
    ----------
    learning_rate
        Of all parameters.
    factors
        Pairs of a beginning of a parameter's path, such as ``"encoders"`` or ``"decoders/0/slopes"``, and what the
        learning rate is multiplied by there. The first that fits counts.
    epsilon
        Added to the root of the average square.
    """

    learning_rate: float
    factors: tuple[tuple[str, float], ...] = ()
    epsilon: float = 1e-8

    def init(self, trained: Any) -> AdamState:
        """State for a tree of parameters, on the host."""
        layout = Layout.of(trained)
        zeros = {
            dtype: np.zeros(sum(size for size, kind in zip(layout.sizes, layout.dtypes, strict=True) if kind == dtype))
            for dtype in layout.dtypes
        }
        zeros = {dtype: vector.astype(dtype) for dtype, vector in zeros.items()}
        rates = np.array([factor * self.learning_rate for factor in [*(factor for _, factor in self.factors), 1.0]])
        return AdamState(np.int32(0), zeros, dict(zeros), rates.astype(np.float32))

    def parts(self, trained: Any) -> tuple[int, ...]:
        """Number of the rate that each leaf of the tree has."""
        return tuple(
            next((i for i, (beginning, _) in enumerate(self.factors) if _begins(path, beginning)), len(self.factors))
            for path in _paths(trained)
        )


def adam_step(
    vectors: Vectors,
    gradient: Vectors,
    state: AdamState,
    layout: Layout,
    parts: tuple[int, ...],
    epsilon: float,
    applies: Array,
) -> tuple[Vectors, AdamState]:
    """One step; where ``applies`` is False nothing changes.

    Parameters
    ----------
    vectors, gradient
        Parameters and their gradient.
    state, parts, epsilon
        Of :class:`Adam`.
    layout
        Of the parameters.
    applies
        Scalar.
    """
    step = state.step + 1
    mean_share = 1.0 - _MEAN_DECAY ** step.astype(jnp.float32)
    square_share = 1.0 - _SQUARE_DECAY ** step.astype(jnp.float32)
    new, mean, square = {}, {}, {}
    for dtype, old in vectors.items():
        mine = [number for number, kind in enumerate(layout.dtypes) if kind == dtype]
        sizes, numbers = [layout.sizes[number] for number in mine], [parts[number] for number in mine]
        rate = piecewise(sizes, numbers, state.rates).astype(old.dtype)
        slope = gradient[dtype]
        moved = _MEAN_DECAY * state.mean[dtype] + (1 - _MEAN_DECAY) * slope
        spread = _SQUARE_DECAY * state.square[dtype] + (1 - _SQUARE_DECAY) * slope * slope
        change = (
            rate
            * (moved / mean_share.astype(old.dtype))
            / (jnp.sqrt(spread / square_share.astype(old.dtype)) + epsilon)
        )
        new[dtype] = jnp.where(applies, old - change, old)
        mean[dtype] = jnp.where(applies, moved, state.mean[dtype])
        square[dtype] = jnp.where(applies, spread, state.square[dtype])
    return new, AdamState(jnp.where(applies, step, state.step), mean, square, state.rates)


def _begins(path: str, beginning: str) -> bool:
    return path == beginning or path.startswith(f"{beginning}/")


def _paths(tree: Any) -> list[str]:
    from diffbio_sc.training import storage

    return list(storage.flatten(tree))
