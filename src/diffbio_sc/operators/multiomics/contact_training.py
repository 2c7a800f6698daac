"""What the training of the contact operator lowers, and where its calls of loops start."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import minimize

from diffbio_sc.numerics.genome.loops_jax import neighbourhood_sum
from diffbio_sc.training.losses import masked_mean, poisson_deviance

PLACE = 2
"""Bins within which the place of a known loop is trusted: local maxima of the score are as far apart."""
APART = 3
"""Bins about a known loop of which the pairs are no examples of pairs without one."""
_FARTHEST = 30.0


def deviance(counts: Float[Array, "depth n"], expected: Float[Array, "depth n"]) -> Float[Array, ""]:
    """Poisson deviance of counts from their expectation, the mean over pairs of which something is expected."""
    good = expected > 0
    return masked_mean(poisson_deviance(counts, jnp.where(good, expected, 1.0), smallest=1e-30), good)


def loop_cross_entropy(
    logits: Float[Array, "distance n"], known: Float[Array, "distance n"], counted: Bool[Array, "distance n"]
) -> Float[Array, ""]:
    """Binary cross-entropy of loops, a known loop, each of which is one event.

    Lists of loops say where one is to a bin or two, and a loop covers several pairs. Held against single pairs, scores
    are taught to be wide and to miss the summit. So the odds of the pairs within :data:`PLACE` bins of a known loop are
    added up and should be high; pairs farther than :data:`APART` bins from all known loops should be low; pairs between
    do not count.
    """
    logits = jnp.clip(logits, -_FARTHEST, _FARTHEST)
    loops = jnp.where(known > 0, 1.0, 0.0)
    odds = neighbourhood_sum(jnp.where(counted, jnp.exp(logits), 0.0), PLACE)
    is_event = (loops > 0) & (odds > 0)
    pooled = jnp.log(jnp.where(is_event, odds, 1.0))
    is_other = counted & (neighbourhood_sum(loops, APART) < 0.5)
    missed = jnp.where(is_event, jax.nn.softplus(-pooled), 0.0).sum()
    false = jnp.where(is_other, jax.nn.softplus(logits), 0.0).sum()
    return (missed + false) / jnp.maximum(is_event.sum(), 1)


def calibrated(
    z: Float[Array, "distance n"],
    correction: Float[Array, "distance n"],
    known: Float[Array, "distance n"],
    counted: Bool[Array, "distance n"],
    start: tuple[float, float],
) -> tuple[float, float]:
    """Threshold and log temperature of the loop logits at which :func:`loop_cross_entropy` is smallest.

    The ranking of pairs stays as it is. Without this the first steps of training push the scores of all pairs down, by
    whichever parameter does so, because almost no pair is a loop.
    """

    @jax.jit
    def value(settings, z, correction, known, counted):
        return loop_cross_entropy((z - settings[0]) * jnp.exp(-settings[1]) + correction, known, counted)

    both: Callable = jax.value_and_grad(value)

    def on_host(settings: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = both(jnp.asarray(settings, z.dtype), z, correction, known, counted)
        return float(loss), np.asarray(gradient, np.float64)

    found = minimize(on_host, np.array(start), jac=True, method="L-BFGS-B", bounds=[(None, None), (-3.0, 3.0)])
    if not np.isfinite(found.fun) or found.fun > on_host(np.array(start))[0]:
        return start
    return float(found.x[0]), float(found.x[1])
