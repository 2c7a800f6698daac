"""Log-likelihoods of rows of marks in each state, in JAX: twins of :mod:`diffbio_sc.numerics.chains.emissions`.

Every function takes values (T, M), whether each is known (T, M), and parameters (K, M) on an unbounded scale, and
returns (T, K). A value that is not known adds nothing and has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.counts import likelihoods as count_likelihoods

__all__ = ["bernoulli", "gaussian", "multinomial", "negative_binomial", "poisson"]

Values = Float[Array, "T M"]
Known = Bool[Array, "T M"]
Parameter = Float[Array, "K M"]
Rows = Float[Array, "T K"]

_HIGHEST = jax.lax.Precision.HIGHEST
_NOTHING = -1e4  # logarithm of a mean that is nothing


def bernoulli(values: Values, known: Known, logits: Parameter) -> Rows:
    """Presence with log-odds ``logits``; a value between 0 and 1 is an expected presence."""
    values, seen = _seen(values, known)
    return _dot(values, logits) - _dot(seen, jax.nn.softplus(logits))


def poisson(values: Values, known: Known, log_mean: Parameter) -> Rows:
    """Counts."""
    values, seen = _seen(values, known)
    return _dot(values, log_mean) - _dot(seen, jnp.exp(log_mean)) - gammaln(values + 1.0).sum(-1, keepdims=True)


def negative_binomial(values: Values, known: Known, log_mean: Parameter, log_dispersion: Parameter) -> Rows:
    """Counts of variance mean + dispersion mean^2."""
    values, _ = _seen(values, known)

    def of_state(state):
        log_m, log_a = state
        # A count of 0 is certain where the mean is nothing: so a missing value adds nothing.
        return count_likelihoods.negative_binomial(values, jnp.where(known, log_m, _NOTHING), -log_a)

    return jax.lax.map(of_state, (log_mean, log_dispersion)).T


def gaussian(values: Values, known: Known, mean: Parameter, log_variance: Parameter) -> Rows:
    """Signal."""
    seen = known.astype(values.dtype)
    values = jnp.where(known, values, 0.0)

    def of_state(state):
        m, log_v = state
        # The difference first: the expanded square loses digits where mean / deviation is large.
        terms = (values - m) ** 2 * jnp.exp(-log_v) + log_v + jnp.log(2.0 * jnp.pi)
        return -0.5 * (seen * terms).sum(-1)

    return jax.lax.map(of_state, (mean, log_variance)).T


def multinomial(values: Values, known: Known, logits: Parameter) -> Rows:
    """Shares of marks among a bin's reads, softmax of ``logits`` over the marks that are known."""
    values, _ = _seen(values, known)
    total = values.sum(-1, keepdims=True)

    def of_state(state):
        return logsumexp(jnp.where(known, state, -jnp.inf), axis=-1)

    normaliser = jax.lax.map(of_state, logits).T
    normaliser = jnp.where(total > 0, normaliser, 0.0)
    constant = gammaln(total + 1.0) - gammaln(values + 1.0).sum(-1, keepdims=True)
    return _dot(values, logits) - total * normaliser + constant


def _seen(values, known):
    return jnp.where(known, values, 0.0), known.astype(values.dtype)


def _dot(values, parameter):
    return jnp.matmul(values, parameter.T, precision=_HIGHEST)
