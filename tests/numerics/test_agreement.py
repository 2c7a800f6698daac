"""Rates at which states come back, against loops; calibration where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.chains.agreement import (
    Rates,
    border_distance,
    count_rates,
    cross_fitted_rates,
    found_again,
    overlap_matches,
    reliability,
    shrunken_rates,
    strata,
)


def test_distances_to_the_ends_of_segments():
    codes = np.array([0, 0, 0, 1, 1, 0, 2, 2, 2, 2, 2, 2])
    expected = [0, 1, 0, 0, 0, 0, 0, 1, 2, 2, 1, 0]
    assert border_distance(codes, [np.arange(12)]).tolist() == expected
    # The border of a sequence ends a segment, and positions need not be in order.
    shuffled = np.random.default_rng(0).permutation(12)
    turned = np.empty(12, int)
    turned[shuffled] = np.arange(12)
    assert border_distance(codes[shuffled], [turned[:9], turned[9:]])[turned].tolist() == [
        0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0,
    ]  # fmt: skip


@pytest.mark.parametrize("tolerance", [0, 1, 3, 50])
def test_found_again_against_a_loop(tolerance):
    rng = np.random.default_rng(1)
    one, two = rng.integers(-1, 4, 60), rng.integers(-1, 3, 60)
    matched = rng.random((4, 3)) < 0.4
    sequences = [rng.permutation(40), np.arange(40, 41), np.arange(41, 60)]
    found = found_again(one, two, matched, sequences, tolerance)
    for sequence in sequences:
        for place, position in enumerate(sequence):
            near = two[sequence[max(0, place - tolerance) : place + tolerance + 1]]
            expected = one[position] >= 0 and any(other >= 0 and matched[one[position], other] for other in near)
            assert found[position] == expected


def test_strata_have_closed_lower_ends():
    level, place = strata(np.array([0.0, 0.4, 0.95, 0.9999, 1.0]), np.array([0, 1, 2, 4, 40]))
    assert level.tolist() == [0, 1, 7, 12, 12]
    assert place.tolist() == [0, 1, 2, 3, 7]
    borders = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999]
    for index, border in enumerate(borders):
        assert strata(np.array([border - 1e-6, border]), np.zeros(2, int))[0].tolist() == [index, index + 1]
    for index, first in enumerate((1, 2, 3, 5, 9, 17, 33)):
        assert strata(np.zeros(2), np.array([first - 1, first]))[1].tolist() == [index, index + 1]


def test_counts_against_a_loop():
    rng = np.random.default_rng(2)
    codes, folds = rng.integers(-1, 3, 500), rng.integers(0, 4, 500)
    posterior, distance, found = rng.random(500), rng.integers(0, 50, 500), rng.random(500) < 0.5
    rates = count_rates(codes, posterior, distance, found, folds, 3, 4)
    level, place = strata(posterior, distance)
    expected = np.zeros((2, *rates.bins.shape))
    for cell in zip(folds, codes, level, place, found, strict=True):
        if cell[1] >= 0:
            expected[0][cell[:4]] += 1
            expected[1][cell[:4]] += cell[4]
    np.testing.assert_array_equal(rates.bins, expected[0])
    np.testing.assert_array_equal(rates.found, expected[1])


def test_rates_lie_between_their_own_and_their_parents():
    rng = np.random.default_rng(3)
    bins = rng.integers(0, 200, (3, 5, 4)).astype(float)
    found = np.floor(bins * rng.random(bins.shape))
    raw = np.divide(found, bins, out=np.full(bins.shape, np.nan), where=bins > 0)
    free = shrunken_rates(bins, found, 1e-6)
    np.testing.assert_allclose(free[bins > 0], raw[bins > 0], atol=1e-6)
    tight = shrunken_rates(bins, found, 1e12)
    np.testing.assert_allclose(tight, found.sum() / bins.sum(), rtol=1e-6)
    # Empty strata have their parent's rate, monotone in the posterior.
    hollow = bins.copy()
    hollow[:, :, 2] = 0
    rate = shrunken_rates(hollow, np.minimum(found, hollow), 10.0)[:, :, 2]
    assert (np.diff(rate, axis=1) >= -1e-12).all()


def test_a_fold_gives_nothing_to_its_own_rates():
    rng = np.random.default_rng(4)
    bins = rng.integers(1, 100, (5, 2, 13, 8)).astype(float)
    found = np.floor(bins * rng.random(bins.shape))
    fitted, _ = cross_fitted_rates(Rates(bins, found))
    changed = found.copy()
    changed[2] = bins[2] - found[2]
    again, _ = cross_fitted_rates(Rates(bins, changed))
    np.testing.assert_array_equal(fitted[2], again[2])
    assert (fitted[0] != again[0]).any()


def test_strength_follows_the_data():
    rng = np.random.default_rng(5)
    bins = np.full((6, 2, 13, 8), 400.0)
    same = rng.binomial(400, 0.7, bins.shape)
    different = rng.binomial(400, rng.uniform(0.05, 0.95, bins.shape[1:])[None], bins.shape)
    assert cross_fitted_rates(Rates(bins, same.astype(float)))[1].min() >= 1e3
    assert cross_fitted_rates(Rates(bins, different.astype(float)))[1].max() <= 10


def test_matches_by_overlap():
    joint = np.array([[90.0, 10, 0], [5, 0, 20], [4, 0, 30]])
    assert overlap_matches(joint).tolist() == [0, 2, 2]


def test_reliability_against_a_loop():
    rng = np.random.default_rng(6)
    predicted, found = np.append(rng.random(300), [1.0, 0.0]), rng.random(302) < 0.5
    number, mean, rate = reliability(predicted, found)
    for level in range(10):
        mine = (predicted >= level / 10) & ((predicted < (level + 1) / 10) | (level == 9))
        assert number[level] == mine.sum()
        assert mean[level] == pytest.approx(predicted[mine].mean())
        assert rate[level] == pytest.approx(found[mine].mean())
