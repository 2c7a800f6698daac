from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._options import check_options

if TYPE_CHECKING:
    import os

    import pandas as pd
    from anndata import AnnData

    from diffbio_sc.genome.intervals import Intervals
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller

_FEWEST_CELLS = 50


def peaks(
    adata: AnnData,
    *,
    groupby: str | None = None,
    replicate: str | None = None,
    control: str | Mapping[str, str] | None = None,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    mode: Literal["auto", "narrow", "broad"] = "auto",
    qvalue: float = 0.05,
    operator: DifferentiablePeakCaller | None = None,
    blacklist: Intervals | str | os.PathLike[str] | pd.DataFrame | None = None,
    fragment_length: float | None = None,
    allow_fractional: bool = False,
    key_added: str = "peaks",
    copy: bool = False,
) -> AnnData | None:
    """Call the peaks of counts in bins: of each sample, or of cells pooled by their label.

    Counts are compared with a local background, the largest of the genome's mean and of means of windows about the bin,
    from a control where there is one :cite:p:`Zhang2008`. The most probable path of a chain of two states, background
    and peak, is the segmentation, with a penalty for each change :cite:p:`Hocking2015`. The operator
    :class:`~diffbio_sc.operators.epigenomics.DifferentiablePeakCaller` is the differentiable twin. Prefer
    :func:`diffbio_sc.tl.call_peaks` where you have the fragments: borders and summits are then at base pairs.

    Parameters
    ----------
    adata
        Raw counts, with bins along the axis whose table has ``chrom``, ``start`` and ``end`` (either one).
        :func:`diffbio_sc.pp.coverage` makes such an object.
    groupby
        Column with the label of each cell or sample. Counts are pooled by it, and each label gets one set of peaks;
        by default each row does.
    replicate
        Column that tells replicates apart, with ``groupby``. Peaks are those of the pooled counts, with
        ``n_replicates``, the number of replicates whose own peaks overlap them.
    control
        Name of the row (or group) that is the control (input) of all others, or a mapping from row to its control.
        It is scaled to the depth of the treatment. Controls themselves get no peaks.
    layer
        Layer with the raw counts; default ``X``.
    axis
        Axis that holds the bins, if both could.
    mode
        ``"narrow"`` for transcription factors, open chromatin, most promoters and enhancers; ``"broad"`` for domains;
        ``"auto"`` decides by how far the covariance of the counts reaches, once for all, and says so.
    qvalue
        Largest false discovery rate of a peak, over all bins.
    operator
        Caller trained by :func:`diffbio_sc.tl.train_peaks`. Its segmentation is the result; p- and q-values are told,
        but cut nothing.
    blacklist
        Regions where no peak may have its summit: intervals, a BED file or a table with ``chrom``, ``start`` and
        ``end``. Peaks that reach into one are cut off there.
    fragment_length
        Length in base pairs of the fragments that were counted in each bin they touch; default 200, unless
        ``.uns["coverage"]`` says that cut sites or midpoints were counted. The counts of one fragment in many bins are
        no evidence of many fragments.
    allow_fractional
        Accept fractional counts with a warning. Values divided by depth have no Poisson noise: their p-values are
        wrong.
    key_added
        Key of the record in ``.uns``. Layers and columns have the names below for the default key, and
        ``f"{key_added}_"`` in front for others.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields; bins along ``var``:

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
        ``params``, ``version``, ``report``, ``groups`` (names), ``mark`` (``"narrow"``, ``"broad"`` or ``"trained"``:
        how all were called), ``broad`` (names of those called as broad marks) and ``tables``, a table of peaks for each
        group with the columns of :func:`diffbio_sc.tl.call_peaks`.

    With ``groupby`` the matrices are arrays (bins, groups) of ``.varm`` in place of layers. Bins along ``obs``
    give ``.obs`` and ``.obsm`` in place of ``.var`` and ``.varm``. Matrices of more than 20 million values are sparse,
    without values below 0.001.

    Raises
    ------
    KeyError
        If a column, layer, row or control is missing, or no axis has ``chrom``, ``start`` and ``end``.
    ValueError
        If values are no counts, a control holds none, or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, cell_types = dbio.datasets.simulate_fragments()
    >>> bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    >>> dbio.tl.peaks(bins)
    >>> dbio.get.peaks(bins)["group"].unique().tolist()
    ['B cell', 'T cell']
    """
    from diffbio_sc._anndata import make_record
    from diffbio_sc._anndata.bins import read_bins
    from diffbio_sc._anndata.genome_axis import read_genome_axis
    from diffbio_sc._logging import logger
    from diffbio_sc.engines.bin_run import Groups, call_groups
    from diffbio_sc.engines.peak_settings import PeakSettings
    from diffbio_sc.tl._blacklist import read_blacklist

    if mode == "macs":
        raise ValueError(
            "mode='macs' needs fragments or reads at base pairs, not counts in bins: use dbio.tl.call_peaks on a file."
        )
    check_options(peaks, locals(), qvalue="(0, 1]", fragment_length="(0, inf) base pairs")
    started = time.perf_counter()
    _check_object(adata)
    settings = PeakSettings(mode=mode, qvalue=qvalue, fragment_length=fragment_length)
    genome = read_genome_axis(adata, axis=axis)
    regions = read_blacklist(blacklist, genome.chromosomes, "adata")
    bins = read_bins(
        adata, genome, fragment_length=fragment_length, config=None if operator is None else operator.config
    )
    counts = genome.tracks(adata, layer, allow_fractional=allow_fractional)
    codes, names = _groups(genome, adata, groupby)
    groups = Groups(names, codes, _controls(control, names), _replicates(genome, adata, replicate, codes, names))
    result = call_groups(counts, groups, bins, settings, operator=operator, regions=regions)
    logger.info(
        f"{sum(map(len, result.tables.values()))} peaks of {len(groups.called)} {'groups' if groupby else 'tracks'}."
    )
    params = {
        "groupby": groupby, "replicate": replicate, "control": control if isinstance(control, str) else None,
        "layer": layer, "mode": mode, "qvalue": qvalue, "fragment_length": fragment_length,
        "allow_fractional": allow_fractional, "key_added": key_added,
        "blacklist": None if blacklist is None else "given", "operator": None if operator is None else "given",
    }  # fmt: skip
    report = {"history": {}, "converged": True, "steps": 1, "seconds": time.perf_counter() - started}
    target = adata.copy() if copy else adata
    _write(target, genome, result, groupby is not None, key_added, lambda **extra: make_record(params, report, **extra))
    return target if copy else None


def _check_object(adata: Any) -> None:
    if hasattr(adata, "mod"):
        raise TypeError("adata must be an AnnData, found a MuData; pass the modality: mdata['atac'].")
    if not hasattr(adata, "obs_names") or isinstance(adata, type):
        from diffbio_sc._checks import found_object

        raise TypeError(
            f"adata must be an AnnData of counts in bins, {found_object(adata)}; dbio.tl.call_peaks takes files and "
            "fragments, dbio.pp.coverage counts them in bins."
        )
    from diffbio_sc._anndata.fragments import holds_fragments

    if holds_fragments(adata):
        raise ValueError(
            "adata holds fragments (.obsm['fragment_paired']) and no bins: use dbio.tl.call_peaks(adata, groupby=...), "
            "or count them in bins with dbio.pp.coverage."
        )


def _write(adata: Any, genome: Any, result: Any, grouped: bool, key_added: str, make_record: Any) -> None:
    from diffbio_sc._anndata import prefix_of, storable_names

    names = list(result.tables)
    stored = dict(zip(names, storable_names(names), strict=True))
    tables = {stored[name]: table.to_frame() for name, table in result.tables.items()}
    record = make_record(
        groups=np.asarray(list(stored.values()), dtype=str),
        tables=tables,
        broad=np.asarray([stored[name] for name in result.broad], dtype=str),
        mark=result.mark,
        n_peaks=sum(map(len, tables.values())),
    )
    prefix = prefix_of(key_added, "peaks")
    matrices = {f"{prefix}peak_{name}": values for name, values in result.matrices.items()}
    columns = {f"{prefix}n_peaks": result.n_peaks, f"{prefix}peak_background": result.background}
    # What an earlier call wrote under this key, with groups or without, goes.
    earlier = dict.fromkeys([*matrices, f"{prefix}peak_background"])
    if not grouped:
        layers = {**earlier, **matrices}
        genome.write(adata, columns=columns, layers=layers, matrices=earlier, uns={key_added: record})
        return
    import scipy.sparse as sp

    turned = {name: sp.csr_array(value.T) if sp.issparse(value) else value.T for name, value in matrices.items()}
    genome.write(adata, columns=columns, matrices={**earlier, **turned}, layers=earlier, uns={key_added: record})


def _groups(genome: Any, adata: Any, groupby: str | None) -> tuple[np.ndarray, list[str]]:
    """Code of each track's group and the names of the groups."""
    from diffbio_sc._anndata import read_labels, require_unique

    if groupby is not None:
        name = "adata.obs" if genome.axis == "var" else "adata.var"
        codes, groups = read_labels(genome.track_table(adata), groupby, name=name)
        cells = np.bincount(codes[codes >= 0], minlength=len(groups))
        if len(codes) > 2 * _FEWEST_CELLS:
            warn_of_small_groups(dict(zip(groups, cells.tolist(), strict=True)))
        return codes, groups
    tracks = genome.track_names(adata)
    if len(tracks) * len(genome) > 2_000_000_000:
        raise ValueError(
            f"adata has {len(tracks)} tracks of {len(genome)} bins: peaks of single cells would be noise. Pass "
            "groupby=... to pool them, or call_peaks the fragments with groupby."
        )
    require_unique(tracks, "names of the tracks", "Make them unique first.")
    return np.arange(len(tracks)), [str(name) for name in tracks]


def warn_of_small_groups(cells: Mapping[str, int]) -> None:
    """Warn of groups with too few cells for stable peaks."""
    small = [name for name, count in cells.items() if count < _FEWEST_CELLS]
    if small:
        warnings.warn(
            f"groups of fewer than {_FEWEST_CELLS} cells have few peaks and unstable ones: {small[:5]}.",
            UserWarning,
            stacklevel=4,
        )


def _controls(control: Any, groups: list[str]) -> dict[str, str]:
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
        raise KeyError(f"control names {missing}, which adata does not have; it has: {groups[:10]}.")
    return control


def _replicates(genome: Any, adata: Any, replicate: Any, codes: np.ndarray, groups: list[str]) -> np.ndarray | None:
    if replicate is None or replicate is False:
        return None
    if not isinstance(replicate, str):
        raise TypeError(f"replicate must name a column for an AnnData, found {replicate!r}.")
    if len(groups) == len(codes):
        raise ValueError("replicate needs groupby: the column that says which rows are replicates of one another.")
    from diffbio_sc._anndata import read_labels

    return read_labels(genome.track_table(adata), replicate, name="adata")[0]
