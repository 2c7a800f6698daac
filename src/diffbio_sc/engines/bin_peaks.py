"""Peaks of one track of counts in bins: posterior, calls and table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc.engines.interval_peaks import make_table, robust_breadth
from diffbio_sc.numerics.genome.peak_engine import (
    broad_weight,
    chain_margins,
    chain_posterior,
    local_background,
    robust_level,
)
from diffbio_sc.numerics.genome.peak_statistics import ChainPeaks, PValueHistogram
from diffbio_sc.numerics.genome.poisson_tail import log_survival

if TYPE_CHECKING:
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller

# Narrow and broad marks: those of the untrained operator.
FOLD, NARROW_PENALTY, BROAD_PENALTY = 5.0, 3.0, 60.0
WINDOWS, CONTROL_WINDOWS, LEVEL_WINDOW = (10_000,), (250, 1000, 10_000), 2000
LEAST_LOG10_P = 3.0
_COARSE = 500


class BinTrack(NamedTuple):
    """Results of one track, in the order of the axis.

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
    table: pd.DataFrame
    broad: bool


class BinSettings(NamedTuple):
    """How to call peaks of bins; see :func:`diffbio_sc.tl.peaks`."""

    mode: str
    qvalue: float
    width: float
    positions_per_read: float
    operator: DifferentiablePeakCaller | None


def call_track(
    counts: np.ndarray, control: np.ndarray | None, axis: Any, settings: BinSettings, prefix: str
) -> BinTrack:
    """Call the peaks of one track.

    Parameters
    ----------
    counts, control
        Counts of all bins, in the order of the axis.
    axis
        The :class:`~diffbio_sc._anndata.genome_axis.GenomeAxis`.
    settings, prefix
        How, and what names of peaks begin with.
    """
    counts = np.asarray(counts, np.float64)
    size = len(counts)
    score, start, end = np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    background = np.zeros(size)
    inside = np.zeros(size, bool)
    log_odds = np.zeros(size)
    broad = False
    if counts.any():
        reads = counts / settings.positions_per_read
        control_reads = None if control is None else np.asarray(control, np.float64) / settings.positions_per_read
        if settings.operator is None:
            broad = _statistical(
                reads, control_reads, axis.sequences, settings, score, start, end, background, inside, log_odds
            )
        else:
            _trained(counts, control, axis.sequences, settings, score, start, end, background, inside, log_odds)
    expected = np.maximum(background * settings.positions_per_read, 1e-9)
    log10_p = np.zeros(size)
    some = counts > 0
    log10_p[some] = -log_survival(counts[some], expected[some]) / math.log(10.0)
    histogram = PValueHistogram()
    histogram.add_values(log10_p)
    return _tabulate(
        counts, axis, settings, prefix, score, start, end, inside, log_odds, log10_p, expected, histogram, broad
    )


def _statistical(reads, control, sequences, settings, score, start, end, background, inside, log_odds) -> bool:
    """Fill the arrays by local background, count log-odds and the two-state chain."""
    parts = [reads[index] for index in sequences]
    broad = settings.mode == "broad"
    if settings.mode == "auto":
        broad = broad_weight(_breadth(parts, settings.width)) > 0.5
    level = float(reads.mean())
    windows: tuple[int, ...] = WINDOWS if control is None else CONTROL_WINDOWS
    penalty = NARROW_PENALTY
    if broad:
        # A domain fills its own windows: the lower of two levels is the background instead.
        level = robust_level(parts, max(round(LEVEL_WINDOW / settings.width), 1))
        windows = () if control is None else CONTROL_WINDOWS[-1:]
        penalty = BROAD_PENALTY
    scale = None if control is None else float(reads.sum() / max(control.sum(), 1e-300))
    widths = [max(round(window / settings.width), 1) for window in windows]
    for index, part in zip(sequences, parts, strict=True):
        rate = local_background(
            part, widths, control=None if control is None else control[index], control_scale=scale, level=level
        )
        odds = part * math.log(FOLD) - (FOLD - 1.0) * rate
        posterior = chain_posterior(odds, penalty, penalty)
        score[index], start[index], end[index] = posterior.inside, posterior.start, posterior.end
        inside[index] = chain_margins(odds, penalty, penalty) > 0
        background[index], log_odds[index] = rate, odds
    return broad


def _breadth(parts: Sequence[np.ndarray], width: float) -> float:
    """Breadth of a mark, from bins of about 500 bp."""
    factor = max(int(round(_COARSE / width)), 1)
    coarse = [part[: len(part) // factor * factor].reshape(-1, factor).sum(1) for part in parts]
    return robust_breadth(coarse, factor * width)


def _trained(counts, control, sequences, settings, score, start, end, background, inside, log_odds) -> None:
    """Fill the arrays by a trained caller."""
    operator = settings.operator
    for index in sequences:
        data = {"signal": counts[index].astype(np.float32)}
        if control is not None:
            data["control"] = np.asarray(control, np.float32)[index]
        result = operator(data)
        score[index] = np.asarray(result["peak_scores"])
        start[index] = np.asarray(result["peak_boundaries"]["start"])
        end[index] = np.asarray(result["peak_boundaries"]["end"])
        background[index] = np.asarray(result["peak_background"], np.float64) / settings.positions_per_read
        log_odds[index] = np.asarray(result["peak_logits"], np.float64)
        for first, last in operator.segments(data)[0]:
            inside[index[first:last]] = True


def _tabulate(
    counts, axis, settings, prefix, score, start, end, inside, log_odds, log10_p, expected, histogram, broad
) -> BinTrack:
    """Peaks of the called runs of bins, with a summit, p and q each."""
    code = axis.table["chrom"].cat.codes.to_numpy()
    begins, stops = axis.table["start"].to_numpy(), axis.table["end"].to_numpy()
    call = np.zeros(len(counts), bool)
    rows: list[tuple[float, ...]] = []
    runs: list[np.ndarray] = []
    for index in axis.sequences:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside[index].astype(np.int8), [0]])))
        for first, last in edges.reshape(-1, 2):
            run = index[first:last]
            # The bin of the summit is the highest of three-bin means, so that one odd bin does not decide.
            window = counts[index[max(first - 1, 0) : last + 1]]
            smooth = np.convolve(window, [0.25, 0.5, 0.25], mode="same")[first - max(first - 1, 0) :][: len(run)]
            top = run[int(np.argmax(smooth))]
            summit = (begins[top] + stops[top]) // 2
            unit = settings.positions_per_read
            rows.append(
                (
                    code[run[0]],
                    begins[run[0]],
                    stops[run[-1]],
                    summit,
                    counts[top],
                    expected[top],
                    log10_p[top],
                    log_odds[run].sum(),
                    counts[run].sum() / unit,
                    expected[run].sum() / unit,
                )  # fmt: skip
            )
            runs.append(run)
    columns = np.array(rows, np.float64).reshape(-1, 10).T
    log10_q = histogram(columns[6])
    kept = (log10_q >= -math.log10(settings.qvalue)) & (columns[6] >= LEAST_LOG10_P)
    if settings.operator is not None:
        kept[:] = True  # what a trained caller was taught to call is not cut by a test
    for run, good in zip(runs, kept, strict=True):
        if good:
            call[run] = True
    columns = columns[:, kept]
    peaks = ChainPeaks(*columns[:4].astype(np.int64), *columns[4:])
    table = make_table(axis.chromosomes, peaks.sequence, peaks, log10_q[kept], prefix)
    return BinTrack(score, start, end, call, log10_p.astype(np.float32), expected, table, broad)
