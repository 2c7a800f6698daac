"""Decay with distance against sums over all pairs and known curves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from diffbio_sc.numerics.genome.decay import (
    DistanceSums,
    autocorrelation,
    decay_knots,
    distance_sums,
    fit_decay,
    hat_functions,
    log_smooth,
    roughness,
)
from diffbio_sc.numerics.genome.pixels import cis_rows


def test_autocorrelation_is_the_sum_over_pairs():
    values = np.random.default_rng(0).normal(size=37)
    brute = [sum(values[i] * values[i + d] for i in range(37 - d)) for d in range(37)]
    np.testing.assert_allclose(autocorrelation(values), brute, atol=1e-12)


def test_sums_by_distance():
    rng = np.random.default_rng(1)
    n = 45
    counts = np.triu(rng.poisson(2.0, (n, n)))
    weights = rng.lognormal(0.0, 0.5, n)
    weights[[4, 20]] = np.nan
    sums = distance_sums(cis_rows(sp.csr_array(counts), 0, n), weights)
    expected = np.zeros((4, n))
    for i in range(n):
        for j in range(i, n):
            if np.isfinite(weights[i] * weights[j]):
                expected[:, j - i] += [
                    1,
                    counts[i, j],
                    counts[i, j] * weights[i] * weights[j],
                    1 / (weights[i] * weights[j]),
                ]
    for found, brute in zip(sums, expected, strict=True):
        np.testing.assert_allclose(found, brute, rtol=1e-9)


def test_knots_are_whole_and_the_hats_sum_to_one():
    knots = decay_knots(2, 5000)
    assert knots[0] == 2
    assert knots[-1] == 5000
    assert (np.diff(knots) > 0).all()
    distances = np.arange(2, 5001)
    left, share = hat_functions(knots, distances)
    rebuilt = np.log(knots)[left] * (1 - share) + np.log(knots)[np.minimum(left + 1, len(knots) - 1)] * share
    np.testing.assert_allclose(rebuilt, np.log(distances), rtol=1e-12)


def test_straight_lines_in_log_distance_cost_nothing():
    knots = decay_knots(2, 3000)
    line = 3.0 - 1.3 * np.log(knots)
    assert abs(line @ roughness(knots) @ line) < 1e-9
    bent = line.copy()
    bent[len(knots) // 2] += 1.0
    assert bent @ roughness(knots) @ bent > 0.1


def test_roughness_is_the_sum_of_squared_second_differences_at_ten_knots_a_decade():
    knots = 10.0 ** (np.arange(2, 14) / 10.0)
    values = np.random.default_rng(1).normal(size=12)
    np.testing.assert_allclose(values @ roughness(knots) @ values, (np.diff(values, 2) ** 2).sum(), rtol=1e-9)
    # Half as dense: slopes are half as steep, and each stands for as much.
    np.testing.assert_allclose(
        values[:6] @ roughness(knots[::2]) @ values[:6], (np.diff(values[:6], 2) ** 2).sum() / 4, rtol=1e-9
    )


def sums_of(curve: np.ndarray, exposure: np.ndarray, rng) -> DistanceSums:
    counts = rng.poisson(curve * exposure).astype(float)
    return DistanceSums(exposure.copy(), counts, counts, exposure)


def test_power_law_comes_back_with_its_slope():
    rng = np.random.default_rng(2)
    distances = np.arange(2000.0)
    curve = 50.0 * np.maximum(distances, 1) ** -1.1
    fitted = fit_decay(sums_of(curve, 2000.0 - distances, rng), 2)
    assert np.isnan(fitted.value[:2]).all()
    middle = slice(2, 1500)
    np.testing.assert_allclose(np.log(fitted.value[middle]), np.log(curve[middle]), atol=0.05)
    np.testing.assert_allclose(fitted.slope[10:1000], -1.1, atol=0.05)


def test_without_penalty_the_fit_is_the_maximum_of_the_likelihood():
    """A fine brute-force check of the score equations: hats of observed and fitted counts agree up to the penalty."""
    rng = np.random.default_rng(3)
    distances = np.arange(400.0)
    curve = 3.0 * np.maximum(distances, 1) ** -0.8
    sums = sums_of(curve, 100.0 * (400.0 - distances), rng)
    fitted = fit_decay(sums, 2)
    good = np.arange(2, 400)
    left, share = hat_functions(fitted.knots, good)
    mean = sums.exposure[good] * fitted.value[good]
    residual = np.bincount(left, (sums.count[good] - mean) * (1 - share), len(fitted.knots)) + np.bincount(
        np.minimum(left + 1, len(fitted.knots) - 1), (sums.count[good] - mean) * share, len(fitted.knots)
    )
    np.testing.assert_allclose(residual, fitted.penalty * roughness(fitted.knots) @ fitted.log_value, atol=1e-2)


def test_value_is_positive_where_no_contact_was_seen():
    distances = np.arange(300.0)
    exposure = 300.0 - distances
    counts = np.where(distances < 50, np.rint(exposure * 5.0 / np.maximum(distances, 1)), 0.0)
    value = fit_decay(DistanceSums(exposure, counts, counts, exposure), 2).value
    assert (value[2:] > 0).all()
    assert value[200] < 1e-2 * value[40]


def test_a_short_region_takes_the_shape_and_keeps_its_level():
    rng = np.random.default_rng(4)
    distances = np.arange(1000.0)
    curve = 5.0 * np.maximum(distances, 1) ** -1.0
    whole = fit_decay(sums_of(curve, 1000.0 - distances, rng), 2)
    short = DistanceSums(*(part[:60] for part in sums_of(3.0 * curve, 60.0 - distances.clip(max=59.5), rng)))
    fitted = fit_decay(short, 2, whole)
    np.testing.assert_allclose(fitted.value[2:] / whole.value[2:60], 3.0, rtol=0.1)
    np.testing.assert_allclose((fitted.value * short.exposure)[2:].sum(), short.count[2:].sum(), rtol=1e-9)


def test_empty_region_has_no_decay():
    zero = np.zeros(10)
    assert np.isnan(fit_decay(DistanceSums(zero, zero, zero, zero), 2).value).all()
    assert np.isnan(fit_decay(DistanceSums(zero + 5, zero, zero, zero + 5), 2).value).all()


@pytest.mark.parametrize("size", [50, 700])
def test_log_smooth_keeps_constants_and_equals_the_direct_sum(size):
    distances = np.arange(1.0, size)
    rng = np.random.default_rng(5)
    values = rng.lognormal(size=size - 1)
    constant, smooth = log_smooth(distances, np.stack([np.full(size - 1, 2.5), values]))
    np.testing.assert_allclose(constant, 2.5)
    logs = np.log10(distances)
    for at in (0, size // 3):
        inside = (logs >= logs[at] - 0.5) & (logs < logs[at] + 0.5)
        kernel = np.exp(-((logs - logs[at]) ** 2) / 2 / 0.01) * inside
        np.testing.assert_allclose(smooth[at], (values * kernel).sum() / kernel.sum(), rtol=0.02)


def test_monotone_fit_is_the_best_of_the_curves_that_fall():
    """Against a general solver of the same problem; a hump among the far distances must go."""
    rng = np.random.default_rng(7)
    distances = np.arange(300.0)
    curve = 20.0 * np.maximum(distances, 1) ** -0.9 * (1.0 + 1.5 * np.exp(-(((distances - 150) / 20.0) ** 2)))
    sums = sums_of(curve, 300.0 - distances, rng)
    free, found = fit_decay(sums, 2), fit_decay(sums, 2, monotone=True)
    assert (np.diff(free.value[2:]) > 0).any()
    assert (np.diff(found.log_value) <= 1e-12).all()
    good = np.arange(2, 300)
    left, share = hat_functions(found.knots, good)
    smooth = free.penalty * roughness(free.knots)

    def loss(theta):
        log_mean = theta[left] * (1 - share) + theta[np.minimum(left + 1, len(theta) - 1)] * share
        fit = sums.exposure[good] * np.exp(log_mean) - sums.count[good] * log_mean
        return fit.sum() + 0.5 * theta @ smooth @ theta

    size = len(found.knots)
    falls = [{"type": "ineq", "fun": lambda theta: theta[:-1] - theta[1:]}]
    start = np.minimum.accumulate(free.log_value)
    best = scipy.optimize.minimize(loss, start, constraints=falls, method="SLSQP", options={"maxiter": 500})
    assert loss(found.log_value) <= best.fun + 1e-4 * abs(best.fun - loss(start)) + 1e-6 * size
    # What falls anyway is left as it is.
    plain = sums_of(20.0 * np.maximum(distances, 1) ** -0.9, 3e4 * (300.0 - distances), rng)
    np.testing.assert_array_equal(fit_decay(plain, 2, monotone=True).value, fit_decay(plain, 2).value)
