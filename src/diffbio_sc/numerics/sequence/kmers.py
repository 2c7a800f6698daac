"""Canonical k-mers of sequences, contiguous or spaced: how often each occurs on either strand.

A pattern names the places of a k-mer that count, as offsets from its first: (0, 1, 2, 3, 4, 5) is a plain 6-mer,
(0, 1, 2, 6, 7, 8) two triplets three bases apart. A pattern must read the same from both ends, so that a k-mer and its
reverse complement are one column and a sequence has the same counts as its other strand. A k-mer with an unknown base
does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit

__all__ = [
    "KmerRows",
    "Pattern",
    "canonical_columns",
    "chosen_counts",
    "contiguous",
    "dense",
    "gram",
    "kmer_names",
    "kmer_rows",
    "kmer_words",
    "mirrored",
    "n_columns",
    "products",
    "row_blocks",
    "transposed_products",
]

#: Offsets of the places of a k-mer that count, from 0 upward.
Pattern = tuple[int, ...]

# Largest k: the table of codes has 4^k entries.
_LONGEST = 10


class KmerRows(NamedTuple):
    """Counts of k-mers, sparse: row by row the columns that occur, in no order, and how often.

    Attributes
    ----------
    columns
        Column of each k-mer that occurs (rows, most); entries from ``used`` on mean nothing.
    values
        ``log(1 + count)`` of each (rows, most), float32.
    used
        Number of different k-mers of each row.
    n_columns
        Number of columns.
    """

    columns: Int[np.ndarray, "rows most"]
    values: Float[np.ndarray, "rows most"]
    used: Int[np.ndarray, " rows"]
    n_columns: int

    def take(self, rows: np.ndarray | slice) -> KmerRows:
        """Return some of the rows."""
        return KmerRows(self.columns[rows], self.values[rows], self.used[rows], self.n_columns)


def contiguous(k: int) -> Pattern:
    """Return the pattern of a k-mer without gaps."""
    return tuple(range(k))


def mirrored(half: int, gap: int) -> Pattern:
    """Return the pattern of two runs of ``half`` places that ``gap`` places lie between."""
    return tuple(range(half)) + tuple(range(half + gap, 2 * half + gap))


@lru_cache(maxsize=16)
def canonical_columns(k: int) -> Int[np.ndarray, " codes"]:
    """Return the column of each k-mer, whose code reads its bases as the digits of a number in base 4.

    A k-mer and its reverse complement have one column; columns follow the order of the smaller code.
    """
    if not 1 <= k <= _LONGEST:
        raise ValueError(f"k must be from 1 to {_LONGEST}, found {k}.")
    codes = np.arange(4**k)
    other, rest = np.zeros_like(codes), codes.copy()
    for _ in range(k):
        other = 4 * other + 3 - rest % 4
        rest //= 4
    smaller = np.minimum(codes, other)
    columns = np.searchsorted(np.flatnonzero(smaller == codes), smaller).astype(np.int32)
    columns.flags.writeable = False
    return columns


def n_columns(patterns: Sequence[Pattern]) -> int:
    """Return the number of columns of some patterns together."""
    return sum(int(canonical_columns(len(pattern)).max()) + 1 for pattern in patterns)


def kmer_names(pattern: Pattern) -> list[str]:
    """Return the letters of each column, the smaller of both strands; dots stand in gaps."""
    names = []
    for word in kmer_words(len(pattern)):
        letters = ["."] * (pattern[-1] + 1)
        for base, offset in zip(word, pattern, strict=True):
            letters[offset] = "ACGT"[base]
        names.append("".join(letters))
    return names


def kmer_words(k: int) -> Int[np.ndarray, "columns k"]:
    """Return the bases of each column's k-mer, of the strand with the smaller code."""
    codes = np.unique(canonical_columns(k), return_index=True)[1]
    return (codes[:, None] // 4 ** np.arange(k - 1, -1, -1) % 4).astype(np.int8)


def kmer_rows(tokens: Int[np.ndarray, "rows length"], patterns: Sequence[Pattern]) -> KmerRows:
    """Count the k-mers of sequences.

    Parameters
    ----------
    tokens
        Sequences, int8, A C G T N = 0 1 2 3 4.
    patterns
        Patterns; the columns of each follow those of the one before.

    Raises
    ------
    ValueError
        If a pattern does not begin at 0, does not rise, reads otherwise from its end, or is longer than the sequences.
    """
    length = tokens.shape[1]
    for pattern in patterns:
        _check_pattern(pattern, length)
    most = sum(length - pattern[-1] for pattern in patterns)
    total = n_columns(patterns)
    columns = np.zeros((len(tokens), most), np.int16 if total <= np.iinfo(np.int16).max else np.int32)
    counts = np.zeros((len(tokens), most), np.uint16)
    used = np.zeros(len(tokens), np.int32)
    first = 0
    for pattern in patterns:
        table = canonical_columns(len(pattern))
        _count(tokens, np.array(pattern), table, first, columns, counts, used, int(table.max()) + 1)
        first += int(table.max()) + 1
    return KmerRows(columns, _logarithms(length)[counts], used, total)


def row_blocks(
    tokens: Int[np.ndarray, "rows length"], patterns: Sequence[Pattern], size: int = 8192
) -> Iterator[tuple[slice, KmerRows]]:
    """Count the k-mers of sequences block by block: the rows of each block, and their counts."""
    for begin in range(0, len(tokens), size):
        block = slice(begin, min(begin + size, len(tokens)))
        yield block, kmer_rows(tokens[block], patterns)


def dense(rows: KmerRows) -> Float[np.ndarray, "rows columns"]:
    """Return the values as a table, float32."""
    table = np.zeros((len(rows.used), rows.n_columns), np.float32)
    _scatter(rows.columns, rows.values, rows.used, table)
    return table


def chosen_counts(
    rows: KmerRows, chosen: Int[np.ndarray, " chosen"], kind: type[np.unsignedinteger]
) -> Int[np.ndarray, "rows chosen"]:
    """Return the counts in some of the columns as a table of whole numbers of a kind that holds them."""
    place = np.full(rows.n_columns, -1, np.int32)
    place[chosen] = np.arange(len(chosen))
    table = np.zeros((len(rows.used), len(chosen)), kind)
    _scatter_counts(rows.columns, np.rint(np.expm1(rows.values)).astype(kind), rows.used, place, table)
    return table


def gram(rows: KmerRows, weights: Float[np.ndarray, " rows"], total: Float[np.ndarray, "columns columns"]) -> None:
    """Add the upper triangle, with respect to column numbers, of X' diag(weights) X to ``total`` in place."""
    _gram(rows.columns, rows.values, rows.used, np.ascontiguousarray(weights, total.dtype), total)


def products(rows: KmerRows, coefficients: Float[np.ndarray, "columns outputs"]) -> Float[np.ndarray, "rows outputs"]:
    """Return X @ coefficients."""
    coefficients = np.ascontiguousarray(coefficients)
    result = np.zeros((len(rows.used), coefficients.shape[1]), coefficients.dtype)
    _products(rows.columns, rows.values, rows.used, coefficients, result)
    return result


def transposed_products(
    rows: KmerRows, targets: Float[np.ndarray, "rows outputs"]
) -> Float[np.ndarray, "columns outputs"]:
    """Return X' @ targets."""
    targets = np.ascontiguousarray(targets)
    result = np.zeros((rows.n_columns, targets.shape[1]), targets.dtype)
    _transposed(rows.columns, rows.values, rows.used, targets, result)
    return result


def _check_pattern(pattern: Pattern, length: int) -> None:
    offsets = np.array(pattern)
    if len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        raise ValueError(f"a pattern must rise from 0, found {tuple(pattern)}.")
    if not np.array_equal(offsets, offsets[-1] - offsets[::-1]):
        raise ValueError(f"a pattern must read the same from both ends, found {tuple(pattern)}.")
    if offsets[-1] >= length:
        raise ValueError(
            f"sequences of {length} bases are shorter than the k-mers, which reach over {offsets[-1] + 1}: give wider "
            "regions."
        )


@lru_cache(maxsize=4)
def _logarithms(length: int) -> Float[np.ndarray, " counts"]:
    return np.log1p(np.arange(length + 1)).astype(np.float32)


@njit(cache=True, nogil=True)
def _count(tokens, offsets, table, first, columns, counts, used, width):
    rows, length = tokens.shape
    k = len(offsets)
    places = length - offsets[-1]
    slot = np.full(width, -1, np.int32)
    for row in range(rows):
        begin = used[row]
        end = begin
        for place in range(places):
            code = 0
            known = True
            for digit in range(k):
                base = tokens[row, place + offsets[digit]]
                known &= base < 4
                code = 4 * code + base
            if not known:
                continue
            column = table[code]
            if slot[column] < 0:
                slot[column] = end
                columns[row, end] = first + column
                end += 1
            counts[row, slot[column]] += 1
        for entry in range(begin, end):
            slot[columns[row, entry] - first] = -1
        used[row] = end


@njit(cache=True, nogil=True)
def _scatter(columns, values, used, table):
    for row in range(len(used)):
        for entry in range(used[row]):
            table[row, columns[row, entry]] = values[row, entry]


@njit(cache=True, nogil=True)
def _scatter_counts(columns, counts, used, place, table):
    for row in range(len(used)):
        for entry in range(used[row]):
            column = place[columns[row, entry]]
            if column >= 0:
                table[row, column] = counts[row, entry]


@njit(cache=True, nogil=True)
def _gram(columns, values, used, weights, total):
    for row in range(len(used)):
        if weights[row] == 0:
            continue
        for one in range(used[row]):
            first = columns[row, one]
            value = weights[row] * values[row, one]
            for other in range(one, used[row]):
                second = columns[row, other]
                if first <= second:
                    total[first, second] += value * values[row, other]
                else:
                    total[second, first] += value * values[row, other]


@njit(cache=True, nogil=True, fastmath=True)
def _products(columns, values, used, coefficients, result):
    outputs = coefficients.shape[1]
    for row in range(len(used)):
        for entry in range(used[row]):
            column, value = columns[row, entry], values[row, entry]
            for output in range(outputs):
                result[row, output] += value * coefficients[column, output]


@njit(cache=True, nogil=True, fastmath=True)
def _transposed(columns, values, used, targets, result):
    outputs = targets.shape[1]
    for row in range(len(used)):
        for entry in range(used[row]):
            column, value = columns[row, entry], values[row, entry]
            for output in range(outputs):
                result[column, output] += value * targets[row, output]
