"""Counts on the log scale, freed of depth."""

from __future__ import annotations

import numpy as np


class LogNormalise:
    """log1p of counts over the spot's total, times the median total; 0 for empty spots. Picklable for dask workers.

    Parameters
    ----------
    totals
        Total counts of all spots.
    """

    def __init__(self, totals: np.ndarray):
        filled = totals > 0
        typical = np.median(totals[filled]) if filled.any() else 1.0
        self.factor = np.where(filled, typical / np.where(filled, totals, 1.0), 0.0).astype(np.float32)

    def __call__(self, start: int, counts: np.ndarray) -> np.ndarray:
        """Return the values of dense counts of which the first row is spot ``start``."""
        return np.log1p(counts * self.factor[start : start + len(counts), None])
