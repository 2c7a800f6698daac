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
    # Problems last: each step then works on contiguous slices, however few coordinates there are.
    rows, start, linear = jnp.moveaxis(hessian, 0, -1), start.T, linear.T
    size = len(start)
    diagonal = rows[jnp.arange(size), jnp.arange(size)]
    curvature = jnp.where(diagonal > 0, diagonal, 1.0)

    def coordinate(step, carry):
        x, residual = carry
        k = step % size
        new = jnp.maximum(x[k] + residual[k] / curvature[k], 0.0)
        new = jnp.where(diagonal[k] > 0, new, x[k])
        return x.at[k].set(new), residual - rows[k] * (new - x[k])

    residual = linear - jnp.einsum("kls,ls->ks", rows, start)
    return jax.lax.fori_loop(0, sweeps * size, coordinate, (start, residual))[0].T
