from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from diffbio_sc.numerics.counts.presence import learn_presence, presence_from_cells, spike_and_slab


@pytest.mark.parametrize("estimate", [0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("deviation", [0.03, 0.2])
def test_posterior_equals_quadrature(estimate, deviation):
    probability, typical = 0.3, 0.4

    def slab(power):
        density = lambda w: w**power * norm.pdf(estimate, w, deviation) * np.exp(-w / typical) / typical  # noqa: E731
        return quad(density, 0, 5, points=[estimate], limit=200)[0]

    # The spike's likelihood is that of the estimate as its own optimum over w: flat in the same normalisation.
    evidence = probability * slab(0)
    nothing = (1 - probability) * norm.pdf(estimate, 0, deviation)
    presence = evidence / (evidence + nothing)
    mean = presence * slab(1) / slab(0)
    variance = presence * slab(2) / slab(0) - mean**2
    found = spike_and_slab(np.float32(estimate), np.float32(deviation), np.float32(probability), np.float32(typical))
    np.testing.assert_allclose(found, [presence, mean, variance], rtol=2e-3, atol=1e-5)


def test_prior_is_recovered_from_simulated_weights():
    rng = np.random.default_rng(0)
    present = rng.random((20_000, 2)) < [0.2, 0.7]
    truth = np.where(present, rng.exponential([0.3, 0.6], present.shape), 0.0)
    estimate = np.maximum(truth + rng.normal(0, 0.02, truth.shape), 0.0)
    prior = learn_presence(estimate, np.full(truth.shape, 0.02))
    np.testing.assert_allclose(prior.probability, [0.2, 0.7], atol=0.05)
    np.testing.assert_allclose(prior.typical_weight, [0.3, 0.6], rtol=0.1)


def test_presence_in_spots_of_known_cell_number():
    probability, typical = presence_from_cells(np.array([0.25, 0.75]), np.array([1, 3]), total=1.0)
    np.testing.assert_allclose(probability, [[0.25, 0.75], [1 - 0.75**3, 1 - 0.25**3]])
    np.testing.assert_allclose((probability * typical), [[0.25, 0.75]] * 2)


def test_presence_and_weights_of_few_spots_are_shrunk_toward_the_average_of_all_types():
    estimate = np.zeros((10, 3))
    estimate[:, 0] = 0.6  # in every spot
    estimate[:5, 2] = 0.4  # in half of them
    prior = learn_presence(estimate, np.full((10, 3), 1e-3))
    present = np.array([10, 0, 5])
    common = (15 + 0.5) / 31
    np.testing.assert_allclose(prior.probability, (present + 20 * common) / 30, atol=5e-3)
    weight = (10 * 0.6 + 5 * 0.4) / 15
    np.testing.assert_allclose(
        prior.typical_weight, (np.array([6.0, 0.0, 2.0]) + 20 * weight) / (present + 20), atol=5e-3
    )
