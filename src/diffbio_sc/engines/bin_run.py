"""Peaks of many tracks or groups of tracks of counts in bins, a group at a time."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp

from diffbio_sc._progress import progress
from diffbio_sc.engines.bin_peaks import Bins, Caller, call_track, measure_counts
from diffbio_sc.engines.mark_choice import choose_mark, tell_unguarded
from diffbio_sc.engines.peak_sets import count_support, cut_at_regions
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.overlap import Regions
from diffbio_sc.genome.peak_table import PeakTable
from diffbio_sc.numerics.genome.marks import EXPECTED_READS, SHALLOW_CONTROL

__all__ = ["BinResults", "Groups", "call_groups"]

_DENSE = 20_000_000  # values of a matrix, beyond which it is sparse
_SMALLEST_KEPT = 1e-3  # of sparse matrices
_BATCH = 32_000_000  # values of pooled counts held at once
_KINDS = {"scores": np.float32, "calls": np.int8, "start": np.float32, "end": np.float32, "log10p": np.float32}


class _Counts(Protocol):
    shape: tuple[int, int]

    def sum_by_group(self, codes: np.ndarray, groups: int) -> np.ndarray:
        """Sum of the rows of each group; rows of code -1 are left out."""


class Groups(NamedTuple):
    """Groups of tracks.

    Attributes
    ----------
    names
        Of the groups.
    codes
        Group of each track, -1 for none.
    controls
        Control of each group that has one, by name.
    replicates
        Replicate of each track, -1 for none; None where replicates are not told apart.
    """

    names: list[str]
    codes: np.ndarray
    controls: Mapping[str, str]
    replicates: np.ndarray | None = None

    @property
    def called(self) -> list[str]:
        """Groups that get peaks: those that are no control."""
        controls = set(self.controls.values())
        return [name for name in self.names if name not in controls]


class BinResults(NamedTuple):
    """Results over all groups.

    Attributes
    ----------
    matrices
        Arrays (groups, bins), dense or sparse, by what they hold.
    n_peaks
        Number of groups that call each bin.
    background
        Mean of the backgrounds.
    tables
        Peaks by group; those of controls are empty.
    broad
        Names of the groups called as broad marks.
    mark
        How all groups were called: ``"narrow"``, ``"broad"`` or ``"trained"``.
    """

    matrices: dict[str, Any]
    n_peaks: np.ndarray
    background: np.ndarray
    tables: dict[str, PeakTable]
    broad: list[str]
    mark: str


def call_groups(
    counts: _Counts,
    groups: Groups,
    bins: Bins,
    settings: PeakSettings,
    *,
    operator: Caller | None = None,
    regions: Intervals | None = None,
) -> BinResults:
    """Call the peaks of each group's pooled counts.

    Parameters
    ----------
    counts
        Tracks by bins.
    groups
        Which tracks belong together, and controls.
    bins
        Where the bins lie.
    settings
        Settings of the call.
    operator
        A trained caller.
    regions
        Blacklist.
    """
    number = len(groups.names)
    rows = {name: _Rows(number, len(bins)) for name in _KINDS}
    levels = _Rows(number, len(bins))
    tables = {name: PeakTable.empty() for name in groups.names}
    n_peaks, background = np.zeros(len(bins), np.int32), np.zeros(len(bins))
    broad: list[str] = []
    pools = _Pools(counts, groups.codes, number)
    place = {name: index for index, name in enumerate(groups.names)}
    if settings.mode == "auto" and operator is None:
        measured = {group: measure_counts(pools[place[group]], bins) for group in groups.called}
        settings = dataclasses.replace(settings, mode=choose_mark(measured))
    if regions is None and operator is None:
        tell_unguarded(settings.mode, [group for group in groups.called if group not in groups.controls])
    for group in progress(groups.called, "Peaks", total=len(groups.called)):
        index = place[group]
        against = None
        if group in groups.controls:
            against = pools[place[groups.controls[group]]]
            _check_control(pools[index], against, bins, group, groups.controls[group])
        prefix = f"{group}_" if number > 1 else ""
        track = call_track(pools[index], against, bins, settings, operator=operator, prefix=prefix)
        table = cut_at_regions(track.table, regions, f"the peaks of {group!r}")
        call = track.call if regions is None else _bins_of(table, bins)
        if groups.replicates is not None:
            own = [
                call_track(one, against, bins, settings, operator=operator).table
                for one in _replicates_of(counts, groups, index)
            ]
            table = count_support(table, own)
        tables[group] = table
        for name, values in zip(_KINDS, (track.score, call, track.start, track.end, track.log10_p), strict=True):
            rows[name].set(index, values)
        if levels.dense:
            levels.set(index, track.background)
        n_peaks += call
        background += track.background / len(groups.called)
        if track.broad:
            broad.append(group)
    matrices = {name: rows[name].matrix(kind) for name, kind in _KINDS.items()}
    if levels.dense:
        matrices["background"] = levels.matrix(np.float32)
    mark = "trained" if operator is not None else settings.mode
    return BinResults(matrices, n_peaks, background.astype(np.float32), tables, broad, mark)


def _check_control(counts: np.ndarray, control: np.ndarray, bins: Bins, group: str, name: str) -> None:
    """Refuse a control without counts; warn of a shallow one, or of one without a chromosome."""
    if not control.any():
        raise ValueError(f"the control {name!r} of {group!r} holds no counts.")
    share = control.sum() / max(counts.sum(), 1e-300)
    if share < SHALLOW_CONTROL:
        warnings.warn(
            f"the control {name!r} is {share:.1%} as deep as {group!r}: what it cannot tell of the local background is "
            "taken from the treatment, and weak peaks are lost.",
            UserWarning,
            stacklevel=4,
        )
    treated, known = (np.bincount(bins.axis.code, part, len(bins.axis.chromosomes)) for part in (counts, control))
    without = np.flatnonzero((known == 0) & (treated * share >= EXPECTED_READS * bins.positions_per_read))
    if len(without):
        names = [bins.axis.chromosomes[index] for index in without[:5]]
        warnings.warn(
            f"the control {name!r} has no counts on {len(without)} chromosomes of {group!r}, such as {names}: the "
            "background there is the mean of the genome.",
            UserWarning,
            stacklevel=4,
        )


def _replicates_of(counts: _Counts, groups: Groups, index: int) -> Iterator[np.ndarray]:
    """Pooled counts of each replicate of a group."""
    replicates = groups.replicates
    assert replicates is not None
    for code in np.unique(replicates[(groups.codes == index) & (replicates >= 0)]):
        chosen = np.where((groups.codes == index) & (replicates == code), 0, -1)
        yield counts.sum_by_group(chosen, 1)[0]


def _bins_of(table: PeakTable, bins: Bins) -> np.ndarray:
    """Bins that peaks of a table overlap."""
    position = {name: code for code, name in enumerate(bins.axis.chromosomes)}
    codes = np.array([position[str(name)] for name in table["chrom"]], np.int64)
    return Regions(codes, table["start"], table["end"]).overlaps(bins.axis.code, bins.axis.start, bins.axis.end)


class _Pools:
    """Pooled counts of groups, a batch of groups at a time."""

    def __init__(self, counts: _Counts, codes: np.ndarray, groups: int):
        self.counts, self.codes, self.groups = counts, codes, groups
        self.size = max(_BATCH // max(counts.shape[1], 1), 1)
        self.batches: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        batch = index // self.size
        if batch not in self.batches:
            first = batch * self.size
            last = min(first + self.size, self.groups)
            inside = (self.codes >= first) & (self.codes < last)
            while len(self.batches) > 1:  # a batch for treatments and one for controls
                self.batches.pop(next(iter(self.batches)))
            self.batches[batch] = self.counts.sum_by_group(np.where(inside, self.codes - first, -1), last - first)
        return self.batches[batch][index % self.size]


class _Rows:
    """Rows of a result, dense or sparse by their size."""

    def __init__(self, rows: int, columns: int):
        self.shape = (rows, columns)
        self.dense = rows * columns <= _DENSE
        self.rows: dict[int, Any] = {}

    def set(self, index: int, values: np.ndarray) -> None:
        if not self.dense:
            kept = np.flatnonzero(values >= _SMALLEST_KEPT)
            self.rows[index] = (kept, values[kept])
        else:
            self.rows[index] = values

    def matrix(self, kind: type) -> Any:
        if self.dense:
            result = np.zeros(self.shape, kind)
            for index, values in self.rows.items():
                result[index] = values
            return result
        lengths = [len(self.rows[index][0]) if index in self.rows else 0 for index in range(self.shape[0])]
        order = sorted(self.rows)
        columns = np.concatenate([self.rows[index][0] for index in order]) if order else np.zeros(0, np.int64)
        values = np.concatenate([self.rows[index][1] for index in order]) if order else np.zeros(0)
        return sp.csr_array((values.astype(kind), columns, np.concatenate([[0], np.cumsum(lengths)])), shape=self.shape)
