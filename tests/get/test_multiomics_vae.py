from __future__ import annotations

import importlib

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

multiomics_vae = importlib.import_module("diffbio_sc.get._multiomics_vae").multiomics_vae


@pytest.fixture
def result():
    """MuData with the record of a fit, filled by hand: cell c2 has no proteins."""
    rna = ad.AnnData(np.ones((3, 2), np.float32), obs=pd.DataFrame(index=["c0", "c1", "c2"]))
    protein = ad.AnnData(np.ones((2, 2), np.float32), obs=pd.DataFrame(index=["c0", "c1"]))
    rna.var_names, protein.var_names = ["g0", "g1"], ["p0", "p1"]
    mdata = md.MuData({"rna": rna, "prot": protein})
    mdata.obs["multiomics_vae_weight_rna"] = np.float32([0.6, 0.3, 0.9])
    mdata.obs["multiomics_vae_weight_prot"] = np.float32([0.3, 0.6, np.nan])
    history = {
        "nll_0": np.array([5.0, 4.0]), "nll_1": np.array([2.0, 1.5]), "validation_nll_1": np.array([2.5, 2.0]),
        "kl": np.array([0.5, 1.0]), "validation_loss": np.array([8.0, 7.0]), "loss": np.array([7.5, 6.5]),
        "learning_rate": np.array([0.1, 0.05]),
    }  # fmt: skip
    mdata.uns["multiomics_vae"] = {
        "params": {"modalities": np.array(["rna", "prot"])},
        "version": {"diffbio_sc": "0"},
        "report": {"history": history, "converged": True, "steps": 2, "seconds": 1.0},
    }
    return mdata


def test_history_names_the_modalities(result):
    table = multiomics_vae(result)
    assert list(table.columns) == [
        "epoch", "loss", "validation_loss", "kl", "nll_rna", "nll_prot", "validation_nll_prot", "learning_rate",
    ]  # fmt: skip
    assert list(table["epoch"]) == [1, 2]
    np.testing.assert_array_equal(table["nll_rna"], [5.0, 4.0])
    np.testing.assert_array_equal(table["validation_nll_prot"], [2.5, 2.0])


def test_history_without_training_has_no_rows(result):
    result.uns["multiomics_vae"]["report"]["history"] = {"loss": np.zeros(0), "kl": np.zeros(0)}
    table = multiomics_vae(result, "history")
    assert table.shape == (0, 3)
    result.uns["multiomics_vae"]["report"]["history"] = {}
    assert list(multiomics_vae(result).columns) == ["epoch"]


def test_weights_are_a_column_a_modality(result):
    table = multiomics_vae(result, "weights")
    assert list(table.columns) == ["rna", "prot"]
    assert table.index.equals(result.obs_names)
    assert table.loc["c1", "prot"] == pytest.approx(0.6)
    assert np.isnan(table.loc["c2", "prot"])


def test_tables_are_the_same_after_a_round_trip_through_a_file(result, tmp_path):
    result.write(tmp_path / "fitted.h5mu")
    again = md.read_h5mu(tmp_path / "fitted.h5mu")
    for what in ("history", "weights"):
        pd.testing.assert_frame_equal(multiomics_vae(again, what), multiomics_vae(result, what), check_index_type=False)


def test_another_key(result):
    result.uns["mine"] = result.uns.pop("multiomics_vae")
    result.obs["mine_weight_rna"], result.obs["mine_weight_prot"] = 0.25, 0.5
    assert len(multiomics_vae(result, key="mine")) == 2
    assert (multiomics_vae(result, "weights", key="mine") == [0.25, 0.5]).all(axis=None)


def test_loadings_are_slopes_of_the_expected_values():
    import jax
    import jax.numpy as jnp

    from diffbio_sc._anndata.multiomics_model import read_multiomics_model
    from diffbio_sc.operators.multiomics.multiomics_vae.blocks import expected_values

    rng = np.random.default_rng(0)
    cells = pd.DataFrame(index=[f"c{i}" for i in range(60)])
    rates = rng.gamma(1.0, 5.0, (3, 26))[np.arange(60) % 3]
    parts = {
        "rna": (rng.poisson(rates[:, :12]), "negative_binomial"),
        "open": (rng.random((60, 6)) < rates[:, 12:18] / 30, "bernoulli"),
        "score": (rates[:, 18:] + rng.normal(size=(60, 8)), "gaussian"),
    }
    modalities = {}
    for name, (values, _) in parts.items():
        names = [f"{name}{i}" for i in range(values.shape[1])]
        modalities[name] = ad.AnnData(values.astype(np.float32), obs=cells, var=pd.DataFrame(index=names))
    mdata = md.MuData(modalities)
    likelihoods = {name: likelihood for name, (_, likelihood) in parts.items()}
    dbio.tl.multiomics_vae(mdata, n_latent=3, likelihoods=likelihoods, max_epochs=0, key_added="X_mine")
    assert list(multiomics_vae(mdata, key="mine").columns) == ["epoch"]  # not trained
    weights = multiomics_vae(mdata, "weights", key="mine")
    assert list(weights.columns) == list(parts)
    assert (weights >= 0).all(axis=None)
    assert (weights.sum(axis=1) < 1).all()
    table = multiomics_vae(mdata, "loadings", key="mine")
    assert list(table.columns) == ["modality", "feature", "latent_0", "latent_1", "latent_2"]
    assert list(table["feature"]) == [name for part in modalities.values() for name in part.var_names]
    operator = read_multiomics_model(mdata, key="mine").operator
    lengths = np.asarray(operator.axis_lengths[...])
    centre = jnp.asarray(mdata.obsm["X_mine"].mean(0) / lengths)
    names, zeros = operator.config.modality_likelihoods, (jnp.zeros(1, int), jnp.zeros(1))
    link = {"rna": jnp.log, "open": lambda share: jnp.log(share / (1 - share)), "score": jnp.asarray}
    for index, (name, function) in enumerate(link.items()):

        def linked(latent, index=index, function=function):
            return function(expected_values(operator.decoders[index], names[index], latent[None], *zeros)[0])

        found = table.loc[table["modality"] == name].iloc[:, 2:].to_numpy(float)
        assert np.abs(found).max() > 0.1
        slopes = jax.jit(jax.jacfwd(linked))(centre) / lengths
        np.testing.assert_allclose(found, slopes, rtol=0.01, atol=1e-4 * np.abs(found).max())


def test_annotated_matrix_with_feature_types(result):
    adata = ad.AnnData(
        np.ones((3, 4), np.float32), obs=result.obs, uns={"multiomics_vae": result.uns["multiomics_vae"]}
    )
    pd.testing.assert_frame_equal(multiomics_vae(adata, "weights"), multiomics_vae(result, "weights"))


def test_missing_result_and_bad_arguments_are_named(result):
    with pytest.raises(ValueError, match="'history', 'weights' or 'loadings', found 'pie'"):
        multiomics_vae(result, "pie")
    del result.obs["multiomics_vae_weight_prot"]
    with pytest.raises(KeyError, match="no columns .'multiomics_vae_weight_prot'.*run"):
        multiomics_vae(result, "weights")
    with pytest.raises(KeyError, match="no 'X_multiomics_vae': run"):
        multiomics_vae(result, "loadings")
    for bad in (result.mod["rna"], result):
        with pytest.raises(KeyError, match="no result 'mine': run diffbio_sc.tl.multiomics_vae first"):
            multiomics_vae(bad, key="mine")
