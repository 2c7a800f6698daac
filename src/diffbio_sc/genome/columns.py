"""Columns of intervals: in memory, or in temporary files of which no more is in memory than is worked on."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

_SMALL = 1 << 16  # rows that are held in memory anyway
_ROWS_AT_ONCE = 1 << 20

_ON_DISK: ContextVar[bool] = ContextVar("columns_on_disk", default=False)


@contextmanager
def columns_on_disk() -> Iterator[None]:
    """Let columns that are made inside lie in temporary files, which end with the arrays.

    They are arrays like others; :func:`release` takes what was read of them out of memory again.
    """
    token = _ON_DISK.set(True)
    try:
        yield
    finally:
        _ON_DISK.reset(token)


def new_column(rows: int, dtype: Any) -> np.ndarray:
    """Return an array of so many rows, to be filled."""
    if rows <= _SMALL or not _ON_DISK.get():
        return np.empty(rows, dtype)
    with tempfile.TemporaryFile(prefix="diffbio-sc-") as file:
        file.truncate(rows * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=(rows,))  # the mapping keeps the file until it ends


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy a column to the front of another, without having all of either in memory."""
    for start in range(0, len(source), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(source))
        target[start:stop] = source[start:stop]
        release(target, source)


def release(*columns: np.ndarray | None) -> None:
    """Take columns that lie in files out of memory; their values stay, and are read again where needed."""
    for column in columns:
        found = _mapping(column)
        if found is not None and hasattr(mmap, "MADV_DONTNEED"):
            found.madvise(mmap.MADV_DONTNEED)


def row_batches(counts: Iterable[int], rows: int = _ROWS_AT_ONCE) -> Iterator[slice]:
    """Groups, one after the other, that have about so many rows together."""
    start, held, number = 0, 0, 0
    for number, count in enumerate(counts, 1):
        held += int(count)
        if held >= rows:
            yield slice(start, number)
            start, held = number, 0
    if start < number:
        yield slice(start, number)


def _mapping(column: Any) -> mmap.mmap | None:
    while column is not None:
        found = getattr(column, "_mmap", None)
        if found is not None:
            return found
        column = getattr(column, "base", None)
    return None
