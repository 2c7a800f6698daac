r"""Statistics of peaks at base-pair precision: pile-up, local background, Poisson p-values, FDR, summits and segments.

Tracks are run-length encoded, ``ends`` and values, the last end being that of the sequence: nothing here holds a value
for each base pair. The background of a position is the largest of the mean over the genome and of means over windows
about it (Zhang et al. 2008, Genome Biology 9:R137),

    lambda = max(lambda_genome, lambda_d, lambda_1k, lambda_10k)

each in units of the treatment's pile-up, of fragments of length d. The p-value of a height k is the Poisson tail there.
False discovery rates are those of Benjamini and Hochberg over all base pairs; they need no sorted list of p-values but
the number of base pairs at each, which a fine histogram of -log10 p holds.

This module needs numpy and numba only, so that calling peaks of a whole genome stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc.numerics.genome.pileup import pileup
from diffbio_sc.numerics.genome.poisson_tail import log_survival_scalar

__all__ = [
    "Background",
    "ChainModel",
    "ChainPeaks",
    "PValueHistogram",
    "Regions",
    "Runs",
    "ScoredRuns",
    "call_chain_peaks",
    "cut_background",
    "drop_duplicates",
    "fragment_length_from_strands",
    "macs_regions",
    "pile_up",
    "score_runs",
    "values_at",
]

_PER_UNIT = 256  # bins of the histogram in one unit of -log10 p
_UNITS = 4096  # beyond this all p-values share the last bin


class Runs(NamedTuple):
    """Run-length encoded track: ``values[i]`` holds from ``ends[i - 1]`` (or 0) to ``ends[i]``."""

    ends: np.ndarray
    values: np.ndarray


class Background(NamedTuple):
    """Windows of a local background and what turns their counts into heights of the treatment's pile-up.

    Attributes
    ----------
    windows
        Width of the windows about cut sites, in base pairs.
    scales
        Height that one cut site in the window stands for.
    floor
        Mean height over the genome.
    """

    windows: tuple[int, ...]
    scales: tuple[float, ...]
    floor: float

    @classmethod
    def with_control(
        cls,
        *,
        treatment_length: float,
        control_sites: int,
        fragment_length: float,
        genome_size: float,
        windows: Sequence[int] = (1000, 10_000),
    ) -> Background:
        """Background of a control, scaled to the depth of the treatment.

        Parameters
        ----------
        treatment_length
            Sum of the lengths of the treatment's fragments.
        control_sites
            Number of cut sites of the control: two a fragment, one a read.
        fragment_length
            Length d that reads are extended to, or the mean length of fragments.
        genome_size
            Mappable size of the genome.
        windows
            Windows beyond d.
        """
        d = int(fragment_length)
        ratio = treatment_length / max(control_sites * fragment_length, 1e-300)
        widths = (d, *(int(width) for width in windows))
        scales = (ratio, *(fragment_length / width * ratio for width in windows))
        return cls(widths, scales, treatment_length / genome_size)

    @classmethod
    def without_control(
        cls, *, treatment_length: float, treatment_sites: int, genome_size: float, window: int = 10_000
    ) -> Background:
        """Background of the treatment itself, in a wide window alone: near windows would hold the peak."""
        return cls(
            (int(window),), (treatment_length / (window * max(treatment_sites, 1)),), treatment_length / genome_size
        )


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
            last = -log_survival_scalar(math.floor(height[i]) + tail_above, float(level[i])) / math.log(10.0)
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


def values_at(runs_ends: np.ndarray, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Values of a run-length track at base pairs."""
    return values[np.searchsorted(runs_ends, positions, side="right")]


@njit(cache=True, nogil=True)
def _add_to_histogram(counts, ends, log10_p):
    position = 0
    for i in range(len(ends)):
        place = int(log10_p[i] * _PER_UNIT)
        counts[min(max(place, 0), len(counts) - 1)] += ends[i] - position
        position = ends[i]


class PValueHistogram:
    """Number of base pairs (or bins) at each -log10 p, from which false discovery rates follow."""

    per_unit = _PER_UNIT

    def __init__(self) -> None:
        self.counts = np.zeros(_UNITS * _PER_UNIT, np.int64)

    def add_runs(self, ends: np.ndarray, log10_p: np.ndarray) -> None:
        """Count the base pairs of the runs of a sequence."""
        _add_to_histogram(self.counts, ends, log10_p)

    def add_values(self, log10_p: np.ndarray) -> None:
        """Count bins, one value of -log10 p each."""
        place = np.clip((np.asarray(log10_p) * _PER_UNIT).astype(np.int64), 0, len(self.counts) - 1)
        self.counts += np.bincount(place, minlength=len(self.counts))

    def q_table(self, total: float | None = None) -> np.ndarray:
        """-log10 q of each bin, from its lower edge on; not negative and nowhere decreasing.

        Parameters
        ----------
        total
            Number of tests; default all that were counted. Give it where those with large p were not.
        """
        return _q_table(self.counts, float(self.counts.sum()) if total is None else float(total))

    def macs_q_table(self) -> np.ndarray:
        """-log10 q of each bin by the rule of MACS: a test's rank is one more than the number of smaller p-values."""
        return _macs_q_table(self.counts, float(self.counts.sum()))

    def __call__(self, log10_p: np.ndarray, total: float | None = None) -> np.ndarray:
        """-log10 q of -log10 p."""
        return self.look_up(self.q_table(total), log10_p)

    def look_up(self, table: np.ndarray, log10_p: np.ndarray) -> np.ndarray:
        """Values of a table over the bins at -log10 p."""
        return table[np.clip((np.asarray(log10_p) * _PER_UNIT).astype(np.int64), 0, len(self.counts) - 1)]


@njit(cache=True, nogil=True)
def _q_table(counts, total):
    table = np.zeros(len(counts))
    rank = 0
    for place in range(len(counts) - 1, -1, -1):
        rank += counts[place]
        if counts[place] > 0:
            table[place] = place / _PER_UNIT + math.log10(rank) - math.log10(max(total, 1.0))
    # A test is at least as significant as any with a larger p.
    for place in range(1, len(counts)):
        table[place] = max(table[place], table[place - 1])
    return table


@njit(cache=True, nogil=True)
def _macs_q_table(counts, total):
    table = np.zeros(len(counts))
    smaller = 0
    lowest = np.inf
    for place in range(len(counts) - 1, -1, -1):
        here = place / _PER_UNIT + math.log10(smaller + 1) - math.log10(max(total, 1.0))
        if counts[place] > 0:
            lowest = min(lowest, here)
        table[place] = max(min(lowest, here), 0.0)
        smaller += counts[place]
    return table


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


# ---------------------------------------------------------------------------------------------------------------------
# The chain caller, streamed. Sequences are read in pieces of bins; of a whole sequence only one byte a bin is kept, the
# decisions of the forward pass. Statistics of a peak are computed again from the intervals about it.

_PIECE = 1 << 16  # bins
_SMOOTH = 20.0  # standard deviation of the summit's smoothing, in base pairs
_PLATEAU = 0.97  # the summit is the middle of the base pairs at least this high, as a part of the highest
_HEIGHTS = 64  # rows of the table of p-values: heights up to here
_LEVELS = 256  # columns: background up to 8 times its floor
_PER_LEVEL = 32.0


class ChainModel(NamedTuple):
    """Parameters of the chain caller.

    Attributes
    ----------
    bin_width
        Base pairs a bin.
    fragment_length
        Mean length of fragments: coverage of a bin over it is the effective number of fragments.
    fold
        Ratio of the rate in a peak to the background's.
    penalty
        Cost, in nats, of each change of state.
    log10_p
        A peak's -log10 p at the summit must be at least this.
    log_odds
        So must its log-likelihood ratio, in nats.
    """

    bin_width: int
    fragment_length: float
    fold: float
    penalty: float
    log10_p: float
    log_odds: float = 0.0


class ChainPeaks(NamedTuple):
    """Peaks of many sequences, in order; arrays of equal length.

    Attributes
    ----------
    sequence
        Number of the sequence.
    start, end, summit
        Base pairs.
    height, background
        Pile-up and background at the summit.
    log10_p
        -log10 P(X >= height) there.
    log_odds
        Log-likelihood ratio of the peak, in nats.
    fragments, expected
        Effective number of fragments in the peak, and that of the background.
    """

    sequence: np.ndarray
    start: np.ndarray
    end: np.ndarray
    summit: np.ndarray
    height: np.ndarray
    background: np.ndarray
    log10_p: np.ndarray
    log_odds: np.ndarray
    fragments: np.ndarray
    expected: np.ndarray


@njit(cache=True, nogil=True)
def _first_at_least(values, low, high, wanted):
    """Position of the first element of sorted ``values[low:high]`` that is at least ``wanted``."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _longest(start, end, first, last):
    longest = 0
    for i in range(first, last):
        longest = max(longest, end[i] - start[i])
    return longest


@njit(cache=True, nogil=True, inline="always")
def _bin_of(position, width):
    # Quotients of whole numbers below 2**31 are exact in float64, and faster than whole-number division.
    return int(position / width)


@njit(cache=True, nogil=True)
def _bin_coverage(start, end, first, last, begin, stop, width, covered, whole):
    """Base pairs of intervals in each bin of [begin, stop), written to ``covered``; ``whole`` is workspace."""
    n = (stop - begin + width - 1) // width
    covered[:n] = 0
    whole[: n + 1] = 0
    divisor = float(width)
    for i in range(first, last):
        s, e = max(start[i], begin) - begin, min(end[i], stop) - begin
        if e <= s:
            continue
        left, right = _bin_of(s, divisor), _bin_of(e - 1, divisor)
        if left == right:
            covered[left] += e - s
        else:
            covered[left] += (left + 1) * width - s
            covered[right] += e - right * width
            whole[left + 1] += 1
            whole[right] -= 1
    depth = 0
    for b in range(n):
        depth += whole[b]
        covered[b] += depth * width
    return n


@njit(cache=True, nogil=True)
def _bin_sites(start, end, first, last, both, begin, n, width, sites):
    """Cut sites in each of ``n`` bins from ``begin`` (may be negative) on, written to ``sites``."""
    sites[:n] = 0
    stop = begin + n * width
    divisor = float(width)
    for i in range(first, last):
        if begin <= start[i] < stop:
            sites[_bin_of(start[i] - begin, divisor)] += 1
        if both and begin <= end[i] < stop:
            sites[_bin_of(end[i] - begin, divisor)] += 1


@njit(cache=True, nogil=True)
def _level_line(sites, halo, n, half, scales, floor, level):
    """Background of ``n`` bins; ``sites`` has ``halo`` bins more on both sides."""
    level[:n] = floor
    for k in range(len(half)):
        # The window is symmetric about the bin: its outermost bins count half.
        reach = half[k]
        twice = 0
        for b in range(halo - reach, halo + reach):
            twice += 2 * sites[b]
        twice += sites[halo + reach] - sites[halo - reach]
        scale = np.float32(0.5 * scales[k])
        for b in range(n):
            level[b] = max(level[b], twice * scale)
            at = b + halo
            twice += sites[at + reach] + sites[at + reach + 1] - sites[at - reach] - sites[at - reach + 1]


@njit(cache=True, nogil=True)
def _p_table(floor):
    table = np.zeros((_HEIGHTS, _LEVELS + 1), np.float32)
    for k in range(_HEIGHTS):
        for j in range(_LEVELS + 1):
            table[k, j] = -log_survival_scalar(float(k), floor * (1.0 + j / _PER_LEVEL)) / math.log(10.0)
    return table


@njit(cache=True, nogil=True)
def _count_p_values(covered, level, n, width, floor, table, histogram):
    """Add the bins whose height is at least one standard deviation above the background."""
    divisor = np.float32(width)
    per_floor = np.float32(1.0) / floor
    for b in range(n):
        mean = covered[b] / divisor
        excess = mean - level[b]
        if excess * abs(excess) < level[b]:
            continue
        height = int(mean)
        place = (level[b] * per_floor - np.float32(1.0)) * np.float32(_PER_LEVEL)
        if height < _HEIGHTS and place < _LEVELS:
            cell = int(place)
            part = place - cell
            log10_p = table[height, cell] * (np.float32(1.0) - part) + table[height, cell + 1] * part
        else:
            log10_p = np.float32(-log_survival_scalar(float(height), float(level[b])) / math.log(10.0))
        histogram[min(int(log10_p * _PER_UNIT), len(histogram) - 1)] += 1


@njit(cache=True, nogil=True)
def _advance(covered, level, n, per_base, per_level, penalty, margin, decisions, first):
    """Forward pass over bins from margin ``margin``, decisions written from ``first`` on; the margin after them."""
    for b in range(n):
        below, above = margin < -penalty, margin > penalty
        # 1: a path in state 1 came from state 0; 2: one in state 0 came from state 1.
        decisions[first + b] = below + 2 * above
        margin = min(max(margin, -penalty), penalty) + (covered[b] * per_base - level[b] * per_level)
    return margin


@njit(cache=True, nogil=True)
def _running_mean(values, n, half, result):
    """Mean over 2 half + 1 elements, the ends repeated."""
    total = values[0] * half
    for i in range(half + 1):
        total += values[min(i, n - 1)]
    for i in range(n):
        result[i] = total / (2 * half + 1)
        total += values[min(i + half + 1, n - 1)] - values[max(i - half, 0)]


@njit(cache=True, nogil=True)
def _grown(array):
    result = np.empty((2 * array.shape[0], array.shape[1]), array.dtype)
    result[: array.shape[0]] = array
    return result


@njit(cache=True, nogil=True)
def _call_sequences(
    start, end, bounds, lengths, c_start, c_end, c_bounds, c_both,
    half, scales, floor, width, fragment_length, fold, penalty, least_p, least_odds, histogram, smooth_half, plateau,
):  # fmt: skip
    """Peaks of sequences; see :func:`call_chain_peaks`."""
    widest = 0
    for r in range(len(half)):
        widest = max(widest, half[r])
    halo = widest + 1
    most = 0
    for q in range(len(lengths)):
        most = max(most, (lengths[q] + width - 1) // width)
    piece = min(_PIECE, most)
    covered = np.empty(piece + 1, np.int32)
    whole = np.empty(piece + 2, np.int32)
    sites = np.zeros(piece + 2 * halo + 2, np.int32)
    level = np.empty(piece + 1, np.float32)
    decisions = np.empty(most, np.uint8)
    table = _p_table(floor)
    log_fold = math.log(fold)
    per_base, per_level = log_fold / fragment_length, (fold - 1.0) * width / fragment_length
    rows = np.empty((1024, 10), np.float64)
    found = 0
    pad = 3 * smooth_half + 1
    for q in range(len(lengths)):
        length = lengths[q]
        bins = (length + width - 1) // width
        first, last = bounds[q, 0], bounds[q, 1]
        c_first, c_last = c_bounds[q, 0], c_bounds[q, 1]
        if last <= first:
            continue
        longest = _longest(start, end, first, last)
        c_longest = _longest(c_start, c_end, c_first, c_last)
        margin = -penalty
        for begin_bin in range(0, bins, piece):
            begin, stop = begin_bin * width, min(length, (begin_bin + piece) * width)
            i0 = _first_at_least(start, first, last, begin - longest)
            i1 = _first_at_least(start, first, last, stop)
            n = _bin_coverage(start, end, i0, i1, begin, stop, width, covered, whole)
            site_begin = begin - halo * width
            j0 = _first_at_least(c_start, c_first, c_last, site_begin - c_longest)
            j1 = _first_at_least(c_start, c_first, c_last, site_begin + (n + 2 * halo) * width)
            _bin_sites(c_start, c_end, j0, j1, c_both, site_begin, n + 2 * halo, width, sites)
            _level_line(sites, halo, n, half, scales, floor, level)
            _count_p_values(covered, level, n, width, floor, table, histogram)
            margin = _advance(covered, level, n, per_base, per_level, penalty, margin, decisions, begin_bin)
        peaks_before = found
        b = bins - 1
        inside = margin > 0
        while b >= 0:
            if not inside:
                # Back to the last bin of a peak, which a path in state 0 came from.
                while b > 0 and decisions[b] != 2:
                    b -= 1
                if b == 0:
                    break
                b -= 1
            stop_bin = b + 1
            while b > 0 and decisions[b] != 1:
                b -= 1
            inside = False
            left, right = b * width, min(stop_bin * width, length)
            if found == rows.shape[0]:
                rows = _grown(rows)
            good = _describe(
                start, end, first, last, longest, c_start, c_end, c_first, c_last, c_longest, c_both, half, scales,
                floor, width, fragment_length, log_fold, fold, left, right, length, pad, smooth_half, plateau,
                least_p, least_odds, rows[found],
            )  # fmt: skip
            if good:
                rows[found, 0] = q
                found += 1
            b -= 1
        # The path was traced from the end: put the peaks of the sequence in order.
        low, high = peaks_before, found - 1
        while low < high:
            for c in range(10):
                rows[low, c], rows[high, c] = rows[high, c], rows[low, c]
            low += 1
            high -= 1
    return rows[:found]


@njit(cache=True, nogil=True)
def _describe(
    start, end, first, last, longest, c_start, c_end, c_first, c_last, c_longest, c_both, half, scales,
    floor, width, fragment_length, log_fold, fold, left, right, length, pad, smooth_half, plateau, least_p, least_odds,
    row,
):  # fmt: skip
    """Refine the peak [left, right) to base pairs and fill its row; False if it is no peak after all."""
    begin, stop = max(left - max(pad, width), 0), min(right + max(pad, width), length)
    n = stop - begin
    height = np.zeros(n + 1, np.float64)
    i0 = _first_at_least(start, first, last, begin - longest)
    i1 = _first_at_least(start, first, last, stop)
    for i in range(i0, i1):
        s, e = max(start[i], begin) - begin, min(end[i], stop) - begin
        if e > s:
            height[s] += 1
            height[e] -= 1
    for x in range(1, n):
        height[x] += height[x - 1]
    # Background of the bins that the stretch touches.
    halo = 1
    for k in range(len(half)):
        halo = max(halo, half[k] + 1)
    bin_begin = begin // width
    bins = (stop + width - 1) // width - bin_begin
    sites = np.zeros(bins + 2 * halo + 2, np.int32)
    level = np.empty(bins, np.float32)
    site_begin = (bin_begin - halo) * width
    j0 = _first_at_least(c_start, c_first, c_last, site_begin - c_longest)
    j1 = _first_at_least(c_start, c_first, c_last, site_begin + (bins + 2 * halo) * width)
    _bin_sites(c_start, c_end, j0, j1, c_both, site_begin, bins + 2 * halo, width, sites)
    _level_line(sites, halo, bins, half, scales, floor, level)
    # Each border moves, within a bin to either side, to where the log-odds of the base pairs inside are largest.
    best, total, new_left = 0.0, 0.0, left
    for x in range(max(left - width, begin), min(left + width, right)):
        total -= height[x - begin] * log_fold - (fold - 1.0) * level[x // width - bin_begin]
        if total > best:
            best, new_left = total, x + 1
    best, total, new_right = 0.0, 0.0, right
    for x in range(min(right + width, stop) - 1, max(right - width, new_left) - 1, -1):
        total -= height[x - begin] * log_fold - (fold - 1.0) * level[x // width - bin_begin]
        if total > best:
            best, new_right = total, x
    if new_right <= new_left:
        return False
    smooth = np.empty(n, np.float64)
    other = np.empty(n, np.float64)
    _running_mean(height, n, smooth_half, smooth)
    _running_mean(smooth, n, smooth_half, other)
    _running_mean(other, n, smooth_half, smooth)
    top = new_left
    for x in range(new_left, new_right):
        if smooth[x - begin] > smooth[top - begin]:
            top = x
    enough = plateau * smooth[top - begin]
    low = high = top
    while low > new_left and smooth[low - 1 - begin] >= enough:
        low -= 1
    while high < new_right - 1 and smooth[high + 1 - begin] >= enough:
        high += 1
    summit = (low + high) // 2
    count, expected = 0.0, 0.0
    for x in range(new_left, new_right):
        count += height[x - begin]
        expected += level[x // width - bin_begin]
    here = level[summit // width - bin_begin]
    log10_p = -log_survival_scalar(height[summit - begin], float(here)) / math.log(10.0)
    log_odds = (count * log_fold - (fold - 1.0) * expected) / fragment_length
    if not (log10_p >= least_p and log_odds >= least_odds):
        return False
    row[1], row[2], row[3] = new_left, new_right, summit
    row[4], row[5], row[6] = height[summit - begin], here, log10_p
    row[7] = log_odds
    row[8], row[9] = count / fragment_length, expected / fragment_length
    return True


def call_chain_peaks(
    treatment: tuple[np.ndarray, np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray, np.ndarray],
    lengths: np.ndarray,
    model: ChainModel,
    background: Background,
    histogram: PValueHistogram,
    *,
    control_fragments: bool = True,
) -> ChainPeaks:
    """Call peaks of sequences by the most probable path of a two-state chain.

    The path is that of :func:`diffbio_sc.numerics.genome.peak_engine.chain_margins` on
    ``covered / d * log(fold) - (fold - 1) * lambda`` of bins.

    Parameters
    ----------
    treatment, control
        ``(start, end, bounds)``: intervals, sorted by start within each sequence, and first and last row of each
        sequence. Without a control give the treatment itself.
    lengths
        Length of each sequence; intervals are cut off there.
    model
        Parameters.
    background
        Windows and scales.
    histogram
        Where the p-values of bins are counted, those at least a standard deviation above the background.
    control_fragments
        Whether both ends of the control's intervals are cut sites.
    """
    width = int(model.bin_width)
    half = np.array([max(int(round(window / width / 2)), 1) for window in background.windows], np.int64)
    # Windows are whole bins: the scale makes up for what rounding adds.
    scales = np.array(
        [
            scale * window / (2 * reach * width)
            for scale, window, reach in zip(background.scales, background.windows, half, strict=True)
        ],
        np.float64,
    )
    rows = _call_sequences(
        treatment[0], treatment[1], np.asarray(treatment[2], np.int64), np.asarray(lengths, np.int64),
        control[0], control[1], np.asarray(control[2], np.int64), control_fragments,
        half, scales, np.float32(max(background.floor, 1e-9)), width, float(model.fragment_length), float(model.fold),
        float(model.penalty), float(model.log10_p), float(model.log_odds), histogram.counts,
        int(round(_SMOOTH)), _PLATEAU,
    )  # fmt: skip
    whole = rows[:, :4].astype(np.int64)
    return ChainPeaks(*whole.T, *(np.ascontiguousarray(column) for column in rows[:, 4:].T))


@njit(cache=True, nogil=True)
def _strand_distances(forward, reverse, counts):
    """Count distances from forward to reverse 5' ends of one sequence, both sorted, up to the length of ``counts``."""
    first = 0
    for i in range(len(forward)):
        while first < len(reverse) and reverse[first] <= forward[i]:
            first += 1
        j = first
        while j < len(reverse) and reverse[j] - forward[i] < len(counts):
            counts[reverse[j] - forward[i]] += 1
            j += 1


def fragment_length_from_strands(
    forward: Sequence[np.ndarray], reverse: Sequence[np.ndarray], *, read_length: int, longest: int = 600
) -> int | None:
    """Most frequent distance between 5' ends of forward and of reverse reads, smoothed; None without enough pairs.

    Distances about the length of the reads themselves, where unmappable places make a false peak (Landt et al. 2012,
    Genome Research 22:1813), are left out.

    Parameters
    ----------
    forward, reverse
        5' ends of the reads of each strand, sorted, of each sequence.
    read_length
        Length of the reads.
    longest
        Longest fragment looked for.
    """
    counts = np.zeros(longest + 1, np.int64)
    for plus, minus in zip(forward, reverse, strict=True):
        _strand_distances(plus, minus, counts)
    if counts.sum() < 100:
        return None
    smooth = np.convolve(counts, np.ones(31) / 31, mode="same")
    smooth[: max(50, read_length + 20)] = 0.0
    return int(np.argmax(smooth)) if smooth.any() else None


@njit(cache=True, nogil=True)
def _drop_duplicates(start, end, bounds, limit):
    place = 0
    for q in range(len(bounds)):
        first, last = bounds[q, 0], bounds[q, 1]
        begin = place
        i = first
        while i < last:
            j = i
            while j < last and start[j] == start[i]:
                j += 1
            here = start[i]
            if j - i > limit:
                end[i:j] = np.sort(end[i:j])
                same, previous = 0, -1
                for k in range(i, j):
                    value = end[k]
                    same = same + 1 if value == previous else 1
                    previous = value
                    if same <= limit:
                        start[place], end[place] = here, value
                        place += 1
            else:
                for k in range(i, j):
                    start[place], end[place] = here, end[k]
                    place += 1
            i = j
        bounds[q, 0], bounds[q, 1] = begin, place
    return place


def drop_duplicates(start: np.ndarray, end: np.ndarray, bounds: np.ndarray, limit: int = 1) -> int:
    """Keep at most ``limit`` equal intervals, in place and in no more memory; ``bounds`` are rewritten.

    Parameters
    ----------
    start, end
        Intervals, sorted by start within each sequence, sequences one after the other.
    bounds
        First and last row of each sequence (sequences, 2), int64.
    limit
        Number to keep of each.

    Returns
    -------
    Number of intervals kept, at the front of the arrays.
    """
    return int(_drop_duplicates(start, end, bounds, limit))
