from __future__ import annotations

import anndata
import numpy as np
import pytest

import diffbio_sc as dbio

FAST = {"refine": False, "average": False, "n_draws": 50}


@pytest.fixture(scope="module")
def data():
    adata = dbio.datasets.simulate_regulatory_regions(n_regions=600, n_cell_types=4, width=60, rng=2)
    dbio.pp.sequences(adata)
    return adata


def test_equal_variants_claim_no_order(tmp_path, data):
    # Without a network the context of a trained cell type has no part in its prediction: the variants are one model.
    adata = dbio.tl.contextual_ablation(data, n_seeds=2, **FAST, copy=True)
    assert "contextual_ablation" not in data.uns
    record = adata.uns["contextual_ablation"]
    assert list(record["variants"]) == ["sequence_only", "random_context", "tf_context"]
    table = record["differences"]
    assert (table["claim"] == "not shown").all()
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert len(table) == 3 * 4
    assert all("is not shown to differ from" in sentence for sentence in record["report"]["summary"])
    trained = data.copy()
    dbio.tl.contextual(trained, refine=False, average=False)
    accuracy = dbio.get.contextual(trained, kind="cell_types").query("split == 'test'")
    metrics = record["metrics"].query("variant == 'tf_context' and seed == 0").set_index("metric")["value"]
    np.testing.assert_allclose(metrics["auroc"], accuracy["auroc"].mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["auprc"], accuracy["auprc"].mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["auroc_variable"], accuracy["auroc_variable"].mean(), atol=1e-6)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad").uns["contextual_ablation"]
    assert read["differences"].equals(table)


def test_a_gain_is_claimed_and_told(data, monkeypatch):
    # Predictions by hand: expression helps, a random code does not.
    from diffbio_sc.tl import _contextual_ablation as module

    def predicted(variant, **options):
        rng = options["rng"]
        noise = rng.normal(0, 1, variant.labels.shape)
        strength = 2.0 if variant.mode == "tf_context" and not options["random_context"] else 0.3
        return type("Fitted", (), {"logits": (noise + strength * variant.labels).astype(np.float32)})

    monkeypatch.setattr(module, "fit_contextual", predicted)
    adata = dbio.tl.contextual_ablation(data, n_seeds=3, n_draws=200, copy=True)
    table = adata.uns["contextual_ablation"]["differences"].query("metric == 'auroc'").set_index(["variant", "against"])
    assert table.loc[("tf_context", "sequence_only"), "claim"] == "higher"
    assert table.loc[("tf_context", "random_context"), "claim"] == "higher"
    assert table.loc[("random_context", "sequence_only"), "claim"] == "not shown"
    summary = adata.uns["contextual_ablation"]["report"]["summary"]
    assert any(
        sentence.startswith("auroc of tf_context is higher than that of sequence_only: +") for sentence in summary
    )


def test_what_cannot_be_compared(data):
    adata = data.copy()
    with pytest.raises(ValueError, match="level must be a number above 0 and below 1"):
        dbio.tl.contextual_ablation(adata, level=1.0)
    with pytest.raises(ValueError, match="no region is left to test with"):
        dbio.tl.contextual_ablation(adata, split={"val": ["chr1"]})
    with pytest.raises(KeyError, match="no 'expression'"):
        dbio.tl.contextual_ablation(adata, tf_context="expression")
    adata.obsm["tf_context"] = adata.obsm["tf_context"] * 0
    with (
        pytest.warns(UserWarning, match="tells no cell types apart"),
        pytest.raises(ValueError, match="nothing to compare"),
    ):
        dbio.tl.contextual_ablation(adata)
    adata = data.copy()
    adata.X = adata.X.astype(np.float32)
    adata.X[0] = np.nan
    with pytest.raises(ValueError, match=r"\['cell1'\] have no label"):
        dbio.tl.contextual_ablation(adata)
    assert "contextual_ablation" not in adata.uns
