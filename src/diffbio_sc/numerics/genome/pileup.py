"""How many intervals lie over each base or bin of a chromosome, exactly, in compiled loops.

All functions take intervals of one chromosome, 0-based and half-open. Sums are whole numbers: no depth loses counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diffbio_sc._checks import whole_numbers


class RunLengths(NamedTuple):
    """A step function over one chromosome, without gaps from position 0 to the last end."""

    end: np.ndarray
    """End of each run (int32); it begins where the one before ends, the first at 0."""
    value: np.ndarray
    """Value over the run; neighbouring runs differ."""

    @property
    def start(self) -> np.ndarray:
        """Start of each run."""
        return np.concatenate([np.zeros(min(1, len(self.end)), self.end.dtype), self.end[:-1]])


def pileup(
    start: np.ndarray, end: np.ndarray, *, weight: np.ndarray | None = None, size: int | None = None
) -> RunLengths:
    """Number of intervals over each base.

    Parameters
    ----------
    start, end
        Intervals, in any order (fastest if sorted by start).
    weight
        Whole number that each interval counts for; default 1.
    size
        Length of the chromosome: the last run reaches there. Intervals must lie within.

    Returns
    -------
    Runs of equal depth: int32, or int64 with weights.
    """
    start, end = _checked(start, end, size)
    if weight is None:
        if np.any(start[1:] < start[:-1]):
            start = np.sort(start)
        positions = np.empty(2 * len(start) + 1, np.int32)
        depth = np.empty(2 * len(start) + 1, np.int32)
        runs = _merge_ends(start, np.sort(end), positions, depth)
    else:
        weight = _weights(weight)
        where = np.concatenate([start, end])
        order = np.argsort(where, kind="stable")
        change = np.concatenate([weight, -weight])[order]
        positions = np.empty(len(where) + 1, np.int32)
        depth = np.empty(len(where) + 1, np.int64)
        runs = _accumulate(where[order], change, positions, depth)
    if size is not None and (runs == 0 or positions[runs - 1] < size):
        positions[runs], depth[runs] = size, 0
        runs += 1
    return RunLengths(positions[:runs].copy(), depth[:runs].copy())


def overlap_counts(
    start: np.ndarray, end: np.ndarray, width: int, bins: int, weight: np.ndarray | None = None
) -> np.ndarray:
    """Number of intervals that touch each bin of ``width`` bases: int32, or int64 with weights.

    With bins of one base this is the depth. An interval counts once in each bin that it touches.
    """
    start, end = _checked(start, end, None)
    if weight is None:
        result = np.zeros(bins + 1, np.int32)
        _add_overlaps(start, end, np.int64(width), result)
    else:
        result = np.zeros(bins + 1, np.int64)
        _add_weighted_overlaps(start, end, _weights(weight), np.int64(width), result)
    return result[:bins]


def depth_sums(start: np.ndarray, end: np.ndarray, width: int, bins: int) -> np.ndarray:
    """Number of bases of all intervals in each bin of ``width``: the sum of the depth over the bin, int64."""
    start, end = _checked(start, end, None)
    # Two first differences: of the bins that an interval fills, and of the bases in those where it begins or ends.
    result, filled = np.zeros(bins + 1, np.int64), np.zeros(bins + 1, np.int32)
    _add_bases(start, end, np.int64(width), result, filled)
    return result[:bins]


def point_counts(positions: np.ndarray, width: int, bins: int, weight: np.ndarray | None = None) -> np.ndarray:
    """Number of positions in each bin of ``width`` bases, or the sum of their whole-number weights: int64."""
    index = whole_numbers(positions, "positions") // width
    inside = (index >= 0) & (index < bins)
    # float64 sums of whole numbers are exact up to 2**53.
    sums = np.bincount(index[inside], None if weight is None else _weights(weight)[inside], minlength=bins)
    return sums.astype(np.int64)


def value_sums(start: np.ndarray, end: np.ndarray, value: np.ndarray, width: int, bins: int) -> np.ndarray:
    """Sum, over the bases of each bin of ``width``, of values that hold from ``start`` to ``end``.

    int64, or float64 if the values are real numbers.
    """
    value = np.asarray(value)
    value = value.astype(np.int64 if value.dtype.kind in "iu" else np.float64, copy=False)
    result = np.zeros(bins, value.dtype)
    _add_values(start, end, value, np.int64(width), result)
    return result


def _weights(weight: np.ndarray) -> np.ndarray:
    return whole_numbers(weight, "weights")


def _checked(start: np.ndarray, end: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    # A cast would cut fractions off and wrap what 32 bits cannot hold.
    start, end = (
        part if getattr(part, "dtype", None) == np.int32 else whole_numbers(part, "positions", maximum=2**31 - 1)
        for part in (start, end)
    )
    start, end = start.astype(np.int32, copy=False), end.astype(np.int32, copy=False)
    if start.shape != end.shape or start.ndim != 1:
        raise ValueError(f"start and end must be two vectors of one length, found {start.shape} and {end.shape}.")
    if len(start) and (start.min() < 0 or np.any(end <= start)):
        raise ValueError("intervals must have 0 <= start < end.")
    if size is not None and len(end) and end.max() > size:
        raise ValueError(f"intervals must end by {size}, the length of the chromosome, found {end.max()}: clip them.")
    return start, end


@njit(cache=True, nogil=True)
def _merge_ends(start, end, positions, depth):
    """Walk through sorted starts and sorted ends at once; returns the number of runs."""
    runs, level, first, last, count = 0, 0, 0, 0, len(start)
    while last < count:
        here = end[last]
        if first < count and start[first] < here:
            here = start[first]
        change = 0
        while first < count and start[first] == here:
            change += 1
            first += 1
        while last < count and end[last] == here:
            change -= 1
            last += 1
        if change != 0:
            if here > 0:
                positions[runs] = here
                depth[runs] = level
                runs += 1
            level += change
    return runs


@njit(cache=True, nogil=True)
def _accumulate(where, change, positions, depth):
    """Runs of the sum of changes at sorted positions; returns their number."""
    runs, index = 0, 0
    level = np.int64(0)
    while index < len(where):
        here = where[index]
        total = np.int64(0)
        while index < len(where) and where[index] == here:
            total += change[index]
            index += 1
        if total != 0:
            if here > 0:
                positions[runs] = here
                depth[runs] = level
                runs += 1
            level += total
    return runs


@njit(cache=True, nogil=True)
def _add_overlaps(start, end, width, result):
    bins = len(result) - 1
    for index in range(len(start)):
        first, last = start[index] // width, (end[index] - 1) // width
        if first < bins:
            result[first] += 1
            if last + 1 < bins:
                result[last + 1] -= 1
    level = 0
    for index in range(bins):
        level += result[index]
        result[index] = level


@njit(cache=True, nogil=True)
def _add_weighted_overlaps(start, end, weight, width, result):
    bins = len(result) - 1
    for index in range(len(start)):
        first, last = start[index] // width, (end[index] - 1) // width
        if first < bins:
            result[first] += weight[index]
            if last + 1 < bins:
                result[last + 1] -= weight[index]
    level = np.int64(0)
    for index in range(bins):
        level += result[index]
        result[index] = level


@njit(cache=True, nogil=True)
def _add_bases(start, end, width, result, filled):
    bins = len(result) - 1
    for index in range(len(start)):
        first, last = start[index] // width, (end[index] - 1) // width
        if first >= bins:
            continue
        if first == last:
            result[first] += end[index] - start[index]
            continue
        result[first] += (first + 1) * width - start[index]
        if last < bins:
            result[last] += end[index] - last * width
        if first + 1 < bins:
            filled[first + 1] += 1
            if last < bins:
                filled[last] -= 1
    level = np.int64(0)
    for index in range(bins):
        level += filled[index]
        result[index] += level * width


@njit(cache=True, nogil=True)
def _add_values(start, end, value, width, result):
    for run in range(len(end)):
        if value[run] != 0:
            position, stop = np.int64(start[run]), np.int64(end[run])
            while position < stop:
                index = position // width
                if index >= len(result):
                    break
                following = min((index + 1) * width, stop)
                result[index] += (following - position) * value[run]
                position = following
