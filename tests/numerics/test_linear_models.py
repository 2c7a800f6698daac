"""Ridge and logistic regression of many outputs against solutions by brute force and by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from diffbio_sc.numerics.linear.design import Design
from diffbio_sc.numerics.linear.logistic import choose_logistic, cross_entropy, fit_logistic
from diffbio_sc.numerics.linear.ridge import component_basis, fit_ridge, solve_ridge
from diffbio_sc.numerics.sequence import kmers

PATTERNS = [kmers.contiguous(3)]


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (240, 30)).astype(np.int8)
    design = Design(kmers.kmer_rows(tokens, PATTERNS), rng.normal(size=(240, 2)).astype(np.float32))
    table = np.concatenate([kmers.dense(design.rows), design.dense], axis=1).astype(np.float64)
    shared = table @ rng.normal(size=table.shape[1])
    logits = (shared - shared.mean())[:, None] / shared.std() + 0.5 * rng.normal(size=(240, 4)) - [0, 1, 0, 0.5]
    return design, table, (logits > 0).astype(np.float64)


def brute_force(table, labels, basis, penalties):
    """Minimise the penalised squares of all outputs at once, as one vector of unknowns."""
    columns, outputs = table.shape[1], labels.shape[1]
    known = np.isfinite(labels)
    ones = np.concatenate([table, np.ones((len(table), 1))], axis=1)
    size = columns + 1
    matrix, right = np.zeros((size * outputs, size * outputs)), np.zeros(size * outputs)
    for output in range(outputs):
        rows = ones[known[:, output]]
        place = slice(output * size, (output + 1) * size)
        matrix[place, place] += rows.T @ rows
        right[place] = rows.T @ labels[known[:, output], output]
    coupling = (basis * penalties) @ basis.T  # tr(W V diag(penalties) V' W')
    for one in range(outputs):
        for other in range(outputs):
            for column in range(columns):
                matrix[one * size + column, other * size + column] += coupling[one, other]
    solution = np.linalg.solve(matrix, right).reshape(outputs, size).T
    return solution[:-1], solution[-1]


def test_ridge_is_the_minimum_of_penalised_squares(problem):
    design, table, labels = problem
    basis = component_basis(labels)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
    covariance = np.cov(labels.T)
    np.testing.assert_allclose(
        np.diag(basis.T @ covariance @ basis), np.sort(np.linalg.eigvalsh(covariance))[::-1], rtol=1e-8
    )
    penalties = np.array([0.01, 0.02, 0.1, 0.1])
    weights, intercept = solve_ridge(design, labels, basis, penalties)
    expected, constant = brute_force(table, labels, basis, penalties * 240)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(intercept, constant, atol=1e-5)


def test_missing_labels_count_nothing(problem):
    design, table, labels = problem
    rng = np.random.default_rng(1)
    holes = np.where(rng.random(labels.shape) < 0.3, np.nan, labels)
    basis, penalties = component_basis(holes), np.array([0.01, 0.02, 0.1, 0.1])
    weights, intercept = solve_ridge(design, holes, basis, penalties)
    expected, constant = brute_force(table, holes, basis, penalties * np.isfinite(holes).any(1).sum())
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(intercept, constant, atol=1e-5)


def test_rows_without_labels_are_as_if_dropped(problem):
    design, _, labels = problem
    blank = labels.copy()
    blank[::3] = np.nan
    kept = np.flatnonzero(np.isfinite(blank[:, 0]))
    basis, penalties = component_basis(labels), np.full(4, 0.05)
    one = solve_ridge(design, blank, basis, penalties)
    other = solve_ridge(design.take(kept), labels[kept], basis, penalties)
    np.testing.assert_allclose(one[0], other[0], atol=1e-10)
    logistic = [fit_logistic(d, y, 0.01) for d, y in ((design, blank), (design.take(kept), labels[kept]))]
    difference = logistic[0].logits(design) - logistic[1].logits(design)
    assert np.abs(difference).max() < 2e-2  # both to the solver's tolerance
    np.testing.assert_allclose(component_basis(blank), component_basis(labels[kept]), atol=1e-12)


def test_penalties_are_those_of_the_least_error_out_of_fold(problem):
    design, table, labels = problem
    fold = np.arange(240) % 4
    grid = np.array([1e-3, 1e-2, 1e-1, 1.0])
    fit = fit_ridge(design, labels, fold, grid)
    errors, predictions = np.zeros((4, 4)), np.zeros((4, 240, 4))
    for number, penalty in enumerate(grid):
        for held_out in range(4):
            inside = fold != held_out
            weights, constant = brute_force(
                table[inside], labels[inside], fit.basis, np.full(4, penalty * inside.sum())
            )
            predictions[number, ~inside] = (table[~inside] @ weights + constant) @ fit.basis
        errors[number] = ((labels @ fit.basis - predictions[number]) ** 2).mean(0)
    np.testing.assert_allclose(fit.errors, errors, rtol=1e-4)
    np.testing.assert_array_equal(fit.penalties, grid[errors.argmin(0)])
    best = np.stack([predictions[errors[:, j].argmin(), :, j] for j in range(4)], axis=1) @ fit.basis.T
    np.testing.assert_allclose(fit.out_of_fold, best, atol=1e-4)
    expected, constant = brute_force(table, labels, fit.basis, fit.penalties * 240)
    np.testing.assert_allclose(fit.weights, expected, atol=1e-6)


def test_out_of_fold_predictions_have_not_seen_their_labels(problem):
    design, _, labels = problem
    fold = np.arange(240) % 4
    grid = np.array([0.05])
    before = fit_ridge(design, labels, fold, grid)
    changed = labels.copy()
    changed[fold == 2] = 1 - changed[fold == 2][::-1]
    after = fit_ridge(design, changed, fold, grid)
    # One penalty for all: the basis does not matter, and only the labels of other folds do.
    np.testing.assert_allclose(after.out_of_fold[fold == 2], before.out_of_fold[fold == 2], atol=1e-5)
    assert np.abs(after.out_of_fold - before.out_of_fold)[fold != 2].max() > 0.05


def test_logistic_regression_is_that_of_scikit_learn(problem):
    design, table, labels = problem
    fit = fit_logistic(design, labels, 0.02)
    for output in range(4):
        peer = LogisticRegression(C=1 / (0.02 * 240), tol=1e-10, max_iter=10000).fit(table, labels[:, output])
        np.testing.assert_allclose(fit.weights[:, output], peer.coef_[0], atol=2e-3)
        np.testing.assert_allclose(fit.logits(design)[:, output], peer.decision_function(table), atol=5e-3)


def test_missing_labels_of_logistic_regression_are_as_if_dropped(problem):
    design, table, labels = problem
    holes = labels.copy()
    holes[:100, 1] = np.nan
    fit = fit_logistic(design, holes, 0.02)
    peer = LogisticRegression(C=1 / (0.02 * 140), tol=1e-10, max_iter=10000).fit(table[100:], labels[100:, 1])
    np.testing.assert_allclose(fit.weights[:, 1], peer.coef_[0], atol=2e-3)


def test_the_penalty_with_the_least_held_out_loss_is_taken(problem):
    design, _, labels = problem
    inside, outside = np.arange(160), np.arange(160, 240)
    fit = choose_logistic(design.take(inside), labels[inside], design.take(outside), labels[outside], first=1e-3)
    assert fit.penalty == min(fit.losses, key=lambda penalty: fit.losses[penalty])
    assert min(fit.losses) < fit.penalty < max(fit.losses)
    found = cross_entropy(fit.logits(design.take(outside)), labels[outside])
    assert found == pytest.approx(fit.losses[fit.penalty], rel=1e-5)


def test_cross_entropy_of_known_labels():
    logits, labels = np.array([[0.0, 2.0], [800.0, -3.0]]), np.array([[1.0, np.nan], [1.0, 0.0]])
    assert cross_entropy(logits, labels) == pytest.approx((np.log(2) + 0 + np.log1p(np.exp(-3))) / 3)
    assert np.isnan(cross_entropy(logits, np.full((2, 2), np.nan)))


def test_constant_outputs_stay_finite(problem):
    design, _, labels = problem
    labels[:, 2] = 1
    fit = fit_logistic(design, labels, 0.02)
    assert np.isfinite(fit.weights).all()
    assert (fit.logits(design)[:, 2] > 3).all()
