from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from diffbio_sc.engines.contextual_ablation import METRICS, compare_variants, genome_blocks


def drawn(seed, n=1200, cells=3):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, cells)) < 0.4).astype(np.float32)
    labels[rng.random((n, cells)) < 0.1] = np.nan
    return rng, labels, np.nan_to_num(labels, nan=0.5)


def test_blocks_hold_neighbours_and_no_two_chromosomes():
    rng = np.random.default_rng(0)
    chromosome, start = rng.integers(0, 3, 1000), rng.integers(0, 10**6, 1000)
    blocks = genome_blocks(chromosome, start, 20)
    sizes = np.bincount(blocks)
    assert 18 <= len(sizes) <= 22
    assert sizes.min() >= 35
    assert sizes.max() <= 65
    for block in range(len(sizes)):
        mine = blocks == block
        assert len(np.unique(chromosome[mine])) == 1
        others = (chromosome == chromosome[mine][0]) & ~mine
        inside = (start[others] > start[mine].min()) & (start[others] < start[mine].max())
        assert not inside.any()
    assert (genome_blocks(np.zeros(3, int), np.arange(3), 50) == [0, 1, 2]).all()


def test_values_are_means_over_cell_types():
    rng, labels, truth = drawn(1)
    logits = rng.normal(size=(2, 2, *labels.shape)).astype(np.float32) + truth
    found = compare_variants(logits, labels, genome_blocks(np.zeros(1200, int), np.arange(1200)), n_draws=20, rng=rng)
    known = ~np.isnan(labels)
    variable = np.where(known, labels, 1).min(1) < np.where(known, labels, 0).max(1)
    for variant in range(2):
        for seed in range(2):
            scores = logits[variant, seed]
            for rows, places in ((known, (0, 1)), (known & variable[:, None], (2, 3))):
                for measure, place in zip((roc_auc_score, average_precision_score), places, strict=True):
                    cells = [measure(labels[rows[:, c], c], scores[rows[:, c], c]) for c in range(3)]
                    np.testing.assert_allclose(found.values[variant, seed, place], np.mean(cells), atol=1e-6)
    assert METRICS == ("auroc", "auprc", "auroc_variable", "auprc_variable")


def test_intervals_are_paired_and_hold_what_they_say():
    # Equal variants differ by exactly 0; a better one is told apart by less than either's own spread.
    rng, labels, truth = drawn(2)
    noise = rng.normal(size=(1, *labels.shape))
    logits = np.stack([noise + truth, noise + truth, noise + 1.3 * truth]).astype(np.float32)
    found = compare_variants(logits, labels, genome_blocks(np.zeros(1200, int), np.arange(1200)), rng=rng)
    np.testing.assert_array_equal(found.difference(1, 0, 0.95), np.zeros((4, 3)))
    better = found.difference(2, 0, 0.95)
    assert (better[:, 1] > 0).all()
    assert (better[:, 1] <= better[:, 0]).all()
    assert (better[:, 0] <= better[:, 2]).all()
    alone = np.quantile(found.draws[0, :, 0], [0.025, 0.975])
    assert better[0, 2] - better[0, 1] < 0.5 * (alone[1] - alone[0])


def test_coverage_of_no_difference():
    # Two variants of equal worth: their interval leaves 0 out in about one of twenty sets.
    missed = 0
    for seed in range(60):
        rng, labels, truth = drawn(100 + seed, n=400, cells=2)
        logits = (rng.normal(size=(2, 1, 400, 2)) + truth).astype(np.float32)
        blocks = genome_blocks(np.zeros(400, int), np.arange(400))
        low, high = compare_variants(logits, labels, blocks, n_draws=200, rng=rng).difference(1, 0, 0.95)[0, 1:]
        missed += low > 0 or high < 0
    assert missed <= 9  # the 99.5th percentile of 60 draws of .05 is 8; resampling adds little


def test_seeds_widen_the_interval():
    rng, labels, truth = drawn(3)
    blocks = genome_blocks(np.zeros(1200, int), np.arange(1200))
    noise = rng.normal(size=(1, *labels.shape))
    steady = np.repeat(noise + truth, 2, axis=0)
    strength = np.array([0.7, 1.3])[:, None, None]
    shaky = noise + strength * truth
    logits = np.stack([steady, shaky]).astype(np.float32)
    found = compare_variants(logits, labels, blocks, rng=rng)
    one, two = (np.quantile(found.draws[variant, :, 0], [0.025, 0.975]) for variant in (0, 1))
    assert two[1] - two[0] > 1.5 * (one[1] - one[0])
