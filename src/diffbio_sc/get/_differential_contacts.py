from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.records import read_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def differential_contacts(
    adata: AnnData,
    features: Literal["loops", "boundaries", "compartments", "interactions", "decay"] = "loops",
    *,
    key: str = "differential_contacts",
    max_qvalue: float | None = None,
    min_log2_fold_change: float = 0.0,
    summits: bool = False,
) -> pd.DataFrame:
    """Differences of :func:`diffbio_sc.tl.differential_contacts` of one kind, most significant first.

    Parameters
    ----------
    adata
        Object whose maps were compared.
    features
        Which kind.
    key
        The ``key_added`` of the comparison.
    max_qvalue
        Features with at most this false discovery rate.
    min_log2_fold_change
        Features whose change is at least this, up or down.
    summits
        Of boundaries and compartments: of each run of bins that pass and change alike, without a gap of more than one
        bin, the one of the smallest p-value, with ``run_start`` and ``run_end``.

    Returns
    -------
    The table; the mean of each group is ``mean_<group>``.

    Raises
    ------
    KeyError
        If there is no comparison of that key, or it has no such features.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(400, n_replicates=2, n_conditions=2)
    >>> groups = {"a": ["contacts_a_1", "contacts_a_2"], "b": ["contacts_b_1", "contacts_b_2"]}
    >>> dbio.tl.differential_contacts(
    ...     adata, groups=groups, features=["loops", "boundaries"], loops=adata.uns["truth"]["loops"]
    ... )
    >>> table = dbio.get.differential_contacts(adata, "boundaries", max_qvalue=0.05, summits=True)
    """
    check_options(differential_contacts, locals(), max_qvalue="(0, 1]", min_log2_fold_change="[0, inf)")
    record = read_record(adata, key, "params", "dbio.tl.differential_contacts")
    kinds = [name for name in ("loops", "boundaries", "compartments", "interactions", "decay") if name in record]
    if features not in kinds:
        raise KeyError(f"adata.uns[{key!r}] has no {features!r}; it has {kinds}.")
    table = record[features]
    first, second = map(str, record["params"]["groups"])
    table = table.rename(columns={"mean_1": f"mean_{first}", "mean_2": f"mean_{second}"})
    kept = np.ones(len(table), bool)
    if max_qvalue is not None:
        kept &= (table["qval"] <= max_qvalue).to_numpy()
    if min_log2_fold_change > 0:
        kept &= (table["log2_fold_change"].abs() >= min_log2_fold_change).to_numpy()
    table = table[kept]
    if summits:
        if features not in ("boundaries", "compartments"):
            raise ValueError(f"summits are of boundaries and compartments, found {features!r}.")
        table = _summits(table)
    return table if features == "decay" else table.sort_values("pval", kind="stable").reset_index(drop=True)


def _summits(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values(["chrom", "start"], kind="stable").reset_index(drop=True)
    if not len(table):
        return table.assign(run_start=table["start"], run_end=table["end"])
    width = int((table["end"] - table["start"]).max())
    sign = np.sign(table["log2_fold_change"].to_numpy())
    chrom, start = table["chrom"].astype(str).to_numpy(), table["start"].to_numpy()
    new = np.ones(len(table), bool)
    new[1:] = (chrom[1:] != chrom[:-1]) | (np.diff(start) > 2 * width) | (sign[1:] != sign[:-1])
    run = np.cumsum(new)
    grouped = table.groupby(run)
    best = grouped["pval"].idxmin()
    return table.loc[best].assign(run_start=grouped["start"].min().to_numpy(), run_end=grouped["end"].max().to_numpy())
