"""The differentiable twin of :mod:`diffbio_sc.numerics.genome.decay`: sums by distance, and the regression's solution.

The gradient of the solution is that of one Newton step taken at it, which is the implicit one: there the score is zero,
so that the Hessian need not be differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffbio_sc.numerics.genome.bands_jax import ahead
from diffbio_sc.numerics.genome.decay import decay_knots, hat_functions, roughness

STEPS = 30


def hat_matrix(knots: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Values of the hat functions at each distance (distances, knots)."""
    left, share = hat_functions(knots, distances)
    matrix = np.zeros((len(distances), len(knots)))
    rows = np.arange(len(distances))
    np.add.at(matrix, (rows, left), 1.0 - share)
    np.add.at(matrix, (rows, np.minimum(left + 1, len(knots) - 1)), share)
    return matrix


def sums_by_distance(
    band: Float[Array, "depth n"], exposure: Float[Array, " n"]
) -> tuple[Float[Array, " depth"], Float[Array, " depth"]]:
    """Counts and exposures of the pairs of usable bins (exposure above 0) at each distance."""
    depth = band.shape[0]
    products = exposure * ahead(exposure, depth)
    return jnp.where(products > 0, band, 0.0).sum(1), products.sum(1)


def log_decay(
    counts: Float[Array, " depth"], exposure: Float[Array, " depth"], nearest: int, penalty: float
) -> Float[Array, " depth"]:
    """Log P at each distance, by Poisson regression on hat functions; below ``nearest`` it has no meaning.

    Parameters
    ----------
    counts, exposure
        Sums by distance.
    nearest
        Smallest distance used.
    penalty
        Weight of the squared changes of slope.
    """
    depth = counts.shape[0]
    distances = np.arange(depth)
    knots = decay_knots(nearest, depth - 1)
    hats = jnp.asarray(hat_matrix(knots, distances), counts.dtype)
    smooth = jnp.asarray(penalty * roughness(knots), counts.dtype)
    good = (exposure > 0) & jnp.asarray(distances >= nearest)
    counts, exposure = jnp.where(good, counts, 0.0), jnp.where(good, exposure, 0.0)
    # Counts of a typical size keep the regression's numbers within single precision.
    total = jnp.maximum(counts.sum(), 1e-30)
    level = jnp.log(total / jnp.maximum(exposure.sum(), 1e-30))
    seen = hats.T @ counts
    offered = hats.T @ (exposure * jnp.exp(level))
    start = level + jnp.log((seen + 0.5) / (offered + 0.5))

    def step(theta):
        mean = exposure * jnp.exp(hats @ theta)
        score = hats.T @ (counts - mean) - smooth @ (theta - level)
        fisher = hats.T @ (mean[:, None] * hats) + smooth
        fisher = fisher + (1e-6 * (1.0 + jnp.diagonal(fisher).max())) * jnp.eye(len(knots), dtype=counts.dtype)
        return jnp.linalg.solve(jax.lax.stop_gradient(fisher), score)

    def advance(_, theta):
        move = step(theta)
        return theta + move * jnp.minimum(1.0, 2.0 / jnp.maximum(jnp.abs(move).max(), 1e-30))

    solution = jax.lax.stop_gradient(jax.lax.fori_loop(0, STEPS, advance, jax.lax.stop_gradient(start)))
    return hats @ _newton_at(solution, counts, exposure, hats, smooth, jax.lax.stop_gradient(level))


def _newton_at(theta, counts, exposure, hats, smooth, level):
    """One Newton step at the solution; its value is the solution, its gradient the implicit one."""
    mean = exposure * jnp.exp(hats @ theta)
    score = hats.T @ (counts - mean) - smooth @ (theta - level)
    fisher = hats.T @ (jax.lax.stop_gradient(mean)[:, None] * hats) + smooth
    fisher = fisher + (1e-7 * (1.0 + jnp.diagonal(fisher).max())) * jnp.eye(len(theta), dtype=theta.dtype)
    return theta + jnp.linalg.solve(fisher, score)
