"""Is the stated probability that a state comes back the rate at which it does?"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio


def decode(adata, model, sequences, sharpness=1.0):
    """Posterior of each bin by a plain forward-backward pass; all sequences are of one length."""
    marks, emission = adata.X.astype(float), model.emission
    logs = sharpness * (marks @ np.log(emission).T + (1 - marks) @ np.log1p(-emission).T)
    likelihood = np.exp(logs - logs.max(1, keepdims=True))
    order = np.argsort(sequences, kind="stable")
    steps = likelihood[order].reshape(len(np.unique(sequences)), -1, model.n_states).swapaxes(0, 1)
    forward, backward = np.empty_like(steps), np.ones_like(steps)
    message = np.broadcast_to(model.initial, steps[0].shape)
    for step, seen in enumerate(steps):
        forward[step] = message * seen
        forward[step] /= forward[step].sum(1, keepdims=True)
        message = forward[step] @ model.transition
    for step in range(len(steps) - 2, -1, -1):
        backward[step] = (backward[step + 1] * steps[step + 1]) @ model.transition.T
        backward[step] /= backward[step].sum(1, keepdims=True)
    posterior = forward * backward
    posterior /= posterior.sum(2, keepdims=True)
    result = np.empty_like(likelihood)
    result[order] = posterior.swapaxes(0, 1).reshape(-1, model.n_states)
    return result


def replicates(n_bins=120_000, noise=0.0, sharpness=1.0, rng=0, **options):
    """Planted replicates, annotated with the model; ``noise`` draws marks of each replicate anew at random bins."""
    adata = dbio.datasets.simulate_chromatin_states(
        n_bins=n_bins, n_chromosomes=options.pop("n_chromosomes", 12), rng=rng, **options
    )
    generator = np.random.default_rng(rng + 100)
    if noise:
        marks = adata.X.copy()
        lost = generator.random(marks.shape) < noise
        marks[lost] = generator.random(lost.sum()) < 0.15
        adata.X = marks
    model = dbio.get.chromatin_state_model(adata, key="truth")
    names = adata.obs["sample"].astype(str) + adata.obs["chrom"].astype(str)
    posterior = decode(adata, model, pd.factorize(names)[0], sharpness)
    adata.obsm["chromatin_state_posterior"] = posterior.astype(np.float32)
    adata.obs["chromatin_state"] = pd.Categorical.from_codes(posterior.argmax(1), list(model.states))
    adata.uns["chromatin_states"] = {**adata.uns["truth"], "params": {"cell_type_key": "sample", "axis": "obs"}}
    return adata


def alone(adata, replicate):
    """One replicate, with the names of the first."""
    part = adata[adata.obs["replicate"] == replicate].copy()
    part.obs_names = [name.split(":", 1)[1] for name in part.obs_names]
    return part


def worst(probability, found, least=1500):
    """Largest distance of predicted and found rates over ten levels of equal width, and over deciles."""
    edges = (np.arange(1, 10) / 10, np.quantile(probability, np.arange(1, 10) / 10))
    errors = []
    for borders in edges:
        level = np.searchsorted(borders, probability, side="right")
        for index in range(10):
            mine = level == index
            if mine.sum() >= least:  # fewer, correlated bins tell the rate no better than to a few per cent
                errors.append(abs(probability[mine].mean() - found[mine].mean()))
    return max(errors)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "sharpness"), [(0.0, 1.0), (0.25, 1.0), (0.25, 2.0)])
def test_the_probability_is_calibrated_for_a_replicate_never_seen(noise, sharpness):
    # Calibrated on replicates 1 and 2, held against replicate 3; posteriors of a model that is wrong about the noise,
    # or too sure of itself, are not calibrated by far.
    adata = replicates(noise=noise, sharpness=sharpness, n_replicates=3)
    one, two, three = (alone(adata, f"rep{number}") for number in (1, 2, 3))
    dbio.tl.state_reproducibility(one, two)
    probability = one.obs["state_reproducibility"].to_numpy()
    posterior = one.obsm["chromatin_state_posterior"].max(1)
    for other in (two, three):
        found = (one.obs["chromatin_state"].astype(str) == other.obs["chromatin_state"].astype(str)).to_numpy()
        assert worst(probability, found) <= 0.03
        if noise:
            assert worst(posterior, found) > 0.1
    # And it tells more than the rate as a whole.
    assert ((probability - found) ** 2).mean() < 0.8 * found.var()


@pytest.fixture(scope="module")
def pair():
    return replicates(n_bins=6000, n_chromosomes=4, n_replicates=2, noise=0.2)


def test_tables_against_counts(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    mine, theirs = one.obs["chromatin_state"].astype(str), two.obs["chromatin_state"].astype(str).to_numpy()
    states = dbio.get.state_reproducibility(one).set_index("state")
    shares = pd.Series(theirs).value_counts(normalize=True)
    for state, row in states.iterrows():
        bins = (mine == state).to_numpy()
        assert row["match"] == state
        assert row["bins"] == bins.sum()
        assert row["found"] == pytest.approx((theirs[bins] == state).mean())
        assert row["by_chance"] == pytest.approx(shares.get(state, 0.0))
        assert row["posterior"] == pytest.approx(one.obsm["chromatin_state_posterior"][bins].max(1).mean(), rel=1e-5)
        left = [(theirs[bins & (one.obs["chrom"] != chrom)] == state).mean() for chrom in one.obs["chrom"].unique()]
        assert row["found_se"] == pytest.approx(np.sqrt(3 / 4 * np.sum((left - np.mean(left)) ** 2)))
    overlap = dbio.get.state_reproducibility(one, kind="overlap").pivot(
        index="state", columns="other_state", values="bins"
    )
    expected = pd.crosstab(mine.to_numpy(), theirs)
    assert (overlap.loc[expected.index, expected.columns] == expected).all(axis=None)
    summary = dbio.get.state_reproducibility(one, kind="summary").iloc[0]
    agree = (mine == theirs).mean()
    chance = sum((mine == state).mean() * shares.get(state, 0) for state in states.index)
    assert summary["found"] == pytest.approx(agree)
    assert summary["kappa"] == pytest.approx((agree - chance) / (1 - chance))
    probability = one.obs["state_reproducibility"].to_numpy()
    assert summary["brier"] == pytest.approx(((probability - (mine == theirs)) ** 2).mean(), rel=1e-4)
    levels = dbio.get.state_reproducibility(one, kind="reliability")
    assert levels["bins"].sum() == len(one)


def test_a_chromosome_gives_nothing_to_its_own_probabilities(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    before = one.obs["state_reproducibility"].copy()
    here = (two.obs["chrom"] == "chr2").to_numpy()
    labels = two.obs["chromatin_state"].astype(str).to_numpy(dtype=object)
    labels[here] = np.roll(labels[here], 700)
    two.obs["chromatin_state"] = pd.Categorical(labels, categories=two.obs["chromatin_state"].cat.categories)
    dbio.tl.state_reproducibility(one, two)
    same = before == one.obs["state_reproducibility"]
    assert same[here].all()
    assert not same[~here].all()


def test_two_replicates_in_one_object(pair):
    adata = pair.copy()
    dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    dbio.tl.state_reproducibility(two, one)
    found = adata.obs["state_reproducibility"].to_numpy()
    np.testing.assert_array_equal(found[:6000], one.obs["state_reproducibility"])
    np.testing.assert_array_equal(found[6000:], two.obs["state_reproducibility"])
    assert dbio.get.state_reproducibility(adata, kind="summary")["replicate"].tolist() == ["rep1", "rep2"]


def test_order_axis_and_top_states_do_not_matter(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    expected = one.obs["state_reproducibility"]
    rng = np.random.default_rng(0)
    shuffled, other = one[rng.permutation(6000)].copy(), two[rng.permutation(6000)].copy()
    dbio.tl.state_reproducibility(shuffled, other)
    np.testing.assert_array_equal(shuffled.obs["state_reproducibility"][expected.index], expected)
    turned = ad.AnnData(
        one.X.T, var=one.obs, varm=dict(one.obsm), uns={"chromatin_states": one.uns["chromatin_states"]}
    )
    turned.uns["chromatin_states"] = {**one.uns["chromatin_states"], "params": {"cell_type_key": "sample"}}
    dbio.tl.state_reproducibility(turned, two)
    np.testing.assert_array_equal(turned.var["state_reproducibility"], expected)
    few = one.copy()
    posterior = few.obsm.pop("chromatin_state_posterior")
    top = np.argsort(-posterior, 1)[:, :2]
    few.obsm["chromatin_state_top"] = top.astype(np.int16)
    few.obsm["chromatin_state_top_probability"] = np.take_along_axis(posterior, top, 1)
    dbio.tl.state_reproducibility(few, two)
    np.testing.assert_array_equal(few.obs["state_reproducibility"], expected)


def test_bins_are_paired_by_coordinates_within_cell_types():
    adata = replicates(n_bins=3000, n_chromosomes=3, n_replicates=2, n_cell_types=2)
    with pytest.raises(ValueError, match="duplicated bins"):
        dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    dbio.tl.state_reproducibility(adata, replicate_key="replicate", cell_type_key="cell_type")
    one = adata[adata.obs["replicate"] == "rep1"]
    two = adata[adata.obs["replicate"] == "rep2"]
    agree = (one.obs["chromatin_state"].to_numpy() == two.obs["chromatin_state"].to_numpy()).mean()
    assert dbio.get.state_reproducibility(adata, kind="summary")["found"][0] == pytest.approx(agree)
    assert adata.obs["state_reproducibility"].notna().all()


def test_bins_of_one_side_alone_get_no_probability(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    part = two[100:].copy()
    part.obs["chromatin_state"] = part.obs["chromatin_state"].where(np.arange(len(part)) >= 50)
    with pytest.warns(UserWarning, match="100 of 6,000 bins of 'adata' have no partner"):
        dbio.tl.state_reproducibility(one, part)
    assert one.obs["state_reproducibility"].isna().to_numpy().nonzero()[0].tolist() == list(range(150))
    with pytest.warns(UserWarning, match="are few to estimate rates"), pytest.warns(UserWarning, match="no partner"):
        dbio.tl.state_reproducibility(one, two[:600].copy())


def test_two_models_are_matched(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    expected = one.obs["state_reproducibility"].copy()
    # The same states under other names, in another order, of a model whose numbers differ a little.
    model = dbio.get.chromatin_state_model(two)
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    names = [f"S{index}" for index in range(7)]
    turned = model.reorder(order)
    labels = two.obs["chromatin_state"].cat.rename_categories(dict(zip(turned.states, names, strict=True)))
    two.obs["chromatin_state"] = labels.cat.reorder_categories(names)
    two.uns["chromatin_states"] = {
        "initial": turned.initial,
        "transition": turned.transition,
        "emission": turned.emission * 0.99,
        "marks": np.array(turned.marks),
        "states": np.array(names),
        "params": {"cell_type_key": "sample"},
    }
    del two.obsm["chromatin_state_posterior"]  # the other's posterior says nothing here
    named = dict(zip(turned.states, names, strict=True))
    for match in ("auto", "emission", "overlap", named):
        dbio.tl.state_reproducibility(one, two, match=match)
        np.testing.assert_array_equal(one.obs["state_reproducibility"], expected)
    assert dbio.get.state_reproducibility(one)["match"].tolist() == [named[state] for state in model.states]
    with pytest.raises(ValueError, match="no label is in both replicates"):
        dbio.tl.state_reproducibility(one, two, match="labels")
    with pytest.raises(KeyError, match=r"match names states \['S9'\]"):
        dbio.tl.state_reproducibility(one, two, match={"Polycomb": "S9"})


def test_states_of_two_halves_of_the_marks(pair):
    adata = alone(pair, "rep1")
    adata.obs["half_chromatin_state"] = alone(pair, "rep2").obs["chromatin_state"].to_numpy()
    dbio.tl.state_reproducibility(adata, other_key="half", match="labels")
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    dbio.tl.state_reproducibility(one, two)
    np.testing.assert_array_equal(adata.obs["state_reproducibility"], one.obs["state_reproducibility"])


def test_tolerance_finds_more(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    rates = []
    for tolerance in (0, 1, 5):
        dbio.tl.state_reproducibility(one, two, tolerance=tolerance)
        rates.append(dbio.get.state_reproducibility(one, kind="summary")["found"][0])
    assert rates[0] < rates[1] < rates[2]


def test_few_chromosomes_are_cut_into_blocks(pair):
    one, two = (alone(pair, name)[:1500].copy() for name in ("rep1", "rep2"))
    dbio.tl.state_reproducibility(one, two, n_folds=5)
    report = one.uns["state_reproducibility"]["report"]
    assert (report["folds"], report["whole_chromosomes"]) == (5, False)
    assert one.obs["state_reproducibility"].between(0, 1).all()


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({}, ValueError, "expected a second replicate"),
        ({"replicate_key": "x"}, KeyError, "no column 'x'"),
        ({"replicate_key": "chrom"}, ValueError, "must name two replicates, found 4"),
        ({"replicate_key": "replicate", "other": True}, ValueError, "found both"),
        ({"other": True, "key": "x"}, KeyError, "no column 'x_chromatin_state'"),
        ({"other": True, "match": "x"}, ValueError, "match must be 'auto', .* or a mapping"),
        ({"other": True, "match": 3}, ValueError, "match must be 'auto', .* or a mapping"),
        ({"other": True, "tolerance": -1}, ValueError, "tolerance must be a whole number of at least 0"),
        ({"other": True, "n_folds": 1}, ValueError, "n_folds must be a whole number of at least 2"),
    ],
)
def test_bad_arguments(pair, options, error, problem):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    if "other" in options:
        options = {**options, "other": two}
    with pytest.raises(error, match=problem):
        dbio.tl.state_reproducibility(one, **options)
    assert "state_reproducibility" not in one.obs
    assert "state_reproducibility" not in one.uns


def test_replicates_without_a_common_bin(pair):
    one, two = alone(pair, "rep1"), alone(pair, "rep2")
    two.obs["start"] += 7
    two.obs["end"] += 7
    with pytest.raises(ValueError, match="share no bins"):
        dbio.tl.state_reproducibility(one, two)


def test_results_are_stored(pair, tmp_path):
    one = alone(pair, "rep1")
    found = dbio.tl.state_reproducibility(one, alone(pair, "rep2"), copy=True)
    assert "state_reproducibility" not in one.obs
    found.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(dbio.get.state_reproducibility(again), dbio.get.state_reproducibility(found))
    found.write_zarr(tmp_path / "a.zarr")
    with pytest.raises(KeyError, match="no reproducibility 'x'"):
        dbio.get.state_reproducibility(found, key="x")
    with pytest.raises(ValueError, match="kind must be 'states', .* or 'summary'"):
        dbio.get.state_reproducibility(found, kind="x")
