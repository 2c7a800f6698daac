"""dbio.tl.chromatin_states and select_n_states: fields, given models, cell types, and bad input."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

MEAN = np.array([[0.02, 0.03, 0.02], [0.8, 0.1, 0.05], [0.1, 0.7, 0.6]])
TRANSITION = np.array([[0.96, 0.02, 0.02], [0.06, 0.9, 0.04], [0.1, 0.05, 0.85]])
MARKS = ["H3K4me3", "H3K36me3", "H3K27me3"]
MODEL = ChromatinStateModel(np.full(3, 1 / 3), TRANSITION, MEAN, marks=tuple(MARKS))


def bins_table(lengths, names=None):
    names = names or [f"chr{number + 1}" for number in range(len(lengths))]
    start = np.concatenate([200 * np.arange(length) for length in lengths])
    chrom = np.repeat(names, lengths)
    index = [f"{name}:{first}" for name, first in zip(chrom, start, strict=True)]
    return pd.DataFrame({"chrom": chrom, "start": start, "end": start + 200}, index=index)


def simulate(seed=0, lengths=(900, 700, 400), dtype=np.uint8):
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(TRANSITION, 1)
    path = []
    for length in lengths:
        state = 0
        for u in rng.random(length):
            path.append(state)
            state = min(int(np.searchsorted(bounds[state], u)), 2)
    values = (rng.random((len(path), 3)) < MEAN[path]).astype(dtype)
    adata = ad.AnnData(values, obs=bins_table(lengths), var=pd.DataFrame(index=MARKS))
    adata.obs["truth"] = path
    return adata


@pytest.fixture(scope="module")
def simulated():
    return simulate()


@pytest.fixture
def bins(simulated):
    return simulated.copy()


def annotate(adata, **options):
    dbio.tl.chromatin_states(adata, **{"n_states": 3, "effort": "fast", **options})
    return adata


# --- results


def test_the_fields_are_those_that_are_promised_and_survive_a_file(bins, tmp_path):
    annotate(bins, standard_errors=True)
    record = bins.uns["chromatin_states"]
    assert list(bins.obs["chromatin_state"].cat.categories) == ["E1", "E2", "E3"]
    posterior = bins.obsm["chromatin_state_posterior"]
    assert posterior.dtype == np.float32
    np.testing.assert_allclose(posterior.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(bins.obs["chromatin_state"].cat.codes, posterior.argmax(1))
    assert bins.obs["chromatin_state_viterbi"].dtype == "category"
    assert record["emission"].shape == (3, 3)
    assert list(record["marks"]) == MARKS
    assert record["emission_kind"] == record["params"]["emission"] == "bernoulli"
    assert record["log_likelihood_per_bin"] == pytest.approx(record["log_likelihood"] / bins.n_obs)
    assert record["standard_errors"]["transition"].shape == (3, 3)
    assert (record["standard_errors"]["emission"] > 0).all()
    assert record["report"]["converged"]
    assert (np.diff(record["history"]) > -1e-6).all()
    order = np.argmin(np.abs(MEAN[:, None] - record["emission"][None]).sum(2), 1)
    np.testing.assert_allclose(record["emission"][order], MEAN, atol=0.08)
    assert (order[bins.obs["truth"]] == bins.obs["chromatin_state"].cat.codes).mean() > 0.9
    bins.write_h5ad(tmp_path / "states.h5ad")
    again = ad.read_h5ad(tmp_path / "states.h5ad")
    np.testing.assert_array_equal(again.uns["chromatin_states"]["transition"], record["transition"])
    assert dbio.get.chromatin_state_model(again).n_states == 3


def test_seeds_reproduce_and_nothing_else_changes(bins):
    before = bins.X.copy()
    first, second = annotate(bins.copy(), rng=3), annotate(bins.copy(), rng=3)
    np.testing.assert_array_equal(first.obsm["chromatin_state_posterior"], second.obsm["chromatin_state_posterior"])
    np.testing.assert_array_equal(bins.X, before)
    assert "chromatin_state" not in bins.obs
    copied = dbio.tl.chromatin_states(bins, n_states=2, effort="fast", copy=True)
    assert "chromatin_state" in copied.obs
    assert "chromatin_state" not in bins.obs


@pytest.mark.parametrize(
    "kind", ["float32", "float64", "bool", "int64", "csr", "csc", "dask", "view", "backed", "layer"]
)
def test_every_kind_of_matrix_gives_the_same_states(simulated, tmp_path, kind):
    expected = annotate(simulated.copy(), model=MODEL)
    adata, options = simulated.copy(), {}
    if kind in ("csr", "csc"):
        adata.X = getattr(sp, f"{kind}_matrix")(adata.X.astype(np.float32))
    elif kind == "dask":
        da = pytest.importorskip("dask.array")
        adata.X = da.from_array(adata.X, chunks=(500, 3))
    elif kind == "view":
        adata = ad.concat([adata, adata[:0]])[:, MARKS]
        assert adata.is_view
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "backed.h5ad")
        adata = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    elif kind == "layer":
        adata.layers["marks"] = adata.X.copy()
        adata.X = adata.X.astype(float) * 7.5
        options["layer"] = "marks"
    else:
        adata.X = adata.X.astype(kind)
    annotate(adata, model=MODEL, **options)
    np.testing.assert_array_equal(adata.obsm["chromatin_state_posterior"], expected.obsm["chromatin_state_posterior"])


def test_bins_along_var_and_in_any_order_give_the_same_states(bins):
    expected = annotate(bins.copy(), model=MODEL)
    turned = annotate(bins.T.copy(), model=MODEL)
    np.testing.assert_array_equal(turned.varm["chromatin_state_posterior"], expected.obsm["chromatin_state_posterior"])
    assert (turned.var["chromatin_state"] == expected.obs["chromatin_state"]).all()
    shuffle = np.random.default_rng(0).permutation(bins.n_obs)
    shuffled = annotate(bins[shuffle].copy(), model=MODEL)
    np.testing.assert_allclose(
        shuffled.obsm["chromatin_state_posterior"], expected.obsm["chromatin_state_posterior"][shuffle], atol=1e-6
    )


def test_gaps_and_chromosomes_end_a_sequence(bins):
    whole = annotate(bins.copy(), model=MODEL)
    gap = bins.copy()
    gap.obs.loc[gap.obs_names[400:900], ["start", "end"]] += 1000
    annotate(gap, model=MODEL)
    assert not np.allclose(gap.obsm["chromatin_state_posterior"][399], whole.obsm["chromatin_state_posterior"][399])
    parts = [annotate(bins[where].copy(), model=MODEL) for where in (slice(0, 400), slice(400, 900))]
    found = np.concatenate([part.obsm["chromatin_state_posterior"] for part in parts])
    np.testing.assert_allclose(gap.obsm["chromatin_state_posterior"][:900], found, atol=1e-6)
    apart = bins[:50].copy()  # every bin a sequence of its own
    apart.obs["start"] += 100
    annotate(apart, model=MODEL)
    weight = MODEL.initial * np.prod(np.where(apart.X[:, None] > 0, MEAN, 1 - MEAN), 2)
    np.testing.assert_allclose(
        apart.obsm["chromatin_state_posterior"], weight / weight.sum(1, keepdims=True), atol=1e-6
    )
    single = bins[[0, 1, 2, 905]].copy()  # a chromosome of one bin
    annotate(single, model=MODEL)
    weight = MODEL.initial * np.prod(np.where(single.X[3] > 0, MEAN, 1 - MEAN), 1)
    np.testing.assert_allclose(single.obsm["chromatin_state_posterior"][3], weight / weight.sum(), atol=1e-6)


def test_several_cell_types_share_one_model_and_may_lie_mixed(bins):
    other = simulate(seed=1)
    both = ad.concat({"a": bins, "b": other}, label="cell_type", index_unique="-")
    order = np.random.default_rng(0).permutation(both.n_obs)
    mixed = both[order].copy()
    annotate(mixed, model=MODEL, cell_type_key="cell_type")
    for name, one in (("a", bins), ("b", other)):
        alone = annotate(one.copy(), model=MODEL)
        where = mixed.obs["cell_type"] == name
        found = pd.DataFrame(mixed.obsm["chromatin_state_posterior"][where], index=mixed.obs_names[where])
        expected = alone.obsm["chromatin_state_posterior"]
        np.testing.assert_allclose(found.loc[[f"{index}-{name}" for index in one.obs_names]], expected, atol=1e-6)
    annotate(both, cell_type_key="cell_type")
    assert len(both.uns["chromatin_states"]["states"]) == 3
    with pytest.raises(ValueError, match="duplicated bins"):
        annotate(both)


def test_a_mark_missing_in_one_cell_type_is_left_out_there(bins):
    other = simulate(seed=1)
    both = ad.concat({"a": bins, "b": other}, label="cell_type", index_unique="-")
    both.X = both.X.astype(np.float32)
    both.X[bins.n_obs :, 1] = np.nan
    annotate(both, model=MODEL, cell_type_key="cell_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = annotate(other[:, [0, 2]].copy(), model=MODEL)
    np.testing.assert_allclose(
        both.obsm["chromatin_state_posterior"][bins.n_obs :], alone.obsm["chromatin_state_posterior"], atol=1e-6
    )
    masked = both.copy()
    masked.layers["known"] = np.isfinite(both.X)
    masked.X = np.nan_to_num(both.X)
    annotate(masked, model=MODEL, cell_type_key="cell_type", mask="known", key_added="masked")
    np.testing.assert_array_equal(
        masked.obsm["masked_chromatin_state_posterior"], both.obsm["chromatin_state_posterior"]
    )


def test_top_states_and_decoding_by_path(bins):
    whole = annotate(bins.copy(), model=MODEL)
    annotate(bins, model=MODEL, top_states=2, decode="viterbi")
    assert "chromatin_state_posterior" not in bins.obsm
    posterior = whole.obsm["chromatin_state_posterior"]
    order = np.argsort(-posterior, 1, kind="stable")[:, :2]
    np.testing.assert_array_equal(bins.obsm["chromatin_state_top"], order)
    np.testing.assert_array_equal(bins.obsm["chromatin_state_top_probability"], np.take_along_axis(posterior, order, 1))
    assert (bins.obs["chromatin_state"] == bins.obs["chromatin_state_viterbi"]).all()
    assert (bins.obs["chromatin_state"] == whole.obs["chromatin_state_viterbi"]).all()
    annotate(bins, model=MODEL)  # the other form goes when a new one comes
    assert "chromatin_state_top" not in bins.obsm


# --- given models


def test_given_models_come_from_objects_files_and_other_data(bins, tmp_path):
    expected = annotate(bins.copy(), model=MODEL)
    dbio.io.write_chromhmm_model(MODEL, tmp_path / "model.txt")
    from_file = annotate(bins.copy(), model=tmp_path / "model.txt")
    from_data = annotate(bins.copy(), model=expected)
    for one in (from_file, from_data):
        np.testing.assert_allclose(
            one.obsm["chromatin_state_posterior"], expected.obsm["chromatin_state_posterior"], atol=1e-5
        )


def test_marks_are_matched_by_name_missing_ones_summed_out_extra_ones_left(bins, caplog):
    expected = annotate(bins.copy(), model=MODEL)
    reordered = bins[:, [2, 0, 1]].copy()
    np.testing.assert_allclose(
        annotate(reordered, model=MODEL).obsm["chromatin_state_posterior"],
        expected.obsm["chromatin_state_posterior"],
        atol=1e-6,
    )
    fewer = bins[:, :2].copy()
    annotate(fewer, model=MODEL)
    assert list(fewer.uns["chromatin_states"]["marks"]) == MARKS[:2]
    extra = ad.concat([bins, ad.AnnData(bins.X[:, :1], obs=bins.obs[[]], var=pd.DataFrame(index=["CTCF"]))], axis=1)
    extra.obs = bins.obs
    with pytest.warns(UserWarning, match=r"the model has no marks \['CTCF'\]: they are left out"):
        annotate(extra, model=MODEL)
    np.testing.assert_array_equal(extra.obsm["chromatin_state_posterior"], expected.obsm["chromatin_state_posterior"])
    bins.var_names = ["a", "b", "c"]
    with pytest.raises(ValueError, match="no mark of the data is a mark of the model"):
        annotate(bins, model=MODEL)


def test_training_goes_on_from_a_model_and_keeps_its_zeros(bins):
    transition = TRANSITION.copy()
    transition[1, 2], transition[1, 0] = 0.0, 0.1
    start = ChromatinStateModel(np.full(3, 1 / 3), transition, MEAN, marks=tuple(MARKS), states=("bg", "tss", "pc"))
    given = annotate(bins.copy(), model=start)
    trained = annotate(bins.copy(), model=start, train=True)
    record = trained.uns["chromatin_states"]
    assert record["log_likelihood"] > given.uns["chromatin_states"]["log_likelihood"]
    assert (record["transition"] == 0).sum() == 1
    assert sorted(record["states"]) == ["bg", "pc", "tss"]
    order = [list(record["states"]).index(name) for name in ("bg", "tss", "pc")]
    np.testing.assert_allclose(record["emission"][order], MEAN, atol=0.08)


def test_a_model_that_forbids_the_data_is_named_and_nothing_is_written(bins):
    forbidden = ChromatinStateModel(
        np.array([1.0, 0.0]), np.eye(2), np.array([[0.0] * 3, [0.5] * 3]), marks=tuple(MARKS)
    )
    with pytest.raises(ValueError, match="the model cannot make sequence 0"):
        annotate(bins, model=forbidden)
    assert "chromatin_states" not in bins.uns
    assert "chromatin_state" not in bins.obs


# --- emissions


@pytest.mark.parametrize(
    ("kind", "chosen"), [("binary", "bernoulli"), ("counts", "negative_binomial"), ("signal", "gaussian")]
)
def test_the_emission_follows_from_the_values_and_is_said(bins, kind, chosen):
    rng = np.random.default_rng(0)
    rate = np.where(bins.X > 0, 12.0, 0.5)
    if kind == "counts":
        bins.X = rng.poisson(rate).astype(np.float32)
    elif kind == "signal":
        bins.X = (rate + rng.normal(size=rate.shape)).astype(np.float32)
    annotate(bins)
    record = bins.uns["chromatin_states"]
    assert record["emission_kind"] == record["params"]["emission"] == chosen
    names = {"bernoulli": set(), "negative_binomial": {"dispersion"}, "gaussian": {"variance"}}[chosen]
    assert set(record["emission_parameters"]) == names
    again = annotate(bins.copy(), model=bins, key_added="again")
    np.testing.assert_allclose(
        again.obsm["again_chromatin_state_posterior"], bins.obsm["chromatin_state_posterior"], atol=1e-4
    )


def test_shares_of_marks_do_not_depend_on_depth(bins):
    rng = np.random.default_rng(0)
    share = MEAN / MEAN.sum(1, keepdims=True)
    depth = rng.integers(5, 60, bins.n_obs)
    bins.X = np.stack([rng.multinomial(n, share[k]) for n, k in zip(depth, bins.obs["truth"], strict=True)]).astype(
        float
    )
    annotate(bins, emission="multinomial")
    emission = bins.uns["chromatin_states"]["emission"]
    np.testing.assert_allclose(emission.sum(1), 1.0)
    order = np.argmin(np.abs(share[:, None] - emission[None]).sum(2), 1)
    np.testing.assert_allclose(emission[order], share, atol=0.03)


@pytest.mark.parametrize(
    ("emission", "value", "message"),
    [
        ("bernoulli", 2.0, r"found 2 at bin 'chr1:1000', mark 'H3K36me3'.*dbio.pp.binarize"),
        ("bernoulli", 0.5, "found 0.5 at bin"),
        ("poisson", -1.0, "needs counts, found negative values"),
        ("negative_binomial", 1.5, "needs counts, found 1.5 at bin .* 'gaussian' takes real numbers"),
        ("gaussian", np.inf, "values must be finite"),
    ],
)
def test_values_that_do_not_fit_the_emission_are_refused(bins, emission, value, message):
    bins.X = bins.X.astype(np.float32)
    bins.X[5, 1] = value
    with pytest.raises(ValueError, match=message):
        annotate(bins, emission=emission)
    assert "chromatin_states" not in bins.uns


# --- bad input


def test_marks_that_say_nothing_are_warned_about_and_do_no_harm(bins):
    bins.X[:, 0], bins.X[:, 1] = 0, 1
    with pytest.warns(UserWarning, match=r"marks \['H3K4me3', 'H3K36me3'\] have one value in all bins"):
        annotate(bins, n_states=2)
    assert np.isfinite(bins.obsm["chromatin_state_posterior"]).all()
    signal = ad.AnnData(np.full((50, 2), 3.5, np.float32), obs=bins_table([50]))
    with pytest.warns(UserWarning, match="one value in all bins"):
        annotate(signal, n_states=2, emission="gaussian")
    assert np.isfinite(signal.uns["chromatin_states"]["log_likelihood"])
    missing = ad.AnnData(np.full((50, 2), np.nan, np.float32), obs=bins_table([50]))
    with pytest.raises(ValueError, match="all marks are missing in all bins"):
        annotate(missing)


def test_numbers_of_states_at_both_ends(bins):
    annotate(bins, n_states=1)
    np.testing.assert_array_equal(bins.obsm["chromatin_state_posterior"], 1.0)
    rate = bins.X.mean(0)
    exact = bins.n_obs * (rate * np.log(rate) + (1 - rate) * np.log(1 - rate)).sum()
    assert bins.uns["chromatin_states"]["log_likelihood"] == pytest.approx(exact, rel=1e-6)
    with pytest.warns(UserWarning, match="n_states=10 is more than the 8 combinations of 3 marks"):
        annotate(bins, n_states=10)
    assert np.isfinite(bins.uns["chromatin_states"]["emission"]).all()
    with pytest.raises(ValueError, match="n_states=15 is more than the 10 bins"):
        annotate(bins[:10].copy(), n_states=15)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda a: setattr(a, "obs", a.obs.drop(columns="chrom")), {}, KeyError, "expected columns"),
        (lambda a: setattr(a, "obs", a.obs.assign(end=a.obs["end"] + 100)), {}, ValueError, "overlapping bins"),
        (
            lambda a: setattr(a, "obs", a.obs.assign(start=a.obs["end"])),
            {},
            ValueError,
            "ends that do not lie after their starts",
        ),
        (lambda a: setattr(a, "var_names", ["x", "x", "y"]), {}, ValueError, "marks .* must be unique"),
        (lambda a: None, {"layer": "no"}, KeyError, "adata.layers has no 'no'"),
        (lambda a: None, {"mask": "no"}, KeyError, "adata.layers has no 'no'"),
        (lambda a: None, {"cell_type_key": "no"}, KeyError, "no"),
        (lambda a: None, {"n_states": 0}, ValueError, "n_states must be a whole number from 1 to 1000, found 0"),
        (lambda a: None, {"n_states": 2.5}, ValueError, "n_states must be a whole number"),
        (lambda a: None, {"emission": "beta"}, ValueError, "emission must be .* or 'multinomial', found 'beta'"),
        (lambda a: None, {"effort": "most"}, ValueError, "effort must be 'fast' or 'default'"),
        (lambda a: None, {"decode": "best"}, ValueError, "decode must be 'posterior' or 'viterbi'"),
        (lambda a: None, {"top_states": 4}, ValueError, "top_states must be at most the 3 states"),
        (lambda a: None, {"train": True}, ValueError, "train=True trains from a given model"),
        (lambda a: None, {"model": 3}, TypeError, "model must be .* a ChromatinStateModel"),
        (lambda a: None, {"axis": "rows"}, ValueError, "axis must be"),
    ],
)
def test_bad_arguments_are_named_before_any_work(bins, change, options, error, message):
    change(bins)
    before = set(bins.uns)
    with pytest.raises(error, match=message):
        annotate(bins, **options)
    assert set(bins.uns) == before
    assert "chromatin_state" not in bins.obs


def test_objects_that_are_no_anndata_and_empty_ones_are_refused(bins):
    with pytest.raises(TypeError, match="adata must be an AnnData"):
        dbio.tl.chromatin_states(bins.X)
    with pytest.raises(ValueError, match="no bins"):
        annotate(bins[:0].copy())
    with pytest.raises(ValueError, match="no marks"):
        annotate(bins[:, :0].copy())


def test_bins_of_different_width_are_warned_about(bins):
    bins.obs.loc[bins.obs_names[:10], "start"] = 2000 - 100 * np.arange(10, 0, -1)
    bins.obs.loc[bins.obs_names[:10], "end"] = 2000 - 100 * np.arange(9, -1, -1)
    with pytest.warns(UserWarning, match="not all of one width"):
        annotate(bins, model=MODEL)


# --- many marks, and the number of states


def test_marks_too_many_for_patterns_are_streamed(bins):
    rng = np.random.default_rng(0)
    mean = rng.beta(0.5, 1.5, (3, 80))
    values = (rng.random((bins.n_obs, 80)) < mean[bins.obs["truth"]]).astype(np.uint8)
    for matrix in (values, sp.csr_matrix(values.astype(np.float32))):
        adata = ad.AnnData(matrix, obs=bins.obs[["chrom", "start", "end"]])
        annotate(adata)
        emission = adata.uns["chromatin_states"]["emission"]
        order = np.argmin(np.abs(mean[:, None] - emission[None]).sum(2), 1)
        assert sorted(order) == [0, 1, 2]
        np.testing.assert_allclose(emission[order], mean, atol=0.12)
        assert (order[bins.obs["truth"]] == adata.obs["chromatin_state"].cat.codes).mean() > 0.999


def test_the_number_of_states_is_chosen_by_held_out_sequences():
    adata = simulate(seed=5, lengths=(3000, 3000))
    dbio.tl.select_n_states(adata, n_states=[1, 2, 3, 4, 5])
    found = adata.uns["select_n_states"]
    assert found["chosen"] == 3
    table = found["table"]
    assert list(table["n_states"]) == [1, 2, 3, 4, 5]
    assert table["difference"].max() == 0.0
    assert table.loc["2", "difference"] < -2 * table.loc["2", "difference_error"]
    # One state has no chain: its held-out likelihood is that of independent marks, judged by rates of other bins.
    rate = np.asarray(adata.X).mean(0)
    own = (rate * np.log(rate) + (1 - rate) * np.log(1 - rate)).sum()
    assert own - 0.02 < table.loc["1", "log_likelihood"] < own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_states": []}, "n_states is empty"),
        ({"n_states": [0, 2]}, "each of n_states must be a whole number of at least 1, found 0"),
        ({"folds": 1}, "folds must be a whole number of at least 2"),
        ({"effort": "most"}, "effort must be 'fast' or 'default'"),
        ({"n_states": [2, 5000]}, "more than the bins that models are fitted to"),
    ],
)
def test_bad_arguments_of_the_selection_are_named(bins, options, message):
    with pytest.raises(ValueError, match=message):
        dbio.tl.select_n_states(bins, **options)
    assert "select_n_states" not in bins.uns


# --- real data


@pytest.mark.data
@pytest.mark.slow
def test_chromhmms_models_have_chromhmms_likelihood(data_folder):
    folder = data_folder / "chromatin_states"
    paths = [folder / f"{cell}_chr11_binary.txt.gz" for cell in ("GM12878", "K562")]
    adata = dbio.io.read_chromhmm_binary(paths)
    for states, expected in ((10, -742_608.487), (15, -715_244.248)):
        path = folder / "models" / f"chromhmm_sample_hg18_{states}.txt"
        dbio.tl.chromatin_states(adata, model=path, cell_type_key="cell_type", top_states=1)
        assert adata.uns["chromatin_states"]["log_likelihood"] == pytest.approx(expected, abs=1e-2)


@pytest.mark.data
@pytest.mark.slow
def test_a_fast_fit_is_above_chromhmms_two_hundred_iterations(data_folder):
    folder = data_folder / "chromatin_states"
    paths = [folder / f"{cell}_chr11_binary.txt.gz" for cell in ("GM12878", "K562")]
    adata = dbio.io.read_chromhmm_binary(paths)
    dbio.tl.chromatin_states(adata, n_states=15, effort="fast", cell_type_key="cell_type", top_states=1)
    assert adata.uns["chromatin_states"]["log_likelihood"] >= -715_202
