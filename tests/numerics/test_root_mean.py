"""Expected roots of counts against sums over probabilities, and the level of the test where depth varies a lot."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import nbinom, poisson

from diffbio_sc.numerics.spatial.root_mean import RootMeans, expected_root, expected_roots
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest


@pytest.mark.parametrize("mean", [0.01, 0.3, 2.0, 40.0, 1000.0])
@pytest.mark.parametrize("dispersion", [0.0, 0.3, 5.0])
def test_expected_roots_are_sums_over_probabilities(mean, dispersion):
    counts = np.arange(200_000 if mean > 100 else 20_000)
    if dispersion == 0:
        probability = poisson.pmf(counts, mean)
    else:
        probability = nbinom.pmf(counts, 1 / dispersion, 1 / (1 + dispersion * mean))
    expected = (probability * np.sqrt(counts + 0.4)).sum()
    assert expected_root(np.array(mean), np.array(dispersion), 0.4) == pytest.approx(expected, rel=1e-7)


def test_interpolation_in_depth_is_exact_enough():
    depth = np.random.default_rng(0).lognormal(0, 1.2, 500)
    means = np.array([1.0, 20.0, 400.0])
    for strength in (0.0, 2.0):
        found = RootMeans(depth, 0.4)(means, strength)
        exact = expected_root(means[:, None] * depth, strength / means[:, None], 0.4)
        np.testing.assert_allclose(found, exact, atol=2e-3)
    np.testing.assert_allclose(RootMeans(np.ones(3), 0.4)(np.array([2.0]), 0.0), 1.4740333, rtol=1e-5)


def test_roots_of_means_that_differ_between_spots():
    means = np.random.default_rng(0).lognormal(0, 1.2, (2, 300)) * np.array([[0.5], [40.0]])
    dispersion = np.array([0.0, 0.8])
    found = expected_roots(means, dispersion, 0.4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected_root(means, dispersion[:, None], 0.4), atol=2e-3)
    even = expected_roots(np.full((1, 3), 2.0), np.zeros(1), 0.4)
    np.testing.assert_allclose(even, expected_root(np.array(2.0), np.array(0.0), 0.4), rtol=1e-5)


def test_level_holds_where_depth_varies_strongly_and_smoothly():
    """Coefficient of variation 1.8; without the expected root, 19 to 28 % of root p-values are below .05."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 20, (400, 2))
    waves = rng.normal(size=(40, 2)) / 3.0
    field = np.cos(places @ waves.T + rng.uniform(0, 6.3, 40)).sum(1)
    depth = np.exp(1.5 * (field - field.mean()) / field.std())
    assert 1.3 < depth.std() / depth.mean() < 2.0
    mean = np.outer(depth / depth.mean(), np.exp(rng.uniform(0, 3, 1500)))
    counts = sp.csc_array(rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(float))
    test = SpatialScoreTest(places, depth)
    moments = test.moments(counts)
    found = test.test(counts, moments.mean, test.classes(moments))
    roots = np.exp(found.scale_log_p[1])
    roots = np.where(np.isnan(roots), 1.0, roots)
    assert ((roots < 0.05).mean(1) < 0.08).all()
    p = np.exp(found.log_p)
    assert (p < 0.05).mean() < 0.065
    assert (p < 0.01).mean() < 0.016
