"""What compiled loops over one sequence share."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

__all__ = ["as_line", "sigmoid"]


def as_line(values: Any) -> np.ndarray:
    """Return values as one contiguous sequence (length,); ValueError if they have another shape."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"expected one sequence (length,), found shape {values.shape}.")
    return np.ascontiguousarray(values)


@numba.njit(cache=True, nogil=True, inline="always")
def sigmoid(x):
    """Logistic function, for compiled code."""
    if x > 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)
