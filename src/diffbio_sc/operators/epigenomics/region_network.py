"""What a network adds to the linear logits of a region: nothing until it is trained.

Counts of k-mers, further columns of a region and its linear logits go through two hidden layers; the last, which starts
at zero, gives each cell type what is added to its linear logit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.contract import FittedStatistic

__all__ = ["RegionNetwork", "compute_region_loss", "training_loss", "within_loss"]

# Shares of inputs and of the units of both hidden layers that training drops.
_DROPOUT = (0.2, 0.4, 0.3)
# Weight of the likelihood within regions beside the cross-entropy.
_WITHIN = 0.3


class RegionNetwork(nnx.Module):
    """The residual network of the region model.

    Parameters
    ----------
    column_mean, column_scale
        Mean over regions of each column of k-mers (``log(1 + count)``), and what it is multiplied by.
    further_mean, further_scale
        The same of the further columns, linear logits last.
    codes
        Code of each cell type (cells, codes): the identity, or its context.
    main
        Cell types within which regions are compared; the others are auxiliary outputs.
    hidden
        Width of both hidden layers.
    rngs
        Random streams of the initial parameters.
    """

    loss_takes_weights = True

    def __init__(
        self,
        *,
        column_mean: Float[np.ndarray, " columns"],
        column_scale: Float[np.ndarray, " columns"],
        further_mean: Float[np.ndarray, " further"],
        further_scale: Float[np.ndarray, " further"],
        codes: Float[np.ndarray, "cells codes"],
        main: Bool[np.ndarray, " cells"],
        hidden: tuple[int, int] = (512, 64),
        rngs: nnx.Rngs,
    ):
        for name, value in {
            "column_mean": np.concatenate([column_mean, further_mean]),
            "column_scale": np.concatenate([column_scale, further_scale]),
            "codes": codes,
        }.items():
            setattr(self, name, FittedStatistic(device_copy(value, np.float32)))
        self.main = FittedStatistic(device_copy(main, bool))
        width = len(column_mean) + len(further_mean)
        stream, factors, divisors = rngs.params, (1.0, np.sqrt(2 / hidden[0])), (np.sqrt(width), 1.0)
        (first, second), stream.count[...] = _normals(
            stream.key[...], stream.count[...], ((width, hidden[0]), hidden), factors, divisors
        )
        self.first = nnx.Param(first)
        self.first_bias = nnx.Param(_zeros(hidden[0]))
        self.second = nnx.Param(second)
        self.second_bias = nnx.Param(_zeros(hidden[1]))
        self.head = nnx.Param(_zeros(hidden[1], codes.shape[1]))
        self.head_bias = nnx.Param(_zeros(codes.shape[0]))

    def __call__(
        self, columns: Float[Array, "rows columns"], *, key: Array | None = None, drops: Bool[Array, ""] | bool = True
    ) -> Float[Array, "rows cells"]:
        """Return what is added to the linear logits.

        Parameters
        ----------
        columns
            Columns of k-mers, then the further ones, linear logits last.
        key
            Random key of the dropout; None for evaluation.
        drops
            Whether a key drops anything. Of compiled code this is data: a branch of its own would take all products of
            matrices into it, where they run five times as slowly on CPUs.
        """
        columns = (columns - self.column_mean[...]) * self.column_scale[...]
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        first = _dropped(columns, _DROPOUT[0], keys[0], drops) @ self.first[...] + self.first_bias[...]
        first = _dropped(jax.nn.relu(first), _DROPOUT[1], keys[1], drops)
        second = jax.nn.relu(first @ self.second[...] + self.second_bias[...])
        second = _dropped(second, _DROPOUT[2], keys[2], drops)
        return (second @ self.head[...]) @ self.codes[...].T + self.head_bias[...]

    @property
    def n_columns(self) -> int:
        """Number of columns: of k-mers, further ones, and a linear logit of each cell type."""
        return self.first.shape[0]

    def from_batch(
        self, data: Mapping[str, Any], key: Array | None = None, drops: Bool[Array, ""] | bool = True
    ) -> Float[Array, "rows cells"]:
        """Return logits of a batch: ``counts`` of k-mers, ``further`` columns and ``start``, the linear logits."""
        counts = jnp.log1p(data["counts"].astype(jnp.float32))
        columns = jnp.concatenate([counts, data["further"], data["start"]], axis=1)
        return data["start"] + self(columns, key=key, drops=drops)

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the loss of a batch without dropout."""
        weight = data.get("sample_weight", jnp.ones(len(data["labels"])))
        return compute_region_loss(self.from_batch(data), data["labels"], self.main[...], weight)["total"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all variables by name."""
        return {name: np.asarray(getattr(self, name)[...]) for name in (*_PARAMETERS, *_STATISTICS)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RegionNetwork:
        """Build the network from what :meth:`arrays` returned."""
        given = {name: np.asarray(value) for name, value in arrays.items()}
        none = np.zeros(0, np.float32)
        network = cls(
            further_mean=none,
            further_scale=none,
            hidden=given["second"].shape,  # type: ignore[arg-type]
            rngs=nnx.Rngs(0),
            **{name: given[name] for name in _STATISTICS},
        )
        for name in _PARAMETERS:
            getattr(network, name)[...] = jnp.asarray(given[name], jnp.float32)
        return network

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError if the data lack an array that the loss needs."""
        missing = {"counts", "further", "start", "labels"} - set(data)
        if missing:
            raise KeyError(f"RegionNetwork needs {sorted(missing)}; found the keys {sorted(map(str, data))}.")

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint compares."""
        return {"operator": type(self).__name__}

    def mark_fitted(self) -> None:
        """Take note that the parameters are trained; a network that adds nothing was right before, too."""


_PARAMETERS = ("first", "first_bias", "second", "second_bias", "head", "head_bias")
_STATISTICS = ("column_mean", "column_scale", "codes", "main")


def training_loss(network: RegionNetwork, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
    """Loss of :func:`diffbio_sc.training.train`: with dropout in training, without in evaluation."""
    logits = network.from_batch(batch, key, batch["is_training"])
    terms = compute_region_loss(logits, batch["labels"], network.main[...], batch["sample_weight"])
    return terms.pop("total"), terms


def compute_region_loss(
    logits: Float[Array, "rows cells"],
    labels: Float[Array, "rows cells"],
    main: Bool[Array, " cells"],
    weight: Float[Array, " rows"],
) -> dict[str, Array]:
    """Cross-entropy of all labels, and the likelihood of which cell types a region is active in.

    The second is the multinomial likelihood of the active cell types, among the main ones with a label, of regions
    that are active in some of these and not in all.

    Parameters
    ----------
    logits
        Log-odds of activity.
    labels
        0, 1, or NaN where missing.
    main
        Cell types that regions are compared within.
    weight
        Weight of each region.

    Returns
    -------
    ``cross_entropy``, ``within`` and ``total``, averages over labels and over regions.
    """
    known = jnp.isfinite(labels)
    targets = jnp.where(known, labels, 0.0)
    share = known * weight[:, None]
    losses = jax.nn.softplus(logits) - logits * targets
    cross_entropy = (losses * share).sum() / jnp.maximum(share.sum(), 1e-6)

    compared = known & main
    active, possible = (targets * compared).sum(1), compared.sum(1)
    varies = (active > 0) & (active < possible)
    # Where nothing is compared, all is: the likelihood has a value and a gradient, and no weight.
    compared = compared | ~varies[:, None]
    log_share = logits - jax.nn.logsumexp(logits, axis=1, where=compared, keepdims=True)
    likelihood = (jnp.where(compared, log_share, 0.0) * targets * main).sum(1) / jnp.maximum(active, 1.0)
    share = varies * weight
    within = -(likelihood * share).sum() / jnp.maximum(share.sum(), 1e-6)
    return {"cross_entropy": cross_entropy, "within": within, "total": cross_entropy + _WITHIN * within}


def within_loss(
    logits: Float[np.ndarray, "rows cells"], labels: Float[np.ndarray, "rows cells"], main: Bool[np.ndarray, " cells"]
) -> float:
    """Return the weighted likelihood within regions, what the total of :func:`compute_region_loss` adds; by numpy."""
    compared = np.isfinite(labels) & main
    active = np.where(compared, labels, 0.0)
    number = active.sum(1)
    varies = (number > 0) & (number < compared.sum(1))
    if not varies.any():
        return 0.0
    logits, compared, active = logits[varies].astype(np.float64), compared[varies], active[varies]
    log_total = np.logaddexp.reduce(np.where(compared, logits, -np.inf), axis=1, keepdims=True)
    return -_WITHIN * float((((logits - log_total) * active).sum(1) / number[varies]).mean())


@functools.partial(jax.jit, static_argnames="shapes")
def _normals(
    key: Array,
    count: Array,
    shapes: tuple[tuple[int, ...], ...],
    factors: tuple[float, ...],
    divisors: tuple[float, ...],
) -> tuple[list[Array], Array]:
    """Random normal values, scaled, by the next keys of a stream; and how many keys it has given then."""
    drawn = []
    for shape, factor, divisor in zip(shapes, factors, divisors, strict=True):
        drawn.append(jax.random.normal(jax.random.fold_in(key, count), shape) * factor / divisor)
        count = count + 1
    return drawn, count


def _zeros(*shape: int) -> Array:
    return device_copy(np.zeros(shape, np.float32))


def _dropped(values: Array, share: float, key: Array | None, drops: Array | bool) -> Array:
    """Drop a share of the values (to the nearest 1/256), and raise the others so that the mean stays."""
    if key is None:
        return values
    # One random byte a value: a uniform number would take four. The largest that keeps its value:
    largest = jnp.where(drops, 255 - round(256 * share), 255).astype(jnp.uint8)
    scale = 256 / (largest.astype(jnp.float32) + 1)
    return jnp.where(jax.random.bits(key, values.shape, jnp.uint8) <= largest, values * scale, 0.0)
