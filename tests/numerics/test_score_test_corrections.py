"""Corrections of the score test, each against a law that does not come from its own code."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import beta

from diffbio_sc.numerics.spatial.kernel_algebra_jax import Kernel
from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.null_law import LawOfGaussian, NullLaw
from diffbio_sc.numerics.spatial.quadratic_forms import log_tail
from diffbio_sc.numerics.spatial.quadratic_forms_jax import log_tail as log_tail_jax
from diffbio_sc.numerics.spatial.residuals_jax import Residuals
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest, kurtosis_stretch
from diffbio_sc.numerics.spatial.score_test_jax import log_pvalues


@pytest.mark.parametrize(("first", "second"), [(2, 30), (4, 60), (30, 4)])
def test_tail_at_the_mean_of_a_skew_form_is_that_of_the_beta_distribution(first, second):
    mean = first / (first + second)  # of A / (A + B), with chi-squares A and B
    exact = beta.sf(mean, first / 2, second / 2)
    assert abs(exact - 0.5) > 0.03
    multiplicity = np.array([[first, second]], float)
    values = np.array([[1.0 - mean, -mean]])
    assert np.exp(log_tail(values, multiplicity))[0] == pytest.approx(exact, rel=0.02)
    found = log_tail_jax(jnp.array([[1.0, 0.0]]), jnp.asarray(multiplicity[0]), jnp.array([mean]))
    assert np.exp(found)[0] == pytest.approx(exact, rel=0.02)


def _heavy(spots, rng):
    """Residuals of which a few spots hold much of the sum of squares."""
    values = rng.normal(size=spots)
    values[:4] = [11.0, -12.0, 13.0, -12.0]
    return values - values.mean()


def test_kurtosis_changes_the_spread_of_the_statistic_by_a_square_root():
    """Places shuffled: the share of small p-values is the level, whatever the tails of the residuals."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 10, (120, 2))
    squared = ((places[:, None] - places[None]) ** 2).sum(-1)
    values = _heavy(120, rng)
    shuffled = np.stack([rng.permutation(values) for _ in range(8000)], 1).astype(np.float32)
    kernel = rbf(squared, 2.0)
    residuals = Residuals(
        values=jnp.asarray(shuffled), alive=jnp.ones(8000, bool), weights=None, sharpness=None,
        design=jnp.ones((120, 1)), depth=jnp.ones(120), mean=jnp.zeros(8000), unit=jnp.ones(8000),
        target=jnp.asarray(shuffled),
    )  # fmt: skip
    share = (values**4).sum() / (values**2).sum() ** 2
    assert (1 - 3 / 122) / (1 - share) > 1.15
    found = np.asarray(log_pvalues(Kernel(jnp.asarray(kernel, jnp.float32), False), residuals))
    # The exact spread of the statistic under shuffling, against that of the law without the correction.
    hollow = kernel - np.diag(np.diag(kernel))
    statistic = np.einsum("ng,nm,mg->g", shuffled, hollow, shuffled, optimize=True) / (values**2).sum()
    centre = np.eye(120) - 1 / 120
    eigenvalues = np.linalg.eigvalsh(centre @ hollow @ centre)
    eigenvalues = np.delete(eigenvalues, np.abs(eigenvalues).argmin())
    gaussian = 2 * ((eigenvalues - eigenvalues.mean()) ** 2).sum() / (119 * 121)  # variance of a ratio on a sphere
    ratio = gaussian / statistic.var()
    assert kurtosis_stretch(np.array([share]), np.ones(120))[0] == pytest.approx(np.sqrt(ratio), rel=0.03)
    typical = eigenvalues.mean()
    law = log_tail(
        np.broadcast_to(eigenvalues, (8000, 119)) - (typical + (statistic - typical) * np.sqrt(ratio))[:, None],
        np.ones((8000, 119)),
    )
    middle = (law > np.log(0.01)) & (law < np.log(0.3))
    assert np.abs(found - law)[middle].mean() < 0.02


def test_the_combination_is_stricter_by_its_stated_excess():
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 10, (100, 2))
    counts = sp.csc_array(rng.poisson(0.5, (100, 60)).astype(float))
    test = SpatialScoreTest(places, np.ones(100), lengthscales=np.array([1.5]))
    moments = test.moments(counts)
    found = test.test(counts, moments.mean, test.classes(moments))
    single = found.scale_log_p[0, 0]  # one scale, and too few reads for roots: nothing to combine
    there = np.isfinite(found.log_p)
    assert there.sum() > 40
    np.testing.assert_allclose(
        found.log_p[there], np.minimum(single + np.log1p(0.08 * (1 - np.exp(single))), 0)[there], atol=1e-6
    )


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_law_where_few_spots_carry_the_variance(spread):
    """Of Gaussian residuals of uneven variances: that of T - x (sum of squares) by its own spectrum at each x."""
    rng = np.random.default_rng(5)
    places, depth = rng.uniform(0, 16, (256, 2)), rng.lognormal(0, spread, 256)
    test = SpatialScoreTest(places, depth)
    weights = test._weights_of(0)
    cumulants, spectra = test._law_of(0, weights)
    design = weights.weighted_design
    covariance = np.diag(weights.v) - design @ weights.inverse @ design.T
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    for scale in (0, 2, 5):
        mean, second, third, bottom = (
            getattr(cumulants[scale], name) for name in ("mean", "second", "third", "bottom")
        )
        kernel = test.layout.levels[0].kernels.matrices[scale] - np.eye(256)
        ratio = (mean + np.array([-1.0, 1.3, 1.645, 2.2, 3.0]) * np.sqrt(second)) / weights.trace
        none = np.zeros(5)
        law = NullLaw(
            LawOfGaussian(mean, second, third, bottom, spectra[scale]), weights.trace, none, none, none.astype(bool)
        )
        exact = [np.linalg.eigvalsh(root.T @ (kernel - x * np.eye(256)) @ root) for x in ratio]
        np.testing.assert_allclose(law.log_tail(ratio), log_tail(np.array(exact), np.ones((5, 256))), atol=0.075)
