"""Forward-backward and Viterbi of every engine, held to the enumeration of all paths."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program

from diffbio_sc.numerics.chains import hmm, scan, two_state
from diffbio_sc.numerics.chains.compressed import CompressedChains, compress
from diffbio_sc.numerics.chains.patterns import PatternKeys

posterior_of, log_likelihood_of, path_of = map(one_program, (hmm.posterior, hmm.log_likelihood, hmm.viterbi))


def chain(states, rng, sparse=False):
    initial, transition = rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states)
    if sparse:  # exact zeros
        transition[0, -1] = 0.0
        transition /= transition.sum(1, keepdims=True)
        initial[-1] = 0.0
        initial /= initial.sum()
    return initial, transition


def enumerate_paths(initial, transition, rows, starts=()):
    """Log-probability of every path, the slow way."""
    length, states = rows.shape
    paths = list(itertools.product(range(states), repeat=length))
    scores = []
    with np.errstate(divide="ignore"):
        log_initial, log_transition = np.log(initial), np.log(transition)
    for path in paths:
        score = 0.0
        for t, state in enumerate(path):
            begins = t == 0 or t in starts
            score += log_initial[state] if begins else log_transition[path[t - 1], state]
            score += rows[t, state]
        scores.append(score)
    return np.array(paths), np.array(scores)


def enumerated_posterior(initial, transition, rows, starts=(), temperature=1.0):
    paths, scores = enumerate_paths(initial, transition, rows, starts)
    weight = np.exp((scores - scores.max()) / temperature)
    weight /= weight.sum()
    states = len(initial)
    probability = np.stack([(weight[:, None] * (paths == k)).sum(0) for k in range(states)], 1)
    transitions = np.zeros((states, states))
    for t in range(1, rows.shape[0]):
        if t not in starts:
            np.add.at(transitions, (paths[:, t - 1], paths[:, t]), weight)
    total = scores.max() / temperature + np.log(np.exp((scores - scores.max()) / temperature).sum())
    return total, probability, transitions


def stream(initial, transition, rows, posterior, block=None):
    """Forward-backward in blocks, the posterior written into an array."""

    def visit(start, stop, part):
        posterior[start:stop] = part

    return scan.forward_backward(initial, transition, lambda a, b: rows[a:b], len(rows), visit, block=block)


def log(values):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(values), jnp.float32)


# --- the whole posterior


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("states", [1, 2, 3])
def test_every_engine_gives_the_enumerated_posterior(states, sparse):
    rng = np.random.default_rng(states)
    if sparse and states == 1:
        pytest.skip("one state has no zeros")
    initial, transition = chain(states, rng, sparse)
    table = rng.normal(size=(3, states)) * 2
    index = np.array([0, 1, 1, 2, 0, 1, 1])
    rows = table[index]
    total, probability, transitions = enumerated_posterior(initial, transition, rows)

    found = posterior_of(log(initial), log(transition), jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, probability, atol=1e-5)
    np.testing.assert_allclose(found.transitions, transitions, atol=1e-5)
    np.testing.assert_allclose(found.initial, probability[0], atol=1e-5)

    for block in (1, 2, 3, 100):
        streamed = np.full(probability.shape, np.nan)
        result = stream(initial, transition, rows, streamed, block=block)
        assert result.log_likelihood == pytest.approx(total, rel=1e-12)
        np.testing.assert_allclose(streamed, probability, atol=1e-12)
        np.testing.assert_allclose(result.transitions, transitions, atol=1e-12)
        np.testing.assert_allclose(result.initial, probability[0], atol=1e-12)

    # Merged tokens from one pair up to more than there are.
    for most in (3, 4, 40):
        chains = CompressedChains([index], 3, most_tokens=most, fewest_uses=1)
        statistics = chains.expect(initial, transition, table)
        assert statistics.log_likelihood == pytest.approx(total, rel=1e-12)
        np.testing.assert_allclose(statistics.transitions, transitions, atol=1e-12)
        np.testing.assert_allclose(statistics.initial, probability[0], atol=1e-12)
        occupancy = np.stack([probability[index == p].sum(0) for p in range(3)])
        np.testing.assert_allclose(statistics.occupancy, occupancy, atol=1e-12)


def test_sequences_and_padding_lie_side_by_side():
    rng = np.random.default_rng(3)
    initial, transition = chain(3, rng)
    rows = rng.normal(size=(7, 3))
    starts = np.zeros(7, bool)
    starts[[0, 3, 4]] = True  # the second sequence has one position
    total, probability, transitions = enumerated_posterior(initial, transition, rows, starts=(3, 4))
    padded = np.concatenate([rows, rng.normal(size=(4, 3))])
    flags = np.concatenate([starts, np.zeros(4, bool)])
    valid = np.arange(11) < 7
    found = posterior_of(log(initial), log(transition), jnp.asarray(padded, jnp.float32), starts=flags, valid=valid)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities[:7], probability, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities[7:], 0.0)
    np.testing.assert_allclose(found.transitions, transitions, atol=1e-5)
    np.testing.assert_allclose(found.initial, probability[[0, 3, 4]].sum(0), atol=1e-5)
    values = log_likelihood_of(
        log(initial), log(transition), jnp.asarray(padded, jnp.float32), starts=flags, valid=valid
    )
    np.testing.assert_allclose(values, total, rtol=1e-5)


@pytest.mark.parametrize("stay", [0.5, 0.999, 1.0])
def test_chunks_are_exact_whether_the_chain_forgets_or_not(stay):
    rng = np.random.default_rng(4)
    transition = (1 - stay) / 2 * np.ones((3, 3)) + (stay - (1 - stay) / 2) * np.eye(3)
    # With stay = 1 nothing is ever forgotten: borders must travel through all chunks.
    initial = np.array([0.2, 0.3, 0.5])
    rows = 0.02 * rng.normal(size=(9000, 3))
    streamed = np.empty(rows.shape)
    result = stream(initial, transition, rows, streamed, block=777)
    found = posterior_of(log(initial), log(transition), jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found.probabilities, streamed, atol=1e-4 if stay == 1.0 else 2e-5)
    np.testing.assert_allclose(found.log_likelihood, result.log_likelihood, atol=0.02)
    np.testing.assert_allclose(found.transitions, result.transitions, rtol=1e-3, atol=0.05)


def test_long_sequences_keep_their_digits():
    # Closed form: independent bins (all rows of the transition equal) have a log-likelihood that is a sum.
    rng = np.random.default_rng(5)
    share = np.array([0.6, 0.3, 0.1])
    transition = np.tile(share, (3, 1))
    table = np.log(rng.dirichlet(np.ones(40), 3).T)  # 40 patterns
    index = rng.integers(40, size=300_000).astype(np.int32)
    exact = float(np.log(np.exp(table) @ share)[index].sum())
    statistics = CompressedChains([index], 40).expect(share, transition, table)
    assert statistics.log_likelihood == pytest.approx(exact, rel=1e-11)
    posterior = np.exp(table) * share
    posterior /= posterior.sum(1, keepdims=True)
    np.testing.assert_allclose(statistics.occupancy, np.bincount(index)[:, None] * posterior, rtol=1e-8)
    found = posterior_of(log(share), log(transition), jnp.asarray(table, jnp.float32)[index])
    np.testing.assert_allclose(found.probabilities[:1000], posterior[index[:1000]], atol=1e-5)
    assert abs(float(found.log_likelihood) - exact) < 0.5  # float32 holds a million to a sixteenth


def test_impossible_sequences_are_minus_infinity_and_never_nan():
    initial, transition = np.array([1.0, 0.0]), np.eye(2)
    table = np.array([[0.0, -1.0], [-np.inf, 0.0]])  # pattern 1 cannot come from state 0, the only one there is
    index = np.array([0, 0, 1, 0])
    chains = CompressedChains([index, index[:2]], 2)
    values = chains.expect(initial, transition, table, statistics=False)
    assert values[0] == -np.inf
    assert values[1] == pytest.approx(0.0)
    result = scan.forward_backward(initial, transition, lambda start, stop: table[index[start:stop]], 4)
    assert result.log_likelihood == -np.inf
    np.testing.assert_array_equal(result.transitions, 0.0)
    found = log_likelihood_of(log(initial), log(transition), jnp.asarray(table[index], jnp.float32))
    assert float(found) == -np.inf
    assert scan.viterbi(initial, transition, lambda start, stop: table[index[start:stop]], 4)[1] == -np.inf


def test_weights_count_a_sequence_as_often():
    rng = np.random.default_rng(6)
    initial, transition = chain(3, rng)
    table = rng.normal(size=(4, 3))
    sequences = [rng.integers(4, size=size) for size in (50, 30, 40)]
    weighted = CompressedChains(sequences, 4, fewest_uses=2).expect(
        initial, transition, table, weights=np.array([2.0, 0.0, 1.0])
    )
    repeated = CompressedChains([sequences[0], sequences[0], sequences[2]], 4, fewest_uses=2).expect(
        initial, transition, table
    )
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


# --- two states


def test_two_states_are_the_chain_of_the_peak_caller():
    rng = np.random.default_rng(7)
    log_odds = jnp.asarray(rng.normal(size=400) * 2 - 0.5, jnp.float32)
    enter, leave = 2.0, 1.5
    # Scores of changes of state, not probabilities: rows of the transition need not sum to 1.
    transition = jnp.array([[0.0, -enter], [-leave, 0.0]])
    initial = jnp.array([0.0, -enter])
    rows = jnp.stack([jnp.zeros(400), log_odds], 1)
    logits = two_state.switch_posterior(log_odds, enter, leave).logits
    found = posterior_of(initial, transition, rows)
    np.testing.assert_allclose(found.probabilities[:, 1], jax.nn.sigmoid(logits), atol=1e-5)
    path = path_of(initial, transition, rows).states
    margins = two_state.margins(log_odds, enter, leave)
    np.testing.assert_array_equal(np.asarray(path) == 1, np.asarray(margins) > 0)
    cold = posterior_of(initial, transition, rows, temperature=0.5)
    expected = jax.nn.sigmoid(two_state.switch_posterior(log_odds, enter, leave, 0.5).logits)
    np.testing.assert_allclose(cold.probabilities[:, 1], expected, atol=1e-5)


# --- paths


@pytest.mark.parametrize("seed", range(6))
def test_viterbi_is_the_best_of_all_paths_with_ties_and_gaps(seed):
    rng = np.random.default_rng(seed)
    states = 2 + seed % 3
    initial, transition = chain(states, rng, sparse=seed % 2 == 1)
    # Whole numbers make ties of observations, equal rows of the transition ties of paths; a row of zeros is a bin of
    # which nothing is known.
    rows = rng.integers(-2, 2, size=(7, states)).astype(float)
    rows[3] = 0.0
    if seed == 2:
        initial, transition = np.full(states, 1 / states), np.full((states, states), 1 / states)
    starts = (4,) if seed > 2 else ()
    paths, scores = enumerate_paths(initial, transition, rows, starts)
    flags = np.zeros(7, bool)
    flags[list(starts)] = True
    found = path_of(log(initial), log(transition), jnp.asarray(rows, jnp.float32), starts=flags)
    best = scores.max()
    assert float(found.log_probability) == pytest.approx(best, rel=1e-5)
    own = scores[(paths == np.asarray(found.states)).all(1)][0]
    assert own == pytest.approx(best, rel=1e-5)
    if starts:
        return
    for block in (2, 100):
        path, value = scan.viterbi(initial, transition, lambda start, stop: rows[start:stop], 7, block=block)
        assert value == pytest.approx(best, rel=1e-12)
        assert scores[(paths == path).all(1)][0] == pytest.approx(best, rel=1e-12)


def test_ties_go_to_the_lower_state():
    flat = np.full((3, 3), 1 / 3)
    path, _ = scan.viterbi(np.full(3, 1 / 3), flat, lambda start, stop: np.zeros((stop - start, 3)), 5)
    np.testing.assert_array_equal(path, 0)
    np.testing.assert_array_equal(path_of(log(np.full(3, 1 / 3)), log(flat), jnp.zeros((5, 3))).states, 0)


# --- temperature


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tempered_paths_are_those_of_the_raised_probabilities(temperature):
    rng = np.random.default_rng(8)
    initial, transition = chain(3, rng, sparse=True)
    rows = rng.normal(size=(6, 3)) * 3
    total, probability, transitions = enumerated_posterior(initial, transition, rows, temperature=temperature)
    found = posterior_of(log(initial), log(transition), jnp.asarray(rows, jnp.float32), temperature=temperature)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-4)
    np.testing.assert_allclose(found.probabilities, probability, atol=2e-5)
    np.testing.assert_allclose(found.transitions, transitions, atol=5e-5)


def test_a_cold_posterior_is_the_viterbi_path():
    rng = np.random.default_rng(9)
    initial, transition = chain(4, rng)
    rows = jnp.asarray(rng.normal(size=(300, 4)), jnp.float32)
    path = path_of(log(initial), log(transition), rows).states
    found = posterior_of(log(initial), log(transition), rows, temperature=1e-3)
    assert float(found.probabilities[jnp.arange(300), path].min()) > 0.999


# --- gradients


def test_the_gradient_is_the_expected_statistics_and_agrees_with_finite_differences():
    rng = np.random.default_rng(10)
    initial, transition = chain(3, rng)
    rows = rng.normal(size=(2600, 3))  # three chunks
    starts = np.zeros(2600, bool)
    starts[1500] = True
    arguments = (np.log(initial), np.log(transition), rows)

    def value(*inputs):  # float64, streamed
        parts = [(0, 1500), (1500, 2600)]
        return sum(
            scan.log_likelihood(
                np.exp(inputs[0]),
                np.exp(inputs[1]),
                lambda a, b, first=first: inputs[2][first + a : first + b],
                last - first,
            )
            for first, last in parts
        )

    def function(*inputs):
        return log_likelihood_of(*inputs, starts=starts)

    gradient = jax.jit(jax.grad(function, (0, 1, 2)))(*(jnp.asarray(part, jnp.float32) for part in arguments))
    found = posterior_of(*(jnp.asarray(part, jnp.float32) for part in arguments), starts=starts)
    for one, other in zip(gradient, (found.initial, found.transitions, found.probabilities), strict=True):
        np.testing.assert_array_equal(one, other)
    for place, where in ((0, (1,)), (1, (0, 2)), (1, (2, 2)), (2, (1499, 1)), (2, (1500, 0)), (2, (2599, 2))):
        shifted = [[part.copy() for part in arguments] for _ in range(2)]
        shifted[0][place][where] += 1e-4
        shifted[1][place][where] -= 1e-4
        difference = (value(*shifted[0]) - value(*shifted[1])) / 2e-4
        assert float(gradient[place][where]) == pytest.approx(difference, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("length", "temperature"), [(40, 1.0), (2600, 1.0), (40, 0.5)])
def test_posteriors_have_gradients(length, temperature):
    rng = np.random.default_rng(11)
    initial, transition = chain(3, rng)
    rows = rng.normal(size=(length, 3))
    weight = rng.normal(size=(length, 3))
    inputs = [jnp.asarray(part, jnp.float32) for part in (np.log(initial), np.log(transition), rows)]

    def function(*inputs):
        found = posterior_of(*inputs, temperature=temperature)
        return (found.probabilities * weight).sum() + found.transitions[0, 1] + 0.5 * found.initial[2]

    def exact(initial, transition, rows):  # float64, through the streamed engine
        probability = np.empty(rows.shape)
        result = stream(
            np.exp(initial / temperature), np.exp(transition / temperature), rows / temperature, probability
        )
        return (probability * weight).sum() + result.transitions[0, 1] + 0.5 * result.initial[2]

    gradient = jax.jit(jax.grad(function, (0, 1, 2)))(*inputs)
    plain = [np.log(initial), np.log(transition), rows]
    for place, where in ((0, (0,)), (1, (1, 0)), (1, (2, 2)), (2, (0, 1)), (2, (20, 2)), (2, (length - 1, 0))):
        ends = []
        for sign in (1, -1):
            moved = [part.copy() for part in plain]
            moved[place][where] += sign * 1e-5
            ends.append(exact(*moved))
        assert float(gradient[place][where]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-3, abs=2e-4)


def test_gradients_of_impossible_transitions_are_numbers():
    transition = jnp.log(jnp.array([[0.5, 0.5], [0.0, 1.0]]))
    rows = jnp.asarray(np.random.default_rng(12).normal(size=(30, 2)), jnp.float32)

    def function(rows):
        return posterior_of(jnp.log(jnp.array([1.0, 0.0])), transition, rows).probabilities[:, 1].sum()

    assert np.isfinite(np.asarray(jax.jit(jax.grad(function))(rows))).all()


# --- compression


def test_compression_loses_nothing():
    rng = np.random.default_rng(13)
    sequences = [np.repeat(rng.integers(5, size=200), rng.integers(1, 30, size=200)) for _ in range(3)]
    sequences.append(np.zeros(0, np.int64))
    tokens = compress(sequences, 5, fewest_uses=4)
    assert tokens.n_tokens < sum(map(len, sequences)) / 5

    def expand(token):
        if token < 5:
            return [token]
        left, right = tokens.pairs[token - 5]
        return expand(left) + expand(right)

    for sequence, found in zip(sequences, tokens.sequences, strict=True):
        np.testing.assert_array_equal([p for token in found for p in expand(token)], sequence)


def test_patterns_are_told_apart_with_missing_values():
    rng = np.random.default_rng(14)
    rows = rng.integers(0, 4, size=(500, 3)).astype(float)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    keys = PatternKeys(500, [3, 3, 3])
    for column in rows.T:
        keys.add(column)
    distinct, index = keys.distinct(500)
    np.testing.assert_array_equal(distinct[index], rows)
    assert len(distinct) == len(np.unique(np.nan_to_num(rows, nan=-1), axis=0))
    assert keys.distinct(10) is None
    assert not PatternKeys(1, [2**31] * 3).fits
