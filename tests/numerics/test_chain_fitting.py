"""Training of chains: statistics of every route, zeros, dead states, starts, and moves out of a poor optimum."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.chains import baum_welch
from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations
from diffbio_sc.numerics.chains.emissions import Bernoulli, Gaussian, NegativeBinomial
from diffbio_sc.numerics.chains.split_merge import split_merge
from diffbio_sc.numerics.chains.starts import CRITERIA, partition_start, random_start, sample_bins

TRANSITION = np.array([[0.95, 0.03, 0.02], [0.06, 0.9, 0.04], [0.1, 0.05, 0.85]])
MEAN = np.array([[0.02, 0.05, 0.02, 0.03], [0.7, 0.1, 0.05, 0.6], [0.2, 0.8, 0.7, 0.05]])


def walk(transition, length, rng):
    path = np.zeros(length, int)
    bounds = np.cumsum(transition, 1)
    for t, u in enumerate(rng.random(length - 1)):
        path[t + 1] = min(np.searchsorted(bounds[path[t]], u), len(transition) - 1)
    return path


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    path = np.concatenate([walk(TRANSITION, 4000, rng) for _ in range(3)])
    rows = (rng.random((12_000, 4)) < MEAN[path]).astype(float)
    return path, rows, [4000] * 3


def as_patterns(rows, lengths, **options):
    coded = np.nan_to_num(rows, nan=-1.0)
    distinct, index = np.unique(coded, axis=0, return_inverse=True)
    distinct = np.where(distinct < 0, np.nan, distinct)
    return Observations(distinct, lengths, index=index.ravel().astype(np.int32), **options)


def truth():
    return MarkovModel(np.array([1.0, 0.0, 0.0]), TRANSITION, Bernoulli(MEAN))


def test_compressed_looked_up_and_streamed_statistics_agree(planted):
    _, rows, lengths = planted
    rows = rows.copy()
    rows[::7, 2] = np.nan
    weights = np.array([1.0, 0.5, 2.0])
    model = MarkovModel(np.full(3, 1 / 3), TRANSITION, Bernoulli(MEAN))
    results = [
        baum_welch.expect(observations, model, weights=weights)
        for observations in (
            as_patterns(rows, lengths),
            as_patterns(rows, lengths, compress=False),
            Observations(rows, lengths),
        )
    ]
    for statistics, sums in results[1:]:
        for one, other in zip(statistics[:3], results[0][0][:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(statistics.occupancy.sum(0), results[0][0].occupancy.sum(0), rtol=1e-9)
        for one, other in zip(sums[:2], results[0][1][:2], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)
    each = baum_welch.log_likelihoods(as_patterns(rows, lengths), model)
    assert float(each @ weights) == pytest.approx(results[0][0].log_likelihood, rel=1e-12)


def test_training_finds_the_planted_model_and_never_falls(planted):
    _, rows, lengths = planted
    observations = as_patterns(rows, lengths)
    start = partition_start(sample_bins(observations), 3, "bernoulli", "information", np.random.default_rng(0))
    result = baum_welch.fit(observations, start, max_steps=300, tolerance=1e-5)
    assert result.converged
    assert (np.diff(result.history) > -1e-6).all()
    best = baum_welch.fit(observations, truth(), max_steps=300, tolerance=1e-5)
    assert result.objective == pytest.approx(best.objective, abs=1e-2)
    order = np.argmin(np.abs(MEAN[:, None] - result.parameters.emission.mean[None]).sum(2), 1)
    found = result.parameters.select(order)
    np.testing.assert_allclose(found.emission.mean, MEAN, atol=0.04)
    np.testing.assert_allclose(found.transition, TRANSITION, atol=0.02)


@pytest.mark.parametrize("accelerate", [True, False])
def test_exact_zeros_stay_zero(planted, accelerate):
    _, rows, lengths = planted
    transition = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    start = MarkovModel(np.array([0.5, 0.5, 0.0]), transition, Bernoulli(MEAN))
    found = baum_welch.fit(as_patterns(rows, lengths), start, max_steps=40, accelerate=accelerate).parameters
    np.testing.assert_array_equal(found.transition == 0, transition == 0)
    assert found.initial[2] == 0
    np.testing.assert_allclose(found.transition.sum(1), 1.0)


def test_a_state_that_dies_does_no_harm(planted):
    _, rows, lengths = planted
    mean = np.concatenate([MEAN, [[1.0, 1.0, 1.0, 1.0]]])
    mean[:, 3] = np.where(mean[:, 3] == 1.0, 0.0, mean[:, 3])  # a combination of certainties that never occurs
    mean[3] = [1.0, 1.0, 0.0, 1.0]
    transition = np.full((4, 4), 0.02) + 0.92 * np.eye(4)
    rows = rows[~((rows == mean[3]).all(1))]
    result = baum_welch.fit(
        as_patterns(rows, [len(rows)]), MarkovModel(np.full(4, 0.25), transition, Bernoulli(mean)), max_steps=30
    )
    assert np.isfinite(result.objective)
    assert np.isfinite(result.parameters.to_vector()).all()
    np.testing.assert_allclose(result.parameters.transition.sum(1), 1.0)


def test_impossible_data_give_minus_infinity_not_nan(planted):
    _, rows, lengths = planted
    model = MarkovModel(np.array([1.0, 0.0]), np.eye(2), Bernoulli(np.array([[0.0] * 4, [0.5] * 4])))
    for observations in (as_patterns(rows, lengths), Observations(rows, lengths)):
        assert baum_welch.fit(observations, model).objective == -np.inf
        assert (baum_welch.log_likelihoods(observations, model) == -np.inf).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_partitions_are_models_of_as_many_states_also_beyond_the_patterns(planted, criterion):
    _, rows, lengths = planted
    for columns, states in ((4, 5), (1, 6)):
        sample = sample_bins(as_patterns(rows[:, :columns], lengths))
        model = partition_start(sample, states, "bernoulli", criterion, np.random.default_rng(0))
        assert model.emission.mean.shape == (states, columns)
        np.testing.assert_allclose(model.transition.sum(1), 1.0)
        np.testing.assert_allclose(model.initial.sum(), 1.0)
        assert (model.transition > 0).all()
        assert len(np.unique(model.emission.mean.round(9), axis=0)) == states


def test_the_first_question_separates_what_the_criterion_says(planted):
    rng = np.random.default_rng(1)
    # Mark 0 comes in long runs, mark 1 is present in half of all bins by chance.
    runs = np.repeat(rng.integers(0, 2, 200), 50)
    rows = np.stack([runs, rng.integers(0, 2, 10_000)], 1).astype(float)
    sample = sample_bins(as_patterns(rows, [10_000]))
    informed = partition_start(sample, 2, "bernoulli", "information", rng)
    assert np.ptp(informed.emission.mean[:, 0]) > 0.9
    assert np.ptp(informed.emission.mean[:, 1]) < 0.1


def test_random_starts_differ_by_seed_alone(planted):
    _, rows, lengths = planted
    sample = sample_bins(as_patterns(rows, lengths))
    one, same, other = (
        random_start(sample, 5, "bernoulli", np.random.default_rng(seed)).emission.mean for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_moves_leave_a_poor_optimum(planted):
    _, rows, lengths = planted
    observations = as_patterns(rows, lengths)
    # Two states share the background, one holds both kinds of marked bins: EM cannot leave that.
    mean = np.array([MEAN[0], MEAN[0] * 1.02, (MEAN[1] + MEAN[2]) / 2])
    transition = np.array([[0.5, 0.45, 0.05], [0.45, 0.5, 0.05], [0.05, 0.05, 0.9]])
    poor = baum_welch.fit(
        observations, MarkovModel(np.full(3, 1 / 3), transition, Bernoulli(mean)), max_steps=40, tolerance=1.0
    )
    best = baum_welch.fit(observations, truth(), max_steps=300, tolerance=1e-4).objective
    assert poor.objective < best - 100
    result = split_merge(
        observations,
        poor.parameters,
        poor.objective,
        sample_bins(observations),
        budget=400,
        rng=np.random.default_rng(0),
        tolerance=0.1,
    )
    assert result.log_likelihood > best - 1.0
    assert result.kept >= 1
    again, _ = baum_welch.expect(observations, result.model)
    assert again.log_likelihood == pytest.approx(result.log_likelihood, rel=1e-9)


@pytest.mark.parametrize("family", ["negative_binomial", "gaussian"])
def test_counts_and_signal_are_recovered(family):
    rng = np.random.default_rng(2)
    path = walk(TRANSITION, 9000, rng)
    mean = np.array([[1.0, 0.5], [12.0, 2.0], [3.0, 20.0]])
    if family == "gaussian":
        rows = mean[path] + rng.normal(size=(9000, 2))
        model = Gaussian(mean * 1.3, np.ones((3, 2)) * 4.0, np.full(2, 1e-3))
    else:
        rows = rng.poisson(rng.gamma(2.0, mean[path] / 2.0)).astype(float)
        model = NegativeBinomial(mean * 1.3, np.ones((3, 2)))
    start = MarkovModel(np.full(3, 1 / 3), 0.1 / 3 + 0.9 * np.eye(3), model)
    found = baum_welch.fit(Observations(rows, [9000]), start, max_steps=200, tolerance=1e-4).parameters
    np.testing.assert_allclose(found.emission.mean, mean, rtol=0.1, atol=0.05)
    extra = next(iter(found.emission.parameters.values()))
    np.testing.assert_allclose(extra, 1.0 if family == "gaussian" else 0.5, rtol=0.35)
    np.testing.assert_allclose(found.transition, TRANSITION, atol=0.03)
