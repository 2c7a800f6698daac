"""Factor analysis of several modalities at once, some of which a cell may lack: where training of a VAE starts.

Each modality m gives features f_m of a cell (principal components of transformed counts). The model is

    f_m = W_m z + beta_m[batch] + e,    z ~ N(0, I),    e ~ N(0, diag psi_m)

fitted by expectation maximisation over the modalities that each cell has (factor analysis with missing blocks, as MOFA+
does it, Argelaguet et al. 2020, Genome Biology 21:111). Two things are added.

1. A principal component shows more variance in the cells it was computed from than it has. How much of it is signal
   is measured on held-out cells, and the rest is a lower bound of psi_m: a modality of mere noise gets no say.
2. Batch offsets are estimated within clusters of cells (a mixture of Gaussians as prior of z), so that batches with
   other shares of cell types are not pulled onto each other.

Everything here is numpy on the host, in float64 where sums are long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from diffbio_sc._compiled import one_blas_thread
from diffbio_sc.numerics.latent.scaled_rows import ScaledRows

# `benchmarks/multiomics_vae.py constants` halves and doubles each of these, and shows what would be chosen without each
# of the sets in turn.
LARGEST_VALUE = 10.0  # standard deviations at which transformed values are cut, as scanpy's tutorials do
_BLOCK_ROWS = 256  # rows of a dense matrix that are squared in float64 at a time
_LIKELY_NOISE = 0.05  # components with less held-out signal than this, in units of noise, are left out
_SMALLEST_RESIDUAL = 0.02  # of the variance of a feature: none is weighted more than 7 times another


class Components(NamedTuple):
    """Principal components of one modality in units of its noise.

    Attributes
    ----------
    basis
        Loadings; scores are ``transformed @ basis - regressors @ offsets``.
    offsets
        What to take off the scores: a row for the constant, then one for each further regressor.
    noise
        Variance of each score that is not signal, at least.
    """

    basis: Float[np.ndarray, "features components"]
    offsets: Float[np.ndarray, "regressors components"]
    noise: Float[np.ndarray, " components"]


class Factors(NamedTuple):
    """Fitted factor analysis; the axes of z are those along which the cells are known best, in falling order.

    Attributes
    ----------
    latent
        Posterior mean of each cell.
    loadings, noise, offsets
        W (components, latent), psi (components,) and beta (batches, components) of each modality.
    """

    latent: Float[np.ndarray, "cells latent"]
    loadings: list[Float[np.ndarray, "components latent"]]
    noise: list[Float[np.ndarray, " components"]]
    offsets: list[Float[np.ndarray, "batches components"]]


def standard_deviations(matrix: Any) -> np.ndarray:
    """Standard deviation of each column, 1 where it is 0."""
    rows = matrix.shape[0]
    if sp.issparse(matrix):
        mean = np.asarray(matrix.sum(0), np.float64).ravel() / rows
        square = np.asarray(matrix.multiply(matrix).sum(0), np.float64).ravel() / rows
    else:
        mean, square = matrix.mean(0, dtype=np.float64), _column_squares(matrix) / rows
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    return np.where(deviation > 1e-6 * np.sqrt(np.maximum(square, 1e-30)), deviation, 1.0).astype(np.float32)


@one_blas_thread()
def fit_components(
    matrix: Any,
    regressors: np.ndarray,
    n_components: int,
    rng: np.random.Generator,
    *,
    deviations: Float[np.ndarray, " features"] | None = None,
    typical_share: float = 0.0,
) -> Components:
    """Principal components of a matrix of standardised columns, without the part that ``regressors`` explain.

    Parameters
    ----------
    matrix
        Cells by features, sparse, dense or dense in blocks (:class:`ScaledRows`), each column with standard deviation 1
        (not centred).
    regressors
        Cells by regressors, the first column constant, the others standardised and uncorrelated with it.
    n_components
        Components at most; fewer are returned where held-out cells show no signal.
    rng
        Generator of the random projections and the split of the cells.
    deviations
        Standard deviations by which the columns were divided; read where ``typical_share`` is not 0.
    typical_share
        Features are weighted by ``1 / sqrt(noise variance + typical_share * median noise variance)``, both before the
        columns were divided: with 0 every feature has noise of the same size, with more of it features that hardly
        vary, such as genes of few reads, get less say.
    """
    cells, features = matrix.shape
    n_components = min(n_components, features - 1, max((cells - 1) // 2, 1))
    offsets = np.linalg.solve(regressors.T @ regressors, _column_products(matrix, regressors).T)
    total = _column_squares(matrix) / cells - (offsets * (regressors.T @ regressors / cells @ offsets)).sum(0)
    total = np.maximum(total, 0.0)
    squares = np.ones(features) if deviations is None else np.asarray(deviations, np.float64) ** 2
    weights = _weights(total, squares, typical_share)
    # The noise of a feature is what the leading components leave of it.
    for _ in range(2):
        scale, axes = _leading(matrix, regressors, offsets, weights, min(20, n_components), rng)
        explained = (scale[:, None] ** 2 * axes**2).sum(0) / (cells * weights**2)
        weights = _weights(np.maximum(total - explained, _SMALLEST_RESIDUAL * total), squares, typical_share)
    scale, axes = _leading(matrix, regressors, offsets, weights, n_components, rng)
    variance = scale**2 / cells
    held_out = _held_out_variance(matrix, regressors, offsets, weights, n_components, rng)
    # What all components leave of the features, seen along each component.
    left = np.maximum(total * weights**2 - variance @ axes**2, 0.0)
    background = np.maximum(axes**2 @ left, 1e-6 * max(variance[0], 1e-12))
    signal = np.clip(held_out - background, 0.0, 0.98 * variance)
    kept = signal > _LIKELY_NOISE * background
    kept[0] = True
    unit = float(np.median(background))
    basis = (axes[kept] * weights).T / np.sqrt(unit)
    noise = np.maximum((variance - signal)[kept] / unit, 1e-3)
    return Components(basis.astype(np.float32), (offsets @ basis).astype(np.float32), noise)


@one_blas_thread()
def fit_factors(
    features: list[Float[np.ndarray, "cells components"]],
    present: np.ndarray,
    batch: Int[np.ndarray, " cells"],
    n_latent: int,
    noise: list[np.ndarray],
    *,
    clusters: int = 20,
    rounds: int = 100,
    rng: np.random.Generator,
) -> Factors:
    """Fit the factor analysis.

    Parameters
    ----------
    features
        Scores of each modality; rows of cells that lack it are not read.
    present
        Cells by modalities, whether the cell has the modality.
    batch
        Code of each cell's batch.
    n_latent
        Dimensions of z.
    noise
        Lower bounds of psi.
    clusters
        Components of the mixture within which batch offsets are estimated, where there are several batches.
    rounds
        Rounds of expectation maximisation, of each stage.
    rng
        Generator of the start of the clusters.
    """
    model = _Model(features, present, batch, n_latent, noise)
    prior = _Prior(np.ones(1), np.zeros((1, n_latent)), np.eye(n_latent)[None])
    for _ in range(rounds):
        model.maximise(model.expect(prior))
    if model.design.shape[1] > 1:
        latent = model.expect(prior).mean
        clusters = max(min(clusters, len(latent) // 20), 1)
        prior = _clustered_prior(latent, clusters, rng)
        for _ in range(rounds // 2):
            expectation = model.expect(prior)
            prior = model.update_prior(expectation)
            prior = model.maximise(expectation, prior) or prior
    information = sum(model.information(m) for m in range(len(features)))
    # Axes by falling information; along them the posterior of a cell with all modalities has no correlations.
    rotation = np.linalg.eigh(information)[1][:, ::-1]
    model.loadings = [loadings @ rotation for loadings in model.loadings]
    standard = _Prior(np.ones(1), np.zeros((1, n_latent)), np.eye(n_latent)[None])
    return Factors(model.expect(standard).mean, model.loadings, model.noise, model.offsets)


def unimodal_expert(
    loadings: Float[np.ndarray, "components latent"], noise: Float[np.ndarray, " components"]
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (components, latent) and precision (latent,) of the Gaussian that, times N(0, I), is the posterior.

    The posterior of factor analysis has correlations; the expert keeps its mean and its marginal variances.
    """
    latent = loadings.shape[1]
    information = loadings.T @ (loadings / noise[:, None])
    covariance = np.linalg.inv(np.eye(latent) + information)
    precision = np.maximum(1.0 / np.diag(covariance) - 1.0, 1e-2)
    return (loadings / noise[:, None]) @ covariance * ((1.0 + precision) / precision), precision


def _column_squares(matrix: Any) -> np.ndarray:
    if sp.issparse(matrix):
        return np.asarray(matrix.multiply(matrix).sum(0), np.float64).ravel()
    if isinstance(matrix, ScaledRows):
        return matrix.column_squares()
    blocks = (matrix[start : start + _BLOCK_ROWS] for start in range(0, len(matrix), _BLOCK_ROWS))
    return sum(np.einsum("ij,ij->j", block, block, dtype=np.float64) for block in blocks)  # type: ignore[return-value]


def _column_products(matrix: Any, vectors: np.ndarray) -> np.ndarray:
    """``matrix.T @ vectors`` in float64, without a copy of a dense matrix in it."""
    if sp.issparse(matrix):
        return np.asarray(matrix.T @ vectors, np.float64)
    if isinstance(matrix, ScaledRows):
        return matrix.T @ vectors
    parts = (slice(start, start + _BLOCK_ROWS) for start in range(0, len(matrix), _BLOCK_ROWS))
    return sum(matrix[rows].T @ vectors[rows] for rows in parts)  # type: ignore[return-value]


def _weights(residual: np.ndarray, squares: np.ndarray, typical_share: float) -> np.ndarray:
    """Weights of standardised columns, of which ``residual`` is noise and whose variances were ``squares``."""
    noise = residual * squares
    typical = float(np.median(noise[noise > 0])) if (noise > 0).any() else 1.0
    weights = np.sqrt(squares / np.maximum(noise + typical_share * typical, 1e-9 * typical))
    return weights / max(float(np.median(weights)), 1e-12)


def _leading(matrix, regressors, offsets, weights, number, rng):
    """Singular values and right vectors of (matrix - regressors @ offsets) * weights, by subspace iteration."""
    size = min(number + 10, matrix.shape[1], matrix.shape[0])
    reduced = offsets * weights

    def forward(vectors):
        return matrix @ (weights[:, None] * vectors).astype(np.float32) - regressors @ (reduced @ vectors)

    def backward(vectors):
        product = np.asarray(matrix.T @ vectors.astype(np.float32), np.float64) * weights[:, None]
        return product - reduced.T @ (regressors.T @ vectors)

    start = backward(np.linalg.qr(forward(rng.normal(size=(matrix.shape[1], size))))[0])
    for _ in range(3):
        start = backward(np.linalg.qr(forward(np.linalg.qr(start)[0]))[0])
    left = np.linalg.qr(forward(np.linalg.qr(start)[0]))[0]
    _, scale, axes = np.linalg.svd(backward(left).T, full_matrices=False)
    return scale[:number], axes[:number]


def _held_out_variance(matrix, regressors, offsets, weights, number, rng):
    """Variance along the components of one half of the cells, as the other half shows it."""
    order = rng.permutation(matrix.shape[0])
    variance = np.zeros(number)
    for fold in (0, 1):
        inside, outside = np.sort(order[fold::2]), np.sort(order[1 - fold :: 2])
        _, axes = _leading(matrix[inside], regressors[inside], offsets, weights, number, rng)
        vectors = (weights[:, None] * axes.T).astype(np.float32)
        scores = matrix[outside] @ vectors - regressors[outside] @ (offsets @ vectors)
        found = (np.asarray(scores, np.float64) ** 2).mean(0)
        variance[: len(found)] += found / 2
    return variance


class _Prior(NamedTuple):
    """Mixture of Gaussians: weights, means and covariances."""

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


class _Expectation(NamedTuple):
    """Posterior of the cells.

    ``responsibility`` (cells, clusters), ``means`` (clusters, cells, latent), ``covariances`` of the patterns of
    present modalities (patterns, clusters, latent, latent), ``mean`` (cells, latent).
    """

    responsibility: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    mean: np.ndarray


class _Model:
    """Parameters of the factor analysis and its two steps."""

    def __init__(self, features, present, batch, n_latent, noise):
        self.features, self.present, self.lower_bound = features, present, noise
        self.design = np.eye(int(batch.max()) + 1)[batch]
        self.n_latent = n_latent
        patterns, self.pattern = np.unique(present, axis=0, return_inverse=True)
        self.patterns, self.pattern = patterns, self.pattern.ravel()
        self.offsets = []
        for m, scores in enumerate(features):
            known = present[:, m]
            self.offsets.append(np.repeat(scores[known].mean(0)[None], self.design.shape[1], axis=0))
        self.loadings = self._start()
        self.noise = [np.maximum(0.5 * scores[present[:, m]].var(0), bound)
                      for m, (scores, bound) in enumerate(zip(features, noise, strict=True))]  # fmt: skip

    def _start(self):
        """Singular vectors of cells with most modalities, all the same ones: those of which there are most cells."""
        number = self.patterns.sum(1)
        cells = np.bincount(self.pattern, minlength=len(self.patterns))
        likely = int(np.lexsort((-cells, -number))[0])
        chosen, known = np.flatnonzero(self.pattern == likely), self.patterns[likely]
        blocks = [self.features[m][chosen] - self.features[m][chosen].mean(0) for m in np.flatnonzero(known)]
        loadings = [1e-2 * np.eye(scores.shape[1], self.n_latent) for scores in self.features]
        joined = np.concatenate(blocks, axis=1)
        _, scale, axes = np.linalg.svd(joined, full_matrices=False)
        rank = min(self.n_latent, len(scale))
        vectors = axes[:rank].T * scale[:rank] / np.sqrt(len(chosen))
        first = 0
        for m, block in zip(np.flatnonzero(known), blocks, strict=True):
            width = block.shape[1]
            loadings[m][:, :rank] = vectors[first : first + width]
            first += width
        return loadings

    def information(self, m):
        """Precision that modality ``m`` adds to z."""
        return self.loadings[m].T @ (self.loadings[m] / self.noise[m][:, None])

    def expect(self, prior: _Prior) -> _Expectation:
        cells, clusters, latent = len(self.present), len(prior.weight), self.n_latent
        evidence = np.zeros((cells, latent))
        for m, scores in enumerate(self.features):
            known = self.present[:, m]
            residual = scores[known] - self.design[known] @ self.offsets[m]
            evidence[known] += residual @ (self.loadings[m] / self.noise[m][:, None])
        precisions = np.linalg.inv(prior.covariance)
        pulls = np.einsum("kij,kj->ki", precisions, prior.mean)
        constant = (
            np.log(prior.weight)
            - 0.5 * np.linalg.slogdet(prior.covariance)[1]
            - 0.5 * (pulls * prior.mean).sum(1)
        )  # fmt: skip
        log_weight = np.zeros((cells, clusters))
        means = np.zeros((clusters, cells, latent))
        covariances = np.zeros((len(self.patterns), clusters, latent, latent))
        for j, pattern in enumerate(self.patterns):
            here = self.pattern == j
            information = sum((self.information(m) for m in np.flatnonzero(pattern)), np.zeros((latent, latent)))
            covariances[j] = np.linalg.inv(precisions + information)
            half_log = 0.5 * np.linalg.slogdet(covariances[j])[1]
            for k in range(clusters):
                natural = evidence[here] + pulls[k]
                mean = natural @ covariances[j, k]
                means[k, here] = mean
                log_weight[here, k] = constant[k] + half_log[k] + 0.5 * (mean * natural).sum(1)
        log_weight -= log_weight.max(1, keepdims=True)
        responsibility = np.exp(log_weight)
        responsibility /= responsibility.sum(1, keepdims=True)
        return _Expectation(responsibility, means, covariances, np.einsum("nk,knd->nd", responsibility, means))

    def second_moment(self, expectation: _Expectation, chosen: np.ndarray) -> np.ndarray:
        """Sum of E[z z'] over the chosen cells."""
        total = np.zeros((self.n_latent, self.n_latent))
        for k in range(expectation.means.shape[0]):
            weight = expectation.responsibility[chosen, k]
            mean = expectation.means[k, chosen]
            total += (mean * weight[:, None]).T @ mean
            share = np.bincount(self.pattern[chosen], weight, minlength=len(self.patterns))
            total += np.tensordot(share, expectation.covariances[:, k], axes=1)
        return total

    def maximise(self, expectation: _Expectation, prior: _Prior | None = None) -> _Prior | None:
        """Update all parameters, then rescale z to mean 0 and covariance I over the cells."""
        cells, latent = expectation.mean.shape
        for m, scores in enumerate(self.features):
            known = self.present[:, m]
            design = np.concatenate([expectation.mean[known], self.design[known]], axis=1)
            gram = design.T @ design
            gram[:latent, :latent] = self.second_moment(expectation, known)
            gram[np.diag_indices_from(gram)] += 1e-6 * len(design)
            cross = design.T @ scores[known]
            solution = np.linalg.solve(gram, cross)
            self.loadings[m], self.offsets[m] = solution[:latent].T, solution[latent:]
            residual = ((scores[known] ** 2).sum(0) - (solution * cross).sum(0)) / known.sum()
            self.noise[m] = np.maximum(residual, self.lower_bound[m])
        mean = expectation.mean.mean(0) if prior is not None else np.zeros(latent)
        moment = self.second_moment(expectation, np.ones(cells, bool)) / cells - np.outer(mean, mean)
        root = np.linalg.cholesky(moment + 1e-9 * np.eye(latent))
        for m in range(len(self.features)):
            self.offsets[m] = self.offsets[m] + self.loadings[m] @ mean
            self.loadings[m] = self.loadings[m] @ root
        if prior is None:
            return None
        inverse = np.linalg.inv(root)
        return _Prior(prior.weight, (prior.mean - mean) @ inverse.T, inverse @ prior.covariance @ inverse.T)

    def update_prior(self, expectation: _Expectation, pooled_cells: float = 20.0) -> _Prior:
        """Mixture that fits the posteriors; covariances are drawn to their pool with the weight of ``pooled_cells``."""
        cells, clusters = expectation.responsibility.shape
        size = expectation.responsibility.sum(0) + 1e-9
        mean = np.einsum("nk,knd->kd", expectation.responsibility, expectation.means) / (size + 1.0)[:, None]
        spread = np.empty((clusters, self.n_latent, self.n_latent))
        for k in range(clusters):
            deviation = expectation.means[k] - mean[k]
            weight = expectation.responsibility[:, k]
            spread[k] = (deviation * weight[:, None]).T @ deviation
            share = np.bincount(self.pattern, weight, minlength=len(self.patterns))
            spread[k] += np.tensordot(share, expectation.covariances[:, k], axes=1)
        pool = spread.sum(0) / cells
        covariance = (spread + pooled_cells * pool) / (size + pooled_cells)[:, None, None]
        return _Prior((size + 1.0) / (cells + clusters), mean, covariance)


def _clustered_prior(latent: np.ndarray, clusters: int, rng: np.random.Generator) -> _Prior:
    if clusters == 1:
        return _Prior(np.ones(1), np.zeros((1, latent.shape[1])), np.eye(latent.shape[1])[None])
    from scipy.cluster.vq import kmeans2  # a tenth of a second, which users without batches would wait

    centres, label = kmeans2(latent, clusters, minit="++", seed=rng)
    weight = (np.bincount(label, minlength=clusters) + 1.0) / (len(latent) + clusters)
    return _Prior(weight, centres, np.repeat(0.5 * np.eye(latent.shape[1])[None], clusters, axis=0))
