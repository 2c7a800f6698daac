"""Arrays and a JSON header in one ``.npz`` file, without pickle: the files of operators and checkpoints."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import GetAttrKey, tree_flatten_with_path

from diffbio_sc._files import replacing

_HEADER = "header"


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by slash-separated path, in the order of ``jax.tree.leaves``."""
    flat = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        # Some flax releases show the value of a variable as one more step of the path, others do not.
        if path and path[-1] == GetAttrKey("value"):
            path = path[:-1]
        flat["/".join(_step_name(step) for step in path)] = leaf
    return flat


def restore(template: Any, arrays: Mapping[str, Any], *, where: str) -> Any:
    """Return ``template`` with its leaves replaced by the ``arrays`` of the same paths.

    Raises
    ------
    ValueError
        If a path is missing or unknown, or an array differs from its leaf in shape or kind of number.
    """
    leaves = flatten(template)
    missing, unknown = sorted(set(leaves) - set(arrays)), sorted(set(arrays) - set(leaves))
    if missing or unknown:
        raise ValueError(f"{where} does not hold the expected arrays: missing {missing}, unknown {unknown}.")
    for name, leaf in leaves.items():
        found = arrays[name]
        if jnp.shape(found) != jnp.shape(leaf) or _kind(found.dtype) != _kind(leaf.dtype):
            raise ValueError(
                f"{where}: array {name!r} must have shape {jnp.shape(leaf)} and kind {_kind(leaf.dtype)}, "
                f"found shape {jnp.shape(found)} and dtype {found.dtype}."
            )
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in leaves])


def write_file(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write ``header`` and ``arrays`` to exactly ``path``, so that a crash leaves the old file or the new one."""
    stored, kinds = {}, {}
    for name, array in arrays.items():
        stored[f"arrays/{name}"], kinds[name] = to_host(array)
    text = json.dumps({**header, "dtypes": kinds})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{_HEADER: np.array(text)}, **stored)  # type: ignore[arg-type]


def read_file(path: str | os.PathLike[str], *, kind: str, newest_format: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read header and arrays that :func:`write_file` wrote.

    Parameters
    ----------
    path
        File to read.
    kind
        Value of ``header["kind"]`` that is expected, as of "operator" or "checkpoint".
    newest_format
        Largest ``header["format"]`` that the caller reads.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not of this kind, is newer than this version, or holds a type that JAX would narrow.
    """
    where = repr(os.fspath(path))
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile) or _HEADER not in file.files:
            raise ValueError("it has no header")
        with file:
            header = json.loads(str(file[_HEADER]))
            stored = {name: file[name] for name in file.files if name != _HEADER}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} is not a diffbio_sc {kind} file: {error}.") from error
    if header.get("kind") != kind:
        raise ValueError(f"{where} is a diffbio_sc {header.get('kind')!r} file, expected a {kind!r} file.")
    found = header.get("format")
    if not isinstance(found, int) or not 1 <= found <= newest_format:
        raise ValueError(
            f"{where} has format {found!r} (written by diffbio_sc {header.get('version')}), this version reads up to "
            f"format {newest_format}: update diffbio_sc, or save the file again with this version."
        )
    arrays = {}
    for name, dtype in header["dtypes"].items():
        if f"arrays/{name}" not in stored:
            raise ValueError(f"{where} is incomplete: array {name!r} is missing.")
        arrays[name] = to_device(stored[f"arrays/{name}"], dtype, where=f"{where}: array {name!r}")
    return header, arrays


def variables(module: nnx.Module) -> dict[str, Any]:
    """Return the arrays of a module's variables by path."""
    return flatten(nnx.state(module))


def to_host(array: Any) -> tuple[np.ndarray, str]:
    """Return an array that numpy's format can hold, and the type that :func:`to_device` makes of it again."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(array)), f"key:{jax.random.key_impl(array)}"
    host = np.asarray(array)
    # numpy's format does not know bfloat16 and its like (kind "V"): their bits are stored.
    return (host.view(f"u{host.dtype.itemsize}") if host.dtype.kind == "V" else host), str(host.dtype)


def to_device(array: np.ndarray, dtype: str, *, where: str) -> jax.Array:
    """Return the array that :func:`to_host` took, on the device.

    Raises
    ------
    ValueError
        If JAX would narrow it; the message begins with ``where``.
    """
    if dtype.startswith("key:"):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=dtype.removeprefix("key:"))
    value = jnp.asarray(array.view(jnp.dtype(dtype)))
    if value.dtype != jnp.dtype(dtype):
        raise ValueError(f"{where} has dtype {dtype}, which JAX would narrow: set jax_enable_x64 before reading it.")
    return value


def _step_name(step: Any) -> str:
    """Name of a dict key, an attribute or a position in a tree path."""
    return str(getattr(step, "key", getattr(step, "name", getattr(step, "idx", step))))


def _kind(dtype: Any) -> str:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "random key"
    kinds = {"floating point": jnp.floating, "integer": jnp.integer, "boolean": jnp.bool_}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)), str(dtype))
