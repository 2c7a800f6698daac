"""Fits of whole data: order of states, errors, part of the data for the search, decoding, models in and out."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.engines import chromatin_states as engine
from diffbio_sc.numerics.chains import baum_welch
from diffbio_sc.numerics.chains.baum_welch import MarkovModel, Observations
from diffbio_sc.numerics.chains.emissions import Bernoulli

TRANSITION = np.array([[0.95, 0.03, 0.02], [0.06, 0.9, 0.04], [0.1, 0.05, 0.85]])
MEAN = np.array([[0.02, 0.05, 0.02, 0.03], [0.7, 0.1, 0.05, 0.6], [0.2, 0.8, 0.7, 0.05]])


def draw(seed, lengths):
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(TRANSITION, 1)
    path = []
    for length in lengths:
        state = 0
        for u in rng.random(length):
            path.append(state)
            state = min(int(np.searchsorted(bounds[state], u)), 2)
    rows = (rng.random((len(path), 4)) < MEAN[path]).astype(float)
    distinct, index = np.unique(rows, axis=0, return_inverse=True)
    return Observations(distinct, lengths, index=index.ravel().astype(np.int32))


def truth():
    return MarkovModel(np.array([1.0, 1e-3, 1e-3]) / 1.002, TRANSITION, Bernoulli(MEAN))


def test_the_order_of_states_does_not_depend_on_the_order_they_came_in():
    rng = np.random.default_rng(0)
    mean = rng.random((7, 4))
    model = MarkovModel(rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7), 7), Bernoulli(mean))
    first = engine.order_states(model)
    for seed in range(5):
        shuffled = model.select(np.random.default_rng(seed).permutation(7))
        again = engine.order_states(shuffled)
        np.testing.assert_array_equal(again.emission.mean, first.emission.mean)
        np.testing.assert_array_equal(again.transition, first.transition)
    assert sorted(map(tuple, first.emission.mean)) == sorted(map(tuple, mean))


def test_errors_of_one_state_are_those_of_a_mean_over_clusters():
    rng = np.random.default_rng(1)
    lengths = rng.integers(50, 150, 40)
    rates = rng.beta(2, 8, 40)  # each sequence has its own
    rows = np.concatenate([rng.random((n, 1)) < rate for n, rate in zip(lengths, rates, strict=True)]).astype(float)
    model = MarkovModel(np.ones(1), np.ones((1, 1)), Bernoulli(np.array([[rows.mean()]])))
    observations = Observations(np.array([[0.0], [1.0]]), lengths, index=rows.astype(np.int32).ravel())
    found = engine.standard_errors(observations, model, n_resamples=400, steps=3)["emission"][0, 0]
    ends = np.cumsum(lengths)
    sums = np.array([rows[end - n : end].sum() for end, n in zip(ends, lengths, strict=True)])
    exact = np.sqrt(((sums - lengths * rows.mean()) ** 2).sum()) / lengths.sum()
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.slow
def test_errors_are_the_spread_over_independent_sets():
    sets, stated = [], []
    for seed in range(30):
        observations = draw([2, seed], [800] * 20)
        model = baum_welch.fit(observations, truth(), max_steps=200, tolerance=1e-4).parameters
        sets.append(np.concatenate([model.emission.mean.ravel(), model.transition.ravel()]))
        if seed < 4:
            errors = engine.standard_errors(observations, model, rng=seed)
            stated.append(np.concatenate([errors["emission"].ravel(), errors["transition"].ravel()]))
    spread, said = np.std(sets, 0, ddof=1), np.mean(stated, 0)
    assert np.median(said / spread) == pytest.approx(1.0, abs=0.25)
    assert ((said / spread > 0.4) & (said / spread < 2.5)).all()


def test_a_search_on_part_of_the_data_ends_in_a_fit_of_all(monkeypatch):
    observations = draw(3, [1500] * 8)
    whole = engine.fit_states(observations, 3, effort="fast")
    monkeypatch.setattr(engine, "_SEARCH_POSITIONS", 3000)
    part = engine.fit_states(observations, 3, effort="fast")
    assert part.log_likelihood == pytest.approx(whole.log_likelihood, abs=0.05)
    np.testing.assert_allclose(part.model.emission.mean, whole.model.emission.mean, atol=1e-3)


def test_a_fit_is_at_least_as_likely_as_the_truth_and_training_goes_on_in_order():
    observations = draw(4, [3000] * 3)
    fitted = engine.fit_states(observations, 3, rng=1)
    best = baum_welch.fit(observations, truth(), max_steps=300, tolerance=1e-4)
    assert fitted.log_likelihood == pytest.approx(best.objective, abs=0.05)
    again = engine.fit_states(observations, 3, start=truth())
    np.testing.assert_allclose(again.model.emission.mean, MEAN, atol=0.05)  # states stay where they were
    assert again.starts == {}


def test_decoding_is_the_same_with_and_without_patterns_and_for_the_top_states():
    observations = draw(5, [400, 1, 300])
    rows = observations.distinct[observations.index]
    one, other = engine.decode(observations, truth()), engine.decode(Observations(rows, [400, 1, 300]), truth())
    for left, right in zip(one, other, strict=True):
        if left is not None:
            np.testing.assert_allclose(left, right, atol=1e-6)
    top = engine.decode(observations, truth(), top=2)
    assert top.posterior is None
    np.testing.assert_array_equal(top.top[:, 0], one.state)
    np.testing.assert_array_equal(top.top_probability[:, 0], one.posterior.max(1))


def test_models_go_out_and_come_back():
    model = truth()
    stored = engine.to_state_model(model, ["a", "b", "c", "d"], log_likelihood=-1.0)
    back = engine.from_state_model(stored)
    np.testing.assert_allclose(back.transition, model.transition)
    fewer = engine.from_state_model(stored, ["d", "b"])
    np.testing.assert_array_equal(fewer.emission.mean, MEAN[:, [3, 1]])


def test_what_training_never_saw_is_unlikely_elsewhere_not_impossible():
    observations = draw(6, [200] * 6)
    found = engine.held_out(observations, [2, 3], folds=2)
    assert np.isfinite(found.log_likelihood).all()
    assert found.difference[found.n_states == found.best][0] == 0.0
    with pytest.raises(ValueError, match="3 folds need at least as many sequences"):
        engine.held_out(draw(7, [30]), [2], folds=3)
