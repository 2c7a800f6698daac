from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.engines.interval_peaks import StreamSettings, empty_table, stream_peaks
from diffbio_sc.genome.intervals import Intervals, match_chromosomes

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller

Source = Intervals | str | os.PathLike[str]

_MODES = ("auto", "narrow", "broad", "macs")
_DENSE = 20_000_000  # values of a layer, beyond which it is sparse
_SMALLEST_KEPT = 1e-3  # of sparse layers
_BATCH = 32_000_000  # values of pooled counts held at once
_TYPICAL_LENGTH = 200
_FEWEST_CELLS = 50


def peaks(
    data: AnnData | Source | Mapping[str, Source],
    *,
    groupby: str | Mapping[str, str] | pd.Series | None = None,
    replicate: str | bool | None = None,
    control: Source | str | Mapping[str, Any] | None = None,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    mode: Literal["auto", "narrow", "broad", "macs"] = "auto",
    qvalue: float = 0.05,
    operator: DifferentiablePeakCaller | None = None,
    labels: pd.DataFrame | None = None,
    blacklist: Intervals | str | os.PathLike[str] | pd.DataFrame | None = None,
    fragment_length: int | None = None,
    genome_size: float | None = None,
    bin_size: int = 25,
    duplicates: int | Literal["auto"] | None = "auto",
    allow_fractional: bool = False,
    key_added: str = "peaks",
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | pd.DataFrame | dict[str, pd.DataFrame] | None:
    """Call peaks of ChIP-seq, ATAC-seq or pooled single-cell ATAC-seq.

    Counts in bins are compared with a local background, the largest of the genome's mean and of means of windows about
    the bin, from a control where there is one :cite:p:`Zhang2008`. The most probable path of a chain of two states,
    background and peak, is the segmentation with a penalty for each change :cite:p:`Hocking2015`. Of files the borders
    and summits of peaks are found at base-pair precision. The operator
    :class:`~diffbio_sc.operators.epigenomics.DifferentiablePeakCaller` is the differentiable twin.

    Parameters
    ----------
    data
        An AnnData of raw counts with bins along the axis whose table has ``chrom``, ``start`` and ``end`` (either
        one); or fragments or reads of :mod:`diffbio_sc.io`, or a file of them, which are worked through one chromosome
        after the other; or several of these, by name of the sample. An AnnData without bins but with fragments of
        SnapATAC2, ``.obsm["fragment_paired"]``, is taken as those fragments.
    groupby
        Pool before calling. Of an AnnData the column with the label of each cell (or sample): one set of peaks a label
        rather than a row. Of fragments with barcodes a mapping from barcode to label, such as
        ``adata.obs["cell_type"]``.
    replicate
        Of an AnnData the column that tells replicates apart; of several files ``True``: they are replicates of one
        sample. Peaks are those of the pooled counts, with ``n_replicates``, the number of replicates whose own peaks
        overlap them.
    control
        Control (input) of the treatment. Of files another file or fragments, or one for each sample by name. Of an
        AnnData the name of the row (or group) that is the control, or a mapping from row to its control; controls
        themselves get no peaks. It is scaled to the depth of the treatment.
    layer
        Layer with the raw counts; default ``X``.
    axis
        Which axis holds the bins, if both could.
    mode
        ``"narrow"`` (transcription factors, open chromatin, most promoters and enhancers), ``"broad"`` (domains), or
        ``"auto"``: by how far the counts' own covariance reaches. ``"macs"`` (of files): MACS3's background, p-values
        and merging :cite:p:`Zhang2008`.
    qvalue
        Largest false discovery rate of a peak, over all bins.
    operator
        A caller trained by :func:`diffbio_sc.tl.train_peaks`; for an AnnData. Its segmentation is the result; p- and
        q-values are told, but cut nothing.
    labels
        Weak labels (see :func:`diffbio_sc.tl.train_peaks`) to train a caller with first; for an AnnData.
    blacklist
        Regions where no peak may have its summit, a BED file or a table of them. Peaks that reach into one are cut off
        there.
    fragment_length
        Of reads: the length that they are extended to; default from the distance between strands. Of an AnnData: the
        length of the fragments that were counted in each bin they touch (default 200, unless ``.uns["coverage"]`` says
        that cut sites or midpoints were counted), because counts of one fragment in many bins are no evidence of many.
    genome_size
        Mappable size of the genome, for files; default the length of the chromosomes.
    bin_size
        Width of the bins of files.
    duplicates
        Number of equal fragments (or reads) of a file that count, None for all; by default 1, or all where fragments
        have barcodes.
    allow_fractional
        Accept fractional counts with a warning. Values divided by depth have no Poisson noise: their p-values are
        wrong.
    key_added
        Key of the record in ``.uns``. Layers and columns have the names below for the default key, and
        ``f"{key_added}_"`` in front for others.
    rng
        Seed or generator, of the training with ``labels``.
    copy
        Return a copy instead of writing into the AnnData.

    Returns
    -------
    Of a file or fragments a table of peaks, of several or with ``groupby`` a dict of tables by name. Its columns are
    those of narrowPeak (0-based, half-open; ``pValue`` and ``qValue`` are -log10; ``peak`` is the summit as offset from
    ``start``; ``signalValue`` the effective number of fragments in the peak, or with ``mode="macs"`` the fold
    enrichment) and

    ``fold``
        (height + 1) / (background + 1) at the summit.
    ``log_odds``
        Log-likelihood ratio of peak against background, in nats.
    ``fragments``, ``expected``
        Effective number of fragments in the peak, and that of the background.

    Of an AnnData None, or the copy, with these fields; bins along ``var``:

    `.layers["peak_scores"]`, `.layers["peak_calls"]` : float32, int8
        Posterior probability that the bin lies in a peak; whether it lies in one of the table.
    `.layers["peak_start"]`, `.layers["peak_end"]` : float32
        Posterior probability that a peak begins, or ends, with the bin.
    `.layers["peak_log10p"]` : float32
        -log10 P(X >= count) of the bin.
    `.layers["peak_background"]` : float32
        Expected count outside peaks; left out where matrices are sparse.
    `.var["n_peaks"]`, `.var["peak_background"]` : int32, float32
        Number of rows (or groups) that call the bin; mean of their backgrounds.
    `.uns["peaks"]` : dict
        ``params``, ``version``, ``report``, ``groups`` (names) and ``tables``, a table of peaks for each group.

    With ``groupby`` the matrices are arrays (bins, groups) of ``.varm`` in place of layers. Bins along ``obs``
    give ``.obs`` and ``.obsm`` in place of ``.var`` and ``.varm``. Matrices of more than 20 million values are sparse,
    without values below 0.001.

    Raises
    ------
    KeyError
        If a column, layer, row or control is missing, or no axis has ``chrom``, ``start`` and ``end``.
    ValueError
        If values are no counts, chromosome names of treatment and control have nothing in common, a control holds no
        reads, or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> table = dbio.tl.peaks("chip.bedpe.gz", control="input.bedpe.gz")
    >>> by_type = dbio.tl.peaks("fragments.tsv.gz", groupby=adata.obs["cell_type"])
    >>> dbio.tl.peaks(tiles, groupby="cell_type")
    """
    _check_arguments(mode, qvalue, bin_size, duplicates, fragment_length, genome_size)
    regions = _read_blacklist(blacklist)
    if hasattr(data, "obs_names"):
        if hasattr(data, "mod"):
            raise TypeError("data must be an AnnData, found a MuData; pass the modality: mdata['atac'].")
        from diffbio_sc.io._anndata_fragments import cell_labels, fragments_of, holds_fragments

        if layer is None and holds_fragments(data):
            groupby = cell_labels(data, groupby) if isinstance(groupby, str) else groupby
            data = fragments_of(data)
    if hasattr(data, "obs_names"):
        if mode == "macs":
            raise ValueError("mode='macs' needs fragments or reads at base pairs, not counts in bins; pass the file.")
        from diffbio_sc.engines.bin_peaks import BinSettings

        settings = BinSettings(mode, float(qvalue), 0.0, 1.0, operator)
        return _peaks_of_bins(
            data,
            settings,
            groupby=groupby,
            replicate=replicate,
            control=control,
            layer=layer,
            axis=axis,
            labels=labels,
            regions=regions,
            fragment_length=fragment_length,
            allow_fractional=allow_fractional,
            key_added=key_added,
            rng=rng,
            copy=copy,
            blacklist=blacklist,
        )
    for name, value in (("layer", layer), ("axis", axis), ("operator", operator), ("labels", labels)):
        if value is not None:
            raise ValueError(
                f"{name} is for an AnnData of counts in bins, found data of type {type(data).__name__}; "
                "make one with dbio.pp.coverage(data, bin_size=25)."
            )
    if copy:
        raise ValueError("copy=True is for an AnnData; a file's peaks are returned as a table.")
    stream = StreamSettings(mode, float(qvalue), int(bin_size), genome_size, fragment_length, duplicates, "")  # type: ignore[arg-type]
    return _peaks_of_files(data, stream, groupby, replicate, control, regions)


def _check_arguments(mode, qvalue, bin_size, duplicates, fragment_length, genome_size) -> None:
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {list(_MODES)}, found {mode!r}.")
    if not 0 < qvalue <= 1:
        raise ValueError(f"qvalue must lie between 0 and 1, found {qvalue!r}.")
    if isinstance(bin_size, bool) or int(bin_size) != bin_size or bin_size < 1:
        raise ValueError(f"bin_size must be a positive whole number of base pairs, found {bin_size!r}.")
    if duplicates != "auto" and duplicates is not None and (int(duplicates) != duplicates or duplicates < 1):
        raise ValueError(f"duplicates must be a positive whole number, None or 'auto', found {duplicates!r}.")
    for name, value in (("fragment_length", fragment_length), ("genome_size", genome_size)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, found {value!r}.")


def _read_blacklist(blacklist) -> pd.DataFrame | None:
    if blacklist is None:
        return None
    if isinstance(blacklist, pd.DataFrame):
        missing = [name for name in ("chrom", "start", "end") if name not in blacklist]
        if missing:
            raise KeyError(f"blacklist has no columns {missing}; columns: {list(map(str, blacklist.columns))}.")
        return blacklist
    if not isinstance(blacklist, Intervals):
        from diffbio_sc.io import read_bed

        blacklist = read_bed(blacklist)
    return blacklist.to_frame()


def without_blacklist(table: pd.DataFrame, regions: pd.DataFrame | None, name: str) -> pd.DataFrame:
    """Leave out peaks with their summit in a region, and cut off others where they reach into one."""
    if regions is None or not len(table):
        return table
    match_chromosomes(
        list(dict.fromkeys(table["chrom"])),
        list(dict.fromkeys(regions["chrom"].astype(str))),
        left_name=name,
        right_name="the blacklist",
    )
    start, end = table["start"].to_numpy(copy=True), table["end"].to_numpy(copy=True)
    summit = start + table["peak"].to_numpy()
    kept = np.ones(len(table), bool)
    by_chromosome = dict(list(regions.groupby(regions["chrom"].astype(str), sort=False)))
    for chromosome, rows in table.groupby("chrom", sort=False).indices.items():
        if chromosome not in by_chromosome:
            continue
        region = by_chromosome[chromosome].sort_values("start")
        first, last = region["start"].to_numpy(), np.maximum.accumulate(region["end"].to_numpy())
        # The region that begins last at or before the summit is the one to hold it, ends being made to increase.
        before = np.searchsorted(first, summit[rows], side="right") - 1
        reach = np.where(before >= 0, last[np.maximum(before, 0)], 0)
        kept[rows] = reach <= summit[rows]
        start[rows] = np.maximum(start[rows], np.minimum(reach, summit[rows]))
        after = before + 1
        following = np.where(after < len(first), first[np.minimum(after, len(first) - 1)], np.iinfo(np.int64).max)
        end[rows] = np.minimum(end[rows], following)
    result = table.assign(start=start, end=end, peak=summit - start)[kept].reset_index(drop=True)
    if not kept.all():
        logger.info(f"{int((~kept).sum())} peaks of {name} lie in the blacklist.")
    return result


def _open(source: Source) -> tuple[Intervals, bool]:
    """Intervals, and whether they are ours to change."""
    if isinstance(source, Intervals):
        return source, False
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"data must be an AnnData, dbio.io.Intervals, a path, or a dict of these, found {type(source).__name__}."
        )
    if os.fspath(source).lower().endswith(".bam"):
        from diffbio_sc.io import read_bam

        return read_bam(source), True
    from diffbio_sc.io import read_intervals

    opened = read_intervals(source)
    if not isinstance(opened, Intervals):
        raise TypeError(
            f"{os.fspath(source)} is a signal, not fragments: peaks need counts. "
            "dbio.pp.coverage makes an AnnData of it."
        )
    return opened, True


def _peaks_of_files(data, settings, groupby, replicate, control, regions):
    if isinstance(data, Mapping):
        if not data:
            raise ValueError("data must name at least one sample, found an empty mapping.")
        if groupby is not None:
            raise ValueError("groupby is for fragments with barcodes of one sample; call the samples one by one.")
        if replicate not in (None, False, True):
            raise ValueError(f"replicate must be True, False or None for files, found {replicate!r}.")
        tables = {}
        for name, source in data.items():
            chosen = control
            if isinstance(control, Mapping):
                if name not in control:
                    raise KeyError(f"control has none for sample {name!r}; it has: {list(map(str, control))}.")
                chosen = control[name]
            tables[str(name)] = _one_file(source, settings._replace(prefix=f"{name}_"), chosen, regions)
        if not replicate:
            return tables
        if isinstance(control, Mapping):
            raise ValueError("replicates that are pooled need one control, found a mapping.")
        pooled = _pool([_open(source)[0] for source in data.values()])
        return count_support(_one_file(pooled, settings, control, regions), list(tables.values()))
    if replicate:
        raise ValueError("replicate=True needs several samples: pass a dict of them by name.")
    if isinstance(control, Mapping):
        raise TypeError("control must be one file or Intervals for one sample, found a mapping.")
    if groupby is None:
        return _one_file(data, settings, control, regions)
    if isinstance(groupby, str):
        raise TypeError(
            "of fragments groupby must be a mapping from barcode to label, such as adata.obs['cell_type'], found "
            f"the text {groupby!r}."
        )
    from diffbio_sc.pp import pseudobulk

    intervals, _ = _open(data)
    pooled = pseudobulk(intervals, groupby=groupby)
    cells = pd.Series(dict(groupby) if isinstance(groupby, Mapping) else groupby).dropna().astype(str).value_counts()
    _warn_of_small_groups({str(name): int(count) for name, count in cells.items()})
    return {
        str(name): _one_file(fragments, settings._replace(prefix=f"{name}_"), control, regions)
        for name, fragments in progress(list(pooled.items()), "Groups")
    }


def _one_file(source, settings, control, regions) -> pd.DataFrame:
    intervals, owned = _open(source)
    control_intervals = None if control is None else _open(control)[0]
    if settings.duplicates == "auto":
        barcoded = "cell_code" in intervals.columns
        settings = settings._replace(duplicates=None if barcoded else 1)
    table = stream_peaks(intervals, control_intervals, settings, owned=owned)
    return without_blacklist(table, regions, intervals.name)


def _pool(parts: Sequence[Intervals]) -> Intervals:
    """All intervals of several samples as one."""
    chromosomes = list(dict.fromkeys(name for part in parts for name in part.chromosomes))
    for part in parts[1:]:
        match_chromosomes(part.chromosomes, parts[0].chromosomes, left_name=part.name, right_name=parts[0].name)
    if len({part.paired for part in parts}) > 1:
        raise ValueError("replicates must be all of fragments or all of single reads, found both.")
    keys = [key for key in ("start", "end", "strand") if all(key in part.columns for part in parts)]
    pieces: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    lengths = []
    for chromosome in chromosomes:
        arrays = [part[chromosome] for part in parts if chromosome in part]
        lengths.append(sum(len(one.start) for one in arrays))
        for key in keys:
            pieces[key] += [getattr(one, key) for one in arrays]
    stops = np.cumsum([0, *lengths])
    sizes = None
    if all(part.sizes is not None for part in parts):
        sizes = {name: max((part.sizes or {}).get(name, 0) for part in parts) for name in chromosomes}
    return Intervals(
        {key: np.concatenate(values) for key, values in pieces.items()},
        np.stack([stops[:-1], stops[1:]], axis=1),
        chromosomes,
        sizes=sizes,
        paired=parts[0].paired,
        name="the pooled replicates",
    )


def count_support(table: pd.DataFrame, replicates: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Add ``n_replicates``: how many tables have a peak that overlaps."""
    number = np.zeros(len(table), np.int64)
    for other in replicates:
        by_chromosome = dict(list(other.groupby("chrom", sort=False)))
        for chromosome, rows in table.groupby("chrom", sort=False).indices.items():
            if chromosome not in by_chromosome:
                continue
            theirs = by_chromosome[chromosome].sort_values("start")
            first, last = theirs["start"].to_numpy(), np.maximum.accumulate(theirs["end"].to_numpy())
            before = np.searchsorted(first, table["end"].to_numpy()[rows], side="left") - 1
            number[rows] += (before >= 0) & (last[np.maximum(before, 0)] > table["start"].to_numpy()[rows])
    return table.assign(n_replicates=number)


def _warn_of_small_groups(cells: Mapping[str, int]) -> None:
    small = [name for name, count in cells.items() if count < _FEWEST_CELLS]
    if small:
        warnings.warn(
            f"groups of fewer than {_FEWEST_CELLS} cells have few peaks and unstable ones: {small[:5]}.",
            UserWarning,
            stacklevel=4,
        )


def _peaks_of_bins(
    adata, settings, *, groupby, replicate, control, layer, axis, labels, regions, fragment_length, allow_fractional,
    key_added, rng, copy, blacklist,
) -> AnnData | None:  # fmt: skip
    from diffbio_sc._anndata import make_record, storable_names
    from diffbio_sc._anndata.genome_axis import read_genome_axis
    from diffbio_sc.engines.bin_peaks import call_track

    started = time.perf_counter()
    params = {
        "groupby": groupby if isinstance(groupby, str) else None,
        "replicate": replicate,
        "control": control if isinstance(control, str) else None,
        "layer": layer, "mode": settings.mode, "qvalue": settings.qvalue, "fragment_length": fragment_length,
        "allow_fractional": allow_fractional, "key_added": key_added,
        "blacklist": None if blacklist is None else "given",
        "operator": None if settings.operator is None else "given",
    }  # fmt: skip
    if groupby is not None and not isinstance(groupby, str):
        raise TypeError(f"of an AnnData groupby must name a column, found {type(groupby).__name__}.")
    if copy and adata.isbacked:
        raise ValueError("copy=True needs an object in memory: call adata.to_memory() first.")
    genome = read_genome_axis(adata, axis=axis)
    if labels is not None:
        if settings.operator is not None:
            raise ValueError("pass labels to train a caller or operator, a trained one, not both.")
        from diffbio_sc.tl._train_peaks import train_peaks

        settings = settings._replace(
            operator=train_peaks(adata, labels, layer=layer, axis=axis, fragment_length=fragment_length, rng=rng)
        )
    width = bin_width(genome)
    settings = settings._replace(
        width=width, positions_per_read=positions_per_read(adata, width, fragment_length, settings.operator)
    )
    counts = genome.tracks(adata, layer, allow_fractional=allow_fractional)
    codes, groups = _groups(genome, adata, groupby)
    controls = _controls(control, groups)
    called = [group for group in groups if group not in set(controls.values())]
    replicates = _replicates(genome, adata, replicate, codes, groups)
    stored = storable_names(groups)
    stored_name = dict(zip(groups, stored, strict=True))

    names = ("scores", "calls", "start", "end", "log10p")
    collector = {name: _Rows(len(groups), len(genome)) for name in names}
    levels = _Rows(len(groups), len(genome))
    tables: dict[str, pd.DataFrame] = {}
    number, background = np.zeros(len(genome), np.int32), np.zeros(len(genome))
    broad: list[str] = []
    pools = _Pools(counts, codes, len(groups))
    for group in progress(called, "Peaks", total=len(called)):
        index = groups.index(group)
        against = pools[groups.index(controls[group])] if group in controls else None
        if against is not None and not against.any():
            raise ValueError(f"the control {controls[group]!r} of {group!r} holds no counts.")
        track = call_track(pools[index], against, genome, settings, f"{group}_" if len(groups) > 1 else "")
        table = without_blacklist(track.table, regions, f"the peaks of {group!r}")
        call = track.call if len(table) == len(track.table) and regions is None else _bins_of(table, genome)
        if replicates is not None:
            own = []
            for code in np.unique(replicates[(codes == index) & (replicates >= 0)]):
                rows = np.where((codes == index) & (replicates == code), 0, -1)
                one = counts.sum_by_group(rows, 1)[0]
                own.append(call_track(one, against, genome, settings, "").table)
            table = count_support(table, own)
        tables[stored_name[group]] = table
        for name, values in zip(names, (track.score, call, track.start, track.end, track.log10_p), strict=True):
            collector[name].set(index, values)
        if levels.dense:
            levels.set(index, track.background)
        number += call
        background += track.background / max(len(called), 1)
        if track.broad:
            broad.append(stored_name[group])
    for group in groups:
        tables.setdefault(stored_name[group], empty_table())
    if copy:
        adata = adata.copy()
    prefix = "" if key_added == "peaks" else f"{key_added}_"
    found = sum(map(len, tables.values()))
    logger.info(f"{found} peaks of {len(called)} {'groups' if groupby else 'tracks'}.")
    record = make_record(
        params,
        {"history": {}, "converged": True, "steps": 1, "seconds": time.perf_counter() - started},
        groups=np.asarray(stored, dtype=str),
        tables=tables,
        broad=np.asarray(broad, dtype=str),
        n_peaks=found,
        positions_per_read=settings.positions_per_read,
    )
    kinds = {"scores": np.float32, "calls": np.int8, "start": np.float32, "end": np.float32, "log10p": np.float32}
    matrices = {f"{prefix}peak_{name}": rows.matrix(kinds[name]) for name, rows in collector.items()}
    if levels.dense:
        matrices[f"{prefix}peak_background"] = levels.matrix(np.float32)
    columns = {f"{prefix}n_peaks": number, f"{prefix}peak_background": background.astype(np.float32)}
    if groupby is None:
        genome.write(adata, columns=columns, layers=matrices, uns={key_added: record})
    else:
        turned = {name: sp.csr_array(value.T) if sp.issparse(value) else value.T for name, value in matrices.items()}
        genome.write(adata, columns=columns, matrices=turned, uns={key_added: record})
    return adata if copy else None


def bin_width(genome) -> float:
    """Width of the bins in base pairs; the median, with a warning, where they differ."""
    if genome.width is not None:
        return float(genome.width)
    sizes = (genome.table["end"] - genome.table["start"]).to_numpy()
    warnings.warn(
        f"bins are {sizes.min()} to {sizes.max()} base pairs wide; windows of the background take them to have their "
        "median width. Peaks are better called from fragments or from bins of one width.",
        UserWarning,
        stacklevel=4,
    )
    return float(np.median(sizes))


def positions_per_read(adata, width: float, fragment_length: int | None, operator=None) -> float:
    """Return the number of bins that a fragment counts in, on average."""
    if operator is not None:
        if abs(operator.config.bin_width - width) > 0.5:
            raise ValueError(
                f"operator was made for bins of {operator.config.bin_width} bp, those of adata have {width:.0f} bp."
            )
        return float(operator.config.positions_per_read)
    if fragment_length is None:
        recorded = adata.uns.get("coverage", {}) if isinstance(adata.uns.get("coverage", {}), Mapping) else {}
        if recorded.get("params", {}).get("ends") in ("cut_sites", "midpoint"):
            return 1.0
        fragment_length = _TYPICAL_LENGTH
    return 1.0 + (fragment_length - 1) / width


def _groups(genome, adata, groupby) -> tuple[np.ndarray, list[str]]:
    """Code of each track's group and the names of the groups."""
    from diffbio_sc._anndata import read_labels, require_unique

    if groupby is not None:
        name = "adata.obs" if genome.axis == "var" else "adata.var"
        codes, groups = read_labels(genome.track_table(adata), groupby, name=name)
        cells = np.bincount(codes[codes >= 0], minlength=len(groups))
        if len(codes) > 2 * _FEWEST_CELLS:
            _warn_of_small_groups(dict(zip(groups, cells.tolist(), strict=True)))
        return codes, groups
    tracks = genome.track_names(adata)
    if len(tracks) * len(genome) > 2_000_000_000:
        raise ValueError(
            f"adata has {len(tracks)} tracks of {len(genome)} bins: peaks of single cells would be noise. Pass "
            "groupby=... to pool them, or the fragments with groupby."
        )
    require_unique(tracks, "names of the tracks", "Make them unique first.")
    return np.arange(len(tracks)), [str(name) for name in tracks]


def _controls(control, groups: list[str]) -> dict[str, str]:
    """Control of each group that has one."""
    if control is None:
        return {}
    if isinstance(control, str):
        control = {group: control for group in groups if group != control}
        wanted = set(control.values())
    elif isinstance(control, Mapping):
        control = {str(key): str(value) for key, value in control.items()}
        wanted = set(control) | set(control.values())
    else:
        raise TypeError(
            f"control must name a row or group of adata, or be a mapping of names, found {type(control).__name__}."
        )
    missing = sorted(wanted - set(groups))
    if missing:
        raise KeyError(f"control names {missing}, which adata has not; it has: {groups[:10]}.")
    return control


def _replicates(genome, adata, replicate, codes, groups) -> np.ndarray | None:
    if replicate is None or replicate is False:
        return None
    if not isinstance(replicate, str):
        raise TypeError(f"replicate must name a column for an AnnData, found {replicate!r}.")
    if len(groups) == len(codes):
        raise ValueError("replicate needs groupby: the column that says which rows are replicates of one another.")
    from diffbio_sc._anndata import read_labels

    return read_labels(genome.track_table(adata), replicate, name="adata")[0]


def _bins_of(table: pd.DataFrame, genome) -> np.ndarray:
    """Bins that peaks of a table overlap."""
    call = np.zeros(len(genome), bool)
    chrom = genome.table["chrom"].astype(str).to_numpy()[genome.order]
    start, end = (genome.table[name].to_numpy()[genome.order] for name in ("start", "end"))
    for chromosome, rows in table.groupby("chrom", sort=False):
        here = np.flatnonzero(chrom == chromosome)
        for first, last in zip(rows["start"], rows["end"], strict=True):
            low = here[0] + np.searchsorted(end[here], first, side="right")
            high = here[0] + np.searchsorted(start[here], last, side="left")
            call[genome.order[low:high]] = True
    return call


class _Pools:
    """Pooled counts of groups, a batch of groups at a time."""

    def __init__(self, counts, codes: np.ndarray, groups: int):
        self.counts, self.codes, self.groups = counts, codes, groups
        self.size = max(_BATCH // max(counts.shape[1], 1), 1)
        self.batches: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> np.ndarray:
        batch = index // self.size
        if batch not in self.batches:
            first = batch * self.size
            last = min(first + self.size, self.groups)
            inside = (self.codes >= first) & (self.codes < last)
            while len(self.batches) > 1:  # a batch for treatments and one for controls
                self.batches.pop(next(iter(self.batches)))
            self.batches[batch] = self.counts.sum_by_group(np.where(inside, self.codes - first, -1), last - first)
        return self.batches[batch][index % self.size]


class _Rows:
    """Rows of a result, dense or sparse by their size."""

    def __init__(self, rows: int, columns: int):
        self.shape = (rows, columns)
        self.dense = rows * columns <= _DENSE
        self.rows: dict[int, Any] = {}

    def set(self, index: int, values: np.ndarray) -> None:
        if not self.dense:
            kept = np.flatnonzero(values >= _SMALLEST_KEPT)
            self.rows[index] = (kept, values[kept])
        else:
            self.rows[index] = values

    def matrix(self, kind: type) -> Any:
        if self.dense:
            result = np.zeros(self.shape, kind)
            for index, values in self.rows.items():
                result[index] = values
            return result
        lengths = [len(self.rows[index][0]) if index in self.rows else 0 for index in range(self.shape[0])]
        order = sorted(self.rows)
        columns = np.concatenate([self.rows[index][0] for index in order]) if order else np.zeros(0, np.int64)
        values = np.concatenate([self.rows[index][1] for index in order]) if order else np.zeros(0)
        return sp.csr_array((values.astype(kind), columns, np.concatenate([[0], np.cumsum(lengths)])), shape=self.shape)
