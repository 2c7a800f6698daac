"""Workers are made ready: libraries loaded, one store of compiled programs, enough memory or a warning."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

import diffbio_sc as dbio
from diffbio_sc.scale._warm import _check_memory

distributed = pytest.importorskip("distributed")
lazy_blocks = pytest.importorskip("lazy_blocks", exc_type=ImportError)


class Told:
    """A client that tells of workers."""

    def __init__(self, *workers):
        self.workers = {
            f"tcp://{number}": {"memory_limit": one[0], "nthreads": one[1]} for number, one in enumerate(workers)
        }

    def scheduler_info(self, n_workers):
        assert n_workers == -1  # all of them
        return {"workers": self.workers}


def test_workers_with_too_little_memory_are_told():
    _check_memory(Told((2_000_000_000, 1), (0, 4), (4_000_000_000, 4)), 256_000_000)  # 0 is no limit
    with pytest.warns(
        UserWarning, match=r"2 workers have less memory .* first: tcp://0 has 1\.0 GB, 1\.2 GB are needed"
    ):
        _check_memory(Told((1_000_000_000, 1), (2_000_000_000, 4)), 256_000_000)


def test_workers_keep_what_they_free_where_dask_tells_malloc_not_to(monkeypatch):
    """Pages that are taken anew, of an array that is made and freed a hundred times (glibc)."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    # Without huge pages, of which a system may give one for each array: 41 is PR_SET_THP_DISABLE.
    prctl = "import ctypes; getattr(ctypes.CDLL(None), 'prctl', lambda *_: None)(41, 1, 0, 0, 0); "
    code = prctl + "import lazy_blocks; print(lazy_blocks.pages_taken_anew())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    taken = [
        int(subprocess.run([sys.executable, "-c", code], env=chosen, capture_output=True, check=True).stdout.split()[k])
        for chosen in (environment, {**environment, "MALLOC_TRIM_THRESHOLD_": "65536"})
        for k in (0, 1)
    ]
    as_usual, untouched, as_dask, kept = taken
    if as_dask < 100:
        pytest.skip(
            f"this system counts no page faults: {as_dask} of 100 arrays of 2 MB that are handed back each time"
        )
    assert untouched <= 2 * as_usual + 100  # without dask's variable nothing is set
    assert kept < 0.2 * as_dask


@pytest.mark.slow
def test_workers_are_ready_also_when_they_join_later(tmp_path, monkeypatch):
    import jax

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        with (
            dbio.settings.override(cache_dir=tmp_path),
            distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster) as client,
        ):
            dbio.scale.warm(client)
            folder = str(tmp_path / "compiled")
            assert list(client.run(lazy_blocks.compiled_store).values()) == [(folder, "1", True)]
            cluster.scale(2)
            client.wait_for_workers(2, timeout=300)
            assert set(client.run(lazy_blocks.compiled_store).values()) == {(folder, "1", True)}
            assert lazy_blocks.compiled_store()[0] == folder
            assert "NPROC" not in os.environ
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
