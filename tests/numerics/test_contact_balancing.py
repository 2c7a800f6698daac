"""Balancing against its definition, and the pixels it works on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.genome.balancing import balance, usable_bins
from diffbio_sc.numerics.genome.pixels import cis_rows, pixel_rows, storage_of, upper_triangle


def random_map(n: int, mean: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    bias = rng.lognormal(0.0, 0.4, n)
    upper = np.triu(rng.poisson(mean * np.outer(bias, bias) / (1.0 + distance) ** 0.8))
    return upper + np.triu(upper, 1).T


def as_rows(full: np.ndarray, nearest: int = 0):
    return cis_rows(sp.csr_array(np.triu(full)), 0, len(full), nearest)


@pytest.mark.parametrize("nearest", [0, 1, 2])
def test_products_and_marginals_are_those_of_the_symmetric_matrix(nearest):
    full = random_map(40, 2.0)
    near = np.abs(np.subtract.outer(np.arange(40), np.arange(40))) < nearest
    kept = np.where(near, 0, full)
    rows = as_rows(full, nearest)
    vector = np.random.default_rng(1).normal(size=40)
    used = np.ones(40, bool)
    np.testing.assert_allclose(rows.product(vector, used), kept @ vector, rtol=1e-12)
    total, number = rows.marginals()
    np.testing.assert_array_equal(total, kept.sum(0))
    np.testing.assert_array_equal(number, (kept > 0).sum(0))
    used[[3, 17]] = False
    masked = np.where(used, vector, 0.0)
    np.testing.assert_allclose(rows.product(masked, used), np.where(used, kept @ masked, 0.0), rtol=1e-12)


def test_rows_of_a_part_of_the_map():
    full = random_map(40, 2.0)
    matrix = sp.csr_array(np.triu(full))
    part = cis_rows(matrix, 10, 30, 2)
    inner = np.triu(full[10:30, 10:30], 2)
    np.testing.assert_array_equal(part.product(np.ones(20), np.ones(20, bool)), (inner + inner.T).sum(0))
    between = pixel_rows(matrix, 0, 40, np.where(np.arange(40) < 15, 15, 40), np.full(40, 40))
    outer = np.zeros_like(full)
    outer[:15, 15:] = full[:15, 15:]
    np.testing.assert_array_equal(between.marginals()[0], (outer + outer.T).sum(0))


def test_triangles():
    full = random_map(20, 1.0)
    place = np.arange(20)
    for storage, matrix in {"upper": np.triu(full), "lower": np.tril(full), "symmetric": full}.items():
        csr = sp.csr_array(matrix)
        assert storage_of(csr, place) == storage
        np.testing.assert_array_equal(upper_triangle(csr, storage, place, 20).toarray(), np.triu(full))
    assert storage_of(sp.csr_array(np.diag(np.arange(20))), place) == "diagonal"
    lopsided = full.copy()
    lopsided[3, 7] += 1
    with pytest.raises(ValueError, match="differ"):
        storage_of(sp.csr_array(lopsided), place)


@pytest.mark.parametrize("mean", [0.5, 20.0])
def test_weights_give_every_row_the_sum_one(mean):
    full = random_map(200, mean)
    rows = as_rows(full, 0)
    result = balance(rows.product, np.ones(200, bool), rows.diagonal, 1e-9)
    assert result.converged
    kept = np.isfinite(result.weights)
    assert kept.mean() > 0.95
    filled = np.nan_to_num(result.weights)
    np.testing.assert_allclose((filled * (full @ filled))[kept], 1.0, atol=1e-9)
    assert result.products < 30 or mean < 1


def test_planted_biases_come_back():
    rng = np.random.default_rng(0)
    bias = rng.lognormal(0.0, 0.5, 80)
    base = np.exp(-np.abs(np.subtract.outer(np.arange(80), np.arange(80))) / 20.0)
    even = balance(lambda v, used: base @ v, np.ones(80, bool), np.diag(base).copy(), 1e-12).weights
    biased = base * np.outer(bias, bias)
    found = balance(lambda v, used: biased @ v, np.ones(80, bool), np.diag(biased).copy(), 1e-12).weights
    np.testing.assert_allclose(found * bias, even, rtol=1e-9)


def test_masked_bins_are_nan_and_take_no_part():
    full = random_map(60, 5.0)
    used = np.ones(60, bool)
    used[[0, 30]] = False
    rows = as_rows(full, 2)
    weights = balance(rows.product, used, rows.diagonal, 1e-8).weights
    assert np.isnan(weights[[0, 30]]).all()
    kept = np.triu(full, 2) + np.triu(full, 2).T
    filled = np.nan_to_num(weights)
    np.testing.assert_allclose((filled * (kept @ filled))[used], 1.0, atol=1e-8)


def test_bins_that_cannot_be_balanced_are_reported_and_the_rest_is_balanced():
    full = random_map(50, 5.0).astype(float)
    # Two bins whose only partner is bin 10: its row sum would have to be 2.
    for bin_ in (20, 30):
        full[bin_] = full[:, bin_] = 0.0
        full[bin_, 10] = full[10, bin_] = 7.0
    result = balance(
        lambda v, used: np.where(used, full @ np.where(used, v, 0), 0), np.ones(50, bool), np.diag(full).copy()
    )
    assert result.converged
    # Dropping either of the tied bins, or their partner, makes the rest solvable.
    assert len(result.dropped)
    assert set(result.dropped) <= {10, 20, 30}
    kept = np.isfinite(result.weights)
    filled = np.nan_to_num(result.weights)
    np.testing.assert_allclose((filled * (full @ filled))[kept], 1.0, atol=1e-6)


def test_nothing_to_balance():
    result = balance(lambda v, used: np.zeros(5), np.ones(5, bool), np.zeros(5))
    assert np.isnan(result.weights).all()
    assert not result.converged


def test_filters():
    total = np.array([100.0, 110, 90, 0, 1, 95, 105, 100])
    number = np.array([50, 50, 50, 0, 50, 50, 5, 50])
    chrom = np.zeros(8, int)
    np.testing.assert_array_equal(
        usable_bins(total, number, chrom, 10, 0, 5.0), [True, True, True, False, False, True, False, True]
    )
    assert usable_bins(total, number, chrom, 0, 0, 0.0).sum() == 7
    assert usable_bins(total, number, chrom, 0, 100, 0.0).sum() == 4
