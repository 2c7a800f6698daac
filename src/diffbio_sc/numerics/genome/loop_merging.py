"""Loops found at several resolutions as one list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree


class MergedLoops(NamedTuple):
    """Which loops remain.

    Attributes
    ----------
    kept
        Positions of the loops that stand for all, in the order of the input.
    n_resolutions
        At how many resolutions each of these was found.
    """

    kept: np.ndarray
    n_resolutions: np.ndarray


def merge_loops(anchors: np.ndarray, chrom: np.ndarray, resolution: np.ndarray, radius: float) -> MergedLoops:
    """Keep each loop at the finest resolution at which it was found, as HiCCUPS does.

    From the coarsest to the finest list a loop stands for those of coarser bins both of whose anchors lie within
    ``radius`` coarse bins of its own.

    Parameters
    ----------
    anchors
        Middles of both anchors in base pairs (loops, 2).
    chrom
        Code of each loop's chromosome.
    resolution
        Width of the bins that each was found with.
    radius
        Largest distance of two anchors that are the same, in bins of the coarser resolution.
    """
    widths = np.unique(resolution)
    found = np.ones(len(resolution), np.int64)
    covered = np.zeros(len(resolution), bool)
    # Chromosomes as a third coordinate, farther apart than any loop.
    far = 4.0 * (np.abs(anchors).max(initial=0.0) + (radius + 1.0) * resolution.max(initial=0))
    place = np.column_stack([anchors, chrom * far]).astype(np.float64)
    for k, width in enumerate(widths):
        own = np.flatnonzero(resolution == width)
        tree = cKDTree(place[own])
        for coarser in widths[k + 1 :]:
            other = np.flatnonzero(resolution == coarser)
            reach = radius * coarser * (1.0 + 1e-12)
            distance, nearest = tree.query(place[other], p=np.inf, distance_upper_bound=reach)
            near = np.isfinite(distance)
            covered[other[near]] = True
            # Several coarse loops at one fine loop are one resolution more.
            found[own[np.unique(nearest[near])]] += 1
    kept = np.flatnonzero(~covered)
    return MergedLoops(kept, found[kept])
