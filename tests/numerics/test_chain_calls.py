from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from diffbio_sc.numerics.chains.two_state_host import chain_margins
from diffbio_sc.numerics.genome import chain_calls, chain_path
from diffbio_sc.numerics.genome.chain_calls import ChainModel, call_chain_peaks
from diffbio_sc.numerics.genome.false_discovery import PValueHistogram
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


def depth(start, end, length=LENGTH):
    result = np.zeros(length, int)
    for s, e in zip(start, end, strict=True):
        result[s:e] += 1
    return result


def model(start, end, **changes):
    fold, penalty = changes.pop("fold", 5.0), changes.pop("penalty", 3.0)
    return ChainModel(25, float((end - start).mean()), fold, penalty, changes.pop("log10_p", 0.0))


def call(start, end, lengths=(LENGTH,), bounds=None, control=None, background=None, **changes):
    bounds = np.array([[0, len(start)]]) if bounds is None else bounds
    if background is None:
        background = Background.without_control(
            treatment_length=float((end - start).sum()), treatment_sites=2 * len(start), genome_size=sum(lengths)
        )
    histogram = PValueHistogram()
    treatment = (start, end, bounds)
    peaks = call_chain_peaks(
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
    background = Background.with_control(
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
        alone = call_chain_peaks(
            (*part, np.array([[0, len(part[0])]])),
            (*part, np.array([[0, len(part[0])]])),
            np.array([LENGTH]),
            model(start, end),
            background,
            PValueHistogram(),
        )
        np.testing.assert_array_equal(alone.start, peaks.start[peaks.sequence == code])
    empty = (start[:0], end[:0], np.array([[0, 0]]))
    nothing = call_chain_peaks(empty, empty, np.array([LENGTH]), model(start, end), background, PValueHistogram())
    assert len(nothing.start) == 0


def test_module_is_light():
    code = (
        "import sys, diffbio_sc.numerics.genome.chain_calls, diffbio_sc.numerics.genome.macs; "
        "print(sorted({'jax', 'pandas', 'anndata'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def sparse_sample(seed, length, number, peaks):
    start, end = fragments(seed, background=number, peaks=peaks, length=length)
    return (
        start,
        end,
        Background.without_control(
            treatment_length=float((end - start).sum()), treatment_sites=2 * len(start), genome_size=length
        ),
    )


def test_bins_that_are_passed_over_are_those_of_the_most_probable_path():
    """A fragment in 800 bins, on a background that makes it count for hundreds of them."""
    length = 25 * 60_000
    peaks = ((400_000, 12), (400_900, 3), (404_000, 2), (1_200_000, 5), (1_499_900, 9), (100, 9))
    start, end, background = sparse_sample(11, length, 75, peaks)
    found, _, _ = call(start, end, lengths=(length,), background=background)
    height = depth(start, end, length).reshape(-1, 25).sum(1)
    places = np.concatenate([start, end]) // 25
    sites = np.convolve(np.pad(np.bincount(places, minlength=len(height) + 1), 200), kernel_of(200), "valid")
    level = np.maximum(background.floor, background.scales[0] * sites[: len(height)])
    size = float((end - start).mean())
    odds = (height * np.log(5.0) - 4 * 25 * level) / size
    inside = chain_margins(odds, 3.0, 3.0) > 0
    edges = np.flatnonzero(np.diff(np.r_[0, inside.astype(int), 0])).reshape(-1, 2) * 25
    assert len(found.start) == len(edges) >= 4
    assert (abs(found.start - edges[:, 0]) <= 25).all()
    assert (abs(found.end - edges[:, 1]) <= 25).all()


@pytest.mark.parametrize("shallow", [False, True])
@pytest.mark.parametrize("controlled", [False, True])
def test_passing_over_changes_no_bit(controlled, shallow):
    """Where many more fragments lie in a far corner of the piece every bin is worked on."""
    length, corner = 25 * 60_000, 25 * 50_000
    for seed in range(30):
        # Some come up where the window lets go of others, and what the path has lost until then decides.
        peaks = [(40_000 * k, 1 + k // 3) for k in range(1, 30)]
        peaks += [(place + 5300 + 20 * seed, 3) for place, _ in peaks]
        number = 20 + (13 * seed if seed > 20 else seed)
        start, end, background = sparse_sample(seed, corner, number, peaks)
        c_start, c_end = fragments(seed + 50, background=200, peaks=((80_000, 20),), length=corner)
        if controlled:
            background = Background.with_control(
                treatment_length=float((end - start).sum()),
                control_sites=2 * len(c_start),
                fragment_length=float((end - start).mean()),
                genome_size=length,
                windows=(1000, 2000, 10_000),
            )
            if shallow:
                background = background.with_uncertainty(
                    treatment_length=float((end - start).sum()),
                    treatment_sites=2 * len(start),
                    treatment_number=1000,
                    control_number=200,
                    control_sites=2 * len(c_start),
                    own_window=2000,
                )
        corner_start, corner_end = fragments(9, background=9000, peaks=())
        corner_start, corner_end = corner_start + np.int32(corner + 20_000), corner_end + np.int32(corner + 20_000)
        results, counted = [], []
        for some in (slice(0, 1), slice(0, 2), slice(1, 2)):  # the sample, with the corner, the corner alone
            sides = [(start, end), (corner_start, corner_end)][some]
            treatment = tuple(np.concatenate(column) for column in zip(*sides, strict=True))
            sides = [(c_start, c_end), (corner_start, corner_end)][some]
            control = tuple(np.concatenate(column) for column in zip(*sides, strict=True)) if controlled else treatment
            histogram = PValueHistogram()
            results.append(
                call_chain_peaks(
                    (*treatment, np.array([[0, len(treatment[0])]])),
                    (*control, np.array([[0, len(control[0])]])),
                    np.array([length]),
                    model(start, end, penalty=1.0, fold=3.0),
                    background,
                    histogram,
                )
            )
            counted.append(histogram.counts)
        few, every, _ = results
        assert len(few.start) >= 5
        kept = every.start < corner
        for name, values in few._asdict().items():
            np.testing.assert_array_equal(values, getattr(every, name)[kept], err_msg=name)
        # Of each bin the background is the same, to the width of the histogram's.
        assert counted[0].sum() > 500
        np.testing.assert_array_equal(counted[0] + counted[2], counted[1])


def test_every_bin_where_a_window_changes_is_worked_on(monkeypatch):
    monkeypatch.setattr(chain_calls, "_bin_of", chain_calls._bin_of.py_func)
    rng = np.random.default_rng(0)
    bins, block, half, origin = 8000, chain_calls._BLOCK, np.array([200, 37]), 25 * chain_calls._BLOCK
    for _ in range(20):
        positions = np.sort(rng.integers(25 * 300, 25 * (bins - 300), 9)).astype(np.int32)
        busy = np.zeros((bins + origin) // block + 1, np.uint8)
        sites = np.zeros(bins, np.int32)
        row = (positions, 0, len(positions), 0, 25 * bins, 25.0, sites, 1, True, half, busy, origin)
        chain_calls._add_sites.py_func(*row)
        np.testing.assert_array_equal(sites, np.bincount(positions // 25, minlength=bins))
        changes = [1 + np.flatnonzero(np.diff(np.convolve(sites, kernel_of(reach), "same"))) for reach in half]
        changed = np.unique(np.concatenate(changes)) + origin
        assert len(changed) >= 4 * len(positions)
        # Its block is marked, or the bin follows such a block.
        follows = (changed % block == 0) & busy[(changed - 1) // block].astype(bool)
        assert (busy[changed // block].astype(bool) | follows).all()
        assert busy.sum() <= 2 * len(half) * len(positions)


def kernel_of(reach):
    return np.r_[0.5, np.ones(2 * reach - 1), 0.5]


def test_many_steps_at_once_are_bit_by_bit_those_one_by_one(monkeypatch):
    monkeypatch.setattr(chain_path, "_lowest_alike", chain_path._lowest_alike.py_func)
    rng = np.random.default_rng(0)
    leaps = 0
    for case in range(400):
        penalty = float(rng.choice([2.5, 3.0, 60.0, 1.0]))
        step = -float(rng.choice([10 ** rng.uniform(-6, 0), 2.0**-9, 1.5 * 2.0**-53, 3 * 2.0**-54]))
        margin = float(rng.choice([rng.uniform(-1.1, 1.5) * penalty, 1.0, penalty, -penalty, 0.0, 2.0**-40]))
        stop = int(rng.integers(1, 3000))
        state = (margin, 7, 9 if case % 2 else 0, 0)
        margins, decisions = [margin], []
        for _ in range(stop - 10):
            decisions.append(int(margins[-1] < -penalty) + 2 * int(margins[-1] > penalty))
            margins.append(min(max(margins[-1], -penalty), penalty) + step)
        found = np.zeros((4, 2), int)
        path = chain_path.pass_over.py_func(chain_path.ChainPath(*state), step, 10, max(stop, 10), penalty, found)
        assert path.margin == margins[-1]
        enter = [10 + b for b, decision in enumerate(decisions) if decision == 1]
        leave = [10 + b for b, decision in enumerate(decisions) if decision == 2] or [state[2]]
        assert path.entry == (enter[-1] if enter else 7)
        assert path.leave == (0 if enter else leave[-1])
        assert path.found == (1 if enter and leave[-1] else 0)
        if path.found:
            assert found[0].tolist() == [7, leave[-1]]
        leaps += len(decisions)
    assert leaps > 100_000


def test_the_first_bin_is_worked_on_too():
    start, end = np.zeros(16, np.int32), np.full(16, 100, np.int32)
    peaks, histogram, _ = call(start, end, lengths=(50_000, 50_000), bounds=np.array([[0, 8], [8, 16]]))
    assert peaks.start.tolist() == [0, 0]
    assert peaks.end.tolist() == [100, 100]
    assert histogram.counts.sum() == 2 * 4


def test_what_the_path_loses_over_many_bins_decides():
    """Two groups of fragments are one peak as long as the bins between them cost less than to leave and to return."""
    background = Background(windows=(), scales=(), floor=1e-3)
    step = 4.0 * 25 * np.float64(np.float32(1e-3)) / 200  # of folds of 5 and fragments of 200 base pairs
    most = int(2 * 3.0 / step)  # bins, for a penalty of 3
    assert most > 10_000
    for bins, number in ((most - 1, 1), (most + 1, 2)):
        second = 2000 + 200 + 25 * bins
        start = np.repeat(np.array([2000, second], np.int32), 20)
        peaks, _, _ = call(start, start + np.int32(200), lengths=(second + 5000,), background=background)
        assert len(peaks.start) == number
