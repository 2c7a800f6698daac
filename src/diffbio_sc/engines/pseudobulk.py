"""Sums of the cells of each group: of counts, block by block, and of fragments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.steps import ByRow, Step
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
    counts = intervals.counts()
    rows = np.arange(counts.sum()) + np.repeat(intervals.bounds[:, 0] - (np.cumsum(counts) - counts), counts)
    label = codes[intervals.columns["cell_code"][rows]] if len(codes) else np.empty(0, np.int32)
    kept = np.flatnonzero(label >= 0)
    rows, label = rows[kept], label[kept]
    chromosome = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[kept]
    # Stable: within a group rows stay in the order of chromosomes and starts.
    order = group_rows(label, len(names))
    stops = np.cumsum(np.bincount(label, minlength=len(names)))
    result = {}
    for code, name in enumerate(names):
        chosen = order[stops[code - 1] if code else 0 : stops[code]]
        ends = np.cumsum(np.bincount(chromosome[chosen], minlength=len(counts)))
        result[name] = Intervals(
            {key: values[rows[chosen]] for key, values in intervals.columns.items() if key != "cell_code"},
            np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1) if len(ends) else np.empty((0, 2)),
            intervals.chromosomes,
            sizes=intervals.sizes,
            paired=intervals.paired,
            name=f"{intervals.name} ({name})",
        )
    return result
