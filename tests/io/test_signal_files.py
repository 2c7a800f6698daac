"""bedGraph and bigWig: round trips, and what an independent reader finds."""

from __future__ import annotations

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio
from diffbio_sc.io import Intervals, Signal, read_bedgraph, read_bigwig, write_bigwig

SIZES = {"chr2": 5000, "chr10": 300, "1": 40}


def _signal(rng):
    arrays = {}
    for name, size in SIZES.items():
        borders = np.unique(rng.integers(0, size, 2 * (size // 10)))
        borders = borders[: len(borders) // 2 * 2].reshape(-1, 2)
        arrays[name] = (borders[:, 0], borders[:, 1], rng.normal(0, 100, len(borders)).round(3))
    return arrays


def _dense(arrays, size, missing=np.nan):
    values = np.full(size, missing)
    for start, end, value in zip(*arrays, strict=True):
        values[start:end] = value
    return values


def test_bedgraph_is_what_pandas_reads(tmp_path):
    values = [
        "1",
        "-2.5",
        "1e-05",
        "3.25E+3",
        "0.1",
        "+7",
        "123456789.125",
        ".5",
        "5.",
        "12345678901234567890",
        "1e-300",
    ]
    text = "".join(f"chr1\t{10 * i}\t{10 * i + 5}\t{value}\n" for i, value in enumerate(values))
    path = tmp_path / "a.bedGraph"
    path.write_bytes(gzip.compress(b"track type=bedGraph\n" + text.encode()))
    signal = read_bedgraph(path)
    np.testing.assert_allclose(signal["chr1"].value, [float(value) for value in values], rtol=4e-16)
    assert signal["chr1"].start.tolist() == [10 * i for i in range(len(values))]
    path.write_text("chr1\t0\t5\tnan\nchr1\t5\t6\tNaN\n")
    assert np.isnan(read_bedgraph(path)["chr1"].value).all()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("chr1\t0\t5\n", "3 columns"),
        ("chr1\t0\t5\tx\n", "no number in column 4"),
        ("chr1\t0\t5\t1e\n", "no number in column 4"),
        ("chr1\t0\t5\t1\nchr1\t4\t6\t2\n", "chr1:0-5 and chr1:4-6 overlap"),
    ],
)
def test_bad_bedgraph(tmp_path, text, problem):
    path = tmp_path / "a.bedGraph"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_bedgraph(path)


def test_empty_bedgraph(tmp_path):
    path = tmp_path / "a.bedGraph"
    path.write_text("")
    with pytest.warns(UserWarning, match="no intervals"):
        assert len(read_bedgraph(path)) == 0


def test_bin_means_against_base_by_base():
    arrays = _signal(np.random.default_rng(0))
    signal = Signal(arrays, sizes=SIZES)
    for name, size in SIZES.items():
        dense = _dense(arrays[name], size, 0.0)
        for width in (1, 7, 1000):
            expected = [dense[first : first + width].mean() for first in range(0, size, width)]
            np.testing.assert_allclose(signal.bin_means(name, width, size), expected, rtol=1e-12, atol=1e-12)


def test_missing_values_of_a_signal_are_none():
    signal = Signal({"a": ([0, 10], [10, 20], [np.nan, 2.0])})
    np.testing.assert_array_equal(signal.bin_means("a", 10, 30), [0.0, 2.0, 0.0])
    assert dbio.pp.coverage(signal, bin_size=20).X.toarray().tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("runs", "problem"),
    [
        (([0.5], [9], [1.0]), "starts of s on a must be whole numbers"),
        (([0], [3_000_000_000], [1.0]), "ends of s on a must be whole numbers from 0"),
        (([-1], [9], [1.0]), "starts of s on a must be whole numbers from 0"),
        (([5], [5], [1.0]), "end after their start, found a:5-5"),
        (([5, 0], [9, 4], [1.0, 2.0]), "sorted by start, but a:5-9 and a:0-4"),
        (([0, 5], [4, 9], [1.0]), "a start, an end and a value for each run"),
    ],
)
def test_runs_that_are_none(runs, problem):
    with pytest.raises(ValueError, match=problem):
        Signal({"a": runs}, name="s")


def test_signal_beyond_its_chromosome():
    with pytest.raises(ValueError, match="up to a:9, the sizes say 8"):
        Signal({"a": ([1], [9], [1.0])}, sizes={"a": 8})


class TestBigWig:
    """Needs pyBigWig, which is also the independent reader."""

    @pytest.fixture(autouse=True)
    def library(self):
        self.library = pytest.importorskip("pyBigWig")

    def test_round_trip(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diffbio_sc.io._read_bigwig._WINDOW", 90)  # runs cross the borders of windows
        monkeypatch.setattr("diffbio_sc.io._write_bigwig._RUNS", 7)
        arrays = _signal(np.random.default_rng(1))
        path = tmp_path / "a.bw"
        write_bigwig(arrays, path, chrom_sizes=SIZES)
        with self.library.open(str(path)) as handle:
            assert handle.chroms() == SIZES
            for name, size in SIZES.items():
                np.testing.assert_allclose(handle.values(name, 0, size), _dense(arrays[name], size), rtol=1e-6)
        signal = read_bigwig(path)
        assert signal.sizes == SIZES
        for name in SIZES:
            np.testing.assert_array_equal(signal[name].start, arrays[name][0])
            np.testing.assert_array_equal(signal[name].end, arrays[name][1])
            np.testing.assert_allclose(signal[name].value, arrays[name][2], rtol=1e-6)
        for chosen in (["1"], "1"):
            assert read_bigwig(path, chromosomes=chosen).chromosomes == ["1"]
        with pytest.raises(ValueError, match="prefix 'chr'"):
            read_bigwig(path, chromosomes=["2", "chr1"])

    def test_pile_up_of_fragments(self, tmp_path):
        rng = np.random.default_rng(2)
        start = rng.integers(0, 200, 300)
        end = start + rng.integers(1, 60, 300)
        write_bigwig(
            Intervals.from_arrays(["chr10"] * 300, start, end), tmp_path / "a.bw", chrom_sizes=SIZES, scale=0.5
        )
        depth = [np.sum((start <= position) & (position < end)) for position in range(300)]
        with self.library.open(str(tmp_path / "a.bw")) as handle:
            np.testing.assert_allclose(np.nan_to_num(handle.values("chr10", 0, 300)), np.array(depth) / 2)

    @pytest.mark.parametrize("side", ["var", "obs"])
    def test_track_of_an_anndata(self, tmp_path, side):
        bins = pd.DataFrame({"chrom": ["b", "a", "a"], "start": [0, 20, 0], "end": [10, 40, 20]}, index=["x", "y", "z"])
        values = np.array([[1, 2, 3], [0, 0.5, 4]])
        tracks = pd.DataFrame(index=["s", "t"])
        made = ad.AnnData(sp.csr_matrix((2, 3)), obs=tracks, var=bins, layers={"scores": values})
        made = made if side == "var" else made.T
        path = tmp_path / "a.bw"
        write_bigwig(made, path, track="t", layer="scores")
        with self.library.open(str(path)) as handle:
            assert handle.chroms() == {"b": 10, "a": 40}
            np.testing.assert_allclose(np.nan_to_num(handle.values("a", 0, 40)), [4.0] * 20 + [0.5] * 20)
            assert handle.intervals("b") is None
        with pytest.raises(ValueError, match="2 tracks; pass track="):
            write_bigwig(made, path)
        with pytest.raises(KeyError, match="no track 'u'"):
            write_bigwig(made, path, track="u")
        with pytest.raises(KeyError, match="no 'nothing'"):
            write_bigwig(made, path, track="s", layer="nothing")

    def test_sizes_that_do_not_fit(self, tmp_path):
        signal = {"chr1": (np.array([0]), np.array([50]), np.array([1.0]))}
        with pytest.raises(ValueError, match="up to chr1:50, its size is given as 40"):
            write_bigwig(signal, tmp_path / "a.bw", chrom_sizes={"chr1": 40})
        with pytest.raises(ValueError, match="prefix 'chr'"):
            write_bigwig(signal, tmp_path / "a.bw", chrom_sizes={"1": 40})

    def test_no_values_is_a_file_and_a_signal(self, tmp_path):
        path = tmp_path / "a.bw"
        write_bigwig(Signal({"chr1": ([], [], [])}, sizes={"chr1": 50}), path)
        signal = read_bigwig(path)
        assert len(signal) == 0
        assert signal.sizes == {"chr1": 50}
        np.testing.assert_array_equal(signal.bin_means("chr1", 10, 50), np.zeros(5))
        with pytest.raises(ValueError, match="has no chromosomes: .* pass chrom_sizes="):
            write_bigwig(Signal({}), tmp_path / "b.bw")
        write_bigwig(Intervals.from_arrays([], [], []), path, chrom_sizes=SIZES)
        assert read_bigwig(path).chromosomes == list(SIZES)

    def test_a_failed_writer_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.bw"
        write_bigwig({"chr1": ([0], [5], [1.0])}, path)
        before = path.read_bytes()
        for source in (
            {"chr0": ([0], [4], [1.0]), "chr1": ([0], [50], [1.0])},
            Intervals.from_arrays(["chr0", "chr1"], [0, 0], [4, 50]),
        ):
            with pytest.raises(ValueError, match="up to chr1:50"):
                write_bigwig(source, path, chrom_sizes={"chr0": 9, "chr1": 40})
            assert path.read_bytes() == before
            assert [file.name for file in tmp_path.iterdir()] == ["a.bw"]

    def test_sources_that_are_none(self, tmp_path):
        with pytest.raises(TypeError, match="found the path 'a.bedGraph': read it first"):
            write_bigwig("a.bedGraph", tmp_path / "a.bw")
        with pytest.raises(TypeError, match="found DataFrame"):
            write_bigwig(pd.DataFrame(), tmp_path / "a.bw")
        with pytest.raises(ValueError, match="scale must be a number"):
            write_bigwig({"a": ([0], [5], [1.0])}, tmp_path / "a.bw", scale=np.nan)
        with pytest.raises(FileNotFoundError, match="no folder"):
            write_bigwig({"a": ([0], [5], [1.0])}, tmp_path / "absent" / "a.bw")

    @pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "uint64", "float16", "float32", "float64", "bool"])
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("side", ["var", "obs"])
    def test_tracks_of_any_type(self, tmp_path, kind, sparse, side):
        if sparse and kind == "float16":
            pytest.skip("scipy has no sparse half precision")
        bins = pd.DataFrame({"chrom": ["a", "a"], "start": [0, 10], "end": [10, 20]}, index=["x", "y"])
        values = np.array([[1, 0], [1, 1]]).astype(kind)
        values = values if side == "var" else values.T
        tables = {"var": bins} if side == "var" else {"obs": bins}
        adata = ad.AnnData(sp.csr_matrix(values) if sparse else values, **tables)
        write_bigwig(adata, tmp_path / "a.bw", track="0")
        assert read_bigwig(tmp_path / "a.bw")["a"].end.tolist() == [10]

    def test_files_of_another_kind(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_bigwig(tmp_path / "a.bw")
        (tmp_path / "a.bw").write_text("text")
        with pytest.raises(ValueError, match="not a bigWig file"):
            read_bigwig(tmp_path / "a.bw")


def test_without_pybigwig_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyBigWig", None)
    (tmp_path / "a.bw").write_text("")
    with pytest.raises(ImportError, match=r"pip install 'diffbio-sc\[genome\]'"):
        read_bigwig(tmp_path / "a.bw")
