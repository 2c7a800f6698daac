"""Writing results back: checked first, all or nothing, in forms that h5ad and zarr store."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._checks import check_key

if TYPE_CHECKING:
    from anndata import AnnData

_FIELDS = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")


def prefix_of(key: str, default: str) -> str:
    """What the names of a result's columns and matrices begin with: nothing for the default key, else the key."""
    return "" if key == default else f"{key}_"


def storable_names(names: list[str]) -> list[str]:
    """Names without '/', which h5ad refuses in column names; still unique. Warns once if any changed."""
    stored: list[str] = []
    for name in names:
        new = name.replace("/", "|")
        while new in stored or (new != name and new in names):
            new += "_"
        stored.append(new)
    changed = [name for name, new in zip(names, stored, strict=True) if name != new]
    if changed:
        warnings.warn(f"h5ad cannot store '/' in names: {changed} are written with '|'.", UserWarning, stacklevel=3)
    return stored


def make_record(params: Mapping[str, Any], report: Any, **extra: Any) -> dict[str, Any]:
    """Return the ``.uns`` entry of a result: parameters, versions, fit report, and what else is given.

    Values become types that h5ad and zarr store: None is left out, tuples become arrays, other objects their text.
    """
    from diffbio_sc import __version__

    report = report.as_dict() if hasattr(report, "as_dict") else report
    version = {"diffbio_sc": __version__, **_versions()}
    return storable({"params": dict(params), "version": version, "report": report, **extra})


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("jax", "anndata", "numpy")}


def storable(value: Any) -> Any:
    """Return ``value`` in types that h5ad and zarr store."""
    if isinstance(value, Mapping):
        return {str(key).replace("/", "|"): storable(item) for key, item in value.items() if item is not None}
    if isinstance(value, np.random.Generator):
        return "Generator"
    if isinstance(value, list | tuple):
        array = np.asarray(value)
        return array.astype(str) if array.dtype.kind in "OU" else array
    if isinstance(value, bool | int | float | str | np.ndarray | np.generic | pd.DataFrame):
        return value
    return str(value)


def write_results(adata: AnnData, **fields: Mapping[str, Any]) -> None:
    """Write results into an AnnData, all or nothing.

    Parameters
    ----------
    adata
        Object; a view is made a real object first, as scanpy does.
    fields
        Dicts by key for any of obs, var, obsm, varm, obsp, varp, layers and uns. A value of None removes the key.

    Raises
    ------
    ValueError
        If a value has another length or shape than the object, or a key is none that files can hold; nothing is
        written then.
    """
    unknown = set(fields) - set(_FIELDS)
    if unknown:
        raise TypeError(f"write_results takes {_FIELDS}, found {sorted(unknown)}.")
    for field, values in fields.items():
        for key, value in values.items():
            if value is not None:
                check_key(key, f"keys of adata.{field}")
                _check(adata, field, key, value)
    if adata.is_view:
        adata._init_as_actual(adata.copy())
    done: list[tuple[Any, str, bool, Any]] = []
    try:
        for field, values in fields.items():
            target = getattr(adata, field)
            for key, value in values.items():
                existed = key in target
                done.append((target, key, existed, target[key] if existed else None))
                if value is not None:
                    target[key] = value
                elif existed:
                    del target[key]
    except BaseException:
        for target, key, existed, before in reversed(done):
            if existed:
                target[key] = before
            elif key in target:
                del target[key]
        raise


def _check(adata: AnnData, field: str, key: str, value: Any) -> None:
    if field == "uns":
        return
    shape = tuple(value.shape) if hasattr(value, "shape") else (len(value),)
    if field == "layers":
        good, expected = shape == adata.shape, str(adata.shape)
    elif field in ("obsp", "varp"):
        length = adata.n_obs if field == "obsp" else adata.n_vars
        good, expected = shape == (length, length), f"shape {(length, length)}"
    else:
        length = adata.n_obs if field.startswith("obs") else adata.n_vars
        ranks = (1,) if field in ("obs", "var") else (1, 2, 3)
        good, expected = shape[0] == length and len(shape) in ranks, f"{length} rows"
    if not good:
        raise ValueError(f"{field}[{key!r}] must have {expected}, found shape {shape}.")
    if isinstance(value, pd.DataFrame):
        bad = [column for column in map(str, value.columns) if "/" in column]
        if bad:
            raise ValueError(f"{field}[{key!r}] has columns that h5ad cannot store: {bad}.")
        names = adata.obs_names if field.startswith("obs") else adata.var_names
        if not value.index.equals(names):
            raise ValueError(f"{field}[{key!r}] must be indexed by the object's names.")
    elif not (sp.issparse(value) or hasattr(value, "dtype")):
        raise ValueError(f"{field}[{key!r}] must be an array or a table, found {type(value).__name__}.")
