"""Tables of regions and peaks: BED and narrowPeak."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._text import PathLike, open_bytes

if TYPE_CHECKING:
    import pandas as pd

NARROWPEAK_COLUMNS = (
    "chrom",
    "start",
    "end",
    "name",
    "score",
    "strand",
    "signalValue",
    "pValue",
    "qValue",
    "peak",
)
_TYPES = {
    "chrom": str,
    "start": np.int64,
    "end": np.int64,
    "name": str,
    "score": np.float64,
    "strand": str,
    "signalValue": np.float64,
    "pValue": np.float64,
    "qValue": np.float64,
    "peak": np.int64,
}


def write_bed(regions: pd.DataFrame | Intervals, path: PathLike) -> None:
    """Write regions or reads as a BED file, without a header line.

    Parameters
    ----------
    regions
        A table with columns ``chrom``, ``start`` and ``end`` first; further columns are written as they are. Intervals
        are written with name, score and strand where they have a strand.
    path
        File to write; compressed by gzip if its name ends with ``.gz``.

    Returns
    -------
    None.

    Raises
    ------
    KeyError
        If a column is missing.
    """
    if isinstance(regions, Intervals):
        frame = regions.to_frame()
        if "strand" in frame:
            frame = frame[["chrom", "start", "end"]].assign(name=".", score=0, strand=frame["strand"])
    else:
        frame = regions
        _require(frame, ("chrom", "start", "end"))
        frame = frame[
            ["chrom", "start", "end", *(key for key in frame.columns if key not in ("chrom", "start", "end"))]
        ]
    _write(frame, path)


def write_narrowpeak(peaks: pd.DataFrame, path: PathLike) -> None:
    """Write peaks in the narrowPeak format (BED6+4), which genome browsers and most tools read.

    Parameters
    ----------
    peaks
        A table with columns ``chrom``, ``start`` and ``end``, and ``name``, ``score``, ``strand``, ``signalValue``,
        ``pValue``, ``qValue`` (-log10) and ``peak`` (summit as offset from the start) where known. What is missing is
        written as the format says: names are numbered, the score is 0, the strand ``.``, other numbers -1.
    path
        File to write; compressed by gzip if its name ends with ``.gz``.

    Returns
    -------
    None.

    Raises
    ------
    KeyError
        If ``chrom``, ``start`` or ``end`` is missing.
    ValueError
        If a peak's end is not after its start, or a summit lies outside its peak.
    """
    import pandas as pd

    _require(peaks, ("chrom", "start", "end"))
    frame = pd.DataFrame(index=peaks.index)
    defaults = {"name": [f"peak_{number}" for number in range(1, len(peaks) + 1)], "score": 0, "strand": "."}
    for key in NARROWPEAK_COLUMNS:
        frame[key] = peaks[key] if key in peaks else defaults.get(key, -1)
    frame["score"] = frame["score"].fillna(0).clip(0, 1000).round().astype(np.int64)
    frame["strand"] = frame["strand"].fillna(".").replace("", ".")
    for key in ("signalValue", "pValue", "qValue", "peak"):
        frame[key] = frame[key].fillna(-1)
    frame["peak"] = frame["peak"].astype(np.int64)
    width = frame["end"] - frame["start"]
    bad = (width <= 0) | (frame["peak"] >= width) | (frame["peak"] < -1)
    if bad.any():
        raise ValueError(
            "peaks must have start < end and a summit (column 'peak', an offset from the start, or -1) inside, found "
            f"{int(bad.sum())} that have not; first: {frame[bad].iloc[0].tolist()}."
        )
    _write(frame, path)


def read_narrowpeak(path: PathLike) -> pd.DataFrame:
    """Read a narrowPeak file.

    Parameters
    ----------
    path
        Text separated by tabs or blanks, plain or compressed by gzip (whatever the name says).

    Returns
    -------
    Table with columns ``chrom``, ``start``, ``end``, ``name``, ``score``, ``strand``, ``signalValue``, ``pValue``,
    ``qValue`` and ``peak``; without rows if the file has no peaks.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line does not have the ten columns.
    """
    import pandas as pd

    with open_bytes(path) as source:
        text = io.TextIOWrapper(io.BufferedReader(_Readable(source.stream)), encoding="utf-8").read()
    lines = [
        line.split("\t") if "\t" in line else line.split()
        for line in text.splitlines()
        if line.strip() and line[0] != "#" and line.split()[0] not in ("track", "browser")
    ]
    wrong = [fields for fields in lines if len(fields) != len(NARROWPEAK_COLUMNS)]
    if wrong:
        raise ValueError(
            f"{os.fspath(path)} must have the columns {list(NARROWPEAK_COLUMNS)}, found a line of {len(wrong[0])} "
            f"columns: {wrong[0]}."
        )
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(NARROWPEAK_COLUMNS)
    frame = pd.DataFrame(
        {key: pd.Series(list(values), dtype=object) for key, values in zip(NARROWPEAK_COLUMNS, columns, strict=True)}
    )
    try:
        return frame.astype(_TYPES)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} has a value that is no number where one is expected: {error}.") from error


class _Readable(io.RawIOBase):
    """A byte stream with the interface that text decoding wants."""

    def __init__(self, stream: io.RawIOBase):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int | None:
        return self._stream.readinto(target)  # type: ignore[arg-type]


def _require(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [key for key in columns if key not in frame]
    if missing:
        raise KeyError(f"the table has no columns {missing}; columns: {list(map(str, frame.columns))}.")


def _write(frame: pd.DataFrame, path: PathLike) -> None:
    compressed = Path(path).suffix == ".gz"
    # Without a time stamp equal tables give equal files.
    with open(path, "wb") as raw:
        stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if compressed else raw
        with io.TextIOWrapper(stream, encoding="utf-8", newline="") as handle:
            frame.to_csv(handle, sep="\t", header=False, index=False, float_format="%.6g", lineterminator="\n")
