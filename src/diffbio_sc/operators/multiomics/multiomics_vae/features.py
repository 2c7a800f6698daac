"""Counts as the encoders read them: transformed, standardised, projected on components; on the host and in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.blocks.row_store import RowStore
from diffbio_sc.operators.multiomics.multiomics_vae.networks import ModalityEncoder

#: Likelihoods of chromatin: features by TF-IDF.
ACCESSIBILITY = ("multinomial", "poisson", "bernoulli")
_BLOCK_ROWS = 8192
_DENSE_ROWS = 512  # of modalities without zeros
_DENSE_SHARE = 0.5  # of values other than 0, above which a sparse matrix takes more memory than a dense one


def as_dense(matrix: Any) -> np.ndarray:
    """Return a sparse matrix written out."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def as_values(matrix: Any, likelihood: str) -> Any:
    """Return float32 values that share nothing that is changed: canonical CSR, or dense if Gaussian."""
    if isinstance(matrix, RowStore):
        return matrix
    if likelihood == "gaussian":
        if not sp.issparse(matrix):
            return np.asarray(matrix, np.float32)
        if matrix.nnz > _DENSE_SHARE * matrix.shape[0] * matrix.shape[1]:
            return sp.csr_array(matrix, dtype=np.float32).toarray()
    matrix = sp.csr_array(matrix, dtype=np.float32)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def take_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return some of the rows, ascending; the matrix itself if those are all."""
    return matrix if len(rows) == matrix.shape[0] and not isinstance(matrix, RowStore) else matrix[rows]


def depth(matrix: Any) -> Float[np.ndarray, " cells"]:
    """Return the total count of each cell, at least 1, in float64."""
    return np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)


def log_sizes(matrices: Sequence[Any], likelihoods: Sequence[str]) -> Float[np.ndarray, "cells modalities"]:
    """Return the log of each cell's total count in each modality; 0 in Gaussian ones, whose sum means nothing."""
    columns = [
        np.zeros(matrix.shape[0]) if name == "gaussian" else np.log(depth(matrix))
        for matrix, name in zip(matrices, likelihoods, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def read_features(
    encoder: ModalityEncoder, likelihood: str, matrix: Any, *, linked: bool = True
) -> Float[np.ndarray, "cells inputs"]:
    """Return what the encoder reads of all rows of a matrix, in blocks.

    Parameters
    ----------
    encoder
        Encoder of the modality.
    likelihood
        Its likelihood.
    matrix
        Counts, CSR.
    linked
        Whether accessibility is read as its expert in the model reads it, or as TF-IDF before there is one.
    """
    scale, limit = np.asarray(encoder.scale[...]), np.asarray(encoder.limit[...])
    basis, offsets = np.asarray(encoder.basis[...]), np.asarray(encoder.offsets[...])
    blocks = []
    number = _BLOCK_ROWS if likelihood != "gaussian" else _DENSE_ROWS
    for start in range(0, matrix.shape[0], number):
        values, regressors = transformed(encoder, likelihood, matrix[start : start + number], linked=linked)
        blocks.append(scaled(values, scale, limit) @ basis - regressors.astype(np.float32) @ offsets)
    return np.concatenate(blocks).astype(np.float32)


def transformed(encoder: ModalityEncoder, likelihood: str, matrix: Any, *, linked: bool) -> tuple[Any, np.ndarray]:
    """Return transformed values before scaling, and the regressors.

    Accessibility is read as shares of the depth where it is ``linked`` to the latent vector, else as TF-IDF.
    """
    regressors = np.zeros((matrix.shape[0], 2))
    regressors[:, 0] = 1.0
    if likelihood in ("protein_mixture", "gaussian"):
        values = as_dense(matrix)
        if likelihood == "protein_mixture":
            values = np.log1p(values)
            values = values - values.mean(1, keepdims=True)
        return values, regressors
    size = depth(matrix)
    values = matrix.copy().astype(np.float32)
    lengths = np.diff(values.indptr)
    if likelihood in ACCESSIBILITY and linked:
        values.data = (values.data / np.repeat(size, lengths)).astype(np.float32)
    elif likelihood in ACCESSIBILITY:
        frequency = np.asarray(encoder.frequency[...])
        number = np.maximum(lengths, 1)
        values.data = np.log1p(1e4 * frequency[values.indices] / np.repeat(number, lengths)).astype(np.float32)
        mean, deviation = np.asarray(encoder.depth_moments[...])
        regressors[:, 1] = (np.log(size) - mean) / deviation
    else:
        factor = float(encoder.target[...]) / size
        values.data = np.log1p(values.data * np.repeat(factor, lengths)).astype(np.float32)
    return values, regressors


def scaled(values: Any, scale: np.ndarray, limit: np.ndarray) -> Any:
    """Return columns divided by their standard deviation and cut at ``limit``; sparse stays sparse."""
    if sp.issparse(values):
        data = np.minimum(values.data * scale[values.indices], limit[values.indices])
        return sp.csr_array((data.astype(np.float32), values.indices, values.indptr), shape=values.shape)
    result = np.multiply(values, scale, dtype=np.float32)
    return np.minimum(result, np.asarray(limit, np.float32), out=result)


def dense_features(
    encoder: ModalityEncoder, likelihood: str, counts: Float[Array, "cells features"]
) -> Float[Array, "cells inputs"]:
    """Return features of dense counts: the twin of :func:`read_features`, with gradients."""
    size = jnp.maximum(counts.sum(1, keepdims=True), 1.0)
    if likelihood in ACCESSIBILITY:
        values = counts / size
    elif likelihood == "protein_mixture":
        values = jnp.log1p(counts)
        values = values - values.mean(1, keepdims=True)
    elif likelihood == "gaussian":
        values = counts
    else:
        values = jnp.log1p(counts * encoder.target[...] / size)
    values = jnp.minimum(values * encoder.scale[...], encoder.limit[...])
    # Of the regressors the constant alone: a model that is linked does not read the depth here.
    return values @ encoder.basis[...] - encoder.offsets[...][0]


def dense_log_size(likelihood: str, counts: Float[Array, "cells features"]) -> Float[Array, " cells"]:
    """Return one column of :func:`log_sizes`, with gradients."""
    if likelihood == "gaussian":
        return jnp.zeros(len(counts))
    return jnp.log(jnp.maximum(counts.sum(1), 1.0))
