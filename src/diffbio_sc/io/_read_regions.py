"""Regions such as a blacklist, wherever they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffbio_sc._checks import is_path
from diffbio_sc._options import check_options
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._read_bed import read_bed

if TYPE_CHECKING:
    import pandas as pd


def read_regions(source: Intervals | pd.DataFrame | PathLike, *, name: str = "regions") -> Intervals:
    """Read regions, such as a blacklist: from a BED file, a table, or as they are.

    Parameters
    ----------
    source
        A BED file (or another whose first three columns are chromosome, start and end, such as narrowPeak), a table
        with columns ``chrom``, ``start`` and ``end``, or Intervals.
    name
        What messages call the regions of a table.

    Returns
    -------
    Regions by chromosome, sorted by start; they may overlap.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If a column of the table is missing.
    TypeError
        If the source is something else.
    ValueError
        If a line cannot be read, or a row is not a region.

    Examples
    --------
    >>> import pandas as pd
    >>> import diffbio_sc as dbio
    >>> table = pd.DataFrame({"chrom": ["chr1"], "start": [100], "end": [200]})
    >>> len(dbio.io.read_regions(table))
    1
    """
    check_options(read_regions, locals())
    if isinstance(source, Intervals):
        return source
    if is_path(source):
        return read_bed(source)  # type: ignore[arg-type]
    if hasattr(source, "columns"):
        table: Any = source
        places = [key for key in ("chrom", "start", "end") if key in table.columns]
        return Intervals.from_frame(table[places], name=name)
    raise TypeError(
        f"{name} must be a BED file, a table with columns chrom, start and end, or dbio.io.Intervals, found "
        f"{type(source).__name__}."
    )
