"""Loop evidence against masks written out, and the null model against counts of known dispersion."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.genome import loops
from diffbio_sc.numerics.genome.loops import LoopShape, LoopTile, default_shape, fit_null, loop_tile, strata, z_scores
from diffbio_sc.numerics.genome.pixels import cis_rows


def masks(p: int, w: int) -> dict[str, np.ndarray]:
    """The backgrounds of HiCCUPS as masks of offsets (rows, columns)."""
    y, x = np.mgrid[-w : w + 1, -w : w + 1]
    centre = (np.abs(x) <= p) & (np.abs(y) <= p)
    return {
        "donut": ~centre & (x != 0) & (y != 0),
        "lower_left": (y > 0) & (x < 0) & ~centre,
        "horizontal": (np.abs(y) <= 1) & (np.abs(x) > p),
        "vertical": (np.abs(x) <= 1) & (np.abs(y) > p),
    }


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    n = 70
    weights = rng.lognormal(0.0, 0.3, n)
    weights[[20, 45]] = np.nan
    decay = 20.0 / (1.0 + np.arange(n))
    exposure = np.nan_to_num(1.0 / weights)
    distance = np.subtract.outer(np.arange(n), np.arange(n)) * -1
    expected = np.where(distance >= 2, decay[np.abs(distance)], 0.0) * np.outer(exposure, exposure)
    counts = np.triu(rng.poisson(1.3 * expected), 2)
    return counts, weights, decay, expected


@pytest.mark.parametrize("shape", [LoopShape(1, 3, 0.8), LoopShape(2, 5, 0.9)])
@pytest.mark.parametrize(("first", "last"), [(0, 70), (17, 40), (-2, 30)])
def test_evidence_is_that_of_the_masks(example, shape, first, last):
    counts, weights, decay, expected = example
    n, p, w, a = len(counts), shape.inner, shape.outer, loops.SHRINKAGE
    tile = loop_tile(cis_rows(sp.csr_array(counts), 0, n, 2), decay, weights, shape, first, last, 2, 5, 25, 0.5)
    kernel = np.outer(shape.kernel(), shape.kernel())
    used = np.isfinite(weights)
    checked = 0
    for i in range(max(first, 0), min(last, n)):
        for d in range(5, 26):
            j, at = i + d, (i - first, d - 5)
            if i - w < 0 or j + w >= n or not used[i] or not used[j]:
                assert np.isnan(tile.expected[at])
                continue
            window = np.s_[i - w : i + w + 1, j - w : j + w + 1]
            seen = {name: (counts[window] * mask).sum() for name, mask in masks(p, w).items()}
            awaited = {name: (expected[window] * mask).sum() for name, mask in masks(p, w).items()}
            donut = (seen["donut"] + a) / (awaited["donut"] + a)
            ratios = {name: (seen[name] + a * donut) / (awaited[name] + a) for name in seen} | {"donut": donut}
            best = max(ratios, key=ratios.get)
            inner = np.s_[i - 2 : i + 3, j - 2 : j + 3]
            level = (kernel * expected[inner]).sum()
            np.testing.assert_allclose(tile.ratios[(slice(None), *at)], list(ratios.values()), rtol=1e-5)
            np.testing.assert_allclose(tile.observed[at], (kernel * counts[inner]).sum(), rtol=1e-5)
            np.testing.assert_allclose(tile.level[at], level, rtol=1e-5)
            np.testing.assert_allclose(tile.expected[at], ratios[best] * level, rtol=1e-5)
            variance = ratios[best] * (kernel**2 * expected[inner]).sum() + level**2 * ratios[best] / (
                awaited[best] + a
            )
            np.testing.assert_allclose(tile.variance[at], variance, rtol=1e-5)
            checked += 1
    assert checked > 200


def test_pairs_in_gaps_are_not_scored(example):
    counts, weights, decay, _ = example
    weights = weights.copy()
    weights[25:33] = np.nan
    rows = cis_rows(sp.csr_array(counts), 0, len(counts), 2)
    tile = loop_tile(rows, decay, weights, LoopShape(2, 5, 0.9), 0, 70, 2, 5, 25, 0.9)
    assert np.isnan(tile.expected[24]).all()
    assert np.isfinite(tile.expected[10, 0])


def test_scores_have_unit_variance_where_the_model_holds():
    rng = np.random.default_rng(1)
    mean = np.full(200_000, 12.0)
    phi = 0.05
    counts = rng.poisson(mean * rng.gamma(1 / phi, phi, len(mean)))
    tile = LoopTile(counts.astype(float), mean, mean, mean, mean)
    scores = z_scores(tile, np.float64(phi))
    # The square root of a count has a mean below that of the mean's: by 1 / (4 sqrt(f m)), with f m = 7.5 here.
    np.testing.assert_allclose([scores.mean(), scores.std()], [-0.25 / np.sqrt(7.5), 1.0], atol=0.02)
    plain = z_scores(tile, np.float64(0.0))
    assert plain.std() > 1.2


@pytest.mark.parametrize("phi", [0.0, 0.02, 0.1])
def test_null_model_finds_the_dispersion_of_each_stratum(phi):
    rng = np.random.default_rng(2)
    edges = np.array([5, 15, 40])
    mean = np.full((4000, 35), 300.0)
    noise = rng.gamma(1 / phi, phi, mean.shape) if phi else np.ones(mean.shape)
    counts = rng.poisson(mean * noise).astype(float)
    counts[:40] *= 8.0  # loops do not reach the lower half
    null = fit_null([LoopTile(counts, mean, mean, mean, np.stack([mean] * 4))], edges)
    np.testing.assert_allclose(null.dispersion, phi, atol=max(0.1 * phi, 2e-3))
    np.testing.assert_allclose(null.spread, 1.0, atol=0.06)
    assert null.of_distance(null.dispersion).shape == (35,)


def test_strata_cover_the_range():
    edges = strata(6, 200)
    assert edges[0] == 6
    assert edges[-1] == 201
    assert (np.diff(edges) >= 4).all()
    np.testing.assert_array_equal(strata(3, 4), [3, 5])


def test_shapes_by_resolution():
    assert [default_shape(resolution)[:2] for resolution in (5_000, 10_000, 25_000)] == [(4, 7), (2, 5), (1, 3)]
