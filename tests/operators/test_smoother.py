"""Smoothed coverage: the Gaussian of scipy, ends that are not lowered, a width learned from the reads themselves."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter1d

from diffbio_sc.operators.epigenomics import CoverageSmoother, CoverageSmootherConfig

COVERAGE = np.random.default_rng(0).poisson(4.0, (2, 300)).astype(np.float32)


def make(width=75.0, reach=400):
    return CoverageSmoother(CoverageSmootherConfig(width=width, reach=reach), rngs=nnx.Rngs(0))


def test_it_is_the_gaussian_filter_of_scipy_over_what_lies_within_the_track():
    found = make()({"coverage": COVERAGE})["smoothed_coverage"]
    options = {"sigma": 3.0, "radius": 16, "mode": "constant", "axis": 1}
    expected = gaussian_filter1d(COVERAGE.astype(float), **options) / gaussian_filter1d(np.ones((2, 300)), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(make()({"coverage": COVERAGE[1]})["smoothed_coverage"], expected[1], rtol=1e-5)
    np.testing.assert_allclose(make(reach=10**6)({"coverage": np.ones((1, 31))})["smoothed_coverage"], 1.0, rtol=1e-6)


def test_the_default_width_leaves_the_signal_almost_as_it_is():
    smoother = CoverageSmoother(CoverageSmootherConfig(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(smoother({"coverage": COVERAGE})["smoothed_coverage"], COVERAGE, atol=0.15)


@pytest.mark.parametrize("true_width", [4.0, 12.0])
def test_the_width_learned_is_about_the_best_of_all(true_width):
    """Of a rate with known smoothness: the deviance from the true rate at the width learned is near its minimum."""
    rng = np.random.default_rng(1)
    rate = gaussian_filter1d(rng.gamma(0.3, 10.0, (1, 4000)), true_width, axis=1)
    reads = rng.poisson(rate).astype(np.float32)
    smoother = make(width=25.0)
    smoother.fit({"coverage": reads}, steps=80, learning_rate=0.1)

    def error(width):
        return np.square(gaussian_filter1d(reads.astype(float), width, axis=1) - rate).mean()

    # Half of the reads are smoothed to predict the other half: a little wider than is best for all of them.
    best = min(error(width) for width in np.geomspace(0.3, 30, 40))
    assert error(smoother.width / 25) < 1.5 * best
    assert best < 0.5 * error(0.3)


def test_the_gradient_by_the_width_is_that_of_finite_differences():
    graph, state = nnx.split(make())

    @jax.jit
    def loss(state):
        return nnx.merge(graph, state).loss({"coverage": COVERAGE})

    found = float(jax.tree.leaves(jax.jit(jax.grad(loss))(state))[0])
    ends = [float(loss(jax.tree.map(lambda value, step=step: value + step, state))) for step in (0.02, -0.02)]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 0.04, rtol=0.02, atol=1e-4)
