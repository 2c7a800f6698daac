from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata import check_key, make_record, storable_names, write_results
from diffbio_sc._anndata.modalities import is_mudata, object_name, require_object
from diffbio_sc._anndata.modality_results import write_modality_results
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

Scale = Literal["none", "standard", "block"]
_SCALES = ("none", "standard", "block")


class _Block(NamedTuple):
    """Values of one key: rows of the object by columns, NaN where missing."""

    values: np.ndarray
    columns: list[str]
    source: str
    provenance: dict[str, Any]


def combine_features(
    data: AnnData | MuData,
    keys: Sequence[str] | Mapping[str, Any],
    *,
    scale: Scale | Mapping[str, Scale] = "none",
    axis: Literal["obs", "var"] = "obs",
    key_added: str = "X_combined",
    copy: bool = False,
) -> AnnData | MuData | None:
    """Put proportions, state probabilities, embeddings and scores side by side in one matrix with named columns.

    Parameters
    ----------
    data
        Object. In a MuData the rows are all of its cells; cells that lack a modality have NaN in its columns.
    keys
        Names of matrices in ``.obsm`` or of columns of ``.obs``, such as ``["deconvolution", "X_pca"]``; in a MuData
        also ``"modality:key"``. Or a mapping from names of your own to such keys, or to arrays and tables with a row
        for each observation, such as outputs of operators. A column of categories becomes one indicator for each.
    scale
        For all keys, or for each by its name: ``"none"``; ``"standard"``, each column has mean 0 and variance 1;
        ``"block"``, the columns of a key have mean 0, and their variances sum to 1, so that keys weigh the same however
        many columns they have.
    axis
        ``"var"`` combines what lies along the variables, in ``.varm`` and ``.var``, as chromatin states of bins do.
    key_added
        Name of the result.
    copy
        Return a copy instead of writing into ``data``.

    Returns
    -------
    None, or the copy. Written are

    - ``.obsm[key_added]`` (``.varm``): DataFrame, float32, with columns ``"name:column"``
    - ``.uns[key_added]``: ``params``, ``version``, ``report`` (numbers of rows with missing values), ``features`` (for
      each column its ``block``, ``feature``, and the ``mean`` and ``scale`` that were taken out), and ``provenance``:
      for each key its ``source`` and, where it is known, ``version``, and the ``artifact`` record of an imported
      embedding

    Raises
    ------
    KeyError
        If a key is neither matrix nor column.
    TypeError
        If values are not numbers.
    ValueError
        If first dimensions differ, names occur twice, values are infinite, or an argument is none that is known.

    Warns
    -----
    UserWarning
        If rows have missing values.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.combine_features(spots, {"share": "truth", "cells": "n_cells"}, scale={"cells": "standard"})
    >>> spots.obsm["X_combined"].shape, spots.obsm["X_combined"].columns[-1]
    ((100, 8), 'cells:n_cells')
    """
    check_options(combine_features, locals(), replaced=("keys",))
    require_object(data, "data")
    check_key(key_added)
    if axis not in ("obs", "var") or (axis == "var" and is_mudata(data)):
        raise ValueError(f"axis must be 'obs', or 'var' for an AnnData, found {axis!r}.")
    named = _named_keys(keys)
    scales = _scales(scale, list(named))
    names = data.obs_names if axis == "obs" else data.var_names
    blocks = {name: _read(data, name, key, axis) for name, key in named.items()}
    lengths = {name: len(block.values) for name, block in blocks.items()}
    if set(lengths.values()) != {len(names)}:
        raise ValueError(
            f"all keys must have {len(names)} rows, one for each of {object_name(data)}.{axis}_names, found {lengths}."
        )
    tables, missing = [], {}
    for name, block in blocks.items():
        _check_values(name, block)
        missing[name] = int(np.isnan(block.values).any(1).sum())
        mean, spread = _centre_and_spread(block.values, scales[name])
        tables.append(
            pd.DataFrame({"block": name, "feature": block.columns, "mean": mean, "scale": spread}, dtype=object)
        )
    features = pd.concat(tables, ignore_index=True).astype({"mean": np.float64, "scale": np.float64})
    # 0/0 cannot occur: the spread of a constant column is 1.
    values = np.concatenate([block.values for block in blocks.values()], axis=1)
    values = (values - features["mean"].to_numpy()) / features["scale"].to_numpy()
    columns = storable_names([f"{one.block}:{one.feature}" for one in features.itertuples()])
    features.index = pd.Index(columns)
    lacking = {name: number for name, number in missing.items() if number}
    if lacking:
        warnings.warn(
            f"some of {len(names)} rows have missing values, which stay NaN: {lacking}.",
            UserWarning,
            stacklevel=2,
        )
    record = make_record(
        {"keys": {name: block.source for name, block in blocks.items()}, "scale": scales, "axis": axis},
        {"missing_rows": missing},
        features=features,
        provenance={name: {"source": block.source, **block.provenance} for name, block in blocks.items()},
    )
    if copy:
        data = data.copy()
    matrix = pd.DataFrame(values.astype(np.float32), index=names, columns=columns)
    if is_mudata(data):
        write_modality_results(data, obsm={key_added: matrix}, uns={key_added: record})
    else:
        write_results(data, **{f"{axis}m": {key_added: matrix}}, uns={key_added: record})
    return data if copy else None


def _named_keys(keys: Any) -> dict[str, Any]:
    if isinstance(keys, str):
        keys = [keys]
    named = dict(keys) if isinstance(keys, Mapping) else {key: key for key in keys}
    if not named:
        raise ValueError("keys must name at least one matrix or column.")
    if not isinstance(keys, Mapping) and len(named) < len(list(keys)):
        raise ValueError(f"keys must be different, found {list(keys)}.")
    for name in named:
        check_key(name, "a key")
    return named


def _scales(scale: Any, names: list[str]) -> dict[str, str]:
    if isinstance(scale, Mapping):
        unknown = sorted(set(scale) - set(names))
        if unknown:
            raise KeyError(f"scale names {unknown}, which are not among the keys {names}.")
        scales = {name: scale.get(name, "none") for name in names}
    else:
        scales = dict.fromkeys(names, scale)
    wrong = {name: value for name, value in scales.items() if value not in _SCALES}
    if wrong:
        raise ValueError(f"scale must be one of {list(_SCALES)}, found {wrong}.")
    return scales


def _read(data: Any, name: str, key: Any, axis: str) -> _Block:
    if not isinstance(key, str):
        return _block(key, name, "array", {})
    where = object_name(data)
    modality, _, rest = key.partition(":")
    matrices = getattr(data, f"{axis}m")
    if is_mudata(data) and rest and modality in data.mod:
        part = data.mod[modality]
        block = _read(part, name, rest, axis)
        rows = part.obs_names.get_indexer(data.obs_names)
        values = np.where((rows >= 0)[:, None], block.values[rows], np.nan)
        return block._replace(values=values, source=f"mdata[{modality!r}]{block.source.removeprefix('adata')}")
    if key in matrices and not (is_mudata(data) and key in data.mod):  # a MuData keeps masks of modalities there
        return _block(in_memory(matrices[key]), name, f"{where}.{axis}m[{key!r}]", _provenance(data, key))
    table = getattr(data, axis)
    if key in table:
        return _block(read_column(table, key), name, f"{where}.{axis}[{key!r}]", _provenance(data, key))
    further = f", or 'modality:key' of {list(data.mod)}" if is_mudata(data) else ""
    raise KeyError(
        f"{where} has no {key!r}: matrices {list(matrices.keys())}, columns {list(map(str, table.columns))}{further}."
    )


def _block(values: Any, name: str, source: str, provenance: dict[str, Any]) -> _Block:
    if isinstance(values, pd.Series):
        if isinstance(values.dtype, pd.CategoricalDtype) or values.dtype.kind in "OUT":
            missing = values.isna().to_numpy()
            values = pd.get_dummies(values, dtype=np.float64)
            values[missing] = np.nan
        else:
            values = values.to_frame()
    columns = None
    if isinstance(values, pd.DataFrame):
        columns = [str(column) for column in values.columns]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{name!r} ({source}) must have different columns, found {columns}.")
        kinds = [pd.api.types.is_numeric_dtype(values[column]) for column in values.columns]
        if not all(kinds):
            raise TypeError(f"{name!r} ({source}) must hold numbers, found text in {columns[kinds.index(False)]!r}.")
        values = values.to_numpy(np.float64, na_value=np.nan)
    elif hasattr(values, "toarray"):
        values = values.toarray()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name!r} ({source}) must hold numbers, found dtype {array.dtype}.")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name!r} ({source}) must be a matrix with at least one column, found shape {array.shape}.")
    columns = [str(number) for number in range(array.shape[1])] if columns is None else columns
    return _Block(array.astype(np.float64), columns, source, provenance)


def _check_values(name: str, block: _Block) -> None:
    if np.isinf(block.values).any():
        raise ValueError(f"{name!r} ({block.source}) must be finite, or NaN where missing; found infinite values.")
    if np.isnan(block.values).all(0).any():
        column = block.columns[int(np.flatnonzero(np.isnan(block.values).all(0))[0])]
        raise ValueError(f"{name!r} ({block.source}) has no values in column {column!r}: all are missing.")


def _centre_and_spread(values: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    if scale == "none":
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    variance = np.nanvar(values, axis=0)
    # A constant column has a variance of rounding errors.
    variance = np.where(variance > (1e-12 * np.nanmax(np.abs(values), axis=0)) ** 2, variance, 0.0)
    if scale == "block":
        variance = np.full_like(variance, variance.sum())
    return np.nanmean(values, axis=0), np.where(variance > 0, np.sqrt(np.where(variance > 0, variance, 1.0)), 1.0)


def _provenance(data: Any, key: str) -> dict[str, Any]:
    """What ``.uns`` says of a result: the version that made it, and the record of an imported embedding."""
    found: dict[str, Any] = {}
    record = in_memory(data.uns.get(key))
    if isinstance(record, Mapping):
        found |= {name: record[name] for name in ("version", "artifact") if name in record}
    for other, entry in data.uns.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("artifacts"), Mapping):
            for modality, one in entry["artifacts"].items():
                if key == f"{other}_{modality}":
                    found |= {name: in_memory(one[name]) for name in ("version", "artifact") if name in one}
    return found
