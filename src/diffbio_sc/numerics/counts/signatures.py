"""Expression signatures of cell types from sums of single-cell counts, and the genes that tell types apart.

All in float64 numpy: these are small tables (types by genes), made once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Both halved and doubled, set by set: benchmarks/deconvolution.py constants.
_PSEUDO_COUNTS = 20.0  # counts with which a type is shrunk toward the pooled profile
_HUBER_WIDTH = 0.5  # natural-log units


def shrunken_profiles(sums: np.ndarray) -> np.ndarray:
    """Profiles (rows sum to 1) from count sums, shrunk toward the pooled one so that no entry is 0 by chance alone."""
    pooled = sums.sum(0) / max(sums.sum(), 1.0)
    return (sums + _PSEUDO_COUNTS * pooled) / (sums.sum(1, keepdims=True) + _PSEUDO_COUNTS)


def sampling_index(index: np.ndarray, sums: np.ndarray, cells: np.ndarray, size_variation: np.ndarray) -> np.ndarray:
    """Variance over mean of each gene's counts between cells of each type, as if all had the same size; at least 1.

    A profile is a ratio of counts, which cells that are merely deeper do not change. What remains is divided among the
    types as in the negative binomial, where variance over mean is 1 plus a multiple of the mean.

    Parameters
    ----------
    index
        Variance over mean of each gene's counts between cells of a type, pooled over types (genes,).
    sums
        Counts summed over the cells of each type (types, genes).
    cells
        Cells of each type.
    size_variation
        Squared coefficient of variation of the counts of a cell of each type.

    Returns
    -------
    Types by genes.
    """
    mean = sums / np.maximum(np.reshape(cells, (-1, 1)), 1)
    total, squares = np.maximum(sums.sum(0), 1e-300), np.maximum((sums * mean).sum(0), 1e-300)
    beyond = np.maximum(index - 1.0 - size_variation @ (sums * mean) / total, 0.0)
    return 1.0 + beyond * mean * total / squares


def relative_error(sums: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Squared relative sampling error of each entry of :func:`shrunken_profiles`.

    Parameters
    ----------
    sums
        Counts summed over the cells of each type (types, genes).
    index
        Variance over mean of each entry's counts, see :func:`sampling_index` (types, genes).
    """
    pooled = sums.sum(0) / max(sums.sum(), 1.0)
    return index * sums / np.maximum(sums + _PSEUDO_COUNTS * pooled, 1e-12) ** 2


def remove_batch_effect(sums: np.ndarray, *, strength: float = 10.0, iterations: int = 50) -> np.ndarray:
    """Sums a type and gene with the batches' gene-specific factors divided out.

    Fits counts[b, k, g] ~ Poisson(total[b, k] * profile[k, g] * factor[b, g]) by alternating closed-form updates, the
    factors shrunk toward 1 with ``strength`` counts. A type seen in one batch only keeps its own profile up to the
    factor that the other types show, so that a batch is not mistaken for a type.

    Parameters
    ----------
    sums
        Counts summed by batch, type and gene.

    Returns
    -------
    Types by genes, with the totals of each type kept.
    """
    totals = sums.sum(2)
    factor = np.ones((sums.shape[0], sums.shape[2]))
    weight = totals.sum(1) / max(totals.sum(), 1.0)
    by_type, by_batch = sums.sum(0), sums.sum(1)
    for _ in range(iterations):
        profile = by_type / np.maximum(np.einsum("bk,bg->kg", totals, factor), 1e-12)
        factor = (by_batch + strength) / (totals @ profile + strength)
        factor /= np.maximum(weight @ factor, 1e-12)
    profile = by_type / np.maximum(np.einsum("bk,bg->kg", totals, factor), 1e-12)
    return profile / np.maximum(profile.sum(1, keepdims=True), 1e-12) * totals.sum(0)[:, None]


def size_without_batch_depth(totals: np.ndarray, cells: np.ndarray, *, iterations: int = 50) -> np.ndarray:
    """Mean counts of a cell of each type, as if all batches were sequenced equally deep.

    Fits total[b, k] ~ Poisson(cells[b, k] * size[k] * depth[b]) by alternating closed-form updates.

    Parameters
    ----------
    totals, cells
        Counts and number of cells, by batch and type.
    """
    depth = np.ones(len(totals))
    share = cells.sum(1) / max(cells.sum(), 1)
    for _ in range(iterations):
        size = totals.sum(0) / np.maximum(depth @ cells, 1e-12)
        depth = totals.sum(1) / np.maximum(cells @ size, 1e-12)
        depth /= max(share @ depth, 1e-12)
    return totals.sum(0) / np.maximum(depth @ cells, 1e-12)


def informative_genes(
    profiles: np.ndarray,
    spot_counts: np.ndarray,
    reference_counts: np.ndarray,
    *,
    n_top: int,
    minimum_counts: float = 5,
) -> np.ndarray:
    """Indices of the genes to use: all usable ones if there are at most ``n_top``, else the best of each type.

    A gene is usable with ``minimum_counts`` counts on both sides. A type's genes are ranked by log fold change over
    the mean of the other types, times the square root of the expression.
    """
    usable = (spot_counts >= minimum_counts) & (reference_counts >= minimum_counts)
    if usable.sum() <= n_top:
        return np.flatnonzero(usable)
    types = len(profiles)
    others = (profiles.sum(0) - profiles) / max(types - 1, 1)
    merit = np.log((profiles + 1e-6) / (others + 1e-6)) * np.sqrt(profiles)
    merit[:, ~usable] = -np.inf
    best = np.argsort(-merit, axis=1, kind="stable")[:, : int(np.ceil(n_top / types))]
    return np.unique(best)


def robust_spread(values: np.ndarray) -> float:
    """Standard deviation around the median, from the median of the deviations."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


class BulkFit(NamedTuple):
    """Mixture of profiles that best explains the summed counts, robust to gene-specific factors.

    Attributes
    ----------
    composition
        Counts explained by each profile.
    log_ratio
        Log of observed over expected counts of each gene, median 0.
    spread
        Robust standard deviation of ``log_ratio``.
    composition_variance
        Sampling variance of the log composition, averaged with squared shares as weights.
    """

    composition: np.ndarray
    log_ratio: np.ndarray
    spread: float
    composition_variance: float


def fit_bulk(bulk: np.ndarray, profiles: np.ndarray) -> BulkFit:
    """Fit the summed counts of all spots by a mixture of profiles, with Huber's loss on the log scale."""
    from scipy.optimize import minimize  # a tenth of a second, which users of the other functions would wait

    log_bulk = np.log(bulk + 0.5)

    def objective(log_composition):
        composition = np.exp(log_composition)
        mean = composition @ profiles
        residual = log_bulk - np.log(mean + 0.5)
        size = np.abs(residual)
        huber = np.where(size < _HUBER_WIDTH, 0.5 * residual**2, _HUBER_WIDTH * (size - 0.5 * _HUBER_WIDTH))
        slope = np.clip(residual, -_HUBER_WIDTH, _HUBER_WIDTH)
        return huber.sum(), -(profiles @ (slope / (mean + 0.5))) * composition

    types = len(profiles)
    start = np.full(types, np.log(max(bulk.sum(), 1.0) / types))
    # Bounds keep the counts explained by a type between a millionth of one count and all counts.
    bounds = [(np.log(1e-6), np.log(bulk.sum() + 1.0) + 5.0)] * types
    composition = np.exp(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x)
    mean = composition @ profiles
    log_ratio = log_bulk - np.log(mean + 0.5)
    log_ratio -= np.median(log_ratio)
    spread = robust_spread(log_ratio)
    design = (composition[:, None] * profiles / np.maximum(mean, 1e-300)).T
    covariance = np.linalg.inv(design.T @ design + 1e-6 * np.eye(types)) * spread**2
    share = composition / composition.sum()
    variance = float((share**2 * np.diag(covariance)).sum() / (share**2).sum())
    return BulkFit(composition, log_ratio, spread, variance)
