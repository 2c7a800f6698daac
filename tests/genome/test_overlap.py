"""Overlaps against loops over all pairs, and against bioframe."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from diffbio_sc.genome.overlap import Regions, chromosome_codes

NONE = np.iinfo(np.int64).max


def _random(rng, rows, codes=3, longest=9):
    start = rng.integers(0, 80, rows)
    return rng.integers(-1, codes, rows), start, start + rng.integers(1, longest, rows)


def _all_pairs(queries, regions):
    return [
        (query, region)
        for query, (code, start, end) in enumerate(zip(*queries, strict=True))
        for region, (other, first, last) in enumerate(zip(*regions, strict=True))
        if code == other and code >= 0 and start < last and first < end
    ]


@pytest.mark.parametrize("seed", range(6))
def test_overlaps_counts_and_pairs_are_those_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    # Few long regions hold many short ones; some occur twice.
    regions = [np.concatenate(parts) for parts in zip(_random(rng, 40), _random(rng, 5, longest=60), strict=True)]
    regions = [np.concatenate([part, part[:5]]) for part in regions]
    queries = _random(rng, 70, codes=4, longest=20)
    expected = _all_pairs(queries, regions)
    found = Regions(*regions)
    assert len(found) == (regions[0] >= 0).sum()
    number = np.bincount([query for query, _ in expected], minlength=70)
    np.testing.assert_array_equal(found.counts(*queries), number)
    np.testing.assert_array_equal(found.overlaps(*queries), number > 0)
    pairs = list(zip(*found.pairs(*queries), strict=True))
    assert sorted(pairs) == expected
    assert [query for query, _ in pairs] == [query for query, _ in expected]


@pytest.mark.parametrize("seed", range(3))
def test_reach_and_next_start_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    regions = _random(rng, 25, longest=30)
    code, position = rng.integers(-1, 4, 200), rng.integers(0, 120, 200)
    found = Regions(*regions)
    rows = list(zip(*regions, strict=True))
    reach, following = found.reach(code, position), found.next_start(code, position)
    for index, (own, place) in enumerate(zip(code, position, strict=True)):
        mine = [(start, end) for other, start, end in rows if other == own >= 0]
        assert reach[index] == max((end for start, end in mine if start <= place), default=0)
        assert following[index] == min((start for start, _ in mine if start > place), default=NONE)


def test_neighbours_do_not_overlap_and_chromosomes_are_apart():
    regions = Regions([0, 0, 1], [10, 20, 0], [20, 30, 2**31 - 1])
    assert regions.overlaps([0, 0, 0, 1, 2], [0, 30, 19, 5, 5], [10, 40, 21, 6, 6]).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert regions.counts(0, 19, 21).tolist() == 2
    assert regions.reach(0, [5, 25, 99]).tolist() == [0, 30, 30]


def test_no_regions_and_no_queries():
    none = Regions([], [], [])
    assert none.overlaps([0], [1], [2]).tolist() == [False]
    assert none.counts([0], [1], [2]).tolist() == [0]
    assert none.reach([0], [1]).tolist() == [0]
    assert none.next_start([0], [1]).tolist() == [NONE]
    assert [part.tolist() for part in none.pairs([0], [1], [2])] == [[], []]
    some = Regions([0], [1], [2])
    empty = np.zeros(0, np.int64)
    assert len(some.overlaps(empty, empty, empty)) == len(some.counts(empty, empty, empty)) == 0
    assert [len(part) for part in some.pairs(empty, empty, empty)] == [0, 0]


@pytest.mark.parametrize(("start", "end"), [(5, 5), (-1, 4), (0, 2**31), (9, 3)])
def test_what_is_no_region_is_refused(start, end):
    with pytest.raises(ValueError, match=rf"0 <= start < end < 2\*\*31, found 1 .* first is {start}-{end}"):
        Regions([0, 0], [1, start], [2, end])


def test_codes_of_names_are_shared_by_columns():
    categories = pd.Series(pd.Categorical(["chr1", None, "chr9"], categories=["unused", "chr9", "chr1"]))
    left, middle, right = chromosome_codes(np.array(["chr2", "chr1", "chr2"], object), categories, [])
    assert left.tolist() == [0, 1, 0]
    assert middle[0] == 1
    assert middle[1] == -1
    assert middle[2] not in (0, 1, -1)
    assert right.tolist() == []


def test_against_bioframe():
    bioframe = pytest.importorskip("bioframe")
    rng = np.random.default_rng(9)
    tables = [
        pd.DataFrame(dict(zip(("chrom", "start", "end"), (rng.choice(["a", "b"], rows), start, end), strict=True)))
        for rows in (300, 200)
        for _, start, end in [_random(rng, rows, longest=15)]
    ]
    left, right = chromosome_codes(tables[0]["chrom"], tables[1]["chrom"])
    regions = Regions(right, tables[1]["start"], tables[1]["end"])
    counts = regions.counts(left, tables[0]["start"], tables[0]["end"])
    np.testing.assert_array_equal(counts, bioframe.count_overlaps(*tables)["count"])
