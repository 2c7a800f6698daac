"""What Intervals do, against brute force."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from diffbio_sc.io import Intervals


def _random(rng, rows=400, **options):
    start = rng.integers(0, 60, rows)
    columns = {
        "chromosomes": rng.choice(["chr2", "chr1", "chrM"], rows),
        "start": start,
        "end": start + rng.integers(1, 6, rows),
    }
    return Intervals.from_arrays(**columns, **options)


def _rows(intervals):
    frame = intervals.to_frame()
    return [tuple(row) for row in frame.astype(object).itertuples(index=False)]


def test_from_arrays_sorts_and_keeps_the_order_of_chromosomes():
    intervals = Intervals.from_arrays(
        ["b", "a", "b", "a"], [9, 5, 1, 2], [10, 8, 4, 3], cell_code=[0, 1, 1, 0], barcodes=["x", "y"]
    )
    assert intervals.chromosomes == ["b", "a"]
    assert intervals["b"].start.tolist() == [1, 9]
    assert intervals["b"].cell_code.tolist() == [1, 0]
    assert _rows(intervals) == [("b", 1, 4, "y"), ("b", 9, 10, "x"), ("a", 2, 3, "x"), ("a", 5, 8, "y")]
    assert "a" in intervals
    assert list(intervals) == ["b", "a"]
    assert "2 barcodes" in repr(intervals)
    with pytest.raises(KeyError, match=r"no chromosome 'chr1'; it has \['b', 'a'\]"):
        intervals["chr1"]
    assert _rows(pickle.loads(pickle.dumps(intervals))) == _rows(intervals)


@pytest.mark.parametrize("bad", [{"start": [5], "end": [5]}, {"start": [-1], "end": [5]}])
def test_from_arrays_refuses_what_is_no_interval(bad):
    with pytest.raises(ValueError, match="0 <= start < end"):
        Intervals.from_arrays(["a"], **bad)


def test_large_and_small_groups_sort_alike():
    rng = np.random.default_rng(0)
    for rows in (100, 9000):
        start = rng.integers(0, 2**30, rows)
        for extra in ({}, {"strand": rng.choice([-1, 1], rows)}):
            intervals = Intervals.from_arrays(np.repeat("a", rows), start, start + 7, **extra)
            np.testing.assert_array_equal(intervals["a"].start, np.sort(start))
            np.testing.assert_array_equal(intervals["a"].end, np.sort(start) + 7)
            if extra:
                order = np.argsort(start, kind="stable")
                np.testing.assert_array_equal(intervals["a"].strand, extra["strand"][order])


@pytest.mark.parametrize("limit", [1, 2])
def test_duplicates_of_fragments(limit):
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 3, 4000)
    fragments = _random(rng, 4000, cell_code=cells, barcodes=["a", "b", "c"])
    kept = fragments.deduplicate(limit)
    expected = {row: min(count, limit) for row, count in Counter(_rows(fragments)).items()}
    assert dict(Counter(_rows(kept))) == expected


def test_duplicates_of_reads_share_first_base_and_strand():
    reads = Intervals.from_arrays(
        ["a"] * 6,
        [10, 10, 12, 14, 10, 10],
        [20, 25, 20, 20, 20, 20],
        strand=[1, 1, -1, -1, -1, 1],
        paired=False,
    )
    # Forward reads at 10 are one kind whatever their end, reverse reads that end at 20 whatever their start.
    assert Counter(reads.deduplicate()["a"].strand.tolist()) == {1: 1, -1: 1}
    with pytest.raises(ValueError, match="limit"):
        reads.deduplicate(0)


def test_exclude_leaves_out_every_overlap_and_nothing_else():
    rng = np.random.default_rng(2)
    fragments, regions = _random(rng, 500), _random(rng, 12)
    nested = Intervals.from_arrays(["chr1", "chr1"], [5, 6], [50, 8])
    for blocked in (regions, nested):
        expected = [
            row
            for row in _rows(fragments)
            if not any(row[0] == b[0] and row[1] < b[2] and b[1] < row[2] for b in _rows(blocked))
        ]
        assert _rows(fragments.exclude(blocked)) == expected
    with pytest.raises(ValueError, match="no chromosome in common"):
        fragments.exclude(Intervals.from_arrays(["x"], [1], [2], name="blacklist"))


def test_extension_goes_along_the_strand_and_stays_inside():
    reads = Intervals.from_arrays(
        ["a"] * 4, [10, 90, 10, 95], [15, 95, 15, 98], strand=[1, 1, -1, -1], paired=False, sizes={"a": 100}
    )
    extended = reads.extend(20)
    assert sorted(zip(*extended["a"][:2], strict=True)) == [(0, 15), (10, 30), (78, 98), (90, 100)]
    assert extended.paired
    assert reads["a"].start.tolist() == [10, 10, 90, 95]
    with pytest.raises(ValueError, match="whole fragments already"):
        extended.extend(20)
    with pytest.raises(ValueError, match="have no strand"):
        Intervals.from_arrays(["a"], [1], [2], paired=False).extend(20)


def test_selecting_and_renaming_chromosomes():
    fragments = _random(np.random.default_rng(3), sizes={"chr1": 100, "chr2": 100, "chrM": 100})
    chosen = fragments.select_chromosomes(["chr1", "absent"])
    assert _rows(chosen) == [row for row in _rows(fragments) if row[0] == "chr1"]
    assert len(chosen["absent"].start) == 0
    renamed = fragments.rename_chromosomes({"chr1": "1"})
    assert set(renamed.chromosomes) == {"1", "chr2", "chrM"} == set(renamed.sizes)
    np.testing.assert_array_equal(renamed["1"].start, fragments["chr1"].start)
