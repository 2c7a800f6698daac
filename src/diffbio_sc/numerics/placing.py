"""Arrays put on devices in pieces, so that the host holds each piece once and no device holds another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

# Bytes: at multiples of it XLA takes memory of the host as it is.
_ALIGNMENT = 64


def device_copy(values: Any, dtype: Any = None) -> Array:
    """Return values of the host as an array of JAX, in memory of its own; as ``jnp.asarray`` otherwise.

    ``jnp.asarray`` compiles a program for each shape and type, and one more to convert; this compiles none.
    """
    dtype = np.asarray(values).dtype if dtype is None else dtype
    return jax.device_put(np.array(values, jax.dtypes.canonicalize_dtype(dtype)))


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros that start where devices on the host use them without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def put_pieces(
    shape: tuple[int, ...],
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
    write: Callable[[np.ndarray, int], None],
) -> Array:
    """Put an array on the devices of this process that ``sharding`` gives a part of it.

    Parameters
    ----------
    shape
        Shape of the whole array.
    dtype
        Type, which JAX may narrow.
    sharding
        Division of the first axis, or of none.
    write
        ``write(piece, start)`` fills zeros with the rows from ``start`` on; called once for each different piece.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype)

    def made(start: int, stop: int) -> np.ndarray:
        piece = aligned_zeros((stop - start, *shape[1:]) if shape else (), dtype)
        write(piece, start)
        return piece

    rows = shape[0] if shape else 0
    if sharding is None or isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return jax.device_put(made(0, rows), sharding)
    pieces: dict[tuple[int, int], np.ndarray] = {}
    arrays = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        start, stop, _ = index[0].indices(rows) if index else (0, 0, 1)
        if (start, stop) not in pieces:
            pieces[start, stop] = made(start, stop)
        arrays.append(jax.device_put(pieces[start, stop], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
