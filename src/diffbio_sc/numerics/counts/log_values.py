"""Counts behind log-normalised values."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

_BASES = {"expm1": np.e, "exp2m1": 2.0}
_MOST_COUNTS = 8  # that the smallest value of a cell may stand for
_LEAST_SHARE = 0.99


def counts_of_log_values(values: sp.csr_matrix | np.ndarray) -> tuple[sp.csr_matrix, str] | None:
    """Whole counts x of which the values are log(1 + x f), with a factor f of each cell and base e or 2.

    The smallest positive value of a cell stands for a count of 1 to 8: the smallest with which all values of the cell
    are whole, up to rounding. Counts of a cell that have a common divisor come back without it.

    Parameters
    ----------
    values
        Cells by genes, not negative.

    Returns
    -------
    The counts and the transform that gives them (``"expm1"`` or ``"exp2m1"``, each over the cell's factor), or None if
    more than 1 % of the cells have values that are not whole.
    """
    matrix = sp.csr_matrix(values).astype(np.float64)
    matrix.eliminate_zeros()
    if not matrix.nnz or matrix.data.min() < 0 or matrix.data.max() > 100.0:
        return None
    lengths = np.diff(matrix.indptr)
    lengths, starts = lengths[lengths > 0], matrix.indptr[:-1][lengths > 0]
    best: tuple[float, np.ndarray, str] | None = None
    for name, base in _BASES.items():
        scaled = np.expm1(matrix.data * np.log(base))
        scaled /= np.repeat(np.minimum.reduceat(scaled, starts), lengths)
        multiple = np.zeros(len(starts))
        for number in range(_MOST_COUNTS, 0, -1):
            # Logs in single precision: the error of a count grows with it.
            far = np.abs(number * scaled - np.rint(number * scaled)) > 0.01 + 1e-4 * number * scaled
            multiple[~np.logical_or.reduceat(far, starts)] = number
        whole = float((multiple > 0).mean())
        if best is None or whole > best[0]:
            best = (whole, np.rint(scaled * np.repeat(np.maximum(multiple, 1), lengths)), name)
    assert best is not None
    if best[0] < _LEAST_SHARE:
        return None
    matrix.data = best[1]
    return matrix.astype(np.float32), best[2]
