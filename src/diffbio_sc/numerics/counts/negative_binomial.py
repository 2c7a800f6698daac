"""Negative binomial likelihood of counts, in the mean and dispersion form (variance m + a m^2)."""

from __future__ import annotations

from jax import numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

SMALLEST_MEAN = 1e-10


def negative_binomial_log_likelihood(
    counts: Float[Array, "..."], mean: Float[Array, "..."], dispersion: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Log-probability of ``counts`` under the negative binomial; a dispersion towards 0 gives the Poisson.

    Written with ``log1p(dispersion * mean)`` so that neither a small dispersion nor a zero count loses digits.
    """
    mean = jnp.maximum(mean, SMALLEST_MEAN)
    inverse = 1.0 / dispersion
    return (
        gammaln(counts + inverse)
        - gammaln(inverse)
        - gammaln(counts + 1.0)
        + counts * jnp.log(dispersion * mean)
        - (counts + inverse) * jnp.log1p(dispersion * mean)
    )


def negative_binomial_deviance(
    counts: Float[Array, "..."], mean: Float[Array, "..."], dispersion: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Twice the log-likelihood ratio of the saturated model to the model of the given mean; not negative.

    Parameters
    ----------
    counts, mean
        Counts, and what a model expects.
    dispersion
        Variance is ``mean + dispersion * mean ** 2``.

    Returns
    -------
    Deviance of each count, of the shape to which the arguments broadcast.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> round(float(losses.negative_binomial_deviance(jnp.array(0.0), jnp.array(3.0), jnp.array(0.5))), 3)
    3.665
    """
    mean = jnp.maximum(mean, SMALLEST_MEAN)
    ratio = counts / mean
    log_ratio = jnp.where(counts > 0, jnp.log(jnp.where(counts > 0, ratio, 1.0)), 0.0)
    shrinkage = (counts + 1.0 / dispersion) * jnp.log1p(dispersion * (counts - mean) / (1.0 + dispersion * mean))
    return jnp.maximum(2.0 * (counts * log_ratio - shrinkage), 0.0)
