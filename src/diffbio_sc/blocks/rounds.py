"""Work in rounds of tasks, here or by the workers of a cluster.

A flow is a generator that yields a round, tasks that do not wait for each other, and is sent their results, as many
rounds as it needs; what it returns is its result. Several flows go on side by side on a cluster, so that the last task
of one does not keep the workers from those of another.
"""

from __future__ import annotations

import abc
import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from diffbio_sc._checks import whole_number
from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.blocks.cluster import (
    active_client,
    arriving,
    cancel,
    cancelled,
    closing_told,
    shared_folder,
    threads_of,
)

__all__ = ["Flow", "Here", "Processes", "Round", "Runner", "Workers", "run_here", "task_runner"]

Result = TypeVar("Result")
_FLOWS_PER_THREAD = 2


class Round(NamedTuple):
    """Tasks that do not wait for each other: a function, which workers can import, of each item."""

    function: Callable[[Any], Any]
    items: Sequence[Any]
    name: str


Flow = Generator[Round, list[Any], Result]


def run_here(flow: Flow[Result]) -> Result:
    """Run one flow in this process, task after task."""
    results = None
    while True:
        try:
            current = next(flow) if results is None else flow.send(results)
        except StopIteration as end:
            return end.value
        tasks = progress(current.items, current.name, total=len(current.items))
        results = [current.function(item) for item in tasks]


class Here:
    """Runs flows in the process of the call, one after the other."""

    folder: Path | None = None

    def run(self, flows: Iterable[Flow[Result]], description: str | None = None) -> list[Result]:
        """Return the results of all flows, in order."""
        flows = list(flows)
        if description is not None:
            flows = progress(flows, description, total=len(flows))  # type: ignore[assignment]
        return [run_here(flow) for flow in flows]


class _Spread(abc.ABC):
    """Runs flows by other processes, several at a time.

    Parameters
    ----------
    folder
        Seen by all of them, for what is too large to travel.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @abc.abstractmethod
    def _threads(self) -> int:
        """Number of tasks that are worked on at a time."""

    @abc.abstractmethod
    def _submit(self, task: _Task, name: str) -> Any:
        """Begin a task; returns what :meth:`_next` will return when it is done."""

    @abc.abstractmethod
    def _next(self) -> Any:
        """Wait for a task that is done."""

    def _result(self, future: Any) -> Any:
        """Result of a task that is done."""
        return future.result()

    @abc.abstractmethod
    def _forget(self, futures: list[Any]) -> None:
        """Leave out tasks that are not done, and what was done since."""

    def run(self, flows: Iterable[Flow[Result]], description: str | None = None) -> list[Result]:
        """Return the results of all flows, in order."""
        flows = list(flows)
        finished: Any = self._finished(flows)
        if description is not None:
            finished = progress(finished, description, total=len(flows))
        results = dict(finished)
        return [results[number] for number in range(len(flows))]

    def _finished(self, flows: list[Flow[Result]]) -> Iterator[tuple[int, Result]]:
        places: dict[Any, tuple[int, int]] = {}  # flow and task of each future
        rounds: dict[int, list[Any]] = {}  # results of the rounds that flows wait for
        missing: dict[int, int] = {}
        waiting = iter(range(len(flows)))

        def advance(number: int, results: list[Any] | None) -> list[tuple[int, Result]]:
            """Submit the next round of a flow; its result if there is none."""
            while True:
                try:
                    current = next(flows[number]) if results is None else flows[number].send(results)
                except StopIteration as end:
                    return [(number, end.value)]
                if current.items:
                    break
                results = []
            rounds[number], missing[number] = [None] * len(current.items), len(current.items)
            for place, item in enumerate(current.items):
                places[self._submit(_Task(current.function, item), current.name)] = number, place
            return []

        try:
            while True:
                # Asked anew each time: a cluster may grow meanwhile.
                most = max(_FLOWS_PER_THREAD * self._threads(), 1)
                while len(rounds) < most and (following := next(waiting, None)) is not None:
                    yield from advance(following, None)
                if not rounds:
                    return
                future = self._next()
                number, place = places.pop(future)
                rounds[number][place] = self._result(future)
                del future  # a traceback may keep this frame for long, and the worker its result
                missing[number] -= 1
                if not missing[number]:
                    yield from advance(number, rounds.pop(number))
        finally:
            self._forget(list(places))
            places.clear()
            for flow in flows:
                flow.close()


class Workers(_Spread):
    """Runs flows on the workers of a cluster. A task that is lost with its worker is run again, by another.

    Parameters
    ----------
    client
        Of ``dask.distributed``.
    folder
        Seen by all workers.
    """

    def __init__(self, client: Any, folder: Path):
        from distributed import as_completed

        super().__init__(folder)
        self.client = client
        self._completed: Any = as_completed(loop=client.loop)

    def _threads(self) -> int:
        return threads_of(self.client)

    def _submit(self, task: _Task, name: str) -> Any:
        key = f"{name.lower().replace(' ', '-')}-{uuid.uuid4().hex}"
        with closing_told(self.client):
            future = self.client.submit(_run, task, key=key, pure=False)
            self._completed.add(future)
        return future

    def _next(self) -> Any:
        future = next(arriving(self.client, self._completed))
        if future.cancelled():
            raise cancelled()
        return future

    def _result(self, future: Any) -> Any:
        if future.status == "error":
            return future.result()
        with closing_told(self.client):
            return future.result()

    def _forget(self, futures: list[Any]) -> None:
        self._completed.clear()
        cancel(self.client, futures)


class Processes(_Spread):
    """Runs flows in processes of this machine, which begin anew (spawn) and end with the call.

    Parameters
    ----------
    executor
        Pool of processes.
    number
        Of processes.
    folder
        For what is too large to travel.
    """

    def __init__(self, executor: ProcessPoolExecutor, number: int, folder: Path):
        super().__init__(folder)
        self.executor, self.number = executor, number
        self._done: SimpleQueue[Future] = SimpleQueue()

    def _threads(self) -> int:
        return self.number

    def _submit(self, task: _Task, name: str) -> Future:
        future = self.executor.submit(_run, task)
        future.add_done_callback(self._done.put)
        return future

    def _next(self) -> Future:
        return self._done.get()

    def _forget(self, futures: list[Future]) -> None:
        for future in futures:
            future.cancel()
        self._done = SimpleQueue()


class _Task:
    """A function and what it is applied to, which dask does not look into."""

    def __init__(self, function: Callable[[Any], Any], item: Any):
        self.function, self.item = function, item


def _run(task: _Task) -> Any:
    return task.function(task.item)


@contextmanager
def task_runner(*, spread: bool = True, n_jobs: int | None = None) -> Iterator[Here | Workers | Processes]:
    """Give what runs flows: the workers of the active client, ``n_jobs`` processes, or without either this process.

    Parameters
    ----------
    spread
        Whether other processes may be used at all.
    n_jobs
        Number of processes; -1 for one for each core.
    """
    number = _number_of_jobs(n_jobs)
    client = active_client() if spread else None
    if client is not None:
        with shared_folder(client) as folder:
            if folder is not None:
                yield Workers(client, folder)
                return
        logger.warning(
            "The workers of the cluster share no folder with this process, and are not used: set dask's "
            "'temporary-directory' or settings.cache_dir to a folder that all of them see."
        )
    if client is None and spread and number > 1:
        with (
            tempfile.TemporaryDirectory(prefix="diffbio-sc-", ignore_cleanup_errors=True) as name,
            ProcessPoolExecutor(number, mp_context=get_context("spawn")) as executor,
        ):
            yield Processes(executor, number, Path(name))
        return
    yield Here()


def _number_of_jobs(n_jobs: int | None) -> int:
    if n_jobs is None:
        return 1
    number = whole_number(n_jobs, "n_jobs", minimum=-1)
    if number == 0:
        raise ValueError("n_jobs must be a number of processes, or -1 for one for each core, found 0.")
    if number > 0:
        return number
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Runner = Here | Workers | Processes
