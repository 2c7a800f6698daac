"""The differentiable twin of :mod:`diffbio_sc.numerics.genome.insulation`: window sums as a convolution of the band."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.genome.insulation import LEAST_EXPECTED, PSEUDOCOUNT


def window_masks(windows: tuple[int, ...], nearest: int) -> np.ndarray:
    """Masks (2 x windows, distances, offsets of the first bin, from -w_max to w_max - 1) of diamonds and sides."""
    reach = max(windows)
    distance = np.arange(2 * reach)[:, None]
    first = np.arange(-reach, reach)[None]
    second = first + distance
    masks = []
    for window in windows:
        before, behind = (first < 0) & (first >= -window), (second >= 0) & (second < window)
        diamond = before & behind
        sides = (before & (second < 0)) | ((first >= 0) & behind)
        masks += [diamond & (distance >= nearest), sides & (distance >= nearest)]
    return np.stack(masks)


def window_sums(band: Float[Array, "depth n"], masks: np.ndarray) -> Float[Array, "masks n"]:
    """Sums of a band over each mask about the start of each bin."""
    depth, reach = masks.shape[1], masks.shape[2] // 2
    near = band[:depth]
    near = jnp.pad(near, ((0, depth - near.shape[0]), (0, 0)))
    sums = jax.lax.conv_general_dilated(
        near[None], jnp.asarray(masks, band.dtype), (1,), [(reach, reach - 1)], dimension_numbers=("NCH", "OIH", "NCH")
    )
    return sums[0]


def contrasts(
    band: Float[Array, "depth n"], expected: Float[Array, "depth n"], windows: tuple[int, ...], nearest: int
) -> tuple[Float[Array, "windows n"], Float[Array, "windows n"], Float[Array, "windows n"]]:
    """Insulation scores, boundary contrasts and whether there are any, for each window."""
    masks = window_masks(windows, nearest)
    observed = window_sums(jnp.where(expected > 0, band, 0.0), masks).reshape(len(windows), 2, -1)
    awaited = window_sums(expected, masks).reshape(len(windows), 2, -1)
    logs = jnp.log((observed + PSEUDOCOUNT) / (awaited + PSEUDOCOUNT))
    present = awaited > 1e-6 * awaited.max(-1, keepdims=True)
    least = LEAST_EXPECTED * jnp.nanmedian(jnp.where(present, awaited, jnp.nan), axis=-1, keepdims=True)
    good = (present & (awaited >= least)).all(1)
    return jnp.where(good, logs[:, 0], 0.0), jnp.where(good, logs[:, 1] - logs[:, 0], 0.0), good


def spread_of_windows(contrast: Float[Array, "windows n"], good: Bool[Array, "windows n"]) -> Float[Array, " windows"]:
    """Standard deviation of each window's contrasts."""
    number = jnp.maximum(good.sum(1), 1)
    mean = jnp.where(good, contrast, 0.0).sum(1) / number
    variance = jnp.where(good, (contrast - mean[:, None]) ** 2, 0.0).sum(1) / number
    return jnp.sqrt(jnp.where(variance > 1e-12, variance, 1.0))
