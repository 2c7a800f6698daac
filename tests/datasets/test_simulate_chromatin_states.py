"""The planted chain: what is drawn follows the model that comes with it."""

from __future__ import annotations

import numpy as np
import pytest

import diffbio_sc as dbio


def test_states_follow_the_transitions():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=200_000, n_chromosomes=2, rng=1)
    model = dbio.get.chromatin_state_model(adata, key="truth")
    codes = adata.obs["truth"].cat.codes.to_numpy()
    counts = np.zeros((7, 7))
    for chrom in ("chr1", "chr2"):
        mine = codes[(adata.obs["chrom"] == chrom).to_numpy()]
        np.add.at(counts, (mine[:-1], mine[1:]), 1)
    total = counts.sum(1, keepdims=True)
    error = np.sqrt(model.transition * (1 - model.transition) / total)
    assert (abs(counts / total - model.transition) <= 5 * error + 1e-12).all()
    np.testing.assert_allclose(model.initial @ model.transition, model.initial, atol=1e-10)


@pytest.mark.parametrize("family", ["bernoulli", "poisson", "negative_binomial", "gaussian"])
def test_marks_follow_the_emissions(family):
    adata = dbio.datasets.simulate_chromatin_states(n_bins=60_000, family=family, rng=2)
    model = dbio.get.chromatin_state_model(adata, key="truth")
    assert model.emission_kind == family
    codes = adata.obs["truth"].cat.codes.to_numpy()
    values = adata.X.astype(float)
    mean = model.emission
    variance = {
        "bernoulli": lambda: mean * (1 - mean),
        "poisson": lambda: mean,
        "negative_binomial": lambda: mean + model.emission_parameters["dispersion"] * mean**2,
        "gaussian": lambda: model.emission_parameters["variance"],
    }[family]()
    for state in range(7):
        mine = values[codes == state]
        assert (abs(mine.mean(0) - mean[state]) < 5 * np.sqrt(variance[state] / len(mine))).all()
        np.testing.assert_allclose(mine.var(0), variance[state], rtol=0.35, atol=0.01)
    kind = {"bernoulli": np.uint8, "gaussian": np.float32}.get(family, np.int32)
    assert adata.X.dtype == kind


def test_replicates_share_states_and_cell_types_do_not():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=4001, n_cell_types=2, n_replicates=2, n_chromosomes=3)
    assert adata.shape == (16_004, 6)
    assert adata.obs_names.is_unique
    truth = {name: rows["truth"].astype(str).to_numpy() for name, rows in adata.obs.groupby("sample", observed=True)}
    assert (truth["cell1_rep1"] == truth["cell1_rep2"]).all()
    assert (truth["cell1_rep1"] != truth["cell2_rep1"]).mean() > 0.3
    marks = {name: adata.X[(adata.obs["sample"] == name).to_numpy()] for name in truth}
    assert (marks["cell1_rep1"] != marks["cell1_rep2"]).any()
    table = adata.obs[adata.obs["sample"] == "cell2_rep2"]
    assert table["chrom"].value_counts().sort_index().tolist() == [1334, 1334, 1333]
    assert (table["end"] - table["start"] == 200).all()


def test_seeds_and_numbers_of_states():
    one, two, three = (dbio.datasets.simulate_chromatin_states(n_bins=500, rng=seed) for seed in (5, 5, 6))
    assert (one.X == two.X).all()
    assert (one.X != three.X).any()
    many = dbio.datasets.simulate_chromatin_states(n_bins=500, n_states=12)
    assert len(many.obs["truth"].cat.categories) == 12
    single = dbio.datasets.simulate_chromatin_states(n_bins=500, n_states=1)
    assert single.obs["truth"].nunique() == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"n_states": 0}, "n_states must be a whole number of at least 1"),
        ({"n_bins": 2.5}, "n_bins must be"),
        ({"n_bins": 3, "n_chromosomes": 5}, "at least n_chromosomes"),
        ({"family": "beta"}, "family must be 'bernoulli', .*found 'beta'"),
    ],
)
def test_bad_arguments(options, problem):
    with pytest.raises(ValueError, match=problem):
        dbio.datasets.simulate_chromatin_states(**options)


def test_the_object_is_stored(tmp_path):
    adata = dbio.datasets.simulate_chromatin_states(n_bins=100, family="negative_binomial")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
