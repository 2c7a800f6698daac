"""Rows of whole numbers that repeat: which distinct ones there are, and which one stands at each position."""

from __future__ import annotations

from collections.abc import Iterable

import numba
import numpy as np

__all__ = ["PatternKeys"]

_BITS = 63


class PatternKeys:
    """One key for each position, made column by column, so that the table never exists as a whole.

    A value v is written as v + 1, a missing one as 0, in as few bits as the column's largest value needs.

    Parameters
    ----------
    n_positions
        Positions.
    largest
        Largest value of each column.
    """

    def __init__(self, n_positions: int, largest: Iterable[int]):
        self.bits = [int(value + 1).bit_length() for value in largest]
        self.fits = sum(self.bits) <= _BITS
        self.keys = np.zeros(n_positions if self.fits else 0, np.int64)
        self._shift = 0
        self._column = 0

    def add(self, values: np.ndarray) -> None:
        """Append a column (n_positions,) of whole numbers, NaN where missing."""
        code = np.where(np.isfinite(values), values + 1, 0).astype(np.int64)
        self.keys |= code << self._shift
        self._shift += self.bits[self._column]
        self._column += 1

    def distinct(self, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return distinct rows (patterns, columns) and the row of each position; None if more than ``most``."""
        found, index = _factorize(self.keys, most)
        if index is None:
            return None
        order = np.argsort(found, kind="stable")
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        rows = np.empty((len(found), len(self.bits)))
        keys = found[order]
        for column, bits in enumerate(self.bits):
            code = keys & ((1 << bits) - 1)
            rows[:, column] = np.where(code > 0, code - 1.0, np.nan)
            keys >>= bits
        return rows, rank[index]


def _factorize(keys: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    size = 1 << 12
    while True:
        found, index, complete = _number_keys(keys, size, min(most, size // 2))
        if complete:
            return found, index
        if size // 2 >= most:
            return found, None
        size *= 16


@numba.njit(cache=True, nogil=True)
def _number_keys(keys, size, most):
    """Number of each key in order of appearance, with an open hash table; incomplete if there are too many."""
    table = np.full(size, -1, np.int32)
    found = np.empty(most, np.int64)
    index = np.empty(len(keys), np.int32)
    known = 0
    for t in range(len(keys)):
        key = keys[t]
        place = (key * 0x9E3779B97F4A7C15 >> 20) & (size - 1)
        while table[place] >= 0 and found[table[place]] != key:
            place = (place + 1) & (size - 1)
        if table[place] < 0:
            if known == most:
                return found, index, False
            table[place] = known
            found[known] = key
            known += 1
        index[t] = table[place]
    return found[:known], index, True
