"""How the rows of a matrix fall into blocks: along the chunks that hold them, and all of one padded shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 2048
Task = list[tuple[int, int]]  # the blocks (first row, last row + 1) of one read


def block_rows(columns: int, budget: int, most: int = BLOCK_ROWS) -> int:
    """Rows of a block whose dense values in float32 take no more than ``budget`` bytes; at least one."""
    return max(min(budget // (4 * max(columns, 1)), most), 1)


def column_blocks(columns: np.ndarray, sizes: np.ndarray, budget: int, most: int) -> list[np.ndarray]:
    """Cut columns, in order, into blocks of at most ``most``, and of at most ``budget`` bytes where one has fewer.

    Parameters
    ----------
    columns
        Indices of the columns.
    sizes
        Bytes of each.
    budget, most
        Most bytes and most columns of a block.

    Notes
    -----
    Blocks are about even, if that makes them no more: workers that share them end together.
    """
    sizes = np.asarray(sizes, np.float64)
    filled = _fill(columns, sizes, budget, most)
    if len(filled) < 2:
        return filled
    even = _fill(columns, sizes, min(budget, sizes.sum() / len(filled) + sizes.max()), most)
    return even if len(even) == len(filled) else filled


def _fill(columns: np.ndarray, sizes: np.ndarray, budget: float, most: int) -> list[np.ndarray]:
    """Fill one block after the other."""
    result, first, held = [], 0, 0.0
    for place, size in enumerate(sizes.tolist()):
        if place > first and (held + size > budget or place - first == most):
            result.append(columns[first:place])
            first, held = place, 0.0
        held += size
    if len(columns):
        result.append(columns[first:])
    return result


class Plan(NamedTuple):
    """Blocks of rows, in order.

    Attributes
    ----------
    tasks
        For each read of the storage, the blocks (first row, last row + 1) that it serves: several where one chunk holds
        more rows than a block.
    rows
        Rows of the largest block, the shape to which compiled code pads all of them.
    """

    tasks: list[Task]
    rows: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """All blocks in order."""
        return [block for task in self.tasks for block in task]


def plan_rows(rows: int, size: int = BLOCK_ROWS, chunks: Sequence[int] | None = None) -> Plan:
    """Cut rows into blocks of at most ``size``.

    Parameters
    ----------
    rows
        Number of rows.
    size
        Most rows of a block.
    chunks
        Rows of each chunk of the storage; None if rows can be read anywhere. Whole chunks are put together up to
        ``size``, a larger chunk is read once and cut evenly. A read of less than half of ``size`` goes with the one
        before it (or after it, at the beginning).

    Notes
    -----
    Blocks are as even as can be: 2,100 rows are two blocks of 1,050, not one of 2,048 and a remainder that would be
    padded, or compiled for, on its own.
    """
    reads = _evenly(0, rows, size) if chunks is None else _along_chunks(chunks, size)
    tasks = [_evenly(start, stop, size) for start, stop in reads]
    return Plan(tasks, max((stop - start for task in tasks for start, stop in task), default=0))


def _evenly(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    number = -(-(stop - start) // size)
    if not number:
        return []
    each = -(-(stop - start) // number)
    return [(first, min(first + each, stop)) for first in range(start, stop, each)]


def _along_chunks(chunks: Sequence[int], size: int) -> list[tuple[int, int]]:
    reads: list[tuple[int, int]] = []
    start = stop = 0
    for chunk in chunks:
        if stop > start and stop + chunk - start > size:
            reads.append((start, stop))
            start = stop
        stop += chunk
    if stop > start:
        reads.append((start, stop))
    # A read of less than half a block goes with its neighbour: cut evenly, all blocks are at least half of the largest.
    merged: list[tuple[int, int]] = []
    for start, stop in reads:
        if merged and 2 * min(stop - start, merged[-1][1] - merged[-1][0]) < size:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
