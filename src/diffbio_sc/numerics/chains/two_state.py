r"""Chain of two states, background 0 and peak 1, along a sequence: most probable path and posterior.

A path z scores sum_t l_t z_t minus ``enter`` for every change 0 -> 1 and ``leave`` for every change 1 -> 0, where l_t
is the log-odds of the data at position t. With margins d_t (the best score of a path up to t that ends in 1, minus that
of one that ends in 0) the Viterbi recursion is

    d_t = clip(d_{t-1}, -enter, leave) + l_t

Maps x -> min(max(x + shift, low), high) are closed under composition, so that blocks of the sequence run side by side;
forward plus backward margins are max-marginals, whose sign is the most probable path, exactly.

At temperature T paths have probability proportional to exp(score / T). The same maps with maxima replaced by
T log sum exp compose exactly too (they are the 2 x 2 products of the forward-backward algorithm, of which only three
numbers are free), so that posteriors come from the same scans and become the path as T goes to 0.

Sequences lie along the last axis; axes before it are batches. The chain begins outside a peak with log-odds
``-initial`` of being in one.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "RegionProbability",
    "SwitchPosterior",
    "margins",
    "region_probability",
    "switch_posterior",
]

_CERTAIN = 1e5  # a log-odds that stands for certainty and, unlike infinity, has a gradient


class SwitchPosterior(NamedTuple):
    """Posterior of states and of changes of state.

    Attributes
    ----------
    logits
        Log-odds of state 1 at each position.
    start
        Probability that a run of state 1 begins at the position (it was 0 before, or the sequence begins here).
    end
        Probability that a run of state 1 ends with the position, its last. Starts and ends of a sequence have the same
        sum, the expected number of runs; ``p_t - p_{t-1} = start_t - end_{t-1}`` with p the probability of state 1.
    rise, fall
        The posterior as a Markov chain: log-odds of 1 given 0 at the position before, and of 0 given 1 before.
    """

    logits: Float[Array, "... length"]
    start: Float[Array, "... length"]
    end: Float[Array, "... length"]
    rise: Float[Array, "... length"]
    fall: Float[Array, "... length"]


@jax.jit
def margins(
    log_odds: Float[Array, "... length"],
    enter: Any,
    leave: Any,
    *,
    initial: Any = None,
) -> Float[Array, "... length"]:
    """Score of the best path through state 1 at each position minus that of the best path through state 0.

    Parameters
    ----------
    log_odds
        l_t.
    enter, leave
        Cost of a change 0 -> 1 and 1 -> 0: numbers, or arrays without the last axis. Not negative.
    initial
        Cost of beginning in state 1; default ``enter``.

    Returns
    -------
    Margins; the most probable path is where they are above 0.
    """
    forward, backward = _forward_backward(log_odds, enter, leave, initial, None)
    return forward + backward


@jax.jit
def switch_posterior(
    log_odds: Float[Array, "... length"],
    enter: Any,
    leave: Any,
    temperature: Any = 1.0,
    *,
    initial: Any = None,
) -> SwitchPosterior:
    """Posterior of states, starts and ends.

    Parameters are those of :func:`margins`, and

    temperature
        Above 0; a number or an array without the last axis. Towards 0 ``temperature * logits`` become the margins.
    """
    temperature = _column(temperature, log_odds)
    forward, backward = _forward_backward(log_odds, enter, leave, initial, temperature)
    enter, leave = _column(enter, log_odds), _column(leave, log_odds)
    logits = (forward + backward) / temperature
    inside = jax.nn.sigmoid(logits)
    # Weights of the pairs of states at t - 1 and t, over that of (0, 0): exp(rise), exp(down) and exp(stay).
    after = (log_odds + backward) / temperature
    before = forward[..., :-1] / temperature
    rise = jnp.concatenate([logits[..., :1], (after - enter / temperature)[..., 1:]], -1)
    fall = -(after + leave / temperature)
    fall = jnp.concatenate([-logits[..., :1], fall[..., 1:]], -1)
    up, down, stay = rise[..., 1:], before - leave / temperature, before + after[..., 1:]
    total = jnp.logaddexp(jnp.logaddexp(0.0, up), jnp.logaddexp(down, stay))
    start, end = jnp.exp(up - total), jnp.exp(down - total)
    return SwitchPosterior(
        logits,
        jnp.concatenate([inside[..., :1], start], -1),
        jnp.concatenate([end, inside[..., -1:]], -1),
        rise,
        fall,
    )


class RegionProbability(NamedTuple):
    """Log-probabilities of what a region holds.

    Attributes
    ----------
    empty
        No position in state 1.
    one
        Exactly one start (or end).
    """

    empty: Float[Array, " regions"]
    one: Float[Array, " regions"]


@functools.partial(jax.jit, static_argnames=("longest",))
def region_probability(
    posterior: SwitchPosterior,
    sequence: Int[Array, " regions"],
    begin: Int[Array, " regions"],
    size: Int[Array, " regions"],
    counts_ends: Bool[Array, " regions"],
    longest: int,
) -> RegionProbability:
    """Probability, under the posterior chain, that a region holds no peak, and exactly one peak start or end.

    The state and the number of changes so far (0, 1, or more) are carried together through the region; the result is
    exact and keeps its digits in log space.

    Parameters
    ----------
    posterior
        Of sequences in rows (sequences, length).
    sequence
        Row of each region.
    begin, size
        First position of each region and how many it has, at least 1.
    counts_ends
        Whether the ends are counted (runs whose last position is in the region) or the starts.
    longest
        Largest size: the number of steps.
    """
    # Beyond its ends a sequence is, and stays, outside.
    ends = ((0, 0), (1, 1))
    rise = jnp.pad(posterior.rise, ends, constant_values=-_CERTAIN)
    fall = jnp.pad(posterior.fall, ends, constant_values=_CERTAIN)
    changes = jnp.stack([rise, -rise, fall, -fall], -1)
    logits = jnp.pad(posterior.logits, ends, constant_values=-_CERTAIN)

    def place(position):
        return sequence, jnp.clip(position + 1, 0, logits.shape[-1] - 1)

    # Ends in the region are changes into the positions one further on.
    first = begin + counts_ends
    before = -_softplus(jnp.stack([1.0, -1.0])[:, None] * logits[place(first - 1)])
    nothing = jnp.full_like(before[0], -_CERTAIN)
    # Outside and inside, each with none and with one change counted so far; what is alike is computed as one array, as
    # each operation of a loop is compiled apart, once more for its gradient.
    states = jnp.stack([before[0], nothing, before[1], nothing])

    def step(carry, offset):
        states, empty = carry
        up, stay_out, down, stay_in = -_softplus(-changes[place(first + offset)].T)
        out_none, out_one, in_none, in_one = states
        stays = states + jnp.stack([stay_out, stay_out, stay_in, stay_in])
        # Changes of the kind that is not counted keep the number, the others raise it from none to one.
        falls = jnp.stack([jnp.where(counts_ends, nothing, in_none), jnp.where(counts_ends, in_none, in_one)]) + down
        rises = jnp.stack([jnp.where(counts_ends, out_none, nothing), jnp.where(counts_ends, out_one, out_none)]) + up
        new = _log_add(stays, jnp.concatenate([falls, rises]))
        # Into the positions of the region behind its first.
        within = jnp.where(counts_ends, offset < size - 1, (offset > 0) & (offset < size))
        return (jnp.where(offset < size, new, states), empty + jnp.where(within, stay_out, 0.0)), None

    outside = -_softplus(logits[place(begin)])
    final, empty = _scan(step, (states, outside), jnp.arange(longest))[0]
    return RegionProbability(empty=empty, one=_log_add(final[1], final[3]))


@jax.custom_jvp
def _softplus(x):
    """log(1 + exp(x)), with a derivative that takes few operations: ``jax.nn.softplus`` provides for infinities."""
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals, tangents):
    return _softplus(*primals), jax.lax.logistic(primals[0]) * tangents[0]


@jax.custom_jvp
def _log_add(x, y):
    """log(exp(x) + exp(y)) of finite numbers of one shape."""
    return jnp.maximum(x, y) + jnp.log1p(jnp.exp(-jnp.abs(x - y)))


@_log_add.defjvp
def _log_add_jvp(primals, tangents):
    x, y = primals
    shares = jax.lax.logistic(jnp.stack([x - y, y - x]))
    return _log_add(x, y), shares[0] * tangents[0] + shares[1] * tangents[1]


@jax.custom_jvp
def _soft_clip(x, low, high):
    """log(exp(x) + exp(low)) - log(1 + exp(x - high)): between ``low`` and ``high`` for any x."""
    tails = jnp.log1p(jnp.exp(-jnp.abs(jnp.stack([x - low, x - high]))))
    return jnp.clip(x, low, high) + tails[0] - tails[1]


@_soft_clip.defjvp
def _soft_clip_jvp(primals, tangents):
    x, low, high = primals
    below, above, not_below = jax.lax.logistic(jnp.stack([low - x, x - high, x - low]))
    change, change_low, change_high = tangents
    return _soft_clip(x, low, high), (not_below - above) * change + below * change_low + above * change_high


def _scan(step, first, rest):
    """``jax.lax.scan`` of which the gradient computes each step again: less to compile than to keep its parts."""
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), first, rest)


def _column(value, log_odds):
    """A parameter as an array that broadcasts along the last axis."""
    value = jnp.asarray(value, log_odds.dtype)
    return value[..., None] if value.ndim else value


class _Map(NamedTuple):
    """x -> min(max(x + shift, low), high), or its soft form; ``bounds`` are low and high, (2, ...)."""

    shift: Array
    bounds: Array


def _apply(maps: _Map, x, temperature):
    low, high = maps.bounds
    if temperature is None:
        return jnp.minimum(jnp.maximum(x + maps.shift, low), high)
    return temperature * _soft_clip((x + maps.shift) / temperature, low / temperature, high / temperature)


def _compose(first: _Map, second: _Map, temperature) -> _Map:
    """Return the map ``second(first(x))``; it stays between the values of ``second`` at the ends of ``first``."""
    bounds, shift = _apply(second, first.bounds, temperature), first.shift + second.shift
    if temperature is None:
        return _Map(shift, bounds)
    from_low = second.bounds[0] - second.shift - first.bounds[1]
    from_high = first.bounds[0] + second.shift - second.bounds[1]
    gain = _softplus(jnp.stack([from_low, from_high]) / temperature)
    return _Map(shift + temperature * (gain[0] - gain[1]), bounds)


def _run(maps: _Map, temperature) -> Array:
    """Values of a sequence of maps along the last axis, each applied to the value before; the first map is constant.

    In blocks side by side: the maps of a block are composed, the blocks' maps are applied one after the other, and
    then each block runs from its own first value. Steps in a row are two and a bit times the square root of the length.
    """
    length = maps.shift.shape[-1]
    size = max(math.isqrt(length), 1)
    blocks = -(-length // size)

    def cut(part):
        # Positions beyond the end are constant maps, that nothing follows. (size, ..., blocks)
        part = jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, blocks * size - length)])
        return jnp.moveaxis(part.reshape(*part.shape[:-1], blocks, size), -1, 0)

    columns = _Map(*(cut(part) for part in maps))
    first, rest = _Map(*(part[0] for part in columns)), _Map(*(part[1:] for part in columns))
    whole = _scan(lambda now, step: (_compose(now, step, temperature), None), first, rest)[0]
    across = _Map(*(jnp.moveaxis(part, -1, 0) for part in whole))
    scalar = temperature if temperature is None or temperature.ndim == 0 else temperature[..., 0]

    def cross(value, step):
        return _apply(step, value, scalar), value

    start = jnp.zeros(across.shift.shape[1:], maps.shift.dtype)
    before = jnp.moveaxis(_scan(cross, start, across)[1], 0, -1)

    def along(value, step):
        value = _apply(step, value, temperature)
        return value, value

    values = _scan(along, before, columns)[1]
    return jnp.moveaxis(values, 0, -1).reshape(*maps.shift.shape[:-1], -1)[..., :length]


def _forward_backward(log_odds, enter, leave, initial, temperature):
    """Forward margins d_t, which include l_t, and backward margins, which do not; soft at a temperature."""
    log_odds = jnp.asarray(log_odds)
    initial = _column(enter if initial is None else initial, log_odds)
    enter, leave = (jnp.broadcast_to(_column(value, log_odds), log_odds.shape) for value in (enter, leave))
    begins = jnp.zeros(log_odds.shape, bool).at[..., 0].set(True)
    ends = jnp.concatenate([begins[..., 1:], jnp.ones_like(begins[..., :1])], -1)
    # clip(x, -enter, leave) + l is shift = l, low = l - enter, high = l + leave. Where a sequence begins the map is
    # constant: low = high.
    low = jnp.where(begins, log_odds - initial, log_odds - enter)
    high = jnp.where(begins, log_odds - initial, log_odds + leave)
    forward = (log_odds, low, high)
    # Backward, b_t = clip(b_{t+1} + l_{t+1}, -leave, enter), 0 at the end of a sequence.
    following = jnp.concatenate([log_odds[..., 1:], jnp.zeros_like(log_odds[..., :1])], -1)
    backward = (jnp.where(ends, 0.0, following), jnp.where(ends, 0.0, -leave), jnp.where(ends, 0.0, enter))
    # Both directions side by side: one set of loops to compile, of half as many steps.
    shift, *bounds = (jnp.stack([one, jnp.flip(other, -1)]) for one, other in zip(forward, backward, strict=True))
    onward, returning = _run(_Map(shift, jnp.stack(bounds)), temperature)
    return onward, jnp.flip(returning, -1)
