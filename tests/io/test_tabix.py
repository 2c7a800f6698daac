"""Chromosomes of a bgzip file by its index, held to pysam's reading of the same index."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

import diffbio_sc as dbio
from diffbio_sc.io import tabix
from diffbio_sc.io.fragment_ranges import read_fragment_range, report_ranges

pysam = pytest.importorskip("pysam", reason="pysam writes the index and reads it for comparison")


def lines(seed=0, rows=9000):
    """Fragments of chromosomes whose names are not in the order of the alphabet, one of a single row."""
    rng = np.random.default_rng(seed)
    text = []
    for name, number in (("chr2", rows), ("chr10", rows // 3), ("tiny", 1), ("chr1", rows)):
        start = np.sort(rng.integers(0, 3_000_000, number))
        size, cell = rng.integers(30, 900, number), rng.integers(0, 500, number)
        text += [f"{name}\t{a}\t{a + b}\tcell{c}\t{1 + c % 4}\n" for a, b, c in zip(start, size, cell, strict=True)]
    return text


def write(path, text, *, csi=False, header="# id=sample\n# assembly=x\n"):
    with pysam.BGZFile(str(path), "wb") as file:
        file.write((header + "".join(text)).encode())
    pysam.tabix_index(str(path), preset="bed", csi=csi, force=True)
    return path


@pytest.fixture
def apart(monkeypatch):
    """Every chromosome a range of its own."""
    monkeypatch.setattr(tabix, "_LEAST_BYTES", 0)


def text_of(path, place):
    with tabix.open_range(path, place) as source:
        parts, target = [], bytearray(1 << 12)
        while count := source.readinto(memoryview(target)):
            parts.append(bytes(target[:count]))
        assert source.fraction() == 1.0
    return b"".join(parts).decode()


@pytest.mark.parametrize("csi", [False, True])
def test_ranges_are_the_lines_that_pysam_finds(tmp_path, apart, csi):
    path = write(tmp_path / "f.tsv.gz", lines(), csi=csi)
    ranges = tabix.indexed_ranges(path)
    assert [place.chromosomes for place in ranges] == [("chr2",), ("chr10",), ("tiny",), ("chr1",)]
    with pysam.TabixFile(str(path), index=f"{path}.{'csi' if csi else 'tbi'}") as file:
        for place in ranges:
            assert text_of(path, place).splitlines() == list(file.fetch(place.chromosomes[0]))


def test_small_chromosomes_are_read_together(tmp_path, monkeypatch):
    path = write(tmp_path / "f.tsv.gz", lines())
    (whole,) = tabix.indexed_ranges(path)
    assert whole.chromosomes == ("chr2", "chr10", "tiny", "chr1")
    monkeypatch.setattr(tabix, "_LEAST_BYTES", 60_000)
    names = [place.chromosomes for place in tabix.indexed_ranges(path)]
    assert names == [("chr2",), ("chr10", "tiny", "chr1")]
    assert text_of(path, whole) == "".join(lines())


def test_fragments_of_ranges_are_those_of_the_file(tmp_path, apart):
    text = lines()
    text.insert(5, "chr2\t7\t7\tcell1\t1\n")  # of length 0
    path = write(tmp_path / "f.tsv.gz", sorted(text[:9001], key=lambda line: int(line.split("\t")[1])) + text[9001:])
    with pytest.warns(UserWarning, match="1 interval of length 0 left out") as caught:
        whole = dbio.io.read_fragments(path)
    found = [read_fragment_range(path, place) for place in tabix.indexed_ranges(path)]
    assert [name for part, _ in found for name in part.chromosomes] == whole.chromosomes
    for part, _ in found:
        (name,) = part.chromosomes
        np.testing.assert_array_equal(part[name].start, whole[name].start)
        np.testing.assert_array_equal(part[name].end, whole[name].end)
        assert [part.barcodes[code] for code in part[name].cell_code] == [
            whole.barcodes[code] for code in whole[name].cell_code
        ]
    with pytest.warns(UserWarning, match="left out") as again:
        report_ranges(path, [counters for _, counters in found], len(whole))
    assert [str(one.message) for one in again] == [str(one.message) for one in caught]


def test_an_index_that_does_not_fit_is_not_used(tmp_path, caplog):
    path = write(tmp_path / "f.tsv.gz", lines())
    assert tabix.indexed_ranges(path) is not None
    index = tmp_path / "f.tsv.gz.tbi"
    good = index.read_bytes()

    def told(message):
        assert tabix.indexed_ranges(path) is None
        assert message in caplog.records[-1].message

    stamp = path.stat().st_mtime
    os.utime(index, (stamp - 10, stamp - 10))
    told("is older than its file")
    index.write_bytes(gzip.compress(b"no index"))
    told("cannot be read as an index")
    index.write_bytes(good[:100])
    told("cannot be read as an index")
    write(tmp_path / "other.tsv.gz", lines(1, 12_000))
    index.write_bytes((tmp_path / "other.tsv.gz.tbi").read_bytes())
    told("does not cover its file")
    # The file has grown, but the index is of before.
    grown = write(tmp_path / "f.tsv.gz", [*lines(), "chr4\t5\t9\tcell1\t1\n" * 90_000])
    index.write_bytes(good)
    told("does not cover its file")
    grown.write_bytes(grown.read_bytes()[:-28])  # without its last block
    index.touch()
    told("does not cover its file")
    index.unlink()
    assert tabix.indexed_ranges(path) is None


@pytest.mark.parametrize("left_out", [0, 1, 3])
def test_an_index_without_a_chromosome_is_not_used(tmp_path, monkeypatch, left_out):
    path = write(tmp_path / "f.tsv.gz", lines())
    ranges = tabix._read_index(f"{path}.tbi")
    monkeypatch.setattr(tabix, "_read_index", lambda index: ranges[:left_out] + ranges[left_out + 1 :])
    assert tabix.indexed_ranges(path) is None


def test_damage_is_an_error_that_names_the_file(tmp_path, apart):
    path = write(tmp_path / "f.tsv.gz", lines())
    first, *_ = tabix.indexed_ranges(path)
    data = bytearray(path.read_bytes())
    data[3000] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"f\.tsv\.gz \(from chr2 on\) cannot be decompressed"):
        text_of(path, first)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        text_of(path, first._replace(begin=first.begin + (5 << 16)))
    path.write_bytes(data[:2000])
    with pytest.raises(ValueError, match="cannot be decompressed"):
        text_of(path, first)
