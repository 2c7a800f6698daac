from __future__ import annotations

import numpy as np

from diffbio_sc._checks import as_numbers
from diffbio_sc._options import check_options

# Cells of a block: distances of 1024 x 1024 pairs are 8 MiB.
_BLOCK = 1024


def foscttm(first: np.ndarray, second: np.ndarray) -> float:
    """Fraction of samples closer than the true match (FOSCTTM), of two embeddings of the same cells.

    For each cell, the share of the other cells that lie nearer in the other embedding than the cell itself does, by
    Euclidean distance; the mean over cells and both directions :cite:p:`Liu2019`. Ties are not nearer. The distances
    are computed in blocks: memory does not grow with the square of the cells.

    Parameters
    ----------
    first
        Cells by dimensions, for example the embedding that comes from RNA alone.
    second
        The same cells in the same order by dimensions, from the other modality.

    Returns
    -------
    0 if each cell is its own nearest, 0.5 for unrelated embeddings.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or there is one cell only.

    Examples
    --------
    >>> import numpy as np
    >>> import diffbio_sc as dbio
    >>> dbio.metrics.foscttm(np.eye(3), np.eye(3))
    0.0
    """
    from scipy.spatial.distance import cdist

    check_options(foscttm, locals())
    a, b = as_numbers(first, "first"), as_numbers(second, "second")
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"first and second must be of the same two-axis shape, found {a.shape} and {b.shape}.")
    if len(a) < 2:
        raise ValueError(f"foscttm needs two cells or more, found {len(a)}.")
    for name, values in (("first", a), ("second", b)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} must be finite, found {int(bad.sum())} bad rows, first: {np.flatnonzero(bad)[:5].tolist()}."
            )
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(a), _BLOCK)]
    # By the same routine as the others, so that equal distances are equal to the last bit.
    own = np.concatenate([np.diag(cdist(a[block], b[block])) for block in blocks])
    nearer = 0
    for rows in blocks:
        for columns in blocks:
            distance = cdist(a[rows], b[columns])
            nearer += int((distance < own[rows, None]).sum()) + int((distance < own[None, columns]).sum())
    return nearer / (2 * len(a) * (len(a) - 1))
