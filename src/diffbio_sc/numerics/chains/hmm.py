r"""Hidden Markov chains in JAX: exact posteriors, log-likelihood with its gradient, most probable paths.

All are plain functions of log-probabilities: initial (K,), transition (K, K) and log-likelihoods (T, K) of the
positions in each state. A row of the transition need not sum to 1, and the gradients treat all entries as free:

    d log L / d log A_ij = expected transitions i -> j,   d log L / d l_tk = posterior of k at t,
    d log L / d log pi_k = expected starts in k.

They are the statistics of one forward-backward pass, given to JAX as a custom derivative: no tape along the sequence.
The posterior is the gradient of the log-likelihood, so that its own derivative, a Hessian, is symmetric, and a
cotangent g of the statistics is pulled back by pushing the tangent g forward through the same pass. So posteriors have
exact gradients too, at the cost of about three passes. (Derivatives beyond that of a posterior are not defined.)

Several sequences lie one after the other: where ``starts`` is true a new one begins, where ``valid`` is false there is
no position, only padding. Long sequences are cut into chunks that run side by side. What a chunk needs from its
neighbour, the message at its border, comes first from a run over the neighbour's last positions, then from the
neighbour's own end, pass after pass until no border changes: in a chain that forgets the first pass already confirms
the guess, in one that does not the passes go on, so that the result is exact in either case.

Messages are probabilities scaled to sum 1 at each position, and the logarithms of the scales are summed chunk by chunk:
float32 stays exact to some 1e-6 over any length. ``K = 2`` is no special case; :mod:`.two_state` is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["ChainPosterior", "ViterbiPath", "log_likelihood", "posterior", "viterbi"]

_CHUNK = 1024
_BURN_IN = 128
_HIGHEST = jax.lax.Precision.HIGHEST


class ChainPosterior(NamedTuple):
    """Posterior of a chain.

    Attributes
    ----------
    log_likelihood
        log P(observations), of all sequences together.
    initial
        Expected number of sequences that begin in each state: sum over starts of P(z_t = k | observations).
    transitions
        Expected number of transitions: sum over t of P(z_t = i, z_{t+1} = j | observations).
    probabilities
        P(z_t = k | observations); 0 where there is no position.
    """

    log_likelihood: Float[Array, ""]
    initial: Float[Array, " K"]
    transitions: Float[Array, "K K"]
    probabilities: Float[Array, "T K"]


class ViterbiPath(NamedTuple):
    """Most probable states (T,) and the log-probability of path and observations together."""

    states: Int[Array, " T"]
    log_probability: Float[Array, ""]


class _Inputs(NamedTuple):
    log_initial: Float[Array, " K"]
    log_transition: Float[Array, "K K"]
    log_likelihoods: Float[Array, "T K"]


def log_likelihood(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihoods: Float[Array, "T K"],
    *,
    starts: Bool[Array, " T"] | None = None,
    valid: Bool[Array, " T"] | None = None,
) -> Float[Array, ""]:
    """Log-probability of all observations; its gradient is the posterior.

    Parameters
    ----------
    log_initial, log_transition
        Log-probabilities. Minus infinity is impossible.
    log_likelihoods
        Log-likelihood of each position in each state.
    starts
        True where a sequence begins; the first position always does.
    valid
        False where there is no position.
    """
    return _log_likelihood(
        _Inputs(*map(jnp.asarray, (log_initial, log_transition, log_likelihoods))),
        *_flags(log_likelihoods, starts, valid),
    )


def posterior(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihoods: Float[Array, "T K"],
    *,
    starts: Bool[Array, " T"] | None = None,
    valid: Bool[Array, " T"] | None = None,
    temperature: float = 1.0,
) -> ChainPosterior:
    """Exact posterior by forward-backward, differentiable.

    Parameters are those of :func:`log_likelihood`, and

    temperature
        Paths have probability proportional to exp(log-probability / temperature): 1 is the posterior, toward 0 only the
        most probable path is left, all of them equally where several are. ``log_likelihood`` is then the logarithm of
        the sum of the raised probabilities. Below 1 messages are logarithms, since raised probabilities leave the
        range of floating-point numbers.
    """
    inputs = _Inputs(*(jnp.asarray(part) / temperature for part in (log_initial, log_transition, log_likelihoods)))
    flags = _flags(log_likelihoods, starts, valid)
    value, expected = _expected(temperature < 1.0, inputs, *flags)
    return ChainPosterior(value, *expected)


def viterbi(
    log_initial: Float[Array, " K"],
    log_transition: Float[Array, "K K"],
    log_likelihoods: Float[Array, "T K"],
    *,
    starts: Bool[Array, " T"] | None = None,
    valid: Bool[Array, " T"] | None = None,
) -> ViterbiPath:
    """Most probable path by back-tracking; of equally probable states the one with the lower number.

    Parameters are those of :func:`log_likelihood`. Padding repeats the state before it.
    """
    rows = jnp.asarray(log_likelihoods)
    starts, valid = _flags(rows, starts, valid)
    rows = jnp.where(valid[:, None], rows, 0.0)

    def forward(score, step):
        row, begins, real = step
        candidates = score[:, None] + log_transition
        best, source = candidates.max(0), candidates.argmax(0)
        # A new sequence begins from wherever the one before ended best.
        ended, end = score.max(), score.argmax()
        new = jnp.where(begins, ended + log_initial, best) + row
        source = jnp.where(begins, end, source)
        same = jnp.arange(len(score))
        return jnp.where(real, new, score), jnp.where(real, source, same).astype(jnp.int32)

    zero = jnp.zeros(rows.shape[1], rows.dtype)
    score, sources = jax.lax.scan(forward, zero, (rows, starts & valid, valid))
    last = score.argmax().astype(jnp.int32)

    def back(state, source):
        return source[state], state

    _, states = jax.lax.scan(back, last, sources, reverse=True)
    return ViterbiPath(states, score.max())


def _flags(rows, starts, valid):
    length = jnp.shape(rows)[0]
    begins = jnp.zeros(length, bool) if starts is None else jnp.asarray(starts, bool)
    real = jnp.ones(length, bool) if valid is None else jnp.asarray(valid, bool)
    # The first real position begins a sequence.
    return begins | (jnp.cumsum(real) == 1) & real, real


@jax.custom_vjp
def _log_likelihood(inputs: _Inputs, starts, valid):
    return _forward(inputs, starts, valid)[0]


def _log_likelihood_forward(inputs, starts, valid):
    value, expected = _statistics(inputs, starts, valid)
    return value, (expected, starts, valid)


def _log_likelihood_backward(saved, cotangent):
    expected, starts, valid = saved
    return _Inputs(*(cotangent * part for part in expected)), _no_tangent(starts), _no_tangent(valid)


_log_likelihood.defvjp(_log_likelihood_forward, _log_likelihood_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _expected(logarithmic: bool, inputs: _Inputs, starts, valid):
    return (_log_statistics if logarithmic else _statistics)(inputs, starts, valid)


def _expected_forward(logarithmic, inputs, starts, valid):
    value, expected = _expected(logarithmic, inputs, starts, valid)
    return (value, expected), (inputs, expected, starts, valid)


def _expected_backward(logarithmic, saved, cotangents):
    inputs, expected, starts, valid = saved
    of_value, of_expected = cotangents
    # The statistics are the gradient of the log-likelihood: their Jacobian is symmetric, and its transpose itself.
    # Entries of minus infinity do not move.
    tangent = _Inputs(
        *(jnp.where(jnp.isfinite(part), change, 0.0) for part, change in zip(inputs, of_expected, strict=True))
    )
    statistics = _log_statistics if logarithmic else _statistics
    pushed = jax.jvp(lambda moved: statistics(moved, starts, valid)[1], (inputs,), (tangent,))[1]
    pulled = _Inputs(*(part + of_value * one for part, one in zip(pushed, expected, strict=True)))
    return pulled, _no_tangent(starts), _no_tangent(valid)


_expected.defvjp(_expected_forward, _expected_backward)


def _no_tangent(flags):
    return np.zeros(flags.shape, jax.dtypes.float0)


class _Chunks(NamedTuple):
    """Positions in chunks, (steps, chunks, ...): steps run one after the other, chunks side by side."""

    rows: Float[Array, "L B K"]  # likelihoods over the largest of each position
    starts: Bool[Array, "L B"]
    valid: Bool[Array, "L B"]


def _cut(inputs: _Inputs, starts, valid) -> tuple[_Chunks, Array, tuple[int, int]]:
    length = len(inputs.log_likelihoods)
    size = length if length <= 2 * _CHUNK else _CHUNK
    number = -(-length // size)
    pad = number * size - length
    rows = jnp.where(valid[:, None], inputs.log_likelihoods, 0.0)
    highest = jax.lax.stop_gradient(rows.max(1))
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    scaled = jnp.exp(rows - highest[:, None])

    def columns(part, fill):
        part = jnp.pad(part, [(0, pad)] + [(0, 0)] * (part.ndim - 1), constant_values=fill)
        return jnp.moveaxis(part.reshape(number, size, *part.shape[1:]), 0, 1)

    chunks = _Chunks(columns(scaled, 1), columns(starts & valid, False), columns(valid, False))
    return chunks, columns(highest, 0).sum(0).sum(), (number, size)


def _step_forward(initial, transition, message, step):
    row, begins, real = step
    moved = jnp.where(begins[:, None], initial, jnp.matmul(message, transition, precision=_HIGHEST)) * row
    total = moved.sum(1)
    safe = jnp.where(total > 0, total, 1.0)
    new = jnp.where(real[:, None], moved / safe[:, None], message)
    return new, jnp.where(real, jnp.where(total > 0, jnp.log(safe), -jnp.inf), 0.0)


def _forward_pass(parameters, chunks, borders):
    """Messages after each position (L, B, K), log-scale of each chunk (B,), messages at the ends (B, K)."""
    initial, transition = parameters

    def step(carry, item):
        message, total = carry
        new, scale = _step_forward(initial, transition, message, item)
        return (new, total + scale), new

    zero = jnp.zeros(borders.shape[0], borders.dtype)
    (ends, totals), messages = jax.lax.scan(step, (borders, zero), chunks)
    return messages, totals, ends


def _backward_pass(parameters, chunks, messages, borders, after):
    """Posteriors (L, B, K), raw transitions (K, K), and the backward messages before each chunk (B, K).

    ``borders`` are forward messages before each chunk, ``after`` backward messages after each.
    """
    _, transition = parameters
    before = jnp.concatenate([borders[None], messages[:-1]], 0)

    def step(carry, item):
        beta, raw = carry
        (row, begins, real), message, earlier = item
        joint = message * beta
        probability = joint / jnp.maximum(joint.sum(1, keepdims=True), 1e-37)
        probability = jnp.where(real[:, None], probability, 0.0)
        ahead = row * beta
        new = jnp.matmul(ahead, transition.T, precision=_HIGHEST)
        likelihood = (earlier * new).sum(1)
        inner = real & ~begins & (likelihood > 0)
        left = jnp.where(inner[:, None], earlier / jnp.where(inner, likelihood, 1.0)[:, None], 0.0)
        raw = raw + jnp.matmul(left.T, ahead, precision=_HIGHEST)
        # Before a sequence begins nothing of it is known: the message is constant.
        new = jnp.where(begins[:, None], 1.0, new)
        new = new / jnp.maximum(new.sum(1, keepdims=True), 1e-37)
        return (jnp.where(real[:, None], new, beta), raw), probability

    states = transition.shape[0]
    zero = jnp.zeros((states, states), transition.dtype)
    (betas, raw), probabilities = jax.lax.scan(step, (after, zero), (chunks, messages, before), reverse=True)
    return probabilities, raw, betas


def _settle(run, guess):
    """Borders that ``run``, which gives each chunk's end, confirms: pass after pass until none changes.

    Differentiated forward, tangents of borders are settled in the same way.
    """
    number = guess.shape[0]
    if number == 1:
        return guess
    tolerance = 8.0 * jnp.finfo(guess.dtype).eps

    def shifted(ends):
        return jnp.concatenate([guess[:1], ends[:-1]], 0)

    def go_on(state):
        _, change, passes = state
        return (change > tolerance) & (passes < number)

    def again(state):
        borders, _, passes = state
        new = shifted(run(borders))
        return new, jnp.abs(new - borders).max(), passes + 1

    return jax.lax.while_loop(go_on, again, (guess, jnp.asarray(jnp.inf, guess.dtype), 0))[0]


@jax.custom_jvp
def _forward_borders(parameters, chunks):
    """Message before each chunk (B, K)."""
    return _settle(lambda borders: _forward_pass(parameters, chunks, borders)[2], _forward_guess(parameters, chunks))


def _forward_guess(parameters, chunks):
    """Each chunk's start from a run over the last positions of the one before; of the first chunk, any."""
    states = chunks.rows.shape[-1]
    uniform = jnp.full(chunks.rows.shape[1:], 1.0 / states, chunks.rows.dtype)
    burn = min(_BURN_IN, chunks.rows.shape[0])
    tail = _Chunks(*(part[-burn:] for part in chunks))
    ends = _forward_pass(parameters, tail, uniform)[2]
    return jnp.concatenate([uniform[:1], ends[:-1]], 0)


@_forward_borders.defjvp
def _(primals, tangents):
    return _settled_tangent(
        primals,
        tangents,
        _forward_borders(*primals),
        lambda arguments, borders: _forward_pass(arguments[0], arguments[1], borders)[2],
    )


def _settled_tangent(primals, tangents, borders, run):
    """Tangent of settled borders: the linear recursion over the chunks, pass after pass until it settles."""

    def linear(change):
        return jax.jvp(run, (primals, borders), (tangents, change))[1]

    zero = jnp.zeros_like(borders)
    number = borders.shape[0]
    if number == 1:
        return borders, zero
    tolerance = 1e-6 if borders.dtype == jnp.float32 else 1e-12

    def go_on(state):
        change, gap, passes = state
        return (gap > tolerance * (jnp.abs(change).max() + 1e-30)) & (passes < number)

    def again(state):
        change, _, passes = state
        new = jnp.concatenate([zero[:1], linear(change)[:-1]], 0)
        return new, jnp.abs(new - change).max(), passes + 1

    first = (zero, jnp.asarray(jnp.inf, borders.dtype), 0)
    return borders, jax.lax.while_loop(go_on, again, first)[0]


def _backward_betas(parameters, chunks, after):
    """Backward message before each chunk, without the posteriors."""
    _, transition = parameters

    def step(beta, item):
        row, begins, real = item
        new = jnp.matmul(row * beta, transition.T, precision=_HIGHEST)
        new = jnp.where(begins[:, None], 1.0, new)
        new = new / jnp.maximum(new.sum(1, keepdims=True), 1e-37)
        return jnp.where(real[:, None], new, beta), None

    return jax.lax.scan(step, after, chunks, reverse=True)[0]


def _reversed_run(arguments, after):
    """The backward run with chunks counted from the last, so that borders move as in the forward run."""
    parameters, chunks = arguments
    return _backward_betas(parameters, chunks, after[::-1])[::-1]


@jax.custom_jvp
def _backward_borders(parameters, chunks):
    """Backward message after each chunk (B, K), chunks counted from the last."""
    states = chunks.rows.shape[-1]
    constant = jnp.full(chunks.rows.shape[1:], 1.0 / states, chunks.rows.dtype)
    burn = min(_BURN_IN, chunks.rows.shape[0])
    head = _Chunks(*(part[:burn] for part in chunks))
    ends = _reversed_run((parameters, head), constant)
    guess = jnp.concatenate([constant[:1], ends[:-1]], 0)
    return _settle(functools.partial(_reversed_run, (parameters, chunks)), guess)


@_backward_borders.defjvp
def _(primals, tangents):
    return _settled_tangent(primals, tangents, _backward_borders(*primals), _reversed_run)


def _forward(inputs: _Inputs, starts, valid) -> tuple[Array, Any]:
    chunks, highest, _ = _cut(inputs, starts, valid)
    parameters = (jnp.exp(inputs.log_initial), jnp.exp(inputs.log_transition))
    borders = _forward_borders(parameters, chunks)
    messages, totals, _ = _forward_pass(parameters, chunks, borders)
    return totals.sum() + highest, (parameters, chunks, borders, messages)


def _statistics(inputs: _Inputs, starts, valid) -> tuple[Array, _Inputs]:
    """Log-likelihood and its gradient by the three inputs."""
    value, (parameters, chunks, borders, messages) = _forward(inputs, starts, valid)
    after = _backward_borders(parameters, chunks)[::-1]
    probabilities, raw, _ = _backward_pass(parameters, chunks, messages, borders, after)
    length, states = inputs.log_likelihoods.shape
    probabilities = jnp.moveaxis(probabilities, 0, 1).reshape(-1, states)[:length]
    first = jnp.where((starts & valid)[:, None], probabilities, 0.0).sum(0)
    return value, _Inputs(first, parameters[1] * raw, probabilities)


def _log_statistics(inputs: _Inputs, starts, valid) -> tuple[Array, _Inputs]:
    """What :func:`_statistics` gives, with messages as logarithms, one position after the other."""
    log_initial, log_transition, rows = inputs
    rows = jnp.where(valid[:, None], rows, 0.0)
    lowest = jnp.finfo(rows.dtype).min / 4  # stands for minus infinity, and its differences are numbers
    log_initial, log_transition = (jnp.maximum(part, lowest) for part in (log_initial, log_transition))
    begins = starts & valid

    def forward(carry, item):
        message, total = carry
        row, first, real = item
        moved = jnp.where(first, log_initial, logsumexp(message[:, None] + log_transition, axis=0)) + row
        scale = logsumexp(moved)
        new = jnp.where(real, moved - scale, message)
        return (new, total + jnp.where(real, scale, 0.0)), (message, new)

    states = rows.shape[1]
    start = (jnp.zeros(states, rows.dtype), jnp.zeros((), rows.dtype))
    (_, value), (before, messages) = jax.lax.scan(forward, start, (rows, begins, valid))

    def backward(carry, item):
        beta, transitions = carry
        row, first, real, earlier, message = item
        probability = jnp.where(real, jax.nn.softmax(message + beta), 0.0)
        joint = earlier[:, None] + log_transition + (row + beta)
        inner = jax.nn.softmax(joint.reshape(-1)).reshape(joint.shape)
        transitions = transitions + jnp.where(real & ~first, inner, 0.0)
        new = jnp.where(first, 0.0, logsumexp(log_transition + (row + beta), axis=1))
        return (jnp.where(real, new - new.max(), beta), transitions), probability

    zero = (jnp.zeros(states, rows.dtype), jnp.zeros((states, states), rows.dtype))
    items = (rows, begins, valid, before, messages)
    (_, transitions), probabilities = jax.lax.scan(backward, zero, items, reverse=True)
    first = jnp.where(begins[:, None], probabilities, 0.0).sum(0)
    return value, _Inputs(first, transitions, probabilities)
