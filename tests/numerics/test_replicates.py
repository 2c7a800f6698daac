"""Tests of two groups of few replicates against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy import optimize, stats

from diffbio_sc.numerics.counts.replicates import (
    Counts,
    LogRatios,
    Variance,
    compare_groups,
    excess_variance,
    fit_variance,
    given_variance,
    swapped_groups,
)

GROUP = np.array([0, 0, 1, 1])


def draw(rng, mean, dispersion, replicates=4):
    rate = mean[:, None] * rng.gamma(1 / dispersion, dispersion, (len(mean), replicates))
    return rng.poisson(rate).astype(float)


def test_negative_binomial_fit_is_the_maximum_likelihood():
    rng = np.random.default_rng(0)
    exposure = rng.uniform(10, 40, (5, 4))
    counts = rng.poisson(exposure * 1.3).astype(float)
    dispersion = np.array([1e-4, 0.01, 0.1, 0.5, 2.0])
    found = Counts(counts, exposure).log_rate(np.ones(4, bool), dispersion)
    for row in range(5):
        size = 1 / dispersion[row]

        def loss(log_rate, row=row, size=size):
            mean = np.exp(log_rate) * exposure[row]
            return -stats.nbinom.logpmf(counts[row], size, size / (size + mean)).sum()

        best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
        assert found[row] == pytest.approx(best, abs=1e-5)


def test_deviance_is_twice_the_missing_log_likelihood():
    rng = np.random.default_rng(1)
    counts = rng.poisson(8, (6, 4)).astype(float)
    counts[0] = 0
    exposure = np.full((6, 4), 7.0)
    dispersion = np.full(6, 0.2)
    rate = np.full((6, 1), 0.1)
    found = Counts(counts, exposure).deviance(rate, dispersion)
    size, mean = 5.0, np.exp(0.1) * exposure

    def log_pmf(mu):
        return stats.nbinom.logpmf(counts, size, size / (size + mu))

    saturated = np.where(counts > 0, log_pmf(np.maximum(counts, 1e-9)), 0.0)
    np.testing.assert_allclose(found, 2 * (saturated - log_pmf(mean)).sum(1), rtol=1e-6)


def test_normal_log_ratios_give_students_t():
    """Equal variances, no prior: the F statistic is the square of Student's t."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(50, 5))
    group = np.array([0, 0, 1, 1, 1])
    nothing = Variance(np.empty(0), np.array([1.0]), np.zeros(1), np.ones(1), 1e-9, 3)
    found = compare_groups(LogRatios(values, np.zeros_like(values)), group, np.zeros(50), nothing, 1.0)
    t = stats.ttest_ind(values[:, 2:], values[:, :2], axis=1)
    np.testing.assert_allclose(found.statistic, t.statistic, rtol=1e-6)
    np.testing.assert_allclose(found.pvalue, t.pvalue, rtol=1e-6)
    np.testing.assert_allclose(found.effect, values[:, 2:].mean(1) - values[:, :2].mean(1))
    np.testing.assert_allclose(found.effect / found.error, t.statistic, rtol=1e-6)


@pytest.mark.parametrize("dispersion", [0.02, 0.2])
def test_dispersion_is_recovered_by_stratum(dispersion):
    rng = np.random.default_rng(3)
    mean = rng.uniform(50, 400, 6000)
    stratum = np.repeat([0.0, 1.0], 3000)
    counts = np.concatenate([draw(rng, mean[:3000], dispersion), draw(rng, mean[3000:], 2 * dispersion)])
    found = fit_variance(Counts(counts, np.ones_like(counts)), GROUP, stratum, n_strata=2)
    # The median of the deviance lies a little below chi-squared's where the dispersion is large.
    np.testing.assert_allclose(found.dispersion_at(np.array([0.0, 1.0])), [dispersion, 2 * dispersion], rtol=0.12)
    assert found.residual_df == 2


def test_few_changed_features_do_not_move_the_dispersion_without_replicates():
    rng = np.random.default_rng(4)
    mean = np.full(4000, 200.0)
    counts = draw(rng, mean, 0.02, 2)
    quiet = fit_variance(Counts(counts, np.ones_like(counts)), np.array([0, 1]), np.zeros(4000))
    counts[:200, 1] = draw(rng, mean[:200] * 4, 0.02, 1)[:, 0]
    changed = fit_variance(Counts(counts, np.ones_like(counts)), np.array([0, 1]), np.zeros(4000))
    assert quiet.residual_df == 0
    assert quiet.dispersion[0] == pytest.approx(0.02, rel=0.15)
    assert changed.dispersion[0] == pytest.approx(quiet.dispersion[0], rel=0.25)


def test_features_of_their_own_variance_lower_the_prior():
    rng = np.random.default_rng(5)
    alike = rng.normal(size=(8000, 4))
    prior = 4.0
    own = alike * np.sqrt(prior / rng.chisquare(prior, 8000))[:, None]
    of_alike, of_own = (
        fit_variance(LogRatios(values, np.zeros_like(values)), GROUP, np.zeros(8000)) for values in (alike, own)
    )
    assert of_alike.prior_df > 50
    assert of_own.prior_df == pytest.approx(prior, rel=0.35)


@pytest.mark.parametrize("mean", [8.0, 60.0, 2000.0])
def test_null_is_uniform_and_power_is_there(mean):
    rng = np.random.default_rng(6)
    means = rng.uniform(0.5, 1.5, 6000) * mean
    counts = draw(rng, means, 0.03)
    observations = Counts(counts, np.ones_like(counts))
    covariate = rng.uniform(size=6000)
    variance = fit_variance(observations, GROUP, covariate)
    null = compare_groups(observations, GROUP, covariate, variance, 1.0)
    for level in (0.05, 0.01):
        assert (null.pvalue < level).mean() == pytest.approx(level, rel=0.3)
    counts[:500, 2:] = draw(rng, means[:500] * 2, 0.03)[:, 2:]
    test = compare_groups(Counts(counts, np.ones_like(counts)), GROUP, covariate, variance, 1.0)
    assert np.median(test.effect[:500]) == pytest.approx(np.log(2), abs=0.05)
    assert (test.pvalue[:500] < 0.05).mean() > (0.45 if mean < 10 else 0.85)


def test_inflation_widens():
    rng = np.random.default_rng(7)
    values = LogRatios(rng.normal(size=(40, 4)), np.zeros((40, 4)))
    variance = given_variance(1.0, 4)
    one, four = (compare_groups(values, GROUP, np.zeros(40), variance, factor) for factor in (1.0, 4.0))
    np.testing.assert_allclose(four.statistic, one.statistic / 2)
    np.testing.assert_allclose(four.error, one.error * 2)
    # A known dispersion and an infinite prior make it a z-test.
    expected = (values.values[:, 2:].mean(1) - values.values[:, :2].mean(1)) / 1.0
    np.testing.assert_allclose(one.statistic, expected, rtol=1e-6)
    np.testing.assert_allclose(one.pvalue, 2 * stats.norm.sf(np.abs(expected)), rtol=1e-6)


def test_excess_variance_of_some_features():
    rng = np.random.default_rng(8)
    plain = LogRatios(rng.normal(size=(3000, 4)), np.zeros((3000, 4)))
    wide = LogRatios(2.0 * rng.normal(size=(3000, 4)), np.zeros((3000, 4)))
    variance = given_variance(1.0, 4)
    assert excess_variance(wide, GROUP, np.zeros(3000), variance) == pytest.approx(4.0, rel=0.1)
    assert excess_variance(plain, GROUP, np.zeros(3000), variance) == pytest.approx(1.0, abs=0.06)
    few = wide.take(np.arange(10))
    assert excess_variance(few, GROUP, np.zeros(10), variance) == 1.0


def test_swapped_groups_hold_half_of_each():
    np.testing.assert_array_equal(swapped_groups(GROUP), [0, 1, 0, 1])
    np.testing.assert_array_equal(swapped_groups(np.array([1, 0, 0, 1, 1])), [0, 0, 1, 1, 1])
    assert swapped_groups(np.array([0, 1, 1])) is None


def test_a_group_without_counts_is_finite():
    counts = np.array([[0.0, 0.0, 30.0, 40.0]])
    found = compare_groups(Counts(counts, np.full((1, 4), 20.0)), GROUP, np.zeros(1), given_variance(0.05, 4), 1.0)
    assert np.isfinite(found.effect).all()
    assert found.effect[0] > 3
    assert found.pvalue[0] < 1e-4
