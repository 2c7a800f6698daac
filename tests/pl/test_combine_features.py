"""Pictures of combined features: what is drawn is what a plain computation gives."""

from __future__ import annotations

import anndata
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def spots():
    names = pd.Index([f"spot{i}" for i in range(40)])
    layer = pd.Categorical(np.repeat(["inner", "outer"], [25, 15]), categories=["outer", "inner", "none"])
    adata = anndata.AnnData(np.ones((40, 2), np.float32), obs=pd.DataFrame({"layer": layer}, index=names))
    adata.obs["score"] = RNG.normal(3.0, 2.0, 40) + 4.0 * (layer == "outer")
    adata.obsm["deconvolution"] = pd.DataFrame(RNG.dirichlet(np.ones(3), 40), names, ["B cell", "T cell", "Other"])
    adata.obsm["states"] = RNG.normal(size=(40, 2))
    dbio.tl.combine_features(adata, ["deconvolution", "states", "score"])
    return adata


def drawn(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def names(labels):
    return [label.get_text() for label in labels]


def test_means_of_groups_are_in_standard_deviations(spots):
    axes = dbio.pl.combine_features(spots, groupby="layer", show=False)
    values = spots.obsm["X_combined"].to_numpy(np.float64)
    scaled = (values - values.mean(0)) / values.std(0)
    outer = (spots.obs["layer"] == "outer").to_numpy()
    np.testing.assert_allclose(drawn(axes), [scaled[outer].mean(0), scaled[~outer].mean(0)], rtol=1e-5)
    assert names(axes.get_yticklabels()) == ["outer (15)", "inner (25)"]
    assert names(axes.get_xticklabels()) == ["B cell", "T cell", "Other", "0", "1", "score"]
    assert [text.get_text() for text in axes.texts] == ["deconvolution", "states", ""]
    assert [line.get_xdata()[0] for line in axes.lines] == [2.5, 4.5]
    assert axes.get_ylabel() == "layer"
    low, high = axes.images[0].get_clim()
    assert low == -high


def test_without_groups_all_pairs_are_correlated(spots):
    axes = dbio.pl.combine_features(spots, show=False)
    expected = np.corrcoef(spots.obsm["X_combined"].to_numpy(np.float64).T)
    np.testing.assert_allclose(drawn(axes), expected, atol=1e-5)
    assert names(axes.get_xticklabels()) == names(axes.get_yticklabels())
    assert axes.images[0].get_clim() == (-1.0, 1.0)
    assert len(axes.lines) == 4


def test_blocks_are_chosen_and_ordered_and_axes_are_taken(spots):
    figure, given = plt.subplots()
    axes = dbio.pl.combine_features(spots, groupby="layer", blocks=["score", "states"], ax=given, show=False)
    assert axes is given
    assert names(axes.get_xticklabels()) == ["score", "0", "1"]
    alone = dbio.pl.combine_features(spots, blocks="states", show=False)
    assert drawn(alone).shape == (2, 2)
    assert not alone.texts


def test_constant_and_missing_features_are_grey(spots):
    spots.obs["same"] = 0.1
    spots.obs["half"] = np.where(spots.obs["layer"] == "outer", np.nan, RNG.normal(size=40))
    with pytest.warns(UserWarning, match="missing"):
        dbio.tl.combine_features(spots, ["same", "half"])
    found = drawn(dbio.pl.combine_features(spots, groupby="layer", show=False))
    assert np.isnan(found[:, 0]).all()
    assert np.isnan(found[0, 1])
    assert found[1, 1] == pytest.approx(0.0, abs=1e-6)  # all rows that have it are of this group


def test_many_columns_are_named_by_block(spots, tmp_path):
    dbio.tl.combine_features(spots, {"embedding": RNG.normal(size=(40, 120))})
    axes = dbio.pl.combine_features(spots, groupby="layer", save=tmp_path / "map.png")
    assert set(names(axes.get_xticklabels())) == {""}
    assert [text.get_text() for text in axes.texts] == ["embedding"]
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_along_variables_and_of_MuData(spots):
    spots.varm["posterior"] = np.array([[0.2, 0.8], [0.6, 0.4]])
    spots.var["side"] = ["a", "b"]
    dbio.tl.combine_features(spots, ["posterior"], axis="var", key_added="both")
    axes = dbio.pl.combine_features(spots, groupby="side", key="both", show=False)
    np.testing.assert_allclose(drawn(axes), [[-1.0, 1.0], [1.0, -1.0]], rtol=1e-5)
    mdata = mudata.MuData({"rna": spots, "atac": spots[:20].copy()})
    mdata.obs["half"] = ["a", "b"] * 20
    with pytest.warns(UserWarning, match="missing"):
        dbio.tl.combine_features(mdata, ["rna:states", "atac:states"])
    found = drawn(dbio.pl.combine_features(mdata, groupby="half", show=False))
    atac = mdata.obsm["X_combined"].to_numpy(np.float64)[:20, 2]
    assert found[0, 2] == pytest.approx((atac[::2].mean() - atac.mean()) / atac.std(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"key": "none"}, r"run diffbio_sc\.tl\.combine_features"),
        ({"groupby": "region"}, r"no column of \.obs; columns: \['layer', 'score'\]"),
        ({"blocks": ["states", "pca"]}, r"must be among \['deconvolution', 'states', 'score'\], found \['pca'\]"),
    ],
)
def test_what_is_not_there_is_named(spots, options, match):
    with pytest.raises(KeyError, match=match):
        dbio.pl.combine_features(spots, show=False, **options)
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="blocks is empty"):
        dbio.pl.combine_features(spots, blocks=[], show=False)


def test_groups_that_are_all_missing_are_told(spots):
    spots.obs["empty"] = pd.Categorical([None] * 40, categories=["a"])
    with pytest.raises(ValueError, match="has no group"):
        dbio.pl.combine_features(spots, groupby="empty", show=False)
