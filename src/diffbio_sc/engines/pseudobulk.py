"""Sums of the cells of each group: of counts, block by block, and of fragments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.rounds import Flow, Round, run_here
from diffbio_sc.blocks.steps import ByRow, Step
from diffbio_sc.genome.columns import ColumnTuple, new_column, release, row_starts, write_rows
from diffbio_sc.genome.interval_kernels import count_groups, deal_rows
from diffbio_sc.genome.intervals import Intervals


class SumOfCells(Step):
    """Sum of the cells of each group, over blocks of cells by bins: float64 CSR (groups, bins).

    Parameters
    ----------
    codes
        Group of each cell, -1 where it is left out.
    groups
        Number of groups.
    """

    def __init__(self, codes: np.ndarray, groups: int):
        self.codes, self.groups = codes, groups

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        """Return the sums over the block's cells."""
        codes = self.codes[start : start + block.shape[0]]
        return sp.csr_array(_indicator(codes, self.groups) @ sp.csr_array(block))


class SumOfCellsByBins(ByRow):
    """The same over blocks of bins by cells."""

    def __init__(self, codes: np.ndarray, groups: int):
        self.indicator = _indicator(codes, groups).T.tocsr()

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        """Return the sums for the block's bins."""
        return sp.csr_array(sp.csr_array(block) @ self.indicator)

    def finish(self, total: Any) -> sp.csr_array:
        """Put all bins together and turn them."""
        return sp.csr_array(super().finish(total).T)


def _indicator(codes: np.ndarray, groups: int) -> sp.csr_array:
    kept = np.flatnonzero(codes >= 0)
    return sp.csr_array((np.ones(len(kept)), (codes[kept], kept)), shape=(groups, len(codes)))


def split_groups(intervals: Intervals, codes: np.ndarray, names: Sequence[str]) -> dict[str, Intervals]:
    """Split the fragments of a sample by group, in this process; see :func:`split_rounds`."""
    return run_here(split_rounds(intervals, codes, names, [intervals]))


def split_rounds(
    intervals: Intervals, codes: np.ndarray, names: Sequence[str], parts: Sequence[Intervals] | None = None
) -> Flow[dict[str, Intervals]]:
    """Split the fragments of a sample by group, by name of the group; some chromosomes a task.

    Parameters
    ----------
    intervals
        With barcodes.
    codes
        Group of each barcode, -1 where it is left out.
    names
        Names of the groups.
    parts
        The chromosomes of the tasks; default ``intervals.parts()``. A group's rows stand together within a part.
    """
    group_of = new_column(len(codes), np.int32)
    write_rows(group_of, 0, codes)
    parts = intervals.parts() if parts is None else parts
    starts = row_starts(map(len, parts))
    # The cells stay: equal fragments of different cells are different molecules, in a group too.
    keys = list(intervals.columns)
    columns = ColumnTuple(new_column(starts[-1], intervals.columns[key].dtype) for key in keys)
    items = [
        _Split(part, ColumnTuple((group_of,)), len(names), tuple(keys), columns, first)
        for part, first in zip(parts, starts, strict=False)
    ]
    found = yield Round(_deal, items, "Dealing to groups")
    bounds = np.concatenate([np.zeros((len(names), 0, 2), np.int64), *found], axis=1)
    result = {}
    for name, rows in zip(names, bounds, strict=True):
        first, last = int(rows.min(initial=starts[-1])), int(rows.max(initial=0))
        group = result[name] = Intervals(
            {key: values[first:last] for key, values in zip(keys, columns, strict=True)},
            rows - first,
            intervals.chromosomes,
            sizes=intervals.sizes,
            paired=intervals.paired,
            name=f"{intervals.name} ({name})",
            in_order=True,
        )
        group.barcodes = intervals.barcodes  # one list for all
    return result


class _Split(NamedTuple):
    """Some chromosomes, the group of each barcode, and the columns that the groups are dealt to, from a row on."""

    part: Intervals
    codes: ColumnTuple
    groups: int
    keys: tuple[str, ...]
    columns: ColumnTuple
    first: int


def _deal(item: _Split) -> np.ndarray:
    """Write the fragments of each group one after the other; first and last row by group and chromosome."""
    (codes,), bounds = item.codes, item.part.bounds.tolist()
    cells = item.part.columns["cell_code"]
    number = np.zeros((item.groups, len(bounds)), np.int64)
    for chromosome, (first, last) in enumerate(bounds):
        number[:, chromosome] = count_groups(cells[first:last], codes, item.groups)
        release(cells)
    stops = np.cumsum(number.ravel()).reshape(number.shape)
    for key, target in zip(item.keys, item.columns, strict=True):
        values = item.part.columns[key]
        dealt = np.empty(int(number.sum()), values.dtype)
        for chromosome, (first, last) in enumerate(bounds):
            deal_rows(values[first:last], cells[first:last], codes, (stops - number)[:, chromosome].copy(), dealt)
            release(cells, values)
        write_rows(target, item.first, dealt)
    return item.first + np.stack([stops - number, stops], axis=2)
