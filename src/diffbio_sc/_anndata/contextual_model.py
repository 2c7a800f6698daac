"""A fitted contextual sequence model in ``.uns`` or in a file, and what its arrays mean."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._anndata.contextual_data import Context
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._checks import is_path
from diffbio_sc._files import replacing

if TYPE_CHECKING:
    from diffbio_sc.engines.contextual import RegionModel
    from diffbio_sc.engines.contextual_windows import WindowModel

DEFAULT_KEY = "contextual"
KINDS = ("regions", "windows")
STORED_FORMAT = 1
_FILE_KIND = "diffbio_sc contextual model"


class ContextualModel(NamedTuple):
    """A fitted model, and what the arrays that it takes mean.

    Attributes
    ----------
    model
        The model of :mod:`diffbio_sc.engines`.
    kind
        ``"regions"`` or ``"windows"``.
    mode
        Which inputs it uses: ``"sequence_only"``, ``"tf_context"`` or ``"tf_plus_chromatin"``.
    cell_types
        Names of the cell types that it was trained with.
    width
        Bases of a sequence.
    context
        Expression of the factors in those cell types; None without.
    groups
        Names of the kinds of regions, of a model with neighbourhood; None without.
    """

    model: Any
    kind: str
    mode: str
    cell_types: list[str]
    width: int
    context: Context | None
    groups: list[str] | None


def store_contextual_model(fitted: ContextualModel) -> dict[str, Any]:
    """Return a fitted model in types that h5ad, zarr and npz hold."""
    arrays, layout = {}, {}
    for name, value in fitted.model.arrays().items():
        host = np.asarray(value)
        layout[name] = {"dtype": str(host.dtype), "shape": host.shape}
        # A file gives an array without axes back as a number of Python, with another type.
        arrays[_stored_name(name)] = np.atleast_1d(host)
    stored = {
        "format": STORED_FORMAT,
        "kind": fitted.kind,
        "mode": fitted.mode,
        "cell_types": np.array(fitted.cell_types, dtype=str),
        "width": int(fitted.width),
        "layout": json.dumps(layout),
        "arrays": arrays,
    }
    if fitted.context is not None:
        stored["factors"] = np.array(fitted.context.factors, dtype=str)
        stored["context"] = fitted.context.values
    if fitted.groups is not None:
        stored["groups"] = np.array(fitted.groups, dtype=str)
    return stored


def read_contextual_model(model: Any, *, key: str = DEFAULT_KEY) -> ContextualModel:
    """Build the model that an AnnData, a record of ``.uns`` or a file holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If the object holds none.
    TypeError
        If ``model`` is of another kind.
    ValueError
        If it is damaged or of a newer version.
    """
    if isinstance(model, ContextualModel):
        return model
    if is_path(model):
        return _rebuild(_read_file(model), repr(os.fspath(model)))
    if hasattr(model, "uns"):
        record = in_memory(model.uns.get(key))
        if not isinstance(record, Mapping) or "model" not in record:
            raise KeyError(
                f"adata.uns has no model under {key!r}: run dbio.tl.contextual(adata) first, or pass model=..., an "
                f"AnnData or a file that holds one; keys: {[str(name) for name in model.uns]}."
            )
        return _rebuild(record["model"], f"adata.uns[{key!r}]['model']")
    if isinstance(model, Mapping) and "model" in model:
        return _rebuild(in_memory(model["model"]), "model")
    raise TypeError(
        "model must be an AnnData that dbio.tl.contextual has written to, the path of a file, or None, found "
        f"{type(model).__name__}."
    )


def write_contextual_file(fitted: ContextualModel, path: str | os.PathLike[str]) -> None:
    """Write a fitted model into one npz file, without pickle, so that a crash leaves the old file or the new one."""
    from diffbio_sc import __version__

    stored = store_contextual_model(fitted)
    arrays = {f"arrays/{name}": value for name, value in stored.pop("arrays").items()}
    arrays |= {name: stored.pop(name) for name in list(stored) if isinstance(stored[name], np.ndarray)}
    header = json.dumps({"file": _FILE_KIND, "version": __version__, **stored})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, header=np.array(header), **arrays)  # type: ignore[arg-type]


def texts(values: Any) -> list[str]:
    """Return an array of text, also after a file, as a list."""
    return [str(value) for value in np.atleast_1d(values)]


def _read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    where = repr(os.fspath(path))
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile) or "header" not in file.files:
            raise ValueError("it has no header")
        with file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} is not a file of dbio.io.write_contextual_model: {error}.") from error
    if header.pop("file", None) != _FILE_KIND:
        raise ValueError(f"{where} is not a file of dbio.io.write_contextual_model.")
    inner = {name.removeprefix("arrays/"): value for name, value in arrays.items() if name.startswith("arrays/")}
    outer = {name: value for name, value in arrays.items() if not name.startswith("arrays/")}
    return {**header, **outer, "arrays": inner}


def _rebuild(stored: Mapping[str, Any], where: str) -> ContextualModel:
    missing = sorted({"format", "kind", "mode", "cell_types", "width", "layout", "arrays"} - set(stored))
    if missing:
        raise ValueError(f"{where} is no stored model: it lacks {missing}; keys: {sorted(map(str, stored))}.")
    if not 1 <= int(stored["format"]) <= STORED_FORMAT:
        raise ValueError(
            f"{where} has format {int(stored['format'])}, this version reads up to format {STORED_FORMAT}: update "
            "diffbio_sc, or train the model again."
        )
    arrays = {}
    for name, entry in json.loads(str(stored["layout"])).items():
        if _stored_name(name) not in stored["arrays"]:
            raise ValueError(f"{where} is incomplete: array {name!r} is missing.")
        value = np.asarray(stored["arrays"][_stored_name(name)])
        arrays[name] = value.astype(np.dtype(entry["dtype"])).reshape(entry["shape"])
    kind = str(stored["kind"])
    if kind not in KINDS:
        raise ValueError(f"{where} is a model of {kind!r}, this version knows {list(KINDS)}: update diffbio_sc.")
    context = None
    if "factors" in stored:
        context = Context(np.asarray(stored["context"], np.float64), texts(stored["factors"]))
    return ContextualModel(
        _model_class(kind).from_arrays(arrays),
        kind,
        str(stored["mode"]),
        texts(stored["cell_types"]),
        int(stored["width"]),
        context,
        texts(stored["groups"]) if "groups" in stored else None,
    )


def _model_class(kind: str) -> type[RegionModel] | type[WindowModel]:
    if kind == "regions":
        from diffbio_sc.engines.contextual import RegionModel

        return RegionModel
    from diffbio_sc.engines.contextual_windows import WindowModel

    return WindowModel


def _stored_name(name: str) -> str:
    """Name of an array as one key: a slash would begin a group in the file."""
    return name.replace("/", "|")
