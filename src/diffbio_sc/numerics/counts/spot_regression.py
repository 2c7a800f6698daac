"""Regression of blocks of spots on fixed signatures, with what each estimate is worth.

Compiled once for a panel, whatever the number of spots; the calls take turns, so that blocks may be worked on by any
scheduler.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffbio_sc._compiled import jit_quickly, one_blas_thread, one_thread_at_a_time
from diffbio_sc.numerics.counts import regression
from diffbio_sc.numerics.counts.spot_chunks import GENE_BUCKET, rows_at_once
from diffbio_sc.numerics.padding import round_up, zero_padded

_TYPE_BUCKET = 4


class SpotSolution(NamedTuple):
    """Regression of a block of spots.

    Attributes
    ----------
    weights
        Share of the spot's RNA from each type; sums to about 1.
    deviation
        Standard deviation of each weight with the others held.
    inflation
        Variance with the others free over variance with the others held; at least 1.
    misfit
        Pearson's chi-square over its degrees of freedom, genes less types of positive weight.
    """

    weights: Float[Array, "spots types"]
    deviation: Float[Array, "spots types"]
    inflation: Float[Array, "spots types"]
    misfit: Float[Array, " spots"]


@dataclasses.dataclass(frozen=True)
class SpotSolver:
    """The regression of blocks of spots on fixed signatures: compiled, on host arrays, picklable.

    Parameters
    ----------
    signatures
        Signatures mu (types, genes).
    dispersion
        Overdispersion alpha.
    steps
        Steps of Fisher scoring.
    room
        Types for which the compiled code leaves room: solvers of 12 types and of 13 can then share it.
    excess
        Variance over mean of each gene beyond 1, from differences between cells; None for nothing.
    error
        Squared relative errors of the signatures (types, genes); None for none.
    """

    signatures: np.ndarray
    dispersion: float
    steps: int
    room: int = 0
    excess: np.ndarray | None = None
    error: np.ndarray | None = None

    @one_thread_at_a_time
    @one_blas_thread()
    def __call__(
        self,
        counts: np.ndarray,
        prior_mean: np.ndarray | None = None,
        prior_precision: np.ndarray | None = None,
    ) -> SpotSolution:
        """Regress a block of spots; a Gaussian prior of the weights may be given, such as the neighbours' mean."""
        spots, genes = counts.shape
        types = len(self.signatures)
        width, padded_types = round_up(genes, GENE_BUCKET), round_up(types + self.room, _TYPE_BUCKET)
        shape = (rows_at_once(), width)
        if prior_mean is None or prior_precision is None:
            prior_mean, prior_precision = np.zeros((0, types)), np.zeros(types)
        fixed = jax.device_put(
            (
                zero_padded(self.signatures, (padded_types, width)),
                np.float32(self.dispersion),
                zero_padded(np.ones(genes, np.float32), (width,)),
                zero_padded(prior_precision.astype(np.float32), (padded_types,)),
                np.int32(self.steps),
                zero_padded(np.zeros(genes) if self.excess is None else self.excess, (width,)),
                zero_padded(np.zeros((types, genes)) if self.error is None else self.error, (padded_types, width)),
            )
        )
        weights, deviation, inflation = (np.empty((spots, types), np.float32) for _ in range(3))
        solution = SpotSolution(weights, deviation, inflation, np.empty(spots, np.float32))
        for first in range(0, spots, shape[0]):
            rows = slice(first, min(first + shape[0], spots))
            part = _solve_block(
                zero_padded(counts[rows].astype(np.float32, copy=False), shape),
                zero_padded(prior_mean[rows].astype(np.float32), (shape[0], padded_types)),
                *fixed,
            )
            for whole, field in zip(solution, part, strict=True):
                values = np.asarray(field)[: rows.stop - first]
                whole[rows] = values[:, :types] if whole.ndim == 2 else values
        return solution


def diagnose(weights, counts, depth, mu, dispersion, excess, used, information=None) -> SpotSolution:
    """Return what the optimum ``weights`` are worth; ``used`` marks the genes that do not only pad the shape."""
    types = weights.shape[1]
    active = weights > 1e-6
    mean = regression.expected_counts(weights, depth, mu)
    if information is None:
        products = regression.pair_products(mu)
        information = regression.fisher_step(weights, counts, depth, mu, dispersion, products, sweeps=0, excess=excess)[
            1
        ]
    # Types held at 0 fit nothing: they take no degree of freedom.
    freedom = jnp.maximum(used.sum() - active.sum(-1), 1.0)
    variance = jnp.maximum(mean, 1e-2) * regression.variance_ratio(mean, dispersion, excess)
    pearson = (counts - mean) ** 2 / variance * used
    misfit = pearson.sum(-1) / freedom
    diagonal = jnp.diagonal(information, axis1=1, axis2=2)
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    # Correlation form with a small ridge: collinear signatures give a large, finite inflation.
    correlation = information / (scale[:, :, None] * scale[:, None, :]) + 1e-4 * jnp.eye(types, dtype=mean.dtype)
    both = active[:, :, None] & active[:, None, :]
    correlation = jnp.where(both, correlation, jnp.eye(types, dtype=mean.dtype))
    inflation = jnp.diagonal(jnp.linalg.inv(correlation), axis1=1, axis2=2)
    deviation = jnp.broadcast_to(1.0 / scale, weights.shape)
    return SpotSolution(weights, deviation, jnp.maximum(inflation, 1.0), misfit)


@jit_quickly()
def _solve_block(counts, prior_mean, mu, dispersion, used, prior_precision, steps, excess, error) -> SpotSolution:
    depth = counts.sum(-1)
    real = (mu.sum(1) > 0).astype(mu.dtype)  # not types that only pad the shape
    start = jnp.broadcast_to(real / real.sum(), (len(counts), len(mu)))
    weights, information = regression.regress(
        counts, depth, mu, dispersion, start, prior_mean, prior_precision, steps=steps, excess=excess, error=error
    )
    return diagnose(weights, counts, depth, mu, dispersion, excess, used, information)
