"""Reading the ``blacklist`` argument of peak calling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffbio_sc.genome.chrom_sizes import match_regions
from diffbio_sc.genome.intervals import Intervals

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
    from diffbio_sc.io import read_regions

    regions = read_regions(blacklist, name="the blacklist")
    match_regions(chromosomes, regions.chromosomes, name=name, regions_name=regions.name)
    return regions
