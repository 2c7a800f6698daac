from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from diffbio_sc.numerics.spatial.quadratic_forms import combine_cauchy, compress_spectrum, log_tail, two_point_spectrum


def imhof(eigenvalues, multiplicity):
    """P(sum m_j lambda_j chi2(1) > 0) by Imhof's inversion formula, numerically."""

    def integrand(u):
        angle = 0.5 * (multiplicity * np.arctan(eigenvalues * u)).sum()
        size = np.exp(0.25 * (multiplicity * np.log1p((eigenvalues * u) ** 2)).sum())
        return np.sin(angle) / (u * size)

    return 0.5 + integrate.quad(integrand, 0, np.inf, limit=2000)[0] / np.pi


@pytest.mark.parametrize("shift", [0.1, 0.3, 0.6, 0.9])
def test_tail_equals_numerical_inversion(shift):
    rng = np.random.default_rng(3)
    eigenvalues = np.sort(rng.gamma(0.5, 1.0, 30))[::-1] - 0.3 - shift
    ones = np.ones(30)
    exact = imhof(eigenvalues, ones)
    assert 1e-5 < exact < 0.95
    assert np.exp(log_tail(eigenvalues[None], ones[None])[0]) == pytest.approx(exact, rel=0.08)


@pytest.mark.parametrize("threshold", [0.5, 1.5, 4.0, 15.0, 60.0, 300.0])
def test_tail_of_a_ratio_of_chi_squares_is_that_of_the_f_distribution(threshold):
    first, second = 12, 200
    eigenvalues = np.array([[1.0 / first, -threshold / second]])
    found = log_tail(eigenvalues, np.array([[first, second]], float))[0]
    assert np.exp(found - stats.f.logsf(threshold, first, second)) == pytest.approx(1.0, rel=0.05)


def test_tail_at_the_mean_and_without_both_signs():
    found = np.exp(log_tail(np.array([[1.0, -1.0], [1.0, 2.0], [-1.0, -3.0]]), np.ones((3, 2)) * [[50.0, 50.0]]))
    np.testing.assert_allclose(found, [0.5, 1.0, 0.0], atol=1e-6)


def test_two_points_have_the_cumulants_asked_for():
    mean, second, third, lower = np.array([-1.5, 0.0]), np.array([80.0, 40.0]), np.array([900.0, 200.0]), 0.9
    values, counts = two_point_spectrum(mean, second, third, lower)
    np.testing.assert_allclose((counts * values).sum(1), mean, atol=1e-9)
    np.testing.assert_allclose(2 * (counts * values**2).sum(1), second)
    np.testing.assert_allclose(8 * (counts * values**3).sum(1), third)
    assert (counts > 0).all()


def test_compression_keeps_count_sum_sum_of_squares_and_the_tail():
    eigenvalues = np.sort(np.random.default_rng(0).gamma(0.4, 1.0, 400))[::-1] - 0.4
    values, counts = compress_spectrum(eigenvalues)
    assert len(values) == 24
    assert counts.sum() == 400
    assert (counts * values).sum() == pytest.approx(eigenvalues.sum())
    assert (counts * values**2).sum() == pytest.approx((eigenvalues**2).sum())
    shift = 0.2
    whole = log_tail(eigenvalues[None] - shift, np.ones((1, 400)))[0]
    assert log_tail(values[None] - shift, counts[None])[0] == pytest.approx(whole, abs=0.1)
    assert whole < np.log(1e-3)


def test_cauchy_combination_is_its_formula():
    rng = np.random.default_rng(1)
    p, weights = rng.uniform(1e-6, 0.99, (5, 40)), rng.uniform(0.1, 2, (5, 40))
    share = weights / weights.sum(0)
    expected = stats.cauchy.sf((share * stats.cauchy.isf(p)).sum(0))
    np.testing.assert_allclose(np.exp(combine_cauchy(np.log(p), weights)), expected, rtol=1e-6)


def test_cauchy_combination_deep_in_the_tail_is_the_harmonic_mean():
    log_p = np.array([[-900.0, -50.0], [-1000.0, -60.0], [-2.0, -45.0]])
    weights = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]])
    expected = [np.log(4) - 1000.0, -np.log((np.exp(50 - 60) + 2 + np.exp(45 - 60)) / 4) - 60.0]
    np.testing.assert_allclose(combine_cauchy(log_p, weights), expected, rtol=1e-6)


def test_cauchy_combination_leaves_missing_tests_out():
    log_p = np.log(np.array([[0.01, np.nan, np.nan], [np.nan, 0.5, np.nan]]))
    found = combine_cauchy(log_p, np.ones((2, 3)))
    np.testing.assert_allclose(found[:2], np.log([0.01, 0.5]), rtol=1e-6)
    assert np.isnan(found[2])
