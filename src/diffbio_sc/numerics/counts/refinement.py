"""Signatures refined on the spots themselves: a platform factor for each gene, and each type's own deviations."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array

from diffbio_sc._compiled import jit_quickly
from diffbio_sc.numerics.counts import negative_binomial, regression
from diffbio_sc.numerics.counts.spot_chunks import over_chunks

FIRST_STEPS = 4  # of Fisher scoring, before signatures are updated
CONVERGED = 2e-4  # relative change of the deviance over two rounds
_DAMPING = 0.5  # of the platform step, against the alternation between two states that full steps show
# What the constants below do to the error, set by set: benchmarks/deconvolution.py constants, left_out.
_CLIPPED_RESIDUAL = 1.0  # in units of the spread of gamma, the width of its robust prior
_RESIDUAL_NOISE = 0.15  # of a gene's log ratio, from what sampling and model error leave
_UNEXPLAINED_ONLY = 0.1  # of the part of a deviation that other signatures explain as well, how much is taken out


def masked_median(values, used):
    """Median of the genes used."""
    # Not nanmedian: tracing and compiling it takes several times as long.
    number = (used > 0).sum()
    ordered = jnp.sort(jnp.where(used > 0, values, jnp.inf))
    return 0.5 * (ordered[(number - 1) // 2] + ordered[number // 2])


def _solve_positive(matrix, right):
    """Solution of a system with a positive definite matrix."""
    factor = lax.linalg.cholesky(matrix)
    half = lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
    return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)


def shrunken_log_ratio(log_ratio, spread):
    """Log factor of a gene from its log ratio of observed to expected counts, given the spread of such factors.

    Soft towards 0 for ratios within the spread, by a constant beyond it: the factors have heavy tails.
    """
    kept = spread**2 / (spread**2 + _RESIDUAL_NOISE**2)
    limit = _CLIPPED_RESIDUAL * spread * (1.0 - kept)
    return log_ratio - jnp.clip((1.0 - kept) * log_ratio, -limit, limit)


class _Refinement(NamedTuple):
    """State between rounds; ``history`` is the deviance by step, NaN for steps not taken."""

    step: Array
    weights: Array
    log_platform: Array
    theta: Array
    history: Array


@jit_quickly(static_argnums=(15,))
def refinement_rounds(
    counts,
    depth,
    spots,
    base,
    anchor,
    used,
    dispersion,
    excess,
    error,
    spread,
    openness,
    prior_counts,
    rate,
    refine,
    platform_effect,
    rounds,
):
    """Alternate spots, platform factor and deviations until the deviance settles; unused rounds of it are NaN.

    The first ``spots`` rows of ``counts`` are worked on chunk by chunk, see
    :mod:`~diffbio_sc.numerics.counts.spot_chunks`; ``depth`` are their sums.
    """
    types, genes = base.shape
    filled = jnp.maximum((depth > 0).sum(), 1).astype(base.dtype)
    none = jnp.zeros_like(base)
    kept = spread**2 / (spread**2 + _RESIDUAL_NOISE**2)
    anchor = jnp.where(platform_effect, kept * anchor, 0.0)

    def signature(log_platform, theta):
        return base * jnp.exp(log_platform) * theta

    def update_platform(now):
        mu = signature(now.log_platform, now.theta)

        def add(sums, take, _):
            here = take(counts)
            mean = regression.expected_counts(take(now.weights), take(depth), mu)
            trust = 1.0 / regression.variance_ratio(mean, dispersion, excess)
            return sums[0] + (trust * here).sum(0), sums[1] + (trust * mean).sum(0)

        visited = jnp.where(platform_effect & (now.step >= FIRST_STEPS), spots, 0)
        observed, expected = over_chunks(visited, add, (none[0], none[0]))
        target = now.log_platform + jnp.log((observed + 0.5) / (expected + 0.5))
        target = shrunken_log_ratio(target - masked_median(target, used), spread)
        target = anchor + openness * (target - anchor)
        new = now.log_platform + _DAMPING * (target - now.log_platform)
        new = (new - masked_median(new, used)) * used
        return jnp.where(visited > 0, new, now.log_platform)

    def update_deviation(now, log_platform):
        scaled = base * jnp.exp(log_platform)

        def add(sums, take, _):
            mean = regression.expected_counts(take(now.weights), take(depth), scaled * now.theta)
            trust = 1.0 / regression.variance_ratio(mean, dispersion, excess)
            exposure = (take(now.weights) * take(depth)[:, None]).T
            expected, observed = exposure @ trust, exposure @ (trust * take(counts) / mean)
            return sums[0] + expected, sums[1] + observed, sums[2] + mean.sum(0)

        visited = jnp.where(refine & (now.step >= FIRST_STEPS), spots, 0)
        expected, observed, average = over_chunks(visited, add, (none, none, none[0]))
        expected, observed = scaled * expected, scaled * now.theta * observed
        prior = prior_counts + rate * expected.mean(0, keepdims=True)
        deviation = scaled * ((observed + prior) / (expected + prior) - 1.0)
        # What the other signatures could explain as well is a change of weights, not of signatures.
        average = jnp.maximum(average / filled, negative_binomial.SMALLEST_MEAN)
        metric = used / (average * regression.variance_ratio(average, dispersion, excess))
        gram = (scaled * metric) @ scaled.T
        gram = gram + 1e-3 * jnp.trace(gram) / types * jnp.eye(types, dtype=gram.dtype)
        explained = _solve_positive(gram, (scaled * metric) @ deviation.T).T @ scaled
        deviation = deviation - _UNEXPLAINED_ONLY * explained
        new = 1.0 + deviation / jnp.where(scaled > 0, scaled, 1.0)
        return jnp.where(visited > 0, jnp.clip(new, 0.02, 50.0), now.theta)

    def one_round(now: _Refinement) -> _Refinement:
        # The first steps find the weights alone; in the same loop, so that they are compiled once.
        log_platform = update_platform(now)
        theta = update_deviation(now, log_platform)
        mu = signature(log_platform, theta)
        products = regression.pair_products(mu)
        size = jnp.where(now.step == 0, 1.0, regression.DAMPED_STEP)

        def move(carry, take, put):
            here, theirs, last = take(counts), take(depth), take(carry[0])
            new = regression.fisher_step(
                last, here, theirs, mu, dispersion, products, excess=excess, error=error
            ).weights
            new = last + size * (new - last)
            mean = regression.expected_counts(new, theirs, mu)
            deviance = (negative_binomial.negative_binomial_deviance(here, mean, dispersion) * used).sum()
            return put(carry[0], new), carry[1] + deviance

        weights, deviance = over_chunks(spots, move, (now.weights, none[0, 0]))
        history = now.history.at[now.step].set(deviance / jnp.maximum(depth.sum(), 1.0))
        return _Refinement(now.step + 1, weights, log_platform, theta, history)

    def unfinished(now: _Refinement) -> Array:
        # Rounds may alternate between two states of nearly the same deviance: compare with the last but one.
        last, last_but_one = now.history[now.step - 1], now.history[now.step - 3]
        moving = jnp.abs(last - last_but_one) > CONVERGED * jnp.abs(last)
        return (now.step < total) & ((now.step < FIRST_STEPS + 4) | moving)

    total = FIRST_STEPS + rounds
    end = lax.while_loop(
        unfinished,
        one_round,
        _Refinement(
            jnp.int32(0),
            jnp.full((len(counts), types), 1.0 / types, base.dtype),
            anchor - masked_median(anchor, used) * used,
            jnp.ones_like(base),
            jnp.full(total, jnp.nan, base.dtype),
        ),
    )
    return end.log_platform * used, jnp.log(end.theta) * used, end.history[FIRST_STEPS:]
