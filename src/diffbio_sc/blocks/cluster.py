"""The cluster of the session, if there is one: ``dask.distributed``, never dask's own threads.

Threads of one process would only wait for each other: compiled code takes turns (``_compiled.py``). Without a client
the blocks of a lazy matrix are worked through one after the other in this process.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffbio_sc._progress import progress
from diffbio_sc._settings import settings

_TOKEN = "token"
_LOADED: dict[Path, Any] = {}  # what this process has loaded from shared folders
_LOADING = threading.Lock()


def active_client() -> Any | None:
    """The client of ``dask.distributed`` that dask would use now, or None.

    None also within a task of a cluster: a task that waits for others holds the thread that they need.
    """
    if "distributed" not in sys.modules:
        return None
    from dask.base import get_scheduler
    from distributed import Client, get_worker

    try:
        get_worker()
    except ValueError:
        pass
    else:
        return None

    client = getattr(get_scheduler(), "__self__", None)
    return client if isinstance(client, Client) and client.status == "running" else None


def workers_of(client: Any) -> int:
    """Number of workers that the cluster has now."""
    return len(client.nthreads())


def in_order(client: Any, tasks: list[Any], description: str | None = None) -> Iterator[Any]:
    """Results of delayed tasks, in their order; each is fetched as soon as it is there.

    What is fetched is not lost with its worker, and takes no memory there. Results that come early wait here.
    """
    from distributed import as_completed

    with warnings.catch_warnings():
        # What a step holds is one node of the graph, sent once: no data that might have been loaded by the workers.
        warnings.filterwarnings("ignore", "Sending large graph")
        futures = client.compute(tasks)
    place = {future.key: number for number, future in enumerate(futures)}
    completed: Any = as_completed(futures, with_results=True)
    del futures
    if description is not None:
        completed = progress(completed, description, total=len(place))
    waiting: dict[int, Any] = {}
    following = 0
    for future, result in completed:
        waiting[place[future.key]] = result
        future.release()
        while following in waiting:
            yield waiting.pop(following)
            following += 1


@contextmanager
def shared_folder(client: Any) -> Iterator[Path | None]:
    """Make a folder that all workers see, for as long as it is needed; None if there is no such place.

    Looked for where dask spills (``temporary-directory``), among temporary files, and in ``settings.cache_dir``.
    """
    import dask

    places = (dask.config.get("temporary-directory", None), tempfile.gettempdir(), settings.cache_dir)
    for place in places:
        if place is None or not os.path.isdir(place):
            continue
        with tempfile.TemporaryDirectory(prefix="diffbio-sc-", dir=place, ignore_cleanup_errors=True) as name:
            folder, token = Path(name), uuid.uuid4().hex
            (folder / _TOKEN).write_text(token)
            seen = client.run(_sees, folder, token, on_error="ignore")
            if seen and all(seen.values()):
                yield folder
                return
    yield None


def _sees(folder: Path, token: str) -> bool:
    """Whether this process sees the very folder, and may write there."""
    try:
        return (folder / _TOKEN).read_text() == token and os.access(folder, os.W_OK)
    except OSError:
        return False


@contextmanager
def stored_for_workers(client: Any, value: Any, path: Path) -> Iterator[Path]:
    """Store a large constant of many tasks in a shared folder, from which each worker loads it once.

    In a graph it would go through the scheduler and from worker to worker, and tasks would stay where it already is.
    """
    import cloudpickle

    with path.open("wb") as file:
        cloudpickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        yield path
    finally:
        client.run(_forget, path, on_error="ignore")


def load_stored(path: Path) -> Any:
    """What :func:`stored_for_workers` stored."""
    with _LOADING:
        if path not in _LOADED:
            with path.open("rb") as file:
                _LOADED[path] = pickle.load(file)
        return _LOADED[path]


def _forget(path: Path) -> None:
    _LOADED.pop(path, None)
