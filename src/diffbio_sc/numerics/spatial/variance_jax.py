"""Ratio of spatial to other variance of many genes, differentiable; the twin of ``variance`` at one lengthscale.

Differs from it in: 1. a broad prior of the log ratio, so that its maximum always exists and moves smoothly; 2. the
kernel and its lengthscale are given, and gradients reach them; 3. float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.spatial.kernel_algebra_jax import Kernel, eigenbasis, orthonormal, project_out
from diffbio_sc.numerics.spatial.residuals_jax import Residuals

_PRIOR_DEVIATION = 3.0  # of log(s_s^2 / s_e^2)
_LARGEST_LOG_RATIO = 9.0
_GRID_POINTS = 37
_NEWTON_STEPS = 12


class RatioFit(NamedTuple):
    """Variance components of all genes; ``objective`` is the log posterior at the maximum, per degree of freedom."""

    fsv: Float[Array, " genes"]
    signal: Float[Array, " genes"]
    posterior_mean: Float[Array, "spots genes"]
    objective: Float[Array, " genes"]


@jax.jit
def fit_ratios(kernel: Kernel, residuals: Residuals, prior) -> RatioFit:
    r"""Maximise the log posterior of theta = log(s_s^2 / s_e^2) of each gene.

    With C = I + exp(theta) PKP, residuals r = Py, w = C^-1 r, q = r'w and m degrees of freedom,

        J(theta)  = -m/2 log q - 1/2 log det C - (theta - prior)^2 / (2 * 3^2)
        J'(theta) = m/2 (q - w'w) / q - 1/2 sum_j (1 - 1 / (1 + exp(theta) lambda_j)) - (theta - prior) / 3^2

    The maximum is found with the eigenvectors of PKP. The same J' at fixed theta, written with a linear solve and with
    eigenvalues that can be differentiated, gives the maximum its derivative: d theta = -(1 / J'') dJ'.
    """
    basis = orthonormal(residuals.design)
    freedom = len(residuals.values) - jax.lax.stop_gradient(jnp.square(basis).sum())
    values = project_out(basis, residuals.values)
    power = jnp.square(values).sum(0)
    alive = residuals.alive & (power > 1e-10 * jnp.square(residuals.values).sum(0))
    scale = jnp.sqrt(jnp.where(alive, power, 1.0) / freedom)
    values = jnp.where(alive, values / scale, 0.0)

    def times(vectors):
        return project_out(basis, kernel.times(project_out(basis, vectors)))

    vectors, eigenvalues = eigenbasis(kernel, basis, times)
    eigenvalues = jnp.maximum(eigenvalues, 0.0)
    held = jax.lax.stop_gradient(eigenvalues)[:, None]
    squares = jnp.square(vectors.T @ jax.lax.stop_gradient(values))
    centre = jax.lax.stop_gradient(prior)
    theta, curvature = _largest_posterior(held[:, 0], squares, freedom, centre)

    def whiten(log_ratio):
        ratio = jnp.exp(log_ratio)
        load = jax.lax.stop_gradient(ratio) * held

        def solve(_, right):
            return right - vectors @ (load / (1.0 + load) * (vectors.T @ right))

        return jax.lax.custom_linear_solve(lambda left: left + ratio * times(left), values, solve, symmetric=True)

    white = whiten(theta)
    quadratic = jnp.where(alive, (values * white).sum(0), 1.0)
    load = jnp.exp(theta) * eigenvalues[:, None]
    objective = -0.5 * (freedom * jnp.log(quadratic / freedom) + jnp.log1p(load).sum(0))
    objective = objective - 0.5 * jnp.square((theta - prior) / _PRIOR_DEVIATION)
    slope = 0.5 * freedom * (1.0 - jnp.square(white).sum(0) / quadratic) - 0.5 * (load / (1.0 + load)).sum(0)
    slope = slope - (theta - prior) / _PRIOR_DEVIATION**2
    free = alive & (jnp.abs(theta) < _LARGEST_LOG_RATIO) & (curvature < 0)
    step = (slope - jax.lax.stop_gradient(slope)) / jnp.where(free, -curvature, 1.0)
    theta = theta + jnp.where(free, step, 0.0)

    share = eigenvalues.sum() / freedom
    ratio = share * jnp.exp(theta)
    white = whiten(theta)
    noise = jnp.where(alive, (values * white).sum(0), 0.0) / freedom * jnp.square(scale)
    return RatioFit(
        fsv=jnp.where(alive, ratio / (1.0 + ratio), 0.0),
        signal=jnp.where(alive, ratio * noise, 0.0),
        # r - C^-1 r is the best linear prediction of the field where mean and depth slope are estimated too.
        posterior_mean=jnp.where(alive, (values - white) * scale, 0.0),
        objective=jnp.where(alive, objective / freedom, 0.0),
    )


def _largest_posterior(eigenvalues, squares, freedom, prior):
    """Maximum of J over a grid, which may have several, then safeguarded Newton steps; and J'' there."""
    rest = jnp.maximum(jnp.where(squares.sum(0) > 0, freedom, 0.0) - squares.sum(0), 0.0)
    grid = jnp.linspace(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO, _GRID_POINTS, dtype=squares.dtype)
    load = jnp.exp(grid)[:, None] * eigenvalues
    quadratic = jnp.maximum((1.0 / (1.0 + load)) @ squares + rest, 1e-30)
    flat = jnp.log1p(load).sum(1) + jnp.square((grid - prior) / _PRIOR_DEVIATION)
    start = grid[jnp.argmax(-0.5 * (freedom * jnp.log(quadratic) + flat[:, None]), axis=0)]
    width = grid[1] - grid[0]
    low, high = jnp.maximum(start - width, grid[0]), jnp.minimum(start + width, grid[-1])

    def derivatives(theta):
        load = jnp.exp(theta) * eigenvalues[:, None]
        kept = 1.0 / (1.0 + load)
        first = jnp.maximum((kept * squares).sum(0) + rest, 1e-30)
        second = (jnp.square(kept) * squares).sum(0) + rest
        third = (kept**3 * squares).sum(0) + rest
        slope = 0.5 * freedom * (1.0 - second / first) - 0.5 * (1.0 - kept).sum(0)
        slope = slope - (theta - prior) / _PRIOR_DEVIATION**2
        bend = 2.0 * (second - third) / first - second * (first - second) / jnp.square(first)
        curvature = 0.5 * freedom * bend - 0.5 * (kept * (1.0 - kept)).sum(0) - 1.0 / _PRIOR_DEVIATION**2
        return slope, curvature

    def improve(_, state):
        theta, low, high = state
        slope, curvature = derivatives(theta)
        low, high = jnp.where(slope > 0, theta, low), jnp.where(slope < 0, theta, high)
        new = theta - slope / jnp.where(curvature < 0, curvature, -1.0)
        inside = (new >= low) & (new <= high) & (curvature < 0)  # ends included: there it has converged
        return jnp.where(inside, new, 0.5 * (low + high)), low, high

    theta = jax.lax.fori_loop(0, _NEWTON_STEPS, improve, (start, low, high))[0]
    # A bracket that closes at the end of the grid means that J still rises there.
    end = jnp.where(theta > 0, grid[-1], grid[0])
    theta = jnp.where(jnp.abs(theta - end) < 1e-3, end, theta)
    return jax.lax.stop_gradient((theta, derivatives(theta)[1]))
