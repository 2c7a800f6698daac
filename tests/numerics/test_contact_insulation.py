"""Insulation sums against loops over all pixels, thresholds against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.sparse as sp

from diffbio_sc.numerics.genome.insulation import (
    WindowSums,
    contrast,
    cooltools_insulation,
    li_threshold,
    local_maxima,
    prominence,
    window_sums,
)
from diffbio_sc.numerics.genome.pixels import cis_rows


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    n = 60
    counts = np.triu(rng.poisson(3.0, (n, n)))
    weights = rng.lognormal(0.0, 0.3, n)
    weights[[9, 33]] = np.nan
    decay = 5.0 / (1.0 + np.arange(n))
    return counts, weights, decay


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("nearest", [0, 2])
def test_sums_are_those_of_all_pixels_in_the_windows(example, window, nearest):
    counts, weights, decay = example
    n = len(counts)
    exposure = np.nan_to_num(1.0 / weights)
    sums = window_sums(cis_rows(sp.csr_array(counts), 0, n, nearest), decay, weights, window, nearest)
    for at in range(n):
        diamond = sides = diamond_expected = sides_expected = 0.0
        before, after = range(max(at - window, 0), at), range(at, min(at + window, n))
        for i in range(n):
            for j in range(i + nearest, n):
                value = counts[i, j] * (exposure[i] > 0) * (exposure[j] > 0)
                mean = decay[j - i] * exposure[i] * exposure[j]
                if i in before and j in after:
                    diamond, diamond_expected = diamond + value, diamond_expected + mean
                elif (i in before and j in before) or (i in after and j in after):
                    sides, sides_expected = sides + value, sides_expected + mean
        np.testing.assert_allclose(
            [sums.diamond[at], sums.sides[at], sums.diamond_expected[at], sums.sides_expected[at]],
            [diamond, sides, diamond_expected, sides_expected],
            atol=1e-9,
        )


def test_contrast_is_high_at_a_planted_boundary_and_nan_at_edges():
    rng = np.random.default_rng(1)
    n, at = 80, 40
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    mean = 40.0 / (1.0 + distance)
    across = (np.arange(n)[:, None] < at) != (np.arange(n)[None] < at)
    counts = np.triu(rng.poisson(np.where(across, 0.4 * mean, mean)))
    decay = np.array([np.diagonal(np.where(across, 0.4 * mean, mean), d).mean() for d in range(n)])
    sums = window_sums(cis_rows(sp.csr_array(counts), 0, n, 2), decay, np.ones(n), 10, 2)
    score, boundary = contrast(sums)
    assert np.nanargmax(boundary) == at
    assert np.nanargmin(score) == at
    assert np.isnan(boundary[0])
    # log of the planted ratio, up to noise and the pairs that both have
    np.testing.assert_allclose(boundary[at], -np.log(0.4), atol=0.15)


def test_contrast_adds_two_contacts_to_each_sum():
    # Few contacts: what is added decides, and the page says that it is 2.
    observed, expected = np.array([0.0, 6.0]), np.array([8.0, 8.0])
    score, boundary = contrast(WindowSums(observed, observed[::-1], expected, expected))
    np.testing.assert_allclose(score, np.log([2.0 / 10.0, 8.0 / 10.0]), rtol=1e-12)
    np.testing.assert_allclose(boundary, np.log([8.0 / 2.0, 2.0 / 8.0]), rtol=1e-12)


@pytest.mark.parametrize(("window", "nearest"), [(3, 0), (5, 2), (9, 1)])
def test_cooltools_diamond(example, window, nearest):
    counts, weights, _ = example
    n = len(counts)
    balanced = np.nan_to_num(counts * np.outer(weights, weights))
    used = np.isfinite(weights)
    mean, number = np.full(n, np.nan), np.zeros(n)
    for at in range(n):
        values = [
            balanced[i, j]
            for i in range(max(at - window + 1, 0), at + 1)
            for j in range(at, min(at + window, n))
            if j - i >= nearest and used[i] and used[j]
        ]
        number[at] = len(values)
        mean[at] = np.mean(values) if values else np.nan
    score, pixels = cooltools_insulation(cis_rows(sp.csr_array(counts), 0, n, nearest), weights, window, nearest)
    np.testing.assert_array_equal(pixels, number)
    good = np.isfinite(mean) & (mean > 0)
    np.testing.assert_allclose(score[good], np.log2(mean / np.nanmedian(mean))[good], atol=1e-9)


def test_local_maxima():
    score = np.array([0.0, 2, 1, 1, 3, 3, 0, np.nan, 5, np.nan])
    np.testing.assert_array_equal(local_maxima(score, 1), [1, 4, 8])
    np.testing.assert_array_equal(local_maxima(score, 3), [4, 8])
    assert not len(local_maxima(np.full(4, np.nan), 2))


def test_prominence_agrees_with_scipy_away_from_the_ends():
    values = np.random.default_rng(2).normal(size=300)
    values[[0, -1]] = -9.0  # scipy measures to the ends, where there is no higher peak
    peaks, size = prominence(values)
    expected, _ = scipy.signal.find_peaks(values)
    np.testing.assert_array_equal(peaks, expected)
    brute = []
    for peak in peaks:
        sides = []
        for step in (-1, 1):
            at, lowest = peak, values[peak]
            while 0 <= at < 300 and values[at] <= values[peak]:
                lowest = min(lowest, values[at])
                at += step
            if 0 <= at < 300:
                sides.append(values[peak] - lowest)
        inner = values[1:-1]
        minima = inner[(inner < values[:-2]) & (inner < values[2:])]
        brute.append(min(sides) if sides else values[peak] - minima.min())
    np.testing.assert_allclose(size, brute)


def test_li_threshold_minimises_the_cross_entropy():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.gamma(2.0, 0.2, 300), rng.gamma(20.0, 0.2, 100)])
    found = li_threshold(values)
    shifted = values - values.min()

    def cross_entropy(threshold):
        below, above = shifted[shifted <= threshold], shifted[shifted > threshold]
        return -(below.sum() * np.log(below.mean()) + above.sum() * np.log(above.mean()))

    grid = np.quantile(shifted, np.linspace(0.02, 0.98, 300))
    best = grid[np.argmin([cross_entropy(value) for value in grid])]
    assert (
        cross_entropy(found - values.min()) <= cross_entropy(best) * (1 - 1e-3)
        or abs(found - values.min() - best) < 0.15
    )
    filters = pytest.importorskip("skimage.filters")
    np.testing.assert_allclose(found, filters.threshold_li(values), atol=1e-6)


@pytest.mark.parametrize("side", ["diamond_expected", "sides_expected"])
def test_windows_of_less_than_three_tenths_of_the_median_have_no_score(side):
    fields = {name: np.full(9, 100.0) for name in WindowSums._fields}
    fields[side] = np.array([100.0, 29.9, 30.1, 100.0, 100.0, 0.0, 100.0, 100.0, 100.0])
    score, found = contrast(WindowSums(**fields))
    assert np.flatnonzero(np.isnan(found)).tolist() == [1, 5]
    assert np.flatnonzero(np.isnan(score)).tolist() == [1, 5]
