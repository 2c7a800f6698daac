"""Compiled code takes turns: no thread of a scheduler or of a user waits for ever.

Each case runs in a process of its own under a time limit, because a hang cannot be ended from within.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMIT = 900  # seconds after which a case is taken to have stopped; they take a few, and minutes on a busy machine

TISSUE = """
import warnings; warnings.simplefilter("ignore")
import anndata as ad, numpy as np, pandas as pd
rng = np.random.default_rng(0)
profiles = rng.gamma(0.3, 1.0, (4, 300)) + 1e-3
share = rng.dirichlet(np.ones(4), 2400)
counts = rng.poisson(share @ (profiles / profiles.sum(1, keepdims=True)) * 600).astype(np.float32)
names = [f"g{i}" for i in range(300)]
reference = pd.DataFrame(profiles * 500, index=list("abcd"), columns=names)
spots = ad.AnnData(counts, var=pd.DataFrame(index=names))
spots.obsm["spatial"] = rng.uniform(0, 50, (2400, 2))
import dask, dask.array as da, diffbio_sc as dbio
spots.X = da.from_array(counts, chunks=(480, -1))  # five blocks
def run():
    dbio.tl.deconvolve(spots, reference, n_top_genes=300, smoothing=0.1)
    found = spots.obsm["deconvolution"].to_numpy()
    scale = 1 / profiles.sum(1)
    expected = share * scale / (share * scale).sum(1, keepdims=True)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1
    dbio.tl.spatial_genes(spots, genes=names[:20], variance=False)
    assert spots.var["spatial_pvalue"].notna().sum() == 20
"""

# Dask's default scheduler, then a local cluster of threads, in one process: what is compiled serves both.
SCHEDULERS = (
    TISSUE
    + """
from distributed import Client, LocalCluster
if __name__ == "__main__":
    run()
    with LocalCluster(n_workers=1, threads_per_worker=3, processes=False, dashboard_address=None) as cluster:
        with Client(cluster):
            run()
"""
)

# All functions in two plain threads at once, a lazy tissue of five blocks each.
FUNCTIONS = """
import warnings; warnings.simplefilter("ignore")
import threading
import dask.array as da, numpy as np, diffbio_sc as dbio
spots, cells = dbio.datasets.pbmc_tissue(n_spots=480)
from diffbio_sc.blocks import interface
interface.block_rows = lambda columns, budget: 96
def run(adata):
    dbio.tl.deconvolve(adata, cells, cell_type_key="cell_type")
    dbio.tl.spatial_genes(adata)
    dbio.tl.spatial_patterns(adata)
    fields = adata.obsm["deconvolution"], adata.var[["spatial_score", "fsv"]], adata.obsm["spatial_patterns"]
    return [np.asarray(field, np.float64) for field in fields]
def lazy():
    adata = spots.copy()
    adata.X = da.from_array(spots.X.toarray(), chunks=(96, -1))
    return adata
found, failed = [], []
def call():
    try:
        found.append(run(lazy()))
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if failed:
    raise failed[0]
for one in found:
    for values, alone in zip(one, run(spots), strict=True):
        np.testing.assert_allclose(values, alone, rtol=1e-6, atol=1e-6)
"""

TWO_THREADS = """
import threading
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
rng = np.random.default_rng(0)
def together(function):
    found, failed = [], []
    def call():
        try:
            found.append(jax.tree.map(np.asarray, function()))
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    if failed:
        raise failed[0]
    for one, other in zip(*(jax.tree.leaves(part) for part in found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
"""

OPERATORS = {
    "SpotSolver": """
from diffbio_sc.numerics.counts.spot_regression import SpotSolver
solver = SpotSolver(rng.dirichlet(np.ones(1000), 8).astype(np.float32), 0.05, 6)
counts = rng.poisson(1.0, (2048, 1000)).astype(np.float32)
together(lambda: solver(counts))
""",
    "SpatialDeconvolution": """
from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig
profiles = rng.dirichlet(np.ones(400), 5).astype(np.float32)
operator = SpatialDeconvolution(SpatialDeconvolutionConfig(n_cell_types=5, n_genes=400), rngs=nnx.Rngs(0))
data = {"spatial_expression": rng.poisson(2.0, (1024, 400)).astype(np.float32), "reference_profiles": profiles}
together(lambda: operator.apply(data)[0])
together(lambda: operator.solve(data["spatial_expression"], profiles))
""",
    "DifferentiableSpatialGeneDetector": """
from diffbio_sc.operators.multiomics.spatial_genes import DifferentiableSpatialGeneDetector, SpatialGeneDetectorConfig
config = SpatialGeneDetectorConfig(n_genes=60, lengthscale=2.0)
operator = DifferentiableSpatialGeneDetector(config, rngs=nnx.Rngs(0))
data = {"spatial_coords": rng.uniform(0, 15, (400, 2)), "expression": rng.normal(size=(400, 60)).astype(np.float32)}
together(lambda: operator.apply(data)[0])
""",
}


def _run(code: str) -> None:
    # Just before the limit it tells where its threads are.
    code = f"import faulthandler; faulthandler.dump_traceback_later({LIMIT - 20}, exit=True)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], timeout=LIMIT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_blocks_on_several_threads_end():
    pytest.importorskip("distributed")
    _run(SCHEDULERS)


@pytest.mark.slow
def test_functions_in_two_plain_threads_give_what_one_gives():
    pytest.importorskip("dask")
    _run(FUNCTIONS)


@pytest.mark.parametrize("name", OPERATORS)
def test_two_plain_threads_end_and_agree(name):
    _run(TWO_THREADS + OPERATORS[name])
