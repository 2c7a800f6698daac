"""Inputs of peak calling that make a result meaningless, or nearly: refused, or called and warned of."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from planted_peaks import SIZES, TRUTH, as_bins, as_intervals, found, simulate
from scipy import stats

import diffbio_sc as dbio
from diffbio_sc.io import Intervals


@pytest.fixture(scope="module")
def rows():
    return simulate()


def tiles(counts, width):
    start = width * np.arange(counts.shape[-1])
    var = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + width}, index=start.astype(str))
    return ad.AnnData(np.atleast_2d(counts).astype(np.float32), obs=pd.DataFrame(index=["a"]), var=var)


def test_peaks_in_bins_half_as_wide_as_the_background_window_are_found():
    """40 planted places in bins of 5 kb: a window of 10 kb would be filled by each of them."""
    rng = np.random.default_rng(0)
    mean = np.full(2000, 20.0)
    places = np.arange(25, 2000, 50)
    mean[places] *= 6
    adata = tiles(rng.poisson(mean), 5000)
    with pytest.warns(UserWarning, match="wider than peaks of narrow marks"):
        dbio.tl.peaks(adata, mode="narrow")
    called = np.flatnonzero(adata.layers["peak_calls"][0])
    assert set(places) <= set(called)
    assert len(called) <= len(places) + 1


def test_bins_with_gaps_between_them_are_refused(rows):
    bins = as_bins({"a": rows})
    with pytest.raises(ValueError, match="100% of the bins lie in pieces shorter than 10000 bp"):
        dbio.tl.peaks(bins[:, ::2].copy())
    missing = np.ones(bins.n_vars, bool)
    missing[1000:1800:20] = False
    with pytest.warns(UserWarning, match="of the bins lie in pieces shorter"):
        dbio.tl.peaks(bins[:, missing].copy())


def test_short_contigs_are_no_gaps():
    start = np.tile(np.arange(0, 300, 100), 50)
    chrom = np.repeat([f"contig{number}" for number in range(50)], 3)
    var = pd.DataFrame({"chrom": chrom, "start": start, "end": start + 100}, index=np.arange(150).astype(str))
    counts = np.random.default_rng(0).poisson(2.0, (1, 150)).astype(np.float32)
    adata = ad.AnnData(counts, obs=pd.DataFrame(index=["a"]), var=var)
    dbio.tl.peaks(adata)
    assert len(adata.uns["peaks"]["tables"]["a"]) == 0


def test_impossible_sizes_of_the_genome_are_refused(rows):
    with pytest.raises(ValueError, match="genome_size is 10 base pairs, but reads lie on chromosomes of 3e"):
        dbio.tl.call_peaks(as_intervals(rows), genome_size=10)
    with pytest.raises(ValueError, match="genome_size must be a number of base pairs above 0, such as 2.9e9"):
        dbio.tl.call_peaks(as_intervals(rows), genome_size="hs")
    with pytest.raises(ValueError, match="duplicates must be a positive whole number of equal fragments"):
        dbio.tl.call_peaks(as_intervals(rows), duplicates="all")
    for key in ("genome_size", "fragment_length", "duplicates", "bin_size", "qvalue"):
        for value in (np.inf, np.nan, -1, "5", True):
            with pytest.raises(ValueError, match=f"{key} must"):
                dbio.tl.call_peaks(as_intervals(rows), **{key: value})


@pytest.mark.filterwarnings("error::UserWarning")
def test_controls_that_tell_little_are_refused_or_warned_of(rows):
    control = simulate(3, peaks={})
    few = control.sample(2, random_state=0)
    with pytest.raises(ValueError, match="holds 2 reads, 0.067 for every 10 kb"):
        dbio.tl.call_peaks(as_intervals(rows), control=as_intervals(few, name="input"))
    with pytest.warns(UserWarning, match=r"the control input is 3\.\d% as deep as intervals"):
        dbio.tl.call_peaks(as_intervals(rows), control=as_intervals(control.sample(100, random_state=0), name="input"))
    part = control[control["chrom"] == "chr1"]
    with pytest.warns(UserWarning, match=r"has no reads on 1 chromosomes of intervals, such as \['chr2'\]"):
        dbio.tl.call_peaks(as_intervals(rows), control=as_intervals(part, name="input"))
    bins = as_bins({"a": rows, "input": part})
    with pytest.warns(UserWarning, match=r"'input' has no counts on 1 chromosomes of 'a', such as \['chr2'\]"):
        dbio.tl.peaks(bins, control="input")
    bins.X[1] = np.random.default_rng(0).binomial(bins.X[0].astype(int), 0.02)
    with pytest.warns(UserWarning, match=r"'input' is \d\.\d% as deep as 'a'"):
        dbio.tl.peaks(bins, control="input")


def test_counts_of_fragments_are_used(rows):
    """A fragment read with its count is as good as so many fragments."""
    count = np.random.default_rng(0).integers(1, 4, len(rows))
    counted = as_intervals(rows, count=count)
    repeated = as_intervals(rows.loc[rows.index.repeat(count)])
    for mode in ("narrow", "macs"):
        expected = dbio.tl.call_peaks(repeated, duplicates=None, mode=mode)
        pd.testing.assert_frame_equal(dbio.tl.call_peaks(counted, mode=mode), expected)
    pd.testing.assert_frame_equal(
        dbio.tl.call_peaks(counted, duplicates=1), dbio.tl.call_peaks(as_intervals(rows), duplicates=1)
    )


def test_barcodes_found_are_counted_not_labels(rows):
    cells = [f"cell{number}" for number in range(120)]
    code = np.random.default_rng(0).integers(0, 120, len(rows))
    intervals = as_intervals(rows, cell_code=code, barcodes=cells)
    labels = pd.Series("T", index=[*cells[:3], *(f"other{number}" for number in range(500))])
    with (
        pytest.warns(UserWarning, match="intervals has 3 of the 503 barcodes asked for"),
        pytest.warns(UserWarning, match="fewer than 50 cells.*'T'"),
    ):
        dbio.tl.call_peaks(intervals, groupby=labels)


def test_blacklist_is_matched_with_the_chromosomes_of_the_data(rows):
    """A blacklist of a chromosome without peaks changes nothing, one of chromosomes that are not there is told."""
    flat = simulate(8, peaks={"chr1": [50_000]})
    region = pd.DataFrame({"chrom": ["chr2"], "start": [10], "end": [500]})
    expected = dbio.tl.call_peaks(as_intervals(flat))
    assert set(expected["chrom"]) == {"chr1"}
    pd.testing.assert_frame_equal(dbio.tl.call_peaks(as_intervals(flat), blacklist=region), expected)
    bins = as_bins({"a": flat})
    dbio.tl.peaks(bins, blacklist=region)
    assert len(bins.uns["peaks"]["tables"]["a"]) == 1
    with pytest.warns(UserWarning, match="no region of the blacklist lies on a chromosome of intervals"):
        dbio.tl.call_peaks(as_intervals(flat), blacklist=region.assign(chrom="chrM"))


def test_both_cut_sites_of_a_fragment_in_one_bin_are_one_fragment():
    """On a flat null of cut sites the p-values of bins of 500 bp are those of fragments: 1e-3 is 1e-3."""
    rng = np.random.default_rng(0)
    size = 4_000_000
    start = np.sort(rng.integers(0, size - 300, 60_000))
    fragments = Intervals.from_arrays(["chr1"] * len(start), start, start + 200, sizes={"chr1": size})
    adata = dbio.pp.coverage(fragments, bin_size=500, chrom_sizes={"chr1": size}, ends="cut_sites")
    dbio.tl.peaks(adata, mode="narrow")
    p = 10.0 ** -adata.layers["peak_log10p"][0]
    # Counts are discrete: the share below a threshold is the threshold at most, up to chance.
    for threshold in (0.05, 0.01, 1e-3):
        share = (p <= threshold).mean()
        assert share <= threshold + 3 * np.sqrt(threshold / len(p))
    naive = stats.poisson.sf(np.asarray(adata.X.todense()).ravel() - 1, adata.X.mean())
    assert (naive <= 1e-3).mean() > 3e-3


@pytest.mark.parametrize("kind", [*"bBhHiIqQ", "float16", "float32", "float64", "bool"])
def test_counts_of_every_type_give_the_peaks_of_float64(rows, kind):
    bins = as_bins({"a": rows})
    bins.X = np.minimum(bins.X, 1 if kind == "bool" else 100)
    expected = bins.copy()
    expected.X = bins.X.astype(np.float64)
    dbio.tl.peaks(expected, mode="narrow")
    other = bins.copy()
    other.X = bins.X.astype(kind)
    dbio.tl.peaks(other, mode="narrow")
    for name in ("peak_scores", "peak_log10p", "peak_calls"):
        np.testing.assert_allclose(other.layers[name], expected.layers[name], rtol=1e-6)


@pytest.mark.parametrize("key", ["a/b", "", ".."])
def test_keys_that_files_cannot_hold_are_refused(rows, key):
    bins = as_bins({"a": rows})
    with pytest.raises(ValueError, match="key_added"):
        dbio.tl.peaks(bins, key_added=key)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("x.bw", TypeError, "is a signal, not fragments"),
        ("x.bedGraph.gz", TypeError, "is a signal, not fragments"),
        ("x.cram", ValueError, "is a CRAM file"),
        ("x.sam", ValueError, "is a SAM file"),
    ],
)
def test_files_that_hold_no_fragments_are_named(source, error, message):
    with pytest.raises(error, match=message):
        dbio.tl.call_peaks(source)


def test_objects_for_the_other_function_are_sent_there(rows):
    with pytest.raises(TypeError, match="dbio.tl.call_peaks takes files"):
        dbio.tl.peaks("x.bed")
    with pytest.raises(TypeError, match="dbio.tl.peaks calls the peaks of counts in bins"):
        dbio.tl.call_peaks(as_bins({"a": rows}))


def test_one_choice_of_mark_for_one_experiment(rows, caplog):
    """Two samples with sharp peaks and one with a domain: all narrow, and the one that looks otherwise is named."""
    rng = np.random.default_rng(0)
    size = SIZES["chr1"]
    middle = np.concatenate([rng.integers(300, size - 300, 2000), rng.integers(60_000, 140_000, 8000)])
    domain = pd.DataFrame({"chrom": "chr1", "start": middle - 100, "end": middle + 100})
    samples = {"a": rows, "b": simulate(1), "domain": domain}
    with pytest.warns(UserWarning, match=r"calls all samples as narrow marks, but \['domain'\]"):
        tables = dbio.tl.call_peaks({name: as_intervals(one) for name, one in samples.items()})
    assert {mark for table in tables.values() for mark in table["mark"]} == {"narrow"}
    assert found(tables["a"], TRUTH) == (5, 0)
    bins = as_bins(samples)
    with pytest.warns(UserWarning, match=r"calls all samples as narrow marks, but \['domain'\]"):
        dbio.tl.peaks(bins)
    with caplog.at_level("WARNING"):
        table = dbio.tl.call_peaks(as_intervals(domain))
    assert "called as broad marks" in caplog.text
    assert set(table["mark"]) == {"broad"}
    assert len(table) == 1


def domain_rows(seed=0, background=2000, inside=8000):
    """Fragments of one domain of 80 kb on a flat background."""
    rng = np.random.default_rng(seed)
    size = SIZES["chr1"]
    middle = np.concatenate([rng.integers(300, size - 300, background), rng.integers(60_000, 140_000, inside)])
    return pd.DataFrame({"chrom": "chr1", "start": middle - 100, "end": middle + 100})


def told(caplog):
    """What a call says at the default verbosity."""
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return texts


def test_the_choice_of_mark_is_told_once_at_the_default_verbosity_and_recorded(rows, caplog):
    control = as_intervals(simulate(9, peaks={}))
    samples = {"a": as_intervals(rows), "b": as_intervals(simulate(1))}
    table = dbio.tl.call_peaks(samples["a"], control=control)
    assert set(table["mark"]) == {"narrow"}
    (line,) = told(caplog)
    assert re.match(r"mode='auto': called as narrow marks \(breadth -?0\.\d\d, contrast \d+\.\d\)\.", line)
    for options in ({}, {"replicate": True}):
        dbio.tl.call_peaks(samples, control=control, **options)
        (line,) = told(caplog)
        assert line.startswith("mode='auto': called as narrow marks (2 of 2 samples look so).")
    dbio.tl.call_peaks({"a": samples["a"]}, control=control, replicate=True)
    assert len(told(caplog)) == 1
    dbio.tl.call_peaks(samples, control=control, mode="narrow")
    assert not told(caplog)  # what was asked for needs no line
    bins = as_bins({"a": rows, "b": simulate(1), "input": simulate(9, peaks={})})
    dbio.tl.peaks(bins, control="input")
    (line,) = told(caplog)
    assert line.startswith("mode='auto': called as narrow marks (2 of 2 samples look so).")
    assert bins.uns["peaks"]["mark"] == "narrow"
    dbio.tl.peaks(bins, control="input", mode="broad")
    assert bins.uns["peaks"]["mark"] == "broad"
    assert not told(caplog)


@pytest.mark.parametrize("mode", ["auto", "broad"])
@pytest.mark.parametrize("way", ["one", "several", "replicates", "bins"])
def test_broad_marks_without_a_control_say_what_cannot_be_known(mode, way):
    """Once for all samples; neither with a control nor with a blacklist, nor for narrow marks."""
    samples = {name: domain_rows(seed) for seed, name in enumerate(("a", "b", "input"))}
    given = {name: as_intervals(samples[name]) for name in ("a", "b")}

    def call(**options):
        if way == "bins":
            return dbio.tl.peaks(as_bins(samples), **options)
        source = {"one": given["a"]}.get(way, given)
        if "control" in options:
            options["control"] = as_intervals(samples["input"])
        return dbio.tl.call_peaks(source, replicate=way == "replicates", **options)

    with pytest.warns(UserWarning, match="without a control or a blacklist: repeats.*cannot tell which") as caught:
        call(mode=mode)
    (message,) = [text for text in (str(one.message) for one in caught) if text.startswith("broad marks")]
    names = {"one": 1, "several": 2, "replicates": 2, "bins": 3}[way]
    assert message.count("'") == 2 * names
    blacklist = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [1000]})
    for options in ({"control": "input"}, {"blacklist": blacklist}, {"mode": "narrow"}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="broad marks")
            call(**{"mode": mode, **options})


def test_narrow_marks_without_a_control_get_a_line(rows, caplog):
    dbio.tl.call_peaks({"a": as_intervals(rows), "b": as_intervals(simulate(1))}, mode="narrow")
    (line,) = told(caplog)
    assert line == "Peaks of ['a', 'b'] have neither a control nor a blacklist: repeats look like peaks."
    dbio.tl.call_peaks(as_intervals(rows), mode="macs")
    assert not told(caplog)


def test_smooth_unevenness_is_no_domain_where_broad_is_asked_for():
    """A log-normal rate, smooth over 50 kb, with a ratio of its two levels of about 2: none of it is called broad."""
    rng = np.random.default_rng(3)
    size = 8_000_000
    rate = np.convolve(rng.normal(size=size // 1000), np.hanning(121), mode="same")
    rate = np.exp(0.45 * rate / rate.std())
    middle = 1000 * rng.choice(len(rate), 80_000, p=rate / rate.sum()) + rng.integers(0, 1000, 80_000)
    start = np.clip(middle - 100, 0, size - 200)
    uneven = dbio.io.Intervals.from_arrays(np.full(len(start), "chr1"), start, start + 200, sizes={"chr1": size})
    with pytest.warns(UserWarning, match="cannot tell which"):
        assert len(dbio.tl.call_peaks(uneven, mode="broad")) == 0


def test_a_fragment_length_for_fragments_is_not_used_in_silence(rows):
    with pytest.warns(UserWarning, match="fragment_length is not used: intervals holds fragments of known length"):
        table = dbio.tl.call_peaks(as_intervals(rows), fragment_length=500)
    pd.testing.assert_frame_equal(table, dbio.tl.call_peaks(as_intervals(rows)))
