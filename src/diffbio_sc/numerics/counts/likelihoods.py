"""Log-likelihood of a batch of cells in one modality, given what a decoder says of each cell and feature.

Every function takes the counts as a dense matrix (cells by features) or as the entries of sparse rows
(:class:`~diffbio_sc.numerics.counts.sparse_rows.RowEntries`) and returns one number for each cell: the sum over its
features, with all constants. For sparse rows the value at zero, which needs no gamma function, is summed over all
features, and the difference to it over the entries only. Both forms are the same number.

Parameters of a decoder are given as logarithms or log-odds, for each cell and feature; those that a feature has in
common to all cells may be one vector. Means may be of any size: a decoder with size factors adds their logarithm.

Written for float32. With lgamma, ``lgamma(x + theta) - lgamma(theta) + x log(mean / (theta + mean))`` loses all digits
for large counts or a large theta. Here it is the saddle-point form (Loader 2000): Stirling's formula with the *errors*
of that formula, and a deviance made of ``log1p`` of differences, so that what is added has the size of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics.counts.sparse_rows import RowEntries, row_sums

#: Names of the likelihoods, each a function of this module.
LIKELIHOODS = (
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "poisson",
    "multinomial",
    "bernoulli",
    "protein_mixture",
    "gaussian",
)

_LOG_TWO_PI = float(np.log(2 * np.pi))
# Below the first the probability of a count x is proportional to mean^x, above the second (theta is smaller by far) to
# mean^-theta, to all digits of float32: the logarithm goes on as a straight line, with its gradient.
_LOWEST_LOG_MEAN, _HIGHEST_LOG_MEAN = -20.0, 25.0
_LOWEST_LOG_THETA, _HIGHEST_LOG_THETA = -14.0, 16.0
_HIGHEST_EXPONENT = 80.0

Counts = Float[Array, "cells features"] | RowEntries
Parameter = Float[Array, "..."]


def _total(
    counts: Counts,
    parameters: tuple[Parameter, ...],
    at_zero: Callable[..., Array],
    at_count: Callable[..., Array],
    excess: Callable[..., Array],
) -> Float[Array, " cells"]:
    """Sum over the features; ``excess`` is ``at_count - at_zero``, written so that what is common is left out."""
    if isinstance(counts, RowEntries):
        zeros = jnp.broadcast_to(at_zero(*parameters), (counts.n_rows, counts.n_columns))
        stored = counts.valid & (counts.values != 0)
        values = jnp.where(stored, counts.values, 1.0)
        terms = excess(values, *(at_entries(parameter, counts) for parameter in parameters))
        # Counts that exceed the capacity are NaN, which must show also where only "any count" matters.
        terms = jnp.where(jnp.isnan(values), jnp.nan, jnp.where(stored, terms, 0.0))
        return zeros.sum(-1) + row_sums(counts, terms)
    stored = counts != 0
    terms = at_count(jnp.where(stored, counts, 1.0), *parameters)
    return jnp.where(stored, terms, at_zero(*parameters)).sum(-1)


def at_entries(parameter: Parameter, entries: RowEntries) -> Float[Array, " capacity"]:
    """Values of a parameter at the entries: a scalar, for each feature, for each cell (one column), or for both."""
    parameter = jnp.asarray(parameter)
    if parameter.ndim == 0:
        return parameter
    shape = (entries.n_rows, entries.n_columns)
    pairs = zip(reversed(parameter.shape), reversed(shape), strict=False)
    if parameter.ndim > 2 or any(size not in (1, full) for size, full in pairs):
        raise ValueError(f"expected a parameter that broadcasts to (cells, features) {shape}, found {parameter.shape}.")
    rows = entries.rows if parameter.ndim == 2 and parameter.shape[0] > 1 else 0
    columns = entries.columns if parameter.shape[-1] > 1 else 0
    index = (rows, columns) if parameter.ndim == 2 else (columns,)
    return parameter.at[index].get(mode="promise_in_bounds")


def stirling_error(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Error of Stirling's formula, ``lgamma(x + 1) - (x + 1/2) log x + x - log(2 pi) / 2``, for any x > 0.

    By the recurrence from x + 4, where the asymptotic series has float32's digits.
    """
    part, steps = _stirling_parts(x)
    return part - jnp.log(steps)


def _stirling_parts(x: Array) -> tuple[Array, Array]:
    """Stirling's error as a part, and the number whose logarithm is to be taken off it."""
    y = x + 4.0
    inverse = 1.0 / y
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260)))
    steps = (1.0 - 3.0 * inverse) * (1.0 - 2.0 * inverse) * (1.0 - inverse)
    return series + (x + 0.5) * jnp.log1p(4.0 / x) - 4.0, steps


def _log_ratio(difference: Array, a: Array, b: Array) -> Array:
    """``log(a / b)`` from ``difference = a - b`` without loss of digits, whether a and b are close or far apart."""
    larger = difference > 0
    log_ratio = jnp.log1p(jnp.where(larger, difference, -difference) / jnp.where(larger, b, a))
    return jnp.where(larger, log_ratio, -log_ratio)


# --- negative binomial ------------------------------------------------------------------------------------------------


def _clipped_log_theta(log_inverse_dispersion: Parameter) -> Parameter:
    return jnp.clip(log_inverse_dispersion, _LOWEST_LOG_THETA, _HIGHEST_LOG_THETA)


def _negative_binomial_at_zero(log_mean: Array, log_theta: Array) -> Array:
    ratio = jnp.exp(jnp.minimum(log_mean - log_theta, _HIGHEST_EXPONENT))
    return -jnp.exp(log_theta) * jnp.log1p(ratio)


def _log_less_digamma(x: Array) -> Array:
    """``log x - digamma(x)`` for any x > 0, by the recurrence from x + 4."""
    y = x + 4.0
    inverse = 1.0 / y
    square = inverse * inverse
    series = inverse * (0.5 + inverse * (1 / 12 - square * (1 / 120 - square * (1 / 252))))
    return 1.0 / x + 1.0 / (x + 1.0) + 1.0 / (x + 2.0) + 1.0 / (x + 3.0) - jnp.log1p(4.0 / x) + series


def _negative_binomial_parts(x: Array, log_mean: Array, log_theta: Array) -> tuple[Array, ...]:
    mean = jnp.exp(jnp.clip(log_mean, _LOWEST_LOG_MEAN, _HIGHEST_LOG_MEAN))
    theta = jnp.exp(log_theta)
    n = x + theta
    (part_n, steps_n), (part_x, steps_x), (part_theta, steps_theta) = map(_stirling_parts, (n, x, theta))
    # All that is a logarithm of a number of moderate size, in one.
    logarithm = 0.5 * jnp.log(theta / (x * n)) + jnp.log(steps_x * steps_theta / steps_n)
    corrections = part_n - part_x - part_theta + logarithm - 0.5 * _LOG_TWO_PI
    corrections = corrections + x * jnp.minimum(log_mean - _LOWEST_LOG_MEAN, 0.0)
    # Logarithm of (share of the mean in theta + mean) / (share of x in theta + x).
    log_odds = _log_ratio(theta * (mean - x), n * mean, x * (theta + mean))
    return corrections + x * log_odds, log_odds, mean, theta, n


def _with_slopes(value: Callable[..., Array], slopes: Callable[..., tuple[Callable[[], Array], ...]]) -> Callable:
    """``value`` of (x, log mean, log theta) whose derivatives are given, not traced: half the code, and all digits."""
    function = jax.custom_jvp(value)

    def rule(arguments, tangents):
        result = function(*arguments)
        change = jnp.zeros_like(result)
        for slope, tangent in zip(slopes(*arguments), tangents, strict=True):
            if not isinstance(tangent, jax.custom_derivatives.SymbolicZero):
                change = change + slope() * tangent
        return result, change

    function.defjvp(rule, symbolic_zeros=True)
    return function


def _count_value(x: Array, log_mean: Array, log_theta: Array) -> Array:
    value, _, mean, theta, n = _negative_binomial_parts(x, log_mean, log_theta)
    above = jnp.maximum(log_mean - _HIGHEST_LOG_MEAN, 0.0)
    return value - theta * (_log_ratio(mean - x, theta + mean, n) + above)


def _count_slopes(x: Array, log_mean: Array, log_theta: Array) -> tuple[Callable[[], Array], ...]:
    mean = jnp.exp(jnp.clip(log_mean, _LOWEST_LOG_MEAN, _HIGHEST_LOG_MEAN))
    theta = jnp.exp(log_theta)
    n, total = x + theta, theta + mean

    def of_mean():
        slope = theta * (x - mean) / total
        return jnp.where(log_mean < _LOWEST_LOG_MEAN, x, jnp.where(log_mean > _HIGHEST_LOG_MEAN, -theta, slope))

    def of_theta():
        above = jnp.maximum(log_mean - _HIGHEST_LOG_MEAN, 0.0)
        digammas = _log_less_digamma(theta) - _log_less_digamma(n)
        return theta * (digammas + (mean - x) / total - _log_ratio(mean - x, total, n) - above)

    return _of_count(x, log_mean, log_theta), of_mean, of_theta


def _excess_value(x: Array, log_mean: Array, log_theta: Array) -> Array:
    value, _, _, theta, _ = _negative_binomial_parts(x, log_mean, log_theta)
    return value + theta * jnp.log1p(x / theta)


def _excess_slopes(x: Array, log_mean: Array, log_theta: Array) -> tuple[Callable[[], Array], ...]:
    mean = jnp.exp(jnp.clip(log_mean, _LOWEST_LOG_MEAN, _HIGHEST_LOG_MEAN))
    theta = jnp.exp(log_theta)

    def of_mean():
        return x * jnp.where(log_mean < _LOWEST_LOG_MEAN, 1.0, theta / (theta + mean))

    def of_theta():
        digammas = _log_less_digamma(theta) - _log_less_digamma(x + theta)
        return theta * (digammas + jnp.log1p(x / theta) - x / (theta + mean))

    return _of_count(x, log_mean, log_theta), of_mean, of_theta


def _of_count(x: Array, log_mean: Array, log_theta: Array) -> Callable[[], Array]:
    def slope():
        _, log_odds, _, _, n = _negative_binomial_parts(x, log_mean, log_theta)
        below = jnp.minimum(log_mean - _LOWEST_LOG_MEAN, 0.0)
        return log_odds + below + _log_less_digamma(x) - _log_less_digamma(n) - 1.0 / x

    return slope


_negative_binomial_at_count = _with_slopes(_count_value, _count_slopes)
_negative_binomial_excess = _with_slopes(_excess_value, _excess_slopes)


def negative_binomial(
    counts: Counts, log_mean: Float[Array, "cells features"], log_inverse_dispersion: Parameter
) -> Float[Array, " cells"]:
    """Negative binomial with variance mean + mean^2 / theta.

    ``log_inverse_dispersion`` is log theta, for each feature, or for each cell and feature (dispersion by batch).
    """
    return _total(
        counts,
        (log_mean, _clipped_log_theta(log_inverse_dispersion)),
        _negative_binomial_at_zero,
        _negative_binomial_at_count,
        _negative_binomial_excess,
    )


def zero_inflated_negative_binomial(
    counts: Counts,
    log_mean: Float[Array, "cells features"],
    log_inverse_dispersion: Parameter,
    dropout_logits: Parameter,
) -> Float[Array, " cells"]:
    """Negative binomial, or zero with the probability whose log-odds are ``dropout_logits``."""
    log_theta = _clipped_log_theta(log_inverse_dispersion)

    def at_zero(log_mean, log_theta, dropout):
        zero = _negative_binomial_at_zero(log_mean, log_theta)
        return jnp.logaddexp(dropout, zero) - jax.nn.softplus(dropout)

    def at_count(x, log_mean, log_theta, dropout):
        return _negative_binomial_at_count(x, log_mean, log_theta) - jax.nn.softplus(dropout)

    def excess(x, log_mean, log_theta, dropout):
        zero = _negative_binomial_at_zero(log_mean, log_theta)
        return _negative_binomial_at_count(x, log_mean, log_theta) - jnp.logaddexp(dropout, zero)

    parameters = (log_mean, log_theta, dropout_logits)
    return _total(counts, parameters, at_zero, at_count, excess)


# --- Poisson and multinomial ------------------------------------------------------------------------------------------


def _poisson_corrections(x: Array, log_mean: Array) -> tuple[Array, Array, Array]:
    mean = jnp.exp(jnp.clip(log_mean, _LOWEST_LOG_MEAN, _HIGHEST_EXPONENT))
    below = x * jnp.minimum(log_mean - _LOWEST_LOG_MEAN, 0.0)
    log_ratio = _log_ratio(mean - x, mean, x)
    return below - stirling_error(x) - 0.5 * (_LOG_TWO_PI + jnp.log(x)), mean, log_ratio


def poisson(counts: Counts, log_mean: Float[Array, "cells features"]) -> Float[Array, " cells"]:
    """Poisson distribution."""

    def at_zero(log_mean):
        return -jnp.exp(jnp.minimum(log_mean, _HIGHEST_EXPONENT))

    def at_count(x, log_mean):
        corrections, mean, log_ratio = _poisson_corrections(x, log_mean)
        return corrections + x * log_ratio - (mean - x)

    def excess(x, log_mean):
        corrections, _, log_ratio = _poisson_corrections(x, log_mean)
        return corrections + x * log_ratio + x

    return _total(counts, (log_mean,), at_zero, at_count, excess)


def _multinomial_from_log_probabilities(counts: Counts, log_probabilities: Array) -> Float[Array, " cells"]:
    """Multinomial from log-probabilities: at all features for dense counts, at the entries for sparse rows."""
    if isinstance(counts, RowEntries):
        values, valid = counts.values, counts.valid
        depth = row_sums(counts)
        depth_here = jnp.take(depth, counts.rows)
    else:
        values, valid = counts, jnp.ones(counts.shape, bool)
        depth = counts.sum(-1)
        depth_here = depth[:, None]
    stored = valid & (values != 0)
    safe = jnp.where(stored, values, 1.0)
    # A product of Poisson distributions with means depth * probability, given their sum.
    expected = jnp.log(jnp.where(stored, depth_here, 1.0)) + log_probabilities
    terms = safe * (expected - jnp.log(safe)) - stirling_error(safe) - 0.5 * (_LOG_TWO_PI + jnp.log(safe))
    terms = jnp.where(stored, terms, 0.0)
    total = row_sums(counts, terms) if isinstance(counts, RowEntries) else terms.sum(-1)
    occupied = depth != 0
    depth = jnp.where(occupied, depth, 1.0)
    return total + jnp.where(occupied, stirling_error(depth) + 0.5 * (_LOG_TWO_PI + jnp.log(depth)), 0.0)


def multinomial(counts: Counts, logits: Float[Array, "cells features"]) -> Float[Array, " cells"]:
    """Multinomial given each cell's depth, with probabilities softmax(``logits``)."""
    normaliser = logsumexp(logits, axis=-1)
    if isinstance(counts, RowEntries):
        log_probabilities = at_entries(logits, counts) - jnp.take(normaliser, counts.rows)
    else:
        log_probabilities = logits - normaliser[:, None]
    return _multinomial_from_log_probabilities(counts, log_probabilities)


class SampledColumns(NamedTuple):
    """Random columns that stand for all: one of each run of neighbours.

    Attributes
    ----------
    columns
        The column drawn from each run.
    run_length
        Columns in a run; the last may be shorter.
    n_columns
        Number of all columns.
    """

    columns: Int[Array, " sampled"]
    run_length: int
    n_columns: int


def sample_columns(key: Array, n_columns: int, n_sampled: int) -> SampledColumns:
    """Draw at most ``n_sampled`` different columns, one at random of each run of neighbours."""
    run_length = -(-n_columns // min(n_sampled, n_columns))
    runs = -(-n_columns // run_length)
    starts = jnp.arange(runs) * run_length
    lengths = jnp.minimum(run_length, n_columns - starts)
    return SampledColumns(starts + jax.random.randint(key, (runs,), 0, lengths), run_length, n_columns)


def sampled_multinomial(
    counts: RowEntries,
    latent: Float[Array, "cells dimensions"],
    weights: Float[Array, "features dimensions"],
    intercept: Float[Array, " features"],
    sampled: SampledColumns,
) -> Float[Array, " cells"]:
    """:func:`multinomial` with logits ``latent @ weights.T + intercept``, at the cost of the entries and a sample.

    The sum of the exponentials is exact over a cell's own entries, and for the other features estimated without bias
    from the sampled columns (each stands for its run). All features sampled: exactly :func:`multinomial`.
    """
    rows, columns = counts.rows, counts.columns
    latent, weights = jnp.asarray(latent), jnp.asarray(weights)
    own_latent = latent.at[rows].get(mode="promise_in_bounds")
    own_weights = weights.at[columns].get(mode="promise_in_bounds")
    logits = (own_latent * own_weights).sum(-1) + at_entries(intercept, counts)
    stored = counts.valid & (counts.values != 0)
    others = latent @ weights[sampled.columns].T + jnp.take(intercept, sampled.columns)
    lengths = jnp.minimum(sampled.run_length, sampled.n_columns - jnp.arange(len(sampled.columns)) * sampled.run_length)
    others = others + jnp.log(lengths.astype(others.dtype))
    # A sampled column in which the cell has an entry itself is counted already.
    run = columns // sampled.run_length
    twice = stored & (jnp.take(sampled.columns, run) == columns)
    counted = jnp.zeros(others.shape, bool).at[rows, run].max(twice)
    others = jnp.where(counted, -jnp.inf, others)
    entry_maximum = jax.ops.segment_max(
        jnp.where(stored, logits, -jnp.inf), rows, num_segments=counts.n_rows, indices_are_sorted=True
    )
    maximum = jax.lax.stop_gradient(jnp.maximum(entry_maximum, others.max(-1)))
    exponentials = jnp.where(stored, jnp.exp(logits - jnp.take(maximum, rows)), 0.0)
    total = row_sums(counts, exponentials) + jnp.exp(others - maximum[:, None]).sum(-1)
    normaliser = maximum + jnp.log(total)
    return _multinomial_from_log_probabilities(counts, logits - jnp.take(normaliser, rows))


# --- Bernoulli --------------------------------------------------------------------------------------------------------


def bernoulli(counts: Counts, logits: Float[Array, "cells features"]) -> Float[Array, " cells"]:
    """Accessible (any count above 0) or not, with the probability sigmoid(``logits``) of being accessible."""
    return _total(
        counts,
        (logits,),
        lambda logit: -jax.nn.softplus(logit),
        lambda x, logit: -jax.nn.softplus(-logit),
        lambda x, logit: logit,
    )


# --- protein mixture --------------------------------------------------------------------------------------------------


def foreground_log_mean(
    log_background: Float[Array, "cells features"], log_excess: Float[Array, "cells features"]
) -> Float[Array, "cells features"]:
    """Logarithm of the foreground's mean, background * (1 + exp(``log_excess``)): always above the background's."""
    return log_background + jax.nn.softplus(log_excess)


def protein_mixture(
    counts: Counts,
    log_background: Float[Array, "cells features"],
    log_excess: Float[Array, "cells features"],
    log_inverse_dispersion: Parameter,
    background_logits: Parameter,
) -> Float[Array, " cells"]:
    """Mixture of two negative binomials, antibody background and true expression (totalVI, Gayoso et al. 2021).

    ``background_logits`` are the log-odds that a count is background only; the foreground's mean is
    :func:`foreground_log_mean`.
    """
    log_theta = _clipped_log_theta(log_inverse_dispersion)

    def at_zero(background, foreground, log_theta, logits):
        low = _negative_binomial_at_zero(background, log_theta)
        high = _negative_binomial_at_zero(foreground, log_theta)
        return jnp.logaddexp(logits + low, high) - jax.nn.softplus(logits)

    def at_count(x, background, foreground, log_theta, logits):
        low = _negative_binomial_at_count(x, background, log_theta)
        high = _negative_binomial_at_count(x, foreground, log_theta)
        return jnp.logaddexp(logits + low, high) - jax.nn.softplus(logits)

    def excess(x, *parameters):
        return at_count(x, *parameters) - at_zero(*parameters)

    foreground = foreground_log_mean(log_background, log_excess)
    parameters = (log_background, foreground, log_theta, background_logits)
    return _total(counts, parameters, at_zero, at_count, excess)


# --- Gaussian ---------------------------------------------------------------------------------------------------------


def gaussian(values: Counts, mean: Float[Array, "cells features"], log_variance: Parameter) -> Float[Array, " cells"]:
    """Gaussian with a variance for each feature, for input that is normalised already."""
    return _total(
        values,
        (mean, log_variance),
        lambda mean, log_variance: -0.5 * (mean**2 * jnp.exp(-log_variance) + log_variance + _LOG_TWO_PI),
        lambda x, mean, log_variance: -0.5 * ((x - mean) ** 2 * jnp.exp(-log_variance) + log_variance + _LOG_TWO_PI),
        lambda x, mean, log_variance: x * (mean - 0.5 * x) * jnp.exp(-log_variance),
    )


# --- expectations -----------------------------------------------------------------------------------------------------

# Nodes of the trapezoidal rule in log t, from exp(-26) to exp(3): its error falls exponentially with the step.
_STEP = 0.5
_NODES = np.exp(np.arange(-26.0, 3.0 + _STEP, _STEP)).astype(np.float32)


def expected_counts(
    likelihood: str, *, depth: Float[Array, " cells"] | None = None, **parameters: Parameter
) -> Float[Array, "cells features"]:
    """Expected value of each count, from the parameters of the likelihood by their names.

    ``depth`` is needed for the multinomial.
    """
    return _moments(likelihood, depth, parameters)[0]


def expected_log1p(
    likelihood: str, *, depth: Float[Array, " cells"] | None = None, **parameters: Parameter
) -> Float[Array, "cells features"]:
    """Expected value of log(1 + count), as :func:`expected_counts`: less than log1p of the expected count.

    With the probability generating function G, it is the integral of (1 - G(exp(-t))) exp(-t) / t over t > 0.
    """
    _, complement = _moments(likelihood, depth, parameters)
    if complement is None:
        raise ValueError("log(1 + value) is not defined for the gaussian likelihood: use expected_counts.")

    def add(total, node):
        return total + complement(-jnp.expm1(-node)) * jnp.exp(-node), None

    start = jnp.zeros_like(complement(jnp.float32(1.0)))
    return _STEP * jax.lax.scan(add, start, _NODES)[0]


def _moments(
    likelihood: str, depth: Array | None, parameters: dict[str, Parameter]
) -> tuple[Array, Callable[[Array], Array] | None]:
    """Mean, and one minus the probability generating function at 1 - q, as a function of q."""

    def negative(log_mean):
        log_theta = _clipped_log_theta(parameters["log_inverse_dispersion"])
        return lambda q: -jnp.expm1(_negative_binomial_at_zero(log_mean + jnp.log(q), log_theta))

    if likelihood == "negative_binomial":
        return jnp.exp(parameters["log_mean"]), negative(parameters["log_mean"])
    if likelihood == "zero_inflated_negative_binomial":
        kept = jax.nn.sigmoid(-parameters["dropout_logits"])
        inner = negative(parameters["log_mean"])
        return kept * jnp.exp(parameters["log_mean"]), lambda q: kept * inner(q)
    if likelihood == "protein_mixture":
        background = jax.nn.sigmoid(parameters["background_logits"])
        low = parameters["log_background"]
        high = foreground_log_mean(low, parameters["log_excess"])
        low_part, high_part = negative(low), negative(high)
        mean = background * jnp.exp(low) + (1.0 - background) * jnp.exp(high)
        return mean, lambda q: background * low_part(q) + (1.0 - background) * high_part(q)
    if likelihood == "poisson":
        mean = jnp.exp(parameters["log_mean"])
        return mean, lambda q: -jnp.expm1(-mean * q)
    if likelihood == "multinomial":
        if depth is None:
            raise ValueError("the multinomial's expected counts need depth, the total count of each cell.")
        probability, trials = jax.nn.softmax(parameters["logits"], axis=-1), depth[:, None]
        # A probability of exactly 1 is left a little below, where log1p is finite.
        return trials * probability, lambda q: -jnp.expm1(trials * jnp.log1p(-jnp.minimum(probability * q, 1 - 1e-7)))
    if likelihood == "bernoulli":
        logits = parameters["logits"]
        return jax.nn.sigmoid(logits), lambda q: jax.nn.sigmoid(logits) * q
    if likelihood == "gaussian":
        return parameters["mean"], None
    raise ValueError(f"unknown likelihood {likelihood!r}: choose one of {', '.join(LIKELIHOODS)}.")
