"""A disk without room is told in a sentence, and nothing is left on it."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from collections import namedtuple

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc import _files
from diffbio_sc.blocks.row_store import ArrayStore, RowStore
from diffbio_sc.blocks.shuffle import ColumnSpool, HeldPiece
from diffbio_sc.genome import columns

Usage = namedtuple("Usage", ["total", "used", "free"])
FREE = "2.0 MB were free, of which a quota may allow less"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where temporary files lie: two megabytes are free there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 2 * 10**6, 2 * 10**6))
    return tmp_path


def block(rows=1000, columns=400, seed=0):
    return np.random.default_rng(seed).random((rows, columns)).astype(np.float32)


def test_columns_that_wait_in_files_say_what_all_rows_take(place):
    with ColumnSpool([np.arange(200), np.arange(200, 400)], 0, rows=50_000) as spool:
        spool.deal(block(100))
        piece = 8 * 100_000 * 4 + 8 * 401  # 8 bytes an entry
        message = (
            rf"{place}.* has no room for temporary files of 3\.2 MB: {FREE}\. All 50,000 rows take about 160\.2 MB\. "
            r"Set TMPDIR to .*A quarter of settings\.block_bytes, 256,000,000, waits in memory"
        )
        assert piece > 2e6
        with pytest.raises(OSError, match=message) as caught:
            spool.deal(block())
    assert caught.value.errno == errno.ENOSPC
    assert list(place.iterdir()) == []


def test_a_task_names_the_folders_that_workers_share(place):
    piece = HeldPiece.cut(block(), np.arange(400))
    with pytest.raises(
        OSError, match=rf"{FREE}\. Set dask's 'temporary-directory', or else TMPDIR or settings"
    ) as caught:
        piece.save(place / "piece")
    assert list(place.iterdir()) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_a_piece_is_written_leaves_no_half_of_it(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    piece = HeldPiece.cut(block(), np.arange(400))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="has no room for temporary files of 3.2 MB") as caught:
        piece.save(tmp_path / "piece")
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_as_they_are(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        HeldPiece.cut(block(10), np.arange(400)).save(tmp_path / "piece")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of a file's size is POSIX's")
def test_a_write_that_stops_halfway_is_told(tmp_path):
    """The system ends the write: numpy raises an error without a number."""
    code = (
        "import resource, numpy as np\n"
        "from pathlib import Path\n"
        "from diffbio_sc.blocks.shuffle import HeldPiece\n"
        "piece = HeldPiece.cut(np.ones((1000, 400), np.float32), np.arange(400))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"piece.save(Path({str(tmp_path)!r}) / 'piece')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "has no room for temporary files of 3.2 MB" in run.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_rows_and_arrays_of_training_say_so(place):
    small, large = sp.csr_array(block(100)), sp.csr_array(block(5000))
    with pytest.raises(OSError, match=rf"no room for temporary files of 12\.0 MB: {FREE}"):
        RowStore.of([small, large], 400)
    with pytest.raises(OSError, match=rf"no room for temporary files of 8\.0 MB: {FREE}"):
        ArrayStore([block(10), block(5000)])
    counts = [np.ones((1500, 400), np.float32), np.full((1, 400), 0.5, np.float32)]
    with pytest.raises(OSError, match=rf"no room for temporary files of 2\.4 MB: {FREE}"):
        RowStore.of(counts, 400)


@pytest.mark.parametrize("shared", [False, True])
def test_mapped_columns_take_their_room_at_once(place, monkeypatch, shared):
    """A write to a mapped file without room would end the process."""
    reserved = []
    monkeypatch.setattr(
        columns.os, "posix_fallocate", lambda _, start, size: reserved.append((start, size)), raising=False
    )
    with columns.columns_on_disk(place if shared else None):
        kept = columns.new_column(400_000, np.int32)
        kept[:] = 7
        with pytest.raises(
            OSError, match=rf"no room for temporary files of 4\.0 MB: {FREE}\. Set {'dask' if shared else 'TMP'}"
        ):
            columns.new_column(1_000_000, np.int32)
    assert reserved == [(0, 1_600_000)]
    assert kept.sum() == 7 * 400_000


def test_a_call_without_room_leaves_the_object_as_it_was(place, monkeypatch):
    spots, _ = dbio.datasets.pbmc_tissue(n_spots=300)
    spots.write_h5ad(place / "spots.h5ad")
    backed = ad.read_h5ad(place / "spots.h5ad", backed="r")
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    before = [list(backed.obs), list(backed.var), list(backed.uns), list(backed.obsm)]
    with dbio.settings.override(block_bytes="1 MB"), pytest.raises(OSError, match="All 300 rows take about"):
        dbio.tl.spatial_genes(backed)
    assert [list(backed.obs), list(backed.var), list(backed.uns), list(backed.obsm)] == before
    assert [path.name for path in place.iterdir()] == ["spots.h5ad"]
    backed.file.close()


@pytest.mark.slow
def test_workers_without_room_say_so(tmp_path):
    """A real limit of the workers: what they write into a shared folder stops halfway."""
    da, distributed = pytest.importorskip("dask.array"), pytest.importorskip("distributed")
    from diffbio_sc.blocks.matrix import as_count_matrix

    def limit_files():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(limit_files)
        matrix = as_count_matrix(da.from_array(block(), chunks=(500, -1)))
        with pytest.raises(OSError, match=r"has no room for temporary files of 3\.2 MB: .* that all workers see"):
            matrix.map_columns(lambda piece, _: piece.shape, [np.arange(200), np.arange(200, 400)])
