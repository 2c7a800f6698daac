"""Sparse counts on the device: a CSR matrix whose rows are gathered, and multiplied, inside compiled code.

A minibatch of sparse rows has a different number of entries every time, compiled code has one shape. The entries of
a batch therefore lie in arrays of a fixed capacity, an upper bound for every batch that can come
(:func:`batch_capacity`, :func:`stratified_capacity`); the room behind them is marked and holds zeros. Nothing is ever
left out: rows that exceed the capacity turn all values of the batch into NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffbio_sc.numerics.padding import bucket_size, round_up
from diffbio_sc.numerics.placing import put_pieces

_MOST_ENTRIES = 2**31 - 1
_CHUNK = 1 << 22
_CHUNK_ROWS = 1 << 12
# Multiplications of a dense product in the time of one of a sparse product (one CPU core, 128 rows, 128 columns).
_DENSE_IS_FASTER = 25
_MOST_DRAWS, _DRAWN_ROWS = 64, 1 << 22  # fewer of many rows, whose draws differ less
_DEVIATIONS = 3.0  # one draw in a thousand needs more, if they are spread as a normal variable
_MOST_BLOCKS = 2048  # whose running sum is a comparison of each with each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseRows:
    """A CSR matrix on the device, in arrays padded to buckets; made by :func:`place_sparse`.

    Attributes
    ----------
    indptr
        Start of each row in the entries, and the end of the last; rows of the padding are empty.
    indices
        Column of each entry, ascending within a row.
    data
        Value of each entry. Whole numbers below 65,536 are stored as such.
    n_columns
        Number of columns; static, compiled code is specific to it.
    """

    indptr: Int[Array, " rows_and_one"]
    indices: Int[Array, " entries"]
    data: Array
    n_columns: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowEntries:
    """Entries of a batch of sparse rows, sorted by row, in arrays of a fixed capacity.

    Attributes
    ----------
    rows
        Position in the batch of each entry, ascending; the last position behind the last entry.
    columns
        Column of each entry; 0 behind the last entry.
    values
        Value of each entry; 0 behind the last entry. NaN everywhere if the capacity is exceeded.
    valid
        Whether there is an entry.
    n_rows, n_columns
        Shape of the batch as a dense matrix; static.
    """

    rows: Int[Array, " capacity"]
    columns: Int[Array, " capacity"]
    values: Float[Array, " capacity"]
    valid: Bool[Array, " capacity"]
    n_rows: int = dataclasses.field(metadata={"static": True})
    n_columns: int = dataclasses.field(metadata={"static": True})


def place_sparse(
    matrix: Any,
    *,
    n_rows: int | None = None,
    order: Int[np.ndarray, " rows"] | None = None,
    room: int | None = None,
    dtype: Any = None,
    sharding: jax.sharding.Sharding | None = None,
) -> SparseRows:
    """Put a scipy CSR matrix on the device, or divide its entries among several.

    Parameters
    ----------
    matrix
        CSR matrix or array in canonical form: columns ascending within each row, none twice. Stored zeros are allowed.
    n_rows
        Rows to make room for, at least those of the matrix; the rest is empty. By default the rows of the matrix,
        padded to a bucket. If given, there is room for the mean number of entries in each of them, rounded up to a
        bucket: a matrix of the same kind with some rows more or fewer, which has the same mean, then meets the same
        code.
    order
        Rows of the matrix in the order in which they are put there, each once. Default: as they are.
    room
        Entries to make room for, instead.
    dtype
        Type of the values, which must hold them. Default: the smallest that does.
    sharding
        Where to put the entries. If it divides them, each device has an equal part of them, and the starts of all rows.

    Returns
    -------
    The matrix, in arrays whose lengths are at most an eighth above those of the matrix (entries of ``n_rows`` rows: at
    most an eighth above theirs), so that a matrix of a similar size meets the same compiled code. An entry takes 3 to 8
    bytes.

    Raises
    ------
    TypeError
        If the matrix is not CSR.
    ValueError
        If it is not canonical, has 2**31 entries or more, holds values that are not finite, or ``n_rows`` is too small.
    """
    if getattr(matrix, "format", None) != "csr":
        found = getattr(matrix, "format", None) or type(matrix).__name__
        raise TypeError(f"expected a scipy CSR matrix, found {found}: pass scipy.sparse.csr_matrix(matrix).")
    size, n_columns = matrix.shape
    number = int(matrix.indptr[-1])
    if number > _MOST_ENTRIES:
        raise ValueError(
            f"the matrix has {number} entries; positions on the device are 32-bit, which allows {_MOST_ENTRIES}. Keep "
            "fewer columns, or train on a part of the rows."
        )
    indptr, indices, data = np.asarray(matrix.indptr), matrix.indices[:number], matrix.data[:number]
    _check_canonical(indptr, indices, n_columns)
    if not all(np.isfinite(chunk).all() for chunk in _chunks(data)):
        first = int(np.searchsorted(indptr, np.flatnonzero(~np.isfinite(data))[0], side="right")) - 1
        raise ValueError(f"the matrix holds NaN or infinite values, first in row {first}: replace or remove them.")
    rows = bucket_size(size) if n_rows is None else n_rows
    if rows < size:
        raise ValueError(f"n_rows is {n_rows}, the matrix has {size} rows: n_rows must not be less.")
    capacity = bucket_size(max(number, 1))
    if room is not None:
        capacity = max(room, capacity if number > room else 0)
    elif n_rows is not None:
        capacity = min(bucket_size(max(-(-number // max(size, 1)), 1)) * max(rows, 1), _MOST_ENTRIES)
    copies = sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        copies = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        capacity = round_up(capacity, sharding.num_devices)
    index_dtype = np.uint16 if n_columns <= 2**16 else np.int32
    starts = np.full(rows + 1, number, np.int32)
    starts[0] = 0
    starts[1 : size + 1] = indptr[1:] if order is None else np.cumsum(np.diff(indptr)[order])

    def entries(values: np.ndarray, dtype: Any) -> Array:
        def write(piece: np.ndarray, start: int) -> None:
            _write_entries(piece, start, values, indptr, starts[: size + 1], order)

        return put_pieces((capacity,), dtype, sharding, write)

    return SparseRows(
        indptr=put_pieces((rows + 1,), np.int32, copies, lambda piece, _: np.copyto(piece, starts)),
        indices=entries(indices, index_dtype),
        data=entries(data, _smallest_dtype(data) if dtype is None else dtype),
        n_columns=int(n_columns),
    )


def _write_entries(
    piece: np.ndarray,
    start: int,
    values: np.ndarray,
    indptr: np.ndarray,
    starts: np.ndarray,
    order: np.ndarray | None,
) -> None:
    """Write the entries from ``start`` on; ``starts`` says where those of each row in ``order`` begin."""
    stop = min(start + len(piece), int(starts[-1]))
    if order is None:
        piece[: max(stop - start, 0)] = values[start:stop]
        return
    row = max(int(np.searchsorted(starts, start, side="right")) - 1, 0)
    while row < len(order) and starts[row] < stop:
        last = min(row + _CHUNK_ROWS, len(order))
        lengths = np.diff(starts[row : last + 1])
        # Of each entry, where it lies: where its row begins, and how far it is from there.
        source = np.arange(starts[last] - starts[row]) + np.repeat(indptr[order[row:last]] - starts[row:last], lengths)
        source += starts[row]
        before, behind = max(start - int(starts[row]), 0), max(int(starts[last]) - stop, 0)
        found = values[source[before : len(source) - behind]]
        first = int(starts[row]) + before - start
        piece[first : first + len(found)] = found
        row = last


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of an array, so that what is computed of them stays small."""
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _smallest_dtype(data: np.ndarray) -> Any:
    """Type that holds the values without loss, or float32."""
    if len(data) == 0:
        return np.uint8
    if data.dtype.kind == "f" and not all(np.array_equal(np.rint(chunk), chunk) for chunk in _chunks(data)):
        return np.float32
    if data.min() < 0 or data.max() >= 2**16:
        return np.float32
    return np.uint8 if data.max() < 2**8 else np.uint16


def _check_canonical(indptr: np.ndarray, indices: np.ndarray, n_columns: int) -> None:
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ValueError("indptr of the matrix must begin with 0 and never fall: the matrix is damaged, build it anew.")
    if len(indices) == 0:
        return
    if indices.min() < 0 or indices.max() >= n_columns:
        raise ValueError(
            f"column indices must lie in 0 ... {n_columns - 1}, found {indices.min()} ... {indices.max()}."
        )
    falls = np.empty(len(indices) - 1, bool)
    for start in range(0, len(falls), _CHUNK):
        part = indices[start : start + _CHUNK + 1]
        np.less_equal(part[1:], part[:-1], out=falls[start : start + _CHUNK])
    starts = indptr[1:-1]
    falls[starts[(starts > 0) & (starts < len(indices))] - 1] = False
    if falls.any():
        first = int(np.searchsorted(indptr, np.flatnonzero(falls)[0], side="right")) - 1
        raise ValueError(
            f"columns must ascend within each row and none come twice; row {first} breaks this. Call "
            "matrix.sum_duplicates(), which sorts too."
        )


def _take(array: Array, index: Int[Array, " n"]) -> Array:
    """Rows of an array at indices that are known to be in range."""
    return jnp.asarray(array).at[index].get(mode="promise_in_bounds")


def gather(
    rows: SparseRows,
    which: Int[Array, " batch"],
    *,
    capacity: int,
    take: Callable[[Array, Array], Array] = _take,
) -> RowEntries:
    """Gather rows of the matrix, in the order of ``which``.

    ``which`` are rows of the matrix or of its padding; ``capacity`` must be an upper bound of their number of entries.
    If it is not, the values are all NaN. ``take(array, index)`` looks up entries, where they are divided among devices.
    """
    starts = jnp.take(rows.indptr, which)
    lengths = jnp.take(rows.indptr, which + 1) - starts
    batch = len(which)
    number = jnp.arange(batch)
    ends = jnp.where(number[:, None] >= number, lengths, 0).sum(1)
    position = jnp.arange(capacity, dtype=jnp.int32)
    # The row of a position is the number of rows that end before it.
    row = _counted(jnp.zeros(capacity).at[ends[:-1]].add(1.0, mode="drop")).astype(jnp.int32)
    valid = position < ends[-1]
    source = jnp.where(valid, position + _take(starts - (ends - lengths), row), 0)
    values = jnp.where(valid, take(rows.data, source).astype(jnp.float32), 0.0)
    return RowEntries(
        rows=jnp.where(valid, row, batch - 1),
        columns=jnp.where(valid, take(rows.indices, source).astype(jnp.int32), 0),
        values=jnp.where(ends[-1] > capacity, jnp.nan, values),
        valid=valid,
        n_rows=batch,
        n_columns=rows.n_columns,
    )


def _counted(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Running sum of small whole numbers; as products with triangles, which compile faster than ``cumsum``."""
    width = 128
    blocks = jnp.pad(values, (0, -len(values) % width)).reshape(-1, width)
    within = jnp.matmul(blocks, np.triu(np.ones((width, width), np.float32)), precision="highest")
    if len(blocks) > _MOST_BLOCKS:
        before = _counted(within[:, -1]) - within[:, -1]
    else:
        number = jnp.arange(len(blocks))
        before = jnp.where(number[:, None] > number, within[:, -1], 0.0).sum(1)
    return (within + before[:, None]).reshape(-1)[: len(values)]


def row_sums(entries: RowEntries, values: Float[Array, " capacity"] | None = None) -> Float[Array, " batch"]:
    """Sum ``values`` (by default those of the entries) over the entries of each row."""
    if values is None:
        values = entries.values
    values = jnp.where(entries.valid, values, 0.0)
    return jax.ops.segment_sum(values, entries.rows, num_segments=entries.n_rows, indices_are_sorted=True)


def scatter_dense(entries: RowEntries) -> Float[Array, "batch columns"]:
    """Write the batch as a dense matrix."""
    shape = (entries.n_rows, entries.n_columns)
    return jnp.zeros(shape, entries.values.dtype).at[entries.rows, entries.columns].add(entries.values)


def matmul(entries: RowEntries, dense: Float[Array, "columns k"]) -> Float[Array, "batch k"]:
    """Multiply the batch of sparse rows by a dense matrix; differentiable in both.

    Above a share of entries the batch, though never the whole data, is written out: a dense product does some 25 times
    as many multiplications in the same time.
    """
    if _DENSE_IS_FASTER * len(entries.values) > entries.n_rows * entries.n_columns:
        return scatter_dense(entries) @ dense
    terms = entries.values[:, None] * _take(dense, entries.columns)
    return jax.ops.segment_sum(terms, entries.rows, num_segments=entries.n_rows, indices_are_sorted=True)


def batch_capacity(row_lengths: np.ndarray, batch_size: int) -> int:
    """Entries that a batch of ``batch_size`` rows can have at most (:func:`batch_entries`), rounded up to a bucket.

    This is the sum of the longest rows, often two to three times the entries of an average batch. Batches that follow
    :func:`stratified_order` need hardly more than the average: see :func:`stratified_capacity`.
    """
    return capacity_of(batch_entries(row_lengths, batch_size))


def batch_entries(row_lengths: np.ndarray, batch_size: int) -> int:
    """Entries that a batch of ``batch_size`` rows can have at most.

    The rows are different, or each comes as often as the others, or once more, in a batch larger than the data.
    """
    lengths = np.asarray(row_lengths, np.int64)
    # A batch longer than the data goes through all rows again. The bound is exact: a looser one, such as the longest
    # row in place of each that comes again, hangs on single rows, and other held-out ones would compile code anew.
    times, rest = divmod(batch_size, max(len(lengths), 1))
    longest = np.partition(lengths, len(lengths) - rest)[len(lengths) - rest :] if rest else lengths[:0]
    return times * int(lengths.sum()) + int(longest.sum())


def capacity_of(total: int) -> int:
    """Room for the entries of a batch: as many, rounded up to a bucket."""
    if total > _MOST_ENTRIES:
        raise ValueError(f"a batch can have {total} entries, more than {_MOST_ENTRIES}: choose a smaller batch_size.")
    return bucket_size(max(total, 1))


def stratified_capacity(row_lengths: np.ndarray, batch_size: int) -> int:
    """Entries that a batch of :func:`stratified_order` can have at most (:func:`stratified_entries`), in a bucket.

    ``row_lengths`` are in the order of the samples. The bound is the sum of the longest row of each stratum: for
    samples sorted by these lengths at most the average batch plus one longest row, if the strata are of equal size.
    It holds in any order; several matrices of the same samples are best sorted by the sum of their lengths.
    """
    return capacity_of(stratified_entries(row_lengths, batch_size))


def drawn_capacity(row_lengths: np.ndarray, batch_size: int, drawn: int) -> int:
    """Capacity, by :func:`stratified_order`, for ``drawn`` rows taken out at random and for those that are left.

    It hangs on the rows alone, not on the draw, so that all draws meet the same compiled code: three standard
    deviations above the mean of what some draws need. One that needs more yet has to be given it.
    """
    lengths, rng = np.asarray(row_lengths, np.int64), np.random.default_rng(0)
    needed = np.empty((2, max(8, min(_MOST_DRAWS, _DRAWN_ROWS // max(len(lengths), 1)))))
    for number in range(needed.shape[1]):
        out = np.zeros(len(lengths), bool)
        out[rng.choice(len(lengths), drawn, replace=False)] = True
        needed[:, number] = [stratified_entries(lengths[rows], batch_size) for rows in (~out, out)]
    usual = needed.mean(1) + _DEVIATIONS * needed.std(1, ddof=1)
    return capacity_of(int(min(usual.max(), batch_size * lengths.max(initial=0))))


def stratified_entries(row_lengths: np.ndarray, batch_size: int) -> int:
    """Entries that a batch of :func:`stratified_order` can have at most, of rows in the order of the samples."""
    lengths = np.asarray(row_lengths, np.int64)
    if len(lengths) < batch_size:
        # One batch, in the order of the rows, which begins anew from the first.
        times, rest = divmod(batch_size, max(len(lengths), 1))
        return int(times * lengths.sum() + lengths[:rest].sum())
    starts = np.arange(batch_size) * len(lengths) // batch_size
    longest = np.maximum.reduceat(lengths, starts)
    # A short last batch has one sample of each of the larger strata, then goes on through the first batch.
    batches, rest = divmod(len(lengths), batch_size)
    larger = np.diff(starts, append=len(lengths)) > batches
    last = longest[larger].sum() + longest[: batch_size - rest].sum() if rest else 0
    return int(max(longest.sum(), last))


def stratified_order(key: Array, size: int | Int[Array, ""], bucket: int, batch_size: int) -> Int[Array, " bucket"]:
    """Return a random order of ``0 ... size - 1`` in which each batch has one sample of every stratum.

    The strata are ``batch_size`` runs of neighbours of (nearly) equal size. With samples sorted by their row lengths,
    each batch has short and long rows alike, so that all batches have nearly the same number of entries
    (:func:`stratified_capacity` is a strict bound, also for a short last batch that goes on from the first samples).
    Every sample comes once, and is in each of the full batches with the same probability. Otherwise as
    :func:`~diffbio_sc.training.batches.epoch_order`.
    """
    if bucket * batch_size >= 2**32:
        raise ValueError(f"{bucket} samples in batches of {batch_size} exceed 32-bit arithmetic: use smaller batches.")
    rank = jnp.arange(bucket, dtype=jnp.uint32)
    size = jnp.asarray(size, jnp.uint32)
    real = rank < size
    stratum = ((rank + 1) * batch_size - 1) // size
    # Within its stratum, a sample's place in a random order is the batch it goes to.
    shuffled = jnp.lexsort((jax.random.uniform(key, (bucket,)), jnp.where(real, stratum, batch_size)))
    place = rank - stratum * size // batch_size
    # Within a batch the strata ascend: what a short last batch repeats are the shortest rows of the first.
    goal = jnp.where(real, place * batch_size + stratum, jnp.uint32(2**32 - 1))
    return jnp.take(shuffled, jnp.argsort(goal))
