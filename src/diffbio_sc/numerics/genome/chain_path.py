"""Forward pass of a two-state chain over bins, which gives the peaks as it goes, within compiled loops."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from diffbio_sc.numerics.lines import inner_loop

__all__ = ["ChainPath", "advance", "last_peak", "pass_over"]

_FEW = 16  # bins that are gone through one by one


class ChainPath(NamedTuple):
    """Forward pass up to a bin: the margin of state 1 over state 0 there, and what the path back will need.

    Attributes
    ----------
    margin
        Log-likelihood of the best path that ends in state 1, less that of the best in state 0.
    entry
        Last bin where the best path in state 1 came from state 0 (or the first bin of all).
    leave
        Last bin after that where the best one in state 0 came from state 1; 0 if there is none.
    found
        Number of peaks before these.
    """

    margin: float
    entry: int
    leave: int
    found: int


@inner_loop
def advance(path, covered, level, first, stop, offset, per_base, per_level, penalty, runs):
    """Forward pass over bins [first, stop); their numbers in the sequence are ``offset`` more.

    Of the decisions only those matter that the path back can meet: it leaves a peak at the last bin where state 0 came
    from state 1, and enters it at the last one before where state 1 came from state 0. Peaks that a later entry has
    settled go to ``runs``.
    """
    margin, entry, leave, found = path
    one, b, last = np.uint64(1), np.uint64(first), np.uint64(stop - 1)
    while b <= last:
        if margin < -penalty:
            if leave > 0:
                runs[found, 0], runs[found, 1] = entry, leave
                found += 1
                leave = 0
            # It remains so through bins without intervals.
            while covered[b] == 0 and b < last:
                b += one
            entry = offset + np.int64(b)
            margin = -penalty
        elif margin > penalty:
            leave = offset + np.int64(b)
            margin = penalty
        margin += covered[b] * per_base - level[b] * per_level
        b += one
    return ChainPath(margin, entry, leave, found)


@inner_loop
def pass_over(path, step, first, stop, penalty, runs):
    """Forward pass over bins [first, stop) of the sequence without intervals and of one background.

    The margin falls by one ``step`` a bin, until it lies below ``-penalty`` for good. Floating-point numbers of one
    exponent fall by the same amount at each step once two of them have: so many are taken at once, without a difference
    in any bit.
    """
    margin, entry, leave, found = path
    b = first
    while b < stop:
        if margin < -penalty:
            if leave > 0:
                runs[found, 0], runs[found, 1] = entry, leave
                found += 1
                leave = 0
            entry = stop - 1
            margin = -penalty + step
            break
        if margin > penalty:
            leave = b
            margin = penalty
        before = margin
        margin += step
        b += 1
        if stop - b > _FEW:
            lowest = _lowest_alike(before, penalty)
            change = margin - before
            after = margin + step
            if after > lowest and after - margin == change and change < 0.0:
                many = min(np.int64((margin - lowest) / -change) - 1, stop - b)
                if many > 0:
                    margin += many * change
                    b += many
    return ChainPath(margin, entry, leave, found)


@inner_loop
def _lowest_alike(value, penalty):
    """A number that those below ``value``, of its sign and exponent, and above ``-penalty``, are above."""
    exponent = math.frexp(value)[1]
    if value > 0.0:
        return math.ldexp(0.5, exponent)
    return max(-math.ldexp(1.0, exponent), -penalty) if value < 0.0 else 0.0


@inner_loop
def last_peak(path, bins, runs):
    """The last peak of a sequence, which ends with it or with the last bin that leaves state 1."""
    margin, entry, leave, found = path
    if margin > 0:
        leave = bins
    if leave > 0:
        runs[found, 0], runs[found, 1] = entry, leave
        found += 1
    return ChainPath(margin, entry, leave, found)
