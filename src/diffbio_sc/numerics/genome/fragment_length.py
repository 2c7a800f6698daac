"""Length of the fragments that single reads come from, by the distance between strands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

__all__ = ["LONGEST_FRAGMENT", "fragment_length_from_strands", "likeliest_length", "strand_distances"]

LONGEST_FRAGMENT = 600  # looked for


@njit(cache=True, nogil=True)
def _strand_distances(forward, reverse, counts):
    """Count distances from forward to reverse 5' ends of one sequence, both sorted, up to the length of ``counts``."""
    first = 0
    for i in range(len(forward)):
        while first < len(reverse) and reverse[first] <= forward[i]:
            first += 1
        j = first
        while j < len(reverse) and reverse[j] - forward[i] < len(counts):
            counts[reverse[j] - forward[i]] += 1
            j += 1


def strand_distances(
    forward: Sequence[np.ndarray], reverse: Sequence[np.ndarray], *, longest: int = LONGEST_FRAGMENT
) -> np.ndarray:
    """Number of pairs of a forward and a later reverse 5' end at each distance, from 0 to ``longest``.

    Parameters
    ----------
    forward, reverse
        5' ends of the reads of each strand, sorted, of each sequence.
    longest
        Longest fragment looked for.
    """
    counts = np.zeros(longest + 1, np.int64)
    for plus, minus in zip(forward, reverse, strict=True):
        _strand_distances(plus, minus, counts)
    return counts


def likeliest_length(counts: np.ndarray, *, read_length: int) -> int | None:
    """Most frequent distance of :func:`strand_distances`, smoothed; None without enough pairs.

    Distances about the length of the reads themselves, where unmappable places make a false peak (Landt et al. 2012,
    Genome Research 22:1813), are left out.
    """
    if counts.sum() < 100:
        return None
    smooth = np.convolve(counts, np.ones(31) / 31, mode="same")
    smooth[: max(50, read_length + 20)] = 0.0
    return int(np.argmax(smooth)) if smooth.any() else None


def fragment_length_from_strands(
    forward: Sequence[np.ndarray], reverse: Sequence[np.ndarray], *, read_length: int, longest: int = LONGEST_FRAGMENT
) -> int | None:
    """Length of the fragments that reads of both strands come from: :func:`likeliest_length` of their distances."""
    return likeliest_length(strand_distances(forward, reverse, longest=longest), read_length=read_length)
