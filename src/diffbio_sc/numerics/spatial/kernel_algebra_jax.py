"""Kernel matrices as products and spectra, whole or through inducing spots, and projections; differentiable."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.spatial.kernels import kernel_matrix

_JITTER = 1e-4  # of the inducing spots' kernel: a Cholesky factor in float32 needs so much


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel matrix: ``matrix`` itself, or ``matrix @ matrix.T`` where it ``is_factor``."""

    matrix: Float[Array, "spots columns"]
    is_factor: bool = dataclasses.field(metadata={"static": True})

    def times(self, vectors: Float[Array, "spots columns"]) -> Float[Array, "spots columns"]:
        """Product with columns."""
        if self.is_factor:
            return self.matrix @ (self.matrix.T @ vectors)
        return self.matrix @ vectors

    def diagonal(self) -> Float[Array, " spots"]:
        """Its diagonal."""
        return jnp.square(self.matrix).sum(1) if self.is_factor else jnp.diagonal(self.matrix)


def inducing_kernel(
    coordinates: Float[Array, "spots axes"],
    lengthscale: Float[Array, ""],
    kind: str = "rbf",
    period: float = 1.0,
    count: int = 0,
) -> Kernel:
    """Kernel between spots, or its approximation through ``count`` inducing spots if there are more spots than that."""
    if not 0 < count < len(coordinates):
        return Kernel(kernel_matrix(coordinates, lengthscale, kind, period), False)
    if kind == "linear":  # of low rank as it is
        return Kernel((coordinates - coordinates.mean(0)) / lengthscale, True)
    inducing = coordinates[spread_out(jax.lax.stop_gradient(coordinates), count)]
    among = kernel_matrix(inducing, lengthscale, kind, period)
    across = kernel_matrix(coordinates, lengthscale, kind, period, other=inducing)
    root = jnp.linalg.cholesky(among + _JITTER * jnp.eye(count, dtype=among.dtype))
    return Kernel(jax.scipy.linalg.solve_triangular(root, across.T, lower=True).T, True)


def spread_out(coordinates, count):
    """Indices of spots, each farthest from all before it; the first is the one farthest from the middle."""

    def choose(number, state):
        chosen, distance = state
        new = jnp.argmax(distance)
        chosen = chosen.at[number].set(new)
        return chosen, jnp.minimum(distance, jnp.square(coordinates - coordinates[new]).sum(1))

    first = jnp.argmax(jnp.square(coordinates - coordinates.mean(0)).sum(1))
    chosen = jnp.zeros(count, first.dtype).at[0].set(first)
    distance = jnp.square(coordinates - coordinates[first]).sum(1)
    return jax.lax.fori_loop(1, count, choose, (chosen, distance))[0]


def orthonormal(design):
    """Orthonormal columns that span the design; a column that the others span becomes zero."""
    columns: list[Array] = []
    for index in range(design.shape[1]):
        column = design[:, index]
        for other in columns:
            column = column - other * (other @ column)
        norm = jnp.square(column).sum()
        good = norm > 1e-8 * jnp.maximum(jnp.square(design[:, index]).sum(), 1e-12)
        columns.append(jnp.where(good, column / jnp.sqrt(jnp.where(good, norm, 1.0)), 0.0))
    return jnp.stack(columns, 1)


def project_out(basis, vectors):
    """Take the basis out of the columns of ``vectors``."""
    return vectors - basis @ (basis.T @ vectors)


def eigenbasis(kernel: Kernel, basis, times):
    """Eigenvectors of ``times``, held, and its eigenvalues, differentiable as Rayleigh quotients."""
    if kernel.is_factor:
        factor = jax.lax.stop_gradient(project_out(basis, kernel.matrix))
        vectors = jnp.linalg.svd(factor, full_matrices=False)[0]
    else:
        dense = jax.lax.stop_gradient(times(jnp.eye(len(basis), dtype=basis.dtype)))
        vectors = jnp.linalg.eigh(0.5 * (dense + dense.T))[1]
    vectors = jax.lax.stop_gradient(vectors)
    return vectors, (vectors * times(vectors)).sum(0)
