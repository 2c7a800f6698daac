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


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float16", "float64"]
)
def test_from_arrays_of_any_kind_of_number(dtype):
    start, end = np.array([5, 100, 2], dtype), np.array([9, 120, 4], dtype)
    intervals = Intervals.from_arrays(["a", "b", "a"], start, end, strand=np.array([1, 0, 1], dtype), paired=False)
    assert _rows(intervals) == [("a", 2, 4, "+"), ("a", 5, 9, "+"), ("b", 100, 120, ".")]
    assert intervals["a"].start.dtype == np.int32


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"start": [3_000_000_000], "end": [3_000_000_100]}, r"end < 2\*\*31, found 1 .* 3000000000, 3000000100"),
        ({"start": [1.5]}, "start of intervals must be whole numbers, found 1 other values; the first is 1.5"),
        ({"end": [np.nan]}, "end of intervals must be whole numbers"),
        ({"end": [np.inf]}, "end of intervals must be whole numbers"),
        ({"start": ["1"]}, "start of intervals must be whole numbers, found <U1: '1'"),
        ({"start": [1, 2]}, r"start must have 1 values, found shape \(2,\)"),
        ({"chromosomes": [None]}, "must have a chromosome"),
        ({"strand": [2]}, "strand of intervals must be whole numbers from -1 to 1"),
        ({"strand": ["?"]}, r"strand must hold '\+', '-' or '.'"),
        ({"count": [-1]}, "count of intervals must be whole numbers from 0"),
        ({"count": [2**40]}, "count of intervals must be whole numbers from 0"),
        ({"cell_code": [1], "barcodes": ["x"]}, "cell_code of intervals must be whole numbers from 0 to 0"),
        ({"cell_code": [-1], "barcodes": ["x"]}, "cell_code of intervals must be whole numbers from 0 to 0"),
        ({"cell_code": [0], "barcodes": ["x", "x"]}, "barcodes of intervals must be unique"),
        ({"sizes": {"a": 100.5}}, "length of 'a' must be a positive whole number"),
    ],
)
def test_from_arrays_refuses_what_a_cast_would_change(change, problem):
    with pytest.raises(ValueError, match=problem):
        Intervals.from_arrays(**{"chromosomes": ["a"], "start": [1], "end": [9]} | change)


def test_a_table_and_back():
    rng = np.random.default_rng(5)
    for options in (
        {},
        {"cell_code": rng.integers(0, 3, 400), "barcodes": ["x", "y", "z"], "count": rng.integers(1, 5, 400)},
        {"strand": rng.integers(-1, 2, 400), "paired": False},
    ):
        intervals = _random(np.random.default_rng(4), **options)
        again = Intervals.from_frame(intervals.to_frame(), paired=intervals.paired)
        assert _rows(again) == _rows(intervals)
    with pytest.raises(KeyError, match=r"no columns \['chrom'\]; columns: \['start', 'end'\]"):
        Intervals.from_frame(intervals.to_frame()[["start", "end"]])


def test_reads_without_a_strand_are_not_taken_for_forward_ones():
    reads = Intervals.from_arrays(["a"] * 3, [10, 40, 80], [20, 50, 90], strand=["+", "-", "."], paired=False)
    with pytest.warns(UserWarning, match="1 of 3 reads have no strand and are extended about their middle"):
        extended = reads.extend(30)
    assert _rows(extended) == [("a", 10, 40), ("a", 20, 50), ("a", 70, 100)]
    with pytest.raises(ValueError, match="have no strand"):
        Intervals.from_arrays(["a"], [10], [20], strand=["."], paired=False).extend(30)
    empty = Intervals.from_arrays([], [], [], strand=[], paired=False)
    assert len(empty.extend(30)) == 0


def test_ends_are_shifted_as_tn5_cuts():
    fragments = Intervals.from_arrays(["a"] * 3, [10, 0, 95], [20, 6, 100], count=[1, 2, 3], sizes={"a": 100})
    assert _rows(fragments.shift_ends(4, -5)) == [("a", 14, 15, 1)]
    assert _rows(fragments.shift_ends(-4, 5)) == [("a", 0, 11, 2), ("a", 6, 25, 1), ("a", 91, 100, 3)]
    assert _rows(fragments) == [("a", 0, 6, 2), ("a", 10, 20, 1), ("a", 95, 100, 3)]
    reads = Intervals.from_arrays(["a"] * 3, [10, 10, 10], [60, 61, 62], strand=[1, -1, 0], paired=False)
    assert _rows(reads.shift_ends(4, -5)) == [("a", 10, 56, "-"), ("a", 10, 62, "."), ("a", 14, 60, "+")]
    with pytest.raises(ValueError, match="shift must be a whole number"):
        reads.shift_ends(4.5, 0)


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
    with pytest.raises(ValueError, match="no chromosome in common.*prefix 'chr'"):
        fragments.exclude(Intervals.from_arrays(["1"], [1], [2], name="blacklist"))
    # A blacklist of the mitochondrion alone is legal for data without it.
    with pytest.warns(
        UserWarning, match=r"no region of blacklist lies on a chromosome of intervals: \['chrMT'\] against"
    ):
        kept = fragments.exclude(Intervals.from_arrays(["chrMT"], [1], [2], name="blacklist"))
    assert _rows(kept) == _rows(fragments)


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
