from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.peak_tables import read_peak_tables
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def peaks(
    adata: AnnData, *, key: str = "peaks", groups: str | Sequence[str] | None = None, max_qvalue: float | None = None
) -> pd.DataFrame:
    """Peaks of :func:`diffbio_sc.tl.peaks` as one tidy table.

    Parameters
    ----------
    adata
        Object whose peaks were called.
    key
        The ``key_added`` of the peaks.
    groups
        Group or groups (rows of the object, or labels of ``groupby``) to return; default all.
    max_qvalue
        Return peaks with at most this false discovery rate.

    Returns
    -------
    One row a peak: ``group``, then the columns of narrowPeak (``chrom``, ``start``, ``end``, ``name``, ``score``,
    ``strand``, ``signalValue``, ``pValue``, ``qValue``, ``peak``) and ``fold``, ``log_odds``, ``fragments``,
    ``expected``; ``n_replicates`` where replicates were told apart. In the order of the groups, then of the genome.

    Raises
    ------
    KeyError
        If there are no peaks of that key, or no such group.
    ValueError
        If ``max_qvalue`` is not between 0 and 1.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, cell_types = dbio.datasets.simulate_fragments()
    >>> bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    >>> dbio.tl.peaks(bins)
    >>> set(dbio.get.peaks(bins, groups="B cell")["group"])
    {'B cell'}
    """
    check_options(peaks, locals(), max_qvalue="(0, 1]")
    tables = read_peak_tables(adata, key)
    if groups is not None:
        wanted = [groups] if isinstance(groups, str) else list(groups)
        missing = [name for name in wanted if name not in tables]
        if missing:
            raise KeyError(f"no peaks of groups {missing}; groups: {list(tables)}.")
        tables = {name: tables[name] for name in wanted}
    parts = [table.assign(group=name) for name, table in tables.items()]
    some = [part for part in parts if len(part)]
    table = pd.concat(some or parts[:1], ignore_index=True)
    table["group"] = pd.Categorical(table["group"], categories=list(tables))
    table = table[["group", *(name for name in table.columns if name != "group")]]
    if max_qvalue is not None:
        table = table[table["qValue"].to_numpy(float) >= -np.log10(max_qvalue)].reset_index(drop=True)
    return table
