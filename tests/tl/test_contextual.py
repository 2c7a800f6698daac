"""The face of the contextual sequence model: what it reads, refuses, writes and predicts."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from no_warnings import no_warnings
from scipy.special import expit
from sklearn.metrics import roc_auc_score

import diffbio_sc as dbio

FAST = {"refine": False, "average": False}


def simulated(n_regions=600, **options):
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=n_regions, n_cell_types=5, width=60, rng=2, **options)
    dbio.pp.sequences(adata)
    return adata


@pytest.fixture(scope="module")
def data():
    return simulated()


@pytest.fixture(scope="module")
def trained(data):
    adata = data.copy()
    dbio.tl.contextual(adata, **FAST)
    return adata


def fit(adata, **options):
    dbio.tl.contextual(adata, **{**FAST, **options})
    return adata


def test_predictions_are_written_and_rank_held_out_regions(trained):
    logit, probability = trained.layers["contextual_logit"], trained.layers["contextual_prob"]
    assert logit.dtype == probability.dtype == np.float32
    np.testing.assert_allclose(probability, expit(logit), rtol=1e-5)
    test = (trained.var["contextual_split"] == "test").to_numpy()
    scores = [roc_auc_score(trained.X[cell, test], logit[cell, test]) for cell in range(5)]
    # Sites of ten bases in regions of sixty: chance is .5, and the truth itself reaches .86.
    assert np.mean(scores) > 0.65
    reported = trained.uns["contextual"]["report"]["metrics"]["start"]["test"]["auroc"]
    np.testing.assert_allclose(reported, np.mean(scores), atol=1e-4)


def test_record(trained):
    record = trained.uns["contextual"]
    assert record["params"]["mode"] == "tf_context"
    assert record["params"]["refine"] is False
    assert {"kept", "reason", "converged", "history", "metrics", "seconds"} <= set(record["report"])
    assert record["report"]["kept"] == "start"
    contract = record["contract"]
    assert contract["width"] == 60
    assert list(contract["cell_types"]) == list(trained.obs_names)
    assert contract["splits"] == trained.var["contextual_split"].value_counts().to_dict()
    assert contract["n_factors"] == 20


def test_held_out_chromosomes_are_whole(trained):
    counts = pd.crosstab(trained.var["chrom"], trained.var["contextual_split"])
    assert ((counts > 0).sum(axis=1) == 1).all()
    assert 0.1 <= (trained.var["contextual_split"] == "val").mean() < 0.25
    assert 0.1 <= (trained.var["contextual_split"] == "test").mean() < 0.25


def test_what_is_not_trained_with_does_not_matter(data, trained):
    changed = data.copy()
    test = (trained.var["contextual_split"] == "test").to_numpy()
    changed.X[:, test] = 1 - changed.X[:, test]
    fit(changed)
    np.testing.assert_array_equal(changed.layers["contextual_logit"], trained.layers["contextual_logit"])


def test_same_seed_same_result_and_copy(data, trained):
    result = dbio.tl.contextual(data, **FAST, copy=True)
    np.testing.assert_array_equal(result.layers["contextual_logit"], trained.layers["contextual_logit"])
    assert "contextual" not in data.uns
    assert not {"contextual_logit", "contextual_prob"} & set(data.layers)


@pytest.mark.parametrize("kind", ["int", "bool", "csr", "csc", "float64", "layer", "view"])
def test_labels_of_every_kind_give_one_result(data, trained, kind):
    adata, options = data.copy(), {}
    values = data.X
    if kind == "layer":
        adata.layers["peaks"] = values.astype(np.float32)
        adata.X = np.full(values.shape, 7.0, np.float32)
        options = {"layer": "peaks"}
    elif kind == "view":
        whole = anndata.concat([data, data], axis=0, merge="same", uns_merge="first", index_unique="-")
        adata = whole[: data.n_obs]
        assert adata.is_view
    else:
        made = {"int": np.int64, "bool": bool, "csr": sp.csr_matrix, "csc": sp.csc_matrix, "float64": np.float64}[kind]
        adata.X = made(values) if kind in ("csr", "csc") else values.astype(made)
    before = adata.X.copy()
    fit(adata, **options)
    np.testing.assert_array_equal(adata.layers["contextual_logit"], trained.layers["contextual_logit"])
    same = (before != adata.X).nnz == 0 if sp.issparse(before) else np.array_equal(before, adata.X)
    assert same


def test_backed_and_regions_along_obs(tmp_path, data, trained):
    data.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    fit(backed)
    np.testing.assert_array_equal(backed.layers["contextual_logit"], trained.layers["contextual_logit"])
    with pytest.raises(ValueError, match="in memory"):
        dbio.tl.contextual(backed, copy=True)
    turned = data.T.copy()
    fit(turned)
    np.testing.assert_array_equal(turned.layers["contextual_logit"], trained.layers["contextual_logit"].T)
    assert "contextual_split" in turned.obs
    np.testing.assert_array_equal(
        dbio.get.contextual(turned, kind="cell_types")["auroc"],
        dbio.get.contextual(trained, kind="cell_types")["auroc"],
    )


def test_objects_of_crested_are_read_as_they_are(trained):
    theirs = dbio.get.crested(trained)
    assert "chrom" not in theirs.var
    dbio.pp.sequences(theirs)
    fit(theirs)  # by its own column split
    assert theirs.uns["contextual"]["params"]["split"] == "split"
    np.testing.assert_allclose(theirs.layers["contextual_logit"], trained.layers["contextual_logit"], atol=1e-5)


def test_fasta_is_read_on_the_way(tmp_path, data, trained):
    pytest.importorskip("pyfaidx")
    genome = {}
    for chrom, mine in data.var.groupby("chrom", observed=True):
        text = np.full(int(mine["end"].max()) + 5, "A")
        for start, sequence in zip(mine["start"], mine["sequence"], strict=True):
            text[start : start + 60] = list(sequence)
        genome[str(chrom)] = "".join(text)
    path = tmp_path / "genome.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    adata = data.copy()
    del adata.varm["dna"], adata.var["sequence"]
    fit(adata, fasta=path)
    np.testing.assert_array_equal(adata.varm["dna"], data.varm["dna"])
    np.testing.assert_array_equal(adata.layers["contextual_logit"], trained.layers["contextual_logit"])


def test_splits_by_column_and_mapping(data):
    adata = data.copy()
    adata.var["part"] = np.where(
        adata.var["chrom"] == "chr1", "valid", np.where(adata.var["chrom"] == "chr2", "Test", "train")
    )
    adata.var.loc[adata.var["chrom"] == "chr3", "part"] = None
    fit(adata, split="part")
    expected = adata.layers["contextual_logit"].copy()
    assert adata.var["contextual_split"].isna().sum() == (adata.var["chrom"] == "chr3").sum()
    others = [f"chr{number}" for number in range(4, 11)]
    fit(adata, split={"train": others, "val": "chr1", "test": ["chr2"]})
    np.testing.assert_array_equal(adata.layers["contextual_logit"], expected)
    fit(adata, split={"val": ["chr1"], "test": ["chr2"]})  # chr3 trains too
    assert np.abs(adata.layers["contextual_logit"] - expected).max() > 1e-3


def test_bad_splits(data):
    adata = data.copy()
    adata.var["part"] = "train"
    for split, error, message in (
        ("part", ValueError, "no region is left to validate with"),
        ("missing", KeyError, "no column 'missing'"),
        ({"val": ["chrX"]}, KeyError, "split names 'chrX'"),
        ({"val": ["chr1"], "test": ["chr1"]}, ValueError, "has 'chr1' twice"),
        ({"validate": ["chr1"]}, ValueError, "keys of split"),
        (3, TypeError, "split must be a text, a mapping"),
    ):
        with pytest.raises(error, match=message):
            fit(adata, split=split)
    adata.var.loc[adata.var_names[4], "part"] = "dev"
    with pytest.raises(ValueError, match="found 'dev' at"):
        fit(adata, split="part")
    assert "contextual" not in adata.uns


def test_overlap_of_splits_is_told(data):
    adata = data.copy()
    adata.var["part"] = ["train", "val", "test"] * 200
    adata.var.iloc[1, adata.var.columns.get_loc("start")] = adata.var["start"].iloc[0] + 30
    adata.var.iloc[1, adata.var.columns.get_loc("end")] = adata.var["start"].iloc[0] + 90
    with pytest.warns(UserWarning, match="splits overlap, in 1 region; first") as caught:
        fit(adata, split="part")
    assert "split by chromosome" in str([str(warning.message) for warning in caught])


def test_duplicated_regions_are_told(data):
    adata = data.copy()
    adata.var.iloc[1, :3] = adata.var.iloc[0, :3]
    with pytest.warns(UserWarning, match="1 of 600 regions occur more than once"):
        fit(adata)


def test_names_that_disagree_with_columns_are_told(data):
    adata = data.copy()
    adata.var["start"] += 500
    adata.var["end"] += 500
    with pytest.warns(UserWarning, match="600 of 600 names of regions are not where their columns say"):
        fit(adata)


def test_one_chromosome_is_cut_into_blocks(data):
    adata = data[:, data.var["chrom"].isin(["chr1", "chr2"])].copy()
    adata.var["start"] += np.where(adata.var["chrom"] == "chr2", 10**7, 0)
    adata.var["end"] = adata.var["start"] + 60
    adata.var["chrom"] = "chr1"
    adata.var_names = [f"r{number}" for number in range(adata.n_vars)]
    fit(adata)
    split = adata.var["contextual_split"]
    order = np.argsort(adata.var["start"].to_numpy())
    codes = split.cat.codes.to_numpy()[order]
    assert (np.diff(np.flatnonzero(codes == 1)) == 1).all()
    assert (codes == 0).sum() == 90
    assert (codes == -1).sum() == 6  # between the two


# Contexts


def test_modes(data, trained):
    adata = data.copy()
    fit(adata, mode="sequence_only")
    assert adata.uns["contextual"]["params"]["mode"] == "sequence_only"
    assert "context" not in adata.uns["contextual"]["model"]
    fit(adata, tf_context=None)
    assert adata.uns["contextual"]["params"]["mode"] == "sequence_only"
    with pytest.raises(ValueError, match="mode must be 'auto', .* found 'everything'"):
        fit(adata, mode="everything")
    with pytest.raises(ValueError, match="needs contacts"):
        fit(adata, mode="tf_plus_chromatin")
    del adata.obsm["tf_context"]
    with pytest.raises(KeyError, match="no 'tf_context'"):
        fit(adata, mode="tf_context")
    fit(adata)
    assert adata.uns["contextual"]["params"]["mode"] == "sequence_only"


@pytest.mark.parametrize("case", ["constant", "one cell type", "one with expression"])
def test_contexts_that_tell_nothing_fall_back_with_a_warning(data, case):
    adata = data[:1].copy() if case == "one cell type" else data.copy()
    table = adata.obsm["tf_context"].copy()
    if case == "constant":
        table[:] = 3.0
    if case == "one with expression":
        table.iloc[1:] = np.nan
    adata.obsm["tf_context"] = table
    with pytest.warns(UserWarning, match="tells no cell types apart.*sequences alone"):
        fit(adata)
    assert adata.uns["contextual"]["params"]["mode"] == "sequence_only"
    assert np.isfinite(adata.layers["contextual_logit"]).all()


def test_cell_type_without_expression_is_trained_by_its_labels(data):
    adata = data.copy()
    table = adata.obsm["tf_context"].copy()
    table.iloc[2] = np.nan
    adata.obsm["tf_context"] = table
    fit(adata)
    table = dbio.get.contextual(adata, kind="cell_types").query("split == 'test'").set_index("cell_type")
    assert table.loc["cell3", "auroc"] > 0.6


def test_contexts_as_an_array_with_names(data, trained):
    adata = data.copy()
    table = adata.obsm.pop("tf_context")
    adata.obsm["expression"] = table.to_numpy()
    with pytest.raises(ValueError, match=r"uns\['tf_names'\], found none"):
        fit(adata, tf_context="expression")
    adata.uns["tf_names"] = np.array(table.columns, dtype=str)
    fit(adata, tf_context="expression")
    np.testing.assert_array_equal(adata.layers["contextual_logit"], trained.layers["contextual_logit"])


def test_bad_contexts(data):
    for value, message in (
        (np.nan, "factor 'TF2' .1 such"),
        (np.inf, "must be finite, found inf in cell type 'cell1'"),
    ):
        adata = data.copy()
        table = adata.obsm["tf_context"].copy()
        table.iloc[0, 1] = value
        adata.obsm["tf_context"] = table
        with pytest.raises(ValueError, match=message):
            fit(adata)
    adata = data.copy()
    adata.obsm["tf_context"] = adata.obsm["tf_context"].set_axis(
        [*adata.obsm["tf_context"].columns[:-1], "TF1"], axis=1
    )
    with pytest.raises(ValueError, match="must be unique.*'TF1'"):
        fit(adata)


# Labels


def test_bad_labels(data):
    for change, message in (
        (lambda x: x * 3.0, "found 3 in region .*strongest regions"),
        (lambda x: x - 1.0, "found -1 in region"),
        (lambda x: np.where(x > 0, np.inf, 0), "found inf"),
        (lambda x: np.full(x.shape, np.nan), "no known label: all 3000 values are NaN"),
    ):
        adata = data.copy()
        adata.X = change(data.X).astype(np.float32)
        with pytest.raises(ValueError, match=message):
            fit(adata)
    adata = anndata.AnnData(None, obs=data.obs, var=data.var, varm={"dna": data.varm["dna"]}, shape=data.shape)
    with pytest.raises(ValueError, match="adata.X is None"):
        fit(adata)
    with pytest.raises(KeyError, match="no 'peaks'"):
        fit(data.copy(), layer="peaks")


@pytest.mark.parametrize("value", [0, 1])
def test_cell_type_that_is_closed_or_open_everywhere(data, value):
    adata = data.copy()
    adata.X[3] = value
    with pytest.warns(UserWarning, match="one label in all training regions: 1 cell type, .'cell4'"):
        fit(adata)
    table = dbio.get.contextual(adata, kind="cell_types").set_index(["split", "cell_type"])
    assert np.isnan(table.loc[("test", "cell4"), "auroc"])
    assert table.loc[("test", "cell1"), "auroc"] > 0.6
    assert (np.abs(adata.layers["contextual_prob"][3] - value) < 0.05).all()


def test_missing_labels_are_no_zeros(data, trained):
    adata = data.copy()
    adata.X = data.X.astype(np.float32)
    rng = np.random.default_rng(0)
    adata.X[rng.random(adata.shape) < 0.3] = np.nan
    fit(adata)
    # As open on average as with all labels: a 0 for each missing one would lower it by a third.
    found, expected = adata.layers["contextual_prob"].mean(1), trained.layers["contextual_prob"].mean(1)
    np.testing.assert_allclose(found, expected, atol=0.06)


def test_cell_type_without_labels_is_predicted_from_its_expression(data):
    adata = data.copy()
    adata.X = data.X.astype(np.float32)
    adata.X[4] = np.nan
    fit(adata)
    assert list(adata.uns["contextual"]["contract"]["cell_types"]) == ["cell1", "cell2", "cell3", "cell4"]
    apart = data[:4].copy()
    fit(apart)
    new = data[4:].copy()
    dbio.tl.contextual_predict(new, model=apart)
    np.testing.assert_allclose(adata.layers["contextual_logit"][:4], apart.layers["contextual_logit"], atol=1e-5)
    np.testing.assert_allclose(adata.layers["contextual_logit"][4:], new.layers["contextual_logit"], atol=1e-5)
    del adata.obsm["tf_context"]
    with pytest.raises(ValueError, match="'cell5'.* have no label, and no expression"):
        fit(adata)


# Sequences


def test_bad_sequences(data):
    adata = data.copy()
    del adata.varm["dna"]
    with pytest.raises(KeyError, match=r"no 'dna': run dbio.pp.sequences"):
        fit(adata)
    adata.varm["dna"] = data.varm["dna"] + 3
    with pytest.raises(ValueError, match="must be from 0 to 4"):
        fit(adata)
    adata.varm["dna"] = data.varm["dna"][:, :5]
    with pytest.raises(ValueError, match="at least 12 bases, found 5"):
        fit(adata)
    adata = data.copy()
    adata.obs_names = ["a", "a", "b", "c", "d"]
    with pytest.raises(ValueError, match="names of cell types must be unique"):
        fit(adata)
    adata = data.copy()
    del adata.var["chrom"]
    with pytest.raises(KeyError, match="expected columns"):
        fit(adata)
    assert "contextual" not in adata.uns


def test_both_strands_are_one(data, trained):
    from diffbio_sc.genome.sequences import reverse_complement

    other = data.copy()
    other.varm["dna"] = reverse_complement(data.varm["dna"])
    dbio.tl.contextual_predict(other, model=trained)
    np.testing.assert_allclose(other.layers["contextual_logit"], trained.layers["contextual_logit"], atol=1e-5)


def test_unknown_bases_alone(data, trained):
    other = data.copy()
    other.varm["dna"] = np.full_like(data.varm["dna"], 4)
    dbio.tl.contextual_predict(other, model=trained)
    logits = other.layers["contextual_logit"]
    assert np.isfinite(logits).all()
    assert (logits == logits[:, :1]).all()
    dbio.tl.attributions(other, regions=[0], method="input_x_gradient", model=trained)
    assert np.isfinite(other.uns["attributions"]["scores"]).all()


def test_bad_arguments(data):
    adata = data.copy()
    for options, error, message in (
        ({"neighbourhood": 3}, ValueError, "neighbourhood must be"),
        ({"refine": "yes"}, ValueError, "refine must be True or False"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be a whole number"),
        ({"key_added": "a/b"}, ValueError, "must not contain '/'"),
        ({"motifs": {"m": np.ones((5, 3))}}, ValueError, "found shape .5, 3. of 'm'"),
        ({"contacts_as": "both"}, ValueError, "contacts_as must be"),
        ({"rng": -1}, ValueError, "rng must be"),
        ({"contacts": "maps"}, ValueError, "pass track="),
        ({"track": "tokens"}, KeyError, "no 'tokens' .track"),
        ({"neighbourhood": "kind"}, KeyError, "no column 'kind'"),
    ):
        with pytest.raises(error, match=message):
            fit(adata, **options)
    with pytest.raises(TypeError, match="adata must be an AnnData"):
        dbio.tl.contextual("a.h5ad")
    assert "contextual" not in adata.uns


# What the model may look at beside the sequence


def test_motifs_join_the_linear_model(data, trained):
    adata = data.copy()
    motifs = np.log2(np.maximum(adata.uns["truth"]["motifs"], 1e-3) / 0.25)
    fit(adata, motifs=dict(zip(adata.uns["truth"]["factors"], motifs, strict=True)))
    with_motifs, without = (
        dbio.get.contextual(one, kind="cell_types").query("split == 'test'")["auroc"].mean() for one in (adata, trained)
    )
    assert with_motifs > without  # the planted motifs say what words of five or six bases can only guess
    stored = adata.uns["contextual"]["model"]["arrays"]["motif_names"]
    assert list(stored[:8]) == list(adata.uns["truth"]["factors"])
    assert list(adata.uns["contextual"]["params"]["motifs"]) == list(adata.uns["truth"]["factors"])


def test_neighbourhood_is_a_mode_of_its_own(data):
    adata = data.copy()
    adata.var["kind"] = np.where(np.arange(600) % 2 == 0, "PU.1", "CTCF")
    fit(adata, neighbourhood="kind")
    assert adata.uns["contextual"]["report"]["mode"] == "neighbourhood"
    expected = adata.layers["contextual_logit"].copy()
    dbio.tl.contextual_predict(adata, neighbourhood="kind")
    np.testing.assert_allclose(adata.layers["contextual_logit"], expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"tells kinds of regions apart, \['CTCF', 'PU.1'\]"):
        dbio.tl.contextual_predict(adata)
    with pytest.raises(ValueError, match="trained with neighbourhood"):
        dbio.tl.attributions(adata, regions=[0])
    adata.var["kind"] = "GATA1"
    with pytest.raises(ValueError, match=r"kinds that the model does not know: \['GATA1'\]"):
        dbio.tl.contextual_predict(adata, neighbourhood="kind")
    few = adata[:, ::20].copy()
    few.var["kind"] = "CTCF"
    with pytest.warns(UserWarning, match="others within 50 kb"):
        dbio.tl.contextual_predict(few, neighbourhood="kind", model=adata)
    plain = fit(data.copy())
    with pytest.raises(ValueError, match="trained without neighbourhood"):
        dbio.tl.contextual_predict(plain, neighbourhood=True)


def test_nothing_is_warned_of_good_data(data):
    with no_warnings():
        fit(data.copy())


def test_a_misspelt_key_of_expression_is_not_passed_over():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=60)
    dbio.pp.sequences(adata)
    with pytest.raises(KeyError, match="has no 'tf_expresion'"):
        dbio.tl.contextual(adata, tf_context="tf_expresion")
    assert "contextual" not in adata.uns
