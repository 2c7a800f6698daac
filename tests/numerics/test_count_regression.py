from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, nnls
from scipy.stats import nbinom

from diffbio_sc.numerics.counts.nonnegative_quadratic import nonnegative_quadratic
from diffbio_sc.numerics.counts.regression import regress, regression_weights, score

DISPERSION = 0.1


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    signatures = rng.gamma(0.5, 1.0, (4, 60))
    signatures /= signatures.sum(1, keepdims=True)
    weights = rng.dirichlet(np.ones(4) * 0.5, 12)
    weights[weights < 0.1] = 0
    depth = rng.uniform(2000, 5000, 12)
    counts = rng.poisson(depth[:, None] * weights @ signatures).astype(np.float32)
    return counts, counts.sum(1), signatures.astype(np.float32)


def test_quadratic_equals_scipy_nnls():
    rng = np.random.default_rng(1)
    design, target = rng.normal(size=(20, 30, 5)), rng.normal(size=(20, 30))
    hessian = np.einsum("sgk,sgl->skl", design, design)
    linear = np.einsum("sgk,sg->sk", design, target)
    found = nonnegative_quadratic(jnp.asarray(hessian), jnp.asarray(linear), jnp.ones((20, 5)), sweeps=200)
    expected = np.stack([nnls(a, b)[0] for a, b in zip(design, target, strict=True)])
    assert (expected == 0).any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_coordinate_without_curvature_keeps_its_start():
    hessian = jnp.diag(jnp.array([2.0, 0.0]))[None]
    found = nonnegative_quadratic(hessian, jnp.array([[4.0, 0.0]]), jnp.array([[1.0, 0.7]]))
    np.testing.assert_allclose(found, [[2.0, 0.7]])


def test_regression_reaches_the_maximum_of_the_likelihood(case):
    counts, depth, signatures = case
    found = np.asarray(regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=30, sweeps=30).weights)
    size = 1 / DISPERSION
    for spot in range(len(counts)):

        def loss(w, spot=spot):
            mean = depth[spot] * w @ signatures.astype(float) + 1e-10
            return -nbinom.logpmf(counts[spot], size, size / (size + mean)).sum()

        best = minimize(loss, np.full(4, 0.25), bounds=[(0, None)] * 4, method="L-BFGS-B", options={"ftol": 1e-14})
        assert loss(found[spot].astype(float)) <= best.fun + 1e-3
        np.testing.assert_allclose(found[spot], best.x, atol=2e-3)


def test_default_steps_have_converged(case):
    counts, depth, signatures = case
    few = regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=6).weights
    many = regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=60, sweeps=60).weights
    np.testing.assert_allclose(few, many, atol=2e-3)


def test_order_of_signatures_that_resemble_each_other_hardly_matters():
    rng = np.random.default_rng(1)
    signatures = rng.gamma(0.5, 1.0, 300) * rng.lognormal(0.0, 0.5, (8, 300))
    signatures = (signatures / signatures.sum(1, keepdims=True)).astype(np.float32)
    depth = rng.uniform(2000, 5000, 40)
    counts = rng.poisson(depth[:, None] * rng.dirichlet(np.ones(8) * 0.5, 40) @ signatures).astype(np.float32)
    first, second = (
        np.asarray(regress(counts, counts.sum(1), ordered, jnp.float32(DISPERSION), steps=6).weights)
        for ordered in (signatures, signatures[::-1])
    )
    np.testing.assert_allclose(first, second[:, ::-1], atol=5e-4)


def test_strong_prior_wins(case):
    counts, depth, signatures = case
    prior = jnp.full((len(counts), 4), 0.25)
    found = regress(counts, depth, signatures, jnp.float32(DISPERSION), None, prior, jnp.full(4, 1e7)).weights
    np.testing.assert_allclose(found, prior, atol=1e-3)


def test_implicit_gradients_equal_finite_differences(case):
    counts, depth, signatures = case
    direction_rng = np.random.default_rng(2)
    cotangent = direction_rng.normal(size=(len(counts), 4))

    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        start = [jnp.asarray(part, jnp.float64) for part in (counts, depth, signatures, DISPERSION)]

        start.append(jnp.asarray(direction_rng.gamma(1.0, 1.0, counts.shape[1]), jnp.float64))
        start.append(jnp.asarray(direction_rng.gamma(1.0, 0.02, signatures.shape), jnp.float64))

        @jax.jit
        def objective(counts, depth, signatures, dispersion, excess, error):
            return (regression_weights(counts, depth, signatures, dispersion, excess, error, 60, 60) * cotangent).sum()

        gradients = jax.jit(jax.grad(objective, argnums=(0, 1, 2, 3, 4, 5)))(*start)
        for position, gradient in enumerate(gradients):
            direction = direction_rng.normal(size=start[position].shape) * np.asarray(start[position])
            if position == 0:  # counts of 0 must not become negative
                direction = np.abs(direction)
            step = 1e-6
            moved = [
                objective(*start[:position], start[position] + sign * step * direction, *start[position + 1 :])
                for sign in (1, -1)
            ]
            expected = float(moved[0] - moved[1]) / (2 * step)
            assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _alternating_case():
    """More types than such genes can tell apart: full steps of Fisher scoring go back and forth between two answers."""
    rng = np.random.default_rng(5)
    signatures = rng.gamma(0.4, 1.0, (12, 16)) + 0.02
    signatures /= signatures.sum(1, keepdims=True)
    weights = rng.dirichlet(np.full(12, 0.2), 40)
    depth = np.full(40, 2000.0)
    mean = depth[:, None] * weights @ signatures
    counts = rng.poisson(mean * rng.gamma(0.7, 1 / 0.7, mean.shape)).astype(np.float32)
    return counts, counts.sum(1), signatures.astype(np.float32)


def test_steps_are_damped_so_that_they_settle():
    counts, depth, signatures = _alternating_case()
    answers = [np.asarray(regress(counts, depth, signatures, 0.05, steps=n, sweeps=60).weights) for n in (24, 25)]
    assert np.abs(answers[0] - answers[1]).max() < 0.01
    # Weights that belong at 0 are exactly there, and not on their way.
    assert (answers[0] == 0).mean() > 0.3
    assert not ((answers[0] > 0) & (answers[0] < 1e-6)).any()


def test_excess_variance_weighs_genes_as_the_quasi_score_says(case):
    counts, depth, signatures = case
    excess = np.random.default_rng(3).gamma(1.0, 5.0, counts.shape[1]).astype(np.float32)
    found = np.asarray(
        regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=40, sweeps=40, excess=excess).weights, float
    )
    mean = depth[:, None] * found @ signatures + 1e-10
    variance = np.maximum(mean, 1e-3) * (1 + excess + DISPERSION * mean)
    slope = ((counts - mean) / variance * depth[:, None]) @ signatures.T.astype(float)
    size = ((depth[:, None] ** 2 / variance) @ (signatures.T.astype(float) ** 2)) ** 0.5  # in standard deviations
    assert np.abs(slope / size)[found > 1e-3].max() < 0.05
    assert (slope / size)[found == 0].max() < 0.05
    plain = np.asarray(regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=40, sweeps=40).weights)
    assert np.abs(plain - found).max() > 0.01


def test_errors_of_signatures_do_not_bias_the_corrected_score():
    """Signatures from few reference counts, many genes; the last type is absent and like the first."""
    rng = np.random.default_rng(6)
    genes, depth, in_reference = 3000, 2000.0, 60_000
    true = rng.gamma(2.0, 0.5, (4, genes)) + 0.2
    true /= true.sum(1, keepdims=True)
    true[3] = 0.8 * true[0] + 0.2 * true[3]
    weights = np.array([0.6, 0.3, 0.1, 0.0])
    found = {True: [], False: []}
    for _ in range(300):
        counts = rng.poisson(depth * weights @ true)[None].astype(np.float32)
        sums = rng.poisson(in_reference * true)
        signatures = (sums / in_reference).astype(np.float32)
        arguments = (weights[None].astype(np.float32), counts, jnp.array([depth]), signatures, jnp.float32(DISPERSION))
        for corrected in found:
            error = jnp.asarray(1.0 / np.maximum(sums, 1), jnp.float32) if corrected else None
            found[corrected].append(np.asarray(score(*arguments, 0.5, error))[0])
    mean, plain = (np.mean(found[corrected], 0) for corrected in (True, False))
    noise = np.std(found[True], 0).max() / 300**0.5
    assert plain[3] - plain[0] > 10 * noise  # the first type loses to the one that is like it
    assert np.abs(mean).max() < 0.1 * np.abs(plain).max() + 3 * noise


def test_corrected_regression_is_the_root_of_the_corrected_score(case):
    counts, depth, signatures = case
    error = np.random.default_rng(7).gamma(1.0, 0.02, signatures.shape).astype(np.float32)
    options = {"excess": 0.3, "error": error}
    found = regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=60, sweeps=60, **options).weights
    slope = np.asarray(score(found, counts, depth, signatures, jnp.float32(DISPERSION), **options))
    assert np.abs(slope)[np.asarray(found) > 1e-3].max() < 0.5  # of scores of the order of a thousand
    assert slope[np.asarray(found) == 0].max() < 0.5
    plain = regress(counts, depth, signatures, jnp.float32(DISPERSION), steps=60, sweeps=60, excess=0.3).weights
    assert np.abs(np.asarray(plain) - np.asarray(found)).max() > 0.005


def test_small_inverses_are_not_spread_over_threads(case, monkeypatch):
    """BLAS threads that wait actively for the next small matrix cost up to fourteen times the CPU."""
    from threadpoolctl import threadpool_info, threadpool_limits

    from diffbio_sc.numerics.counts import spot_regression

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    seen = []
    solve = spot_regression._solve_block
    monkeypatch.setattr(spot_regression, "_solve_block", lambda *inputs: (seen.append(threads()), solve(*inputs))[1])
    counts, _, signatures = case
    with threadpool_limits(2, user_api="blas"):
        spot_regression.SpotSolver(signatures, DISPERSION, 6)(counts)
        assert set(threads()) == {2}
    assert set(seen[0]) == {1}
