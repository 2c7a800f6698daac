"""Fusion of Gaussian experts, held to densities on a grid, closed forms and draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffbio_sc.numerics.latent import fusion

gaussian_log_density = jax.jit(fusion.gaussian_log_density)
kl_to_standard_normal = jax.jit(fusion.kl_to_standard_normal)
mean_fusion = jax.jit(fusion.mean_fusion)
mixture_divergence = jax.jit(fusion.mixture_divergence)
mixture_log_density = jax.jit(fusion.mixture_log_density)
mixture_of_experts = jax.jit(fusion.mixture_of_experts)
product_of_experts = jax.jit(fusion.product_of_experts, static_argnames="prior")
sample_mixture = jax.jit(fusion.sample_mixture)

EXPERTS, CELLS, DIMENSIONS = 3, 5, 2
GRID = np.linspace(-15, 15, 40_001)
FUSIONS = [product_of_experts, mixture_of_experts, mean_fusion]

PRESENT = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)


@pytest.fixture
def experts():
    random = np.random.default_rng(0)
    mean = random.normal(size=(EXPERTS, CELLS, DIMENSIONS)).astype(np.float32)
    log_variance = random.normal(size=(EXPERTS, CELLS, DIMENSIONS)).astype(np.float32)
    return mean, log_variance


def densities(mean, log_variance, cell, dimension):
    scale = np.exp(0.5 * log_variance[:, cell, dimension].astype(float))
    return norm.pdf(GRID[None], mean[:, cell, dimension].astype(float)[:, None], scale[:, None])


def moments(density):
    mass = np.trapezoid(density, GRID)
    mean = np.trapezoid(density * GRID, GRID) / mass
    return mean, np.trapezoid(density * (GRID - mean) ** 2, GRID) / mass


@pytest.mark.parametrize("prior", [True, False])
def test_product_equals_the_normalised_product_of_densities(experts, prior):
    fused = product_of_experts(*experts, PRESENT, prior=prior)
    for cell in range(CELLS):
        for dimension in range(DIMENSIONS):
            used = np.flatnonzero(PRESENT[:, cell])
            density = np.prod(densities(*experts, cell, dimension)[used], axis=0)
            if prior or not len(used):
                density = density * norm.pdf(GRID)
            mean, variance = moments(density)
            np.testing.assert_allclose(fused.mean[cell, dimension], mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(np.exp(fused.log_variance[cell, dimension]), variance, rtol=1e-5)


def test_mixture_moments_and_density_equal_the_mixture_of_densities(experts):
    fused = mixture_of_experts(*experts, PRESENT)
    point = np.linspace(-2, 2, CELLS * DIMENSIONS).reshape(CELLS, DIMENSIONS).astype(np.float32)
    found = mixture_log_density(point, *experts, PRESENT)
    for cell in range(CELLS):
        used = np.flatnonzero(PRESENT[:, cell])
        share = np.full(len(used), 1.0 / max(len(used), 1))
        for dimension in range(DIMENSIONS):
            density = share @ densities(*experts, cell, dimension)[used] if len(used) else norm.pdf(GRID)
            mean, variance = moments(density)
            np.testing.assert_allclose(fused.mean[cell, dimension], mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(np.exp(fused.log_variance[cell, dimension]), variance, rtol=1e-5)
        parts = norm.pdf(point[cell], experts[0][used, cell], np.exp(0.5 * experts[1][used, cell])).prod(-1)
        expected = np.log(share @ parts) if len(used) else norm.logpdf(point[cell]).sum()
        np.testing.assert_allclose(found[cell], expected, rtol=1e-5)


def test_mean_fusion_is_the_distribution_of_the_mean_of_draws(experts):
    fused = mean_fusion(*experts, PRESENT)
    random = np.random.default_rng(1)
    draws = experts[0] + np.exp(0.5 * experts[1]) * random.normal(size=(50_000, EXPERTS, CELLS, DIMENSIONS))
    for cell in (0, 1, 4):
        mean = draws[:, PRESENT[:, cell], cell].mean(1)
        np.testing.assert_allclose(fused.mean[cell], mean.mean(0), atol=0.03)
        np.testing.assert_allclose(np.exp(fused.log_variance[cell]), mean.var(0), rtol=0.04)
    # A cell with one expert is that expert.
    alone = mean_fusion(*experts, np.eye(EXPERTS, CELLS, dtype=bool))
    np.testing.assert_allclose(alone.mean[1], experts[0][1, 1], rtol=1e-6)
    np.testing.assert_allclose(alone.log_variance[1], experts[1][1, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_hidden_modality_equals_the_fusion_of_the_rest(experts, fusion):
    hidden = np.ones((EXPERTS, CELLS), bool)
    hidden[1] = False
    found = fusion(*experts, hidden)
    rest = fusion(experts[0][[0, 2]], experts[1][[0, 2]], np.ones((2, CELLS), bool))
    np.testing.assert_allclose(found.mean, rest.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.log_variance, rest.log_variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_cell_without_any_modality_gets_the_prior(experts, fusion):
    fused = fusion(*experts, np.zeros((EXPERTS, CELLS), bool))
    np.testing.assert_array_equal(fused.mean, 0)
    np.testing.assert_array_equal(fused.log_variance, 0)
    np.testing.assert_array_equal(fused.shares, 0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_absent_experts_may_be_nan_and_get_no_gradient(experts, fusion):
    mean, log_variance = (np.where(PRESENT[..., None], values, np.nan) for values in experts)

    def total(mean, log_variance):
        fused = fusion(mean, log_variance, PRESENT)
        return (fused.mean**2).sum() + (fused.log_variance * 1.3).sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(mean, log_variance):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.asarray(gradient)[~PRESENT], 0)
        assert (np.asarray(gradient)[PRESENT] != 0).all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_equal_finite_differences(experts, fusion):
    def total(mean, log_variance):
        fused = fusion(mean, log_variance, PRESENT)
        return (jnp.sin(fused.mean) + fused.log_variance).sum()

    with jax.enable_x64(True):
        arguments = [jnp.asarray(values, jnp.float64) for values in experts]
        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(*arguments)
        total = jax.jit(total)
        random = np.random.default_rng(0)
        for position, gradient in enumerate(gradients):
            direction = random.normal(size=gradient.shape)
            above, below = (
                total(*arguments[:position], arguments[position] + step * direction, *arguments[position + 1 :])
                for step in (1e-5, -1e-5)
            )
            np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_extreme_variances_stay_finite(fusion):
    log_variance = np.array([-60.0, 0.0, 60.0], np.float32)[:, None, None] * np.ones((1, 2, 1), np.float32)
    mean = np.array([1.0, -5.0, 100.0], np.float32)[:, None, None] * np.ones((1, 2, 1), np.float32)
    present = np.array([[1, 0], [1, 1], [1, 1]], bool)
    fused = fusion(mean, log_variance, present)
    assert np.isfinite(fused.mean).all()
    assert np.isfinite(fused.log_variance).all()
    if fusion is product_of_experts:
        # The sharp expert decides; without it, the standard normals do: -5 and the prior.
        np.testing.assert_allclose(fused.mean[:, 0], [1.0, -2.5], rtol=1e-6)
        np.testing.assert_allclose(fused.log_variance[:, 0], [-60.0, -np.log(2)], rtol=1e-6)


def test_shares_are_the_shares_of_precision(experts):
    fused = product_of_experts(*experts, PRESENT)
    precision = PRESENT[..., None] / np.exp(experts[1].astype(float))
    np.testing.assert_allclose(fused.shares, precision / (1 + precision.sum(0)), rtol=1e-5)
    without = product_of_experts(*experts, PRESENT, prior=False)
    np.testing.assert_allclose(np.asarray(without.shares).sum(0)[PRESENT.any(0)], 1, rtol=1e-6)


def test_experts_are_chosen_equally_often():
    cells = 1000
    mean = np.array([-10.0, 0.0, 10.0], np.float32)[:, None, None] * np.ones((1, cells, 1), np.float32)
    log_variance = np.zeros_like(mean)
    present = np.ones((3, cells), bool)
    present[1, :500] = False
    present[:, -1] = False
    drawn = sample_mixture(jax.random.key(0), mean, log_variance, present)
    expert = np.asarray(drawn.expert)
    assert expert[-1] == -1
    assert not (expert[:500] == 1).any()
    # Far better than the deviation of independent choices, 11 to 16 of 500.
    assert abs((expert[:500] == 0).sum() - 250) < 40
    assert abs((expert == 0).sum() - (250 + 499 / 3)) < 30
    np.testing.assert_allclose((drawn.sample[:-1, 0] - mean[expert[:-1], 0, 0]).std(), 1, atol=0.1)


def test_stratified_choice_is_even_over_the_cells_and_each_cell_has_its_probabilities():
    cells, rounds = 8, 800
    mean, log_variance = np.zeros((4, cells, 1), np.float32), np.zeros((4, cells, 1), np.float32)
    present = np.ones((4, cells), bool)
    keys = jax.random.split(jax.random.key(0), rounds)
    expert = np.array([sample_mixture(key, mean, log_variance, present).expert for key in keys])
    # A quarter of 8 cells in every single draw.
    np.testing.assert_array_equal((expert == 0).sum(1), 2)
    np.testing.assert_allclose((expert == 0).mean(0), 0.25, atol=0.07)


def test_the_sample_is_differentiable_in_the_chosen_expert(experts):
    key = jax.random.key(1)
    expert = np.asarray(sample_mixture(key, *experts, PRESENT).expert)
    gradient = jax.grad(lambda mean: sample_mixture(key, mean, experts[1], PRESENT).sample.sum())(
        jnp.asarray(experts[0])
    )
    expected = np.zeros((EXPERTS, CELLS, DIMENSIONS))
    known = expert >= 0
    expected[expert[known], np.flatnonzero(known)] = 1
    np.testing.assert_array_equal(gradient, expected)


def divergence_on_a_grid(mean, log_variance):
    """Of a mixture in equal parts, along one dimension, from N(0, 1)."""
    density = norm.pdf(GRID[None], mean[:, None], np.exp(0.5 * log_variance)[:, None]).mean(0)
    ratio = np.log(np.maximum(density, 1e-300)) - norm.logpdf(GRID)
    return np.trapezoid(density * ratio, GRID)


@pytest.mark.parametrize("apart", [0.0, 0.7, 3.0])
def test_divergence_of_a_mixture_is_estimated_without_bias(apart):
    cells = 20_000
    mean = np.array([-apart, 0.4, apart], np.float32)
    log_variance = np.array([-1.0, 0.3, -2.0], np.float32)
    experts = [np.broadcast_to(values[:, None, None], (3, cells, 1)) for values in (mean, log_variance)]
    present = np.ones((3, cells), bool)
    drawn = sample_mixture(jax.random.key(3), *experts, present)
    found = np.asarray(mixture_divergence(drawn, *experts, present))
    error = found.std() / np.sqrt(cells)  # less, as the choice is stratified
    assert abs(found.mean() - divergence_on_a_grid(mean, log_variance)) < 4 * error + 1e-5
    # That of the Gaussian with the same moments is another number.
    moment = mixture_of_experts(*experts, present)
    gaussian = float(kl_to_standard_normal(moment.mean[0], moment.log_variance[0]))
    assert found.mean() > gaussian + 4 * error

    def average(shift):
        """Divergence where the first expert's mean is shifted."""
        moved = jnp.asarray(experts[0]).at[0].add(shift)
        sample = sample_mixture(jax.random.key(3), moved, experts[1], present)
        return mixture_divergence(sample, moved, experts[1], present).mean()

    step = 0.01
    shifted = [divergence_on_a_grid(mean + np.array([sign * step, 0, 0]), log_variance) for sign in (1, -1)]
    np.testing.assert_allclose(jax.grad(average)(0.0), (shifted[0] - shifted[1]) / (2 * step), atol=0.02)


def test_divergence_of_one_expert_and_of_none_is_exact(experts):
    present = np.eye(EXPERTS, CELLS, dtype=bool)
    drawn = sample_mixture(jax.random.key(0), *experts, present)
    found = mixture_divergence(drawn, *experts, present)
    expected = [kl_to_standard_normal(experts[0][k, k], experts[1][k, k]) for k in range(EXPERTS)]
    np.testing.assert_allclose(found[:EXPERTS], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[EXPERTS:], 0)


def test_divergence_equals_numeric_integration():
    mean, log_variance = np.array([0.3, -1.2, 2.0]), np.array([-2.0, 0.5, 1.0])
    expected = 0.0
    for centre, log_scale in zip(mean, log_variance, strict=True):
        density = norm.pdf(GRID, centre, np.exp(0.5 * log_scale))
        ratio = norm.logpdf(GRID, centre, np.exp(0.5 * log_scale)) - norm.logpdf(GRID)
        expected += np.trapezoid(density * ratio, GRID)
    found = kl_to_standard_normal(mean.astype(np.float32), log_variance.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_divergence_keeps_its_digits_near_the_prior():
    log_variance = np.array([1e-3], np.float32)
    exact = 0.5 * (np.expm1(np.float64(log_variance[0])) - np.float64(log_variance[0]))
    np.testing.assert_allclose(kl_to_standard_normal(np.zeros(1, np.float32), log_variance), exact, rtol=1e-3)
    assert kl_to_standard_normal(np.zeros(1, np.float32), np.zeros(1, np.float32)) == 0


def test_log_density_equals_scipy(experts):
    mean, log_variance = experts
    points = np.ones((CELLS, DIMENSIONS), np.float32)
    expected = norm.logpdf(points, mean, np.exp(0.5 * log_variance)).sum(-1)
    np.testing.assert_allclose(gaussian_log_density(points, mean, log_variance), expected, rtol=1e-5)
