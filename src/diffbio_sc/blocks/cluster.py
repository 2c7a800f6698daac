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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc._settings import settings
from diffbio_sc._warnings import unheard

__all__ = [
    "active_client",
    "arriving",
    "cancel",
    "cancelled",
    "closing_told",
    "in_order",
    "load_stored",
    "on_worker",
    "require_package",
    "shared_folder",
    "stored_for_workers",
    "threads_of",
    "workers_of",
]

Explanation = Callable[[int, BaseException], BaseException]
_TOKEN = "token"
_LOOK_AGAIN = 0.1  # seconds after which a client that waits is looked at again
_LOADED: dict[Path, Any] = {}  # what this process has loaded from shared folders
_LOADING = threading.Lock()
_ASKED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # workers that have this package


def active_client() -> Any | None:
    """The client of ``dask.distributed`` that dask would use now, or None.

    None also within a task of a cluster: a task that waits for others holds the thread that they need.
    """
    if "distributed" not in sys.modules or on_worker():
        return None
    from dask.base import get_scheduler
    from distributed import Client

    client = getattr(get_scheduler(), "__self__", None)
    if not (isinstance(client, Client) and client.status == "running"):
        return None
    require_package(client)
    return client


def on_worker() -> bool:
    """Whether this is a task of a cluster."""
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return False
    return True


def require_package(client: Any, version: str | None = None) -> None:
    """Raise RuntimeError if a worker cannot load this package, warn if it has another version; wait for a worker.

    Workers that were asked before are not asked again.

    Parameters
    ----------
    client
        Of ``dask.distributed``.
    version
        What they should have; default: what this process has.
    """
    if version is None:
        from diffbio_sc import __version__ as version
    workers = _present(client)
    new = workers - _ASKED.get(client, set())
    if not new:
        return

    def loaded() -> str:  # defined here: it travels as code, also to workers that do not know this module
        import diffbio_sc

        return diffbio_sc.__version__

    with closing_told(client):
        answers = client.run(loaded, workers=list(new), on_error="return")
    found = {address: answer for address, answer in answers.items() if not _has_left(client, address, answer)}
    lacking = {address: error for address, error in found.items() if isinstance(error, BaseException)}
    if lacking:
        address, error = next(iter(lacking.items()))
        raise RuntimeError(
            f"{len(lacking)} of {len(workers)} workers cannot load diffbio_sc (first: {address}: "
            f"{type(error).__name__}: {error}): install version {version} in the environment of the workers, or "
            "close the client to work in this process."
        )
    others = {address: other for address, other in found.items() if other != version}
    if others:
        address, other = next(iter(others.items()))
        warnings.warn(
            f"{len(others)} of {len(workers)} workers have another version of diffbio_sc than this process, "
            f"{version} (first: {address}: {other}): install the same, or results may differ.",
            UserWarning,
            stacklevel=2,
        )
    _ASKED[client] = workers - (new - set(found))


def _present(client: Any) -> set[str]:
    """Addresses of the workers; where there are none the first one is waited for."""
    with closing_told(client):
        workers = set(client.nthreads())
        if not workers:
            logger.warning("The cluster has no workers now: waiting for the first one.")
            client.submit(int, pure=False).result()  # a cluster that adapts starts workers for tasks
            workers = set(client.nthreads())
        return workers


def _has_left(client: Any, address: str, answer: Any) -> bool:
    """Whether a worker was lost, or taken away by a cluster that adapts, while it was asked: the next has its turn."""
    from distributed.comm import CommClosedError

    return isinstance(answer, CommClosedError) or (isinstance(answer, OSError) and address not in client.nthreads())


def workers_of(client: Any) -> int:
    """Number of workers that the cluster has now."""
    with closing_told(client):
        return len(client.nthreads())


def threads_of(client: Any) -> int:
    """Number of tasks that the cluster's workers work on at a time now."""
    with closing_told(client):
        return sum(client.nthreads().values())


def in_order(
    client: Any, tasks: list[Any], description: str | None = None, explain: Explanation | None = None
) -> Iterator[Any]:
    """Results of delayed tasks, in their order; each is fetched as soon as it is there.

    What is fetched is not lost with its worker, and takes no memory there. Results that come early wait here. However
    the work ends, no task stays with the workers.

    Parameters
    ----------
    client
        Of ``dask.distributed``.
    tasks
        Delayed values.
    description
        Name of a progress bar.
    explain
        Turns the number of a task and its error into the error to raise.
    """
    from distributed import as_completed

    # What a step holds is one node of the graph, sent once: no data that might have been loaded by the workers.
    with closing_told(client), unheard("Sending large graph"):
        futures = client.compute(tasks)
    pending = {future.key: (number, future) for number, future in enumerate(futures)}
    del futures
    finished: Any = arriving(
        client,
        as_completed(
            [future for _, future in pending.values()], loop=client.loop, with_results=True, raise_errors=False
        ),
    )
    if description is not None:
        finished = progress(finished, description, total=len(pending))
    waiting: dict[int, Any] = {}
    following = 0
    try:
        for future, result in finished:
            number, _ = pending.pop(future.key)
            if future.status == "error":
                error = result[1].with_traceback(result[2])
                told = error if explain is None else explain(number, error)
                raise told from (None if told is error else error)
            if isinstance(result, BaseException):
                raise cancelled() from None
            waiting[number] = result
            future.release()
            while following in waiting:
                yield waiting.pop(following)
                following += 1
    finally:
        cancel(client, [future for _, future in pending.values()])


def arriving(client: Any, finished: Any) -> Iterator[Any]:
    """What ``as_completed`` gives, for as long as the client is open.

    A result that was on its way when the client was closed never arrives, and dask would wait for it for ever.
    """
    while not finished.is_empty():
        if finished.has_ready():
            yield next(finished)
        elif client.status != "running":
            raise cancelled()
        else:
            with finished.thread_condition:  # which tells of the next result
                finished.thread_condition.wait(_LOOK_AGAIN)


@contextmanager
def closing_told(client: Any) -> Iterator[None]:
    """Turn what a client raises that was closed meanwhile, of whatever kind, into an error that tells of just that."""
    try:
        yield
    except Exception as error:
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        raise cancelled() from None


def cancelled() -> RuntimeError:
    """What to raise where tasks were taken from the cluster during a call."""
    return RuntimeError(
        "The client was closed, or its tasks were cancelled, before the work was done; nothing has been written."
    )


def cancel(client: Any, futures: Iterable[Any]) -> None:
    """Take tasks that are no longer wanted from the workers.

    An error, or Ctrl-C, may keep the frames that hold the futures for as long as its traceback lives, and the workers
    would go on.
    """
    futures = list(futures)
    if futures and client.status == "running":
        with suppress(Exception):  # the error that ended the work is the one to tell
            client.cancel(futures)


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
            with closing_told(client):
                # Where the last worker leaves just now, nobody answers.
                seen = client.run(_sees, folder, token, on_error="ignore") or (
                    _present(client) and client.run(_sees, folder, token, on_error="ignore")
                )
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
        if client.status == "running":
            with suppress(Exception):  # the error that ended the work is the one to tell
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
