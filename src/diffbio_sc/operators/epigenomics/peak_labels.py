"""Weak labels of regions: what an expert may say of one, and how probable it is under the posterior chain.

Labels (Hocking et al. 2017, Bioinformatics 33:491) say of a region that it holds no peak, a peak, one peak start or one
peak end. Their probability is exact, by counting starts along with the state. Experts err and some regions fit no
setting, so that a label is taken to be wrong with a small probability: without it a single one of those, of which the
likelihood is as good as 0, outweighs the many that a setting explains.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax import numpy as jnp
from jaxtyping import Array

from diffbio_sc.numerics.chains.two_state import SwitchPosterior, region_probability

__all__ = ["REGION_KINDS", "label_log_probability", "longest_region"]

REGION_KINDS = ("noPeaks", "peaks", "peakStart", "peakEnd")


def label_log_probability(chain: SwitchPosterior, regions: Any, noise: float, longest: int) -> tuple[Array, Array]:
    """Return the log-probability of each region's label, and whether it has one.

    Parameters
    ----------
    chain
        Posterior of tracks in rows.
    regions
        ``region_kind`` (batch, regions), integers that index :data:`REGION_KINDS` and -1 for none, with
        ``region_start`` and ``region_end``, half-open positions.
    noise
        Share of labels taken to be wrong.
    longest
        Positions of the longest region at most.
    """
    kind, start, end = (
        jnp.atleast_2d(jnp.asarray(regions[name])) for name in ("region_kind", "region_start", "region_end")
    )
    batch = len(chain.logits)
    if not kind.shape == start.shape == end.shape or len(kind) != batch:
        raise ValueError(
            f"data['region_kind'], data['region_start'] and data['region_end'] must have one row for each of the "
            f"{batch} tracks and the same shape, found {kind.shape}, {start.shape} and {end.shape}."
        )
    row = jnp.broadcast_to(jnp.arange(batch)[:, None], kind.shape)
    kind, row, start, end = (array.reshape(-1) for array in (kind, row, start, end))
    labelled = kind >= 0
    size = jnp.where(labelled, end - start, 1)
    begin = jnp.where(labelled, start, 0)
    found = region_probability(chain, row, begin, size, kind == REGION_KINDS.index("peakEnd"), longest)
    some = _log_one_minus_exp(found.empty)
    log_probability = jnp.select([kind == 0, kind == 1], [found.empty, some], found.one)
    if noise > 0:
        # What the expert says is p with probability 1 - noise, and its opposite otherwise.
        log_probability = jnp.logaddexp(math.log1p(-2.0 * noise) + log_probability, math.log(noise))
    return log_probability, labelled


def longest_region(data: Any) -> int:
    """Positions of the longest region; ValueError for regions that are none."""
    kind, start, end = (np.asarray(data[name]) for name in ("region_kind", "region_start", "region_end"))
    size = np.where(kind >= 0, end - start, 1)
    length = np.shape(data["signal"])[-1]
    good = (size >= 1) & ((kind < 0) | ((start >= 0) & (end <= length))) & (kind < len(REGION_KINDS))
    if not good.all():
        where = tuple(int(index) for index in np.argwhere(~good)[0])
        raise ValueError(
            f"regions must have 0 <= start < end <= {length} and a kind from -1 to {len(REGION_KINDS) - 1}; the region "
            f"at index {where} has start {start[where]}, end {end[where]} and kind {kind[where]}."
        )
    return int(size.max(initial=1))


def _log_one_minus_exp(log_probability):
    """log(1 - exp(x)) for x <= 0."""
    value = jnp.minimum(log_probability, -1e-30)
    near = value > -math.log(2.0)
    return jnp.where(
        near, jnp.log(-jnp.expm1(jnp.where(near, value, -1.0))), jnp.log1p(-jnp.exp(jnp.where(near, -1.0, value)))
    )
