"""Background of bins by the cut sites in windows about them, within compiled loops.

Numbers of bins are unsigned in loops: no index wraps round then, and they take a third of the time.
"""

from __future__ import annotations

import math

import numpy as np

from diffbio_sc.numerics.genome.marks import LIMIT
from diffbio_sc.numerics.lines import inner_loop

__all__ = ["first_sums", "level_line", "next_sums", "raise_to_limit"]


@inner_loop
def _first_sum(sites, middle, reach):
    """Twice the sites of a window. It is symmetric about its bin: the outermost ones count half."""
    twice = sites[middle + reach] - sites[middle - reach]
    for b in range(middle - reach, middle + reach):
        twice += 2 * sites[b]
    return twice


@inner_loop
def _next_sum(sites, low, high, twice):
    """Of the window one bin on; it has been from ``low`` to ``high``, which are unsigned."""
    one = np.uint64(1)
    return twice + (sites[high] + sites[high + one] - sites[low] - sites[low + one])


@inner_loop
def first_sums(sites, own, half, excess, halo, sums):
    """Sums of all windows about bin 0: of the control, the same again, and of the treatment itself."""
    for k in range(len(half)):
        sums[0, k] = _first_sum(sites, halo, half[k])
        if excess > 0:
            sums[1, k], sums[2, k] = sums[0, k], _first_sum(own, halo, half[k])


@inner_loop
def next_sums(sites, own, half, excess, middle, sums):
    """Of the windows one bin on, where none of them has changed since; ``middle`` is the place of the bin before."""
    for k in range(len(half)):
        low, high = np.uint64(middle - half[k]), np.uint64(middle + half[k])
        sums[0, k] = _next_sum(sites, low, high, sums[0, k])
        if excess > 0:
            sums[1, k] = sums[0, k]
            sums[2, k] = _next_sum(own, low, high, sums[2, k])


@inner_loop
def level_line(sites, half, scales, floor, halo, first, stop, sums, level):
    """Background of bins [first, stop), with the sums of their windows: those of the first bin, then of the last."""
    for b in range(np.uint64(first), np.uint64(stop)):
        level[b] = floor
    for k in range(len(half)):
        twice = sums[0, k]
        scale = np.float32(0.5 * scales[k])
        low, high = np.uint64(halo - half[k]), np.uint64(halo + half[k])
        for b in range(np.uint64(first), np.uint64(stop)):
            level[b] = max(level[b], np.float32(twice * scale))
            twice = _next_sum(sites, b + low, b + high, twice)
        sums[0, k] = twice


@inner_loop
def raise_to_limit(sites, own, half, scales, own_scales, excess, per_fragment, halo, first, stop, sums, level):
    """Raise the background to the upper limit of a shallow control, as far as the treatment's own windows go."""
    for k in range(len(half)):
        if own_scales[k] <= 0:
            continue
        twice, own_twice = sums[1, k], sums[2, k]
        low, high = np.uint64(halo - half[k]), np.uint64(halo + half[k])
        own_scale = np.float32(0.5 * own_scales[k])
        scale = scales[k] * per_fragment
        for b in range(np.uint64(first), np.uint64(stop)):
            most = own_twice * own_scale
            if most > level[b]:
                count = 0.5 * twice / per_fragment
                limit = count + 0.5 * excess * LIMIT**2 + LIMIT * math.sqrt(excess * (count + 0.25 * excess * LIMIT**2))
                level[b] = max(level[b], np.float32(min(most, limit * scale)))
            twice = _next_sum(sites, b + low, b + high, twice)
            own_twice = _next_sum(own, b + low, b + high, own_twice)
        sums[1, k], sums[2, k] = twice, own_twice
