"""Factor analysis with missing blocks, held to scikit-learn, closed forms and planted structure."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import FactorAnalysis

from diffbio_sc.numerics.latent import factors

CELLS = 400


@pytest.fixture(scope="module")
def planted():
    """Two blocks of features of three shared factors, with other noise in each feature."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(CELLS, 3))
    blocks = []
    for features in (12, 8):
        loadings, noise = rng.normal(size=(features, 3)), rng.uniform(0.3, 2.0, features)
        blocks.append(latent @ loadings.T + rng.normal(size=(CELLS, features)) * np.sqrt(noise))
    return latent, [block - block.mean(0) for block in blocks]


def fit(blocks, present=None, **options):
    present = np.ones((CELLS, len(blocks)), bool) if present is None else present
    noise = [np.full(block.shape[1], 1e-3) for block in blocks]
    return factors.fit_factors(
        blocks, present, np.zeros(CELLS, int), 3, noise, rounds=400, rng=np.random.default_rng(0), **options
    )


def covariance(factors):
    loadings, noise = np.concatenate(factors.loadings), np.concatenate(factors.noise)
    return loadings @ loadings.T + np.diag(noise)


def test_complete_blocks_are_an_ordinary_factor_analysis(planted):
    _, blocks = planted
    reference = FactorAnalysis(3, tol=1e-8, max_iter=5000, svd_method="lapack").fit(np.concatenate(blocks, axis=1))
    np.testing.assert_allclose(covariance(fit(blocks)), reference.get_covariance(), atol=2e-2)


def test_latent_is_the_posterior_mean_of_what_each_cell_has(planted):
    _, blocks = planted
    present = np.ones((CELLS, 2), bool)
    present[:100, 1] = False
    present[100:200, 0] = False
    factors = fit([np.where(present[:, [m]], block, 0.0) for m, block in enumerate(blocks)], present)
    for cell in (0, 150, 300):
        precision, evidence = np.eye(3), np.zeros(3)
        for m in np.flatnonzero(present[cell]):
            weighted = factors.loadings[m] / factors.noise[m][:, None]
            precision = precision + factors.loadings[m].T @ weighted
            evidence = evidence + (blocks[m][cell] - factors.offsets[m][0]) @ weighted
        np.testing.assert_allclose(factors.latent[cell], np.linalg.solve(precision, evidence), rtol=1e-6)


def test_missing_blocks_leave_the_covariance_where_it_was(planted):
    """Cells without a block tell nothing wrong about it: loadings stay within the error of fewer cells."""
    _, blocks = planted
    present = np.ones((CELLS, 2), bool)
    present[:120, 1] = False
    partial = fit([np.where(present[:, [m]], block, 0.0) for m, block in enumerate(blocks)], present)
    difference = covariance(partial) - covariance(fit(blocks))
    assert np.abs(difference).mean() < 0.15 * np.abs(covariance(fit(blocks))).mean()


def test_components_are_in_units_of_their_noise():
    """Features of mere noise, whatever their size, give scores of variance one, of which little is called signal."""
    rng = np.random.default_rng(1)
    deviations = rng.lognormal(0, 1, 300)
    values = rng.normal(size=(2000, 300))
    components = factors.fit_components(values, np.ones((2000, 1)), 10, np.random.default_rng(0), deviations=deviations)
    scores = values @ components.basis
    # In the cells that the components come from they show up to the upper edge of the spectrum of noise.
    edge = (1 + np.sqrt(300 / 2000)) ** 2
    assert 1.0 < scores.var(0).max() < 1.1 * edge
    # On held-out cells they show 1, with a standard error of 0.03 each; 10 of 300 chance directions, taken out of what
    # is left as noise, lower that by 0.06.
    signal = scores.var(0) - components.noise
    assert signal.mean() < 0.12
    assert signal.max() < 0.06 + 4 * 0.03


def test_features_that_hardly_vary_get_less_say():
    """Weights are 1 / sqrt(noise + share of the typical noise), relative to those of the features before division."""
    deviations = np.array([0.1, 1.0, 1.0, 1.0, 10.0])
    for share in (0.0, 0.7):
        weights = factors._weights(np.ones(5), deviations**2, share) / deviations
        expected = 1.0 / np.sqrt(deviations**2 + share * 1.0)
        np.testing.assert_allclose(weights / weights[1], expected / expected[1], rtol=1e-12)


def test_typical_noise_finds_what_standardising_buries():
    """A pattern in 20 features of large variance, among 2000 of small variance that are noise alone."""
    rng = np.random.default_rng(2)
    pattern = rng.normal(size=150)
    clear = pattern[:, None] * 0.5 + rng.normal(size=(150, 20))
    values = np.concatenate([clear, 0.05 * rng.normal(size=(150, 2000))], axis=1)
    values -= values.mean(0)
    deviations = values.std(0)

    def found(share):
        components = factors.fit_components(
            values / deviations,
            np.ones((150, 1)),
            5,
            np.random.default_rng(0),
            deviations=deviations,
            typical_share=share,
        )
        scores = values / deviations @ components.basis[:, :1]
        return abs(np.corrcoef(scores[:, 0], pattern)[0, 1])

    # The typical feature here has noise of 0.05 squared: 400 times that is the noise of the clear ones.
    assert found(400.0) > 0.8
    assert found(0.0) < 0.6
