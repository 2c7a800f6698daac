r"""Ridge regression of many outputs in the basis of their components, one penalty each, in closed form.

Outputs that mostly agree, such as the activity of a region in related cell types, are turned by the eigenvectors V of
their covariance into components: what they share, then what sets them apart, ever weaker. A weak component needs a
stronger penalty than a strong one. With penalties :math:`\lambda_j` the weights are

.. math:: W = U V^\top, \qquad U_j = (X^\top X + \lambda_j I)^{-1} X^\top Y V_j

with columns of X and Y centred. Penalties are those with the least squared error of each component in held-out folds.
Where labels are missing, the normal equations of the labels that are there couple the components; conjugate gradients
solve them, preconditioned by the solution above.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import cho_factor, cho_solve

from diffbio_sc.numerics.linear.design import Design, Moments

__all__ = ["RidgeFit", "component_basis", "fit_ridge", "solve_ridge"]

# Of the normal equations with missing labels: residual against right-hand side.
_TOLERANCE = 1e-8
_MOST_STEPS = 200


class RidgeFit(NamedTuple):
    """A fitted ridge regression.

    Attributes
    ----------
    weights
        (columns, outputs).
    intercept
        (outputs,).
    basis
        Components of the outputs (outputs, components), orthonormal, the strongest first.
    penalties
        Penalty of each component, as a share of the number of rows.
    out_of_fold
        Prediction of each row by weights that were fitted without its fold (rows, outputs).
    errors
        Squared error of each component at each penalty, averaged over held-out rows (penalties, components).
    """

    weights: Float[np.ndarray, "columns outputs"]
    intercept: Float[np.ndarray, " outputs"]
    basis: Float[np.ndarray, "outputs components"]
    penalties: Float[np.ndarray, " components"]
    out_of_fold: Float[np.ndarray, "rows outputs"]
    errors: Float[np.ndarray, "penalties components"]


def component_basis(labels: Float[np.ndarray, "rows outputs"]) -> Float[np.ndarray, "outputs components"]:
    """Return the eigenvectors of the labels' covariance, the strongest first; missing labels (NaN) by available pairs.

    Signs are fixed: the largest entry of each is positive.
    """
    known = np.isfinite(labels)
    mean = np.where(known, labels, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    centred = np.where(known, labels - mean, 0.0)
    pairs = known.T.astype(np.float64) @ known.astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred / np.maximum(pairs, 1))
    vectors = vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    return vectors * np.where(largest < 0, -1.0, 1.0)


def fit_ridge(
    design: Design,
    labels: Float[np.ndarray, "rows outputs"],
    fold: Int[np.ndarray, " rows"],
    penalties: Float[np.ndarray, " penalties"],
) -> RidgeFit:
    """Fit with a penalty for each component, chosen over folds.

    Parameters
    ----------
    design
        Columns.
    labels
        Outputs; NaN where missing. Each output has a label in every set of folds but one.
    fold
        Number of the fold of each row; penalties are judged on each in turn, by weights of the others.
    penalties
        Penalties to choose from, as shares of the number of rows.
    """
    basis = component_basis(labels)
    known = np.isfinite(labels)
    folds = [np.flatnonzero(fold == number) for number in np.unique(fold)]
    total = design.moments()
    errors = np.zeros((len(penalties), basis.shape[1]))
    held_out = np.zeros((len(penalties), *labels.shape), np.float32)
    for rows in folds:
        rest = np.setdiff1d(np.arange(len(labels)), rows)
        inside, outside = design.take(rows), design.take(rest)
        without = Moments(*(one - other for one, other in zip(total, inside.moments(), strict=True)))
        for number, penalty in enumerate(penalties):
            equal = np.full(basis.shape[1], penalty)
            components, intercept = _solve(outside, without, labels[rest], basis, equal)
            found = inside.products(components) + intercept
            left = np.where(known[rows], labels[rows] - found @ basis.T, 0.0)
            errors[number] += ((left @ basis) ** 2).sum(0) / len(labels)
            held_out[number, rows] = found
    best = errors.argmin(0)
    out_of_fold = np.take_along_axis(held_out, best[None, None], 0)[0] @ basis.T
    components, intercept = _solve(design, total, labels, basis, penalties[best])
    return RidgeFit(components @ basis.T, basis @ intercept, basis, penalties[best], out_of_fold, errors)


def solve_ridge(
    design: Design,
    labels: Float[np.ndarray, "rows outputs"],
    basis: Float[np.ndarray, "outputs components"],
    penalties: Float[np.ndarray, " components"],
) -> tuple[Float[np.ndarray, "columns outputs"], Float[np.ndarray, " outputs"]]:
    """Return weights and intercepts for given penalties, as shares of the number of rows; NaN labels count nothing."""
    components, intercept = _solve(design, design.moments(), labels, basis, penalties)
    return components @ basis.T, basis @ intercept


def _solve(
    design: Design,
    moments: Moments,
    labels: Float[np.ndarray, "rows outputs"],
    basis: Float[np.ndarray, "outputs components"],
    penalties: Float[np.ndarray, " components"],
) -> tuple[Float[np.ndarray, "columns components"], Float[np.ndarray, " components"]]:
    """Weights and intercepts of the components."""
    known = np.isfinite(labels)
    # A row without any label is no row of the regression.
    present = known.any(1)
    if not present.all():
        design, labels, known = design.take(present), labels[present], known[present]
        moments = design.moments()
    mean = moments.sums / moments.size

    def factor_of(penalty: float) -> tuple[np.ndarray, bool]:
        matrix = moments.centred()
        matrix[np.diag_indices_from(matrix)] += penalty * moments.size
        # Transposed, the symmetric matrix lies as LAPACK has it and is not copied.
        return cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)

    # Kept where they are needed again and again; a factor is as large as the whole matrix.
    factors = {} if known.all() else {penalty: factor_of(penalty) for penalty in np.unique(penalties)}

    def complete(right: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the normal equations with all labels there."""
        right = right - np.outer(mean, intercept)
        for penalty in np.unique(penalties):
            chosen = penalties == penalty
            factor = factors[penalty] if factors else factor_of(penalty)
            right[:, chosen] = cho_solve(factor, right[:, chosen], check_finite=False)
        return right, intercept / moments.size - mean @ right

    filled = np.where(known, labels, 0.0)
    right, sums = design.transposed_products(filled @ basis), filled.sum(0) @ basis
    if known.all():
        return complete(right, sums)
    return _conjugate_gradients(design, known, basis, penalties * moments.size, right, sums, complete)


def _conjugate_gradients(
    design: Design,
    known: Bool[np.ndarray, "rows outputs"],
    basis: np.ndarray,
    penalties: np.ndarray,
    right: np.ndarray,
    sums: np.ndarray,
    complete,
) -> tuple[np.ndarray, np.ndarray]:
    def forward(weights: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.where(known, (design.products(weights) + intercept) @ basis.T, 0.0) @ basis
        return design.transposed_products(found) + penalties * weights, found.sum(0)

    def inner(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
        return float((one[0] * other[0]).sum() + (one[1] * other[1]).sum())

    def moved(start: tuple[np.ndarray, np.ndarray], step: float, way: tuple[np.ndarray, np.ndarray]):
        return start[0] + step * way[0], start[1] + step * way[1]

    solution = complete(right, sums)
    residual = moved((right, sums), -1.0, forward(*solution))
    direction = ready = complete(*residual)
    power, limit = inner(residual, ready), _TOLERANCE**2 * inner((right, sums), complete(right, sums))
    for _ in range(_MOST_STEPS):
        if power <= limit:
            break
        ahead = forward(*direction)
        step = power / inner(direction, ahead)
        solution, residual = moved(solution, step, direction), moved(residual, -step, ahead)
        ready = complete(*residual)
        power, before = inner(residual, ready), power
        direction = moved(ready, power / before, direction)
    return solution
