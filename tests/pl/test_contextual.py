from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def adata():
    """Predictions by hand: drawing needs no model."""
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=900, n_cell_types=4, rng=1)
    rng = np.random.default_rng(0)
    logit = np.log(adata.layers["probability"] / (1 - adata.layers["probability"])) + rng.normal(0, 0.3, adata.shape)
    adata.layers["contextual_logit"] = logit.astype(np.float32)
    adata.layers["contextual_prob"] = expit(logit).astype(np.float32)
    adata.var["contextual_split"] = np.repeat(["train", "val", "test"], 300)
    adata.var["contextual_split"] = adata.var["contextual_split"].astype("category")
    adata.uns["contextual"] = {
        "params": {"mode": "tf_context"},
        "contract": {"cell_types": list(adata.obs_names)},
        "report": {
            "metrics": {"floor": {"validation": {"auroc": 0.7}, "test": {"auroc": 0.71, "auroc_var": 0.6}}},
            "history": {"loss": np.array([0.7, 0.6, 0.55]), "validation_loss": np.array([0.69, 0.62, 0.63])},
        },
    }
    return adata


def test_tables_equal_scikit_learn(tmp_path, adata):
    table = dbio.get.contextual(adata, kind="cell_types").set_index(["split", "cell_type"])
    test = (adata.var["contextual_split"] == "test").to_numpy()
    truth, score = adata.X[2, test], adata.layers["contextual_logit"][2, test]
    row = table.loc[("test", "cell3")]
    assert row["n"] == 300
    np.testing.assert_allclose(row["active"], truth.mean())
    np.testing.assert_allclose(row["auroc"], roc_auc_score(truth, score))
    np.testing.assert_allclose(row["auprc"], average_precision_score(truth, score))
    varies = adata.X[:, test].min(0) < adata.X[:, test].max(0)
    np.testing.assert_allclose(row["auroc_variable"], roc_auc_score(truth[varies], score[varies]))
    regions = dbio.get.contextual(adata)
    assert len(regions) == 900 * 4
    one = regions.iloc[4 * 610 + 1]
    assert (one["region"], one["cell_type"], one["split"]) == (adata.var_names[610], "cell2", "test")
    assert one["label"] == adata.X[1, 610]
    np.testing.assert_allclose(one["probability"], adata.layers["contextual_prob"][1, 610], rtol=1e-6)
    metrics = dbio.get.contextual(adata, kind="metrics")
    assert metrics["value"].tolist() == [0.7, 0.71, 0.6]
    assert metrics["split"].tolist() == ["val", "test", "test"]
    adata.write_h5ad(tmp_path / "predicted.h5ad")
    pd.testing.assert_frame_equal(
        dbio.get.contextual(ad.read_h5ad(tmp_path / "predicted.h5ad"), kind="metrics"), metrics
    )


def test_predictions_of_another_object_have_no_labels(adata):
    other = adata.copy()
    del other.uns["contextual"], other.var["contextual_split"]
    assert "label" not in dbio.get.contextual(other)
    with pytest.raises(ValueError, match="pass layer="):
        dbio.get.contextual(other, kind="cell_types")
    other.layers["peaks"] = other.X
    table = dbio.get.contextual(other, kind="cell_types", layer="peaks")
    assert table["split"].unique().tolist() == ["all"]
    assert len(table) == 4


def test_accuracy_with_chance_and_floor(tmp_path, adata):
    axes = dbio.pl.contextual(adata, show=False)
    table = dbio.get.contextual(adata, kind="cell_types").query("split == 'test'").sort_values("auroc")
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["model"].get_xdata(), table["auroc"])
    assert [text.get_text() for text in axes.get_yticklabels()] == list(table["cell_type"])
    assert set(lines["chance"].get_xdata()) == {0.5}
    assert lines["floor, mean of cell types"].get_xdata()[0] == 0.71
    assert "'test'" in axes.get_title()
    axes = dbio.pl.contextual(adata, metric="auroc_variable", show=False)
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["floor, mean of cell types"].get_xdata()[0] == 0.6
    axes = dbio.pl.contextual(adata, metric="auprc", split="val", save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    lines = {line.get_label(): line for line in axes.get_lines()}
    table = dbio.get.contextual(adata, kind="cell_types").query("split == 'val'").sort_values("auprc")
    np.testing.assert_allclose(lines["chance"].get_xdata(), table["active"])
    assert not any("floor" in label for label in lines)


def test_cell_type_without_a_score_is_named(adata):
    other = adata.copy()
    other.X = other.X.copy()
    other.X[1] = 1
    axes = dbio.pl.contextual(other, show=False)
    assert [text.get_text() for text in axes.get_yticklabels()][0] == "cell2"
    assert any("not defined" in text.get_text() for text in axes.texts)


def test_reliability_is_the_share_of_open_regions(adata):
    axes = dbio.pl.contextual(adata, "reliability", show=False)
    line = next(one for one in axes.get_lines() if len(one.get_xdata()) == 10 and one.get_marker() == "o")
    test = (adata.var["contextual_split"] == "test").to_numpy()
    probability, label = adata.layers["contextual_prob"][:, test].T.ravel(), adata.X[:, test].T.ravel()
    order = np.argsort(probability, kind="stable")
    np.testing.assert_allclose(
        line.get_xdata(), [part.mean() for part in np.array_split(probability[order], 10)], rtol=1e-5
    )
    np.testing.assert_allclose(line.get_ydata(), [part.mean() for part in np.array_split(label[order], 10)])
    assert {"cell1", "all"} <= {text.get_text() for text in axes.get_legend().get_texts()}


def test_history(adata):
    axes = dbio.pl.contextual(adata, "history", show=False)
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.7, 0.6, 0.55], [0.69, 0.62, 0.63]]
    other = adata.copy()
    once = adata.uns["contextual"]["report"]["history"]
    other.uns["contextual"]["report"]["history"] = {"0": once, "1": {name: 2 * curve for name, curve in once.items()}}
    axes = dbio.pl.contextual(other, "history", show=False)
    assert [line.get_ydata()[0] for line in axes.get_lines()] == [0.7, 1.4, 0.69, 1.38]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training regions", "validation regions"]
    other.uns["contextual"]["report"]["history"] = {}
    with pytest.raises(KeyError, match="no network was trained"):
        dbio.pl.contextual(other, "history")


def test_bad_arguments(adata):
    with pytest.raises(ValueError, match="kind must be 'accuracy', 'reliability' or 'history'"):
        dbio.pl.contextual(adata, "roc")
    with pytest.raises(ValueError, match="metric must be 'auroc', 'auprc' or 'auroc_variable'"):
        dbio.pl.contextual(adata, metric="f1")
    with pytest.raises(KeyError, match="no region of split 'dev'"):
        dbio.pl.contextual(adata, split="dev")
    with pytest.raises(KeyError, match="no 'other_logit'"):
        dbio.pl.contextual(adata, key="other")
    _, ax = plt.subplots()
    assert dbio.pl.contextual(adata, ax=ax, show=False) is ax
