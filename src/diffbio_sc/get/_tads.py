from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from diffbio_sc._anndata.records import read_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def tads(adata: AnnData, *, key: str = "insulation", chrom: str | None = None) -> pd.DataFrame:
    """Domains between the boundaries of :func:`diffbio_sc.tl.insulation`.

    Parameters
    ----------
    adata
        Object whose insulation was scored.
    key
        The ``key_added`` of the insulation.
    chrom
        One chromosome; default all.

    Returns
    -------
    A row for each domain: ``chrom``, ``start``, ``end``, ``length`` in base pairs, ``score_start`` and ``score_end`` of
    their boundaries (NaN at the end of a chromosome).

    Raises
    ------
    KeyError
        If there are no domains of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.insulation(adata)
    >>> bool(dbio.get.tads(adata)["length"].median() > 100_000)
    True
    """
    check_options(tads, locals())
    table = read_record(adata, key, "tads", "dbio.tl.insulation")["tads"].copy()
    table.insert(3, "length", table["end"] - table["start"])
    return table if chrom is None else table[table["chrom"].astype(str) == chrom].reset_index(drop=True)
