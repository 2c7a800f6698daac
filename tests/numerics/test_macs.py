from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diffbio_sc.numerics.genome.macs import QValues, Runs, ScoredRuns, cut_background, macs_regions, pile_up, score_runs
from diffbio_sc.numerics.genome.site_background import Background

LENGTH = 60_000


def fragments(seed=0, *, background=1500, peaks=((20_000, 120), (41_000, 60)), length=LENGTH):
    rng = np.random.default_rng(seed)
    middle = [rng.integers(0, length, background)]
    middle += [np.round(rng.normal(place, 60, number)).astype(int) for place, number in peaks]
    middle = np.concatenate(middle)
    size = rng.integers(120, 260, len(middle))
    start = np.clip(middle - size // 2, 0, length - 2)
    end = np.clip(start + size, start + 1, length)
    order = np.argsort(start, kind="stable")
    return start[order].astype(np.int32), end[order].astype(np.int32)


def dense(runs, length=LENGTH):
    return np.repeat(runs.values, np.diff(runs.ends, prepend=0))[:length]


def depth(start, end, length=LENGTH):
    result = np.zeros(length, int)
    for s, e in zip(start, end, strict=True):
        result[s:e] += 1
    return result


def test_pile_up_counts_intervals_over_each_base_pair():
    start, end = fragments()
    runs = pile_up(start, end, LENGTH)
    assert runs.ends[-1] == LENGTH
    assert (np.diff(runs.ends) > 0).all()
    np.testing.assert_array_equal(dense(runs), depth(start, end))


def test_pile_up_of_nothing_and_of_reads_past_the_end():
    empty = np.empty(0, np.int32)
    np.testing.assert_array_equal(dense(pile_up(empty, empty, 100), 100), np.zeros(100))
    runs = pile_up(np.array([90], np.int32), np.array([500], np.int32), 100)
    np.testing.assert_array_equal(dense(runs, 100), np.r_[np.zeros(90), np.ones(10)])


@pytest.mark.parametrize("paired", [True, False])
def test_background_is_the_largest_of_floor_and_windows(paired):
    start, end = fragments(1)
    sites = np.sort(np.concatenate([start, end])) if paired else start
    background = Background((201, 1000, 4000), (0.3, 0.12, 0.04), 0.5)
    runs = cut_background(sites, background, LENGTH, fragments=paired)
    expected = np.full(LENGTH, 0.5)
    for window, scale in zip(background.windows, background.scales, strict=True):
        low, high = window // 2, window // 2 if paired else window - window // 2
        count = depth(np.maximum(sites - low, 0), np.minimum(sites + high, LENGTH))
        expected = np.maximum(expected, scale * count)
        # Runs end where any window changes, which decides the middle one of the highest runs.
        changes = np.flatnonzero(np.diff(count)) + 1
        assert set(changes) <= set(runs.ends.tolist())
    np.testing.assert_allclose(dense(runs), expected, rtol=1e-6)


def test_scores_are_poisson_tails():
    start, end = fragments(2)
    runs = score_runs(pile_up(start, end, LENGTH), Runs(np.array([LENGTH], np.int32), np.array([3.5], np.float32)))
    strict = score_runs(
        pile_up(start, end, LENGTH), Runs(np.array([LENGTH], np.int32), np.array([3.5], np.float32)), strict=True
    )
    np.testing.assert_allclose(
        runs.log10_p, -stats.poisson.logsf(runs.height - 1, 3.5) / np.log(10), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        strict.log10_p, -stats.poisson.logsf(runs.height, 3.5) / np.log(10), rtol=1e-5, atol=1e-6
    )


def test_regions_merge_over_gaps_and_short_ones_are_left_out():
    ends = np.array([100, 200, 230, 300, 600, 620, 1000], np.int32)
    height = np.array([0, 5, 1, 7, 1, 9, 0], np.float32)
    log10_p = np.array([0, 6, 1, 8, 0, 9, 0], np.float32)
    runs = ScoredRuns(ends, height, np.ones(7, np.float32), log10_p)
    found = macs_regions(runs, 5.0, gap=50, shortest=50)
    assert (found.start.tolist(), found.end.tolist(), found.summit.tolist()) == ([100], [300], [265])
    found = macs_regions(runs, 5.0, gap=20, shortest=10)
    assert list(zip(found.start, found.end, strict=True)) == [(100, 200), (230, 300), (600, 620)]
    assert len(macs_regions(runs, 50.0, gap=20, shortest=10).start) == 0


def read_macs(folder, name):
    table = pd.read_csv(folder / name, sep="\t", header=None).drop_duplicates([1, 2]).sort_values(1)
    return table[1].to_numpy(np.int32), table[2].to_numpy(np.int32)


@pytest.mark.data
def test_macs_lambda_and_p_at_its_own_summits(data_folder):
    folder = data_folder / "peaks" / "macs"
    start, end = read_macs(folder, "CTCF_PE_ChIP_chr22_50k.bedpe.gz")
    c_start, c_end = read_macs(folder, "CTCF_PE_CTRL_chr22_50k.bedpe.gz")
    macs = pd.read_csv(folder / "expected_run_callpeak_bedpe_narrow_peaks.narrowPeak", sep="\t", header=None)
    total, length = float((end - start).sum()), int(max(end.max(), c_end.max()))
    background = Background.with_control(
        treatment_length=total, control_sites=2 * len(c_start), fragment_length=total / len(start), genome_size=52e6
    )
    line = cut_background(np.sort(np.concatenate([c_start, c_end])), background, length, fragments=True)
    runs = score_runs(pile_up(start, end, length), line, strict=True)
    summit = (macs[1] + macs[9]).to_numpy()
    height, level, log10_p = (
        values[np.searchsorted(runs.ends, summit, side="right")]
        for values in (runs.height, runs.background, runs.log10_p)
    )
    # A second summit in a gap below the cut-off is given the values of its region's first run by MACS3.
    inside = log10_p > 3.45
    assert inside.mean() > 0.99
    np.testing.assert_allclose(level[inside], ((height + 1) / macs[6] - 1)[inside], rtol=1e-3)
    np.testing.assert_allclose(log10_p[inside], macs[7][inside], rtol=1e-3)
    # And its regions, which -log10 q > -log10 .05, gaps and lengths of d make.
    q_values = QValues()
    q_values.add(runs)
    threshold = q_values.threshold(-np.log10(0.05))
    found = macs_regions(runs, threshold, gap=253, shortest=253)
    theirs = set(zip(macs[1], macs[2], strict=True))
    ours = set(zip(found.start, found.end, strict=True))
    assert len(theirs & ours) >= 0.99 * len(theirs)
    assert len(ours) <= 1.01 * len(theirs)
