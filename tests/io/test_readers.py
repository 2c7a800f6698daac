"""Readers of interval text against pandas and against files of every bad kind."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from no_warnings import no_warnings

from diffbio_sc.io import (
    Intervals,
    read_bam,
    read_bed,
    read_bedpe,
    read_bigwig,
    read_fragments,
    read_intervals,
    read_narrowpeak,
)

NAMES = ["chr1", "chr2", "HLA-A*01:01:01:01", "gi|123|ref", "5", "a b", "chrUn_é"]


def _fragments(rng, rows, names=NAMES, barcodes=40):
    start = rng.integers(0, 100_000, rows)
    return pd.DataFrame(
        {
            "chrom": rng.choice(names, rows),
            "start": start,
            "end": start + rng.integers(1, 800, rows),
            "barcode": [f"BC{code}-1" for code in rng.integers(0, barcodes, rows)],
            "count": rng.integers(1, 9, rows),
        }
    )


def _text(frame, columns=5):
    return frame.iloc[:, :columns].to_csv(sep="\t", header=False, index=False)


def _sorted(frame, columns):
    frame = frame[columns].astype({"chrom": str})
    if "barcode" in columns:
        frame = frame.astype({"barcode": str})
    return frame.sort_values(columns).reset_index(drop=True)


def _equal(intervals, frame, columns=("chrom", "start", "end")):
    columns = list(columns)
    found = _sorted(intervals.to_frame(), columns)
    pd.testing.assert_frame_equal(found, _sorted(frame, columns), check_dtype=False, check_column_type=False)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few lines, so that short files cross many of their borders."""
    monkeypatch.setattr("diffbio_sc.io._line_reader.BLOCK_BYTES", 512)


@pytest.mark.parametrize("order", ["grouped", "scattered"])
def test_fragments_are_what_pandas_reads(tmp_path, small_blocks, order):
    frame = _fragments(np.random.default_rng(0), 3000, barcodes=700)
    if order == "grouped":
        frame = frame.sort_values(["chrom", "start"], kind="stable")
    path = tmp_path / "fragments.tsv"
    path.write_text("# id=x\n# a comment\n" + _text(frame))
    fragments = read_fragments(path, use_counts=True)
    _equal(fragments, frame, ["chrom", "start", "end", "barcode", "count"])
    assert fragments.chromosomes == list(dict.fromkeys(frame["chrom"]))
    assert len(fragments) == 3000
    assert fragments.paired
    for chromosome in fragments:
        arrays = fragments[chromosome]
        assert (np.diff(arrays.start) >= 0).all()
        assert [array.dtype for array in arrays[:4]] == [np.int32] * 4
        assert arrays.strand is None
    assert fragments.total_length() == (frame["end"] - frame["start"]).sum()
    assert fragments.extent() == frame.groupby("chrom")["end"].max().to_dict()


def test_many_contigs_in_any_order(tmp_path):
    rng = np.random.default_rng(1)
    frame = _fragments(rng, 60_000, names=[f"unitig{number}" for number in range(20_000)])
    path = tmp_path / "contigs.tsv"
    path.write_text(_text(frame, 3))
    fragments = read_fragments(path)
    _equal(fragments, frame)
    assert fragments.chromosomes == list(dict.fromkeys(frame["chrom"]))


def test_compression_is_told_by_the_bytes_not_the_name(tmp_path):
    frame = _fragments(np.random.default_rng(2), 200)
    plain, packed = tmp_path / "plain.tsv.gz", tmp_path / "packed.tsv"
    plain.write_text(_text(frame))
    packed.write_bytes(gzip.compress(_text(frame).encode()))
    _equal(read_fragments(plain), frame)
    _equal(read_fragments(packed), frame)


def test_gzip_of_several_members_as_bgzip_writes(tmp_path):
    frame = _fragments(np.random.default_rng(3), 200)
    lines = _text(frame).encode()
    path = tmp_path / "members.tsv.gz"
    path.write_bytes(b"".join(gzip.compress(lines[first : first + 700]) for first in range(0, len(lines), 700)))
    _equal(read_fragments(path), frame)


@pytest.mark.parametrize("library", ["isal", "zlib"])
@pytest.mark.parametrize("damage", ["cut", "changed", "flipped"])
def test_damaged_gzip(tmp_path, monkeypatch, library, damage):
    if library == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    data = bytearray(gzip.compress(_text(_fragments(np.random.default_rng(3), 5000)).encode()))
    if damage == "cut":
        del data[-100:]
    elif damage == "flipped":
        data[100] ^= 0xFF
    else:
        data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path = tmp_path / "f.tsv.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"f.tsv.gz cannot be decompressed .*Get the file again|f.tsv.gz, line"):
        read_fragments(path)


def test_without_isal_gzip_of_the_standard_library_reads(tmp_path, monkeypatch):
    frame = _fragments(np.random.default_rng(3), 50)
    path = tmp_path / "f.tsv.gz"
    path.write_bytes(gzip.compress(_text(frame).encode()))
    monkeypatch.setitem(sys.modules, "isal", None)
    _equal(read_fragments(path), frame)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("header", ["", "# a comment\n", "\ufeff", "\ufeff# a comment\n"])
def test_line_ends_and_byte_order_marks(tmp_path, small_blocks, ending, final, header):
    frame = _fragments(np.random.default_rng(4), 200)
    text = (header + _text(frame)).replace("\n", ending)
    path = tmp_path / "f.tsv"
    path.write_bytes((text if final else text.removesuffix(ending)).encode())
    fragments = read_fragments(path, use_counts=True)
    _equal(fragments, frame, ["chrom", "start", "end", "barcode", "count"])
    assert len(fragments) == 200


def test_line_ends_that_change_within_a_file(tmp_path, small_blocks):
    frame = _fragments(np.random.default_rng(4), 300)
    parts = [_text(frame[:100]), _text(frame[100:200]).replace("\n", "\r"), _text(frame[200:]).replace("\n", "\r\n")]
    (tmp_path / "f.tsv").write_bytes("".join(parts).encode())
    _equal(read_fragments(tmp_path / "f.tsv"), frame)


def test_a_header_longer_than_a_block(tmp_path, small_blocks):
    frame = _fragments(np.random.default_rng(4), 20)
    header = "".join(f"# primary_contig=contig{number}\n" for number in range(200))
    path = tmp_path / "f.tsv"
    path.write_text(header + _text(frame))
    _equal(read_fragments(path), frame)
    path.write_text(header + "chr1\tx\t9\n")
    with pytest.raises(ValueError, match="line 201 has no number in column 2"):
        read_fragments(path)
    path.write_text(header)
    with pytest.warns(UserWarning, match="no intervals"):
        assert len(read_fragments(path)) == 0


def test_headers_declarations_and_empty_lines_are_passed_over(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text(
        'browser position chr1\ntrack name="x" description="chr1 5 6"\n#chrom\tstart\tend\nchrom\tstart\tend\n'
        "chr1\t1\t5\n\nchr1\t7\t9\ntrack2\t1\t2\n"
    )
    reads = read_bed(path)
    assert {name: list(zip(*reads[name][:2], strict=True)) for name in reads} == {
        "chr1": [(1, 5), (7, 9)],
        "track2": [(1, 2)],
    }


def test_bed_separated_by_blanks(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("chr1 1  5 x 0 +\n chr2 7 9 y 0 -  \nchr1   2 6 z 0 .\n")
    reads = read_bed(path)
    assert reads["chr1"].start.tolist() == [1, 2]
    assert reads["chr1"].strand.tolist() == [1, 0]
    assert reads["chr2"].strand.tolist() == [-1]


@pytest.mark.parametrize(
    ("line", "strand"),
    [
        ("c\t1\t2", None),
        ("c\t1\t2\t+", 1),
        ("c\t1\t2\t.\t-", -1),
        ("c\t1\t2\tname\t5", None),
        ("c\t1\t2\tname\t0\t-", -1),
        ("c\t1\t2\tname\t0\t.", None),
        ("c\t1\t2\tname\t0\t+\t1\t2\t0", 1),
    ],
)
def test_strand_of_bed(tmp_path, line, strand):
    path = tmp_path / "a.bed"
    path.write_text(line + "\n")
    found = read_bed(path)["c"].strand
    assert (None if found is None else found.tolist()) == (None if strand is None else [strand])
    assert not read_bed(path).paired


def test_bedpe_of_macs_and_of_bedtools(tmp_path):
    short, full = tmp_path / "macs.bedpe", tmp_path / "bedtools.bedpe"
    short.write_text("chr1\t5\t100\nchr1\t2\t50\n")
    full.write_text(
        "chr1\t5\t40\tchr1\t60\t100\tr1\t9\t+\t-\nchr1\t20\t50\tchr1\t2\t30\tr2\t9\t-\t+\n"
        "chr1\t20\t50\tchr2\t2\t30\tr3\t9\t-\t+\nchr1\t20\t50\t.\t-1\t-1\tr4\t9\t+\t.\n"
    )
    with pytest.warns(UserWarning, match="2 pairs on two chromosomes or with one mate unmapped"):
        fragments = read_bedpe(full)
    for found in (fragments, read_bedpe(short)):
        assert found["chr1"].start.tolist() == [2, 5]
        assert found["chr1"].end.tolist() == [50, 100]
        assert found.paired


def test_whitelist_and_labels(tmp_path):
    frame = _fragments(np.random.default_rng(5), 2000)
    path = tmp_path / "f.tsv"
    path.write_text(_text(frame))
    wanted = ["BC7-1", "BC3-1", "absent"]
    some = read_fragments(path, barcodes=wanted)
    assert some.barcodes == wanted
    columns = ["chrom", "start", "end", "barcode"]
    _equal(some, frame[frame["barcode"].isin(wanted)], columns)
    labels = {"BC7-1": "B", "BC3-1": "A", "BC9-1": "B"}
    by_label = read_fragments(path, barcodes=labels)
    assert by_label.barcodes == ["B", "A"]
    mapped = frame[frame["barcode"].isin(labels)].assign(barcode=lambda table: table["barcode"].map(labels))
    _equal(by_label, mapped, columns)
    assert read_fragments(path, use_barcodes=False)["chr1"].cell_code is None


def test_no_barcode_of_the_whitelist(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("chr1\t1\t2\tAAAC-1\t1\nchr1\t1\t2\tAAAG-1\t1\n")
    with pytest.raises(ValueError, match=r"none of the 1 barcodes.*'AAAC'.*'AAAC-1', 'AAAG-1'.*suffixes"):
        read_fragments(path, barcodes=["AAAC"])
    with pytest.raises(ValueError, match="must be unique"):
        read_fragments(path, barcodes=["AAAC", "AAAC"])
    path.write_text("chr1\t1\t2\n")
    with pytest.raises(ValueError, match="3 columns"):
        read_fragments(path, barcodes=["AAAC"])


def test_sizes_clip_and_leave_out_with_a_count(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("chr1\t90\t110\nchr1\t100\t120\nchr1\t10\t20\nchrX\t1\t5\nchr1\t-5\t8\nchr1\t7\t7\n")
    with pytest.warns(UserWarning, match="f.tsv: ") as caught:
        fragments = read_fragments(path, chrom_sizes={"chr2": 50, "chr1": 100})
    (message,) = [str(warning.message) for warning in caught]
    for part in (
        "1 interval of length 0",
        "1 interval on chromosomes without a size",
        "1 interval starting past",
        "1 interval clipped at the end",
        "1 interval clipped at position 0",
        "chrX",
    ):
        assert part in message
    assert fragments.chromosomes == ["chr2", "chr1"]
    assert list(zip(*fragments["chr1"][:2], strict=True)) == [(0, 8), (10, 20), (90, 100)]
    assert len(fragments["chr2"].start) == 0


def test_sizes_with_other_names(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("1\t90\t110\n")
    with pytest.raises(ValueError, match=r"f.tsv: \['1'\].*chromosome sizes: \['chr1'.*prefix 'chr'"):
        read_fragments(path, chrom_sizes="hg38")


@pytest.mark.parametrize("text", ["", "\n\n", "# only comments\n"])
def test_no_reads_is_a_result(tmp_path, text):
    path = tmp_path / "empty.tsv"
    path.write_text(text)
    for reader in (read_fragments, read_bed, read_bedpe):
        with pytest.warns(UserWarning, match="empty.tsv has no intervals"):
            intervals = reader(path)
        assert len(intervals) == 0
        assert intervals.chromosomes == []
        assert intervals.extent() == {}
        assert len(intervals.to_frame()) == 0
        assert len(intervals.deduplicate()) == 0


def test_empty_gzip_file(tmp_path):
    path = tmp_path / "empty.tsv.gz"
    path.write_bytes(gzip.compress(b""))
    with pytest.warns(UserWarning, match="no intervals"):
        assert len(read_fragments(path)) == 0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("chr1\t5", "has 2 fields"),
        ("chr1\tx\t9", "no number in column 2"),
        ("chr1\t5\t9.5", "no number in column 3"),
        ("chr1\t9\t5", "an end before its start"),
        ("chr1\t5\t3000000000", "2\\*\\*31 or more"),
        ("chr1\t5\t99999999999999999999999", "2\\*\\*31 or more"),
    ],
)
def test_a_bad_line_is_named(tmp_path, small_blocks, line, problem):
    path = tmp_path / "bad.tsv"
    path.write_text("# header\n" + "chr1\t1\t10\n" * 100 + line + "\nchr1\t1\t10\n")
    with pytest.raises(ValueError, match=rf"bad.tsv, line 102 .*{problem}.*chr1"):
        read_fragments(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("chr1\t5\t9\tA", "has 4 fields, fewer"),
        ("chr1\t5\t9\tA\tx", "no number in column 5"),
        ("chr1\t5\t9\tA\t-1", "no number in column 5"),
        ("chr1\t5\t9\tA\t3000000000", "2\\*\\*31 or more in column 5"),
    ],
)
def test_a_bad_count_is_named(tmp_path, line, problem):
    path = tmp_path / "bad.tsv"
    path.write_text("chr1\t1\t10\tA\t2\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"bad.tsv, line 2 .*{problem}"):
        read_fragments(path, use_counts=True)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.tsv"):
        read_fragments(tmp_path / "missing.tsv")
    path = tmp_path / "f.tsv"
    path.write_bytes(gzip.compress(b"BAM\x01abc"))
    with pytest.raises(ValueError, match="read_bam"):
        read_fragments(path)
    path.write_bytes(b"\x26\xfc\x8f\x88....")
    with pytest.raises(ValueError, match="read_bigwig"):
        read_fragments(path)
    path.write_bytes("chr1\t1\t2\n".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        read_fragments(path)
    path.write_text("x" * 2000)
    with pytest.raises(ValueError, match="has 1 fields"):
        read_bed(path)


def test_a_line_longer_than_a_block(tmp_path, small_blocks):
    path = tmp_path / "f.tsv"
    path.write_text("chr1\t1\t2\n" + "chr1\t3\t4\t" + "x" * 2000 + "\n")
    with pytest.raises(ValueError, match="a line of more than 512 bytes after line 1"):
        read_bed(path)


def test_several_files_as_one_sample(tmp_path):
    frame = _fragments(np.random.default_rng(6), 500)
    paths = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    paths[0].write_text(_text(frame[:300]))
    paths[1].write_text(_text(frame[300:]))
    _equal(read_fragments(paths), frame, ["chrom", "start", "end", "barcode"])
    paths[1].write_text(_text(frame[300:], 3))
    with pytest.raises(ValueError, match="must have the same"):
        read_fragments(paths)


def _bgzip(data):
    """What bgzip writes: members that say their own length, the last of them empty."""
    pysam = pytest.importorskip("pysam")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gz"
        with pysam.BGZFile(str(path), "w") as handle:
            handle.write(data)
        return path.read_bytes()


def test_bgzip_without_its_last_block(tmp_path):
    frame = _fragments(np.random.default_rng(3), 4000)
    whole = _bgzip(_text(frame).encode())
    path = tmp_path / "f.tsv.gz"
    path.write_bytes(whole)
    with no_warnings():
        _equal(read_fragments(path), frame)
        path.write_bytes(gzip.compress(_text(frame).encode()))  # plain gzip has no such block
        _equal(read_fragments(path), frame)
    path.write_bytes(whole[:-28])
    for reader in (read_fragments, read_bed):
        with pytest.warns(UserWarning, match="f.tsv.gz lacks the block that ends every bgzip .* probably cut short"):
            _equal(reader(path), frame)


def test_few_of_the_barcodes_asked_for(tmp_path):
    frame = _fragments(np.random.default_rng(5), 500)
    path = tmp_path / "f.tsv"
    path.write_text(_text(frame))
    asked = [f"BC{number}-1" for number in range(3)] + [f"sample_{number}" for number in range(500)]
    for barcodes in (asked, dict.fromkeys(asked, "T")):
        with pytest.warns(UserWarning, match=r"3 of the 503 barcodes .*missing are \['sample_0'.*has \['BC.*suffixes"):
            found = read_fragments(path, barcodes=barcodes)
        assert len(found) == frame["barcode"].isin(asked[:3]).sum()
    with no_warnings():
        read_fragments(path, barcodes=asked[:5])


def test_a_file_of_header_lines_has_barcodes_but_no_cells(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("# id=x\n")
    with pytest.warns(UserWarning, match="no intervals"):
        fragments = read_fragments(path, use_counts=True)
    assert fragments.barcodes == []
    assert set(fragments.columns) == {"start", "end", "cell_code", "count"}
    with pytest.warns(UserWarning, match="no intervals"):
        assert set(read_bed(path).columns) == {"start", "end", "strand"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.cram", "samtools view -b"),
        ("a.sam", "samtools view -b"),
        ("a.bw", "read_bigwig"),
        ("a.bigWig", "read_bigwig"),
        ("a.bedGraph.gz", "read_bedgraph"),
        ("a.narrowPeak", "read_narrowpeak"),
        ("a.fastq.gz", "align them first"),
        ("a.h5ad", "read_h5ad"),
        ("a.txt", "tells no format"),
    ],
)
def test_names_of_other_kinds(tmp_path, name, problem):
    with pytest.raises(ValueError, match=rf"{name}.*{problem}"):
        read_intervals(tmp_path / name)


def test_tagalign_is_bed(tmp_path):
    path = tmp_path / "a.tagAlign.gz"
    path.write_bytes(gzip.compress(b"chr1\t5\t41\tN\t1000\t-\n"))
    assert read_intervals(path)["chr1"].strand.tolist() == [-1]


@pytest.mark.parametrize("reader", [read_fragments, read_bed, read_bedpe, read_bam, read_narrowpeak, read_bigwig])
def test_what_is_no_path_of_a_file(tmp_path, reader):
    if reader is read_bigwig:
        pytest.importorskip("pyBigWig")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        reader(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file.*Download it first"):
        reader("https://example.org/a.bed")
    with pytest.raises(TypeError, match="path of a file|a path or a list of paths"):
        reader(pd.DataFrame())


def test_text_of_sam_is_told(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:100\nr\t0\tchr1\t5\n")
    with pytest.raises(ValueError, match="a SAM file: .*samtools view -b"):
        read_bed(path)
    with pytest.raises(ValueError, match="not a BAM file: it is a SAM file"):
        read_bam(path)


def test_reader_by_name(tmp_path):
    path = tmp_path / "x.bed.gz"
    path.write_text("chr1\t1\t9\ta\t0\t-\n")
    assert read_intervals(path)["chr1"].strand.tolist() == [-1]
    with pytest.raises(ValueError, match="tells no format"):
        read_intervals(tmp_path / "x.txt")


def test_reading_needs_neither_jax_nor_anndata_nor_scanpy():
    code = (
        "import sys\nfrom diffbio_sc.io import read_bed, read_bam, read_bedpe, read_fragments\n"
        "assert not {'jax', 'anndata', 'scanpy', 'pandas'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
def test_fifty_thousand_contigs(data_folder):
    path = data_folder / "peaks/macs/contigs50k.bed.gz"
    frame = pd.read_csv(path, sep="\t", header=None, names=["chrom", "start", "end", "name", "strand"])
    reads = read_bed(path)
    assert len(reads.chromosomes) == 50_000
    _equal(reads, frame, ["chrom", "start", "end", "strand"])
    assert isinstance(reads, Intervals)
