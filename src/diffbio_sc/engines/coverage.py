"""Counts of intervals, and means of signals, in bins along the genome, as sparse rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from diffbio_sc._checks import counted
from diffbio_sc._progress import progress
from diffbio_sc.genome.axis import Tiles
from diffbio_sc.genome.intervals import IntervalArrays, Intervals
from diffbio_sc.genome.signal import Signal
from diffbio_sc.numerics.genome.pileup import overlap_counts, point_counts

Ends = Literal["fragment", "cut_sites", "midpoint"]

_BATCH = 1_000_000  # intervals of several chromosomes that are sorted into rows and bins at once


class Rows(NamedTuple):
    """Counts of one sample: rows by bins."""

    matrix: sp.csr_array
    """(rows, bins): int32, or float32 for a signal."""
    intervals: np.ndarray
    """Intervals counted in each row, int64."""


def count_sample(intervals: Intervals, tiles: Tiles, ends: Ends) -> Rows:
    """Count all intervals of a sample in one row."""
    indices, counts, number = [np.empty(0, np.int32)], [np.empty(0, np.int32)], 0
    for name, arrays in _inside(intervals, tiles):
        number += len(arrays.start)
        size = tiles.sizes[name]
        length = -(-size // tiles.width)
        if ends == "fragment":
            found = overlap_counts(arrays.start, arrays.end, tiles.width, length, arrays.count)
        else:
            found = np.zeros(length, np.int64)
            for positions, chosen in _points(arrays, intervals.paired, ends, size):
                weight = None if arrays.count is None else arrays.count[chosen]
                found += point_counts(positions, tiles.width, length, weight)
        some = np.flatnonzero(found)
        indices.append((some + tiles.offset[name]).astype(np.int32))
        counts.append(_as_int32(found[some]))
    column = np.concatenate(indices)
    matrix = sp.csr_array((np.concatenate(counts), column, np.array([0, len(column)])), shape=(1, tiles.number))
    return Rows(matrix, np.array([number], np.int64))


def count_groups(intervals: Intervals, codes: np.ndarray, groups: int, tiles: Tiles, ends: Ends) -> Rows:
    """Count the intervals of each group of barcodes in a row of its own.

    Parameters
    ----------
    intervals
        With barcodes.
    codes
        Group of each barcode, -1 where it is left out.
    groups
        Number of groups.
    tiles, ends
        Where to count, and what.
    """
    number = np.zeros(groups, np.int64)
    batches: list[sp.csr_array] = []
    parts: list[tuple[np.ndarray, ...]] = []
    waiting = 0
    for name, arrays in _inside(intervals, tiles):
        row = codes[arrays.cell_code]
        number += np.bincount(row[row >= 0], minlength=groups)
        parts.append(_counted(arrays, row, intervals.paired, ends, tiles, name))
        waiting += len(parts[-1][0])
        if waiting > _BATCH:  # many small contigs go together: each batch costs a pass over all rows
            batches.append(_sum_equal(parts, groups, tiles.number))
            parts, waiting = [], 0
    if parts or not batches:
        batches.append(_sum_equal(parts, groups, tiles.number))
    return Rows(_join(batches), number)


def signal_means(signal: Signal, tiles: Tiles) -> Rows:
    """Mean of a signal in each bin, in one row; 0 where there is no value."""
    values = np.zeros(tiles.number, np.float32)
    for name, size in tiles.sizes.items():
        if name in signal:
            means = signal.bin_means(name, tiles.width, size)
            values[tiles.offset[name] : tiles.offset[name] + len(means)] = means
    return Rows(sp.csr_array(values[None]), np.zeros(1, np.int64))


def move_bins(matrix: sp.csr_array, own: Tiles, target: Tiles) -> sp.csr_array:
    """Columns of one set of bins as those of another, which has all of its chromosomes, at least as long."""
    if own.offset == target.offset and own.number == target.number:
        return matrix
    shift = np.array([target.offset[name] - first for name, first in own.offset.items()], np.int64)
    place = np.arange(own.number) + np.repeat(shift, own.counts())
    moved = sp.csr_array(
        (matrix.data, place[matrix.indices].astype(np.int32), matrix.indptr), shape=(matrix.shape[0], target.number)
    )
    moved.sort_indices()
    return moved


def _inside(intervals: Intervals, tiles: Tiles) -> Iterator[tuple[str, IntervalArrays]]:
    """Intervals of each chromosome in the order of the bins, without those past its end; warns of what is left out."""
    shared = [name for name in tiles.sizes if name in intervals]
    outside = len(intervals) - sum(len(intervals[name].start) for name in shared)
    beyond = 0
    for name in progress(shared, "Coverage", total=len(shared)):
        arrays = intervals[name]
        inside = arrays.start < tiles.sizes[name]
        if not inside.all():
            beyond += np.count_nonzero(~inside)
            arrays = IntervalArrays(*(None if values is None else values[inside] for values in arrays))
        yield name, arrays
    if outside or beyond:
        warnings.warn(
            f"{intervals.name}: {counted(outside, 'interval')} on chromosomes without a size and {beyond:,} past the "
            "end of their chromosome left out.",
            UserWarning,
            stacklevel=5,
        )


def _points(arrays: IntervalArrays, paired: bool, ends: Ends, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions that count (cut sites or midpoints), and the intervals that they belong to."""
    start, end, strand = arrays.start, arrays.end, arrays.strand
    every = np.ones(len(start), np.bool_)
    if ends == "midpoint":
        candidates = [(start + (end - start) // 2, every)]
    elif paired or strand is None:
        candidates = [(start, every), (end - 1, every)]
    else:  # of a read whose strand is unknown either end may be the first base
        candidates = [(start, strand >= 0), (end - 1, strand <= 0)]
    for positions, chosen in candidates:
        chosen = chosen & (positions < size)
        yield positions[chosen], chosen


def _counted(
    arrays: IntervalArrays, row: np.ndarray, paired: bool, ends: Ends, tiles: Tiles, name: str
) -> tuple[np.ndarray, ...]:
    """Row and bin of each count, and its weight where there are weights."""
    size, offset = tiles.sizes[name], tiles.offset[name]
    if ends == "fragment":
        first = arrays.start // tiles.width
        last = (np.minimum(arrays.end, size) - 1) // tiles.width
        touched = np.where(row >= 0, last.astype(np.int64) - first + 1, 0)
        begin = np.cumsum(touched) - touched
        source = np.repeat(np.arange(len(row)), touched)
        column = np.arange(len(source)) + (first - begin)[source]
    else:
        sources, columns = [], []
        for positions, chosen in _points(arrays, paired, ends, size):
            rows = np.flatnonzero(chosen)
            kept = row[rows] >= 0
            sources.append(rows[kept])
            columns.append(positions[kept] // tiles.width)
        source, column = np.concatenate(sources), np.concatenate(columns)
    weight = () if arrays.count is None else (arrays.count[source].astype(np.int64),)
    return row[source], column.astype(np.int64) + offset, *weight


def _sum_equal(parts: list[tuple[np.ndarray, ...]], rows: int, columns: int) -> sp.csr_array:
    """Sparse sums over equal (row, bin) pairs by sorting them: dense rows of many cells would not fit."""
    if not parts:
        return sp.csr_array((rows, columns), dtype=np.int32)
    row, column, *weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    key = row.astype(np.int64) * columns + column
    if weights:
        order = np.argsort(key, kind="stable")
        key = key[order]
    else:
        key.sort()
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(key)), np.bool_), key[1:] != key[:-1]]))
    if weights and len(key):
        counts = np.add.reduceat(weights[0][order], first)
    else:
        counts = np.diff(np.concatenate([first, [len(key)]]))
    key = key[first]
    indptr = np.searchsorted(key, np.arange(rows + 1, dtype=np.int64) * columns)
    return sp.csr_array((_as_int32(counts), (key % max(columns, 1)).astype(np.int32), indptr), shape=(rows, columns))


def _join(batches: list[sp.csr_array]) -> sp.csr_array:
    """Join matrices of which each has later bins than the one before, in the memory of the result.

    scipy's own sum and stacks go through copies of several times the size.
    """
    if len(batches) == 1:
        return batches[0]
    rows, columns = batches[0].shape
    lengths = np.sum([np.diff(batch.indptr) for batch in batches], axis=0).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.int32)
    place = indptr[:-1].copy()
    for batch in batches:
        counts = np.diff(batch.indptr)
        target = np.arange(batch.nnz) + np.repeat(place - batch.indptr[:-1], counts)
        indices[target], data[target] = batch.indices, batch.data
        place += counts
    return sp.csr_array((data, indices, indptr), shape=(rows, columns))


def _as_int32(counts: np.ndarray) -> np.ndarray:
    if counts.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"a bin holds {counts.max()} counts, more than 32 bits can; use smaller bins.")
    return counts.astype(np.int32)
