"""Sizes that compiled code is shared between, and arrays filled up to them."""

from __future__ import annotations

import numpy as np


def bucket_size(size: int) -> int:
    """Round up to the next number with at most four binary digits, at most an eighth more."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def round_up(size: int, multiple: int) -> int:
    """Round up to the next multiple."""
    return -(-size // multiple) * multiple


def zero_padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array with zeros behind it, up to ``shape``; float64 becomes float32."""
    array = np.asarray(array)
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    if array.shape == shape:
        return array.astype(dtype, copy=False)
    larger = np.zeros(shape, dtype)
    larger[tuple(slice(size) for size in array.shape)] = array
    return larger
