"""The differentiable twin of :mod:`diffbio_sc.numerics.genome.compartments`, on bands.

The eigenvector comes from Lanczos steps with full reorthogonalisation. For a cotangent g of the vector v of the largest
eigenvalue the cotangent of the matrix is p v', where p solves (value - M) p = g - v v'g in what is orthogonal to v, by
conjugate gradients. A small shift keeps the solve finite when the next eigenvalue is close: vectors that may swap have
no useful gradient of their own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.genome.balancing_jax import conjugate_gradients
from diffbio_sc.numerics.genome.bands_jax import ahead, band_product
from diffbio_sc.numerics.genome.compartments import WINSOR_DEVIATIONS, WINSOR_DISPERSION

LANCZOS_STEPS = 80
TIE = 1e-5
"""Shift of the solve, in units of the eigenvalue."""


def weighted_band(
    band: Float[Array, "depth n"],
    expected: Float[Array, "depth n"],
    nearest: int,
    gamma: float,
) -> tuple[Float[Array, "depth n"], Float[Array, " n"]]:
    """Band of L^gamma (O / L - 1) with winsorised counts, and the sums of the weights L^gamma of each bin.

    ``expected`` is 0 for pairs that are left out, as are those nearer than ``nearest``.
    """
    depth = band.shape[0]
    far = (expected > 0) & jnp.asarray(np.arange(depth) >= nearest)[:, None]
    safe = jnp.where(far, expected, 1.0)
    limit = safe + WINSOR_DEVIATIONS * jnp.sqrt(safe + WINSOR_DISPERSION * safe**2) + 1.0
    weight = jnp.where(far, safe**gamma, 0.0)
    value = jnp.where(far, jnp.minimum(band, limit) * safe ** (gamma - 1.0) - weight, 0.0)
    return value, band_product(weight, jnp.ones(band.shape[1], band.dtype))


@jax.custom_vjp
def leading_vector(
    band: Float[Array, "depth n"], start: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Largest eigenvalue and its vector, of length 1, of the symmetric matrix with the given band."""
    return _lanczos(band, start)


def _lanczos(band, start):
    n = band.shape[1]
    steps = min(LANCZOS_STEPS, n)
    first = start / jnp.linalg.norm(start)

    def advance(state, k):
        basis, vector = state
        basis = basis.at[k].set(vector)
        image = band_product(band, vector)
        diagonal = vector @ image
        for _ in range(2):  # once is not enough in single precision
            image = image - basis.T @ (basis @ image)
        size = jnp.linalg.norm(image)
        following = jnp.where(size > 1e-7, image / jnp.maximum(size, 1e-30), 0.0)
        return (basis, following), (diagonal, size)

    basis = jnp.zeros((steps, n), band.dtype)
    (basis, _), (diagonal, size) = jax.lax.scan(advance, (basis, first), jnp.arange(steps))
    small = jnp.diag(diagonal) + jnp.diag(size[:-1], 1) + jnp.diag(size[:-1], -1)
    values, vectors = jnp.linalg.eigh(small)
    vector = basis.T @ vectors[:, -1]
    return values[-1], vector / jnp.linalg.norm(vector)


def _forward(band, start):
    value, vector = _lanczos(band, start)
    return (value, vector), (band, value, vector)


@full_products()
def _backward(saved, cotangents):
    band, value, vector = saved
    of_value, of_vector = cotangents

    def project(v):
        return v - vector * (vector @ v)

    shifted = value * (1.0 + TIE)
    right = project(of_vector)
    solution = conjugate_gradients(
        lambda v: shifted * v - project(band_product(band, project(v))),
        right,
        jnp.ones_like(right),
        10 * jnp.finfo(band.dtype).eps,
        300,
    )
    _, pull = jax.vjp(lambda matrix: band_product(matrix, vector), band)
    return pull(project(solution) + of_value * vector)[0], None


leading_vector.defvjp(_forward, _backward)


def compartment_vector(
    band: Float[Array, "depth n"],
    expected: Float[Array, "depth n"],
    nearest: int,
    gamma: float,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Largest eigenvalue and its vector of the weighted problem, weighted mean square 1, 0 for bins left out."""
    value, weight = weighted_band(band, expected, nearest, gamma)
    used = weight > 1e-6 * weight.max()
    scale = jnp.where(used, 1.0 / jnp.sqrt(jnp.where(used, weight, 1.0)), 0.0)
    scaled = value * scale * ahead(scale, band.shape[0])
    start = jax.random.normal(jax.random.key(0), (band.shape[1],), band.dtype) * used
    eigenvalue, vector = leading_vector(scaled, start)
    return eigenvalue, vector * scale * jnp.sqrt(jnp.where(used, weight, 0.0).sum())
