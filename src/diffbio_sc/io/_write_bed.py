"""Writing BED files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffbio_sc._options import check_options
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._region_tables import write_regions

if TYPE_CHECKING:
    import pandas as pd


def write_bed(regions: pd.DataFrame | Intervals, path: PathLike) -> None:
    r"""Write regions or reads as a BED file, without a header line.

    Parameters
    ----------
    regions
        A table with columns ``chrom``, ``start`` and ``end``, which are written first; further columns follow as they
        are, ``.`` where a value is missing. Intervals are written with name, score and strand where they have a strand.
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
        If a column is missing.
    TypeError
        If ``regions`` is neither a table nor Intervals.
    ValueError
        If a region does not have a chromosome and whole numbers ``0 <= start < end < 2**31``, or a text holds a tab or
        a line end. A failed writer leaves no file behind, and an old one as it was.

    Examples
    --------
    >>> import pandas as pd
    >>> import diffbio_sc as dbio
    >>> table = pd.DataFrame({"chrom": ["chr1"], "start": [100], "end": [200], "name": ["a"]})
    >>> dbio.io.write_bed(table, "regions.bed")
    >>> open("regions.bed").read()
    'chr1\t100\t200\ta\n'
    """
    check_options(write_bed, locals())
    if isinstance(regions, Intervals):
        frame = regions.to_frame()
        if "strand" in frame:
            frame = frame[["chrom", "start", "end"]].assign(name=".", score=0, strand=frame["strand"])
    else:
        frame = regions
    write_regions(frame, path)
