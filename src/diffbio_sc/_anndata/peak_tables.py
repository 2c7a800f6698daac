"""Tables of peaks as an AnnData holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory

if TYPE_CHECKING:
    import pandas as pd


def read_peak_tables(adata: Any, key: str) -> dict[str, pd.DataFrame]:
    """Tables of peaks by group, in the order of the groups.

    Raises
    ------
    KeyError
        If there are no peaks of that key.
    """
    require_anndata(adata)
    record = in_memory(adata.uns.get(key))
    if record is None or "tables" not in record:
        keys = [str(name) for name in adata.uns]
        raise KeyError(
            f"adata.uns has no peaks {key!r}: run diffbio_sc.tl.peaks first, or pass its key_added; keys: {keys}."
        )
    return {str(name): record["tables"][str(name)] for name in record["groups"]}
