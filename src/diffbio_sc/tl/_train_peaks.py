from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._checks import found_object, require_columns
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

_COLUMNS = ("sample", "chrom", "start", "end", "annotation")


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

    The probability of a label under the caller's posterior is exact, and its settings (enrichment, cost of a change,
    background, temperature) follow the gradient :cite:p:`Hocking2017`. Training keeps its start unless it carries over:
    samples are held out in turn, and only if settings trained on the others contradict fewer of their labels than the
    start does are the settings changed. A log message says what was found.

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
    >>> import diffbio_sc as dbio
    >>> fragments, places, _ = dbio.datasets.simulate_fragments()
    >>> bins = dbio.pp.coverage(fragments, bin_size=200)
    >>> labels = places.iloc[:10].assign(annotation="peaks", sample=bins.obs_names[0])
    >>> caller = dbio.tl.train_peaks(bins, labels, steps=3)
    >>> dbio.tl.peaks(bins, operator=caller)
    """
    from diffbio_sc._anndata.bins import read_bins
    from diffbio_sc._anndata.genome_axis import read_genome_axis
    from diffbio_sc._random import as_generator
    from diffbio_sc.engines.peak_training import train_caller
    from diffbio_sc.numerics.random_keys import streams
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

    check_options(
        train_peaks, locals(), fragment_length="(0, inf) base pairs", steps="[1, inf)", learning_rate="(0, inf)"
    )
    steps = int(steps)
    if isinstance(data, str | Mapping) or not (hasattr(data, "obs_names") or isinstance(data, Iterable)):
        raise TypeError(f"data must be an AnnData of counts in bins or a list of these, {found_object(data)}.")
    objects: list[Any] = [data] if hasattr(data, "obs_names") else list(data)
    tables: list[Any] = [labels] if hasattr(labels, "columns") or labels is None else list(labels)
    if len(objects) != len(tables) or not objects:
        raise ValueError(
            f"labels must be one table for each object, found {len(tables)} tables for {len(objects)} objects."
        )
    seed = int(as_generator(rng).integers(2**31))
    axes = [read_genome_axis(adata, axis=axis) for adata in objects]
    bins = [
        read_bins(adata, genome, fragment_length=fragment_length) for adata, genome in zip(objects, axes, strict=True)
    ]
    widths = [one.width for one in bins]
    if len(set(widths)) > 1:
        raise ValueError(f"all objects must have bins of one width, found {widths}.")
    if config is None:
        config = PeakCallerConfig(
            num_filters=32 if network else 0,
            bin_width=int(round(widths[0])),
            positions_per_read=bins[0].positions_per_read,
        )
    elif config.bin_width != int(round(widths[0])):
        raise ValueError(f"config.bin_width is {config.bin_width}, the bins of data have {widths[0]:.0f} bp.")
    tracks = [
        track
        for adata, genome, one, table in zip(objects, axes, bins, tables, strict=True)
        for track in _tracks(genome.tracks(adata, layer, allow_fractional=allow_fractional), genome.track_names(adata),
                             one, table, control)
    ]  # fmt: skip
    caller = DifferentiablePeakCaller(config, rngs=streams(seed))
    choice = train_caller(caller, tracks, steps=steps, learning_rate=learning_rate, network=network, rng=seed)
    before, after = choice.held_out
    if choice.kept:
        logger.info(f"Trained on {choice.labels} labels; held-out labels had {before} errors before, {after} after.")
    else:
        logger.warning(
            f"The caller keeps its initial settings: of {choice.labels} labels held out in turn, training on the rest "
            f"left {after} wrong, the start {before}. More labels, of more samples, may help."
        )
    return caller


def _tracks(counts: Any, names: Any, bins: Any, labels: Any, control: str | None) -> list[Any]:
    """Tracks around the labels of one object; see :func:`diffbio_sc.engines.peak_training.cut_tracks`."""
    from diffbio_sc.engines.peak_training import Labels, cut_tracks
    from diffbio_sc.operators.epigenomics.peak_labels import REGION_KINDS

    if not hasattr(labels, "columns"):
        raise TypeError(f"labels must be a table with columns {list(_COLUMNS)}, found {type(labels).__name__}.")
    require_columns(labels, _COLUMNS, "labels")
    if not len(labels):
        raise ValueError("labels is empty: there is nothing to train on.")
    kinds = labels["annotation"].astype(str)
    unknown = sorted(set(kinds) - set(REGION_KINDS))
    if unknown:
        raise ValueError(f"labels['annotation'] must hold {list(REGION_KINDS)}, found {unknown[:5]}.")
    place = {str(name): index for index, name in enumerate(names)}
    samples = labels["sample"].astype(str)
    absent = sorted(set(samples) - set(place))
    if absent:
        raise KeyError(f"labels names samples that adata does not have: {absent[:5]}; it has: {list(place)[:10]}.")
    if control is not None and control not in place:
        raise KeyError(f"control {control!r} is no row of adata; it has: {list(place)[:10]}.")
    bad = labels["end"].to_numpy() <= labels["start"].to_numpy()
    if bad.any():
        raise ValueError(
            f"labels must have start < end, found {int(bad.sum())} that do not: {labels[bad].iloc[0].to_dict()}."
        )
    table = Labels(
        samples.map(place).to_numpy(),
        labels["chrom"].astype(str).to_numpy(),
        labels["start"].to_numpy(),
        labels["end"].to_numpy(),
        np.array([REGION_KINDS.index(kind) for kind in kinds]),
    )
    return cut_tracks(counts, bins, table, list(place), None if control is None else place[control])
