"""States of chromatin that an object holds: labels of bins, posteriors, colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.cell_types import CellTypeBins, read_cell_type_bins
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.results import prefix_of
from diffbio_sc._anndata.tables import in_memory, read_column

if TYPE_CHECKING:
    from anndata import AnnData

DEFAULT_KEY = "chromatin_states"

_MODEL = ("initial", "transition", "emission", "marks")


def stored_name(key: str, name: str) -> str:
    """Name of a column or matrix of a result: its own, or, if the key is not the default, with the key before it."""
    return prefix_of(key, DEFAULT_KEY) + name


@dataclasses.dataclass(frozen=True)
class StoredStates:
    """Labels of bins and where the bins lie."""

    axis: Literal["var", "obs"]
    """Axis of the bins."""
    codes: np.ndarray
    """State of each bin by position in ``labels``; -1 where a bin has none."""
    labels: list[str]
    """States, in order."""
    colors: list[str]
    """Colour of each state as ``#rrggbb``."""
    parts: list[CellTypeBins]
    """Bins of each cell type."""
    cell_type_key: str | None
    """Column that tells cell types apart."""
    params: Mapping[str, Any]
    """Parameters of the call that made the states; empty if unknown."""


def read_states(
    adata: AnnData,
    key: str = DEFAULT_KEY,
    *,
    column: str | None = None,
    cell_type_key: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    name: str = "adata",
) -> StoredStates:
    """Take the states of bins out of an object.

    Parameters
    ----------
    adata
        Object with bins along one axis.
    key
        The ``key_added`` of the states.
    column
        Column with a label for each bin; default ``chromatin_state`` (after the key, if that is not the default).
    cell_type_key
        Column with the cell type of each bin; default that of the call which made the states.
    axis
        Which axis holds the bins; default that of the call, else found.
    name
        What messages call the object.

    Raises
    ------
    KeyError
        If there are no such states.
    ValueError
        If no bin has a state.
    """
    require_anndata(adata, name)
    record = in_memory(adata.uns.get(key, {}))
    record = record if isinstance(record, Mapping) else {}
    params = record.get("params", {})
    cell_type_key = cell_type_key or params.get("cell_type_key")
    axis = axis or params.get("axis")
    side, parts = read_cell_type_bins(adata, cell_type_key, axis=axis, name=name)
    table = getattr(adata, side)
    column = column or stored_name(key, "chromatin_state")
    if column not in table:
        raise KeyError(
            f"{name}.{side} has no column {column!r}: run diffbio_sc.tl.chromatin_states first, or pass its key_added "
            f"as key=..., or the column with the states as column=...; columns: {list(map(str, table.columns))}."
        )
    values = read_column(table, column)
    if isinstance(values.dtype, pd.CategoricalDtype):
        found = [str(label) for label in values.cat.categories]
        codes = values.cat.codes.to_numpy().astype(np.int32)
    else:
        found = sorted(values.dropna().astype(str).unique())
        codes = pd.Index(found, dtype=object).get_indexer(pd.Index(values.astype(str), dtype=object)).astype(np.int32)
        codes[values.isna().to_numpy()] = -1
    labels = found
    known = [str(label) for label in record.get("states", [])]
    if known and set(found) <= set(known):
        # A part of an object has lost the categories of states that it lacks; those of the model count.
        place = np.append(pd.Index(known, dtype=object).get_indexer(pd.Index(found, dtype=object)), -1)
        labels, codes = known, place[codes].astype(np.int32)
    if not (codes >= 0).any():
        raise ValueError(f"{name}.{side}[{column!r}] gives no bin a state: all {len(codes)} are missing.")
    return StoredStates(side, codes, labels, state_colors(record, labels), parts, cell_type_key, params)


def state_colors(record: Mapping[str, Any], labels: list[str]) -> list[str]:
    """Colours that a result holds, else well-told ones in the order of the states."""
    states, colors = [str(label) for label in record.get("states", [])], list(map(str, record.get("colors", [])))
    if states == labels and len(colors) == len(labels):
        return colors
    return default_colors(len(labels))


def default_colors(number: int) -> list[str]:
    """Colours that keep apart for colour-blind readers up to eight states, then go round the hues."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    # Okabe and Ito's palette.
    palette = ["#d55e00", "#e69f00", "#f0e442", "#009e73", "#56b4e9", "#0072b2", "#cc79a7", "#999999"]
    if number <= len(palette):
        return palette[:number]
    hues = np.arange(number) / number
    return [
        to_hex(hsv_to_rgb((hue, 0.55 + 0.4 * (index % 2), 0.95 - 0.3 * (index % 3) / 2)))
        for index, hue in enumerate(hues)
    ]


def read_posterior(adata: AnnData, key: str, axis: Literal["var", "obs"], n_states: int) -> np.ndarray | None:
    """Posterior of the states (bins, states), also where the top states alone are stored; None if there is none."""
    field = adata.obsm if axis == "obs" else adata.varm
    name = stored_name(key, "chromatin_state_posterior")
    if name in field:
        return np.asarray(field[name])
    top, probability = (stored_name(key, f"chromatin_state_top{end}") for end in ("", "_probability"))
    if top not in field or probability not in field:
        return None
    states, values = np.asarray(field[top]), np.asarray(field[probability], np.float32)
    posterior = np.zeros((len(states), n_states), np.float32)
    rows = np.repeat(np.arange(len(states)), states.shape[1])
    kept = states.ravel() >= 0
    posterior[rows[kept], states.ravel()[kept]] = values.ravel()[kept]
    return posterior


def read_model_record(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Entry of ``.uns`` that holds a model, checked to be one."""
    require_anndata(adata)
    record = in_memory(adata.uns.get(key))
    if not isinstance(record, Mapping) or any(name not in record for name in _MODEL):
        raise KeyError(
            f"adata.uns has no model of chromatin states {key!r}: run diffbio_sc.tl.chromatin_states first, or pass "
            f"its key_added as key=...; keys: {[str(name) for name in adata.uns]}."
        )
    return record
