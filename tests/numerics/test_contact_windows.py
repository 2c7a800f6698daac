"""Sums over windows of contacts, and shares of replicates, against loops over all pixels."""

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.genome.contact_replicates import _shrunken_ratio, align_pixels, share_again
from diffbio_sc.numerics.genome.contact_windows import (
    band,
    boundary_sums,
    compartment_sums,
    grid_sums,
    square_sums,
)

SIZE = 30


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return [np.triu(rng.poisson(rate, (SIZE, SIZE))) for rate in (0.7, 1.5)]


@pytest.fixture(scope="module")
def pixels(maps):
    good = np.ones(SIZE, bool)
    good[7] = False
    return align_pixels([sp.csr_array(each) for each in maps], good)


def dense(maps):
    """The maps without what is left out."""
    kept = [np.triu(each, 2).astype(float) for each in maps]
    for each in kept:
        each[7] = each[:, 7] = 0
    return kept


def test_pixels_of_all_maps(maps, pixels):
    for number, each in enumerate(dense(maps)):
        back = np.zeros((SIZE, SIZE))
        back[pixels.row, pixels.column] = pixels.counts[:, number]
        np.testing.assert_array_equal(back, each)


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_squares(maps, pixels, reach):
    row, column = np.array([0, 3, 10, 5, 28]), np.array([6, 9, 11, 29, 29])
    found = square_sums(pixels, pixels.counts, row, column, reach)
    for number, each in enumerate(dense(maps)):
        for k in range(len(row)):
            low, left = max(row[k] - reach, 0), max(column[k] - reach, 0)
            expected = each[low : row[k] + reach + 1, left : column[k] + reach + 1].sum()
            assert found[k, number] == expected


@pytest.mark.parametrize("window", [2, 5])
def test_boundaries(maps, pixels, window):
    across, beside = boundary_sums(band(pixels, pixels.counts, 2 * window), window)
    for number, each in enumerate(dense(maps)):
        for place in range(SIZE):
            if place < window or place > SIZE - window:
                assert np.isnan(across[place, number])
                continue
            before, after = slice(place - window, place), slice(place, place + window)
            assert across[place, number] == each[before, after].sum()
            assert beside[place, number] == each[before, before].sum() + each[after, after].sum()


def test_compartments(maps, pixels):
    label = np.random.default_rng(1).choice([-1, 0, 1], SIZE)
    with_a, with_b = compartment_sums(pixels, pixels.counts, label, 4)
    for number, each in enumerate(dense(maps)):
        far = np.triu(each, 4)
        far = far + far.T
        np.testing.assert_array_equal(with_a[:, number], far @ (label == 1))
        np.testing.assert_array_equal(with_b[:, number], far @ (label == -1))


def test_grid(maps, pixels):
    row, column, counts, _ = grid_sums(pixels, pixels.counts, pixels.expected, 4, 12)
    for number, each in enumerate(dense(maps)):
        near = np.where(np.tri(SIZE, k=12, dtype=bool), each, 0)
        for k in range(len(row)):
            block = near[row[k] * 4 : row[k] * 4 + 4, column[k] * 4 : column[k] * 4 + 4]
            assert counts[k, number] == block.sum()
    assert (row < column).all()


def test_shares_hold_depth_decay_and_visibility():
    """Maps that differ in these alone have the expectation that they were drawn with."""
    rng = np.random.default_rng(2)
    size = 200
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    structure = np.exp(np.sin(np.add.outer(np.arange(size), np.arange(size)) / 15.0))
    base = 4000.0 * structure / (1 + distance)
    visibility = rng.lognormal(0, 0.2, size)
    second = 0.4 * base * (1 + distance) ** -0.15 * np.outer(visibility, visibility)
    maps = [np.triu(rng.poisson(mean)) for mean in (base, second)]
    pixels = align_pixels([sp.csr_array(each) for each in maps], np.ones(size, bool))
    truth = second / (base + second)
    found = pixels.expected[:, 1] / pixels.counts.sum(1)
    many = pixels.counts.sum(1) > 20
    ratio = np.log(found[many] / truth[pixels.row, pixels.column][many])
    assert np.abs(np.median(ratio)) < 0.01
    assert ratio.std() < 0.025
    for number in (0, 1):
        assert pixels.expected[:, number].sum() == pytest.approx(pixels.counts[:, number].sum(), rel=1e-3)


def test_shares_of_steady_bins_leave_changes_out():
    """Half of the chromosome gains far contacts: the decay of the other half is what it was."""
    rng = np.random.default_rng(3)
    size = 200
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    base = 2000.0 / (1 + distance)
    changed = np.arange(size) >= 100
    second = np.where(np.outer(changed, changed) & (distance > 20), 2.0, 1.0) * base
    maps = [sp.csr_array(np.triu(rng.poisson(mean))) for mean in (base, second)]
    pixels = align_pixels(maps, np.ones(size, bool))
    again = share_again(pixels, ~changed)
    far = (pixels.column < 100) & (pixels.distance > 30)

    def share(each):
        return each.expected[far, 1].sum() / each.counts[far].sum()

    assert share(pixels) > 0.53
    assert share(again) == pytest.approx(0.5, abs=0.01)
    # With few steady bins there is nothing to learn from: as it was.
    few = np.zeros(size, bool)
    few[:5] = True
    assert share_again(pixels, few) is pixels


def test_visibility_is_kept_by_its_share_of_the_variance():
    rng = np.random.default_rng(5)
    predicted = rng.uniform(20.0, 200.0, 400)
    found = rng.poisson(predicted * np.exp(rng.normal(0.1, 0.3, 400))).astype(float)
    found[3] = predicted[7] = 0.0
    some = (found > 0) & (predicted > 0)
    ratio = np.log((found + 0.5) / (predicted + 0.5))
    noise = 1.0 / (found + 0.5)
    deviation = np.median(np.abs(ratio[some] - np.median(ratio[some]))) * 1.4826
    own = deviation**2 - np.median(noise[some])
    assert own == pytest.approx(0.3**2, rel=0.3)
    wanted = np.where(some, np.exp(ratio * own / (own + noise)), 1.0)
    np.testing.assert_allclose(_shrunken_ratio(found, predicted), wanted)
