"""Samples on the device, and the rule by which an epoch walks through them.

Sample arrays are padded with zero rows to a bucket (:func:`~diffbio_sc.numerics.padding.bucket_size`), so that a data
set of a similar size meets the same compiled code. The rows of the padding are never read: epochs follow an index of
the real samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics.padding import bucket_size

WEIGHT_KEY = "sample_weight"
TRAINING_KEY = "is_training"
# Bytes: at multiples of it XLA takes memory of the host as it is.
_ALIGNMENT = 64


class SampleSet(NamedTuple):
    """Samples on the device.

    Attributes
    ----------
    samples
        Arrays with one row a sample, padded to a bucket.
    shared
        Arrays that every batch sees whole.
    index
        Rows of the samples in use, padded with zeros.
    size
        Number of samples in use.
    """

    samples: dict[str, Array]
    shared: dict[str, Array]
    index: Int[Array, " bucket"]
    size: int


def count_samples(data: Mapping[str, Any], sample_keys: Collection[str] | None, *, name: str) -> int:
    """Return the common length of the first axis of the sample arrays.

    Raises
    ------
    KeyError
        If a sample key is missing.
    TypeError
        If a value is sparse or does not hold numbers.
    ValueError
        If the lengths differ, or there is no sample.
    """
    keys = list(data) if sample_keys is None else list(sample_keys)
    missing = [key for key in keys if key not in data]
    if missing:
        raise KeyError(f"sample_keys {missing} are not in {name}; found the keys {sorted(map(str, data))}.")
    for key, value in data.items():
        if hasattr(value, "tocsr"):
            raise TypeError(f"{name}[{key!r}] is a scipy sparse matrix: pass {name}[{key!r}].toarray().")
        if not isinstance(value, jax.Array) and np.asarray(value).dtype.kind in "OSUMm":
            raise TypeError(f"{name}[{key!r}] must hold numbers, found dtype {np.asarray(value).dtype}.")
    lengths = {key: (np.shape(data[key]) or (None,))[0] for key in keys}
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            f"the sample arrays of {name} must have first axes of one length, found {lengths}. Name the arrays that "
            "have a sample axis in sample_keys; the others are given whole to every batch."
        )
    size = int(next(iter(lengths.values())))  # type: ignore[arg-type]
    if size == 0:
        raise ValueError(f"{name} holds no samples: the first axis of {keys} has length 0.")
    return size


def place_samples(
    data: Mapping[str, Any], sample_keys: Collection[str] | None, size: int, *, sharding: jax.sharding.Sharding
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Pad the sample arrays to their bucket and put everything on the device: ``samples, shared``."""
    rows = bucket_size(size)
    samples, shared = {}, {}
    for key, value in data.items():
        if sample_keys is not None and key not in sample_keys:
            shared[key] = jax.device_put(jnp.asarray(value), sharding)
            continue
        if isinstance(value, jax.Array):
            value = jnp.pad(value, [(0, rows - size)] + [(0, 0)] * (value.ndim - 1)) if rows > size else value
        else:
            value = padded_copy(np.asarray(value), rows)
        samples[key] = jax.device_put(value, sharding)
    return samples, shared


def padded_copy(array: np.ndarray, rows: int) -> np.ndarray:
    """Copy of an array with rows of zeros behind it, which starts where devices on the host use it without another."""
    shape = (rows, *array.shape[1:])
    size = int(np.prod(shape)) * array.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    padded = memory[start : start + size].view(array.dtype).reshape(shape)
    padded[: len(array)] = array
    return padded


def padded_index(rows: np.ndarray, *, bucket: int = 0, sharding: jax.sharding.Sharding) -> Int[Array, " bucket"]:
    """Put an index of samples on the device, padded to its bucket or to the larger one given."""
    index = np.zeros(max(bucket, bucket_size(len(rows))), np.int32)
    index[: len(rows)] = rows
    return jax.device_put(index, sharding)


def fingerprint(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return shape, dtype and checksum of each array, by which a resumed run knows its data again."""
    arrays = {key: np.asarray(value) for key, value in sorted(data.items())}
    return {key: [list(array.shape), str(array.dtype), zlib.crc32(array.tobytes())] for key, array in arrays.items()}


def split_samples(key: Array, size: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ``round(fraction * size)`` samples, at least one: ``training, validation`` rows, sorted."""
    held_out = max(round(fraction * size), 1)
    if held_out >= size:
        raise ValueError(
            f"validation_fraction {fraction} of {size} samples leaves none to train on: give more samples or a smaller "
            "fraction."
        )
    # Not ``jax.random.permutation``, which is compiled for each size; draws are for each bucket.
    order = np.argsort(np.asarray(jax.random.uniform(key, (bucket_size(size),)))[:size], kind="stable")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def epoch_order(key: Array, size: int | Int[Array, ""], bucket: int) -> Int[Array, " bucket"]:
    """Return a random order of ``0 ... size - 1`` in the first ``size`` of ``bucket`` entries.

    The order sorts ``jax.random.uniform(key, (bucket,))``, with the entries from ``size`` on kept last.
    """
    draws = jax.random.uniform(key, (bucket,))
    return jnp.argsort(jnp.where(jnp.arange(bucket) < size, draws, jnp.inf))


def take_batch(
    samples: Mapping[str, Array],
    shared: Mapping[str, Array],
    index: Int[Array, " bucket"],
    order: Int[Array, " bucket"],
    start: int | Int[Array, ""],
    batch_size: int,
    size: int | Int[Array, ""],
    *,
    weighted: bool,
    sharding: jax.sharding.Sharding | None,
) -> tuple[dict[str, Array], Float[Array, ""]]:
    """Gather the samples ``order[start : start + batch_size]`` and count them.

    Behind the last sample the batch goes on from the first ones, so that it never holds made-up values; if
    ``weighted``, ``batch["sample_weight"]`` is 0 there and 1 before (times the ``sample_weight`` of the data, if any).
    """
    positions = start + jnp.arange(batch_size)
    rows = jnp.take(index, jnp.take(order, positions % size))
    if sharding is not None:
        rows = jax.lax.with_sharding_constraint(rows, sharding)
    batch = {key: jnp.take(array, rows, axis=0) for key, array in samples.items()}
    real = (positions < size).astype(jnp.float32)
    if weighted:
        batch[WEIGHT_KEY] = real * batch[WEIGHT_KEY] if WEIGHT_KEY in batch else real
    return {**shared, **batch}, real.sum()
