"""The axis along which genomic bins or regions lie, and the bins of one width that tile chromosomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from diffbio_sc._checks import name_heads

_SHOWN = 5
_MOST_BINS = 2**31 - 1  # columns that a sparse matrix can have


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BinAxis:
    """Bins or regions along one axis of a matrix, each with a place on a chromosome: 0-based, half-open.

    A gap between bins or a change of chromosome ends a sequence; no statistic runs across it.
    """

    names: Sequence[str]
    """Name of each bin, in the order of the axis, as are the next three."""
    code: np.ndarray
    """Position of the bin's chromosome in ``chromosomes``, int32."""
    start: np.ndarray
    """First base, int64."""
    end: np.ndarray
    """Base after the last, int64."""
    chromosomes: list[str]
    """Names of the chromosomes, in order of first appearance."""
    order: np.ndarray
    """Positions along the axis in genomic order: chromosomes in order of first appearance, then start, then end."""
    breaks: np.ndarray
    """Where in ``order`` a new sequence begins, the first (0) left out."""
    width: int | None
    """Width of all bins (the last of a chromosome may be shorter); None if they differ."""
    overlapping: bool
    """Whether any two bins overlap."""

    @cached_property
    def sequences(self) -> list[np.ndarray]:
        """Positions along the axis of each sequence of bins without a gap, in genomic order."""
        return np.split(self.order, self.breaks) if len(self.order) else []

    def __len__(self) -> int:
        """Number of bins."""
        return len(self.code)

    def extent(self) -> dict[str, int]:
        """Last end on each chromosome."""
        last = np.zeros(len(self.chromosomes), np.int64)
        np.maximum.at(last, self.code, self.end)
        return dict(zip(self.chromosomes, last.tolist(), strict=True))


def order_bins(
    code: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    chromosomes: list[str],
    *,
    names: Sequence[str],
    name: str,
    allow_overlaps: bool = False,
) -> BinAxis:
    """Check the places of bins and order them along the genome.

    Parameters
    ----------
    code, start, end
        Chromosome (a position in ``chromosomes``), first base and base after the last of each bin.
    chromosomes
        Names.
    names, name
        What messages call the bins, and all of them.
    allow_overlaps
        Accept bins that overlap, as the peaks of several groups do. A sequence then ends where a gap follows all bins
        so far.

    Raises
    ------
    ValueError
        If starts are negative, ends do not lie after their starts, or bins overlap or occur twice.
    """
    for bad, problem in (
        (start < 0, "negative starts"),
        (end <= start, "ends that do not lie after their starts (positions are 0-based, half-open)"),
    ):
        if bad.any():
            rows = np.flatnonzero(bad)
            shown = name_heads([names[row] for row in rows[:_SHOWN]])
            more = f" ... ({len(rows)})" if len(rows) > _SHOWN else ""
            raise ValueError(
                f"{name} has {problem}: {shown}{more}; the first is {_place(rows[0], code, start, end, chromosomes)}."
            )
    order = np.lexsort((end, start, code))
    ordered_code, ordered_start, ordered_end = code[order], start[order], end[order]
    same = ordered_code[1:] == ordered_code[:-1]
    overlap = np.flatnonzero(same & (ordered_start[1:] < ordered_end[:-1]))
    if len(overlap) and not allow_overlaps:
        left, right = order[overlap[0]], order[overlap[0] + 1]
        twice = start[left] == start[right] and end[left] == end[right]
        remedy = "Remove one of each pair." if twice else "Merge them, or keep one of each pair."
        raise ValueError(
            f"{name} has {'duplicated' if twice else 'overlapping'} bins ({len(overlap)} such neighbours): "
            f"{str(names[left])!r} ({_place(left, code, start, end, chromosomes)}) and "
            f"{str(names[right])!r} ({_place(right, code, start, end, chromosomes)}). {remedy}"
        )
    if len(overlap):
        # The furthest end so far on the chromosome; with the code above it, one running maximum serves all.
        reach = np.maximum.accumulate(ordered_code.astype(np.int64) << 40 | ordered_end) & ((1 << 40) - 1)
    else:
        reach = ordered_end
    breaks = np.flatnonzero(~same | (ordered_start[1:] > reach[:-1])) + 1
    return BinAxis(
        names=names,
        code=code.astype(np.int32),
        start=start,
        end=end,
        chromosomes=chromosomes,
        order=order,
        breaks=breaks,
        width=None if len(overlap) else _common_width(ordered_end - ordered_start, ~same),
        overlapping=bool(len(overlap)),
    )


def _place(row: int, code: np.ndarray, start: np.ndarray, end: np.ndarray, chromosomes: list[str]) -> str:
    return f"{chromosomes[code[row]]}:{start[row]}-{end[row]}"


def _common_width(widths: np.ndarray, ends_chromosome: np.ndarray) -> int | None:
    """Width of all bins, of which the last of a chromosome may be shorter."""
    if not len(widths):
        return None
    last = np.append(ends_chromosome, True)
    inner = widths[~last] if not last.all() else widths
    width = int(inner[0])
    return width if (inner == width).all() and (widths[last] <= width).all() else None


class Tiles(NamedTuple):
    """Bins of one width over chromosomes of known length, one chromosome after the other."""

    sizes: dict[str, int]
    """Length of each chromosome, above 0."""
    width: int
    """Bases in a bin; the last of a chromosome may be shorter."""
    offset: dict[str, int]
    """First bin of each chromosome."""
    number: int
    """Bins of all chromosomes."""

    @classmethod
    def over(cls, sizes: Mapping[str, int], width: int) -> Tiles:
        """Make the bins of chromosomes; those of length 0 have none."""
        kept = {name: int(size) for name, size in sizes.items() if size > 0}
        stops = np.cumsum([0, *(-(-size // width) for size in kept.values())])
        if stops[-1] > _MOST_BINS:
            raise ValueError(f"{stops[-1]:,} bins of {width} bases are more than a matrix can hold; use wider bins.")
        return cls(kept, width, dict(zip(kept, stops[:-1].tolist(), strict=True)), int(stops[-1]))

    def counts(self) -> np.ndarray:
        """Number of bins on each chromosome."""
        return np.diff([*self.offset.values(), self.number])

    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chromosome (its position in ``sizes``), start and end of each bin."""
        counts = self.counts()
        code = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(self.number) - np.repeat(np.cumsum(counts) - counts, counts)
        start = within * self.width
        length = np.array(list(self.sizes.values()), np.int64)
        return code, start, np.minimum(start + self.width, length[code])
