r"""Balancing of a symmetric matrix of counts: weights x with x_i (A x)_i = 1.

The weights are exp(u) at the minimum of the convex function

    f(u) = 1/2 exp(u)' A exp(u) - sum_i u_i,     gradient x * (A x) - 1,     Hessian diag(x * A x) + diag(x) A diag(x)

(Knight and Ruiz 2013, IMA Journal of Numerical Analysis 33:1029). Three Sinkhorn steps and then Newton steps, each by
conjugate gradients with the Hessian's diagonal as preconditioner, reach a row-sum error of 1e-6 in some 15 to 20
products with the matrix; iterative correction converges linearly, in tens to hundreds. The filters of bins are those of
cooler (Abdennur and Mirny 2020, Bioinformatics 36:311), so that weights are interchangeable.

:mod:`diffbio_sc.numerics.genome.balancing_jax` is the differentiable twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

SINKHORN_STEPS = 3
NEWTON_STEPS = 40
CG_STEPS = 100
LONGEST_STEP = 1.0
"""A Newton step changes no weight by more than a factor e: far from the solution the exponentials are no parabola."""
DIVERGED = 12.0
"""A weight e^12 away from the median one belongs to no solution: bins tied to one partner drift off without end."""


class Balance(NamedTuple):
    """Weights of one matrix.

    Attributes
    ----------
    weights
        Multiplicative weights, NaN for bins left out.
    error
        Largest deviation of a row sum from 1.
    products
        Products with the matrix that it took.
    dropped
        Positions of bins that no weights could balance.
    converged
        Whether the error is below the tolerance.
    """

    weights: np.ndarray
    error: float
    products: int
    dropped: np.ndarray
    converged: bool


def balance(product: Product, used: np.ndarray, diagonal: np.ndarray, tolerance: float = 1e-6) -> Balance:
    """Find weights that give all used rows of a symmetric matrix the sum 1.

    Parameters
    ----------
    product
        ``product(vector, used)``, the matrix times a vector.
    used
        Which bins take part.
    diagonal
        Diagonal of the matrix.
    tolerance
        Largest deviation of a row sum from 1.
    """
    used = used.copy()
    dropped: list[int] = []
    products = 0
    while True:
        empty = used & (product(used.astype(np.float64), used) <= 0)
        products += 1
        if empty.any():
            used &= ~empty
            dropped += np.flatnonzero(empty).tolist()
            continue
        if not used.any():
            return Balance(np.full(len(used), np.nan), 0.0, products, np.array(sorted(dropped), np.int64), False)
        x, error, more, diverged = _solve(product, used, diagonal, tolerance)
        products += more
        if not diverged.any():
            break
        used &= ~diverged
        dropped += np.flatnonzero(diverged).tolist()
    weights = np.where(used, x, np.nan)
    return Balance(weights, error, products, np.array(sorted(dropped), np.int64), error <= tolerance)


def _solve(product: Product, used: np.ndarray, diagonal: np.ndarray, tolerance: float):
    x = used.astype(np.float64)
    image = product(x, used)
    products = 1
    none = np.zeros_like(used)
    for _ in range(SINKHORN_STEPS):
        x[used] = np.sqrt(x[used] / image[used])
        image = product(x, used)
        products += 1
    error = np.inf
    for _ in range(NEWTON_STEPS):
        sums = x * image
        gradient = np.where(used, sums - 1.0, 0.0)
        error = float(np.abs(gradient).max())
        if error <= tolerance:
            break
        step, more = _newton_step(product, used, x, sums, gradient, diagonal, min(0.1, error))
        products += more
        longest = np.abs(step).max()
        if longest > LONGEST_STEP:
            step *= LONGEST_STEP / longest
        x = x * np.exp(step)
        logs = np.log(x[used])
        far = np.abs(logs - np.median(logs)) > DIVERGED
        if far.any():
            diverged = none.copy()
            diverged[np.flatnonzero(used)[far]] = True
            return x, error, products, diverged
        image = product(x, used)
        products += 1
    return x, error, products, none


def _newton_step(product, used, x, sums, gradient, diagonal, accuracy) -> tuple[np.ndarray, int]:
    """Solve (diag(x * A x) + diag(x) A diag(x)) step = -gradient by preconditioned conjugate gradients."""
    scale = np.where(used, 1.0 / np.maximum(sums + x * x * diagonal, 1e-300), 0.0)
    step = np.zeros_like(x)
    residual = -gradient
    target = accuracy * np.sqrt(residual @ (scale * residual))
    direction = scale * residual
    size = residual @ direction
    products = 0
    for _ in range(CG_STEPS):
        image = sums * direction + x * product(x * direction, used)
        products += 1
        curvature = direction @ image
        if curvature <= 0:  # rounding, or a matrix that is singular in this direction
            break
        length = size / curvature
        step += length * direction
        residual = residual - length * image
        moved = scale * residual
        new = residual @ moved
        if np.sqrt(new) <= target:
            break
        direction = moved + (new / size) * direction
        size = new
    return step, products


def usable_bins(
    total: np.ndarray, number: np.ndarray, chrom: np.ndarray, min_nnz: int, min_count: float, mad_max: float
) -> np.ndarray:
    """Bins with enough contacts, by the filters of ``cooler.balance_cooler``.

    Parameters
    ----------
    total, number
        Sum and number of the non-zero pixels of each bin.
    chrom
        Code of each bin's chromosome.
    min_nnz, min_count
        Fewest pixels and contacts of a bin.
    mad_max
        Bins whose log sum, relative to their chromosome's median, lies this many median absolute deviations below the
        median are left out; 0 leaves none out for that.
    """
    used = (number >= min_nnz) & (total >= min_count) & (total > 0)
    if mad_max > 0:
        relative = total.astype(np.float64).copy()
        for code in np.unique(chrom):
            own = chrom == code
            positive = relative[own & (total > 0)]
            if len(positive):
                relative[own] /= np.median(positive)
        logs = np.log(relative[relative > 0])
        if len(logs):
            middle = np.median(logs)
            cutoff = np.exp(middle - mad_max * np.median(np.abs(logs - middle)))
            used &= relative >= cutoff
    return used
