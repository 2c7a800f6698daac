"""Sums over blocks of any number and size are those of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.blocks.matrix import InMemory
from diffbio_sc.engines.pseudobulk import SumOfCells, SumOfCellsByBins


class _SmallBlocks(InMemory):
    def __init__(self, matrix, rows):
        super().__init__(matrix)
        self.rows_of_a_block = rows

    def plan(self, size=None):
        return super().plan(self.rows_of_a_block)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float64])
@pytest.mark.parametrize("cells_are_rows", [True, False])
def test_blocks_of_any_size(rows, dtype, cells_are_rows):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 128, (50, 11)).astype(dtype)
    codes = rng.integers(-1, 4, 50)
    expected = [counts[codes == code].astype(np.float64).sum(axis=0) for code in range(5)]
    matrix = counts if cells_are_rows else counts.T
    kinds = [matrix] if dtype == np.float16 else [matrix, sp.csr_array(matrix)]
    for kind in kinds:
        step = (SumOfCells if cells_are_rows else SumOfCellsByBins)(codes, 5)
        (found,) = _SmallBlocks(kind, rows).reduce(step)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found.toarray(), expected)
