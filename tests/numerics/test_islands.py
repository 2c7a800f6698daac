"""Parts of a slide out of each other's reach, and what a far spot does to the test."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.cluster.hierarchy import fcluster, linkage

from diffbio_sc.engines.spatial_genes import call_significant
from diffbio_sc.numerics.spatial.islands import islands, main_island
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest


def same_partition(first, second):
    return len(np.unique(np.column_stack([first, second]), axis=0)) == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("axes", [2, 3])
def test_islands_are_the_clusters_of_single_linkage(axes):
    rng = np.random.default_rng(axes)
    centres = np.array([[0, 0, 0], [60, 5, 0], [0, 70, 0], [200, 200, 90]], float)[:, :axes]
    places = np.concatenate([centre + rng.uniform(0, 9, (80, axes)) for centre in centres])
    found = islands(places, np.zeros(320, int), 20.0)
    assert same_partition(found, fcluster(linkage(places), 20.0, "distance"))
    assert len(np.unique(found)) == 4
    slides = np.arange(320) % 2
    assert same_partition(islands(places, slides, 20.0), 2 * found + slides)
    assert len(np.unique(islands(places, np.zeros(320, int), 500.0))) == 1


def test_main_island_leaves_out_what_lies_apart():
    rng = np.random.default_rng(0)
    tissue = rng.uniform(0, 30, (300, 2))
    far = np.array([[1e5, 15.0], [15.0, -1e4], [300.0, 300.0]])
    np.testing.assert_array_equal(main_island(np.concatenate([tissue, far, far + 1])), np.arange(300))
    near = np.array([[80.0, 15.0]])  # a gap of 50, below two extents
    assert len(main_island(np.concatenate([tissue, near]))) == 301
    assert len(main_island(np.array([[0.0, 0.0], [5.0, 5.0]]))) == 2


@pytest.fixture(scope="module")
def lattice():
    rng = np.random.default_rng(0)
    places = np.stack([np.arange(1024) % 32, np.arange(1024) // 32], 1).astype(float)
    depth = rng.lognormal(0, 0.4, 1088)
    effect = np.ones((1088, 150))
    effect[:1024, :15] += 2.0 * (((places - 16) ** 2).sum(1) < 36)[:, None]
    mean = depth[:, None] * (rng.gamma(1.0, 2.0, 150) + 0.1) * effect
    return places, 1000 * depth, rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(float)


def log_p(places, depth, counts, **options):
    test = SpatialScoreTest(places, depth, **options)
    moments = test.moments(sp.csc_array(counts))
    return test.test(sp.csc_array(counts), moments.mean, test.classes(moments)).log_p


@pytest.mark.parametrize("lengthscales", [None, np.array([1.0, 3.0, 1e6])])
def test_one_far_spot_changes_what_one_spot_can_change(lattice, lengthscales):
    places, depth, counts = lattice
    without = log_p(places, depth[:1024], counts[:1024], lengthscales=lengthscales)
    far = np.concatenate([places, [[1e5, 1e5]]])
    found = log_p(far, depth[:1025], counts[:1025], lengthscales=lengthscales)
    near = np.concatenate([places, [[32.0, 0.0]]])  # the same reads where a spot would be expected
    allowed = np.abs(log_p(near, depth[:1025], counts[:1025], lengthscales=lengthscales) - without).max()
    assert np.abs(found - without).max() < 2.0 * allowed < 2.0
    assert np.abs(found - without).mean() < 0.03
    called = call_significant(found, np.ones(len(found)), 0.01, "bh")
    assert called.significant[:15].sum() >= 13
    assert not called.significant[15:].any()
    np.testing.assert_array_equal(
        called.significant, call_significant(without, np.ones(len(found)), 0.01, "bh").significant
    )
    assert (called.pvalue > 0).all()


def test_a_far_piece_does_not_hide_the_pattern_of_the_tissue(lattice):
    places, depth, counts = lattice
    piece = 1e5 + places[(places < 8).all(1)]
    without = log_p(places, depth[:1024], counts[:1024])
    found = log_p(np.concatenate([places, piece]), depth, counts)
    assert np.median(found[:15]) < 0.9 * np.median(without[:15])
    assert not call_significant(found, np.ones(len(found)), 0.01, "bh").significant[15:].any()


def test_the_smallest_p_value_is_not_zero():
    called = call_significant(np.array([-2000.0, -1.0, np.nan]), np.ones(3), 0.05, "bh")
    assert 0 < called.pvalue[0] < 1e-300
    assert np.isnan(called.pvalue[2])
