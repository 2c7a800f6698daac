"""Compiled loops over the rows of interval tables."""

from __future__ import annotations

import numpy as np
from numba import njit

# Rows that begin at one place are compared with each other up to this number, sorted beyond.
_COMPARED = 32


@njit(cache=True, nogil=True)
def group_rows(codes, n_codes):
    """Stable order that brings rows of one code together."""
    begin = np.zeros(n_codes + 1, np.int64)
    for row in range(len(codes)):
        begin[codes[row] + 1] += 1
    for code in range(n_codes):
        begin[code + 1] += begin[code]
    order = np.empty(len(codes), np.int64)
    for row in range(len(codes)):
        order[begin[codes[row]]] = row
        begin[codes[row]] += 1
    return order


@njit(cache=True, nogil=True)
def count_groups(cells, codes, groups):
    """Number of rows of each group; ``codes`` are the groups of the cells, -1 where they are left out."""
    number = np.zeros(groups, np.int64)
    for cell in cells:
        if codes[cell] >= 0:
            number[codes[cell]] += 1
    return number


@njit(cache=True, nogil=True)
def deal_rows(values, cells, codes, places, target):
    """Copy the rows of each group, in their order, to ``target``, from the group's place on; places are moved on."""
    for row in range(len(values)):
        code = codes[cells[row]]
        if code >= 0:
            target[places[code]] = values[row]
            places[code] += 1


@njit(cache=True, nogil=True)
def unsorted_groups(starts, first, last):
    """Whether the starts of each group decrease anywhere."""
    result = np.zeros(len(first), np.bool_)
    for group in range(len(first)):
        for row in range(first[group] + 1, last[group]):
            if starts[row] < starts[row - 1]:
                result[group] = True
                break
    return result


@njit(cache=True, nogil=True)
def move_runs(source, target, runs):
    """Copy runs of rows: (first row in the source, length, first row in the target) each."""
    for run in range(len(runs)):
        begin, length, place = runs[run]
        for row in range(length):
            target[place + row] = source[begin + row]


@njit(cache=True, nogil=True)
def within_limit(position, identity, limit):
    """Mask of the first ``limit`` rows among those of equal position and identity; rows are sorted by position."""
    result = np.ones(len(position), np.bool_)
    first = 0
    while first < len(position):
        last = first + 1
        while last < len(position) and position[last] == position[first]:
            last += 1
        if last - first > _COMPARED:
            order = np.argsort(identity[first:last], kind="mergesort")
            seen = 0
            for index in range(1, last - first):
                seen = seen + 1 if identity[first + order[index]] == identity[first + order[index - 1]] else 0
                result[first + order[index]] = seen < limit
        else:
            for row in range(first + 1, last):
                seen = 0
                for other in range(first, row):
                    if identity[other] == identity[row]:
                        seen += 1
                result[row] = seen < limit
        first = last
    return result
