"""Compiled code runs in one thread at a time, and multiplies matrices in full float32.

Two threads that each start a compiled program can wait for each other for ever: XLA's pool has as many threads as the
process may use cores, a running program occupies them, and its own parallel parts wait for a free one. Schedulers that
run block steps in threads (dask's default one, a local cluster) and users' own threads therefore take turns.

Accelerators multiply matrices of float32 in fewer bits unless told otherwise (10 on NVIDIA's GPUs, 7 on TPUs). That is
enough for a network, and too little for a statistic: intervals of cell types were wrong by a third.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Re-entrant: a fit that holds it applies operators that take it too.
_TURN = threading.RLock()


def _products_are_rounded() -> bool:
    import jax

    return jax.default_backend() != "cpu"


@contextmanager
def full_products() -> Iterator[None]:
    """Let what is traced or run inside, or in a function that this decorates, multiply matrices in full float32.

    Backward rules are decorated by themselves: they run after the function that they belong to has returned.
    A precision that the user has set (``jax_default_matmul_precision``) stays. On CPUs nothing changes: programs
    compiled inside and outside are the same.
    """
    import jax

    if jax.config.jax_default_matmul_precision is not None or not _products_are_rounded():
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


@contextmanager
def compiled_turn() -> Iterator[None]:
    """Hold the process-wide turn to run compiled code; results must be ready before it ends.

    Never wait inside for other threads that may want the turn, such as the tasks of a pass over blocks.
    """
    with _TURN, full_products():
        yield


def one_thread_at_a_time(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let ``function``, which runs compiled code, run in one thread at a time, until its results are ready."""

    @wraps(function)
    def in_turn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        import jax

        with compiled_turn():
            # Calls are dispatched asynchronously: only a result that is there no longer needs the pool.
            return jax.block_until_ready(function(*args, **kwargs))

    return in_turn


_LEVEL = "xla_backend_optimization_level"
_QUICK = {_LEVEL: 1, "xla_llvm_disable_expensive_passes": True}


def jit_quickly(**options: Any) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """``jax.jit`` with these options, and on CPUs fewer passes over the machine code.

    For large programs whose time goes into products of matrices and long vectors: an epoch of the multi-omics VAE is
    compiled in three quarters of the time and runs as fast (``benchmarks/training.py passes``). A level that the user
    has set in ``XLA_FLAGS`` stays.
    """

    def decorated(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @cache
        def program() -> Callable[Parameters, Result]:
            import jax

            quick = jax.default_backend() == "cpu" and _LEVEL not in os.environ.get("XLA_FLAGS", "")
            return jax.jit(function, compiler_options=_QUICK if quick else None, **options)

        @wraps(function)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            return program()(*args, **kwargs)

        return run

    return decorated


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library has to be told (glibc).

    XLA's compiler leaves some 300 MB of it behind.
    """
    import ctypes

    trim = None if os.name == "nt" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _thread_pools(with_scipy: bool) -> ThreadpoolController:
    """Libraries that are loaded; scipy has a BLAS of its own."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _OneBlasThread:
    """The setting is the process's: it is made by the first thread that asks for it, and ended by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit = _thread_pools("scipy.linalg" in sys.modules).limit(limits=1, user_api="blas")
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


_ONE_BLAS_THREAD = _OneBlasThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS and LAPACK work in one thread, inside or in a function that this decorates.

    For many small products and factorisations: threads that wait for the next one do so actively. On two cores,
    regressing spots on 31 cell types took 14 seconds of CPU instead of one, and testing 765 genes of 400 spots 11.
    """
    _ONE_BLAS_THREAD.enter()
    try:
        yield
    finally:
        _ONE_BLAS_THREAD.leave()
