"""What compiled loops over one sequence share."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

__all__ = ["as_line", "compiled_sigmoid", "inner_loop", "sigmoid"]


# The way in from Python is a tenth to a third of what there is to compile, most where arguments are named tuples.
_WITHOUT_A_WAY_IN: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner_loop(function: Any) -> Any:
    """Compile what compiled code alone calls. A call from Python ends the process."""
    return numba.njit(cache=True, nogil=True, **_WITHOUT_A_WAY_IN)(function)


def as_line(values: Any) -> np.ndarray:
    """Return values as one contiguous sequence (length,); ValueError if they have another shape."""
    values = np.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"expected one sequence (length,), found shape {values.shape}.")
    return np.ascontiguousarray(values)


def sigmoid(x: float) -> float:
    """Logistic function of one number."""
    if x > 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


#: The same as a part of compiled code.
compiled_sigmoid = numba.njit(cache=True, nogil=True, inline="always")(sigmoid)
