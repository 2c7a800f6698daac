"""Training of a peak caller on weak labels: which bins a label covers, errors of calls, and held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from diffbio_sc.engines.bin_peaks import Bins
from diffbio_sc.numerics.genome.background_host import (
    breadth,
    broad_weight,
    level_contrast,
    local_background,
    robust_level,
)
from diffbio_sc.numerics.genome.marks import BROAD_BINS, NARROW_BINS, bins_of_window

if TYPE_CHECKING:
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

__all__ = [
    "LabelledTrack",
    "Labels",
    "Surroundings",
    "TrainingChoice",
    "cut_tracks",
    "label_errors",
    "measure_surroundings",
    "stack_tracks",
    "train_caller",
]

_MARGIN = 1_000_000  # base pairs kept around the labels of a sequence: their background is what the caller will see
_FOLDS = 4


class Labels(NamedTuple):
    """Weak labels of one object: track, chromosome, half-open region, and what the expert says (REGION_KINDS)."""

    track: np.ndarray
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    kind: np.ndarray


class LabelledTrack(NamedTuple):
    """Counts about the labels of one sample on one sequence, and the labels in bins."""

    sample: str
    counts: np.ndarray
    control: np.ndarray | None
    kind: np.ndarray
    start: np.ndarray
    end: np.ndarray


class Surroundings(NamedTuple):
    """What training does not change about a track: background of each bin, and the weight of broad settings."""

    background: np.ndarray
    broad: float


class TrainingChoice(NamedTuple):
    """What came of a training.

    Attributes
    ----------
    kept
        Whether the trained settings were kept.
    held_out
        Label errors of samples (or labels) that were held out, of the start and of training on the others.
    labels
        Number of labels.
    steps
        Steps of the final training.
    """

    kept: bool
    held_out: tuple[int, int]
    labels: int
    steps: int


class _Counts(Protocol):
    def take(self, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
        """Dense rows at ``rows``."""


def cut_tracks(
    counts: _Counts, bins: Bins, labels: Labels, names: Sequence[str], control: int | None
) -> list[LabelledTrack]:
    """Cut out what surrounds the labels of each sample on each sequence.

    Parameters
    ----------
    counts
        Tracks by bins.
    bins
        Where the bins lie.
    labels
        Weak labels.
    names
        Of the tracks.
    control
        Track that is the control of all others.

    Raises
    ------
    ValueError
        If a label lies on no bins, across a gap, or within a bin.
    """
    from diffbio_sc.operators.epigenomics.peak_labels import REGION_KINDS

    code = {name: index for index, name in enumerate(bins.axis.chromosomes)}
    first_bin = np.array([index[0] for index in bins.axis.sequences])
    last_bin = np.array([index[-1] for index in bins.axis.sequences])
    of_sequence: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for track, chrom, low, high, kind in zip(*labels, strict=True):
        what = f"the label {REGION_KINDS[kind]} of {names[track]!r} at {chrom}:{low}-{high}"
        touches = np.flatnonzero(
            (bins.axis.code[first_bin] == code.get(chrom, -1))
            & (bins.axis.start[first_bin] < high)
            & (bins.axis.end[last_bin] > low)
        )
        if len(touches) != 1:
            raise ValueError(f"{what} lies {'across a gap between bins' if len(touches) else 'on no bins of adata'}.")
        start, end = _bins_of_label(bins, bins.axis.sequences[touches[0]], low, high, REGION_KINDS[kind])
        if end <= start:
            raise ValueError(f"{what} is shorter than a bin.")
        of_sequence.setdefault((int(track), int(touches[0])), []).append((int(kind), start, end))
    tracks = []
    margin = int(_MARGIN // bins.width)
    for (track, sequence), found in of_sequence.items():
        index = bins.axis.sequences[sequence]
        kind, start, end = np.array(found).T
        low, high = max(start.min() - margin, 0), min(end.max() + margin, len(index))
        row = counts.take(np.array([track]), index[low:high])[0]
        against = None if control is None else counts.take(np.array([control]), index[low:high])[0]
        tracks.append(LabelledTrack(names[track], row, against, kind, start - low, end - low))
    return tracks


def _bins_of_label(bins: Bins, index: np.ndarray, low: int, high: int, kind: str) -> tuple[int, int]:
    """Bins that the region touches; for a start those that begin in it, for an end those that end in it."""
    begins, ends = bins.axis.start[index], bins.axis.end[index]
    if kind == "peakStart":
        start = int(np.searchsorted(begins, low, side="left"))
    else:
        start = int(np.searchsorted(ends, low, side="right"))
    if kind == "peakEnd":
        return start, int(np.searchsorted(ends, high, side="right"))
    return start, int(np.searchsorted(begins, high, side="left"))


def train_caller(
    caller: DifferentiablePeakCaller,
    tracks: Sequence[LabelledTrack],
    *,
    steps: int,
    learning_rate: float,
    network: bool,
    rng: int,
) -> TrainingChoice:
    """Train a caller in place, and keep its start unless samples that were held out are called better.

    Samples are held out in turn: settings trained on the others are judged by the labels of those. Only if they
    contradict fewer of them than the start does is the caller trained, on all samples. Labels of one sample are held
    out by turns themselves.
    """
    from flax import nnx

    start = nnx.state(nnx.clone(caller))
    surroundings = [measure_surroundings(track, caller.config) for track in tracks]
    stacked = stack_tracks(tracks, surroundings)
    options: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "network": network, "rng": rng}
    before = label_errors(caller, tracks, surroundings)
    held_before = held_after = 0
    for held in _held_out(tracks):
        # Labels that are held out are hidden, so that all folds have the shapes of one compiled program.
        data = {**stacked, "region_kind": np.where(held, -1, stacked["region_kind"])}
        caller.fit(data, **options)
        judged = [
            track._replace(kind=np.where(row[: len(track.kind)], track.kind, -1))
            for track, row in zip(tracks, held, strict=True)
        ]
        held_after += label_errors(caller, judged, surroundings)
        nnx.update(caller, start)
        held_before += label_errors(caller, judged, surroundings)
    number = sum(len(track.kind) for track in tracks)
    if held_after >= held_before:
        return TrainingChoice(False, (held_before, held_after), number, 0)
    report = caller.fit(stacked, **options)
    if label_errors(caller, tracks, surroundings) > before:
        # The likelihood of the labels rose and the best path got worse: labels that the model cannot tell apart.
        nnx.update(caller, start)
        return TrainingChoice(False, (held_before, held_after), number, report.steps)
    return TrainingChoice(True, (held_before, held_after), number, report.steps)


def _held_out(tracks: Sequence[LabelledTrack]) -> list[np.ndarray]:
    """For each fold which labels (tracks, labels) are held out."""
    most = max(len(track.kind) for track in tracks)
    samples = list(dict.fromkeys(track.sample for track in tracks))
    if len(samples) > 1:
        fold = np.array([samples.index(track.sample) % _FOLDS for track in tracks])
        folds = np.broadcast_to(fold[:, None], (len(tracks), most))
    else:
        labels = np.arange(len(tracks) * most).reshape(len(tracks), most)
        # Neighbouring labels, often both borders of one peak, are held out together.
        folds = labels * _FOLDS // max(labels.size, 1)
    return [folds == value for value in np.unique(folds)]


def measure_surroundings(track: LabelledTrack, config: PeakCallerConfig) -> Surroundings:
    """Measure what the caller finds about a track, on the host: JAX would compile it for each length of tracks."""
    reads = np.asarray(track.counts, np.float64) / config.positions_per_read
    control = None if track.control is None else np.asarray(track.control, np.float64) / config.positions_per_read

    def positions(base_pairs: float) -> int:
        return max(round(base_pairs / config.bin_width), 1)

    broad = float(config.mode == "broad")
    if config.mode == "auto":
        contrast = level_contrast([reads], positions(config.level_window))
        broad = broad_weight(breadth([reads], config.bin_width), contrast)

    def log_background(windows: Sequence[int], own_window: int, level: float | None) -> np.ndarray:
        widths = [bins_of_window(window, config.bin_width) for window in windows]
        own_width = positions(own_window)
        return np.log(local_background(reads, widths, control=control, own_width=own_width, level=level))

    found = np.zeros(len(reads))
    if config.mode != "broad":
        windows = config.background_windows if control is None else config.control_windows
        found += (1.0 - broad) * log_background(windows, NARROW_BINS.own_window, None)
    if config.mode != "narrow":
        windows = () if control is None else config.control_windows[-1:]
        level = robust_level([reads], positions(config.level_window))
        found += broad * log_background(windows, BROAD_BINS.own_window, level)
    return Surroundings(config.positions_per_read * np.exp(found), broad)


def label_errors(
    caller: DifferentiablePeakCaller, tracks: Sequence[LabelledTrack], surroundings: Sequence[Surroundings]
) -> int:
    """Labels that the hard calls contradict; those of kind -1 are left out."""
    by_length: dict[int, list[int]] = {}
    for number, track in enumerate(tracks):
        by_length.setdefault(len(track.counts), []).append(number)
    errors = 0
    for numbers in by_length.values():
        data = {
            "signal": np.stack([tracks[number].counts for number in numbers]).astype(np.float32),
            "background": np.stack([surroundings[number].background for number in numbers]).astype(np.float32),
            "broad": np.array([surroundings[number].broad for number in numbers], np.float32),
        }
        for number, found in zip(numbers, caller.segments(data), strict=True):
            track, first, last = tracks[number], found[:, 0], found[:, 1] - 1
            for kind, start, end in zip(track.kind, track.start, track.end, strict=True):
                overlaps = bool(((first < end) & (last >= start)).any())
                begins = int(((first >= start) & (first < end)).sum())
                stops = int(((last >= start) & (last < end)).sum())
                errors += kind >= 0 and not (not overlaps, overlaps, begins == 1, stops == 1)[kind]
    return errors


def stack_tracks(tracks: Sequence[LabelledTrack], surroundings: Sequence[Surroundings]) -> dict[str, np.ndarray]:
    """Rows of equal length: shorter tracks go on with themselves again, each with the background of its own length."""
    length, regions = max(len(track.counts) for track in tracks), max(len(track.kind) for track in tracks)
    data = {
        "signal": np.stack([np.resize(track.counts, length) for track in tracks]).astype(np.float32),
        # Windows would reach from the end of a track into its copy: calls would be other than those of the track alone.
        "background": np.stack([np.resize(one.background, length) for one in surroundings]).astype(np.float32),
        "broad": np.array([one.broad for one in surroundings], np.float32),
    }
    for name, fill in (("kind", -1), ("start", 0), ("end", 1)):
        values = np.full((len(tracks), regions), fill, np.int32)
        for row, track in enumerate(tracks):
            values[row, : len(track.kind)] = getattr(track, name)
        data[f"region_{name}"] = values
    return data
