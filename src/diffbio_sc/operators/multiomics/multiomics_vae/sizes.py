"""The total count that a modality would have in a cell that lacks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float

_MOST_CELLS = 20_000  # that a regression of a few dozen numbers needs


def fit_size_model(
    log_size: Float[np.ndarray, "cells modalities"],
    present: Bool[np.ndarray, "cells modalities"],
    n_latent: int,
    latent_without: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
) -> tuple[Float[np.ndarray, "modalities columns"], Float[np.ndarray, " modalities"]]:
    """Regress the log size of each modality on z as the others tell it, and on the other modalities' log sizes.

    Parameters
    ----------
    log_size
        Log of each cell's total count in each modality.
    present
        Which modalities each cell has.
    n_latent
        Dimensions of z.
    latent_without
        ``latent_without(modality, cells, present)`` gives the posterior mean of the cells from the modalities that are
        then present.

    Returns
    -------
    Coefficients for each modality (a constant, a slope for each dimension of z, a slope for each modality's log size
    less its mean), and the mean log sizes.
    """
    known = np.where(present.any(0), np.where(present, log_size, np.nan), 0.0)
    means = np.nan_to_num(np.nanmean(known, axis=0))
    rows = []
    for m in range(log_size.shape[1]):
        others = present.copy()
        others[:, m] = False
        used = np.flatnonzero(present[:, m] & others.any(1))[:_MOST_CELLS]
        row = np.zeros(1 + n_latent + len(means))
        if len(used) > row.size:
            latent = latent_without(m, used, others[used])
            sizes = np.where(others[used], log_size[used] - means, 0.0)
            design = np.concatenate([np.ones((len(used), 1)), latent, sizes], axis=1)
            gram = design.T @ design + np.eye(design.shape[1])
            row = np.linalg.solve(gram, design.T @ (log_size[used, m] - means[m]))
        row[0] += means[m]
        rows.append(row)
    return np.stack(rows), means


def predicted_log_size(
    coefficients: Float[Array, " columns"],
    means: Float[Array, " modalities"],
    modality: int,
    latent: Float[Array, "cells latent"],
    log_sizes: Float[Array, "cells modalities"],
    *,
    library: Any = jnp,
) -> Float[Array, " cells"]:
    """Log size of a modality; ``log_sizes`` of the others, NaN where a cell lacks them; by jax.numpy or numpy."""
    other = ~library.isnan(log_sizes) & (library.arange(len(means)) != modality)
    deviation = library.where(other, log_sizes - means, 0.0)
    width = latent.shape[1]
    return coefficients[0] + latent @ coefficients[1 : 1 + width] + deviation @ coefficients[1 + width :]
