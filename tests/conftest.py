"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("DIFFBIO_SC_PROGRESS", "0")

# Compiling is most of what the tests cost, and most of that is optimisation of machine code, which changes rounding
# alone: the tests do without. Nor is a program split into parts that are compiled by themselves, which takes a fifth
# more in all. Benchmarks, notebooks and the demo run what users run; give XLA_FLAGS, empty or not, for the tests to do
# so too. Not every XLA has the other two flags, and one that it does not know ends a process: they are tried in another
# one, by the first process only.
if "XLA_FLAGS" not in os.environ:
    _PLAIN = "--xla_backend_optimization_level=0"
    _QUICK = f"{_PLAIN} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    _TRIED = subprocess.run(
        [sys.executable, "-c", "import jaxlib.xla_client as client; client.make_cpu_client()"],
        env={**os.environ, "XLA_FLAGS": _QUICK}, capture_output=True, check=False,
    )  # fmt: skip
    os.environ["XLA_FLAGS"] = _PLAIN if _TRIED.returncode else _QUICK

# Programs that one process has compiled the others take over: tests run side by side, and compiling is what they cost.
# The folder lives as long as the run; the process that made it takes it away.
_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="diffbio_sc_tests_")
    # Small programs too: loading one takes a third of the time of compiling it, and there are thousands.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Workers of dask stop for good where their process takes four fifths of what is theirs: the memory of the machine over
# its cores. Those of the tests live beside many others, some in the process of the tests, and hold little themselves.
for _what in ("TARGET", "SPILL", "PAUSE", "TERMINATE"):
    os.environ.setdefault(f"DASK_DISTRIBUTED__WORKER__MEMORY__{_what}", "False")

_MOST_MAPS, _MOST_BYTES = 20_000, 1_500_000_000
# Long files, and folders of such: a worker that gets one of them last keeps all others waiting.
_LONG = ("tl/test_beyond_memory.py", "tl/test_deconvolve.py", "operators", "tl", "numerics", "test_cli.py")


def pytest_configure(config):
    """Keep that order: left to itself, ``--dist loadfile`` begins with the files of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files first; within a file the order stays. Examples and real data are for machine code as users have it."""
    root = Path(__file__).parent
    for item in items:
        if item.get_closest_marker("data") or Path(item.path).name == "test_examples.py":
            item.add_marker("as_users")

    def place(item):
        path = Path(item.path).relative_to(root).as_posix()
        return next((number for number, long in enumerate(_LONG) if path.startswith(long)), len(_LONG))

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays: looking through it for garbage took 6 % of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


def pytest_sessionfinish(session):
    """Take the cache away, in the process that made it."""
    if _OWN_CACHE is not None:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real data with known truth; the test skips where it is not given."""
    path = os.environ.get("DIFFBIO_SC_DATA")
    if not path or not Path(path).is_dir():
        pytest.skip("needs real data: set DIFFBIO_SC_DATA to the folder that holds deconvolution/")
    return Path(path)


@pytest.fixture
def memory_store():
    """Store of zarr in memory. A result is hundreds of small arrays, and in files each takes five times as long."""
    return pytest.importorskip("zarr").storage.MemoryStore


@pytest.fixture(scope="module")
def workers():
    """Client of a cluster of two workers of one thread each, in processes of their own, which tests may kill."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with (
        # So long after a worker was lost dask looks whether there is one of its name, and closes the place if not: the
        # next test may have killed it again just then.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True, scope="session")
def _one_thread_of_blas():
    """On small matrices, with tests side by side, threads of BLAS wait for each other.

    The start of a small multi-omics VAE takes .13 s of CPU with one thread, and 1.35 s with two on a busy machine.
    """
    import scipy.linalg  # noqa: F401  # has a BLAS of its own, which must be there to be told
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


@pytest.fixture(autouse=True, scope="module")
def _few_compiled_programs():
    """Drop compiled programs before there are too many.

    Each holds memory maps, of which a process may have some 65,000, and those of a file of operators take 600 MB: with
    one process for each core, all of them together took 5 GB a process.
    """
    yield
    if "jax" in sys.modules and _holds_much():
        from diffbio_sc._compiled import release_memory

        sys.modules["jax"].clear_caches()
        gc.collect()
        release_memory()


def _holds_much() -> bool:
    own = Path("/proc/self")
    if not (own / "statm").exists():
        return False
    with (own / "maps").open("rb") as lines:
        number = sum(1 for _ in lines)
    held = int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return number > _MOST_MAPS or held > _MOST_BYTES


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
