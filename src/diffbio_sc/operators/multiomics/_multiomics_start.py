"""Start of the multi-omics VAE in closed form: features, experts by factor analysis, decoders by a Newton step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from diffbio_sc.numerics.latent import factors

if TYPE_CHECKING:
    from diffbio_sc.operators.multiomics.multiomics_vae import ModalityDecoder, ModalityEncoder, MultiOmicsVAEConfig

#: Likelihoods of chromatin: features by TF-IDF.
ACCESSIBILITY = ("multinomial", "poisson", "bernoulli")
_SLOPE_PRIOR = 10.0  # reads that draw each slope of a decoder to 0
_LINK_PRIOR = 100.0  # the same for the slopes from which an accessibility expert is made
_BELIEVED = 0.5
_NEWTON = 0.5  # share of the Newton step taken: slopes of a rate overshoot those of its logarithm
_LARGEST_SLOPE = 1.0
_TYPICAL_SHARE = 0.7  # of the median noise, added to that of each gene or protein
_STRETCH = 1 / 3  # power of the precision by which the axes of the embedding are stretched
_BLOCK_ROWS = 8192


def start(
    encoders: Sequence[ModalityEncoder],
    decoders: Sequence[ModalityDecoder],
    config: MultiOmicsVAEConfig,
    matrices: Sequence[Any],
    present: np.ndarray,
    batch: Int[np.ndarray, " cells"],
    log_size: Float[np.ndarray, "cells modalities"],
    *,
    rng: np.random.Generator,
) -> Float[np.ndarray, " latent"]:
    """Set encoders and decoders to the linear solution.

    Parameters
    ----------
    encoders, decoders
        Of each modality; changed in place.
    config
        Settings of the operator.
    matrices
        Counts of each modality, CSR (cells, features); rows of cells that lack it are not read.
    present
        Cells by modalities, whether the cell has the modality.
    batch
        Code of each cell's batch.
    log_size
        Logarithm of each cell's total count in each modality.
    rng
        Generator of the random projections.

    Returns
    -------
    Lengths of the axes of the embedding. In z, which has the same spread along each axis, neighbours are found by what
    the cells hardly tell as much as by what they tell clearly; in units of the posterior's standard deviation (power
    1/2), where distance is how differently the decoders read two cells, the clearest axes drown the others. The axes
    are stretched two thirds of the way.
    """
    names, inputs = config.modality_likelihoods, config.feature_dim
    scores, noise = [], []
    for m, matrix in enumerate(matrices):
        known = np.flatnonzero(present[:, m])
        components = _fit_transform(encoders[m], names[m], config, matrix[known], rng)
        read = read_features(encoders[m], names[m], matrix, linked=False)
        scores.append(read[:, : len(components.noise)].astype(np.float64))
        noise.append(components.noise)
    joint = factors.fit_factors(scores, present, batch, config.latent_dim, noise, rng=rng)
    for m, matrix in enumerate(matrices):
        known = np.flatnonzero(present[:, m])
        kernel, precision = factors.unimodal_expert(joint.loadings[m], joint.noise[m])
        encoder = encoders[m]
        encoder.kernel[...] = jnp.asarray(padded(kernel, (inputs, kernel.shape[1])))
        encoder.log_precision[...] = jnp.asarray(np.log(precision), jnp.float32)
        offset = joint.offsets[m]
        encoder.batch_offset[...] = jnp.asarray(padded(offset, (config.n_batches, inputs)))
        spread = np.sqrt(((scores[m][known] - offset[batch[known]]) ** 2).mean(0))
        encoder.input_scale[...] = jnp.asarray(
            padded(np.full(len(spread), 1.0 / max(np.sqrt((spread**2).mean()), 1e-6)), (inputs,))
        )
        if names[m] in ACCESSIBILITY:
            _link(encoder, config, matrix[known], joint.latent[known], batch[known])
        _start_decoder(
            decoders[m], names[m], config, matrix[known], joint.latent[known], batch[known], log_size[known, m]
        )
    precision = 1.0 + sum(np.exp(np.asarray(encoder.log_precision[...], np.float64)) for encoder in encoders)
    return precision**_STRETCH


def read_features(
    encoder: ModalityEncoder, name: str, matrix: Any, *, linked: bool = True
) -> Float[np.ndarray, "cells inputs"]:
    """What the encoder reads of all rows of a matrix, in blocks.

    Parameters
    ----------
    encoder
        Encoder of the modality.
    name
        Its likelihood.
    matrix
        Counts, CSR.
    linked
        Whether accessibility is read as its expert in the model reads it, or as TF-IDF before there is one.
    """
    scale, limit = np.asarray(encoder.scale[...]), np.asarray(encoder.limit[...])
    basis, offsets = np.asarray(encoder.basis[...]), np.asarray(encoder.offsets[...])
    blocks = []
    for start in range(0, matrix.shape[0], _BLOCK_ROWS):
        values, regressors = _values(encoder, name, matrix[start : start + _BLOCK_ROWS], linked=linked)
        blocks.append(_scaled(values, scale, limit) @ basis - regressors.astype(np.float32) @ offsets)
    return np.concatenate(blocks).astype(np.float32)


def _values(encoder: ModalityEncoder, name: str, matrix: Any, *, linked: bool) -> tuple[Any, np.ndarray]:
    """Transformed values before scaling, and the regressors, on the host.

    Accessibility is read as shares of the depth where it is ``linked`` to the latent vector, else as TF-IDF.
    """
    size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
    regressors = np.zeros((matrix.shape[0], 2))
    regressors[:, 0] = 1.0
    if name in ("protein_mixture", "gaussian"):
        values = as_dense(matrix)
        if name == "protein_mixture":
            values = np.log1p(values)
            values = values - values.mean(1, keepdims=True)
        return values, regressors
    values = matrix.copy().astype(np.float32)
    lengths = np.diff(values.indptr)
    if name in ACCESSIBILITY and linked:
        values.data = (values.data / np.repeat(size, lengths)).astype(np.float32)
    elif name in ACCESSIBILITY:
        frequency = np.asarray(encoder.frequency[...])
        number = np.maximum(lengths, 1)
        values.data = np.log1p(1e4 * frequency[values.indices] / np.repeat(number, lengths)).astype(np.float32)
        mean, deviation = np.asarray(encoder.depth_moments[...])
        regressors[:, 1] = (np.log(size) - mean) / deviation
    else:
        factor = float(encoder.target[...]) / size
        values.data = np.log1p(values.data * np.repeat(factor, lengths)).astype(np.float32)
    return values, regressors


def _fit_transform(
    encoder: ModalityEncoder, name: str, config: MultiOmicsVAEConfig, matrix: Any, generator: np.random.Generator
) -> factors.Components:
    """Learn how counts of a modality become features."""
    size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
    log_size = np.log(size) if name != "gaussian" else np.zeros(len(size))
    deviation = log_size.std()
    encoder.depth_moments[...] = jnp.asarray([log_size.mean(), deviation if deviation > 1e-6 else 1.0], jnp.float32)
    encoder.target[...] = jnp.float32(np.median(size))
    if name in ACCESSIBILITY:
        detected = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1)
        encoder.frequency[...] = jnp.asarray(len(size) / detected, jnp.float32)
    values, regressors = _values(encoder, name, matrix, linked=False)
    scale = 1.0 / factors.standard_deviations(values)
    limit = np.asarray(values.mean(0)).ravel() * scale + factors.LARGEST_VALUE
    if not (regressors[:, 1] ** 2).sum() > 0:
        regressors = regressors[:, :1]
    components = factors.fit_components(
        _scaled(values, scale, limit),
        regressors,
        config.encoder_dim,
        generator,
        deviations=1.0 / scale,
        typical_share=0.0 if name in ACCESSIBILITY else _TYPICAL_SHARE,
    )
    inputs = config.feature_dim
    encoder.scale[...], encoder.limit[...] = jnp.asarray(scale), jnp.asarray(limit, jnp.float32)
    encoder.basis[...] = jnp.asarray(padded(components.basis, (matrix.shape[1], inputs)))
    encoder.offsets[...] = jnp.asarray(padded(components.offsets, (2, inputs)))
    return components


def _link(
    encoder: ModalityEncoder, config: MultiOmicsVAEConfig, matrix: Any, latent: np.ndarray, batch: np.ndarray
) -> None:
    """Expert of an accessibility modality from its likelihood: what the counts say of z by one Newton step.

    With log-rates linear in z, of slopes S, the counts of a cell of depth N have the score S (x - N p) and the
    information N S diag(p) S' at z = 0. S is estimated from all cells, so that the expert also knows what is too
    weak to be a principal component but goes with the other modalities. The information of S is partly its own
    noise: half of it is believed, and more of that in deep cells.
    """
    inputs = config.feature_dim
    size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
    share = (np.asarray(matrix.sum(0), np.float64).ravel() + 0.5) / (size.sum() + 0.5)
    counts = sp.csr_array((np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(config.n_batches, len(batch)))
    totals = (counts @ matrix).toarray().astype(np.float64)
    rates = (totals + 1e3 * share) / (np.asarray(counts @ size) + 1e3)[:, None]
    expected = sum((latent * size[:, None])[batch == b].sum(0)[:, None] * rates[b] for b in range(len(rates)))
    curvature = (latent**2 * size[:, None]).sum(0)[:, None] * share + _LINK_PRIOR
    slopes = (np.asarray(matrix.T @ latent, np.float64).T - expected) / curvature
    information = np.maximum((slopes**2 * share).sum(1) - (slopes @ share) ** 2, 1e-6)
    basis = slopes.T / information
    # Arrays made by numpy: those of jax.numpy are compiled for each shape.
    encoder.scale[...] = jnp.asarray(np.ones(matrix.shape[1], np.float32))
    encoder.limit[...] = jnp.asarray(np.full(matrix.shape[1], np.inf, np.float32))
    encoder.basis[...] = jnp.asarray(padded(basis, (matrix.shape[1], inputs)))
    encoder.offsets[...] = jnp.asarray(np.zeros((2, inputs), np.float32))
    encoder.batch_offset[...] = jnp.asarray(padded(rates @ basis, (config.n_batches, inputs)))
    encoder.kernel[...] = jnp.asarray(padded(np.eye(latent.shape[1]), (inputs, latent.shape[1])))
    precision = _BELIEVED * information * np.median(size)
    encoder.log_precision[...] = jnp.asarray(np.log(precision), jnp.float32)
    spread = np.sqrt(((matrix @ basis / size[:, None] - (rates @ basis)[batch]) ** 2).mean(0))
    encoder.input_scale[...] = jnp.asarray(padded(1.0 / np.maximum(spread, 1e-6), (inputs,)))


def _start_decoder(
    decoder: ModalityDecoder,
    name: str,
    config: MultiOmicsVAEConfig,
    matrix: Any,
    latent: np.ndarray,
    batch: np.ndarray,
    log_size: np.ndarray,
) -> None:
    """Intercepts of each batch, and one Newton step of the regression on the latent vectors for the slopes."""
    design = sp.csr_array((np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(config.n_batches, len(batch)))
    if name == "gaussian":
        values = as_dense(matrix).astype(np.float64)
        centre = np.asarray(design @ values) / np.maximum(np.bincount(batch, minlength=config.n_batches), 1)[:, None]
        residual = values - centre[batch]
        slopes = np.linalg.solve(latent.T @ latent + np.eye(latent.shape[1]), latent.T @ residual)
        variance = np.maximum(((residual - latent @ slopes) ** 2).mean(0), 1e-6)
        decoder.intercept[...] = jnp.asarray(centre, jnp.float32)
        decoder.slopes[...] = jnp.asarray(slopes.T, jnp.float32)
        decoder.log_variance[...] = jnp.asarray(np.log(variance), jnp.float32)
        return
    size = np.exp(log_size.astype(np.float64))
    # Rates of the batches are drawn to the common rate with the weight of a thousand reads.
    totals = np.asarray(
        design @ matrix.toarray() if matrix.shape[1] <= 4096 else (design @ matrix).toarray(), np.float64
    )
    share = (totals.sum(0) + 0.5 / len(size)) / (size.sum() + 0.5)
    rate = (totals + 1e3 * share) / (np.asarray(design @ size) + 1e3)[:, None]
    weighted = latent * size[:, None]
    observed = np.asarray(matrix.T @ latent, np.float64).T
    expected = sum(weighted[batch == b].sum(0)[:, None] * rate[b] for b in range(config.n_batches))
    curvature = (latent * weighted).sum(0)[:, None] * share + _SLOPE_PRIOR
    slopes = np.clip((observed - expected) / curvature, -_LARGEST_SLOPE, _LARGEST_SLOPE) * _NEWTON
    decoder.intercept[...] = jnp.asarray(np.log(np.maximum(rate, 1e-9)), jnp.float32)
    decoder.slopes[...] = jnp.asarray(slopes.T, jnp.float32)
    if name == "protein_mixture":
        decoder.log_background[...] = jnp.asarray(np.log(np.maximum(rate, 1e-9)) - 2.0, jnp.float32)


def _scaled(values: Any, scale: np.ndarray, limit: np.ndarray) -> Any:
    """Columns divided by their standard deviation and cut at ``limit``; sparse stays sparse."""
    if sp.issparse(values):
        data = np.minimum(values.data * scale[values.indices], limit[values.indices])
        return sp.csr_array((data.astype(np.float32), values.indices, values.indptr), shape=values.shape)
    return np.minimum(values * scale, limit).astype(np.float32)


def as_dense(matrix: Any) -> np.ndarray:
    """A sparse matrix written out."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array with zeros behind it, up to ``shape``; float32 of float64."""
    array = np.asarray(array)
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    if array.shape == shape:
        return array.astype(dtype)
    larger = np.zeros(shape, dtype)
    larger[tuple(slice(size) for size in array.shape)] = array
    return larger
