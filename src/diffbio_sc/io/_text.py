"""Reading interval files block by block: compressed or not, whatever their name says."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from diffbio_sc.genome.chrom_sizes import ChromSizes, read_chrom_sizes
from diffbio_sc.genome.intervals import COLUMN_TYPES, IntervalBuilder, Intervals, match_chromosomes, name_heads
from diffbio_sc.io import _text_kernels as kernels

BLOCK_BYTES = 1 << 22
# A line holds at least a name, two numbers and three separators.
_SHORTEST_LINE = 6

PathLike = str | os.PathLike[str]

_MAGIC = {
    b"BAM\x01": "a BAM file: use dbio.io.read_bam",
    b"CRAM": "a CRAM file: convert it with `samtools view -b`, then use dbio.io.read_bam",
    b"\x26\xfc\x8f\x88": "a bigWig file: use dbio.io.read_bigwig",
    b"\x88\x8f\xfc\x26": "a bigWig file: use dbio.io.read_bigwig",
    b"BZh": "compressed by bzip2: decompress it first, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it first, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: decompress it first, or compress it by gzip",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
}


class NameTable:
    """Names in order of first appearance, looked up by compiled code; grows as needed."""

    def __init__(self, names: Sequence[str] = ()):
        encoded = [name.encode() for name in names]
        self.pool = np.zeros(max(1 << 12, 2 * sum(map(len, encoded))), np.uint8)
        self.hashes = np.zeros(max(1 << 8, 2 * len(encoded)), np.uint64)
        self.offsets = np.zeros(len(self.hashes) + 1, np.int64)
        self.slots = np.full(1 << int(np.ceil(np.log2(2 * len(self.hashes)))), -1, np.int32)
        self.used = np.zeros(1, np.int64)
        for name in encoded:
            kernels.find_name(
                np.frombuffer(name, np.uint8),
                0,
                len(name),
                self.slots,
                self.hashes,
                self.offsets,
                self.pool,
                self.used,
                True,
            )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the compiled loops take."""
        return self.slots, self.hashes, self.offsets, self.pool, self.used

    def grow(self) -> None:
        """Make room for twice as many names."""
        self.pool = np.concatenate([self.pool, np.zeros(len(self.pool) + (1 << 16), np.uint8)])
        self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
        self.offsets = np.concatenate([self.offsets, np.zeros(len(self.hashes) + 1 - len(self.offsets), np.int64)])
        self.slots = np.full(2 * len(self.hashes), -1, np.int32)
        kernels.rehash(self.slots, self.hashes, self.used[0])

    def names(self) -> list[str]:
        """All names, in order of first appearance."""
        pool, offsets = self.pool.tobytes(), self.offsets
        return [
            pool[offsets[index] : offsets[index + 1]].decode(errors="backslashreplace") for index in range(self.used[0])
        ]


class BarcodeTable:
    """Barcodes to keep (all by default) and the code that each is read as: its own, or that of its label."""

    def __init__(self, barcodes: Sequence[str] | Mapping[str, str] | None = None):
        self.insert = barcodes is None
        self.listed = [str(name) for name in barcodes] if barcodes is not None else []
        self.codes = np.empty(0, np.int32)
        self.table = NameTable(self.listed)
        self._labels = self.listed
        if barcodes is None:
            return
        if not self.listed:
            raise ValueError("barcodes must hold at least one barcode, found none.")
        if self.table.used[0] != len(self.listed):
            raise ValueError(
                f"barcodes must be unique, found {len(self.listed)} of which {self.table.used[0]} are different."
            )
        labels = [str(label) for label in barcodes.values()] if isinstance(barcodes, Mapping) else self.listed
        self._labels = list(dict.fromkeys(labels))
        lookup = {label: code for code, label in enumerate(self._labels)}
        self.codes = np.array([lookup[label] for label in labels], np.int32)

    def labels(self) -> list[str]:
        """Names that the codes point to."""
        return self.table.names() if self.insert else self._labels


class ByteSource:
    """A file's bytes, decompressed if they are compressed, and the part of the file read so far."""

    def __init__(self, raw: IO[bytes], stream: Any, path: str):
        self.raw, self.stream, self.path = raw, stream, path
        self.size = os.fstat(raw.fileno()).st_size

    def readinto(self, target: memoryview) -> int:
        """Fill ``target`` as far as possible; 0 at the end."""
        filled = 0
        try:
            while filled < len(target):
                count = self.stream.readinto(target[filled:])
                if not count:
                    break
                filled += count
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(
                f"{self.path} cannot be decompressed ({error}): it is cut short or damaged. Get the file again."
            ) from error
        return filled

    def fraction(self) -> float:
        """Part of the file that has been read."""
        return min(self.raw.tell() / self.size, 1.0) if self.size else 1.0


@contextmanager
def open_bytes(path: PathLike) -> Iterator[ByteSource]:
    """Open a plain or gzip (also bgzip) file by what it holds, not by its name."""
    where = os.fspath(path)
    if not Path(where).exists():
        raise FileNotFoundError(f"there is no file {where!r}.")
    with open(where, "rb", buffering=0) as raw:
        magic = raw.read(2)
        raw.seek(0)
        if magic != b"\x1f\x8b":
            yield ByteSource(raw, raw, where)
            return
        try:
            from isal import igzip as gzip  # several times as fast as zlib
        except ImportError:
            import gzip  # type: ignore[no-redef]
        with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            yield ByteSource(raw, stream, where)


def as_paths(paths: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several as a list."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise ValueError("expected a path or a list of paths, found an empty list.")
    return [os.fspath(path) for path in several]


class Layout:
    """Where the fields of a text file are, told by its first line of data."""

    def __init__(self, line: str):
        self.whitespace = "\t" not in line
        self.fields = line.split() if self.whitespace else line.split("\t")


def first_data_line(source: bytes) -> tuple[str, int] | None:
    """First line that is neither comment nor declaration nor column names, and where it begins; None if none is."""
    position = 0
    for raw_line in source.splitlines(keepends=True):
        line = raw_line.decode(errors="backslashreplace").rstrip("\r\n")
        words = line.split()
        declared = not words or line.startswith("#") or words[0] in ("track", "browser")
        headed = len(words) > 1 and words[1].lower() in ("start", "chromstart", "start1", "txstart")
        if not declared and not headed:
            return line, position
        position += len(raw_line)
    return None


class TextReader:
    """Streams one or several interval files into arrays.

    ``locate`` turns the layout of the first line of data into the positions of barcode, count, strand and value (-1:
    not there) and whether lines are pairs of mates.
    """

    def __init__(
        self,
        locate: Any,
        *,
        sizes: ChromSizes | None = None,
        barcodes: Sequence[str] | Mapping[str, str] | None = None,
        paired: bool = True,
    ):
        self.locate, self.paired = locate, paired
        self.sizes = None if sizes is None else read_chrom_sizes(sizes)
        self.size_array = np.array(list((self.sizes or {}).values()), np.int64)
        self.names = NameTable(list(self.sizes or {}))
        self.cells = BarcodeTable(barcodes)

    def read(self, paths: PathLike | Sequence[PathLike]) -> Intervals:
        """Read all files as one sample."""
        files = as_paths(paths)
        name = Path(files[0]).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        self.builder: IntervalBuilder | None = None
        self.counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self.first_barcodes: list[str] = []
        for index, path in enumerate(files):
            self._read_file(path, index, len(files))
        builder = self.builder or IntervalBuilder(["start", "end"])
        self._report(name, builder.rows)
        barcodes = self.cells.labels() if "cell_code" in builder.columns else None
        return builder.finish(
            self.names.names() if self.sizes is None else list(self.sizes),
            barcodes=barcodes,
            sizes=self.sizes,
            paired=self.paired,
            name=name,
        )

    def _read_file(self, path: str, index: int, files: int) -> None:
        buffer = np.empty(BLOCK_BYTES, np.uint8)
        with open_bytes(path) as source:
            filled = source.readinto(memoryview(buffer)[:-1])
            head = buffer[: min(filled, 1 << 16)].tobytes()
            for magic, what in _MAGIC.items():
                if head.startswith(magic):
                    raise ValueError(f"{path} is no text of intervals but {what}.")
            if b"\x00" in head:
                raise ValueError(f"{path} is no text of intervals: it holds bytes of value 0 (UTF-16, or binary).")
            found = first_data_line(head)
            if found is None:
                return
            line, position = found
            self.line = head[:position].count(b"\n")
            layout = Layout(line)
            columns, mates = self.locate(layout, path)
            wanted = ["start", "end", *(key for key, column in _OPTIONAL.items() if columns[column] >= 0)]
            if self.builder is None:
                self.builder = IntervalBuilder(wanted)
            elif list(self.builder.columns) != wanted:
                raise ValueError(
                    f"{path} has the columns {wanted}, the file before it {list(self.builder.columns)}: files that are "
                    "read as one sample must have the same."
                )
            if not self.cells.insert and not self.first_barcodes:
                lines = [text.split("\t") for text in head.decode(errors="replace").splitlines() if text[:1] != "#"]
                self.first_barcodes = list(dict.fromkeys(fields[3] for fields in lines if len(fields) > 3))[:5]
            rows = BLOCK_BYTES // _SHORTEST_LINE
            outputs = {"code": np.empty(rows, np.int32)}
            for key, dtype in COLUMN_TYPES.items():
                outputs[key] = np.empty(rows if key in wanted else 0, dtype)
            while True:
                ended = filled < len(buffer) - 1
                if ended and filled and buffer[filled - 1] != 10:
                    buffer[filled] = 10  # the last line may lack its end
                    filled += 1
                fraction = (index + source.fraction()) / files
                position = self._parse(
                    buffer, position, filled, self.builder, layout, columns, mates, outputs, path, fraction
                )
                if ended:
                    break
                if position == 0:
                    raise ValueError(f"{path} has a line of more than {BLOCK_BYTES} bytes after line {self.line}.")
                kept = filled - position
                buffer[:kept] = buffer[position:filled].copy()
                filled = kept + source.readinto(memoryview(buffer)[kept:-1])
                position = 0

    def _parse(
        self,
        buffer: np.ndarray,
        position: int,
        stop: int,
        builder: IntervalBuilder,
        layout: Layout,
        columns: np.ndarray,
        mates: bool,
        outputs: dict[str, np.ndarray],
        path: str,
        fraction: float,
    ) -> int:
        """Parse complete lines from ``position`` on; returns where the last of them ends."""
        while True:
            before = self.counters[kernels.LINES]
            rows, consumed, status, field = kernels.parse_lines(
                buffer,
                position,
                stop,
                layout.whitespace,
                mates,
                columns,
                outputs["code"],
                outputs["start"],
                outputs["end"],
                outputs["cell_code"],
                outputs["count"],
                outputs["strand"],
                outputs["value"],
                self.names.arrays,
                self.cells.table.arrays,
                self.cells.insert,
                self.cells.codes,
                self.size_array,
                self.counters,
                _TRACK,
                _BROWSER,
            )
            self.line += int(self.counters[kernels.LINES] - before)
            values = {key: outputs[key][:rows] for key in builder.columns}
            builder.append(outputs["code"][:rows], values, fraction)
            position = int(consumed)
            if status == kernels.DONE:
                return position
            if status == kernels.MORE_NAMES:
                self.names.grow()
            elif status == kernels.MORE_BARCODES:
                self.cells.table.grow()
            elif status != kernels.FULL:
                self._refuse(buffer[position:stop], status, int(field), path)

    def _refuse(self, rest: np.ndarray, status: int, field: int, path: str) -> None:
        text = rest[:2000].tobytes().split(b"\n")[0].decode(errors="backslashreplace").rstrip("\r")
        shown = text if len(text) <= 200 else text[:200] + " ..."
        problem = {
            kernels.TOO_FEW_FIELDS: f"has {field} fields, fewer than the lines before it or than this format needs",
            kernels.NOT_A_NUMBER: f"has no number in column {field + 1}",
            kernels.END_BEFORE_START: "has an end before its start",
            kernels.TOO_LARGE: "has a position of 2**31 or more",
        }[status]
        raise ValueError(
            f"{path}, line {self.line + 1} {problem}: {shown!r}. Expected columns separated by tabs: chromosome, "
            "start, end (0-based, half-open), and what this format has further."
        )

    def _report(self, name: str, rows: int) -> None:
        """Warn about rows that were not taken as they are."""
        count = {key: int(self.counters[getattr(kernels, key)]) for key in _MESSAGES}
        if self.sizes is not None and not rows and count["OTHER_CHROMOSOME"]:
            found = self.names.names()[len(self.sizes) :]
            match_chromosomes(found, list(self.sizes), left_name=name, right_name="the chromosome sizes")
        if not self.cells.insert and not rows and count["OTHER_BARCODE"]:
            raise ValueError(
                f"{name} has none of the {len(self.cells.listed)} barcodes asked for: {name_heads(self.cells.listed)}. "
                f"It has {self.first_barcodes}. Compare suffixes such as '-1' and prefixes of samples."
            )
        messages = [_MESSAGES[key].format(number) for key, number in count.items() if number and key != "OTHER_BARCODE"]
        if self.sizes is not None and count["OTHER_CHROMOSOME"]:
            messages.append(f"(not in the sizes: {name_heads(self.names.names()[len(self.sizes) :])})")
        if messages:
            warnings.warn(f"{name}: {', '.join(messages)}.", UserWarning, stacklevel=5)
        if not rows:
            warnings.warn(f"{name} has no intervals.", UserWarning, stacklevel=5)


_TRACK = np.frombuffer(b"track", np.uint8)
_BROWSER = np.frombuffer(b"browser", np.uint8)
_MESSAGES = {
    "EMPTY_INTERVALS": "{:,} intervals of length 0 left out",
    "UNPAIRED": "{:,} pairs on two chromosomes or with one mate unmapped left out",
    "OTHER_BARCODE": "{:,} fragments of other barcodes left out",
    "OTHER_CHROMOSOME": "{:,} intervals on chromosomes without a size left out",
    "PAST_END": "{:,} intervals that start past the end of their chromosome left out",
    "CLIPPED": "{:,} intervals clipped at the end of their chromosome",
    "NEGATIVE": "{:,} intervals clipped at position 0",
}


_OPTIONAL = {
    "cell_code": kernels.BARCODE,
    "count": kernels.COUNT,
    "strand": kernels.STRAND,
    "value": kernels.VALUE,
}


def layout_columns(*, barcode: int = -1, count: int = -1, strand: int = -1, value: int = -1) -> np.ndarray:
    """Positions of the fields after the first three, as the compiled loop wants them."""
    return np.array([barcode, count, strand, value], np.int64)
