"""How the operator is trained on count matrices: which cells are held out, batches, learning rates, how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Bool, Int

from diffbio_sc.numerics.counts import sparse_rows
from diffbio_sc.operators.multiomics.multiomics_vae.bound import training_loss
from diffbio_sc.operators.multiomics.multiomics_vae.features import log_sizes, read_features
from diffbio_sc.operators.multiomics.multiomics_vae.networks import Networks
from diffbio_sc.training.batches import Samples
from diffbio_sc.training.loop import Loss
from diffbio_sc.training.optimizers import Adam

_MANY_CELLS = 2000  # from which an epoch is long enough to be judged by itself
_STEPS = 15_000  # an end that few fits reach: the held-out loss flattens before
#: Share by which the held-out loss has to fall within the epochs of patience.
MIN_PROGRESS = 1e-4
# Rate, and decay of the running average of the weights that is judged and kept: steps of three times Adam's usual size
# wander about the optimum, and their average over a hundred does not. `benchmarks/multiomics_vae.py rates` shows the
# choice without each of the sets in turn.
LEARNING_RATE = 3e-3
_AVERAGE = 0.99
_ADAM_EPSILON = 1e-6
_MOST_HELD_OUT = 10_000  # cells of data on disk, by which the loss is known to a few thousandths
_READS_A_FEATURE = 1000.0  # reads of a feature below which its modality learns more slowly


def hold_out(
    present: Bool[np.ndarray, "cells modalities"],
    batch: Int[np.ndarray, " cells"],
    fraction: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, " held_out"]:
    """Rows of a share of the cells, drawn at random, sorted.

    At least half of the cells of each batch and of each modality are left to train on: a start in closed form from the
    others alone would know nothing of a batch or modality that is held out as a whole.
    """
    cells = len(present)
    order = rng.permutation(cells)
    allowed = np.ones(cells, bool)
    groups = [batch[order], *(present[order].T)]
    for number, group in enumerate(groups):
        for code in np.unique(group) if number == 0 else [True]:
            members = np.flatnonzero(group == code)
            allowed[members[: -(-len(members) // 2)]] = False
    return np.sort(order[allowed][: max(round(fraction * cells), 1)])


def held_out_share(fraction: float, cells: int, *, on_disk: bool) -> float:
    """Share of the cells to hold out: of data on disk no more cells than are kept in memory."""
    return min(fraction, _MOST_HELD_OUT / cells) if on_disk else fraction


def default_batch_size(cells: int) -> int:
    """Cells a step."""
    return 128 if cells >= _MANY_CELLS else 64


def default_patience(cells: int) -> int:
    """Epochs without progress after which to stop: more where an epoch is a few steps."""
    return 5 if cells >= _MANY_CELLS else 20


def default_epochs(trained: int, batch_size: int, *, judged: bool = True) -> int:
    """So many epochs that there are about 15,000 steps, but between 20 and 500.

    Where no cells are held out by which to end before, so many that there are 1500 steps, but between 20 and 200.
    """
    steps, most = (_STEPS, 500) if judged else (_STEPS // 10, 200)
    return int(np.clip(-(-steps // max(trained // batch_size, 1)), 20, most))


def learning_rates(
    networks: Networks,
    matrices: Sequence[Any],
    present: Bool[np.ndarray, "cells modalities"],
    learning_rate: float,
    encoder_rate: float | None,
) -> Adam:
    """Adam with the rates of encoders and decoders, and averaged weights; parameters as of ``fit_matrices``.

    A step of Adam has one size for all parameters. Where a feature has few reads, what a batch says of its slopes is
    mostly noise: steps of full size lead away from the start, and what one modality loses stops all.
    """
    complete = bool(present.all())
    if encoder_rate is None:
        encoder_rate = 0.1 if complete else 1.0
    slower = [
        1.0 if name == "gaussian" else min(1.0, float(matrix.sum()) / matrix.shape[1] / _READS_A_FEATURE)
        for matrix, name in zip(matrices, networks.config.modality_likelihoods, strict=True)
    ]
    factors = [(f"decoders/{m}", factor) for m, factor in enumerate(slower)]
    # Where cells lack modalities, the experts have to agree one by one: those of weak ones learn at full speed.
    factors += [(f"encoders/{m}", encoder_rate * (factor if complete else 1.0)) for m, factor in enumerate(slower)]
    return Adam(float(learning_rate), tuple(factors), _ADAM_EPSILON, average=_AVERAGE)


def training_data(
    networks: Networks,
    matrices: Sequence[Any],
    present: Bool[np.ndarray, "cells modalities"],
    batch: Int[np.ndarray, " cells"],
    held_out: Int[np.ndarray, " held_out"] | None,
    batch_size: int,
) -> tuple[dict[str, Any], tuple[str, ...], Int[np.ndarray, " held_out"] | None, Loss]:
    """Arrays for the training loop, the names of those with a row for each cell, the held-out rows, and the loss.

    The cells are in the order of their entries: a batch of one cell of each run of neighbours then needs hardly more
    than mean room for its entries.
    """
    config, cells = networks.config, len(present)
    lengths = np.stack([_entries(matrix) for matrix in matrices], axis=1)
    order = np.argsort(lengths.sum(1), kind="stable").astype(np.int32)
    place = np.empty(cells, np.int64)
    place[order] = np.arange(cells)
    kept_apart = None if held_out is None else np.sort(place[held_out])
    parts = [np.arange(cells)] if kept_apart is None else [np.delete(np.arange(cells), kept_apart), kept_apart]
    names = config.modality_likelihoods
    features = [read_features(*parts) for parts in zip(networks.encoders, names, matrices, strict=True)]
    data: dict[str, Any] = {
        "present": present[order],
        "batch": batch[order].astype(np.int32),
        "log_size": log_sizes(matrices, names)[order],
        "features": np.stack(features, axis=1)[order],
    }
    for m, matrix in enumerate(matrices):
        if sp.issparse(matrix):
            sizes = lengths[order, m]
            capacity = max(sparse_rows.stratified_capacity(sizes[part], batch_size) for part in parts)
            if kept_apart is not None:
                capacity = max(capacity, sparse_rows.drawn_capacity(sizes, batch_size, len(kept_apart)))
            data[f"counts_{m}"] = Samples(matrix, order, capacity)
        elif all(np.isfinite(row).all() for row in matrix):
            data[f"counts_{m}"] = Samples(matrix, order)
        else:
            raise ValueError(f"matrix {m} holds NaN or infinite values: replace or remove them.")
    return data, tuple(data), kept_apart, batch_loss


def _entries(matrix: Any) -> Int[np.ndarray, " cells"]:
    """Number of entries of each row; none of a dense matrix, whose rows need no room."""
    return np.diff(matrix.indptr) if sp.issparse(matrix) else np.zeros(len(matrix), np.int32)


def batch_loss(operator: Any, batch: dict[str, Any], key: Array) -> Any:
    """Loss on batches of sparse rows or of dense ones."""
    counts: list[Any] = []
    for m, name in enumerate(operator.config.modality_likelihoods):
        values = batch[f"counts_{m}"]
        written_out = name in ("protein_mixture", "gaussian") and isinstance(values, sparse_rows.RowEntries)
        counts.append(sparse_rows.scatter_dense(values) if written_out else values)
    return training_loss(operator, batch, counts, key)
