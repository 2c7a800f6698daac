from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.counts.cell_variation import (
    dispersion_index,
    excess_shape,
    fit_excess,
    share_beyond_counting,
    size_variation,
)


def test_index_is_the_pooled_variance_over_the_pooled_mean_shrunk_toward_all_genes():
    rng = np.random.default_rng(0)
    groups = [rng.poisson(rng.gamma(0.5, 6.0, (n, 4))).astype(float) for n in (30, 50)]
    alone = np.array([[9.0, 0.0, 3.0, 100.0]])  # one cell of a third group says nothing about variance
    sums = np.stack([cells.sum(0) for cells in (*groups, alone)])
    squares = sum((cells**2).sum(0) for cells in (*groups, alone))
    variance = sum(cells.var(0, ddof=1) * (len(cells) - 1) for cells in groups)
    mean = sum(cells.mean(0) * (len(cells) - 1) for cells in groups)
    pooled = variance.sum() / mean.sum()
    expected = np.maximum((variance + 10 * pooled) / (mean + 10), 1)
    np.testing.assert_allclose(dispersion_index(sums, squares, np.array([30, 50, 1])), expected)


def test_index_of_poisson_counts_is_one_and_of_single_cells_is_unknown():
    counts = np.random.default_rng(1).poisson(5.0, (4000, 3)).astype(float)
    index = dispersion_index(counts.sum(0)[None], (counts**2).sum(0), np.array([4000]))
    np.testing.assert_allclose(index, 1, atol=0.1)
    np.testing.assert_array_equal(dispersion_index(counts[:2], (counts[:2] ** 2).sum(0), np.array([1, 1])), [2, 2, 2])
    np.testing.assert_allclose(excess_shape(np.array([5.0, 2.0, 1.0])), [2, 1, 0.001**0.5])


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_factor_of_the_excess_variance_is_recovered(factor):
    rng = np.random.default_rng(2)
    shape = rng.gamma(1.0, 1.0, 200) + 0.1
    mean = rng.gamma(2.0, 10.0, (300, 200)) + 20
    counts = mean + rng.normal(size=mean.shape) * np.sqrt(mean * (1 + factor * shape + 0.05 * mean))
    assert fit_excess(counts, mean, shape, 0.05, 0.0) == pytest.approx(factor, rel=0.1)
    # Fitted weights take their share of the residuals: less of them stands for the same variance.
    design = rng.normal(size=(200, 60))
    projector = design @ np.linalg.pinv(design)
    flat = np.full((300, 200), 400.0)
    noise = rng.normal(size=flat.shape) * np.sqrt(flat * (1 + factor))
    left = flat + noise - noise @ projector
    assert fit_excess(left, flat, np.ones(200), 0.0, 60.0) == pytest.approx(factor, rel=0.15)


def test_share_of_the_variance_beyond_counting():
    rng = np.random.default_rng(3)
    mean = np.full((200, 500), 50.0)
    assert share_beyond_counting(rng.poisson(mean), mean, np.zeros(200)) == pytest.approx(0, abs=0.02)
    wide = mean + rng.normal(size=mean.shape) * np.sqrt(4 * mean)
    assert share_beyond_counting(wide, mean, np.zeros(200)) == pytest.approx(0.75, abs=0.01)
    assert share_beyond_counting(wide, mean, np.full(200, 250)) == pytest.approx(1 - 1 / 8, abs=0.01)


def test_variation_of_sizes_is_that_beyond_counting():
    rng = np.random.default_rng(4)
    sizes = np.concatenate([rng.gamma(4.0, 50.0, 20_000), np.full(20_000, 30.0), [80.0, 1e6]])
    codes = np.repeat([0, 1, 2, -1], [20_000, 20_000, 1, 1])
    found = size_variation(rng.poisson(sizes).astype(float), codes, 3)
    np.testing.assert_allclose(found[:2], [0.25, 0.0], atol=0.01)
    assert found[2] == pytest.approx(0.125, abs=0.01)  # one cell: the average of the others
