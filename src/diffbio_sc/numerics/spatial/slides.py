"""Slides of spots: which spots may inform each other."""

from __future__ import annotations

import numpy as np


def same_slide(groups: np.ndarray, spots: int) -> np.ndarray:
    """Whether each pair of spots lies on the same slide (spots, spots)."""
    groups = slide_codes(groups, spots)
    return groups[:, None] == groups[None, :]


def slide_codes(groups: np.ndarray | None, spots: int) -> np.ndarray:
    """Codes 0, 1, ... of the slides that ``groups`` names; all 0 without it."""
    if groups is None:
        return np.zeros(spots, np.int64)
    codes = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(codes) != spots:
        raise ValueError(f"groups must have {spots} entries, one for each spot, found {len(codes)}.")
    return codes


def without_flat_axis(coordinates: np.ndarray, slides: np.ndarray) -> np.ndarray:
    """Coordinates in space without an axis along which no slide extends: the neighbours in a section lie in a plane."""
    if coordinates.shape[1] < 3:
        return coordinates
    extent = np.max([np.ptp(coordinates[slides == slide], axis=0) for slide in np.unique(slides)], axis=0)
    flat = np.flatnonzero(extent == 0)[:1]
    return np.delete(coordinates, flat, axis=1)
