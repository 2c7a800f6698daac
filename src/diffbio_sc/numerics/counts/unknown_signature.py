"""The one signature outside the reference that explains most of what the reference leaves over."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from diffbio_sc.numerics.counts import regression
from diffbio_sc.numerics.counts.negative_binomial import negative_binomial_deviance


@partial(jax.jit, static_argnums=(5,))
def unknown_rounds(counts, weights, mu, dispersion, used, rounds, side=1.0):
    """Signature of sum 1 that, added to ``mu``, explains most of the residuals of ``weights``.

    It starts from the genes in excess on one side of the residuals' leading component: that of which few spots have
    much (``side`` 1), or the other (-1). Also returned are its share of each spot, and the spots' negative binomial
    deviance.
    """
    depth = counts.sum(-1)
    filled = (depth > 0).astype(counts.dtype)
    mean = regression.expected_counts(weights, depth, mu)
    residual = (counts - mean) / jnp.sqrt(jnp.maximum(mean, 1e-2) * (1.0 + dispersion * mean))
    residual = jnp.clip(residual, -5.0, 10.0) * used * filled[:, None]
    # Power iteration on genes: the leading right singular vector, without the full decomposition.
    start = residual.T @ jnp.abs(residual).sum(1)

    def power(_, vector):
        vector = residual.T @ (residual @ vector)
        return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)

    loading = jax.lax.fori_loop(0, 20, power, start / jnp.maximum(jnp.linalg.norm(start), 1e-12))
    scores = residual @ loading
    centred = (scores - scores.sum() / filled.sum()) * filled
    loading = jnp.maximum(loading * side * jnp.sign((centred**3).sum()), 0.0)
    average = mean.sum(0) / filled.sum()
    signature = loading * jnp.sqrt(average * (1.0 + dispersion * average))
    signature = (signature + 1e-3 * loading.max() * average / average.sum()) * used
    signature = signature / signature.sum()
    weights = jnp.concatenate([0.95 * weights, jnp.full((len(depth), 1), 0.05, weights.dtype)], axis=1)

    def one_round(carry, _):
        weights, signature = carry
        both = jnp.concatenate([mu, signature[None]])
        products = regression.pair_products(both)
        weights = regression.fisher_step(weights, counts, depth, both, dispersion, products).weights
        mean = regression.expected_counts(weights, depth, both)
        trust = 1.0 / (1.0 + dispersion * mean)
        exposure = weights[:, -1] * depth
        signature = signature * (exposure @ (trust * counts / mean) + 1e-9) / (exposure @ trust + 1e-9)
        signature = (signature + 1e-8) * used
        return (weights, signature / signature.sum()), None

    weights, signature = jax.lax.scan(one_round, (weights, signature), None, length=rounds)[0]
    mean = regression.expected_counts(weights, depth, jnp.concatenate([mu, signature[None]]))
    deviance = (negative_binomial_deviance(counts, mean, dispersion) * used).sum(-1)
    return signature, weights[:, -1] / jnp.maximum(weights.sum(-1), 1e-12) * filled, deviance
