"""Signatures refined on the spots themselves: a platform factor for each gene, and each type's own deviations."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffbio_sc.numerics.counts import negative_binomial, regression

FIRST_STEPS = 4  # of Fisher scoring, before signatures are updated
CONVERGED = 2e-4  # relative change of the deviance over two rounds
_DAMPING = 0.5  # of the platform step, against the alternation between two states that full steps show
# What the constants below do to the error, set by set: benchmarks/deconvolution.py constants, left_out.
_CLIPPED_RESIDUAL = 1.0  # in units of the spread of gamma, the width of its robust prior
_RESIDUAL_NOISE = 0.15  # of a gene's log ratio, from what sampling and model error leave
_UNEXPLAINED_ONLY = 0.1  # of the part of a deviation that other signatures explain as well, how much is taken out


def masked_median(values, used):
    """Median of the genes used."""
    return jnp.nanmedian(jnp.where(used > 0, values, jnp.nan))


def shrunken_log_ratio(log_ratio, spread):
    """Log factor of a gene from its log ratio of observed to expected counts, whose standard deviation is ``spread``.

    Soft towards 0 for ratios within the spread, by a constant beyond it: factors have heavy tails.
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


@partial(jax.jit, static_argnums=(13,))
def refinement_rounds(
    counts,
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
    """Alternate spots, platform factor and deviations until the deviance settles; unused rounds of it are NaN."""
    depth = counts.sum(-1)
    types = base.shape[0]
    kept = spread**2 / (spread**2 + _RESIDUAL_NOISE**2)
    anchor = jnp.where(platform_effect, kept * anchor, 0.0)

    def signature(log_platform, theta):
        return base * jnp.exp(log_platform) * theta

    def weighted(weights, mu):
        mean = regression.expected_counts(weights, depth, mu)
        return mean, 1.0 / regression.variance_ratio(mean, dispersion, excess)

    def update_platform(weights, log_platform, theta):
        mean, trust = weighted(weights, signature(log_platform, theta))
        step = jnp.log(((trust * counts).sum(0) + 0.5) / ((trust * mean).sum(0) + 0.5))
        target = log_platform + step
        target = shrunken_log_ratio(target - masked_median(target, used), spread)
        target = anchor + openness * (target - anchor)
        new = log_platform + _DAMPING * (target - log_platform)
        new = (new - masked_median(new, used)) * used
        return jnp.where(platform_effect, new, log_platform)

    def update_deviation(weights, log_platform, theta):
        scaled = base * jnp.exp(log_platform)
        mean, trust = weighted(weights, scaled * theta)
        exposure = (weights * depth[:, None]).T
        expected = scaled * (exposure @ trust)
        observed = scaled * theta * (exposure @ (trust * counts / mean))
        prior = prior_counts + rate * expected.mean(0, keepdims=True)
        deviation = scaled * ((observed + prior) / (expected + prior) - 1.0)
        # What the other signatures could explain as well is a change of weights, not of signatures.
        average = mean.mean(0)
        metric = used / (average * regression.variance_ratio(average, dispersion, excess))
        gram = (scaled * metric) @ scaled.T
        gram = gram + 1e-3 * jnp.trace(gram) / types * jnp.eye(types, dtype=gram.dtype)
        explained = jnp.linalg.solve(gram, (scaled * metric) @ deviation.T).T @ scaled
        deviation = deviation - _UNEXPLAINED_ONLY * explained
        new = 1.0 + deviation / jnp.where(scaled > 0, scaled, 1.0)
        return jnp.where(refine, jnp.clip(new, 0.02, 50.0), theta)

    def one_round(now: _Refinement) -> _Refinement:
        # The first steps find the weights alone; in the same loop, so that they are compiled once.
        first = now.step < FIRST_STEPS
        log_platform = update_platform(now.weights, now.log_platform, now.theta)
        log_platform = jnp.where(first, now.log_platform, log_platform)
        theta = jnp.where(first, now.theta, update_deviation(now.weights, log_platform, now.theta))
        mu = signature(log_platform, theta)
        products = regression.pair_products(mu)
        new = regression.fisher_step(
            now.weights, counts, depth, mu, dispersion, products, excess=excess, error=error
        ).weights
        size = jnp.where(now.step == 0, 1.0, regression.DAMPED_STEP)
        weights = now.weights + size * (new - now.weights)
        mean, _ = weighted(weights, mu)
        deviance = (negative_binomial.negative_binomial_deviance(counts, mean, dispersion) * used).sum()
        history = now.history.at[now.step].set(deviance / jnp.maximum(counts.sum(), 1.0))
        return _Refinement(now.step + 1, weights, log_platform, theta, history)

    def unfinished(now: _Refinement) -> Array:
        # Rounds may alternate between two states of nearly the same deviance: compare with the last but one.
        last, last_but_one = now.history[now.step - 1], now.history[now.step - 3]
        moving = jnp.abs(last - last_but_one) > CONVERGED * jnp.abs(last)
        return (now.step < total) & ((now.step < FIRST_STEPS + 4) | moving)

    total = FIRST_STEPS + rounds
    end = jax.lax.while_loop(
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
