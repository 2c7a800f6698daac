"""A dense matrix with its columns scaled and cut, in blocks of rows: products of it need no scaled copy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

_BLOCK_VALUES = 1 << 22  # 16 MiB of float32


class ScaledRows:
    """What ``numpy.minimum(values[rows] * scale, limit)`` is, made block by block as it is asked for.

    Parameters
    ----------
    values
        Dense matrix, which is read and never changed.
    scale, limit
        Factor, and largest value after it, of each column.
    rows
        Numbers of the rows of ``values`` taken; default all.

    Examples
    --------
    >>> import numpy as np
    >>> from diffbio_sc.numerics.latent.scaled_rows import ScaledRows
    >>> half = ScaledRows(np.array([[2.0, 8.0], [4.0, 6.0]]), np.array([0.5, 0.5]), np.array([9.0, 3.0]))
    >>> half @ np.eye(2), half[np.array([1])].T @ np.ones((1, 1))
    (array([[1., 3.],
           [2., 3.]]), array([[2.],
           [3.]]))
    """

    def __init__(
        self,
        values: Float[np.ndarray, "all_rows columns"],
        scale: Float[np.ndarray, " columns"],
        limit: Float[np.ndarray, " columns"],
        rows: Int[np.ndarray, " rows"] | None = None,
    ):
        self.values, self.scale, self.limit = values, scale, np.asarray(limit, scale.dtype)
        self.rows = np.arange(len(values)) if rows is None else rows
        self.shape = (len(self.rows), values.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> ScaledRows:
        return ScaledRows(self.values, self.scale, self.limit, self.rows[rows])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rows each block has, and the block."""
        number = max(_BLOCK_VALUES // self.shape[1], 1)
        for start in range(0, len(self), number):
            here = slice(start, min(start + number, len(self)))
            block = np.multiply(self.values[self.rows[here]], self.scale, dtype=self.scale.dtype)
            yield here, np.minimum(block, self.limit, out=block)

    def __matmul__(self, vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([block @ vectors for _, block in self.blocks()])

    @property
    def T(self) -> _Transposed:
        """Transposed matrix, of which there are only products."""
        return _Transposed(self)

    def column_squares(self) -> Float[np.ndarray, " columns"]:
        """Sum of the squares of each column, in float64."""
        total = np.zeros(self.shape[1])
        for _, block in self.blocks():
            total += np.einsum("ij,ij->j", block, block, dtype=np.float64)
        return total


class _Transposed:
    def __init__(self, matrix: ScaledRows):
        self.matrix = matrix

    def __matmul__(self, vectors: np.ndarray) -> np.ndarray:
        kind = np.result_type(self.matrix.scale.dtype, vectors.dtype)
        total = np.zeros((self.matrix.shape[1], vectors.shape[1]), kind)
        for here, block in self.matrix.blocks():
            total += block.T @ vectors[here]
        return total
