"""Writing tables of regions as text, checked."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._checks import require_columns, whole_numbers
from diffbio_sc.genome.chrom_sizes import LONGEST
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._write_text import open_writer

if TYPE_CHECKING:
    import pandas as pd

_PLACE = ("chrom", "start", "end")


def checked_regions(table: Any) -> pd.DataFrame:
    """Return a table with its three columns of places checked and in types that are written as they are."""
    if not hasattr(table, "columns"):
        raise TypeError(f"expected a table (pandas.DataFrame) of regions, found {type(table).__name__}.")
    require_columns(table, _PLACE, "the table")
    nameless = table["chrom"].isna().to_numpy()
    if nameless.any():
        first = int(np.flatnonzero(nameless)[0])
        raise ValueError(
            f"regions must name a chromosome, found {int(nameless.sum())} that do not; the first is row {first}."
        )
    place = {
        key: whole_numbers(table[key].to_numpy(), f"column {key!r}", minimum=0, maximum=LONGEST)
        for key in ("start", "end")
    }
    bad = np.flatnonzero(place["end"] <= place["start"])
    if len(bad):
        first = bad[0]
        raise ValueError(
            f"regions must have start < end, found {len(bad)} that do not; the first is "
            f"{table['chrom'].iloc[first]}:{place['start'][first]}-{place['end'][first]}."
        )
    return table.assign(**place)


def write_regions(table: Any, path: PathLike) -> None:
    """Write a table of regions, its place first, separated by tabs; compressed if the name ends with ``.gz``."""
    frame = checked_regions(table)
    frame = frame[[*_PLACE, *(key for key in frame.columns if key not in _PLACE)]].copy()
    for key in frame.columns:
        if frame[key].dtype.kind == "f":
            frame[key] = [_number(value) for value in frame[key].to_numpy(np.float64, na_value=np.nan).tolist()]
        elif frame[key].dtype.kind not in "iub" or frame[key].isna().any():
            frame[key] = unbroken(frame[key], f"column {key!r}")
    write_lines(frame, path)


def unbroken(column: pd.Series, what: str) -> pd.Series:
    """Return values as text, missing ones as ``.``; ValueError if one would break a line of a text file."""
    text = column.astype(object).fillna(".").map(str)
    broken = text[text.str.contains("[\t\r\n]", regex=True)]
    if len(broken):
        raise ValueError(f"{what} must not hold tabs or line ends, found {broken.iloc[0]!r}.")
    return text


def write_lines(frame: pd.DataFrame, path: PathLike, *, head: str = "") -> None:
    """Write a table of which no value holds a tab or a line end, as it stands, below a head."""
    with open_writer(path) as stream, io.TextIOWrapper(stream, encoding="utf-8", newline="") as handle:
        handle.write(head)
        frame.to_csv(
            handle, sep="\t", header=False, index=False, lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None
        )


def _number(value: float) -> str:
    """Text of a number: whole numbers in full, others to nine digits (those that a 32-bit number has)."""
    if value != value:
        return "."
    return str(int(value)) if abs(value) < 2**53 and value == int(value) else f"{value:.9g}"
