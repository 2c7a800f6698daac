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


@jit_quickly(static_argnums=(12,))
def unknown_rounds(
    counts,
    depth,
    spots,
    weights,
    base,
    log_platform,
    excess,
    spread,
    dispersion,
    used,
    prior_counts,
    rate,
    rounds,
    free,
):
    """Signature of sum 1 outside ``base``, and the log factors of the genes next to it.

    Residuals are weighted by ``excess``. Their leading component among those that are nowhere negative gives the share
    of each gene's counts that the signature starts with, from a floor (one type among all) for genes that say nothing.
    It then follows the spots by expectation maximisation under a Gamma prior, like the deviations of the other types,
    and the factors follow as in refinement (if they are ``free``). The first ``spots`` rows of ``counts`` are worked on
    chunk by chunk, see :mod:`~diffbio_sc.numerics.counts.spot_chunks`; ``depth`` are their sums.
    """
    filled = (depth > 0).astype(counts.dtype)
    number, types = filled.sum(), weights.shape[1]
    mu = base * jnp.exp(log_platform)
    no_gene = jnp.zeros_like(used)

    def explain(sums, take, put):
        residual, average, total, squares = sums
        mean = regression.expected_counts(take(weights), take(depth), mu)
        part = (take(counts) - mean) / jnp.sqrt(jnp.maximum(mean, 1e-2) * (1.0 + dispersion * mean))
        part = jnp.clip(part, -5.0, 10.0) * used * take(filled)[:, None]
        return put(residual, part), average + mean.sum(0), total + part.sum(0), squares + (part**2).sum(0)

    sums = (jnp.zeros_like(counts), no_gene, no_gene, no_gene)
    residual, average, centre, squares = over_chunks(spots, explain, sums)
    average, centre, squares = jnp.maximum(average / number, 1e-12), centre / number, squares / number
    # A gene's own noise is no covariance.
    noise = jnp.minimum(squares - centre**2, 1.0) * excess**2

    def power(now):
        step, vector, _ = now

        def multiply(total, take, _):
            part = (take(residual) - centre) * take(filled)[:, None] * excess
            return total + part.T @ (part @ vector)

        new = jnp.maximum(over_chunks(spots, multiply, no_gene) / number - noise * vector, 0.0)
        new = new / jnp.maximum(jnp.linalg.norm(new), 1e-12)
        return step + 1, new, jnp.abs(new - vector).max()

    def unfinished(now):
        return (now[0] < _POWER_STEPS) & (now[2] > _POWER_ACCURACY)

    start = excess / jnp.maximum(jnp.linalg.norm(excess), 1e-12)
    loading = jax.lax.while_loop(unfinished, power, (jnp.int32(0), start, jnp.float32(1.0)))[1] * excess
    relative = loading * jnp.sqrt((1.0 + dispersion * average) / average)
    typical = (loading**2 * relative).sum() / jnp.maximum((loading**2).sum(), 1e-12)
    relative = jnp.minimum(relative / jnp.maximum(typical, 1e-12), 1.0)
    floor = 1.0 / (types + 1.0)
    taken = floor + (1.0 - 2.0 * floor) * relative
    start = taken * average * used
    start = start / start.sum()

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

    first = jnp.where(free, centred(log_platform + jnp.log1p(-taken)), log_platform)
    weights = jnp.concatenate([0.9 * weights, jnp.full((len(depth), 1), 0.1, weights.dtype)], axis=1)
    _, signature, log_factor = jax.lax.fori_loop(0, rounds, one_round, (weights, start, first))
    return signature, log_factor
