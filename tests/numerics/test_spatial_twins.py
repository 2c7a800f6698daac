"""The numpy statistics of ``tl.spatial_genes`` and their differentiable twins, on the same genes at one lengthscale."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx

from diffbio_sc.numerics.spatial.gene_moments import nuisance_columns, pearson_residuals
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest
from diffbio_sc.numerics.spatial.variance import VarianceComponents
from diffbio_sc.operators.multiomics.spatial_genes import DifferentiableSpatialGeneDetector, SpatialGeneDetectorConfig

SPOTS, GENES, PATTERNED = 200, 120, 40


@pytest.fixture(scope="module")
def both():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 14, (SPOTS, 2))
    depth = rng.lognormal(0, 0.4, SPOTS)
    effect = np.ones((SPOTS, GENES))
    effect[:, :PATTERNED] = np.exp(np.linspace(0.1, 1.0, PATTERNED) * np.sin(places[:, :1] / 2.5))
    mean = depth[:, None] * (rng.gamma(2, 2, GENES) + 0.3) * effect
    counts = rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(np.float32)
    total = rng.poisson(depth * 3000).astype(float)
    test = SpatialScoreTest(places, total, lengthscales=np.array([2.0]))
    moments = test.moments(sp.csc_array(counts))
    log_p = test.test(sp.csc_array(counts), moments.mean, test.classes(moments)).scale_log_p[0, 0]
    residuals = pearson_residuals(counts, total / total.mean(), moments.mean, moments.dispersion)
    design = nuisance_columns(total / total.mean(), np.zeros(SPOTS, int))
    variance = VarianceComponents(places, np.array([2.0]), design).fit(residuals)
    config = SpatialGeneDetectorConfig(n_genes=GENES, lengthscale=2.0, hidden_dims=())
    detector = DifferentiableSpatialGeneDetector(config, rngs=nnx.Rngs(0))
    result = detector(
        {
            "spatial_coords": jnp.asarray(places, jnp.float32),
            "expression": jnp.asarray(counts),
            "total_counts": jnp.asarray(total, jnp.float32),
        }
    )
    return log_p, variance, {name: np.asarray(value, float) for name, value in result.items()}


def test_pvalues_agree(both):
    """To a few per cent of log p, but for genes of few reads, whose discreteness the differentiable twin leaves out."""
    log_p, _, result = both
    there = np.isfinite(log_p) & (log_p > -60)  # float32 holds p down to about 1e-38
    found = np.log(result["spatial_pvalues"][there])
    assert np.corrcoef(log_p[there], found)[0, 1] > 0.99
    difference = np.abs(log_p[there] - found)
    assert np.median(difference) < 0.05
    weak = log_p[there] > np.log(1e-3)
    assert difference[weak].max() < 0.7


def test_fractions_of_variance_agree_within_their_errors(both):
    """The prior of the differentiable twin raises genes without signal, by less than their standard error."""
    _, variance, result = both
    difference = result["fsv"] - variance.fsv
    assert np.corrcoef(variance.fsv, result["fsv"])[0, 1] > 0.99
    assert np.abs(difference[:PATTERNED]).mean() < 0.025
    assert (np.abs(difference) / variance.fsv_se).max() < 2.0
    assert 0 < difference[PATTERNED:].mean() < 0.05
