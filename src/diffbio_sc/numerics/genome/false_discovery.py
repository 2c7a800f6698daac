"""False discovery rates of a whole genome of tests, from a histogram of -log10 p.

Rates are those of Benjamini and Hochberg over all base pairs or bins. They need no sorted list of p-values but the
number of tests at each, which a fine histogram holds.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["PER_UNIT", "PValueHistogram"]

PER_UNIT = 256  # bins of the histogram in one unit of -log10 p
_UNITS = 4096  # beyond this all p-values share the last bin


@njit(cache=True, nogil=True)
def _add_to_histogram(counts, ends, log10_p):
    position = 0
    for i in range(len(ends)):
        place = int(log10_p[i] * PER_UNIT)
        counts[min(max(place, 0), len(counts) - 1)] += ends[i] - position
        position = ends[i]


class PValueHistogram:
    """Number of base pairs (or bins) at each -log10 p, from which false discovery rates follow."""

    per_unit = PER_UNIT

    def __init__(self) -> None:
        self.counts = np.zeros(_UNITS * PER_UNIT, np.int64)

    def add_runs(self, ends: np.ndarray, log10_p: np.ndarray) -> None:
        """Count the base pairs of the runs of a sequence."""
        _add_to_histogram(self.counts, ends, log10_p)

    def add_values(self, log10_p: np.ndarray) -> None:
        """Count bins, one value of -log10 p each."""
        place = np.clip((np.asarray(log10_p) * PER_UNIT).astype(np.int64), 0, len(self.counts) - 1)
        self.counts += np.bincount(place, minlength=len(self.counts))

    def filled(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the bins that hold some, and how many."""
        places = _filled(self.counts)
        return places, self.counts[places]

    def add_filled(self, places: np.ndarray, counts: np.ndarray) -> None:
        """Add what another histogram holds."""
        self.counts[places] += counts

    def q_table(self, total: float | None = None) -> np.ndarray:
        """-log10 q of each bin up to the last that holds some, from its lower edge on; nowhere decreasing.

        Parameters
        ----------
        total
            Number of tests; default all that were counted. Give it where those with large p were not.
        """
        places = _filled(self.counts)
        counts = self.counts[: places[-1] + 1 if len(places) else 1]
        return _q_table(counts, float(counts.sum()) if total is None else float(total))

    def __call__(self, log10_p: np.ndarray, total: float | None = None) -> np.ndarray:
        """-log10 q of -log10 p."""
        return self.look_up(self.q_table(total), log10_p)

    def look_up(self, table: np.ndarray, log10_p: np.ndarray) -> np.ndarray:
        """Values of a table over the bins at -log10 p; beyond its end the last."""
        return table[np.clip((np.asarray(log10_p) * PER_UNIT).astype(np.int64), 0, len(table) - 1)]


def _filled(counts: np.ndarray) -> np.ndarray:
    return np.flatnonzero(counts != 0)  # of truth values it takes a tenth of the time


def _q_table(counts: np.ndarray, total: float) -> np.ndarray:
    table = np.zeros(len(counts))
    places = _filled(counts)
    rank = np.cumsum(counts[places][::-1])[::-1]
    table[places] = places / PER_UNIT + np.log10(rank) - math.log10(max(total, 1.0))
    # A test is at least as significant as any with a larger p.
    return np.maximum.accumulate(table)
