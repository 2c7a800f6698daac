"""``diffbio-sc info``: versions, devices, settings and caches."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

_PACKAGES = ("jax", "flax", "anndata", "mudata", "scanpy", "squidpy", "numpy", "scipy", "pandas", "numba")
_OPTIONAL = ("cooler", "hictkpy", "pyBigWig", "isal", "dask", "pyfaidx", "logomaker", "igraph", "scib-metrics")


def describe() -> list[tuple[str, str]]:
    """Return names and values of what a report of a fault should tell."""
    import jax

    from diffbio_sc import __version__
    from diffbio_sc._settings import settings

    rows = [
        ("diffbio-sc", __version__),
        ("python", f"{platform.python_version()} ({sys.platform}, {platform.machine()})"),
        *((name, _version(name) or "missing") for name in _PACKAGES),
        *((name, _version(name) or "not installed (optional)") for name in _OPTIONAL),
        ("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        ("devices", ", ".join(f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices())),
        ("64-bit JAX", str(bool(jax.config.jax_enable_x64))),
        ("cache folder", str(settings._cache_dir)),
        ("compilation cache", str(jax.config.jax_compilation_cache_dir or "none")),
        ("data with truth", os.environ.get("DIFFBIO_SC_DATA") or "none (DIFFBIO_SC_DATA is not set)"),
    ]
    return rows


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
