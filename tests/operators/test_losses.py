"""Losses of training recipes: each against its closed form and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads
from one_program import one_program
from scipy.special import expit

from diffbio_sc.operators import losses

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(0, 2, (6, 5)), jnp.float32)
COUNTS = jnp.asarray(RNG.poisson(3.0, (6, 5)), jnp.float32)
MEAN = jnp.asarray(RNG.gamma(2.0, 1.5, (6, 5)), jnp.float32)


def differentiates(function, *arguments):
    check_grads(jax.jit(function), arguments, order=1, modes=["rev"], atol=2e-3, rtol=2e-3, eps=1e-2)


def test_entropy_is_that_of_scipy_and_finite_at_a_probability_of_zero():
    probabilities = jax.nn.softmax(LOGITS)
    expected = scipy.stats.entropy(np.asarray(probabilities, np.float64), axis=1).mean()
    np.testing.assert_allclose(losses.entropy(probabilities), expected, rtol=1e-6)
    differentiates(lambda logits: losses.entropy(jax.nn.softmax(logits)), LOGITS)
    certain = jnp.array([[1.0, 0.0, 0.0]])
    assert losses.entropy(certain) == 0
    np.testing.assert_array_equal(jax.grad(losses.entropy)(certain), [[-1.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.entropy(jnp.full((3, 8), 0.125)), np.log(8), rtol=1e-6)


def test_a_positive_weight_of_the_entropy_makes_proportions_sparse():
    """The recipe's sign: descending a loss plus entropy moves toward one type a spot."""
    logits = jnp.array([[0.3, 0.1, 0.0]])
    step = jax.grad(lambda z: losses.entropy(jax.nn.softmax(z)))(logits)
    assert jax.nn.softmax(logits - step)[0, 0] > jax.nn.softmax(logits)[0, 0]


def test_binary_cross_entropy_is_the_closed_form_with_unknown_targets_left_out():
    targets = np.asarray(RNG.integers(0, 2, (6, 5)), np.float32)
    targets[0, 0] = np.nan
    counted = RNG.random((6, 5)) < 0.7
    p = expit(np.asarray(LOGITS, np.float64))
    terms = -(targets * np.log(p) + (1 - targets) * np.log1p(-p))
    np.testing.assert_allclose(losses.binary_cross_entropy(LOGITS, targets), np.nanmean(terms), rtol=1e-6)
    found = losses.binary_cross_entropy(LOGITS, targets, counted)
    np.testing.assert_allclose(found, terms[counted & ~np.isnan(targets)].mean(), rtol=1e-6)
    differentiates(lambda z: losses.binary_cross_entropy(z, targets, counted), LOGITS)
    assert losses.binary_cross_entropy(LOGITS, targets, jnp.zeros((6, 5), bool)) == 0


def test_binary_cross_entropy_stays_exact_and_trainable_where_probabilities_saturate():
    far = jnp.array([200.0, -200.0])
    np.testing.assert_allclose(losses.binary_cross_entropy(far, jnp.array([0.0, 1.0])), 200.0, rtol=1e-6)
    gradient = jax.grad(losses.binary_cross_entropy)(far, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(gradient, [0.5, -0.5], rtol=1e-6)


def test_reconstruction_losses_are_their_closed_forms():
    y, m = np.asarray(COUNTS, np.float64), np.asarray(MEAN, np.float64)
    counted = RNG.random((6, 5)) < 0.6
    np.testing.assert_allclose(losses.squared_error(MEAN, COUNTS), ((m - y) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(losses.squared_error(MEAN, COUNTS, counted), ((m - y) ** 2)[counted].mean(), rtol=1e-5)
    poisson = 2 * (scipy.stats.poisson.logpmf(y, np.maximum(y, 1e-300)) - scipy.stats.poisson.logpmf(y, m))
    np.testing.assert_allclose(losses.poisson_deviance(COUNTS, MEAN), poisson, rtol=1e-4, atol=1e-5)
    size = 1 / 0.3
    saturated, fitted = (scipy.stats.nbinom.logpmf(y, size, size / (size + np.maximum(mean, 1e-12))) for mean in (y, m))
    negative_binomial = losses.negative_binomial_deviance(COUNTS, MEAN, jnp.float32(0.3))
    np.testing.assert_allclose(negative_binomial, 2 * (saturated - fitted), rtol=1e-3, atol=1e-4)
    differentiates(lambda mean: losses.squared_error(mean, COUNTS, counted), MEAN)
    differentiates(lambda mean: losses.poisson_deviance(COUNTS, mean).mean(), MEAN)
    differentiates(lambda mean: losses.negative_binomial_deviance(COUNTS, mean, jnp.float32(0.3)).mean(), MEAN)
    hole = jnp.asarray(COUNTS).at[0, 0].set(jnp.nan)
    gradient = jax.grad(losses.squared_error)(MEAN, hole, ~jnp.isnan(hole))
    assert np.isfinite(gradient).all()
    assert gradient[0, 0] == 0


def test_chromatin_guidance_is_the_brute_force_mean_over_pairs():
    embeddings = jnp.asarray(RNG.normal(size=(2, 6, 3)), jnp.float32)
    contacts = RNG.random((2, 6, 6)).astype(np.float32)
    contacts = (contacts + contacts.swapaxes(1, 2)) / 2
    mask = np.ones((2, 6), bool)
    mask[0, 4:] = False
    guidance = one_program(losses.chromatin_guidance)
    h = np.asarray(embeddings, np.float64)
    terms = []
    for b in range(2):
        for i in range(6):
            for j in range(6):
                if i != j and mask[b, i] and mask[b, j]:
                    cosine = h[b, i] @ h[b, j] / np.linalg.norm(h[b, i]) / np.linalg.norm(h[b, j])
                    terms.append(((1 + cosine) / 2 - contacts[b, i, j]) ** 2)
    np.testing.assert_allclose(guidance(embeddings, contacts, mask), np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(guidance(embeddings[1], contacts[1]), guidance(embeddings[1:], contacts[1:]))
    differentiates(lambda tokens: losses.chromatin_guidance(tokens, contacts, mask), embeddings)


def imbalance(log_weights, values, norms, initial, alpha):
    """GradNorm's second loss, with its targets held at the weights given."""
    weights = len(values) * np.exp(log_weights) / np.exp(log_weights).sum()
    rate = values / initial
    return weights * norms, (weights * norms).mean() * (rate / rate.mean()) ** alpha


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_balanced_loss_is_the_weighted_sum_and_its_weights_descend_the_imbalance(alpha):
    values, norms, initial = np.array([2.0, 0.5, 1.0]), np.array([4.0, 0.2, 1.0]), np.array([4.0, 0.6, 1.0])
    log_weights = np.array([0.2, -0.1, 0.0])

    @jax.jit
    def total(losses_now, log_weights):
        return losses.balanced_loss(
            losses_now, jnp.asarray(norms, jnp.float32), log_weights, initial_losses=jnp.asarray(initial), alpha=alpha
        )

    weights = 3 * np.exp(log_weights) / np.exp(log_weights).sum()
    arguments = jnp.asarray(values, jnp.float32), jnp.asarray(log_weights, jnp.float32)
    np.testing.assert_allclose(total(*arguments), (weights * values).sum(), rtol=1e-6)
    by_losses, by_weights = jax.jit(jax.grad(total, (0, 1)))(*arguments)
    np.testing.assert_allclose(by_losses, weights, rtol=1e-6)
    _, target = imbalance(log_weights, values, norms, initial, alpha)
    expected = []
    for task in range(3):
        ends = []
        for step in (1e-6, -1e-6):
            moved = log_weights + step * np.eye(3)[task]
            ends.append(np.abs(imbalance(moved, values, norms, initial, alpha)[0] - target).sum())
        expected.append((ends[0] - ends[1]) / 2e-6)
    np.testing.assert_allclose(by_weights, expected, rtol=1e-4, atol=1e-5)


def test_balanced_loss_makes_gradients_of_two_tasks_equally_long():
    """Task 2 is task 1 times 100: at the fixed point of alpha 0 the weights undo that."""
    log_weights = jnp.zeros(2)
    norms = jnp.array([1.0, 100.0])
    step = jax.jit(
        jax.grad(
            lambda w: losses.balanced_loss(jnp.array([1.0, 100.0]), norms, w, initial_losses=jnp.ones(2), alpha=0.0)
        )
    )
    for _ in range(4000):
        log_weights = log_weights - 0.01 * jnp.clip(step(log_weights), -1, 1)
    weights = 2 * jax.nn.softmax(log_weights)
    np.testing.assert_allclose(weights[0] / weights[1], 100.0, rtol=0.05)
