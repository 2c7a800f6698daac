"""Peaks of fragments or reads, one chromosome after the other; holds the intervals, never a dense genome."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.genome.intervals import Intervals, match_chromosomes
from diffbio_sc.numerics.genome.peak_engine import breadth, broad_weight, robust_level
from diffbio_sc.numerics.genome.peak_statistics import (
    Background,
    ChainModel,
    ChainPeaks,
    PValueHistogram,
    call_chain_peaks,
    cut_background,
    drop_duplicates,
    fragment_length_from_strands,
    macs_regions,
    pile_up,
    score_runs,
)
from diffbio_sc.numerics.genome.pileup import depth_sums

TABLE_COLUMNS = (
    "chrom", "start", "end", "name", "score", "strand", "signalValue", "pValue", "qValue", "peak",
    "fold", "log_odds", "fragments", "expected",
)  # fmt: skip

NARROW_WINDOWS = (1000, 10_000)
NARROW_PENALTY, NARROW_FIRST_FOLD, NARROW_FOLDS = 2.5, 3.0, (2.0, 6.0)
ENRICHMENT_INTERVALS = 5_000_000  # from which the enrichment is measured, at least
BROAD_PENALTY, BROAD_FOLD, BROAD_LEVEL_WINDOW = 60.0, 5.0, 2000
LEAST_LOG10_P, LEAST_LOG_ODDS = 2.0, 5.5
_TYPICAL_LENGTH = 200  # of fragments, where the reads do not tell
_BREADTH_WIDTH = 500  # base pairs a bin
BREADTH_LIMIT = 20.0  # counts of those bins are cut at this multiple of their mean
_MACS_GAP = 1.0  # largest gap within a peak, in fragment lengths


class StreamSettings(NamedTuple):
    """How to call peaks of a stream; see :func:`diffbio_sc.tl.peaks`."""

    mode: str
    qvalue: float
    bin_size: int
    genome_size: float | None
    fragment_length: int | None
    duplicates: int | None
    prefix: str


class Sample(NamedTuple):
    """Fragments with what a background of them needs."""

    start: np.ndarray
    end: np.ndarray
    bounds: np.ndarray
    chromosomes: list[str]
    lengths: np.ndarray
    number: int
    mean_length: float
    paired: bool
    site_start: np.ndarray
    site_end: np.ndarray
    site_bounds: np.ndarray


def empty_table() -> pd.DataFrame:
    """A table of no peaks, with the types of one that has some."""
    return make_table([], np.zeros(0, np.int64), ChainPeaks(*np.zeros((10, 0))), np.zeros(0), "")


def make_table(
    chromosomes: Sequence[str], codes: np.ndarray, peaks: ChainPeaks, log10_q: np.ndarray, prefix: str
) -> pd.DataFrame:
    """Peaks as a table in narrowPeak columns, and what else is known of them."""
    number = len(codes)
    table = pd.DataFrame(
        {
            "chrom": np.asarray(chromosomes, dtype=object)[codes] if number else np.empty(0, object),
            "start": np.asarray(peaks.start, np.int64),
            "end": np.asarray(peaks.end, np.int64),
            "name": [f"{prefix}peak_{index}" for index in range(1, number + 1)],
            "score": np.clip(10 * log10_q, 0, 1000).astype(np.int64),
            "strand": np.full(number, ".", object),
            "signalValue": np.asarray(peaks.fragments, np.float64),
            "pValue": np.asarray(peaks.log10_p, np.float64),
            "qValue": np.asarray(log10_q, np.float64),
            "peak": np.asarray(peaks.summit - peaks.start, np.int64),
            "fold": (np.asarray(peaks.height, np.float64) + 1.0) / (np.asarray(peaks.background, np.float64) + 1.0),
            "log_odds": np.asarray(peaks.log_odds, np.float64),
            "fragments": np.asarray(peaks.fragments, np.float64),
            "expected": np.asarray(peaks.expected, np.float64),
        }
    )
    for name in ("chrom", "name", "strand"):
        table[name] = table[name].astype(object)
    return table


def stream_peaks(
    treatment: Intervals, control: Intervals | None, settings: StreamSettings, *, owned: bool = False
) -> pd.DataFrame:
    """Call the peaks of one sample.

    Parameters
    ----------
    treatment, control
        Fragments or reads.
    settings
        How.
    owned
        Whether the arrays may be written to.
    """
    if control is not None:
        if not len(control):
            raise ValueError(
                f"the control {control.name} holds no reads; leave control out to take the background from the "
                f"treatment."
            )
        match_chromosomes(treatment.chromosomes, control.chromosomes, left_name=treatment.name, right_name=control.name)
    if not len(treatment):
        warnings.warn(f"{treatment.name} holds no reads: there are no peaks.", UserWarning, stacklevel=4)
        return empty_table()
    sample = _prepare(treatment, settings, treatment.extent(), owned=owned)
    background_sample = sample
    if control is not None:
        lengths = dict(zip(sample.chromosomes, sample.lengths.tolist(), strict=True))
        background_sample = _prepare(
            control.select_chromosomes(sample.chromosomes),
            settings._replace(fragment_length=int(round(sample.mean_length))),
            lengths,
            owned=False,
        )
        if not background_sample.number:
            raise ValueError(
                f"the control {control.name} holds no reads on the chromosomes of {treatment.name}, "
                f"{sample.chromosomes[:5]}."
            )
    genome = float(settings.genome_size or sample.lengths.sum())
    total = sample.number * sample.mean_length
    if settings.mode == "macs":
        return _macs(sample, background_sample, control is not None, genome, total, settings)
    broad = settings.mode == "broad"
    sequences: list[np.ndarray] = []
    if settings.mode == "auto" or (broad and control is None):
        sequences = _coarse(sample)
    if settings.mode == "auto":
        measured = robust_breadth(sequences, _BREADTH_WIDTH)
        broad = broad_weight(measured) > 0.5
        logger.info(f"{treatment.name}: breadth {measured:.2f}, called as {'broad' if broad else 'narrow'} mark.")
    if broad:
        table = _broad(sample, background_sample, control is not None, genome, total, sequences, settings)
    else:
        del sequences
        table = _narrow(sample, background_sample, control is not None, genome, total, settings)
    logger.info(f"{treatment.name}: {len(table)} peaks.")
    return table


def _prepare(intervals: Intervals, settings: StreamSettings, lengths: dict[str, int], *, owned: bool) -> Sample:
    """Fragments and cut sites, duplicates dropped, reads extended."""
    chromosomes = intervals.chromosomes
    sizes = np.array([lengths[name] for name in chromosomes], np.int64)
    limit = settings.duplicates
    if intervals.paired or "strand" not in intervals.columns:
        if not intervals.paired and settings.fragment_length is not None:
            raise ValueError(
                f"the reads of {intervals.name} have no strand, so fragment_length cannot extend them; leave it out "
                "to take them as fragments."
            )
        start, end, bounds = intervals.columns["start"], intervals.columns["end"], intervals.bounds
        cells = "cell_code" in intervals.columns
        if limit is not None and cells:
            intervals = intervals.deduplicate(limit)
            start, end, bounds = intervals.columns["start"], intervals.columns["end"], intervals.bounds
        elif limit is not None:
            bounds = bounds.copy()
            if not owned:
                start, end = start.copy(), end.copy()
            order = np.argsort(bounds[:, 0], kind="stable")
            in_file_order = bounds[order]
            kept = drop_duplicates(start, end, in_file_order, limit)
            bounds[order] = in_file_order
            start, end = start[:kept], end[:kept]
        number = int((bounds[:, 1] - bounds[:, 0]).sum())
        mean = _mean_length(start, end, bounds)
        return Sample(start, end, bounds, chromosomes, sizes, number, mean, True, start, end, bounds)
    if limit is not None:
        intervals = intervals.deduplicate(limit)
    length = settings.fragment_length
    if length is None:
        length = _estimate_length(intervals)
    strand = intervals.columns["strand"]
    places = np.where(strand < 0, intervals.columns["end"], intervals.columns["start"]).astype(np.int32)
    for first, last in intervals.bounds.tolist():
        places[first:last].sort()
    extended = intervals.extend(length)
    start, end, bounds = extended.columns["start"], extended.columns["end"], extended.bounds
    number = int((bounds[:, 1] - bounds[:, 0]).sum())
    return Sample(
        start, end, bounds, chromosomes, sizes, number, float(length), False, places, places, intervals.bounds
    )


def _mean_length(start: np.ndarray, end: np.ndarray, bounds: np.ndarray) -> float:
    total = sum(
        int(np.subtract(end[first:last], start[first:last], dtype=np.int64).sum()) for first, last in bounds.tolist()
    )
    number = int((bounds[:, 1] - bounds[:, 0]).sum())
    return total / max(number, 1)


def _estimate_length(intervals: Intervals) -> int:
    forward, reverse = [], []
    for chromosome in intervals:
        arrays = intervals[chromosome]
        minus = arrays.strand < 0  # type: ignore[operator]
        forward.append(arrays.start[~minus])
        reverse.append(np.sort(arrays.end[minus]))
    read_length = int(round(intervals.total_length() / max(len(intervals), 1)))
    found = fragment_length_from_strands(forward, reverse, read_length=read_length)
    if found is None:
        warnings.warn(
            f"{intervals.name} has too few reads to tell the length of its fragments; {_TYPICAL_LENGTH} bp are taken. "
            "Pass fragment_length=... if you know it.",
            UserWarning,
            stacklevel=6,
        )
        return _TYPICAL_LENGTH
    logger.info(f"{intervals.name}: fragments of {found} bp, by the distance between strands.")
    return found


def _coarse(sample: Sample) -> list[np.ndarray]:
    """Effective fragments in bins of 500 bp, of the chromosomes that hold some."""
    result = []
    for (first, last), length in zip(sample.bounds.tolist(), sample.lengths.tolist(), strict=True):
        bins = length // _BREADTH_WIDTH
        if last > first and bins:
            start = sample.start[first:last]
            end = np.minimum(sample.end[first:last], bins * _BREADTH_WIDTH)
            inside = end > start
            sums = depth_sums(start[inside], end[inside], _BREADTH_WIDTH, bins)
            result.append((sums / sample.mean_length).astype(np.float32))
    return result


def robust_breadth(sequences: Sequence[np.ndarray], width: float) -> float:
    """Breadth of a mark, where few bins of extreme counts (repeats, mitochondria) decide nothing."""
    number = sum(map(len, sequences))
    if not number:
        return 0.0
    limit = BREADTH_LIMIT * max(sum(float(part.sum(dtype=np.float64)) for part in sequences) / number, 1.0)
    return breadth(sequences, width, limit=limit)


def _background(
    sample: Sample, source: Sample, with_control: bool, genome: float, total: float, windows: Sequence[int]
) -> Background:
    per_interval = 2 if source.paired else 1
    if with_control:
        return Background.with_control(
            treatment_length=total,
            control_sites=per_interval * source.number,
            fragment_length=sample.mean_length,
            genome_size=genome,
            windows=windows,
        )
    return Background.without_control(
        treatment_length=total,
        treatment_sites=per_interval * source.number,
        genome_size=genome,
        window=windows[-1] if windows else 1,
    )


def _chain(
    sample: Sample, source: Sample, model: ChainModel, background: Background, genome: float, qvalue: float
) -> tuple[ChainPeaks, np.ndarray]:
    histogram = PValueHistogram()
    found = call_chain_peaks(
        (sample.start, sample.end, sample.bounds),
        (source.site_start, source.site_end, source.site_bounds),
        sample.lengths,
        model,
        background,
        histogram,
        control_fragments=source.paired,
    )
    log10_q = histogram(found.log10_p, max(genome / model.bin_width, float(histogram.counts.sum())))
    kept = log10_q >= -np.log10(qvalue)
    return ChainPeaks(*(column[kept] for column in found)), log10_q[kept]


def _well_covered(sample: Sample) -> np.ndarray:
    """Sequences of most intervals, as many as hold 5 million, in their order; all where there are fewer."""
    number = sample.bounds[:, 1] - sample.bounds[:, 0]
    order = np.argsort(-number, kind="stable")
    enough = int(np.searchsorted(np.cumsum(number[order]), ENRICHMENT_INTERVALS)) + 1
    return np.sort(order[:enough])


def _narrow(sample, source, with_control, genome, total, settings) -> pd.DataFrame:
    background = _background(sample, source, with_control, genome, total, NARROW_WINDOWS)
    model = ChainModel(
        settings.bin_size, sample.mean_length, NARROW_FIRST_FOLD, NARROW_PENALTY, LEAST_LOG10_P, LEAST_LOG_ODDS
    )
    # The fold of the model follows the data: half of the mean enrichment of the peaks. Few chromosomes tell it.
    first = _well_covered(sample)
    share = float(sample.lengths[first].sum() / max(sample.lengths.sum(), 1))
    peaks, log10_q = _chain(
        sample._replace(bounds=sample.bounds[first], lengths=sample.lengths[first]),
        source._replace(site_bounds=source.site_bounds[first]),
        model,
        background,
        genome * share,
        settings.qvalue,
    )
    fold = float(np.clip(0.5 * peaks.fragments.sum() / max(peaks.expected.sum(), 1e-9), *NARROW_FOLDS))
    if len(peaks.start) or len(first) < len(sample.lengths):
        peaks, log10_q = _chain(sample, source, model._replace(fold=fold), background, genome, settings.qvalue)
    return make_table(sample.chromosomes, peaks.sequence, peaks, log10_q, settings.prefix)


def _broad(sample, source, with_control, genome, total, sequences, settings) -> pd.DataFrame:
    background = _background(sample, source, with_control, genome, total, NARROW_WINDOWS)
    if not with_control:
        # A domain fills its own windows: the lower of two levels of the genome is the background instead.
        level = robust_level(sequences, max(BROAD_LEVEL_WINDOW // _BREADTH_WIDTH, 1)) if sequences else 0.0
        floor = level * sample.mean_length / _BREADTH_WIDTH
        background = Background((), (), floor if floor > 0 else background.floor)
    model = ChainModel(settings.bin_size, sample.mean_length, BROAD_FOLD, BROAD_PENALTY, LEAST_LOG10_P, LEAST_LOG_ODDS)
    peaks, log10_q = _chain(sample, source, model, background, genome, settings.qvalue)
    return make_table(sample.chromosomes, peaks.sequence, peaks, log10_q, settings.prefix)


def _macs(sample, source, with_control, genome, total, settings) -> pd.DataFrame:
    """MACS's peaks: two passes over the chromosomes, first for the q-values."""
    background = _background(sample, source, with_control, genome, total, NARROW_WINDOWS)
    length = max(int(sample.mean_length), 1)
    histogram = PValueHistogram()

    def scored(index: int):
        first, last = sample.bounds[index]
        s_first, s_last = source.site_bounds[index]
        size = int(sample.lengths[index])
        sites = source.site_start[s_first:s_last]
        if source.paired:
            sites = np.sort(np.concatenate([sites, source.site_end[s_first:s_last]]))
        line = cut_background(sites, background, size, fragments=source.paired)
        return score_runs(pile_up(sample.start[first:last], sample.end[first:last], size), line, strict=True)

    used = [index for index, (first, last) in enumerate(sample.bounds.tolist()) if last > first]
    for index in progress(used, "P-values", total=len(used)):
        runs = scored(index)
        histogram.add_runs(runs.ends, runs.log10_p)
    table = histogram.macs_q_table()
    threshold = float(np.searchsorted(table, -np.log10(settings.qvalue), side="right")) / histogram.per_unit
    rows: list[tuple[np.ndarray, ...]] = []
    for index in progress(used, "Peaks", total=len(used)):
        runs = scored(index)
        regions = macs_regions(runs, threshold, gap=int(_MACS_GAP * length), shortest=length)
        rows.append((np.full(len(regions.start), index), *regions))
    code, start, end, summit, height, level, log10_p = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else np.zeros((7, 0))
    )
    missing = np.full(len(code), np.nan)
    peaks = ChainPeaks(code.astype(np.int64), start, end, summit, height, level, log10_p, missing, missing, missing)
    result = make_table(sample.chromosomes, peaks.sequence, peaks, histogram.look_up(table, log10_p), settings.prefix)
    result["signalValue"] = result["fold"]
    logger.info(f"{len(result)} peaks by MACS's rules.")
    return result
