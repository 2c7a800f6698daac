"""Writing narrowPeak files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._checks import whole_numbers
from diffbio_sc._options import check_options
from diffbio_sc.genome.peak_table import NARROWPEAK
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._region_tables import checked_regions, write_regions

if TYPE_CHECKING:
    import pandas as pd

_SPACES = re.compile("[ \u00a0]+")


def write_narrowpeak(peaks: pd.DataFrame, path: PathLike) -> None:
    """Write peaks in the narrowPeak format (BED6+4), which genome browsers and most tools read.

    Parameters
    ----------
    peaks
        A table with columns ``chrom``, ``start`` and ``end``, and ``name``, ``score``, ``strand``, ``signalValue``,
        ``pValue``, ``qValue`` (-log10) and ``peak`` (summit as offset from the start) where known. Whatever is missing
        is written as the format says: names are numbered, the score is 0, the strand ``.``, other numbers -1. Spaces
        in names become ``_``: many tools split lines at them.
    path
        File to write; compressed by gzip if its name ends with ``.gz``.

    Returns
    -------
    None.

    Raises
    ------
    FileNotFoundError
        If the folder of ``path`` does not exist.
    KeyError
        If ``chrom``, ``start`` or ``end`` is missing.
    TypeError
        If ``peaks`` is not a table.
    ValueError
        If a peak does not have a chromosome and whole numbers ``0 <= start < end < 2**31``, or a summit lies outside
        its peak. A failed writer leaves no file behind, and an old one as it was.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, _ = dbio.datasets.simulate_fragments()
    >>> dbio.io.write_narrowpeak(dbio.tl.call_peaks(fragments), "peaks.narrowPeak")
    """
    import pandas as pd

    check_options(write_narrowpeak, locals())
    table = checked_regions(peaks)
    frame = table[["chrom", "start", "end"]].copy()
    frame["name"] = [f"peak_{number}" for number in range(1, len(table) + 1)] if "name" not in table else table["name"]
    frame["name"] = frame["name"].map(lambda name: "_".join(_SPACES.split(name)) if isinstance(name, str) else name)
    for key in ("score", "signalValue", "pValue", "qValue", "peak"):
        missing = 0 if key == "score" else -1
        values = pd.to_numeric(table[key]) if key in table else pd.Series(missing, table.index)
        frame[key] = values.astype(np.float64).fillna(missing)
    frame["score"] = frame["score"].clip(0, 1000).round().astype(np.int64)
    frame["strand"] = table["strand"].astype(object).fillna(".").replace("", ".") if "strand" in table else "."
    frame["peak"] = whole_numbers(frame["peak"], "column 'peak'")
    bad = (frame["peak"] >= frame["end"] - frame["start"]) | (frame["peak"] < -1)
    if bad.any():
        first = frame[bad].iloc[0]
        raise ValueError(
            "peaks must have a summit inside (column 'peak', an offset from the start, or -1), found "
            f"{int(bad.sum())} that do not; the first is {first['peak']} of "
            f"{first['chrom']}:{first['start']}-{first['end']}."
        )
    write_regions(frame[list(NARROWPEAK)], path)
