"""Whether a mark is narrow or broad, by how far the covariance of its counts reaches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffbio_sc.numerics.genome.background_host import breadth

__all__ = ["BREADTH_WIDTH", "coarsen", "measure_breadth"]

BREADTH_WIDTH = 500  # base pairs per bin
_LIMIT = 20.0  # counts of those bins are cut at this multiple of their mean


def coarsen(parts: Sequence[np.ndarray], width: float) -> tuple[list[np.ndarray], float]:
    """Add up bins of ``width`` to bins of about 500 bp; the bins and their width."""
    factor = max(int(round(BREADTH_WIDTH / width)), 1)
    return [part[: len(part) // factor * factor].reshape(-1, factor).sum(1) for part in parts], factor * width


def measure_breadth(sequences: Sequence[np.ndarray], width: float) -> float:
    """Breadth of a mark, where few bins of extreme counts (repeats, mitochondria) decide nothing."""
    number = sum(map(len, sequences))
    if not number:
        return 0.0
    limit = _LIMIT * max(sum(float(part.sum(dtype=np.float64)) for part in sequences) / number, 1.0)
    return breadth(sequences, width, limit=limit)
