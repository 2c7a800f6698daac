"""Which intervals overlap which: the one place that answers it.

Intervals are 0-based and half-open: two of them overlap if they share a base, and those that only touch do not.
Chromosomes are whole-number codes; :func:`chromosome_codes` gives the same codes to several columns of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_LARGEST = 2**31 - 1


class Regions:
    """Regions that queries are compared with; they may overlap each other, nest and occur twice.

    Building it sorts the regions, ``O(n log n)``; a query takes a few binary searches. Queries are arrays of one length
    (or scalars, which stand for all), in any order. A query of a negative code overlaps nothing.

    Parameters
    ----------
    code
        Chromosome of each region; regions of a negative code are never met.
    start, end
        Positions below 2**31; every end lies after its start.

    Raises
    ------
    ValueError
        If a region does not have ``0 <= start < end < 2**31``.
    """

    def __init__(self, code: Any, start: Any, end: Any):
        code, start, end = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(part, np.int64)) for part in (code, start, end))
        )
        bad = (start < 0) | (end <= start) | (end > _LARGEST)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"regions must have 0 <= start < end < 2**31, found {int(bad.sum())} that do not; the first is "
                f"{start[first]}-{end[first]}."
            )
        here = np.flatnonzero(code >= 0)
        self.order = here[np.lexsort((end[here], start[here], code[here]))]
        """Positions of the regions as given, by chromosome and start."""
        # A place of the genome is one number: keys of later chromosomes are larger, so one search serves all of them.
        self._start = _key(code[self.order], start[self.order])
        end_key = _key(code[self.order], end[self.order])
        self._end = end_key
        self._furthest = np.maximum.accumulate(end_key)
        self._sorted_end = np.sort(end_key)

    def __len__(self) -> int:
        """Number of regions that can be met."""
        return len(self.order)

    def overlaps(self, code: Any, start: Any, end: Any) -> np.ndarray:
        """Whether each query overlaps any region."""
        # Of the regions that begin before the query's end, one overlaps it if the furthest of their ends lies within.
        before = np.searchsorted(self._start, _key(code, end), side="left")
        reached = np.append(self._furthest, -1)[before - 1]
        return (before > 0) & (reached > _key(code, start)) & (np.asarray(code) >= 0)

    def counts(self, code: Any, start: Any, end: Any) -> np.ndarray:
        """Number of regions that overlap each query."""
        begun = np.searchsorted(self._start, _key(code, end), side="left")
        over = np.searchsorted(self._sorted_end, _key(code, start), side="right")
        return np.where(np.asarray(code) >= 0, begun - over, 0)

    def pairs(self, code: Any, start: Any, end: Any) -> tuple[np.ndarray, np.ndarray]:
        """Every overlapping pair: positions of the queries, and of the regions as given.

        Sorted by query, then by the start of the region.
        """
        code, start, end = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(part, np.int64)) for part in (code, start, end))
        )
        last = np.searchsorted(self._start, _key(code, end), side="left")
        # No region before the first whose furthest end lies past the query's start can reach the query.
        first = np.minimum(np.searchsorted(self._furthest, _key(code, start), side="right"), last)
        number = np.where(code >= 0, last - first, 0)
        query = np.repeat(np.arange(len(number)), number)
        row = np.arange(len(query)) + np.repeat(first - (np.cumsum(number) - number), number)
        met = self._end[row] > _key(code, start)[query]
        return query[met], self.order[row[met]]

    def reach(self, code: Any, position: Any) -> np.ndarray:
        """The furthest end of the regions that begin at or before each position; 0 where none does.

        A position lies in a region if this is larger than the position.
        """
        code = np.asarray(code, np.int64)
        before = np.searchsorted(self._start, _key(code, position), side="right")
        reached = np.append(self._furthest, -1)[before - 1]
        return np.where((before > 0) & (reached >= code << 32) & (code >= 0), reached & _LARGEST, 0)

    def next_start(self, code: Any, position: Any) -> np.ndarray:
        """The first start after each position; the largest 64-bit number where there is none."""
        code = np.asarray(code, np.int64)
        after = np.searchsorted(self._start, _key(code, position), side="right")
        following = np.append(self._start, np.iinfo(np.int64).max)[after]
        here = (following >> 32 == code) & (code >= 0)
        return np.where(here, following & _LARGEST, np.iinfo(np.int64).max)


def _key(code: Any, position: Any) -> np.ndarray:
    return np.asarray(code, np.int64) << 32 | np.clip(np.asarray(position, np.int64), 0, _LARGEST)


def chromosome_codes(*columns: Sequence[Any]) -> list[np.ndarray]:
    """Codes of the chromosomes named by several columns: equal names have equal codes over all of them.

    Examples
    --------
    >>> left, right = chromosome_codes(["chr2", "chr1"], ["chr1", "chr3"])
    >>> left, right
    (array([0, 1]), array([1, 2]))
    """
    lookup: dict[str, int] = {}
    result = []
    for column in columns:
        # Few names, many rows: each name is turned to text once.
        if hasattr(column, "cat"):  # a categorical column of a table
            names, inverse = (
                np.asarray(column.cat.categories, dtype=object),
                column.cat.codes.to_numpy().astype(np.int64),
            )
        else:
            values = np.asarray(column).astype(str)
            names, inverse = np.unique(values, return_inverse=True)
            first = np.full(len(names), len(values))
            np.minimum.at(first, inverse, np.arange(len(values)))
            for name in names[np.argsort(first)]:
                lookup.setdefault(str(name), len(lookup))
        codes = np.array([lookup.setdefault(str(name), len(lookup)) for name in names], np.int64)
        result.append(np.where(inverse >= 0, np.append(codes, -1)[inverse], -1))
    return result
