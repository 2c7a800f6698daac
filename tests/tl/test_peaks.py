from __future__ import annotations

import gzip
import json
import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import diffbio_sc as dbio
from diffbio_sc.engines import interval_peaks
from diffbio_sc.io import Intervals

NARROWPEAK = ["chrom", "start", "end", "name", "score", "strand", "signalValue", "pValue", "qValue", "peak"]
TRUTH = {"chr1": [50_000, 120_000, 160_000], "chr2": [30_000, 80_000]}
SIZES = {"chr1": 200_000, "chr2": 100_000}


def simulate(seed=0, *, depth=1.0, peaks=TRUTH, per_peak=60):
    """Fragments on two chromosomes, with peaks at known places."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, size in SIZES.items():
        middle = [rng.integers(300, size - 300, int(depth * size / 100))]
        middle += [rng.normal(place, 60, int(depth * per_peak)) for place in peaks.get(name, [])]
        middle = np.concatenate(middle).astype(int)
        half = rng.integers(60, 130, len(middle))
        rows.append(pd.DataFrame({"chrom": name, "start": middle - half, "end": middle + half}))
    return pd.concat(rows, ignore_index=True)


def as_intervals(rows, **options):
    return Intervals.from_arrays(rows["chrom"], rows["start"], rows["end"], sizes=SIZES, **options)


def as_bins(samples, width=50):
    """Samples by bins, each fragment counted in each bin it touches."""
    tables, rows = [], []
    for name, size in SIZES.items():
        start = np.arange(0, size, width)
        tables.append(pd.DataFrame({"chrom": name, "start": start, "end": np.minimum(start + width, size)}))
    var = pd.concat(tables, ignore_index=True)
    var.index = [f"{c}:{s}-{e}" for c, s, e in zip(var["chrom"], var["start"], var["end"], strict=True)]
    offset = {"chr1": 0, "chr2": SIZES["chr1"] // width}
    for sample in samples.values():
        counts = np.zeros(len(var))
        for chrom, start, end in sample[["chrom", "start", "end"]].itertuples(index=False):
            counts[offset[chrom] + start // width : offset[chrom] + (end - 1) // width + 1] += 1
        rows.append(counts)
    return ad.AnnData(np.array(rows, np.float32), obs=pd.DataFrame(index=list(samples)), var=var)


@pytest.fixture(scope="module")
def rows():
    return simulate()


@pytest.fixture(scope="module")
def _bins(rows):
    return as_bins({"a": rows, "b": simulate(1, depth=0.7), "input": simulate(2, peaks={"chr1": [50_000]})})


@pytest.fixture
def bins(_bins):
    return _bins.copy()


def found(table, truth=TRUTH, within=60):
    """Number of true places with a summit near them, and of peaks near none."""
    summit = table["start"] + table["peak"]
    near = [
        any(abs(s - place) <= within for place in truth.get(chrom, []))
        for chrom, s in zip(table["chrom"], summit, strict=True)
    ]
    hit = sum(
        ((table["chrom"] == chrom) & (abs(summit - place) <= within)).any() for chrom in truth for place in truth[chrom]
    )
    return hit, len(table) - sum(near)


# Files


def test_planted_peaks_are_found_in_fragments(rows):
    table = dbio.tl.peaks(as_intervals(rows))
    assert list(table.columns[:10]) == NARROWPEAK
    assert found(table) == (5, 0)
    assert (table["qValue"] >= -np.log10(0.05)).all()
    assert (table["pValue"] >= table["qValue"]).all()
    assert ((table["peak"] >= 0) & (table["peak"] < table["end"] - table["start"])).all()
    size = (rows["end"] - rows["start"]).mean()
    for row in table.itertuples():
        here = rows[rows["chrom"] == row.chrom]
        overlap = np.minimum(here["end"], row.end) - np.maximum(here["start"], row.start)
        np.testing.assert_allclose(row.fragments, overlap.clip(0).sum() / size, rtol=0.01)
        assert row.signalValue == row.fragments


@pytest.mark.parametrize("packed", [False, True])
def test_files_give_the_peaks_of_the_fragments(rows, tmp_path, packed):
    text = "\n".join(f"{c}\t{s}\t{e}" for c, s, e in rows[["chrom", "start", "end"]].itertuples(index=False))
    path = tmp_path / ("x.bedpe.gz" if packed else "x.bedpe")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    expected = dbio.tl.peaks(as_intervals(rows), genome_size=300_000)
    result = dbio.tl.peaks(path, genome_size=300_000)
    pd.testing.assert_frame_equal(result, expected)


def test_order_of_lines_does_not_matter(rows):
    shuffled = rows.sample(frac=1, random_state=0)
    order = ["chrom", "start"]
    left, right = (dbio.tl.peaks(as_intervals(one)).sort_values(order) for one in (rows, shuffled))
    pd.testing.assert_frame_equal(
        left.drop(columns="name").reset_index(drop=True), right.drop(columns="name").reset_index(drop=True)
    )


def test_control_takes_away_what_it_shows_and_its_depth_does_not_matter(rows):
    for depth in (1.0, 10.0):
        control = as_intervals(simulate(3, depth=depth, peaks={"chr1": [50_000]}))
        table = dbio.tl.peaks(as_intervals(rows), control=control, duplicates=None)
        assert found(table, {"chr1": [120_000, 160_000], "chr2": [30_000, 80_000]}) == (4, 0)


def test_control_without_reads_on_a_chromosome_leaves_the_genome_level(rows):
    control = simulate(3, peaks={})
    table = dbio.tl.peaks(as_intervals(rows), control=as_intervals(control[control["chrom"] == "chr1"]))
    assert found(table)[0] == 5


def test_macs_mode_has_the_tail_and_background_of_macs(rows):
    intervals = as_intervals(rows)
    table = dbio.tl.peaks(intervals, mode="macs", genome_size=300_000)
    assert found(table, within=100)[0] == 5
    unique = rows.drop_duplicates()
    total, number = (unique["end"] - unique["start"]).sum(), len(unique)
    for row in table.itertuples():
        here = unique[unique["chrom"] == row.chrom]
        summit = row.start + row.peak
        height = ((here["start"] <= summit) & (here["end"] > summit)).sum()
        sites = np.concatenate([here["start"], here["end"]])
        window = ((sites - 5000 <= summit) & (sites + 5000 > summit)).sum()
        level = max(total / 300_000, window * total / (10_000 * 2 * number))
        np.testing.assert_allclose(row.fold, (height + 1) / (level + 1), rtol=1e-4)
        np.testing.assert_allclose(row.pValue, -stats.poisson.logsf(height, level) / np.log(10), rtol=1e-4)


def test_reads_are_extended_along_their_strand(rows):
    rng = np.random.default_rng(0)
    plus = rng.random(len(rows)) < 0.5
    reads = pd.DataFrame(
        {
            "chrom": rows["chrom"],
            "start": np.where(plus, rows["start"], rows["end"] - 36),
            "end": np.where(plus, rows["start"] + 36, rows["end"]),
        }
    )
    intervals = as_intervals(reads, strand=np.where(plus, 1, -1), paired=False)
    table = dbio.tl.peaks(intervals, fragment_length=190)
    assert found(table) == (5, 0)
    guessed = dbio.tl.peaks(intervals)
    assert found(guessed, within=100)[0] == 5
    few = as_intervals(reads[:5], strand=np.where(plus, 1, -1)[:5], paired=False)
    with pytest.warns(UserWarning, match="too few reads"):
        assert len(dbio.tl.peaks(few)) == 0


def test_replicates_are_pooled_and_their_support_counted():
    weak = {"chr1": [50_000, 120_000], "chr2": [30_000]}
    samples = {"r1": as_intervals(simulate(5, peaks=weak)), "r2": as_intervals(simulate(6, peaks=TRUTH))}
    table = dbio.tl.peaks(samples, replicate=True)
    assert isinstance(table, pd.DataFrame)
    assert found(table)[0] == 5
    summit = table["start"] + table["peak"]
    for chrom, places in TRUTH.items():
        for place in places:
            row = table[(table["chrom"] == chrom) & (abs(summit - place) < 60)].iloc[0]
            assert row["n_replicates"] == (2 if place in weak[chrom] else 1)
    both = dbio.tl.peaks(samples)
    assert list(both) == ["r1", "r2"]
    assert found(both["r1"], weak) == (3, 0)


def test_groups_of_barcodes(rows):
    other = simulate(7, peaks={"chr1": [70_000]})
    every = pd.concat([rows, other], ignore_index=True)
    code = np.concatenate([np.zeros(len(rows), int), np.ones(len(other), int)])
    rng = np.random.default_rng(0)
    cells = [f"{kind}{number}" for kind in "ab" for number in range(60)]
    intervals = as_intervals(every, cell_code=code * 60 + rng.integers(0, 60, len(every)), barcodes=cells)
    labels = pd.Series(["T/NK"] * 60 + ["B"] * 60, index=cells)
    tables = dbio.tl.peaks(intervals, groupby=labels)
    assert set(tables) == {"T/NK", "B"}
    assert found(tables["T/NK"]) == (5, 0)
    assert found(tables["B"], {"chr1": [70_000]}) == (1, 0)
    with pytest.warns(UserWarning, match="fewer than 50 cells.*'B'"):
        dbio.tl.peaks(intervals, groupby=labels[:80])


def test_blacklist_cuts_but_does_not_delete_the_neighbourhood(rows):
    plain = dbio.tl.peaks(as_intervals(rows))
    second = plain[(plain["chrom"] == "chr1") & (plain["start"] > 110_000)].iloc[0]
    blacklist = pd.DataFrame(
        {"chrom": ["chr1", "chr1"], "start": [49_990, second["start"] - 5000], "end": [50_010, second["start"] + 30]}
    )
    table = dbio.tl.peaks(as_intervals(rows), blacklist=blacklist)
    assert len(table) == len(plain) - 1
    row = table[(table["chrom"] == "chr1") & (table["start"] > 110_000)].iloc[0]
    assert row["start"] == second["start"] + 30
    assert row["end"] == second["end"]
    assert row["start"] + row["peak"] == second["start"] + second["peak"]
    with pytest.raises(ValueError, match="no chromosome in common.*without the prefix"):
        dbio.tl.peaks(as_intervals(rows), blacklist=blacklist.assign(chrom="1"))
    with pytest.raises(KeyError, match="blacklist has no columns"):
        dbio.tl.peaks(as_intervals(rows), blacklist=blacklist[["chrom"]])


def test_no_reads_one_read_and_equal_reads_are_no_peaks(rows):
    with pytest.warns(UserWarning, match="no reads"):
        table = dbio.tl.peaks(as_intervals(rows[:0]))
    assert len(table) == 0
    assert list(table.columns[:10]) == NARROWPEAK
    for mode in ("auto", "narrow", "broad", "macs"):
        assert len(dbio.tl.peaks(as_intervals(rows[:1]), mode=mode)) == 0
    copies = pd.concat([rows[:1]] * 500)
    assert len(dbio.tl.peaks(as_intervals(copies))) == 0
    assert len(dbio.tl.peaks(as_intervals(copies), duplicates=None)) == 1
    flat = as_intervals(simulate(8, peaks={}))
    assert len(dbio.tl.peaks(flat)) == 0


def test_peak_at_the_end_of_a_chromosome_and_reads_past_it(rows):
    edge = pd.DataFrame({"chrom": "chr2", "start": np.full(80, 99_900) - np.arange(80), "end": 99_990 + np.arange(80)})
    table = dbio.tl.peaks(as_intervals(pd.concat([rows, edge])))
    assert (table["end"] <= table["chrom"].map(SIZES)).all()
    assert ((table["chrom"] == "chr2") & (table["end"] > 99_900)).any()


def test_huge_depth_in_one_place_loses_nothing(rows):
    heap = pd.DataFrame({"chrom": "chr1", "start": np.full(200_000, 120_000), "end": 120_200})
    table = dbio.tl.peaks(as_intervals(pd.concat([rows, heap])), duplicates=None)
    assert np.isfinite(table[["pValue", "qValue", "fold"]]).all().all()
    assert table["fragments"].max() > 199_000


def test_names_of_chromosomes_that_do_not_match_are_explained(rows):
    control = as_intervals(simulate(3, peaks={})).rename_chromosomes({"chr1": "1", "chr2": "2"})
    with pytest.raises(ValueError, match="no chromosome in common.*without the prefix"):
        dbio.tl.peaks(as_intervals(rows), control=control)
    with pytest.raises(ValueError, match="control .* holds no reads"):
        dbio.tl.peaks(as_intervals(rows), control=as_intervals(rows[:0]))
    odd = as_intervals(rows).rename_chromosomes({"chr1": "HLA-A*01:01|x y", "chr2": "µ"})
    assert set(dbio.tl.peaks(odd)["chrom"]) == {"HLA-A*01:01|x y", "µ"}


def test_many_contigs_are_quick():
    rng = np.random.default_rng(0)
    contigs = np.array([f"contig{number}" for number in range(20_000)])
    chosen = rng.integers(0, len(contigs), 60_000)
    start = rng.integers(0, 600, len(chosen))
    intervals = Intervals.from_arrays(contigs[chosen], start, start + 150)
    assert len(dbio.tl.peaks(intervals)) == 0


def test_streamed_path_loads_no_jax(rows, tmp_path):
    path = tmp_path / "x.bedpe"
    rows.to_csv(path, sep="\t", header=False, index=False)
    code = (
        "import sys, diffbio_sc as dbio; t = dbio.tl.peaks(sys.argv[1], genome_size=300000); import json;"
        "print(json.dumps([len(t), sorted({'jax', 'anndata', 'scanpy', 'flax'} & set(sys.modules))]))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    number, loaded = json.loads(out)
    assert number == 5
    assert loaded == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "wide"}, ValueError, "mode must be one of"),
        ({"qvalue": 0}, ValueError, "qvalue must lie"),
        ({"bin_size": 0}, ValueError, "bin_size must be"),
        ({"duplicates": 0}, ValueError, "duplicates must be"),
        ({"fragment_length": -1}, ValueError, "fragment_length must be above 0"),
        ({"layer": "counts"}, ValueError, "layer is for an AnnData"),
        ({"copy": True}, ValueError, "copy=True is for an AnnData"),
        ({"groupby": "cell_type"}, TypeError, "mapping from barcode to label"),
        ({"replicate": True}, ValueError, "several samples"),
        ({"control": {"a": 1}}, TypeError, "control must be one file"),
    ],
)
def test_bad_arguments_are_named(rows, options, error, message):
    with pytest.raises(error, match=message):
        dbio.tl.peaks(as_intervals(rows), **options)


def test_bad_sources_are_named(rows):
    with pytest.raises(TypeError, match="data must be an AnnData"):
        dbio.tl.peaks(3)
    with pytest.raises(ValueError, match="empty mapping"):
        dbio.tl.peaks({})
    with pytest.raises(KeyError, match="control has none for sample 'a'"):
        dbio.tl.peaks({"a": as_intervals(rows)}, control={"b": as_intervals(rows)})


# AnnData


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
            other.X.T, obs=other.var, var=other.obs, layers={k: v.T for k, v in other.layers.items()}, uns=other.uns
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
        back.reset_index(drop=True).astype({"chrom": str, "name": str, "strand": str}),
        tables["T|NK"].astype({"chrom": str, "name": str, "strand": str}),
    )
    assert len(dbio.get.peaks(stored)) == sum(map(len, tables.values()))


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
    with pytest.raises(TypeError, match="groupby must name a column"):
        dbio.tl.peaks(bins, groupby={"a": "b"})
    with pytest.raises(ValueError, match="replicate needs groupby"):
        dbio.tl.peaks(bins.copy(), replicate="donor")
    uneven = bins[:, ::2].copy()
    uneven.var["end"] = uneven.var["end"].to_numpy() + np.arange(uneven.n_vars) % 2 * 10
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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


def test_enrichment_is_measured_on_the_sequences_of_most_reads(monkeypatch):
    """As many as hold what is enough, in their order; all of them where there is less."""
    bounds = np.array([[0, 10], [10, 60], [60, 60], [60, 100]])
    columns = np.zeros(100, np.int32)
    lengths = np.full(4, 1000)
    sample = interval_peaks.Sample(
        columns, columns, bounds, list("abcd"), lengths, 100, 50.0, True, columns, columns, bounds
    )
    for enough, expected in ((1, [1]), (50, [1]), (51, [1, 3]), (91, [0, 1, 3]), (1000, [0, 1, 2, 3])):
        monkeypatch.setattr(interval_peaks, "ENRICHMENT_INTERVALS", enough)
        np.testing.assert_array_equal(interval_peaks._well_covered(sample), expected)
