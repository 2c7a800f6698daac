"""BAM files of single reads or read pairs."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.genome.interval_builder import IntervalBuilder
from diffbio_sc.genome.intervals import COLUMN_TYPES, Intervals
from diffbio_sc.io import _bam_kernels as kernels
from diffbio_sc.io._byte_source import BLOCK_BYTES, ByteSource, PathLike, existing_file, open_bytes
from diffbio_sc.io._name_table import BarcodeTable

# Shortest record: 36 bytes of fixed fields.
_ROWS = BLOCK_BYTES // 36
# Share of the rarer kind, single reads or mates of pairs, from which a file is called mixed; share of mates left out
# from which a warning says so.
_FEW, _MANY = 0.01, 0.5


def read_bam(
    path: PathLike,
    *,
    paired: bool | None = None,
    min_mapping_quality: int = 0,
    keep_duplicates: bool = False,
    barcode_tag: str | None = None,
    barcodes: Sequence[str] | Mapping[str, str] | None = None,
) -> Intervals:
    """Read alignments: each proper pair as one fragment, or each single read with its strand.

    Unmapped, secondary and supplementary alignments and those that fail quality control are left out; with
    ``settings.verbosity = 2`` the log counts what is left out, by kind. The file need be neither sorted nor indexed;
    memory is the result and a few megabytes.

    Parameters
    ----------
    path
        BAM file. CRAM and SAM files must be converted first (``samtools view -b``).
    paired
        Read proper pairs as fragments (True), or first mates and unpaired reads as single reads (False). By default
        whichever most alignments of the file are; where it holds both, a warning counts them.
    min_mapping_quality
        Leave out alignments of lower mapping quality.
    keep_duplicates
        Whether to keep alignments that the file marks as duplicates.
    barcode_tag
        Tag that holds the cell's barcode, such as ``"CB"``; alignments without it are left out.
    barcodes
        Keep these barcodes only, or a mapping from barcode to label that is read in place of the barcode; see
        :func:`read_fragments`.

    Returns
    -------
    Fragments or reads by chromosome, with the sizes of all chromosomes. A file without alignments gives an empty object
    and a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a BAM file or is damaged, if it has none of ``barcodes``, or if its pairs are not marked as
        proper or have no length (TLEN of 0).

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.read_bam("reads.bam")
    >>> len(fragments)
    50
    """
    check_options(read_bam, locals(), min_mapping_quality="[0, inf)")
    min_mapping_quality = int(min_mapping_quality)
    if barcodes is not None and barcode_tag is None:
        raise ValueError("barcodes needs barcode_tag, the tag that holds them, such as 'CB'.")
    if barcode_tag is not None and len(barcode_tag) != 2:
        raise ValueError(f"barcode_tag must have two letters, found {barcode_tag!r}.")
    options = _Options(min_mapping_quality, keep_duplicates, barcode_tag)
    reader = _AlignmentReader(path, paired, options, BarcodeTable(barcodes))
    result = reader.read()
    if paired is None and reader.mostly_paired() != reader.paired:
        # The first block was not like the rest of the file.
        reader = _AlignmentReader(path, not reader.paired, options, BarcodeTable(barcodes))
        result = reader.read()
    reader.report(asked=paired)
    return result


class _Options(NamedTuple):
    """Which alignments to take; see :func:`read_bam`."""

    minimum_quality: int
    keep_duplicates: bool
    tag: str | None


class _AlignmentReader:
    """One pass over a BAM file, as pairs or as single reads; ``paired`` of None is decided by the first block."""

    def __init__(self, path: PathLike, paired: bool | None, options: _Options, cells: BarcodeTable):
        self.path = existing_file(path)
        self.name = Path(path).name
        self.options, self.cells = options, cells
        self.counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self._asked = paired
        self.paired = bool(paired)
        self.rows = 0

    def read(self) -> Intervals:
        """Read the whole file."""
        with open_bytes(self.path) as source:
            sizes, buffer, filled, position = _header(source)
            if self._asked is None:
                single, mates = kernels.count_kinds(buffer, position, filled)
                self.paired = mates > single
            tag = self.options.tag
            wanted = ["start", "end", *(["cell_code"] if tag else []), *([] if self.paired else ["strand"])]
            builder = IntervalBuilder(wanted)
            outputs = {"code": np.empty(_ROWS, np.int32)}
            for key in ("start", "end", "cell_code", "strand"):
                outputs[key] = np.empty(_ROWS if key in wanted else 0, COLUMN_TYPES[key])
            while True:
                position = self._parse(buffer, position, filled, builder, outputs, len(sizes), source.fraction())
                kept = filled - position
                if position == 0 and filled == len(buffer):  # one record larger than the block
                    buffer = np.concatenate([buffer, np.zeros_like(buffer)])
                else:
                    buffer[:kept] = buffer[position:filled].copy()
                added = source.readinto(memoryview(buffer)[kept:])
                if added == 0:
                    if kept:
                        raise ValueError(f"{self.path} ends within an alignment: it is cut short. Get the file again.")
                    break
                position, filled = 0, kept + added
        self.rows = builder.rows
        barcodes = self.cells.labels() if tag else None
        return builder.finish(list(sizes), barcodes=barcodes, sizes=sizes, paired=self.paired, name=self.name)

    def _parse(
        self,
        buffer: np.ndarray,
        position: int,
        filled: int,
        builder: IntervalBuilder,
        outputs: dict[str, np.ndarray],
        chromosomes: int,
        fraction: float,
    ) -> int:
        """Parse the complete records from ``position`` on; returns where the last of them ends."""
        tag = np.frombuffer((self.options.tag or "").encode(), np.uint8)
        while True:
            rows, consumed, status = kernels.parse_records(
                buffer,
                position,
                filled,
                self.paired,
                self.options.keep_duplicates,
                self.options.minimum_quality,
                tag,
                outputs["code"],
                outputs["start"],
                outputs["end"],
                outputs["cell_code"],
                outputs["strand"],
                self.cells.table.arrays,
                self.cells.insert,
                self.cells.codes,
                self.cells.seen,
                chromosomes,
                self.counters,
            )
            builder.append(outputs["code"][:rows], {key: outputs[key][:rows] for key in builder.columns}, fraction)
            position = int(consumed)
            if status == kernels.DAMAGED:
                number = self.counters[kernels.RECORDS]
                raise ValueError(f"{self.path} is damaged after {number} alignments. Get the file again.")
            if status == kernels.DONE:
                return position
            if status == kernels.MORE_BARCODES:
                self.cells.table.grow()

    def mostly_paired(self) -> bool:
        """Whether more mates of pairs than single reads were seen."""
        return bool(self.counters[kernels.SEEN_PAIRED] > self.counters[kernels.SEEN_SINGLE])

    def report(self, asked: bool | None) -> None:
        """Tell what was left out; refuse a file of pairs of which none can be read."""
        count = self.counters
        left_out = [text.format(int(count[key])) for key, text in _MESSAGES.items() if count[key]]
        if left_out:
            logger.info(f"{self.name}: {count[kernels.RECORDS]:,} alignments; left out: {', '.join(left_out)}.")
        if self.rows == 0:
            self._report_nothing(left_out)
        if self.rows or count[kernels.OTHER_BARCODE]:
            self.cells.report(self.name, [], stacklevel=5)
        single, mates = int(count[kernels.SEEN_SINGLE]), int(count[kernels.SEEN_PAIRED])
        if asked is None and min(single, mates) > _FEW * (single + mates):
            taken = "pairs are read as fragments and single reads are left out"
            if not self.paired:
                taken = "first mates are read as single reads"
            warnings.warn(
                f"{self.name} holds {mates:,} mates of pairs and {single:,} single reads: {taken}. Pass paired=True or "
                "paired=False to choose.",
                UserWarning,
                stacklevel=3,
            )
        unusable = int(count[kernels.NOT_PROPER] + count[kernels.NO_LENGTH])
        if self.rows and unusable > _MANY * mates:
            warnings.warn(
                f"{self.name}: {unusable:,} of {mates:,} mates are left out: {count[kernels.NOT_PROPER]:,} of improper "
                f"pairs, {count[kernels.NO_LENGTH]:,} of pairs without a length (TLEN of 0).",
                UserWarning,
                stacklevel=3,
            )

    def _report_nothing(self, left_out: list[str]) -> None:
        count = self.counters
        what = ", ".join(left_out) or "it is empty"
        if self.options.tag is not None and count[kernels.NO_BARCODE] and not count[kernels.OTHER_BARCODE]:
            raise ValueError(
                f"{self.name} has no alignment with the tag {self.options.tag!r}; pass the tag that holds the barcodes."
            )
        if count[kernels.NO_LENGTH]:
            raise ValueError(
                f"{self.name} has pairs without a length ({what}): run `samtools fixmate` on it, or pass paired=False "
                "to read first mates as single reads."
            )
        if self.paired and count[kernels.NOT_PROPER] + count[kernels.SINGLE]:
            raise ValueError(
                f"{self.name} has no proper pairs ({what}): pass paired=False to read first mates and unpaired reads "
                "as single reads."
            )
        if not count[kernels.OTHER_BARCODE]:
            warnings.warn(f"{self.name} has no alignments to read ({what}).", UserWarning, stacklevel=4)


def _header(source: ByteSource) -> tuple[dict[str, int], np.ndarray, int, int]:
    """Chromosome sizes, the first block, its length, and where the alignments begin in it."""
    buffer = np.empty(BLOCK_BYTES, np.uint8)
    filled = source.readinto(memoryview(buffer))
    magic = buffer[:4].tobytes()
    if filled < 12 or magic != b"BAM\x01":
        kinds = {
            b"": "it is empty",
            b"CRAM": "it is a CRAM file",
            b"@HD\t": "it is a SAM file",
            b"@SQ\t": "it is a SAM file",
        }
        what = kinds.get(buffer[: min(filled, 4)].tobytes(), f"it begins with {magic!r}")
        raise ValueError(
            f"{source.path} is not a BAM file: {what}. Convert SAM and CRAM with `samtools view -b`; text of intervals "
            "is for read_fragments, read_bed or read_bedpe."
        )

    def fill(length: int) -> None:
        nonlocal buffer, filled
        if length > len(buffer):
            buffer = np.concatenate([buffer, np.zeros(max(len(buffer), length - len(buffer)), np.uint8)])
        if length > filled:
            filled += source.readinto(memoryview(buffer)[filled:])

    def ensure(length: int) -> None:
        fill(length)
        if length > filled:
            raise ValueError(f"{source.path} ends within its header: it is cut short. Get the file again.")

    def number(position: int) -> int:
        ensure(position + 4)
        return struct.unpack("<i", buffer[position : position + 4].tobytes())[0]

    position = 8 + number(4)
    chromosomes = number(position)
    position += 4
    sizes: dict[str, int] = {}
    for _ in range(chromosomes):
        length = number(position)
        ensure(position + 8 + length)
        name = buffer[position + 4 : position + 3 + length].tobytes().decode(errors="backslashreplace")
        sizes[name] = number(position + 4 + length)
        position += 8 + length
    fill(position + 36)
    return sizes, buffer, filled, position


_MESSAGES = {
    kernels.UNMAPPED: "{:,} unmapped",
    kernels.SECONDARY: "{:,} secondary or supplementary",
    kernels.QUALITY_FAIL: "{:,} failing quality control",
    kernels.DUPLICATE: "{:,} duplicates",
    kernels.LOW_QUALITY: "{:,} of low mapping quality",
    kernels.NOT_PROPER: "{:,} of improper pairs",
    kernels.SINGLE: "{:,} single reads",
    kernels.NO_LENGTH: "{:,} of pairs without a length (TLEN of 0)",
    kernels.NO_BARCODE: "{:,} without barcode",
    kernels.OTHER_BARCODE: "{:,} of other barcodes",
}
