"""BED and narrowPeak files, chromosome sizes."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from diffbio_sc.io import (
    Intervals,
    read_bed,
    read_chrom_sizes,
    read_narrowpeak,
    read_regions,
    write_bed,
    write_narrowpeak,
    write_segments,
)


def _peaks():
    return pd.DataFrame(
        {
            "chrom": ["chr1", "chrX"],
            "start": [10, 200],
            "end": [60, 1200],
            "name": ["a", "b"],
            "score": [1500.0, 3.4],
            "signalValue": [12.25, 1e6],
            "pValue": [333.125, np.nan],
            "qValue": [300.5, 0.25],
            "peak": [49, 0],
        }
    )


@pytest.mark.parametrize("name", ["a.narrowPeak", "a.narrowPeak.gz"])
def test_narrowpeak_round_trip(tmp_path, name):
    path = tmp_path / name
    write_narrowpeak(_peaks(), path)
    text = (gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()).decode()
    assert (
        text == "chr1\t10\t60\ta\t1000\t.\t12.25\t333.125\t300.5\t49\nchrX\t200\t1200\tb\t3\t.\t1000000\t-1\t0.25\t0\n"
    )
    found = read_narrowpeak(path)
    expected = _peaks().assign(score=[1000.0, 3.0], pValue=[333.125, np.nan], strand=".")[list(found.columns)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_names_of_peaks_hold_no_white_space(tmp_path):
    table = pd.DataFrame({"chrom": "chr1", "start": [10, 50], "end": [20, 60], "name": ["B cell_1", "T\u00a0 reg_1"]})
    write_narrowpeak(table, tmp_path / "peaks.narrowPeak")
    lines = (tmp_path / "peaks.narrowPeak").read_text().splitlines()
    assert [line.split()[3] for line in lines] == ["B_cell_1", "T_reg_1"]
    assert [len(line.split()) for line in lines] == [10, 10]


def test_narrowpeak_of_coordinates_alone(tmp_path):
    write_narrowpeak(_peaks()[["chrom", "start", "end"]], tmp_path / "a")
    assert (tmp_path / "a").read_text().splitlines()[1] == "chrX\t200\t1200\tpeak_2\t0\t.\t-1\t-1\t-1\t-1"


def write_states(table, path):
    write_segments(table.assign(state="E1") if hasattr(table, "assign") else table, path)


@pytest.mark.parametrize("writer", [write_bed, write_narrowpeak, write_states])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "float32", "float64", "Int64", "O"])
def test_places_are_written_in_full(tmp_path, writer, dtype):
    table = pd.DataFrame({"chrom": ["chr1", "chr1"], "start": [65672890, 0], "end": [65672992, 7]})
    table = table.astype({"start": dtype, "end": dtype})
    # A 32-bit float cannot hold all of these: what it holds is written.
    expected = table.astype({"start": "float64", "end": "float64"}).astype({"start": "int64", "end": "int64"})
    writer(table, tmp_path / "a")
    rows = [line.split("\t")[:3] for line in (tmp_path / "a").read_text().splitlines()]
    assert rows == expected.astype(str).to_numpy().tolist()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"start": [np.nan, 200]}, "'start' must be whole numbers.* the first is nan"),
        ({"start": [-1.0, 200]}, "'start' must be whole numbers.* the first is -1.0"),
        ({"end": [60.5, 1200]}, "'end' must be whole numbers.* the first is 60.5"),
        ({"end": [60, 3_000_000_000]}, "'end' must be whole numbers.* the first is 3000000000"),
        ({"end": [60, 200]}, "start < end, found 1 that do not; the first is chrX:200-200"),
        ({"start": ["x", "y"]}, "'start' must be whole numbers, found object: 'x'"),
        ({"chrom": ["chr1", None]}, "must name a chromosome, found 1 .* row 1"),
        ({"chrom": ["chr1\t2", "b"]}, "'chrom' must not hold tabs"),
        ({"name": ["a\nb", "b"]}, "'name' must not hold tabs or line ends"),
    ],
)
@pytest.mark.parametrize("writer", [write_bed, write_narrowpeak, write_states])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, writer, change, problem):
    if writer is write_states and "name" in change:
        pytest.skip("segments have no names")
    path = tmp_path / "a"
    with pytest.raises(ValueError, match=problem):
        writer(_peaks().assign(**change), path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(ValueError, match=problem):
        writer(_peaks().assign(**change), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("writer", [write_bed, write_narrowpeak])
def test_what_is_no_table_or_no_place(tmp_path, writer):
    with pytest.raises(TypeError, match="expected a table .*found str"):
        writer("a.bed", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent"):
        writer(_peaks(), tmp_path / "absent" / "a")


def test_other_columns_are_text_that_reads_back(tmp_path):
    table = pd.DataFrame(
        {
            "chrom": pd.Categorical(["a", "b", "b"]),
            "start": [1, 2, 3],
            "end": [5, 6, 7],
            "thickStart": [65672890.0, 12345678901.0, np.nan],
            "value": np.array([1 / 3, 1e-12, np.inf], np.float32),
            "name": ['say "x"', None, "p'q"],
            "group": pd.Categorical(["T", None, "B"]),
            "good": [True, False, True],
            "number": pd.array([1, None, 3], dtype="Int64"),
            "half": pd.array([0.5, None, 3], dtype="Float64"),
            "sure": pd.array([True, None, False], dtype="boolean"),
        }
    )
    write_bed(table, tmp_path / "a.bed")
    rows = [line.split("\t") for line in (tmp_path / "a.bed").read_text().splitlines()]
    assert [row[3] for row in rows] == ["65672890", "12345678901", "."]
    assert [np.float32(row[4]) for row in rows] == table["value"].tolist()
    assert [row[5] for row in rows] == ['say "x"', ".", "p'q"]
    assert [row[6:8] for row in rows] == [["T", "True"], [".", "False"], ["B", "True"]]
    assert [row[8:] for row in rows] == [["1", "0.5", "True"], [".", ".", "."], ["3", "3", "False"]]


def test_codes_for_what_is_missing(tmp_path):
    path = tmp_path / "a.narrowPeak"
    path.write_text("chr1\t1\t9\t.\t0\t.\t-1\t-1\t-1\t-1\nchr1\t2\t9\tb\t7\t.\t3\t2.5\t1\t4\n")
    found = read_narrowpeak(path)
    assert found["peak"].tolist() == [-1, 4]
    assert found["signalValue"].tolist() == [-1, 3]  # a value like any other: the format has no code for it
    for key, value in (("pValue", 2.5), ("qValue", 1.0)):
        assert np.isnan(found[key][0])
        assert found[key][1] == value
    write_narrowpeak(found, tmp_path / "b")
    assert (tmp_path / "b").read_text() == path.read_text()
    odd = found.assign(score=[np.nan, 3], peak=[np.nan, 4.0], strand=pd.Categorical([None, "+"]))
    write_narrowpeak(odd, tmp_path / "b")
    assert (tmp_path / "b").read_text().splitlines()[0].split("\t")[4:] == ["0", ".", "-1", "-1", "-1", "-1"]
    with pytest.raises(ValueError, match="'peak' must be whole numbers"):
        write_narrowpeak(found.assign(peak=[1.5, 2]), tmp_path / "b")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_narrowpeak_of_any_line_end_with_a_byte_order_mark(tmp_path, ending):
    write_narrowpeak(_peaks(), tmp_path / "a")
    text = "\ufeff" + (tmp_path / "a").read_text().replace("\n", ending)
    (tmp_path / "b").write_bytes(text.encode())
    pd.testing.assert_frame_equal(read_narrowpeak(tmp_path / "b"), read_narrowpeak(tmp_path / "a"))


def test_regions_of_a_file_a_table_or_as_they_are(tmp_path):
    write_narrowpeak(_peaks(), tmp_path / "a.narrowPeak")
    table = _peaks().assign(strand="?")  # further columns are not looked at
    for source in (table, tmp_path / "a.narrowPeak", str(tmp_path / "a.narrowPeak"), Intervals.from_frame(_peaks())):
        regions = read_regions(source)
        assert regions.to_frame()[["start", "end"]].to_numpy().tolist() == [[10, 60], [200, 1200]]
    with pytest.raises(KeyError, match=r"table of regions has no columns \['end'\]"):
        read_regions(table.drop(columns="end"))
    with pytest.raises(TypeError, match="the blacklist must be a BED file, a table .*found list"):
        read_regions([("chr1", 1, 2)], name="the blacklist")
    with pytest.raises(ValueError, match="the first is nan"):
        read_regions(table.assign(start=np.nan))


def test_no_peaks_is_a_file_and_a_table(tmp_path):
    write_narrowpeak(_peaks()[:0], tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""
    found = read_narrowpeak(tmp_path / "a")
    assert len(found) == 0
    assert list(found.columns) == [
        "chrom", "start", "end", "name", "score", "strand", "signalValue", "pValue", "qValue", "peak"
    ]  # fmt: skip
    assert found["start"].dtype == np.int64


def test_bad_peaks(tmp_path):
    with pytest.raises(KeyError, match=r"no columns \['end'\]"):
        write_narrowpeak(_peaks().drop(columns="end"), tmp_path / "a")
    with pytest.raises(ValueError, match="1 that do not; the first is 50 of chr1:10-60"):
        write_narrowpeak(_peaks().assign(peak=[50, 0]), tmp_path / "a")
    (tmp_path / "a").write_text("chr1\t1\t2\n")
    with pytest.raises(ValueError, match="found a line of 3 columns"):
        read_narrowpeak(tmp_path / "a")
    (tmp_path / "a").write_text("chr1\tx\t2\t.\t0\t.\t1\t1\t1\t1\n")
    with pytest.raises(ValueError, match="no number where one is expected"):
        read_narrowpeak(tmp_path / "a")


def test_bed_of_a_table_and_of_reads(tmp_path):
    path = tmp_path / "a.bed.gz"
    write_bed(_peaks()[["name", "end", "start", "chrom"]], path)
    assert gzip.decompress(path.read_bytes()) == b"chr1\t10\t60\ta\nchrX\t200\t1200\tb\n"
    reads = Intervals.from_arrays(["b", "a"], [5, 7], [9, 8], strand=[-1, 1], paired=False)
    write_bed(reads, path)
    assert gzip.decompress(path.read_bytes()) == b"b\t5\t9\t.\t0\t-\na\t7\t8\t.\t0\t+\n"
    assert read_bed(path)["b"].strand.tolist() == [-1]
    before = path.read_bytes()
    write_bed(reads, path)
    assert path.read_bytes() == before


# Total lengths of the nuclear chromosomes: chr1-22, X, Y of GRCh38 and GRCh37 (Genome Reference Consortium), chr1-19,
# X, Y of GRCm38, and the 16 chromosomes of S288C (12,157,105 with its mitochondrial 85,779).
@pytest.mark.parametrize(
    ("assembly", "chromosomes", "total"),
    [
        ("hg38", 24, 3_088_269_832),
        ("hg19", 24, 3_095_677_412),
        ("mm10", 21, 2_725_521_370),
        ("sacCer3", 16, 12_157_105 - 85_779),
    ],
)
def test_assemblies_add_up(assembly, chromosomes, total):
    sizes = read_chrom_sizes(assembly)
    assert (len(sizes), sum(sizes.values())) == (chromosomes, total)


def test_chromosome_sizes_of_a_file(tmp_path):
    path = tmp_path / "a.fai"
    path.write_text("chr1\t100\t5\t60\t61\nb\t7\t0\t0\t0\n")
    assert read_chrom_sizes(path) == {"chr1": 100, "b": 7}
    for text, problem in (("chr1\t-5\n", "positive whole number"), ("a 1\na 2\n", "occurs twice"), ("", "found none")):
        path.write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_chrom_sizes(path)
    for name, meant in (("hg99", ".*Did you mean 'hg19'"), ("GRCh38", ".*Did you mean 'hg38'"), ("x", "")):
        with pytest.raises(FileNotFoundError, match=f"'{name}' is neither a file.*hg38{meant}"):
            read_chrom_sizes(name)
    path.write_bytes(b"BAM\x01\xff\xfe")
    with pytest.raises(ValueError, match="not text of chromosome names"):
        read_chrom_sizes(path)


def test_chromosome_sizes_of_windows_and_of_tables(tmp_path):
    path = tmp_path / "a.sizes"
    for ending in ("\n", "\r\n", "\r"):
        path.write_bytes(f"\ufeffchr1\t100{ending}b\t7{ending}".encode())
        assert read_chrom_sizes(path) == {"chr1": 100, "b": 7}
    for sizes in (
        pd.Series({"chr1": 100, "b": 7}),
        pd.Series({"chr1": 100.0, "b": 7.0}),
        {"chr1": np.uint32(100), "b": 7},
    ):
        assert read_chrom_sizes(sizes) == {"chr1": 100, "b": 7}
    for wrong in (100.5, np.nan, 0, -1, 2**31, "x", None, True):
        with pytest.raises(ValueError, match="length of 'chr1' must be a positive whole number"):
            read_chrom_sizes({"chr1": wrong})
    for wrong in ([("chr1", 5)], 5):
        with pytest.raises(TypeError, match="a mapping from name to length, a file, or the name of an assembly"):
            read_chrom_sizes(wrong)
