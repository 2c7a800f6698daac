"""BED and narrowPeak files, chromosome sizes."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from diffbio_sc.io import Intervals, read_bed, read_chrom_sizes, read_narrowpeak, write_bed, write_narrowpeak


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


def test_narrowpeak_of_coordinates_alone(tmp_path):
    write_narrowpeak(_peaks()[["chrom", "start", "end"]], tmp_path / "a")
    assert (tmp_path / "a").read_text().splitlines()[1] == "chrX\t200\t1200\tpeak_2\t0\t.\t-1\t-1\t-1\t-1"


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
    with pytest.raises(FileNotFoundError, match="neither a file.*hg38"):
        read_chrom_sizes("hg99")
