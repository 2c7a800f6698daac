"""Pile-ups and bin counts against loops over each base."""

from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.genome.pileup import depth_sums, overlap_counts, pileup, point_counts, value_sums

SIZE = 97


def _intervals(rng, rows):
    start = rng.integers(0, SIZE - 1, rows)
    return start, np.minimum(start + rng.integers(1, 30, rows), SIZE)


def _depth(start, end, weight):
    depth = np.zeros(SIZE, np.int64)
    for first, last, times in zip(start, end, weight, strict=True):
        depth[first:last] += times
    return depth


@pytest.mark.parametrize("rows", [0, 1, 2, 60])
@pytest.mark.parametrize("weighted", [False, True])
def test_pileup_base_by_base(rows, weighted):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        start, end = _intervals(rng, rows)
        weight = rng.integers(1, 5, rows) if weighted else None
        expected = _depth(start, end, np.ones(rows, int) if weight is None else weight)
        runs = pileup(start, end, weight=weight, size=SIZE)
        assert runs.end[-1] == SIZE
        np.testing.assert_array_equal(np.repeat(runs.value, runs.end - runs.start), expected)
        assert (np.diff(runs.value) != 0).all()
        open_ended = pileup(start, end, weight=weight)
        covered = int(end.max(initial=0))
        np.testing.assert_array_equal(
            np.repeat(open_ended.value, open_ended.end - open_ended.start), expected[:covered]
        )
        sums = [expected[first : first + 7].sum() for first in range(0, SIZE, 7)]
        np.testing.assert_array_equal(value_sums(runs.start, runs.end, runs.value, 7, len(sums)), sums)


@pytest.mark.parametrize("width", [1, 7, 10, 200])
def test_bins_base_by_base(width):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        start, end = _intervals(rng, 50)
        weight = rng.integers(1, 5, 50)
        borders = np.arange(0, SIZE, width)
        for bins in (len(borders), max(len(borders) - 2, 1)):
            touched = np.array([(start < first + width) & (end > first) for first in borders[:bins]])
            np.testing.assert_array_equal(overlap_counts(start, end, width, bins), touched.sum(axis=1))
            np.testing.assert_array_equal(overlap_counts(start, end, width, bins, weight), touched @ weight)
            depth = _depth(start, end, np.ones(50, int))
            sums = [depth[first : first + width].sum() for first in borders[:bins]]
            np.testing.assert_array_equal(depth_sums(start, end, width, bins), sums)
            counts = [np.sum((start >= first) & (start < first + width)) for first in borders[:bins]]
            np.testing.assert_array_equal(point_counts(start, width, bins), counts)
            counts = [np.sum(weight[(start >= first) & (start < first + width)]) for first in borders[:bins]]
            np.testing.assert_array_equal(point_counts(start, width, bins, weight), counts)


def test_bins_of_one_base_are_the_depth():
    start, end = _intervals(np.random.default_rng(0), 80)
    np.testing.assert_array_equal(overlap_counts(start, end, 1, SIZE), _depth(start, end, np.ones(80, int)))


def test_no_count_is_lost_where_float32_would_lose_it():
    rows = 17_000_001  # float32 has no 17,000,001
    start, end = np.full(rows, 3, np.int32), np.full(rows, 5, np.int32)
    runs = pileup(start, end)
    assert runs.end.tolist() == [3, 5]
    assert runs.value.tolist() == [0, rows]
    assert depth_sums(start, end, 10, 1).tolist() == [2 * rows]
    assert overlap_counts(start, end, 10, 1).tolist() == [rows]
    weight = np.array([2**40, 1])
    assert pileup(np.array([0, 0]), np.array([1, 1]), weight=weight).value.tolist() == [2**40 + 1]


def test_values_over_bins():
    sums = value_sums(np.array([0, 8]), np.array([3, 25]), np.array([0.5, 2.0]), 10, 2)
    np.testing.assert_allclose(sums, [1.5 + 4, 20])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int64", "uint64", "float16", "float64"])
def test_positions_and_weights_of_any_kind_of_number(dtype):
    start, end, weight = np.array([0, 5, 5]), np.array([9, 100, 7]), np.array([100, 120, 90])
    value = np.array([100, 120, 90])
    narrow = [part.astype(dtype) for part in (start, end, weight)]
    for found, expected in (
        (pileup(*narrow[:2], weight=narrow[2]), pileup(start, end, weight=weight)),
        (overlap_counts(*narrow[:2], 10, 10, narrow[2]), overlap_counts(start, end, 10, 10, weight)),
        (point_counts(narrow[0], 10, 10, narrow[2]), point_counts(start, 10, 10, weight)),
        (depth_sums(*narrow[:2], 10, 10), depth_sums(start, end, 10, 10)),
        (value_sums(start, end, value.astype(dtype), 10, 10), value_sums(start, end, value, 10, 10)),
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="weights must be whole numbers"):
        pileup(start, end, weight=weight + 0.5)
    with pytest.raises(ValueError, match="positions must be whole numbers"):
        overlap_counts(start + 0.5, end, 10, 10)


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [([1, 2], [3], "one length"), ([-1], [3], "0 <= start < end"), ([3], [3], "0 <= start"), ([5], [200], "clip")],
)
def test_bad_intervals(start, end, problem):
    with pytest.raises(ValueError, match=problem):
        pileup(np.array(start), np.array(end), size=SIZE)
