from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.counts import sparse_rows
from diffbio_sc.numerics.counts.sparse_rows import (
    batch_capacity,
    drawn_capacity,
    place_sparse,
    stratified_capacity,
    stratified_order,
)
from diffbio_sc.training.batches import bucket_size

ROWS, COLUMNS, BATCH = 60, 40, 8

gather = jax.jit(sparse_rows.gather, static_argnames="capacity")
row_sums = jax.jit(sparse_rows.row_sums)
scatter_dense = jax.jit(sparse_rows.scatter_dense)
matmul = jax.jit(sparse_rows.matmul)


def make_matrix(rows=ROWS, columns=COLUMNS, density=0.2, seed=0, largest=30):
    random = np.random.default_rng(seed)
    counts = random.integers(1, largest, (rows, columns)) * (random.random((rows, columns)) < density)
    counts[::7] = 0  # empty rows, the first and others
    return sp.csr_matrix(counts.astype(np.float32))


@pytest.fixture(scope="module")
def matrix():
    return make_matrix()


@pytest.fixture(scope="module")
def entries(matrix):
    which = np.array([3, 0, 3, 59, 14, 20, 7, 31])
    return which, gather(place_sparse(matrix), which, capacity=300)


def test_gathered_rows_equal_scipy_in_batch_order(matrix, entries):
    which, entries = entries
    expected = matrix[which].tocoo()
    number = expected.nnz
    np.testing.assert_array_equal(entries.rows[:number], expected.row)
    np.testing.assert_array_equal(entries.columns[:number], expected.col)
    np.testing.assert_array_equal(entries.values[:number], expected.data)
    np.testing.assert_array_equal(entries.valid, np.arange(300) < number)
    np.testing.assert_array_equal(entries.values[number:], 0)
    assert (np.diff(entries.rows) >= 0).all()
    np.testing.assert_array_equal(scatter_dense(entries), matrix[which].toarray())
    np.testing.assert_array_equal(row_sums(entries), matrix[which].sum(1).A1)


@pytest.mark.parametrize("which", [[0, 7, 14], [59, 59, 59], [1, 60, 63], [63, 0, 1]])
def test_empty_rows_repeated_rows_and_rows_of_the_padding(matrix, which):
    entries = gather(place_sparse(matrix, n_rows=64), np.array(which), capacity=300)
    padded = np.zeros((64, COLUMNS), np.float32)
    padded[:ROWS] = matrix.toarray()
    np.testing.assert_array_equal(scatter_dense(entries), padded[which])


def test_a_batch_of_many_entries_is_gathered_as_scipy_does():
    matrix = sp.random_array((40, 20_000), density=0.6, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    which = np.array([7, 3, 39, 0, 21] * 6)
    found = sparse_rows.scatter_dense(gather(place_sparse(matrix), which, capacity=370_000))
    np.testing.assert_array_equal(found, matrix[which].toarray())


def test_capacity_may_be_exactly_full_and_never_drops(matrix):
    which = np.array([1, 2, 3])
    number = matrix[which].nnz
    full = gather(place_sparse(matrix), which, capacity=number)
    np.testing.assert_array_equal(scatter_dense(full), matrix[which].toarray())
    too_small = gather(place_sparse(matrix), which, capacity=number - 1)
    assert np.isnan(too_small.values).all()
    assert np.isnan(row_sums(too_small)).any()


@pytest.mark.parametrize("density", [0.02, 0.5])
@full_products()
def test_matmul_and_its_gradients_equal_the_dense_product(density):
    matrix = make_matrix(columns=400, density=density)
    which = np.arange(1, 1 + BATCH)
    capacity = max(matrix[which].nnz, 1)
    entries = gather(place_sparse(matrix), which, capacity=capacity)
    batch = matrix[which].toarray().astype(float)
    random = np.random.default_rng(1)
    dense, upstream = random.normal(size=(400, 5)), random.normal(size=(BATCH, 5))
    product, pull = jax.vjp(matmul, entries, jnp.asarray(dense, jnp.float32))
    np.testing.assert_allclose(product, batch @ dense, rtol=1e-4, atol=1e-4)
    to_entries, to_dense = pull(jnp.asarray(upstream, jnp.float32))
    np.testing.assert_allclose(to_dense, batch.T @ upstream, rtol=1e-4, atol=1e-4)
    expected = (upstream @ dense.T)[entries.rows, entries.columns]
    np.testing.assert_allclose(to_entries.values, expected, rtol=1e-4, atol=1e-4)


def test_gathering_works_under_vmap_and_scan(matrix):
    rows = place_sparse(matrix)
    which = np.arange(16).reshape(4, 4)
    sums = jax.vmap(lambda index: row_sums(gather(rows, index, capacity=100)))(which)
    np.testing.assert_array_equal(np.ravel(sums), matrix[:16].sum(1).A1)
    scanned = jax.lax.scan(lambda carry, index: (carry, row_sums(gather(rows, index, capacity=100))), 0, which)[1]
    np.testing.assert_array_equal(scanned, sums)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 255], np.uint8),
        ([1, 256], np.uint16),
        ([1, 65_536], np.float32),
        ([0.5, 2], np.float32),
        ([-1, 2], np.float32),
    ],
)
def test_values_are_stored_in_the_smallest_type_without_loss(values, dtype):
    matrix = sp.csr_matrix(np.array([values], np.float64))
    placed = place_sparse(matrix)
    assert placed.data.dtype == dtype
    entries = gather(placed, np.array([0]), capacity=2)
    assert entries.values.dtype == jnp.float32
    np.testing.assert_array_equal(entries.values, np.array(values, np.float32))


@pytest.mark.parametrize(("columns", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_column_indices_take_two_bytes_where_they_fit(columns, dtype):
    matrix = sp.csr_matrix(([1.0], ([0], [columns - 1])), shape=(1, columns))
    placed = place_sparse(matrix)
    assert placed.indices.dtype == dtype
    assert gather(placed, np.array([0]), capacity=1).columns[0] == columns - 1


def test_stored_zeros_and_sparse_arrays_are_taken(matrix):
    with_zeros = sp.csr_array(([0.0, 3.0], [1, 2], [0, 2]), shape=(1, 4))
    entries = gather(place_sparse(with_zeros), np.array([0]), capacity=4)
    np.testing.assert_array_equal(scatter_dense(entries), [[0, 0, 3, 0]])


def test_a_similar_size_meets_the_same_compiled_code():
    traces = []

    @jax.jit
    def total(rows, which):
        traces.append(rows.indptr.shape)
        return row_sums(gather(rows, which, capacity=200))

    matrix = make_matrix(rows=1000)
    for rows in (1000, 995, 980):
        total(place_sparse(matrix[:rows]), np.arange(4))
    assert len(traces) == 1
    assert traces[0] == (bucket_size(1000) + 1,)


def test_an_empty_matrix_has_empty_rows():
    entries = gather(place_sparse(sp.csr_matrix((3, 5))), np.array([0, 2]), capacity=1)
    np.testing.assert_array_equal(scatter_dense(entries), np.zeros((2, 5)))


def unsorted():
    return sp.csr_matrix((np.ones(3), np.array([0, 3, 1]), np.array([0, 1, 3])), shape=(2, 5))


def duplicated():
    return sp.csr_matrix((np.ones(3), np.array([0, 1, 1]), np.array([0, 1, 3])), shape=(2, 5))


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.eye(3), TypeError, "expected a scipy CSR matrix, found ndarray"),
        (sp.csc_matrix(np.eye(3)), TypeError, "found csc"),
        (unsorted(), ValueError, "row 1 breaks this"),
        (duplicated(), ValueError, "row 1 breaks this"),
        (sp.csr_matrix(np.array([[1.0, 0.0], [0.0, np.nan]])), ValueError, "first in row 1"),
    ],
)
def test_matrices_that_cannot_be_placed_are_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        place_sparse(matrix)


def test_too_few_rows_and_too_many_entries_are_refused(matrix):
    with pytest.raises(ValueError, match="n_rows is 59, the matrix has 60 rows"):
        place_sparse(matrix, n_rows=59)

    class Huge:
        format = "csr"
        shape = (2, 10)
        indptr = np.array([0, 5, 2**31], np.int64)

    with pytest.raises(ValueError, match="2147483648 entries"):
        place_sparse(Huge())


@pytest.mark.parametrize("batch_size", [1, 7, 60, 100])
def test_batch_capacity_bounds_the_worst_batch(batch_size):
    lengths = np.random.default_rng(0).integers(0, 50, 60)
    worst = np.resize(np.sort(lengths)[::-1], batch_size).sum()
    assert worst <= batch_capacity(lengths, batch_size) <= max(worst * 9 / 8, 1)


def test_a_batch_of_too_many_entries_is_refused():
    with pytest.raises(ValueError, match="choose a smaller batch_size"):
        batch_capacity(np.full(4, 2**30), 4)


@pytest.mark.parametrize(("size", "batch_size"), [(1000, 128), (1024, 128), (5, 8), (129, 128), (37, 5), (64, 1)])
def test_stratified_order_is_a_permutation_whose_batches_stay_below_the_capacity(size, batch_size):
    random = np.random.default_rng(size)
    bucket = bucket_size(size) + 3
    lengths = np.sort(random.lognormal(4, 1, size).astype(int))
    # A second matrix, whose rows are not in the order of their lengths.
    others = (lengths[::-1] * random.lognormal(0, 1, size)).astype(int)
    order_of = jax.jit(functools.partial(stratified_order, bucket=bucket, batch_size=batch_size))
    for seed in range(20):
        order = np.asarray(order_of(jax.random.key(seed), size))
        np.testing.assert_array_equal(np.sort(order[:size]), np.arange(size))
        # The last batch goes on from the first samples, as take_batch has it.
        batches = order[np.arange(-(-size // batch_size) * batch_size) % size].reshape(-1, batch_size)
        for values in (lengths, others):
            assert values[batches].sum(1).max() <= stratified_capacity(values, batch_size)
    if size >= batch_size:
        mean = lengths.mean() * batch_size
        assert stratified_capacity(lengths, batch_size) <= (mean + lengths.max()) * (1 + batch_size / size) * 9 / 8


def test_capacity_holds_for_a_short_last_batch_of_rows_in_any_order():
    """Six samples in batches of four: the last batch goes on from the first, and may hold both long rows."""
    lengths, size, batch_size = np.array([0, 5, 5, 0, 0, 0]), 6, 4
    order_of = jax.jit(functools.partial(stratified_order, bucket=size, batch_size=batch_size))
    orders = [np.asarray(order_of(jax.random.key(seed), size)) for seed in range(40)]
    batches = np.stack([order[np.arange(8) % size].reshape(2, batch_size) for order in orders])
    worst = lengths[batches].sum(-1).max()
    assert worst == 10
    capacity = stratified_capacity(lengths, batch_size)
    assert capacity == worst  # so small a number is its own bucket
    matrix = sp.csr_matrix(np.where(np.arange(5) < lengths[:, None], 1.0, 0.0))
    rows = place_sparse(matrix)
    total = jax.jit(lambda which: row_sums(gather(rows, which, capacity=capacity)).sum())
    found = [float(total(batch)) for batch in batches.reshape(-1, batch_size)]
    np.testing.assert_array_equal(found, lengths[batches].sum(-1).ravel())


def test_stratified_order_puts_each_sample_in_each_batch_equally_often():
    size, batch_size, rounds = 12, 4, 600
    order_of = jax.jit(functools.partial(stratified_order, bucket=12, batch_size=batch_size))
    orders = np.array([order_of(key, size) for key in jax.random.split(jax.random.key(0), rounds)])
    for sample in range(size):
        batch = np.nonzero(orders == sample)[1] // batch_size
        frequency = np.bincount(batch, minlength=3) / rounds
        assert np.abs(frequency - 1 / 3).max() < 5 * np.sqrt(2 / 9 / rounds)


@pytest.mark.parametrize(("size", "batch_size"), [(300, 64), (590, 64), (3000, 128)])
def test_one_capacity_for_nearly_all_draws(size, batch_size):
    """Of 500 draws of a tenth of the rows, each alone would need one of several buckets."""
    rng = np.random.default_rng(size)
    lengths = np.sort(rng.lognormal(5, 0.6, size).astype(int))
    capacity = drawn_capacity(lengths, batch_size, size // 10)
    needed = []
    for _ in range(500):
        out = np.zeros(size, bool)
        out[rng.choice(size, size // 10, replace=False)] = True
        needed.append(max(stratified_capacity(lengths[rows], batch_size) for rows in (out, ~out)))
    assert np.mean(np.array(needed) > capacity) <= 0.004
    assert capacity <= max(needed) * 9 / 8
    # The whole alone, of which nothing is drawn.
    assert stratified_capacity(lengths, batch_size) <= drawn_capacity(lengths, batch_size, 0)


def test_stratified_capacity_is_far_below_the_sum_of_the_longest_rows():
    lengths = np.sort(np.random.default_rng(0).lognormal(5, 0.6, 4000).astype(int))
    mean = lengths.mean() * 128
    assert stratified_capacity(lengths, 128) < 1.15 * mean
    assert batch_capacity(lengths, 128) > 2.5 * mean


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_rows_are_placed_in_an_order_whichever_piece_their_entries_fall_in(matrix, pieces, monkeypatch):
    monkeypatch.setattr(sparse_rows, "_CHUNK_ROWS", 11)
    order = np.random.default_rng(1).permutation(ROWS)
    expected = matrix[order]
    placed = place_sparse(matrix, order=order)
    np.testing.assert_array_equal(placed.indptr[: ROWS + 1], expected.indptr)
    np.testing.assert_array_equal(placed.indices[: matrix.nnz], expected.indices)
    np.testing.assert_array_equal(placed.data[: matrix.nnz], expected.data)
    assert not np.asarray(placed.data[matrix.nnz :]).any()
    # As each device writes its own part.
    size = -(-matrix.nnz // pieces) + 2
    found = []
    for start in range(0, pieces * size, size):
        part = np.zeros(size, np.float32)
        sparse_rows._write_entries(part, start, matrix.data, matrix.indptr, expected.indptr, order)
        found.append(part)
    found = np.concatenate(found)
    np.testing.assert_array_equal(found[: matrix.nnz], expected.data)
    assert not found[matrix.nnz :].any()


def test_room_and_type_are_those_asked_for_where_the_entries_fit(matrix):
    placed = place_sparse(matrix, room=matrix.nnz + 5, dtype=np.float32)
    assert placed.data.shape == (matrix.nnz + 5,)
    assert placed.data.dtype == np.float32
    np.testing.assert_array_equal(placed.data[: matrix.nnz], matrix.data)
    assert place_sparse(matrix, room=3).data.shape[0] >= matrix.nnz
