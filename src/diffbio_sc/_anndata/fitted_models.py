"""Fitted operators in ``.uns``: stored in types that h5ad and zarr hold, and built again from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from diffbio_sc.operators.contract import Operator

OperatorType = TypeVar("OperatorType", bound="Operator")

STORED_FORMAT = 1


def store_operator(operator: Operator) -> dict[str, Any]:
    """Return configuration and variables of an operator as text and arrays."""
    from diffbio_sc.training import storage

    arrays, layout = {}, {}
    for path, value in storage.variables(operator).items():
        host, dtype = storage.to_host(value)
        layout[path] = {"dtype": dtype, "shape": host.shape}
        # A file gives an array without axes back as a number of Python, with another type.
        arrays[_stored_path(path)] = np.atleast_1d(host)
    identity = operator.identity()
    return {
        "format": STORED_FORMAT,
        "operator": identity["operator"],
        "version": identity["version"],
        "config": json.dumps(identity["config"]),
        "layout": json.dumps(layout),
        "arrays": arrays,
    }


def rebuild_operator(stored: Mapping[str, Any], operator_class: type[OperatorType], *, where: str) -> OperatorType:
    """Build an operator from what :func:`store_operator` returned, also after a file.

    Raises
    ------
    ValueError
        If it is another operator, of a format that this version does not know, or incomplete.
    """
    from flax import nnx

    from diffbio_sc.training import storage

    missing = sorted({"format", "operator", "version", "config", "layout", "arrays"} - set(stored))
    if missing:
        raise ValueError(f"{where} is no stored operator: it lacks {missing}; keys: {sorted(map(str, stored))}.")
    if str(stored["operator"]) != operator_class.__name__:
        raise ValueError(f"{where} holds a {stored['operator']}, not a {operator_class.__name__}.")
    if not 1 <= int(stored["format"]) <= STORED_FORMAT:
        raise ValueError(
            f"{where} has format {int(stored['format'])} (written by diffbio_sc {stored['version']}), this version "
            f"reads up to format {STORED_FORMAT}: update diffbio_sc, or fit the model again."
        )
    try:
        config = operator_class.config_class.from_dict(json.loads(str(stored["config"])))
    except ValueError as error:
        raise ValueError(f"{where}, written by diffbio_sc {stored['version']}: {error}") from error
    arrays = {}
    for path, entry in json.loads(str(stored["layout"])).items():
        if _stored_path(path) not in stored["arrays"]:
            raise ValueError(f"{where} is incomplete: array {path!r} is missing.")
        host = np.asarray(stored["arrays"][_stored_path(path)]).reshape(entry["shape"])
        arrays[path] = storage.to_device(host, entry["dtype"], where=f"{where}: array {path!r}")
    operator = operator_class(config, rngs=nnx.Rngs(0))
    nnx.update(operator, storage.restore(nnx.state(operator), arrays, where=where))
    return operator


def _stored_path(path: str) -> str:
    """Path of a variable as one key: a slash would begin a group in the file."""
    return path.replace("/", "|")
