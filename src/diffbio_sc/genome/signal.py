"""Values along chromosomes, such as a bedGraph or bigWig file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffbio_sc._checks import counted, name_heads, whole_numbers
from diffbio_sc.genome.chrom_sizes import LONGEST, check_chrom_sizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.genome.pileup import value_sums


class SignalArrays(NamedTuple):
    """Values of one chromosome: ``value[i]`` holds from ``start[i]`` to ``end[i]``, half-open; sorted, no overlap.

    Attributes
    ----------
    start, end
        int32, each of shape (runs,).
    value
        float64 (runs,).
    """

    start: np.ndarray
    end: np.ndarray
    value: np.ndarray


class Signal:
    """Values along chromosomes, in runs; where there is no run there is no value.

    ``signal["chr1"]`` gives the runs of a chromosome (:class:`SignalArrays`).

    Parameters
    ----------
    arrays
        Start, end and value by chromosome.
    sizes
        Length of each chromosome, where known.
    name
        What messages call this signal, such as the name of its file.

    Raises
    ------
    ValueError
        If runs of a chromosome differ in length, are not sorted, overlap, reach beyond its size, or do not have
        ``0 <= start < end < 2**31``.

    Examples
    --------
    >>> import numpy as np
    >>> import diffbio_sc as dbio
    >>> signal = dbio.io.Signal({"chr1": (np.array([0, 100]), np.array([100, 200]), np.array([2.5, 4.0]))})
    >>> signal["chr1"].value.tolist()
    [2.5, 4.0]
    """

    def __init__(
        self,
        arrays: Mapping[str, Sequence[np.ndarray]],
        *,
        sizes: Mapping[str, int] | None = None,
        name: str = "signal",
    ):
        self.name = name
        self.sizes = None if sizes is None else check_chrom_sizes(list(sizes.items()), f"sizes of {name}")
        self.arrays: dict[str, SignalArrays] = {}
        for chromosome, parts in arrays.items():
            runs = _checked_runs(parts, str(chromosome), name)
            if self.sizes is not None and len(runs.end):
                if chromosome not in self.sizes or runs.end[-1] > self.sizes[chromosome]:
                    raise ValueError(
                        f"{name} has values up to {chromosome}:{runs.end[-1]}, the sizes say "
                        f"{self.sizes.get(chromosome, 'nothing of this chromosome')}."
                    )
            self.arrays[str(chromosome)] = runs

    @classmethod
    def from_intervals(cls, intervals: Intervals) -> Signal:
        """Make a signal of runs that a reader has collected as intervals with a column of values."""
        value = intervals.columns.get("value", np.empty(0))
        arrays = {
            chromosome: (*intervals[chromosome][:2], value[first:last])
            for chromosome, (first, last) in zip(intervals.chromosomes, intervals.bounds.tolist(), strict=True)
        }
        return cls(arrays, sizes=intervals.sizes, name=intervals.name)

    @property
    def chromosomes(self) -> list[str]:
        """Names, in the order of the file."""
        return list(self.arrays)

    def __getitem__(self, chromosome: str) -> SignalArrays:
        if chromosome not in self.arrays:
            raise KeyError(f"{self.name} has no chromosome {chromosome!r}; it has {name_heads(self.chromosomes)}.")
        return self.arrays[chromosome]

    def __contains__(self, chromosome: object) -> bool:
        return chromosome in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        """Number of runs."""
        return sum(len(runs.start) for runs in self.arrays.values())

    def __repr__(self) -> str:
        return f"Signal({self.name}: {counted(len(self), 'run')} on {counted(len(self.arrays), 'chromosome')})"

    def extent(self) -> dict[str, int]:
        """Length of each chromosome: its size where known, else the end of its last run."""
        known = self.sizes or {}
        return {
            chromosome: known[chromosome] if chromosome in known else int(runs.end[-1]) if len(runs.end) else 0
            for chromosome, runs in self.arrays.items()
        }

    def bin_means(self, chromosome: str, width: int, size: int) -> np.ndarray:
        """Mean over each bin of ``width`` bases of a chromosome of length ``size``; 0 where there is no value."""
        bins = -(-size // width)
        start, end, value = self[chromosome]
        value = np.nan_to_num(value, nan=0.0, posinf=np.inf, neginf=-np.inf)  # NaN is no value
        lengths = np.full(bins, width)
        lengths[-1:] = size - width * (bins - 1)
        return value_sums(start, end, value, width, bins) / lengths


def _checked_runs(parts: Sequence[np.ndarray], chromosome: str, name: str) -> SignalArrays:
    start, end = (
        whole_numbers(part, f"{what} of {name} on {chromosome}", minimum=0, maximum=LONGEST)
        for part, what in zip(parts[:2], ("starts", "ends"), strict=True)
    )
    value = np.asarray(parts[2], np.float64)
    if not start.shape == end.shape == value.shape or start.ndim != 1:
        raise ValueError(
            f"{name} must have a start, an end and a value for each run, found shapes {start.shape}, {end.shape} and "
            f"{value.shape} on {chromosome}."
        )
    empty = np.flatnonzero(end <= start)
    if len(empty):
        first = empty[0]
        raise ValueError(
            f"{name} must have runs that end after their start, found {chromosome}:{start[first]}-{end[first]}."
        )
    overlap = np.flatnonzero(start[1:] < end[:-1])
    if len(overlap):
        left, right = overlap[0], overlap[0] + 1
        raise ValueError(
            f"{name} must have one value at each position, sorted by start, but {chromosome}:{start[left]}-{end[left]} "
            f"and {chromosome}:{start[right]}-{end[right]} overlap."
        )
    return SignalArrays(start.astype(np.int32), end.astype(np.int32), value)
