"""Upper tail of the Poisson law in log space, in JAX: the twin of :mod:`diffbio_sc.numerics.genome.poisson_tail`.

The same uniform expansion, from a = 16 on; below, 16 terms of the sum stand in front of the tail at a + 16.
Everything is a smooth function of both arguments, so that gradients come by differentiation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from diffbio_sc.numerics.genome.poisson_tail import C0, C1, C2

__all__ = ["log_survival"]

_ATANH = tuple(1.0 / (2 * index + 3) for index in range(8))
_SHIFT = 16


@jax.jit
def log_survival(counts: Float[Array, "..."], rate: Float[Array, "..."]) -> Float[Array, "..."]:
    """Natural log of P(X >= counts) for X Poisson of mean ``rate``.

    Float32 gives 1e-4 relative to the value or to 0.1, whichever is larger. Gradients run to both arguments: to
    ``counts`` as to the argument of the incomplete gamma function, which interpolates between integers.

    Parameters
    ----------
    counts
        Counts; 0 or less gives 0.
    rate
        Means, above 0, broadcast against ``counts``.
    """
    counts, rate = jnp.broadcast_arrays(jnp.asarray(counts), jnp.asarray(rate))
    kind = jnp.result_type(counts, rate, jnp.float32)
    counts, rate = counts.astype(kind), rate.astype(kind)
    positive = counts > 0
    count = jnp.where(positive, counts, 1.0)
    small = count < _SHIFT
    tail = _temme(jnp.where(small, count + _SHIFT, count), rate)
    # Means above 64 leave less than 1e-16 below 16, and their powers would overflow.
    count_low = jnp.where(small, count, 1.0)
    rate_low = jnp.clip(rate, jnp.finfo(kind).tiny, 64.0)
    term = total = jnp.ones_like(rate_low)
    for index in range(1, _SHIFT):
        term = term * rate_low / (count_low + index)
        total = total + term
    front = count_low * jnp.log(rate_low) - rate_low - gammaln(count_low + 1.0) + jnp.log(total)
    front = jnp.minimum(front, 0.0)
    low = jnp.where(rate > 64.0, 0.0, jnp.minimum(jnp.logaddexp(front, tail), 0.0))
    return jnp.where(positive, jnp.where(small, low, tail), 0.0)


def _temme(count, rate):
    mu = (rate - count) / count
    near = jnp.abs(mu) < 0.4
    small = jnp.where(near, mu, 0.0)
    r = small / (2.0 + small)
    series = _polynomial_of(_ATANH, jnp.square(r))
    # ratio = eta^2 / mu^2, away from 0 and smooth there, so that eta and its gradient keep their digits.
    far = jnp.where(near, 1.0, mu - jnp.log(jnp.where(near, 1.0, rate / count)))
    ratio = jnp.where(
        near, 2.0 * (1.0 - 2.0 * r * series / (2.0 + small)) / (2.0 + small), 2.0 * far / jnp.where(near, 1.0, mu**2)
    )
    eta = mu * jnp.sqrt(ratio)
    central = jnp.abs(eta) < 1.0
    inner = jnp.where(central, eta, 0.0)
    u, v = 1.0 / jnp.where(central, 1.0, mu), 1.0 / jnp.where(central, 1.0, eta)
    c0 = jnp.where(central, _polynomial_of(C0, inner), u - v)
    c1 = jnp.where(central, _polynomial_of(C1, inner), v**3 - u**3 - u**2 - u / 12.0)
    outer = -3.0 * v**5 + 3.0 * u**5 + 5.0 * u**4 + 25.0 / 12.0 * u**3 + u**2 / 12.0 + u / 288.0
    c2 = jnp.where(central, _polynomial_of(C2, inner), outer)
    correction = (c0 + (c1 + c2 / count) / count) / jnp.sqrt(2.0 * jnp.pi * count)
    exponent = 0.5 * count * jnp.square(eta)
    below = eta <= 0.0
    t = -eta * jnp.sqrt(0.5 * count)
    middle = 0.5 * _erfcx(jnp.abs(t))
    lower = jnp.log(jnp.where(below, middle - correction, 1.0)) - exponent
    complement = jnp.exp(-jnp.where(below, 0.0, exponent)) * jnp.where(below, 0.0, middle + correction)
    return jnp.where(below, lower, jnp.log1p(-complement))


def _polynomial_of(coefficients, x):
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _erfcx(t):
    """exp(t^2) erfc(t) for t >= 0."""
    near = t < 3.0
    inner = jnp.where(near, t, 0.0)
    outer = jnp.where(near, 3.0, t)
    fraction = outer
    for index in range(12, 0, -1):
        fraction = outer + 0.5 * index / fraction
    return jnp.where(
        near, jnp.exp(jnp.square(inner)) * jax.scipy.special.erfc(inner), 1.0 / (fraction * np.sqrt(np.pi))
    )
