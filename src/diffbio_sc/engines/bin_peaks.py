"""Peaks of one track of counts in bins: posterior, calls and table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffbio_sc.engines.mark_choice import Breadth, choose_mark, coarsen, measure_breadth
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.axis import BinAxis
from diffbio_sc.genome.peak_table import PeakTable
from diffbio_sc.numerics.chains.two_state_host import chain_margins, chain_posterior
from diffbio_sc.numerics.genome.background_host import local_background, robust_level
from diffbio_sc.numerics.genome.chain_calls import ChainPeaks
from diffbio_sc.numerics.genome.false_discovery import PValueHistogram
from diffbio_sc.numerics.genome.marks import BROAD_BINS, LEAST_LOG10_P_BINS, LEVEL_WINDOW, NARROW_BINS, bins_of_window
from diffbio_sc.numerics.genome.poisson_tail import log_survival

__all__ = ["BinTrack", "Bins", "Caller", "call_track", "measure_counts"]


class Caller(Protocol):
    """What is used of a trained operator, a :class:`~diffbio_sc.operators.epigenomics.DifferentiablePeakCaller`."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, boundaries, logits and background."""

    def segments(self, data: Mapping[str, Any]) -> list[np.ndarray]:
        """Return the calls of each track."""


class Bins(NamedTuple):
    """Where bins lie, and how fragments were counted in them.

    Attributes
    ----------
    axis
        Their places.
    width
        Base pairs of a bin.
    positions_per_read
        Counts that one fragment makes in all bins, on average: its evidence is shared among them.
    counts_per_bin
        Counts that one fragment makes in a bin that it counts in, on average: 1, or more where both of its cut sites
        may lie in one bin. Counts divided by it are as noisy as a Poisson law says.
    """

    axis: BinAxis
    width: float
    positions_per_read: float
    counts_per_bin: float = 1.0

    def __len__(self) -> int:
        """Number of bins."""
        return len(self.axis)


class BinTrack(NamedTuple):
    """Results of one track, in the order of the bins.

    Attributes
    ----------
    score, start, end
        Posterior probability of a peak, of its first and of its last bin.
    call
        Bins of the peaks in the table.
    log10_p
        -log10 P(X >= count) of each bin.
    background
        Expected counts.
    table
        Peaks.
    broad
        Whether it was called as a broad mark.
    """

    score: np.ndarray
    start: np.ndarray
    end: np.ndarray
    call: np.ndarray
    log10_p: np.ndarray
    background: np.ndarray
    table: PeakTable
    broad: bool


class _Chain:
    """What the chain says of each bin, filled sequence by sequence."""

    def __init__(self, size: int):
        self.score, self.start, self.end = (np.zeros(size, np.float32) for _ in range(3))
        self.inside = np.zeros(size, bool)
        self.background, self.log_odds = np.zeros(size), np.zeros(size)


def call_track(
    counts: np.ndarray,
    control: np.ndarray | None,
    bins: Bins,
    settings: PeakSettings,
    *,
    operator: Caller | None = None,
    prefix: str = "",
) -> BinTrack:
    """Call the peaks of one track.

    Parameters
    ----------
    counts, control
        Counts of all bins, in their order.
    bins
        Where they lie.
    settings
        Mode and largest false discovery rate.
    operator
        A trained caller, whose calls are the result.
    prefix
        What names of peaks begin with.
    """
    counts = np.asarray(counts, np.float64)
    control = None if control is None else np.asarray(control, np.float64)
    chain = _Chain(len(counts))
    broad = False
    if counts.any():
        if operator is None:
            broad = _statistical(counts, control, bins, settings, chain)
        else:
            _trained(counts, control, bins, operator, chain)
    expected = np.maximum(chain.background * bins.positions_per_read, 1e-9)
    log10_p = np.zeros(len(counts))
    some = counts > 0
    log10_p[some] = -log_survival(counts[some] / bins.counts_per_bin, expected[some] / bins.counts_per_bin)
    log10_p /= math.log(10.0)
    runs = [run for index in bins.axis.sequences for run in _runs(index, chain.inside)]
    peaks = _describe(runs, counts, expected, log10_p, chain.log_odds, bins)
    histogram = PValueHistogram()
    histogram.add_values(log10_p)
    log10_q = histogram(peaks.log10_p)
    kept = (log10_q >= -math.log10(settings.qvalue)) & (peaks.log10_p >= LEAST_LOG10_P_BINS)
    if operator is not None:
        kept[:] = True  # what a trained caller was taught to call is not cut by a test
    call = np.zeros(len(counts), bool)
    for run, good in zip(runs, kept, strict=True):
        call[run] |= good
    mark = "trained" if operator is not None else "broad" if broad else "narrow"
    table = PeakTable.from_chain(
        bins.axis.chromosomes, ChainPeaks(*(column[kept] for column in peaks)), log10_q[kept], prefix=prefix, mark=mark
    )
    return BinTrack(chain.score, chain.start, chain.end, call, log10_p.astype(np.float32), expected, table, broad)


def measure_counts(counts: np.ndarray, bins: Bins) -> Breadth:
    """How far the counts of a track vary together."""
    reads = np.asarray(counts, np.float64) / bins.positions_per_read
    return measure_breadth(*coarsen([reads[index] for index in bins.axis.sequences], bins.width))


def _statistical(
    counts: np.ndarray, control: np.ndarray | None, bins: Bins, settings: PeakSettings, chain: _Chain
) -> bool:
    """Fill the chain by local background, count log-odds and the most probable path; whether the mark is broad."""
    reads = counts / bins.positions_per_read
    control = None if control is None else control / bins.positions_per_read
    parts = [reads[index] for index in bins.axis.sequences]
    broad = settings.mode == "broad"
    if settings.mode == "auto":
        broad = choose_mark({"the track": measure_counts(counts, bins)}) == "broad"
    mark = BROAD_BINS if broad else NARROW_BINS
    level = float(reads.mean())
    if broad:
        # A domain fills its own windows: the lower of two levels is the background instead.
        level = robust_level(parts, max(round(LEVEL_WINDOW / bins.width), 1))
    windows = mark.windows if control is None else mark.control_windows
    scale = None if control is None else float(reads.sum() / max(control.sum(), 1e-300))
    widths = [bins_of_window(window, bins.width) for window in windows]
    for index, part in zip(bins.axis.sequences, parts, strict=True):
        rate = local_background(
            part,
            widths,
            control=None if control is None else control[index],
            control_scale=scale,
            own_width=max(round(mark.own_window / bins.width), 1),
            level=level,
        )
        odds = part * math.log(mark.fold) - (mark.fold - 1.0) * rate
        posterior = chain_posterior(odds, mark.penalty, mark.penalty)
        chain.score[index], chain.start[index], chain.end[index] = posterior.inside, posterior.start, posterior.end
        chain.inside[index] = chain_margins(odds, mark.penalty, mark.penalty) > 0
        chain.background[index], chain.log_odds[index] = rate, odds
    return broad


def _trained(counts: np.ndarray, control: np.ndarray | None, bins: Bins, operator: Caller, chain: _Chain) -> None:
    """Fill the chain by a trained caller."""
    for index in bins.axis.sequences:
        data = {"signal": counts[index].astype(np.float32)}
        if control is not None:
            data["control"] = control[index].astype(np.float32)
        result = operator(data)
        chain.score[index] = np.asarray(result["peak_scores"])
        chain.start[index] = np.asarray(result["peak_boundaries"]["start"])
        chain.end[index] = np.asarray(result["peak_boundaries"]["end"])
        chain.background[index] = np.asarray(result["peak_background"], np.float64) / bins.positions_per_read
        chain.log_odds[index] = np.asarray(result["peak_logits"], np.float64)
        for first, last in operator.segments(data)[0]:
            chain.inside[index[first:last]] = True


def _runs(index: np.ndarray, inside: np.ndarray) -> list[np.ndarray]:
    """Positions of the bins of each called run of a sequence."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside[index].astype(np.int8), [0]])))
    # A bin before and after a run is needed to find its summit; see _describe.
    return [index[first:last] for first, last in edges.reshape(-1, 2)]


def _describe(
    runs: list[np.ndarray],
    counts: np.ndarray,
    expected: np.ndarray,
    log10_p: np.ndarray,
    log_odds: np.ndarray,
    bins: Bins,
) -> ChainPeaks:
    """Summit, p-value and contents of each run of bins."""
    unit = bins.positions_per_read
    # The bin of the summit is the highest of three-bin means, so that one odd bin does not decide.
    smooth = np.zeros(len(counts))
    for index in bins.axis.sequences:
        values = counts[index]
        smooth[index] = 0.5 * values
        smooth[index[1:]] += 0.25 * values[:-1]
        smooth[index[:-1]] += 0.25 * values[1:]
    top = np.array([run[int(np.argmax(smooth[run]))] for run in runs], np.int64)
    return ChainPeaks(
        bins.axis.code[top].astype(np.int64),
        np.array([bins.axis.start[run[0]] for run in runs], np.int64),
        np.array([bins.axis.end[run[-1]] for run in runs], np.int64),
        (bins.axis.start[top] + bins.axis.end[top]) // 2,
        counts[top],
        expected[top],
        log10_p[top],
        *(
            np.array([values[run].sum() for run in runs], np.float64)
            for values in (log_odds, counts / unit, expected / unit)
        ),
    )
