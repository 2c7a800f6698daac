"""ChromHMM's binarisation against a loop that follows its description."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import poisson

import diffbio_sc as dbio
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.genome.binarization import poisson_isf, presence_thresholds, smoothed_control


def threshold_by_loop(mean, tail, strict=False):
    """Add up the Poisson's terms until they exceed 1 - tail."""
    total, count = 0.0, 0
    while total <= 1 - tail:
        total += math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
        count += 1
    return max(count if strict else count - 1, 1)


@pytest.mark.parametrize("tail", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("strict", [False, True])
def test_thresholds_against_the_sum_of_terms(tail, strict):
    means = np.array([0.003, 0.08, 0.3, 1.0, 2.7, 14.0, 60.0])
    expected = [threshold_by_loop(mean, tail, strict) for mean in means]
    assert presence_thresholds(means, tail=tail, strict=strict).tolist() == expected


@pytest.mark.parametrize("tail", [1e-15, 1e-4, 0.05, 0.5, 0.999])
def test_quantiles_are_those_of_scipy(tail):
    mean = np.concatenate([[0.0, 1e-300], np.geomspace(1e-5, 1e6, 3000), np.arange(1.0, 300.0)])
    np.testing.assert_array_equal(poisson_isf(tail, mean), poisson.isf(tail, mean))


def test_the_tail_that_a_threshold_leaves():
    mean = np.linspace(0.05, 30, 200)
    loose, strict = (presence_thresholds(mean, tail=1e-3, strict=which) for which in (False, True))
    inside = loose > 1
    assert (poisson.sf(loose - 1, mean)[inside] > 1e-3).all()  # the tail with that count still holds it
    assert (poisson.sf(loose, mean)[inside] <= 1e-3).all()
    assert (poisson.sf(strict - 1, mean) <= 1e-3).all()


def test_fold_and_count_raise_thresholds():
    assert presence_thresholds(np.array([2.0, 50.0]), fold=2.5).tolist() == [9, 125]
    assert presence_thresholds(np.array([2.0, 50.0]), least=30).tolist() == [30, threshold_by_loop(50.0, 1e-4)]
    assert presence_thresholds(np.array([1e-9])).tolist() == [1]
    # A fold and a count must be met in full: 2.3 times 10.1 is 23.2, so 24 reads.
    assert presence_thresholds(np.array([10.1]), tail=0.5, fold=2.3).tolist() == [24]
    assert presence_thresholds(np.array([0.1]), least=6.5).tolist() == [7]


def test_the_control_is_averaged_within_sequences():
    counts = np.random.default_rng(0).poisson(3.0, 30).astype(float)
    sequences = [np.arange(12), np.arange(12, 13), np.arange(13, 30)[::-1]]
    found = smoothed_control(counts, sequences, flank=3, pseudocount=2)
    for sequence in sequences:
        for place, position in enumerate(sequence):
            window = sequence[max(place - 3, 0) : place + 4]
            assert found[position] == pytest.approx(np.mean(counts[window] + 2), rel=1e-12)


def counts_of(rng, bins=300, marks=3, depth=(0.3, 1.5, 4.0)):
    background = rng.poisson(np.array(depth)[:marks], (bins, marks))
    background[40:60] += rng.poisson(30.0, (20, marks))
    return background


def as_bins(values, axis="obs", kind=np.asarray, chromosomes=2, **columns):
    number = len(values)
    chrom = np.repeat([f"chr{index}" for index in range(chromosomes)], -(-number // chromosomes))[:number]
    start = 200 * pd.Series(chrom).groupby(chrom).cumcount().to_numpy()
    table = pd.DataFrame(
        {"chrom": chrom, "start": start, "end": start + 200, **columns}, index=[f"b{index}" for index in range(number)]
    )
    names = pd.DataFrame(index=[f"m{index}" for index in range(values.shape[1])])
    if axis == "obs":
        return ad.AnnData(kind(values), obs=table, var=names)
    return ad.AnnData(kind(values.T), obs=names, var=table)


@pytest.mark.parametrize("axis", ["obs", "var"])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_each_mark_has_the_threshold_of_its_mean(axis, kind):
    values = counts_of(np.random.default_rng(1))
    adata = as_bins(values, axis, kind)
    before = adata.copy()
    assert dbio.pp.binarize(adata) is None
    thresholds = [threshold_by_loop(mean, 1e-4) for mean in values.mean(0)]
    found = adata.layers["binary"] if axis == "obs" else adata.layers["binary"].T
    np.testing.assert_array_equal(found, values >= thresholds)
    assert found.dtype == np.uint8
    tracks = adata.uns["binary"]["report"]["tracks"]
    assert tracks["threshold"].tolist() == thresholds
    np.testing.assert_allclose(tracks["present"], found.mean(0))
    assert (abs(adata.X - before.X)).max() == 0


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_the_control_sets_local_thresholds(axis):
    rng = np.random.default_rng(2)
    values = counts_of(rng)
    values[100:150] += rng.poisson(8.0, (50, 3))  # copies in the genome: mark and control alike
    adata = as_bins(values, axis)
    dbio.pp.binarize(adata, control="m2", flank=2, pseudocount=1)
    control = values[:, 2].astype(float)
    expected = np.zeros(values.shape)
    for first, last in ((0, 150), (150, 300)):
        for position in range(first, last):
            window = control[max(first, position - 2) : min(last, position + 3)] + 1
            expected[position, :2] = window.mean()
    for mark in range(2):
        mean = expected[:, mark] * values[:, mark].mean() / expected[:, mark].mean()
        expected[:, mark] = [threshold_by_loop(one, 1e-4) for one in mean]
    expected[:, 2] = threshold_by_loop(control.mean(), 1e-4)
    found = adata.layers["binary"] if axis == "obs" else adata.layers["binary"].T
    np.testing.assert_array_equal(found, values >= expected)
    assert adata.uns["binary"]["report"]["tracks"]["control"].tolist() == ["m2", "m2", ""]


def test_cell_types_have_thresholds_of_their_own():
    rng = np.random.default_rng(3)
    deep, thin = counts_of(rng, depth=(20.0, 9.0, 4.0)), counts_of(rng)
    adata = as_bins(np.concatenate([deep, thin]), chromosomes=1)
    adata.obs["start"] = np.tile(200 * np.arange(300), 2)
    adata.obs["end"] = adata.obs["start"] + 200
    adata.obs["cell"] = np.repeat(["deep", "thin"], 300)
    dbio.pp.binarize(adata, cell_type_key="cell", key_added="calls")
    alone = as_bins(thin, chromosomes=1)
    dbio.pp.binarize(alone)
    np.testing.assert_array_equal(adata.layers["calls"][300:], alone.layers["binary"])
    assert adata.uns["calls"]["report"]["tracks"]["cell_type"].tolist() == ["deep"] * 3 + ["thin"] * 3
    with pytest.raises(ValueError, match="several cell types.*cell_type_key"):
        dbio.pp.binarize(adata)


def fragments(rng, places, number, **options):
    start = rng.choice(places, number) + rng.integers(0, 60, number)
    return Intervals.from_arrays(np.repeat("chr1", number), start, start + 150, **options)


def test_files_become_marks_in_one_call(tmp_path):
    rng = np.random.default_rng(4)
    peaks, all_over = np.arange(20_000, 24_000, 200), np.arange(0, 99_000, 200)
    marks = {}
    for name, number in (("H3K4me3", 600), ("H3K27ac", 300)):
        frame = pd.concat([fragments(rng, peaks, number).to_frame(), fragments(rng, all_over, 200).to_frame()])
        frame.to_csv(tmp_path / f"{name}.bedpe", sep="\t", header=False, index=False)
        marks[name] = tmp_path / f"{name}.bedpe"
    found = dbio.pp.binarize({"K562": marks}, chrom_sizes={"chr1": 100_000})
    assert found.shape == (500, 2)
    assert found.var_names.tolist() == ["H3K4me3", "H3K27ac"]
    counted = dbio.pp.coverage(marks, bin_size=200, chrom_sizes={"chr1": 100_000}, ends="midpoint")
    dbio.pp.binarize(counted)
    np.testing.assert_array_equal(found.X, counted.layers["binary"].T)
    assert found.X[100:120].mean() > 0.9
    assert found.X[:90].mean() < 0.02
    assert found.obs["cell_type"].tolist() == ["K562"] * 500
    against = dbio.pp.binarize(marks, chrom_sizes={"chr1": 100_000}, control=marks["H3K27ac"])
    dbio.pp.binarize(counted, control={"H3K4me3": "H3K27ac", "H3K27ac": "H3K27ac"})
    np.testing.assert_array_equal(against.X, counted.layers["binary"].T)
    assert against.X[:, 1].sum() < 0.3 * found.X[:, 1].sum()  # a track is no enrichment over itself
    assert against.uns["binary"]["report"]["tracks"]["control"].tolist() == ["H3K27ac.bedpe"] * 2


def test_single_reads_count_100_bases_along_their_strand():
    reads = Intervals.from_arrays(["chr1"] * 2, [150, 950], [186, 986], strand=[1, -1], paired=False)
    table = dbio.pp.binarize({"a": reads}, chrom_sizes={"chr1": 1200}, bin_size=100, poisson_threshold=0.2)
    # 150 + 100 = 250 and 986 - 100 = 886
    assert np.flatnonzero(table.X[:, 0]).tolist() == [2, 8]


def test_a_mark_that_one_cell_type_lacks_is_missing():
    rng = np.random.default_rng(5)
    places = np.arange(0, 9000, 200)
    one, two = fragments(rng, places, 100), fragments(rng, places, 100)
    found = dbio.pp.binarize({"A": {"x": one, "y": two}, "B": {"y": one}}, chrom_sizes={"chr1": 10_000})
    assert found.obs["cell_type"].tolist() == ["A"] * 50 + ["B"] * 50
    assert np.isnan(found.X[50:, 0]).all()
    assert not np.isnan(found.X[:50]).any()
    assert found.obs_names.is_unique


def test_silent_and_loud_marks_warn():
    values = np.zeros((50, 2))
    values[:, 1] = 1
    values[0, 1] = 2
    with pytest.warns(UserWarning, match=r"without a read are absent everywhere: \['m0'\]"):
        dbio.pp.binarize(as_bins(values))
    with pytest.warns(UserWarning, match=r"marks \['m1'\] are present in more than 50%"):
        adata = dbio.pp.binarize(as_bins(values), poisson_threshold=0.9, copy=True)
    assert adata.layers["binary"][:, 1].all()


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"poisson_threshold": 0}, ValueError, "poisson_threshold must be a number above 0 and below 1"),
        ({"fold_threshold": -1}, ValueError, "fold_threshold must be a number of at least 0"),
        ({"count_threshold": np.nan}, ValueError, "count_threshold must be"),
        ({"flank": 1.5}, ValueError, "flank must be a whole number"),
        ({"control": "input"}, KeyError, r"tracks \['input'\] that are not there; tracks: \['m0', 'm1', 'm2'\]"),
        ({"control": {"m9": "m0"}}, KeyError, "m9"),
        ({"control": 3}, TypeError, "control must be .* a mapping"),
        ({"layer": "x"}, KeyError, "no 'x'"),
        ({"cell_type_key": "x"}, KeyError, "no column 'x'"),
    ],
)
def test_bad_arguments(options, error, problem):
    adata = as_bins(counts_of(np.random.default_rng(6)))
    with pytest.raises(error, match=problem):
        dbio.pp.binarize(adata, **options)
    assert not adata.layers
    assert not adata.uns


@pytest.mark.parametrize(
    ("bad", "problem"), [(-1.0, "negative"), (0.5, "non-integer"), (np.nan, "missing or infinite"), (np.inf, "missing")]
)
def test_values_that_are_no_counts(bad, problem):
    values = counts_of(np.random.default_rng(7)).astype(float)
    values[5, 1] = bad
    with pytest.raises(ValueError, match=problem):
        dbio.pp.binarize(as_bins(values))


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_marks_of_one_name_are_refused(axis):
    adata = as_bins(counts_of(np.random.default_rng(9)), axis)
    if axis == "obs":
        adata.var_names = ["a", "b", "a"]
    else:
        adata.obs_names = ["a", "b", "a"]
    with pytest.raises(ValueError, match=r"names of marks must be unique.*\['a'\]"):
        dbio.pp.binarize(adata)


def test_backed_and_chunked_counts(tmp_path):
    da = pytest.importorskip("dask.array")
    adata = as_bins(counts_of(np.random.default_rng(10)))
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    chunked = adata.copy()
    chunked.X = da.from_array(adata.X, chunks=(64, 3))
    for each in (adata, backed, chunked):
        dbio.pp.binarize(each)
        np.testing.assert_array_equal(np.asarray(each.layers["binary"]), adata.layers["binary"])


def test_files_that_cannot_be_read_as_marks():
    with pytest.raises(TypeError, match="found str"):
        dbio.pp.binarize("a.bam")
    with pytest.raises(TypeError, match="without entries"):
        dbio.pp.binarize({})
    with pytest.raises(TypeError, match="found both"):
        dbio.pp.binarize({"A": {"x": "a.bam"}, "y": "b.bam"})
    reads = fragments(np.random.default_rng(0), [0, 200], 5)
    with pytest.raises(KeyError, match=r"control names marks \['y'\]"):
        dbio.pp.binarize({"x": reads}, control={"y": reads})


def test_results_are_stored(tmp_path):
    adata = as_bins(counts_of(np.random.default_rng(8)))
    dbio.pp.binarize(adata, control="m0")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
