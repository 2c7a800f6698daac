"""Peaks of fragments or reads, one chromosome after the other; holds the intervals, never a dense genome."""

from __future__ import annotations

import warnings

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.engines.interval_sample import Sample, coarse_bins, prepare_sample
from diffbio_sc.engines.mark_choice import BREADTH_WIDTH, Breadth, choose_mark, measure_breadth, tell_unguarded
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.columns import release, row_batches
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.peak_table import PeakTable
from diffbio_sc.numerics.genome.background_host import robust_level
from diffbio_sc.numerics.genome.chain_calls import ChainModel, ChainPeaks, call_chain_peaks
from diffbio_sc.numerics.genome.false_discovery import PValueHistogram
from diffbio_sc.numerics.genome.macs import QValues, Runs, ScoredRuns, cut_background, macs_regions, pile_up, score_runs
from diffbio_sc.numerics.genome.marks import (
    BROAD_FRAGMENTS,
    EXPECTED_READS,
    LEAST_LOG10_P_FRAGMENTS,
    LEAST_LOG_ODDS_FRAGMENTS,
    LEVEL_WINDOW,
    NARROW_FOLD_LIMITS,
    NARROW_FRAGMENTS,
    SHALLOW_CONTROL,
    Mark,
)
from diffbio_sc.numerics.genome.site_background import Background

__all__ = ["measure_intervals", "stream_peaks"]

_LEAST_GENOME = 0.02  # of the length of the chromosomes with reads
_FEWEST_PER_WINDOW, _ENOUGH_CONTROL = 0.1, 1000  # reads of a control for every 10 kb, or in all
ENRICHMENT_INTERVALS = 5_000_000  # from which the enrichment is measured, at least: it is known to a per mille then
_MACS_WINDOWS = (1000, 10_000)  # slocal and llocal of MACS, besides d


def stream_peaks(
    treatment: Intervals, control: Intervals | None, settings: PeakSettings, *, owned: bool = False
) -> PeakTable:
    """Call the peaks of one sample.

    Parameters
    ----------
    treatment, control
        Fragments or reads.
    settings
        Settings of the call.
    owned
        Whether the arrays of ``treatment`` may be written to.
    """
    if control is not None:
        if not len(control):
            raise ValueError(
                f"the control {control.name} holds no reads; leave control out to take the background from the "
                f"treatment."
            )
        match_chromosomes(
            treatment.chromosomes,
            control.chromosomes,
            left_name=treatment.name,
            right_name=f"the control {control.name}",
        )
    if not len(treatment):
        warnings.warn(f"{treatment.name} holds no reads: there are no peaks.", UserWarning, stacklevel=2)
        return PeakTable.empty()
    if settings.fragment_length is not None and treatment.paired:
        warnings.warn(
            f"fragment_length is not used: {treatment.name} holds fragments of known length, not single reads.",
            UserWarning,
            stacklevel=2,
        )
    sample = prepare_sample(treatment, settings, treatment.extent(), owned=owned)
    source = None if control is None else _prepare_control(control, sample, treatment.name, settings)
    if settings.mode == "macs":
        return _macs(sample, source, settings)
    broad = settings.mode == "broad"
    sequences: list[np.ndarray] = []
    if settings.mode == "auto" or (broad and control is None):
        sequences = coarse_bins(sample, BREADTH_WIDTH)
    if settings.mode == "auto":
        broad = choose_mark({treatment.name: measure_breadth(sequences, BREADTH_WIDTH)}) == "broad"
    if settings.unguarded:
        tell_unguarded("broad" if broad else "narrow", [treatment.name])
    if broad:
        table = _broad(sample, source, sequences, settings)
    else:
        del sequences
        table = _narrow(sample, source, settings)
    logger.info(f"{treatment.name}: {len(table)} peaks.")
    return table


def measure_intervals(intervals: Intervals, settings: PeakSettings) -> Breadth:
    """How far the counts of a sample vary together."""
    if not len(intervals):
        return measure_breadth([], BREADTH_WIDTH)
    sample = prepare_sample(intervals, settings, intervals.extent())
    return measure_breadth(coarse_bins(sample, BREADTH_WIDTH), BREADTH_WIDTH)


def _prepare_control(control: Intervals, sample: Sample, name: str, settings: PeakSettings) -> Sample:
    lengths = dict(zip(sample.chromosomes, sample.lengths.tolist(), strict=True))
    length = None if control.paired or "strand" not in control.columns else int(round(sample.mean_length))
    as_treatment = PeakSettings(duplicates=settings.duplicates, fragment_length=length)
    source = prepare_sample(control.select_chromosomes(sample.chromosomes), as_treatment, lengths)
    if not source.number:
        raise ValueError(
            f"the control {control.name} holds no reads on the chromosomes of {name}, {sample.chromosomes[:5]}."
        )
    _check_control(source, sample, control.name, name)
    return source


def _check_control(source: Sample, sample: Sample, control: str, name: str) -> None:
    """Refuse a control that tells nothing, warn of one that tells little."""
    per_window = source.number / max(sample.lengths.sum() / max(NARROW_FRAGMENTS.control_windows), 1)
    if per_window < _FEWEST_PER_WINDOW and source.number < _ENOUGH_CONTROL:
        raise ValueError(
            f"the control {control} holds {source.number} reads, {per_window:.2g} for every 10 kb of {name}: it tells "
            "nothing of the local background. Leave control out to take the background from the treatment."
        )
    if source.number < SHALLOW_CONTROL * sample.number:
        warnings.warn(
            f"the control {control} is {source.number / sample.number:.1%} as deep as {name}: what it cannot tell of "
            "the local background is taken from the treatment, and weak peaks are lost.",
            UserWarning,
            stacklevel=4,
        )
    treated, known = (part.bounds[:, 1] - part.bounds[:, 0] for part in (sample, source))
    without = np.flatnonzero((known == 0) & (treated * (source.number / sample.number) >= EXPECTED_READS))
    if len(without):
        names = [sample.chromosomes[index] for index in without[:5]]
        warnings.warn(
            f"the control {control} has no reads on {len(without)} chromosomes of {name}, such as {names}: the "
            "background there is the mean of the genome.",
            UserWarning,
            stacklevel=4,
        )


def _genome_size(sample: Sample, settings: PeakSettings) -> float:
    """Mappable size of the genome; ValueError or a warning where it cannot be."""
    extent = float(sample.lengths.sum())
    if settings.genome_size is None:
        return extent
    size = float(settings.genome_size)
    used = float(sample.lengths[sample.bounds[:, 1] > sample.bounds[:, 0]].sum())
    if size < _LEAST_GENOME * used:
        raise ValueError(
            f"genome_size is {size:g} base pairs, but reads lie on chromosomes of {used:.4g} base pairs in all: give "
            "the mappable size of the genome, usually 0.7 to 0.95 of its length."
        )
    return size


def _background(sample: Sample, source: Sample | None, mark: Mark, genome: float) -> Background:
    if source is None:
        return Background.without_control(
            treatment_length=sample.total_length,
            treatment_sites=sample.sites,
            genome_size=genome,
            window=mark.windows[-1] if mark.windows else 1,
        )
    return Background.with_control(
        treatment_length=sample.total_length,
        control_sites=source.sites,
        fragment_length=sample.mean_length,
        genome_size=genome,
        windows=mark.control_windows,
    )


def _chain_background(sample: Sample, source: Sample | None, mark: Mark, genome: float) -> Background:
    if source is not None and source.number < sample.number:
        mark = mark._replace(control_windows=tuple(sorted({*mark.control_windows, mark.own_window})))
    background = _background(sample, source, mark, genome)
    if source is None:
        return background
    return background.with_uncertainty(
        treatment_length=sample.total_length,
        treatment_sites=sample.sites,
        treatment_number=sample.number,
        control_number=source.number,
        control_sites=source.sites,
        own_window=mark.own_window,
    )


def _narrow(sample: Sample, source: Sample | None, settings: PeakSettings) -> PeakTable:
    genome = _genome_size(sample, settings)
    background = _chain_background(sample, source, NARROW_FRAGMENTS, genome)
    model = _model(sample, NARROW_FRAGMENTS, settings)
    # The fold of the model follows the data: half of the mean enrichment of the peaks. Few chromosomes tell it.
    first = _well_covered(sample)
    part = sample._replace(bounds=sample.bounds[first], lengths=sample.lengths[first])
    share = float(part.lengths.sum() / max(sample.lengths.sum(), 1))
    part_source = part._replace(site_bounds=part.site_bounds[first])
    if source is not None:
        part_source = source._replace(site_bounds=source.site_bounds[first])
    peaks, log10_q = _chain(part, part_source, model, background, genome * share, settings.qvalue)
    fold = float(np.clip(0.5 * peaks.fragments.sum() / max(peaks.expected.sum(), 1e-9), *NARROW_FOLD_LIMITS))
    if len(peaks.start) or len(first) < len(sample.lengths):
        model = model._replace(fold=fold)
        peaks, log10_q = _chain(sample, source or sample, model, background, genome, settings.qvalue)
    return _tabulate(sample, peaks, log10_q, "narrow", settings)


def _well_covered(sample: Sample) -> np.ndarray:
    """Sequences of most intervals, as many as hold 5 million, in their order; all where there are fewer."""
    number = sample.bounds[:, 1] - sample.bounds[:, 0]
    order = np.argsort(-number, kind="stable")
    enough = int(np.searchsorted(np.cumsum(number[order]), ENRICHMENT_INTERVALS)) + 1
    return np.sort(order[:enough])


def _broad(sample: Sample, source: Sample | None, sequences: list[np.ndarray], settings: PeakSettings) -> PeakTable:
    genome = _genome_size(sample, settings)
    background = _chain_background(sample, source, BROAD_FRAGMENTS, genome)
    if source is None:
        # A domain fills its own windows: the lower of two levels of the genome is the background instead.
        level = robust_level(sequences, max(LEVEL_WINDOW // BREADTH_WIDTH, 1)) if sequences else 0.0
        floor = level * sample.mean_length / BREADTH_WIDTH
        background = Background((), (), floor if floor > 0 else background.floor)
    model = _model(sample, BROAD_FRAGMENTS, settings)
    peaks, log10_q = _chain(sample, source or sample, model, background, genome, settings.qvalue)
    return _tabulate(sample, peaks, log10_q, "broad", settings)


def _model(sample: Sample, mark: Mark, settings: PeakSettings) -> ChainModel:
    return ChainModel(
        int(settings.bin_size),
        sample.mean_length,
        mark.fold,
        mark.penalty,
        LEAST_LOG10_P_FRAGMENTS,
        LEAST_LOG_ODDS_FRAGMENTS,
    )


def _chain(
    sample: Sample, source: Sample, model: ChainModel, background: Background, genome: float, qvalue: float
) -> tuple[ChainPeaks, np.ndarray]:
    histogram = PValueHistogram()
    parts = []
    for batch in row_batches(sample.bounds[:, 1] - sample.bounds[:, 0]):
        part = call_chain_peaks(
            (sample.start, sample.end, sample.bounds[batch]),
            (source.site_start, source.site_end, source.site_bounds[batch]),
            sample.lengths[batch],
            model,
            background,
            histogram,
            treatment_fragments=sample.paired,
            control_fragments=source.paired,
        )
        parts.append(part._replace(sequence=part.sequence + batch.start))
        release(sample.start, sample.end, source.site_start, source.site_end)
    found = ChainPeaks(*map(np.concatenate, zip(*parts, strict=True)))
    log10_q = histogram(found.log10_p, max(genome / model.bin_width, float(histogram.counts.sum())))
    kept = log10_q >= -np.log10(qvalue)
    return ChainPeaks(*(column[kept] for column in found)), log10_q[kept]


def _tabulate(sample: Sample, peaks: ChainPeaks, log10_q: np.ndarray, mark: str, settings: PeakSettings) -> PeakTable:
    return PeakTable.from_chain(sample.chromosomes, peaks, log10_q, prefix=settings.prefix, mark=mark)


def _macs(sample: Sample, source: Sample | None, settings: PeakSettings) -> PeakTable:
    """MACS's peaks: two passes over the chromosomes, first for the q-values."""
    genome = _genome_size(sample, settings)
    background = _background(sample, source, Mark(0.0, 0.0, _MACS_WINDOWS[-1:], _MACS_WINDOWS, 0), genome)
    against = source or sample
    scale = 1.0
    if source is not None and sample.number > source.sites:
        # The larger of the two is scaled down. MACS compares fragments of the treatment with cut sites of the control.
        scale = source.sites * sample.mean_length / sample.total_length
        background = background.scaled(scale)
    gap = int(sample.tag_length)
    # MACS3's d is the mean of the fragments listed, its pile-up that of the fragments counted.
    shortest = max(gap if sample.paired else int(sample.mean_length), 1)
    q_values = QValues()

    def scored(index: int) -> ScoredRuns:
        first, last = sample.bounds[index]
        s_first, s_last = against.site_bounds[index]
        size = int(sample.lengths[index])
        sites = against.site_start[s_first:s_last]
        if against.paired:
            sites = np.sort(np.concatenate([sites, against.site_end[s_first:s_last]]))
        if len(sites):
            # MACS3's tracks end with the shortest: a chromosome ends where the narrowest window of the control does.
            size = min(size, int(sites[-1]) + min(background.windows) // 2)
        line = cut_background(sites, background, size, fragments=against.paired)
        heights = pile_up(sample.start[first:last], sample.end[first:last], size)
        return score_runs(Runs(heights.ends, np.float32(scale) * heights.values), line, strict=True)

    used = [index for index, (first, last) in enumerate(sample.bounds.tolist()) if last > first]
    for index in progress(used, "P-values", total=len(used)):
        q_values.add(scored(index))
    threshold = q_values.threshold(-np.log10(settings.qvalue))
    rows: list[tuple[np.ndarray, ...]] = []
    for index in progress(used, "Peaks", total=len(used)):
        runs = scored(index)
        regions = macs_regions(runs, threshold, gap=gap, shortest=shortest)
        rows.append((np.full(len(regions.start), index), *regions))
    code, start, end, summit, height, level, log10_p = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else np.zeros((7, 0))
    )
    missing = np.full(len(code), np.nan)
    peaks = ChainPeaks(code.astype(np.int64), start, end, summit, height, level, log10_p, missing, missing, missing)
    result = _tabulate(sample, peaks, q_values(log10_p) if len(log10_p) else log10_p, "macs", settings)
    logger.info(f"{len(result)} peaks by MACS's rules.")
    return result.replace(signalValue=result["fold"])
