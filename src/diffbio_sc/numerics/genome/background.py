r"""Local background rate of counts along a genome, from windows around each position.

As in MACS (Zhang et al. 2008, Genome Biology 9:R137) the rate is the largest of several estimates: the mean of the
whole, and the means of windows of several widths around the position, taken from a control scaled to the depth of the
signal where there is one. Windows are centred, and at the ends of a sequence the mean is over the part inside it.

A broad domain fills its own windows, so that the mean of a window is no background there. For broad marks without
control :func:`robust_level` finds the rate of the lower of two levels in the whole sequence instead.

The JAX functions here have twins for host arrays in :mod:`diffbio_sc.numerics.genome.background_host`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.numerics.genome.background_host import (
    BREADTH_BETWEEN,
    BREADTH_SLOPE,
    CONTRAST_BETWEEN,
    CONTRAST_SLOPE,
    FEW_COUNTS,
    MIXTURE_STEPS,
    SLOW_WINDOW,
    lags,
    own_windows,
    upper_limit,
)

__all__ = ["breadth", "broad_weight", "level_contrast", "local_background", "robust_level", "window_mean", "window_sum"]


def window_sum(values: Float[Array, "... length"], width: int) -> Float[Array, "... length"]:
    """Sum over ``width`` positions around each: ``width // 2`` before it, itself, and the rest after it.

    Sums of windows of doubling width are added, never differences of running totals: no digits are lost however long
    the sequence is. Positions beyond the ends count as 0.
    """
    length = values.shape[-1]
    before = width // 2
    after = width - 1 - before
    # A window wider than the sequence holds all of it.
    before, after = min(before, length - 1), min(after, length - 1)
    width = before + 1 + after
    padding = [(0, 0)] * (values.ndim - 1)
    block = jnp.pad(values, [*padding, (before, after)])
    total = None
    done = 0
    size = 1
    while True:
        if width & size:
            part = jax.lax.slice_in_dim(block, done, done + length, axis=-1)
            total = part if total is None else total + part
            done += size
        if 2 * size > width:
            break
        # block[i] becomes the sum of 2 * size values from i on.
        block = block[..., :-size] + block[..., size:]
        size *= 2
    assert total is not None
    return total


def window_mean(values: Float[Array, "... length"], width: int) -> Float[Array, "... length"]:
    """Mean over the window of :func:`window_sum`, of the positions that lie in the sequence."""
    inside = window_sum(jnp.ones_like(values, shape=values.shape[-1:]), width)
    return window_sum(values, width) / inside


def local_background(
    counts: Float[Array, "... length"],
    windows: Sequence[int],
    *,
    control: Float[Array, "... length"] | None = None,
    control_scale: Float[Array, "..."] | float | None = None,
    own_width: int | None = None,
    level: Float[Array, "..."] | float | None = None,
    smallest: float = 1e-6,
) -> Float[Array, "... length"]:
    """Background rate at each position, the largest of a level and the means of windows.

    Parameters
    ----------
    counts
        Counts of the signal.
    windows
        Widths in positions; empty leaves the level alone.
    control
        Counts of a control, from which the windows are taken if it is given.
    control_scale
        Factor from control to signal; default the ratio of their sums.
    own_width
        Narrowest window, in positions, in which the signal has a say beside a control that is shallower than it: see
        :meth:`diffbio_sc.numerics.genome.site_background.Background.with_uncertainty`. By default it has none.
    level
        Rate of the whole; default the mean of ``counts``.
    smallest
        The rate is at least this.

    Returns
    -------
    Expected counts a position.
    """
    source = counts if control is None else control
    scale = 1.0
    if control is not None:
        if control_scale is None:
            depth = control.sum(-1)
            control_scale = jnp.where(depth > 0, counts.sum(-1) / jnp.where(depth > 0, depth, 1.0), 1.0)
        scale = jnp.asarray(control_scale, counts.dtype)[..., None]
    level = counts.mean(-1) if level is None else jnp.asarray(level, counts.dtype)
    rate = jnp.broadcast_to(jnp.maximum(level, smallest)[..., None], counts.shape)
    for width in windows:
        rate = jnp.maximum(rate, scale * window_mean(source, width))
    if control is not None and own_width is not None:
        excess = jnp.maximum(1.0 - 1.0 / jnp.maximum(scale, 1e-12), 0.0)
        # The square root of the limit has no gradient at 0, where the signal is the deeper one by nothing.
        known = jnp.where(excess > 0, excess, 1.0)
        for width in own_windows(windows, own_width):
            limit = scale * upper_limit(window_mean(source, width) * width, known) / width
            raised = jnp.minimum(limit, window_mean(counts, width))
            rate = jnp.where(excess > 0, jnp.maximum(rate, raised), rate)
    return rate


@functools.partial(jax.jit, static_argnames=("width",))
def robust_level(counts: Float[Array, "... length"], width: int) -> Float[Array, "..."]:
    """Background rate a position of a sequence that enriched domains may fill for the greater part.

    Counts of disjoint windows are a mixture of two Poisson laws, fitted by expectation maximisation; the level is the
    lower mean. Where the two are less than ``CONTRAST_BETWEEN`` apart there are no domains to tell from the rest: both
    are background, an uneven one, and the level is the upper mean. Windows without a single count are left out, as gaps
    of the assembly, where a typical window has many. The derivative is that of the last step, with its weights held.

    Parameters
    ----------
    counts
        Counts, each read counted once.
    width
        Positions in a window; a sequence shorter than two windows has its mean as level.
    """
    if counts.shape[-1] // width < 2:
        return counts.mean(-1)
    low, high = _two_levels(counts, width)
    contrast = jax.lax.stop_gradient(high / jnp.maximum(low, 1e-3 / width))
    return low + jax.nn.sigmoid((CONTRAST_BETWEEN - contrast) / CONTRAST_SLOPE) * (high - low)


@functools.partial(jax.jit, static_argnames=("width",))
def level_contrast(counts: Float[Array, "... length"], width: int) -> Float[Array, "..."]:
    """Ratio of the two levels of :func:`robust_level`; 1 where there are too few windows to tell."""
    if counts.shape[-1] // width < 2:
        return jnp.ones(counts.shape[:-1], counts.dtype)
    low, high = _two_levels(counts, width)
    return jnp.where(counts.sum(-1) > 0, high / jnp.maximum(low, 1e-3 / width), 1.0)


def _two_levels(counts, width):
    """Rate a position of the lower and of the upper level."""
    windows = counts.shape[-1] // width
    sums = counts[..., : windows * width].reshape(*counts.shape[:-1], windows, width).sum(-1)
    filled = sums > 0
    mean_filled = sums.sum(-1, keepdims=True) / jnp.maximum(filled.sum(-1, keepdims=True), 1)
    used = jnp.where(mean_filled >= FEW_COUNTS, filled, True).astype(sums.dtype)
    held = jax.lax.stop_gradient(sums)

    def in_upper(low, high, share):
        log_odds = jnp.log(share) - jnp.log1p(-share) + held * jnp.log(high / low) - (high - low)
        return used * jax.nn.sigmoid(log_odds)

    def step(_, state):
        upper = in_upper(*state)
        lower = used - upper
        number = jnp.maximum(used.sum(-1, keepdims=True), 1e-6)
        share = jnp.clip(upper.sum(-1, keepdims=True) / number, 0.01, 0.99)
        low = (lower * held).sum(-1, keepdims=True) / jnp.maximum(lower.sum(-1, keepdims=True), 1e-6)
        high = (upper * held).sum(-1, keepdims=True) / jnp.maximum(upper.sum(-1, keepdims=True), 1e-6)
        low = jnp.maximum(low, 1e-3)
        return low, jnp.maximum(high, 1.01 * low), share

    typical = jnp.maximum(jax.lax.stop_gradient(mean_filled), 1e-3)
    start = (0.5 * typical, 2.0 * typical, jnp.full_like(typical, 0.5))
    lower = used - in_upper(*jax.lax.fori_loop(0, MIXTURE_STEPS, step, start))
    upper = used - lower
    low, high = ((part * sums).sum(-1) / jnp.maximum(part.sum(-1), 1e-6) for part in (lower, upper))
    return low / width, high / width


def breadth(counts: Float[Array, "... length"], bin_width: float) -> Float[Array, "..."]:
    """Covariance of counts 5 kb apart over that of counts 500 bp apart: about 0 for peaks, above a half for domains.

    Of each count the mean over 100 kb about it is taken away first, as slow unevenness is no mark. Reads themselves do
    not reach so far, so that both covariances are free of counting noise on average, and their ratio does not depend on
    depth. 0 where the sequence is too short to tell or nothing varies.

    Parameters
    ----------
    counts
        Counts.
    bin_width
        Base pairs a position.
    """
    short, long = lags(bin_width)
    length = counts.shape[-1]
    if length < 2 * long or short == long:
        return jnp.zeros(counts.shape[:-1], counts.dtype)
    centred = counts - window_mean(counts, max(round(SLOW_WINDOW / bin_width), 1))
    near = (centred[..., short:] * centred[..., :-short]).mean(-1)
    far = (centred[..., long:] * centred[..., :-long]).mean(-1)
    varies = near > 1e-6 * jnp.square(counts.mean(-1))
    return jnp.where(varies, far / jnp.where(varies, near, 1.0), 0.0)


def broad_weight(breadth: Float[Array, "..."], contrast: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight of broad settings, from 0 to 1, of a mark's breadth and of the contrast of its two levels."""
    reaches = jax.nn.sigmoid((breadth - BREADTH_BETWEEN) / BREADTH_SLOPE)
    return reaches * jax.nn.sigmoid((contrast - CONTRAST_BETWEEN) / CONTRAST_SLOPE)
