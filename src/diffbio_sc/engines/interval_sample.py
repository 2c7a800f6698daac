"""Fragments or reads made ready for a call: duplicates dropped, reads extended, cut sites and lengths known."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.columns import copy_into, new_column, release, row_batches
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.genome.duplicates import drop_duplicates
from diffbio_sc.numerics.genome.fragment_length import fragment_length_from_strands
from diffbio_sc.numerics.genome.pileup import depth_sums

__all__ = ["Sample", "coarse_bins", "prepare_sample"]

_TYPICAL_LENGTH = 200  # of fragments, where the reads do not tell: a nucleosome and its linkers


class Sample(NamedTuple):
    """Fragments of one sample, with what a background of them needs.

    Attributes
    ----------
    start, end, bounds
        Fragments, and the first and last row of each chromosome.
    chromosomes, lengths
        Names and lengths.
    number, mean_length
        Of the fragments.
    tag_length
        Mean length of what was sequenced: of a read, or of a whole fragment, each once however often it counts.
    paired
        Whether both ends are cut sites; of extended reads only the first is known.
    site_start, site_end, site_bounds
        Cut sites, and rows of each chromosome.
    """

    start: np.ndarray
    end: np.ndarray
    bounds: np.ndarray
    chromosomes: list[str]
    lengths: np.ndarray
    number: int
    mean_length: float
    tag_length: float
    paired: bool
    site_start: np.ndarray
    site_end: np.ndarray
    site_bounds: np.ndarray

    @property
    def sites(self) -> int:
        """Number of cut sites: two per fragment, one per read."""
        return (2 if self.paired else 1) * self.number

    @property
    def total_length(self) -> float:
        """Sum of the lengths of the fragments."""
        return self.number * self.mean_length


def prepare_sample(
    intervals: Intervals, settings: PeakSettings, lengths: Mapping[str, int], *, owned: bool = False
) -> Sample:
    """Drop duplicates, extend reads, and find cut sites.

    Parameters
    ----------
    intervals
        Fragments or reads.
    settings
        Settings of the call.
    lengths
        Length of each chromosome.
    owned
        Whether the arrays of ``intervals`` may be written to.
    """
    limit = settings.duplicates
    if limit == "auto":
        # Equal fragments of different cells are different molecules, and a count says how many there were.
        limit = None if {"cell_code", "count"} & set(intervals.columns) else 1
    if intervals.paired or "strand" not in intervals.columns:
        return _fragments(intervals, settings, lengths, limit, owned)
    return _reads(intervals, settings, lengths, limit)


def _fragments(
    intervals: Intervals, settings: PeakSettings, lengths: Mapping[str, int], limit: int | None, owned: bool
) -> Sample:
    if settings.fragment_length is not None and not intervals.paired:
        raise ValueError(
            f"the reads of {intervals.name} have no strand, so fragment_length cannot extend them; leave it out "
            "to take them as fragments."
        )
    cells = "cell_code" in intervals.columns
    if limit is not None and cells:
        intervals = intervals.deduplicate(limit)
    start, end, bounds = intervals.columns["start"], intervals.columns["end"], intervals.bounds
    listed = None
    if "count" in intervals.columns and limit is None:
        listed = _mean_length(start, end, bounds)
        start, end, bounds = _repeated(start, end, bounds, intervals.columns["count"])
    elif limit is not None and not cells:
        bounds = bounds.copy()
        if not owned:
            start, end = _copied(start), _copied(end)
        order = np.argsort(bounds[:, 0], kind="stable")
        in_file_order = bounds[order]
        kept = 0
        for batch in row_batches(in_file_order[:, 1] - in_file_order[:, 0]):
            kept = drop_duplicates(start, end, in_file_order[batch], limit, kept)
            release(start, end)
        bounds[order] = in_file_order
        start, end = start[:kept], end[:kept]
    sizes = np.array([lengths[name] for name in intervals.chromosomes], np.int64)
    number = int((bounds[:, 1] - bounds[:, 0]).sum())
    mean = _mean_length(start, end, bounds)
    tag = mean if listed is None else listed
    return Sample(start, end, bounds, intervals.chromosomes, sizes, number, mean, tag, True, start, end, bounds)


def _copied(column: np.ndarray) -> np.ndarray:
    copy = new_column(len(column), column.dtype)
    copy_into(copy, column)
    return copy


def _repeated(
    start: np.ndarray, end: np.ndarray, bounds: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each fragment as often as its count says."""
    before = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
    return np.repeat(start, count), np.repeat(end, count), before[bounds]


def _reads(intervals: Intervals, settings: PeakSettings, lengths: Mapping[str, int], limit: int | None) -> Sample:
    if limit is not None:
        intervals = intervals.deduplicate(limit)
    length = _estimate_length(intervals) if settings.fragment_length is None else int(settings.fragment_length)
    strand = intervals.columns["strand"]
    places = np.where(strand < 0, intervals.columns["end"], intervals.columns["start"]).astype(np.int32)
    for first, last in intervals.bounds.tolist():
        places[first:last].sort()
    extended = intervals.extend(length)
    start, end, bounds = extended.columns["start"], extended.columns["end"], extended.bounds
    sizes = np.array([lengths[name] for name in intervals.chromosomes], np.int64)
    number = int((bounds[:, 1] - bounds[:, 0]).sum())
    return Sample(
        start, end, bounds, intervals.chromosomes, sizes, number, float(length), _read_length(intervals), False,
        places, places, intervals.bounds,
    )  # fmt: skip


def _read_length(intervals: Intervals) -> float:
    return intervals.total_length() / max(len(intervals), 1)


def _mean_length(start: np.ndarray, end: np.ndarray, bounds: np.ndarray) -> float:
    total = 0
    for first, last in bounds.tolist():
        total += int(np.subtract(end[first:last], start[first:last], dtype=np.int64).sum())
        release(start, end)
    number = int((bounds[:, 1] - bounds[:, 0]).sum())
    return total / max(number, 1)


def _estimate_length(intervals: Intervals) -> int:
    forward, reverse = [], []
    for chromosome in intervals:
        arrays = intervals[chromosome]
        minus = arrays.strand < 0  # type: ignore[operator]
        forward.append(arrays.start[~minus])
        reverse.append(np.sort(arrays.end[minus]))
    found = fragment_length_from_strands(forward, reverse, read_length=int(round(_read_length(intervals))))
    if found is None:
        warnings.warn(
            f"{intervals.name} has too few reads to tell the length of its fragments; {_TYPICAL_LENGTH} bp are taken. "
            "Pass fragment_length=... if you know it.",
            UserWarning,
            stacklevel=2,
        )
        return _TYPICAL_LENGTH
    logger.info(f"{intervals.name}: fragments of {found} bp, by the distance between strands.")
    return found


def coarse_bins(sample: Sample, width: int) -> list[np.ndarray]:
    """Effective fragments in bins of ``width``, of the chromosomes that hold some."""
    result = []
    for (first, last), length in zip(sample.bounds.tolist(), sample.lengths.tolist(), strict=True):
        bins = length // width
        if last > first and bins:
            start = sample.start[first:last]
            end = np.minimum(sample.end[first:last], bins * width)
            inside = end > start
            sums = depth_sums(start[inside], end[inside], width, bins)
            result.append((sums / sample.mean_length).astype(np.float32))
            release(sample.start, sample.end)
    return result
