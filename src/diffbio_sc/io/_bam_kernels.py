"""Compiled loop over the records of an uncompressed BAM stream (SAM specification, section 4.2)."""

from __future__ import annotations

import numpy as np
from numba import njit

from diffbio_sc.io._name_table import find_name

# What stopped a parse: the end of the block, a full output, a full table of names, or a record that makes no sense.
DONE, FULL, MORE_BARCODES, DAMAGED = range(4)

# Counters of records that were not taken, and of single reads and mates of pairs whether taken or not.
(
    RECORDS,
    UNMAPPED,
    SECONDARY,
    QUALITY_FAIL,
    DUPLICATE,
    LOW_QUALITY,
    NOT_PROPER,
    SINGLE,
    NO_LENGTH,
    NO_BARCODE,
    OTHER_BARCODE,
    SEEN_SINGLE,
    SEEN_PAIRED,
) = range(13)
N_COUNTERS = 13

PAIRED, PROPER, IS_UNMAPPED, REVERSE, SECOND, NOT_PRIMARY, QC_FAIL, IS_DUPLICATE, SUPPLEMENTARY = (
    0x1,
    0x2,
    0x4,
    0x10,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
)


@njit(cache=True, nogil=True)
def _word(buffer, position):
    """Little-endian 32-bit number with sign."""
    value = (
        np.int64(buffer[position])
        | np.int64(buffer[position + 1]) << 8
        | np.int64(buffer[position + 2]) << 16
        | np.int64(buffer[position + 3]) << 24
    )
    return value - (1 << 32) if value >= (1 << 31) else value


@njit(cache=True, nogil=True)
def _tag(buffer, position, stop, first, second):
    """First and last byte of the text of a tag such as CB:Z; (-1, -1) if there is none, (-2, -2) if damaged."""
    while position + 3 <= stop:
        kind = buffer[position + 2]
        wanted = buffer[position] == first and buffer[position + 1] == second
        position += 3
        if kind == 65 or kind == 99 or kind == 67:  # A c C
            position += 1
        elif kind == 115 or kind == 83:  # s S
            position += 2
        elif kind == 105 or kind == 73 or kind == 102:  # i I f
            position += 4
        elif kind == 90 or kind == 72:  # Z H
            begin = position
            while position < stop and buffer[position] != 0:
                position += 1
            if wanted:
                return begin, position
            position += 1
        elif kind == 66:  # B
            if position + 5 > stop:
                return -2, -2
            inner = buffer[position]
            width = 1 if inner == 99 or inner == 67 else (2 if inner == 115 or inner == 83 else 4)
            position += 5 + width * _word(buffer, position + 1)
        else:
            return -2, -2
    return -1, -1


@njit(cache=True, nogil=True)
def parse_records(
    buffer,
    begin,
    stop,
    paired,
    keep_duplicates,
    minimum_quality,
    tag,
    out_code,
    out_start,
    out_end,
    out_cell,
    out_strand,
    cells,
    insert_cells,
    cell_codes,
    cell_seen,
    chromosomes,
    counters,
):
    """Read the complete records of ``buffer[begin:stop]``.

    With ``paired`` a proper pair gives one fragment, taken from its left mate; otherwise each first (or unpaired) read
    gives its aligned span. Returns (rows, consumed bytes, what stopped it).
    """
    slots, hashes, offsets, pool, used = cells
    row, position = 0, begin
    while position + 36 <= stop:
        if row >= len(out_start):
            return row, position, FULL
        size = _word(buffer, position)
        if size < 32:
            return row, position, DAMAGED
        following = position + 4 + size
        if following > stop:
            break
        chromosome, start = _word(buffer, position + 4), _word(buffer, position + 8)
        name_length, quality = np.int64(buffer[position + 12]), np.int64(buffer[position + 13])
        operations = np.int64(buffer[position + 16]) | np.int64(buffer[position + 17]) << 8
        flag = np.int64(buffer[position + 18]) | np.int64(buffer[position + 19]) << 8
        bases, template = _word(buffer, position + 20), _word(buffer, position + 32)
        cigar = position + 36 + name_length
        tags = cigar + 4 * operations + (bases + 1) // 2 + bases
        if bases < 0 or tags > following or chromosome >= chromosomes:
            return row, position, DAMAGED
        here = position
        position = following
        if flag & IS_UNMAPPED or chromosome < 0 or start < 0:
            counters[UNMAPPED] += 1
            counters[RECORDS] += 1
            continue
        if not flag & (NOT_PRIMARY | SUPPLEMENTARY):
            counters[SEEN_PAIRED if flag & PAIRED else SEEN_SINGLE] += 1
        if flag & (NOT_PRIMARY | SUPPLEMENTARY):
            counters[SECONDARY] += 1
        elif flag & QC_FAIL:
            counters[QUALITY_FAIL] += 1
        elif flag & IS_DUPLICATE and not keep_duplicates:
            counters[DUPLICATE] += 1
        elif quality < minimum_quality:
            counters[LOW_QUALITY] += 1
        elif paired and not flag & PAIRED:
            counters[SINGLE] += 1
        elif paired and (not flag & PROPER or _word(buffer, here + 24) != chromosome):
            counters[NOT_PROPER] += 1
        elif paired and template == 0:
            counters[NO_LENGTH] += 1
        elif (paired and template > 0) or (not paired and not flag & SECOND):
            if paired:
                end = start + template
            else:
                end = start
                for operation in range(operations):
                    entry = _word(buffer, cigar + 4 * operation) & 0xFFFFFFFF
                    kind = entry & 15
                    if kind == 0 or kind == 2 or kind == 3 or kind == 7 or kind == 8:  # M D N = X
                        end += entry >> 4
                end = max(end, start + 1)
            cell = -1
            if len(tag):
                first, last = _tag(buffer, tags, following, tag[0], tag[1])
                if first == -2:
                    return row, here, DAMAGED
                if first < 0:
                    counters[RECORDS] += 1
                    counters[NO_BARCODE] += 1
                    continue
                cell = find_name(buffer, first, last, slots, hashes, offsets, pool, used, insert_cells)
                if cell == -2:
                    return row, here, MORE_BARCODES
                if cell >= 0 and len(cell_codes):
                    cell_seen[cell] = True
                    cell = cell_codes[cell]
                if cell < 0:
                    counters[RECORDS] += 1
                    counters[OTHER_BARCODE] += 1
                    continue
                out_cell[row] = cell
            out_code[row] = chromosome
            out_start[row] = start
            out_end[row] = end
            if not paired:
                out_strand[row] = -1 if flag & REVERSE else 1
            row += 1
        counters[RECORDS] += 1
    return row, position, DONE


@njit(cache=True, nogil=True)
def count_kinds(buffer, begin, stop):
    """Numbers of single reads and of mates of pairs among the mapped primary alignments of a block."""
    single, paired, position = 0, 0, begin
    while position + 36 <= stop:
        size = _word(buffer, position)
        if size < 32:
            break
        flag = np.int64(buffer[position + 18]) | np.int64(buffer[position + 19]) << 8
        if not flag & (IS_UNMAPPED | NOT_PRIMARY | SUPPLEMENTARY):
            if flag & PAIRED:
                paired += 1
            else:
                single += 1
        position += 4 + size
    return single, paired
