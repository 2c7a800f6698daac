"""One more signature than the reference has, for RNA of a type that it lacks.

A gene's factor between the platforms is fitted to the counts of all spots, so that the RNA of a missing type is first
taken for factors: its own genes seem to be in excess on this platform. Two things follow. Genes in excess, by more than
platforms differ and counts leave open, are the ones to look at. And factors have to give back what the new signature
takes, or it is left with what spots have of it above their average.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from diffbio_sc._compiled import jit_quickly
from diffbio_sc.numerics.counts import regression
from diffbio_sc.numerics.counts.refinement import masked_median, shrunken_log_ratio
from diffbio_sc.numerics.counts.spot_chunks import over_chunks

_MEDIAN_CHI_SQUARE = 0.4549  # of one degree of freedom
_POWER_STEPS, _POWER_ACCURACY = 200, 1e-5
_ROWS_AT_ONCE = 256  # of spots: what a step makes of them stays in the processor's caches
_DAMPING = 0.5  # of the steps of the factors, as in refinement


def standard_excess(log_ratio: np.ndarray, sampling_variance: np.ndarray) -> np.ndarray:
    """Log of observed over expected counts of each gene in units of its standard deviation, 0 where not in excess.

    The variance is that of sampling plus one, the same for all genes, by which platforms differ: the one under which
    half of the genes are within the quartiles of a Gaussian.
    """
    squared = (log_ratio - np.median(log_ratio)) ** 2

    def beyond(variance: float) -> float:
        return float(np.median(squared / np.maximum(sampling_variance + variance, 1e-12))) - _MEDIAN_CHI_SQUARE

    widest = float(np.median(squared)) / _MEDIAN_CHI_SQUARE
    common = brentq(beyond, 0.0, widest) if beyond(0.0) > 0 and beyond(widest) < 0 else widest * (beyond(0.0) > 0)
    deviation = np.sqrt(np.maximum(sampling_variance + common, 1e-12))
    return np.maximum((log_ratio - np.median(log_ratio)) / deviation, 0.0)


def first_unknown(
    counts: np.ndarray,
    weights: np.ndarray,
    base: np.ndarray,
    log_platform: np.ndarray,
    excess: np.ndarray,
    dispersion: float,
    *,
    free: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Signature of sum 1 and log factors of the genes that :func:`unknown_rounds` starts with.

    Residuals are weighted by ``excess``. Their leading component among those that are nowhere negative gives the share
    of each gene's counts that the signature starts with, from a floor (one type among all) for genes that say nothing.
    On the host: compiled for CPUs, products of a matrix and a vector take many times as long as those of BLAS.

    Parameters
    ----------
    counts
        Spots by genes; empty spots say nothing.
    weights
        Share of each spot's RNA from each type (spots, types).
    base, log_platform
        The types' profiles of sum 1, and the log factors of the genes.
    excess
        What :func:`standard_excess` found.
    dispersion
        Overdispersion of the counts.
    free
        Whether the factors may change.
    """
    depth = counts.sum(1)
    filled = (depth > 0).astype(np.float32)
    number = max(float(filled.sum()), 1.0)
    mu = (base * np.exp(log_platform)).astype(np.float32)
    seen = np.flatnonzero(excess > 0)
    residual, average = np.empty((len(counts), len(seen)), np.float32), np.zeros(counts.shape[1])
    for first in range(0, len(counts), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        mean = regression.expected_counts(weights[rows], depth[rows], mu)
        average += mean.sum(0, dtype=np.float64)
        mean = mean[:, seen]
        part = (counts[rows][:, seen] - mean) / np.sqrt(np.maximum(mean, 1e-2) * (1.0 + dispersion * mean))
        residual[rows] = np.clip(part, -5.0, 10.0) * filled[rows, None]
    average = np.maximum(average / number, 1e-12)
    loading = np.zeros(len(average))
    loading[seen] = _common_part(residual, filled, excess[seen].astype(np.float32)) * excess[seen]
    relative = loading * np.sqrt((1.0 + dispersion * average) / average)
    typical = (loading**2 @ relative) / max(loading @ loading, 1e-12)
    relative = np.minimum(relative / max(typical, 1e-12), 1.0)
    floor = 1.0 / (len(base) + 1.0)
    taken = floor + (1.0 - 2.0 * floor) * relative
    start = taken * average
    log_factor = np.asarray(log_platform, np.float64)
    if free:
        log_factor = log_factor + np.log1p(-taken)
        log_factor -= np.median(log_factor)
    return start / start.sum(), log_factor


def _common_part(residual: np.ndarray, filled: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Leading component, nowhere negative, of the covariance of weighted residuals, which are written anew.

    A gene's own noise is no covariance.
    """
    number = max(float(filled.sum()), 1.0)
    centre = residual.sum(0, dtype=np.float64) / number
    squares = np.einsum("sg,sg->g", residual, residual, dtype=np.float64) / number
    noise = (np.minimum(squares - centre**2, 1.0) * excess**2).astype(np.float32)
    residual -= centre.astype(np.float32)
    residual *= filled[:, None]
    residual *= excess
    vector = excess / max(float(np.linalg.norm(excess)), 1e-12)
    for _ in range(_POWER_STEPS):
        new = np.maximum((residual @ vector) @ residual / number - noise * vector, 0.0)
        new /= max(float(np.linalg.norm(new)), 1e-12)
        change = np.abs(new - vector).max(initial=0.0)
        vector = new
        if change <= _POWER_ACCURACY:
            break
    return vector


@jit_quickly(static_argnums=(12,))
def unknown_rounds(
    counts,
    depth,
    spots,
    weights,
    base,
    signature,
    log_factor,
    spread,
    dispersion,
    used,
    prior_counts,
    rate,
    rounds,
    free,
):
    """Signature of sum 1 outside ``base``, and the log factors of the genes next to it, from those of the start.

    The signature follows the spots by expectation maximisation under a Gamma prior at its start, like the deviations of
    the other types, and the factors follow as in refinement (if they are ``free``). The first ``spots`` rows of
    ``counts`` are worked on chunk by chunk, see :mod:`~diffbio_sc.numerics.counts.spot_chunks`; ``depth`` are their
    sums.
    """
    start, no_gene = signature, jnp.zeros_like(used)

    def centred(log_factor):
        return (log_factor - masked_median(log_factor, used)) * used

    def one_round(_, now):
        weights, signature, log_factor = now
        both = jnp.concatenate([base * jnp.exp(log_factor), signature[None]])
        products = regression.pair_products(both)

        def move(carry, take, put):
            weights, observed, expected, exposed, own = carry
            here, theirs = take(counts), take(depth)
            new = regression.fisher_step(take(weights), here, theirs, both, dispersion, products).weights
            mean = regression.expected_counts(new, theirs, both)
            trust = 1.0 / regression.variance_ratio(mean, dispersion)
            explained = trust * here / mean
            exposure = new * theirs[:, None]
            known = exposure[:, :-1] @ both[:-1]
            return (
                put(weights, new),
                observed + (explained * known).sum(0),
                expected + (trust * known).sum(0),
                exposed + exposure.T @ trust,
                own + exposure[:, -1] @ explained,
            )

        carry = (weights, no_gene, no_gene, jnp.zeros_like(both), no_gene)
        weights, observed, expected, exposed, own = over_chunks(spots, move, carry)
        target = centred(log_factor + jnp.log((observed + 0.5) / (expected + 0.5)))
        target = shrunken_log_ratio(target, spread)
        prior = prior_counts + rate * (both * exposed).mean(0)
        signature = start * (signature * own + prior) / (start * exposed[-1] + prior) * used
        log_factor = jnp.where(free, centred(log_factor + _DAMPING * (target - log_factor)), log_factor)
        return weights, signature / signature.sum(), log_factor

    weights = jnp.concatenate([0.9 * weights, jnp.full((len(depth), 1), 0.1, weights.dtype)], axis=1)
    _, signature, log_factor = jax.lax.fori_loop(0, rounds, one_round, (weights, start, log_factor))
    return signature, log_factor
