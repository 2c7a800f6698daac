"""Flows of tasks: here and on workers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from dying_tasks import double, fails, nested, process

from diffbio_sc.blocks import cluster as engine
from diffbio_sc.blocks.rounds import Here, Processes, Round, Workers, run_here, task_runner


def powers(number, times):
    """2 ** times of some numbers, a round for each doubling."""
    values = [number, number + 1]
    for _ in range(times):
        values = yield Round(double, values, "Doubling")
    return values


def nothing():
    results = yield Round(double, [], "Nothing")
    return results


def failing():
    yield Round(fails, [3, 4], "Failing")


def inner(number):
    (value,) = yield Round(double, [number], "Inner")
    return value


def outer():
    first = yield from inner(1)
    return (yield from inner(first))


FLOWS = [lambda: powers(1, 3), lambda: powers(5, 0), nothing, outer, lambda: powers(7, 1)]
EXPECTED = [[8, 16], [5, 6], [], 4, [14, 16]]


def test_flows_here():
    assert Here().run(flow() for flow in FLOWS) == EXPECTED
    assert run_here(outer()) == 4
    with pytest.raises(ValueError, match="task 3 cannot be done"):
        Here().run([failing()])
    with task_runner() as runner:
        assert isinstance(runner, Here)
        assert runner.folder is None


@pytest.mark.slow
def test_flows_on_workers(monkeypatch, caplog):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        with task_runner() as runner:
            assert isinstance(runner, Workers)
            assert runner.folder.is_dir()
            # More flows than go on at once, and results in order.
            assert runner.run(flow() for _ in range(4) for flow in FLOWS) == 4 * EXPECTED
            (found,) = runner.run([yield_processes()], "Processes")
            assert os.getpid() not in found
            with pytest.raises(ValueError, match="task . cannot be done"):
                runner.run([failing(), powers(1, 3)])
        assert not runner.folder.exists()
        with task_runner(spread=False) as here:
            assert isinstance(here, Here)
        # A task of the cluster that calls the same stays in its process, and waits for no others.
        assert client.submit(nested, pure=False).result(timeout=300) == [8, 16]
        monkeypatch.setattr(engine, "_sees", lambda folder, token: False)
        with task_runner() as here:
            assert isinstance(here, Here)
        assert "share no folder" in caplog.text


@pytest.mark.slow
def test_flows_in_processes_of_their_own():
    with task_runner(n_jobs=2) as runner:
        assert isinstance(runner, Processes)
        assert runner.run(flow() for _ in range(4) for flow in FLOWS) == 4 * EXPECTED
        (found,) = runner.run([yield_processes()])
        assert os.getpid() not in found
        with pytest.raises(ValueError, match="task . cannot be done"):
            runner.run([failing(), powers(1, 3)])
        assert runner.run([powers(1, 3)]) == [[8, 16]]  # nothing of the call before is left
    assert not runner.folder.exists()
    with task_runner(spread=False, n_jobs=2) as here:
        assert isinstance(here, Here)


@pytest.mark.parametrize("n_jobs", [0, -2, 1.5, "2"])
def test_other_numbers_of_processes_are_refused(n_jobs):
    with pytest.raises(ValueError, match="n_jobs must be"), task_runner(n_jobs=n_jobs):
        pass


def yield_processes():
    return (yield Round(process, np.arange(6).tolist(), "Processes"))
