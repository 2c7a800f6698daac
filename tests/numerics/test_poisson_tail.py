from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import special

from diffbio_sc.numerics.genome import poisson_tail


def pairs(seed, size=3000):
    """Counts and rates over the whole plane from 1e-3 to 1e6, half of them near the diagonal."""
    rng = np.random.default_rng(seed)
    rate = 10 ** rng.uniform(-3, 6, size)
    anywhere = np.maximum(np.round(10 ** rng.uniform(0, 6, size)), 1)
    near = np.maximum(np.round(rate + rng.normal(0, 6, size) * np.sqrt(rate)), 1)
    return np.where(np.arange(size) % 2, anywhere, near), rate


def summed(count, rate):
    """ln P(X >= count) as a sum of terms in log space, for count above rate."""
    steps = np.arange(60000)
    log_ratio = np.concatenate([[0.0], np.cumsum(np.log(rate) - np.log(count + 1 + steps))])
    log_ratio = log_ratio[log_ratio > -60]
    return count * np.log(rate) - rate - special.gammaln(count + 1) + np.log(np.exp(log_ratio).sum())


@pytest.fixture(scope="module")
def plane():
    counts, rate = pairs(0)
    below, above = special.gammainc(counts, rate), special.gammaincc(counts, rate)
    with np.errstate(divide="ignore"):
        reference = np.where(below < 0.5, np.log(below), np.log1p(-above))
    known = (below > 1e-280) & (above > 1e-280)
    far = np.flatnonzero(below <= 1e-280)
    reference[far] = [summed(counts[i], rate[i]) for i in far]
    known[far] = True
    return counts[known], rate[known], reference[known]


def test_log_survival_agrees_with_scipy_and_with_sums_over_the_whole_plane(plane):
    counts, rate, reference = plane
    assert len(counts) > 2000
    assert (reference < -1000).sum() > 300
    np.testing.assert_allclose(poisson_tail.log_survival(counts, rate), reference, rtol=1e-6)


def test_log_survival_near_a_large_rate():
    """Where the ratio series needs thousands of terms: k next to the rate."""
    rate = np.array([100.0, 1000.0, 8000.0, 1e6])
    for offset in (-1, 0, 1, 10):
        reference = np.log(special.gammainc(rate + offset, rate))
        np.testing.assert_allclose(poisson_tail.log_survival(rate + offset, rate), reference, rtol=1e-7)


def test_log_survival_is_finite_far_out_and_exact_at_the_edges():
    assert poisson_tail.log_survival(2000, 3.0) == pytest.approx(summed(2000.0, 3.0), rel=1e-10)
    assert poisson_tail.log_survival(1e6, 1e-3) == pytest.approx(summed(1e6, 1e-3), rel=1e-10)
    assert poisson_tail.log_survival(1, 1e-3) == pytest.approx(np.log(-np.expm1(-1e-3)), rel=1e-12)
    assert poisson_tail.log_survival(3, 1e6) == 0.0
    np.testing.assert_array_equal(poisson_tail.log_survival([0, -1, 0], [2.0, 5.0, 0.0]), 0.0)
    assert poisson_tail.log_survival(1, 0.0) == -np.inf
    assert np.isnan(poisson_tail.log_survival([np.nan, 1.0, 1.0], [1.0, np.nan, -1.0])).all()


def test_log_survival_broadcasts_and_falls_with_counts():
    table = poisson_tail.log_survival(np.arange(0, 400)[:, None], np.array([0.5, 20.0, 90.0]))
    assert table.shape == (400, 3)
    assert (np.diff(table, axis=0) < 0).all()
    # P(X >= k) - P(X >= k + 1) is the probability of k.
    mass = np.exp(table[:-1]) - np.exp(table[1:])
    numbers = np.arange(150)[:, None]
    log_mass = special.xlogy(numbers, [0.5, 20.0, 90.0]) - [0.5, 20.0, 90.0] - special.gammaln(numbers + 1)
    np.testing.assert_allclose(mass[:150], np.exp(log_mass), rtol=1e-6, atol=1e-9)


def test_host_module_loads_without_jax():
    code = (
        "import sys, diffbio_sc.numerics.genome.poisson_tail, diffbio_sc.numerics.genome.background_host; "
        "import diffbio_sc.numerics.chains.two_state_host; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
