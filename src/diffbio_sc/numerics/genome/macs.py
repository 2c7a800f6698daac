"""Peaks by the rules of MACS at base pairs: pile-up, background, Poisson p-values and merged regions.

Tracks are run-length encoded, ``ends`` and values, the last end being that of the sequence: nothing here holds a value
for each base pair. The p-value of a height k is the Poisson tail over the background there (Zhang et al. 2008, Genome
Biology 9:R137).

This module needs numpy and numba only, so that calling the peaks of a whole genome stays small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc.numerics.genome.pileup import pileup
from diffbio_sc.numerics.genome.poisson_tail import log_survival_scalar
from diffbio_sc.numerics.genome.site_background import Background

__all__ = ["QValues", "Regions", "Runs", "ScoredRuns", "cut_background", "macs_regions", "pile_up", "score_runs"]


class Runs(NamedTuple):
    """Run-length encoded track: ``values[i]`` holds from ``ends[i - 1]`` (or 0) to ``ends[i]``."""

    ends: np.ndarray
    values: np.ndarray


def pile_up(start: np.ndarray, end: np.ndarray, length: int) -> Runs:
    """Number of intervals over each base pair of a sequence.

    Parameters
    ----------
    start, end
        Intervals, half-open, from 0 on; what lies beyond the sequence is cut off.
    length
        Length of the sequence.
    """
    inside = start < length
    runs = pileup(start[inside], np.minimum(end[inside], length), size=length)
    return Runs(runs.end, runs.value.astype(np.float32))


@njit(cache=True, nogil=True)
def _cut_background(sites, low, high, scales, floor, length):
    """Merge the run-length tracks of all windows into their maximum."""
    n, widths = len(sites), len(scales)
    first = np.zeros(widths, np.int64)  # sites whose window has begun
    last = np.zeros(widths, np.int64)  # sites whose window has ended
    ends = np.empty(2 * n * widths + 1, np.int32)
    values = np.empty(2 * n * widths + 1, np.float32)
    runs, position = 0, 0
    # Windows that begin before the sequence hold from its first base pair.
    for k in range(widths):
        while first[k] < n and sites[first[k]] - low[k] <= 0:
            first[k] += 1
        while last[k] < n and sites[last[k]] + high[k] <= 0:
            last[k] += 1
    while position < length:
        following = length
        level = floor
        for k in range(widths):
            level = max(level, np.float32((first[k] - last[k]) * scales[k]))
            if first[k] < n:
                following = min(following, sites[first[k]] - low[k])
            if last[k] < n:
                following = min(following, sites[last[k]] + high[k])
        # A run ends where any window's count changes, even if the largest stays: MACS's summit is the middle one of the
        # highest runs.
        ends[runs] = following
        values[runs] = level
        runs += 1
        position = following
        for k in range(widths):
            while first[k] < n and sites[first[k]] - low[k] <= position:
                first[k] += 1
            while last[k] < n and sites[last[k]] + high[k] <= position:
                last[k] += 1
    return ends[:runs].copy(), values[:runs].copy()


def cut_background(sites: np.ndarray, background: Background, length: int, *, fragments: bool) -> Runs:
    """Local background along a sequence, from the cut sites of a control (or of the treatment).

    Parameters
    ----------
    sites
        Cut sites, sorted: both ends of fragments, the first base pair of reads.
    background
        Windows and scales.
    length
        Length of the sequence.
    fragments
        Whether the sites are ends of fragments: an odd window loses its last base pair then, as MACS3 has it.
    """
    widths = np.asarray(background.windows, np.int64)
    low = widths // 2
    high = low if fragments else widths - low
    scales = np.asarray(background.scales, np.float64)
    return Runs(*_cut_background(sites, low, high, scales, np.float32(background.floor), length))


@njit(cache=True, nogil=True)
def _pair(left_ends, left, right_ends, right):
    """Both tracks on common runs."""
    total = len(left_ends) + len(right_ends)
    ends = np.empty(total, np.int32)
    first = np.empty(total, np.float32)
    second = np.empty(total, np.float32)
    runs, i, j = 0, 0, 0
    while i < len(left_ends) and j < len(right_ends):
        ends[runs] = min(left_ends[i], right_ends[j])
        first[runs], second[runs] = left[i], right[j]
        a, b = left_ends[i], right_ends[j]
        if a <= b:
            i += 1
        if b <= a:
            j += 1
        runs += 1
    return ends[:runs], first[:runs], second[:runs]


@njit(cache=True, nogil=True)
def _score(height, level, tail_above):
    result = np.empty(len(height), np.float32)
    last_height, last_level, last = np.float32(-1.0), np.float32(-1.0), np.float32(0.0)
    for i in range(len(height)):
        if height[i] != last_height or level[i] != last_level:
            last_height, last_level = height[i], level[i]
            last = -log_survival_scalar(math.floor(height[i]) + tail_above, np.float64(level[i])) / math.log(10.0)
        result[i] = last
    return result


class ScoredRuns(NamedTuple):
    """Heights, background and -log10 p on common runs of one sequence."""

    ends: np.ndarray
    height: np.ndarray
    background: np.ndarray
    log10_p: np.ndarray


def score_runs(treatment: Runs, background: Runs, *, strict: bool = False) -> ScoredRuns:
    """Poisson p-values of the heights of a pile-up, as -log10 p.

    Parameters
    ----------
    treatment, background
        Tracks of the same sequence.
    strict
        P(X > k), as MACS has it, rather than P(X >= k).
    """
    ends, height, level = _pair(treatment.ends, treatment.values, background.ends, background.values)
    return ScoredRuns(ends, height, level, _score(height, level, 1.0 if strict else 0.0))


class QValues:
    """False discovery rates by the rule of MACS, from the number of base pairs at each p-value.

    The rank of a test is one more than the number of tests with smaller p-values, equal ones sharing it.
    """

    def __init__(self) -> None:
        self.log10_p = np.zeros(0, np.float32)
        self.base_pairs = np.zeros(0, np.int64)

    def add(self, runs: ScoredRuns) -> None:
        """Count the base pairs of a sequence."""
        self.add_counts(runs.log10_p, np.diff(runs.ends, prepend=0).astype(np.int64))

    def add_counts(self, log10_p: np.ndarray, base_pairs: np.ndarray) -> None:
        """Count base pairs at p-values."""
        values = np.concatenate([self.log10_p, log10_p])
        self.log10_p, place = np.unique(values, return_inverse=True)
        # Sums of whole numbers are exact in float64 up to 2**53.
        self.base_pairs = np.bincount(place, np.concatenate([self.base_pairs, base_pairs])).astype(np.int64)

    def table(self) -> np.ndarray:
        """-log10 q of each p-value, in order of -log10 p."""
        smaller = np.cumsum(self.base_pairs[::-1])[::-1] - self.base_pairs
        log10_q = self.log10_p + np.log10(smaller + 1.0) - np.log10(max(int(self.base_pairs.sum()), 1))
        # A test is at most as significant as any with a smaller p.
        return np.maximum(np.minimum.accumulate(log10_q[::-1])[::-1], 0.0)

    def threshold(self, log10_q: float) -> float:
        """Largest -log10 p that is not above the -log10 q."""
        below = int(np.searchsorted(self.table(), log10_q, side="right"))
        return float(self.log10_p[below - 1]) if below else -1.0

    def __call__(self, log10_p: np.ndarray) -> np.ndarray:
        """-log10 q of p-values that were counted."""
        return self.table()[np.searchsorted(self.log10_p, log10_p)]


class Regions(NamedTuple):
    """Peaks of one sequence, in order."""

    start: np.ndarray
    end: np.ndarray
    summit: np.ndarray
    height: np.ndarray
    background: np.ndarray
    log10_p: np.ndarray


@njit(cache=True, nogil=True)
def _macs_regions(ends, height, level, log10_p, threshold, gap, shortest):
    n = len(ends)
    above = 0
    for i in range(n):
        if log10_p[i] > threshold:
            above += 1
    start = np.empty(above, np.int32)
    end = np.empty(above, np.int32)
    summit = np.empty(above, np.int32)
    at = np.empty(above, np.int64)
    regions = 0
    i = 0
    while i < n:
        if not log10_p[i] > threshold:
            i += 1
            continue
        first = i
        last = i
        j = i + 1
        while j < n:
            if log10_p[j] > threshold:
                if ends[j - 1] - ends[last] > gap:
                    break
                last = j
            elif ends[j] - ends[last] > gap:
                break
            j += 1
        begin = ends[first - 1] if first else 0
        if ends[last] - begin >= shortest:
            top, ties = np.float32(-1.0), 0
            for k in range(first, last + 1):
                if log10_p[k] > threshold:
                    if height[k] > top:
                        top, ties = height[k], 1
                    elif height[k] == top:
                        ties += 1
            # The middle one of the highest runs.
            wanted = (ties + 1) // 2
            for k in range(first, last + 1):
                if log10_p[k] > threshold and height[k] == top:
                    wanted -= 1
                    if wanted == 0:
                        start[regions], end[regions] = begin, ends[last]
                        summit[regions] = ((ends[k - 1] if k else 0) + ends[k]) // 2
                        at[regions] = k
                        break
            regions += 1
        i = last + 1
    return start[:regions], end[:regions], summit[:regions], at[:regions]


def macs_regions(runs: ScoredRuns, threshold: float, *, gap: int, shortest: int) -> Regions:
    """Regions above a threshold, merged over gaps: the peaks of MACS.

    Parameters
    ----------
    runs
        Scores of a sequence.
    threshold
        -log10 p must be above it.
    gap
        Largest number of base pairs below the threshold within a region.
    shortest
        Regions must have at least this length.
    """
    start, end, summit, at = _macs_regions(
        runs.ends, runs.height, runs.background, runs.log10_p, threshold, gap, shortest
    )
    return Regions(start, end, summit, runs.height[at], runs.background[at], runs.log10_p[at])
