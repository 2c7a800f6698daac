"""Loops of several resolutions as one list, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.genome.loop_merging import merge_loops


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_merging_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    number = 120
    anchors = np.sort(rng.integers(0, 1_200_000, (number, 2)), axis=1).astype(float)
    chrom, resolution = rng.integers(0, 2, number), rng.choice([5_000, 10_000, 25_000], number)
    found = merge_loops(anchors, chrom, resolution, 2.0)
    kept = []
    for i in range(number):
        same = [
            j
            for j in range(number)
            if chrom[i] == chrom[j]
            and resolution[i] != resolution[j]
            and np.abs(anchors[i] - anchors[j]).max() <= 2 * max(resolution[i], resolution[j])
        ]
        if not any(resolution[j] < resolution[i] for j in same):
            kept.append(i)
    assert found.kept.tolist() == kept
    assert 0 < len(kept) < number
    assert (found.n_resolutions >= 1).all()
    assert (found.n_resolutions <= 3).all()


def test_a_loop_counts_each_resolution_once_and_chromosomes_stay_apart():
    anchors = np.array([[100_000, 500_000], [105_000, 510_000], [95_000, 490_000], [130_000, 520_000], [1e5, 5e5]])
    resolution = np.array([5_000, 10_000, 10_000, 25_000, 10_000])
    found = merge_loops(anchors, np.array([0, 0, 0, 0, 1]), resolution, 2.0)
    assert found.kept.tolist() == [0, 4]
    assert found.n_resolutions.tolist() == [3, 1]
    alone = merge_loops(anchors, np.array([0, 0, 0, 0, 1]), resolution, 0.5)
    assert alone.kept.tolist() == [0, 1, 2, 3, 4]


def test_nothing_to_merge():
    found = merge_loops(np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64), 2.0)
    assert len(found.kept) == len(found.n_resolutions) == 0
