from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.counts.signatures import (
    fit_bulk,
    informative_genes,
    relative_error,
    remove_batch_effect,
    sampling_index,
    shrunken_profiles,
    size_without_batch_depth,
)


def test_shrunken_profiles_have_no_zero_and_sum_to_one():
    sums = np.array([[100.0, 0.0, 0.0], [0.0, 50.0, 50.0]])
    profiles = shrunken_profiles(sums)
    assert (profiles > 0).all()
    np.testing.assert_allclose(profiles.sum(1), 1)
    np.testing.assert_allclose(profiles[0, 0], (100 + 20 * 0.5) / 120)


def test_batch_factors_are_removed_also_where_a_type_is_in_one_batch_only():
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.ones(200), 3)
    factor = np.stack([np.ones(200), rng.lognormal(0, 0.7, 200)])
    totals = np.array([[1e6, 1e6, 0.0], [1e6, 0.0, 1e6]])  # type 1 only in batch 0, type 2 only in batch 1
    sums = totals[:, :, None] * profile * factor[:, None]
    naive = sums.sum(0) / sums.sum(0).sum(1, keepdims=True)
    corrected = remove_batch_effect(sums)
    corrected /= corrected.sum(1, keepdims=True)
    # Only contrasts between types are identified: compare the log ratios of types.
    truth = np.log(profile[2] / profile[1])
    error = np.std(np.log(corrected[2] / corrected[1]) - truth)
    assert np.std(np.log(naive[2] / naive[1]) - truth) > 0.6
    assert error < 0.05


def test_without_batch_effect_nothing_changes():
    rng = np.random.default_rng(1)
    sums = rng.dirichlet(np.ones(50), 4)[None] * np.array([1e6, 5e5])[:, None, None]
    np.testing.assert_allclose(remove_batch_effect(sums), sums.sum(0), rtol=1e-6)


def test_informative_genes_are_the_markers():
    profiles = np.full((4, 1000), 1e-3)
    for kind in range(4):
        profiles[kind, kind * 10 : kind * 10 + 10] *= 20
    profiles /= profiles.sum(1, keepdims=True)
    chosen = informative_genes(profiles, np.full(1000, 50.0), np.full(1000, 50.0), n_top=40)
    np.testing.assert_array_equal(chosen, np.arange(40))


def test_genes_without_counts_are_left_out():
    counts = np.array([0.0, 4.0, 5.0, 80.0])
    chosen = informative_genes(np.full((2, 4), 0.25), counts, counts[::-1] + 5, n_top=100)
    np.testing.assert_array_equal(chosen, [2, 3])


def test_bulk_composition_is_recovered_under_heavy_tailed_platform_effects():
    rng = np.random.default_rng(2)
    profiles = rng.gamma(0.3, 1.0, (5, 3000)) + 1e-4
    profiles /= profiles.sum(1, keepdims=True)
    share = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    factor = np.exp(rng.standard_t(3, 3000) * 0.5)
    fit = fit_bulk(1e7 * share @ profiles * factor, profiles)
    np.testing.assert_allclose(fit.composition / fit.composition.sum(), share, atol=0.03)
    expected = np.log(factor) - np.median(np.log(factor))
    assert np.corrcoef(fit.log_ratio, expected)[0, 1] > 0.98
    assert 0 < fit.composition_variance < 0.05


def test_sizes_of_types_do_not_follow_the_depth_of_their_batch():
    size, depth = np.array([1000.0, 3000.0, 2000.0]), np.array([1.0, 4.0])
    cells = np.array([[50, 20, 0], [5, 0, 30]])
    found = size_without_batch_depth(cells * size * depth[:, None], cells)
    np.testing.assert_allclose(found / found[0], size / size[0], rtol=1e-3)


def test_error_of_a_profile_is_its_variance_over_draws_of_cells():
    """Cells of very different sizes, which a profile does not feel; genes that vary between cells, which it does."""
    rng = np.random.default_rng(3)
    cells, genes = np.array([300, 600]), 40
    profile = rng.dirichlet(np.full(genes, 2.0), 2)
    size_variation, varying = 0.5, np.where(np.arange(genes) < 20, 0.0, 0.4)
    drawn, errors = [], []
    for _ in range(150):
        sums, squares = np.zeros((2, genes)), np.zeros(genes)
        for kind in range(2):
            size = 400 * rng.gamma(1 / size_variation, size_variation, cells[kind])
            per_cell = np.where(varying > 0, rng.gamma(2.5, 0.4, (cells[kind], genes)), 1.0)
            counts = rng.poisson(size[:, None] * profile[kind] * per_cell)
            sums[kind] = counts.sum(0)
            squares += ((counts - counts.mean(0)) ** 2).sum(0) / (1 - 1 / cells[kind])
        index = squares / sums.sum(0)
        drawn.append(shrunken_profiles(sums))
        errors.append(relative_error(sums, sampling_index(index, sums, cells, np.full(2, size_variation))))
    expected = np.var(drawn, 0) / np.mean(drawn, 0) ** 2
    ratio = np.mean(errors, 0) / expected
    for group in (varying == 0, varying > 0):
        np.testing.assert_allclose(np.median(ratio[:, group], 1), 1.0, rtol=0.2)
