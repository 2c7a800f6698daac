"""Blocks of rows dealt out to blocks of columns, so that a file is read once for all of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import scipy.sparse as sp

from diffbio_sc._files import MORE_ROOM, MORE_SHARED_ROOM, room_for
from diffbio_sc._settings import settings

_HEADER = 4  # numbers before the arrays of a file: rows, columns, entries, bytes of a value


class Piece(Protocol):
    """Some rows of all blocks of columns: a CSC matrix, in memory or in a file."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of the values, float32 or float64."""
        ...

    def bounds(self, first: int, last: int) -> np.ndarray:
        """Where the entries of the columns from ``first`` to before ``last`` begin, and where the last ones end."""
        ...

    def entries(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of the entries from ``start`` to before ``stop``."""
        ...


class HeldPiece(NamedTuple):
    """A piece in memory.

    Attributes
    ----------
    rows
        Number of rows.
    indptr, indices, data
        Arrays of the CSC matrix.
    """

    rows: int
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @classmethod
    def cut(cls, block: Any, columns: np.ndarray) -> HeldPiece:
        """Take some columns of a block of rows, in their order."""
        chosen = sp.csc_array(block)[:, columns] if sp.issparse(block) else sp.csc_array(block[:, columns])
        if not chosen.has_sorted_indices:
            chosen.sort_indices()
        return cls(block.shape[0], chosen.indptr.astype(np.int64), chosen.indices.astype(np.int32), chosen.data)

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Memory that the piece takes."""
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes

    def stretch(self, first: int, last: int) -> HeldPiece:
        """Some columns that lie beside each other."""
        bound = self.indptr[first : last + 1]
        indices, data = self.entries(bound[0], bound[-1])
        return HeldPiece(self.rows, bound - bound[0], indices, data)

    def bounds(self, first: int, last: int) -> np.ndarray:
        """Where the entries of some columns begin."""
        return self.indptr[first : last + 1]

    def entries(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of some entries."""
        return self.indices[start:stop], self.data[start:stop]

    def save(self, path: Path, remedy: str = MORE_SHARED_ROOM) -> FilePiece:
        """Write the piece into a file, which is there as a whole or not at all.

        Raises
        ------
        OSError
            If there is no room for it; the message says ``remedy``.
        """
        header = np.array([self.rows, len(self.indptr) - 1, len(self.data), self.data.itemsize], np.int64)
        with room_for(header.nbytes + self.nbytes, path.parent, remedy):
            # Tasks may run twice, on two workers: each writes a file of its own, and the last one stays.
            handle, part = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    for values in (header, self.indptr, self.indices, self.data):
                        values.tofile(file)
                os.replace(part, path)
            except BaseException:
                with suppress(OSError):
                    os.remove(part)
                raise
        return FilePiece(path)


class FilePiece:
    """A piece in a file, of which no more is read than asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._rows, self.columns, self.number, self.itemsize = np.fromfile(path, np.int64, _HEADER).tolist()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._rows

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return np.dtype(f"f{self.itemsize}")

    def bounds(self, first: int, last: int) -> np.ndarray:
        """Where the entries of some columns begin."""
        return np.fromfile(self.path, np.int64, last + 1 - first, offset=8 * (_HEADER + first))

    def entries(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of some entries."""
        begin = 8 * (_HEADER + self.columns + 1)
        indices = np.fromfile(self.path, np.int32, stop - start, offset=begin + 4 * start)
        begin += 4 * self.number + self.itemsize * start
        return indices, np.fromfile(self.path, self.dtype, stop - start, offset=begin)


def assemble(pieces: Sequence[Piece], first: int, last: int) -> sp.csc_array:
    """Put the columns from ``first`` to before ``last`` of all pieces together, one piece below the other."""
    rows = sum(piece.rows for piece in pieces)
    counts = np.zeros(last - first, np.int64)
    for piece in pieces:
        counts += np.diff(piece.bounds(first, last))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    free = indptr[:-1].copy()
    indices = np.empty(indptr[-1], np.int32 if max(rows, indptr[-1]) < 2**31 else np.int64)
    data = np.empty(indptr[-1], np.result_type(np.float32, *(piece.dtype for piece in pieces)))
    offset = 0
    for piece in pieces:
        bound = piece.bounds(first, last)
        here, values = piece.entries(bound[0], bound[-1])
        count = np.diff(bound)
        goal = np.arange(len(here)) + np.repeat(free - (bound[:-1] - bound[0]), count)
        indices[goal] = here + offset
        data[goal] = values
        free += count
        offset += piece.rows
    return sp.csc_array((data, indices, indptr.astype(indices.dtype)), shape=(rows, last - first))


class ColumnBlocks:
    """Blocks of columns as one run of columns, in which each block is a stretch.

    Parameters
    ----------
    blocks
        Indices of the columns of each block.
    """

    def __init__(self, blocks: Sequence[np.ndarray]):
        self.columns = np.concatenate(blocks)
        stops = np.cumsum([0, *map(len, blocks)]).tolist()
        self.stretches = list(zip(stops[:-1], stops[1:], strict=True))


class ColumnSpool:
    """Keeps the pieces of all blocks of columns until all rows have been dealt out.

    Parameters
    ----------
    blocks
        Indices of the columns of each block.
    in_memory
        Bytes that may wait in memory, by default a quarter of a block; the rest waits in temporary files.
    rows
        Number of rows that will be dealt out, if it is known: where the disk has no room, the error then says how much
        all of them take.
    """

    def __init__(self, blocks: Sequence[np.ndarray], in_memory: int | None = None, rows: int | None = None):
        self._blocks, self._rows = ColumnBlocks(blocks), rows
        self._free = settings.block_bytes // 4 if in_memory is None else in_memory
        self._pieces: list[Piece] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def deal(self, block: Any) -> None:
        """Take the next block of rows."""
        piece = HeldPiece.cut(block, self._blocks.columns)
        if piece.nbytes <= self._free:
            self._free -= piece.nbytes
            self._pieces.append(piece)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="diffbio-sc-")
        self._pieces.append(piece.save(Path(self._folder.name) / str(len(self._pieces)), self._remedy(piece)))

    def _remedy(self, piece: HeldPiece) -> str:
        """What to do if there is no room for a piece."""
        whole = ""
        if self._rows:
            size = piece.nbytes / max(piece.rows, 1) * self._rows
            whole = f"All {self._rows:,} rows take about {size / 1e6:,.1f} MB. "
        return f"{whole}{MORE_ROOM} A quarter of settings.block_bytes, {settings.block_bytes:,}, waits in memory."

    def collect(self, number: int) -> sp.csc_array:
        """Return all rows of one block of columns."""
        return assemble(self._pieces, *self._blocks.stretches[number])
