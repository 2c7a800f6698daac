"""Batches of the cells of an object, also where its modalities have the column apart."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.modalities import is_mudata, object_name
from diffbio_sc._anndata.tables import read_column, read_labels
from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def read_batches(data: MuData | AnnData, key: str) -> tuple[np.ndarray, list[str]]:
    """Codes and names of the batch of each cell.

    A column of the object; or, of a MuData, columns of that name of its modalities taken together.

    Raises
    ------
    KeyError
        If neither exists.
    ValueError
        If a cell has no batch, each cell has a batch of its own, or two modalities disagree about it.
    """
    owner = object_name(data)
    table = data.obs
    if key not in table and is_mudata(data):
        table = _joined_column(data, key)
    if key not in table:
        raise KeyError(f"{owner}.obs has no column {key!r}; columns: {[str(column) for column in data.obs.columns]}.")
    codes, names = read_labels(table, key, name=f"{owner}.obs")
    missing = codes < 0
    if missing.any():
        hint = ""
        modality, _, rest = key.partition(":")
        if is_mudata(data) and rest and modality in data.mod:
            hint = (
                f" It is the column of modality {modality!r} alone: batch_key={rest!r} joins those of all modalities."
            )
        raise ValueError(
            f"{owner}.obs[{key!r}] must name a batch for each cell, it is missing for {int(missing.sum())}: "
            f"{name_heads(data.obs_names[missing])}.{hint}"
        )
    cells = np.bincount(codes, minlength=len(names))
    lonely = [name for name, number in zip(names, cells, strict=True) if number == 1]
    if len(lonely) == len(codes) > 1:
        raise ValueError(
            f"{owner}.obs[{key!r}] names another batch for each of the {len(codes)} cells, whose effect cannot be told "
            "from the cell: name a column that several cells share, such as the sample, or leave batch_key out."
        )
    if lonely:
        warnings.warn(
            f"Batches of a single cell, whose effect cannot be told from the cell: {lonely}.", UserWarning, stacklevel=3
        )
    return codes.astype(np.int32), names


def _joined_column(data: MuData, key: str) -> pd.DataFrame:
    """Column ``key`` of the modalities taken together, over all cells; without it if no modality has it."""
    table = pd.DataFrame(index=data.obs_names)
    having = [name for name, part in data.mod.items() if key in part.obs]
    if not having:
        return table
    joined = pd.Series(np.nan, index=table.index, dtype=object)
    for name in having:
        column = read_column(data.mod[name].obs, key).astype(object).reindex(table.index)
        conflict = joined.notna() & column.notna() & (joined.astype(str) != column.astype(str))
        if conflict.any():
            cell = conflict.index[conflict][0]
            raise ValueError(
                f"The modalities {having} disagree in their column {key!r} about {int(conflict.sum())} cells: "
                f"{str(cell)!r} is {joined[cell]!r}, but in {name!r} {column[cell]!r}. Write one column into mdata.obs."
            )
        joined = joined.where(joined.notna(), column)
    logger.info(f"mdata.obs has no column {key!r}: joined from {[f'{name}:{key}' for name in having]}.")
    return table.assign(**{key: joined})
