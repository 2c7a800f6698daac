"""Segments of chromatin states in BED files: reading."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.io._byte_source import PathLike, open_bytes

if TYPE_CHECKING:
    import pandas as pd

_NUMBERED = re.compile(r"^\D*(\d+)(?:_.*)?$")


def read_segments(path: PathLike) -> pd.DataFrame:
    r"""Read segments of chromatin states: BED of four columns, or dense BED of nine with colours.

    Parameters
    ----------
    path
        File such as ChromHMM's ``*_segments.bed`` and ``*_dense.bed`` or Roadmap's ``*_mnemonics.bed.gz``, plain or
        compressed by gzip. Lines that declare a track are skipped.

    Returns
    -------
    One row a segment: ``chrom`` (category), ``start``, ``end`` (int64; 0-based, half-open), ``state`` (category, in
    order of the numbers in the names where all have one: ``E2`` before ``E10``) and, of dense files, ``color``
    (``#rrggbb``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file has no segments, or a line cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib, diffbio_sc as dbio
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "a_dense.bed"
    ...     _ = file.write_text("track itemRgb=On\nchr1\t0\t400\t1\t0\t.\t0\t400\t255,0,0\n")
    ...     table = dbio.io.read_segments(file)
    >>> table.loc[0, ["state", "color"]].tolist()
    ['1', '#ff0000']
    """
    import pandas as pd

    check_options(read_segments, locals())
    where = os.fspath(path)
    with open_bytes(path) as source:
        data = source.stream.read()
    position = 0
    for raw in data.splitlines(keepends=True):
        words = raw.split()
        if words and not raw.startswith(b"#") and words[0] not in (b"track", b"browser"):
            break
        position += len(raw)
    else:
        raise ValueError(f"{where} has no segments.")
    line = raw.decode(errors="backslashreplace").rstrip("\r\n")
    separator = "\t" if "\t" in line else r"\s+"
    width = len(line.split("\t") if separator == "\t" else line.split())
    if width < 4:
        raise ValueError(f"{where} must have at least 4 columns (chrom, start, end, state), found {width}: {line!r}.")
    try:
        table = pd.read_csv(
            io.BytesIO(data[position:]), sep=separator, header=None, dtype=str, keep_default_na=False, index_col=False
        ).rename(columns={0: "chrom", 1: "start", 2: "end", 3: "state", 8: "color"})
        start, end = (pd.to_numeric(table[key]).to_numpy(np.int64) for key in ("start", "end"))
    except (ValueError, TypeError) as error:  # pandas' parser raises a ValueError too
        raise ValueError(
            f"{where} cannot be read as BED (chrom, start, end, state): {error}. The first line is {line!r}."
        ) from error
    bad = (start < 0) | (end <= start) | (table["state"] == "").to_numpy()
    if bad.any():
        raise ValueError(
            f"{where} must have 0 <= start < end and a state in each line, found {int(bad.sum())} lines that have not; "
            f"first: {table[bad].iloc[0, :4].tolist()}."
        )
    result = pd.DataFrame(
        {
            "chrom": pd.Categorical(table["chrom"], categories=list(dict.fromkeys(table["chrom"]))),
            "start": start,
            "end": end,
            "state": pd.Categorical(table["state"], categories=ordered_labels(table["state"].unique())),
        }
    )
    if "color" in table:
        result["color"] = _hexadecimal(table["color"], where)
    return result


def ordered_labels(labels: np.ndarray | list[str]) -> list[str]:
    """Labels by the number in them where all have one, else in order of first appearance."""
    numbers = [_NUMBERED.match(str(label)) for label in labels]
    if not all(numbers):
        return [str(label) for label in labels]
    return sorted(map(str, labels), key=lambda label: int(_NUMBERED.match(label)[1]))  # type: ignore[index]


def _hexadecimal(colors: pd.Series, where: str) -> pd.Series:
    def convert(color: str) -> str:
        parts = color.split(",")
        if color in ("0", "."):
            return "#000000"
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) < 256 for part in parts):
            raise ValueError(f"{where}: colours must be three numbers below 256, such as 255,0,0; found {color!r}.")
        return "#" + "".join(f"{int(part):02x}" for part in parts)

    return colors.map({color: convert(color) for color in colors.unique()})
