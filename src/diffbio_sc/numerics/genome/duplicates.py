"""Dropping equal intervals, in place."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["drop_duplicates"]


@njit(cache=True, nogil=True)
def _drop_duplicates(start, end, bounds, limit, place, to_start, to_end):
    for q in range(len(bounds)):
        first, last = bounds[q, 0], bounds[q, 1]
        begin = place
        i = first
        while i < last:
            j = i
            while j < last and start[j] == start[i]:
                j += 1
            here = start[i]
            if j - i > limit:
                same, previous = 0, -1
                for value in np.sort(end[i:j]):
                    same = same + 1 if value == previous else 1
                    previous = value
                    if same <= limit:
                        to_start[place], to_end[place] = here, value
                        place += 1
            else:
                for k in range(i, j):
                    to_start[place], to_end[place] = here, end[k]
                    place += 1
            i = j
        bounds[q, 0], bounds[q, 1] = begin, place
    return place


def drop_duplicates(
    start: np.ndarray,
    end: np.ndarray,
    bounds: np.ndarray,
    limit: int = 1,
    place: int = 0,
    *,
    into: tuple[np.ndarray, np.ndarray] | None = None,
) -> int:
    """Keep at most ``limit`` equal intervals, in place and in no more memory; ``bounds`` are rewritten.

    Parameters
    ----------
    start, end
        Intervals, sorted by start within each sequence, sequences one after the other.
    bounds
        First and last row of each sequence (sequences, 2), int64.
    limit
        Number to keep of each.
    place
        Number of intervals kept of sequences before, which stand at the front of the arrays.
    into
        Start and end of what is kept, where they are not to be written over the intervals.

    Returns
    -------
    Number of intervals kept, these included, at the front of the arrays.
    """
    return int(_drop_duplicates(start, end, bounds, limit, place, *((start, end) if into is None else into)))
