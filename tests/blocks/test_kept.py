"""What a pass has read is kept in files for the next ones: equal, small, and gone with the matrix."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.blocks import kept
from diffbio_sc.blocks.interface import as_working, bytes_of
from diffbio_sc.blocks.matrix import InMemory, as_count_matrix
from diffbio_sc.blocks.steps import ColumnSums, RowSums


def counts(rows=90, columns=17, seed=0):
    return np.random.default_rng(seed).poisson(0.6, (rows, columns)).astype(np.float32)


def with_stored_zeros():
    matrix = sp.csr_array(counts())
    matrix.data[::7] = 0
    return matrix


BLOCKS = {
    "counts": counts(),
    "sparse counts": sp.csr_array(counts()),
    "large": sp.csr_array(counts() * 300),
    "fractions": sp.csr_array(counts() / 3),
    "negative": -counts(),
    "missing": np.where(counts() > 0, np.nan, np.inf).astype(np.float32),
    "beyond float32": sp.csr_array(counts().astype(np.int64) * (2**24 + 1)),
    "many columns": sp.csr_array(([1.0], ([0], [2**17])), shape=(3, 2**18)),
    "stored zeros": with_stored_zeros(),
    "nothing": sp.csr_array((5, 4), dtype=np.float32),
    "no rows": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_come_back_as_they_were(name, tmp_path):
    block = as_working(BLOCKS[name])
    kept.keep(block, tmp_path / "kept")
    found = kept.load_kept(tmp_path / "kept")
    assert type(found) is type(block)
    assert found.shape == block.shape
    if not sp.issparse(block):
        assert found.dtype == block.dtype
        np.testing.assert_array_equal(found, block)
        found += 1  # it may be written to, as what was read may
        return
    for one, other in ((found.data, block.data), (found.indices, block.indices), (found.indptr, block.indptr)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found.has_canonical_format


def test_counts_take_three_bytes_an_entry(tmp_path):
    block = as_working(sp.csr_array(counts(2000, 200)))
    kept.keep(block, tmp_path / "kept")
    size = (tmp_path / "kept").stat().st_size
    assert 3 * block.nnz < size < 3 * block.nnz + 4 * 2001 + 1000 < bytes_of(block) / 2


@pytest.mark.parametrize("place", ["pickle.dump", "os.replace", "tempfile.mkstemp"])  # the last: no more files
def test_where_the_disk_is_full_nothing_is_kept(tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, full)
    kept.keep(counts(), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
    assert kept.file_at(tmp_path / "kept") is None


@pytest.mark.parametrize(("free", "number"), [(2**30 + 89 * 17, 0), (2**30 + 90 * 17, 1)])
def test_a_gigabyte_of_the_disk_stays_free(tmp_path, monkeypatch, free, number):
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    kept.keep(counts(), tmp_path / "kept")  # a byte each
    assert len(list(tmp_path.iterdir())) == number


class Counted:
    """A dense matrix in a file, which counts what is read of it."""

    def __init__(self, dataset):
        self.dataset, self.rows = dataset, 0
        self.shape, self.dtype, self.chunks = dataset.shape, dataset.dtype, dataset.chunks

    def __getitem__(self, index):
        self.rows += index.stop - index.start
        return self.dataset[index]


@pytest.fixture
def stored(tmp_path):
    """A matrix in a file, and its values."""
    values = counts()
    with h5py.File(tmp_path / "file", "w") as file:
        matrix = as_count_matrix(file.create_dataset("X", data=values, chunks=(20, 17)))
        matrix.matrix = Counted(matrix.matrix)
        yield matrix, values


def test_passes_after_the_first_read_what_it_kept(stored):
    matrix, values = stored
    assert matrix.keep() is matrix
    for _ in range(3):
        sums, rows = matrix.reduce(ColumnSums(), RowSums(), size=40)
        np.testing.assert_array_equal(sums, values.sum(0, dtype=np.float64))
        np.testing.assert_array_equal(rows, values.sum(1, dtype=np.float64))
    np.testing.assert_array_equal(np.concatenate(matrix.map(lambda _, block: block, 40)), values)
    assert matrix.matrix.rows == 90
    matrix.reduce(ColumnSums(), size=20)  # other blocks are read anew
    assert matrix.matrix.rows == 180


def test_a_pass_that_was_left_is_made_again(stored):
    matrix, values = stored
    matrix.keep()
    next(matrix.blocks(20))
    np.testing.assert_array_equal(np.concatenate([block for _, block in matrix.blocks(20)]), values)
    assert matrix.matrix.rows == 20 + 90


def test_files_go_with_the_matrix(stored, tmp_path, monkeypatch):
    matrix, values = stored
    monkeypatch.setattr(kept.tempfile, "tempdir", str(tmp_path))
    matrix.keep().column_sums()
    (folder,) = tmp_path.glob("diffbio-sc-*")
    assert len(os.listdir(folder)) == len(matrix.plan().tasks)
    folder = Path(folder)
    matrix._kept = None
    gc.collect()
    assert not folder.exists()


def test_without_being_asked_nothing_is_kept_and_of_memory_never(stored, tmp_path, monkeypatch):
    matrix, values = stored
    monkeypatch.setattr(kept.tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        matrix.column_sums()
    assert matrix.matrix.rows == 180
    InMemory(values).keep().column_sums()
    assert list(tmp_path.glob("diffbio-sc-*")) == []
