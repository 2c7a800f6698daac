"""What the training loop asks of the thing it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float


class Trainable(Protocol):
    """A flax module with a loss, and what is needed to tell runs apart; every operator is one.

    Attributes
    ----------
    loss_takes_weights
        Whether ``loss`` is an average over samples that follows ``data["sample_weight"]`` when that is there.
    """

    loss_takes_weights: bool

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the scalar to lower."""
        ...

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError if the data lack an array that the loss needs."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint compares: kind, version and configuration."""
        ...

    def mark_fitted(self) -> None:
        """Take note that the parameters are trained."""
        ...

    def train(self) -> None:
        """Switch to training mode, as :meth:`flax.nnx.Module.train` does."""
        ...

    def eval(self) -> None:
        """Switch to evaluation mode, as :meth:`flax.nnx.Module.eval` does."""
        ...
