from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffbio_sc.numerics.chains import two_state, two_state_host

ENTER, LEAVE = 1.5, 2.5


class Enumeration:
    """All paths of a short sequence, their scores and probabilities."""

    def __init__(self, log_odds, temperature=1.0, *, initial=ENTER, begins=()):
        length = len(log_odds)
        self.paths = np.array(list(itertools.product([0, 1], repeat=length)))
        before = np.pad(self.paths, ((0, 0), (1, 0)))[:, :-1]
        cost = ENTER * ((self.paths == 1) & (before == 0)) + LEAVE * ((self.paths == 0) & (before == 1))
        for position in (0, *begins):
            cost[:, position] = initial * self.paths[:, position]
        self.score = self.paths @ log_odds - cost.sum(1)
        weight = np.exp((self.score - self.score.max()) / temperature)
        self.probability = weight / weight.sum()
        first, last = np.isin(np.arange(length), (0, *begins)), np.zeros(length, bool)
        last[[position - 1 for position in begins] + [length - 1]] = True
        after = np.pad(self.paths, ((0, 0), (0, 1)))[:, 1:]
        self.starts = (self.paths == 1) & ((before == 0) | first)
        self.ends = (self.paths == 1) & ((after == 0) | last)

    def margin(self):
        best = [[self.score[self.paths[:, t] == state].max() for t in range(self.paths.shape[1])] for state in (0, 1)]
        return np.array(best[1]) - np.array(best[0])


def viterbi(log_odds, enter, leave):
    """Best path by a table of back pointers, in float64."""
    length = len(log_odds)
    score = np.array([0.0, -enter + log_odds[0]])
    pointers = np.zeros((length, 2), int)
    for t in range(1, length):
        to_outside = [score[0], score[1] - leave]
        to_inside = [score[0] - enter, score[1]]
        pointers[t] = np.argmax(to_outside), np.argmax(to_inside)
        score = np.array([max(to_outside), max(to_inside) + log_odds[t]])
    path = np.zeros(length, int)
    path[-1] = np.argmax(score)
    for t in range(length - 1, 0, -1):
        path[t - 1] = pointers[t, path[t]]
    return path


@pytest.fixture(scope="module")
def log_odds():
    return np.random.default_rng(0).normal(0, 3, 9)


def test_margins_are_max_marginals_of_all_paths(log_odds):
    expected = Enumeration(log_odds).margin()
    np.testing.assert_allclose(two_state.margins(jnp.float32(log_odds), ENTER, LEAVE), expected, atol=1e-5)
    np.testing.assert_allclose(two_state_host.chain_margins(log_odds, ENTER, LEAVE), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_posterior_and_switches_are_those_of_all_paths(log_odds, temperature):
    paths = Enumeration(log_odds, temperature)
    inside = paths.probability @ paths.paths
    start, end = paths.probability @ paths.starts, paths.probability @ paths.ends
    found = two_state.switch_posterior(jnp.float32(log_odds), ENTER, LEAVE, temperature)
    np.testing.assert_allclose(jax.nn.sigmoid(found.logits), inside, atol=2e-6)
    np.testing.assert_allclose(found.start, start, atol=2e-6)
    np.testing.assert_allclose(found.end, end, atol=2e-6)
    host = two_state_host.chain_posterior(log_odds, ENTER, LEAVE, temperature)
    np.testing.assert_allclose(host.inside, inside, atol=1e-6)
    np.testing.assert_allclose(host.start, start, atol=1e-6)
    np.testing.assert_allclose(host.end, end, atol=1e-6)
    assert float(found.start.sum()) == pytest.approx(float(found.end.sum()), abs=1e-5)
    # The posterior as a Markov chain: P(z_t = 1 | z_{t-1} = 0).
    outside = paths.probability @ (paths.paths == 0)
    rising = [paths.probability[(paths.paths[:, t - 1] == 0) & (paths.paths[:, t] == 1)].sum() for t in range(1, 9)]
    known = outside[:-1] > 1e-12
    expected = np.array(rising)[known] / outside[:-1][known]
    np.testing.assert_allclose(np.asarray(jax.nn.sigmoid(found.rise[1:]))[known], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("counts_ends", [False, True])
def test_region_probabilities_are_those_of_all_paths(log_odds, counts_ends):
    paths = Enumeration(log_odds)
    chain = two_state.switch_posterior(jnp.float32(log_odds)[None], ENTER, LEAVE)
    regions = np.array([(begin, stop) for begin in range(9) for stop in range(begin + 1, 10)])
    found = two_state.region_probability(
        chain,
        jnp.zeros(len(regions), int),
        jnp.asarray(regions[:, 0]),
        jnp.asarray(regions[:, 1] - regions[:, 0]),
        jnp.full(len(regions), counts_ends),
        9,
    )
    changes = paths.ends if counts_ends else paths.starts
    empty = [paths.probability @ (paths.paths[:, a:b].sum(1) == 0) for a, b in regions]
    one = [paths.probability @ (changes[:, a:b].sum(1) == 1) for a, b in regions]
    np.testing.assert_allclose(np.exp(found.empty), empty, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.one), one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("length", "enter", "leave"), [(1000, 4.0, 4.0), (50_000, 3.0, 9.0)])
def test_hard_path_equals_brute_force_viterbi_bin_for_bin(length, enter, leave):
    log_odds = np.random.default_rng(length).normal(-0.3, 2, length).astype(np.float32)
    path = viterbi(log_odds.astype(float), enter, leave)
    assert 20 < np.abs(np.diff(path)).sum() < length / 4
    np.testing.assert_array_equal(np.asarray(two_state.margins(log_odds, enter, leave)) > 0, path == 1)
    np.testing.assert_array_equal(two_state_host.chain_margins(log_odds, enter, leave) > 0, path == 1)


def test_engines_agree_on_long_sequences():
    log_odds = np.random.default_rng(5).normal(-0.3, 2, 20_011).astype(np.float32)
    hard = np.asarray(two_state.margins(log_odds, 3.0, 3.0))
    np.testing.assert_allclose(hard, two_state_host.chain_margins(log_odds, 3.0, 3.0), atol=1e-4)
    soft = two_state.switch_posterior(jnp.asarray(log_odds), 3.0, 3.0)
    host = two_state_host.chain_posterior(log_odds, 3.0, 3.0)
    np.testing.assert_allclose(soft.logits, host.logits, atol=1e-4)
    np.testing.assert_allclose(soft.start, host.start, atol=1e-5)
    np.testing.assert_allclose(soft.end, host.end, atol=1e-5)


def test_soft_becomes_hard_as_the_temperature_goes_to_zero():
    log_odds = np.random.default_rng(6).normal(0, 2, 2000).astype(np.float32)
    margin = np.asarray(two_state.margins(log_odds, 3.0, 3.0))
    clear = np.abs(margin) > 1e-2
    assert clear.mean() > 0.95
    for inside in (
        jax.nn.sigmoid(two_state.switch_posterior(log_odds, 3.0, 3.0, 1e-3).logits),
        two_state_host.chain_posterior(log_odds, 3.0, 3.0, 1e-3).inside,
    ):
        np.testing.assert_allclose(np.asarray(inside)[clear], margin[clear] > 0, atol=1e-3)


def test_batches_have_their_own_costs(log_odds):
    rows = jnp.float32(np.stack([log_odds, log_odds[::-1]]))
    enter, temperature = jnp.array([1.0, 4.0]), jnp.array([1.0, 0.5])
    found = two_state.switch_posterior(rows, enter, 2.0, temperature)
    for row in range(2):
        alone = two_state.switch_posterior(rows[row], enter[row], 2.0, temperature[row])
        np.testing.assert_allclose(found.logits[row], alone.logits, atol=1e-5)
        np.testing.assert_allclose(found.end[row], alone.end, atol=1e-6)


def test_one_position():
    found = two_state.switch_posterior(jnp.array([2.0]), 0.5, 9.0)
    assert float(found.logits[0]) == pytest.approx(1.5)
    assert float(found.start[0]) == pytest.approx(float(jax.nn.sigmoid(1.5)), abs=1e-6)
    assert float(two_state_host.chain_margins(np.array([2.0]), 0.5, 9.0)[0]) == pytest.approx(1.5)


def test_gradients_equal_finite_differences_of_the_host_twin():
    log_odds = np.random.default_rng(3).normal(0, 1.5, 50)
    weight = np.random.default_rng(4).normal(0, 1, 50)

    def objective(log_odds, enter, temperature):
        found = two_state.switch_posterior(log_odds, enter, 2.0, temperature)
        return weight @ jax.nn.sigmoid(found.logits) + weight @ found.start - weight @ found.end

    def host(log_odds, enter, temperature):
        found = two_state_host.chain_posterior(log_odds, enter, 2.0, temperature)
        return weight @ (found.inside.astype(float) + found.start - found.end)

    by_odds, by_enter, by_temperature = jax.grad(objective, (0, 1, 2))(jnp.float32(log_odds), 1.5, 0.8)
    step = 1e-2
    for t in (0, 13, 49):
        change = step * np.eye(50)[t]
        expected = (host(log_odds + change, 1.5, 0.8) - host(log_odds - change, 1.5, 0.8)) / (2 * step)
        assert float(by_odds[t]) == pytest.approx(expected, rel=1e-3, abs=2e-4)
    expected = (host(log_odds, 1.5 + step, 0.8) - host(log_odds, 1.5 - step, 0.8)) / (2 * step)
    assert float(by_enter) == pytest.approx(expected, rel=1e-3, abs=2e-4)
    expected = (host(log_odds, 1.5, 0.8 + step) - host(log_odds, 1.5, 0.8 - step)) / (2 * step)
    assert float(by_temperature) == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_gradients_are_finite_at_saturation():
    log_odds = jnp.concatenate([jnp.full(30, -1e3), jnp.full(30, 1e3), jnp.full(30, -1e3)])
    gradient = jax.grad(lambda x: two_state.switch_posterior(x, 3.0, 3.0, 1e-2).logits.sum())(log_odds)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient) > 0).any()


def test_temperature_zero_is_refused_by_the_host_posterior():
    with pytest.raises(ValueError, match="chain_margins is its limit"):
        two_state_host.chain_posterior(np.zeros(3), 1.0, 1.0, 0.0)
