"""Compiled code runs in one thread at a time.

Two threads that each start a compiled program can wait for each other for ever: XLA's pool has as many threads as the
process may use cores, a running program occupies them, and its own parallel parts wait for a free one. Schedulers that
run block steps in threads (dask's default one, a local cluster) and users' own threads therefore take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Re-entrant: a fit that holds it applies operators that take it too.
_TURN = threading.RLock()


@contextmanager
def compiled_turn() -> Iterator[None]:
    """Hold the process-wide turn to run compiled code; results must be ready before it ends.

    Never wait inside for other threads that may want the turn, such as the tasks of a pass over blocks.
    """
    with _TURN:
        yield


def one_thread_at_a_time(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let ``function``, which runs compiled code, run in one thread at a time, until its results are ready."""

    @wraps(function)
    def in_turn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        import jax

        with _TURN:
            # Calls are dispatched asynchronously: only a result that is there no longer needs the pool.
            return jax.block_until_ready(function(*args, **kwargs))

    return in_turn
