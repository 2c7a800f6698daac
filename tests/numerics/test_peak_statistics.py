from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diffbio_sc.numerics.genome import peak_statistics as ps
from diffbio_sc.numerics.genome.peak_engine import chain_margins

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
    runs = ps.pile_up(start, end, LENGTH)
    assert runs.ends[-1] == LENGTH
    assert (np.diff(runs.ends) > 0).all()
    np.testing.assert_array_equal(dense(runs), depth(start, end))


def test_pile_up_of_nothing_and_of_reads_past_the_end():
    empty = np.empty(0, np.int32)
    np.testing.assert_array_equal(dense(ps.pile_up(empty, empty, 100), 100), np.zeros(100))
    runs = ps.pile_up(np.array([90], np.int32), np.array([500], np.int32), 100)
    np.testing.assert_array_equal(dense(runs, 100), np.r_[np.zeros(90), np.ones(10)])


@pytest.mark.parametrize("paired", [True, False])
def test_background_is_the_largest_of_floor_and_windows(paired):
    start, end = fragments(1)
    sites = np.sort(np.concatenate([start, end])) if paired else start
    background = ps.Background((201, 1000, 4000), (0.3, 0.12, 0.04), 0.5)
    runs = ps.cut_background(sites, background, LENGTH, fragments=paired)
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
    runs = ps.score_runs(
        ps.pile_up(start, end, LENGTH), ps.Runs(np.array([LENGTH], np.int32), np.array([3.5], np.float32))
    )
    strict = ps.score_runs(
        ps.pile_up(start, end, LENGTH), ps.Runs(np.array([LENGTH], np.int32), np.array([3.5], np.float32)), strict=True
    )
    np.testing.assert_allclose(
        runs.log10_p, -stats.poisson.logsf(runs.height - 1, 3.5) / np.log(10), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        strict.log10_p, -stats.poisson.logsf(runs.height, 3.5) / np.log(10), rtol=1e-5, atol=1e-6
    )


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    log10_p = np.concatenate([rng.exponential(1 / np.log(10), 20_000), rng.uniform(3, 30, 300)])
    histogram = ps.PValueHistogram()
    histogram.add_values(log10_p)
    expected = -np.log10(stats.false_discovery_control(10.0**-log10_p))
    np.testing.assert_allclose(histogram(log10_p), expected, atol=0.01)
    # Lengths of runs count as that many tests.
    runs = ps.PValueHistogram()
    ends = np.cumsum(np.full(len(log10_p), 3)).astype(np.int32)
    runs.add_runs(ends, log10_p.astype(np.float32))
    np.testing.assert_allclose(runs(log10_p), expected, atol=0.01)
    # Tests known to be far from significant need not be counted one by one.
    few = ps.PValueHistogram()
    few.add_values(log10_p[log10_p > 1])
    strong = expected > 1
    np.testing.assert_allclose(few(log10_p, len(log10_p))[strong], expected[strong], atol=0.01)
    assert (ps.PValueHistogram()(np.array([5.0])) >= 0).all()


def test_regions_merge_over_gaps_and_short_ones_are_left_out():
    ends = np.array([100, 200, 230, 300, 600, 620, 1000], np.int32)
    height = np.array([0, 5, 1, 7, 1, 9, 0], np.float32)
    log10_p = np.array([0, 6, 1, 8, 0, 9, 0], np.float32)
    runs = ps.ScoredRuns(ends, height, np.ones(7, np.float32), log10_p)
    found = ps.macs_regions(runs, 5.0, gap=50, shortest=50)
    assert (found.start.tolist(), found.end.tolist(), found.summit.tolist()) == ([100], [300], [265])
    found = ps.macs_regions(runs, 5.0, gap=20, shortest=10)
    assert list(zip(found.start, found.end, strict=True)) == [(100, 200), (230, 300), (600, 620)]
    assert len(ps.macs_regions(runs, 50.0, gap=20, shortest=10).start) == 0


def model(start, end, **changes):
    fold, penalty = changes.pop("fold", 5.0), changes.pop("penalty", 3.0)
    return ps.ChainModel(25, float((end - start).mean()), fold, penalty, changes.pop("log10_p", 0.0))


def call(start, end, lengths=(LENGTH,), bounds=None, control=None, background=None, **changes):
    bounds = np.array([[0, len(start)]]) if bounds is None else bounds
    if background is None:
        background = ps.Background.without_control(
            treatment_length=float((end - start).sum()), treatment_sites=2 * len(start), genome_size=sum(lengths)
        )
    histogram = ps.PValueHistogram()
    treatment = (start, end, bounds)
    peaks = ps.call_chain_peaks(
        treatment, control or treatment, np.array(lengths), model(start, end, **changes), background, histogram
    )
    return peaks, histogram, background


def bin_evidence(start, end, background, fold):
    """Coverage, background and log-odds of bins, computed at base pairs."""
    height = depth(start, end).reshape(-1, 25)
    sites = np.bincount(
        np.concatenate([start, end])[np.concatenate([start, end]) < LENGTH] // 25, minlength=LENGTH // 25
    )
    level = np.full(LENGTH // 25, background.floor)
    for window, scale in zip(background.windows, background.scales, strict=True):
        half = round(window / 50)
        kernel = np.ones(2 * half + 1)
        kernel[[0, -1]] = 0.5
        padded = np.convolve(np.pad(sites, half), kernel, mode="valid")
        level = np.maximum(level, scale * window / (2 * half * 25) * padded)
    covered = height.sum(1)
    size = float((end - start).mean())
    return covered, level, (covered * np.log(fold) - (fold - 1) * 25 * level) / size


def test_streamed_path_is_the_most_probable_one():
    start, end = fragments(3, peaks=((20_000, 120), (41_000, 60), (43_000, 25), (59_900, 40), (60, 40)))
    peaks, _, background = call(start, end)
    _, _, odds = bin_evidence(start, end, background, 5.0)
    inside = chain_margins(odds, 3.0, 3.0) > 0
    edges = np.flatnonzero(np.diff(np.r_[0, inside.astype(int), 0])).reshape(-1, 2) * 25
    assert len(edges) >= 4
    # Borders then move to base pairs, within a bin.
    assert len(peaks.start) == len(edges)
    assert (abs(peaks.start - edges[:, 0]) <= 25).all()
    assert (abs(peaks.end - edges[:, 1]) <= 25).all()


def test_peaks_carry_what_base_pairs_say():
    start, end = fragments(4)
    peaks, _, background = call(start, end, log10_p=3.0)
    height = depth(start, end)
    _, level, _ = bin_evidence(start, end, background, 5.0)
    size = (end - start).mean()
    assert len(peaks.start) == 2
    for row in range(2):
        low, high, summit = peaks.start[row], peaks.end[row], peaks.summit[row]
        assert low <= summit < high
        assert peaks.height[row] == height[summit]
        np.testing.assert_allclose(peaks.background[row], level[summit // 25], rtol=1e-4)
        tail = -stats.poisson.logsf(height[summit] - 1, level[summit // 25]) / np.log(10)
        np.testing.assert_allclose(peaks.log10_p[row], tail, rtol=1e-4)
        np.testing.assert_allclose(peaks.fragments[row], height[low:high].sum() / size, rtol=1e-9)
        expected = np.repeat(level, 25)[low:high].sum() / size
        np.testing.assert_allclose(peaks.expected[row], expected, rtol=1e-4)
        odds = peaks.fragments[row] * np.log(5) - 4 * expected
        np.testing.assert_allclose(peaks.log_odds[row], odds, rtol=1e-3)
    assert abs(peaks.summit - [20_000, 41_000]).max() < 30


def test_pieces_of_a_sequence_do_not_show():
    """A sequence longer than a piece gives the peaks of the same sequence cut out."""
    length = 25 * 70_000
    start, end = fragments(5, background=20_000, peaks=((25 * (1 << 16), 150), (900_000, 100)), length=length)
    peaks, _, background = call(start, end, lengths=(length,))
    # Same sites, moved by 10,000 bins: another place of the border between pieces.
    shift = 250_000
    moved, _, _ = call(start + shift, end + shift, lengths=(length + shift,), background=background)
    np.testing.assert_array_equal(peaks.start + shift, moved.start)
    np.testing.assert_array_equal(peaks.end + shift, moved.end)
    np.testing.assert_allclose(peaks.log10_p, moved.log10_p, rtol=1e-6)
    assert (abs(peaks.summit - 25 * (1 << 16)) < 60).any()


def test_p_values_of_bins_are_counted():
    start, end = fragments(6)
    _, histogram, background = call(start, end)
    covered, level, _ = bin_evidence(start, end, background, 5.0)
    height = covered // 25
    log10_p = -stats.poisson.logsf(height - 1, level) / np.log(10)
    for threshold in (1.5, 3.0, 6.0, 12.0):
        counted = histogram.counts[int(threshold * 256) :].sum()
        assert abs(counted - (log10_p >= threshold).sum()) <= 2


def test_control_takes_away_what_it_shows_too():
    start, end = fragments(7)
    c_start, c_end = fragments(8, peaks=((20_000, 120),))
    background = ps.Background.with_control(
        treatment_length=float((end - start).sum()),
        control_sites=2 * len(c_start),
        fragment_length=float((end - start).mean()),
        genome_size=LENGTH,
    )
    control = (c_start, c_end, np.array([[0, len(c_start)]]))
    peaks, _, _ = call(start, end, control=control, background=background, log10_p=3.0)
    assert len(peaks.start) == 1
    assert abs(peaks.summit[0] - 41_000) < 30


def test_many_sequences_and_empty_ones():
    parts = [fragments(seed) for seed in (9, 10)]
    start, end = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    cut = len(parts[0][0])
    bounds = np.array([[0, cut], [cut, cut], [cut, len(start)]])
    peaks, _, background = call(start, end, lengths=(LENGTH, LENGTH, LENGTH), bounds=bounds)
    assert set(peaks.sequence) == {0, 2}
    for code, part in ((0, parts[0]), (2, parts[1])):
        alone = ps.call_chain_peaks(
            (*part, np.array([[0, len(part[0])]])),
            (*part, np.array([[0, len(part[0])]])),
            np.array([LENGTH]),
            model(start, end),
            background,
            ps.PValueHistogram(),
        )
        np.testing.assert_array_equal(alone.start, peaks.start[peaks.sequence == code])
    empty = (start[:0], end[:0], np.array([[0, 0]]))
    nothing = ps.call_chain_peaks(empty, empty, np.array([LENGTH]), model(start, end), background, ps.PValueHistogram())
    assert len(nothing.start) == 0


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
        kept = ps.drop_duplicates(s, e, b, limit)
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
    found = ps.fragment_length_from_strands([forward], [reverse], read_length=36)
    assert abs(found - 180) < 15
    assert ps.fragment_length_from_strands([forward[:3]], [reverse[:3]], read_length=36) is None


def test_module_is_light():
    code = (
        "import sys, diffbio_sc.numerics.genome.peak_statistics; "
        "print(sorted({'jax', 'pandas', 'anndata'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


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
    background = ps.Background.with_control(
        treatment_length=total, control_sites=2 * len(c_start), fragment_length=total / len(start), genome_size=52e6
    )
    line = ps.cut_background(np.sort(np.concatenate([c_start, c_end])), background, length, fragments=True)
    runs = ps.score_runs(ps.pile_up(start, end, length), line, strict=True)
    summit = (macs[1] + macs[9]).to_numpy()
    height, level, log10_p = (
        ps.values_at(runs.ends, values, summit) for values in (runs.height, runs.background, runs.log10_p)
    )
    # A second summit in a gap below the cut-off is given the values of its region's first run by MACS3.
    inside = log10_p > 3.45
    assert inside.mean() > 0.99
    np.testing.assert_allclose(level[inside], ((height + 1) / macs[6] - 1)[inside], rtol=1e-3)
    np.testing.assert_allclose(log10_p[inside], macs[7][inside], rtol=1e-3)
    # And its regions, which -log10 q > -log10 .05, gaps and lengths of d make.
    histogram = ps.PValueHistogram()
    histogram.add_runs(runs.ends, runs.log10_p)
    threshold = np.searchsorted(histogram.macs_q_table(), -np.log10(0.05), side="right") / 256
    found = ps.macs_regions(runs, threshold, gap=253, shortest=253)
    theirs = set(zip(macs[1], macs[2], strict=True))
    ours = set(zip(found.start, found.end, strict=True))
    assert len(theirs & ours) >= 0.99 * len(theirs)
    assert len(ours) <= 1.01 * len(theirs)
