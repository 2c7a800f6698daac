"""Coverage in bins against loops over fragments and bins."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc._anndata.genome_axis import read_genome_axis
from diffbio_sc.io import Intervals, Signal

SIZES = {"chr2": 103, "chr1": 260}


def _fragments(rng, rows=300, **options):
    chromosomes = rng.choice(list(SIZES), rows)
    start = rng.integers(0, 80, rows)
    return Intervals.from_arrays(chromosomes, start, start + rng.integers(1, 23, rows), **options)


def _cells(rng, rows=300):
    barcodes = [f"c{number}" for number in range(6)]
    return _fragments(rng, rows, cell_code=rng.integers(0, 6, rows), barcodes=barcodes)


def _brute_force(frame, width, ends, sizes=SIZES):
    counts = []
    for name, size in sizes.items():
        rows = frame[frame["chrom"] == name]
        for first in range(0, size, width):
            last = min(first + width, size)
            total = 0
            for start, end, strand in zip(
                rows["start"], rows["end"], rows.get("strand", ["."] * len(rows)), strict=True
            ):
                if ends == "fragment":
                    total += start < last and end > first
                elif ends == "midpoint":
                    total += first <= (start + end) // 2 < last
                elif strand == ".":
                    total += (first <= start < last) + (first <= end - 1 < last)
                else:
                    total += first <= (start if strand == "+" else end - 1) < last
            counts.append(total)
    return counts


@pytest.mark.parametrize("ends", ["fragment", "cut_sites", "midpoint"])
@pytest.mark.parametrize("width", [1, 10])
def test_bins_against_loops(ends, width):
    rng = np.random.default_rng(0)
    fragments = _cells(rng)
    frame = fragments.to_frame()
    whole = dbio.pp.coverage(fragments, bin_size=width, ends=ends, chrom_sizes=SIZES)
    np.testing.assert_array_equal(whole.X.toarray(), [_brute_force(frame, width, ends)])
    assert whole.X.dtype == np.int32
    assert whole.X.has_canonical_format
    assert whole.obs["n_fragments"].tolist() == [300]
    axis = read_genome_axis(whole)
    assert axis.chromosomes == list(SIZES)
    assert axis.width == width
    assert axis.table.groupby("chrom", observed=True)["end"].max().to_dict() == SIZES
    assert len(axis.sequences) == 2
    cells = dbio.pp.coverage(fragments, bin_size=width, ends=ends, chrom_sizes=SIZES, groupby="barcode")
    expected = [_brute_force(frame[frame["barcode"] == name], width, ends) for name in cells.obs_names]
    np.testing.assert_array_equal(cells.X.toarray(), expected)
    assert cells.obs["n_fragments"].tolist() == frame["barcode"].value_counts()[cells.obs_names].tolist()


def test_groups_and_chosen_barcodes():
    fragments = _cells(np.random.default_rng(1))
    frame = fragments.to_frame()
    labels = pd.Series(
        pd.Categorical(["B", "A", None, "B", "A"], categories=["B", "A", "unused"]),
        index=["c0", "c1", "c2", "c3", "gone"],
    )
    groups = dbio.pp.coverage(fragments, bin_size=20, groupby=labels, chrom_sizes=SIZES)
    assert list(groups.obs_names) == ["B", "A"]
    expected = [_brute_force(frame[frame["barcode"].isin(cells)], 20, "fragment") for cells in (["c0", "c3"], ["c1"])]
    np.testing.assert_array_equal(groups.X.toarray(), expected)
    chosen = dbio.pp.coverage(
        fragments, bin_size=20, groupby="barcode", barcodes=["c4", "gone", "c1"], chrom_sizes=SIZES
    )
    assert list(chosen.obs_names) == ["c4", "gone", "c1"]
    expected = [_brute_force(frame[frame["barcode"] == name], 20, "fragment") for name in chosen.obs_names]
    np.testing.assert_array_equal(chosen.X.toarray(), expected)


def test_single_reads_with_and_without_extension():
    rng = np.random.default_rng(2)
    reads = _fragments(rng, strand=rng.choice([-1, 1], 300), paired=False, sizes=SIZES)
    frame = reads.to_frame()
    cuts = dbio.pp.coverage(reads, bin_size=10, ends="cut_sites")
    np.testing.assert_array_equal(cuts.X.toarray(), [_brute_force(frame, 10, "cut_sites")])
    forward = frame["strand"] == "+"
    longer = pd.DataFrame(
        {
            "chrom": frame["chrom"].astype(str),
            "start": np.where(forward, frame["start"], np.maximum(frame["end"] - 50, 0)),
            "end": np.where(forward, frame["start"] + 50, frame["end"]),
        }
    )
    extended = dbio.pp.coverage(reads, bin_size=10, extension=50)
    np.testing.assert_array_equal(extended.X.toarray(), [_brute_force(longer, 10, "fragment")])
    assert extended.uns["coverage"]["params"]["extension"] == 50


@pytest.mark.parametrize("ends", ["fragment", "cut_sites", "midpoint"])
def test_fragments_with_counts_count_that_often(ends):
    rng = np.random.default_rng(9)
    frame = _cells(rng, 100).to_frame()
    count = rng.integers(1, 4, 100)
    arrays = {
        "chromosomes": frame["chrom"].astype(str),
        "start": frame["start"],
        "end": frame["end"],
        "cell_code": frame["barcode"].cat.codes,
    }
    barcodes = list(frame["barcode"].cat.categories)
    weighted = Intervals.from_arrays(**arrays, count=count, barcodes=barcodes)
    repeated = Intervals.from_arrays(**{key: np.repeat(x, count) for key, x in arrays.items()}, barcodes=barcodes)
    for groupby in ("sample", "barcode"):
        found, expected = (
            dbio.pp.coverage(fragments, bin_size=10, ends=ends, groupby=groupby, chrom_sizes=SIZES)
            for fragments in (weighted, repeated)
        )
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def test_duplicates_and_blacklist(tmp_path):
    fragments = _fragments(np.random.default_rng(3), 2000)
    (tmp_path / "b.bed").write_text("chr1\t20\t30\nchrM\t1\t2\n")
    found = dbio.pp.coverage(
        fragments, bin_size=10, remove_duplicates=True, blacklist=tmp_path / "b.bed", chrom_sizes=SIZES
    )
    frame = fragments.to_frame().drop_duplicates()
    blocked = (frame["chrom"] == "chr1") & (frame["start"] < 30) & (frame["end"] > 20)
    np.testing.assert_array_equal(found.X.toarray(), [_brute_force(frame[~blocked], 10, "fragment")])
    # What overlaps the blacklist goes as a whole; its neighbourhood keeps all other fragments.
    assert found[:, "chr1:10-20"].X.toarray()[0, 0] > 0
    (tmp_path / "b.bed").write_text("1\t20\t30\n")
    with pytest.raises(ValueError, match="b.bed have no chromosome in common.*prefix 'chr'"):
        dbio.pp.coverage(fragments, blacklist=tmp_path / "b.bed")


def test_samples_of_files(tmp_path):
    rng = np.random.default_rng(4)
    samples = {}
    for name in ("treatment", "control"):
        frame = _fragments(rng, 50).to_frame()
        frame.to_csv(tmp_path / f"{name}.bedpe", sep="\t", header=False, index=False)
        samples[name] = frame
    paths = {name: tmp_path / f"{name}.bedpe" for name in samples}
    found = dbio.pp.coverage(paths, bin_size=10, chrom_sizes=SIZES)
    assert list(found.obs_names) == ["treatment", "control"]
    expected = [_brute_force(frame, 10, "fragment") for frame in samples.values()]
    np.testing.assert_array_equal(found.X.toarray(), expected)
    # Without sizes the bins reach to the last end of any sample.
    free = dbio.pp.coverage(paths, bin_size=10)
    ends = pd.concat(samples.values()).astype({"chrom": str}).groupby("chrom")["end"].max()
    assert free.var.groupby("chrom", observed=True)["end"].max().to_dict() == ends.to_dict()
    one_sided = {"a": Intervals.from_arrays(["1"], [5], [9]), "b": Intervals.from_arrays(["chr1"], [5], [9])}
    with pytest.raises(ValueError, match="prefix 'chr'"):
        dbio.pp.coverage(one_sided)


def test_cells_of_several_samples_have_names_of_both():
    rng = np.random.default_rng(5)
    found = dbio.pp.coverage({"a": _cells(rng), "b": _cells(rng)}, groupby="barcode", bin_size=50)
    assert found.obs_names.is_unique
    assert set(found.obs_names[:6]) == {f"a:c{number}" for number in range(6)}
    assert found.obs["sample"].value_counts().to_dict() == {"a": 6, "b": 6}


def test_what_lies_outside_the_sizes_is_counted_in_a_warning():
    fragments = Intervals.from_arrays(["chr1", "chr1", "chrM"], [5, 95, 1], [9, 99, 4])
    with pytest.warns(UserWarning, match="1 intervals on chromosomes without a size and 1 past the end"):
        found = dbio.pp.coverage(fragments, bin_size=50, chrom_sizes={"chr1": 90})
    assert found.X.toarray().tolist() == [[1, 0]]
    assert found.obs["n_fragments"].tolist() == [1]


def test_a_signal_gives_means():
    signal = Signal({"chr1": ([0, 15], [10, 20], [2.0, 4.0])}, sizes={"chr1": 25})
    found = dbio.pp.coverage(signal, bin_size=10)
    np.testing.assert_allclose(found.X.toarray(), [[2.0, 2.0, 0.0]])
    assert found.X.dtype == np.float32


def test_no_fragments_is_a_result(tmp_path):
    (tmp_path / "a.bed").write_text("")
    with pytest.warns(UserWarning, match="no intervals"):
        found = dbio.pp.coverage(tmp_path / "a.bed", bin_size=100, chrom_sizes=SIZES)
    assert found.X.nnz == 0
    assert found.shape == (1, 5)
    with pytest.warns(UserWarning, match="no intervals"):
        assert dbio.pp.coverage(tmp_path / "a.bed").shape == (1, 0)


def test_results_are_stored(tmp_path):
    found = dbio.pp.coverage(_cells(np.random.default_rng(6)), bin_size=10, groupby="barcode")
    found.write_h5ad(tmp_path / "a.h5ad")
    found.write_zarr(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bin_size": 0}, "bin_size must be a whole number of at least 1 base, found 0"),
        ({"ends": "both"}, "ends must be"),
        ({"groupby": "cell_type"}, "groupby must be 'sample', 'barcode' or a mapping"),
        ({"groupby": {"x": "A"}}, r"none of the 1 barcodes asked for: \['x'\].*suffixes"),
        ({"groupby": {"x": None}}, "a label to at least one barcode"),
        ({"barcodes": ["x"]}, "groupby='barcode'"),
        ({"extension": 100}, "whole fragments already"),
        ({"chrom_sizes": {"1": 1000}}, "prefix 'chr'"),
    ],
)
def test_bad_arguments(options, problem):
    with pytest.raises(ValueError, match=problem):
        dbio.pp.coverage(_cells(np.random.default_rng(7)), **options)


def test_grouping_without_barcodes():
    with pytest.raises(ValueError, match="no barcodes to group by"):
        dbio.pp.coverage(_fragments(np.random.default_rng(8)), groupby="barcode")
    with pytest.raises(ValueError, match="empty mapping"):
        dbio.pp.coverage({})
