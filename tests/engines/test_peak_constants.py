"""Numbers of the model, held to what they do: a change of one of them, in one engine, must show."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx
from scipy import stats

from diffbio_sc.engines.bin_peaks import Bins, call_track
from diffbio_sc.engines.interval_peaks import stream_peaks
from diffbio_sc.engines.interval_sample import prepare_sample
from diffbio_sc.engines.mark_choice import BREADTH_WIDTH, Breadth, measure_breadth
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.axis import order_bins
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.chains.two_state_host import chain_margins
from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

WIDTH, LENGTH = 50, 6000


def track(seed=0, places=((1000, 1030), (2500, 2506), (4000, 4100))):
    rng = np.random.default_rng(seed)
    mean = np.full(LENGTH, 1.5)
    for first, last in places:
        mean[first:last] *= 7
    start = WIDTH * np.arange(LENGTH)
    axis = order_bins(np.zeros(LENGTH, int), start, start + WIDTH, ["chr1"], names=start.astype(str), name="bins")
    return rng.poisson(mean).astype(np.float32), Bins(axis, float(WIDTH), 2.0)


def operator(mode, **changes):
    config = PeakCallerConfig(
        num_filters=0, bin_width=WIDTH, positions_per_read=2.0, mode=mode, min_peak_width=0, **changes
    )
    return DifferentiablePeakCaller(config, rngs=nnx.Rngs(0))


def test_bins_are_called_with_the_numbers_of_the_untrained_operator():
    """Posterior and background, narrow and broad, with and without a shallow control: fold, penalty, windows."""
    counts, bins = track()
    control = np.random.default_rng(1).poisson(0.4, LENGTH).astype(np.float32)
    for mode in ("narrow", "broad"):
        for against in (None, control):
            found = call_track(counts, against, bins, PeakSettings(mode=mode))
            data = {"signal": counts} if against is None else {"signal": counts, "control": against}
            twin = operator(mode)(data)
            np.testing.assert_allclose(found.background, twin["peak_background"], rtol=1e-4)
            np.testing.assert_allclose(found.score, twin["peak_scores"], atol=1e-3)
            np.testing.assert_allclose(found.start, twin["peak_boundaries"]["start"], atol=1e-3)


def test_log_odds_of_peaks_of_bins_are_those_of_fold_five():
    """Written out: k log 5 - 4 lambda, summed over the bins of the peak."""
    counts, bins = track()
    found = call_track(counts, None, bins, PeakSettings(mode="narrow"))
    assert len(found.table) == 2  # the third place is a broad one, that fills its window
    for start, end, odds in zip(*(found.table[name] for name in ("start", "end", "log_odds")), strict=True):
        inside = slice(start // WIDTH, end // WIDTH)
        expected = counts[inside].sum() / 2 * np.log(5.0) - 4.0 * found.background[inside].sum() / 2
        np.testing.assert_allclose(odds, expected, rtol=1e-6)


def stream(seed=0, depth=20_000, places=300):
    rng = np.random.default_rng(seed)
    size = 3_000_000
    middle = [rng.integers(300, size - 300, depth)]
    middle += [rng.normal(place, 60, rng.integers(2, 12)) for place in rng.integers(1000, size - 1000, places)]
    middle = np.concatenate(middle).astype(int)
    start = np.clip(middle - 100, 0, size - 200)
    return Intervals.from_arrays(["chr1"] * len(start), start, start + 200, sizes={"chr1": size})


def test_streamed_peaks_have_their_least_log_odds():
    """With many weak places the weakest peak called lies just above the limit of 5.5 nats, and none below."""
    tables = [stream_peaks(stream(seed), None, PeakSettings(mode="narrow", qvalue=1.0)) for seed in range(3)]
    odds = np.concatenate([table["log_odds"] for table in tables])
    assert 5.5 <= odds.min() < 5.8


def test_streamed_peaks_change_state_at_a_cost_of_two_and_a_half_nats():
    """The path of the chain with that cost and the fold that the peaks say, by the other engine on the same bins."""
    intervals = stream(4)
    table = stream_peaks(intervals, None, PeakSettings(mode="narrow", qvalue=1.0))
    start, end = intervals["chr1"][:2]
    size = intervals.sizes["chr1"]
    depth = np.cumsum(np.bincount(start, minlength=size + 1) - np.bincount(end, minlength=size + 1))[:size]
    covered = depth.reshape(-1, 25).sum(1) / 200
    sites = np.bincount(np.concatenate([start, end]) // 25, minlength=size // 25)[: size // 25]
    kernel = np.ones(401)
    kernel[[0, -1]] = 0.5
    total = 200 * len(start)
    windows = np.convolve(sites, kernel, mode="same") * total / (10_000 * 2 * len(start))
    level = np.maximum(windows, total / size)

    def called(fold, penalty):
        odds = covered * np.log(fold) - (fold - 1) * 25 * level / 200
        edges = np.diff(np.pad((chain_margins(odds, penalty, penalty) > 0).astype(np.int8), 1))
        runs = np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], 1)
        gain = np.array([odds[first:last].sum() for first, last in runs])
        height = np.array([depth[25 * first : 25 * last].max() for first, last in runs])
        here = np.array([level[first:last].mean() for first, last in runs])
        return runs[(gain >= 5.5) & (stats.poisson.sf(height - 1, here) <= 1e-2)]

    first = called(3.0, 2.5)
    fragments = sum(covered[low:high].sum() for low, high in first)
    expected = sum(25 * level[low:high].sum() / 200 for low, high in first)
    fold = np.clip(0.5 * fragments / expected, 2.0, 6.0)
    counts = {penalty: len(called(fold, penalty)) for penalty in (2.5, 4.0)}
    # Borders and summits move within a bin afterwards, and a few weak peaks with them.
    assert 0.85 * counts[2.5] < len(table) <= counts[2.5]
    assert counts[4.0] < 0.5 * counts[2.5]


def test_the_summit_of_bins_is_the_highest_of_means_of_three():
    """Weights 1/4, 1/2, 1/4: the 30 beside a 20 is the summit, on either side, and no lone bin that is higher."""
    counts = np.zeros(2000, np.float32)
    counts[::2] = 1
    for first, values in ((500, [5, 30, 20, 5]), (1000, [20, 30, 5, 5]), (1500, [33, 8, 8, 25, 25, 25])):
        counts[first : first + len(values)] = values
    start = WIDTH * np.arange(2000)
    axis = order_bins(np.zeros(2000, int), start, start + WIDTH, ["chr1"], names=start.astype(str), name="bins")
    table = call_track(counts, None, Bins(axis, float(WIDTH), 1.0), PeakSettings(mode="narrow")).table
    summits = table["start"] + table["peak"]
    assert summits.tolist() == [WIDTH * place + WIDTH // 2 for place in (501, 1001, 1504)]


def test_reads_too_few_to_tell_their_length_are_taken_as_200_bases():
    reads = Intervals.from_arrays(
        ["chr1"] * 5, np.arange(5) * 700 + 1000, np.arange(5) * 700 + 1036, strand=[1] * 5, paired=False
    )
    with pytest.warns(UserWarning, match="200 bp are taken"):
        sample = prepare_sample(reads, PeakSettings(), {"chr1": 10_000})
    assert sample.mean_length == 200
    (part,) = sample.parts
    np.testing.assert_array_equal(part.end - part.start, [200] * 5)


def test_breadth_of_a_sample_by_hand():
    """Covariances of 500 bp bins, cut at 20 times their mean, about the mean over 100 kb, at 5 kb and at 500 bp."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(np.repeat([2.0, 8.0] * 25, 40)).astype(float)
    counts[rng.choice(2000, 5, replace=False)] = 5000.0
    cut = np.minimum(counts, 20 * counts.mean())
    size = np.convolve(np.ones(len(cut)), np.ones(200), mode="full")
    smooth = np.convolve(cut, np.ones(200), mode="full") / size
    cut -= smooth[99 : 99 + len(cut)]
    near, far = (np.mean(cut[lag:] * cut[:-lag]) for lag in (1, 10))
    assert abs(measure_breadth([counts], BREADTH_WIDTH).breadth - far / near) < 1e-6


def test_a_sample_of_little_contrast_shows_no_mark():
    assert Breadth(0.1, 1.45).mark is None
    assert Breadth(0.1, 1.55).mark == "narrow"
    assert Breadth(0.6, 2.4).mark == "narrow"
    assert Breadth(0.6, 2.6).mark == "broad"


def test_a_control_of_a_thousand_reads_is_enough_whatever_the_genome():
    """On 200 Mb both controls have fewer than .1 reads for every 10 kb."""
    rng = np.random.default_rng(0)

    def draw(number):
        start = np.sort(rng.integers(0, 199_000_000, number))
        return Intervals.from_arrays(["chr1"] * number, start, start + 200, sizes={"chr1": 200_000_000})

    treatment = draw(3000)
    with pytest.raises(ValueError, match="holds 900 reads, 0.045 for every 10 kb"):
        stream_peaks(treatment, draw(900), PeakSettings(mode="narrow"))
    assert len(stream_peaks(treatment, draw(1100), PeakSettings(mode="narrow"))) == 0
