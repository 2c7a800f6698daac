"""Non-negative regression of counts on signatures, differentiable through its optimum."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.counts.negative_binomial import SMALLEST_MEAN
from diffbio_sc.numerics.counts.nonnegative_quadratic import nonnegative_quadratic

# Full steps of Fisher scoring end in an alternation between two answers where variance depends strongly on the mean.
# Two thirds of a step contract fastest when a full one turns an error around or removes it.
DAMPED_STEP = 2.0 / 3.0
# Rounds over the types in a step. Where types resemble each other, half of them leave an answer that depends on order.
_SWEEPS = 16
# Below this mean a single unexpected count would get a weight of more than a thousand.
_SMALLEST_WEIGHTED_MEAN = 1e-3


class Regression(NamedTuple):
    """Optimum of the count regression.

    Attributes
    ----------
    weights
        Root over w >= 0 of the quasi-score of counts with mean depth * (w @ signatures); without ``excess`` the argmin
        of the negative binomial deviance.
    information
        Fisher information of the weights at the optimum.
    """

    weights: Float[Array, "spots types"]
    information: Float[Array, "spots types types"]


def expected_counts(
    weights: Float[Array, "spots types"], depth: Float[Array, " spots"], signatures: Float[Array, "types genes"]
) -> Float[Array, "spots genes"]:
    """Mean counts: depth times the mixture of signatures."""
    return depth[:, None] * (weights @ signatures) + SMALLEST_MEAN


def variance_ratio(
    mean: Float[Array, "spots genes"], dispersion: Float[Array, ""], excess: Float[Array, "..."] | float = 0.0
) -> Float[Array, "spots genes"]:
    """Variance of the counts over their mean, 1 + excess + dispersion * mean.

    ``excess`` comes from cells of one type that differ: a spot holds few of them, and the sum of n cells has n times
    the variance of one, as it has n times the mean. ``dispersion`` is for errors that grow with the mean.
    """
    return 1.0 + excess + dispersion * mean


class _Residual(NamedTuple):
    """Expected counts, their variance, and what errors of the signatures add to the expected score.

    ``shift`` is taken off the counts, ``own`` added to the score, where the weights are ``w`` and the depth is 1.
    """

    mean: Float[Array, "spots genes"]
    variance: Float[Array, "spots genes"]
    shift: Float[Array, "spots genes"] | float
    own: Float[Array, "spots types"] | float


def _residual(weights, depth, signatures, dispersion, excess, error) -> _Residual:
    """Take apart the score of the weights.

    The signatures are known with errors, of variance V_kg = error * signature^2. At the true weights these make the
    mean wrong by an error of variance t_g = depth^2 sum_k w_k^2 V_kg, which adds to the variance v_g of the counts.
    They also bias the score, because the same errors are in the mean, in the signature that multiplies the residual and
    in the variance that divides it. To second order, with v'_g the derivative of the variance by the mean,

        E(score_k) = -depth^2 w_k sum_g V_kg / v_g + depth sum_g mu_kg v'_g t_g / v_g^2.

    The first part weakens types that are present. The second lends a part of them to all types: genes that are
    underestimated leave residuals that any type would explain. Both grow with every gene added.
    """
    mean = expected_counts(weights, depth, signatures)
    ratio = variance_ratio(mean, dispersion, excess)
    variance = jnp.maximum(mean, _SMALLEST_WEIGHTED_MEAN) * ratio
    if error is None:
        return _Residual(mean, variance, 0.0, 0.0)
    variances = error * signatures**2
    noise = (depth[:, None] * weights) ** 2 @ variances
    variance = variance + noise
    own = depth[:, None] * weights * ((depth[:, None] / variance) @ variances.T)
    return _Residual(mean, variance, (ratio + dispersion * mean) * noise / variance, own)


def pair_products(signatures: Float[Array, "types genes"]) -> Float[Array, "genes pairs"]:
    """Products of all pairs of signatures, so that all information matrices are one matrix product."""
    first, second = np.triu_indices(signatures.shape[0])
    return (signatures[first] * signatures[second]).T


def fisher_step(
    weights: Float[Array, "spots types"],
    counts: Float[Array, "spots genes"],
    depth: Float[Array, " spots"],
    signatures: Float[Array, "types genes"],
    dispersion: Float[Array, ""],
    products: Float[Array, "genes pairs"],
    prior_mean: Float[Array, "spots types"] | None = None,
    prior_precision: Float[Array, "..."] | None = None,
    sweeps: int = _SWEEPS,
    *,
    excess: Float[Array, "..."] | float = 0.0,
    error: Float[Array, "types genes"] | None = None,
) -> Regression:
    """One step of Fisher scoring: weighted least squares at the present weights, solved over w >= 0.

    A Gaussian prior of the weights (``prior_mean``, ``prior_precision``) is added where given. With ``error``, the
    squared relative errors of the signatures, the score is that which is 0 on average at the true weights.
    """
    types = signatures.shape[0]
    residual = _residual(weights, depth, signatures, dispersion, excess, error)
    inverse_variance = depth[:, None] / residual.variance
    pairs = (inverse_variance * depth[:, None]) @ products
    first, second = np.triu_indices(types)
    position = np.zeros((types, types), dtype=np.int32)
    position[first, second] = position[second, first] = np.arange(len(first))
    information = pairs[:, position.ravel()].reshape(-1, types, types)
    linear = (inverse_variance * (counts - residual.shift)) @ signatures.T + residual.own
    if prior_mean is not None:
        precision = jnp.broadcast_to(jnp.asarray(prior_precision), linear.shape)
        information = information + precision[:, :, None] * jnp.eye(types, dtype=linear.dtype)
        linear = linear + precision * prior_mean
    return Regression(nonnegative_quadratic(information, linear, weights, sweeps), information)


def regress(
    counts: Float[Array, "spots genes"],
    depth: Float[Array, " spots"],
    signatures: Float[Array, "types genes"],
    dispersion: Float[Array, ""],
    start: Float[Array, "spots types"] | None = None,
    prior_mean: Float[Array, "spots types"] | None = None,
    prior_precision: Float[Array, "..."] | None = None,
    *,
    steps: int = 4,
    sweeps: int = _SWEEPS,
    excess: Float[Array, "..."] | float = 0.0,
    error: Float[Array, "types genes"] | None = None,
) -> Regression:
    """Solve the regression by a fixed number of Fisher scoring steps, all but the first and the last damped."""
    types = signatures.shape[0]
    products = pair_products(signatures)
    if start is None:
        start = jnp.full((counts.shape[0], types), 1.0 / types, dtype=signatures.dtype)

    def body(step, last):
        new = fisher_step(
            last.weights,
            counts,
            depth,
            signatures,
            dispersion,
            products,
            prior_mean,
            prior_precision,
            sweeps,
            excess=excess,
            error=error,
        )
        # The last step is a full one again, so that weights that belong at 0 are exactly 0.
        size = jnp.where((step == 0) | (step == steps - 1), 1.0, DAMPED_STEP).astype(new.weights.dtype)
        return Regression(last.weights + size * (new.weights - last.weights), new.information)

    empty = Regression(start, jnp.zeros((counts.shape[0], types, types), dtype=signatures.dtype))
    return jax.lax.fori_loop(0, steps, body, empty)


def score(
    weights: Float[Array, "spots types"],
    counts: Float[Array, "spots genes"],
    depth: Float[Array, " spots"],
    signatures: Float[Array, "types genes"],
    dispersion: Float[Array, ""],
    excess: Float[Array, "..."] | float = 0.0,
    error: Float[Array, "types genes"] | None = None,
) -> Float[Array, "spots types"]:
    """Score of the weights; 0 at the optimum for positive weights.

    Without ``error`` it is the gradient of the log-likelihood.
    """
    mean, variance, shift, own = _residual(weights, depth, signatures, dispersion, excess, error)
    return ((counts - shift - mean) / variance * depth[:, None]) @ signatures.T + own


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def regression_weights(
    counts: Float[Array, "spots genes"],
    depth: Float[Array, " spots"],
    signatures: Float[Array, "types genes"],
    dispersion: Float[Array, ""],
    excess: Float[Array, "..."],
    error: Float[Array, "types genes"] | None = None,
    steps: int = 8,
    sweeps: int = _SWEEPS,
) -> Float[Array, "spots types"]:
    """Weights of the regression, with gradients by implicit differentiation.

    At the optimum the score vanishes on the positive weights. Differentiating that condition gives the derivative of
    the weights from one small linear system a spot, whatever the number of steps taken: memory is O(spots * types^2).
    Weights at the bound 0 have derivative 0.
    """
    return regress(
        counts, depth, signatures, dispersion, steps=steps, sweeps=sweeps, excess=excess, error=error
    ).weights


def _forward(counts, depth, signatures, dispersion, excess, error, steps, sweeps):
    weights = regression_weights(counts, depth, signatures, dispersion, excess, error, steps, sweeps)
    return weights, (weights, counts, depth, signatures, dispersion, excess, error)


@full_products()
def _backward(steps, sweeps, residuals, cotangent):
    weights, counts, depth, *others = residuals
    active = (weights > 0) & (depth > 0)[:, None]  # a spot without counts constrains nothing
    both = active[:, :, None] & active[:, None, :]

    def one(weights, counts, depth):
        return score(weights[None], counts[None], depth[None], *others)[0]

    jacobian = -jax.vmap(jax.jacfwd(one))(weights, counts, depth)
    jacobian = jnp.where(both, jacobian, jnp.eye(weights.shape[1], dtype=weights.dtype))
    right = jnp.where(active, cotangent, 0.0)
    multiplier = jnp.linalg.solve(jnp.swapaxes(jacobian, 1, 2), right[..., None])[..., 0]
    _, vjp = jax.vjp(lambda *arguments: score(weights, *arguments), counts, depth, *others)
    return vjp(jnp.where(active, multiplier, 0.0))


regression_weights.defvjp(_forward, _backward)
