"""Slope of genes on the depth of the neighbourhood."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.spatial import depth_pattern
from diffbio_sc.numerics.spatial.depth_pattern import DepthPattern


def lattice(side):
    return np.stack([np.arange(side**2) % side, np.arange(side**2) // side], 1).astype(float)


def test_only_genes_of_the_pattern_follow_it():
    """Expected counts in place of counts: slopes are those of the pattern itself, whatever the capture of each spot."""
    rng = np.random.default_rng(0)
    places = lattice(40)
    wave = 1 + 0.5 * np.sin(places[:, 0] / 4)
    rate = np.stack([np.ones(1600), np.ones(1600), 2 * wave], 1)
    depth = rate.sum(1)
    found = DepthPattern(places, np.zeros(1600, int), depth).slopes(sp.csc_array(rate))
    np.testing.assert_allclose(found, [0, 0, depth.mean() / rate[:, 2].mean()], atol=0.01)
    capture = rng.lognormal(0, 0.5, (1600, 1))
    counts = capture * rate
    found = DepthPattern(places, np.zeros(1600, int), counts.sum(1)).slopes(sp.csc_array(counts))
    assert found @ counts.sum(0) == pytest.approx(counts.sum())  # 1 on average by construction
    assert np.abs(found[:2]).max() < 0.3
    assert found[2] > 1.6


def test_neighbours_are_found_a_few_spots_at_a_time(monkeypatch):
    rng = np.random.default_rng(2)
    places, values = rng.uniform(0, 9, (100, 2)), rng.normal(size=100)
    distance = np.linalg.norm(places[:, None] - places[None, :], axis=2)
    nearest = np.argsort(distance, axis=1)[:, 1:9]
    monkeypatch.setattr(depth_pattern, "_SPOTS_AT_ONCE", 7)
    found = depth_pattern._mean_of_neighbours(places, values)
    np.testing.assert_allclose(found, values[nearest].mean(1))


def test_depth_that_all_genes_share_gives_slopes_of_one_and_chance_none():
    rng = np.random.default_rng(1)
    places, groups = np.tile(lattice(20), (2, 1)), np.repeat([0, 1], 400)
    depth = np.tile(2 + np.sin(places[:400, 0] / 3), 2)
    pattern = DepthPattern(places, groups, depth)
    found = pattern.slopes(sp.csc_array(np.outer(depth, [1.0, 0.3, 0.0])))
    np.testing.assert_allclose(found[:2], 1, rtol=1e-6)
    assert pattern.clear
    assert np.isnan(found[2])
    chance = DepthPattern(places, groups, rng.lognormal(0, 0.5, 800))
    assert not chance.clear
    assert np.isnan(chance.slopes(sp.csc_array(np.ones((800, 2))))).all()
    assert not DepthPattern(places, groups, np.ones(800)).clear
