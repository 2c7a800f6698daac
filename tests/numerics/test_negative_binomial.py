from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import nbinom, poisson

from diffbio_sc.numerics.counts.negative_binomial import negative_binomial_deviance, negative_binomial_log_likelihood

COUNTS = np.array([0, 0, 1, 3, 10, 200, 1500], np.float32)
MEANS = np.array([1e-4, 0.3, 0.8, 5.0, 4.0, 150.0, 2000.0], np.float32)


@pytest.mark.parametrize("dispersion", [0.02, 0.1, 1.0, 5.0])
def test_log_likelihood_equals_scipy(dispersion):
    n = 1 / dispersion
    expected = nbinom.logpmf(COUNTS, n, n / (n + MEANS.astype(float)))
    found = negative_binomial_log_likelihood(COUNTS, MEANS, np.float32(dispersion))
    # float32 gammaln of about 1500 keeps six digits of a value of about 1e4
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-3)


@pytest.mark.parametrize("dispersion", [0.02, 0.5])
def test_deviance_is_twice_the_likelihood_ratio(dispersion):
    n = 1 / dispersion
    saturated = nbinom.logpmf(COUNTS, n, n / (n + np.maximum(COUNTS, 1e-12).astype(float)))
    fitted = nbinom.logpmf(COUNTS, n, n / (n + MEANS.astype(float)))
    found = negative_binomial_deviance(COUNTS, MEANS, np.float32(dispersion))
    np.testing.assert_allclose(found, 2 * (saturated - fitted), rtol=2e-3, atol=2e-4)


def test_small_dispersion_approaches_poisson():
    found = negative_binomial_log_likelihood(COUNTS[:5], MEANS[:5], np.float32(1e-3))
    np.testing.assert_allclose(found, poisson.logpmf(COUNTS[:5], MEANS[:5].astype(float)), rtol=0.02, atol=0.02)
