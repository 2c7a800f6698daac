"""Posterior, scores and expected values of many cells, in blocks of rows of one padded shape."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.numerics.counts import likelihoods
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.operators.multiomics.multiomics_vae import posterior
from diffbio_sc.operators.multiomics.multiomics_vae.features import as_dense, log_sizes, read_features
from diffbio_sc.operators.multiomics.multiomics_vae.networks import Networks

_ENCODE_ROWS = 2048
_DENSE_VALUES = 1 << 23  # of a block of rows that is written out


class Encoding(NamedTuple):
    """Posterior of cells.

    Attributes
    ----------
    mean, variance
        Of the joint posterior.
    shares
        Share of each modality in the joint mean, averaged over the dimensions; the prior has the rest.
    modality_mean
        Posterior mean from each modality alone; NaN where the cell lacks it.
    """

    mean: Float[np.ndarray, "cells latent"]
    variance: Float[np.ndarray, "cells latent"]
    shares: Float[np.ndarray, "cells modalities"]
    modality_mean: Float[np.ndarray, "modalities cells latent"]


def encode(operator: Networks, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray) -> Encoding:
    """Posterior of each cell.

    Parameters
    ----------
    operator
        Operator.
    matrices
        Counts of each modality, CSR (cells, features).
    present
        Which modalities each cell has (cells, modalities).
    batch
        Code of each cell's batch.
    """
    graph, state = _split(operator)
    parts = []
    for rows in _rows(len(present), _ENCODE_ROWS):
        cells = _cells(operator, [matrix[rows] for matrix in matrices], present[rows], batch[rows], _ENCODE_ROWS)
        encoded = _encode_block(graph, state, cells)
        parts.append([np.asarray(part)[..., : len(present[rows]), :] for part in encoded])
    return Encoding(*(np.concatenate(pieces, axis=-2) for pieces in zip(*parts, strict=True)))


def score(
    operator: Networks, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray
) -> dict[str, Float[np.ndarray, " cells"]]:
    """Divergence from the prior (``kl``) and ``log_likelihood_<i>`` at the posterior mean, in nats.

    Parameters as of :func:`encode`.
    """
    graph, state = _split(operator)
    size = _dense_rows(max(operator.config.modality_dims))
    parts = []
    for rows in _rows(len(present), size):
        block = [matrix[rows] for matrix in matrices]
        cells = _cells(operator, block, present[rows], batch[rows], size)
        counts = [zero_padded(as_dense(matrix), (size, matrix.shape[1])) for matrix in block]
        parts.append(np.asarray(_score_block(graph, state, cells, counts))[:, : len(present[rows])])
    names = ["kl", *(f"log_likelihood_{m}" for m in range(len(matrices)))]
    return dict(zip(names, np.concatenate(parts, axis=1), strict=True))


def expected(
    operator: Networks,
    modality: int,
    latent: Float[np.ndarray, "cells latent"],
    batch: np.ndarray,
    log_size: Float[np.ndarray, " cells"],
    columns: np.ndarray,
) -> Float[np.ndarray, "cells columns"]:
    """Expected values of some features of a modality, at the latent vectors and total counts of the cells."""
    graph, state = _split(operator)
    latent, batch, log_size = np.asarray(latent, np.float32), np.asarray(batch, np.int32), np.asarray(log_size)
    size = _dense_rows(operator.config.modality_dims[modality])
    result = np.empty((len(latent), len(columns)), np.float32)
    for rows in _rows(len(latent), size):
        values = _expected_block(
            graph,
            state,
            modality,
            zero_padded(latent[rows], (size, latent.shape[1])),
            zero_padded(batch[rows], (size,)),
            zero_padded(log_size[rows].astype(np.float32), (size,)),
        )
        result[rows] = np.asarray(values)[: len(latent[rows])][:, columns]
    return result


def expected_values(
    operator: Networks, modality: int, latent: Array, batch: Array, log_size: Array
) -> Float[Array, "cells features"]:
    """Expected values of all features of a modality."""
    name = operator.config.modality_likelihoods[modality]
    parameters = operator.decoders[modality].parameters(name, latent, batch, log_size)
    return likelihoods.expected_counts(name, depth=jnp.exp(log_size), **parameters)


def _rows(cells: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, cells)) for start in range(0, cells, size))


def _dense_rows(features: int) -> int:
    """Rows of a block that is written out: a power of 2, at most 512 and so many that the block stays small."""
    return max(min(512, 1 << (_DENSE_VALUES // features).bit_length() - 1), 8)


def _split(operator: Any) -> tuple[Any, Any]:
    """Structure and variables; fresh arrays, as code is compiled anew for those that training bound to a device."""
    graph, state = nnx.split(operator)
    return graph, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)


def _cells(
    operator: Networks, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray, size: int
) -> dict[str, np.ndarray]:
    """Encoder inputs of a block of cells, padded to ``size`` rows."""
    names = operator.config.modality_likelihoods
    features = np.stack(
        [read_features(*parts) for parts in zip(operator.encoders, names, matrices, strict=True)], axis=1
    )
    return {
        "features": zero_padded(features, (size, *features.shape[1:])),
        "log_size": zero_padded(log_sizes(matrices, names), (size, len(names))),
        "present": zero_padded(present, (size, len(names))),
        "batch": zero_padded(batch.astype(np.int32), (size,)),
    }


@jax.jit
def _encode_block(graph, state, cells):
    operator = nnx.merge(graph, state)
    opinions = posterior.experts(operator, cells)
    joint = posterior.fuse(operator.config.fusion, opinions, cells["present"])
    absent = ~cells["present"].T[..., None]
    alone = jnp.where(absent, jnp.nan, posterior.alone(opinions)[0])
    return joint.mean, jnp.exp(joint.log_variance), joint.shares.mean(-1).T, alone


@jax.jit
def _score_block(graph, state, cells, counts):
    operator = nnx.merge(graph, state)
    method, opinions = operator.config.fusion, posterior.experts(operator, cells)
    latent = posterior.fuse(method, opinions, cells["present"]).mean
    values = [posterior.divergence(method, opinions, cells["present"])]
    for m, name in enumerate(operator.config.modality_likelihoods):
        parameters = operator.decoders[m].parameters(name, latent, cells["batch"], cells["log_size"][:, m])
        value = getattr(likelihoods, name)(counts[m], **parameters)
        values.append(jnp.where(cells["present"][:, m], value, jnp.nan))
    return jnp.stack(values)


@functools.partial(jax.jit, static_argnames=("modality",))
def _expected_block(graph, state, modality, latent, batch, log_size):
    return expected_values(nnx.merge(graph, state), modality, latent, batch, log_size)
