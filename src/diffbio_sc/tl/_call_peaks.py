from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from diffbio_sc.genome.intervals import Intervals

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.engines.peak_settings import PeakSettings
    from diffbio_sc.genome.peak_table import PeakTable

Source = Intervals | str | os.PathLike[str]

_SIGNALS = (".bw", ".bigwig", ".bedgraph", ".bdg", ".wig")


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
) -> pd.DataFrame | dict[str, pd.DataFrame]:
    """Call the peaks of fragments or reads: ChIP-seq, ATAC-seq, or single cells pooled by their label.

    The pile-up is compared with a local background, the largest of the genome's mean and of means of windows about the
    position, from a control where there is one :cite:p:`Zhang2008`. The most probable path of a chain of two states,
    background and peak, is the segmentation, with a penalty for each change :cite:p:`Hocking2015`. Borders and summits
    of peaks are then found to the base pair. Chromosomes are worked through one after the other, and no matrix of the
    genome is made. :func:`diffbio_sc.tl.peaks` calls the peaks of counts in bins.

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
        barcodes or counts.

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
    # No more of a file than a chromosome is in memory, however many samples and groups there are.
    with columns_on_disk():
        if hasattr(source, "obs_names"):
            source, groupby = _fragments_of(source, groupby)
        if isinstance(source, Mapping):
            if groupby is not None:
                raise ValueError("groupby is for fragments with barcodes of one sample; call the samples one by one.")
            return _call_samples(source, settings, bool(replicate), control, blacklist)
        if replicate:
            raise ValueError("replicate=True needs several samples: pass a dict of them by name.")
        if isinstance(control, Mapping):
            raise TypeError("control must be one file or Intervals for one sample, found a mapping.")
        if groupby is None:
            return _call_one(source, settings, control, blacklist).to_frame()
        return _call_cells(source, groupby, settings, control, blacklist)


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
    sources: Mapping[str, Source], settings: PeakSettings, replicate: bool, control: Any, blacklist: Any
) -> dict[str, pd.DataFrame] | pd.DataFrame:
    if not sources:
        raise ValueError("source must name at least one sample, found an empty mapping.")
    if isinstance(control, Mapping):
        missing = [name for name in sources if name not in control]
        if missing:
            raise KeyError(f"control has none for samples {missing[:5]}; it has: {list(map(str, control))[:10]}.")
        if replicate:
            raise ValueError("replicates that are pooled need one control, found a mapping.")
    if len(sources) > 1 or replicate:
        settings = _one_mark(sources.items(), settings)
    tables = {
        str(name): _call_one(
            one,
            dataclasses.replace(settings, prefix=f"{name}_"),
            control[name] if isinstance(control, Mapping) else control,
            blacklist,
        )
        for name, one in sources.items()
    }
    if not replicate:
        return {name: table.to_frame() for name, table in tables.items()}
    from diffbio_sc.engines.peak_sets import count_support, pool_intervals

    pooled = pool_intervals([_open(one)[0] for one in sources.values()])
    return count_support(_call_one(pooled, settings, control, blacklist), list(tables.values())).to_frame()


def _call_cells(
    source: Any, groupby: Any, settings: PeakSettings, control: Any, blacklist: Any
) -> dict[str, pd.DataFrame]:
    """Peaks of each label's cells."""
    import pandas as pd

    from diffbio_sc._progress import progress
    from diffbio_sc.pp import pseudobulk
    from diffbio_sc.tl._peaks import warn_of_small_groups

    if isinstance(groupby, str):
        raise TypeError(
            "for fragments groupby must be a mapping from barcode to label, such as adata.obs['cell_type'], found "
            f"the text {groupby!r}."
        )
    intervals, _ = _open(source)
    pooled = pseudobulk(intervals, groupby=groupby)
    labels = pd.Series(dict(groupby) if isinstance(groupby, Mapping) else groupby).dropna().astype(str)
    found = labels[labels.index.isin(intervals.barcodes or [])]
    warn_of_small_groups({str(name): int(count) for name, count in found.value_counts().items()})
    control = None if control is None else _open(control)[0]
    settings = _one_mark(pooled.items(), settings)
    return {
        str(name): _call_one(fragments, dataclasses.replace(settings, prefix=f"{name}_"), control, blacklist).to_frame()
        for name, fragments in progress(list(pooled.items()), "Groups")
    }


def _one_mark(samples: Iterable[tuple[str, Any]], settings: PeakSettings) -> PeakSettings:
    """Settings with the mark that all samples or groups of one experiment are called as; said once."""
    from diffbio_sc.engines.interval_peaks import measure_intervals
    from diffbio_sc.engines.mark_choice import choose_mark, tell_unguarded

    samples = list(samples)
    mode = settings.mode
    if mode == "auto":
        mode = choose_mark({str(name): measure_intervals(_open(one)[0], settings) for name, one in samples})
    if settings.unguarded:
        tell_unguarded(mode, [str(name) for name, _ in samples])
    return dataclasses.replace(settings, mode=mode, unguarded=False)


def _call_one(source: Any, settings: PeakSettings, control: Any, blacklist: Any) -> PeakTable:
    from diffbio_sc.engines.interval_peaks import stream_peaks
    from diffbio_sc.engines.peak_sets import cut_at_regions
    from diffbio_sc.tl._blacklist import read_blacklist

    intervals, owned = _open(source)
    regions = read_blacklist(blacklist, intervals.chromosomes, intervals.name)
    against = None if control is None else _open(control)[0]
    table = stream_peaks(intervals, against, settings, owned=owned)
    return cut_at_regions(table, regions, intervals.name)


def _open(source: Any) -> tuple[Intervals, bool]:
    """Intervals, and whether they are ours to change."""
    if isinstance(source, Intervals):
        return source, False
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "source must be dbio.io.Intervals, the path of a file of fragments or reads, or a dict of these, found "
            f"{type(source).__name__}."
        )
    name = os.fspath(source).lower().removesuffix(".gz")
    if name.endswith(_SIGNALS):
        raise TypeError(
            f"{os.fspath(source)} is a signal, not fragments: peaks need counts. Pass the file that it was made from."
        )
    if name.endswith(".bam"):
        from diffbio_sc.io import read_bam

        return read_bam(source), True
    from diffbio_sc.io import read_intervals

    return read_intervals(source), True
