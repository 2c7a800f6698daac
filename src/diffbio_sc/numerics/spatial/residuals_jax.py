"""Residuals of values or of counts under the null model, differentiable; the twin of ``gene_moments``."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.spatial.gene_moments import LARGEST_DISPERSION


class Residuals(NamedTuple):
    """Residuals of all genes.

    Attributes
    ----------
    values
        Residuals of constant variance under the null, before projection.
    alive
        Whether the gene varies at all.
    weights
        v by spot and gene, mean 1; None without counts.
    sharpness
        1 / (1 + c), from 1 (Poisson) to 0 (strong overdispersion); None without counts.
    design
        Nuisance columns.
    depth
        s; ones without counts.
    mean, unit
        Smoothed expression is ``mean + unit * residual``.
    target
        Expression on the scale of the smoothed.
    """

    values: Float[Array, "spots genes"]
    alive: Bool[Array, " genes"]
    weights: Float[Array, "spots genes"] | None
    sharpness: Float[Array, " genes"] | None
    design: Float[Array, "spots columns"]
    depth: Float[Array, " spots"]
    mean: Float[Array, " genes"]
    unit: Float[Array, " genes"]
    target: Float[Array, "spots genes"]


@jax.jit
def residuals_of(expression, total) -> Residuals:
    """Return the residuals of log-normalised values, or of counts if the spots' ``total`` counts are given."""
    return _centred_values(expression) if total is None else _count_residuals(expression, total)


def _centred_values(expression) -> Residuals:
    spots, genes = expression.shape
    mean = expression.mean(0)
    return Residuals(
        values=expression - mean,
        alive=_varies(expression - mean, expression),
        weights=None,
        sharpness=None,
        design=jnp.ones((spots, 1), expression.dtype),
        depth=jnp.ones(spots, expression.dtype),
        mean=mean,
        unit=jnp.ones(genes, expression.dtype),
        target=expression,
    )


def _count_residuals(counts, total) -> Residuals:
    filled = total > 0
    typical = total.mean()
    depth = total / jnp.where(typical > 0, typical, 1.0)
    safe = jnp.where(filled, depth, 1.0)
    level = jnp.maximum(depth.sum(), 1e-30)
    mean = counts.sum(0) / level
    shown = mean > 0
    rate = jnp.where(shown, mean, 1.0)
    expected = depth[:, None] * mean
    # E sum (y - s m)^2 = m sum s + alpha m^2 sum s^2.
    excess = jnp.square(counts - expected).sum(0) - rate * level
    dispersion = excess / (jnp.square(rate) * jnp.maximum(jnp.square(depth).sum(), 1e-30))
    strength = jnp.clip(dispersion, 0.0, LARGEST_DISPERSION) * rate
    deviation = jnp.sqrt(safe[:, None] * rate * (1.0 + strength * safe[:, None]))
    weights = depth[:, None] / (1.0 + strength * depth[:, None])
    # A change of the rate by the share g moves the residual by sqrt(m v) g; one mean of sqrt(v) serves all spots.
    visibility = jnp.where(filled[:, None], jnp.sqrt(safe[:, None] / (1.0 + strength * safe[:, None])), 0.0).mean(0)
    return Residuals(
        values=jnp.where(shown & filled[:, None], (counts - expected) / deviation, 0.0),
        alive=shown & _varies(counts - expected, counts),
        weights=weights / jnp.maximum(weights.mean(0), 1e-30),
        sharpness=1.0 / (1.0 + strength),
        design=jnp.stack([jnp.ones_like(depth), _standard_log(safe, filled)], 1),
        depth=depth,
        mean=mean,
        unit=jnp.where(shown, jnp.sqrt(rate) / jnp.maximum(visibility, 1e-30), 0.0),
        target=counts / safe[:, None],
    )


def _varies(residuals, expression):
    # Rounding leaves residuals of a constant of about 1e-7 of it, whose squares are far below this.
    return jnp.square(residuals).sum(0) > 1e-11 * jnp.square(expression).sum(0)


def _standard_log(depth, filled):
    logs = jnp.where(filled, jnp.log(depth), 0.0)
    logs = jnp.where(filled, logs - logs.sum() / jnp.maximum(filled.sum(), 1), 0.0)
    spread = jnp.square(logs).mean()
    return jnp.where(spread > 1e-8, logs / jnp.sqrt(jnp.where(spread > 1e-8, spread, 1.0)), 0.0)
