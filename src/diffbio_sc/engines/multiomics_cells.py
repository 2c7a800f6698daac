"""What a fitted multi-omics VAE says of cells, some of which may come from a batch that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE
from diffbio_sc.operators.multiomics.multiomics_vae import Encoding

Result = TypeVar("Result", bound=Mapping[str, np.ndarray])

#: Code of a batch that the model does not know.
UNKNOWN = -1


def encode(
    operator: DifferentiableMultiOmicsVAE,
    matrices: Sequence[Any],
    present: Bool[np.ndarray, "cells modalities"],
    batch: Int[np.ndarray, " cells"],
) -> Encoding:
    """Posterior of each cell in the embedding.

    Parameters
    ----------
    operator
        Fitted operator.
    matrices
        Counts of each modality, CSR (cells, features).
    present
        Which modalities each cell has.
    batch
        Code of each cell's batch, -1 for one that the model does not know: the result is then the mean over the batches
        that it knows.
    """

    def of(batch: np.ndarray) -> dict[str, np.ndarray]:
        return operator.embed(matrices, present=present, batch=batch)._asdict()

    return Encoding(**over_batches(of, batch, operator.config.n_batches, cell_axes={"modality_mean": 1}))


def score(
    operator: DifferentiableMultiOmicsVAE, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray
) -> dict[str, Float[np.ndarray, " cells"]]:
    """Divergence from the prior (``kl``) and ``log_likelihood_<i>`` of each cell, in nats; as :func:`encode`."""
    return over_batches(
        lambda codes: operator.score(matrices, present=present, batch=codes), batch, operator.config.n_batches
    )


def impute(
    operator: DifferentiableMultiOmicsVAE,
    modality: int,
    matrices: Sequence[Any],
    present: np.ndarray,
    batch: np.ndarray,
    columns: Int[np.ndarray, " columns"],
) -> tuple[Float[np.ndarray, "cells columns"], Float[np.ndarray, " cells"]]:
    """Values of some features of a modality, and the log of the depth taken, as ``operator.impute`` gives them.

    Parameters as of :func:`encode`.
    """

    def of(codes: np.ndarray) -> dict[str, np.ndarray]:
        values, log_size = operator.impute(modality, matrices, present=present, batch=codes, columns=columns)
        return {"values": values, "log_size": log_size}

    found = over_batches(of, batch, operator.config.n_batches)
    return found["values"], found["log_size"]


def over_batches(
    function: Callable[[np.ndarray], Result],
    batch: Int[np.ndarray, " cells"],
    n_batches: int,
    *,
    cell_axes: Mapping[str, int] | None = None,
) -> Result:
    """Results for the batch of each cell; of cells of an unknown batch the mean over all batches.

    Parameters
    ----------
    function
        Maps codes of batches to arrays by name.
    batch
        Code of each cell's batch.
    n_batches
        Number of batches that the model knows.
    cell_axes
        Axis of the cells in the arrays in which it is not the first.
    """
    unknown = batch == UNKNOWN
    if not unknown.any():
        return function(batch)
    results = [function(np.where(unknown, code, batch)) for code in range(n_batches)]
    combined: dict[str, np.ndarray] = {}
    for name, first in results[0].items():
        shape = [1] * first.ndim
        shape[(cell_axes or {}).get(name, 0)] = -1
        mean = np.mean([result[name] for result in results], axis=0, dtype=np.float64).astype(first.dtype)
        combined[name] = np.where(unknown.reshape(shape), mean, first)
    return combined  # type: ignore[return-value]
