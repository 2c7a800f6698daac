"""Reading interval files line by line in compiled code, one block of text at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffbio_sc._checks import counted, name_heads
from diffbio_sc._logging import logger
from diffbio_sc.genome.chrom_sizes import ChromSizes, match_chromosomes, read_chrom_sizes
from diffbio_sc.genome.interval_builder import IntervalBuilder
from diffbio_sc.genome.intervals import COLUMN_TYPES, Intervals
from diffbio_sc.io import _line_kernels as kernels
from diffbio_sc.io._byte_source import BLOCK_BYTES, ByteSource, PathLike, as_paths, open_bytes, require_text
from diffbio_sc.io._name_table import BarcodeTable, NameTable
from diffbio_sc.io.tabix import FileRange, open_range

# A line holds at least a name, two numbers and three separators.
_SHORTEST_LINE = 6
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEWLINE, _RETURN = 10, 13
_EXAMPLES = 1 << 16  # bytes of a file in which barcodes are looked for, to show some

Locate = Callable[["Layout", str], tuple[np.ndarray, bool]]


class Layout:
    """Where the fields of a text file are, told by its first line of data."""

    def __init__(self, line: str):
        self.whitespace = "\t" not in line
        self.fields = line.split() if self.whitespace else line.split("\t")


class LineBuffer:
    """A file's text, one block of complete lines at a time; every line ends with a newline.

    A byte-order mark is passed over. Lines may end with a carriage return, alone or before the newline.
    """

    def __init__(self, source: ByteSource):
        self.source = source
        self.bytes = np.empty(BLOCK_BYTES, np.uint8)
        self.position, self.filled, self.ended = 0, 0, False
        self.fill()
        require_text(self.bytes[: self.filled].tobytes(), source.path)
        if self.bytes[:3].tobytes() == _BYTE_ORDER_MARK and self.filled >= 3:
            self.position = 3

    def fill(self) -> bool:
        """Drop what lies before ``position`` and read on; returns whether anything was added."""
        kept = self.filled - self.position
        self.bytes[:kept] = self.bytes[self.position : self.filled].copy()
        room = memoryview(self.bytes)[kept:-1]  # the last byte is for a newline that the last line may lack
        added = self.source.readinto(room)
        self.position, self.filled, self.ended = 0, kept + added, added < len(room)
        self._end_lines(max(kept - 1, 0))
        return added > 0

    def _end_lines(self, begin: int) -> None:
        """Make newlines of carriage returns that no newline follows, and end the last line of the file."""
        text = self.bytes[begin : self.filled]
        returns = np.flatnonzero(text == _RETURN)
        inner = returns[returns < len(text) - 1]  # what follows the last byte is not known yet
        text[inner[text[inner + 1] != _NEWLINE]] = _NEWLINE
        if self.ended and self.filled and self.bytes[self.filled - 1] != _NEWLINE:
            self.bytes[self.filled] = _NEWLINE
            self.filled += 1

    def next_line(self) -> bytes | None:
        """The next complete line of the block with its end, which ``position`` stays before; None if there is none."""
        text = self.bytes[self.position : self.filled]
        step = 4096
        for first in range(0, len(text), step):
            ends = np.flatnonzero(text[first : first + step] == _NEWLINE)
            if len(ends):
                return text[: first + ends[0] + 1].tobytes()
        return None


def _is_data(line: str) -> bool:
    """Whether a line is neither comment nor declaration nor column names."""
    words = line.split()
    declared = not words or line.startswith("#") or words[0] in ("track", "browser")
    headed = len(words) > 1 and words[1].lower() in ("start", "chromstart", "start1", "txstart")
    return not declared and not headed


class LineReader:
    """Streams one or several interval files into arrays.

    Parameters
    ----------
    locate
        Turns the layout of the first line of data, and the file's name, into the positions of barcode, count, strand
        and value (-1: not there) and whether lines are pairs of mates.
    columns
        What a file without any line of data is taken to have beside start and end.
    sizes, barcodes, paired
        As in the readers.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        columns: Sequence[str] = (),
        sizes: ChromSizes | None = None,
        barcodes: Sequence[str] | Mapping[str, str] | None = None,
        paired: bool = True,
    ):
        self.locate, self.paired, self.columns = locate, paired, ["start", "end", *columns]
        self.sizes = None if sizes is None else read_chrom_sizes(sizes)
        self.size_array = np.array(list((self.sizes or {}).values()), np.int64)
        self.names = NameTable(list(self.sizes or {}))
        self.cells = BarcodeTable(barcodes)
        self.builder: IntervalBuilder | None = None
        self.counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self.first_barcodes: list[str] = []

    def read(self, paths: PathLike | Sequence[PathLike]) -> Intervals:
        """Read all files as one sample."""
        files = as_paths(paths)
        name = Path(files[0]).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        for index, path in enumerate(files):
            with open_bytes(path) as source:
                self._read_file(LineBuffer(source), index, len(files))
        self.report(name, self.builder.rows if self.builder is not None else 0)
        return self._finish(name)

    def read_range(self, path: PathLike, place: FileRange) -> tuple[Intervals, np.ndarray]:
        """Read some chromosomes of an indexed file; its counters are for :meth:`report`."""
        with open_range(path, place) as source:
            self._read_file(LineBuffer(source), 0, 1)
        return self._finish(Path(path).name), self.counters

    def _finish(self, name: str) -> Intervals:
        builder = self.builder or IntervalBuilder(self.columns)
        return builder.finish(
            self.names.names() if self.sizes is None else list(self.sizes),
            barcodes=self.cells.labels() if "cell_code" in builder.columns else None,
            sizes=self.sizes,
            paired=self.paired,
            name=name,
        )

    def _read_file(self, lines: LineBuffer, index: int, files: int) -> None:
        path = lines.source.path
        layout = self._find_layout(lines)
        if layout is None:
            return
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
            head = lines.bytes[lines.position : min(lines.filled, lines.position + _EXAMPLES)].tobytes()
            rows = [text.split("\t") for text in head.decode(errors="replace").split("\n")[:-1] if text[:1] != "#"]
            self.first_barcodes = list(dict.fromkeys(fields[3] for fields in rows if len(fields) > 3))[:6]
        capacity = BLOCK_BYTES // _SHORTEST_LINE
        outputs = {"code": np.empty(capacity, np.int32)}
        for key, dtype in COLUMN_TYPES.items():
            outputs[key] = np.empty(capacity if key in wanted else 0, dtype)
        while True:
            before = lines.position
            self._parse(lines, layout, columns, mates, outputs, (index + lines.source.fraction()) / files)
            if lines.ended:
                break
            if lines.position == before == 0:
                raise self._too_long(path)
            lines.fill()

    def _find_layout(self, lines: LineBuffer) -> Layout | None:
        """Pass over what stands before the first line of data, however long; None if there is no such line."""
        self.line = 0
        while True:
            found = lines.next_line()
            if found is None:
                if lines.ended:
                    return None
                if lines.position == 0:
                    raise self._too_long(lines.source.path)
                lines.fill()
                continue
            text = found.decode(errors="backslashreplace").rstrip("\r\n")
            if _is_data(text):
                return Layout(text)
            lines.position += len(found)
            self.line += 1

    def _parse(
        self,
        lines: LineBuffer,
        layout: Layout,
        columns: np.ndarray,
        mates: bool,
        outputs: dict[str, np.ndarray],
        fraction: float,
    ) -> None:
        """Parse the complete lines of the block, and move its position past them."""
        builder = self.builder
        assert builder is not None
        while True:
            before = self.counters[kernels.LINES]
            rows, consumed, status, field = kernels.parse_lines(
                lines.bytes,
                lines.position,
                lines.filled,
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
                self.cells.seen,
                self.size_array,
                self.counters,
                _TRACK,
                _BROWSER,
            )
            self.line += int(self.counters[kernels.LINES] - before)
            builder.append(outputs["code"][:rows], {key: outputs[key][:rows] for key in builder.columns}, fraction)
            lines.position = int(consumed)
            if status == kernels.DONE:
                return
            if status == kernels.MORE_NAMES:
                self.names.grow()
            elif status == kernels.MORE_BARCODES:
                self.cells.table.grow()
            elif status != kernels.FULL:
                self._refuse(lines.bytes[lines.position : lines.filled], status, int(field), lines.source.path)

    def _too_long(self, path: str) -> ValueError:
        return ValueError(f"{path} has a line of more than {BLOCK_BYTES} bytes after line {self.line}.")

    def _refuse(self, rest: np.ndarray, status: int, field: int, path: str) -> None:
        text = rest[:2000].tobytes().split(b"\n")[0].decode(errors="backslashreplace").rstrip("\r")
        shown = text if len(text) <= 200 else text[:200] + " ..."
        problem = {
            kernels.TOO_FEW_FIELDS: f"has {field} fields, fewer than the lines before it or than this format needs",
            kernels.NOT_A_NUMBER: f"has no number in column {field + 1}",
            kernels.END_BEFORE_START: "has an end before its start",
            kernels.TOO_LARGE: f"has a number of 2**31 or more in column {field + 1}",
        }[status]
        raise ValueError(
            f"{path}, line {self.line + 1} {problem}: {shown!r}. Expected columns separated by tabs: chromosome, "
            "start, end (0-based, half-open), and what this format has further."
        )

    def report(self, name: str, rows: int) -> None:
        """Warn about rows that were not taken as they are, as the counters say."""
        count = {key: int(self.counters[getattr(kernels, key)]) for key in _MESSAGES}
        if self.sizes is not None and not rows and count["OTHER_CHROMOSOME"]:
            found = self.names.names()[len(self.sizes) :]
            match_chromosomes(found, list(self.sizes), left_name=name, right_name="the chromosome sizes")
        if rows or count["OTHER_BARCODE"]:
            self.cells.report(name, self.first_barcodes, stacklevel=6)
        told = {
            key: f"{counted(number, noun)} {what}"
            for key, (noun, what) in _MESSAGES.items()
            for number in [count[key]]
            if number
        }
        if "OTHER_BARCODE" in told:
            logger.info(f"{name}: {told.pop('OTHER_BARCODE')}.")
        messages = list(told.values())
        if self.sizes is not None and count["OTHER_CHROMOSOME"]:
            messages.append(f"(not in the sizes: {name_heads(self.names.names()[len(self.sizes) :])})")
        if messages:
            warnings.warn(f"{name}: {', '.join(messages)}.", UserWarning, stacklevel=4)
        if not rows:
            warnings.warn(f"{name} has no intervals.", UserWarning, stacklevel=4)


_TRACK = np.frombuffer(b"track", np.uint8)
_BROWSER = np.frombuffer(b"browser", np.uint8)
_MESSAGES = {
    "EMPTY_INTERVALS": ("interval", "of length 0 left out"),
    "UNPAIRED": ("pair", "on two chromosomes or with one mate unmapped left out"),
    "OTHER_BARCODE": ("fragment", "of other barcodes left out"),
    "OTHER_CHROMOSOME": ("interval", "on chromosomes without a size left out"),
    "PAST_END": ("interval", "starting past the end of their chromosome left out"),
    "CLIPPED": ("interval", "clipped at the end of the chromosome"),
    "NEGATIVE": ("interval", "clipped at position 0"),
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
