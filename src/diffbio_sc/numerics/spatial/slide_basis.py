"""The smooth functions on each slide: leading eigenvectors of its kernel, of low rank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.representatives import representative_places

_REPRESENTATIVES = 1500  # the eigendecomposition of a kernel of so many places takes a second
_RANK = 256  # over all slides
_LEAST_RANK = 32  # of each
_ROWS_AT_ONCE = 4096


class SlideBasis(NamedTuple):
    """Leading eigenvectors of one slide's centred kernel.

    Attributes
    ----------
    vectors
        Columns, spots of the slide by rank, float32; orthonormal over the spots that are used.
    values
        Eigenvalues, largest first.
    lengthscale
        Lengthscale of the kernel: the one asked for, or the finest that the representative places resolve.
    """

    vectors: np.ndarray
    values: np.ndarray
    lengthscale: float


def slide_bases(
    coordinates: np.ndarray, slides: np.ndarray, lengthscale: float, used: np.ndarray | None = None
) -> list[SlideBasis]:
    """Eigenbasis of the kernel on each slide; without slides that have no two places (at least one must have).

    With ``used`` the kernel is that of these spots, and its eigenvectors are extended to the others.
    """
    number = int(slides.max()) + 1
    rank = max(_RANK // number, _LEAST_RANK)
    used = np.ones(len(slides), bool) if used is None else used
    bases = [
        _slide_basis(coordinates[inside], used[inside], lengthscale, rank)
        for inside in (slides == slide for slide in range(number))
    ]
    if not any(len(basis.values) for basis in bases):
        raise ValueError(f"The coordinates of all {len(coordinates)} spots are the same; patterns need places.")
    return bases


def _slide_basis(coordinates: np.ndarray, used: np.ndarray, lengthscale: float, rank: int) -> SlideBasis:
    if not used.any():
        return SlideBasis(np.zeros((len(used), 0), np.float32), np.zeros(0), float(lengthscale))
    places, spacing = representative_places(coordinates[used], _REPRESENTATIVES)
    if spacing > lengthscale:
        lengthscale = spacing
    scale = float(lengthscale)
    kernel = _kernel(places, places, scale)
    values, vectors = eigh(kernel, subset_by_index=(max(len(places) - rank, 0), len(places) - 1))
    kept = values > 1e-6 * values[-1]
    projection = vectors[:, kept] / np.sqrt(values[kept])
    # K is close to F F', of low rank; without its mean, F'F gives its eigenvectors at all spots, exactly orthonormal.
    factor = np.empty((len(coordinates), projection.shape[1]))
    for start in range(0, len(coordinates), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        factor[rows] = _kernel(coordinates[rows], places, scale) @ projection
    factor -= factor[used].mean(0)
    values, rotation = np.linalg.eigh(factor[used].T @ factor[used])
    kept = values > max(1e-4 * values[-1], 1e-9 * used.sum())
    values, rotation = values[kept][::-1], rotation[:, kept][:, ::-1]
    return SlideBasis((factor @ (rotation / np.sqrt(values))).astype(np.float32), values, scale)


def _kernel(left: np.ndarray, right: np.ndarray, lengthscale: float) -> np.ndarray:
    # Differences, not the expanded square: coordinates may be large beside their differences.
    squared = sum(np.subtract.outer(left[:, axis], right[:, axis]) ** 2 for axis in range(left.shape[1]))
    return rbf(squared, lengthscale)
