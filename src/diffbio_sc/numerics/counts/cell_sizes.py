"""Size of a cell of each type, in RNA, from samples whose composition in cells is known."""

from __future__ import annotations

import numpy as np

_ITERATIONS = 500
_CONVERGED = 1e-10


def sizes_from_samples(rna: np.ndarray, cells: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Sizes under which known shares of cells give the shares of RNA found, as far as one factor a type can.

    A share of RNA is that of the cells times the size, over the sum of these. The sizes maximise the multinomial
    likelihood of the shares found (a concave problem, solved by the iteration of Zermelo). The sizes expected count as
    one more sample, of the mean composition, so that types that are rare in the samples keep them.

    Parameters
    ----------
    rna, cells
        Shares of RNA and of cells (samples, types), rows of sum 1.
    start
        Sizes expected (types,).

    Returns
    -------
    Sizes (types,), with the geometric mean of ``start``.
    """
    average = cells.mean(0) + 1e-6
    expected = average * start
    rna = np.concatenate([rna, expected[None] / expected.sum()])
    cells = np.concatenate([cells, average[None] / average.sum()])
    size, scale = np.asarray(start, np.float64), np.log(start).mean()
    found = rna.sum(0)
    for _ in range(_ITERATIONS):
        new = found / (cells / (cells @ size)[:, None]).sum(0)
        new *= np.exp(scale - np.log(new).mean())
        done = np.abs(new / size - 1.0).max() < _CONVERGED
        size = new
        if done:
            break
    return size
