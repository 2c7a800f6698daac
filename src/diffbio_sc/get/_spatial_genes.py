from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata import read_column, result_column
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

_TESTED = ("spatial_pvalue", "spatial_padj", "spatial_score", "is_spatial")
_OPTIONAL = ("fsv", "fsv_se", "spatial_lengthscale", "spatial_lfdr")


def spatial_genes(
    adata: AnnData, *, key: str = "spatial_genes", significant: bool = False, n_top: int | None = None
) -> pd.DataFrame:
    """Result of :func:`diffbio_sc.tl.spatial_genes` as a table, the most significant genes first.

    Parameters
    ----------
    adata
        Object that was tested.
    key
        The ``key_added`` of the test.
    significant
        Return the significant genes alone.
    n_top
        Return this many genes at most.

    Returns
    -------
    One row per gene: ``gene``, ``fsv``, ``fsv_se``, ``spatial_lengthscale``, ``spatial_lfdr``, ``spatial_pvalue``,
    ``spatial_padj``, ``spatial_score``, ``is_spatial``, and ``spatial_pattern`` once
    :func:`diffbio_sc.tl.spatial_patterns` has run.
    Sorted by p-value; p-values too small for a number by ``spatial_score``, -log10 p. Genes that were not tested come
    last. ``fsv``, ``fsv_se`` and ``spatial_lengthscale`` are missing if the test did not estimate them.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``n_top`` is not a positive whole number.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, _ = dbio.datasets.pbmc_tissue(n_spots=225)
    >>> dbio.tl.spatial_genes(spots)
    >>> len(dbio.get.spatial_genes(spots, n_top=5))
    5
    """
    check_options(spatial_genes, locals(), n_top="[1, inf)")
    n_top = None if n_top is None else int(n_top)
    require_anndata(adata)
    stored = {name: result_column(key, name) for name in _OPTIONAL + _TESTED}
    missing = [stored[name] for name in _TESTED if stored[name] not in adata.var]
    if missing:
        raise KeyError(
            f"adata.var has no columns {missing}: run diffbio_sc.tl.spatial_genes first, or pass its key_added as "
            f"key=...; columns: {list(map(str, adata.var.columns))}."
        )
    table = pd.DataFrame({"gene": adata.var_names.to_numpy()})
    for name, column in stored.items():
        table[name] = read_column(adata.var, column).to_numpy() if column in adata.var else np.nan
    # Patterns of another test are no part of this result.
    clustered = in_memory(adata.uns.get("spatial_patterns", {})).get("params", {}).get("key", key)
    if "spatial_pattern" in adata.var and clustered == key:
        table["spatial_pattern"] = read_column(adata.var, "spatial_pattern").array
    if significant:
        table = table[table["is_spatial"].to_numpy(dtype=bool)]
    pvalue, score = table["spatial_pvalue"].to_numpy(dtype=float), table["spatial_score"].to_numpy(dtype=float)
    # NaN sort last under both keys; the sort is stable, so exact ties stay in the order of adata.var.
    table = table.iloc[np.lexsort((-score, pvalue))]
    return table.head(n_top).reset_index(drop=True) if n_top is not None else table.reset_index(drop=True)
