from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from scipy.integrate import quad
from scipy.stats import norm

from diffbio_sc.numerics.counts.presence import (
    learn_presence,
    presence_from_cells,
    pull_to_sum,
    spike_and_slab,
)


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


def test_pull_tilts_the_posterior():
    estimate, deviation, probability, typical, pull = 0.1, 0.1, 0.3, 0.4, 12.0

    def slab(power):
        def density(w):
            return w**power * norm.pdf(estimate, w, deviation) * np.exp((pull - 1 / typical) * w) / typical

        return quad(density, 0, 5, points=[estimate], limit=200)[0]

    evidence = probability * slab(0)
    presence = evidence / (evidence + (1 - probability) * norm.pdf(estimate, 0, deviation))
    mean = presence * slab(1) / slab(0)
    expected = [presence, mean, presence * slab(2) / slab(0) - mean**2]
    found = spike_and_slab(*np.float64([estimate, deviation, probability, typical, pull]).reshape(5, 1))
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)


def _confusable(spots=400, components=12, deviation=0.08, seed=0):
    rng = np.random.default_rng(seed)
    present = rng.random((spots, components)) < 0.25
    truth = np.where(present, rng.exponential(0.25, present.shape), 0.0)
    estimate = np.maximum(truth + rng.normal(0, deviation, truth.shape), 0.0)
    return estimate, np.full(truth.shape, deviation)


@pytest.mark.parametrize("kept", [0.3, 1.0])
def test_asked_share_of_the_lost_sum_is_kept(kept):
    estimate, deviation = _confusable()
    prior = np.full(12, 0.1), np.full(12, 0.2)
    alone = spike_and_slab(estimate, deviation, *prior).mean.sum(1)
    total = estimate.sum(1)
    wanted = alone + kept * np.maximum(total - alone, 0)
    pull = pull_to_sum(estimate, deviation, *prior, kept)
    np.testing.assert_allclose(spike_and_slab(estimate, deviation, *prior, pull).mean.sum(1), wanted, rtol=1e-4)
    assert (pull >= 0).all()
    assert (total - alone > 0.1).any()
    as_jax = one_program(pull_to_sum)(*(jnp.asarray(part, jnp.float32) for part in (estimate, deviation, *prior)), kept)
    np.testing.assert_allclose(as_jax, pull, rtol=2e-2, atol=2e-2)


def test_gradient_of_the_pull_is_that_of_the_exact_solution():
    estimate, deviation = _confusable(spots=3)
    prior = np.full(12, 0.1), np.full(12, 0.2)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        parts = [jnp.asarray(part, jnp.float64) for part in (estimate, deviation, *prior)]
        direction = np.random.default_rng(1).normal(size=estimate.shape)

        @jax.jit
        def objective(estimate):
            pull = pull_to_sum(estimate, *parts[1:], 0.7)
            return (spike_and_slab(estimate, *parts[1:], pull).mean * direction).sum()

        found = float((jax.jit(jax.grad(objective))(parts[0]) * direction).sum())
        moved = [float(objective(parts[0] + sign * 1e-6 * direction)) for sign in (1, -1)]
    assert found == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4)


def test_presence_is_not_lost_where_one_at_a_time_it_would_be():
    """A regression splits what a type has among those that could stand in for it: little for each, the sum right."""
    rng = np.random.default_rng(2)
    truth = np.where(rng.random((1000, 12)) < 0.2, 0.2, 0.0)
    estimate = np.maximum(0.6 * truth + 0.4 * truth.mean(1, keepdims=True), 0.0)
    deviation = np.full(estimate.shape, 0.08)
    priors = [learn_presence(estimate, deviation, kept=kept) for kept in (0.0, 1.0)]
    sums = []
    for prior, kept in zip(priors, (0.0, 1.0), strict=True):
        here = (estimate, deviation, prior.probability, prior.typical_weight)
        sums.append(spike_and_slab(*here, pull_to_sum(*here, kept)).mean.sum() / estimate.sum())
    assert sums[0] < 0.85
    assert sums[1] > 0.999
    assert priors[1].probability.mean() > priors[0].probability.mean() + 0.03
