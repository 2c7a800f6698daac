"""Blocks of rows dealt out to blocks of columns, so that a file is read once for all of them."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

# What waits in memory, all blocks of columns together; beyond it they go to temporary files.
IN_MEMORY_BYTES = 2**30


class ColumnSpool:
    """Keeps the pieces of each block of columns until all rows have been dealt out.

    Parameters
    ----------
    blocks
        Indices of the columns of each block.
    in_memory
        Bytes that may wait in memory.
    """

    def __init__(self, blocks: list[np.ndarray], in_memory: int = IN_MEMORY_BYTES):
        self.blocks = blocks
        self._files = [tempfile.SpooledTemporaryFile(max_size=max(in_memory // len(blocks), 1)) for _ in blocks]
        self._pieces = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def deal(self, block: Any) -> None:
        """Take the next block of rows."""
        for indices, file in zip(self.blocks, self._files, strict=True):
            piece = sp.csr_array(block[:, indices])
            for part in (piece.data, piece.indices, piece.indptr):
                np.save(file, part)
        self._pieces += 1

    def collect(self, number: int) -> sp.csc_array:
        """Return all rows of one block of columns."""
        file, width = self._files[number], len(self.blocks[number])
        file.seek(0)
        pieces = []
        for _ in range(self._pieces):
            data, indices, indptr = (np.load(file) for _ in range(3))
            pieces.append(sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, width)))
        return sp.csc_array(sp.vstack(pieces, format="csc"))
