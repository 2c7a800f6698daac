"""Search in sorted values, within compiled loops: ``np.searchsorted`` takes seconds to compile there."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def first_at_least(values, low, high, wanted):
    """Position of the first element of sorted ``values[low:high]`` that is at least ``wanted``."""
    while low < high:
        middle = (low + high) >> 1  # a division would be more to compile
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
