from __future__ import annotations

import json

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import diffbio_sc as dbio
from diffbio_sc.tl._multiomics_vae import automatic_latent

CELLS, GENES, PEAKS = 240, 60, 80
KEY = "X_multiomics_vae"
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def simulate(seed=0):
    """Three clusters; the rates of each cell, and counts of 60 genes and 80 peaks."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, CELLS)
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical.from_codes(labels, ["a", "b", "c"]),
            "batch": np.where(rng.random(CELLS) < 0.5, "x", "y"),
        },
        index=[f"cell{i}" for i in range(CELLS)],
    )
    parts = {}
    for name, features, depth in (("rna", GENES, 400), ("atac", PEAKS, 80)):
        profiles = rng.gamma(0.7, 1.0, (3, features)) + 0.02
        rates = profiles[labels] * rng.lognormal(0, 0.3, CELLS)[:, None]
        rates *= depth / profiles.sum(1).mean()
        names = [f"{'gene' if name == 'rna' else 'peak'}{i}" for i in range(features)]
        parts[name] = ad.AnnData(
            sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs.copy(), var=pd.DataFrame(index=names)
        )
        parts[name].layers["rate"] = rates
    return parts


def paired(seed=0):
    parts = simulate(seed)
    mdata = md.MuData(parts)
    mdata.obs = parts["rna"].obs.copy()
    return mdata


def mosaic(seed=0):
    """RNA alone in 60 cells, ATAC alone in 60, both in 120."""
    parts = simulate(seed)
    order = np.random.default_rng(1).permutation(np.arange(60, CELLS))
    mdata = md.MuData({"rna": parts["rna"][:180].copy(), "atac": parts["atac"][order].copy()})
    mdata.obs = parts["rna"].obs.loc[mdata.obs_names].copy()
    return mdata


def fit(mdata, **options):
    """The configuration that all trained models here have: compiled once."""
    return dbio.tl.multiomics_vae(mdata, **{"n_latent": 5, "batch_key": "batch", "max_epochs": 25, **options})


def start(mdata, **options):
    """The linear solution alone: quick."""
    return dbio.tl.multiomics_vae(mdata, **{"n_latent": 5, "max_epochs": 0, **options})


def axis_lengths(mdata):
    """How much longer the axes of the embedding are than those of z, whose prior is N(0, I)."""
    return mdata.uns["multiomics_vae"]["model"]["arrays"]["axis_lengths"].astype(float)


@pytest.fixture(scope="module")
def fitted():
    mdata = mosaic()
    fit(mdata)
    return mdata


@pytest.fixture(scope="module")
def linear():
    mdata = paired()
    start(mdata)
    return mdata


def clusters(embedding, labels):
    return adjusted_rand_score(labels, KMeans(3, n_init=5, random_state=0).fit_predict(embedding))


def test_clusters_are_found_and_results_are_complete(fitted):
    latent = fitted.obsm[KEY]
    assert latent.shape == (CELLS, 5)
    assert latent.dtype == np.float32
    assert clusters(latent, fitted.obs["cluster"]) > 0.9
    assert (fitted.obsm[f"{KEY}_var"] > 0).all()
    assert (fitted.obsm[f"{KEY}_var"] / axis_lengths(fitted) ** 2 <= 1.0001).all()  # no wider than the prior
    for name in ("rna", "atac"):
        assert fitted[name].obsm[KEY].shape == (180, 5)
        assert np.isfinite(fitted[name].obsm[KEY]).all()
        weight = fitted.obs[f"multiomics_vae_weight_{name}"]
        has = fitted.obs_names.isin(fitted[name].obs_names)
        assert weight.dtype == np.float32
        assert (weight[~has] == 0).all()
        assert weight[has].between(0, 1).all()
    weights = fitted.obs[["multiomics_vae_weight_rna", "multiomics_vae_weight_atac"]].sum(axis=1)
    assert (weights < 1).all()  # the prior has the rest
    record = fitted.uns["multiomics_vae"]
    assert set(record) >= {"params", "version", "report", "model"}
    assert list(record["params"]["modalities"]) == ["rna", "atac"]
    assert record["params"]["n_latent"] == 5
    history = record["report"]["history"]
    assert len(history["loss"]) == record["report"]["steps"] <= 25
    assert history["loss"][-1] < history["loss"][0]
    assert record["n_cells"] == CELLS


def test_training_is_asked_for():
    """The default is the start in closed form; None trains until the held-out loss is flat."""
    default, start, trained = mosaic(), mosaic(), mosaic()
    dbio.tl.multiomics_vae(default, n_latent=5)
    dbio.tl.multiomics_vae(start, n_latent=5, max_epochs=0)
    np.testing.assert_array_equal(default.obsm[KEY], start.obsm[KEY])
    assert default.uns["multiomics_vae"]["report"]["steps"] == 0
    dbio.tl.multiomics_vae(trained, n_latent=5, max_epochs=None)
    report = trained.uns["multiomics_vae"]["report"]
    assert report["converged"]
    assert 5 < report["steps"] < 500


def test_cells_of_one_modality_have_its_posterior(fitted):
    """Absent modalities are left out exactly: the joint posterior is then that of the only one."""
    for name, other in (("rna", "atac"), ("atac", "rna")):
        alone = fitted[name].obs_names.difference(fitted[other].obs_names)
        assert len(alone) == 60
        joint = fitted.obsm[KEY][fitted.obs_names.get_indexer(alone)]
        np.testing.assert_allclose(joint, fitted[name][alone].obsm[KEY], rtol=1e-4, atol=1e-5)


def test_seeds_are_bit_identical(fitted):
    again, other = mosaic(), mosaic()
    fit(again, rng=0)
    np.testing.assert_array_equal(again.obsm[KEY], fitted.obsm[KEY])
    np.testing.assert_array_equal(
        again.uns["multiomics_vae"]["report"]["history"]["loss"],
        fitted.uns["multiomics_vae"]["report"]["history"]["loss"],
    )
    start(again, batch_key="batch")
    start(other, batch_key="batch", rng=np.random.default_rng(7))
    assert not np.array_equal(other.obsm[KEY], again.obsm[KEY])


def test_hidden_modality_is_imputed(fitted):
    """Expected counts of cells that lack ATAC, against the rates that they were drawn from."""
    truth = simulate()["atac"]
    imputed = dbio.tl.multiomics_impute(fitted, modality="atac")
    assert imputed.shape == (CELLS, PEAKS)
    assert imputed.X.dtype == np.float32
    np.testing.assert_array_equal(imputed.obs_names, fitted.obs_names)
    np.testing.assert_array_equal(imputed.var_names, fitted["atac"].var_names)
    hidden = ~imputed.obs["observed"].to_numpy()
    np.testing.assert_array_equal(hidden, ~fitted.obs_names.isin(fitted["atac"].obs_names))
    rates = truth[imputed.obs_names[hidden]].layers["rate"]
    shares = rates / rates.sum(1, keepdims=True)
    found = imputed.X[hidden] / imputed.X[hidden].sum(1, keepdims=True)
    correlation = [np.corrcoef(one, other)[0, 1] for one, other in zip(found, shares, strict=True)]
    assert np.median(correlation) > 0.9
    # Depth that is not known is predicted near that of the other cells.
    assert imputed.X[hidden].sum(1).mean() == pytest.approx(imputed.X[~hidden].sum(1).mean(), rel=0.3)
    measured = np.asarray(fitted["atac"].X.sum(1)).ravel()
    own = imputed[fitted["atac"].obs_names].X.sum(1)
    np.testing.assert_allclose(own, measured, rtol=1e-3)


def test_features_to_impute_are_chosen_by_name(fitted, monkeypatch):
    whole = dbio.tl.multiomics_impute(fitted, modality="rna")
    part = dbio.tl.multiomics_impute(fitted, modality="rna", features=["gene7", "gene3"])
    assert list(part.var_names) == ["gene7", "gene3"]
    np.testing.assert_array_equal(part.X, whole[:, ["gene7", "gene3"]].X)
    with pytest.raises(ValueError, match=r"1 of features are not in modality 'rna' .*\['peak3'\]"):
        dbio.tl.multiomics_impute(fitted, modality="rna", features=["peak3"])
    with pytest.raises(ValueError, match="features must be unique"):
        dbio.tl.multiomics_impute(fitted, modality="rna", features=["gene1", "gene1"])
    with pytest.raises(ValueError, match="features is empty"):
        dbio.tl.multiomics_impute(fitted, modality="rna", features=[])
    with pytest.raises(KeyError, match=r"no modality 'adt'; it has \['rna', 'atac'\]"):
        dbio.tl.multiomics_impute(fitted, modality="adt")
    monkeypatch.setattr("diffbio_sc.tl._multiomics_impute._MOST_VALUES", CELLS * GENES - 1)
    with pytest.raises(ValueError, match="240 cells by 60 features .* name the features"):
        dbio.tl.multiomics_impute(fitted, modality="rna")
    dbio.tl.multiomics_impute(fitted, modality="rna", features=list(fitted["rna"].var_names))


def test_scores_are_log_likelihoods(linear):
    """Against scipy, from the expected values at the posterior mean."""
    table = dbio.tl.multiomics_score(linear)
    assert list(table.columns) == ["log_likelihood_rna", "log_likelihood_atac", "kl"]
    pd.testing.assert_index_equal(table.index, linear.obs_names)
    expected = dbio.tl.multiomics_impute(linear, modality="atac").X.astype(np.float64)
    counts = linear["atac"].X.toarray()
    shares = expected / expected.sum(1, keepdims=True)
    np.testing.assert_allclose(
        table["log_likelihood_atac"], stats.multinomial.logpmf(counts, counts.sum(1), shares), rtol=1e-4
    )
    mean = dbio.tl.multiomics_impute(linear, modality="rna").X.astype(np.float64)
    theta = np.exp(linear.uns["multiomics_vae"]["model"]["arrays"]["decoders|0|log_inverse_dispersion"].astype(float))
    logs = stats.nbinom.logpmf(linear["rna"].X.toarray(), theta, theta / (theta + mean)).sum(1)
    np.testing.assert_allclose(table["log_likelihood_rna"], logs, rtol=1e-4)
    lengths = axis_lengths(linear)
    latent, variance = linear.obsm[KEY] / lengths, linear.obsm[f"{KEY}_var"] / lengths**2
    divergence = 0.5 * (latent**2 + variance - np.log(variance) - 1).sum(1)
    np.testing.assert_allclose(table["kl"], divergence, rtol=1e-4)


def test_axes_are_stretched_by_the_cube_root_of_the_precision(linear):
    """At the start an expert has one precision for all cells: the posterior variance of a cell that has everything."""
    lengths = axis_lengths(linear)
    arrays = linear.uns["multiomics_vae"]["model"]["arrays"]
    precision = 1.0 + sum(np.exp(arrays[f"encoders|{m}|log_precision"].astype(float)) for m in range(2))
    np.testing.assert_allclose(lengths, np.cbrt(precision), rtol=1e-5)
    again = linear.copy()
    dbio.tl.multiomics_encode(again, linear, key_added="X_again")
    np.testing.assert_allclose(again.obsm["X_again"], linear.obsm[KEY], rtol=1e-5, atol=1e-6)


def test_scores_of_absent_modalities_are_missing(fitted):
    table = dbio.tl.multiomics_score(fitted)
    for name in ("rna", "atac"):
        has = fitted.obs_names.isin(fitted[name].obs_names)
        np.testing.assert_array_equal(table[f"log_likelihood_{name}"].notna(), has)
    assert table["kl"].notna().all()


def test_everything_survives_a_file(fitted, tmp_path):
    fitted.write_h5mu(tmp_path / "m.h5mu")
    back = md.read_h5mu(tmp_path / "m.h5mu")
    for key in (KEY, f"{KEY}_var"):
        np.testing.assert_array_equal(back.obsm[key], fitted.obsm[key])
    for name in ("rna", "atac"):
        np.testing.assert_array_equal(back[name].obsm[KEY], fitted[name].obsm[KEY])
        column = f"multiomics_vae_weight_{name}"
        np.testing.assert_array_equal(back.obs[column], fitted.obs[column])
        np.testing.assert_array_equal(
            dbio.tl.multiomics_impute(back, modality=name).X, dbio.tl.multiomics_impute(fitted, modality=name).X
        )
    pd.testing.assert_frame_equal(dbio.tl.multiomics_score(back), dbio.tl.multiomics_score(fitted))
    record, stored = fitted.uns["multiomics_vae"], back.uns["multiomics_vae"]
    assert set(record["params"]) == set(stored["params"])
    for name, curve in record["report"]["history"].items():
        np.testing.assert_array_equal(stored["report"]["history"][name], curve)
    # The model alone, without the cells.
    ad.AnnData(uns={"multiomics_vae": record}).write_h5ad(tmp_path / "model.h5ad")
    model = ad.read_h5ad(tmp_path / "model.h5ad")
    new = mosaic()
    dbio.tl.multiomics_encode(new, model)
    np.testing.assert_array_equal(new.obsm[KEY], fitted.obsm[KEY])
    # Written and read a second time, from what was read.
    back.write_h5mu(tmp_path / "again.h5mu")
    again = md.read_h5mu(tmp_path / "again.h5mu")
    np.testing.assert_array_equal(
        dbio.tl.multiomics_impute(again, modality="rna").X, dbio.tl.multiomics_impute(fitted, modality="rna").X
    )


def test_damaged_models_are_refused(linear):
    record = linear.uns["multiomics_vae"]
    model = record["model"]
    new = paired()
    for change, message in (
        ({"operator": "SpatialDeconvolution"}, "holds a SpatialDeconvolution, not a DifferentiableMultiOmicsVAE"),
        ({"format": 99}, "has format 99 .* update diffbio_sc"),
        ({"config": json.dumps({"color": "red"})}, r"has no fields \['color'\]"),
        ({"arrays": {}}, "incomplete: array"),
    ):
        with pytest.raises(ValueError, match=message):
            dbio.tl.multiomics_encode(new, {**record, "model": {**model, **change}})
    with pytest.raises(KeyError, match="no record of dbio.tl.multiomics_vae"):
        dbio.tl.multiomics_encode(new, {"params": {}})
    with pytest.raises(KeyError, match="mdata.uns has no 'multiomics_vae': fit a model"):
        dbio.tl.multiomics_impute(new, modality="rna")
    with pytest.raises(TypeError, match="found str"):
        dbio.tl.multiomics_encode(new, "model.h5ad")
    assert KEY not in new.obsm


def test_new_cells_are_mapped(fitted):
    new = mosaic(seed=0)[20:80].copy()
    dbio.tl.multiomics_encode(new, fitted)
    np.testing.assert_allclose(new.obsm[KEY], fitted[20:80].obsm[KEY], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["rna"].obsm[KEY], fitted[20:80]["rna"].obsm[KEY], rtol=1e-4, atol=1e-5)
    assert "multiomics_vae_weight_rna" in new.obs
    # The new cells carry the model on.
    np.testing.assert_allclose(
        dbio.tl.multiomics_impute(new, modality="atac").X,
        dbio.tl.multiomics_impute(fitted, modality="atac")[20:80].X,
        rtol=1e-3,
        atol=1e-4,
    )
    alone = md.MuData({"rna": fitted["rna"].copy()})
    alone.obs["batch"] = fitted.obs["batch"]
    result = dbio.tl.multiomics_encode(alone, fitted, key_added="X_mapped", copy=True)
    assert "X_mapped" not in alone.obsm
    np.testing.assert_allclose(result.obsm["X_mapped"], fitted["rna"].obsm[KEY], rtol=1e-4, atol=1e-5)
    assert (result.obs["mapped_weight_atac"] == 0).all()
    assert dbio.tl.multiomics_impute(result, modality="atac", key="mapped").shape == (180, PEAKS)


def test_missing_features_of_new_cells_are_zero(linear):
    new = paired()
    counts = new["atac"].X.toarray()
    counts[:, 70:] = 0
    zero = md.MuData({"rna": new["rna"].copy(), "atac": new["atac"].copy()})
    zero["atac"].X = sp.csr_matrix(counts)
    dbio.tl.multiomics_encode(zero, linear)
    fewer = md.MuData({"rna": new["rna"][:, ::-1].copy(), "atac": new["atac"][:, :70].copy()})
    with pytest.warns(UserWarning, match="'atac' lacks 10 of the 80 features"):
        dbio.tl.multiomics_encode(fewer, linear)
    np.testing.assert_array_equal(fewer.obsm[KEY], zero.obsm[KEY])
    few = md.MuData({"rna": new["rna"].copy(), "atac": new["atac"][:, :39].copy()})
    with pytest.raises(ValueError, match="39 of the 80 features"):
        dbio.tl.multiomics_encode(few, linear)


def test_unseen_batches(fitted):
    new = mosaic()[40:90].copy()
    batch = new.obs["batch"].to_numpy(dtype=object)
    latents, values = [], []
    for name in ("x", "y"):
        new.obs["batch"] = name
        dbio.tl.multiomics_encode(new, fitted)
        latents.append(new.obsm[KEY])
    new.obs["batch"] = np.where(np.arange(50) < 30, "z", batch)
    with pytest.raises(ValueError, match=r"batches that the model does not know: \['z'\]; it knows \['x', 'y'\]"):
        dbio.tl.multiomics_encode(new, fitted)
    dbio.tl.multiomics_encode(new, fitted, unseen_batch="average")
    own = np.where((batch == "x")[:, None], *latents)
    expected = np.where(np.arange(50)[:, None] < 30, np.mean(latents, axis=0), own)
    np.testing.assert_allclose(new.obsm[KEY], expected, rtol=1e-4, atol=1e-5)
    values = dbio.tl.multiomics_impute(new, modality="rna", unseen_batch="average")
    assert np.isfinite(values.X).all()
    assert np.isfinite(dbio.tl.multiomics_score(new, unseen_batch="average")["kl"]).all()
    without = md.MuData(dict(new.mod))
    for part in without.mod.values():
        part.obs = part.obs.drop(columns="batch")
    without.obs = pd.DataFrame(index=without.obs_names)
    with pytest.raises(KeyError, match=r"no column 'batch'.*knows the batches \['x', 'y'\].*unseen_batch='average'"):
        dbio.tl.multiomics_encode(without, fitted)
    dbio.tl.multiomics_encode(without, fitted, unseen_batch="average")
    np.testing.assert_allclose(without.obsm[KEY], np.mean(latents, axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unseen_batch must be 'error' or 'average'"):
        dbio.tl.multiomics_encode(new, fitted, unseen_batch="mean")


def test_batch_of_a_model_without_batches(linear):
    new = paired()
    with pytest.raises(ValueError, match="fitted without batches"):
        dbio.tl.multiomics_encode(new, linear, batch_key="batch")


def test_layers_of_the_fit_are_those_of_the_new_cells(linear):
    new = paired()
    for part in new.mod.values():
        part.layers["counts"] = part.X.copy()
        part.X = sp.csr_matrix(np.log1p(part.X.toarray()))
    start(new, layers={"rna": "counts", "atac": "counts"})
    np.testing.assert_array_equal(new.obsm[KEY], linear.obsm[KEY])
    mapped = new.copy()
    del mapped.uns["multiomics_vae"]
    dbio.tl.multiomics_encode(mapped, new)
    np.testing.assert_allclose(mapped.obsm[KEY], linear.obsm[KEY], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="raw counts"):
        dbio.tl.multiomics_encode(mapped, new, layers={})


@pytest.mark.parametrize("kind", ["shuffled", "backed", "csc int64", "view"])
def test_input_kinds_give_the_same_result(linear, tmp_path, kind):
    mdata = paired()
    if kind == "shuffled":  # cells in another order in one modality
        order = np.random.default_rng(0).permutation(CELLS)
        mdata = md.MuData({"rna": mdata["rna"].copy(), "atac": mdata["atac"][order].copy()})
    elif kind == "backed":
        mdata.write_h5mu(tmp_path / "m.h5mu")
        mdata = md.read_h5mu(tmp_path / "m.h5mu", backed="r")
        with pytest.raises(ValueError, match="copy=True needs an object in memory"):
            start(mdata, copy=True)
    elif kind == "view":
        parts = simulate()
        extra = parts["rna"][:3].copy()
        extra.obs_names = ["extra1", "extra2", "extra3"]
        parts["rna"] = ad.concat([parts["rna"], extra])
        parent = md.MuData(parts)
        mdata = parent[:CELLS]
        assert mdata.is_view
    else:
        for part in mdata.mod.values():
            part.X = sp.csc_matrix(part.X).astype(np.int64)
    start(mdata)
    np.testing.assert_array_equal(mdata.obsm[KEY], linear.obsm[KEY])
    for name in ("rna", "atac"):
        expected = linear[name][mdata[name].obs_names].obsm[KEY]
        np.testing.assert_array_equal(mdata[name].obsm[KEY], expected)
    if kind == "view":
        assert KEY not in parent.obsm
        assert KEY not in parent["rna"].obsm


def test_anndata_with_feature_types(linear, tmp_path):
    parts = simulate()
    whole = ad.concat([parts["rna"], parts["atac"]], axis=1, merge="same")
    whole.var["feature_types"] = ["Gene Expression"] * GENES + ["Peaks"] * PEAKS
    result = start(whole, copy=True)
    assert KEY not in whole.obsm
    np.testing.assert_array_equal(result.obsm[KEY], linear.obsm[KEY])
    np.testing.assert_array_equal(result.obsm[f"{KEY}_Peaks"], linear["atac"].obsm[KEY])
    np.testing.assert_array_equal(
        result.obs["multiomics_vae_weight_Gene Expression"], linear.obs["multiomics_vae_weight_rna"]
    )
    result.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    imputed = dbio.tl.multiomics_impute(back, modality="Peaks")
    assert list(imputed.var_names) == list(parts["atac"].var_names)
    np.testing.assert_array_equal(imputed.X, dbio.tl.multiomics_impute(linear, modality="atac").X)


def test_normalised_modality_is_gaussian(tmp_path):
    mdata = paired()
    mdata["rna"].X = np.log1p(mdata["rna"].X.toarray())
    with pytest.warns(UserWarning, match="modelled as Gaussian"):
        start(mdata)
    assert list(mdata.uns["multiomics_vae"]["params"]["likelihoods"]) == ["gaussian", "multinomial"]
    assert clusters(mdata.obsm[KEY], mdata.obs["cluster"]) > 0.9
    mean = dbio.tl.multiomics_impute(mdata, modality="rna").X.astype(float)
    log_variance = mdata.uns["multiomics_vae"]["model"]["arrays"]["decoders|0|log_variance"].astype(float)
    logs = stats.norm.logpdf(mdata["rna"].X, mean, np.exp(log_variance / 2)).sum(1)
    np.testing.assert_allclose(dbio.tl.multiomics_score(mdata)["log_likelihood_rna"], logs, rtol=1e-3)


def test_copy_key_and_second_call(linear):
    mdata = paired()
    result = start(mdata, copy=True)
    assert KEY not in mdata.obsm
    assert "multiomics_vae" not in mdata.uns
    assert KEY not in mdata["rna"].obsm
    np.testing.assert_array_equal(result.obsm[KEY], linear.obsm[KEY])
    start(result, key_added="X_other", modalities=["rna"])
    np.testing.assert_array_equal(result.obsm[KEY], linear.obsm[KEY])
    assert set(result.uns) >= {"multiomics_vae", "other"}
    assert "other_weight_rna" in result.obs
    assert "X_other" not in result["atac"].obsm
    start(result, modalities=["rna"])  # overwrites, and leaves nothing of the first
    np.testing.assert_array_equal(result.obsm[KEY], result.obsm["X_other"])
    assert "multiomics_vae_weight_rna" in result.obs
    assert "multiomics_vae_weight_atac" not in result.obs
    assert KEY not in result["atac"].obsm
    assert list(result.uns["multiomics_vae"]["params"]["modalities"]) == ["rna"]


def test_automatic_latent_dimensions():
    assert automatic_latent(999, 5_000) == 20
    assert automatic_latent(1_000, 5_000) == 30
    assert automatic_latent(12, 5_000) == 6
    assert automatic_latent(5_000, 14) == 7


def test_ten_cells_are_enough():
    few = md.MuData({name: part[:10].copy() for name, part in simulate().items()})
    start(few)
    assert few.obsm[KEY].shape == (10, 5)
    assert np.isfinite(few.obsm[KEY]).all()


def no_cells(mdata):
    for part in mdata.mod.values():
        part.X = part.X.toarray()
        part.X[3] = 0


def test_a_batch_for_each_cell_is_refused():
    mdata = paired()
    mdata.obs["cell"] = mdata.obs_names
    with pytest.raises(ValueError, match="another batch for each of the 240 cells"):
        dbio.tl.multiomics_vae(mdata, batch_key="cell", max_epochs=0)
    assert "multiomics_vae" not in mdata.uns


@pytest.mark.filterwarnings("ignore:.*no counts in modality:UserWarning")
@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (no_cells, {}, ValueError, r"1 cells have none of the modalities .*\['cell3'\]"),
        (None, {"fusion": "concat"}, ValueError, "fusion must be 'poe', 'moe' or 'mean', found 'concat'"),
        (None, {"modality_weights": "softmax"}, ValueError, "modality_weights must be 'equal', .* found 'softmax'"),
        (None, {"likelihoods": {"rna": "nb"}}, ValueError, "unknown names"),
        (None, {"modalities": ["adt"]}, KeyError, "no modality"),
        (None, {"batch_key": "donor"}, KeyError, "mdata.obs has no column 'donor'"),
        (None, {"n_latent": 0}, ValueError, "n_latent must be a whole number of at least 1"),
        (
            None,
            {"max_epochs": -1},
            ValueError,
            "max_epochs must be a whole number of at least 0 or None",
        ),
        (None, {"key_added": "rna"}, ValueError, "must not be the name of a modality"),
        (None, {"key_added": "run1/vae"}, ValueError, "key_added must not contain '/'"),
        (None, {"key_added": None}, TypeError, "key_added must be a text"),
        (None, {"rng": -1}, ValueError, "rng must be a whole number of at least 0, found -1"),
        (None, {"rng": "0"}, TypeError, "rng must be a seed"),
        (None, {"key_added": "X_"}, ValueError, "key_added must be a name, with or without"),
    ],
)
def test_bad_input_changes_nothing(change, options, error, message):
    mdata = paired()
    if change is not None:
        change(mdata)
    before = mdata.obs.copy()
    with pytest.raises(error, match=message):
        start(mdata, **options)
    assert set(mdata.obsm) == {"rna", "atac"}  # where mudata keeps which cells have which modality
    assert dict(mdata.uns) == {}
    pd.testing.assert_frame_equal(mdata.obs, before)
    assert not mdata["rna"].obsm


def test_generators_of_every_kind_are_taken():
    """None is fresh entropy; what the linear solution finds hardly depends on it."""
    for rng in (None, np.random.RandomState(0), np.random.default_rng(0), np.int64(0)):
        mdata = paired()
        start(mdata, rng=rng)
        assert clusters(mdata.obsm[KEY], mdata.obs["cluster"]) > 0.9, rng


def test_paths_are_no_objects(linear):
    record = linear.uns["multiomics_vae"]
    for call in (
        dbio.tl.multiomics_vae,
        lambda path: dbio.tl.multiomics_encode(path, record),
        lambda path: dbio.tl.multiomics_impute(path, modality="rna"),
        dbio.tl.multiomics_score,
        dbio.get.multiomics_vae,
        dbio.pl.multiomics_vae,
    ):
        with pytest.raises(TypeError, match="found str 'cells.h5mu': read the file first, with mudata.read_h5mu"):
            call("cells.h5mu")


def test_normalised_query_is_asked_for_counts(linear):
    new = paired()
    new["rna"].X = np.log1p(new["rna"].X.toarray())
    with pytest.raises(ValueError, match="fitted to counts") as caught:
        dbio.tl.multiomics_encode(new, linear)
    assert "likelihoods" not in str(caught.value)
    assert KEY not in new.obsm


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="found DataFrame"):
        dbio.tl.multiomics_vae(pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match="feature_types"):
        dbio.tl.multiomics_vae(simulate()["rna"])


def test_m18_settings_reach_the_operator_and_unknown_ones_are_refused():
    mdata = paired()
    start(mdata, modality_weights="learnable")
    config = json.loads(mdata.uns["multiomics_vae"]["model"]["config"])
    assert config["modality_weight_mode"] == "learnable"
    assert config["modality_dims"] == [GENES, PEAKS]
    assert config["latent_dim"] == 5
    with pytest.raises(ValueError, match=r"'equal', 'learnable' or 'gradnorm', found 'balanced'"):
        start(mdata, modality_weights="balanced")


def test_m19_any_number_of_modalities():
    parts = simulate()
    protein = parts["rna"][:, :14].copy()
    protein.var_names = [f"protein{i}" for i in range(14)]
    mdata = md.MuData({"rna": parts["rna"], "prot": protein, "atac": parts["atac"]})
    start(mdata)
    assert list(mdata.uns["multiomics_vae"]["params"]["likelihoods"]) == [
        "negative_binomial",
        "protein_mixture",
        "multinomial",
    ]
    assert clusters(mdata.obsm[KEY], parts["rna"].obs["cluster"]) > 0.9
    single = md.MuData({"rna": parts["rna"].copy()})
    start(single)
    np.testing.assert_allclose(single.obsm[KEY], single["rna"].obsm[KEY], rtol=1e-5, atol=1e-6)


def test_m20_embedding_reconstructions_and_bound(fitted):
    assert fitted.obsm[KEY].shape == (CELLS, 5)
    for name, size in (("rna", GENES), ("atac", PEAKS)):
        assert dbio.tl.multiomics_impute(fitted, modality=name).shape == (CELLS, size)
    history = fitted.uns["multiomics_vae"]["report"]["history"]
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(history["kl"]).all()


def test_m21_modalities_keep_their_names_and_order():
    parts = simulate()
    mdata = md.MuData({"chromatin": parts["atac"], "genes": parts["rna"]})
    start(mdata)
    record = mdata.uns["multiomics_vae"]
    assert list(record["params"]["modalities"]) == ["chromatin", "genes"]
    assert list(record["params"]["likelihoods"]) == ["multinomial", "negative_binomial"]
    assert {"multiomics_vae_weight_chromatin", "multiomics_vae_weight_genes"} <= set(mdata.obs)
    assert dbio.tl.multiomics_impute(mdata, modality="genes").shape == (CELLS, GENES)
    assert set(dbio.tl.multiomics_score(mdata)) == {"log_likelihood_chromatin", "log_likelihood_genes", "kl"}
    start(mdata, modalities=["genes"])
    assert list(mdata.uns["multiomics_vae"]["params"]["modalities"]) == ["genes"]


def test_m22_gradnorm_is_asked_for_by_name():
    mdata = paired()
    start(mdata, modality_weights="gradnorm")
    config = json.loads(mdata.uns["multiomics_vae"]["model"]["config"])
    assert config["use_gradnorm"] is True
    assert config["modality_weight_mode"] == "equal"


@pytest.mark.data
@pytest.mark.slow
def test_real_mosaic(data_folder):
    """RNA alone, protein alone and both, of blood. Floors are some .03 below the lowest of three seeds."""
    pytest.importorskip("igraph")
    pytest.importorskip("scib_metrics")
    mdata = md.read_h5mu(data_folder / "multiomics_vae" / "pbmc_wnn_mosaic.h5mu")
    dbio.tl.multiomics_vae(mdata, batch_key="batch")
    scores = dbio.metrics.integration(mdata, use_rep=KEY, label_key="celltype", batch_key="batch")
    assert scores["nmi"] >= 0.80
    assert scores["knn_accuracy"] >= 0.94
    assert scores["ilisi"] >= 0.45
