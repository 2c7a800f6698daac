"""The one signature outside the reference that explains most of what the reference leaves over."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from diffbio_sc.numerics.counts import regression
from diffbio_sc.numerics.counts.negative_binomial import negative_binomial_deviance
from diffbio_sc.numerics.counts.spot_chunks import over_chunks


@partial(jax.jit, static_argnums=(7,))
def unknown_rounds(counts, depth, spots, weights, mu, dispersion, used, rounds, side=1.0):
    """Signature of sum 1 that, added to ``mu``, explains most of the residuals of ``weights``.

    It starts from the genes in excess on one side of the residuals' leading component: that of which few spots have
    much (``side`` 1), or the other (-1). Also returned are its share of each spot, and the spots' negative binomial
    deviance. The first ``spots`` rows of ``counts`` are worked on chunk by chunk, see
    :mod:`~diffbio_sc.numerics.counts.spot_chunks`; ``depth`` are their sums.
    """
    filled = (depth > 0).astype(counts.dtype)
    no_gene, no_spot = jnp.zeros_like(used), jnp.zeros_like(depth)

    def explain(sums, take, put):
        residual, average, start = sums
        mean = regression.expected_counts(take(weights), take(depth), mu)
        part = (take(counts) - mean) / jnp.sqrt(jnp.maximum(mean, 1e-2) * (1.0 + dispersion * mean))
        part = jnp.clip(part, -5.0, 10.0) * used * take(filled)[:, None]
        return put(residual, part), average + mean.sum(0), start + part.T @ jnp.abs(part).sum(1)

    sums = (jnp.zeros_like(counts), no_gene, no_gene)
    residual, average, start = over_chunks(spots, explain, sums)
    average = average / filled.sum()

    # Power iteration on genes: the leading right singular vector, without the full decomposition.
    def power(_, vector):
        def multiply(total, take, _):
            part = take(residual)
            return total + part.T @ (part @ vector)

        vector = over_chunks(spots, multiply, no_gene)
        return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)

    loading = jax.lax.fori_loop(0, 20, power, start / jnp.maximum(jnp.linalg.norm(start), 1e-12))
    scores = over_chunks(spots, lambda all_, take, put: put(all_, take(residual) @ loading), no_spot)
    centred = (scores - scores.sum() / filled.sum()) * filled
    loading = jnp.maximum(loading * side * jnp.sign((centred**3).sum()), 0.0)
    signature = loading * jnp.sqrt(average * (1.0 + dispersion * average))
    signature = (signature + 1e-3 * loading.max() * average / average.sum()) * used
    signature = signature / signature.sum()
    weights = jnp.concatenate([0.95 * weights, jnp.full((len(depth), 1), 0.05, weights.dtype)], axis=1)

    def one_round(_, now):
        weights, signature = now
        both = jnp.concatenate([mu, signature[None]])
        products = regression.pair_products(both)

        def move(carry, take, put):
            weights, observed, expected = carry
            here, theirs = take(counts), take(depth)
            new = regression.fisher_step(take(weights), here, theirs, both, dispersion, products).weights
            mean = regression.expected_counts(new, theirs, both)
            trust = 1.0 / (1.0 + dispersion * mean)
            exposure = new[:, -1] * theirs
            return put(weights, new), observed + exposure @ (trust * here / mean), expected + exposure @ trust

        weights, observed, expected = over_chunks(spots, move, (weights, no_gene, no_gene))
        signature = (signature * (observed + 1e-9) / (expected + 1e-9) + 1e-8) * used
        return weights, signature / signature.sum()

    weights, signature = jax.lax.fori_loop(0, rounds, one_round, (weights, signature))
    both = jnp.concatenate([mu, signature[None]])

    def judge(deviance, take, put):
        mean = regression.expected_counts(take(weights), take(depth), both)
        return put(deviance, (negative_binomial_deviance(take(counts), mean, dispersion) * used).sum(-1))

    deviance = over_chunks(spots, judge, no_spot)
    return signature, weights[:, -1] / jnp.maximum(weights.sum(-1), 1e-12) * filled, deviance
