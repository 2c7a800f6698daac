"""Reads or fragments of one sample, as compact arrays for each chromosome."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.genome.interval_kernels import group_rows, move_runs, unsorted_groups, within_limit

if TYPE_CHECKING:
    import pandas as pd

COLUMN_TYPES = {
    "start": np.dtype(np.int32),
    "end": np.dtype(np.int32),
    "cell_code": np.dtype(np.int32),
    "count": np.dtype(np.int32),
    "strand": np.dtype(np.int8),
    "value": np.dtype(np.float64),
}

# Chromosomes with fewer rows than this are sorted together in one call.
_SMALL = 4096


class IntervalArrays(NamedTuple):
    """Intervals of one chromosome, sorted by start: 0-based, half-open."""

    start: np.ndarray
    """int32."""
    end: np.ndarray
    """int32."""
    cell_code: np.ndarray | None
    """int32, position in ``Intervals.barcodes``; None where the file has no barcodes."""
    count: np.ndarray | None  # type: ignore[assignment]
    """int32, reads that support a fragment; None where not read."""
    strand: np.ndarray | None
    """int8: 1, -1, or 0 where unknown; None for fragments."""


class Intervals:
    """Reads or fragments of one sample.

    ``intervals["chr1"]`` gives the arrays of a chromosome (:class:`IntervalArrays`), views into one array per column.
    Fragments take 8 bytes each, reads with strand 9, a barcode or a count 4 more.

    Parameters
    ----------
    columns
        ``start`` and ``end``, optionally ``cell_code``, ``count`` and ``strand``, of all intervals.
    bounds
        First and last row of each chromosome in the columns (chromosomes, 2). Rows are sorted by start in place.
    chromosomes
        Names, unique.
    barcodes
        Names that ``cell_code`` points to.
    sizes
        Length of each chromosome, where known.
    paired
        Whether the intervals are whole fragments (of read pairs) rather than single reads.
    name
        What messages call this sample, such as the name of its file.

    See Also
    --------
    diffbio_sc.io.read_fragments, diffbio_sc.io.read_bed, diffbio_sc.io.read_bedpe, diffbio_sc.io.read_bam
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        bounds: np.ndarray,
        chromosomes: Sequence[str],
        *,
        barcodes: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        paired: bool = True,
        name: str = "intervals",
    ):
        self.columns = dict(columns)
        self.bounds = np.asarray(bounds, np.int64).reshape(-1, 2)
        self.chromosomes = list(chromosomes)
        self.barcodes = None if barcodes is None else list(barcodes)
        self.sizes = None if sizes is None else {str(key): int(value) for key, value in sizes.items()}
        self.paired = paired
        self.name = name
        self._position = {chromosome: index for index, chromosome in enumerate(self.chromosomes)}
        if len(self._position) != len(self.chromosomes):
            raise ValueError(f"chromosomes of {name} must be unique, found {self.chromosomes[:5]} ...")
        _sort_groups(self.columns, self.bounds)

    @classmethod
    def from_arrays(
        cls,
        chromosomes: Any,
        start: Any,
        end: Any,
        *,
        cell_code: Any = None,
        count: Any = None,
        strand: Any = None,
        barcodes: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        paired: bool = True,
        name: str = "intervals",
    ) -> Intervals:
        """Intervals from arrays of equal length, one element an interval, in any order.

        Parameters
        ----------
        chromosomes
            Name of each interval's chromosome.
        start, end
            0-based, half-open.
        cell_code, count, strand
            Optional columns; strand as 1, -1, 0.
        barcodes, sizes, paired, name
            As in the class.
        """
        import pandas as pd

        start, end = np.asarray(start), np.asarray(end)
        codes, names = pd.factorize(np.asarray(chromosomes, dtype=object))
        given = {"start": start, "end": end, "cell_code": cell_code, "count": count, "strand": strand}
        order = group_rows(codes.astype(np.int64), max(len(names), 1))
        columns = {}
        for key, values in given.items():
            if values is not None:
                values = np.asarray(values)
                if len(values) != len(codes):
                    raise ValueError(f"{key} must have {len(codes)} values, found {len(values)}.")
                columns[key] = values[order].astype(COLUMN_TYPES[key])
        bad = np.flatnonzero((codes < 0) | (end <= start) | (start < 0))
        if len(bad):
            first = bad[0]
            raise ValueError(
                f"intervals must have a chromosome and 0 <= start < end, found {len(bad)} that have not; first: "
                f"{np.asarray(chromosomes, dtype=object)[first]!r}, {start[first]}, {end[first]}."
            )
        stops = np.cumsum(np.bincount(codes, minlength=len(names)))
        bounds = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1) if len(names) else np.empty((0, 2))
        return cls(
            columns, bounds, [str(key) for key in names], barcodes=barcodes, sizes=sizes, paired=paired, name=name
        )

    def __getitem__(self, chromosome: str) -> IntervalArrays:
        if chromosome not in self._position:
            raise KeyError(f"{self.name} has no chromosome {chromosome!r}; it has {name_heads(self.chromosomes)}.")
        first, last = self.bounds[self._position[chromosome]]
        return IntervalArrays(
            *(self.columns[key][first:last] if key in self.columns else None for key in IntervalArrays._fields)
        )

    def __contains__(self, chromosome: object) -> bool:
        return chromosome in self._position

    def __iter__(self) -> Iterator[str]:
        return iter(self.chromosomes)

    def __len__(self) -> int:
        """Number of intervals."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).sum())

    def __repr__(self) -> str:
        kind = "fragments" if self.paired else "reads"
        cells = "" if self.barcodes is None else f", {len(self.barcodes):,} barcodes"
        return f"Intervals({self.name}: {len(self):,} {kind} on {len(self.chromosomes):,} chromosomes{cells})"

    def counts(self) -> np.ndarray:
        """Number of intervals on each chromosome."""
        return self.bounds[:, 1] - self.bounds[:, 0]

    def total_length(self) -> int:
        """Sum of the lengths of all intervals."""
        return sum(int(np.subtract(end, start, dtype=np.int64).sum()) for _, start, end in self._spans())

    def extent(self) -> dict[str, int]:
        """Length of each chromosome: its size where known, else the last end of an interval."""
        known = self.sizes or {}
        return {
            chromosome: known[chromosome] if chromosome in known else int(end.max(initial=0))
            for chromosome, _, end in self._spans()
        }

    def _spans(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        start, end = self.columns["start"], self.columns["end"]
        for chromosome, (first, last) in zip(self.chromosomes, self.bounds.tolist(), strict=True):
            yield chromosome, start[first:last], end[first:last]

    def keep(self, rows: Mapping[str, np.ndarray]) -> Intervals:
        """Intervals of the given rows (a mask or positions) of each chromosome; chromosomes not named are left out."""
        chromosomes = [chromosome for chromosome in self.chromosomes if chromosome in rows]
        lengths = [
            np.count_nonzero(chosen) if chosen.dtype == np.bool_ else len(chosen)
            for chosen in (np.asarray(rows[chromosome]) for chromosome in chromosomes)
        ]
        stops = np.cumsum([0, *lengths])
        columns = {}
        for key, values in self.columns.items():
            columns[key] = np.empty(stops[-1], values.dtype)
            for index, chromosome in enumerate(chromosomes):
                first, last = self.bounds[self._position[chromosome]]
                columns[key][stops[index] : stops[index + 1]] = values[first:last][rows[chromosome]]
        return self._like(columns, np.stack([stops[:-1], stops[1:]], axis=1), chromosomes)

    def _like(self, columns: Mapping[str, np.ndarray], bounds: np.ndarray, chromosomes: Sequence[str]) -> Intervals:
        return Intervals(
            columns,
            bounds,
            chromosomes,
            barcodes=self.barcodes,
            sizes=self.sizes,
            paired=self.paired,
            name=self.name,
        )

    def select_chromosomes(self, chromosomes: Sequence[str]) -> Intervals:
        """The given chromosomes, in the given order; one without intervals is allowed. Shares memory."""
        bounds = [
            self.bounds[self._position[chromosome]] if chromosome in self._position else (0, 0)
            for chromosome in chromosomes
        ]
        return self._like(self.columns, np.asarray(bounds), chromosomes)

    def rename_chromosomes(self, names: Mapping[str, str]) -> Intervals:
        """Other names for chromosomes, such as ``{"1": "chr1"}``. Shares memory."""
        renamed = self._like(self.columns, self.bounds, [names.get(key, key) for key in self.chromosomes])
        if self.sizes is not None:
            renamed.sizes = {names.get(key, key): size for key, size in self.sizes.items()}
        return renamed

    def deduplicate(self, limit: int = 1) -> Intervals:
        """Keep at most ``limit`` intervals of each kind.

        Fragments are of one kind if start and end (and barcode) are the same; single reads if the position of their
        first base and the strand (and barcode) are, whatever their length.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, found {limit}.")
        return self.keep({chromosome: _first_of_kind(self[chromosome], self.paired, limit) for chromosome in self})

    def exclude(self, regions: Intervals) -> Intervals:
        """Leave out intervals that overlap one of ``regions``, such as a blacklist.

        Raises
        ------
        ValueError
            If the two have no chromosome in common.
        """
        match_chromosomes(self.chromosomes, regions.chromosomes, left_name=self.name, right_name=regions.name)
        rows = {}
        for chromosome in self:
            start, end = self[chromosome][:2]
            rows[chromosome] = np.ones(len(start), np.bool_)
            if chromosome in regions and len(regions[chromosome].start):
                # Regions are sorted by start: the furthest end so far tells whether any of them reaches an interval.
                furthest = np.maximum.accumulate(regions[chromosome].end)
                before = np.searchsorted(regions[chromosome].start, end, side="left")
                rows[chromosome] = (before == 0) | (furthest[np.maximum(before - 1, 0)] <= start)
        return self.keep(rows)

    def extend(self, length: int) -> Intervals:
        """Single reads as fragments of ``length``, from their first base along their strand, within the chromosome.

        Raises
        ------
        ValueError
            If these are fragments already, or reads without strand.
        """
        if self.paired or "strand" not in self.columns:
            what = "are whole fragments already" if self.paired else "have no strand"
            raise ValueError(f"only reads with a strand can be extended; those of {self.name} {what}.")
        if length < 1:
            raise ValueError(f"length must be at least 1 base, found {length}.")
        columns = {key: values for key, values in self.columns.items() if key not in ("start", "end", "strand")}
        start, end = extend_reads(self.columns["start"], self.columns["end"], self.columns["strand"], length)
        for chromosome, (first, last) in zip(self.chromosomes, self.bounds.tolist(), strict=True):
            if self.sizes is not None and chromosome in self.sizes:
                np.minimum(end[first:last], self.sizes[chromosome], out=end[first:last])
        # Sorting is in place: columns of the original must not move with it.
        columns = {"start": start, "end": end, **{key: values.copy() for key, values in columns.items()}}
        extended = self._like(columns, self.bounds, self.chromosomes)
        extended.paired = True
        return extended

    def to_frame(self) -> pd.DataFrame:
        """Table with columns chrom, start, end, and barcode, count, strand where there are any."""
        import pandas as pd

        counts = self.counts()
        rows = (
            np.concatenate([np.arange(first, last) for first, last in self.bounds.tolist()])
            if len(counts)
            else np.empty(0, np.int64)
        )
        chrom = pd.Categorical.from_codes(np.repeat(np.arange(len(counts)), counts), self.chromosomes)
        frame = pd.DataFrame({"chrom": chrom, "start": self.columns["start"][rows], "end": self.columns["end"][rows]})
        if "cell_code" in self.columns and self.barcodes is not None:
            frame["barcode"] = pd.Categorical.from_codes(self.columns["cell_code"][rows], self.barcodes)
        if "count" in self.columns:
            frame["count"] = self.columns["count"][rows]
        if "strand" in self.columns:
            frame["strand"] = np.array([".", "+", "-"])[self.columns["strand"][rows]]
        return frame


def extend_reads(start: np.ndarray, end: np.ndarray, strand: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of fragments of ``length`` that begin at the first base of each read; not below 0."""
    reverse = strand < 0
    first = np.where(reverse, np.maximum(end - length, 0), start).astype(np.int32)
    last = np.where(reverse, end, np.minimum(start.astype(np.int64) + length, 2**31 - 1)).astype(np.int32)
    return first, last


def _first_of_kind(arrays: IntervalArrays, paired: bool, limit: int) -> np.ndarray:
    start, end, cell, _, strand = arrays
    identity = np.zeros(len(start), np.int64) if cell is None else cell.astype(np.int64) + 1
    if paired or strand is None:
        return within_limit(start, end.astype(np.int64) << 32 | identity, limit)
    place = np.where(strand < 0, end, start)
    order = np.argsort(place, kind="stable")
    mask = np.empty(len(start), np.bool_)
    mask[order] = within_limit(place[order], (strand.astype(np.int64) << 32 | identity)[order], limit)
    return mask


def _sort_groups(columns: dict[str, np.ndarray], bounds: np.ndarray) -> None:
    """Sort the rows of each group by start, in place, where they are not."""
    first, last = bounds[:, 0], bounds[:, 1]
    unsorted = np.flatnonzero(unsorted_groups(columns["start"], first, last))
    small = unsorted[(last - first)[unsorted] <= _SMALL]
    if len(small):
        lengths = (last - first)[small]
        begin = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(first[small] - begin, lengths)
        key = np.repeat(np.arange(len(small)), lengths) << 32 | columns["start"][rows].astype(np.int64)
        order = rows[np.argsort(key, kind="stable")]
        for values in columns.values():
            values[rows] = values[order]
    for group in np.setdiff1d(unsorted, small):
        rows = slice(first[group], last[group])
        if set(columns) == {"start", "end"}:
            # Two 32-bit numbers sort as one of 64 bits, faster than an argsort and in less memory.
            key = columns["start"][rows].astype(np.int64) << 32 | columns["end"][rows]
            key.sort()
            columns["start"][rows] = key >> 32
            columns["end"][rows] = key & 0xFFFFFFFF
        else:
            order = np.argsort(columns["start"][rows], kind="stable")
            for values in columns.values():
                values[rows] = values[rows][order]


def name_heads(names: Sequence[str]) -> str:
    """First few names, for messages."""
    return str([str(name) for name in names[:5]]) + (f" ... ({len(names)})" if len(names) > 5 else "")


_PREFIX = re.compile(r"^chr", re.IGNORECASE)


def match_chromosomes(left: Sequence[str], right: Sequence[str], *, left_name: str, right_name: str) -> list[str]:
    """Names that both sides have, in the order of the left.

    Raises
    ------
    ValueError
        If both sides have names but share none; says so if they would match with or without ``chr``.
    """
    others = set(right)
    shared = [name for name in left if name in others]
    if shared or not len(left) or not len(right):
        return shared
    message = (
        f"{left_name} and {right_name} have no chromosome in common. {left_name}: {name_heads(left)}; "
        f"{right_name}: {name_heads(right)}."
    )
    bare = {_PREFIX.sub("", name) for name in right}
    if any(_PREFIX.sub("", name) in bare for name in left):
        message += (
            " They match without the prefix 'chr': rename one side, for example "
            "intervals.rename_chromosomes({'1': 'chr1', ...})."
        )
    raise ValueError(message)


class IntervalBuilder:
    """Collects intervals block by block and groups them by chromosome at the end.

    A column grows to the length that the part of the file read so far foretells, and memory that is not written to is
    not taken. Where the chromosomes of a file come one after the other, the columns are the result as they stand;
    otherwise runs of rows are moved, one column at a time.
    """

    def __init__(self, columns: Sequence[str]):
        self.columns = {key: np.empty(0, COLUMN_TYPES[key]) for key in columns}
        self.rows = 0
        self._codes: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def append(self, codes: np.ndarray, values: Mapping[str, np.ndarray], fraction_read: float) -> None:
        """Add rows; ``fraction_read`` is the part of the input that has been read with them."""
        if not len(codes):
            return
        starts = np.flatnonzero(np.diff(codes)) + 1
        run_codes = codes[np.concatenate([[0], starts])]
        if len(run_codes) > 1 and len(np.unique(run_codes)) < len(run_codes):
            order = group_rows(codes, int(codes.max()) + 1)
            codes = codes[order]
            values = {key: array[order] for key, array in values.items()}
            starts = np.flatnonzero(np.diff(codes)) + 1
            run_codes = codes[np.concatenate([[0], starts])]
        self._codes.append(np.array(run_codes))
        self._lengths.append(np.diff(np.concatenate([[0], starts, [len(codes)]])))
        end = self.rows + len(codes)
        if end > len(self.columns["start"]):
            foretold = int(end / max(fraction_read, 1e-3) * 1.02)
            capacity = max(end, min(foretold, 2 * end + 10_000_000) if fraction_read < 1 else end)
            for key, array in self.columns.items():
                grown = np.empty(capacity, array.dtype)
                grown[: self.rows] = array[: self.rows]
                self.columns[key] = grown
        for key, array in values.items():
            self.columns[key][self.rows : end] = array
        self.rows = end

    def finish(
        self,
        names: Sequence[str],
        *,
        barcodes: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        paired: bool = True,
        name: str = "intervals",
    ) -> Intervals:
        """Group by chromosome. ``names`` belong to the codes; chromosomes without rows stay only if in ``sizes``."""
        codes = np.concatenate(self._codes) if self._codes else np.empty(0, np.int64)
        lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, np.int64)
        total = np.bincount(codes, lengths, minlength=len(names)).astype(np.int64)
        run_starts = np.cumsum(lengths) - lengths
        runs = 1 + np.count_nonzero(np.diff(codes)) if len(codes) else 0
        if runs == np.count_nonzero(total):
            first = np.zeros(len(names), np.int64)
            first[codes[::-1]] = run_starts[::-1]
            columns = {key: array[: self.rows] for key, array in self.columns.items()}
        else:
            first = np.cumsum(total) - total
            order = np.argsort(codes, kind="stable")
            moved = lengths[order]
            rows = np.stack([run_starts[order], moved, np.cumsum(moved) - moved], axis=1)
            columns = {}
            for key in list(self.columns):
                source = self.columns.pop(key)
                target = np.empty(self.rows, source.dtype)
                move_runs(source, target, rows)
                columns[key] = target
        kept = np.arange(len(names)) if sizes is not None else np.flatnonzero(total)
        bounds = np.stack([first, first + total], axis=1)[kept]
        chromosomes = [names[index] for index in kept]
        result = Intervals(columns, bounds, chromosomes, barcodes=barcodes, sizes=sizes, paired=paired, name=name)
        logger.info(f"Read {result!r}.")
        return result
