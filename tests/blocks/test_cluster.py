"""The cluster that does the work: what it must have, and what is left on it when a call ends."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest
from no_warnings import no_warnings

from diffbio_sc import __version__
from diffbio_sc._warnings import heard, unheard
from diffbio_sc.blocks import cluster as engine
from diffbio_sc.blocks.matrix import as_count_matrix
from diffbio_sc.blocks.rounds import Round, Workers, task_runner
from diffbio_sc.blocks.steps import ColumnSums

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

NAP = 0.2
SECONDS = 120  # after which what is waited for is taken to have stopped; nothing is measured
CLOSED = "client was closed, or its tasks were cancelled"


class Pause:
    """What tasks do: nap, or, where a test sets ``until``, wait for that. The workers are in this process."""

    def __init__(self):
        self.begun, self.until = threading.Event(), None

    def __call__(self):
        self.begun.set()
        if self.until is None:
            time.sleep(NAP)
        else:
            self.until.wait(SECONDS)


pause = Pause()


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
    pause()
    return block


def slow(rows=400):
    lazy = da.from_array(np.ones((rows, 3), np.float32), chunks=(20, -1))
    return as_count_matrix(lazy.map_blocks(napping, dtype=np.float32, meta=np.empty((0, 0), np.float32)))


def nap(item):
    pause()
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
    deadline = time.monotonic() + SECONDS
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
def test_a_client_that_is_closed_meanwhile_ends_the_call(cluster, call, monkeypatch):
    client, closed = distributed.Client(cluster), threading.Event()
    monkeypatch.setattr(pause, "until", closed)  # no task ends before
    pause.begun.clear()

    def close():
        pause.begun.wait(SECONDS)
        try:
            client.close()
        finally:
            closed.set()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(RuntimeError, match=CLOSED):
        CALLS[call]()
    closing.join(SECONDS)
    assert closed.is_set(), "the client does not close"
    assert engine.active_client() is None


@pytest.mark.parametrize("call", ["columns", "flows"])
def test_a_client_that_is_closed_before_the_workers_are_asked_for_a_folder_ends_the_call(cluster, call, monkeypatch):
    client, folder = distributed.Client(cluster), tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (client.close(), folder)[1])
    with pytest.raises(RuntimeError, match=CLOSED):
        CALLS[call]()
    assert engine.active_client() is None


def test_a_client_that_is_closed_before_a_result_is_fetched_ends_the_call(cluster, monkeypatch):
    client, following = distributed.Client(cluster), Workers._next
    monkeypatch.setattr(Workers, "_next", lambda self: (following(self), client.close())[0])
    with pytest.raises(RuntimeError, match=CLOSED):
        flows()
    assert engine.active_client() is None


def test_a_result_that_never_arrives_is_not_waited_for_where_the_client_is_closed():
    class Waiting:
        """A client that closes, and results of which the last was on its way."""

        status, looked, thread_condition = "running", 0, threading.Condition()

        def is_empty(self):
            return False

        def has_ready(self):
            self.looked += 1
            self.status = "running" if self.looked < 5 else "closed"
            return self.looked == 2

        def __next__(self):
            return "first"

    waiting = Waiting()
    found = engine.arriving(waiting, waiting)
    assert next(found) == "first"
    with pytest.raises(RuntimeError, match=CLOSED):
        next(found)


class Leaving:
    """A client of which workers leave while they are asked."""

    status = "running"

    def __init__(self, *answers, stay=True):
        self.answers, self.stay, self.asked = list(answers), stay, []

    def nthreads(self):
        return {"one": 1, "two": 1} if self.stay or not self.asked else {"one": 1}

    def run(self, *_, workers=None, on_error):
        self.asked.append(sorted(workers or ()))
        return self.answers.pop(0)


def test_workers_that_leave_while_they_are_asked_lack_nothing():
    lost = distributed.comm.CommClosedError("in <TCP>: Stream is closed")
    client = Leaving({"one": __version__, "two": lost}, {"two": __version__})
    for _ in range(3):
        engine.require_package(client)
    assert client.asked == [["one", "two"], ["two"]]  # one that comes back is asked then
    refused = ConnectionRefusedError("nobody there")
    engine.require_package(Leaving({"one": __version__, "two": refused}, stay=False))
    with pytest.raises(RuntimeError, match="1 of 2 workers cannot load diffbio_sc .*nobody there"):
        engine.require_package(Leaving({"one": __version__, "two": refused}))


def test_a_shared_folder_is_looked_for_anew_where_all_workers_have_left():
    client = Leaving({}, {"one": True})
    with engine.shared_folder(client) as folder:
        assert folder.parent.samefile(tempfile.gettempdir())


def test_workers_that_lack_the_package_are_told_before_any_work(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffbio_sc", None)  # what an import then finds: nothing
    with pytest.raises(
        RuntimeError, match=r"2 of 2 workers cannot load diffbio_sc \(first: .*: ModuleNotFoundError: .*"
    ):
        engine.require_package(client, version="1.2.3")


def test_workers_of_another_version_are_told_once(client):
    engine.require_package(client)
    with no_warnings():
        engine.require_package(client, version="0.0.1")  # asked before
    with distributed.Client(client.cluster, set_as_default=False) as other:
        with pytest.warns(UserWarning, match=r"2 of 2 workers have another version .* than this process, 0\.0\.1 "):
            engine.require_package(other, version="0.0.1")
        with no_warnings():
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


def ended(threads):
    """Start threads, and wait until all have ended."""
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"


def test_two_threads_use_one_client_at_once(client):
    before = list(warnings.filters)
    found = []
    threads = [threading.Thread(target=lambda: found.append(slow(100).column_sums())) for _ in range(2)]
    ended(threads)
    np.testing.assert_array_equal(found, np.full((2, 3), 100.0))
    assert warnings.filters == before


def test_filters_of_warnings_are_those_of_before_whatever_the_order_of_threads():
    """Filters are the process's: one thread begins while another is inside, and ends after it."""
    before = list(warnings.filters)
    inside, begun, go, found = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        with unheard("quiet"):
            inside.set()
            go.wait(SECONDS)

    def second():
        inside.wait(SECONDS)
        begun.set()
        with heard() as caught:
            warnings.warn("quiet", UserWarning, stacklevel=1)
        found.extend(str(one.message) for one in caught)

    def release():
        begun.wait(SECONDS)
        time.sleep(0.05)
        go.set()

    ended([threading.Thread(target=target) for target in (first, second, release)])
    assert found == ["quiet"]
    assert warnings.filters == before
