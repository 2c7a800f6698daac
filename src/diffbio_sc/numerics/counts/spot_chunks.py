"""Spots worked on a few hundred at a time: what a step makes of them stays in the processor's caches.

Compiled code then has one shape whatever the number of spots, and its memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from diffbio_sc.numerics.padding import round_up
from diffbio_sc.numerics.placing import aligned_zeros

GENE_BUCKET = 128
_ROWS = 256  # of 2,000 genes: 2 MB, which a core's own cache holds (benchmarks/scale.py cost)
_ACCELERATOR_ROWS = 2048  # fewer leave most of it idle
_SAMPLE_ROWS = 2048


def rows_at_once() -> int:
    """Rows of a chunk."""
    return _ROWS if jax.default_backend() == "cpu" else _ACCELERATOR_ROWS


def padded_sample(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts with rows and columns of zeros behind them, which all samples up to 2048 spots share; and the row sums.

    Memory of rows beyond the sample is never touched: neither here nor by :func:`over_chunks`.
    """
    spots, genes = counts.shape
    rows = round_up(max(spots, 1), _SAMPLE_ROWS)
    padded = aligned_zeros((rows, round_up(genes, GENE_BUCKET)), np.float32)
    padded[:spots, :genes] = counts
    depth = np.zeros(rows, np.float32)
    depth[:spots] = padded[:spots].sum(1)
    return padded, depth


def over_chunks(spots: Any, step: Callable[[Any, Callable, Callable], Any], start: Any) -> Any:
    """Carry ``start`` through ``step`` from chunk to chunk of the first ``spots`` rows, inside compiled code.

    ``step(carry, take, put)`` gets two functions: ``take(array)`` gives the rows of the chunk, ``put(array, rows)`` the
    array with these rows replaced.
    """
    each = rows_at_once()

    def body(number, carry):
        first = number * each

        def take(array):
            return lax.dynamic_slice_in_dim(array, first, each)

        def put(array, rows):
            return lax.dynamic_update_slice_in_dim(array, rows, first, 0)

        return step(carry, take, put)

    return lax.fori_loop(0, (spots + each - 1) // each, body, start)
