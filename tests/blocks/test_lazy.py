"""Lazy matrices: what is read where, on which workers, and what happens when a chunk or a worker is lost."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc._settings import settings
from diffbio_sc.blocks import cluster as engine
from diffbio_sc.blocks import lazy as lazy_module
from diffbio_sc.blocks.matrix import as_count_matrix
from diffbio_sc.blocks.shuffle import ColumnSpool, HeldPiece, assemble
from diffbio_sc.blocks.steps import ColumnSums, RowSums

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
lazy_blocks = pytest.importorskip("lazy_blocks", exc_type=ImportError)


def values(rows=240, columns=23, seed=0):
    return np.random.default_rng(seed).poisson(0.6, (rows, columns)).astype(np.float32)


def test_without_a_client_blocks_are_read_in_this_thread(tmp_path):
    array = values()
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log"))
    assert engine.active_client() is None
    sums, rows = matrix.reduce(ColumnSums(), RowSums(), size=50)
    np.testing.assert_array_equal(sums, array.sum(0, dtype=float))
    np.testing.assert_array_equal(rows, array.sum(1))
    threads = {path.name.split("-")[2] for path in (tmp_path / "log").iterdir()}
    assert threads == {str(threading.get_ident())}
    assert lazy_blocks.reads(tmp_path / "log").tolist() == [1] * 12


def test_results_are_bit_equal_here_and_on_workers(workers, tmp_path):
    array = np.random.default_rng(1).lognormal(size=(240, 23)).astype(np.float32)
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log"))
    blocks = [np.array([5, 2]), np.array([11]), np.arange(12, 23)]
    here = (
        matrix.reduce(lazy_blocks.Rounded(), size=50)[0],
        matrix.map(lazy_blocks.block_sum, 50),
        matrix.map_columns(lazy_blocks.total, blocks),
    )
    with workers.as_current():
        assert engine.active_client() is workers
        np.testing.assert_array_equal(matrix.reduce(lazy_blocks.Rounded(), size=50)[0], here[0])
        assert matrix.map(lazy_blocks.block_sum, 50) == here[1]
        assert matrix.map_columns(lazy_blocks.total, blocks) == here[2]
        np.testing.assert_array_equal(
            matrix.take(np.array([3, 44, 239]), np.array([4, 1])), array[[3, 44, 239]][:, [4, 1]]
        )
    assert here[2][0] == (pytest.approx(array[:, [5, 2]].sum(), rel=1e-5), (240, 2), [5, 2])
    assert lazy_blocks.reads(tmp_path / "log").max() == 7  # 3 passes here, 3 there, the taken rows
    assert engine.active_client() is None


def test_pieces_go_between_workers_where_they_share_no_folder(workers, tmp_path, monkeypatch):
    array = values()
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log"))
    blocks = [np.array([5, 2]), np.arange(12, 23)]
    monkeypatch.setattr(engine, "_sees", lambda folder, token: False)
    with workers.as_current(), engine.shared_folder(workers) as folder:
        assert folder is None
        found = matrix.map_columns(lazy_blocks.total, blocks)
    assert [one[0] for one in found] == [array[:, block].sum() for block in blocks]
    assert set(lazy_blocks.reads(tmp_path / "log").tolist()) == {1}


def test_the_shared_folder_is_seen_by_all_and_removed(workers):
    with engine.shared_folder(workers) as folder:
        assert all(workers.run(os.path.isdir, str(folder)).values())
    assert not folder.exists()


@pytest.mark.parametrize("shared", [True, False])
def test_items_are_worked_on_where_blocks_are(workers, tmp_path, monkeypatch, shared):
    array, items = values(), list(range(1, 9))
    if not shared:
        monkeypatch.setattr(engine, "_sees", lambda folder, token: False)
    lazy = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log"))
    function = lazy_blocks.Scaled(array, tmp_path / "dead", fatal=5)

    def run(matrix, function, items):
        found = matrix.map_items(function, items, description="Items of work")
        for item, (_, product) in zip(items, found, strict=True):
            np.testing.assert_array_equal(product, array * item)
        return {process for process, _ in found}

    there = set(workers.run(os.getpid).values())
    with workers.as_current():
        assert run(as_count_matrix(array), lazy_blocks.Scaled(array), items) == {os.getpid()}
        processes = run(lazy, lazy_blocks.Scaled(array), items)
        assert processes
        assert processes <= there
        assert os.getpid() not in run(lazy, function, items)  # a worker is lost on the way
        assert (tmp_path / "dead").exists()
        assert lazy.map_items(function, [], description="Nothing") == []
        with pytest.raises(ZeroDivisionError, match="an item of nothing"):
            lazy.map_items(function, [1, 0, 2], description="Items of work")
    assert run(lazy, lazy_blocks.Scaled(array), items) == {os.getpid()}
    assert not list((tmp_path / "log").iterdir())


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("stage", ["map", "sums", "cut", "columns"])
def test_a_lost_worker_changes_nothing(workers, tmp_path, stage, keeps):
    array = values(13_200)
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log", 1100))
    if keeps:
        matrix.keep()
    blocks = [np.array([5, 2]), np.array([11]), np.arange(12, 23)]
    sums = [array[:, block].sum() for block in blocks]
    mark = tmp_path / "dead"
    with workers.as_current():
        if stage == "map":
            found = matrix.map(lazy_blocks.Dies(mark, 9900, lazy_blocks.block_sum))
            assert found == [(start, float(array[start : start + 1100].sum())) for start in range(0, 13_200, 1100)]
        elif stage == "sums":
            np.testing.assert_array_equal(matrix.reduce(lazy_blocks.DyingSums(mark, 9900))[0], array.sum(0))
        elif stage == "cut":
            total = array[9900:11_000].sum()
            matrix.matrix = matrix.matrix.map_blocks(lazy_blocks.dying_chunk, str(mark), total, dtype=np.float32)
            assert [one[0] for one in matrix.map_columns(lazy_blocks.total, blocks)] == sums
        else:
            found = matrix.map_columns(lazy_blocks.Dies(mark, 12, lazy_blocks.total), blocks)
            assert [one[0] for one in found] == sums
    assert mark.exists()
    again = lazy_blocks.reads(tmp_path / "log", 1100) - 1
    if stage == "columns":  # the pieces lie in a folder
        assert not again.any()
    elif keeps:  # the chunk in work, if it was being read
        assert again.tolist() == [0] * 9 + [int(stage == "cut")] + [0] * 2
    else:  # and others of which the results were not yet fetched: how many is a matter of time
        assert again.min() >= 0
        assert again.max() == again[9] == 1
    workers.wait_for_workers(2, timeout=300)


@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_chunk_that_cannot_be_read_is_named(workers, tmp_path, where):
    matrix = as_count_matrix(lazy_blocks.lazy(values(), tmp_path / "log", trouble=140))
    message = r"chunk \(7, 0\) of the dask array .*, rows 140 to 159 and columns 0 to 22, could not be read: OSError: "
    passes = (
        lambda: matrix.reduce(ColumnSums()),
        lambda: matrix.map(lazy_blocks.block_sum),
        lambda: matrix.map_columns(lazy_blocks.total, [np.arange(3), np.arange(3, 5)]),
        lambda: matrix.take(np.array([150])),
    )
    for one in passes:
        with contextlib.ExitStack() as stack:
            if where == "workers":
                stack.enter_context(workers.as_current())
            with pytest.raises(RuntimeError, match=message + "checksum does not match"):
                one()


def test_the_version_of_scipy_is_looked_up_once_for_all_chunks(monkeypatch):
    sparse_dataset = pytest.importorskip("anndata._core.sparse_dataset")
    asked = []

    def version(name):
        asked.append(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(sparse_dataset, "version", version)
    matrix = as_count_matrix(da.from_array(values(), chunks=(20, 23)))
    for _ in range(2):
        np.testing.assert_array_equal(matrix.read(0, 20), values()[:20])
        assert [sparse_dataset.version("scipy") for _ in range(3)] == ["1.0"] * 3
    assert asked == ["scipy"]


@pytest.mark.parametrize("name", ["absent", "its own"])
def test_other_versions_of_anndata_are_left_alone(monkeypatch, name):
    """Ones that do not look the version up by this name, or look it up in a way of their own."""
    sparse_dataset = pytest.importorskip("anndata._core.sparse_dataset")
    if name == "absent":
        monkeypatch.delattr(sparse_dataset, "version")
    else:
        monkeypatch.setattr(sparse_dataset, "version", str)
    matrix = as_count_matrix(da.from_array(values(), chunks=(20, 23)))
    np.testing.assert_array_equal(matrix.read(0, 20), values()[:20])
    assert getattr(sparse_dataset, "version", "absent") == ("absent" if name == "absent" else str)
    monkeypatch.setitem(lazy_module.sys.modules, "anndata._core.sparse_dataset", None)
    np.testing.assert_array_equal(matrix.read(0, 20), values()[:20])


@pytest.mark.parametrize("shared", [True, False])
def test_workers_read_a_chunk_once_where_they_share_a_folder(workers, tmp_path, monkeypatch, shared):
    array = values()
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log")).keep()
    if not shared:
        monkeypatch.setattr(engine, "_sees", lambda folder, token: False)
    with workers.as_current():
        for _ in range(2):
            np.testing.assert_array_equal(matrix.column_sums(), array.sum(0))
        found = matrix.map_columns(lazy_blocks.total, [np.arange(5), np.arange(5, 23)])
    assert [one[0] for one in found] == [array[:, :5].sum(), array[:, 5:].sum()]
    assert set(lazy_blocks.reads(tmp_path / "log").tolist()) == {1 if shared else 3}
    # Without the client nothing is asked of files that only workers may see.
    np.testing.assert_array_equal(matrix.column_sums(), array.sum(0))
    assert set(lazy_blocks.reads(tmp_path / "log").tolist()) == {2 if shared else 4}


def test_light_work_takes_several_kept_files_a_task(workers, tmp_path, monkeypatch):
    array = np.random.default_rng(4).lognormal(size=(240, 23)).astype(np.float32)
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log", 5)).keep()
    here = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "here", 5))
    expected, of_blocks = here.reduce(lazy_blocks.Rounded(), RowSums(), size=5), here.map(lazy_blocks.block_sum, 5)
    sizes, in_order = [], lazy_module.in_order

    def count(client, tasks, *rest):
        sizes.append(len(tasks))
        return in_order(client, tasks, *rest)

    monkeypatch.setattr(lazy_module, "in_order", count)
    with workers.as_current():
        for _ in range(2):  # from the source, then from the files
            for one, other in zip(matrix.reduce(lazy_blocks.Rounded(), RowSums(), size=5), expected, strict=True):
                np.testing.assert_array_equal(one, other)
        assert matrix.map(lazy_blocks.block_sum, 5) == of_blocks
    assert sizes == [48, 16, 48]  # eight tasks a worker of what is light; a task each of what is not
    assert set(lazy_blocks.reads(tmp_path / "log", 5).tolist()) == {1}


def test_what_workers_hold_already_is_not_kept_in_files(workers, tmp_path):
    array = values()
    with workers.as_current():
        matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log").persist()).keep()
        for _ in range(2):
            np.testing.assert_array_equal(matrix.column_sums(), array.sum(0))
        assert matrix._kept is None


def test_what_workers_hold_and_what_blocks_share_is_not_copied_into_tasks(workers, tmp_path):
    array = values()
    with workers.as_current():
        held = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log").persist())
        np.testing.assert_array_equal(held.column_sums(), array.sum(0))
        np.testing.assert_array_equal(held.column_sums(), array.sum(0))
        assert set(lazy_blocks.reads(tmp_path / "log").tolist()) == {1}
        # Chunks that are cut from others: each of these is read once.
        dense = lazy_blocks.lazy(array, tmp_path / "third").map_blocks(
            lazy_blocks.to_dense, dtype=np.float32, meta=np.empty((0, 0), np.float32)
        )
        shared = as_count_matrix(dense.rechunk((30, -1)))
        np.testing.assert_array_equal(shared.reduce(ColumnSums(), size=30)[0], array.sum(0))
        assert set(lazy_blocks.reads(tmp_path / "third").tolist()) == {1}
        # One large object that all chunks are cut from is sent once, not with each task.
        whole = as_count_matrix(da.from_array(lazy_blocks.Heavy(array), chunks=(20, -1), asarray=False))
        np.testing.assert_array_equal(whole.column_sums(), array.sum(0))


def test_sampled_rows_read_no_chunk_without_one(tmp_path):
    array = values(2000)
    matrix = as_count_matrix(lazy_blocks.lazy(array, tmp_path / "log"))
    rows = np.array([3, 5, 44, 1999])
    np.testing.assert_array_equal(matrix.take(rows), array[rows])
    found = lazy_blocks.reads(tmp_path / "log")
    assert np.flatnonzero(found).tolist() == [0, 2, 99]
    assert found.sum() == 3


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "csr_array", "mixed"])
def test_chunks_of_any_form_cut_along_genes_too(form):
    array = values()
    make = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}
    chunks = da.from_array(array, chunks=(50, 9))
    if form == "mixed":
        left, right = chunks[:, :9].map_blocks(sp.csr_matrix), chunks[:, 9:]
        matrix = as_count_matrix(da.concatenate([left, right], axis=1))
    else:
        matrix = as_count_matrix(chunks if form == "dense" else chunks.map_blocks(make[form]))
    np.testing.assert_array_equal(matrix.column_sums(), array.sum(0))
    found = matrix.read(45, 120)
    assert (sp.issparse(found) and found.format == "csr") == (form != "dense")
    np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, array[45:120])
    np.testing.assert_array_equal(matrix.take(np.array([0, 49, 50]), np.array([20, 3])), array[[0, 49, 50]][:, [20, 3]])
    blocks = [np.array([20, 3]), np.arange(4)]
    for block, piece in zip(blocks, matrix.map_columns(lambda piece, block: piece.toarray(), blocks), strict=True):
        np.testing.assert_array_equal(piece, array[:, block])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_in_memory_and_in_files_are_put_together_alike(dtype, tmp_path):
    array = sp.random_array((90, 12), density=0.3, format="csr", rng=np.random.default_rng(0)).astype(dtype)
    columns = np.array([7, 0, 3, 11, 5])
    held = [HeldPiece.cut(array[start : start + 40], columns) for start in range(0, 90, 40)]
    stored = [piece.save(tmp_path / str(number)) for number, piece in enumerate(held)]
    stored[1] = held[1].save(tmp_path / "1")  # a task that runs twice
    assert len(list(tmp_path.iterdir())) == 3
    for pieces in (held, stored, [held[0], stored[1], held[2]]):
        found = assemble(pieces, 1, 4)
        assert found.dtype == dtype
        assert found.has_canonical_format
        np.testing.assert_array_equal(found.toarray(), array.toarray()[:, columns[1:4]])
    np.testing.assert_array_equal(held[0].stretch(1, 3).bounds(0, 2), held[0].indptr[1:4] - held[0].indptr[1])
    assert assemble([HeldPiece.cut(array[:40].astype(np.float32), columns), *stored[1:]], 1, 4).dtype == dtype


def test_the_block_budget_bounds_blocks_and_what_waits_in_memory():
    array = values(4000, 400)
    matrix = as_count_matrix(da.from_array(array, chunks=(100, -1)))
    assert matrix.plan().rows == 2000  # of 2048
    with settings.override(block_bytes="1 MB"):
        assert matrix.plan().rows == 600  # 600 * 400 * 4 bytes
        blocks = [np.arange(200), np.arange(200, 400)]
        with ColumnSpool(blocks) as spool:
            for start in range(0, 4000, 1000):
                spool.deal(array[start : start + 1000])
            kinds = [type(piece).__name__ for piece in spool._pieces]
            np.testing.assert_array_equal(spool.collect(1).toarray(), array[:, 200:])
            folder = Path(spool._folder.name)
        assert kinds == ["FilePiece"] * 4  # a piece is 1.5 MB
        assert not folder.exists()


def test_a_pass_is_told_in_the_log(caplog, tmp_path):
    matrix = as_count_matrix(lazy_blocks.lazy(values(), tmp_path / "log"))
    with settings.override(verbosity="info"), caplog.at_level("INFO", "diffbio_sc"):
        matrix.reduce(ColumnSums(), size=50, description="Depth")
    nbytes = sp.csr_array(values()).data.nbytes * 2 + 4 * (240 + 6)
    assert caplog.messages == [
        f"Depth: 6 blocks of at most 40 rows in 6 reads, {nbytes / 1e6:,.1f} MB, in this process."
    ]


def test_steps_travel():
    step = pickle.loads(pickle.dumps(RowSums(np.array([1]))))
    np.testing.assert_array_equal(step(0, values(3)), values(3)[:, 1])


def as_float32(function, array):
    """Chunks of which dask believes that they are as before."""
    return da.from_array(array, chunks=(20, -1)).map_blocks(
        function, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )


WRONG = {
    "shorter than told": (lambda block: block[:-1], r"its shape is \(19, 23\), dask was told \(20, 23\)"),
    "wider than told": (lambda block: np.hstack([block, block]), r"its shape is \(20, 46\), dask was told \(20, 23\)"),
    "text": (lambda block: block.astype(str), "must hold real numbers, found dtype <U32"),
    "objects": (lambda block: block.astype(object), "must hold real numbers, found dtype object"),
    "a list": (lambda block: block.tolist(), "must hold real numbers, found a list"),
    "masked": (lambda block: np.ma.masked_array(block, block > 1), "has masked values"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_chunk_that_is_not_what_dask_was_told_is_named(workers, what, where):
    change, message = WRONG[what]
    matrix = as_count_matrix(as_float32(change, values(60)))
    with contextlib.ExitStack() as stack:
        if where == "workers":
            stack.enter_context(workers.as_current())
        with pytest.raises(RuntimeError, match=rf"chunk \(\d, 0\) of .* could not be read: .*{message}"):
            matrix.column_sums()


def test_chunks_without_masked_values_are_taken_as_they_are():
    array = values(60)
    masked = as_count_matrix(as_float32(np.ma.masked_array, array))
    np.testing.assert_array_equal(masked.column_sums(), array.sum(0))
    with pytest.raises(TypeError, match="has masked values"):
        as_count_matrix(np.ma.masked_array(array, array > 1)).column_sums()


@pytest.mark.parametrize("how", ["persisted", "cut from others"])
def test_rows_of_a_chunk_that_dask_itself_cannot_make_are_told(workers, how):
    lazy = da.from_array(values(120), chunks=(20, -1)).map_blocks(lazy_blocks.broken, dtype=np.float32)
    message = "could not be read: OSError: checksum does not match"
    with workers.as_current():
        matrix = as_count_matrix(lazy.persist() if how == "persisted" else lazy.rechunk((30, -1)))
        with pytest.raises(RuntimeError, match=rf"chunk \([12], 0\) of .*, rows (40|30) to 59 and .*, {message}"):
            matrix.reduce(ColumnSums(), size=20)
        with pytest.raises(RuntimeError, match=rf"chunk .*of the dask array .*{message}"):
            matrix.map_columns(lazy_blocks.total, [np.arange(3)])


def test_errors_of_steps_on_what_workers_hold_stay_what_they_are(workers):
    with workers.as_current():
        held = as_count_matrix(da.from_array(values(40), chunks=(20, -1)).persist())
        with pytest.raises(ZeroDivisionError):
            held.map(lazy_blocks.divides_by_zero)


def test_what_workers_hold_is_worked_on_there_whatever_the_current_client(workers):
    array = values(60)
    with workers.as_current():
        held = da.from_array(array, chunks=(20, -1)).persist()
    assert engine.active_client() is None
    np.testing.assert_array_equal(as_count_matrix(held).column_sums(), array.sum(0))
    np.testing.assert_array_equal(as_count_matrix(held).take(np.array([3, 44])), array[[3, 44]])


def test_an_array_whose_client_is_closed_says_so():
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with distributed.Client(cluster, set_as_default=False) as client, client.as_current():
            held = da.from_array(values(60), chunks=(20, -1)).persist()
        with pytest.raises(RuntimeError, match=r"held by a cluster \(persist\(\)\) whose client is closed: make the"):
            as_count_matrix(held).column_sums()
