from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from diffbio_sc._anndata.records import read_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def loops(
    adata: AnnData,
    *,
    key: str = "loops",
    chrom: str | None = None,
    max_qvalue: float | None = None,
    min_enrichment: float | None = None,
) -> pd.DataFrame:
    """Loops of :func:`diffbio_sc.tl.loops`, best first.

    Parameters
    ----------
    adata
        Object whose loops were called.
    key
        The ``key_added`` of the loops.
    chrom
        One chromosome; default all.
    max_qvalue
        Loops with at most this false discovery rate.
    min_enrichment
        Loops with at least this enrichment.

    Returns
    -------
    A row for each loop, with the columns of BEDPE (``chrom1``, ``start1``, ``end1``, ``chrom2``, ``start2``, ``end2``),
    ``distance`` between the anchors' starts in base pairs, and those that :func:`diffbio_sc.tl.loops` lists.

    Raises
    ------
    KeyError
        If there are no loops of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> bool((dbio.get.loops(adata, max_qvalue=0.01)["qval"] <= 0.01).all())
    True
    """
    check_options(loops, locals(), max_qvalue="(0, 1]", min_enrichment="[0, inf)")
    table = read_record(adata, key, "table", "dbio.tl.loops")["table"].copy()
    table.insert(6, "distance", table["start2"] - table["start1"])
    if chrom is not None:
        table = table[table["chrom1"].astype(str) == chrom]
    if max_qvalue is not None:
        table = table[table["qval"] <= max_qvalue]
    if min_enrichment is not None:
        table = table[table["enrichment"] >= min_enrichment]
    return table.reset_index(drop=True)
