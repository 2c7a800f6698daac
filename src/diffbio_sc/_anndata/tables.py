"""Reading labels, numbers and coordinates, checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData


def _column(frame: pd.DataFrame, key: str, name: str) -> pd.Series:
    if key not in frame:
        raise KeyError(f"{name} has no column {key!r}; columns: {list(map(str, frame.columns))}.")
    return read_column(frame, key)


def read_column(table: Any, key: str) -> pd.Series:
    """Column of a table, in memory; of a lazy table (``anndata.experimental.read_lazy``) no other is read."""
    return table[key] if isinstance(table, pd.DataFrame) else table[[key]].to_memory()[key]


def read_table(table: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Table in memory, or some of its columns; of a lazy table no others are read."""
    if columns is not None:
        table = table[list(columns)]
    return table if isinstance(table, pd.DataFrame) else table.to_memory()


def in_memory(value: Any) -> Any:
    """A table, an array or a record of them in memory, where an object of ``read_lazy`` has left them in its file."""
    if hasattr(value, "to_memory"):
        return value.to_memory()
    if isinstance(value, Mapping):
        read = {name: in_memory(entry) for name, entry in value.items()}
        return read if any(read[name] is not entry for name, entry in value.items()) else value
    if not hasattr(value, "__dask_graph__"):
        return value
    array = value.compute()
    array = array.astype(object) if getattr(array.dtype, "kind", "") == "T" else array
    return array if array.shape else array[()]


def numbers_or_nan(table: Any, key: str) -> np.ndarray:
    """Numbers of a column, in float64, NaN where it holds none."""
    return pd.to_numeric(read_column(table, key), errors="coerce").to_numpy(np.float64, na_value=np.nan)


def read_labels(frame: pd.DataFrame, key: str, *, name: str) -> tuple[np.ndarray, list[str]]:
    """Codes (-1: missing) and names of a column of labels; names in categorical order, else sorted."""
    column = _column(frame, key, name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        categories = [str(label) for label in column.cat.categories]
        codes = column.cat.codes.to_numpy()
    else:
        missing = column.isna().to_numpy()
        text = column.astype(str).to_numpy(dtype=object)
        categories = sorted(set(text[~missing]))
        codes = pd.Index(categories, dtype=object).get_indexer(pd.Index(text, dtype=object))
        codes = np.where(missing, -1, codes)
    if not categories:
        raise ValueError(f"{name}[{key!r}] has no labels: all of its {len(column)} values are missing.")
    return codes.astype(np.int32), categories


def read_numbers(
    frame: pd.DataFrame, key: str, *, name: str, positive: bool = False, missing_allowed: bool = False
) -> np.ndarray:
    """Numbers of a column, in float64: finite, unless missing ones are allowed (then NaN) and positive if asked for."""
    column = _column(frame, key, name)
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    missing = column.isna().to_numpy() if missing_allowed else np.zeros(len(values), bool)
    bad = ~np.isfinite(values) & ~missing
    if positive:
        bad |= values <= 0
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}[{key!r}] must hold {'positive ' if positive else ''}finite numbers, found {column.iloc[first]!r} "
            f"at {frame.index[first]!r} ({int(bad.sum())} such values)."
        )
    return values


def read_cell_numbers(frame: pd.DataFrame, key: str, *, name: str, stacklevel: int = 3) -> np.ndarray:
    """Numbers of cells, not negative; NaN where missing. Warns of spots without cells, refuses if all are.

    Parameters
    ----------
    frame, key, name
        Table, its column, and what messages call the table.
    stacklevel
        Frame that the warning points to, as :func:`warnings.warn` counts.
    """
    values = read_numbers(frame, key, name=name, missing_allowed=True)
    if (values < 0).any():
        first = int(np.flatnonzero(values < 0)[0])
        raise ValueError(f"{name}[{key!r}] must not be negative, found {values[first]:g} at {frame.index[first]!r}.")
    without = ~(np.nan_to_num(values) > 0)
    if without.all():
        raise ValueError(f"{name}[{key!r}] must hold numbers of cells, all {len(values)} are 0 or missing.")
    if without.any():
        warnings.warn(
            f"{int(without.sum())} of {len(values)} spots have no cells in {name}[{key!r}] (0 or missing, first: "
            f"{list(map(str, frame.index[without][:3]))}): these go by how often types are present over all spots.",
            UserWarning,
            stacklevel=stacklevel,
        )
    return values


def read_coordinates(adata: AnnData, key: str) -> np.ndarray:
    """Coordinates (observations, 2 or 3) from ``adata.obsm``, finite, in float64."""
    if key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {key!r}; keys: {list(adata.obsm.keys())}.")
    try:
        values = np.asarray(in_memory(adata.obsm[key]), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"adata.obsm[{key!r}] must hold numbers, found {_first_text(adata.obsm[key])}.") from error
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"adata.obsm[{key!r}] must have 2 or 3 columns, found shape {values.shape}.")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        names = list(adata.obs_names[bad][:5])
        raise ValueError(f"adata.obsm[{key!r}] must be finite, found {int(bad.sum())} bad rows, first: {names}.")
    return values


def _first_text(values: Any) -> str:
    """First value that is not a number, for a message."""
    flat = np.asarray(values, dtype=object).ravel()
    bad = pd.isna(pd.to_numeric(pd.Series(flat, dtype=object), errors="coerce")).to_numpy()
    return f"{flat[int(np.flatnonzero(bad)[0])]!r}" if bad.any() else f"dtype {getattr(values, 'dtype', 'object')}"


def read_slides(adata: AnnData, library_key: str | None) -> np.ndarray:
    """Code of each spot's slide, all 0 without ``library_key``."""
    if library_key is None:
        return np.zeros(adata.n_obs, np.int64)
    codes, _ = read_labels(adata.obs, library_key, name="adata.obs")
    if (codes < 0).any():
        raise ValueError(
            f"adata.obs[{library_key!r}] must name a slide for each spot, {(codes < 0).sum()} are missing."
        )
    return codes.astype(np.int64)


def read_covariates(adata: AnnData, covariates: Any) -> np.ndarray:
    """Matrix of covariates (spots, columns); missing values stay NaN."""
    if isinstance(covariates, str) and covariates in adata.obsm:
        table = adata.obsm[covariates]
    elif isinstance(covariates, str | list | tuple) or isinstance(covariates, pd.Index):
        names = [covariates] if isinstance(covariates, str) else list(covariates)
        missing = [name for name in names if name not in adata.obs]
        if missing:
            raise KeyError(
                f"covariates {missing} are neither in adata.obsm ({list(adata.obsm)}) nor columns of adata.obs "
                f"({list(map(str, adata.obs.columns))})."
            )
        table = pd.concat([read_column(adata.obs, name) for name in names], axis=1)
    else:
        table = covariates
    table = in_memory(table)
    if isinstance(table, pd.DataFrame):
        if not table.index.equals(adata.obs_names):
            raise ValueError("covariates must be a table indexed by adata.obs_names, in the same order.")
        whole = table.isna().any(axis=1).to_numpy()
        table = pd.get_dummies(table, dtype=np.float64).to_numpy(np.float64, copy=True)
        table[whole] = np.nan
    values = np.asarray(table, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.shape[0] != adata.n_obs or values.ndim != 2:
        raise ValueError(f"covariates must have a row for each of the {adata.n_obs} spots, found shape {values.shape}.")
    if np.isinf(values).any():
        raise ValueError("covariates must be finite, found infinite values.")
    return values
