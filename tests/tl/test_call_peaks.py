from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from planted_peaks import NARROWPEAK, SIZES, TRUTH, as_intervals, found, simulate
from scipy import stats

import diffbio_sc as dbio
from diffbio_sc.engines import interval_peaks
from diffbio_sc.io import Intervals


@pytest.fixture(scope="module")
def rows():
    return simulate()


def test_planted_peaks_are_found_in_fragments(rows):
    table = dbio.tl.call_peaks(as_intervals(rows))
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
    expected = dbio.tl.call_peaks(as_intervals(rows), genome_size=300_000)
    result = dbio.tl.call_peaks(path, genome_size=300_000)
    pd.testing.assert_frame_equal(result, expected)


def test_order_of_lines_does_not_matter(rows):
    shuffled = rows.sample(frac=1, random_state=0)
    order = ["chrom", "start"]
    left, right = (dbio.tl.call_peaks(as_intervals(one)).sort_values(order) for one in (rows, shuffled))
    pd.testing.assert_frame_equal(
        left.drop(columns="name").reset_index(drop=True), right.drop(columns="name").reset_index(drop=True)
    )


def test_control_takes_away_what_it_shows_and_its_depth_does_not_matter(rows):
    for depth in (1.0, 10.0):
        control = as_intervals(simulate(3, depth=depth, peaks={"chr1": [50_000]}))
        table = dbio.tl.call_peaks(as_intervals(rows), control=control, duplicates=None)
        assert found(table, {"chr1": [120_000, 160_000], "chr2": [30_000, 80_000]}) == (4, 0)


def test_control_without_reads_on_a_chromosome_leaves_the_genome_level(rows):
    control = simulate(3, peaks={})
    table = dbio.tl.call_peaks(as_intervals(rows), control=as_intervals(control[control["chrom"] == "chr1"]))
    assert found(table)[0] == 5


def test_macs_mode_has_the_tail_and_background_of_macs(rows):
    intervals = as_intervals(rows)
    table = dbio.tl.call_peaks(intervals, mode="macs", genome_size=300_000)
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
    table = dbio.tl.call_peaks(intervals, fragment_length=190)
    assert found(table) == (5, 0)
    guessed = dbio.tl.call_peaks(intervals)
    assert found(guessed, within=100)[0] == 5
    few = as_intervals(reads[:5], strand=np.where(plus, 1, -1)[:5], paired=False)
    with pytest.warns(UserWarning, match="too few reads"):
        assert len(dbio.tl.call_peaks(few)) == 0


def test_replicates_are_pooled_and_their_support_counted():
    weak = {"chr1": [50_000, 120_000], "chr2": [30_000]}
    samples = {"r1": as_intervals(simulate(5, peaks=weak)), "r2": as_intervals(simulate(6, peaks=TRUTH))}
    table = dbio.tl.call_peaks(samples, replicate=True)
    assert isinstance(table, pd.DataFrame)
    assert found(table)[0] == 5
    summit = table["start"] + table["peak"]
    for chrom, places in TRUTH.items():
        for place in places:
            row = table[(table["chrom"] == chrom) & (abs(summit - place) < 60)].iloc[0]
            assert row["n_replicates"] == (2 if place in weak[chrom] else 1)
    both = dbio.tl.call_peaks(samples)
    assert list(both) == ["r1", "r2"]
    assert found(both["r1"], weak) == (3, 0)


@pytest.mark.parametrize("duplicates", ["auto", 1])
def test_pooled_replicates_keep_equal_fragments_of_different_cells(rows, duplicates):
    generator = np.random.default_rng(0)
    every = pd.concat([rows, rows], ignore_index=True)  # each fragment in two cells
    code, replicate = generator.integers(0, 20, len(every)), generator.integers(0, 2, len(every))
    code[len(rows) :] = (code[: len(rows)] + 1) % 20
    replicate[len(rows) :] = replicate[: len(rows)]
    whole = as_intervals(every, cell_code=20 * replicate + code, barcodes=[f"cell{n}" for n in range(40)])
    parts = {
        f"r{number}": as_intervals(
            every[replicate == number], cell_code=code[replicate == number], barcodes=[f"cell{n}" for n in range(20)]
        )
        for number in range(2)
    }
    expected = dbio.tl.call_peaks(whole, mode="narrow", duplicates=duplicates)
    pooled = dbio.tl.call_peaks(parts, replicate=True, mode="narrow", duplicates=duplicates)
    once = dbio.tl.call_peaks(as_intervals(rows), mode="narrow")
    assert expected["fragments"].sum() > 1.9 * once["fragments"].sum()
    pd.testing.assert_frame_equal(pooled.drop(columns=["n_replicates", "name"]), expected.drop(columns="name"))


def test_a_barcode_is_a_cell_of_its_own_in_each_of_pooled_replicates(rows):
    one = as_intervals(rows, cell_code=np.zeros(len(rows), int), barcodes=["cell"])
    single = dbio.tl.call_peaks(one, mode="narrow", duplicates=1)
    pooled = dbio.tl.call_peaks({"r0": one, "r1": one}, replicate=True, mode="narrow", duplicates=1)
    pooled = pooled[pooled["n_replicates"] == 2]
    np.testing.assert_allclose(pooled["fragments"].sum(), 2 * single["fragments"].sum(), rtol=0.1)


def test_groups_of_barcodes(rows):
    other = simulate(7, peaks={"chr1": [70_000]})
    every = pd.concat([rows, other], ignore_index=True)
    code = np.concatenate([np.zeros(len(rows), int), np.ones(len(other), int)])
    rng = np.random.default_rng(0)
    cells = [f"{kind}{number}" for kind in "ab" for number in range(60)]
    intervals = as_intervals(every, cell_code=code * 60 + rng.integers(0, 60, len(every)), barcodes=cells)
    labels = pd.Series(["T/NK"] * 60 + ["B"] * 60, index=cells)
    tables = dbio.tl.call_peaks(intervals, groupby=labels)
    assert set(tables) == {"T/NK", "B"}
    assert found(tables["T/NK"]) == (5, 0)
    assert found(tables["B"], {"chr1": [70_000]}) == (1, 0)
    with pytest.warns(UserWarning, match="fewer than 50 cells.*'B'"):
        dbio.tl.call_peaks(intervals, groupby=labels[:80])


@pytest.mark.parametrize("duplicates", ["auto", 1, None])
def test_equal_fragments_of_different_cells_count_in_a_group_too(rows, duplicates):
    cells = [f"cell{number}" for number in range(60)]
    # Of every fragment two in one cell and two in others.
    every = pd.concat([rows] * 4, ignore_index=True)
    code = np.random.default_rng(0).integers(0, 60, len(rows))
    intervals = as_intervals(
        every, cell_code=np.concatenate([code, code, (code + 1) % 60, (code + 2) % 60]), barcodes=cells
    )
    group = dbio.tl.call_peaks(intervals, groupby=dict.fromkeys(cells, "all"), duplicates=duplicates)["all"]
    alone = dbio.tl.call_peaks(intervals, duplicates=duplicates)
    pd.testing.assert_frame_equal(group.drop(columns="name"), alone.drop(columns="name"))
    of_pseudobulk = dbio.tl.call_peaks(
        dbio.pp.pseudobulk(intervals, groupby=dict.fromkeys(cells, "all"))["all"], duplicates=duplicates
    )
    pd.testing.assert_frame_equal(of_pseudobulk.drop(columns="name"), alone.drop(columns="name"))


def test_blacklist_cuts_but_does_not_delete_the_neighbourhood(rows):
    plain = dbio.tl.call_peaks(as_intervals(rows))
    second = plain[(plain["chrom"] == "chr1") & (plain["start"] > 110_000)].iloc[0]
    blacklist = pd.DataFrame(
        {"chrom": ["chr1", "chr1"], "start": [49_990, second["start"] - 5000], "end": [50_010, second["start"] + 30]}
    )
    table = dbio.tl.call_peaks(as_intervals(rows), blacklist=blacklist)
    assert len(table) == len(plain) - 1
    row = table[(table["chrom"] == "chr1") & (table["start"] > 110_000)].iloc[0]
    assert row["start"] == second["start"] + 30
    assert row["end"] == second["end"]
    assert row["start"] + row["peak"] == second["start"] + second["peak"]
    with pytest.raises(ValueError, match="no chromosome in common.*without the prefix"):
        dbio.tl.call_peaks(as_intervals(rows), blacklist=blacklist.assign(chrom="1"))
    with pytest.raises(KeyError, match="blacklist has no columns"):
        dbio.tl.call_peaks(as_intervals(rows), blacklist=blacklist[["chrom"]])


def test_no_reads_one_read_and_equal_reads_are_no_peaks(rows):
    with pytest.warns(UserWarning, match="no reads"):
        table = dbio.tl.call_peaks(as_intervals(rows[:0]))
    assert len(table) == 0
    assert list(table.columns[:10]) == NARROWPEAK
    for mode in ("auto", "narrow", "broad", "macs"):
        assert len(dbio.tl.call_peaks(as_intervals(rows[:1]), mode=mode)) == 0
    copies = pd.concat([rows[:1]] * 500)
    assert len(dbio.tl.call_peaks(as_intervals(copies))) == 0
    assert len(dbio.tl.call_peaks(as_intervals(copies), duplicates=None)) == 1
    flat = as_intervals(simulate(8, peaks={}))
    assert len(dbio.tl.call_peaks(flat)) == 0


def test_peak_at_the_end_of_a_chromosome_and_reads_past_it(rows):
    edge = pd.DataFrame({"chrom": "chr2", "start": np.full(80, 99_900) - np.arange(80), "end": 99_990 + np.arange(80)})
    table = dbio.tl.call_peaks(as_intervals(pd.concat([rows, edge])))
    assert (table["end"] <= table["chrom"].map(SIZES)).all()
    assert ((table["chrom"] == "chr2") & (table["end"] > 99_900)).any()


def test_huge_depth_in_one_place_loses_nothing(rows):
    heap = pd.DataFrame({"chrom": "chr1", "start": np.full(200_000, 120_000), "end": 120_200})
    table = dbio.tl.call_peaks(as_intervals(pd.concat([rows, heap])), duplicates=None)
    assert np.isfinite(table[["pValue", "qValue", "fold"]]).all().all()
    assert table["fragments"].max() > 199_000


def test_names_of_chromosomes_that_do_not_match_are_explained(rows):
    control = as_intervals(simulate(3, peaks={})).rename_chromosomes({"chr1": "1", "chr2": "2"})
    with pytest.raises(ValueError, match="no chromosome in common.*without the prefix"):
        dbio.tl.call_peaks(as_intervals(rows), control=control)
    with pytest.raises(ValueError, match="control .* holds no reads"):
        dbio.tl.call_peaks(as_intervals(rows), control=as_intervals(rows[:0]))
    odd = as_intervals(rows).rename_chromosomes({"chr1": "HLA-A*01:01|x y", "chr2": "µ"})
    assert set(dbio.tl.call_peaks(odd)["chrom"]) == {"HLA-A*01:01|x y", "µ"}


def test_many_contigs_are_quick():
    rng = np.random.default_rng(0)
    contigs = np.array([f"contig{number}" for number in range(20_000)])
    chosen = rng.integers(0, len(contigs), 60_000)
    start = rng.integers(0, 600, len(chosen))
    intervals = Intervals.from_arrays(contigs[chosen], start, start + 150)
    assert len(dbio.tl.call_peaks(intervals)) == 0


def test_streamed_path_loads_no_jax(rows, tmp_path):
    path = tmp_path / "x.bedpe"
    rows.to_csv(path, sep="\t", header=False, index=False)
    code = (
        "import sys, diffbio_sc as dbio; t = dbio.tl.call_peaks(sys.argv[1], genome_size=300000); import json;"
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
        ({"groupby": "cell_type"}, TypeError, "mapping from barcode to label"),
        ({"replicate": True}, ValueError, "several samples"),
        ({"control": {"a": 1}}, TypeError, "control must be one file"),
    ],
)
def test_bad_arguments_are_named(rows, options, error, message):
    with pytest.raises(error, match=message):
        dbio.tl.call_peaks(as_intervals(rows), **options)


def test_bad_sources_are_named(rows):
    with pytest.raises(TypeError, match="source must be dbio.io.Intervals"):
        dbio.tl.call_peaks(3)
    with pytest.raises(ValueError, match="empty mapping"):
        dbio.tl.call_peaks({})
    with pytest.raises(KeyError, match=r"control has none for samples \['a'\]"):
        dbio.tl.call_peaks({"a": as_intervals(rows)}, control={"b": as_intervals(rows)})


def test_enrichment_is_measured_on_the_sequences_of_most_reads(monkeypatch):
    """As many as hold what is enough, in their order; all of them where there is less."""
    counts = np.array([10, 50, 0, 40])
    for enough, expected in ((1, [1]), (50, [1]), (51, [1, 3]), (91, [0, 1, 3]), (1000, [0, 1, 2, 3])):
        monkeypatch.setattr(interval_peaks, "ENRICHMENT_INTERVALS", enough)
        np.testing.assert_array_equal(interval_peaks._well_covered(counts), expected)
