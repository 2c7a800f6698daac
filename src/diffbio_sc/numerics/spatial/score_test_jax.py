"""Score test of one kernel for many genes at once, differentiable; the twin of ``score_test`` at one lengthscale.

Differs from it in: 1. one lengthscale and one kind of residual (the score), therefore no combination; 2. the null
spectrum of each gene is interpolated from three, in place of classes of genes; 3. no correction for the discreteness of
counts beyond their kurtosis.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.spatial.kernel_algebra_jax import Kernel, eigenbasis, orthonormal, project_out
from diffbio_sc.numerics.spatial.quadratic_forms_jax import log_tail
from diffbio_sc.numerics.spatial.residuals_jax import Residuals

# Where 1 / (1 + c) has these values the null spectrum is computed; between them it is interpolated.
_SPECTRUM_NODES = (0.0, 0.5, 1.0)


class _NullLaw(NamedTuple):
    """Law of t if no gene has a pattern: sum_j multiplicity_j (eigenvalues_j - t) chi^2_1 > 0."""

    eigenvalues: Float[Array, " terms"]
    multiplicity: Float[Array, " terms"]


@jax.jit
def log_pvalues(kernel: Kernel, residuals: Residuals) -> Float[Array, " genes"]:
    """Log p-value of each gene's statistic t under its null law."""
    # The diagonal carries no information on place, but its share in the statistic varies with the counts' kurtosis.
    # A factored kernel has no exact spectrum without it, and keeps it.
    diagonal = jnp.zeros_like(residuals.depth) if kernel.is_factor else kernel.diagonal()
    if residuals.weights is None or residuals.sharpness is None:
        basis = orthonormal(residuals.design)
        values = project_out(basis, residuals.values)
        scores, variances = values, jnp.ones_like(values)
        law = _null_law(kernel, diagonal, basis, jnp.ones_like(residuals.depth))
        eigenvalues, multiplicity = law.eigenvalues[None, :], law.multiplicity
    else:
        variances = residuals.weights
        root = jnp.sqrt(variances)
        values = jax.vmap(
            lambda root, values: project_out(orthonormal(root[:, None] * residuals.design), values),
            in_axes=1,
            out_axes=1,
        )(root, residuals.values)
        scores = root * values
        eigenvalues, multiplicity = _interpolated_law(
            kernel, diagonal, residuals.depth, residuals.design, residuals.sharpness
        )
    alive = residuals.alive & (jnp.square(values).sum(0) > 1e-10 * jnp.square(residuals.values).sum(0))
    values, scores = jnp.where(alive, values, 1.0), jnp.where(alive, scores, 1.0)
    energy = jnp.square(values).sum(0)
    statistic = (scores * kernel.times(scores)).sum(0) - diagonal @ jnp.square(scores)
    statistic = statistic / energy
    # Given the absolute scores, the variance of the statistic falls with their kurtosis.
    kurtosis = (scores**4).sum(0) / jnp.square(jnp.square(scores).sum(0))
    expected = 3.0 * jnp.square(variances).sum(0)
    expected = expected / (jnp.square(variances.sum(0)) + 2.0 * jnp.square(variances).sum(0))
    typical = (eigenvalues @ multiplicity) / multiplicity.sum()
    spread = jnp.sqrt((1.0 - expected) / jnp.maximum(1.0 - kurtosis, 0.05))
    statistic = typical + (statistic - typical) * spread
    return jnp.where(alive, log_tail(eigenvalues, multiplicity, statistic), 0.0)


def _null_law(kernel: Kernel, diagonal, basis, weights) -> _NullLaw:
    root = jnp.sqrt(weights)[:, None]
    rank = jax.lax.stop_gradient(jnp.square(basis).sum())
    if kernel.is_factor:
        weighted = Kernel(root * kernel.matrix, True)
        eigenvalues = eigenbasis(weighted, basis, lambda v: project_out(basis, weighted.times(project_out(basis, v))))[
            1
        ]
        eigenvalues = jnp.maximum(eigenvalues, 0.0)
        empty = jnp.maximum(len(root) - rank - len(eigenvalues), 0.0)
        return _NullLaw(
            jnp.append(eigenvalues, 0.0), jnp.append(jnp.ones_like(eigenvalues), empty.astype(eigenvalues.dtype))
        )
    dense = root * (kernel.matrix - jnp.diag(diagonal)) * root.T
    # The nuisance columns are eigenvectors of value 0, in the middle of the spectrum: moved below all others.
    apart = 2.0 * jnp.abs(jax.lax.stop_gradient(dense)).sum(1).max() + 1.0

    def times(vectors):
        inner = project_out(basis, dense @ project_out(basis, vectors))
        return inner - apart * (basis @ (basis.T @ vectors))

    vectors, eigenvalues = eigenbasis(kernel, basis, times)
    nuisance = jax.lax.stop_gradient(jnp.square(basis.T @ vectors).sum(0)) > 0.5
    multiplicity = jnp.where(nuisance, 0.0, 1.0).astype(eigenvalues.dtype)
    return _NullLaw(jnp.where(nuisance, 0.0, eigenvalues), multiplicity)


def _interpolated_law(kernel: Kernel, diagonal, depth, design, sharpness):
    """Spectra by gene, a parabola in 1 / (1 + c) through those of the nodes; sorted, they change smoothly."""
    laws = []
    for node in _SPECTRUM_NODES:
        # 1 / (1 + c) = node: s / (1 + c s) is proportional to s / (node + (1 - node) s).
        weights = jnp.where(depth > 0, depth / (node + (1.0 - node) * jnp.where(depth > 0, depth, 1.0)), 0.0)
        weights = weights / jnp.maximum(weights.mean(), 1e-30)
        laws.append(_null_law(kernel, diagonal, orthonormal(jnp.sqrt(weights)[:, None] * design), weights))
    place = sharpness[:, None]
    eigenvalues = jnp.zeros(())
    for node, law in zip(_SPECTRUM_NODES, laws, strict=True):
        others = [other for other in _SPECTRUM_NODES if other != node]
        share = (place - others[0]) * (place - others[1]) / ((node - others[0]) * (node - others[1]))
        eigenvalues = eigenvalues + share * law.eigenvalues
    return eigenvalues, laws[0].multiplicity
