"""What a network adds to the linear logits of a region: nothing until it is trained.

Learned motifs (their best match on both strands), counts of k-mers and further columns of a region go through two
hidden layers; the last, which starts at zero, gives each cell type what is added to its linear logit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from diffbio_sc.operators.contract import FittedStatistic

__all__ = ["RegionNetwork", "best_matches", "compute_region_loss", "training_loss", "within_loss"]

# Shares of inputs and of the units of both hidden layers that training drops.
_DROPOUT = (0.2, 0.4, 0.3)
# Weight of the likelihood within regions beside the cross-entropy.
_WITHIN = 0.3


class RegionNetwork(nnx.Module):
    """The residual network of the region model.

    Parameters
    ----------
    filters
        Initial learned motifs (motifs, width, 4); none if the first axis is empty.
    filter_mean, filter_scale
        Mean of their best matches over regions, and one over the standard deviation.
    column_mean, column_scale
        Mean of each column of k-mers (``log(1 + count)``) and of the further columns, and what they are multiplied by.
    k
        Length of the k-mers whose counts are the first columns.
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
        filters: Float[np.ndarray, "motifs width 4"],
        filter_mean: Float[np.ndarray, " motifs"],
        filter_scale: Float[np.ndarray, " motifs"],
        column_mean: Float[np.ndarray, " columns"],
        column_scale: Float[np.ndarray, " columns"],
        k: int,
        codes: Float[np.ndarray, "cells codes"],
        main: Bool[np.ndarray, " cells"],
        hidden: tuple[int, int] = (256, 64),
        rngs: nnx.Rngs,
    ):
        columns, motifs = len(column_mean), len(filters)
        self.k = k
        self.filters = nnx.Param(jnp.asarray(filters, jnp.float32))
        for name, value in {
            "filter_mean": filter_mean,
            "filter_scale": filter_scale,
            "column_mean": column_mean,
            "column_scale": column_scale,
            "codes": codes,
        }.items():
            setattr(self, name, FittedStatistic(jnp.asarray(value, jnp.float32)))
        self.main = FittedStatistic(jnp.asarray(main, bool))
        normal = jax.random.normal
        self.column_weights = nnx.Param(normal(rngs.params(), (columns, hidden[0])) / np.sqrt(max(columns, 1)))
        self.filter_weights = nnx.Param(normal(rngs.params(), (motifs, hidden[0])) / np.sqrt(max(motifs, 1)))
        self.first_bias = nnx.Param(jnp.zeros(hidden[0]))
        self.second = nnx.Param(normal(rngs.params(), hidden) * np.sqrt(2 / hidden[0]))
        self.second_bias = nnx.Param(jnp.zeros(hidden[1]))
        self.head = nnx.Param(jnp.zeros((hidden[1], codes.shape[1])))
        self.head_bias = nnx.Param(jnp.zeros(codes.shape[0]))

    def __call__(
        self,
        matches: Float[Array, "rows motifs"],
        columns: Float[Array, "rows columns"],
        *,
        key: Array | None = None,
    ) -> Float[Array, "rows cells"]:
        """Return what is added to the linear logits.

        Parameters
        ----------
        matches
            Best matches of the learned motifs.
        columns
            Columns of k-mers, then the further ones.
        key
            Random key of the dropout; None for evaluation.
        """
        matches = (matches - self.filter_mean[...]) * self.filter_scale[...]
        columns = (columns - self.column_mean[...]) * self.column_scale[...]
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        first = _dropped(matches, _DROPOUT[0], keys[0]) @ self.filter_weights[...] + self.first_bias[...]
        first = first + _dropped(columns, _DROPOUT[0], keys[1]) @ self.column_weights[...]
        first = _dropped(jax.nn.relu(first), _DROPOUT[1], keys[2])
        second = _dropped(jax.nn.relu(first @ self.second[...] + self.second_bias[...]), _DROPOUT[2], keys[3])
        return (second @ self.head[...]) @ self.codes[...].T + self.head_bias[...]

    def soft_matches(self, one_hot: Float[Array, "rows length 4"]) -> Float[Array, "rows motifs"]:
        """Return the best matches of the learned motifs in sequences that may be relaxed, differentiable in them."""
        return _scores(self.filters[...], one_hot).max(1)

    def from_batch(self, data: Mapping[str, Any], key: Array | None = None) -> Float[Array, "rows cells"]:
        """Return logits of a batch of hard sequences: ``tokens``, ``counts`` of k-mers, ``further``, ``start``."""
        columns = jnp.concatenate([jnp.log1p(data["counts"].astype(jnp.float32)), data["further"]], axis=1)
        matches = best_matches(self.filters[...], data["tokens"])
        return data["start"] + self(matches, columns, key=key)

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the loss of a batch without dropout."""
        weight = data.get("sample_weight", jnp.ones(len(data["labels"])))
        return compute_region_loss(self.from_batch(data), data["labels"], self.main[...], weight)["total"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all variables and the settings by name."""
        found = {name: np.asarray(getattr(self, name)[...]) for name in (*_PARAMETERS, *_STATISTICS)}
        return {**found, "k": np.array(self.k)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RegionNetwork:
        """Build the network from what :meth:`arrays` returned."""
        given = {name: np.asarray(value) for name, value in arrays.items()}
        network = cls(
            filters=given["filters"],
            k=int(given["k"]),
            hidden=given["second"].shape,  # type: ignore[arg-type]
            rngs=nnx.Rngs(0),
            **{name: given[name] for name in _STATISTICS},
        )
        for name in _PARAMETERS:
            getattr(network, name)[...] = jnp.asarray(given[name], jnp.float32)
        return network

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError if the data lack an array that the loss needs."""
        missing = {"tokens", "counts", "further", "start", "labels"} - set(data)
        if missing:
            raise KeyError(f"RegionNetwork needs {sorted(missing)}; found the keys {sorted(map(str, data))}.")

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint compares."""
        return {"operator": type(self).__name__, "k": self.k}

    def mark_fitted(self) -> None:
        """Take note that the parameters are trained; a network that adds nothing was right before, too."""


_PARAMETERS = (
    "filters", "column_weights", "filter_weights", "first_bias", "second", "second_bias", "head", "head_bias",
)  # fmt: skip
_STATISTICS = ("filter_mean", "filter_scale", "column_mean", "column_scale", "codes", "main")


def training_loss(network: RegionNetwork, batch: Mapping[str, Any], key: Array) -> tuple[Array, dict[str, Array]]:
    """Loss of :func:`diffbio_sc.training.train`: with dropout in training, without in evaluation."""
    logits = jax.lax.cond(
        batch["is_training"],
        lambda: network.from_batch(batch, key),
        lambda: network.from_batch(batch),
    )
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
    """Return the weighted likelihood within regions as a number: what the total has beside the cross-entropy."""
    weight = jnp.ones(len(labels))
    return _WITHIN * float(compute_region_loss(jnp.asarray(logits), jnp.asarray(labels), main, weight)["within"])


@jax.custom_vjp
def best_matches(
    filters: Float[Array, "motifs width 4"], tokens: Int[Array, "rows length"]
) -> Float[Array, "rows motifs"]:
    """Return the best sum of a filter's entries over the places of both strands of hard sequences.

    The derivative goes to the one window that matched best, looked up instead of searched for a second time: backward
    costs next to nothing, where that of a convolution costs twice the forward pass.
    """
    return _best_forward(filters, tokens)[0]


def _scores(filters: Array, bases: Array) -> Float[Array, "rows places_strands motifs"]:
    """Sums of each filter's entries at each place: forward and backward at the first, then at the second, ..."""
    motifs, width, _ = filters.shape
    places = bases.shape[1] - width + 1
    windows = jnp.stack([bases[:, offset : offset + places] for offset in range(width)], axis=2)
    forward = filters.reshape(motifs, -1)
    both = jnp.concatenate([forward, forward[:, ::-1]]).T
    return (windows.reshape(-1, 4 * width) @ both).reshape(len(bases), 2 * places, motifs)


def _best_forward(filters, tokens):
    scores = _scores(filters, jax.nn.one_hot(tokens, 4, dtype=filters.dtype))
    best = scores.argmax(1)
    return jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0], (filters, tokens, best)


def _best_backward(residuals, slope):
    filters, tokens, best = residuals
    width = filters.shape[1]
    offsets = jnp.arange(width)
    backward = (best % 2 == 1)[..., None]
    places = (best // 2)[..., None] + jnp.where(backward, width - 1 - offsets, offsets)
    bases = jnp.take_along_axis(tokens[:, None].astype(jnp.int32), places, axis=2)
    bases = jnp.where(backward & (bases < 4), 3 - bases, bases)
    columns = [jnp.einsum("rm,rmw->mw", slope, (bases == base).astype(slope.dtype)) for base in range(4)]
    return jnp.stack(columns, axis=-1), None


best_matches.defvjp(_best_forward, _best_backward)


def _dropped(values: Array, share: float, key: Array | None) -> Array:
    """Drop a share of the values (to the nearest 1/256), and raise the others so that the mean stays."""
    if key is None:
        return values
    kept = 256 - round(256 * share)
    # One random byte a value: a uniform number would take four.
    return jnp.where(jax.random.bits(key, values.shape, jnp.uint8) < kept, values * (256 / kept), 0.0)
