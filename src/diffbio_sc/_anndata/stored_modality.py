"""Values of modalities that do not lie in memory: read once, into temporary files, and looked at on the way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import CountCheck
from diffbio_sc.blocks.interface import CountMatrix
from diffbio_sc.blocks.row_store import RowStore, canonical

PROBLEMS = ("non-numeric", "missing or infinite", "negative", "non-integer")  # of counts, the worst first


class StoredModality:
    """Rows of a modality, and what the choice of a likelihood asks of their values.

    Parameters
    ----------
    rows
        The rows.

    Attributes
    ----------
    problem
        First value that is not a count, of the worst kind.
    entries, fractional, large
        Number of values other than 0, of those that are not whole, and of those above 2.
    looked_at
        Number of all values that were looked at.
    """

    def __init__(self, rows: Any):
        self.rows = rows
        self.problem: tuple[str, int, int, float] | None = None
        self.entries = self.fractional = self.large = self.looked_at = 0
        self._least, self._most = np.inf, -np.inf

    @property
    def smallest(self) -> float:
        """Smallest of the values looked at; 0 if none is other than 0."""
        return float(self._least) if self.entries else 0.0

    @property
    def largest(self) -> float:
        """Largest of the values looked at; 0 if none is other than 0."""
        return float(self._most) if self.entries else 0.0

    def look_at(self, values: np.ndarray) -> None:
        """Take note of some values."""
        if not len(values):
            return
        self.looked_at += len(values)
        self.entries += int(np.count_nonzero(values))
        self.fractional += int((values != np.floor(values)).sum())
        self.large += int((values > 2).sum())
        self._least, self._most = min(self._least, values.min()), max(self._most, values.max())

    def append(self, start: int, block: sp.csr_array) -> None:
        """Store the next rows and look at them."""
        found = CountCheck()(start, block)
        if found is not None and (self.problem is None or PROBLEMS.index(found[0]) < PROBLEMS.index(self.problem[0])):
            self.problem = found
        self.look_at(block.data)
        self.rows.append(block)

    def moved(self, rows: RowStore) -> StoredModality:
        """Return the same with other rows."""
        other = copy.copy(self)
        other.rows = rows
        return other


def is_stored(values: Any) -> bool:
    """Whether a matrix is lazy or in a file."""
    return values is not None and not isinstance(values, np.ndarray) and not sp.issparse(values)


def store_values(
    source: CountMatrix, columns: Sequence[np.ndarray] | None = None, *, description: str = "Reading modalities"
) -> list[StoredModality]:
    """Write a matrix, or several groups of its columns, into temporary files, in one pass over its rows."""
    groups = [None] if columns is None else list(columns)
    widths = [source.shape[1] if group is None else len(group) for group in groups]
    found = [StoredModality(RowStore(width)) for width in widths]
    for start, block in source.blocks(description=description):
        for group, modality in zip(groups, found, strict=True):
            modality.append(start, canonical(block if group is None else block[:, group]))
    for modality in found:
        modality.rows.finish()
    return found
