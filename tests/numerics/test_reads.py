from __future__ import annotations

import numpy as np
import pandas as pd

from diffbio_sc.numerics.genome.duplicates import drop_duplicates
from diffbio_sc.numerics.genome.fragment_length import fragment_length_from_strands


def test_duplicates_are_dropped_in_place():
    rng = np.random.default_rng(0)
    start = np.sort(rng.integers(0, 40, 300)).astype(np.int32)
    end = (start + rng.integers(10, 14, 300)).astype(np.int32)
    bounds = np.array([[0, 120], [120, 300]], np.int64)
    expected = {}
    for limit in (1, 2):
        rows = []
        for first, last in bounds:
            pairs = pd.Series(list(zip(start[first:last], end[first:last], strict=True)))
            rows.append(sorted(pairs[pairs.groupby(pairs).cumcount() < limit]))
        expected[limit] = rows
    for limit in (1, 2):
        s, e, b = start.copy(), end.copy(), bounds.copy()
        kept = drop_duplicates(s, e, b, limit)
        assert kept == b[-1, 1] == sum(map(len, expected[limit]))
        for (first, last), rows in zip(b, expected[limit], strict=True):
            assert (np.diff(s[first:last]) >= 0).all()
            assert sorted(zip(s[first:last], e[first:last], strict=True)) == rows


def test_fragment_length_is_found_from_strands():
    rng = np.random.default_rng(0)
    place = np.repeat(rng.integers(1000, 1_000_000, 200), 20)
    size = rng.normal(180, 15, len(place)).astype(int)
    left = place + rng.integers(-30, 30, len(place))
    noise = rng.integers(0, 1_000_000, 4000)
    forward = np.sort(np.concatenate([left, noise]))
    reverse = np.sort(np.concatenate([left + size, rng.integers(0, 1_000_000, 4000)]))
    found = fragment_length_from_strands([forward], [reverse], read_length=36)
    assert abs(found - 180) < 15
    assert fragment_length_from_strands([forward[:3]], [reverse[:3]], read_length=36) is None


def pairs(distances):
    """Forward and reverse ends so far apart that each has one partner within reach."""
    forward = 2000 * np.arange(1, len(distances) + 1)
    return [forward], [forward + np.asarray(distances)]


def test_the_length_is_the_most_frequent_over_a_window_of_31_bases():
    """40 pairs at 150 bp exactly against 310 spread evenly over 285 to 315: the spike is not the typical length."""
    assert fragment_length_from_strands(*pairs([150] * 40 + [285 + k for k in range(31)] * 10), read_length=36) == 300


def test_distances_about_the_length_of_the_reads_are_left_out():
    """Unmappable places make a false peak at the length of the reads, 100 bp: twice as high as that at 250."""
    distances = [103] * 200 + [250 + k for k in range(-7, 8)] * 7
    assert abs(fragment_length_from_strands(*pairs(distances), read_length=100) - 250) <= 8
    assert abs(fragment_length_from_strands(*pairs(distances), read_length=36) - 103) <= 15
