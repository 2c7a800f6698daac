"""Samples on the device, and the rule by which an epoch walks through them.

Sample arrays are padded with zero rows to a bucket (:func:`~diffbio_sc.numerics.padding.bucket_size`), so that a data
set of a similar size meets the same compiled code. The rows of the padding are never read: epochs follow an index of
the real samples.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics.counts.sparse_rows import SparseRows, gather, place_sparse
from diffbio_sc.numerics.padding import bucket_size, round_up
from diffbio_sc.numerics.placing import put_pieces
from diffbio_sc.training.devices import Placement, take_rows

WEIGHT_KEY = "sample_weight"
TRAINING_KEY = "is_training"
_CHUNK = 1 << 22  # values that are put in order at a time


class Samples(NamedTuple):
    """Rows of a matrix as samples, in an order of their own: put on the devices in it, without a copy on the host.

    Attributes
    ----------
    values
        An array, or a CSR matrix, of which a batch holds the entries
        (:class:`~diffbio_sc.numerics.counts.sparse_rows.RowEntries`).
    order
        Row of each sample; None if they are as they come.
    capacity
        Entries that a batch has at most; of a CSR matrix.
    room
        Entries to make room for, of a CSR matrix; None for those of its padded rows.
    dtype
        Type of the values of a CSR matrix on the devices, which must hold them; None for the smallest that does.
    """

    values: Any
    order: np.ndarray | None = None
    capacity: int = 0
    room: int | None = None
    dtype: Any = None

    @property
    def is_sparse(self) -> bool:
        """Whether batches hold entries."""
        return hasattr(self.values, "tocsr")

    def arrays(self) -> list[np.ndarray]:
        """Return all that tells the samples from others."""
        order = [] if self.order is None else [self.order]
        if not self.is_sparse:
            return [np.asarray(self.values), *order]
        return [self.values.indptr, self.values.indices, self.values.data, *order]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlacedEntries:
    """Sparse samples on the devices.

    Attributes
    ----------
    rows
        The samples.
    capacity
        Entries that a batch has at most; static.
    """

    rows: SparseRows
    capacity: int = dataclasses.field(metadata={"static": True})


class SampleSet(NamedTuple):
    """Samples on the devices.

    Attributes
    ----------
    samples
        Arrays with one row a sample, or the entries of sparse ones, padded to a bucket; divided among the devices.
    shared
        Arrays that every batch sees whole.
    index
        Rows of the samples in use, padded with zeros.
    size
        Number of samples in use.
    """

    samples: dict[str, Array | PlacedEntries]
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
    plain = {key: value for key, value in data.items() if not isinstance(value, Samples)}
    for key, value in plain.items():
        if hasattr(value, "tocsr"):
            raise TypeError(f"{name}[{key!r}] is a scipy sparse matrix: pass {name}[{key!r}].toarray().")
        if not isinstance(value, jax.Array) and np.asarray(value).dtype.kind in "OSUMm":
            raise TypeError(f"{name}[{key!r}] must hold numbers, found dtype {np.asarray(value).dtype}.")
    lengths = {key: (np.shape(data[key]) or (None,))[0] if key in plain else data[key].values.shape[0] for key in keys}
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
    data: Mapping[str, Any],
    sample_keys: Collection[str] | None,
    size: int,
    *,
    placement: Placement,
    rows: int | None = None,
    blank: bool = False,
) -> tuple[dict[str, Array | PlacedEntries], dict[str, Array]]:
    """Put everything on the devices, the sample arrays padded to their bucket or to ``rows``: ``samples, shared``.

    ``blank`` leaves out the values of dense arrays of the host: zeros that nothing has touched take no memory.
    """
    rows = round_up(bucket_size(size) if rows is None else rows, placement.devices)
    samples: dict[str, Array | PlacedEntries] = {}
    shared = {}
    for key, value in data.items():
        if sample_keys is not None and key not in sample_keys:
            shared[key] = placement.put(jnp.asarray(value))
        elif isinstance(value, jax.Array) and placement.samples.is_fully_addressable:
            value = jnp.pad(value, [(0, rows - size)] + [(0, 0)] * (value.ndim - 1)) if rows > size else value
            samples[key] = jax.device_put(value, placement.samples)
        elif isinstance(value, Samples) and value.is_sparse:
            matrix, order, capacity, room, dtype = value
            placed = place_sparse(matrix, n_rows=rows, order=order, room=room, dtype=dtype, sharding=placement.samples)
            samples[key] = PlacedEntries(placed, capacity)
        else:
            values, order = value[:2] if isinstance(value, Samples) else (value, None)
            samples[key] = _put_samples(np.asarray(values), order, rows, placement.samples, blank=blank)
    return samples, shared


def dense_bytes(data: Mapping[str, Any]) -> int:
    """Return the bytes of the dense arrays of the host."""
    arrays = [value.values if isinstance(value, Samples) else value for value in data.values()]
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _put_samples(
    values: np.ndarray, order: np.ndarray | None, rows: int, sharding: jax.sharding.Sharding, *, blank: bool
) -> Array:
    """Samples with zeros behind them."""
    number = max(_CHUNK // max(values[:1].size, 1), 1)

    def write(piece: np.ndarray, start: int) -> None:
        if blank:
            return
        for first in range(start, min(start + len(piece), len(values)), number):
            part = slice(first, min(first + number, start + len(piece)))
            taken = values[part] if order is None else values[order[part]]
            piece[first - start : first - start + len(taken)] = taken

    return put_pieces((rows, *values.shape[1:]), values.dtype, sharding, write)


def padded_index(rows: np.ndarray, *, bucket: int = 0, placement: Placement) -> Int[Array, " bucket"]:
    """Put an index of samples on the devices, padded to its bucket or to the larger one given."""
    index = np.zeros(max(bucket, bucket_size(len(rows))), np.int32)
    index[: len(rows)] = rows
    return placement.put(index)


def fingerprint(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return shape, dtype and checksum of each array, by which a resumed run knows its data again."""
    arrays: dict[str, np.ndarray] = {}
    for key, value in sorted(data.items()):
        if isinstance(value, Samples):
            arrays |= {f"{key}/{number}": np.asarray(array) for number, array in enumerate(value.arrays())}
        else:
            arrays[key] = np.asarray(value)
    return {
        key: [list(array.shape), str(array.dtype), zlib.crc32(np.ascontiguousarray(array))]
        for key, array in arrays.items()
    }


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
    samples: Mapping[str, Array | PlacedEntries],
    shared: Mapping[str, Array],
    index: Int[Array, " bucket"],
    order: Int[Array, " bucket"],
    start: int | Int[Array, ""],
    batch_size: int,
    size: int | Int[Array, ""],
    *,
    weighted: bool,
    sharding: jax.sharding.Sharding | None,
    divided: bool = True,
) -> tuple[dict[str, Any], Float[Array, ""]]:
    """Gather the samples ``order[start : start + batch_size]`` and count them.

    Behind the last sample the batch goes on from the first ones, so that it never holds made-up values; if
    ``weighted``, ``batch["sample_weight"]`` is 0 there and 1 before (times the ``sample_weight`` of the data, if any).
    Where the samples lie on several devices (``sharding``), the batch is ``divided`` among them.
    """
    positions = start + jnp.arange(batch_size)
    rows = jnp.take(index, jnp.take(order, positions % size))
    batch: dict[str, Any] = {}
    for key, array in samples.items():
        if isinstance(array, PlacedEntries):
            take = functools.partial(take_rows, sharding=sharding)
            batch[key] = gather(array.rows, rows, capacity=array.capacity, take=take)
            continue
        batch[key] = take_rows(array, rows, sharding)
        if sharding is not None and divided:
            batch[key] = jax.lax.with_sharding_constraint(batch[key], sharding)
    real = (positions < size).astype(jnp.float32)
    if weighted:
        batch[WEIGHT_KEY] = real * batch[WEIGHT_KEY] if WEIGHT_KEY in batch else real
    return {**shared, **batch}, real.sum()
