"""Objects of ``anndata.experimental.read_lazy``, whose tables are lazy too, and views of objects in files."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc._anndata import fragments

pytest.importorskip("xarray")
read_lazy = pytest.importorskip("anndata.experimental").read_lazy


def lazily(adata, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, about formats
        adata.write_zarr(tmp_path / "object.zarr")
        lazy = read_lazy(tmp_path / "object.zarr")
    assert not isinstance(lazy.obs, pd.DataFrame)
    return lazy


def twice(adata, tmp_path):
    """The object from its file, lazily and in memory."""
    return lazily(adata, tmp_path), ad.read_zarr(tmp_path / "object.zarr")


def same(found, expected):
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            same(found[name], expected[name])
    elif isinstance(found, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    else:
        np.testing.assert_array_equal(found, expected)


def same_tables_of_contacts(found, expected):
    for name in ("contacts", "expected", "insulation", "compartments", "loops", "tads"):
        table = getattr(dbio.get, name)
        same(table(found), table(expected))


def test_contact_maps(tmp_path):
    plain = dbio.datasets.simulate_contacts(200, contacts_per_bin=200)
    lazy = lazily(plain, tmp_path)
    for adata in (plain, lazy):
        dbio.tl.contacts(adata, ignore_diags=2)
        dbio.tl.expected(adata)
        dbio.tl.saddle(adata)
        dbio.tl.pileup(adata, "is_boundary", flank=50_000)
        dbio.pl.contacts(adata, show=False)
        dbio.pl.saddle(adata, show=False)
    same_tables_of_contacts(lazy, plain)
    np.testing.assert_array_equal(lazy.uns["saddle"]["mean"], plain.uns["saddle"]["mean"])
    np.testing.assert_array_equal(lazy.uns["pileup"]["mean"], plain.uns["pileup"]["mean"])


def test_chromatin_states(tmp_path):
    plain = dbio.datasets.simulate_chromatin_states(n_bins=600, rng=0)
    lazy = lazily(plain, tmp_path)
    for adata in (plain, lazy):
        dbio.pp.binarize(adata)
        dbio.tl.chromatin_states(adata, n_states=3, effort="fast", max_steps=3)
        dbio.pl.chromatin_states(adata, show=False)
    same(dbio.get.chromatin_states(lazy), dbio.get.chromatin_states(plain))
    for adata in (plain, lazy):
        dbio.tl.match_states(adata, plain)
    same(dbio.get.chromatin_states(lazy), dbio.get.chromatin_states(plain))


def test_modalities_of_one_object(tmp_path):
    mdata = dbio.datasets.simulate_multiomics(n_cells=60, rng=0)
    plain = ad.concat(list(mdata.mod.values()), axis=1)
    plain.var["feature_types"] = np.repeat(list(mdata.mod), [part.n_vars for part in mdata.mod.values()])
    plain.obs["cell_type"] = pd.Categorical(mdata["rna"].obs["cell_type"])
    lazy = lazily(plain, tmp_path)
    for adata in (plain, lazy):
        dbio.tl.multiomics_vae(adata, max_epochs=1)
    found, expected = (dbio.get.multiomics_vae(adata, "weights") for adata in (lazy, plain))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    found, expected = (dbio.tl.multiomics_impute(adata, modality="rna") for adata in (lazy, plain))
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-3, atol=1e-4)
    same(found.var, expected.var)
    dbio.pl.multiomics_vae(lazy, color="cell_type", show=False)


def test_results_of_spots_that_were_written_before(tmp_path):
    plain, cells = dbio.datasets.pbmc_tissue(n_spots=60)
    plain, cells = plain[:, :200].copy(), cells[:, :200].copy()
    dbio.tl.deconvolve(plain, cells, cell_type_key="cell_type")
    dbio.tl.spatial_genes(plain)
    dbio.tl.spatial_patterns(plain, n_patterns=2)
    dbio.tl.combine_features(plain, ["truth", "deconvolution"])
    lazy = lazily(plain, tmp_path)
    for one in (dbio.get.deconvolution, dbio.get.spatial_genes, dbio.get.combine_features):
        same(one(lazy), one(plain))
    maps = [dbio.pl.spatial_genes(adata, kind="patterns", show=False)[0] for adata in (plain, lazy)]
    assert maps[0].get_title() == maps[1].get_title()
    found, expected = (
        dbio.pl.deconvolution(adata, show=False)[0].collections[0].get_array() for adata in (lazy, plain)
    )
    np.testing.assert_array_equal(found, expected)
    dbio.pl.combine_features(lazy, show=False)
    for adata in (plain, lazy):
        dbio.tl.combine_features(adata, ["truth", "deconvolution"], key_added="again")
        dbio.tl.deconvolve(adata, cells, cell_type_key="cell_type", cell_sizes="truth", key_added="sized")
    np.testing.assert_array_equal(lazy.obsm["again"], plain.obsm["again"])
    np.testing.assert_allclose(lazy.uns["sized"]["cell_sizes"], plain.uns["sized"]["cell_sizes"])


def test_peaks_and_fragments_that_were_written_before(tmp_path):
    intervals, _, cell_types = dbio.datasets.simulate_fragments(n_cells=20, strength=0.3)
    plain = dbio.pp.coverage(intervals, bin_size=200, groupby=cell_types)
    dbio.tl.peaks(plain)
    lazy = lazily(plain, tmp_path)
    same(dbio.get.peaks(lazy), dbio.get.peaks(plain))
    dbio.pl.peaks(lazy, show=False)
    for adata in (plain, lazy):
        dbio.tl.merge_peaks(adata)
    same(lazy.uns["peaks_merged"], plain.uns["peaks_merged"])

    length = {"chr1": 1_000, "chr2": 1_000}
    starts = sp.csr_matrix(([150, 200, 100], ([0, 0, 1], [20, 1_300, 700])), shape=(2, 2_000), dtype=np.int32)
    cells = ad.AnnData(obs=pd.DataFrame({"kind": ["a", "b"]}, index=["c1", "c2"]), obsm={"fragment_paired": starts})
    cells.uns["reference_sequences"] = pd.DataFrame(
        {"reference_seq_name": list(length), "reference_seq_length": list(length.values())}
    )
    (tmp_path / "cells").mkdir()
    found, expected = (
        dbio.pp.pseudobulk(adata, groupby="kind") for adata in (lazily(cells, tmp_path / "cells"), cells)
    )
    same(
        {name: one.to_frame() for name, one in found.items()}, {name: one.to_frame() for name, one in expected.items()}
    )


def test_contact_maps_and_states_that_were_written_before(tmp_path):
    plain = dbio.datasets.simulate_contacts(200, contacts_per_bin=200)
    dbio.tl.contacts(plain)
    lazy = lazily(plain, tmp_path)
    for one in (dbio.get.contacts, dbio.get.expected, dbio.get.insulation, dbio.get.loops, dbio.get.tads):
        same(one(lazy), one(plain))
    dbio.pl.contacts(lazy, show=False)
    pytest.importorskip("cooler")
    for name, adata in (("plain", plain), ("lazy", lazy)):
        dbio.io.write_cool(adata, tmp_path / f"{name}.cool")
    same(*(dbio.io.read_cool(tmp_path / f"{name}.cool").obs for name in ("plain", "lazy")))

    plain = dbio.datasets.simulate_chromatin_states(n_bins=600, rng=0)
    dbio.tl.chromatin_states(plain, n_states=3, effort="fast", max_steps=3)
    dbio.tl.state_enrichment(plain, {"first": plain.obs[["chrom", "start", "end"]].iloc[:90]})
    (tmp_path / "states").mkdir()
    lazy = lazily(plain, tmp_path / "states")
    for one in (dbio.get.chromatin_states, dbio.get.state_enrichment):
        same(one(lazy), one(plain))
    dbio.pl.state_enrichment(lazy, show=False)
    dbio.tl.chromatin_states(plain, model=lazy, key_added="again")
    np.testing.assert_array_equal(plain.obs["again_chromatin_state"], plain.obs["chromatin_state"])


def test_models_that_were_written_before(tmp_path):
    plain = dbio.datasets.simulate_regulatory_regions(n_regions=200)
    dbio.pp.sequences(plain)
    dbio.tl.contextual(plain, refine=False, average=False)
    dbio.tl.attributions(plain, regions=plain.var_names[:2], cell_types=["cell1"])
    lazy = lazily(plain, tmp_path)
    same(dbio.get.contextual(lazy), dbio.get.contextual(plain))
    same(dbio.get.attributions(lazy), dbio.get.attributions(plain))
    new = plain.copy()
    dbio.tl.contextual_predict(new, model=lazy, key_added="again")
    np.testing.assert_array_equal(new.layers["again_prob"], plain.layers["contextual_prob"])
    dbio.pp.sequences(lazy)
    np.testing.assert_array_equal(lazy.varm["dna"], plain.varm["dna"])
    dbio.tl.contextual(lazy, refine=False, average=False)
    np.testing.assert_allclose(lazy.layers["contextual_prob"], plain.layers["contextual_prob"], atol=1e-5)

    mdata = dbio.datasets.simulate_multiomics(n_cells=60, rng=0)
    plain = ad.concat(list(mdata.mod.values()), axis=1)
    plain.var["feature_types"] = np.repeat(list(mdata.mod), [part.n_vars for part in mdata.mod.values()])
    dbio.tl.multiomics_vae(plain)
    (tmp_path / "cells").mkdir()
    lazy = lazily(plain, tmp_path / "cells")
    for what in ("weights", "loadings"):
        same(dbio.get.multiomics_vae(lazy, what), dbio.get.multiomics_vae(plain, what))
    new = plain.copy()
    dbio.tl.multiomics_encode(new, lazy, key_added="X_again")
    np.testing.assert_allclose(new.obsm["X_again"], plain.obsm["X_multiomics_vae"], atol=1e-5)


def test_sums_of_cells_can_be_written(tmp_path):
    intervals, _, cell_types = dbio.datasets.simulate_fragments()
    plain = dbio.pp.coverage(intervals, bin_size=500, groupby={cell: cell for cell in dict(cell_types)})
    plain.obs["cell_type"] = pd.Series(dict(cell_types)).reindex(plain.obs_names).astype("category")
    lazy = lazily(plain, tmp_path)
    found, expected = (dbio.pp.pseudobulk(adata, groupby="cell_type") for adata in (lazy, plain))
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    same(found.var, expected.var)
    found.write_h5ad(tmp_path / "sums.h5ad")
    same(fragments.cell_labels(lazy, "cell_type").to_frame(), fragments.cell_labels(plain, "cell_type").to_frame())


# --- results that lie in a file, read from it lazily


def test_contacts_of_a_file(tmp_path):
    adata = dbio.datasets.simulate_contacts(200, contacts_per_bin=200)
    adata.obs["signal"] = adata.obs["true_compartment"].astype(float)
    dbio.tl.contacts(adata, ignore_diags=2, phasing_track="signal")
    lazy, plain = twice(adata, tmp_path)
    same_tables_of_contacts(lazy, plain)
    dbio.pl.contacts(lazy, show=False)
    cells = dbio.io.ContactCells(
        {f"cell_{seed}": dbio.datasets.simulate_contacts(200, contacts_per_bin=20, rng=seed) for seed in range(2)}
    )
    found, expected = (
        dbio.pp.contact_profiles(cells, reference=adata, compartment_distance=200_000) for adata in (lazy, plain)
    )
    same(found.obs, expected.obs)
    assert found.obs["compartment_strength"].notna().all()
    for adata in (lazy, plain):
        dbio.tl.pileup(adata, "loops", flank=50_000)
        dbio.tl.compartments(adata, phasing_track="signal")
    same(lazy.uns["pileup"]["mean"], plain.uns["pileup"]["mean"])
    same(dbio.get.compartments(lazy), dbio.get.compartments(plain))


def test_a_balanced_map_of_a_file_can_be_exported(tmp_path):
    cooler = pytest.importorskip("cooler")
    adata = dbio.datasets.simulate_contacts(200, contacts_per_bin=200)
    dbio.tl.balance(adata)
    for name, one in zip(("lazy", "plain"), twice(adata, tmp_path), strict=True):
        dbio.io.write_cool(one, tmp_path / f"{name}.cool", columns=["true_bias", "contact_weight"])
    found, expected = (cooler.Cooler(str(tmp_path / f"{name}.cool")).bins()[:] for name in ("lazy", "plain"))
    assert found["weight"].notna().any()
    same(found, expected)


def test_compositions_of_a_file(tmp_path):
    spots, cells = dbio.datasets.pbmc_tissue(n_spots=40)
    dbio.tl.deconvolve(spots, cells, cell_type_key="cell_type")
    lazy, plain = twice(spots, tmp_path)
    same(dbio.get.deconvolution(lazy), dbio.get.deconvolution(plain))
    for kind in ("maps", "stacked", "fit"):
        dbio.pl.deconvolution(lazy, kind=kind, show=False)
    for adata in (lazy, plain):
        dbio.tl.combine_features(adata, ["truth", "deconvolution", "spatial"], scale="block")
    same(dbio.get.combine_features(lazy), dbio.get.combine_features(plain))
    same(lazy.obsm["X_combined"], plain.obsm["X_combined"])


def test_patterns_of_a_file(tmp_path):
    spots, _ = dbio.datasets.pbmc_tissue(n_spots=120)
    dbio.tl.spatial_genes(spots)
    dbio.tl.spatial_patterns(spots, n_patterns=2)
    lazy, plain = twice(spots, tmp_path)
    same(dbio.get.spatial_genes(lazy), dbio.get.spatial_genes(plain))
    titles = [
        [axis.get_title() for axis in dbio.pl.spatial_genes(adata, kind="patterns", show=False)]
        for adata in (lazy, plain)
    ]
    assert titles[0] == titles[1]
    assert titles[0][0].endswith(" genes)")


def test_chromatin_states_of_a_file(tmp_path):
    adata = dbio.datasets.simulate_chromatin_states(n_bins=600, rng=0)
    dbio.pp.binarize(adata)
    dbio.tl.chromatin_states(adata, n_states=3, effort="fast", max_steps=3)
    regions = adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]
    dbio.tl.state_enrichment(adata, {"genes": regions})
    lazy, plain = twice(adata, tmp_path)
    found, expected = (dbio.get.chromatin_state_model(one) for one in (lazy, plain))
    assert found.marks == expected.marks
    same(found.emission, expected.emission)
    same(dbio.get.state_enrichment(lazy), dbio.get.state_enrichment(plain))
    dbio.pl.state_enrichment(lazy, show=False)
    dbio.pl.chromatin_states(lazy, show=False)


def test_reproducibility_of_a_file(tmp_path):
    adata = dbio.datasets.simulate_chromatin_states(n_bins=600, n_replicates=2, rng=0)
    adata.obs["chromatin_state"] = adata.obs["truth"]
    dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    lazy, plain = twice(adata, tmp_path)
    same(dbio.get.state_reproducibility(lazy), dbio.get.state_reproducibility(plain))
    dbio.pl.state_reproducibility(lazy, show=False)


def test_a_fitted_model_of_a_file(tmp_path):
    mdata = dbio.datasets.simulate_multiomics(n_cells=60, rng=0)
    adata = ad.concat(list(mdata.mod.values()), axis=1)
    adata.var["feature_types"] = np.repeat(list(mdata.mod), [part.n_vars for part in mdata.mod.values()])
    dbio.tl.multiomics_vae(adata, max_epochs=1)
    lazy, plain = twice(adata, tmp_path)
    for kind in ("weights", "history"):
        same(dbio.get.multiomics_vae(lazy, kind), dbio.get.multiomics_vae(plain, kind))
    found, expected = (dbio.tl.multiomics_score(plain, fitted=fitted) for fitted in (lazy, plain))
    same(found, expected)


def test_sequences_of_a_file(tmp_path):
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=60)
    side = "var" if "sequence" in adata.var else "obs"
    getattr(adata, side)["strand"] = np.where(np.arange(60) % 2, "+", "-")
    lazy, plain = twice(adata, tmp_path)
    found, expected = (dbio.pp.sequences(one, strand="strand", copy=True) for one in (lazy, plain))
    matrix = getattr(expected, f"{side}m")["dna"]
    same(np.asarray(getattr(found, f"{side}m")["dna"]), matrix)
    assert (matrix != getattr(dbio.pp.sequences(plain, copy=True), f"{side}m")["dna"]).any()


def test_names_that_would_match_are_found_in_a_lazy_table(tmp_path):
    spots, cells = dbio.datasets.pbmc_tissue(n_spots=30)
    spots.var["symbol"] = spots.var_names.to_numpy()
    spots.var_names = [f"ENSG{number}" for number in range(spots.n_vars)]
    with pytest.raises(ValueError, match="Column 'symbol' of the table of adata.var_names would match"):
        dbio.tl.deconvolve(lazily(spots, tmp_path), cells, cell_type_key="cell_type")


@pytest.mark.parametrize("copy", [False, True])
def test_an_object_in_a_file_that_cannot_hold_results_is_told_before_any_work(tmp_path, copy, monkeypatch):
    spots, cells = dbio.datasets.pbmc_tissue(n_spots=30)
    spots.write_h5ad(tmp_path / "spots.h5ad")
    backed = ad.read_h5ad(tmp_path / "spots.h5ad", backed="r")
    message = r"copy=True needs an object in memory" if copy else "adata is a view of an object in a file, which cannot"
    given = backed if copy else backed[:20]
    calls = {
        "deconvolve": lambda: dbio.tl.deconvolve(given, cells, cell_type_key="cell_type", copy=copy),
        "spatial_genes": lambda: dbio.tl.spatial_genes(given, copy=copy),
        "spatial_patterns": lambda: dbio.tl.spatial_patterns(given, copy=copy),
        "balance": lambda: dbio.tl.balance(given, copy=copy),
        "peaks": lambda: dbio.tl.peaks(given, copy=copy),
        "parse_regions": lambda: dbio.pp.parse_regions(given, copy=copy),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=message):
            call()
    backed.file.close()
