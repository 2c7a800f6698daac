"""The differentiable twin of :mod:`diffbio_sc.numerics.genome.loops`: masks become convolutions of the band.

A pixel at offset (rows, columns) of another lies at offset columns - rows in distance and rows in position, so that
every mask and filter of the map is one of the band.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.genome.bands_jax import ahead
from diffbio_sc.numerics.genome.loops import LoopShape, strata

REACH = 2
_SAMPLE = 2048


class LoopEvidence(NamedTuple):
    """Evidence of all pairs of a band.

    Attributes
    ----------
    observed, expected, variance, level
        As of :class:`diffbio_sc.numerics.genome.loops.LoopTile`.
    log_ratios
        Logs of the four background ratios (4, depth, n).
    scored
        Which pairs are scored.
    """

    observed: Float[Array, "depth n"]
    expected: Float[Array, "depth n"]
    variance: Float[Array, "depth n"]
    level: Float[Array, "depth n"]
    log_ratios: Float[Array, "4 depth n"]
    scored: Bool[Array, "depth n"]


def background_masks(shape: LoopShape) -> np.ndarray:
    """Donut, lower left, horizontal and vertical background as masks of the map (4, rows, columns)."""
    p, w = shape.inner, shape.outer
    rows, columns = np.mgrid[-w : w + 1, -w : w + 1]
    centre = (np.abs(rows) <= p) & (np.abs(columns) <= p)
    return np.stack(
        [
            ~centre & (rows != 0) & (columns != 0),
            ~centre & (rows > 0) & (columns < 0),
            ~centre & (np.abs(rows) <= 1) & (np.abs(columns) > p),
            ~centre & (np.abs(columns) <= 1) & (np.abs(rows) > p),
        ]
    )


def _sheared(masks):
    """Masks of the map (masks, rows, columns) as masks of the band (masks, distances, positions)."""
    reach = masks.shape[1] // 2
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    sheared = jnp.zeros((masks.shape[0], 4 * reach + 1, 2 * reach + 1), masks.dtype)
    return sheared.at[:, columns - rows + 2 * reach, rows + reach].set(masks)


def _correlate(images, masks):
    """Correlate each image (images, depth, n) with each mask of the map; (images, masks, depth, n)."""
    kernel = _sheared(masks)[:, None]
    padding = [(size // 2, size // 2) for size in kernel.shape[2:]]
    return jax.lax.conv_general_dilated(images[:, None], kernel, (1, 1), padding)


def neighbourhood_sum(values: Float[Array, "depth n"], reach: int) -> Float[Array, "depth n"]:
    """Sum over the pairs whose bins both lie within ``reach`` of a pair's, for each pair of a band."""
    mask = jnp.ones((1, 2 * reach + 1, 2 * reach + 1), values.dtype)
    return _correlate(values[None], mask)[0, 0]


def loop_evidence(
    band: Float[Array, "depth n"],
    expected: Float[Array, "depth n"],
    used: Bool[Array, " n"],
    shape: LoopShape,
    width: Float[Array, ""] | float,
    shrinkage: Float[Array, ""] | float,
    bias: Float[Array, " 4"],
    smallest: int,
    largest: int,
    valid: float,
) -> LoopEvidence:
    """Evidence of all pairs up to distance ``largest``.

    Parameters
    ----------
    band, expected
        Observed and expected counts; expected is 0 for pairs left out.
    used
        Which bins are usable.
    shape
        Geometry of the backgrounds.
    width
        Standard deviation of the filter in bins.
    shrinkage
        Expected contacts at which a background counts half.
    bias
        Added to the logs of the background ratios before the largest is taken.
    smallest, largest
        Range of distances scored.
    valid
        Share of usable bins that the window of a scored pair must have.
    """
    n = band.shape[1]
    w = shape.outer
    depth = min(band.shape[0], largest + 2 * w + 1)
    images = jnp.stack([jnp.where(expected > 0, band, 0.0)[:depth], expected[:depth]])
    masks = jnp.asarray(background_masks(shape), band.dtype)
    seen, awaited = _correlate(images, masks)
    offsets = jnp.arange(-REACH, REACH + 1, dtype=band.dtype)
    kernel = jnp.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel[:, None] * kernel[None]
    observed, level = _correlate(images, kernel[None])[:, 0]
    squared = _correlate(images[1:], kernel[None] ** 2)[0, 0]
    donut = (seen[0] + shrinkage) / (awaited[0] + shrinkage)
    others = (seen[1:] + shrinkage * donut) / (awaited[1:] + shrinkage)
    logs = jnp.log(jnp.concatenate([donut[None], others])) + bias[:, None, None]
    best = jnp.argmax(logs, axis=0)
    ratio = jnp.exp(jnp.take_along_axis(logs, best[None], 0)[0])
    weight = jnp.take_along_axis(awaited, best[None], 0)[0]
    variance = ratio * squared + level**2 * ratio / (weight + shrinkage)
    distance = np.arange(depth)[:, None]
    first = np.arange(n)[None]
    second = first + distance
    placed = (first >= w) & (second + w < n) & (distance >= smallest) & (distance <= largest)
    number = jnp.convolve(used.astype(band.dtype), jnp.ones(2 * w + 1, band.dtype), mode="same")
    filled = number * ahead(number, depth) >= valid * (2 * w + 1) ** 2
    scored = jnp.asarray(placed) & filled & (expected[:depth] > 0)
    safe = jnp.where(scored, ratio * level, 1.0)
    return LoopEvidence(observed, safe, jnp.where(scored, variance, 1.0), level, logs, scored)


def z_scores(evidence: LoopEvidence, dispersion: Float[Array, " depth"]) -> Float[Array, "depth n"]:
    """Variance-stabilised scores, 0 where a pair is not scored."""
    total = evidence.variance + dispersion[:, None] * evidence.expected**2
    factor = evidence.expected / total
    observed = jnp.where(evidence.scored, evidence.observed, evidence.expected)
    return 2.0 * (jnp.sqrt(factor * observed + 0.375) - jnp.sqrt(factor * evidence.expected + 0.375))


def dispersion_by_distance(evidence: LoopEvidence, smallest: int, largest: int) -> Float[Array, " depth"]:
    """Overdispersion at each distance, as :func:`diffbio_sc.numerics.genome.loops.fit_null`, from a sample of pairs."""
    rows, n = evidence.scored.shape
    edges = strata(smallest, largest)
    index = np.stack(
        [
            np.rint(np.linspace(low * n, high * n - 1, _SAMPLE)).astype(np.int64)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        ]
    )

    def sampled(values):
        return values.reshape(-1)[index]

    scored = sampled(evidence.scored)
    part = evidence._replace(
        observed=sampled(evidence.observed), expected=sampled(evidence.expected), variance=sampled(evidence.variance)
    )

    def half_width(phi):
        total = part.variance + phi[:, None] * part.expected**2
        factor = part.expected / total
        z = 2.0 * (jnp.sqrt(factor * part.observed + 0.375) - jnp.sqrt(factor * part.expected + 0.375))
        low, middle = jnp.nanquantile(jnp.where(scored, z, jnp.nan), jnp.array([0.15865525, 0.5]), axis=1)
        return jnp.nan_to_num(middle - low)

    def halve(_, bounds):
        low, high = bounds
        middle = jnp.sqrt(low * high)
        wide = half_width(middle) > 1.0
        return jnp.where(wide, middle, low), jnp.where(wide, high, middle)

    number = len(edges) - 1
    bounds = (jnp.full(number, 1e-5), jnp.ones(number))
    _, high = jax.lax.fori_loop(0, 16, halve, bounds)
    phi = jnp.where(half_width(jnp.zeros(number)) > 1.0, high, 0.0)
    which = np.clip(np.searchsorted(edges, np.arange(rows), side="right") - 1, 0, number - 1)
    return phi[which].astype(evidence.expected.dtype)
