"""What makes a process ready, the session's own and each worker's."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path

_ENGINES = ("deconvolution", "interval_peaks", "spatial_genes", "spatial_patterns")
_LEAST_SECONDS = 0.0  # of compilation that are worth a file: a first call has dozens of small programs
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt
_LARGEST_KEPT = 32 * 2**20  # bytes of an array; what glibc's thresholds grow to by themselves


def make_ready(folder: str) -> None:
    """Load the libraries in this process, and let its programs be stored in ``folder``."""
    import jax

    Path(folder).mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    for name in _ENGINES:
        importlib.import_module(f"diffbio_sc.engines.{name}")


def keep_freed_memory() -> None:
    """Let a worker use memory again that it has freed.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_``, with which glibc hands each array back to the system and takes
    the next one anew, page by page: that took two fifths of the CPU of compiled blocks. The thresholds that glibc's
    heap grows to without the variable are set here. Other C libraries have no such thresholds and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and "MALLOC_TRIM_THRESHOLD_" in os.environ:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_KEPT)
