"""Faults found in use of the spatial faces: types, keys, names, objects, seeds."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from no_warnings import no_warnings

import diffbio_sc as dbio

TYPES = ["bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32"]


def tissue(dtype="float64", *, largest=100):
    """Spots with counts up to ``largest``, and profiles of three types."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(12.0), np.arange(10.0)), -1).reshape(-1, 2)
    profiles = rng.gamma(0.5, 1.0, (3, 40)) + 0.05
    share = np.stack([places[:, 0], places[:, 1], np.full(120, 4.0)], 1) ** 2 + 1
    mean = share / share.sum(1, keepdims=True) @ (profiles / profiles.sum(1, keepdims=True))
    counts = np.minimum(rng.poisson(mean * 0.4 * largest * 40 / 8), largest)
    if dtype == "bool":
        counts = counts > np.median(counts)
    adata = ad.AnnData(
        counts.astype(np.float64),
        obs=pd.DataFrame(index=[f"s{i}" for i in range(120)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(40)]),
        obsm={"spatial": places},
    )
    reference = pd.DataFrame(profiles * 1000, index=["A", "B", "C"], columns=adata.var_names)
    return adata, reference


def run_all(adata, reference):
    dbio.tl.spatial_genes(adata, smooth=True)
    dbio.tl.spatial_patterns(adata, n_patterns=2)
    dbio.tl.deconvolve(adata, reference, reconstruct=True)
    maps = dbio.pl.spatial_genes(adata, kind="maps", genes=["g0"], show=False)
    return [
        adata.var.select_dtypes("number").to_numpy(float),
        adata.layers["spatial_smoothed"],
        adata.obsm["spatial_patterns"].to_numpy(),
        adata.obsm["deconvolution"].to_numpy(),
        adata.obsm["deconvolution_abundance"].to_numpy(),
        adata.layers["deconvolution_reconstructed"],
        np.asarray(maps[0].collections[0].get_array()),
    ]


@pytest.fixture(scope="module")
def expected():
    found = {}

    def of(kind, largest):
        if (kind, largest) not in found:
            found[kind, largest] = run_all(*tissue(kind, largest=largest))
        return found[kind, largest]

    return of


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_number_gives_what_float64_gives(dtype, sparse, expected):
    kind = "bool" if dtype == "bool" else "number"
    # Squares of these do not fit their own types: counts up to 46,341 and more in 32 bits.
    largest = {"int8": 120, "uint8": 250, "float16": 2000, "bool": 100}.get(dtype, 30_000)
    if dtype.endswith(("32", "64")) and "int" in dtype:
        largest = 60_000
    adata, reference = tissue(kind, largest=largest)
    stored = adata.X.astype(dtype)
    if sparse:
        truth = sp.csr_matrix(adata.X)
        stored = sp.csr_matrix(truth)
        stored.data = stored.data.astype(dtype)
    adata.X = stored
    assert adata.X.dtype == dtype
    for one, other in zip(run_all(adata, reference), expected(kind, largest), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("key", ["run1/decon", "a\\b", "", ".."])
@pytest.mark.parametrize("face", ["deconvolve", "spatial_genes", "spatial_patterns"])
def test_keys_that_files_cannot_hold_are_refused_before_any_work(face, key):
    adata, reference = tissue()
    adata.X[0, 0] = np.nan  # would be found by any work
    arguments = (adata, reference) if face == "deconvolve" else (adata,)
    with pytest.raises(ValueError, match="key_added must"):
        getattr(dbio.tl, face)(*arguments, key_added=key)


@pytest.mark.parametrize("face", ["deconvolve", "spatial_genes", "spatial_patterns"])
def test_seeds_of_every_kind(face):
    adata, reference = tissue()
    dbio.tl.spatial_genes(adata)
    arguments = (adata, reference) if face == "deconvolve" else (adata,)
    for rng in (None, 3, np.random.RandomState(3), np.random.default_rng(3)):
        getattr(dbio.tl, face)(*arguments, rng=rng)
    for rng, error in ((-1, ValueError), (1.5, TypeError), ("a", TypeError)):
        with pytest.raises(error, match="rng must be"):
            getattr(dbio.tl, face)(*arguments, rng=rng)


@pytest.mark.parametrize("face", ["deconvolve", "spatial_genes", "spatial_patterns"])
def test_a_path_is_told_to_be_read_first(face):
    _, reference = tissue()
    arguments = ("spots.h5ad", reference) if face == "deconvolve" else ("spots.h5ad",)
    with pytest.raises(TypeError, match=r"adata must be an AnnData, found str 'spots.h5ad': read the file first"):
        getattr(dbio.tl, face)(*arguments)


def test_a_reference_given_as_a_path_is_told_to_be_read_first():
    adata, _ = tissue()
    with pytest.raises(
        TypeError, match=r"reference must be an AnnData or a table, found str 'ref.h5ad': read the file first"
    ):
        dbio.tl.deconvolve(adata, "ref.h5ad", cell_type_key="cell_type")


def test_counts_in_raw_are_pointed_to():
    adata, reference = tissue()
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X)
    for call in (lambda: dbio.tl.spatial_genes(adata), lambda: dbio.tl.deconvolve(adata, reference)):
        with pytest.raises(ValueError, match=r"adata\.raw seems to hold counts: pass adata\.raw\.to_adata\(\)"):
            call()
    dbio.tl.spatial_genes(adata.raw.to_adata())


def test_integer_gene_ids_match_their_text():
    adata, reference = tissue()
    adata.var_names = [str(1000 + i) for i in range(40)]
    reference.columns = np.arange(1000, 1040)
    dbio.tl.deconvolve(adata, reference)
    assert np.isfinite(adata.obsm["deconvolution"].to_numpy()).all()


def test_ids_in_another_column_are_pointed_to():
    adata, reference = tissue()
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{i:011d}" for i in range(40)]
    with pytest.raises(ValueError, match="'symbol' of the table of adata.var_names would match 40: make it the names"):
        dbio.tl.deconvolve(adata, reference)


def test_few_shared_names_are_warned_of_with_numbers():
    adata, reference = tissue()
    adata.var_names = [name if i < 12 else name.upper() for i, name in enumerate(adata.var_names)]
    with pytest.warns(UserWarning, match=r"share 12 names of 40 and 40, which is few.*40 would match in another case"):
        dbio.tl.deconvolve(adata, reference)
    adata, reference = tissue()
    with no_warnings():
        dbio.tl.deconvolve(adata[:, :15].copy(), reference)  # a small panel that the reference covers


def test_cells_without_labels_are_not_taken_for_types():
    adata, _ = tissue()
    rng = np.random.default_rng(0)
    cells = ad.AnnData(
        rng.poisson(1.0, (300, 40)).astype(np.float32),
        obs=pd.DataFrame({"kind": ["a", "b", "c"] * 100, "barcode": np.arange(300)}, index=map(str, range(300))),
        var=pd.DataFrame(index=adata.var_names),
    )
    with pytest.raises(ValueError, match=r"300 rows; without cell_type_key each.*\['kind'\]"):
        dbio.tl.deconvolve(adata, cells)


def test_spots_without_cells_go_without_the_prior():
    adata, reference = tissue()
    cells = np.full(120, 3.0)
    cells[4], cells[7] = 0, np.nan
    adata.obs["n"] = cells
    with pytest.warns(UserWarning, match=r"2 of 120 spots have no cells in adata.obs\['n'\].*'s4', 's7'"):
        dbio.tl.deconvolve(adata, reference, n_cells_key="n")
    assert np.isfinite(adata.obsm["deconvolution"].to_numpy()).all()
    assert adata.obsm["deconvolution_abundance"].iloc[4].sum() == 0
    assert adata.obsm["deconvolution_abundance"].iloc[7].isna().all()
    for bad, message in ((-1, "must not be negative"), ("many", "finite numbers, found 'many'")):
        adata.obs["n"] = pd.Series([bad, *[3] * 119], index=adata.obs_names, dtype=object)
        with pytest.raises(ValueError, match=message):
            dbio.tl.deconvolve(adata, reference, n_cells_key="n")
    adata.obs["n"] = 0
    with pytest.raises(ValueError, match="all 120 are 0 or missing"):
        dbio.tl.deconvolve(adata, reference, n_cells_key="n")


@pytest.mark.parametrize("value", ["12 px", None])
def test_coordinates_that_are_text_are_named(value):
    adata, _ = tissue()
    adata.obsm["spatial"] = pd.DataFrame({"x": [value] + ["1"] * 119, "y": "2"}, index=adata.obs_names)
    with pytest.raises(ValueError, match=r"adata\.obsm\['spatial'\] must "):
        dbio.tl.spatial_genes(adata)


def test_one_name_may_be_given_without_a_list():
    adata, _ = tissue()
    dbio.tl.spatial_genes(adata, genes="g3")
    assert adata.var["spatial_pvalue"].notna().sum() == 1


def test_a_second_call_leaves_nothing_of_the_first():
    adata, reference = tissue()
    dbio.tl.spatial_genes(adata, smooth=True)
    dbio.tl.deconvolve(adata, reference, unexplained=True, reconstruct=True)
    dbio.tl.spatial_genes(adata, variance=False)
    dbio.tl.deconvolve(adata, reference)
    once, _ = tissue()
    dbio.tl.spatial_genes(once, variance=False)
    dbio.tl.deconvolve(once, reference)
    for field in ("obs", "var", "obsm", "layers"):
        assert set(getattr(adata, field)) == set(getattr(once, field))
    assert dbio.get.spatial_genes(adata)["fsv"].isna().all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_along_which_no_slide_extends_changes_nothing(axis):
    adata, _ = tissue()
    adata.obs["slide"] = np.repeat(["a", "b"], 60)
    height = np.where(adata.obs["slide"] == "a", 3.0, 50.0)
    section = adata.copy()
    section.obsm["spatial"] = np.insert(section.obsm["spatial"], axis, height, axis=1)
    for one in (adata, section):
        dbio.tl.spatial_genes(one, library_key="slide")
        dbio.tl.spatial_patterns(one, n_patterns=2)
    pd.testing.assert_frame_equal(section.var, adata.var)
    pd.testing.assert_frame_equal(section.obsm["spatial_patterns"], adata.obsm["spatial_patterns"])


@pytest.mark.parametrize("options", [{}, {"refine": False}, {"cell_sizes": {"A": 1, "B": 2, "C": 4, "D": 3}}])
def test_the_order_of_cell_types_moves_columns_and_nothing_else(options):
    adata, profiles = tissue()
    profiles.loc["D"] = profiles.loc["A"] * np.random.default_rng(1).uniform(
        0.8, 1.25, profiles.shape[1]
    )  # much like A
    rng = np.random.default_rng(0)
    cells = ad.AnnData(
        rng.poisson(np.repeat(profiles.to_numpy() / 100, 20, axis=0)).astype(float),
        obs=pd.DataFrame({"type": np.repeat(list("ABCD"), 20)}, index=[f"c{i}" for i in range(80)]),
        var=adata.var[[]],
    )
    cells.obs.loc["c0", "type"] = np.nan
    turned = cells.copy()
    turned.obs["type"] = pd.Categorical(cells.obs["type"], categories=list("DBAC"))
    for reference, key in ((cells, "x"), (turned, "y")):
        dbio.tl.deconvolve(adata, reference, cell_type_key="type", reconstruct=True, key_added=key, **options)
    for suffix in ("", "_std", "_abundance"):
        assert list(adata.obsm[f"y{suffix}"]) == list("DBAC")
        pd.testing.assert_frame_equal(adata.obsm[f"x{suffix}"], adata.obsm[f"y{suffix}"][list("ABCD")])
    np.testing.assert_array_equal(adata.layers["x_reconstructed"], adata.layers["y_reconstructed"])
    for name in {"presence_probability", "typical_error", "cell_sizes"} & set(adata.uns["x"]):
        np.testing.assert_array_equal(adata.uns["x"][name], adata.uns["y"][name][[2, 1, 3, 0]])
