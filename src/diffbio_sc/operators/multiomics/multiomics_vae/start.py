"""Start of the multi-omics VAE in closed form: features, experts by factor analysis, decoders by a Newton step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from diffbio_sc.numerics.latent import factors
from diffbio_sc.numerics.latent.scaled_rows import ScaledRows
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.features import (
    ACCESSIBILITY,
    as_dense,
    depth,
    read_features,
    scaled,
    take_rows,
    transformed,
)
from diffbio_sc.operators.multiomics.multiomics_vae.networks import ModalityDecoder, ModalityEncoder

# `benchmarks/multiomics_vae.py constants` halves and doubles each of these, and shows what would be chosen without each
# of the sets in turn.
# Weights of priors, in reads: at a mean square of 1 along z, so many reads of a feature halve what is shrunk.
_SLOPE_PRIOR = 10.0  # slopes of a decoder, toward 0
_LINK_PRIOR = 100.0  # the slopes from which an accessibility expert is made: those of all peaks add up in it
_RATE_PRIOR = 1e3  # rates of a batch, toward those of all
_BELIEVED = 0.5  # share of the information of such slopes that is taken for signal, see _link
_NEWTON = 0.5  # share of the Newton step taken: slopes of a rate overshoot those of its logarithm
_LARGEST_SLOPE = 1.0  # a factor e per standard deviation of z; a step from slopes of 0 is no guide beyond
_LOWEST_RATE = 1e-9  # below one read in all the reads of a large data set
_BACKGROUND = 2.0  # log fold by which the antibody background starts below the mean
_TYPICAL_SHARE = 0.7  # of the median noise, added to that of each gene or protein
_STRETCH = 1 / 3  # power of the precision by which the axes of the embedding are stretched, see start
_BLOCK_VALUES = 1 << 20
_FEW_FEATURES = 4096  # up to which a dense product is quicker


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
        components = _fit_transform(encoders[m], names[m], config, take_rows(matrix, known), rng)
        read = read_features(encoders[m], names[m], matrix, linked=False)
        scores.append(read[:, : len(components.noise)].astype(np.float64))
        noise.append(components.noise)
    joint = factors.fit_factors(scores, present, batch, config.latent_dim, noise, rng=rng)
    for m, matrix in enumerate(matrices):
        known = np.flatnonzero(present[:, m])
        kernel, precision = factors.unimodal_expert(joint.loadings[m], joint.noise[m])
        encoder = encoders[m]
        encoder.kernel[...] = device_copy(zero_padded(kernel, (inputs, kernel.shape[1])))
        encoder.log_precision[...] = device_copy(np.log(precision), np.float32)
        offset = joint.offsets[m]
        encoder.batch_offset[...] = device_copy(zero_padded(offset, (config.n_batches, inputs)))
        spread = np.sqrt(((scores[m][known] - offset[batch[known]]) ** 2).mean(0))
        encoder.input_scale[...] = device_copy(
            zero_padded(np.full(len(spread), 1.0 / max(np.sqrt((spread**2).mean()), 1e-6)), (inputs,))
        )
        if names[m] in ACCESSIBILITY:
            _link(encoder, config, take_rows(matrix, known), joint.latent[known], batch[known])
        start_decoder(
            decoders[m],
            names[m],
            config,
            take_rows(matrix, known),
            joint.latent[known],
            batch[known],
            log_size[known, m],
        )
    precision = 1.0 + sum(np.exp(np.asarray(encoder.log_precision[...], np.float64)) for encoder in encoders)
    return precision**_STRETCH


def _fit_transform(
    encoder: ModalityEncoder, name: str, config: MultiOmicsVAEConfig, matrix: Any, generator: np.random.Generator
) -> factors.Components:
    """Learn how counts of a modality become features."""
    size = depth(matrix)
    log_size = np.log(size) if name != "gaussian" else np.zeros(len(size))
    deviation = log_size.std()
    encoder.depth_moments[...] = device_copy([log_size.mean(), deviation if deviation > 1e-6 else 1.0], np.float32)
    encoder.target[...] = device_copy(np.median(size), np.float32)
    if name in ACCESSIBILITY:
        detected = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1)
        encoder.frequency[...] = device_copy(len(size) / detected, np.float32)
    values, regressors = transformed(encoder, name, matrix, linked=False)
    scale = 1.0 / factors.standard_deviations(values)
    limit = np.asarray(values.mean(0)).ravel() * scale + factors.LARGEST_VALUE
    if not (regressors[:, 1] ** 2).sum() > 0:
        regressors = regressors[:, :1]
    components = factors.fit_components(
        scaled(values, scale, limit) if sp.issparse(values) else ScaledRows(values, scale, limit),
        regressors,
        config.encoder_dim,
        generator,
        deviations=1.0 / scale,
        typical_share=0.0 if name in ACCESSIBILITY else _TYPICAL_SHARE,
    )
    inputs = config.feature_dim
    encoder.scale[...], encoder.limit[...] = device_copy(scale), device_copy(limit, np.float32)
    encoder.basis[...] = device_copy(zero_padded(components.basis, (matrix.shape[1], inputs)))
    encoder.offsets[...] = device_copy(zero_padded(components.offsets, (2, inputs)))
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
    size = depth(matrix)
    share, rates = _batch_rates(matrix, batch, size, config.n_batches, unseen=0.5)
    slopes = _regression_step(matrix, latent, batch, size, share, rates, prior=_LINK_PRIOR)
    information = np.maximum((slopes**2 * share).sum(1) - (slopes @ share) ** 2, 1e-6)
    basis = slopes.T / information
    # Arrays made by numpy: those of jax.numpy are compiled for each shape.
    encoder.scale[...] = device_copy(np.ones(matrix.shape[1], np.float32))
    encoder.limit[...] = device_copy(np.full(matrix.shape[1], np.inf, np.float32))
    encoder.basis[...] = device_copy(zero_padded(basis, (matrix.shape[1], inputs)))
    encoder.offsets[...] = device_copy(np.zeros((2, inputs), np.float32))
    encoder.batch_offset[...] = device_copy(zero_padded(rates @ basis, (config.n_batches, inputs)))
    encoder.kernel[...] = device_copy(zero_padded(np.eye(latent.shape[1]), (inputs, latent.shape[1])))
    precision = _BELIEVED * information * np.median(size)
    encoder.log_precision[...] = device_copy(np.log(precision), np.float32)
    spread = np.sqrt(((matrix @ basis / size[:, None] - (rates @ basis)[batch]) ** 2).mean(0))
    encoder.input_scale[...] = device_copy(zero_padded(1.0 / np.maximum(spread, 1e-6), (inputs,)))


def start_decoder(
    decoder: ModalityDecoder,
    name: str,
    config: MultiOmicsVAEConfig,
    matrix: Any,
    latent: np.ndarray,
    batch: np.ndarray,
    log_size: np.ndarray,
) -> None:
    """Intercepts of each batch, and one Newton step of the regression on the latent vectors for the slopes."""
    if name == "gaussian":
        number = np.maximum(np.bincount(batch, minlength=config.n_batches), 1)
        # In blocks: what is sparse for the others is dense here, and in float64.
        size = max(_BLOCK_VALUES // matrix.shape[1], 1)
        blocks = [slice(first, first + size) for first in range(0, len(batch), size)]
        totals = sum(_by_batch(batch[rows], config.n_batches) @ as_dense(matrix[rows]) for rows in blocks)
        centre = np.asarray(totals, np.float64) / number[:, None]
        cross = sum(latent[rows].T @ (as_dense(matrix[rows]) - centre[batch[rows]]) for rows in blocks)
        slopes = np.linalg.solve(latent.T @ latent + np.eye(latent.shape[1]), cross)
        squares = sum(
            ((as_dense(matrix[rows]) - centre[batch[rows]] - latent[rows] @ slopes) ** 2).sum(0) for rows in blocks
        )
        variance = np.maximum(squares / len(batch), 1e-6)
        decoder.intercept[...] = device_copy(centre, np.float32)
        decoder.slopes[...] = device_copy(slopes.T, np.float32)
        decoder.log_variance[...] = device_copy(np.log(variance), np.float32)
        return
    size = np.exp(log_size.astype(np.float64))
    share, rates = _batch_rates(matrix, batch, size, config.n_batches, unseen=0.5 / len(size))
    slopes = _regression_step(matrix, latent, batch, size, share, rates, prior=_SLOPE_PRIOR)
    slopes = np.clip(slopes, -_LARGEST_SLOPE, _LARGEST_SLOPE) * _NEWTON
    intercept = np.log(np.maximum(rates, _LOWEST_RATE))
    decoder.intercept[...] = device_copy(intercept, np.float32)
    decoder.slopes[...] = device_copy(slopes.T, np.float32)
    if name == "protein_mixture":
        decoder.log_background[...] = device_copy(intercept - _BACKGROUND, np.float32)


def _by_batch(batch: np.ndarray, n_batches: int) -> sp.csr_array:
    """Matrix that sums cells by batch."""
    return sp.csr_array((np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(n_batches, len(batch)))


def _batch_rates(
    matrix: Any, batch: np.ndarray, size: np.ndarray, n_batches: int, *, unseen: float
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, "batches features"]]:
    """Share of each feature in all counts, and in those of each batch, which are shrunk toward the former.

    ``unseen`` reads are added to each feature, so that none has a share of 0.
    """
    design = _by_batch(batch, n_batches)
    dense = matrix.shape[1] <= _FEW_FEATURES
    totals = np.asarray(design @ matrix.toarray() if dense else (design @ matrix).toarray(), np.float64)
    share = (totals.sum(0) + unseen) / (size.sum() + 0.5)
    rates = (totals + _RATE_PRIOR * share) / (np.asarray(design @ size) + _RATE_PRIOR)[:, None]
    return share, rates


def _regression_step(
    matrix: Any,
    latent: np.ndarray,
    batch: np.ndarray,
    size: np.ndarray,
    share: np.ndarray,
    rates: np.ndarray,
    *,
    prior: float,
) -> Float[np.ndarray, "latent features"]:
    """One Newton step of the Poisson regression of counts on the latent vectors, from slopes of 0."""
    weighted = latent * size[:, None]
    expected = sum(weighted[batch == b].sum(0)[:, None] * rates[b] for b in range(len(rates)))
    curvature = (latent * weighted).sum(0)[:, None] * share + prior
    return (np.asarray(matrix.T @ latent, np.float64).T - expected) / curvature
