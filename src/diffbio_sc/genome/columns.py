"""Columns of intervals: in memory, or in temporary files of which no more is in memory than is worked on."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffbio_sc._files import MORE_SHARED_ROOM, room_for

_SMALL = 1 << 16  # rows that are held in memory anyway
_ROWS_AT_ONCE = 1 << 20
_PAGE_ROWS = 1 << 14  # a multiple of the pages of file systems, also where a row is one byte

_PLACE: ContextVar[Path | bool] = ContextVar("columns_on_disk", default=False)


@contextmanager
def columns_on_disk(folder: Path | None = None) -> Iterator[None]:
    """Let columns that are made inside lie in temporary files, which end with the arrays.

    They are arrays like others; :func:`release` takes what was read of them out of memory again. In a ``folder`` that
    other processes see the files have names, so that :func:`stored` tells those where they are, and end with the
    folder or by :func:`discard`.
    """
    token = _PLACE.set(True if folder is None else folder)
    try:
        yield
    finally:
        _PLACE.reset(token)


def new_column(rows: int, dtype: Any) -> np.ndarray:
    """Return an array of so many rows, to be filled."""
    place, size = _PLACE.get(), rows * np.dtype(dtype).itemsize
    if isinstance(place, Path) and rows:
        path = place / f"column-{uuid.uuid4().hex}"
        with room_for(size, place, MORE_SHARED_ROOM), open(path, "wb") as file:
            _reserve(file, size)
        return np.memmap(path, dtype, "r+", shape=(rows,))
    if rows <= _SMALL or not place:
        return np.empty(rows, dtype)
    with tempfile.TemporaryFile(prefix="diffbio-sc-") as file:
        with room_for(size, tempfile.gettempdir()):
            _reserve(file, size)
        return np.memmap(file, dtype, "r+", shape=(rows,))  # the mapping keeps the file until it ends


def _reserve(file: Any, size: int) -> None:
    """Make a file of a size, and take the room on the disk now.

    A write to a mapped file for which the disk has no room is no error that Python sees: it ends the process.
    """
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # not in this file system
                raise


class StoredColumn(NamedTuple):
    """Where another process finds a column."""

    path: str
    dtype: str
    first: int
    rows: int

    def open(self) -> np.ndarray:
        """Return the column; :func:`write_rows` writes to it, nothing else reaches the file."""
        dtype = np.dtype(self.dtype)
        return np.memmap(self.path, dtype, "c", self.first * dtype.itemsize, (self.rows,))


def stored(column: np.ndarray | None) -> StoredColumn | np.ndarray | None:
    """Where a column lies that is in a file of a shared folder; the values of any other."""
    if column is None or not len(column) or not _in_folder(column):
        return None if column is None else np.array(column)
    whole: Any = _whole(column)
    first = (_address(column) - _address(whole) + whole.offset) // column.dtype.itemsize
    return StoredColumn(str(whole.filename), column.dtype.str, first, len(column))


def opened(column: StoredColumn | np.ndarray | None) -> np.ndarray | None:
    """Return the column that :func:`stored` told of."""
    return column.open() if isinstance(column, StoredColumn) else column


class ColumnTuple(tuple):
    """Columns that travel to another process by their place, where they lie in files of a shared folder."""

    def __reduce__(self) -> tuple:
        return _opened_tuple, tuple(map(stored, self))


def _opened_tuple(*columns: Any) -> ColumnTuple:
    return ColumnTuple(map(opened, columns))


def write_rows(column: np.ndarray, first: int, values: np.ndarray) -> None:
    """Write rows of a column; tasks that write to one column begin at the :func:`row_starts` of their parts.

    To a file of a shared folder they are written as bytes, not through memory that is mapped: other machines see them
    when the file is closed.
    """
    if not _in_folder(column):
        column[first : first + len(values)] = values
        release(column)
    elif len(values):
        place = stored(column[first:])
        assert isinstance(place, StoredColumn)
        with open(place.path, "r+b", buffering=0) as file:
            file.seek(place.first * column.dtype.itemsize)
            rest = memoryview(np.ascontiguousarray(values, column.dtype)).cast("B")
            while len(rest):
                rest = rest[file.write(rest) :]


def read_again(column: np.ndarray) -> np.ndarray:
    """Return a column as others have written it: one of a shared folder is opened anew."""
    place = stored(column) if _in_folder(column) else column
    return place.open() if isinstance(place, StoredColumn) else column


def copy_column(column: np.ndarray) -> np.ndarray:
    """Copy to a new column, without having all of either in memory."""
    copied = new_column(len(column), column.dtype)
    for start in range(0, len(column), _ROWS_AT_ONCE):
        write_rows(copied, start, column[start : start + _ROWS_AT_ONCE])
        release(column)
    return copied


def row_starts(counts: Iterable[int]) -> list[int]:
    """First rows of parts that several processes write to one column, and the number of rows.

    No two parts share a page of the file: a file system of many machines may write whole pages.
    """
    starts, stop = [], 0
    for count in counts:
        starts.append(-(-stop // _PAGE_ROWS) * _PAGE_ROWS)
        stop = starts[-1] + int(count)
    return [*starts, stop]


def discard(*columns: np.ndarray | None) -> None:
    """Delete the files of columns that lie in a shared folder; arrays that are open keep their values."""
    for column in columns:
        if _in_folder(column):
            whole: Any = _whole(column)
            Path(whole.filename).unlink(missing_ok=True)


class ColumnList(Sequence[np.ndarray]):
    """Columns one after the other, each out of memory again when the next is asked for."""

    def __init__(self, columns: Sequence[np.ndarray]):
        self.columns = columns

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.columns)

    def __getitem__(self, index: Any) -> Any:
        return self.columns[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        for column in self.columns:
            yield column
            release(column)


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy a column to the front of another, without having all of either in memory."""
    for start in range(0, len(source), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(source))
        target[start:stop] = source[start:stop]
        release(target, source)


def release(*columns: np.ndarray | None) -> None:
    """Take columns that lie in files out of memory; their values stay, and are read again where needed."""
    for column in columns:
        found = _whole(column)
        if found is not None and hasattr(mmap, "MADV_DONTNEED"):
            found._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


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


def _whole(column: Any) -> np.memmap | None:
    """The column of a file that an array is, or is a view of."""
    found = None
    while column is not None:
        if isinstance(column, np.memmap) and getattr(column, "_mmap", None) is not None:
            found = column
        column = getattr(column, "base", None)
    return found


def _in_folder(column: np.ndarray | None) -> bool:
    """Whether a column lies in a file that others can open."""
    whole = _whole(column)
    return whole is not None and whole.filename is not None


def _address(column: np.ndarray) -> int:
    return column.__array_interface__["data"][0]
