"""Checks of arguments and phrases of messages that every floor shares."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_UNSTORABLE = {"/": "a path", "\\": "a path", "\0": "the end of a text"}
_READERS = {".h5ad": "anndata.read_h5ad", ".zarr": "anndata.read_zarr", ".h5mu": "mudata.read_h5mu"}


def name_heads(names: Sequence[Any], number: int = 5) -> str:
    """First few of some names, for messages, with their number if there are more."""
    return str([str(name) for name in names[:number]]) + (f" ... ({len(names)})" if len(names) > number else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 read`` and ``2,000 reads``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def whole_number(value: Any, argument: str, *, minimum: int = 1, unit: str = "") -> int:
    """Return an argument as an int, or raise ValueError if it is no whole number of at least ``minimum``."""
    try:
        number = int(value) if isinstance(value, float | np.floating) else operator.index(value)
        good = not isinstance(value, bool | np.bool_) and number == value and number >= minimum
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"{argument} must be a whole number of at least {minimum}{unit}, found {value!r}.")
    return number


def whole_numbers(values: Any, what: str, *, minimum: int | None = None, maximum: int | None = None) -> np.ndarray:
    """Return values of any kind of number as int64, or raise ValueError, naming the first that is no whole number.

    Checked before any cast: a cast cuts fractions off and wraps large numbers without a word.
    """
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iuf":
        try:  # columns of a table may hold numbers as objects; text is none
            if array.dtype.kind != "O" or any(isinstance(value, str | bytes) for value in array.ravel()[:1]):
                raise TypeError
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"{what} must be whole numbers, found {array.dtype}: {array.ravel().tolist()[0]!r}."
            ) from None
    bad = np.zeros(array.shape, np.bool_)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)  # half precision cannot hold the limits
        bad |= ~np.isfinite(array) | (array != np.floor(array))
    low = np.iinfo(np.int64).min if minimum is None else minimum
    high = np.iinfo(np.int64).max if maximum is None else maximum
    bad |= (array < low) | (array > high)
    if bad.any():
        first = array[bad][0]
        limits = "" if minimum is None and maximum is None else f" from {low:,} to {high:,}"
        raise ValueError(
            f"{what} must be whole numbers{limits}, found {int(bad.sum())} other values; the first is {first}."
        )
    return array.astype(np.int64)


def as_numbers(values: Any, argument: str) -> np.ndarray:
    """Return a table or array as float64, or raise TypeError that says what was found."""
    try:
        if values is not None:
            return np.array(values, np.float64)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{argument} must be an array or a table of numbers, {found_object(values)}.")


def is_path(value: Any) -> bool:
    """Whether an argument is a path."""
    return isinstance(value, str | os.PathLike)


def found_object(value: Any) -> str:
    """What was found in place of an object, for messages; a path comes with the way to read it."""
    found = f"found {type(value).__name__}"
    if not is_path(value):
        return found
    name = os.fspath(value)
    reader = _READERS.get(os.path.splitext(name.rstrip("/"))[1])
    return f"{found} {name!r}: read the file first{'' if reader is None else f', with {reader}'}"


def check_key(key: Any, argument: str = "key_added") -> str:
    """Return ``key`` if h5ad and zarr can hold results under that name, else raise.

    h5ad and zarr store names as paths: one with a slash is written, and the file cannot be read any more. Faces call
    this before any work for every argument that becomes the name, or part of the name, of a result.

    Parameters
    ----------
    key
        Value of the argument.
    argument
        Name of the argument, for the message.

    Raises
    ------
    TypeError
        If ``key`` is not text.
    ValueError
        If it is empty, ``"."`` or ``".."``, or contains a slash, a backslash or a NUL character.
    """
    if not isinstance(key, str):
        raise TypeError(f"{argument} must be a text, found {key!r} of type {type(key).__name__}.")
    found = next((character for character in _UNSTORABLE if character in key), None)
    if found is not None:
        raise ValueError(
            f"{argument} must not contain {found!r}, which h5ad and zarr take for {_UNSTORABLE[found]} (the file could "
            f"not be read again), found {key!r}: write {key.replace(found, '_')!r}, for example."
        )
    if key.strip() in ("", ".", ".."):
        raise ValueError(f"{argument} must be a name that h5ad and zarr can store, found {key!r}.")
    return str(key)


def require_columns(frame: Any, columns: Sequence[str], name: str) -> None:
    """Raise KeyError that names the columns which a table lacks and those it has."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise KeyError(f"{name} has no columns {missing}; columns: {list(map(str, frame.columns))}.")
