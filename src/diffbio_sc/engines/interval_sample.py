"""Fragments or reads made ready for a call: duplicates dropped, reads extended, cut sites and lengths known.

Chromosomes are made ready in parts, each a task; between parts nothing is shared but sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.blocks.rounds import Flow, Round, run_here
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.columns import (
    ColumnList,
    ColumnTuple,
    discard,
    new_column,
    opened,
    read_again,
    release,
    row_batches,
    row_starts,
    stored,
    write_rows,
)
from diffbio_sc.genome.intervals import Intervals, check_strands, extend_reads
from diffbio_sc.numerics.genome.duplicates import drop_duplicates
from diffbio_sc.numerics.genome.fragment_length import likeliest_length, strand_distances
from diffbio_sc.numerics.genome.pileup import depth_sums

__all__ = ["Sample", "SamplePart", "coarse_bins", "discard_sample", "prepare_sample", "sample_rounds"]

_ROWS_AT_ONCE = 1 << 18
_APART = 1 << 16  # rows from one chromosome to the next, of a group whose rows lie among those of others
_NO_LIMIT = np.iinfo(np.int64).max
_TYPICAL_LENGTH = 200  # of fragments, where the reads do not tell: a nucleosome and its linkers


class SamplePart(NamedTuple):
    """Some chromosomes of a sample, ready for a call.

    Attributes
    ----------
    start, end, bounds
        Fragments, and the first and last row of each chromosome.
    lengths
        Of the chromosomes.
    site_start, site_end, site_bounds
        Cut sites, and rows of each chromosome.
    """

    start: np.ndarray
    end: np.ndarray
    bounds: np.ndarray
    lengths: np.ndarray
    site_start: np.ndarray
    site_end: np.ndarray
    site_bounds: np.ndarray

    def __reduce__(self) -> tuple:
        """To another process columns in files travel by their place."""
        return _opened_part, tuple(map(stored, self))

    def take(self, chromosomes: np.ndarray) -> SamplePart:
        """Some of the chromosomes, by number."""
        return self._replace(
            bounds=self.bounds[chromosomes],
            lengths=self.lengths[chromosomes],
            site_bounds=self.site_bounds[chromosomes],
        )

    def release(self) -> None:
        """Take columns that lie in files out of memory."""
        release(self.start, self.end, self.site_start, self.site_end)


def _opened_part(*columns: object) -> SamplePart:
    return SamplePart(*map(opened, columns))  # type: ignore[arg-type]


class Sample(NamedTuple):
    """Fragments of one sample, with what a background of them needs.

    Attributes
    ----------
    parts
        The chromosomes in their order, some in each part.
    chromosomes, lengths
        Names and lengths.
    counts
        Fragments of each chromosome.
    mean_length
        Of the fragments.
    tag_length
        Mean length of what was sequenced: of a read, or of a whole fragment, each once however often it counts.
    paired
        Whether both ends are cut sites; of extended reads only the first is known.
    """

    parts: list[SamplePart]
    chromosomes: list[str]
    lengths: np.ndarray
    counts: np.ndarray
    mean_length: float
    tag_length: float
    paired: bool

    @property
    def number(self) -> int:
        """Number of fragments."""
        return int(self.counts.sum())

    @property
    def sites(self) -> int:
        """Number of cut sites: two per fragment, one per read."""
        return (2 if self.paired else 1) * self.number

    @property
    def total_length(self) -> float:
        """Sum of the lengths of the fragments."""
        return self.number * self.mean_length

    @property
    def part_stops(self) -> np.ndarray:
        """Number of chromosomes up to the end of each part."""
        return np.cumsum([len(part.lengths) for part in self.parts])


def prepare_sample(intervals: Intervals, settings: PeakSettings, lengths: Mapping[str, int] | None = None) -> Sample:
    """Drop duplicates, extend reads, and find cut sites, in this process; see :func:`sample_rounds`."""
    return run_here(sample_rounds(intervals, settings, lengths))


def sample_rounds(
    intervals: Intervals,
    settings: PeakSettings,
    lengths: Mapping[str, int] | None = None,
    names: Sequence[list[str]] | None = None,
) -> Flow[Sample]:
    """Drop duplicates, extend reads, and find cut sites.

    Parameters
    ----------
    intervals
        Fragments or reads.
    settings
        Settings of the call.
    lengths
        Length of each chromosome; default its size where known, else the last end of an interval.
    names
        Chromosomes of each part; default those of ``intervals.parts()``.
    """
    limit = settings.duplicates
    if limit == "auto":
        # Equal fragments of different cells are different molecules, and a count says how many there were.
        limit = None if {"cell_code", "count"} & set(intervals.columns) else 1
    parts = intervals.parts() if names is None else [intervals.select_chromosomes(some) for some in names]
    if intervals.paired or "strand" not in intervals.columns:
        return (yield from _fragments(intervals, parts, settings, lengths, limit))
    return (yield from _reads(intervals, parts, settings, lengths, limit))


def discard_sample(sample: Sample, intervals: Intervals) -> None:
    """Delete what was stored for a sample beside the intervals that it was made of."""
    kept = {id(column) for column in intervals.columns.values()}
    for part in sample.parts:
        for column in (part.start, part.end, part.site_start, part.site_end):
            if id(column) not in kept:
                discard(column)


class _Rows(NamedTuple):
    """A part of a sample, and where what is made of it is written to: columns, from a row on."""

    part: Intervals
    first: int
    columns: ColumnTuple
    number: int | None = None
    """Of equal rows that are kept, or of base pairs that reads are extended to."""


class _Found(NamedTuple):
    """What a task says of its part: rows of each chromosome, sums over them, and the last end of each."""

    bounds: np.ndarray
    total_length: int
    last: np.ndarray
    known_strands: int = 0
    distances: np.ndarray = np.zeros(0, np.int64)


def _fragments(
    intervals: Intervals,
    parts: list[Intervals],
    settings: PeakSettings,
    lengths: Mapping[str, int] | None,
    limit: int | None,
) -> Flow[Sample]:
    if settings.fragment_length is not None and not intervals.paired:
        raise ValueError(
            f"the reads of {intervals.name} have no strand, so fragment_length cannot extend them; leave it out "
            "to take them as fragments."
        )
    number = [len(part) for part in parts]
    listed = None
    columns = ColumnTuple((intervals.columns["start"], intervals.columns["end"]))
    function = _measured
    if "count" in intervals.columns and limit is None:
        plain = yield Round(_measured, [_Rows(part, 0, ColumnTuple()) for part in parts], "Lengths")
        listed = sum(one.total_length for one in plain) / max(sum(number), 1)
        number = yield Round(_count_sum, parts, "Counts")
        function = _repeated
    elif limit is not None:
        function = _unique_of_cells if "cell_code" in intervals.columns else _unique
    elif any(len(_near(part.bounds)) > 1 for part in parts):
        # A call reads them twice or more, and all chromosomes of a task at once: they are brought together.
        function, limit = _unique, _NO_LIMIT
    if function is not _measured:
        columns = ColumnTuple(new_column(row_starts(number)[-1], np.int32) for _ in range(2))
    items = [_Rows(part, first, columns, limit) for part, first in zip(parts, row_starts(number), strict=False)]
    found = yield Round(function, items, "Fragments")
    counts = _counts(found)
    mean = sum(one.total_length for one in found) / max(int(counts.sum()), 1)
    sizes = _lengths(intervals, parts, found, lengths)
    start, end = columns
    ready = [
        SamplePart(start, end, one.bounds, size, start, end, one.bounds) for one, size in zip(found, sizes, strict=True)
    ]
    chromosomes = [name for part in parts for name in part.chromosomes]
    whole = np.concatenate([np.zeros(0, np.int64), *sizes])
    return Sample(ready, chromosomes, whole, counts, mean, mean if listed is None else listed, True)


def _counts(found: Sequence[_Found]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(one.bounds[:, 1] - one.bounds[:, 0] for one in found)])


def _lengths(
    intervals: Intervals, parts: Sequence[Intervals], found: Sequence[_Found], lengths: Mapping[str, int] | None
) -> list[np.ndarray]:
    """Lengths of the chromosomes of each part."""
    known = (intervals.sizes or {}) if lengths is None else lengths
    return [
        np.array(
            [known.get(name, last) for name, last in zip(part.chromosomes, one.last.tolist(), strict=True)], np.int64
        )
        for part, one in zip(parts, found, strict=True)
    ]


def _measured(rows: _Rows) -> _Found:
    """Fragments as they are."""
    start, end = rows.part.columns["start"], rows.part.columns["end"]
    return _Found(rows.part.bounds, *_sums(start, end, rows.part.bounds))


def _sums(start: np.ndarray, end: np.ndarray, bounds: np.ndarray) -> tuple[int, np.ndarray]:
    """Sum of the lengths of the intervals, and the last end on each chromosome."""
    total, last = 0, np.zeros(len(bounds), np.int64)
    for index, (first, stop) in enumerate(bounds.tolist()):
        total += int(np.subtract(end[first:stop], start[first:stop], dtype=np.int64).sum())
        last[index] = end[first:stop].max(initial=0)
        release(start, end)
    return total, last


def _count_sum(part: Intervals) -> int:
    count = part.columns["count"]
    return sum(int(count[first:last].sum(dtype=np.int64)) for first, last in part.bounds.tolist())


def _repeated(rows: _Rows) -> _Found:
    """Each fragment as often as its count says."""
    start, end, count = (rows.part.columns[key] for key in ("start", "end", "count"))
    place, bounds, total, farthest = rows.first, np.zeros_like(rows.part.bounds), 0, []
    for index, (first, last) in enumerate(rows.part.bounds.tolist()):
        times = count[first:last]
        repeated = [np.repeat(column[first:last], times) for column in (start, end)]
        for target, values in zip(rows.columns, repeated, strict=True):
            write_rows(target, place, values)
        total += int(np.subtract(repeated[1], repeated[0], dtype=np.int64).sum())
        farthest.append(int(end[first:last].max(initial=0)))
        bounds[index] = place, place + len(repeated[0])
        place = int(bounds[index, 1])
        release(start, end, count)
    return _Found(bounds, total, np.array(farthest, np.int64))


def _unique(rows: _Rows) -> _Found:
    """At most so many equal fragments."""
    start, end = rows.part.columns["start"], rows.part.columns["end"]
    last = _sums(start, end, rows.part.bounds)[1]
    bounds, total, place = np.zeros_like(rows.part.bounds), 0, rows.first
    for batch in _batches(rows.part.bounds):
        begin = place
        for block in _blocks(start, rows.part.bounds[batch]):
            kept = tuple(np.empty(int((block[:, 1] - block[:, 0]).sum()), np.int32) for _ in range(2))
            number = drop_duplicates(start, end, block, rows.number or 1, into=kept)
            for target, values in zip(rows.columns, kept, strict=True):
                write_rows(target, place, values[:number])
            total += int(np.subtract(kept[1][:number], kept[0][:number], dtype=np.int64).sum())
            bounds[batch] = block + place
            place += number
            release(start, end)
        bounds[batch.start, 0] = begin
    return _Found(bounds, total, last)


def _near(bounds: np.ndarray) -> list[slice]:
    """Chromosomes whose rows lie near each other.

    What is read of a file is in memory a megabyte about it or more, as the system sees fit. Groups of cells have a few
    rows of each chromosome in as many places: only what lies together is read before it is released.
    """
    filled = np.flatnonzero(bounds[:, 1] > bounds[:, 0])
    jumps = np.abs(bounds[filled[1:], 0] - bounds[filled[:-1], 1])
    edges = [0, *filled[1:][jumps > _APART].tolist(), len(bounds)]
    return [slice(first, last) for first, last in pairwise(edges)]


def _batches(bounds: np.ndarray) -> Iterator[slice]:
    """Chromosomes whose rows lie near each other, so many rows together."""
    for near in _near(bounds):
        for batch in row_batches((bounds[near, 1] - bounds[near, 0]).tolist(), _ROWS_AT_ONCE):
            yield slice(near.start + batch.start, near.start + batch.stop)


def _gathered(part: Intervals) -> Intervals:
    """The same rows, in memory and one after the other if they lie apart."""
    places = _near(part.bounds)
    if len(places) < 2:
        return part
    columns = {key: np.empty(len(part), column.dtype) for key, column in part.columns.items()}
    stops = np.cumsum(part.counts())
    bounds = np.stack([stops - part.counts(), stops], axis=1)
    for near in places:
        for (first, last), (low, high) in zip(part.bounds[near].tolist(), bounds[near].tolist(), strict=True):
            for key, column in part.columns.items():
                columns[key][low:high] = column[first:last]
        release(*part.columns.values())
    return part.with_rows(columns, bounds)


def _blocks(start: np.ndarray, bounds: np.ndarray) -> Iterator[np.ndarray]:
    """Bounds of several chromosomes, or of one in pieces that no equal starts cross."""
    if len(bounds) > 1 or bounds[0, 1] - bounds[0, 0] <= _ROWS_AT_ONCE:
        yield bounds.copy()
        return
    low, last = bounds[0].tolist()
    while low < last:
        high = min(low + _ROWS_AT_ONCE, last)
        high = low + int(np.searchsorted(start[low:last], start[high - 1], side="right"))
        yield np.array([[low, high]])
        low = high


def _unique_of_cells(rows: _Rows) -> _Found:
    """At most so many equal fragments of each cell."""
    last = _sums(rows.part.columns["start"], rows.part.columns["end"], rows.part.bounds)[1]
    kept = rows.part.deduplicate(rows.number or 1)
    return _Found(_write(kept, rows, ("start", "end")), kept.total_length(), last)


def _write(kept: Intervals, rows: _Rows, keys: Sequence[str]) -> np.ndarray:
    """Write rows that stand one after the other; the bounds of their chromosomes."""
    for target, key in zip(rows.columns, keys, strict=True):
        write_rows(target, rows.first, kept.columns[key])
    return kept.bounds + rows.first


def _reads(
    intervals: Intervals,
    parts: list[Intervals],
    settings: PeakSettings,
    lengths: Mapping[str, int] | None,
    limit: int | None,
) -> Flow[Sample]:
    number = row_starts(map(len, parts))
    columns = ColumnTuple()
    if limit is not None:
        columns = ColumnTuple(new_column(number[-1], kind) for kind in (np.int32, np.int32, np.int8))
    items = [_Rows(part, first, columns, limit) for part, first in zip(parts, number, strict=False)]
    found = yield Round(_surveyed, items, "Reads")
    counts, total = _counts(found), sum(one.total_length for one in found)
    read_length = total / max(int(counts.sum()), 1)
    if columns:
        kept = dict(zip(("start", "end", "strand"), columns, strict=True))
        parts = [part.with_rows(kept, one.bounds) for part, one in zip(parts, found, strict=True)]
    if settings.fragment_length is None:
        distances = sum((one.distances for one in found), np.zeros(1, np.int64))
        length = _likely(distances, int(round(read_length)), intervals.name)
    else:
        length = int(settings.fragment_length)
    check_strands(sum(one.known_strands for one in found), int(counts.sum()), intervals.name)
    number = row_starts(map(len, parts))
    extended = ColumnTuple(new_column(number[-1], np.int32) for _ in range(3))
    items = [_Rows(part, first, extended, length) for part, first in zip(parts, number, strict=False)]
    bounds = yield Round(_extended, items, "Extended reads")
    sizes = _lengths(intervals, parts, found, lengths)
    places, start, end = extended
    ready = [SamplePart(start, end, b, s, places, places, b) for b, s in zip(bounds, sizes, strict=True)]
    discard(*columns)
    chromosomes = [name for part in parts for name in part.chromosomes]
    whole = np.concatenate([np.zeros(0, np.int64), *sizes])
    return Sample(ready, chromosomes, whole, counts, float(length), read_length, False)


def _surveyed(rows: _Rows) -> _Found:
    """Reads, at most so many equal ones, and the distances between their strands."""
    part, bounds = _gathered(rows.part), rows.part.bounds
    last = _sums(part.columns["start"], part.columns["end"], part.bounds)[1]
    if rows.number is not None:
        part = part.deduplicate(rows.number)
        bounds = _write(part, rows, ("start", "end", "strand"))
    forward, reverse, known = [], [], 0
    for chromosome in part:
        arrays = part[chromosome]
        minus = arrays.strand < 0  # type: ignore[operator]
        known += int(np.count_nonzero(arrays.strand))
        forward.append(arrays.start[~minus])
        reverse.append(np.sort(arrays.end[minus]))
    distances = strand_distances(forward, reverse)
    total = part.total_length()
    release(*part.columns.values())
    return _Found(bounds, total, last, known, distances)


def _likely(distances: np.ndarray, read_length: int, name: str) -> int:
    found = likeliest_length(distances, read_length=read_length)
    if found is None:
        warnings.warn(
            f"{name} has too few reads to tell the length of its fragments; {_TYPICAL_LENGTH} bp are taken. "
            "Pass fragment_length=... if you know it.",
            UserWarning,
            stacklevel=2,
        )
        return _TYPICAL_LENGTH
    logger.info(f"{name}: fragments of {found} bp, by the distance between strands.")
    return found


def _extended(rows: _Rows) -> np.ndarray:
    """Write first bases and extended reads of each chromosome, sorted; the bounds of the chromosomes."""
    place, bounds = rows.first, np.zeros_like(rows.part.bounds)
    sizes = rows.part.sizes or {}
    for index, name in enumerate(rows.part):
        arrays = rows.part[name]
        strand = arrays.strand
        assert strand is not None
        assert rows.number is not None
        stop = place + len(strand)
        start, end = extend_reads(arrays.start, arrays.end, strand, rows.number)
        if name in sizes:
            np.minimum(end, sizes[name], out=end)
        order = np.argsort(start, kind="stable")
        places = np.where(strand < 0, arrays.end, arrays.start)
        places.sort()
        for target, values in zip(rows.columns, (places, start[order], end[order]), strict=True):
            write_rows(target, place, values)
        bounds[index], place = (place, stop), stop
        release(*rows.part.columns.values())
    return bounds


class _Coarse(NamedTuple):
    """A part of a sample, and where its bins are written to."""

    part: SamplePart
    mean_length: float
    width: int
    columns: ColumnTuple
    first: int


def coarse_bins(sample: Sample, width: int) -> Flow[ColumnList]:
    """Effective fragments in bins of ``width``, of the chromosomes that hold some."""
    numbers = [_bins_of(part, width) for part in sample.parts]
    starts = row_starts(number.sum() for number in numbers)
    column = new_column(starts[-1], np.float32)
    items = [
        _Coarse(part, sample.mean_length, width, ColumnTuple((column,)), first)
        for part, first in zip(sample.parts, starts, strict=False)
    ]
    yield Round(_coarse_bins, items, "Breadth")
    column = read_again(column)
    stops = [first + np.cumsum(number) for first, number in zip(starts, numbers, strict=False)]
    return ColumnList(
        [
            column[stop - number : stop]
            for some, ends in zip(numbers, stops, strict=True)
            for number, stop in zip(some.tolist(), ends.tolist(), strict=True)
            if number
        ]
    )


def _bins_of(part: SamplePart, width: int) -> np.ndarray:
    """Number of bins of each chromosome, 0 of those without fragments."""
    return np.where(part.bounds[:, 1] > part.bounds[:, 0], part.lengths // width, 0)


def _coarse_bins(item: _Coarse) -> None:
    part, mean_length, width, (column,), place = item
    for (first, last), bins in zip(part.bounds.tolist(), _bins_of(part, width).tolist(), strict=True):
        if bins:
            start = part.start[first:last]
            end = np.minimum(part.end[first:last], bins * width)
            inside = end > start
            sums = depth_sums(start[inside], end[inside], width, bins)
            write_rows(column, place, (sums / mean_length).astype(np.float32))
            place += bins
            part.release()
