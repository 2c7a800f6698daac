"""Kernel ridge regression, held to its closed form and to samples left out one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.latent.kernel_ridge import fit_kernel_ridge


def simulate(samples=120, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, 2))
    outputs = np.stack([np.sin(2 * inputs[:, 0]), inputs[:, 1] ** 2, np.zeros(samples)], axis=1)
    return inputs, outputs + 0.2 * rng.normal(size=outputs.shape), outputs


def test_predictions_solve_the_regression_and_follow_a_curve():
    inputs, noisy, truth = simulate(300)
    fitted = fit_kernel_ridge(inputs, noisy, 1000, np.random.default_rng(0))
    assert len(fitted.centres) == 300
    new, _, clean = simulate(200, seed=1)
    error = ((fitted.predict(new) - clean) ** 2).mean(0)
    assert (error[:2] < 0.1 * clean.var(0)[:2]).all()
    # The exact solution (K + penalty)^-1 (y - mean), with one penalty of the grid for each output.
    kernel = np.exp(-cdist(inputs, inputs, "sqeuclidean") / fitted.squared_scale)
    across = np.exp(-cdist(new, inputs, "sqeuclidean") / fitted.squared_scale)
    for j in range(3):
        assert penalty_of(fitted, kernel, across, new, noisy, j) is not None


def penalty_of(fitted, kernel, across, new, noisy, j):
    """Penalty of the grid with which the exact solution predicts what was predicted."""
    centred = noisy[:, j] - noisy[:, j].mean()
    for penalty in 10.0 ** np.arange(-2, 4.1, 0.5):
        exact = noisy[:, j].mean() + across @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), centred)
        if np.abs(fitted.predict(new)[:, j] - exact).max() < 0.02:
            return penalty
    return None


def test_explained_is_the_share_predicted_for_samples_left_out():
    inputs, noisy, _ = simulate(60)
    fitted = fit_kernel_ridge(inputs, noisy, 1000, np.random.default_rng(0))
    kernel = np.exp(-cdist(inputs, inputs, "sqeuclidean") / fitted.squared_scale)
    for j in range(3):
        penalty = penalty_of(fitted, kernel, kernel, inputs, noisy, j)
        error = []
        for out in range(60):
            rest = np.delete(np.arange(60), out)
            mean = noisy[rest, j].mean()
            solved = np.linalg.solve(kernel[np.ix_(rest, rest)] + penalty * np.eye(59), noisy[rest, j] - mean)
            error.append(noisy[out, j] - mean - kernel[out, rest] @ solved)
        assert fitted.explained[j] == pytest.approx(1 - np.mean(np.square(error)) / noisy[:, j].var(), abs=0.03)
    assert fitted.explained[2] < 0.1 < 0.6 < fitted.explained[0]  # noise alone is not predicted


def test_few_centres_come_close_to_all():
    inputs, noisy, _ = simulate(400)
    new = simulate(100, seed=1)[0]
    all_of_them = fit_kernel_ridge(inputs, noisy, 400, np.random.default_rng(0)).predict(new)
    few = fit_kernel_ridge(inputs, noisy, 80, np.random.default_rng(0))
    assert len(few.centres) == 80
    assert np.corrcoef(few.predict(new)[:, 0], all_of_them[:, 0])[0, 1] > 0.99


def test_the_twin_on_arrays_predicts_the_same_and_has_a_gradient():
    inputs, noisy, _ = simulate(80)
    fitted = fit_kernel_ridge(inputs, noisy, 80, np.random.default_rng(0))
    on_arrays = type(fitted)(*(jnp.asarray(part, jnp.float32) for part in fitted))
    new = jnp.asarray(simulate(5, seed=2)[0], jnp.float32)
    np.testing.assert_allclose(
        jax.jit(lambda x: on_arrays.predict(x, library=jnp))(new),
        fitted.predict(np.asarray(new, float)),
        rtol=2e-2,
        atol=2e-3,
    )
    slope = jax.jit(jax.grad(lambda x: on_arrays.predict(x, library=jnp)[:, 0].sum()))(new)
    assert np.abs(slope).max() > 0.1
