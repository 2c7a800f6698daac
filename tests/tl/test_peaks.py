from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from planted_peaks import as_bins, found, simulate
from scipy import stats

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def rows():
    return simulate()


@pytest.fixture(scope="module")
def _bins(rows):
    return as_bins({"a": rows, "b": simulate(1, depth=0.7), "input": simulate(2, peaks={"chr1": [50_000]})})


@pytest.fixture
def bins(_bins):
    return _bins.copy()


def test_planted_peaks_are_found_in_bins_and_results_are_complete(bins):
    before = bins.X.copy()
    assert dbio.tl.peaks(bins) is None
    np.testing.assert_array_equal(bins.X, before)
    tables = bins.uns["peaks"]["tables"]
    assert list(tables) == ["a", "b", "input"]
    assert found(tables["a"]) == (5, 0)
    assert found(tables["b"])[0] >= 4
    assert found(tables["input"], {"chr1": [50_000]}) == (1, 0)
    for name in ("peak_scores", "peak_calls", "peak_start", "peak_end", "peak_log10p", "peak_background"):
        assert bins.layers[name].shape == bins.shape
    scores, calls = bins.layers["peak_scores"], bins.layers["peak_calls"]
    assert ((scores >= 0) & (scores <= 1)).all()
    assert set(np.unique(calls)) == {0, 1}
    assert scores[calls == 1].min() > 0.2
    np.testing.assert_array_equal(bins.var["n_peaks"], calls.sum(0))
    # Calls are the bins of the table.
    inside = np.zeros(bins.n_vars, bool)
    for row in tables["a"].itertuples():
        inside |= (
            (bins.var["chrom"] == row.chrom) & (bins.var["start"] >= row.start) & (bins.var["end"] <= row.end)
        ).to_numpy()
    np.testing.assert_array_equal(calls[0].astype(bool), inside)
    # Starts less ends before are changes of the posterior, within a sequence.
    start, end = bins.layers["peak_start"][0], bins.layers["peak_end"][0]
    chr1 = (bins.var["chrom"] == "chr1").to_numpy()
    change = np.diff(scores[0][chr1])
    np.testing.assert_allclose(change, start[chr1][1:] - end[chr1][:-1], atol=1e-4)
    log10_p = -stats.poisson.logsf(bins.X[0] - 1, bins.layers["peak_background"][0]) / np.log(10)
    np.testing.assert_allclose(bins.layers["peak_log10p"][0], log10_p, rtol=1e-3, atol=1e-4)
    record = bins.uns["peaks"]
    assert record["n_peaks"] == sum(map(len, tables.values()))
    assert set(record) >= {"params", "version", "report", "groups", "tables"}


@pytest.mark.parametrize("kind", ["csr", "csc", "backed", "dask", "layer", "transposed", "shuffled", "view"])
def test_input_kinds_and_orientations_give_the_same_result(bins, tmp_path, kind):
    expected = bins.copy()
    dbio.tl.peaks(expected)
    other = bins.copy()
    if kind in ("csr", "csc"):
        other.X = sp.csr_matrix(other.X) if kind == "csr" else sp.csc_matrix(other.X)
    elif kind == "backed":
        other.write_h5ad(tmp_path / "x.h5ad")
        other = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    elif kind == "dask":
        import dask.array as da

        other.X = da.from_array(other.X, chunks=(2, 1000))
    elif kind == "layer":
        other.layers["counts"] = other.X.copy()
        other.X = np.full(other.shape, 0.5, np.float32)
    elif kind == "transposed":
        other = other.T.copy()
    elif kind == "shuffled":
        other = other[:, np.random.default_rng(0).permutation(other.n_vars)].copy()
    elif kind == "view":
        other = other[["a", "b", "input"]]
    dbio.tl.peaks(other, layer="counts" if kind == "layer" else None)
    if kind == "transposed":
        assert "n_peaks" in other.obs
        other = ad.AnnData(
            other.X.T,
            obs=other.var,
            var=other.obs,
            layers={k: v.T for k, v in other.layers.items() if k is not None},
            uns=other.uns,
        )
    back = other.var_names.get_indexer(expected.var_names)
    for name in ("peak_scores", "peak_calls", "peak_log10p", "peak_start", "peak_end"):
        np.testing.assert_allclose(np.asarray(other.layers[name])[:, back], expected.layers[name], atol=1e-5)
    for group, table in expected.uns["peaks"]["tables"].items():
        mine = other.uns["peaks"]["tables"][group]
        order = ["chrom", "start"]
        pd.testing.assert_frame_equal(
            mine.sort_values(order)[["chrom", "start", "end"]].reset_index(drop=True),
            table.sort_values(order)[["chrom", "start", "end"]].reset_index(drop=True),
        )


def test_groups_are_pooled_and_results_survive_a_file(bins, tmp_path):
    rng = np.random.default_rng(0)
    split = rng.binomial(bins.X.astype(int), 0.5)
    cells = ad.AnnData(
        sp.csr_matrix(np.concatenate([split, bins.X - split]).astype(np.float32)),
        obs=pd.DataFrame(
            {"kind": pd.Categorical(["T/NK", "B", None] * 2), "donor": list("xxxyyy")}, index=list("abcdef")
        ),
        var=bins.var,
    )
    with pytest.warns(UserWarning, match="cannot store '/'"):
        dbio.tl.peaks(cells, groupby="kind", replicate="donor")
    tables = cells.uns["peaks"]["tables"]
    assert set(tables) == {"B", "T|NK"}
    whole = bins.copy()
    dbio.tl.peaks(whole)
    for group, track in (("T|NK", "a"), ("B", "b")):
        expected = whole.uns["peaks"]["tables"][track]
        assert tables[group][["chrom", "start", "end"]].equals(expected[["chrom", "start", "end"]])
        assert (tables[group]["n_replicates"] >= 1).any()
    column = list(cells.uns["peaks"]["groups"]).index("T|NK")
    np.testing.assert_allclose(cells.varm["peak_scores"][:, column], whole.layers["peak_scores"][0], atol=1e-6)
    cells.write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad")
    back = stored.uns["peaks"]["tables"]["T|NK"]
    pd.testing.assert_frame_equal(
        back.reset_index(drop=True).astype({"chrom": str, "name": str, "strand": str, "mark": str}),
        tables["T|NK"].astype({"chrom": str, "name": str, "strand": str, "mark": str}),
    )
    assert len(dbio.get.peaks(stored)) == sum(map(len, tables.values()))


def test_groups_after_rows_leave_nothing_of_the_first_call(bins):
    bins.obs["label"] = "all"
    for earlier, last in ((None, "label"), ("label", None)):
        twice, once = bins.copy(), bins.copy()
        dbio.tl.peaks(twice, groupby=earlier)
        dbio.tl.peaks(twice, groupby=last)
        dbio.tl.peaks(once, groupby=last)
        for field in ("obs", "var", "varm", "layers", "uns"):
            assert set(getattr(twice, field)) == set(getattr(once, field))


def test_no_peaks_is_a_result_that_can_be_stored(bins, tmp_path):
    bins.X[:] = 0
    dbio.tl.peaks(bins)
    assert all(len(table) == 0 for table in bins.uns["peaks"]["tables"].values())
    assert not bins.layers["peak_calls"].any()
    bins.write_h5ad(tmp_path / "x.h5ad")
    assert len(ad.read_h5ad(tmp_path / "x.h5ad").uns["peaks"]["tables"]["a"]) == 0
    bins.X[0, 5] = 1
    dbio.tl.peaks(bins)
    assert len(dbio.get.peaks(bins)) == 0


def test_control_row_of_an_object(bins):
    dbio.tl.peaks(bins, control="input")
    tables = bins.uns["peaks"]["tables"]
    assert found(tables["a"], {"chr1": [120_000, 160_000], "chr2": [30_000, 80_000]}) == (4, 0)
    assert len(tables["input"]) == 0
    with pytest.raises(KeyError, match="control names \\['nothing'\\]"):
        dbio.tl.peaks(bins, control="nothing")
    bins.X[2] = 0
    with pytest.raises(ValueError, match="control 'input' of 'a' holds no counts"):
        dbio.tl.peaks(bins, control="input")


def test_no_statistic_runs_across_a_gap(bins):
    """A stretch without bins between two halves of a chromosome leaves each half as it would be alone."""
    chr1 = (bins.var["chrom"] == "chr1").to_numpy() & (bins.var["start"] < 100_000).to_numpy()
    left = bins[:, chr1].copy()
    joined = bins[:, chr1 | (bins.var["start"] > 150_000).to_numpy()].copy()
    del left.uns, joined.uns
    dbio.tl.peaks(joined, mode="narrow")
    assert joined.n_vars > left.n_vars
    # The peak 50 kb before the gap is the same whatever comes behind it, but for the level of the whole.
    row = joined.uns["peaks"]["tables"]["a"].iloc[0]
    assert abs(row["start"] + row["peak"] - 50_000) < 60


def test_blacklist_and_other_key(bins):
    dbio.tl.peaks(
        bins, blacklist=pd.DataFrame({"chrom": ["chr1"], "start": [49_000], "end": [51_000]}), key_added="mine"
    )
    table = bins.uns["mine"]["tables"]["a"]
    assert found(table, {"chr1": [120_000, 160_000], "chr2": [30_000, 80_000]}) == (4, 0)
    calls = bins.layers["mine_peak_calls"][0]
    assert not calls[((bins.var["chrom"] == "chr1") & bins.var["start"].between(49_000, 51_000)).to_numpy()].any()
    assert "mine_n_peaks" in bins.var
    assert "peak_calls" not in bins.layers


def test_copy_and_error_leave_the_object_alone(bins):
    result = dbio.tl.peaks(bins, copy=True)
    assert "peaks" in result.uns
    assert "peaks" not in bins.uns
    assert not bins.layers
    with pytest.raises(KeyError, match="no column 'kind'"):
        dbio.tl.peaks(bins, groupby="kind")
    assert "peaks" not in bins.uns


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "missing or infinite"), (-1.0, "negative"), (0.5, "non-integer")]
)
def test_values_that_are_no_counts_are_refused(bins, value, message):
    bins.X[1, 7] = value
    with pytest.raises(ValueError, match=message):
        dbio.tl.peaks(bins)
    if value == 0.5:
        with pytest.warns(UserWarning, match="fractional"):
            dbio.tl.peaks(bins, allow_fractional=True)


def test_other_bad_objects_are_named(bins):
    with pytest.raises(KeyError, match="expected columns"):
        dbio.tl.peaks(ad.AnnData(bins.X, obs=bins.obs))
    with pytest.raises(ValueError, match="mode='macs' needs fragments"):
        dbio.tl.peaks(bins, mode="macs")
    with pytest.raises(TypeError, match="groupby must be a text or None"):
        dbio.tl.peaks(bins, groupby={"a": "b"})
    with pytest.raises(ValueError, match="replicate needs groupby"):
        dbio.tl.peaks(bins.copy(), replicate="donor")
    uneven = bins.copy()
    odd = np.arange(uneven.n_vars) % 2
    uneven.var["start"] = uneven.var["start"].to_numpy() - 10 * odd
    uneven.var["end"] = uneven.var["end"].to_numpy() - 10 * (1 - odd)
    with pytest.warns(UserWarning, match="base pairs wide"):
        dbio.tl.peaks(uneven)


def test_broad_domains_are_one_peak(bins):
    rng = np.random.default_rng(0)
    mean = np.full(bins.n_vars, 2.0)
    domain = ((bins.var["chrom"] == "chr1") & bins.var["start"].between(60_000, 139_999)).to_numpy()
    mean[domain] = 12.0
    # Fragments span several bins: neighbouring counts share most of them.
    counts = sum(np.roll(rng.poisson(mean / 4), shift) for shift in range(4))
    wide = ad.AnnData(np.array([counts], np.float32), obs=pd.DataFrame(index=["domain"]), var=bins.var)
    with pytest.warns(UserWarning, match="broad marks of .'domain'. are called without a control"):
        dbio.tl.peaks(wide)
    table = wide.uns["peaks"]["tables"]["domain"]
    assert list(wide.uns["peaks"]["broad"]) == ["domain"]
    assert len(table) == 1
    assert abs(table["start"].iloc[0] - 60_000) < 500
    assert abs(table["end"].iloc[0] - 140_000) < 500


@pytest.mark.data
def test_expert_labels_by_default(data_folder):
    """At most 6 label errors in 64, where MACS3's default makes 28."""
    errors = 0
    for name in ("H3K36me3_TDH_other_chunk1", "H3K4me3_chr11"):
        stored = np.load(data_folder / "peaks" / f"{name}.npz")
        labels = pd.read_csv(data_folder / "peaks" / f"{name}.labels.tsv", sep="\t", dtype={"sample": str})
        low, high = (int(value) for value in stored["region"])
        number = (high - low) // 25
        depth = [
            np.repeat(stored[f"sample_{i}_count"], stored[f"sample_{i}_end"] - stored[f"sample_{i}_start"])
            for i in range(len(stored["samples"]))
        ]
        counts = np.round([one[: number * 25].reshape(-1, 25).mean(1) for one in depth]).astype(np.float32)
        start = low + 25 * np.arange(number)
        adata = ad.AnnData(
            counts,
            obs=pd.DataFrame(index=[str(sample) for sample in stored["samples"]]),
            var=pd.DataFrame({"chrom": "chrUn", "start": start, "end": start + 25}, index=start.astype(str)),
        )
        dbio.tl.peaks(adata)
        for row in labels.itertuples():
            table = adata.uns["peaks"]["tables"][row.sample]
            begins = ((table["start"] >= row.start) & (table["start"] < row.end)).sum()
            ends = ((table["end"] > row.start) & (table["end"] <= row.end)).sum()
            overlaps = ((table["start"] < row.end) & (table["end"] > row.start)).any()
            good = {"noPeaks": not overlaps, "peaks": overlaps, "peakStart": begins == 1, "peakEnd": ends == 1}
            errors += not good[row.annotation]
    assert errors <= 6
