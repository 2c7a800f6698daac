"""Reading the ``blacklist`` argument of peak calling."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffbio_sc.genome.intervals import Intervals, match_chromosomes
from diffbio_sc.genome.peak_table import require_columns

if TYPE_CHECKING:
    import pandas as pd


def read_blacklist(
    blacklist: Intervals | str | os.PathLike[str] | pd.DataFrame | None, chromosomes: Sequence[str], name: str
) -> Intervals | None:
    """Return the regions of a blacklist, matched with the chromosomes of the data before any work.

    Raises
    ------
    KeyError
        If a table lacks ``chrom``, ``start`` or ``end``.
    ValueError
        If its chromosomes would match those of the data only with other prefixes.
    """
    if blacklist is None:
        return None
    table: Any = blacklist
    if hasattr(blacklist, "columns") and not isinstance(blacklist, Intervals):
        require_columns(blacklist, ("chrom", "start", "end"), "blacklist")
        blacklist = Intervals.from_arrays(
            table["chrom"].astype(str), table["start"], table["end"], name="the blacklist"
        )
    elif not isinstance(blacklist, Intervals):
        from diffbio_sc.io import read_bed

        blacklist = read_bed(blacklist)
    bare = {_bare(one) for one in chromosomes}
    if any(_bare(one) in bare for one in blacklist.chromosomes):
        match_chromosomes(chromosomes, blacklist.chromosomes, left_name=name, right_name="the blacklist")
    elif len(blacklist) and len(chromosomes):
        warnings.warn(
            f"no region of the blacklist lies on a chromosome of {name}: it has {list(chromosomes)[:5]}, the blacklist "
            f"{blacklist.chromosomes[:5]}.",
            UserWarning,
            stacklevel=3,
        )
    return blacklist


def _bare(name: str) -> str:
    return str(name).lower().removeprefix("chr")
