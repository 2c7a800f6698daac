"""BAM files that pysam writes, against what pysam reads from them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from no_warnings import no_warnings

import diffbio_sc as dbio
from diffbio_sc.io import read_bam

pysam = pytest.importorskip("pysam")

SIZES = {"chr1": 100_000, "HLA-A*01": 50_000, "chrEmpty": 1000}
CIGARS = ["50M", "5S45M", "20M1000N30M", "20M3D10M5I15M", "10H40=10X", "30M20S"]


def _write(path, alignments):
    header = {"HD": {"VN": "1.6"}, "SQ": [{"SN": name, "LN": size} for name, size in SIZES.items()]}
    with pysam.AlignmentFile(path, "wb", header=header) as handle:
        for fields in alignments:
            alignment = pysam.AlignedSegment(handle.header)
            alignment.query_name = fields.get("name", "r")
            alignment.flag = fields["flag"]
            alignment.reference_id = fields.get("chromosome", 0)
            alignment.reference_start = fields.get("start", 0)
            alignment.mapping_quality = fields.get("quality", 60)
            alignment.cigarstring = fields.get("cigar", "50M")
            length = alignment.infer_query_length() or 50
            alignment.query_sequence = "ACGTA" * (length // 5) + "A" * (length % 5)
            alignment.next_reference_id = fields.get("mate", -1)
            alignment.next_reference_start = fields.get("mate_start", -1)
            alignment.template_length = fields.get("template", 0)
            for tag, value in fields.get("tags", {}).items():
                alignment.set_tag(tag, value)
            handle.write(alignment)
    return path


def _singles(rng, count):
    flags = np.array([0, 16, 0, 16, 4, 256, 2048, 512, 1024])
    return [
        {
            "flag": int(rng.choice(flags)),
            "chromosome": int(rng.integers(0, 2)),
            "start": int(rng.integers(0, 40_000)),
            "quality": int(rng.integers(0, 61)),
            "cigar": str(rng.choice(CIGARS)),
            "name": "read" * int(rng.integers(1, 8)),
            "tags": {"NM": 3, "XF": 1.5, "XA": "a;b", "ZB": [1, 2, 3], "CB": f"AC{rng.integers(0, 60)}-1", "AS": 40},
        }
        for _ in range(count)
    ]


def _pairs(rng, count):
    alignments = []
    for _ in range(count):
        start, length = int(rng.integers(0, 40_000)), int(rng.integers(60, 700))
        chromosome, proper = int(rng.integers(0, 2)), bool(rng.random() < 0.8)
        mate = chromosome if proper else 1 - chromosome
        template = length if mate == chromosome else 0
        extra = int(rng.choice([0, 0, 0, 1024]))
        first = {"flag": 0x1 | 0x20 | 0x40 | 2 * proper | extra, "chromosome": chromosome, "start": start}
        second = {"flag": 0x1 | 0x10 | 0x80 | 2 * proper | extra, "chromosome": mate, "start": start + length - 50}
        for own, other, sign in ((first, second, 1), (second, first, -1)):
            own |= {"mate": other["chromosome"], "mate_start": other["start"], "template": sign * template}
        quality = int(rng.integers(0, 61))
        alignments += [first | {"quality": quality}, second | {"quality": quality}]
    return alignments


@pytest.fixture(params=[64, 700, 1 << 22], ids=["less-than-a-record", "some-records", "whole"])
def blocks(request, monkeypatch):
    """Blocks whose borders cut the header and the records."""
    monkeypatch.setattr("diffbio_sc.io._read_bam.BLOCK_BYTES", request.param)


@pytest.mark.parametrize(("quality", "duplicates"), [(0, True), (30, False)])
def test_single_reads(tmp_path, blocks, quality, duplicates):
    path = _write(tmp_path / "a.bam", _singles(np.random.default_rng(0), 600))
    reads = read_bam(path, min_mapping_quality=quality, keep_duplicates=duplicates)
    assert not reads.paired
    assert reads.sizes == SIZES
    assert reads.chromosomes == list(SIZES)
    expected = []
    with pysam.AlignmentFile(path, check_sq=False) as handle:
        for read in handle.fetch(until_eof=True):
            bad = read.is_unmapped or read.is_secondary or read.is_supplementary or read.is_qcfail
            if not (bad or (read.is_duplicate and not duplicates) or read.mapping_quality < quality):
                strand = "-" if read.is_reverse else "+"
                expected.append((read.reference_name, read.reference_start, read.reference_end, strand))
    found = [tuple(row) for row in reads.to_frame().astype(object).itertuples(index=False)]
    assert sorted(found) == sorted(expected)
    assert len(found) > 100


def test_pairs_become_fragments(tmp_path, blocks):
    path = _write(tmp_path / "a.bam", _pairs(np.random.default_rng(1), 400))
    fragments = read_bam(path, min_mapping_quality=10)
    assert fragments.paired
    expected = []
    with pysam.AlignmentFile(path, check_sq=False) as handle:
        for read in handle.fetch(until_eof=True):
            if (
                read.is_proper_pair
                and read.template_length > 0
                and not read.is_duplicate
                and read.mapping_quality >= 10
            ):
                end = read.reference_start + read.template_length
                expected.append((read.reference_name, read.reference_start, end))
    found = [tuple(row) for row in fragments.to_frame().astype(object).itertuples(index=False)]
    assert sorted(found) == sorted(expected)
    first_mates = read_bam(path, paired=False, keep_duplicates=True)
    assert len(first_mates) == 400
    assert set(first_mates["chr1"].strand.tolist()) == {1}


def _pair(start, length=150, *, template=True, proper=True):
    first = {"flag": 0x1 | 0x20 | 0x40 | 2 * proper, "start": start, "mate_start": start + length - 50}
    second = {"flag": 0x1 | 0x10 | 0x80 | 2 * proper, "start": start + length - 50, "mate_start": start}
    size = length if template else 0
    return [first | {"mate": 0, "template": size}, second | {"mate": 0, "template": -size}]


def _quiet(path, **options):
    with no_warnings():
        return read_bam(path, **options)


def _reads(number):
    return [{"flag": 16 * (index % 2), "start": 10 * index} for index in range(number)]


@pytest.fixture(params=["in the first block", "past the first block"])
def first_block(request, monkeypatch):
    """Whether the first block shows what most of the file is."""
    if request.param == "past the first block":
        monkeypatch.setattr("diffbio_sc.io._read_bam.BLOCK_BYTES", 700)


def test_a_file_is_what_most_of_its_alignments_are(tmp_path, first_block):
    some = [mate for index in range(5) for mate in _pair(index)]
    path = _write(tmp_path / "a.bam", some + _reads(2000))
    reads = _quiet(path)  # ten mates of two thousand are no mixture
    assert not reads.paired
    assert len(reads) == 2005
    orphan = [{"flag": 0x1 | 0x8 | 0x40, "start": 5}, {"flag": 0x1 | 0x4 | 0x80, "start": 5}]
    for odd in (orphan, _reads(5)):
        fragments = _quiet(_write(tmp_path / "b.bam", odd + [mate for index in range(300) for mate in _pair(index)]))
        assert fragments.paired
        assert len(fragments) == 300
        assert (fragments["chr1"].end - fragments["chr1"].start == 150).all()


def test_mixed_files_are_told(tmp_path, caplog):
    pairs = [mate for index in range(100) for mate in _pair(index)]
    path = _write(tmp_path / "a.bam", pairs + _reads(50))
    with pytest.warns(UserWarning, match="200 mates of pairs and 50 single reads: pairs are read as fragments"):
        assert len(read_bam(path)) == 100
    assert len(_quiet(path, paired=True)) == 100
    assert len(_quiet(path, paired=False)) == 150
    path = _write(tmp_path / "b.bam", pairs + _reads(500))
    with pytest.warns(UserWarning, match="200 mates of pairs and 500 single reads: first mates are read as single"):
        assert len(read_bam(path)) == 600
    dbio.settings.verbosity = 2
    try:
        with caplog.at_level("INFO", logger="diffbio_sc"):
            dbio_logger = logging.getLogger("diffbio_sc")
            dbio_logger.addHandler(caplog.handler)
            read_bam(path, paired=True)
            dbio_logger.removeHandler(caplog.handler)
    finally:
        dbio.settings.verbosity = 1
    assert "700 alignments; left out: 500 single reads" in caplog.text


def test_pairs_that_have_no_length_or_are_improper(tmp_path):
    path = _write(tmp_path / "a.bam", [mate for index in range(9) for mate in _pair(index, template=False)])
    with pytest.raises(ValueError, match=r"18 of pairs without a length .TLEN of 0.*samtools fixmate.*paired=False"):
        read_bam(path)
    assert len(_quiet(path, paired=False)) == 9
    some = [mate for index in range(9) for mate in _pair(index, template=index < 3)]
    with pytest.warns(UserWarning, match="12 of 18 mates are left out: 0 of improper pairs, 12 of pairs without"):
        assert len(read_bam(_write(tmp_path / "b.bam", some))) == 3
    path = _write(tmp_path / "c.bam", [mate for index in range(9) for mate in _pair(index, proper=False)])
    with pytest.raises(ValueError, match="no proper pairs .18 of improper pairs.*paired=False"):
        read_bam(path)
    with pytest.raises(ValueError, match="no proper pairs .20 single reads.*paired=False"):
        read_bam(_write(tmp_path / "d.bam", _reads(20)), paired=True)


def test_a_bam_file_without_its_last_block(tmp_path):
    whole = _write(tmp_path / "a.bam", _reads(300)).read_bytes()
    (tmp_path / "a.bam").write_bytes(whole[:-28])
    with pytest.warns(UserWarning, match="a.bam lacks the block that ends every bgzip and BAM file"):
        assert len(read_bam(tmp_path / "a.bam")) == 300


def test_few_of_the_barcodes_asked_for(tmp_path):
    alignments = [fields | {"tags": {"CB": f"AC{index % 5}-1"}} for index, fields in enumerate(_reads(100))]
    path = _write(tmp_path / "a.bam", alignments)
    asked = ["AC0-1", "AC1-1"] + [f"AC{number}" for number in range(20)]
    with pytest.warns(UserWarning, match=r"2 of the 22 barcodes asked for; missing are \['AC0', "):
        assert len(read_bam(path, barcode_tag="CB", barcodes=asked)) == 40


def test_barcodes_of_a_tag(tmp_path):
    alignments = [fields | {"flag": 0} for fields in _singles(np.random.default_rng(2), 900)]
    del alignments[0]["tags"]["CB"]
    path = _write(tmp_path / "a.bam", alignments)
    reads = read_bam(path, barcode_tag="CB")
    found = reads.to_frame()["barcode"].astype(str).value_counts().to_dict()
    barcodes = [fields["tags"]["CB"] for fields in alignments[1:]]
    assert found == {name: barcodes.count(name) for name in set(barcodes)}
    grouped = read_bam(path, barcode_tag="CB", barcodes={"AC1-1": "x", "AC2-1": "x"})
    assert grouped.barcodes == ["x"]
    assert len(grouped) == barcodes.count("AC1-1") + barcodes.count("AC2-1")
    with pytest.raises(ValueError, match="none of the 1 barcodes"):
        read_bam(path, barcode_tag="CB", barcodes=["nobody"])
    with pytest.raises(ValueError, match="no alignment with the tag 'XX'"):
        read_bam(path, barcode_tag="XX")
    with pytest.raises(ValueError, match="needs barcode_tag"):
        read_bam(path, barcodes=["AC1-1"])


def test_no_alignments_is_a_result(tmp_path):
    path = _write(tmp_path / "a.bam", [])
    with pytest.warns(UserWarning, match=r"no alignments to read \(it is empty\)"):
        reads = read_bam(path)
    assert len(reads) == 0
    assert reads.extent() == SIZES
    path = _write(tmp_path / "b.bam", [{"flag": 4}])
    with pytest.warns(UserWarning, match="1 unmapped"):
        assert len(read_bam(path)) == 0


def test_what_is_no_bam_file(tmp_path):
    path = tmp_path / "a.bam"
    path.write_text("chr1\t1\t2\n")
    with pytest.raises(ValueError, match="not a BAM file.*samtools view -b"):
        read_bam(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="it is empty"):
        read_bam(path)
    whole = _write(tmp_path / "b.bam", _singles(np.random.default_rng(3), 200)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        read_bam(path)
