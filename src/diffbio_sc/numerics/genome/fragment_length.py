"""Length of the fragments that single reads come from, by the distance between strands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

__all__ = ["fragment_length_from_strands"]


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


def fragment_length_from_strands(
    forward: Sequence[np.ndarray], reverse: Sequence[np.ndarray], *, read_length: int, longest: int = 600
) -> int | None:
    """Most frequent distance between 5' ends of forward and of reverse reads, smoothed; None without enough pairs.

    Distances about the length of the reads themselves, where unmappable places make a false peak (Landt et al. 2012,
    Genome Research 22:1813), are left out.

    Parameters
    ----------
    forward, reverse
        5' ends of the reads of each strand, sorted, of each sequence.
    read_length
        Length of the reads.
    longest
        Longest fragment looked for.
    """
    counts = np.zeros(longest + 1, np.int64)
    for plus, minus in zip(forward, reverse, strict=True):
        _strand_distances(plus, minus, counts)
    if counts.sum() < 100:
        return None
    smooth = np.convolve(counts, np.ones(31) / 31, mode="same")
    smooth[: max(50, read_length + 20)] = 0.0
    return int(np.argmax(smooth)) if smooth.any() else None
