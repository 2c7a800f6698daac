from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from diffbio_sc._options import check_options
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.tl._peak_sources import Source, close_source, open_rounds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.blocks.rounds import Flow, Runner
    from diffbio_sc.engines.mark_choice import Breadth
    from diffbio_sc.engines.peak_settings import PeakSettings
    from diffbio_sc.genome.peak_table import PeakTable


@overload
def call_peaks(source: Source, *, groupby: None = None, replicate: bool = False, **options: Any) -> pd.DataFrame: ...


@overload
def call_peaks(
    source: Source | AnnData, *, groupby: str | Mapping[str, str] | pd.Series, **options: Any
) -> dict[str, pd.DataFrame]: ...


@overload
def call_peaks(
    source: Mapping[str, Source], *, replicate: Literal[False] = False, **options: Any
) -> dict[str, pd.DataFrame]: ...


@overload
def call_peaks(source: Mapping[str, Source], *, replicate: Literal[True], **options: Any) -> pd.DataFrame: ...


def call_peaks(  # type: ignore[misc]  # options of the overloads are those below
    source: Source | Mapping[str, Source] | AnnData,
    *,
    groupby: str | Mapping[str, str] | pd.Series | None = None,
    replicate: bool = False,
    control: Source | Mapping[str, Source] | None = None,
    mode: Literal["auto", "narrow", "broad", "macs"] = "auto",
    qvalue: float = 0.05,
    blacklist: Intervals | str | os.PathLike[str] | pd.DataFrame | None = None,
    fragment_length: int | None = None,
    genome_size: float | None = None,
    bin_size: int = 25,
    duplicates: int | Literal["auto"] | None = "auto",
    n_jobs: int | None = None,
) -> pd.DataFrame | dict[str, pd.DataFrame]:
    """Call the peaks of fragments or reads: ChIP-seq, ATAC-seq, or single cells pooled by their label.

    The pile-up is compared with a local background, the largest of the genome's mean and of means of windows about the
    position, from a control where there is one :cite:p:`Zhang2008`. The most probable path of a chain of two states,
    background and peak, is the segmentation, with a penalty for each change :cite:p:`Hocking2015`. Borders and summits
    of peaks are then found to the base pair. Chromosomes are worked through one after the other, and no matrix of the
    genome is made. With an active client of ``dask.distributed`` its workers read the files and work on the
    chromosomes. :func:`diffbio_sc.tl.peaks` calls the peaks of counts in bins.

    Parameters
    ----------
    source
        Fragments or reads of :mod:`diffbio_sc.io`, or a file of them; or several of these, by name of the sample; or
        an AnnData with fragments of SnapATAC2, ``.obsm["fragment_paired"]``. Fragments read with
        ``use_counts=True`` count as often as the file says.
    groupby
        Pool barcodes by their label before calling: a mapping from barcode to label, such as
        ``adata.obs["cell_type"]``, or for an AnnData the name of that column.
    replicate
        The samples of a mapping are replicates of one another. Peaks are those of the pooled reads, with
        ``n_replicates``, the number of replicates whose own peaks overlap them.
    control
        Control (input) of the treatment: fragments, reads or a file, or one for each sample by name. It is scaled to
        the depth of the treatment.
    mode
        ``"narrow"`` for transcription factors, open chromatin, most promoters and enhancers; ``"broad"`` for domains;
        ``"auto"`` decides by how far the covariance of the counts reaches, once for all, and says so; ``"macs"`` takes
        MACS3's background, p-values and merging :cite:p:`Zhang2008`.
    qvalue
        Largest false discovery rate of a peak, over all bins.
    blacklist
        Regions where no peak may have its summit: intervals, a BED file or a table with ``chrom``, ``start`` and
        ``end``. Peaks that reach into one are cut off there.
    fragment_length
        Length in base pairs that single reads are extended to; default from the distance between strands. Fragments
        have their own length.
    genome_size
        Mappable size of the genome in base pairs; default the length of the chromosomes.
    bin_size
        Width in base pairs of the bins of the chain.
    duplicates
        Number of equal fragments (or reads) that count, None for all; by default 1, or all where fragments have
        barcodes or counts. Barcodes of different samples are of different cells, also where ``replicate`` pools them.
    n_jobs
        Number of processes that work on files side by side, -1 for one for each core; default this process alone. The
        workers of an active client of ``dask.distributed`` are used instead. A script needs
        ``if __name__ == "__main__":`` about its calls, as each process loads it.

    Returns
    -------
    A table of peaks; of several samples, or with ``groupby``, a dict of tables by name. The columns are those of
    narrowPeak (0-based, half-open; ``pValue`` and ``qValue`` are -log10; ``peak`` is the summit as an offset from
    ``start``; ``signalValue`` the effective number of fragments in the peak, or with ``mode="macs"`` the fold
    enrichment) and

    ``fold``
        (height + 1) / (background + 1) at the summit.
    ``log_odds``
        Log-likelihood ratio of peak against background, in nats.
    ``fragments``, ``expected``
        Effective number of fragments in the peak, and that of the background.
    ``mark``
        ``"narrow"``, ``"broad"`` or ``"macs"``: how it was called.

    Raises
    ------
    KeyError
        If a sample has no control in a mapping of controls, or a blacklist no columns of places.
    ValueError
        If chromosome names of treatment and control have nothing in common, a control holds no reads, or an argument
        is out of range.
    TypeError
        If ``source`` is of another kind, such as a signal (bigWig, bedGraph), which holds no counts.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, cell_types = dbio.datasets.simulate_fragments("fragments.tsv.gz")
    >>> table = dbio.tl.call_peaks("fragments.tsv.gz")
    >>> by_type = dbio.tl.call_peaks("fragments.tsv.gz", groupby=cell_types)
    >>> list(by_type)
    ['B cell', 'T cell']
    """
    from diffbio_sc.blocks.rounds import task_runner
    from diffbio_sc.engines.peak_settings import PeakSettings
    from diffbio_sc.genome.columns import columns_on_disk

    settings = PeakSettings(
        mode=mode,
        qvalue=qvalue,
        bin_size=bin_size,
        genome_size=genome_size,
        fragment_length=fragment_length,
        duplicates=duplicates,
        unguarded=control is None and blacklist is None and mode != "macs",
    )
    check_options(call_peaks, locals(), n_jobs="[-1, inf)")
    if hasattr(source, "obs_names"):
        source, groupby = _fragments_of(source, groupby)
    several = isinstance(source, Mapping)
    if several and groupby is not None:
        raise ValueError("groupby is for fragments with barcodes of one sample; call the samples one by one.")
    if replicate and not several:
        raise ValueError("replicate=True needs several samples: pass a dict of them by name.")
    if isinstance(control, Mapping) and not several:
        raise TypeError("control must be one file or Intervals for one sample, found a mapping.")
    # What is in memory stays in this process: workers would have to be sent all of it.
    given = [one for some in (source, control) for one in (some.values() if isinstance(some, Mapping) else [some])]
    spread = not any(isinstance(one, Intervals) for one in given)
    # No more of a file than a chromosome is in memory, however many samples and groups there are.
    with task_runner(spread=spread, n_jobs=n_jobs) as runner, columns_on_disk(runner.folder):
        if isinstance(source, Mapping):
            return _call_samples(source, settings, bool(replicate), control, blacklist, runner)
        if groupby is not None:
            return _call_cells(source, groupby, settings, control, blacklist, runner)
        (table,) = runner.run([_file_flow(source, settings, control, blacklist, runner.folder)])
        return table.to_frame()


def _fragments_of(adata: Any, groupby: Any) -> tuple[Intervals, Any]:
    """Fragments that an AnnData holds, and the labels of its cells."""
    from diffbio_sc._anndata.fragments import cell_labels, fragments_of, holds_fragments

    if hasattr(adata, "mod") or not holds_fragments(adata):
        raise TypeError(
            f"source must be fragments, reads, a file of them or a dict of these, found {type(adata).__name__} without "
            "fragments (.obsm['fragment_paired']); dbio.tl.peaks calls the peaks of counts in bins."
        )
    return fragments_of(adata), cell_labels(adata, groupby) if isinstance(groupby, str) else groupby


def _call_samples(
    sources: Mapping[str, Source],
    settings: PeakSettings,
    replicate: bool,
    control: Any,
    blacklist: Any,
    runner: Runner,
) -> dict[str, pd.DataFrame] | pd.DataFrame:
    from diffbio_sc.engines.peak_sets import count_support, pool_rounds

    if not sources:
        raise ValueError("source must name at least one sample, found an empty mapping.")
    if isinstance(control, Mapping):
        missing = [name for name in sources if name not in control]
        if missing:
            raise KeyError(f"control has none for samples {missing[:5]}; it has: {list(map(str, control))[:10]}.")
        if replicate:
            raise ValueError("replicates that are pooled need one control, found a mapping.")
    known: dict[str, Source] = {str(name): one for name, one in sources.items()}
    if replicate:
        # They are needed together in the end: each file is read once.
        opened = runner.run([open_rounds(one, runner.folder) for one in known.values()], "Reading")
        known = dict(zip(known, opened, strict=True))
        control = None if control is None else runner.run([open_rounds(control, runner.folder)])[0]
    if len(known) > 1 or replicate:
        settings = _one_mark(known, settings, runner)
    controls = {str(name): one for name, one in control.items()} if isinstance(control, Mapping) else None
    flows = [
        _file_flow(
            one,
            dataclasses.replace(settings, prefix=f"{name}_"),
            control if controls is None else controls[name],
            blacklist,
            runner.folder,
        )
        for name, one in known.items()
    ]
    if not replicate:
        return dict(zip(known, runner.run(map(_framed, flows), "Samples"), strict=True))
    places = runner.run(map(_placed, flows), "Samples")
    (pooled,) = runner.run([pool_rounds(opened)])
    (table,) = runner.run([_sample_flow(pooled, control, settings, blacklist)])
    return count_support(table, places).to_frame()


def _call_cells(
    source: Any,
    groupby: Any,
    settings: PeakSettings,
    control: Any,
    blacklist: Any,
    runner: Runner,
) -> dict[str, pd.DataFrame]:
    """Peaks of each label's cells."""
    import pandas as pd

    from diffbio_sc._anndata.fragments import read_groups
    from diffbio_sc.engines.pseudobulk import split_rounds
    from diffbio_sc.tl._peaks import warn_of_small_groups

    if isinstance(groupby, str):
        raise TypeError(
            "for fragments groupby must be a mapping from barcode to label, such as adata.obs['cell_type'], found "
            f"the text {groupby!r}."
        )
    (intervals,) = runner.run([open_rounds(source, runner.folder, barcodes=True)])
    codes, names = read_groups(intervals, groupby)
    labels = pd.Series(dict(groupby) if isinstance(groupby, Mapping) else groupby).dropna().astype(str)
    found = labels[labels.index.isin(intervals.barcodes or [])]
    warn_of_small_groups({str(name): int(count) for name, count in found.value_counts().items()})
    if intervals is not source:
        intervals.barcodes = None
    (groups,) = runner.run([split_rounds(intervals, codes, names)])
    close_source(source, intervals)
    against = None if control is None else runner.run([open_rounds(control, runner.folder)])[0]
    settings = _one_mark(groups, settings, runner)
    flows = [
        _sample_flow(group, against, dataclasses.replace(settings, prefix=f"{name}_"), blacklist)
        for name, group in groups.items()
    ]
    return dict(zip(map(str, groups), runner.run(map(_framed, flows), "Groups"), strict=True))


def _one_mark(samples: Mapping[str, Any], settings: PeakSettings, runner: Runner) -> PeakSettings:
    """Settings with the mark that all samples or groups of one experiment are called as; said once."""
    from diffbio_sc.engines.mark_choice import choose_mark, tell_unguarded

    mode = settings.mode
    if mode == "auto":
        measured = runner.run([_breadth_flow(one, settings, runner.folder) for one in samples.values()], "Breadth")
        mode = choose_mark(dict(zip(map(str, samples), measured, strict=True)))
    if settings.unguarded:
        tell_unguarded(mode, list(map(str, samples)))
    return dataclasses.replace(settings, mode=mode, unguarded=False)


def _breadth_flow(source: Any, settings: PeakSettings, folder: Path | None) -> Flow[Breadth]:
    from diffbio_sc.engines.interval_peaks import breadth_rounds

    intervals = yield from open_rounds(source, folder)
    breadth = yield from breadth_rounds(intervals, settings)
    close_source(source, intervals)
    return breadth


def _file_flow(
    source: Any, settings: PeakSettings, control: Any, blacklist: Any, folder: Path | None
) -> Flow[PeakTable]:
    """Peaks of one source, which is opened and closed again."""
    intervals = yield from open_rounds(source, folder)
    against = None if control is None else (yield from open_rounds(control, folder))
    table = yield from _sample_flow(intervals, against, settings, blacklist)
    close_source(source, intervals)
    if against is not None:
        close_source(control, against)
    return table


def _framed(flow: Flow[PeakTable]) -> Flow[pd.DataFrame]:
    """Peaks as a table of pandas: of many groups none is held twice."""
    table = yield from flow
    return table.to_frame()


def _placed(flow: Flow[PeakTable]) -> Flow[dict[str, np.ndarray]]:
    """Where the peaks of a replicate lie: all that is asked of it."""
    table = yield from flow
    return table.places()


def _sample_flow(
    intervals: Intervals, control: Intervals | None, settings: PeakSettings, blacklist: Any
) -> Flow[PeakTable]:
    """Peaks of intervals, cut at the blacklist."""
    from diffbio_sc.engines.interval_peaks import peak_rounds
    from diffbio_sc.engines.peak_sets import cut_at_regions
    from diffbio_sc.tl._blacklist import read_blacklist

    regions = read_blacklist(blacklist, intervals.chromosomes, intervals.name)
    table = yield from peak_rounds(intervals, control, settings)
    return cut_at_regions(table, regions, intervals.name)
