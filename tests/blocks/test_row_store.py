"""Rows in temporary files are those that were written, in any order, and gone with the object."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.blocks.row_store import ArrayStore, RowStore


def cut(matrix, size=70):
    return (matrix[start : start + size] for start in range(0, matrix.shape[0], size))


@pytest.fixture
def matrix():
    random = np.random.default_rng(0)
    counts = random.integers(1, 9, (500, 60)) * (random.random((500, 60)) < 0.2)
    counts[::9] = 0
    counts[400, 3], counts[450, 4] = 300, 70_000  # each needs a larger type than what came before
    return sp.csr_array(counts.astype(np.float32))


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(37, 222),
        slice(0, 0),
        np.array([3, 4, 5, 300, 301, 499]),
        np.array([7, 7, 2, 450, 0, 449]),
        np.arange(500) % 3 == 0,
        np.zeros(0, int),
    ],
)
@pytest.mark.parametrize("most", [1, 100, 1 << 22])
def test_rows_are_those_of_the_matrix(matrix, rows, most, monkeypatch):
    monkeypatch.setattr("diffbio_sc.blocks.row_store._MOST_READ", most)
    store = RowStore.of(cut(matrix), 60)
    found = store[rows]
    assert found.dtype == np.float32
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), matrix[rows].toarray())


def test_sums_and_numbers_of_entries_are_known_without_reading(matrix):
    store = RowStore.of(cut(matrix), 60)
    shutil.rmtree(store._folder.path)
    assert store.shape == (500, 60)
    assert store.nnz == matrix.nnz
    assert store.sum() == matrix.sum()
    np.testing.assert_array_equal(store.sum(1), matrix.sum(1))
    np.testing.assert_array_equal(store.lengths, np.diff(matrix.indptr))
    with pytest.raises(ValueError, match="axis must be 1 or None, found 0"):
        store.sum(0)


def test_rows_may_be_placed_elsewhere_and_missing_ones_are_empty(matrix):
    rows = np.array([5, -1, 400, 0, -1])
    store = RowStore.of(cut(matrix), 60).placed(rows)
    expected = np.where((rows >= 0)[:, None], matrix.toarray()[rows], 0)
    np.testing.assert_array_equal(store.to_memory().toarray(), expected)
    np.testing.assert_array_equal(store[np.array([4, 2])].toarray(), expected[[4, 2]])
    np.testing.assert_array_equal(store.sum(1), expected.sum(1))
    np.testing.assert_array_equal(store.lengths, (expected > 0).sum(1))
    np.testing.assert_array_equal(store.dense()[:], expected)


@pytest.mark.parametrize("value", [-1.0, 0.5, 2.0**16])
def test_values_that_no_small_type_holds_are_kept(matrix, value):
    matrix.data[-1] = value
    store = RowStore.of(cut(matrix), 60)
    np.testing.assert_array_equal(store.to_memory().data, matrix.data)


def test_an_entry_takes_three_bytes_and_the_files_go_with_the_object(matrix):
    matrix.data[:] = 1
    store = RowStore.of(cut(matrix), 60)
    folder = store._folder.path
    assert sum(file.stat().st_size for file in folder.iterdir()) == 3 * matrix.nnz
    view = store.placed(np.arange(10))
    del store
    assert view.to_memory().shape == (10, 60)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        del view
    assert not folder.exists()
    assert told == []


def test_blocks_of_any_kind_are_written_and_stay_as_they_are(matrix):
    unsorted = sp.csr_matrix(matrix[70:140].toarray()[:, ::-1])[:, ::-1]
    unsorted.has_sorted_indices = False
    zeros = sp.csr_array(np.ones((70, 60)))
    zeros.data[:] = matrix[140:210].toarray().ravel()
    blocks = [matrix[:70].toarray(), unsorted, zeros, sp.csc_array(matrix[210:].astype(np.int64))]
    store = RowStore.of(iter(blocks), 60)
    np.testing.assert_array_equal(store.to_memory().toarray(), matrix.toarray())
    assert store.nnz == matrix.nnz
    assert zeros.nnz == 70 * 60
    with pytest.raises(ValueError, match="a block of rows has 59 columns, 60 were announced"):
        RowStore.of([matrix[:, :59]], 60)


@pytest.mark.parametrize("rows", [[], [3], [0, 1, 2, 9, 30, 31, 98, 99], list(range(100))])
def test_rows_of_an_array_are_those_that_were_written(rows):
    array = np.random.default_rng(0).normal(size=(100, 2, 5)).astype(np.float32)
    store = ArrayStore(array[start : start + 30] for start in range(0, 100, 30))
    np.testing.assert_array_equal(store[np.array(rows, int)], array[rows])
