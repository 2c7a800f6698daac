from __future__ import annotations

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def adata():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=1500, n_cell_types=4, width=60, rng=4)
    dbio.pp.sequences(adata)
    dbio.tl.contextual(adata, refine=False)
    return adata


@pytest.fixture(scope="module")
def asked(adata):
    result = adata.copy()
    dbio.tl.attributions(result, regions=range(40))
    return result


def logits_of(adata, tokens):
    other = adata[:, : len(tokens)].copy()
    other.varm["dna"] = tokens
    dbio.tl.contextual_predict(other, model=adata)
    return other.layers["contextual_logit"]


def test_mutagenesis_is_the_change_of_the_prediction(adata, asked):
    scores = asked.uns["attributions"]["scores"]
    assert scores.shape == (40, 4, 60, 4)
    assert scores.dtype == np.float32
    tokens = np.repeat(adata.varm["dna"][7:8], 4, axis=0)
    tokens[:, 31] = range(4)
    expected = logits_of(adata, tokens)
    np.testing.assert_allclose(scores[7, :, 31], expected - expected.mean(1, keepdims=True), atol=1e-4)


def test_motifs_stand_out_where_their_factor_acts(adata, asked):
    truth = adata.uns["truth"]
    sites = truth["sites"][truth["sites"]["region"] < 40]
    table = dbio.get.attributions(asked)
    inside = np.zeros((40, 4, 60), bool)
    clean = np.ones((40, 4, 60), bool)
    for site in sites.itertuples():
        acts = truth["gates"][:, int(site.factor[2:]) - 1]
        inside[site.region, acts, site.start : site.end] = True
        clean[site.region, ~acts, site.start : site.end] = False
    values = table["contribution"].to_numpy().reshape(40, 4, 60)
    contribution = roc_auc_score(inside[clean], values[clean])
    assert contribution > 0.8  # few regions and words of at most six or seven bases
    values = table["importance"].to_numpy().reshape(40, 4, 60)
    assert roc_auc_score(inside[clean], values[clean]) > contribution


def test_gradients_agree_with_substitutions(adata, asked):
    ism = asked.uns["attributions"]["scores"][:5]
    result = dbio.tl.attributions(adata, regions=range(5), method="input_x_gradient", copy=True)
    found = result.uns["attributions"]["scores"]
    assert np.corrcoef(found.ravel(), ism.ravel())[0, 1] > 0.6
    assert "attributions" not in adata.uns


def test_integrated_gradients_sum_to_the_difference(adata):
    options = {"regions": [3, 5], "method": "integrated_gradients", "steps": 80, "n_references": 2, "copy": True}
    result = dbio.tl.attributions(adata, **options)
    arrays = [dbio.get.attribution_arrays(result, cell_type=cell) for cell in adata.obs_names]
    total = np.stack([one.contributions.sum((1, 2)) for one in arrays], axis=1)
    from diffbio_sc.engines.sequence_attributions import shuffle_dinucleotides

    tokens = adata.varm["dna"][[3, 5]]
    references = shuffle_dinucleotides(tokens, 2, np.random.default_rng(0))
    compared = np.mean([logits_of(adata, references[:, number]) for number in range(2)], axis=0)
    difference = (logits_of(adata, tokens) - compared).T
    np.testing.assert_allclose(total, difference, atol=0.05)  # .005 found; .075 with ten points
    assert np.abs(difference).max() > 0.5


def test_factors_are_put_to_their_mean(adata):
    result = dbio.tl.attributions(adata, regions=[0, 9], method="tf", key_added="tf", copy=True)
    table = dbio.get.attributions(result, key="tf")
    assert len(table) == 2 * 4 * 20
    names = adata.obsm["tf_context"].columns
    assert list(table["factor"].cat.categories) == list(names)
    new = adata[[1, 1]].copy()
    new.obs_names = ["as it is", "without TF5"]
    mean = adata.obsm["tf_context"]["TF5"].astype(np.float64).mean()
    new.obsm["tf_context"].iloc[1, names.get_loc("TF5")] = mean
    dbio.tl.contextual_predict(new, model=adata)
    expected = new.layers["contextual_logit"][0] - new.layers["contextual_logit"][1]
    mine = table[(table["cell_type"] == "cell2") & (table["factor"] == "TF5")]["contribution"]
    np.testing.assert_allclose(mine, expected[[0, 9]], atol=1e-4)


def test_new_cell_types_have_substitutions_and_no_gradients(adata):
    new = adata[[0, 1]].copy()
    new.obs_names = ["twin", "cell2"]
    dbio.tl.attributions(new, regions=[4], model=adata)
    found = new.uns["attributions"]["scores"][0]
    predicted = new.copy()
    dbio.tl.contextual_predict(predicted, model=adata)
    tokens = np.repeat(adata.varm["dna"][4:5], 4, axis=0)
    tokens[:, 10] = range(4)
    other = predicted[:, :4].copy()
    other.varm["dna"] = tokens
    dbio.tl.contextual_predict(other, model=adata)
    expected = other.layers["contextual_logit"]
    np.testing.assert_allclose(found[:, 10], expected - expected.mean(1, keepdims=True), atol=1e-4)
    with pytest.raises(ValueError, match=r"not trained with cell types \['twin'\]"):
        dbio.tl.attributions(new, regions=[4], model=adata, method="input_x_gradient")


def test_regions_and_cell_types_are_chosen_by_name_place_or_mask(adata):
    names = list(adata.var_names[[8, 2]])
    mask = np.zeros(adata.n_vars, bool)
    mask[[2, 8]] = True
    for regions, expected in ((names, names), ([8, 2], names), (mask, names[::-1]), (names[0], names[:1])):
        result = dbio.tl.attributions(adata, regions=regions, cell_types=["cell3"], copy=True)
        assert list(result.uns["attributions"]["regions"]) == expected
        assert list(result.uns["attributions"]["cell_types"]) == ["cell3"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regions": ["chr1:1-2"]}, KeyError, "no region"),
        ({"regions": [99999]}, ValueError, "from 0 to 1499, found 99999"),
        ({"regions": np.zeros(3, bool)}, ValueError, "a mask of regions must have 1500 values"),
        ({"regions": []}, ValueError, "regions is empty"),
        ({"regions": [0], "cell_types": "Cell1"}, KeyError, "no cell types"),
        ({"regions": [0], "method": "deeplift"}, ValueError, "method must be 'ism', .* found 'deeplift'"),
        ({"regions": [0], "key": "other"}, KeyError, "no model under 'other'"),
        ({"regions": [0], "contacts": "maps"}, ValueError, "takes no contacts"),
        ({"regions": [0], "n_references": 0}, ValueError, "n_references"),
    ],
)
def test_bad_questions(adata, options, error, message):
    with pytest.raises(error, match=message):
        dbio.tl.attributions(adata, **options)
    assert "attributions" not in adata.uns


def test_factors_need_a_model_with_expression(adata):
    plain = adata[:, :300].copy()
    dbio.tl.contextual(plain, mode="sequence_only", refine=False, average=False)
    with pytest.raises(ValueError, match="trained without expression"):
        dbio.tl.attributions(plain, regions=[0], method="tf")


def test_tables(adata, asked):
    table = dbio.get.attributions(asked, cell_type="cell2")
    assert len(table) == 40 * 60
    row = table.iloc[3 * 60 + 17]
    assert row["region"] == adata.var_names[3]
    assert row["start"] == adata.var["start"].iloc[3] + 17
    assert row["base"] == adata.var["sequence"].iloc[3][17]
    scores = asked.uns["attributions"]["scores"][3, 1, 17]
    assert row["contribution"] == scores["ACGT".index(row["base"])]
    assert row["importance"] == pytest.approx(np.sqrt(((scores - scores.mean()) ** 2).mean()), rel=1e-5)
    letters = dbio.get.attributions(asked, kind="letters", cell_type="cell2")
    np.testing.assert_array_equal(letters["score"].iloc[(3 * 60 + 17) * 4 :][:4], scores)
    with pytest.raises(KeyError, match="no 'factor_scores' of 'attributions'"):
        dbio.get.attributions(asked, kind="factors")
    with pytest.raises(KeyError, match="of cell type 'cell9'"):
        dbio.get.attributions(asked, cell_type="cell9")
    with pytest.raises(ValueError, match="kind must be"):
        dbio.get.attributions(asked, kind="all")


def test_arrays_for_modisco_and_files(tmp_path, asked, memory_store):
    arrays = dbio.get.attribution_arrays(asked, cell_type="cell1")
    assert arrays.one_hot.shape == arrays.hypothetical.shape == (40, 60, 4)
    np.testing.assert_array_equal(arrays.one_hot.sum(2), 1)
    np.testing.assert_allclose(arrays.hypothetical.sum(2), 0, atol=1e-4)
    np.testing.assert_array_equal(arrays.contributions, arrays.one_hot * arrays.hypothetical)
    mean = dbio.get.attribution_arrays(asked, cell_type="mean")
    np.testing.assert_allclose(mean.hypothetical, asked.uns["attributions"]["scores"].mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="several cell types"):
        dbio.get.attribution_arrays(asked)
    asked.write_h5ad(tmp_path / "a.h5ad")
    store = memory_store()
    asked.write_zarr(store)
    for read in (anndata.read_h5ad(tmp_path / "a.h5ad"), anndata.read_zarr(store)):
        again = dbio.get.attribution_arrays(read, cell_type="cell1")
        np.testing.assert_array_equal(again.hypothetical, arrays.hypothetical)
        assert again.regions == arrays.regions
        assert dbio.get.attributions(read).equals(dbio.get.attributions(asked))


def test_logo_draws_the_letters_that_stand_there(asked):
    pytest.importorskip("logomaker")
    axes = dbio.pl.logo(asked, 3, cell_type="cell1", start=10, end=30, highlight=[(12, 18, "site")], show=False)
    arrays = dbio.get.attribution_arrays(asked, cell_type="cell1")
    heights = arrays.contributions[3, 10:30].sum(1)
    low, high = axes.get_ylim()
    assert low < heights.clip(max=0).min() <= 0 <= heights.clip(min=0).max() < high
    assert axes.get_xlabel() == "position in the region (bases)"
    assert axes.get_ylabel() == "contribution (log-odds)"
    assert asked.uns["attributions"]["regions"][3] in axes.get_title()
    drawn = [patch for patch in axes.patches if hasattr(patch, "get_path")]
    assert len(drawn) >= 20  # a glyph for each base, and the shade
    assert any(text.get_text() == "site" for text in axes.texts)


def test_logos_of_several_cell_types_share_their_scale(tmp_path, asked):
    pytest.importorskip("logomaker")
    axes = dbio.pl.logo(asked, asked.uns["attributions"]["regions"][2], save=tmp_path / "logo.png")
    assert len(axes) == 4
    assert len({one.get_ylim() for one in axes}) == 1
    assert (tmp_path / "logo.png").stat().st_size > 5000
    _, one = plt.subplots()
    assert dbio.pl.logo(asked, 0, cell_type="cell2", hypothetical=True, ax=one, show=False) is one
    with pytest.raises(ValueError, match="ax is one and cell types are 4"):
        dbio.pl.logo(asked, 0, ax=one)
    with pytest.raises(KeyError, match="no attributions of region 'chr9'"):
        dbio.pl.logo(asked, "chr9")
    with pytest.raises(KeyError, match="found place 40"):
        dbio.pl.logo(asked, 40)
    with pytest.raises(ValueError, match="within the region's 60 bases"):
        dbio.pl.logo(asked, 0, start=50, end=70)
    with pytest.raises(ValueError, match="must end in one of"):
        dbio.pl.logo(asked, 0, save="logo.xyz")


def test_logo_says_what_to_install(asked, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "logomaker", None)
    with pytest.raises(ImportError, match=r"pip install 'diffbio-sc\[sequence\]'"):
        dbio.pl.logo(asked, 0)
