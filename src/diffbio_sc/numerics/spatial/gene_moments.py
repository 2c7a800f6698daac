"""Null model of genes: mean, overdispersion, residuals and nuisance columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

LARGEST_DISPERSION = 50.0
_SPOTS_A_COLUMN = 5  # at least, to estimate the depth that covariates let expect
_LEAST_EXPECTED = 0.1  # of the mean depth
_COLUMNS_AT_ONCE = 2048  # of dense counts, which become float64


class GeneSums(NamedTuple):
    """Sums over spots, by gene: counts, their squares, counts times depth, depth and its square, spots with reads."""

    counts: Float[np.ndarray, " genes"]
    squares: Float[np.ndarray, " genes"]
    with_depth: Float[np.ndarray, " genes"]
    depth: Float[np.ndarray, " genes"]
    spots: Float[np.ndarray, " genes"]


class GeneMoments(NamedTuple):
    """Mean rate m, method-of-moments dispersion alpha and number of spots with reads, by gene."""

    mean: Float[np.ndarray, " genes"]
    dispersion: Float[np.ndarray, " genes"]
    spots: Int[np.ndarray, " genes"]


def sum_genes(counts: Any, depth: Float[np.ndarray, " spots"]) -> GeneSums:
    """Sums from which the moments follow, of spots by genes, dense or sparse, in float64 whatever type the counts have.

    Sums of more spots are sums of these.
    """
    if sp.issparse(counts):
        ones = np.ones(len(depth))
        counts = sp.csr_array(counts).astype(np.float64)
        squares, present = counts.copy(), counts.copy()
        squares.data, present.data = counts.data**2, (counts.data > 0).astype(np.float64)
        parts = [ones @ counts, ones @ squares, depth @ counts, np.full(counts.shape[1], depth.sum()), ones @ present]
        return GeneSums(*parts)
    starts = range(0, max(counts.shape[1], 1), _COLUMNS_AT_ONCE)
    slices = [_sum_dense(counts[:, start : start + _COLUMNS_AT_ONCE], depth) for start in starts]
    return GeneSums(*(np.concatenate(part) for part in zip(*slices, strict=True)))


def _sum_dense(counts: np.ndarray, depth: np.ndarray) -> GeneSums:
    counts = np.asarray(counts, np.float64)
    return GeneSums(
        counts.sum(0),
        np.einsum("ng,ng->g", counts, counts),
        depth @ counts,
        np.full(counts.shape[1], depth.sum()),
        (counts > 0).sum(0).astype(np.float64),
    )


def gene_moments(sums: GeneSums, depth: Float[np.ndarray, " spots"]) -> GeneMoments:
    """Mean and dispersion: E (y - s m)^2 = s m + alpha (s m)^2, summed over spots.

    Parameters
    ----------
    sums
        Sums over the spots; their depth may be in another unit than ``depth``.
    depth
        Depth of the spots.
    """
    mean = sums.counts / depth.sum()
    with_depth = sums.with_depth * (depth.sum() / np.maximum(sums.depth, 1e-300))
    square = (depth**2).sum()
    excess = sums.squares - 2.0 * mean * with_depth + mean**2 * square - mean * depth.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = excess / (mean**2 * square)
    return GeneMoments(mean, np.clip(np.nan_to_num(dispersion), 0.0, LARGEST_DISPERSION), sums.spots.astype(np.int64))


def pearson_residuals(counts: np.ndarray, depth: np.ndarray, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """(y - s m) / sqrt(s m + alpha (s m)^2), cut at the square root of the number of spots."""
    expected = np.maximum(np.outer(depth, mean), 1e-12)
    limit = np.sqrt(len(depth))
    return np.clip((counts - expected) / np.sqrt(expected * (1.0 + dispersion * expected)), -limit, limit)


def nuisance_columns(
    depth: np.ndarray, groups: np.ndarray, covariates: np.ndarray | None = None, *, by_group: bool = True
) -> Float[np.ndarray, "spots columns"]:
    """Intercept and standardised log depth of each group, and covariates; columns that others span are left out.

    A gene's counts are a sum over the cells of a spot, and so is the depth. The gene's share of it is the ratio of
    both: linear in covariates (and a constant) over the depth that these let expect.

    Groups have effects of their own (``by_group``): where a gene's level differs between slides, so does by how much a
    cell type changes it.
    """
    columns = []
    for group in np.unique(groups):
        inside = groups == group
        columns.append(inside.astype(np.float64))
        log_depth = np.log(np.maximum(depth[inside], 1e-2))
        if log_depth.std() > 1e-6:
            column = np.zeros(len(depth))
            column[inside] = (log_depth - log_depth.mean()) / log_depth.std()
            columns.append(column)
    basis = np.linalg.qr(np.column_stack(columns))[0]
    if covariates is None:
        return np.column_stack(columns)
    covariates = np.asarray(covariates, np.float64)
    expected = _expected_depth(depth, groups, covariates)[:, None]
    covariates = np.column_stack([1.0 / expected, covariates / expected])
    insides = [groups == group for group in np.unique(groups)] if by_group else [np.ones(len(depth), bool)]
    for column in (np.where(inside, values, 0.0) for values in covariates.T for inside in insides):
        scale = np.linalg.norm(column)
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        length = np.linalg.norm(rest)
        if length <= 1e-6 * max(scale, 1e-300):
            continue
        basis = np.column_stack([basis, rest / length])
        columns.append(rest / length * np.sqrt(len(depth)))
    return np.column_stack(columns)


def _expected_depth(depth: np.ndarray, groups: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Depth, by its mean on the slide, that covariates let expect."""
    codes = np.unique(groups, return_inverse=True)[1]
    relative = depth / (np.bincount(codes, depth) / np.bincount(codes))[codes]
    design = np.column_stack([np.ones(len(depth)), covariates])
    if len(depth) < _SPOTS_A_COLUMN * design.shape[1]:
        return np.ones(len(depth))
    return np.maximum(design @ np.linalg.lstsq(design, relative, rcond=None)[0], _LEAST_EXPECTED)
