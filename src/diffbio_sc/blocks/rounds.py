"""Work in rounds of tasks, here or by the workers of a cluster.

A flow is a generator that yields a round, tasks that do not wait for each other, and is sent their results, as many
rounds as it needs; what it returns is its result. Several flows go on side by side on a cluster, so that the last task
of one does not keep the workers from those of another.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.blocks.cluster import active_client, shared_folder

__all__ = ["Flow", "Here", "Round", "Workers", "run_here", "task_runner"]

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


class Workers:
    """Runs flows on the workers of a cluster. A task that is lost with its worker is run again, by another.

    Parameters
    ----------
    client
        Of ``dask.distributed``.
    folder
        Seen by all workers, for what is too large to travel.
    """

    def __init__(self, client: Any, folder: Path):
        self.client, self.folder = client, folder

    def run(self, flows: Iterable[Flow[Result]], description: str | None = None) -> list[Result]:
        """Return the results of all flows, in order."""
        flows = list(flows)
        finished: Any = self._finished(flows)
        if description is not None:
            finished = progress(finished, description, total=len(flows))
        results = dict(finished)
        return [results[number] for number in range(len(flows))]

    def _finished(self, flows: list[Flow[Result]]) -> Iterator[tuple[int, Result]]:
        from distributed import as_completed

        places: dict[str, tuple[int, int]] = {}  # flow and task of each future
        rounds: dict[int, list[Any]] = {}  # results of the rounds that flows wait for
        missing: dict[int, int] = {}
        waiting = iter(range(len(flows)))
        completed: Any = as_completed(loop=self.client.loop)
        most = max(_FLOWS_PER_THREAD * sum(self.client.nthreads().values()), 1)

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
            label, token = current.name.lower().replace(" ", "-"), uuid.uuid4().hex[:8]
            rounds[number], missing[number] = [None] * len(current.items), len(current.items)
            for task, item in enumerate(current.items):
                key = f"{label}-{token}-{task}"
                places[key] = number, task
                completed.add(self.client.submit(_run, _Task(current.function, item), key=key, pure=False))
            return []

        try:
            while True:
                while len(rounds) < most and (following := next(waiting, None)) is not None:
                    yield from advance(following, None)
                if not rounds:
                    return
                future = next(completed)
                number, task = places.pop(future.key)
                rounds[number][task] = future.result()
                future.release()
                missing[number] -= 1
                if not missing[number]:
                    yield from advance(number, rounds.pop(number))
        finally:
            completed.clear()
            for flow in flows:
                flow.close()


class _Task:
    """A function and what it is applied to, which dask does not look into."""

    def __init__(self, function: Callable[[Any], Any], item: Any):
        self.function, self.item = function, item


def _run(task: _Task) -> Any:
    return task.function(task.item)


@contextmanager
def task_runner(*, spread: bool = True) -> Iterator[Here | Workers]:
    """Give what runs flows: the workers of the active client, if ``spread``, else this process."""
    client = active_client() if spread else None
    if client is None:
        yield Here()
        return
    with shared_folder(client) as folder:
        if folder is None:
            logger.warning(
                "The workers of the cluster share no folder with this process, and are not used: set dask's "
                "'temporary-directory' or settings.cache_dir to a folder that all of them see."
            )
            yield Here()
            return
        yield Workers(client, folder)
