"""Compiled loops over the bytes of interval files: numbers and lines.

A general table reader keeps a column of text for each field before it turns names into codes; these loops write numbers
and codes straight from the bytes, so that memory is the result and one block of text.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diffbio_sc.io._name_table import find_name

# What stopped a parse: the end of the block, a full output, a full table of names, or a line that cannot be read.
DONE, FULL, MORE_NAMES, MORE_BARCODES, TOO_FEW_FIELDS, NOT_A_NUMBER, END_BEFORE_START, TOO_LARGE = range(8)

# Counters of rows that were read but not kept as they are.
LINES, EMPTY_INTERVALS, UNPAIRED, OTHER_BARCODE, OTHER_CHROMOSOME, PAST_END, CLIPPED, NEGATIVE = range(8)
N_COUNTERS = 8

# Positions in the array of columns.
BARCODE, COUNT, STRAND, VALUE = range(4)

_TAB, _NEWLINE, _RETURN, _SPACE, _HASH, _DOT = 9, 10, 13, 32, 35, 46
_LARGEST = 2**31 - 1


@njit(cache=True, nogil=True)
def whole_number(buffer, first, last):
    """(value, readable) of the bytes ``first`` to ``last``; values beyond 32 bits come back as 2**31."""
    negative = first < last and buffer[first] == 45
    if first < last and (buffer[first] == 45 or buffer[first] == 43):
        first += 1
    if first >= last:
        return 0, False
    value = 0
    for position in range(first, last):
        digit = int(buffer[position]) - 48
        if digit < 0 or digit > 9:
            return 0, False
        value = min(value * 10 + digit, _LARGEST + 1)
    return (-value if negative else value), True


@njit(cache=True, nogil=True)
def decimal_number(buffer, first, last):
    """(value, readable) of a decimal number such as ``-1.5e-3`` or ``nan``."""
    sign = 1.0
    if first < last and (buffer[first] == 45 or buffer[first] == 43):
        sign = -1.0 if buffer[first] == 45 else 1.0
        first += 1
    if last - first == 3 and (buffer[first] | 32) == 110 and (buffer[first + 1] | 32) == 97:
        return np.nan, True
    mantissa, shift, digits, seen_dot = 0, 0, 0, False
    position = first
    while position < last:
        letter = int(buffer[position])
        if letter == _DOT and not seen_dot:
            seen_dot = True
        elif 48 <= letter <= 57:
            digits += 1
            if mantissa < 10**17:
                mantissa = mantissa * 10 + (letter - 48)
                shift -= 1 if seen_dot else 0
            elif not seen_dot:
                shift += 1
        else:
            break
        position += 1
    if digits == 0:
        return 0.0, False
    if position < last:
        if (buffer[position] | 32) != 101:
            return 0.0, False
        exponent, good = whole_number(buffer, position + 1, last)
        if not good:
            return 0.0, False
        shift += exponent
    # 10**22 is the largest power of ten that float64 holds exactly.
    value = float(mantissa)
    while shift > 0 and value != 0.0 and value < np.inf:
        step = min(shift, 22)
        value *= 10.0**step
        shift -= step
    while shift < 0 and value != 0.0:
        step = min(-shift, 22)
        value /= 10.0**step
        shift += step
    return sign * value, True


@njit(cache=True, nogil=True)
def starts_with(buffer, first, last, word):
    """Whether the line begins with ``word`` and then a blank or its end."""
    if last - first < len(word):
        return False
    for position in range(len(word)):
        if buffer[first + position] != word[position]:
            return False
    return last - first == len(word) or buffer[first + len(word)] == _SPACE or buffer[first + len(word)] == _TAB


@njit(cache=True, nogil=True)
def parse_lines(
    buffer,
    begin,
    stop,
    whitespace,
    paired_ends,
    columns,
    out_code,
    out_start,
    out_end,
    out_cell,
    out_count,
    out_strand,
    out_value,
    names,
    cells,
    insert_cells,
    cell_codes,
    cell_seen,
    sizes,
    counters,
    track,
    browser,
):
    """Read the complete lines of ``buffer[begin:stop]``.

    Name, start and end are the first three fields; ``columns`` holds the positions of barcode, count, strand and value,
    -1 where not wanted. ``paired_ends`` reads BEDPE lines of two mates. ``names`` and ``cells`` are tables of names
    (slots, hashes, offsets, pool, used); ``cell_seen`` marks the listed barcodes that occur. ``sizes`` (by code, may be
    empty) clips.

    Returns (rows, consumed bytes, what stopped it, the field it stopped at).
    """
    slots, hashes, offsets, pool, used = names
    cell_slots, cell_hashes, cell_offsets, cell_pool, cell_used = cells
    last_field = 5 if paired_ends else max(2, columns.max())
    needed = 6 if paired_ends else max(3, columns[BARCODE] + 1, columns[COUNT] + 1, columns[VALUE] + 1)
    plain = not paired_ends and not whitespace
    field_first = np.zeros(last_field + 1, np.int64)
    field_last = np.zeros(last_field + 1, np.int64)
    previous_first, previous_width, previous_code = 0, 0, np.int64(-1)
    row, capacity = 0, len(out_start)
    position = begin
    n_sizes = len(sizes)
    while position < stop:
        line = position
        if row >= capacity:
            return row, line, FULL, 0
        # Most lines begin as the one before: the same name, a tab, digits, a tab, digits. That much is read in one
        # pass; whatever looks different goes the long way.
        quick, code, start, end, fields = False, previous_code, 0, 0, 0
        if plain and previous_code >= 0 and position + previous_width + 25 < stop:
            for step in range(previous_width + 1):
                if buffer[position + step] != buffer[previous_first + step]:
                    break
            else:
                cursor = position + previous_width + 1
                digit = np.int64(buffer[cursor]) - 48
                width = cursor
                while 0 <= digit <= 9 and cursor - width < 10:
                    start = start * 10 + digit
                    cursor += 1
                    digit = np.int64(buffer[cursor]) - 48
                if buffer[cursor] == _TAB and 0 < cursor - width < 10:
                    cursor += 1
                    width = cursor
                    digit = np.int64(buffer[cursor]) - 48
                    while 0 <= digit <= 9 and cursor - width < 10:
                        end = end * 10 + digit
                        cursor += 1
                        digit = np.int64(buffer[cursor]) - 48
                    quick = 0 < cursor - width < 10 and (buffer[cursor] == _TAB or buffer[cursor] == _NEWLINE)
        line_last = line
        if quick:
            fields, first, position = 2, width, cursor
        else:
            first = position
        # The other fields. In text that blanks separate, runs of them count once.
        if quick and last_field == 2:
            fields = 3
            while position < stop and buffer[position] != _NEWLINE:
                position += 1
        else:
            while position < stop:
                letter = buffer[position]
                if letter == _NEWLINE:
                    break
                if letter == _TAB or (whitespace and letter == _SPACE):
                    if not (whitespace and position == first):
                        if fields <= last_field:
                            field_first[fields] = first
                            field_last[fields] = position
                        fields += 1
                    first = position + 1
                position += 1
        if position >= stop:
            return row, line, DONE, 0
        if not quick or last_field > 2:
            line_last = position
            if line_last > line and buffer[line_last - 1] == _RETURN:
                line_last -= 1
            if not (whitespace and line_last <= first):
                if fields <= last_field:
                    field_first[fields] = first
                    field_last[fields] = line_last
                fields += 1
        position += 1
        if not quick:
            if line_last == line or buffer[line] == _HASH:
                counters[LINES] += 1
                continue
            if starts_with(buffer, line, line_last, track) or starts_with(buffer, line, line_last, browser):
                counters[LINES] += 1
                continue
        if fields < needed:
            return row, line, TOO_FEW_FIELDS, fields

        if paired_ends:
            first_start, good_a = whole_number(buffer, field_first[1], field_last[1])
            first_end, good_b = whole_number(buffer, field_first[2], field_last[2])
            second_start, good_c = whole_number(buffer, field_first[4], field_last[4])
            second_end, good_d = whole_number(buffer, field_first[5], field_last[5])
            if not (good_a and good_b and good_c and good_d):
                wrong = 1 if not good_a else (2 if not good_b else (4 if not good_c else 5))
                return row, line, NOT_A_NUMBER, wrong
            width = field_last[0] - field_first[0]
            together = width == field_last[3] - field_first[3] and first_start >= 0 and second_start >= 0
            for step in range(width):
                if not together or buffer[field_first[0] + step] != buffer[field_first[3] + step]:
                    together = False
                    break
            if not together:
                counters[LINES] += 1
                counters[UNPAIRED] += 1
                continue
            start, end = min(first_start, second_start), max(first_end, second_end)
        elif not quick:
            start, good = whole_number(buffer, field_first[1], field_last[1])
            if not good:
                return row, line, NOT_A_NUMBER, 1
            end, good = whole_number(buffer, field_first[2], field_last[2])
            if not good:
                return row, line, NOT_A_NUMBER, 2
        if start > _LARGEST or end > _LARGEST:
            return row, line, TOO_LARGE, 1 if start > _LARGEST else 2
        if end < start:
            return row, line, END_BEFORE_START, 1
        if not quick:
            first, last = field_first[0], field_last[0]
            code = find_name(buffer, first, last, slots, hashes, offsets, pool, used, True)
            if code == -2:
                return row, line, MORE_NAMES, 0
            previous_first, previous_width, previous_code = first, last - first, code

        cell = -1
        if columns[BARCODE] >= 0:
            first, last = field_first[columns[BARCODE]], field_last[columns[BARCODE]]
            cell = find_name(
                buffer, first, last, cell_slots, cell_hashes, cell_offsets, cell_pool, cell_used, insert_cells
            )
            if cell == -2:
                return row, line, MORE_BARCODES, 0
            if cell >= 0 and len(cell_codes) > 0:
                cell_seen[cell] = True
                cell = cell_codes[cell]
        count = 1
        if columns[COUNT] >= 0:
            count, good = whole_number(buffer, field_first[columns[COUNT]], field_last[columns[COUNT]])
            if not good or count < 0:
                return row, line, NOT_A_NUMBER, columns[COUNT]
            if count > _LARGEST:
                return row, line, TOO_LARGE, columns[COUNT]
        value = 0.0
        if columns[VALUE] >= 0:
            value, good = decimal_number(buffer, field_first[columns[VALUE]], field_last[columns[VALUE]])
            if not good:
                return row, line, NOT_A_NUMBER, columns[VALUE]
        counters[LINES] += 1
        if columns[BARCODE] >= 0 and cell < 0:
            counters[OTHER_BARCODE] += 1
            continue
        if n_sizes > 0:
            if code >= n_sizes:
                counters[OTHER_CHROMOSOME] += 1
                continue
            if start >= sizes[code]:
                counters[PAST_END] += 1
                continue
            if end > sizes[code]:
                counters[CLIPPED] += 1
                end = sizes[code]
        if start < 0:
            counters[NEGATIVE] += 1
            start = 0
        if end <= start:
            counters[EMPTY_INTERVALS] += 1
            continue

        out_code[row] = code
        out_start[row] = start
        out_end[row] = end
        if columns[BARCODE] >= 0:
            out_cell[row] = cell
        if columns[COUNT] >= 0:
            out_count[row] = count
        if columns[STRAND] >= 0:
            letter = buffer[field_first[columns[STRAND]]] if columns[STRAND] < fields else np.uint8(_DOT)
            out_strand[row] = 1 if letter == 43 else (-1 if letter == 45 else 0)
        if columns[VALUE] >= 0:
            out_value[row] = value
        row += 1
    return row, position, DONE, 0
