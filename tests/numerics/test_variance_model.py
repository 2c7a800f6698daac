"""Variances that change with covariates, and sums of squared kernels, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.layout import SpotLayout
from diffbio_sc.numerics.spatial.variance_model import VarianceModel


def test_variances_of_mixtures_are_found():
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(3), 4000)
    expected = rng.gamma(4, 0.25, 4000)
    truth = expected * (share @ [0.5, 1.0, 6.0])
    squared = (rng.normal(size=(1, 4000)) ** 2 * truth).astype(np.float32)
    found = VarianceModel(share)(squared, expected)
    assert found.sum() == pytest.approx(expected.sum(), rel=1e-5)
    # Squares of 4000 Gaussian values tell each coefficient to some 5 %.
    np.testing.assert_allclose(found[0] / found.sum(), truth / truth.sum(), rtol=0.35)
    assert np.corrcoef(found[0], truth)[0, 1] > 0.99
    exact = VarianceModel(share)(truth[None].astype(np.float32), expected)
    np.testing.assert_allclose(exact[0], truth * expected.sum() / truth.sum(), rtol=1e-4)


def test_variances_stay_positive_where_a_gene_has_no_reads():
    covariate = np.repeat([0.0, 1.0], 50)[:, None]
    found = VarianceModel(covariate)(np.repeat([[0.0, 2.0]], 50, 1).astype(np.float32), np.ones(100))
    assert found.min() > 0
    assert found[0, 50] / found[0, 0] == pytest.approx(32.0, rel=1e-4)  # 2 times the mean, and the least there is, 1/16


@pytest.mark.parametrize("most_dense_spots", [500, 10])
def test_quadratic_forms_of_squared_kernels(most_dense_spots):
    rng = np.random.default_rng(1)
    places = np.stack([np.arange(144) % 12, np.arange(144) // 12], 1).astype(float)
    layout = SpotLayout(places, lengthscales=np.array([1.0, 4.0]), most_dense_spots=most_dense_spots)
    values = rng.gamma(2, 1, (3, 144)).astype(np.float32)
    found = layout.quadratic(values, 2)
    distance = cdist(places[layout.order], places[layout.order], "sqeuclidean")
    for index, scale in enumerate((1.0, 4.0)):
        exact = np.einsum("gi,ij,gj->g", values, rbf(distance, scale) ** 2, values)
        np.testing.assert_allclose(found[index], exact, rtol=1e-4 if most_dense_spots == 500 else 0.12)
