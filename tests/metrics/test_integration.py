from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio


def cells(seed=0, *, sizes=(40, 30, 25, 4), shift=0.5, dimensions=5):
    """Clouds of cell types, the last one rare, in two batches that are moved apart."""
    rng = np.random.default_rng(seed)
    types = np.repeat([f"type{k}" for k in range(len(sizes))], sizes)
    centres = rng.normal(0, 2.0, (len(sizes), dimensions))
    batch = rng.integers(2, size=len(types))
    place = np.repeat(centres, sizes, axis=0) + rng.normal(size=(len(types), dimensions))
    place[:, 0] += shift * batch
    order = rng.permutation(len(types))
    obs = pd.DataFrame({"type": types, "batch": [f"b{k}" for k in batch]}).iloc[order]
    obs.index = [f"cell{i}" for i in range(len(types))]
    return ad.AnnData(np.zeros((len(types), 1), np.float32), obs=obs, obsm={"X_a": place[order].astype(np.float32)})


@pytest.fixture(scope="module")
def scored():
    pytest.importorskip("igraph")
    adata = cells()
    return adata, dbio.metrics.integration(adata, use_rep="X_a", label_key="type")


def test_clusters_agree_with_labels_as_scikit_learn_says(scored):
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    adata, found = scored
    kept = adata[adata.obs["type"] != "type3"].copy()
    sc.pp.neighbors(kept, n_neighbors=15, use_rep="X_a")
    pairs = []
    for tenths in range(2, 21, 2):
        sc.tl.leiden(kept, resolution=tenths / 10, flavor="igraph", n_iterations=2, directed=False, random_state=0)
        labels, clusters = kept.obs["type"].astype(str), kept.obs["leiden"].astype(str)
        pairs.append((normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)))
    best = int(np.argmax([nmi for nmi, _ in pairs]))
    assert (found["nmi"], found["ari"]) == pytest.approx(pairs[best])
    assert found["resolution"] == pytest.approx(0.2 * (best + 1))


def test_silhouette_by_hand(scored):
    adata, found = scored
    kept = (adata.obs["type"] != "type3").to_numpy()
    place, labels = np.asarray(adata.obsm["X_a"][kept], float), adata.obs["type"].to_numpy(dtype=object)[kept]
    distance = np.sqrt(((place[:, None] - place[None]) ** 2).sum(-1))
    widths = []
    for i, label in enumerate(labels):
        means = {other: distance[i, labels == other].sum() for other in set(labels)}
        inside = means.pop(label) / ((labels == label).sum() - 1)
        outside = min(total / (labels == other).sum() for other, total in means.items())
        widths.append((outside - inside) / max(inside, outside))
    assert found["silhouette_label"] == pytest.approx((np.mean(widths) + 1) / 2, abs=1e-5)


def test_neighbors_tell_labels_by_hand(scored):
    from sklearn.model_selection import StratifiedKFold

    adata, found = scored
    kept = (adata.obs["type"] != "type3").to_numpy()
    place, labels = np.asarray(adata.obsm["X_a"][kept], float), adata.obs["type"].to_numpy(dtype=object)[kept]
    names = sorted(set(labels))
    right = np.zeros(len(labels), bool)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(place, labels.astype(str)):
        for i in test:
            near = train[np.argsort(((place[train] - place[i]) ** 2).sum(1), kind="stable")[:15]]
            votes = [(labels[near] == name).sum() for name in names]
            right[i] = names[int(np.argmax(votes))] == labels[i]
    assert found["knn_accuracy"] == pytest.approx(right.mean())
    assert found["knn_balanced_accuracy"] == pytest.approx(np.mean([right[labels == name].mean() for name in names]))


def test_batch_scores_need_batches(scored):
    expected = ["nmi", "ari", "resolution", "silhouette_label", "knn_accuracy", "knn_balanced_accuracy"]
    assert list(scored[1].index) == expected


def lisi_by_hand(place, batch, perplexity):
    """Inverse Simpson index of Gaussian neighborhoods of a given perplexity, by bisection in float64."""
    values = []
    for i in range(len(place)):
        distance = np.sqrt(((place - place[i]) ** 2).sum(1))
        order = [j for j in np.argsort(distance, kind="stable") if j != i][:89]
        low, high, distance = 0.0, 1e6, distance[order]
        for _ in range(200):
            beta = (low + high) / 2
            weight = np.exp(-beta * (distance - distance.min()))
            weight /= weight.sum()
            entropy = -(weight[weight > 0] * np.log(weight[weight > 0])).sum()
            low, high = (beta, high) if entropy > np.log(perplexity) else (low, beta)
        values.append(1 / sum(weight[batch[order] == b].sum() ** 2 for b in np.unique(batch)))
    return np.array(values)


def test_batch_scores_by_hand():
    pytest.importorskip("scib_metrics")
    from sklearn.metrics import silhouette_samples

    adata = cells(3, sizes=(60, 50, 40))
    found = dbio.metrics.integration(adata, use_rep="X_a", label_key="type", batch_key="batch")
    place, batch = np.asarray(adata.obsm["X_a"], float), adata.obs["batch"].to_numpy(dtype=object)
    lisi = lisi_by_hand(place, batch, 30)
    # The bisection stops at 1e-5 of the entropy there.
    assert found["ilisi"] == pytest.approx(np.median(lisi) - 1, abs=1e-4)
    widths = []
    for name in ("type0", "type1", "type2"):
        here = (adata.obs["type"] == name).to_numpy()
        widths.append(np.mean(1 - np.abs(silhouette_samples(place[here], batch[here].astype(str)))))
    assert found["silhouette_batch"] == pytest.approx(np.mean(widths), abs=1e-5)

    apart = cells(3, sizes=(60, 50, 40), shift=40.0)
    worse = dbio.metrics.integration(apart, use_rep="X_a", label_key="type", batch_key="batch")
    assert worse["ilisi"] < 0.01 < found["ilisi"]
    assert worse["silhouette_batch"] < 0.2 < found["silhouette_batch"]


def test_batches_within_no_label_are_said_aloud():
    pytest.importorskip("scib_metrics")
    adata = cells(3, sizes=(60, 50, 40))
    adata.obs["batch"] = adata.obs["type"]
    with pytest.warns(UserWarning, match="no label has cells of two batches"):
        found = dbio.metrics.integration(adata, use_rep="X_a", label_key="type", batch_key="batch")
    assert np.isnan(found["silhouette_batch"])
    assert np.isfinite(found["ilisi"])


def test_several_embeddings_of_a_mudata_give_a_table(scored):
    from mudata import MuData

    adata, found = scored
    mdata = MuData({"rna": adata})
    mdata.obs["type"] = pd.Categorical(adata.obs["type"])
    mdata.obsm["X_a"] = adata.obsm["X_a"]
    mdata.obsm["X_noise"] = pd.DataFrame(np.random.default_rng(1).normal(size=(99, 3)), index=mdata.obs_names)
    mdata.obsm["X_sparse"] = sp.csr_matrix(adata.obsm["X_a"])
    table = dbio.metrics.integration(mdata, use_rep=["X_a", "X_noise", "X_sparse"], label_key="type")
    assert list(table.index) == ["X_a", "X_noise", "X_sparse"]
    pd.testing.assert_series_equal(table.loc["X_a"], found)
    pd.testing.assert_series_equal(table.loc["X_sparse"], found, check_names=False)
    assert (table.loc["X_noise"] < found).drop("resolution").all()


def test_cells_without_a_label_do_not_count(scored):
    adata, found = scored
    extra = adata.copy()
    extra.obs["type"] = extra.obs["type"].astype(object).where(extra.obs["type"] != "type3")
    assert extra.obs["type"].isna().sum() == 4
    pd.testing.assert_series_equal(dbio.metrics.integration(extra, use_rep="X_a", label_key="type"), found)


def test_seeds(scored):
    adata, found = scored
    before = adata.copy()
    again = dbio.metrics.integration(adata, use_rep="X_a", label_key="type", rng=0)
    pd.testing.assert_series_equal(again, found)
    other = [
        dbio.metrics.integration(
            adata, use_rep="X_a", label_key="type", rng=np.random.default_rng(5), resolutions=[1.0]
        )
        for _ in range(2)
    ]
    pd.testing.assert_series_equal(*other)
    assert set(adata.obsm) == set(before.obsm)
    assert list(adata.obs) == list(before.obs)


def call(adata, **options):
    return dbio.metrics.integration(adata, **{"use_rep": "X_a", "label_key": "type", **options})


def test_missing_keys():
    adata = cells()
    with pytest.raises(KeyError, match=r"adata.obsm has no 'X_b'; keys: \['X_a'\]"):
        call(adata, use_rep="X_b")
    with pytest.raises(KeyError, match=r"adata.obs has no column 'kind'; columns: \['type', 'batch'\]"):
        call(adata, label_key="kind")
    with pytest.raises(KeyError, match="adata.obs has no column 'donor'"):
        call(adata, batch_key="donor")
    with pytest.raises(ValueError, match="use_rep is empty"):
        call(adata, use_rep=[])
    with pytest.raises(TypeError, match="AnnData or a MuData, found ndarray"):
        call(np.ones((3, 2)))


def test_broken_embeddings():
    adata = cells()
    adata.obsm["X_a"][[3, 7], 0] = [np.nan, np.inf]
    with pytest.raises(ValueError, match=r"'X_a'\] must be finite, found 2 bad rows, first: \['cell3', 'cell7'\]"):
        call(adata)
    adata.obsm["X_flat"] = np.zeros((99, 0))
    with pytest.raises(ValueError, match=r"\(99, 0\)"):
        call(adata, use_rep="X_flat")


def test_too_few_labels_or_batches():
    adata = cells()
    adata.obs["one"] = "b0"
    with pytest.raises(
        ValueError, match=r"at least two labels of at least min_cells=10 cells each; found: \['b0 \(99\)'\]"
    ):
        call(adata, label_key="one")
    with pytest.raises(ValueError, match=r"two batches or more, found \['b0'\] only; leave out batch_key"):
        call(adata, batch_key="one")
    with pytest.raises(ValueError, match="'type0 \\(40\\)', 'type1 \\(30\\)'"):
        call(adata, min_cells=35)
    adata.obs["gaps"] = adata.obs["batch"].astype(object).where(np.arange(99) > 1)
    with pytest.raises(ValueError, match=r"a batch for each cell, found 2 missing, first: \['cell0', 'cell1'\]"):
        call(adata, batch_key="gaps")
    adata.obs["none"] = np.nan
    with pytest.raises(ValueError, match="has no labels: all of its 99 values are missing"):
        call(adata, label_key="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_cells": 4}, "n_folds must be from 2 to min_cells.*n_folds=5, min_cells=4"),
        ({"n_folds": 1}, "n_folds must be a whole number of at least 2, found 1"),
        ({"resolutions": []}, "resolutions is empty"),
        ({"resolutions": [0.0, 1.0]}, "each of resolutions must be a number above 0, found 0.0"),
        ({"n_neighbors": 76}, "found 76 with 95 cells"),
        ({"n_neighbors": 0}, "found 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        call(cells(), **options)


@pytest.mark.parametrize("module", ["igraph", "scib_metrics"])
def test_a_missing_package_names_its_extra(monkeypatch, module):
    if module == "scib_metrics":
        pytest.importorskip("igraph")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "diffbio-sc\[integration\]"'):
        call(cells(), batch_key="batch")


@pytest.mark.data
def test_published_scoring_of_bone_marrow(data_folder):
    """CLR and PCA of the proteins: the figures that the scripts of the peers gave, rounded there."""
    pytest.importorskip("igraph")
    import mudata
    from sklearn.utils.extmath import randomized_svd

    mdata = mudata.read_h5mu(data_folder / "multiomics_vae" / "bmmc_cite.h5mu")
    logs = np.log1p(mdata["prot"].X.toarray())
    logs -= logs.mean(1, keepdims=True)
    logs -= logs.mean(0)
    left, scale, _ = randomized_svd(logs / logs.std(0), 30, random_state=0)
    mdata.obsm["X_clr"] = left * scale
    found = dbio.metrics.integration(mdata, use_rep="X_clr", label_key="cell_type")
    expected = {"nmi": 0.879, "ari": 0.795, "silhouette_label": 0.593, "knn_balanced_accuracy": 0.699}
    expected["knn_accuracy"] = 0.805
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.01), name
