"""Covered bases, and overlaps over all circular shifts, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact, gamma, kstest, norm

from diffbio_sc.numerics.genome.enrichment import (
    ShiftMoments,
    bin_pvalues,
    covered_bases,
    shift_moments,
    shift_pvalues,
)


def test_covered_bases_against_a_mask():
    rng = np.random.default_rng(0)
    mask = np.zeros(1000, bool)
    edges = np.sort(rng.choice(np.arange(5, 990), 24, replace=False)).reshape(-1, 2)
    for first, last in edges:
        mask[first:last] = True
    start = np.arange(0, 980, 37)
    end = start + rng.integers(1, 37, len(start))
    found = covered_bases(start, end, edges[:, 0], edges[:, 1])
    np.testing.assert_allclose(found, [mask[one:two].sum() for one, two in zip(start, end, strict=True)], atol=1e-9)
    assert covered_bases(start, end, edges[:0, 0], edges[:0, 1]).tolist() == [0.0] * len(start)


@pytest.mark.parametrize("length", [2, 7, 50, 101])
def test_moments_against_all_shifts(length):
    rng = np.random.default_rng(length)
    states = rng.integers(-1, 3, length)
    weights = rng.random((2, length)) * (rng.random((2, length)) < 0.4)
    found = shift_moments(states, weights, 3)
    for state in range(3):
        for row in range(2):
            overlaps = np.array(
                [
                    weights[row, (states[np.arange(length)] == state).nonzero()[0] - shift].sum()
                    for shift in range(length)
                ]
            )
            assert found.mean[state, row] == pytest.approx(overlaps.mean(), abs=1e-10)
            assert found.variance[state, row] == pytest.approx(overlaps.var(), abs=1e-10)
            assert found.third[state, row] == pytest.approx(((overlaps - overlaps.mean()) ** 3).mean(), abs=1e-10)


def runs(rng, length, on, off):
    """A track of runs."""
    lengths = rng.geometric(1 / np.tile([off, on], length // 4 + 4))
    return np.roll(np.repeat(np.tile([0, 1], length // 4 + 4), lengths)[:length], rng.integers(length))


def test_pvalues_are_uniform_where_nothing_is_tied():
    # Both features come in long runs. Shifts keep them; bins counted as independent find "enrichment" everywhere.
    rng = np.random.default_rng(1)
    by_shift, by_bin = [], []
    for _ in range(300):
        total, moments = 0.0, [0.0, 0.0, 0.0]
        counts = np.zeros(3)
        for _ in range(3):
            state, annotation = runs(rng, 1500, 30, 100), runs(rng, 1500, 20, 60)
            found = shift_moments(state, annotation[None].astype(float), 2)
            moments = [one + two[1, 0] for one, two in zip(moments, found, strict=True)]
            total += (state * annotation).sum()
            counts += [(state * annotation).sum(), state.sum(), annotation.sum()]
        by_shift.append(float(shift_pvalues(np.array(total), ShiftMoments(*map(np.array, moments)))))
        by_bin.append(float(bin_pvalues(*counts.astype(int), 4500)))
    assert kstest(by_shift, "uniform").pvalue > 0.01
    assert np.mean(np.array(by_shift) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(by_bin) < 0.05) > 0.3


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_tails_are_exact_for_a_gamma_distribution(sign):
    # Pearson's type III is a shifted gamma distribution, turned round for negative skewness.
    shape = 2.5
    values = gamma(shape).ppf([0.001, 0.2, 0.7, 0.999])
    moments = ShiftMoments(*(np.array(moment) for moment in (sign * shape, shape, sign * 2 * shape)))
    expected = 2 * np.minimum(gamma(shape).sf(values), gamma(shape).cdf(values))
    np.testing.assert_allclose(shift_pvalues(sign * values, moments), expected, rtol=1e-6)
    even = ShiftMoments(*(np.array(moment) for moment in (3.0, 4.0, 0.0)))
    np.testing.assert_allclose(shift_pvalues(np.array([3.0, 7.0]), even), [1.0, 2 * norm.sf(2)], rtol=1e-12)


def test_bins_against_fisher():
    # Half of the two-sided p-value is the smaller one-sided one.
    for both, state, annotated, bins in ((12, 40, 60, 400), (1, 40, 60, 400), (6, 40, 60, 400)):
        table = [[both, state - both], [annotated - both, bins - state - annotated + both]]
        one_sided = min(fisher_exact(table, alternative=side)[1] for side in ("greater", "less"))
        found = bin_pvalues(np.array(both), np.array(state), np.array(annotated), bins)
        assert float(found) == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)


def test_what_no_shift_changes_has_no_pvalue():
    moments = shift_moments(np.zeros(10, int), np.ones((1, 10)), 1)
    assert np.isnan(shift_pvalues(np.array([[10.0]]), moments)).all()
    single = shift_moments(np.zeros(1, int), np.ones((1, 1)), 1)
    assert (single.mean.item(), single.variance.item()) == (1.0, 0.0)
