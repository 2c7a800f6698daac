"""The index beside a bgzip file (tabix, ``.tbi`` or ``.csi``), and the bytes of some of its chromosomes.

Of an index only the first and last place of each chromosome are used, which the SAM specification (section 5.2) and
those of tabix and CSI lay down. An index that does not cover its file from end to end is not used.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, NamedTuple

from diffbio_sc._logging import logger
from diffbio_sc.io._byte_source import LAST_BLOCK, ByteSource, PathLike, existing_file, library_errors

_TBI_PSEUDO_BIN = 37450
_LEAST_BYTES = 1 << 20  # compressed; chromosomes with fewer are read together


class FileRange(NamedTuple):
    """Lines of some chromosomes of a bgzip file.

    Attributes
    ----------
    begin, end
        Virtual offsets: place of a block of the file, times 2**16, and place in what it holds.
    chromosomes
        Their names, in the order of the file.
    """

    begin: int
    end: int
    chromosomes: tuple[str, ...]


def indexed_ranges(path: PathLike) -> list[FileRange] | None:
    """Ranges of a file that hold its chromosomes, small ones together; None without an index that covers the file."""
    where = existing_file(path)
    for ending in (".tbi", ".csi"):
        index = where + ending
        if not os.path.isfile(index):
            continue
        if os.path.getmtime(index) < os.path.getmtime(where):
            logger.warning(f"{index} is older than its file and is not used.")
            return None
        try:
            ranges = _read_index(index)
        except (struct.error, OSError, EOFError, zlib.error, UnicodeDecodeError, ValueError):
            logger.warning(f"{index} cannot be read as an index of tabix and is not used.")
            return None
        if not _covers(ranges, where):
            logger.warning(f"{index} does not cover its file and is not used.")
            return None
        return _together(ranges)
    return None


def _read_index(index: str) -> list[FileRange]:
    """First and last place of each chromosome, in the order of the file."""
    with gzip.open(index) as file:
        data = file.read()
    if data[:4] == b"TBI\x01":
        (number, *_, size), place = struct.unpack_from("<8i", data, 4), 36
        names, pseudo, bin_head, extra = data[place : place + size], _TBI_PSEUDO_BIN, "<Ii", True
        place += size
    elif data[:4] == b"CSI\x01":
        _, depth, length = struct.unpack_from("<3i", data, 4)
        (size,) = struct.unpack_from("<i", data, 16 + 24)
        names = data[16 + 28 : 16 + 28 + size]
        place = 16 + length
        (number,) = struct.unpack_from("<i", data, place)
        pseudo, bin_head, extra = ((1 << 3 * (depth + 1)) - 1) // 7 + 1, "<IQi", False
        place += 4
    else:
        raise ValueError("neither TBI nor CSI")
    ranges = []
    for name in names.split(b"\0")[:number]:
        (bins,) = struct.unpack_from("<i", data, place)
        place += 4
        begin, end = 1 << 64, 0
        for _ in range(bins):
            head = struct.unpack_from(bin_head, data, place)
            place += struct.calcsize(bin_head)
            chunks = struct.unpack_from(f"<{2 * head[-1]}Q", data, place)
            place += 16 * head[-1]
            if head[0] != pseudo and chunks:
                begin, end = min(begin, *chunks[::2]), max(end, *chunks[1::2])
        if extra:
            (windows,) = struct.unpack_from("<i", data, place)
            place += 4 + 8 * windows
        if end:
            ranges.append(FileRange(begin, end, (name.decode(),)))
    return sorted(ranges)


def _covers(ranges: list[FileRange], path: str) -> bool:
    """Whether the ranges follow each other up to the block that ends the file; only comments may stand before."""
    if not ranges or any(one.end != other.begin for one, other in pairwise(ranges)):
        return False
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - len(LAST_BLOCK), 0))
        if file.read() != LAST_BLOCK:
            return False
        try:
            return _is_end(file, ranges[-1].end, size - len(LAST_BLOCK)) and _is_comment(file, ranges[0].begin)
        except (EOFError, struct.error, zlib.error):
            return False  # the index is of another file


def _is_comment(file: IO[bytes], end: int) -> bool:
    """Whether nothing but comments stands before a virtual offset."""
    head, before = BlockReader(file, 0, end), bytearray()
    while block := head.next_block():
        before += block
    return all(line.startswith(b"#") for line in before.split(b"\n") if line)


def _is_end(file: IO[bytes], place: int, last: int) -> bool:
    """Whether a virtual offset is where the last block, at ``last``, begins, or the end of the block before."""
    if place >> 16 == last:
        return place & 0xFFFF == 0
    rest = BlockReader(file, place, last << 16)
    return not rest.next_block() and rest.address == last


def _together(ranges: list[FileRange]) -> list[FileRange]:
    result: list[FileRange] = []
    for one in ranges:
        if result and (result[-1].end >> 16) - (result[-1].begin >> 16) < _LEAST_BYTES:
            result[-1] = FileRange(result[-1].begin, one.end, result[-1].chromosomes + one.chromosomes)
        else:
            result.append(one)
    return result


def _inflate(values: bytes) -> bytes:
    try:
        from isal import isal_zlib  # several times as fast as zlib
    except ImportError:
        return zlib.decompress(values, -15)
    try:
        return isal_zlib.decompress(values, -15)
    except library_errors() as error:
        raise zlib.error(str(error)) from error


class BlockReader:
    """Blocks of a bgzip file, decompressed, between two virtual offsets."""

    def __init__(self, file: IO[bytes], begin: int, end: int):
        self.file, self.address, self.end = file, begin >> 16, end
        self._skipped = begin & 0xFFFF
        self._rest = memoryview(b"")
        file.seek(self.address)

    def next_block(self) -> bytes:
        """What the next block holds within the range; nothing at its end."""
        while (self.address, 0) < (self.end >> 16, self.end & 0xFFFF):
            here, values = self.address, self._decompress()
            stop = self.end & 0xFFFF if here == self.end >> 16 else len(values)
            values, self._skipped = values[self._skipped : stop], 0
            if values:
                return values
        return b""

    def _decompress(self) -> bytes:
        head = self.file.read(12)
        if head[:4] != b"\x1f\x8b\x08\x04":
            raise zlib.error("no block of bgzip where one is expected")
        fields = self.file.read(struct.unpack_from("<H", head, 10)[0])
        place, size = 0, 0
        while place + 4 <= len(fields):
            name, length = fields[place : place + 2], struct.unpack_from("<H", fields, place + 2)[0]
            if name == b"BC":
                size = struct.unpack_from("<H", fields, place + 4)[0] + 1
            place += 4 + length
        length = size - len(head) - len(fields)
        body = self.file.read(length) if length > 8 else b""
        if not body or len(body) < length:
            raise EOFError("a block of bgzip ends too early")
        values = _inflate(body[:-8])
        if struct.unpack("<II", body[-8:]) != (zlib.crc32(values), len(values)):
            raise zlib.error("a block of bgzip has another check sum")
        self.address += size
        return values

    def readinto(self, target: memoryview) -> int:
        """Fill ``target`` as far as the block at hand goes; returns the number of bytes, 0 at the end."""
        if not len(self._rest):
            self._rest = memoryview(self.next_block())
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _RangeSource(ByteSource):
    """The bytes of a range of a file."""

    def __init__(self, file: IO[bytes], stream: BlockReader, path: str, place: FileRange):
        super().__init__(file, stream, path)
        self.place = place

    def fraction(self) -> float:
        """Part of the range that has been read."""
        first, last = self.place.begin >> 16, self.place.end >> 16
        return min((self.stream.address - first) / (last - first), 1.0) if last > first else 1.0


@contextmanager
def open_range(path: PathLike, place: FileRange) -> Iterator[ByteSource]:
    """Open a range of a bgzip file."""
    where = existing_file(path)
    with open(where, "rb", buffering=1 << 20) as file:
        named = f"{where} (from {place.chromosomes[0]} on)"
        yield _RangeSource(file, BlockReader(file, place.begin, place.end), named, place)
