"""Opening what peaks are called of: in this process, or as tasks of a cluster whose workers read the files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffbio_sc._warnings import heard
from diffbio_sc.blocks.rounds import Flow, Round
from diffbio_sc.genome.columns import (
    ColumnTuple,
    columns_on_disk,
    copy_column,
    discard,
    new_column,
    release,
    row_starts,
    write_rows,
)
from diffbio_sc.genome.intervals import Intervals

Source = Intervals | str | os.PathLike[str]

_SIGNALS = (".bw", ".bigwig", ".bedgraph", ".bdg", ".wig")
_INDEXED = (".tsv", ".frag", ".fragments")
_ROWS_AT_ONCE = 1 << 18


def check_source(source: Any) -> None:
    """Refuse what is neither intervals nor the path of a file of them."""
    if isinstance(source, Intervals):
        return
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "source must be dbio.io.Intervals, the path of a file of fragments or reads, or a dict of these, found "
            f"{type(source).__name__}."
        )
    if _plain_name(source).endswith(_SIGNALS):
        raise TypeError(
            f"{os.fspath(source)} is a signal, not fragments: peaks need counts. Pass the file that it was made from."
        )


def open_rounds(source: Any, folder: Path | None, *, barcodes: bool = False) -> Flow[Intervals]:
    """Intervals of a source; a file is read by workers where there is a folder that they share.

    Parameters
    ----------
    source
        Intervals, or the path of a file.
    folder
        Seen by all workers; without one files are read here. With one a file of fragments that has an index is read
        by chromosome, other files each by one worker.
    barcodes
        Whether the names of the barcodes of a file are needed.
    """
    check_source(source)
    if isinstance(source, Intervals):
        return source
    if folder is None:
        intervals = _read(source)
    else:
        found = (yield from _indexed(source, folder)) if _plain_name(source).endswith(_INDEXED) else None
        intervals = (yield from _whole(source, folder)) if found is None else found
    if not barcodes:
        intervals.barcodes = None  # their codes stay
    return intervals


def close_source(source: Any, intervals: Intervals) -> None:
    """Delete what was stored of a file."""
    if intervals is not source:
        discard(*intervals.columns.values())


def _plain_name(path: Any) -> str:
    return os.fspath(path).lower().removesuffix(".gz").removesuffix(".bgz")


def _read(path: Any) -> Intervals:
    from diffbio_sc.io import read_bam, read_intervals

    return read_bam(path) if os.fspath(path).lower().endswith(".bam") else read_intervals(path)


def _whole(path: Any, folder: Path) -> Flow[Intervals]:
    """A file that one worker reads."""
    ((intervals, caught),) = yield Round(_read_whole, [(os.path.abspath(path), folder)], "Reading")
    for category, message in caught:
        warnings.warn(message, category, stacklevel=2)
    return intervals


def _read_whole(item: tuple[str, Path]) -> tuple[Intervals, list[tuple[type[Warning], str]]]:
    """Run by a worker: read a file into the shared folder; what was warned of goes along."""
    path, folder = item
    with heard() as caught, columns_on_disk():
        intervals = _read(path)
    _store(intervals, folder)
    return intervals, [(one.category, str(one.message)) for one in caught]


def _store(intervals: Intervals, folder: Path) -> None:
    with columns_on_disk(folder):
        for key in list(intervals.columns):
            intervals.columns[key] = copy_column(intervals.columns[key])


class _Range(NamedTuple):
    path: str
    folder: Path
    place: Any


def _indexed(path: Any, folder: Path) -> Flow[Intervals | None]:
    """A file of fragments with an index, each range read by a worker; None without an index that fits."""
    from diffbio_sc.io.fragment_ranges import report_ranges
    from diffbio_sc.io.tabix import indexed_ranges

    where = os.path.abspath(path)
    ranges = indexed_ranges(where)
    if ranges is None:
        return None
    found = yield Round(_read_range, [_Range(where, folder, place) for place in ranges], "Reading")
    parts = [part for part, _ in found]
    strange = [
        place for place, part in zip(ranges, parts, strict=True) if not set(part.chromosomes) <= set(place.chromosomes)
    ]
    if strange or len({tuple(part.columns) for part in parts}) > 1:
        discard(*(column for part in parts for column in part.columns.values()))
        return None
    starts = row_starts(map(len, parts))
    columns = {key: new_column(starts[-1], column.dtype) for key, column in parts[0].columns.items()}
    barcodes: dict[str, int] = {}
    items = []
    for part, first in zip(parts, starts, strict=False):
        codes = [barcodes.setdefault(name, len(barcodes)) for name in part.barcodes or ()]
        part.barcodes = None
        items.append(_Placed(part, np.array(codes, np.int32), ColumnTuple(columns.values()), first))
    yield Round(_place, items, "Putting together")
    discard(*(column for part in parts for column in part.columns.values()))
    report_ranges(where, [counters for _, counters in found], sum(map(len, parts)))
    return Intervals(
        columns,
        np.concatenate([part.bounds + first for part, first in zip(parts, starts, strict=False)]),
        [name for part in parts for name in part.chromosomes],
        barcodes=list(barcodes) if "cell_code" in columns else None,
        name=Path(where).name,
        in_order=True,
    )


def _read_range(item: _Range) -> tuple[Intervals, np.ndarray]:
    """Run by a worker: read some chromosomes into the shared folder."""
    from diffbio_sc.io.fragment_ranges import read_fragment_range

    with columns_on_disk():
        intervals, counters = read_fragment_range(item.path, item.place)
    _store(intervals, item.folder)
    return intervals, counters


class _Placed(NamedTuple):
    """A part of a file, the codes of its barcodes in the whole, and where its rows go."""

    part: Intervals
    codes: np.ndarray
    columns: ColumnTuple
    first: int


def _place(item: _Placed) -> None:
    """Run by a worker: write the rows of a part to the columns of the whole."""
    for (key, values), target in zip(item.part.columns.items(), item.columns, strict=True):
        for start in range(0, len(values), _ROWS_AT_ONCE):
            some = values[start : start + _ROWS_AT_ONCE]
            write_rows(target, item.first + start, item.codes[some] if key == "cell_code" else some)
            release(values)
