"""Compartment eigenvectors against dense generalised eigenproblems."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp

from diffbio_sc.numerics.genome.compartments import Toeplitz, cis_eigenvectors, shrink, trans_eigenvectors
from diffbio_sc.numerics.genome.pixels import cis_rows, pixel_rows
from diffbio_sc.numerics.genome.plain_eigenvectors import plain_eigenvectors


def limited(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.minimum(counts, expected + 2.0 * np.sqrt(expected + 0.05 * expected**2) + 1.0)


def leading(matrix: np.ndarray, weight: np.ndarray, count: int):
    values, vectors = scipy.linalg.eigh(matrix, np.diag(weight))
    order = np.argsort(-values)[:count]
    return values[order], vectors[:, order].T


def test_toeplitz_product():
    by_distance = np.random.default_rng(0).normal(size=33)
    vector = np.random.default_rng(1).normal(size=33)
    np.testing.assert_allclose(Toeplitz(by_distance)(vector), scipy.linalg.toeplitz(by_distance) @ vector, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_cis_vectors_solve_the_dense_problem(gamma):
    rng = np.random.default_rng(2)
    n, nearest = 90, 3
    sign = np.sign(np.sin(np.arange(n) / 7.0))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    decay = 30.0 / (1.0 + np.arange(n)) ** 0.9
    bias = rng.lognormal(0.0, 0.3, n)
    mean = decay[distance] * np.outer(bias, bias) * np.exp(0.4 * np.outer(sign, sign))
    upper = np.triu(rng.poisson(mean))
    weights = 1.0 / bias
    weights[[5, 40]] = np.nan
    exposure = np.nan_to_num(1.0 / weights)
    expected = np.where(distance >= nearest, decay[distance], 0.0) * np.outer(exposure, exposure)
    full = upper + np.triu(upper, 1).T
    inside = expected > 0
    safe = np.where(inside, expected, 1.0)
    matrix = np.where(inside, limited(full, safe) * safe ** (gamma - 1.0) - safe**gamma, 0.0)
    weight = np.where(inside, safe**gamma, 0.0).sum(0)
    used = np.flatnonzero(np.isfinite(weights))
    values, vectors = leading(matrix[np.ix_(used, used)], weight[used], 3)
    found = cis_eigenvectors(cis_rows(sp.csr_array(upper), 0, n, nearest), decay, weights, nearest, 3, gamma)
    np.testing.assert_allclose(found.values, values, rtol=1e-4)
    assert np.isnan(found.vectors[:, [5, 40]]).all()
    for k in range(3):
        own = found.vectors[k, used]
        assert abs(np.corrcoef(own, vectors[k])[0, 1]) > 0.9999
        np.testing.assert_allclose((weight[used] * own**2).sum() / weight[used].sum(), 1.0, rtol=1e-6)
    assert abs(np.corrcoef(found.vectors[0, used], sign[used])[0, 1]) > 0.9


def test_trans_vectors_solve_the_dense_problem():
    rng = np.random.default_rng(3)
    sizes = [40, 30, 25]
    chrom = np.repeat(np.arange(3), sizes)
    n = len(chrom)
    sign = np.sign(np.sin(np.arange(n) / 5.0))
    bias = rng.lognormal(0.0, 0.3, n)
    mean = 1.5 * np.outer(bias, bias) * np.exp(0.4 * np.outer(sign, sign))
    upper = np.triu(rng.poisson(mean))
    weights = 1.0 / bias
    weights[7] = np.nan
    between = (chrom[:, None] != chrom[None]) & np.isfinite(np.add.outer(weights, weights))
    full = np.where(between, upper + np.triu(upper, 1).T, 0)
    pairs = np.where(between, np.outer(np.nan_to_num(1 / weights), np.nan_to_num(1 / weights)), 0.0)
    expected = np.where(between, full.sum() / pairs.sum() * pairs, 1.0)
    matrix = np.where(between, limited(full, expected) * expected**-0.5 - expected**0.5, 0.0)
    weight = np.where(between, expected**0.5, 0.0).sum(0)
    used = np.flatnonzero(np.isfinite(weights))
    values, vectors = leading(matrix[np.ix_(used, used)], weight[used], 2)
    behind = np.searchsorted(chrom, chrom, side="right")
    rows = pixel_rows(sp.csr_array(upper), 0, n, behind, np.full(n, n))
    found = trans_eigenvectors(rows, chrom, weights, 2, 0.5)
    np.testing.assert_allclose(found.values, values, rtol=1e-4)
    assert abs(np.corrcoef(found.vectors[0, used], vectors[0])[0, 1]) > 0.9999
    assert abs(np.corrcoef(found.vectors[0, used], sign[used])[0, 1]) > 0.9


def test_too_few_bins_give_nan_and_no_crash():
    rows = cis_rows(sp.csr_array(np.triu(np.ones((6, 6), np.int32))), 0, 6, 2)
    found = cis_eigenvectors(rows, np.ones(6), np.ones(6), 2, 3, 0.5)
    assert np.isnan(found.vectors).all()
    assert np.isnan(found.values).all()


def test_noise_is_that_of_a_row_of_poisson_counts():
    """Redrawing the counts of one bin alone moves its own entry by about the stated standard deviation."""
    rng = np.random.default_rng(5)
    n, at = 80, 33
    sign = np.sign(np.sin(np.arange(n) / 9.0))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    decay = 200.0 / (1.0 + np.arange(n)) ** 0.5
    mean = decay[distance] * np.exp(0.3 * np.outer(sign, sign))
    base = np.triu(rng.poisson(mean))
    entries, stated = [], 0.0
    for _ in range(60):
        counts = base.copy()
        row = rng.poisson(mean[at])
        counts[at, at:] = row[at:]
        counts[:at, at] = row[:at]
        found = cis_eigenvectors(cis_rows(sp.csr_array(counts), 0, n, 3), decay, np.ones(n), 3, 1, 0.5)
        entries.append(found.vectors[0, at] * np.sign(found.vectors[0] @ sign))
        stated = found.noise[0, at]
    assert 0.6 < np.std(entries) / np.sqrt(stated) < 1.6


def test_shrinking_keeps_clean_vectors_and_denoises_others():
    rng = np.random.default_rng(6)
    truth = np.repeat(rng.choice([-1.0, 1.0], 40), 25)
    noise = np.full(1000, 0.5)
    noisy = truth + rng.normal(0.0, np.sqrt(noise))
    noisy[100:110] = np.nan
    found = shrink(noisy, noise)
    good = np.isfinite(noisy)
    np.testing.assert_array_equal(np.isfinite(found), good)
    before, after = (np.corrcoef(truth[good], values[good])[0, 1] for values in (noisy, found))
    assert before < 0.85
    assert after > 0.94
    np.testing.assert_allclose(shrink(truth, np.full(1000, 1e-9)), truth, atol=1e-4)
    short = rng.normal(size=20)
    np.testing.assert_array_equal(shrink(short, np.ones(20)), short)


def test_shrinking_is_the_posterior_mean_of_the_dense_model():
    rng = np.random.default_rng(7)
    n = 200
    noise = rng.uniform(0.2, 2.0, n)
    process = np.zeros(n)
    for k in range(1, n):
        process[k] = 0.9 * process[k - 1] + rng.normal() * np.sqrt(1 - 0.81)
    vector = process + rng.normal(0.0, np.sqrt(noise))
    found = shrink(vector, noise)
    centred = vector - vector.mean()
    lags = np.array([1, 2, 3, 5, 8])
    covariances = np.array([(centred[lag:] * centred[:-lag]).mean() for lag in lags])
    good = covariances > 0
    slope, intercept = np.polyfit(lags[good], np.log(covariances[good]), 1, w=np.sqrt(covariances[good]))
    variance = min(np.exp(intercept), (centred**2).mean())
    prior = variance * np.exp(slope) ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    dense = vector.mean() + prior @ np.linalg.solve(prior + np.diag(noise), centred)
    np.testing.assert_allclose(found, dense, atol=1e-8)


@pytest.mark.parametrize(("nearest", "percentile"), [(0, 100.0), (2, 99.9), (2, 40.0), (40, 97.0)])
def test_plain_vectors_are_those_of_cooltools(nearest, percentile):
    eigdecomp = pytest.importorskip("cooltools.api.eigdecomp")
    rng = np.random.default_rng(5)
    n = 150
    sign = np.sign(np.sin(np.arange(n) / 9.0))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    mean = 40.0 / (1.0 + distance) ** 0.8 * np.exp(0.3 * np.outer(sign, sign))
    upper = np.triu(rng.poisson(mean))
    weights = rng.lognormal(0.0, 0.2, n)
    weights[[7, 80]] = np.nan
    upper[30] = upper[:, 30] = 0  # a weight, but no contact
    full = (upper + np.triu(upper, 1).T) * np.outer(weights, weights)
    values, vectors = eigdecomp.cis_eig(full, 3, ignore_diags=nearest, clip_percentile=percentile)
    found = plain_eigenvectors(cis_rows(sp.csr_array(upper), 0, n), weights, nearest, 3, percentile)
    np.testing.assert_allclose(found.values, values, rtol=1e-8)
    for own, theirs in zip(found.vectors, vectors, strict=True):
        np.testing.assert_array_equal(np.isnan(own), np.isnan(theirs))
        good = np.isfinite(own)
        np.testing.assert_allclose(own[good] * np.sign(own[good] @ theirs[good]), theirs[good], atol=1e-8)


def test_plain_vectors_of_too_few_bins_are_missing():
    found = plain_eigenvectors(cis_rows(sp.csr_array(np.ones((4, 4))), 0, 4), np.ones(4), 2, 3)
    assert np.isnan(found.values).all()
    assert np.isnan(found.vectors).all()
