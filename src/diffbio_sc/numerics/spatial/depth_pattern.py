"""Whether genes follow the depth of their neighbourhood, or depth is a pattern of few of them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

_NEIGHBOURS = 8
_SPOTS_AT_ONCE = 8192
_LEAST_CERTAINTY = 3.0  # standard errors by which depth resembles that of neighbours, below which it has no pattern


class DepthPattern:
    """Slope of each gene's share of its mean on the depth, as far as neighbours have that depth too.

    The depth of neighbours is an instrument for that of a spot: what varies from spot to spot alone (how much of it was
    captured) moves all genes and hides that between regions only few of them change. Over all genes, weighted by their
    counts, the slope is 1 by construction where depth is the sum of them.

    Attributes
    ----------
    clear
        Whether depth resembles that of neighbours by more than chance.
    """

    def __init__(
        self,
        coordinates: Float[np.ndarray, "spots axes"],
        groups: Int[np.ndarray, " spots"],
        depth: Float[np.ndarray, " spots"],
    ):
        around, centred = np.zeros(len(depth)), np.zeros(len(depth))
        for group in np.unique(groups):
            inside = np.flatnonzero(groups == group)
            own = depth[inside]
            mean = _mean_of_neighbours(coordinates[inside], own)
            around[inside], centred[inside] = mean - mean.mean(), own - own.mean()
        scale = np.sqrt((around @ around) * (centred @ centred))
        common = centred @ around
        self.clear = bool(scale > 0 and common > _LEAST_CERTAINTY * scale / np.sqrt(len(depth)))
        self._weights = around * (depth.sum() / common) if self.clear else np.zeros(len(depth))

    def slopes(self, counts: sp.csc_array) -> Float[np.ndarray, " genes"]:
        """Slopes of genes (columns); NaN without counts, and of all where depth has no clear pattern."""
        if not self.clear:
            return np.full(counts.shape[1], np.nan)
        total = np.asarray(counts.sum(0), np.float64).ravel()
        return np.asarray(counts.T @ self._weights).ravel() / np.where(total > 0, total, np.nan)


def _mean_of_neighbours(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    tree, number = cKDTree(places), min(_NEIGHBOURS + 1, len(places))
    mean = np.empty(len(places))
    # Neighbours of a few spots at a time: of all they would be the largest thing held for a spot.
    for start in range(0, len(places), _SPOTS_AT_ONCE):
        some = slice(start, start + _SPOTS_AT_ONCE)
        near = tree.query(places[some], k=number)[1]
        # The spot itself is among its nearest, unless others lie at the same place.
        mean[some] = (values[near].sum(1) - values[some]) / (number - 1)
    return mean
