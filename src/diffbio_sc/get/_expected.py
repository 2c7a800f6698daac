from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.records import read_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def expected(
    adata: AnnData, *, key: str = "expected", region: str | None = None, per_decade: int | None = None
) -> pd.DataFrame:
    """Expected contacts by distance, of :func:`diffbio_sc.tl.expected`, P(s) and its slope.

    Parameters
    ----------
    adata
        Object whose decay was estimated.
    key
        The ``key_added`` of the decay.
    region
        One region; default all.
    per_decade
        Pool distances into so many strata a decade, as for a plot: contacts of a stratum over its pairs of bins, and
        the slope between strata. Default each distance.

    Returns
    -------
    A row for each region and distance: ``region``, ``dist`` (bins), ``dist_bp``, ``n_valid``, ``count.sum``,
    ``count.avg``, ``balanced.avg``, ``smoothed`` and ``slope``; or, pooled, ``region``, ``dist_bp`` (geometric middle),
    ``n_valid``, ``balanced.avg`` and ``slope`` (d log P / d log s).

    Raises
    ------
    KeyError
        If there is no decay of that key, or no such region.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.expected(adata)
    >>> table = dbio.get.expected(adata, per_decade=8)
    """
    check_options(expected, locals(), per_decade="[1, inf)")
    per_decade = None if per_decade is None else int(per_decade)
    table = read_record(adata, key, "table", "dbio.tl.expected")["table"]
    if region is not None:
        regions = list(map(str, pd.unique(table["region"])))
        if region not in regions:
            raise KeyError(f"no region {region!r}; regions: {regions[:10]}.")
        table = table[table["region"].astype(str) == region].reset_index(drop=True)
    if per_decade is None:
        return table
    if not per_decade >= 1:
        raise ValueError(f"per_decade must be at least 1, found {per_decade!r}.")
    parts = [_pool(part, str(name), per_decade) for name, part in table.groupby("region", observed=True, sort=False)]
    return pd.concat(parts, ignore_index=True) if parts else _pool(table, "", per_decade)


def _pool(table: pd.DataFrame, name: str, per_decade: int) -> pd.DataFrame:
    known = table[(table["dist"] > 0) & table["balanced.avg"].notna() & (table["n_valid"] > 0)]
    stratum = np.floor(np.log10(known["dist_bp"].to_numpy(float)) * per_decade).astype(np.int64)
    pairs = known["n_valid"].to_numpy(float)
    sums = pd.DataFrame(
        {
            "pairs": pairs,
            "balanced": known["balanced.avg"].to_numpy() * pairs,
            "log_distance": np.log(known["dist_bp"].to_numpy(float)) * pairs,
        }
    ).groupby(stratum)
    total = sums.sum()
    distance = np.exp(total["log_distance"] / total["pairs"]).to_numpy()
    mean = (total["balanced"] / total["pairs"]).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.where(mean > 0, np.log(mean), np.nan)
    slope = np.gradient(log_mean, np.log(distance)) if len(mean) > 1 else np.full(len(mean), np.nan)
    return pd.DataFrame(
        {
            "region": np.full(len(mean), name, dtype=object),
            "dist_bp": distance,
            "n_valid": total["pairs"].to_numpy().astype(np.int64),
            "balanced.avg": mean,
            "slope": slope,
        }
    )
