"""Columns of a regression: counts of k-mers, sparse, and beside them some dense ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffbio_sc.numerics.sequence import kmers

__all__ = ["Design", "Moments"]


class Moments(NamedTuple):
    """Sums over rows that ridge regression needs; those of two sets of rows add up.

    Attributes
    ----------
    gram
        X'X (columns, columns), float64.
    sums
        Column sums of X (columns,).
    size
        Number of rows.
    """

    gram: Float[np.ndarray, "columns columns"]
    sums: Float[np.ndarray, " columns"]
    size: float

    def centred(self) -> Float[np.ndarray, "columns columns"]:
        """Return X'X of centred columns."""
        result = np.outer(self.sums, self.sums / self.size)
        return np.subtract(self.gram, result, out=result)


class Design(NamedTuple):
    """Columns of a regression.

    Attributes
    ----------
    rows
        k-mers, the first columns.
    dense
        The last columns (rows, columns), float32; may have none.
    """

    rows: kmers.KmerRows
    dense: Float[np.ndarray, "rows dense"]

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.rows.used)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.rows.n_columns + self.dense.shape[1]

    def take(self, chosen: Int[np.ndarray, " chosen"] | slice) -> Design:
        """Return some of the rows."""
        return Design(self.rows.take(chosen), self.dense[chosen])

    def products(self, weights: Float[np.ndarray, "columns outputs"]) -> Float[np.ndarray, "rows outputs"]:
        """Return X @ weights."""
        result = kmers.products(self.rows, weights[: self.rows.n_columns])
        if self.dense.shape[1]:
            result += self.dense @ weights[self.rows.n_columns :]
        return result

    def transposed_products(self, targets: Float[np.ndarray, "rows outputs"]) -> Float[np.ndarray, "columns outputs"]:
        """Return X' @ targets."""
        result = kmers.transposed_products(self.rows, targets)
        return np.concatenate([result, self.dense.T @ targets]) if self.dense.shape[1] else result

    def moments(self) -> Moments:
        """Return the sums over all rows."""
        sparse = self.rows.n_columns
        gram = np.zeros((self.width, self.width))
        sums = np.zeros(self.width)
        ones = np.ones((self.size, 1))
        kmers.gram(self.rows, ones[:, 0], gram)
        for column in range(sparse):  # the other triangle, without a copy of the whole
            gram[column + 1 : sparse, column] = gram[column, column + 1 : sparse]
        sums[:sparse] = kmers.transposed_products(self.rows, ones)[:, 0]
        if self.dense.shape[1]:
            dense = self.dense.astype(np.float64)
            gram[:sparse, sparse:] = kmers.transposed_products(self.rows, dense)
            gram[sparse:, :sparse] = gram[:sparse, sparse:].T
            gram[sparse:, sparse:] = dense.T @ dense
            sums[sparse:] = dense.sum(0)
        return Moments(gram, sums, float(self.size))
