"""Functions on matrices that are read block by block: passes, lazy objects, clusters, chunks that cannot be read."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc.blocks import interface, kept
from diffbio_sc.numerics.spatial import score_test, variance

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
lazy_blocks = pytest.importorskip("lazy_blocks", exc_type=ImportError)

SPOTS, CHUNK = 480, 96
FIELDS = {
    "deconvolution": lambda a: a.obsm["deconvolution"].to_numpy(),
    "spatial_genes": lambda a: column(a, "spatial_score"),
    "variance": lambda a: column(a, "fsv"),
    "patterns": lambda a: np.asarray(a.obsm["spatial_patterns"], np.float64),
}


def column(adata, key):
    return dbio.get.spatial_genes(adata).set_index("gene")[key].reindex(adata.var_names).to_numpy()


@pytest.fixture(scope="module")
def tissue():
    spots, cells = dbio.datasets.pbmc_tissue(n_spots=SPOTS)
    spots.obs["slide"] = pd.Categorical(np.where(np.arange(spots.n_obs) < 200, "left", "right"))
    return spots, cells


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of one chunk, so that there are five."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interface, "block_rows", lambda columns, budget: CHUNK)
        yield


def run(spots, cells, *, variance=True):
    dbio.tl.deconvolve(spots, cells, cell_type_key="cell_type", library_key="slide", smoothing=0.2)
    dbio.tl.spatial_genes(spots, library_key="slide", variance=variance)
    return spots


@pytest.fixture(scope="module")
def expected(tissue):
    spots, cells = tissue
    return run(spots.copy(), cells)


@pytest.fixture(scope="module")
def patterns(expected):
    """The tested tissue with its patterns."""
    found = expected.copy()
    dbio.tl.spatial_patterns(found)
    return found


def agree(found, expected, names=("deconvolution", "spatial_genes", "variance")):
    for name in names:
        np.testing.assert_allclose(FIELDS[name](found), FIELDS[name](expected), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        np.asarray(found.obs["deconvolution_fit"], np.float32), expected.obs["deconvolution_fit"], atol=1e-6
    )


def lazily(spots, log, size=CHUNK, **options):
    found = spots.copy()
    found.X = lazy_blocks.lazy(spots.X.toarray(), log, size, **options)
    return found


def test_chunks_are_read_once_whatever_the_number_of_passes(tissue, expected, tmp_path):
    spots, cells = tissue
    lazy = lazily(spots, tmp_path / "log")
    matrix = lazy.X
    dbio.tl.deconvolve(lazy, cells, cell_type_key="cell_type", library_key="slide", smoothing=0.2)
    assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [1] * 5
    dbio.tl.spatial_genes(lazy, library_key="slide")
    assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [2] * 5
    assert lazy.X is matrix
    agree(lazy, expected)


def test_where_nothing_can_be_kept_chunks_are_read_in_three_passes_and_one_more_to_smooth(
    tissue, expected, tmp_path, monkeypatch
):
    spots, cells = tissue
    monkeypatch.setattr(kept, "keep", lambda block, path: None)
    lazy = lazily(spots, tmp_path / "log")
    dbio.tl.deconvolve(lazy, cells, cell_type_key="cell_type", library_key="slide")
    reads = lazy_blocks.reads(tmp_path / "log", CHUNK)
    assert reads.tolist() == [3] * 5  # checks and sums, depth and sample, regression
    dbio.tl.deconvolve(lazy, cells, cell_type_key="cell_type", library_key="slide", smoothing=0.2)
    assert (lazy_blocks.reads(tmp_path / "log", CHUNK) - reads).tolist() == [4] * 5
    dbio.tl.spatial_genes(lazy, library_key="slide")
    assert (lazy_blocks.reads(tmp_path / "log", CHUNK) - reads).tolist() == [6] * 5
    agree(lazy, expected)


@pytest.mark.parametrize("genes", [2000, 20_000])
def test_chunks_are_read_once_whatever_the_number_of_genes(tissue, tmp_path, genes):
    spots, _ = tissue
    rng = np.random.default_rng(0)
    more = sp.random_array((spots.n_obs, genes - spots.n_vars), density=0.02, rng=rng, data_sampler=rng.poisson)
    wide = ad.AnnData(sp.hstack([spots.X, more.astype(np.float32)], format="csr"), obs=spots.obs, obsm=dict(spots.obsm))
    lazy = lazily(wide, tmp_path / "log")
    dbio.tl.spatial_genes(lazy, variance=False)
    assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [1] * 5
    dbio.tl.spatial_genes(wide, variance=False)
    np.testing.assert_allclose(column(lazy, "spatial_score"), column(wide, "spatial_score"), rtol=1e-6)


@pytest.mark.parametrize("where", ["h5ad", "zarr", "elements", "from_zarr"])
def test_lazy_objects_stay_lazy_and_give_the_same(tissue, expected, patterns, tmp_path, where):
    zarr = pytest.importorskip("zarr")
    experimental = pytest.importorskip("anndata.experimental")
    pytest.importorskip("xarray")
    spots, cells = tissue
    path = tmp_path / ("spots.h5ad" if where == "h5ad" else "spots.zarr")
    (spots.write_h5ad if where == "h5ad" else spots.write_zarr)(path)
    if where in ("h5ad", "zarr"):
        lazy = experimental.read_lazy(path)
        assert not isinstance(lazy.obs, pd.DataFrame)
    else:
        lazy = spots.copy()
        if where == "elements":
            lazy.X = experimental.read_elem_lazy(zarr.open(path)["X"], chunks=(CHUNK, spots.n_vars))
        else:
            dense = zarr.create_array(tmp_path / "dense.zarr", data=spots.X.toarray(), chunks=(CHUNK, 200))
            lazy.X = da.from_zarr(dense)  # chunked along the genes as well
    matrix = lazy.X
    run(lazy, cells)
    assert lazy.X is matrix
    agree(lazy, expected)
    dbio.tl.spatial_patterns(lazy)
    np.testing.assert_allclose(FIELDS["patterns"](lazy), FIELDS["patterns"](patterns), rtol=1e-4, atol=1e-4)
    assert lazy.X is matrix


def test_genomic_bins_of_a_lazy_object(tmp_path):
    experimental = pytest.importorskip("anndata.experimental")
    pytest.importorskip("xarray")
    fragments, _, cell_types = dbio.datasets.simulate_fragments()
    bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    bins.write_h5ad(tmp_path / "bins.h5ad")
    lazy = experimental.read_lazy(tmp_path / "bins.h5ad")
    matrix = lazy.X
    dbio.tl.peaks(lazy, mode="narrow")
    dbio.tl.peaks(bins, mode="narrow")
    pd.testing.assert_frame_equal(dbio.get.peaks(lazy), dbio.get.peaks(bins))
    assert lazy.X is matrix


def test_threads_of_a_cluster_give_the_same(tissue, expected, patterns, tmp_path):
    spots, cells = tissue
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        lazy = run(lazily(spots, tmp_path / "log"), cells)
        dbio.tl.spatial_patterns(lazy)
    agree(lazy, patterns, FIELDS)
    assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [3] * 5  # once a function


@pytest.mark.parametrize("function", ["deconvolve", "spatial_genes"])
def test_a_chunk_that_cannot_be_read_is_named_and_nothing_written(tissue, tmp_path, function):
    spots, cells = tissue
    lazy = lazily(spots, tmp_path / "log", trouble=192)
    arguments = {"deconvolve": {"reference": cells, "cell_type_key": "cell_type"}, "spatial_genes": {}}[function]
    with pytest.raises(RuntimeError, match=r"chunk \(2, 0\) .*rows 192 to 287 .*checksum does not match"):
        getattr(dbio.tl, function)(lazy, **arguments)
    assert list(lazy.uns) == []
    assert list(lazy.obsm) == list(spots.obsm)
    assert list(lazy.var) == list(spots.var)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same(tissue, expected, patterns, tmp_path, workers):
    spots, cells = tissue
    tested = lazily(expected, tmp_path / "again")
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=3 - workers, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        agree(run(lazily(spots, tmp_path / "log"), cells, variance=False), expected, ("deconvolution", "spatial_genes"))
        dbio.tl.spatial_patterns(tested)
    agree(tested, patterns, FIELDS)
    assert lazy_blocks.reads(tmp_path / "log", CHUNK).tolist() == [2] * 5
    assert lazy_blocks.reads(tmp_path / "again", CHUNK).tolist() == [1] * 5


@pytest.mark.slow
def test_what_genes_share_is_prepared_by_the_workers_alone(tissue, tmp_path, monkeypatch):
    """Null laws and kernels of the sample: the session does not compute while workers stand still."""
    spots, _ = tissue
    here = spots.copy()
    dbio.tl.spatial_genes(here, library_key="slide")

    def refuse(*_, **__):
        raise AssertionError("the session does what its workers could share.")

    monkeypatch.setattr(variance, "eigh", refuse)
    monkeypatch.setattr(score_test.SpatialScoreTest, "_cumulants", refuse)
    lazy = lazily(spots, tmp_path / "log")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        dbio.tl.spatial_genes(lazy, library_key="slide")
    pd.testing.assert_frame_equal(lazy.var, here.var)
    with pytest.raises(AssertionError, match="workers could share"):  # without workers the session does
        dbio.tl.spatial_genes(lazy, library_key="slide")


# Check, depth and sample, regression, smoothing; sums, shuffle: by which read of a chunk, or of what was kept of it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "stored"),
    [("read 1", True), ("read 1", False), *((f"kept {number}", True) for number in (1, 2, 3)), ("read 2", True)]
    + [("read 2", False), ("kept 4", True)],
)
def test_a_lost_worker_changes_nothing_at_any_stage(tissue, expected, tmp_path, stage, stored):
    spots, cells = tissue
    log, (what, number) = tmp_path / "log", stage.split()
    lazy = lazily(spots, log, fatal=(3 * CHUNK, int(number)) if what == "read" else None, stored=stored)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        if what == "kept":
            client.run(lazy_blocks.die_at_load, log, 3 * CHUNK, int(number))
        found = run(lazy, cells, variance=False)
    agree(found, expected, ("deconvolution", "spatial_genes"))
    assert (log / "dead").exists()
    again = lazy_blocks.reads(log, CHUNK) - 2  # once a function
    if stored:  # the chunk in work; of the others the worker has kept what it read
        assert again.tolist() == [0, 0, 0, int(what == "read"), 0]
    else:  # dask makes chunks of a shared array anew if what was made of them had not been fetched
        assert again.min() >= 0
        assert again.max() == again[3] == 1
