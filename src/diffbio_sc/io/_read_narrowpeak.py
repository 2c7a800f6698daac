"""Reading narrowPeak files."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.peak_table import NARROWPEAK, PEAK_COLUMNS
from diffbio_sc.io._byte_source import PathLike, open_bytes, require_text

if TYPE_CHECKING:
    import pandas as pd

# Scores are whole numbers by the format, but not in every file.
_TYPES = {column.name: np.float64 if column.name == "score" else column.kind for column in PEAK_COLUMNS[:10]}


def read_narrowpeak(path: PathLike) -> pd.DataFrame:
    """Read a narrowPeak file.

    Parameters
    ----------
    path
        Text separated by tabs or blanks, plain or compressed by gzip (whatever the name says).

    Returns
    -------
    Table with columns ``chrom``, ``start``, ``end``, ``name``, ``score``, ``strand``, ``signalValue``, ``pValue``,
    ``qValue`` and ``peak``; without rows if the file has no peaks. Where the file says -1, the format's code for a
    missing value, ``pValue`` and ``qValue`` are NaN; ``peak``, a column of whole numbers, stays -1.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line does not have the ten columns, or has text where a number is expected.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, _ = dbio.datasets.simulate_fragments()
    >>> table = dbio.tl.call_peaks(fragments)
    >>> dbio.io.write_narrowpeak(table, "peaks.narrowPeak")
    >>> len(dbio.io.read_narrowpeak("peaks.narrowPeak")) == len(table)
    True
    """
    import pandas as pd

    check_options(read_narrowpeak, locals())
    with open_bytes(path) as source:
        text = io.BufferedReader(_Readable(source.stream)).read()
    require_text(text, os.fspath(path))
    lines = [
        line.split("\t") if "\t" in line else line.split()
        for line in re.split("\r\n|\r|\n", text.decode("utf-8-sig", errors="backslashreplace"))
        if line.strip() and line[0] != "#" and line.split()[0] not in ("track", "browser")
    ]
    wrong = [fields for fields in lines if len(fields) != len(NARROWPEAK)]
    if wrong:
        raise ValueError(
            f"{os.fspath(path)} must have the columns {list(NARROWPEAK)}, found a line of {len(wrong[0])} "
            f"columns: {wrong[0]}."
        )
    columns = list(zip(*lines, strict=True)) if lines else [()] * len(NARROWPEAK)
    frame = pd.DataFrame(
        {key: pd.Series(list(values), dtype=object) for key, values in zip(NARROWPEAK, columns, strict=True)}
    )
    try:
        frame = frame.astype(_TYPES)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} has a value that is no number where one is expected: {error}.") from error
    for key in ("pValue", "qValue"):
        frame.loc[frame[key] == -1, key] = np.nan
    return frame


class _Readable(io.RawIOBase):
    """A byte stream with the interface that text decoding wants."""

    def __init__(self, stream: io.RawIOBase):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int | None:
        return self._stream.readinto(target)  # type: ignore[arg-type]
