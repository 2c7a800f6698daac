from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from no_warnings import no_warnings
from scipy.stats import false_discovery_control

import diffbio_sc as dbio

COLUMNS = [
    "spatial_pvalue",
    "spatial_padj",
    "spatial_lfdr",
    "spatial_score",
    "is_spatial",
    "fsv",
    "fsv_se",
    "spatial_lengthscale",
    "spatial_lengthscale_at_bound",
]


def make(seed=0, *, spots=250, genes=120, planted=20, axes=2, slides=1):
    """Counts of genes without pattern, and ``planted`` first ones with a hot spot or a gradient."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 16, (spots, axes))
    depth = rng.lognormal(0, 0.4, spots)
    rate = rng.gamma(2.0, 2.0, genes) + 0.3
    rate[:planted] = 2.0
    rate[-3:] = 100.0  # most of the depth: planted genes hardly change the totals
    effect = np.ones((spots, genes))
    hot = ((places - 8) ** 2).sum(1) < 25
    effect[:, : planted // 2] += 2.5 * hot[:, None]
    effect[:, planted // 2 : planted] = 0.2 + 1.6 * places[:, :1] / 16
    mean = depth[:, None] * rate * effect
    counts = rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(np.float32)
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"slide": pd.Categorical([f"s{i}" for i in np.arange(spots) % slides])},
            index=[f"spot{i}" for i in range(spots)],
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(genes)]),
    )
    adata.obsm["spatial"] = places
    return adata


@pytest.fixture(scope="module")
def _tissue():
    return make()


@pytest.fixture
def tissue(_tissue):
    return _tissue.copy()


def test_planted_genes_are_found_and_results_are_complete(tissue):
    dbio.tl.spatial_genes(tissue)
    var = tissue.var
    assert list(var.columns) == COLUMNS
    assert var["is_spatial"][:20].sum() >= 18
    assert var["is_spatial"][20:].sum() <= 3
    np.testing.assert_allclose(var["spatial_padj"], false_discovery_control(var["spatial_pvalue"]))
    np.testing.assert_array_equal(var["is_spatial"], var["spatial_padj"] < 0.05)
    np.testing.assert_allclose(var["spatial_score"], -np.log10(var["spatial_pvalue"]), rtol=1e-6)
    assert var["fsv"].between(0, 1).all()
    assert var["fsv"][:20].median() > 0.15
    assert var["fsv"][20:].median() < 0.1
    record = tissue.uns["spatial_genes"]
    assert set(record) >= {"params", "version", "report", "spacing", "lengthscales", "n_tested", "n_spatial"}
    assert record["n_tested"] == 120
    assert record["n_spatial"] == var["is_spatial"].sum()
    assert record["spacing"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("kind", ["csr", "csc", "backed-dense", "backed-csr", "dask", "dask-sparse", "layer"])
def test_input_kinds_give_the_same_result(tissue, tmp_path, kind):
    expected = tissue.copy()
    dbio.tl.spatial_genes(expected)
    counts = tissue.X
    if kind == "csr":
        tissue.X = sp.csr_matrix(counts)
    elif kind == "csc":
        tissue.X = sp.csc_matrix(counts)
    elif kind == "layer":
        tissue.layers["counts"] = sp.csr_matrix(counts)
        tissue.X = np.log1p(counts)
    elif kind.startswith("dask"):
        da = pytest.importorskip("dask.array")
        array = da.from_array(counts, chunks=(60, 50))
        tissue.X = array.map_blocks(sp.csr_matrix) if kind == "dask-sparse" else array
    else:
        tissue.X = sp.csr_matrix(counts) if kind == "backed-csr" else counts
        tissue.write_h5ad(tmp_path / "t.h5ad")
        tissue = ad.read_h5ad(tmp_path / "t.h5ad", backed="r")
    dbio.tl.spatial_genes(tissue, layer="counts" if kind == "layer" else None)
    for column in COLUMNS:
        np.testing.assert_allclose(
            tissue.var[column].astype(float), expected.var[column].astype(float), rtol=1e-4, atol=1e-6, err_msg=column
        )


def test_dask_cluster_gives_the_single_machine_result(tissue):
    distributed = pytest.importorskip("dask.distributed")
    da = pytest.importorskip("dask.array")
    expected = tissue.copy()
    dbio.tl.spatial_genes(expected)
    tissue.X = da.from_array(tissue.X, chunks=(100, -1))
    with distributed.Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None):
        dbio.tl.spatial_genes(tissue)
    np.testing.assert_allclose(tissue.var["spatial_score"], expected.var["spatial_score"], rtol=1e-5)


def test_order_of_spots_and_genes_does_not_matter(tissue):
    rng = np.random.default_rng(0)
    shuffled = tissue[rng.permutation(250), rng.permutation(120)].copy()
    dbio.tl.spatial_genes(tissue)
    dbio.tl.spatial_genes(shuffled)
    np.testing.assert_allclose(
        shuffled.var["spatial_score"][tissue.var_names], tissue.var["spatial_score"], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(shuffled.var["fsv"][tissue.var_names], tissue.var["fsv"], atol=2e-3)


def test_large_tissue_and_seed():
    adata = make(1, spots=1400, genes=40, planted=10)
    again = adata.copy()
    dbio.tl.spatial_genes(adata, rng=3)
    dbio.tl.spatial_genes(again, rng=3)
    assert adata.var["is_spatial"][:10].all()
    assert adata.var["is_spatial"][10:].sum() <= 2
    pd.testing.assert_frame_equal(adata.var, again.var)


def test_subset_of_genes_keeps_the_depth_of_all(tissue):
    chosen = ["gene0", "gene5", "gene50", "gene51", "gene52"]
    whole = tissue.copy()
    dbio.tl.spatial_genes(whole)
    dbio.tl.spatial_genes(tissue, genes=chosen)
    assert tissue.var["spatial_pvalue"].notna().sum() == 5
    assert set(tissue.var_names[tissue.var["spatial_pvalue"].notna()]) == set(chosen)
    assert not tissue.var["is_spatial"].drop(chosen).any()
    # The common dispersion is that of the genes tested, all else is the same.
    np.testing.assert_allclose(tissue.var["spatial_score"][chosen], whole.var["spatial_score"][chosen], rtol=0.3)
    totals = tissue.copy()
    totals.obs["totals"] = np.asarray(totals.X.sum(1)).ravel()
    dbio.tl.spatial_genes(totals, genes=chosen, total_counts_key="totals")
    pd.testing.assert_series_equal(totals.var["spatial_pvalue"], tissue.var["spatial_pvalue"])


def test_covariates_of_obsm_and_obs(tissue):
    places = tissue.obsm["spatial"]
    hot = (((places - 8) ** 2).sum(1) < 25).astype(float)
    tissue.obsm["deconvolution"] = pd.DataFrame({"A": hot, "B": 1 - hot}, index=tissue.obs_names)
    tissue.obs["region"] = pd.Categorical(np.where(hot > 0, "in", "out"))
    dbio.tl.spatial_genes(tissue)
    assert tissue.var["is_spatial"][:10].sum() >= 9
    dbio.tl.spatial_genes(tissue, covariates="deconvolution", key_added="beyond")
    assert tissue.var["beyond_is_spatial"][:10].sum() <= 2
    assert tissue.var["beyond_is_spatial"][10:20].sum() >= 8
    assert tissue.uns["beyond"]["params"]["covariates"] == "deconvolution"
    dbio.tl.spatial_genes(tissue, covariates=["region"], key_added="by_obs")
    np.testing.assert_allclose(tissue.var["by_obs_spatial_score"], tissue.var["beyond_spatial_score"], rtol=1e-4)


def test_covariates_with_standard_deviations_are_smoothed():
    """A region read with an error at each spot leaves its pattern in the genes that follow it; its smooth part none."""
    adata = make(4, spots=900)
    rng = np.random.default_rng(0)
    hill = np.exp(-((adata.obsm["spatial"] - 8) ** 2).sum(1) / (2 * 3.0**2))
    adata.X[:, :10] = rng.poisson(2.0 * (1 + 2.5 * hill[:, None]), (900, 10))
    adata.obsm["region"] = (hill + rng.normal(0, 0.3, 900))[:, None]
    dbio.tl.spatial_genes(adata, covariates="region", variance=False)
    assert not adata.uns["spatial_genes"]["params"]["smooth_covariates"]
    assert adata.var["is_spatial"][:10].all()
    asked = dbio.tl.spatial_genes(adata, covariates="region", smooth_covariates=True, variance=False, copy=True)
    adata.obsm["region_std"] = np.full((900, 1), 0.3)
    dbio.tl.spatial_genes(adata, covariates="region", variance=False)
    assert adata.uns["spatial_genes"]["params"]["smooth_covariates"]
    assert adata.var["is_spatial"][:10].sum() <= 2
    assert adata.var["is_spatial"][10:20].all()
    pd.testing.assert_series_equal(adata.var["spatial_score"], asked.var["spatial_score"])
    dbio.tl.spatial_genes(adata, covariates="region", smooth_covariates=False, variance=False)
    assert adata.var["is_spatial"][:10].all()


def test_spots_with_missing_covariates_are_left_out(tissue):
    values = np.random.default_rng(0).normal(size=250)
    values[:7] = np.nan
    tissue.obs["age"] = values
    with pytest.warns(UserWarning, match="7 spots with missing covariates"):
        dbio.tl.spatial_genes(tissue, covariates=["age"])
    assert tissue.uns["spatial_genes"]["n_spots"] == 243


def test_slides_are_tested_jointly():
    adata = make(2, spots=500, slides=2)
    adata.X[(adata.obs["slide"] == "s1").to_numpy()] *= 3  # a batch effect in all genes
    dbio.tl.spatial_genes(adata, library_key="slide")
    assert adata.var["is_spatial"][:20].all()
    assert adata.var["is_spatial"][20:].sum() <= 4
    one = adata[adata.obs["slide"] == "s0"].copy()
    dbio.tl.spatial_genes(one)
    assert adata.var["spatial_score"][:20].mean() > one.var["spatial_score"][:20].mean()


def test_three_dimensions():
    for spots in (300, 900):
        adata = make(3, spots=spots, axes=3, genes=60)
        dbio.tl.spatial_genes(adata)
        assert adata.var["is_spatial"][10:20].sum() >= 9
        assert adata.var["is_spatial"][20:].sum() <= 3


def test_smoothed_expression_follows_the_pattern(tissue):
    dbio.tl.spatial_genes(tissue, smooth=True)
    layer = tissue.layers["spatial_smoothed"]
    spatial = tissue.var["is_spatial"].to_numpy()
    assert np.isfinite(layer[:, spatial]).all()
    assert np.isnan(layer[:, ~spatial]).all()
    gradient = tissue.obsm["spatial"][:, 0]
    relative = np.asarray(tissue.X.sum(1)).ravel()
    for gene in np.flatnonzero(spatial & (np.arange(120) >= 10) & (np.arange(120) < 20)):
        raw = tissue.X[:, gene] / relative
        assert np.corrcoef(layer[:, gene], gradient)[0, 1] > max(0.9, np.corrcoef(raw, gradient)[0, 1])
        assert layer[:, gene].mean() == pytest.approx(tissue.X[:, gene].mean(), rel=0.15)


def test_results_survive_h5ad(tissue, tmp_path):
    tissue.X = sp.csr_matrix(tissue.X)
    dbio.tl.spatial_genes(tissue, smooth=True, covariates=None)
    tissue.write_h5ad(tmp_path / "t.h5ad")
    again = ad.read_h5ad(tmp_path / "t.h5ad")
    pd.testing.assert_frame_equal(again.var, tissue.var)
    np.testing.assert_array_equal(again.layers["spatial_smoothed"], tissue.layers["spatial_smoothed"])
    np.testing.assert_allclose(again.uns["spatial_genes"]["lengthscales"], tissue.uns["spatial_genes"]["lengthscales"])


def test_copy_view_and_rerun(tissue):
    result = dbio.tl.spatial_genes(tissue, copy=True)
    assert not len(tissue.var.columns)
    view = tissue[:, :60]
    dbio.tl.spatial_genes(view)
    assert list(view.var.columns) == COLUMNS
    before = result.var.copy()
    dbio.tl.spatial_genes(result)
    pd.testing.assert_frame_equal(result.var, before)


def test_yekutieli_is_stricter(tissue):
    by = dbio.tl.spatial_genes(tissue, fdr="by", copy=True)
    dbio.tl.spatial_genes(tissue)
    np.testing.assert_allclose(
        by.var["spatial_padj"], false_discovery_control(tissue.var["spatial_pvalue"], method="by")
    )
    assert (by.var["spatial_padj"] >= tissue.var["spatial_padj"]).all()


def test_degenerate_genes_and_spots_are_not_significant(tissue):
    tissue.X[:, 30] = 0
    tissue.X[:, 31] = 0
    tissue.X[:2, 31] = 5
    tissue.X[10] = 0  # an empty spot
    tissue.obsm["spatial"][20] = tissue.obsm["spatial"][21]  # two spots in one place
    dbio.tl.spatial_genes(tissue)
    assert tissue.var["spatial_pvalue"][30:32].isna().all()
    assert tissue.var["fsv"][30:32].isna().all()
    assert not tissue.var["is_spatial"][30:32].any()
    assert tissue.uns["spatial_genes"]["n_spots"] == 249
    assert tissue.var["is_spatial"][:20].sum() >= 18


def test_totals_that_are_a_pattern_of_few_genes_get_a_warning():
    """A quarter of 200 genes shares a hot spot: other genes seem depleted there, unless depth comes from elsewhere."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 20, (400, 2))
    hot = (((places - 8) ** 2).sum(1) < 40)[:, None]
    truth = np.arange(200) < 50
    mean = rng.lognormal(0, 0.2, (400, 1)) * (rng.gamma(2, 1, 200) + 0.2) * (1 + 3 * hot * truth)
    adata = ad.AnnData(rng.poisson(mean).astype(np.float32))
    adata.obsm["spatial"] = places
    with pytest.warns(UserWarning, match="pattern of few genes.*total_counts_key"):
        dbio.tl.spatial_genes(adata, variance=False)
    harmed = adata.var["is_spatial"][~truth].sum()
    adata.obs["even"] = adata.X[:, ~truth].sum(1)
    with no_warnings():
        dbio.tl.spatial_genes(adata, variance=False, total_counts_key="even")
    assert adata.var["is_spatial"][truth].sum() >= 48
    assert adata.var["is_spatial"][~truth].sum() <= min(6, harmed / 2)


def test_totals_that_few_genes_change_a_little_get_a_warning():
    """A quarter of the genes is raised by half only: the variation of totals is mostly that of all genes."""
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 20, (600, 2))
    hot = (((places - 8) ** 2).sum(1) < 40)[:, None]
    even = rng.lognormal(0, 0.2, (600, 1)) * (rng.gamma(2, 1, 200) + 0.2)
    for effect, warned in ((0.0, False), (1.0, True)):
        adata = ad.AnnData(rng.poisson(even * (1 + effect * hot * (np.arange(200) < 50))).astype(np.float32))
        adata.obsm["spatial"] = places
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dbio.tl.spatial_genes(adata, variance=False)
        assert any("total_counts_key" in str(one.message) for one in caught) == warned
        assert (adata.var["is_spatial"][50:].sum() > 10) == warned  # the harm that the warning is about


def _normalised(adata):
    adata.X = np.log1p(adata.X)


def _missing_value(adata):
    adata.X[3, 4] = np.nan


def _negative(adata):
    adata.X[3, 4] = -1


def _bad_coordinate(adata):
    adata.obsm["spatial"][5, 0] = np.nan


def _same_place(adata):
    adata.obsm["spatial"][:] = 1.0


def _four_columns(adata):
    adata.obsm["spatial"] = np.zeros((250, 4))


def _same_names(adata):
    adata.var_names = ["gene0", *adata.var_names[:-1]]


def _nothing(adata):
    pass


@pytest.mark.parametrize(
    ("damage", "options", "error", "message"),
    [
        (_normalised, {}, ValueError, "raw counts, found non-integer"),
        (_missing_value, {}, ValueError, "'gene4'"),
        (_negative, {}, ValueError, "negative"),
        (_bad_coordinate, {}, ValueError, "spot5"),
        (_same_place, {}, ValueError, "same coordinates"),
        (_four_columns, {}, ValueError, "2 or 3 columns"),
        (_same_names, {}, ValueError, "var_names"),
        (_nothing, {"spatial_key": "X_spatial"}, KeyError, "X_spatial"),
        (_nothing, {"layer": "counts"}, KeyError, "counts"),
        (_nothing, {"library_key": "batch"}, KeyError, "batch"),
        (_nothing, {"covariates": "composition"}, KeyError, "composition"),
        (_nothing, {"covariates": np.zeros((3, 2))}, ValueError, "row for each of the 250 spots"),
        (_nothing, {"smooth_covariates": True}, ValueError, "needs covariates"),
        (_nothing, {"smooth_covariates": "yes"}, ValueError, "True, False or None, found 'yes'"),
        (_nothing, {"genes": ["gene1", "nope"]}, ValueError, "nope"),
        (_nothing, {"genes": ["gene1", "gene1"]}, ValueError, "genes"),
        (_nothing, {"total_counts_key": "total"}, KeyError, "total"),
        (_nothing, {"alpha": 1.5}, ValueError, "alpha"),
        (_nothing, {"fdr": "storey"}, ValueError, "fdr"),
        (_nothing, {"lengthscales": [1.0, -2.0]}, ValueError, "lengthscales"),
        (_nothing, {"smooth": True, "variance": False}, ValueError, "variance"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(tissue, damage, options, error, message):
    damage(tissue)
    with pytest.raises(error, match=message):
        dbio.tl.spatial_genes(tissue, **options)
    assert not len(tissue.var.columns)
    assert not len(tissue.uns)


def test_too_few_spots(tissue):
    with pytest.raises(ValueError, match="at least 10 spots"):
        dbio.tl.spatial_genes(tissue[:9].copy())
    with pytest.raises(TypeError, match="AnnData"):
        dbio.tl.spatial_genes(tissue.X)


@pytest.mark.data
def test_markers_of_the_olfactory_bulb(data_folder):
    """Ten markers of the original SpatialDE study: median rank at most 300, eight found at 5 % FDR."""
    adata = ad.read_h5ad(data_folder / "spatial_genes" / "mob_rep11.h5ad")
    dbio.tl.spatial_genes(adata, variance=False)
    markers = ["Doc2g", "Slc17a7", "Reln", "Cdhr1", "Sv2b", "Shisa3", "Plcxd2", "Nmb", "Uchl1", "Rcan2"]
    rank = adata.var["spatial_score"].rank(ascending=False)
    assert rank[markers].median() <= 300
    assert adata.var["is_spatial"][markers].sum() >= 8
