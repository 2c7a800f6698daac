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

from diffbio_sc._compiled import jit_quickly, one_thread_at_a_time
from diffbio_sc.numerics.counts import likelihoods
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.operators.multiomics.multiomics_vae import posterior
from diffbio_sc.operators.multiomics.multiomics_vae.features import as_dense, log_sizes, read_features
from diffbio_sc.operators.multiomics.multiomics_vae.networks import ModalityDecoder, Networks

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
    divergence
        Divergence of the joint posterior from the prior, in nats.
    """

    mean: Float[np.ndarray, "cells latent"]
    variance: Float[np.ndarray, "cells latent"]
    shares: Float[np.ndarray, "cells modalities"]
    modality_mean: Float[np.ndarray, "modalities cells latent"]
    divergence: Float[np.ndarray, " cells"]


@one_thread_at_a_time
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
    method, encoders = operator.config.fusion, posterior.stack_encoders(operator, library=np)
    number, latent, cells = len(matrices), operator.config.latent_dim, len(present)
    shapes = (cells, latent), (cells, latent), (cells, number), (number, cells, latent), (cells,)
    result = Encoding(*(np.empty(shape, np.float32) for shape in shapes))
    for rows in _rows(cells, _ENCODE_ROWS):
        block = _cells(operator, [matrix[rows] for matrix in matrices], present[rows], batch[rows], _ENCODE_ROWS)
        size = len(present[rows])
        for whole, part in zip(result, _encode_block(method, encoders, block), strict=True):
            if whole.ndim == 3:
                whole[:, rows] = np.asarray(part)[:, :size]
            else:
                whole[rows] = np.asarray(part)[:size]
    return result


@one_thread_at_a_time
def score(
    operator: Networks, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray
) -> dict[str, Float[np.ndarray, " cells"]]:
    """Divergence from the prior (``kl``) and ``log_likelihood_<i>`` at the posterior mean, in nats.

    Parameters as of :func:`encode`.
    """
    encoding, config = encode(operator, matrices, present, batch), operator.config
    log_size = log_sizes(matrices, config.modality_likelihoods)
    result = {"kl": encoding.divergence}
    for m, (name, features) in enumerate(zip(config.modality_likelihoods, config.modality_dims, strict=True)):
        decoder, size = _fresh(nnx.split(operator.decoders[m])), _dense_rows(features)
        values = np.full(len(present), np.nan, np.float32)
        for rows in _rows(len(present), size):
            cells = _latent_cells(encoding.mean[rows], batch[rows], log_size[rows, m], size)
            counts = zero_padded(as_dense(matrices[m][rows]), (size, features))
            found = np.asarray(_likelihood_block(name, decoder, cells, counts))[: len(present[rows])]
            values[rows] = np.where(present[rows, m], found, np.nan)
        result[f"log_likelihood_{m}"] = values
    return result


@one_thread_at_a_time
def expected(
    operator: Networks,
    modality: int,
    latent: Float[np.ndarray, "cells latent"],
    batch: np.ndarray,
    log_size: Float[np.ndarray, " cells"],
    columns: np.ndarray,
) -> Float[np.ndarray, "cells columns"]:
    """Expected values of some features of a modality, at the latent vectors and total counts of the cells."""
    name, features = operator.config.modality_likelihoods[modality], operator.config.modality_dims[modality]
    decoder, size = _fresh(nnx.split(operator.decoders[modality])), _dense_rows(features)
    latent = np.asarray(latent, np.float32)
    result = np.empty((len(latent), len(columns)), np.float32)
    for rows in _rows(len(latent), size):
        cells = _latent_cells(latent[rows], np.asarray(batch)[rows], np.asarray(log_size)[rows], size)
        result[rows] = np.asarray(_expected_block(name, decoder, cells))[: len(latent[rows])][:, columns]
    return result


def expected_values(
    decoder: ModalityDecoder, likelihood: str, latent: Array, batch: Array, log_size: Array
) -> Float[Array, "cells features"]:
    """Expected values of all features of a modality."""
    parameters = decoder.parameters(likelihood, latent, batch, log_size)
    return likelihoods.expected_counts(likelihood, depth=jnp.exp(log_size), **parameters)


def _rows(cells: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, cells)) for start in range(0, cells, size))


def _dense_rows(features: int) -> int:
    """Rows of a block that is written out: a power of 2, at most 512 and so many that the block stays small."""
    return max(min(512, 1 << (_DENSE_VALUES // features).bit_length() - 1), 8)


def _fresh(tree: Any) -> Any:
    """Fresh arrays: code is compiled anew for those that training bound to a device."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), tree)


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


def _latent_cells(latent: np.ndarray, batch: np.ndarray, log_size: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Decoder inputs of a block of cells, padded to ``size`` rows."""
    return (
        zero_padded(latent, (size, latent.shape[1])),
        zero_padded(batch.astype(np.int32), (size,)),
        zero_padded(log_size.astype(np.float32), (size,)),
    )


# Compiled for shapes and for what they are given by name, not for the whole operator: one code serves many models.


@jit_quickly(static_argnames=("method",))
def _encode_block(method, encoders, cells):
    opinions, present = posterior.experts(encoders, cells), cells["present"]
    joint = posterior.fuse(method, opinions, present)
    alone = jnp.where(present.T[..., None], posterior.alone(opinions)[0], jnp.nan)
    divergence = posterior.divergence(method, opinions, present)
    return joint.mean, jnp.exp(joint.log_variance), joint.shares.mean(-1).T, alone, divergence


@functools.partial(jax.jit, static_argnames=("likelihood",))
def _likelihood_block(likelihood, decoder, cells, counts):
    return getattr(likelihoods, likelihood)(counts, **nnx.merge(*decoder).parameters(likelihood, *cells))


@functools.partial(jax.jit, static_argnames=("likelihood",))
def _expected_block(likelihood, decoder, cells):
    return expected_values(nnx.merge(*decoder), likelihood, *cells)
