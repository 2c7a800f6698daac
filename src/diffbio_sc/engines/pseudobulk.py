"""Sums of the cells of each group: of counts, block by block, and of fragments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.steps import ByRow, Step
from diffbio_sc.genome.columns import new_column, release
from diffbio_sc.genome.interval_kernels import group_rows
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
    """Split the fragments of a sample by group, by name of the group.

    Parameters
    ----------
    intervals
        With barcodes.
    codes
        Group of each barcode, -1 where it is left out.
    names
        Names of the groups.
    """
    bounds = intervals.bounds.tolist()
    cells = intervals.columns["cell_code"]
    number = np.zeros((len(names), len(bounds)), np.int64)
    for chromosome, (first, last) in enumerate(bounds):
        label = codes[cells[first:last]] if len(codes) else np.empty(0, np.int32)
        number[:, chromosome] = np.bincount(label[label >= 0], minlength=len(names))
        release(cells)
    # All groups lie in one column, one after the other, in each the chromosomes in order.
    stops = np.cumsum(number.ravel()).reshape(number.shape)
    keys = [key for key in intervals.columns if key != "cell_code"]
    columns = {key: new_column(int(number.sum()), intervals.columns[key].dtype) for key in keys}
    for chromosome, (first, last) in enumerate(bounds):
        label = codes[cells[first:last]] if len(codes) else np.empty(0, np.int32)
        kept = np.flatnonzero(label >= 0)
        # Stable: within a group rows stay in the order of starts.
        order = kept[group_rows(label[kept], len(names))]
        here = np.cumsum(number[:, chromosome])
        for key, target in columns.items():
            values = intervals.columns[key][first:last][order]
            for code in np.flatnonzero(number[:, chromosome]):
                stop, size = stops[code, chromosome], number[code, chromosome]
                target[stop - size : stop] = values[here[code] - size : here[code]]
            release(target, intervals.columns[key])
        release(cells)
    result = {}
    for code, name in enumerate(names):
        ends = stops[code]
        begin = int(ends[0] - number[code, 0]) if len(ends) else 0
        inside = slice(begin, int(ends[-1]) if len(ends) else 0)
        result[name] = Intervals(
            {key: values[inside] for key, values in columns.items()},
            np.stack([ends - number[code], ends], axis=1) - begin if len(ends) else np.empty((0, 2)),
            intervals.chromosomes,
            sizes=intervals.sizes,
            paired=intervals.paired,
            name=f"{intervals.name} ({name})",
        )
    return result
