"""Peaks of intervals by the most probable path of a two-state chain, streamed along sequences.

Sequences are read in pieces of bins, and nothing of a sequence is kept but its peaks, whose statistics are computed
again from the intervals about them. Bins where nothing changes, without intervals and on an even background, are passed
over: a sample of few intervals takes time by the interval, not by the length of the genome.

This module needs numpy and numba only, so that calling the peaks of a whole genome stays small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc.numerics.genome.chain_background import first_sums, level_line, next_sums, raise_to_limit
from diffbio_sc.numerics.genome.chain_path import ChainPath, advance, last_peak, pass_over
from diffbio_sc.numerics.genome.false_discovery import PER_UNIT, PValueHistogram
from diffbio_sc.numerics.genome.poisson_tail import log_survival, log_survival_scalar
from diffbio_sc.numerics.genome.searching import first_at_least
from diffbio_sc.numerics.genome.site_background import Background
from diffbio_sc.numerics.lines import inner_loop

__all__ = ["ChainModel", "ChainPeaks", "call_chain_peaks"]

_PIECE = 1 << 16  # bins
_SHIFT = 4
_BLOCK = 1 << _SHIFT  # bins that are passed over or worked on together
_COLUMNS = 10  # of the table of peaks
_CROWDED = 64  # bins an interval, below which none are passed over
# With numpy's numbers for written ones a function is compiled once, not once for each number that it is given.
_NONE, _ONE, _NO = np.int64(0), np.int64(1), np.bool_(False)
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


@inner_loop
def _bin_of(position, width):
    # Quotients of whole numbers below 2**31 are exact in float64, and faster than whole-number division.
    return int(position / width)


@inner_loop
def _add_coverage(start, end, first, last, begin, stop, width, covered, whole, mark, busy, origin):
    """Add base pairs of intervals to their outer bins of [begin, stop), and the steps of the number of whole ones."""
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
        if mark:
            for block in range((left + origin) >> _SHIFT, ((right + origin) >> _SHIFT) + 1):
                busy[block] = 1


@inner_loop
def _sum_coverage(covered, whole, first, stop, width):
    """Base pairs of intervals in each bin of [first, stop); no interval reaches into these bins from before."""
    depth = 0
    for b in range(np.uint64(first), np.uint64(stop)):
        depth += whole[b]
        covered[b] += depth * width


@inner_loop
def _bin_sites(intervals, rows, both, begin, n, width, sites, change, mark, half, busy, origin):
    """Add ``change`` to ``sites`` for each cut site in ``n`` bins from ``begin`` (may be negative) on."""
    stop = begin + n * width
    first, last = _overlapping(intervals, rows, begin, stop)
    for end in range(1 + both):
        positions = intervals.end if end else intervals.start
        _add_sites(positions, first, last, begin, stop, float(width), sites, change, mark, half, busy, origin)


@inner_loop
def _add_sites(positions, first, last, begin, stop, width, sites, change, mark, half, busy, origin):
    """The same, and mark the blocks where a window takes a site in or lets it go; ``origin`` is that of ``sites``."""
    for i in range(first, last):
        if begin <= positions[i] < stop:
            place = _bin_of(positions[i] - begin, width)
            sites[place] += change
            if mark:
                for k in range(len(half)):
                    # Outermost bins of a window count half: its sum changes in two steps. One bin after a block is
                    # worked on too, so that the second step needs no mark of its own.
                    busy[(place + origin - half[k]) >> _SHIFT] = 1
                    busy[(place + origin + half[k]) >> _SHIFT] = 1


@inner_loop
def _count_p_values(covered, level, first, stop, width, floor, table, histogram):
    """Add the bins whose height is at least one standard deviation above the background."""
    divisor = np.float32(width)
    per_floor = np.float32(1.0) / floor
    for b in range(np.uint64(first), np.uint64(stop)):
        if covered[b] == 0:
            continue
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
def _running_mean(values, n, half, result):
    """Mean over 2 half + 1 elements, the ends repeated."""
    total = values[0] * half
    for i in range(half + 1):
        total += values[min(i, n - 1)]
    for i in range(n):
        result[i] = total / (2 * half + 1)
        total += values[np.uint64(min(i + half + 1, n - 1))] - values[np.uint64(max(i - half, 0))]


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
def _put_sites(sources, windows, width, first_bin, n, sites, own, change, mark, busy, origin):
    """Add cut sites of a piece of ``n`` bins and the halo about it, or take them away; mark where they matter."""
    half, halo = windows.half, windows.halo
    begin, count = (first_bin - halo) * width, n + 2 * halo
    _bin_sites(
        sources.control, sources.control_rows, windows.both_ends, begin, count, width,
        sites, change, mark, half, busy, origin - halo,
    )  # fmt: skip
    if windows.excess > 0:
        _bin_sites(
            sources.treatment, sources.rows, windows.own_both_ends, begin, count, width,
            own, change, mark, half, busy, origin - halo,
        )  # fmt: skip


@inner_loop
def _end_of(busy, block, last, value):
    """First block from ``block`` on that is not marked so; ``last`` if there is none."""
    while block < last and busy[block] == value:
        block += 1
    return block


@njit(cache=True, nogil=True)
def _call_sequences(
    start, end, bounds, control_start, control_end, control_bounds, lengths,
    half, scales, floor, both_ends, halo, own_scales, own_both_ends, excess, per_fragment,
    width, fragment_length, fold, log_fold, penalty, least_log10_p, least_log_odds,
    table, most_bins, histogram,
):  # fmt: skip
    """Peaks of sequences; see :func:`call_chain_peaks`."""
    # No named tuples from outside: to take them apart is much to compile.
    treatment, control = _Intervals(start, end, bounds), _Intervals(control_start, control_end, control_bounds)
    windows = _Windows(half, scales, floor, both_ends, halo, own_scales, own_both_ends, excess, per_fragment)
    settings = _Settings(width, fragment_length, fold, log_fold, penalty, least_log10_p, least_log_odds)
    piece = min(_PIECE, most_bins)
    # In loops no named tuples of arrays either: each use counts references to all of them. Between pieces the four
    # arrays of whole numbers hold zeros.
    covered, whole = np.zeros(piece, np.int32), np.zeros(piece, np.int32)
    sites, own = np.zeros(piece + 2 * halo, np.int32), np.zeros(piece + 2 * halo, np.int32)
    level, sums = np.empty(piece, np.float32), np.empty((3, len(half)), np.int64)
    # Blocks that are not passed over, with those that windows reach before the first bin, number origin, and after.
    origin = (2 * halo + 1 + _BLOCK) >> _SHIFT << _SHIFT
    busy = np.zeros(((piece + 2 * halo + origin) >> _SHIFT) + 1, np.int32)
    shift = origin >> _SHIFT
    per_base = settings.log_fold / settings.fragment_length
    per_level = (settings.fold - 1.0) * width / settings.fragment_length
    runs = np.empty((piece // 2 + 2, 2), np.int64)  # bins of peaks; one has a bin, and there is one before it
    peaks = np.empty(1024 * _COLUMNS, np.float64)  # row after row
    found = 0
    for q in range(len(lengths)):
        length = lengths[q]
        bins = (length + width - 1) // width
        rows = _rows_of(treatment, q)
        if rows.last <= rows.first:
            continue
        sources = _Sources(treatment, rows, control, _rows_of(control, q))
        path = ChainPath(-settings.penalty, 0, 0, 0)
        for first_bin in range(0, bins, piece):
            begin, stop = first_bin * width, min(length, (first_bin + piece) * width)
            n = (stop - begin + width - 1) // width
            i0, i1 = _overlapping(treatment, rows, begin, stop)
            c0, c1 = _overlapping(control, sources.control_rows, begin, stop)
            crowded = (i1 - i0 + len(half) * (c1 - c0)) * _CROWDED > n
            _put_sites(sources, windows, width, first_bin, n, sites, own, _ONE, not crowded, busy, origin)
            _add_coverage(start, end, i0, i1, begin, stop, width, covered, whole, not crowded, busy, origin)
            first_sums(sites, own, half, excess, halo, sums)
            blocks = shift + ((n - 1) >> _SHIFT) + 1
            if crowded:
                for block in range(shift, blocks):
                    busy[block] = 1
            busy[shift] = 1
            first, block = _NONE, shift
            while first < n:
                block = _end_of(busy, block, blocks, _ONE)
                # With the first of the bins that are passed over, which are like it.
                last = min(((block - shift) << _SHIFT) + 1, n)
                _sum_coverage(covered, whole, first, last, width)
                level_line(sites, half, scales, floor, halo, first, last, sums, level)
                if excess > 0:
                    raise_to_limit(
                        sites, own, half, scales, own_scales, excess, per_fragment, halo, first, last, sums, level
                    )
                _count_p_values(covered, level, first, last, width, floor, table, histogram)
                path = advance(path, covered, level, first, last, first_bin, per_base, per_level, penalty, runs)
                for b in range(np.uint64(first), np.uint64(last)):
                    covered[b] = 0
                    whole[b] = 0
                first = last
                if first < n:
                    block = _end_of(busy, block, blocks, _NONE)
                    first = min((block - shift) << _SHIFT, n)
                    step = -level[last - 1] * per_level
                    path = pass_over(path, step, first_bin + last, first_bin + first, penalty, runs)
                    next_sums(sites, own, half, excess, first - 1 + halo, sums)
            for block in range(len(busy)):
                busy[block] = 0
            if crowded:
                for b in range(n + 2 * halo):
                    sites[b] = 0
                    own[b] = 0
            else:
                _put_sites(sources, windows, width, first_bin, n, sites, own, -_ONE, _NO, busy, origin)
            if first_bin + piece >= bins:
                path = last_peak(path, bins, runs)
            for run in range(path.found):
                left, right = runs[run, 0] * width, min(runs[run, 1] * width, length)
                place = found * _COLUMNS
                if place == len(peaks):
                    peaks = _grown(peaks)
                if _describe(sources, windows, settings, left, right, length, busy, peaks, place):
                    peaks[place] = q
                    found += 1
            path = ChainPath(path.margin, path.entry, path.leave, 0)
    return peaks, found


@inner_loop
def _grown(array):
    result = np.empty(2 * len(array), np.float64)
    for place in range(len(array)):
        result[place] = array[place]
    return result


@inner_loop
def _describe(sources, windows, settings, left, right, length, busy, rows, place):
    """Refine the peak [left, right) to base pairs and fill its row, from ``place`` on; False if it is no peak."""
    width = settings.width
    pad = max(3 * _SMOOTH + 1, width)
    begin, stop = max(left - pad, 0), min(right + pad, length)
    height = _pile_up(sources.treatment, sources.rows, begin, stop)
    first_bin = begin // width
    bins = (stop + width - 1) // width - first_bin
    halo = windows.halo
    sites, own = np.zeros(bins + 2 * halo, np.int32), np.zeros(bins + 2 * halo, np.int32)
    level, sums = np.empty(bins, np.float32), np.empty((3, len(windows.half)), np.int64)
    _put_sites(sources, windows, width, first_bin, bins, sites, own, _ONE, _NO, busy, _NONE)
    first_sums(sites, own, windows.half, windows.excess, windows.halo, sums)
    level_line(sites, windows.half, windows.scales, windows.floor, windows.halo, _NONE, bins, sums, level)
    if windows.excess > 0:
        raise_to_limit(
            sites, own, windows.half, windows.scales, windows.own_scales, windows.excess, windows.per_fragment,
            windows.halo, _NONE, bins, sums, level,
        )  # fmt: skip
    new_left, new_right = _borders(height, level, settings, left, right, begin, stop)
    if new_right <= new_left:
        return False
    summit = begin + _summit(height, new_left - begin, new_right - begin)
    count, expected = 0.0, 0.0
    divisor = float(width)
    for x in range(new_left, new_right):
        count += height[np.uint64(x - begin)]
        expected += level[np.uint64(_bin_of(x, divisor) - first_bin)]
    here = level[summit // width - first_bin]
    log10_p = -log_survival_scalar(height[summit - begin], np.float64(here)) / math.log(10.0)
    log_odds = (count * settings.log_fold - (settings.fold - 1.0) * expected) / settings.fragment_length
    if not (log10_p >= settings.least_log10_p and log_odds >= settings.least_log_odds):
        return False
    rows[place + 1], rows[place + 2], rows[place + 3] = new_left, new_right, summit
    rows[place + 4], rows[place + 5], rows[place + 6] = height[summit - begin], here, log10_p
    rows[place + 7] = log_odds
    rows[place + 8] = count / settings.fragment_length
    rows[place + 9] = expected / settings.fragment_length
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
    divisor, per_level = float(width), settings.fold - 1.0
    best, total, new_left = 0.0, 0.0, left
    for x in range(max(left - width, begin), min(left + width, right)):
        total -= height[x - begin] * settings.log_fold - per_level * level[_bin_of(x, divisor) - first_bin]
        if total > best:
            best, new_left = total, x + 1
    best, total, new_right = 0.0, 0.0, right
    for x in range(min(right + width, stop) - 1, max(right - width, new_left) - 1, -1):
        total -= height[x - begin] * settings.log_fold - per_level * level[_bin_of(x, divisor) - first_bin]
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
        -(-int(lengths.max(initial=0)) // width),
        histogram.counts,
    )  # fmt: skip
    rows = rows[: found * _COLUMNS].reshape(found, _COLUMNS)
    whole = rows[:, :4].astype(np.int64)
    return ChainPeaks(*whole.T, *(np.ascontiguousarray(column) for column in rows[:, 4:].T))
