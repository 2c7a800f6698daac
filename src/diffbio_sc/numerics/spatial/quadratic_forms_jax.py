"""Tail probability of a ratio of quadratic forms, differentiable; the twin of ``quadratic_forms.log_tail``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

_SADDLEPOINT_STEPS = 40


def log_tail(eigenvalues, multiplicity, statistic) -> Float[Array, " genes"]:
    r"""Log P(sum_j n_j (lambda_j - t) chi^2_1 > 0) by the saddlepoint approximation, finite for every t.

    With a_j = lambda_j - t and the cumulant function K(x) = -1/2 sum n_j log(1 - 2 x a_j) at its minimum K'(x) = 0,
    w = sign(x) sqrt(-2 K), u = x sqrt(K''):  log Phi(-w - log(u / w) / w).
    """
    counted = multiplicity > 0.0
    largest = jnp.where(counted, eigenvalues, -jnp.inf).max(1)
    smallest = jnp.where(counted, eigenvalues, jnp.inf).min(1)
    margin = 1e-4 * (largest - smallest)
    statistic = jnp.clip(statistic, smallest + margin, largest - margin)
    terms = jnp.where(counted, eigenvalues - statistic[:, None], 0.0)

    def sums(terms, place):
        ratio = terms / (1.0 - 2.0 * place[:, None] * terms)
        return (multiplicity * ratio).sum(1), 2.0 * (multiplicity * ratio**2).sum(1), ratio

    held = jax.lax.stop_gradient(terms)

    def improve(_, state):
        place, low, high = state
        first, second, _ = sums(held, place)
        low, high = jnp.where(first < 0, place, low), jnp.where(first > 0, place, high)
        new = place - first / second
        return jnp.where((new >= low) & (new <= high), new, 0.5 * (low + high)), low, high

    low = 0.5 / held.min(1) * (1.0 - 1e-6)
    high = 0.5 / held.max(1) * (1.0 - 1e-6)
    place = jax.lax.fori_loop(0, _SADDLEPOINT_STEPS, improve, (jnp.zeros_like(low), low, high))[0]
    place = jax.lax.stop_gradient(place)
    first, second, _ = sums(terms, place)
    place = place - (first - jax.lax.stop_gradient(first)) / jax.lax.stop_gradient(second)
    _, second, ratio = sums(terms, place)
    third = 8.0 * (multiplicity * ratio**3).sum(1)
    cumulant = -0.5 * (multiplicity * jnp.log1p(-2.0 * place[:, None] * terms)).sum(1)
    score = place * jnp.sqrt(second)
    skewness = third / second**1.5
    near = (jnp.abs(score) < 0.1) | (cumulant >= 0)
    root = jnp.sign(place) * jnp.sqrt(jnp.where(near, 1.0, -2.0 * cumulant))
    root = jnp.where(near, 1.0, root)
    far = root + jnp.log(jnp.where(near, 1.0, score / root)) / root
    # Both sides of w = 0 lose all digits there: the expansion of w + log(u / w) / w.
    close = score + skewness / 6.0 * (1.0 - score**2)
    return log_ndtr(-jnp.where(near, close, far))
