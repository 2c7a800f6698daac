"""Adjusted p-values against scipy's."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from diffbio_sc.numerics.adjusted_pvalues import adjusted_pvalues


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("number", [1, 2, 17, 5000])
def test_rates_are_those_of_scipy(method, number):
    rng = np.random.default_rng(number)
    pvalue = np.round(rng.beta(0.4, 1.0, number), 3)  # with ties
    pvalue[0] = 1e-300
    given = pvalue.copy()
    np.testing.assert_array_equal(adjusted_pvalues(pvalue, method), false_discovery_control(pvalue, method=method))
    np.testing.assert_array_equal(pvalue, given)
