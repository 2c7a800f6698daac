"""Saddles, pile-ups and profiles of cells against loops over all pairs of bins."""

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.genome.contact_averages import (
    class_sums,
    quantile_classes,
    saddle_strength,
    trans_class_sums,
    window_means,
)
from diffbio_sc.numerics.genome.contact_cells import cell_profile, distance_edges

SIZE = 40


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    counts = np.triu(rng.poisson(2.0, (SIZE, SIZE)))
    weights = rng.uniform(0.5, 2.0, SIZE)
    weights[[3, 20]] = np.nan
    decay = 5.0 / (1 + np.arange(SIZE))
    decay[:2] = np.nan
    return counts, weights, decay


@pytest.mark.parametrize("distances", [(2, 40), (2, 8), (5, 30)])
def test_class_sums(example, distances):
    counts, weights, decay = example
    code = np.random.default_rng(1).integers(-1, 4, SIZE)
    sums, pairs = class_sums(sp.csr_array(counts), weights, decay, code, 4, distances)
    expected_sums, expected_pairs = np.zeros((4, 4)), np.zeros((4, 4))
    for i in range(SIZE):
        for j in range(i, SIZE):
            usable = np.isfinite(weights[i] * weights[j]) and min(code[i], code[j]) >= 0
            if usable and distances[0] <= j - i < distances[1]:
                value = counts[i, j] * weights[i] * weights[j] / decay[j - i]
                for a, b in ((code[i], code[j]), (code[j], code[i])):
                    expected_sums[a, b] += value
                    expected_pairs[a, b] += 1
    np.testing.assert_allclose(sums, expected_sums)
    np.testing.assert_allclose(pairs, expected_pairs)


def test_classes_are_of_like_size_without_the_tails():
    values = np.random.default_rng(2).normal(size=1000)
    values[:10] = np.nan
    code, edges = quantile_classes(values, 5, 0.05)
    assert (code[:10] == -1).all()
    numbers = np.bincount(code[code >= 0], minlength=5)
    assert np.ptp(numbers) <= 2
    assert numbers.sum() == pytest.approx(0.9 * 990, abs=2)
    assert (np.diff(edges) > 0).all()
    whole, _ = quantile_classes(np.arange(10.0), 5, 0.0)
    np.testing.assert_array_equal(whole, np.repeat(np.arange(5), 2))


def test_strength_of_a_known_saddle():
    mean = np.array([[2.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.5, 1.0, 4.0]])
    assert saddle_strength(mean, np.ones((3, 3)))[0] == pytest.approx((2 + 4) / 2 / 0.5)


@pytest.mark.parametrize("points", [([5, 10, 1], [15, 25, 38]), ([8, 20], [8, 20])])
def test_windows(example, points):
    counts, weights, decay = example
    row, column = map(np.array, points)
    sums, number = window_means(sp.csr_array(counts), weights, decay, row, column, 3, 2)
    both = counts + np.triu(counts, 1).T
    expected_sums, expected_number = np.zeros((7, 7)), np.zeros((7, 7))
    for one, two in zip(row, column, strict=True):
        for a in range(-3, 4):
            for b in range(-3, 4):
                i, j = one + a, two + b
                if 0 <= i < SIZE and 0 <= j < SIZE and abs(i - j) >= 2 and np.isfinite(weights[i] * weights[j]):
                    expected_sums[a + 3, b + 3] += both[i, j] * weights[i] * weights[j] / decay[abs(i - j)]
                    expected_number[a + 3, b + 3] += 1
    np.testing.assert_allclose(sums, expected_sums)
    np.testing.assert_array_equal(number, expected_number)


def test_profile_of_a_cell():
    rng = np.random.default_rng(3)
    chrom = np.repeat([0, 1], [25, 15])
    counts = np.triu(rng.poisson(0.8, (SIZE, SIZE)))
    label = rng.choice([-1, 1], SIZE)
    edges = distance_edges(25, 1_000_000)
    found = cell_profile(sp.csr_array(counts), chrom, edges, 1_000_000, label, 3)
    i, j = np.triu_indices(SIZE)
    value, cis, distance = counts[i, j], chrom[i] == chrom[j], j - i
    total = value[cis].sum()
    assert found.n_contacts == value.sum()
    assert found.trans_share == pytest.approx(value[~cis].sum() / value.sum())
    assert found.near_share == pytest.approx(value[cis & (distance < 2)].sum() / total)
    assert found.mitotic_share == pytest.approx(value[cis & (distance >= 2) & (distance < 12)].sum() / total)
    shares = [
        value[cis & (distance >= low) & (distance < high)].sum() / total
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    np.testing.assert_allclose(found.share, shares)
    assert found.share.sum() == pytest.approx(1.0)
    coverage = np.zeros(SIZE)
    np.add.at(coverage, i[cis], value[cis])
    np.add.at(coverage, j[cis], value[cis])
    same = label[i] == label[j]
    expected = {True: 0.0, False: 0.0}
    for d in range(3, 25):
        here = cis & (distance == d)
        product = coverage[i[here]] * coverage[j[here]]
        for kind in (True, False):
            expected[kind] += value[here].sum() * product[same[here] == kind].sum() / product.sum()
    far = cis & (distance >= 3)
    within, between = value[far & same].sum(), value[far & ~same].sum()
    assert found.strength == pytest.approx(np.log(within / between) - np.log(expected[True] / expected[False]))
    assert found.strength_error == pytest.approx(np.sqrt(1 / within + 1 / between))


def test_profile_of_an_empty_cell_is_missing():
    found = cell_profile(
        sp.csr_array((SIZE, SIZE), dtype=np.int32),
        np.zeros(SIZE, int),
        distance_edges(40, 1000),
        1000,
        np.ones(SIZE, int),
        3,
    )
    assert found.n_contacts == 0
    assert np.isnan(found.share).all()
    assert np.isnan([found.trans_share, found.near_share, found.strength]).all()


def test_equal_values_fill_all_classes():
    values = np.repeat([-1.0, 1.0], [30, 70])
    values[5] = np.nan
    code, _ = quantile_classes(values, 5, 0.0)
    assert code[5] == -1
    size = np.bincount(code[code >= 0], minlength=5)
    assert size.min() >= 19
    # Classes below the step hold low values alone, those above it high ones.
    assert (values[code == 0] == -1).all()
    assert all((values[code == high] == 1).all() for high in (2, 3, 4))
    # Equal values are not dealt out along the genome.
    assert np.abs(np.corrcoef(np.arange(30, 100), code[30:])[0, 1]) < 0.5
    code, _ = quantile_classes(values, 5, 0.1)
    assert (code == -1).sum() == 1 + 20


def test_trans_class_sums():
    rng = np.random.default_rng(4)
    chrom = np.repeat([0, 1, 2, 3], [9, 7, 5, 4])
    n = len(chrom)
    counts = np.triu(rng.poisson(1.5, (n, n)))
    counts[np.ix_(chrom == 0, chrom == 3)] = 0  # chromosomes that never meet
    weights, code = rng.lognormal(0.0, 0.3, n), rng.integers(-1, 3, n)
    weights[[2, 11]] = np.nan
    sums, pairs = trans_class_sums(sp.csr_array(counts), chrom, weights, code, 3)
    balanced = np.nan_to_num(counts * np.outer(weights, weights))
    wanted, number = np.zeros((3, 3)), np.zeros((3, 3))
    used = np.isfinite(weights)
    for a in range(4):
        for b in range(a + 1, 4):
            first, second = np.flatnonzero((chrom == a) & used), np.flatnonzero((chrom == b) & used)
            expected = balanced[np.ix_(first, second)].mean()
            for i in first:
                for j in second:
                    if code[i] >= 0 and code[j] >= 0 and expected > 0:
                        for x, y in ((code[i], code[j]), (code[j], code[i])):
                            wanted[x, y] += balanced[i, j] / expected
                            number[x, y] += 1
    np.testing.assert_allclose(sums, wanted)
    np.testing.assert_array_equal(pairs, number)
