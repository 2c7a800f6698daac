"""Peaks of fragments or reads, some chromosomes a task; holds the intervals of those, never a dense genome."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.blocks.rounds import Flow, Round, run_here
from diffbio_sc.engines.interval_sample import Sample, SamplePart, coarse_bins, discard_sample, sample_rounds
from diffbio_sc.engines.mark_choice import BREADTH_WIDTH, Breadth, choose_mark, measure_breadth, tell_unguarded
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.columns import ColumnList, discard
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.peak_table import PeakTable
from diffbio_sc.numerics.genome.background_host import robust_level
from diffbio_sc.numerics.genome.chain_calls import ChainModel, ChainPeaks, call_chain_peaks
from diffbio_sc.numerics.genome.false_discovery import PValueHistogram
from diffbio_sc.numerics.genome.macs import (
    QValues,
    Regions,
    Runs,
    ScoredRuns,
    cut_background,
    macs_regions,
    pile_up,
    score_runs,
)
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

__all__ = ["breadth_rounds", "measure_intervals", "peak_rounds", "stream_peaks"]

_LEAST_GENOME = 0.02  # of the length of the chromosomes with reads
_FEWEST_PER_WINDOW, _ENOUGH_CONTROL = 0.1, 1000  # reads of a control for every 10 kb, or in all
ENRICHMENT_INTERVALS = 5_000_000  # from which the enrichment is measured, at least: it is known to a per mille then
_MACS_WINDOWS = (1000, 10_000)  # slocal and llocal of MACS, besides d


def stream_peaks(treatment: Intervals, control: Intervals | None, settings: PeakSettings) -> PeakTable:
    """Call the peaks of one sample in this process; see :func:`peak_rounds`."""
    return run_here(peak_rounds(treatment, control, settings))


def peak_rounds(treatment: Intervals, control: Intervals | None, settings: PeakSettings) -> Flow[PeakTable]:
    """Call the peaks of one sample, some chromosomes a task.

    Only sums cross chromosomes: numbers and lengths of fragments, counts in bins of 500 bp where the kind of mark or
    the level of the genome is asked for, p-values as a histogram, and the peaks.

    Parameters
    ----------
    treatment, control
        Fragments or reads.
    settings
        Settings of the call.
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
    sample = yield from sample_rounds(treatment, settings)
    source = None
    if control is not None:
        source = yield from _prepare_control(control, sample, treatment.name, settings)
    if settings.mode == "macs":
        table = yield from _macs(sample, source, settings)
    else:
        table = yield from _by_chain(sample, source, treatment.name, settings)
    discard_sample(sample, treatment)
    if source is not None and control is not None:
        discard_sample(source, control)
    return table


def _by_chain(sample: Sample, source: Sample | None, name: str, settings: PeakSettings) -> Flow[PeakTable]:
    broad = settings.mode == "broad"
    sequences = ColumnList([])
    if settings.mode == "auto" or (broad and source is None):
        sequences = yield from coarse_bins(sample, BREADTH_WIDTH)
    if settings.mode == "auto":
        broad = choose_mark({name: measure_breadth(sequences, BREADTH_WIDTH)}) == "broad"
    if settings.unguarded:
        tell_unguarded("broad" if broad else "narrow", [name])
    if broad:
        table = yield from _broad(sample, source, sequences, settings)
    else:
        table = yield from _narrow(sample, source, settings)
    discard(*sequences.columns[:1])
    logger.info(f"{name}: {len(table)} peaks.")
    return table


def measure_intervals(intervals: Intervals, settings: PeakSettings) -> Breadth:
    """How far the counts of a sample vary together, in this process."""
    return run_here(breadth_rounds(intervals, settings))


def breadth_rounds(intervals: Intervals, settings: PeakSettings) -> Flow[Breadth]:
    """How far the counts of a sample vary together, some chromosomes a task."""
    if not len(intervals):
        return measure_breadth([], BREADTH_WIDTH)
    sample = yield from sample_rounds(intervals, settings)
    sequences = yield from coarse_bins(sample, BREADTH_WIDTH)
    discard_sample(sample, intervals)
    breadth = measure_breadth(sequences, BREADTH_WIDTH)
    discard(*sequences.columns[:1])
    return breadth


def _prepare_control(control: Intervals, sample: Sample, name: str, settings: PeakSettings) -> Flow[Sample]:
    lengths = dict(zip(sample.chromosomes, sample.lengths.tolist(), strict=True))
    length = None if control.paired or "strand" not in control.columns else int(round(sample.mean_length))
    as_treatment = PeakSettings(duplicates=settings.duplicates, fragment_length=length)
    stops = [0, *sample.part_stops.tolist()]
    names = [sample.chromosomes[first:last] for first, last in pairwise(stops)]
    source = yield from sample_rounds(control.select_chromosomes(sample.chromosomes), as_treatment, lengths, names)
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
    without = np.flatnonzero((source.counts == 0) & (sample.counts * (source.number / sample.number) >= EXPECTED_READS))
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
    used = float(sample.lengths[sample.counts > 0].sum())
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


def _narrow(sample: Sample, source: Sample | None, settings: PeakSettings) -> Flow[PeakTable]:
    genome = _genome_size(sample, settings)
    background = _chain_background(sample, source, NARROW_FRAGMENTS, genome)
    model = _model(sample, NARROW_FRAGMENTS, settings)
    # The fold of the model follows the data: half of the mean enrichment of the peaks. Few chromosomes tell it.
    first = _well_covered(sample.counts)
    share = float(sample.lengths[first].sum() / max(sample.lengths.sum(), 1))
    peaks, log10_q = yield from _chain(sample, source, model, background, genome * share, settings.qvalue, first)
    fold = float(np.clip(0.5 * peaks.fragments.sum() / max(peaks.expected.sum(), 1e-9), *NARROW_FOLD_LIMITS))
    if len(peaks.start) or len(first) < len(sample.lengths):
        del peaks, log10_q
        model = model._replace(fold=fold)
        peaks, log10_q = yield from _chain(sample, source, model, background, genome, settings.qvalue)
    return _tabulate(sample, peaks, log10_q, "narrow", settings)


def _well_covered(counts: np.ndarray) -> np.ndarray:
    """Sequences of most intervals, as many as hold 5 million, in their order; all where there are fewer."""
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]), ENRICHMENT_INTERVALS)) + 1
    return np.sort(order[:enough])


def _broad(
    sample: Sample, source: Sample | None, sequences: Sequence[np.ndarray], settings: PeakSettings
) -> Flow[PeakTable]:
    genome = _genome_size(sample, settings)
    background = _chain_background(sample, source, BROAD_FRAGMENTS, genome)
    if source is None:
        # A domain fills its own windows: the lower of two levels of the genome is the background instead.
        level = robust_level(sequences, max(LEVEL_WINDOW // BREADTH_WIDTH, 1)) if len(sequences) else 0.0
        floor = level * sample.mean_length / BREADTH_WIDTH
        background = Background((), (), floor if floor > 0 else background.floor)
    model = _model(sample, BROAD_FRAGMENTS, settings)
    peaks, log10_q = yield from _chain(sample, source, model, background, genome, settings.qvalue)
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


class _Task(NamedTuple):
    """Some chromosomes of a treatment, and of its control where there is one."""

    part: SamplePart
    source: SamplePart
    paired: tuple[bool, bool]
    background: Background
    model: ChainModel | MacsModel

    def release(self) -> None:
        self.part.release()
        self.source.release()


def _tasks(
    sample: Sample,
    source: Sample | None,
    background: Background,
    model: ChainModel | MacsModel,
    chosen: np.ndarray | None = None,
) -> tuple[list[_Task], list[np.ndarray]]:
    """Tasks of a sample, and the numbers of their chromosomes; those of none are left out."""
    stops = [0, *sample.part_stops.tolist()]
    against = sample if source is None else source
    tasks, numbers = [], []
    for part, other, (first, last) in zip(sample.parts, against.parts, pairwise(stops), strict=True):
        number = np.arange(first, last)
        if chosen is not None:
            number = chosen[(chosen >= first) & (chosen < last)]
            part, other = part.take(number - first), other.take(number - first)
        if len(number):
            tasks.append(_Task(part, other, (sample.paired, against.paired), background, model))
            numbers.append(number)
    return tasks, numbers


def _chain(
    sample: Sample,
    source: Sample | None,
    model: ChainModel,
    background: Background,
    genome: float,
    qvalue: float,
    chosen: np.ndarray | None = None,
) -> Flow[tuple[ChainPeaks, np.ndarray]]:
    """Peaks of the chromosomes chosen (default all), and their -log10 q."""
    tasks, numbers = _tasks(sample, source, background, model, chosen)
    results = yield Round(_chain_task, tasks, "Peaks")
    histogram = PValueHistogram()
    parts = []
    for (part, filled), number in zip(results, numbers, strict=True):
        histogram.add_filled(*filled)
        parts.append(part._replace(sequence=number[part.sequence]))
    found = ChainPeaks(*map(np.concatenate, zip(*parts, strict=True)))
    results.clear()
    del parts, part
    log10_q = histogram(found.log10_p, max(genome / model.bin_width, float(histogram.counts.sum())))
    kept = log10_q >= -np.log10(qvalue)
    return ChainPeaks(*(column[kept] for column in found)), log10_q[kept]


def _chain_task(task: _Task) -> tuple[ChainPeaks, tuple[np.ndarray, np.ndarray]]:
    """Peaks of some chromosomes, and how many bins have which p-values."""
    part, source, (paired, control_paired), background, model = task
    assert isinstance(model, ChainModel)
    histogram = PValueHistogram()
    peaks = call_chain_peaks(
        (part.start, part.end, part.bounds),
        (source.site_start, source.site_end, source.site_bounds),
        part.lengths,
        model,
        background,
        histogram,
        treatment_fragments=paired,
        control_fragments=control_paired,
    )
    task.release()
    return peaks, histogram.filled()


def _tabulate(sample: Sample, peaks: ChainPeaks, log10_q: np.ndarray, mark: str, settings: PeakSettings) -> PeakTable:
    return PeakTable.from_chain(sample.chromosomes, peaks, log10_q, prefix=settings.prefix, mark=mark)


class MacsModel(NamedTuple):
    """What MACS's rules take beside the background.

    Attributes
    ----------
    scale
        Of the heights of the treatment.
    gap, shortest
        Regions nearer than the gap are one peak; a peak is at least so long.
    threshold
        Smallest -log10 p of a peak; not known in the pass that counts p-values.
    """

    scale: float
    gap: int
    shortest: int
    threshold: float = 0.0


def _macs(sample: Sample, source: Sample | None, settings: PeakSettings) -> Flow[PeakTable]:
    """MACS's peaks: two passes over the chromosomes, first for the q-values."""
    genome = _genome_size(sample, settings)
    background = _background(sample, source, Mark(0.0, 0.0, _MACS_WINDOWS[-1:], _MACS_WINDOWS, 0), genome)
    scale = 1.0
    if source is not None and sample.number > source.sites:
        # The larger of the two is scaled down. MACS compares fragments of the treatment with cut sites of the control.
        scale = source.sites * sample.mean_length / sample.total_length
        background = background.scaled(scale)
    # MACS3's d is the mean of the fragments listed, its pile-up that of the fragments counted.
    gap = int(sample.tag_length)
    model = MacsModel(scale, gap, max(gap if sample.paired else int(sample.mean_length), 1))
    q_values = QValues()
    for counted in (yield Round(_macs_p_values, _tasks(sample, source, background, model)[0], "P-values")):
        q_values.add_counts(*counted)
    model = model._replace(threshold=q_values.threshold(-np.log10(settings.qvalue)))
    tasks, numbers = _tasks(sample, source, background, model)
    rows: list[tuple[np.ndarray, ...]] = []
    for found, number in zip((yield Round(_macs_task, tasks, "Peaks")), numbers, strict=True):
        rows += [(np.full(len(regions.start), number[index]), *regions) for index, regions in found]
    code, start, end, summit, height, level, log10_p = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else np.zeros((7, 0))
    )
    missing = np.full(len(code), np.nan)
    peaks = ChainPeaks(code.astype(np.int64), start, end, summit, height, level, log10_p, missing, missing, missing)
    result = _tabulate(sample, peaks, q_values(log10_p) if len(log10_p) else log10_p, "macs", settings)
    logger.info(f"{len(result)} peaks by MACS's rules.")
    return result.replace(signalValue=result["fold"])


def _scored(task: _Task) -> Iterator[tuple[int, ScoredRuns]]:
    """Heights, background and p-values of each chromosome with reads."""
    part, source, (_, paired), background, model = task
    assert isinstance(model, MacsModel)
    for index, (first, last) in enumerate(part.bounds.tolist()):
        if last <= first:
            continue
        s_first, s_last = source.site_bounds[index]
        size = int(part.lengths[index])
        sites = source.site_start[s_first:s_last]
        if paired:
            sites = np.sort(np.concatenate([sites, source.site_end[s_first:s_last]]))
        if len(sites):
            # MACS3's tracks end with the shortest: a chromosome ends where the narrowest window of the control does.
            size = min(size, int(sites[-1]) + min(background.windows) // 2)
        line = cut_background(sites, background, size, fragments=paired)
        heights = pile_up(part.start[first:last], part.end[first:last], size)
        yield index, score_runs(Runs(heights.ends, np.float32(model.scale) * heights.values), line, strict=True)
        task.release()


def _macs_p_values(task: _Task) -> tuple[np.ndarray, np.ndarray]:
    q_values = QValues()
    for _, runs in _scored(task):
        q_values.add(runs)
    return q_values.log10_p, q_values.base_pairs


def _macs_task(task: _Task) -> list[tuple[int, Regions]]:
    model = task.model
    assert isinstance(model, MacsModel)
    return [
        (index, macs_regions(runs, model.threshold, gap=model.gap, shortest=model.shortest))
        for index, runs in _scored(task)
    ]
