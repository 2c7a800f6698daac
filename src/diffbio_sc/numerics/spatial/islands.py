"""Parts of a slide so far apart that no kernel reaches from one to another."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_APART = 2.0  # a gap of so many extents of the larger part: four times the widest scale, where a kernel is exp(-8)


def main_island(coordinates: Float[np.ndarray, "spots axes"]) -> Int[np.ndarray, " kept"]:
    """Spots of the part with most of them, once parts twice as far away as either is large are set aside."""
    kept = np.arange(len(coordinates))
    while True:
        side = _widest_cut(coordinates[kept])
        if side is None:
            return kept
        kept = kept[side] if 2 * side.sum() >= len(side) else kept[~side]


def _widest_cut(places: np.ndarray) -> np.ndarray | None:
    """Whether each spot lies before the gap that cuts the places into parts far from each other; None without one."""
    for axis in range(places.shape[1]):
        along = np.sort(places[:, axis])
        gaps = np.diff(along)
        if not len(gaps) or gaps.max() <= _APART * (along[-1] - along[0]) / (2.0 + _APART):
            continue  # both parts and the gap make up the whole, so that no narrower gap can be wide enough
        before = places[:, axis] <= along[gaps.argmax()]
        extent = max(np.ptp(places[before], axis=0).max(), np.ptp(places[~before], axis=0).max())
        if 0 < _APART * extent < gaps.max():
            return before
    return None


def islands(
    coordinates: Float[np.ndarray, "spots axes"], groups: Int[np.ndarray, " spots"], reach: float
) -> Int[np.ndarray, " spots"]:
    """Codes 0, 1, ... of the parts of all groups that, along some axis, nothing connects over more than ``reach``."""
    codes = np.unique(groups, return_inverse=True)[1].ravel()
    while True:
        before = codes
        for column in coordinates.T:
            order = np.lexsort([column, codes])
            new = np.diff(codes[order]) != 0
            new |= np.diff(column[order]) > reach
            codes = np.empty_like(codes)
            codes[order] = np.concatenate([[0], np.cumsum(new)])
        if codes.max() == before.max():
            return codes
