"""The cluster that does the work: what it must have, and what is left on it when a call ends."""

from __future__ import annotations

import sys
import threading
import time
import warnings

import numpy as np
import pytest

from diffbio_sc._warnings import heard, unheard
from diffbio_sc.blocks import cluster as engine
from diffbio_sc.blocks.matrix import as_count_matrix
from diffbio_sc.blocks.rounds import Round, Workers, task_runner
from diffbio_sc.blocks.steps import ColumnSums

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

NAP = 0.2


@pytest.fixture
def cluster():
    """Two workers in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


def napping(block):
    time.sleep(NAP)
    return block


def slow(rows=400):
    lazy = da.from_array(np.ones((rows, 3), np.float32), chunks=(20, -1))
    return as_count_matrix(lazy.map_blocks(napping, dtype=np.float32, meta=np.empty((0, 0), np.float32)))


def nap(item):
    time.sleep(NAP)
    return item


def flow():
    return (yield Round(nap, list(range(20)), "Nap"))


def flows():
    with task_runner() as runner:
        return runner.run([flow(), flow()])


CALLS = {
    "sums": lambda: slow().reduce(ColumnSums(), size=20),
    "columns": lambda: slow().map_columns(lambda piece, indices: piece.sum(), [np.arange(2), np.array([2])]),
    "flows": flows,
}


def tasks_left(cluster):
    """Tasks that the scheduler knows, after those that run have ended."""
    deadline = time.monotonic() + 30
    while cluster.scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(cluster.scheduler.tasks)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_stays_with_the_workers_when_a_call_is_interrupted(cluster, client, call, monkeypatch):
    """Also while the traceback, which holds the frames of the call, is alive, as in a notebook."""
    completed = distributed.as_completed
    taken = []

    def interrupted(self):
        taken.append(self)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return original(self)

    original = completed.__next__
    monkeypatch.setattr(completed, "__next__", interrupted)
    with pytest.raises(KeyboardInterrupt) as info:
        CALLS[call]()
    assert tasks_left(cluster) == 0
    assert info.traceback


@pytest.mark.parametrize("call", CALLS)
def test_a_client_that_is_closed_meanwhile_ends_the_call(cluster, call):
    client = distributed.Client(cluster)
    timer = threading.Timer(3 * NAP, client.close)
    timer.start()
    with pytest.raises(RuntimeError, match="client was closed, or its tasks were cancelled"):
        CALLS[call]()
    timer.join()
    assert engine.active_client() is None


def test_workers_that_lack_the_package_are_told_before_any_work(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffbio_sc", None)  # what an import then finds: nothing
    with pytest.raises(
        RuntimeError, match=r"2 of 2 workers cannot load diffbio_sc \(first: .*: ModuleNotFoundError: .*"
    ):
        engine.require_package(client, version="1.2.3")


def test_workers_of_another_version_are_told_once(client):
    engine.require_package(client)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.require_package(client, version="0.0.1")  # asked before
    with distributed.Client(client.cluster, set_as_default=False) as other:
        with pytest.warns(UserWarning, match=r"2 of 2 workers have another version .* than this process, 0\.0\.1 "):
            engine.require_package(other, version="0.0.1")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.require_package(other, version="0.0.1")


def test_the_first_worker_is_waited_for(caplog):
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        cluster.adapt(minimum=0, maximum=2, interval="50ms")
        matrix = slow(60)
        np.testing.assert_array_equal(matrix.column_sums(), [60.0] * 3)
        with task_runner() as runner:
            assert isinstance(runner, Workers)
    assert "The cluster has no workers now" in caplog.text


def test_two_threads_use_one_client_at_once(client):
    before = list(warnings.filters)
    found = []
    threads = [threading.Thread(target=lambda: found.append(slow(100).column_sums())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, np.full((2, 3), 100.0))
    assert warnings.filters == before


def test_filters_of_warnings_are_those_of_before_whatever_the_order_of_threads():
    """Filters are the process's: one thread begins while another is inside, and ends after it."""
    before = list(warnings.filters)
    inside, go = threading.Event(), threading.Event()

    def first():
        with unheard("quiet"):
            inside.set()
            go.wait(10)

    def second():
        with heard() as caught:
            warnings.warn("quiet", UserWarning, stacklevel=1)
        assert [str(one.message) for one in caught] == ["quiet"]

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join()
    assert warnings.filters == before
