from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime

from diffbio_sc.numerics import local_false_discovery as module
from diffbio_sc.numerics.local_false_discovery import local_false_discovery


def draw(rng, tests=6000, share=0.2):
    """P-values of chi-square tests of effects of many sizes, whose power follows a covariate; and which have one."""
    information = rng.normal(0, 1.2, tests)
    effect = rng.uniform(size=tests) < share
    size = np.where(effect, np.exp(information) * rng.gamma(2.0, 3.0, tests), 0.0)
    return stats.chi2.logsf(rng.noncentral_chisquare(2, size + 1e-12), 2), information, effect


def test_rates_are_the_shares_of_null_tests_and_rank_better_than_p():
    """Effects are not drawn from the fitted family: chi-squares whose noncentrality has a gamma distribution."""
    log_p, information, effect = draw(np.random.default_rng(0))
    found = local_false_discovery(log_p, information)
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 0.85), (0.85, 1)):
        inside = (found >= low) & (found < high)
        assert inside.sum() > 50
        assert found[inside].mean() == pytest.approx(1 - effect[inside].mean(), abs=0.07)

    def average_precision(score):
        hits = effect[np.argsort(score)]
        return (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()

    assert average_precision(found) > average_precision(log_p) + 0.01


def test_without_effects_no_test_seems_to_have_one():
    rng = np.random.default_rng(1)
    found = local_false_discovery(np.log(rng.uniform(size=3000)), rng.normal(size=3000))
    assert np.quantile(found, 0.01) > 0.5


def test_rates_fall_with_the_surprise_and_survive_the_deepest():
    rng = np.random.default_rng(2)
    log_p = np.sort(np.r_[-rng.exponential(size=500), -rng.exponential(400.0, 100), -5000.0])
    found = local_false_discovery(log_p, np.zeros(601))
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0.0
    assert np.isfinite(found).all()


@pytest.mark.parametrize("log_p", [[np.nan, np.nan], [np.nan, -3.0], [-1.0, -2.0]])
def test_few_tests(log_p):
    log_p = np.array(log_p)
    found = local_false_discovery(log_p, np.array([1.0, 1.0]))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(log_p))
    assert ((found[~np.isnan(log_p)] > 0) & (found[~np.isnan(log_p)] < 1)).all()


def test_gradient_is_that_of_the_loss(monkeypatch):
    seen = []

    def check(loss, start, **_):
        at = np.array([-0.7, 0.6, 0.9, -0.4])
        seen.append((loss(at)[1], approx_fprime(at, lambda x: loss(x)[0], 1e-6)))
        return module_minimize(loss, start, jac=True, method="L-BFGS-B")

    module_minimize = module.minimize
    monkeypatch.setattr(module, "minimize", check)
    log_p, information, _ = draw(np.random.default_rng(3), 200)
    local_false_discovery(log_p, information)
    np.testing.assert_allclose(*seen[0], rtol=1e-3, atol=1e-3)
