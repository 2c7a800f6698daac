from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

_COLUMNS = ("sample", "chrom", "start", "end", "annotation")
_MARGIN = 1_000_000  # base pairs kept around the labels of a sequence: their background is what the caller will see


def train_peaks(
    data: AnnData | Sequence[AnnData],
    labels: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    control: str | None = None,
    config: PeakCallerConfig | None = None,
    fragment_length: int | None = None,
    network: bool = False,
    steps: int = 60,
    learning_rate: float = 0.03,
    allow_fractional: bool = False,
    rng: int | np.random.Generator = 0,
) -> DifferentiablePeakCaller:
    """Train a peak caller on weak labels: regions of which an expert says what they hold.

    The probability of a label under the caller's posterior is exact, and its parameters (enrichment, costs of changes,
    background, temperature) follow the gradient :cite:p:`Hocking2017`. Should the calls then contradict more
    labels than before, the settings from before are kept, with a warning.

    Parameters
    ----------
    data
        Raw counts in bins of one width, one row a sample; or several such objects.
    labels
        Table with columns ``sample`` (name of the row), ``chrom``, ``start``, ``end`` (0-based, half-open) and
        ``annotation``: ``"noPeaks"`` (nothing is enriched), ``"peaks"`` (at least one peak), ``"peakStart"`` or
        ``"peakEnd"`` (exactly one peak starts, or ends, here). One table for each object of ``data``.
    layer, axis, allow_fractional
        As in :func:`diffbio_sc.tl.peaks`.
    control
        Name of the row that is the control of all others.
    config
        Settings of the caller; by default those of :func:`diffbio_sc.tl.peaks`, without the network.
    fragment_length
        As in :func:`diffbio_sc.tl.peaks`.
    network
        Train the convolutional correction too. A few dozen labels do not determine it.
    steps, learning_rate
        Of the training.
    rng
        Seed or generator.

    Returns
    -------
    The caller, to pass as ``operator`` to :func:`diffbio_sc.tl.peaks`; its ``save`` keeps it in a file.

    Raises
    ------
    KeyError
        If columns, samples or the control are missing.
    ValueError
        If an annotation is unknown, a region lies on no bins, across a gap or within a bin, or there are no labels.

    Examples
    --------
    >>> caller = dbio.tl.train_peaks(adata, labels)
    >>> dbio.tl.peaks(adata, operator=caller)
    """
    from flax import nnx

    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig
    from diffbio_sc.tl._peaks import bin_width, positions_per_read

    objects = [data] if hasattr(data, "obs_names") else list(data)
    tables = [labels] if isinstance(labels, pd.DataFrame) else list(labels)
    if len(objects) != len(tables) or not objects:
        raise ValueError(
            f"labels must be one table for each object, found {len(tables)} tables for {len(objects)} objects."
        )
    from diffbio_sc._anndata.genome_axis import read_genome_axis

    axes = [read_genome_axis(adata, axis=axis) for adata in objects]
    widths = [bin_width(genome) for genome in axes]
    if len(set(widths)) > 1:
        raise ValueError(f"all objects must have bins of one width, found {widths}.")
    if config is None:
        config = PeakCallerConfig(
            num_filters=32 if network else 0,
            bin_width=int(round(widths[0])),
            positions_per_read=positions_per_read(objects[0], widths[0], fragment_length),
        )
    elif config.bin_width != int(round(widths[0])):
        raise ValueError(f"config.bin_width is {config.bin_width}, the bins of data have {widths[0]:.0f} bp.")
    tracks = [
        track
        for adata, genome, table in zip(objects, axes, tables, strict=True)
        for track in _tracks(adata, genome, table, layer, control, config.bin_width, allow_fractional)
    ]
    seed = int(np.random.default_rng(rng).integers(2**31))
    caller = DifferentiablePeakCaller(config, rngs=nnx.Rngs(seed))
    initial, before = nnx.state(nnx.clone(caller)), _label_errors(caller, tracks)
    stacked = _stack(tracks, caller)
    report = caller.fit(stacked, steps=steps, learning_rate=learning_rate, network=network, rng=seed)
    after = _label_errors(caller, tracks)
    if after > before:
        # The likelihood of the labels rose and the best path got worse: labels that the model cannot tell apart.
        nnx.update(caller, initial)
        logger.warning(
            f"Training raised the errors on its own labels from {before} to {after}: the caller keeps its initial "
            "settings. Fewer steps or more labels may help."
        )
    logger.info(f"Trained on {sum(len(track.kind) for track in tracks)} labels in {report.steps} steps.")
    return caller


class _Track(NamedTuple):
    """Counts about the labels of one sample on one sequence, and the labels in bins."""

    counts: np.ndarray
    control: np.ndarray | None
    kind: np.ndarray
    start: np.ndarray
    end: np.ndarray


def _tracks(adata, genome, labels, layer, control, width, allow_fractional) -> list[_Track]:
    from diffbio_sc.operators.epigenomics.peak_caller import REGION_KINDS

    missing = [name for name in _COLUMNS if name not in labels]
    if missing:
        raise KeyError(f"labels has no columns {missing}; columns: {list(map(str, labels.columns))}.")
    if not len(labels):
        raise ValueError("labels is empty: there is nothing to train on.")
    unknown = sorted(set(labels["annotation"].astype(str)) - set(REGION_KINDS))
    if unknown:
        raise ValueError(f"labels['annotation'] must hold {list(REGION_KINDS)}, found {unknown[:5]}.")
    names = genome.track_names(adata).astype(str)
    samples = labels["sample"].astype(str)
    absent = sorted(set(samples) - set(names))
    if absent:
        raise KeyError(f"labels names samples that adata has not: {absent[:5]}; it has: {list(names[:10])}.")
    if control is not None and control not in names:
        raise KeyError(f"control {control!r} is no row of adata; it has: {list(names[:10])}.")
    bad = labels["end"].to_numpy() <= labels["start"].to_numpy()
    if bad.any():
        raise ValueError(
            f"labels must have start < end, found {int(bad.sum())} that have not: {labels[bad].iloc[0].to_dict()}."
        )
    counts = genome.tracks(adata, layer, allow_fractional=allow_fractional)
    chrom = genome.table["chrom"].astype(str).to_numpy()
    begins, ends = genome.table["start"].to_numpy(), genome.table["end"].to_numpy()
    first_bin = np.array([index[0] for index in genome.sequences])
    last_bin = np.array([index[-1] for index in genome.sequences])
    of_sequence: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for sample, name, low, high, kind in zip(
        samples,
        labels["chrom"].astype(str),
        labels["start"],
        labels["end"],
        labels["annotation"].astype(str),
        strict=True,
    ):
        touches = np.flatnonzero((chrom[first_bin] == name) & (begins[first_bin] < high) & (ends[last_bin] > low))
        if len(touches) != 1:
            problem = "on no bins of adata" if not len(touches) else "across a gap between bins"
            raise ValueError(f"the label {kind} of {sample!r} at {name}:{low}-{high} lies {problem}.")
        index = genome.sequences[touches[0]]
        # Bins that the region touches; of a start those that begin in it, of an end those that end in it.
        if kind == "peakStart":
            start = int(np.searchsorted(begins[index], low, side="left"))
        else:
            start = int(np.searchsorted(ends[index], low, side="right"))
        if kind == "peakEnd":
            end = int(np.searchsorted(ends[index], high, side="right"))
        else:
            end = int(np.searchsorted(begins[index], high, side="left"))
        if end <= start:
            raise ValueError(f"the label {kind} of {sample!r} at {name}:{low}-{high} is shorter than a bin.")
        of_sequence.setdefault((sample, int(touches[0])), []).append((REGION_KINDS.index(kind), start, end))
    tracks = []
    margin = _MARGIN // width
    for (sample, sequence), found in of_sequence.items():
        index = genome.sequences[sequence]
        kind, start, end = np.array(found).T
        low, high = max(start.min() - margin, 0), min(end.max() + margin, len(index))
        row = counts.rows(np.flatnonzero(names == sample), index[low:high])[0]
        against = None if control is None else counts.rows(np.flatnonzero(names == control), index[low:high])[0]
        tracks.append(_Track(row, against, kind, start - low, end - low))
    return tracks


def _by_length(tracks: list[_Track]) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """Tracks of equal length together, as the caller takes them: their numbers, signals and controls."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for number, track in enumerate(tracks):
        groups.setdefault((len(track.counts), track.control is None), []).append(number)
    result = []
    for (_, without), numbers in groups.items():
        data = {"signal": np.stack([tracks[number].counts for number in numbers]).astype(np.float32)}
        if not without:
            data["control"] = np.stack([tracks[number].control for number in numbers]).astype(np.float32)  # type: ignore[misc]
        result.append((numbers, data))
    return result


def _label_errors(caller: DifferentiablePeakCaller, tracks: list[_Track]) -> int:
    """Labels that the hard calls contradict."""
    errors = 0
    for numbers, data in _by_length(tracks):
        for number, found in zip(numbers, caller.segments(data), strict=True):
            track, first, last = tracks[number], found[:, 0], found[:, 1] - 1
            for kind, start, end in zip(track.kind, track.start, track.end, strict=True):
                overlaps = bool(((first < end) & (last >= start)).any())
                begins = int(((first >= start) & (first < end)).sum())
                stops = int(((last >= start) & (last < end)).sum())
                errors += not (not overlaps, overlaps, begins == 1, stops == 1)[kind]
    return errors


def _stack(tracks: list[_Track], caller: DifferentiablePeakCaller) -> dict[str, np.ndarray]:
    """Rows of equal length: shorter tracks go on with themselves again, each with the background of its own length."""
    length, regions = max(len(track.counts) for track in tracks), max(len(track.kind) for track in tracks)
    data = {"signal": np.stack([np.resize(track.counts, length) for track in tracks]).astype(np.float32)}
    # Windows would reach from the end of a track into its copy: calls would be other than those of the track alone.
    data["background"] = np.empty_like(data["signal"])
    for numbers, group in _by_length(tracks):
        for number, row in zip(numbers, np.asarray(caller(group)["peak_background"]), strict=True):
            data["background"][number] = np.resize(row, length)
    for name, fill in (("kind", -1), ("start", 0), ("end", 1)):
        values = np.full((len(tracks), regions), fill, np.int32)
        for row, track in enumerate(tracks):
            values[row, : len(track.kind)] = getattr(track, name)
        data[f"region_{name}"] = values
    return data
