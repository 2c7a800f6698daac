"""Reads or fragments of one sample, as compact arrays by chromosome."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._checks import counted, name_heads, require_columns, whole_number, whole_numbers
from diffbio_sc.genome.chrom_sizes import LONGEST, check_chrom_sizes, match_regions
from diffbio_sc.genome.columns import opened, release, row_batches, stored
from diffbio_sc.genome.interval_kernels import group_rows, unsorted_groups, within_limit
from diffbio_sc.genome.overlap import Regions

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

PART_ROWS = 1 << 18
"""Chromosomes with fewer rows are worked on together where parts of a sample are tasks."""


class IntervalArrays(NamedTuple):
    """Intervals of one chromosome, sorted by start: 0-based, half-open.

    Attributes
    ----------
    start, end
        int32, each of shape (intervals,).
    cell_code
        int32 (intervals,), position in ``Intervals.barcodes``; None where the file has no barcodes.
    count
        int32 (intervals,), reads that support a fragment; None where not read.
    strand
        int8 (intervals,): 1, -1, or 0 where unknown; None for fragments.
    """

    start: np.ndarray
    end: np.ndarray
    cell_code: np.ndarray | None
    count: np.ndarray | None  # type: ignore[assignment]
    strand: np.ndarray | None


class Intervals:
    """Reads or fragments of one sample.

    ``intervals["chr1"]`` gives the arrays of a chromosome (:class:`IntervalArrays`), views into one array per column.
    Fragments take 8 bytes each, reads with strand 9, a barcode or a count 4 more.

    Parameters
    ----------
    columns
        ``start`` and ``end``, optionally ``cell_code``, ``count`` and ``strand``, each (intervals,).
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
    in_order
        Whether rows are known to be sorted.

    See Also
    --------
    diffbio_sc.io.read_fragments, diffbio_sc.io.read_bed, diffbio_sc.io.read_bedpe, diffbio_sc.io.read_bam

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.Intervals.from_arrays(["chr1", "chr2"], [100, 250], [300, 400])
    >>> len(fragments), fragments["chr2"].end.tolist()
    (2, [400])
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
        in_order: bool = False,
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
        if not in_order:
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
        """Make intervals from arrays of equal length, one element per interval, in any order.

        Parameters
        ----------
        chromosomes
            Name of each interval's chromosome.
        start, end
            Whole numbers, 0-based, half-open, below 2**31.
        cell_code, count, strand
            Optional columns: position in ``barcodes``, reads that support the fragment, and strand as 1, -1, 0 or as
            ``"+"``, ``"-"``, ``"."``.
        barcodes, sizes, paired, name
            As in the class.

        Raises
        ------
        ValueError
            If arrays differ in length, an interval does not have a chromosome and ``0 <= start < end < 2**31``, or
            another value is not what its column holds.
        """
        import pandas as pd

        named = np.asarray(chromosomes, dtype=object)
        codes, names = pd.factorize(named)
        if sizes is not None:
            sizes = check_chrom_sizes(list(sizes.items()), f"sizes of {name}")
        if barcodes is not None and len(set(barcodes)) < len(barcodes):
            raise ValueError(f"barcodes of {name} must be unique, found {len(barcodes)}: {name_heads(barcodes)}.")
        if strand is not None and np.asarray(strand).dtype.kind in "OUST":
            strand = _strands_of_text(np.asarray(strand, dtype=object))
        given = {"start": start, "end": end, "cell_code": cell_code, "count": count, "strand": strand}
        last_code = LONGEST if barcodes is None else len(barcodes) - 1
        limits = {"cell_code": (0, last_code), "count": (0, LONGEST), "strand": (-1, 1)}
        whole = {}
        for key, values in given.items():
            if values is None:
                continue
            if np.shape(values) != codes.shape:
                raise ValueError(f"{key} must have {len(codes)} values, found shape {np.shape(values)}.")
            low, high = limits.get(key, (None, None))
            whole[key] = whole_numbers(values, f"{key} of {name}", minimum=low, maximum=high)
        bad = (codes < 0) | (whole["end"] <= whole["start"]) | (whole["start"] < 0) | (whole["end"] > LONGEST)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"intervals must have a chromosome and 0 <= start < end < 2**31, found {int(bad.sum())} that do not; "
                f"first: {named[first]!r}, {whole['start'][first]}, {whole['end'][first]}."
            )
        order = group_rows(codes.astype(np.int64), max(len(names), 1))
        columns = {key: values[order].astype(COLUMN_TYPES[key]) for key, values in whole.items()}
        stops = np.cumsum(np.bincount(codes, minlength=len(names)))
        bounds = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1) if len(names) else np.empty((0, 2))
        return cls(
            columns, bounds, [str(key) for key in names], barcodes=barcodes, sizes=sizes, paired=paired, name=name
        )

    @classmethod
    def from_frame(cls, table: pd.DataFrame, *, paired: bool = False, name: str = "regions") -> Intervals:
        """Make intervals from a table with columns ``chrom``, ``start``, ``end``, the inverse of :meth:`to_frame`.

        Parameters
        ----------
        table
            Its columns ``barcode``, ``count`` and ``strand`` are read where there are any; others are left out.
        paired, name
            As in the class.

        Raises
        ------
        KeyError
            If one of the three columns is missing.
        ValueError
            As :meth:`from_arrays`.
        """
        import pandas as pd

        require_columns(table, ("chrom", "start", "end"), f"the table of {name}")
        columns = {key: table[key].to_numpy() for key in ("count", "strand") if key in table}
        barcodes = None
        if "barcode" in table:
            columns["cell_code"], found = pd.factorize(table["barcode"].astype(str))
            barcodes = list(found)
        return cls.from_arrays(
            table["chrom"].astype(object).to_numpy(),
            table["start"].to_numpy(),
            table["end"].to_numpy(),
            **columns,
            barcodes=barcodes,
            paired=paired,
            name=name,
        )

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: columns in files of a shared folder by their place, others by value."""
        return {**self.__dict__, "columns": {key: stored(values) for key, values in self.columns.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, columns={key: opened(values) for key, values in state["columns"].items()})

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
        kind = "fragment" if self.paired else "read"
        cells = "" if self.barcodes is None else f", {counted(len(self.barcodes), 'barcode')}"
        where = counted(len(self.chromosomes), "chromosome")
        return f"Intervals({self.name}: {counted(len(self), kind)} on {where}{cells})"

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
            release(start, end)

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

    def _like(
        self,
        columns: Mapping[str, np.ndarray],
        bounds: np.ndarray,
        chromosomes: Sequence[str],
        *,
        in_order: bool = False,
    ) -> Intervals:
        other = Intervals(columns, bounds, chromosomes, paired=self.paired, name=self.name, in_order=in_order)
        other.barcodes, other.sizes = self.barcodes, self.sizes
        return other

    def with_rows(self, columns: Mapping[str, np.ndarray], bounds: np.ndarray) -> Intervals:
        """Other rows, sorted by start, of the same chromosomes."""
        return self._like(columns, bounds, self.chromosomes, in_order=True)

    def select_chromosomes(self, chromosomes: Sequence[str]) -> Intervals:
        """The given chromosomes, in the given order; one without intervals is allowed. Shares memory."""
        bounds = [
            self.bounds[self._position[chromosome]] if chromosome in self._position else (0, 0)
            for chromosome in chromosomes
        ]
        return self._like(self.columns, np.asarray(bounds), chromosomes, in_order=True)

    def parts(self) -> list[Intervals]:
        """The chromosomes one by one, small ones together: pieces to be worked on apart. Shares memory."""
        batches = row_batches(self.counts(), PART_ROWS)
        return [self.select_chromosomes(self.chromosomes[batch]) for batch in batches]

    def rename_chromosomes(self, names: Mapping[str, str]) -> Intervals:
        """Other names for chromosomes, such as ``{"1": "chr1"}``. Shares memory."""
        chromosomes = [names.get(key, key) for key in self.chromosomes]
        renamed = self._like(self.columns, self.bounds, chromosomes, in_order=True)
        if self.sizes is not None:
            renamed.sizes = {names.get(key, key): size for key, size in self.sizes.items()}
        return renamed

    def deduplicate(self, limit: int = 1) -> Intervals:
        """Keep at most ``limit`` intervals of each kind.

        Fragments are of one kind if start and end (and barcode) are the same; single reads if the position of their
        first base and the strand (and barcode) are, whatever their length.
        """
        limit = whole_number(limit, "limit")
        return self.keep({chromosome: _first_of_kind(self[chromosome], self.paired, limit) for chromosome in self})

    def exclude(self, regions: Intervals) -> Intervals:
        """Leave out intervals that overlap one of ``regions``, such as a blacklist.

        Warns if the two have no chromosome in common.

        Raises
        ------
        ValueError
            If their chromosomes would match only with or without the prefix ``chr``.
        """
        match_regions(self.chromosomes, regions.chromosomes, name=self.name, regions_name=regions.name)
        index = regions.index()
        code = {chromosome: position for position, chromosome in enumerate(regions.chromosomes)}
        return self.keep(
            {
                chromosome: ~index.overlaps(code.get(chromosome, -1), start, end)
                for chromosome, start, end in self._spans()
            }
        )

    def index(self) -> Regions:
        """The intervals prepared for overlap queries; the code of a chromosome is its position in ``chromosomes``."""
        spans = list(self._spans())
        code = np.repeat(np.arange(len(spans)), [len(start) for _, start, _ in spans])
        start, end = (np.concatenate([np.empty(0, np.int32), *(span[side] for span in spans)]) for side in (1, 2))
        return Regions(code, start, end)

    def extend(self, length: int) -> Intervals:
        """Turn single reads into fragments of ``length``, from their first base along their strand.

        They stay within the chromosome. Reads whose strand is unknown grow about their middle, with a warning.

        Raises
        ------
        ValueError
            If these are fragments already, or no read has a strand.
        """
        length = whole_number(length, "length", unit=" base")
        strand = self.columns.get("strand")
        known = 0 if strand is None else sum(int(np.count_nonzero(strand[first:last])) for first, last in self.bounds)
        if self.paired or strand is None:
            what = "are whole fragments already" if self.paired else "have no strand"
            raise ValueError(f"only reads with a strand can be extended; those of {self.name} {what}.")
        check_strands(known, len(self), self.name)
        start, end = extend_reads(self.columns["start"], self.columns["end"], strand, length)
        for chromosome, (first, last) in zip(self.chromosomes, self.bounds.tolist(), strict=True):
            if self.sizes is not None and chromosome in self.sizes:
                np.minimum(end[first:last], self.sizes[chromosome], out=end[first:last])
        # Sorting is in place: columns of the original must not move with it.
        others = {key: self.columns[key].copy() for key in self.columns if key not in ("start", "end", "strand")}
        extended = self._like({"start": start, "end": end, **others}, self.bounds, self.chromosomes)
        extended.paired = True
        return extended

    def shift_ends(self, forward: int, reverse: int) -> Intervals:
        """Move the ends of fragments, or the first bases of reads, such as by 4 and -5 for the cut sites of Tn5.

        Parameters
        ----------
        forward
            Bases added to the start of each fragment, or of each forward read.
        reverse
            Bases added to the end of each fragment, or of each reverse read. Reads whose strand is unknown stay.

        Returns
        -------
        Shifted intervals, within their chromosomes; those of which nothing is left are left out.
        """
        forward, reverse = (
            whole_number(value, "shift", minimum=-LONGEST, unit=" bases") for value in (forward, reverse)
        )
        start, end = self.columns["start"].astype(np.int64), self.columns["end"].astype(np.int64)
        strand = None if self.paired else self.columns.get("strand", np.zeros(1, np.int8))
        start = np.maximum(start + forward * (True if strand is None else strand > 0), 0)
        end = np.minimum(end + reverse * (True if strand is None else strand < 0), LONGEST)
        kept = {}
        for chromosome, (first, last) in zip(self.chromosomes, self.bounds.tolist(), strict=True):
            if self.sizes is not None and chromosome in self.sizes:
                np.minimum(end[first:last], self.sizes[chromosome], out=end[first:last])
            kept[chromosome] = end[first:last] > start[first:last]
        if not all(mask.all() for mask in kept.values()):
            return self.keep(kept).shift_ends(forward, reverse)
        others = {key: values.copy() for key, values in self.columns.items() if key not in ("start", "end")}
        columns = {"start": start.astype(np.int32), "end": end.astype(np.int32), **others}
        return self._like(columns, self.bounds, self.chromosomes)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with columns chrom, start, end, and barcode, count, strand where there are any."""
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


def check_strands(known: int, number: int, name: str) -> None:
    """Refuse to extend reads of which none has a strand, warn if some have none."""
    if number and not known:
        raise ValueError(f"only reads with a strand can be extended; those of {name} have no strand.")
    if known < number:
        warnings.warn(
            f"{name}: {number - known:,} of {number:,} reads have no strand and are extended about their middle.",
            UserWarning,
            stacklevel=3,
        )


def extend_reads(start: np.ndarray, end: np.ndarray, strand: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of fragments of ``length`` that begin at the first base of each read; not below 0.

    Those of reads without a strand (0) lie about the middle of the read.
    """
    about = (start.astype(np.int64) + end) // 2 - length // 2
    first = np.where(strand < 0, end.astype(np.int64) - length, np.where(strand > 0, start, about))
    last = np.where(strand < 0, end, first + length)
    return np.maximum(first, 0).astype(np.int32), np.minimum(last, LONGEST).astype(np.int32)


def _strands_of_text(values: np.ndarray) -> np.ndarray:
    codes = {"+": 1, "-": -1, ".": 0, "": 0}
    unknown = [value for value in dict.fromkeys(values.tolist()) if value not in codes]
    if unknown and not all(isinstance(value, int | float | np.number) for value in unknown):
        raise ValueError(f"strand must hold '+', '-' or '.', or 1, -1 or 0, found {name_heads(unknown)}.")
    return np.array([codes.get(value, value) for value in values.tolist()], dtype=np.float64)


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
    found = [np.empty(0, np.bool_)]
    for batch in row_batches(last - first):
        found.append(unsorted_groups(columns["start"], first[batch], last[batch]))
        release(columns["start"])
    unsorted = np.flatnonzero(np.concatenate(found))
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
        release(*columns.values())
