"""Families of emissions: densities against scipy, maxima against optimisers, JAX twins against numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from diffbio_sc.numerics.chains import emission_likelihoods
from diffbio_sc.numerics.chains.emissions import (
    FAMILIES,
    Bernoulli,
    Gaussian,
    Multinomial,
    NegativeBinomial,
    Poisson,
    family_from_moments,
)

RNG = np.random.default_rng(0)
MEAN = RNG.gamma(2.0, 2.0, (3, 4))


def family(name):
    if name == "bernoulli":
        return Bernoulli(RNG.uniform(0.05, 0.95, (3, 4)))
    if name == "poisson":
        return Poisson(MEAN)
    if name == "negative_binomial":
        return NegativeBinomial(MEAN, RNG.uniform(0.1, 2.0, (3, 4)))
    if name == "gaussian":
        return Gaussian(MEAN, RNG.uniform(0.5, 2.0, (3, 4)), np.full(4, 1e-4))
    return Multinomial(RNG.dirichlet(np.ones(4), 3))


def rows_of(name, number=200):
    if name == "bernoulli":
        return RNG.integers(0, 2, (number, 4)).astype(float)
    if name == "gaussian":
        return RNG.normal(3.0, 2.0, (number, 4))
    return RNG.negative_binomial(1.0, 0.2, (number, 4)).astype(float)


def reference(emission, row, state):
    mean = emission.mean[state]
    known = np.isfinite(row)
    x, mean = row[known], mean[known]
    if isinstance(emission, Bernoulli):
        return stats.bernoulli.logpmf(x, mean).sum()
    if isinstance(emission, Poisson):
        return stats.poisson.logpmf(x, mean).sum()
    if isinstance(emission, NegativeBinomial):
        size = 1 / emission.dispersion[state][known]
        return stats.nbinom.logpmf(x, size, size / (size + mean)).sum()
    if isinstance(emission, Gaussian):
        return stats.norm.logpdf(x, mean, np.sqrt(emission.variance[state][known])).sum()
    return stats.multinomial.logpmf(x, int(x.sum()), mean / mean.sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_are_scipys_with_and_without_missing_values(name):
    emission, rows = family(name), rows_of(name, 20)
    rows[3, 1] = rows[7, 0] = rows[7, 3] = np.nan
    found = emission.log_likelihood(rows)
    expected = [[reference(emission, row, state) for state in range(3)] for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def twin(emission, rows):
    known = np.isfinite(rows)
    values = jnp.asarray(np.where(known, rows, 0.0), jnp.float32)
    mean = jnp.asarray(emission.mean, jnp.float32)
    if isinstance(emission, Bernoulli):
        return emission_likelihoods.bernoulli(values, known, jnp.log(mean) - jnp.log1p(-mean))
    if isinstance(emission, Poisson):
        return emission_likelihoods.poisson(values, known, jnp.log(mean))
    if isinstance(emission, NegativeBinomial):
        dispersion = jnp.asarray(emission.dispersion, jnp.float32)
        return emission_likelihoods.negative_binomial(values, known, jnp.log(mean), jnp.log(dispersion))
    if isinstance(emission, Gaussian):
        return emission_likelihoods.gaussian(values, known, mean, jnp.log(jnp.asarray(emission.variance, jnp.float32)))
    return emission_likelihoods.multinomial(values, known, jnp.log(mean))


@pytest.mark.parametrize("name", FAMILIES)
def test_jax_and_numpy_agree(name):
    emission, rows = family(name), rows_of(name)
    rows[RNG.random(rows.shape) < 0.2] = np.nan
    rows[5] = np.nan
    np.testing.assert_allclose(twin(emission, rows), emission.log_likelihood(rows), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(twin(emission, rows)[5], 0.0, atol=1e-5)  # lgamma(1) in float32


@pytest.mark.parametrize("name", FAMILIES)
def test_the_maximum_is_higher_than_its_neighbours_and_sums_of_blocks_add_up(name):
    emission, rows = family(name), rows_of(name, 300)
    rows[RNG.random(rows.shape) < 0.1] = np.nan
    if name == "multinomial":
        rows = np.where(np.isfinite(rows), rows, 1.0)  # with missing marks its step is no exact maximum
    weights = RNG.dirichlet(np.ones(3), 300)
    sums = emission.sums(rows[:100], weights[:100]) + emission.sums(rows[100:], weights[100:])
    whole = emission.sums(rows, weights)
    for one, other in zip(sums[:3], whole[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    best = emission.maximize(sums)

    def value(one):
        return float((weights * one.log_likelihood(rows)).sum())

    vector = best.to_vector()
    for _ in range(20):
        near = best.from_vector(vector + 1e-2 * RNG.normal(size=vector.shape))
        assert value(near) < value(best) + 1e-9
    # What the sums say of the expected likelihood is the likelihood, but for a constant.
    other = best.from_vector(vector + 0.1 * RNG.normal(size=vector.shape))
    gap = best.expected(sums).sum() - other.expected(sums).sum()
    assert gap == pytest.approx(value(best) - value(other), rel=1e-6)


def test_the_dispersion_is_the_maximum_that_an_optimiser_finds():
    counts = np.random.default_rng(1).negative_binomial(0.7, 0.1, 400).astype(float)
    start = NegativeBinomial(np.array([[1.0]]), np.array([[1.0]]))
    for _ in range(2):
        start = start.maximize(start.sums(counts[:, None], np.ones((400, 1))))

    def loss(parameters):
        mean, dispersion = np.exp(parameters)
        return -stats.nbinom.logpmf(counts, 1 / dispersion, 1 / (1 + dispersion * mean)).sum()

    exact = np.exp(minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x)
    assert start.mean[0, 0] == pytest.approx(exact[0], rel=1e-5)
    assert start.dispersion[0, 0] == pytest.approx(exact[1], rel=1e-4)


def test_counts_that_do_not_vary_more_than_a_poisson_have_hardly_any_dispersion():
    counts = np.full((200, 1), 4.0)
    emission = family_from_moments("negative_binomial", np.array([[3.0]]), np.array([[9.0]]), np.array([9.0]))
    for _ in range(10):
        emission = emission.maximize(emission.sums(counts, np.ones((200, 1))))
    assert emission.mean[0, 0] == pytest.approx(4.0)
    assert emission.dispersion[0, 0] < 1e-4


def test_a_point_mass_does_not_close_the_variance():
    rows = np.concatenate([np.full((900, 1), 2.0), np.random.default_rng(2).normal(8, 2, (100, 1))])
    floor = np.array([1e-2 * rows.var()])
    emission = Gaussian(np.array([[2.0]]), np.array([[1.0]]), floor)
    best = emission.maximize(emission.sums(rows[:900], np.ones((900, 1))))
    assert best.variance[0, 0] == floor[0]
    assert np.isfinite(best.log_likelihood(rows)).all()


def test_exact_zeros_of_a_bernoulli_are_impossible_and_stay():
    emission = Bernoulli(np.array([[0.0, 0.5], [1.0, 0.5]]))
    found = emission.log_likelihood(np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 0.0]]))
    half = np.log(0.5)
    np.testing.assert_allclose(found, [[half, -np.inf], [-np.inf, half], [half, half]], atol=1e-12)
    weights = np.exp(found)
    again = emission.maximize(emission.sums(np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, 0.0]]), weights))
    np.testing.assert_array_equal(again.mean[:, 0], [0.0, 1.0])


def test_a_state_without_bins_keeps_its_parameters():
    for name in FAMILIES:
        emission = family(name)
        sums = emission.sums(rows_of(name, 50), np.array([1.0, 0.0, 1.0]) * np.ones((50, 1)))
        np.testing.assert_allclose(emission.maximize(sums).mean[1], emission.mean[1], rtol=1e-12)
