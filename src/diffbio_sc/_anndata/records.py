"""Results in ``.uns``, found or missed with a word on how to make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.modalities import object_name
from diffbio_sc._anndata.tables import in_memory, read_table

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc._anndata.genome_axis import GenomeAxis


def read_record(adata: AnnData, key: str, entry: str, maker: str) -> dict[str, Any]:
    """Entry of ``.uns`` that holds ``entry``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no such entry.
    """
    require_anndata(adata)
    return find_record(adata, key, entry, maker)


def find_record(data: AnnData | MuData, key: str, entry: str, maker: str) -> dict[str, Any]:
    """:func:`read_record` of an object that may be a MuData."""
    record = in_memory(data.uns.get(key))
    if not hasattr(record, "keys") or entry not in record:
        where = object_name(data)
        raise KeyError(
            f"{where}.uns has no {entry!r} of {key!r}: run {maker}({where}) first, or pass its key_added; keys: "
            f"{[str(name) for name in data.uns]}."
        )
    return record


def bin_columns(adata: AnnData, genome: GenomeAxis, names: list[str], maker: str) -> pd.DataFrame:
    """``chrom``, ``start`` and ``end`` of each bin with columns of the genome axis."""
    table = getattr(adata, genome.axis)
    missing = [name for name in names if name not in table]
    if missing:
        raise KeyError(
            f"adata.{genome.axis} has no {missing}: run {maker}(adata) first, or pass its key_added; columns: "
            f"{list(map(str, table.columns))}."
        )
    return pd.concat([genome.table, read_table(table, names)], axis=1)
