"""Peaks of intervals by the most probable path of a two-state chain, streamed along sequences.

Sequences are read in pieces of bins. Of a whole sequence only one byte per bin is kept, the decisions of the forward
pass; the statistics of a peak are computed again from the intervals about it.

This module needs numpy and numba only, so that calling the peaks of a whole genome stays small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc.numerics.genome.false_discovery import PER_UNIT, PValueHistogram
from diffbio_sc.numerics.genome.marks import LIMIT
from diffbio_sc.numerics.genome.poisson_tail import log_survival, log_survival_scalar
from diffbio_sc.numerics.genome.searching import first_at_least
from diffbio_sc.numerics.genome.site_background import Background
from diffbio_sc.numerics.lines import inner_loop

__all__ = ["ChainModel", "ChainPeaks", "call_chain_peaks"]

_PIECE = 1 << 16  # bins
# Reach of the running means that smooth a pile-up before its summit is sought; three of 2 * 20 + 1 base pairs have a
# standard deviation of 20. Of 15 variants it came nearest to CTCF's motifs (benchmarks/peaks.py ctcf, column summit).
_SMOOTH = 20
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


@inner_loop
def _longest(start, end, first, last):
    longest = 0
    for i in range(first, last):
        longest = max(longest, end[i] - start[i])
    return longest


@njit(cache=True, nogil=True, inline="always")
def _bin_of(position, width):
    # Quotients of whole numbers below 2**31 are exact in float64, and faster than whole-number division.
    return int(position / width)


@inner_loop
def _bin_coverage(start, end, first, last, begin, stop, width, covered, whole):
    """Base pairs of intervals in each bin of [begin, stop), written to ``covered``; ``whole`` is workspace."""
    n = (stop - begin + width - 1) // width
    # Not by slices, here and below: the messages of errors that cannot occur take long to compile.
    for b in range(n + 1):
        covered[b] = 0
        whole[b] = 0
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


@inner_loop
def _bin_sites(intervals, rows, both, begin, n, width, sites):
    """Cut sites in each of ``n`` bins from ``begin`` (may be negative) on, written to ``sites``."""
    for b in range(n):
        sites[b] = 0
    stop = begin + n * width
    first, last = _overlapping(intervals, rows, begin, stop)
    _add_sites(intervals.start, first, last, begin, stop, float(width), sites)
    if both:
        _add_sites(intervals.end, first, last, begin, stop, float(width), sites)


@inner_loop
def _add_sites(positions, first, last, begin, stop, width, sites):
    for i in range(first, last):
        if begin <= positions[i] < stop:
            sites[_bin_of(positions[i] - begin, width)] += 1


@inner_loop
def _first_sum(sites, middle, reach):
    """Twice the sites of a window. It is symmetric about its bin: the outermost ones count half."""
    twice = sites[middle + reach] - sites[middle - reach]
    for b in range(middle - reach, middle + reach):
        twice += 2 * sites[b]
    return twice


@inner_loop
def _next_sum(sites, middle, reach, twice):
    """Of the window one bin on."""
    low, high = middle - reach, middle + reach
    return twice + (sites[high] + sites[high + 1] - sites[low] - sites[low + 1])


@inner_loop
def _level_line(sites, half, scales, floor, halo, n, level):
    """Background of ``n`` bins; ``sites`` has ``halo`` bins more on both sides."""
    for b in range(n):
        level[b] = floor
    for k in range(len(half)):
        reach = half[k]
        twice = _first_sum(sites, halo, reach)
        scale = np.float32(0.5 * scales[k])
        for b in range(n):
            level[b] = max(level[b], twice * scale)
            twice = _next_sum(sites, b + halo, reach, twice)


@inner_loop
def _raise_to_limit(sites, own, half, scales, own_scales, excess, per_fragment, halo, n, level):
    """Raise the background to the upper limit of a shallow control, as far as the treatment's own windows go."""
    for k in range(len(half)):
        if own_scales[k] <= 0:
            continue
        reach = half[k]
        twice, own_twice = _first_sum(sites, halo, reach), _first_sum(own, halo, reach)
        own_scale = np.float32(0.5 * own_scales[k])
        scale = scales[k] * per_fragment
        for b in range(n):
            most = own_twice * own_scale
            if most > level[b]:
                count = 0.5 * twice / per_fragment
                limit = count + 0.5 * excess * LIMIT**2 + LIMIT * math.sqrt(excess * (count + 0.25 * excess * LIMIT**2))
                level[b] = max(level[b], np.float32(min(most, limit * scale)))
            twice = _next_sum(sites, b + halo, reach, twice)
            own_twice = _next_sum(own, b + halo, reach, own_twice)


@inner_loop
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
            log10_p = np.float32(-log_survival_scalar(float(height), np.float64(level[b])) / math.log(10.0))
        histogram[min(int(log10_p * PER_UNIT), len(histogram) - 1)] += 1


@inner_loop
def _advance(covered, level, n, per_base, per_level, penalty, margin, decisions, first):
    """Forward pass over bins from margin ``margin``, decisions written from ``first`` on; the margin after them."""
    for b in range(n):
        below, above = margin < -penalty, margin > penalty
        # 1: a path in state 1 came from state 0; 2: one in state 0 came from state 1.
        decisions[first + b] = below + 2 * above
        margin = min(max(margin, -penalty), penalty) + (covered[b] * per_base - level[b] * per_level)
    return margin


@inner_loop
def _running_mean(values, n, half, result):
    """Mean over 2 half + 1 elements, the ends repeated."""
    total = values[0] * half
    for i in range(half + 1):
        total += values[min(i, n - 1)]
    for i in range(n):
        result[i] = total / (2 * half + 1)
        total += values[min(i + half + 1, n - 1)] - values[max(i - half, 0)]


class _Intervals(NamedTuple):
    """Intervals of sequences, sorted by start within each; first and last row of each sequence."""

    start: np.ndarray
    end: np.ndarray
    bounds: np.ndarray


class _Windows(NamedTuple):
    """Background in bins: windows of ``half`` bins to either side, the height of one site in each, and the floor."""

    half: np.ndarray
    scales: np.ndarray
    floor: np.float32
    both_ends: bool
    halo: int
    own_scales: np.ndarray
    own_both_ends: bool
    excess: float
    per_fragment: int


class _Settings(NamedTuple):
    """A :class:`ChainModel` as compiled code takes it."""

    width: int
    fragment_length: float
    fold: float
    log_fold: float
    penalty: float
    least_log10_p: float
    least_log_odds: float


class _Rows(NamedTuple):
    """Rows of a sequence: first, last, and the length of the longest interval among them."""

    first: int
    last: int
    longest: int


class _Sources(NamedTuple):
    """Treatment and control, and the rows of the present sequence in each."""

    treatment: _Intervals
    rows: _Rows
    control: _Intervals
    control_rows: _Rows


@inner_loop
def _rows_of(intervals, sequence):
    first, last = intervals.bounds[sequence, 0], intervals.bounds[sequence, 1]
    return _Rows(first, last, _longest(intervals.start, intervals.end, first, last))


@inner_loop
def _overlapping(intervals, rows, begin, stop):
    """First and last row that may reach into [begin, stop)."""
    return (
        first_at_least(intervals.start, rows.first, rows.last, begin - rows.longest),
        first_at_least(intervals.start, rows.first, rows.last, stop),
    )


@inner_loop
def _background_bins(sources, windows, width, first_bin, n, sites, own, level):
    """Background of ``n`` bins from ``first_bin`` on, written to ``level``; ``sites`` and ``own`` are workspace."""
    half, scales, halo = windows.half, windows.scales, windows.halo
    begin = (first_bin - halo) * width
    count = n + 2 * halo
    _bin_sites(sources.control, sources.control_rows, windows.both_ends, begin, count, width, sites)
    _level_line(sites, half, scales, windows.floor, halo, n, level)
    if windows.excess > 0:
        _bin_sites(sources.treatment, sources.rows, windows.own_both_ends, begin, count, width, own)
        _raise_to_limit(
            sites, own, half, scales, windows.own_scales, windows.excess, windows.per_fragment, halo, n, level
        )


@njit(cache=True, nogil=True)
def _call_sequences(
    start, end, bounds, control_start, control_end, control_bounds, lengths,
    half, scales, floor, both_ends, halo, own_scales, own_both_ends, excess, per_fragment,
    width, fragment_length, fold, log_fold, penalty, least_log10_p, least_log_odds,
    table, decisions, histogram,
):  # fmt: skip
    """Peaks of sequences; see :func:`call_chain_peaks`."""
    # No named tuples from outside: to take them apart is much to compile.
    treatment, control = _Intervals(start, end, bounds), _Intervals(control_start, control_end, control_bounds)
    windows = _Windows(half, scales, floor, both_ends, halo, own_scales, own_both_ends, excess, per_fragment)
    settings = _Settings(width, fragment_length, fold, log_fold, penalty, least_log10_p, least_log_odds)
    piece = min(_PIECE, len(decisions))
    covered = np.empty(piece + 1, np.int32)
    whole = np.empty(piece + 2, np.int32)
    sites = np.empty(piece + 2 * windows.halo, np.int32)
    own = np.empty(piece + 2 * windows.halo, np.int32)
    level = np.empty(piece + 1, np.float32)
    per_base = settings.log_fold / settings.fragment_length
    per_level = (settings.fold - 1.0) * width / settings.fragment_length
    peaks = np.empty((1024, 10), np.float64)
    found = 0
    for q in range(len(lengths)):
        length = lengths[q]
        bins = (length + width - 1) // width
        rows = _rows_of(treatment, q)
        if rows.last <= rows.first:
            continue
        sources = _Sources(treatment, rows, control, _rows_of(control, q))
        margin = -settings.penalty
        for first_bin in range(0, bins, piece):
            begin, stop = first_bin * width, min(length, (first_bin + piece) * width)
            i0, i1 = _overlapping(treatment, rows, begin, stop)
            n = _bin_coverage(treatment.start, treatment.end, i0, i1, begin, stop, width, covered, whole)
            _background_bins(sources, windows, width, first_bin, n, sites, own, level)
            _count_p_values(covered, level, n, width, windows.floor, table, histogram)
            margin = _advance(covered, level, n, per_base, per_level, settings.penalty, margin, decisions, first_bin)
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
            if found == peaks.shape[0]:
                peaks = _grown(peaks)
            if _describe(sources, windows, settings, left, right, length, peaks[found]):
                peaks[found, 0] = q
                found += 1
            b -= 1
    return peaks, found


@inner_loop
def _grown(array):
    result = np.empty((2 * array.shape[0], array.shape[1]), np.float64)
    for row in range(array.shape[0]):
        for column in range(array.shape[1]):
            result[row, column] = array[row, column]
    return result


@inner_loop
def _describe(sources, windows, settings, left, right, length, row):
    """Refine the peak [left, right) to base pairs and fill its row; False if it is no peak after all."""
    width = settings.width
    pad = max(3 * _SMOOTH + 1, width)
    begin, stop = max(left - pad, 0), min(right + pad, length)
    height = _pile_up(sources.treatment, sources.rows, begin, stop)
    first_bin = begin // width
    bins = (stop + width - 1) // width - first_bin
    sites = np.empty(bins + 2 * windows.halo, np.int32)
    own = np.empty(bins + 2 * windows.halo, np.int32)
    level = np.empty(bins, np.float32)
    _background_bins(sources, windows, width, first_bin, bins, sites, own, level)
    new_left, new_right = _borders(height, level, settings, left, right, begin, stop)
    if new_right <= new_left:
        return False
    summit = begin + _summit(height, new_left - begin, new_right - begin)
    count, expected = 0.0, 0.0
    for x in range(new_left, new_right):
        count += height[x - begin]
        expected += level[x // width - first_bin]
    here = level[summit // width - first_bin]
    log10_p = -log_survival_scalar(height[summit - begin], np.float64(here)) / math.log(10.0)
    log_odds = (count * settings.log_fold - (settings.fold - 1.0) * expected) / settings.fragment_length
    if not (log10_p >= settings.least_log10_p and log_odds >= settings.least_log_odds):
        return False
    row[1], row[2], row[3] = new_left, new_right, summit
    row[4], row[5], row[6] = height[summit - begin], here, log10_p
    row[7] = log_odds
    row[8], row[9] = count / settings.fragment_length, expected / settings.fragment_length
    return True


@inner_loop
def _pile_up(treatment, rows, begin, stop):
    """Number of intervals over each base pair of [begin, stop); there is one element more."""
    n = stop - begin
    height = np.empty(n + 1, np.float64)
    for x in range(n + 1):
        height[x] = 0.0
    i0, i1 = _overlapping(treatment, rows, begin, stop)
    for i in range(i0, i1):
        s, e = max(treatment.start[i], begin) - begin, min(treatment.end[i], stop) - begin
        if e > s:
            height[s] += 1
            height[e] -= 1
    for x in range(1, n):
        height[x] += height[x - 1]
    return height


@inner_loop
def _borders(height, level, settings, left, right, begin, stop):
    """Move each border, within a bin to either side, to where the log-odds of the base pairs inside are largest."""
    width, first_bin = settings.width, begin // settings.width
    best, total, new_left = 0.0, 0.0, left
    for x in range(max(left - width, begin), min(left + width, right)):
        total -= height[x - begin] * settings.log_fold - (settings.fold - 1.0) * level[x // width - first_bin]
        if total > best:
            best, new_left = total, x + 1
    best, total, new_right = 0.0, 0.0, right
    for x in range(min(right + width, stop) - 1, max(right - width, new_left) - 1, -1):
        total -= height[x - begin] * settings.log_fold - (settings.fold - 1.0) * level[x // width - first_bin]
        if total > best:
            best, new_right = total, x
    return new_left, new_right


@inner_loop
def _summit(height, first, last):
    """Middle of the plateau of the smoothed pile-up within [first, last)."""
    n = len(height) - 1
    smooth = np.empty(n, np.float64)
    other = np.empty(n, np.float64)
    # Three running means are close to a Gaussian of the standard deviation of _SMOOTH.
    _running_mean(height, n, _SMOOTH, smooth)
    _running_mean(smooth, n, _SMOOTH, other)
    _running_mean(other, n, _SMOOTH, smooth)
    top = first
    for x in range(first, last):
        if smooth[x] > smooth[top]:
            top = x
    enough = _PLATEAU * smooth[top]
    low = high = top
    while low > first and smooth[low - 1] >= enough:
        low -= 1
    while high < last - 1 and smooth[high + 1] >= enough:
        high += 1
    return (low + high) // 2


def call_chain_peaks(
    treatment: tuple[np.ndarray, np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray, np.ndarray],
    lengths: np.ndarray,
    model: ChainModel,
    background: Background,
    histogram: PValueHistogram,
    *,
    treatment_fragments: bool = True,
    control_fragments: bool = True,
) -> ChainPeaks:
    """Call peaks of sequences by the most probable path of a two-state chain.

    The path is that of :func:`diffbio_sc.numerics.chains.two_state_host.chain_margins` on
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
    treatment_fragments, control_fragments
        Whether both ends of the intervals are cut sites.
    """
    width = int(model.bin_width)
    half = np.array([max(int(round(window / width / 2)), 1) for window in background.windows], np.int64)
    # Windows are whole bins: the scale makes up for what rounding adds.
    rounded = np.array(background.windows, np.float64) / (2 * half * width)
    scales = np.array(background.scales, np.float64) * rounded
    own_scales = np.array(background.own_scales or np.zeros(len(half)), np.float64) * rounded
    lengths = np.asarray(lengths, np.int64)
    floor = np.float32(max(background.floor, 1e-9))
    levels = np.float64(floor) * (1.0 + np.arange(_LEVELS + 1) / _PER_LEVEL)
    table = -log_survival(np.arange(_HEIGHTS)[:, None], levels) / math.log(10.0)
    rows, found = _call_sequences(
        treatment[0], treatment[1], np.asarray(treatment[2], np.int64),
        control[0], control[1], np.asarray(control[2], np.int64),
        lengths,
        half, scales, floor, bool(control_fragments), int(half.max(initial=0)) + 1,
        own_scales, bool(treatment_fragments), float(background.excess), int(background.per_fragment),
        width, float(model.fragment_length), float(model.fold), math.log(model.fold), float(model.penalty),
        float(model.log10_p), float(model.log_odds),
        table.astype(np.float32),
        np.empty(-(-int(lengths.max(initial=0)) // width), np.uint8),
        histogram.counts,
    )  # fmt: skip
    # The path of a sequence is traced from its end.
    rows = rows[:found][np.lexsort((-np.arange(found), rows[:found, 0]))]
    whole = rows[:, :4].astype(np.int64)
    return ChainPeaks(*whole.T, *(np.ascontiguousarray(column) for column in rows[:, 4:].T))
