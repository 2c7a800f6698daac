"""BAM files of single reads or read pairs."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.genome.intervals import COLUMN_TYPES, IntervalBuilder, Intervals, name_heads
from diffbio_sc.io import _bam_kernels as kernels
from diffbio_sc.io._text import BLOCK_BYTES, BarcodeTable, ByteSource, PathLike, open_bytes

# Shortest record: 36 bytes of fixed fields.
_ROWS = BLOCK_BYTES // 36


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

    Unmapped, secondary and supplementary alignments and those that fail quality control are left out. The file need be
    neither sorted nor indexed; memory is the result and a few megabytes.

    Parameters
    ----------
    path
        BAM file. CRAM and SAM files are to be converted first (``samtools view -b``).
    paired
        Read proper pairs as fragments (True) or first mates and unpaired reads as single reads (False). By default
        pairs, if the first alignments of the file are of pairs.
    min_mapping_quality
        Leave out alignments below.
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
        If the file is no BAM file or is damaged, or if it has none of ``barcodes``.
    """
    if barcodes is not None and barcode_tag is None:
        raise ValueError("barcodes needs barcode_tag, the tag that holds them, such as 'CB'.")
    if barcode_tag is not None and len(barcode_tag) != 2:
        raise ValueError(f"barcode_tag must have two letters, found {barcode_tag!r}.")
    name = Path(path).name
    cells = BarcodeTable(barcodes)
    counters = np.zeros(kernels.N_COUNTERS, np.int64)
    tag = np.frombuffer((barcode_tag or "").encode(), np.uint8)
    with open_bytes(path) as source:
        sizes, buffer, filled, position = _header(source)
        if paired is None:
            paired = _first_is_paired(buffer, position, filled)
        wanted = ["start", "end", *(["cell_code"] if barcode_tag else []), *([] if paired else ["strand"])]
        builder = IntervalBuilder(wanted)
        outputs = {"code": np.empty(_ROWS, np.int32)}
        for key in ("start", "end", "cell_code", "strand"):
            outputs[key] = np.empty(_ROWS if key in wanted else 0, COLUMN_TYPES[key])
        while True:
            rows, consumed, status = kernels.parse_records(
                buffer,
                position,
                filled,
                paired,
                keep_duplicates,
                min_mapping_quality,
                tag,
                outputs["code"],
                outputs["start"],
                outputs["end"],
                outputs["cell_code"],
                outputs["strand"],
                cells.table.arrays,
                cells.insert,
                cells.codes,
                len(sizes),
                counters,
            )
            builder.append(
                outputs["code"][:rows], {key: outputs[key][:rows] for key in builder.columns}, source.fraction()
            )
            position = int(consumed)
            if status == kernels.DAMAGED:
                raise ValueError(f"{path} is damaged after {counters[kernels.RECORDS]} alignments. Get the file again.")
            if status == kernels.MORE_BARCODES:
                cells.table.grow()
            if status != kernels.DONE:
                continue
            kept = filled - position
            if position == 0 and filled == len(buffer):  # one record larger than the block
                buffer = np.concatenate([buffer, np.zeros_like(buffer)])
            else:
                buffer[:kept] = buffer[position:filled].copy()
            added = source.readinto(memoryview(buffer)[kept:])
            if added == 0:
                if kept:
                    raise ValueError(f"{path} ends within an alignment: it is cut short. Get the file again.")
                break
            position, filled = 0, kept + added
    _report(counters, name, builder.rows, cells, barcode_tag)
    chromosomes = list(sizes)
    return builder.finish(
        chromosomes, barcodes=cells.labels() if barcode_tag else None, sizes=sizes, paired=paired, name=name
    )


def _header(source: ByteSource) -> tuple[dict[str, int], np.ndarray, int, int]:
    """Chromosome sizes, the first block, its length, and where the alignments begin in it."""
    buffer = np.empty(BLOCK_BYTES, np.uint8)
    filled = source.readinto(memoryview(buffer))
    magic = buffer[:4].tobytes()
    if filled < 12 or magic != b"BAM\x01":
        what = "it is empty" if not filled else "it is a CRAM file" if magic == b"CRAM" else f"it begins with {magic!r}"
        raise ValueError(
            f"{source.path} is no BAM file: {what}. Convert SAM and CRAM with `samtools view -b`; text of intervals "
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
    fill(position + 36)  # the first alignment, if there is one, tells whether the file is of pairs
    return sizes, buffer, filled, position


def _first_is_paired(buffer: np.ndarray, position: int, filled: int) -> bool:
    """Whether the first alignment is of a pair."""
    return position + 20 <= filled and bool(buffer[position + 18] & kernels.PAIRED)


def _report(counters: np.ndarray, name: str, rows: int, cells: BarcodeTable, tag: str | None) -> None:
    left_out = [text.format(int(counters[key])) for key, text in _MESSAGES.items() if counters[key]]
    if left_out:
        logger.info(f"{name}: {counters[kernels.RECORDS]:,} alignments; left out: {', '.join(left_out)}.")
    if rows:
        return
    if counters[kernels.OTHER_BARCODE]:
        raise ValueError(f"{name} has none of the barcodes asked for: {name_heads(cells.listed)}.")
    if tag is not None and counters[kernels.NO_BARCODE]:
        raise ValueError(f"{name} has no alignment with the tag {tag!r}; pass the tag that holds the barcodes.")
    warnings.warn(
        f"{name} has no alignments to read ({', '.join(left_out) or 'it is empty'}).", UserWarning, stacklevel=3
    )


_MESSAGES = {
    kernels.UNMAPPED: "{:,} unmapped",
    kernels.SECONDARY: "{:,} secondary or supplementary",
    kernels.QUALITY_FAIL: "{:,} failing quality control",
    kernels.DUPLICATE: "{:,} duplicates",
    kernels.LOW_QUALITY: "{:,} of low mapping quality",
    kernels.NOT_PROPER: "{:,} of improper pairs",
    kernels.NO_BARCODE: "{:,} without barcode",
    kernels.OTHER_BARCODE: "{:,} of other barcodes",
}
