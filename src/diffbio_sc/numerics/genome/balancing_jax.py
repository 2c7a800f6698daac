"""The differentiable twin of :mod:`diffbio_sc.numerics.genome.balancing`: same function, implicit gradient.

At the solution g(u, A) = x * (A x) - 1 = 0 with x = exp(u). For a cotangent c of u the cotangent of A is that of
-g(u, .) at l, where l solves H l = c and H is the Hessian diag(x * A x) + diag(x) A diag(x): one more solve by
conjugate gradients, whatever the number of steps of the solver was.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.genome.balancing import LONGEST_STEP, SINKHORN_STEPS
from diffbio_sc.numerics.genome.bands_jax import band_product

NEWTON_STEPS = 30
CG_STEPS = 60


def conjugate_gradients(product, right, scale, tolerance, steps: int = CG_STEPS):
    """Solve a positive definite system, preconditioned by a diagonal, to a relative tolerance."""

    def unfinished(state):
        step, _, _, _, size, target = state
        return (step < steps) & (size > target)

    def advance(state):
        step, solution, residual, direction, size, target = state
        image = product(direction)
        curvature = direction @ image
        length = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        moved = scale * residual
        new = jnp.where(curvature > 0, residual @ moved, 0.0)
        direction = moved + new / jnp.maximum(size, 1e-30) * direction
        return step + 1, solution, residual, direction, new, target

    direction = scale * right
    size = right @ direction
    state = (0, jnp.zeros_like(right), right, direction, size, tolerance**2 * size)
    return jax.lax.while_loop(unfinished, advance, state)[1]


@jax.custom_vjp
def balancing_weights(band: Float[Array, "depth n"], used: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Weights x with x_i (A x)_i = 1 for the used bins of the symmetric matrix with the given band, 0 for others."""
    return _solve(band, used)


def _solve(band, used):
    x = used.astype(band.dtype)
    for _ in range(SINKHORN_STEPS):
        image = band_product(band, x)
        x = jnp.where(used, jnp.sqrt(x / jnp.where(image > 0, image, 1.0)), 0.0)
    precision = jnp.finfo(band.dtype).eps
    tolerance = jnp.asarray(50 * precision, band.dtype)

    def unfinished(state):
        step, _, _, error = state
        return (step < NEWTON_STEPS) & (error > tolerance)

    def advance(state):
        step, x, sums, error = state
        gradient = jnp.where(used, sums - 1.0, 0.0)
        scale = jnp.where(used, 1.0 / jnp.maximum(sums + x * x * band[0], 1e-30), 0.0)
        move = conjugate_gradients(
            lambda v: sums * v + x * band_product(band, x * v), -gradient, scale, jnp.minimum(0.1, error)
        )
        longest = jnp.abs(move).max()
        x = x * jnp.exp(move * jnp.minimum(1.0, LONGEST_STEP / jnp.maximum(longest, 1e-30)))
        sums = x * band_product(band, x)
        return step + 1, x, sums, jnp.abs(jnp.where(used, sums - 1.0, 0.0)).max()

    sums = x * band_product(band, x)
    error = jnp.abs(jnp.where(used, sums - 1.0, 0.0)).max()
    return jax.lax.while_loop(unfinished, advance, (0, x, sums, error))[1]


def _forward(band, used):
    x = _solve(band, used)
    return x, (band, used, x)


def _backward(saved, cotangent):
    band, used, x = saved
    sums = x * band_product(band, x)
    scale = jnp.where(used, 1.0 / jnp.maximum(sums + x * x * band[0], 1e-30), 0.0)
    tolerance = 10 * jnp.finfo(band.dtype).eps
    solution = conjugate_gradients(
        lambda v: sums * v + x * band_product(band, x * v), jnp.where(used, cotangent * x, 0.0), scale, tolerance, 200
    )
    _, pull = jax.vjp(lambda matrix: -x * band_product(matrix, x), band)
    return pull(solution)[0], None


balancing_weights.defvjp(_forward, _backward)


def usable_bins(band: Float[Array, "depth n"]) -> Bool[Array, " n"]:
    """The filters of :func:`diffbio_sc.numerics.genome.balancing.usable_bins` at their defaults."""
    n = band.shape[1]
    ones = jnp.ones(n, band.dtype)
    total = band_product(band, ones)
    number = band_product((band > 0).astype(band.dtype), ones)
    logs = jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)), jnp.nan)
    middle = jnp.nanmedian(logs)
    deviation = jnp.nanmedian(jnp.abs(logs - middle))
    return (total > 0) & (number >= min(10, n // 10)) & (jnp.nan_to_num(logs, nan=-jnp.inf) >= middle - 5.0 * deviation)
