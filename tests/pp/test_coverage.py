"""Coverage in bins against loops over fragments and bins."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest
from no_warnings import no_warnings

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


def test_duplicates_go_before_reads_are_extended():
    # Extended to 50 bases, the forward read at 10 and the reverse read that ends at 60 are one fragment, but two reads.
    reads = Intervals.from_arrays(["chr1"] * 3, [10, 10, 40], [30, 25, 60], strand=[1, 1, -1], paired=False)
    found = dbio.pp.coverage(reads, bin_size=100, extension=50, remove_duplicates=True, chrom_sizes={"chr1": 100})
    assert found.X.toarray().tolist() == [[2]]


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


@pytest.mark.parametrize("groupby", ["sample", "barcode"])
def test_cut_sites_are_shifted_as_tn5_cuts(groupby):
    rng = np.random.default_rng(11)
    fragments = _cells(rng)
    frame = fragments.to_frame()
    moved = frame.assign(start=frame["start"] + 4, end=frame["end"] - 5)
    moved = moved[moved["end"] > moved["start"]]
    found = dbio.pp.coverage(fragments, bin_size=1, ends="cut_sites", shift=(4, -5), chrom_sizes=SIZES, groupby=groupby)
    if groupby == "sample":
        expected = [_brute_force(moved, 1, "cut_sites")]
    else:
        expected = [_brute_force(moved[moved["barcode"] == name], 1, "cut_sites") for name in found.obs_names]
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert found.uns["coverage"]["params"]["shift"].tolist() == [4, -5]
    reads = Intervals.from_arrays(["chr1"] * 3, [10, 50, 90], [40, 80, 99], strand=[1, -1, 0], paired=False)
    counts = dbio.pp.coverage(reads, bin_size=1, ends="cut_sites", shift=(4, -5), chrom_sizes=SIZES)
    # Forward: the first base, 10, moves to 14; reverse: the last, 79, to 74; without strand either end, as it is.
    chr1 = counts[:, (counts.var["chrom"] == "chr1").to_numpy()]
    assert np.flatnonzero(chr1.X.toarray()[0]).tolist() == [14, 74, 90, 98]


def test_many_contigs_of_many_cells(monkeypatch):
    """Contigs are counted in batches; each batch border and each order of contigs gives the same."""
    rng = np.random.default_rng(12)
    names = [f"contig{number}" for number in range(60)]
    start = rng.integers(0, 50, 900)
    fragments = Intervals.from_arrays(
        rng.choice(names, 900),
        start,
        start + rng.integers(1, 30, 900),
        cell_code=rng.integers(0, 6, 900),
        barcodes=[f"c{number}" for number in range(6)],
    )
    sizes = dict.fromkeys(rng.permutation(names).tolist(), 80)
    whole = dbio.pp.coverage(fragments, bin_size=25, groupby="barcode", chrom_sizes=sizes)
    monkeypatch.setattr("diffbio_sc.engines.coverage._BATCH", 100)
    pieces = dbio.pp.coverage(fragments, bin_size=25, groupby="barcode", chrom_sizes=sizes)
    np.testing.assert_array_equal(pieces.X.toarray(), whole.X.toarray())
    assert pieces.X.has_canonical_format
    frame = fragments.to_frame()
    expected = [_brute_force(frame[frame["barcode"] == name], 25, "fragment", sizes) for name in whole.obs_names]
    np.testing.assert_array_equal(whole.X.toarray(), expected)


def test_samples_whose_chromosomes_come_in_another_order():
    parts = {
        "a": Intervals.from_arrays(["chr1", "chr2"], [5, 25], [9, 29], cell_code=[0, 1], barcodes=["x", "y"]),
        "b": Intervals.from_arrays(
            ["chr2", "chr1", "chr3"], [1, 31, 1], [5, 38, 2], cell_code=[0, 0, 0], barcodes=["x"]
        ),
    }
    for groupby in ("sample", "barcode"):
        found = dbio.pp.coverage(parts, bin_size=10, groupby=groupby)
        assert found.X.has_canonical_format
        table = found.to_df().loc[:, (found.X.sum(axis=0) > 0).A1]
        assert list(table.columns) == ["chr1:0-10", "chr1:30-38", "chr2:0-10", "chr2:20-29", "chr3:0-2"]
    assert table.to_numpy().tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 0, 1]]


def test_few_of_the_labelled_barcodes():
    fragments = _cells(np.random.default_rng(13))
    labels = {f"c{number}": "A" for number in range(3)} | {f"sample_c{number}": "B" for number in range(500)}
    message = r"3 of the 503 barcodes asked for; missing are \['sample_c0', .*has \['c0', "
    with pytest.warns(UserWarning, match=message):
        dbio.pp.coverage(fragments, groupby=labels)
    with pytest.warns(UserWarning, match=message):
        dbio.pp.pseudobulk(fragments, groupby=labels)
    with pytest.warns(UserWarning, match=message):
        dbio.pp.coverage(fragments, groupby="barcode", barcodes=list(labels))
    # Samples hold a part of the barcodes each; together they hold most.
    labels = {f"c{number}": "A" for number in range(6)} | {f"d{number}": "A" for number in range(6)}
    start = np.arange(12)
    other = Intervals.from_arrays(
        ["chr1"] * 12, start, start + 5, cell_code=np.arange(12) % 6, barcodes=[f"d{number}" for number in range(6)]
    )
    with no_warnings():
        dbio.pp.coverage({"a": fragments, "b": other}, groupby=labels)
    labels |= {f"e{number}": "A" for number in range(20)}
    with pytest.warns(UserWarning, match="source has 12 of the 32 barcodes"):
        dbio.pp.coverage({"a": fragments, "b": other}, groupby=labels)


def test_a_fragment_file_of_header_lines(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("# id=x\n")
    for groupby, rows in (("barcode", 0), ({"c0": "A", "c1": "B"}, 2), ("sample", 1)):
        with pytest.warns(UserWarning, match="no intervals"):
            found = dbio.pp.coverage(path, groupby=groupby, chrom_sizes=SIZES, bin_size=50)
        assert found.shape == (rows, 9)
        assert found.X.nnz == 0
    with pytest.warns(UserWarning, match="no intervals"):
        fragments = dbio.io.read_fragments(path)
    split = dbio.pp.pseudobulk(fragments, groupby={"c0": "A", "c1": "B"})
    assert {name: len(group) for name, group in split.items()} == {"A": 0, "B": 0}


def test_blacklists_of_every_kind(tmp_path):
    fragments = _fragments(np.random.default_rng(3), 500)
    table = pd.DataFrame({"chrom": pd.Categorical(["chr1"]), "start": [20.0], "end": [30.0]})
    (tmp_path / "b.bed").write_text("chr1\t20\t30\n")
    sources = [table, tmp_path / "b.bed", str(tmp_path / "b.bed"), Intervals.from_frame(table)]
    found = [dbio.pp.coverage(fragments, bin_size=10, blacklist=source, chrom_sizes=SIZES) for source in sources]
    for other in found[1:]:
        np.testing.assert_array_equal(other.X.toarray(), found[0].X.toarray())
    assert found[0][:, "chr1:20-30"].X.sum() == 0
    with pytest.raises(KeyError, match=r"the blacklist has no columns \['end'\]"):
        dbio.pp.coverage(fragments, blacklist=table.drop(columns="end"))
    with pytest.raises(TypeError, match="the blacklist must be a BED file, a table"):
        dbio.pp.coverage(fragments, blacklist=[("chr1", 20, 30)])


def test_files_of_signals(tmp_path):
    (tmp_path / "a.bedGraph").write_text("chr1\t0\t10\t2\nchr1\t15\t20\t4\n")
    expected = dbio.pp.coverage(dbio.io.read_bedgraph(tmp_path / "a.bedGraph"), bin_size=10)
    np.testing.assert_allclose(expected.X.toarray(), [[2.0, 2.0]])
    paths = [tmp_path / "a.bedGraph"]
    if importlib.util.find_spec("pyBigWig"):
        dbio.io.write_bigwig(dbio.io.read_bedgraph(paths[0]), tmp_path / "a.bw")
        paths.append(tmp_path / "a.bw")
    for path in paths:
        np.testing.assert_array_equal(dbio.pp.coverage(path, bin_size=10).X.toarray(), expected.X.toarray())
    with pytest.raises(
        ValueError, match=r"\['groupby', 'blacklist'\] need fragments or reads, but a.bedGraph is a signal"
    ):
        dbio.pp.coverage(paths[0], groupby="barcode", blacklist=Intervals.from_arrays(["chr1"], [1], [2]))


def test_reads_without_strand_count_at_both_ends(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("chr1\t5\t25\tx\t0\t.\nchr1\t40\t49\tx\t0\t.\n")
    found = dbio.pp.coverage(path, bin_size=10, ends="cut_sites")
    assert found.X.toarray().tolist() == [[1, 0, 1, 0, 2]]
    with pytest.raises(ValueError, match="a.bed have no strand"):
        dbio.pp.coverage(path, extension=100)


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
    with pytest.warns(UserWarning, match="1 interval on chromosomes without a size and 1 past the end"):
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
        ({"bin_size": 0}, "bin_size must be a whole number of base pairs of at least 1, found 0"),
        ({"ends": "both"}, "ends must be"),
        ({"groupby": "cell_type"}, "groupby must be 'sample', 'barcode', a mapping"),
        ({"groupby": {"x": "A"}}, r"none of the 1 barcodes asked for: \['x'\].*suffixes"),
        ({"groupby": {"x": None}}, "a label to at least one barcode"),
        ({"barcodes": ["x"]}, "groupby='barcode'"),
        ({"bin_size": 2.5}, "bin_size must be a whole number"),
        ({"bin_size": None}, "bin_size must be a whole number"),
        ({"shift": 4}, "shift must be two whole numbers"),
        ({"shift": (4, 0.5)}, "shift must be a whole number"),
        ({"extension": 0, "groupby": "sample"}, "extension must be a whole number of base pairs of at least 1"),
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


def test_sources_and_options_that_do_not_go_together(tmp_path):
    with pytest.raises(TypeError, match="a mapping of these by name, found DataFrame"):
        dbio.pp.coverage(pd.DataFrame())
    (tmp_path / "a.bed").write_text("chr1\t1\t5\n")
    with pytest.raises(ValueError, match="min_mapping_quality is for BAM files"):
        dbio.pp.coverage(tmp_path / "a.bed", min_mapping_quality=30)
    with pytest.raises(TypeError, match="groupby must map barcodes to labels .* found list"):
        dbio.pp.coverage(_cells(np.random.default_rng(7)), groupby=["c0"])
    with pytest.raises(TypeError, match="barcodes must be a list of barcodes, found the text 'c0'"):
        dbio.pp.coverage(_cells(np.random.default_rng(7)), groupby="barcode", barcodes="c0")
    with pytest.raises(ValueError, match="more than a matrix can hold; use wider bins"):
        dbio.pp.coverage(_cells(np.random.default_rng(7)), bin_size=1, chrom_sizes="hg38")
