"""Many small non-negative quadratic programmes at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def nonnegative_quadratic(
    hessian: Float[Array, "problems k k"],
    linear: Float[Array, "problems k"],
    start: Float[Array, "problems k"],
    sweeps: int = 8,
) -> Float[Array, "problems k"]:
    """Minimise ``x'Hx / 2 - b'x`` over ``x >= 0`` for a batch of problems, by cyclic coordinate descent.

    Each sweep passes once over the k coordinates, for all problems together; the residual ``b - Hx`` is kept up to
    date, so that a coordinate costs O(k). A coordinate without curvature (an all-zero row of H) keeps its start.
    """
    diagonal = jnp.diagonal(hessian, axis1=-2, axis2=-1)
    curvature = jnp.where(diagonal > 0, diagonal, 1.0)
    # Coordinates first: each step then reads one contiguous slice.
    rows = jnp.moveaxis(hessian, 1, 0)

    def coordinate(k, carry):
        x, residual = carry
        new = jnp.maximum(x[:, k] + residual[:, k] / curvature[:, k], 0.0)
        new = jnp.where(diagonal[:, k] > 0, new, x[:, k])
        return x.at[:, k].set(new), residual - rows[k] * (new - x[:, k])[:, None]

    def sweep(_, carry):
        return jax.lax.fori_loop(0, start.shape[1], coordinate, carry)

    residual = linear - jnp.einsum("skl,sl->sk", hessian, start)
    return jax.lax.fori_loop(0, sweeps, sweep, (start, residual))[0]
