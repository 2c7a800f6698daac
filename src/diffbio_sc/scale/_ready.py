"""What makes a process ready, the session's own and each worker's."""

from __future__ import annotations

import importlib
from pathlib import Path

_ENGINES = ("deconvolution", "interval_peaks", "spatial_genes", "spatial_patterns")
_LEAST_SECONDS = 0.1  # of compilation that are worth a file


def make_ready(folder: str) -> None:
    """Load the libraries in this process, and let its programs be stored in ``folder``."""
    import jax

    Path(folder).mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir != folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    for name in _ENGINES:
        importlib.import_module(f"diffbio_sc.engines.{name}")
