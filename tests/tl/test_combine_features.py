"""Combined features: the columns that were asked for, scaled as asked for, with where they come from."""

from __future__ import annotations

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

RNG = np.random.default_rng(0)


def spots(number=30):
    names = pd.Index([f"spot_{index}" for index in range(number)])
    adata = anndata.AnnData(
        np.ones((number, 4), np.float32),
        obs=pd.DataFrame(
            {"score": RNG.normal(5, 2, number), "layer": pd.Categorical(["a", "b"] * (number // 2))}, index=names
        ),
    )
    adata.obsm["deconvolution"] = pd.DataFrame(RNG.dirichlet(np.ones(3), number), names, ["B cell", "T cell", "Other"])
    adata.obsm["X_pca"] = RNG.normal(0, 3, (number, 5))
    adata.uns["deconvolution"] = {"version": {"diffbio_sc": "0.0.9"}}
    return adata


def test_M23_proportions_and_state_probabilities_are_concatenated_for_each_row():
    adata = spots()
    states = RNG.dirichlet(np.ones(4), 30)
    dbio.tl.combine_features(adata, {"proportions": "deconvolution", "state_probabilities": states})
    table = adata.obsm["X_combined"]
    expected = np.concatenate([adata.obsm["deconvolution"].to_numpy(), states], axis=1)
    np.testing.assert_allclose(table.to_numpy(), expected, rtol=1e-6)
    assert table.columns.tolist() == ["proportions:B cell", "proportions:T cell", "proportions:Other"] + [
        f"state_probabilities:{index}" for index in range(4)
    ]


def test_M23_first_dimensions_must_be_equal():
    adata = spots()
    with pytest.raises(ValueError, match=r"must have 30 rows.*\{'deconvolution': 30, 'states': 29\}"):
        dbio.tl.combine_features(adata, {"deconvolution": "deconvolution", "states": np.ones((29, 2))})
    assert "X_combined" not in adata.obsm
    assert "X_combined" not in adata.uns


def test_M23_outputs_of_the_operators_of_the_specification_go_in_as_they_are():
    """ATAC signal as marks, as the specification has it, one state a row beside one composition a row."""
    from flax import nnx

    from diffbio_sc.operators.epigenomics import ChromatinStateAnnotator, ChromatinStateConfig
    from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig

    adata = spots()
    deconvolution = SpatialDeconvolution(
        SpatialDeconvolutionConfig(n_cell_types=2, n_genes=4, hidden_dim=0), rngs=nnx.Rngs(0)
    )
    annotator = ChromatinStateAnnotator(ChromatinStateConfig(num_states=3, num_marks=2), rngs=nnx.Rngs(0))
    composition, _, _ = deconvolution.apply(
        {"spatial_expression": RNG.poisson(5.0, (30, 4)), "reference_profiles": RNG.gamma(1, 1, (2, 4)) + 0.1}, {}, None
    )
    states, _, _ = annotator.apply({"histone_marks": (RNG.random((30, 2)) < 0.4).astype(np.float32)}, {}, None)
    blocks = {"proportions": composition["proportions"], "state_probabilities": states["state_probabilities"]}
    dbio.tl.combine_features(adata, blocks)
    np.testing.assert_allclose(adata.obsm["X_combined"].iloc[:, :2].sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(adata.obsm["X_combined"].iloc[:, 2:].sum(1), 1.0, rtol=1e-5)


def test_scaling_is_standard_or_by_block_and_what_was_taken_out_is_told():
    adata = spots()
    adata.obsm["X_pca"][:, 4] = 0.1
    dbio.tl.combine_features(
        adata, ["X_pca", "deconvolution", "score"], scale={"X_pca": "standard", "deconvolution": "block"}
    )
    values = adata.obsm["X_combined"].to_numpy(np.float64)
    pca = adata.obsm["X_pca"][:, :4]
    np.testing.assert_allclose(values[:, :4], (pca - pca.mean(0)) / pca.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values[:, 4], 0.0, atol=1e-6)
    np.testing.assert_allclose(values[:, 5:8].var(0).sum(), 1.0, rtol=1e-5)
    shares = adata.obsm["deconvolution"].to_numpy()
    assert np.corrcoef(values[:, 5], shares[:, 0])[0, 1] == pytest.approx(1.0)
    np.testing.assert_allclose(values[:, 8], adata.obs["score"], rtol=1e-6)
    table = dbio.get.combine_features(adata)
    back = values * table["scale"].to_numpy() + table["mean"].to_numpy()
    np.testing.assert_allclose(back[:, :4], pca, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(back[:, 5:8], shares, rtol=1e-4, atol=1e-5)
    assert table["block"].tolist() == ["X_pca"] * 5 + ["deconvolution"] * 3 + ["score"]


def test_categories_become_indicators_and_missing_values_stay_missing():
    adata = spots()
    adata.obs.loc["spot_3", "layer"] = np.nan
    adata.obsm["X_pca"][7] = np.nan
    with pytest.warns(UserWarning, match=r"\{'layer': 1, 'X_pca': 1\}"):
        dbio.tl.combine_features(adata, ["layer", "X_pca"], scale="standard")
    table = adata.obsm["X_combined"]
    assert table.columns[:2].tolist() == ["layer:a", "layer:b"]
    assert table.iloc[3, :2].isna().all()
    assert table.iloc[7, 2:].isna().all()
    assert int(table.isna().sum().sum()) == 7
    np.testing.assert_allclose(table.std(ddof=0), 1.0, rtol=1e-5)


def test_provenance_names_sources_versions_and_imported_embeddings(tmp_path):
    from diffbio_sc.sources import MultiOmicsEmbeddingSource

    adata = spots()
    source = MultiOmicsEmbeddingSource({"rna": RNG.normal(size=(30, 2))}, sample_ids=adata.obs_names)
    source.write_to(adata, key_added="X_model")
    dbio.tl.combine_features(adata, ["deconvolution", "X_model_rna"], key_added="both")
    adata.write_h5ad(tmp_path / "combined.h5ad")
    read = anndata.read_h5ad(tmp_path / "combined.h5ad")
    pd.testing.assert_frame_equal(read.obsm["both"], adata.obsm["both"])
    provenance = read.uns["both"]["provenance"]
    assert provenance["deconvolution"]["source"] == "adata.obsm['deconvolution']"
    assert provenance["deconvolution"]["version"]["diffbio_sc"] == "0.0.9"
    assert provenance["X_model_rna"]["artifact"]["stable_scope"] == "imported_foundation_model"
    assert dbio.get.combine_features(read, key="both")["imported"].tolist() == [False] * 3 + [True] * 2
    read.write_zarr(tmp_path / "combined.zarr")


def test_MuData_takes_keys_of_modalities_and_leaves_cells_without_them_missing():
    rna, atac = spots(), spots(20)
    mdata = mudata.MuData({"rna": rna, "atac": atac})
    mdata.obsm["joint"] = RNG.normal(size=(30, 2))
    with pytest.warns(UserWarning, match="'atac:X_pca': 10"):
        dbio.tl.combine_features(mdata, ["joint", "rna:deconvolution", "atac:X_pca", "rna:score"])
    table = mdata.obsm["X_combined"]
    np.testing.assert_allclose(table.iloc[:, :2], mdata.obsm["joint"], rtol=1e-6)
    np.testing.assert_allclose(table.loc[atac.obs_names].iloc[:, 5:10], atac.obsm["X_pca"], rtol=1e-6)
    assert table.iloc[20:, 5:10].isna().all().all()
    np.testing.assert_allclose(table["rna:score:score"], rna.obs["score"], rtol=1e-6)
    assert mdata.uns["X_combined"]["provenance"]["atac:X_pca"]["source"] == "mdata['atac'].obsm['X_pca']"
    told = dbio.get.combine_features(mdata)
    assert told.index.tolist() == table.columns.tolist()
    assert told["source"].iloc[0] == "mdata.obsm['joint']"
    with pytest.raises(KeyError, match=r"mdata\.uns has no 'features' of 'none'"):
        dbio.get.combine_features(mdata, key="none")
    with pytest.raises(KeyError, match=r"no 'X_pca'.*'modality:key' of \['rna', 'atac'\]"):
        dbio.tl.combine_features(mdata, ["X_pca"])


def test_along_variables_and_copies_and_views():
    adata = spots()
    adata.varm["chromatin_state_posterior"] = RNG.dirichlet(np.ones(3), 4)
    copied = dbio.tl.combine_features(adata, ["chromatin_state_posterior"], axis="var", copy=True)
    assert "X_combined" not in adata.varm
    np.testing.assert_allclose(copied.varm["X_combined"], adata.varm["chromatin_state_posterior"], rtol=1e-6)
    view = adata[:10]
    dbio.tl.combine_features(view, "X_pca")
    np.testing.assert_allclose(view.obsm["X_combined"], adata.obsm["X_pca"][:10], rtol=1e-6)
    assert "X_combined" not in adata.obsm


@pytest.mark.parametrize(
    ("keys", "options", "error", "match"),
    [
        (["X_pca", "none"], {}, KeyError, r"no 'none': matrices \['deconvolution', 'X_pca'\], columns \['score'"),
        ([], {}, ValueError, "at least one"),
        (["X_pca", "X_pca"], {}, ValueError, "keys must be unique"),
        (["X_pca"], {"scale": "unit"}, ValueError, "scale must be 'none', 'standard', 'block' or a mapping"),
        (["X_pca"], {"scale": {"pca": "block"}}, KeyError, r"\['pca'\]"),
        (["X_pca"], {"axis": "cells"}, ValueError, "axis must be"),
        (["X_pca"], {"key_added": "a/b"}, ValueError, "key_added"),
        ({"a": np.full((30, 2), np.inf)}, {}, ValueError, "found infinite"),
        ({"a": np.full((30, 2), np.nan)}, {}, ValueError, "all are missing"),
        ({"a": np.full((30, 2), "x")}, {}, TypeError, "must hold numbers"),
        ({"a": np.ones((30, 2, 2))}, {}, ValueError, "must be a matrix"),
    ],
)
def test_bad_arguments_leave_the_object_as_it_was(keys, options, error, match):
    adata = spots()
    before = set(adata.obsm), set(adata.uns)
    with pytest.raises(error, match=match):
        dbio.tl.combine_features(adata, keys, **options)
    assert (set(adata.obsm), set(adata.uns)) == before
