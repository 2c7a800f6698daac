from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import require_anndata
from diffbio_sc._anndata.cell_types import CellTypeBins
from diffbio_sc._anndata.chromatin_states import StoredStates, read_states
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._checks import name_heads, whole_numbers
from diffbio_sc._options import check_options
from diffbio_sc._progress import progress
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.numerics.genome.enrichment import (
    ShiftMoments,
    bin_pvalues,
    covered_bases,
    shift_moments,
    shift_pvalues,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    from anndata import AnnData


# As a text: the signature needs it before what it names is loaded.
Regions: TypeAlias = "pd.DataFrame | Intervals | str | os.PathLike[str]"
_NULLS = ("shift", "bins")


def state_enrichment(
    adata: AnnData,
    annotations: Regions | Mapping[str, Regions] | None = None,
    *,
    anchors: Regions | Mapping[str, Regions] | None = None,
    flank: int = 2000,
    null: Literal["shift", "bins"] = "shift",
    key: str = "chromatin_states",
    column: str | None = None,
    cell_type_key: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    key_added: str = "state_enrichment",
    copy: bool = False,
) -> AnnData | None:
    """Test how chromatin states overlap annotations, and draw their profile around anchors.

    The fold is ChromHMM's, in bases: the part of a state that is annotated over the part of the genome that is. The
    p-value asks whether the overlap differs from what it is when the annotation is shifted along its chromosomes, which
    keeps the lengths and clusters of both.

    Parameters
    ----------
    adata
        Object with a state for each bin (see :func:`diffbio_sc.tl.chromatin_states`).
    annotations
        Regions such as genes or CpG islands: a table with columns ``chrom``, ``start`` and ``end``, a BED file,
        intervals of :mod:`diffbio_sc.io`, or several of these by name. Regions that overlap count once.
    anchors
        Positions such as transcription start sites, in the same forms; their 5' ends count where a strand is known. A
        table may have ``pos`` in place of ``start`` and ``end``, a file the three columns chromosome, position and
        strand of ChromHMM's anchor files.
    flank
        Bases on either side of an anchor.
    null
        ``"shift"``: all circular shifts of the annotation within each sequence of bins. ``"bins"``: the hypergeometric
        distribution of bins, as if they were independent, which they are not: p-values are far too small then.
    key
        The ``key_added`` of the states.
    column
        Column with the states; default that of ``key``.
    cell_type_key
        Column with the cell type of each bin; default that of the states. Each cell type is tested by itself.
    axis
        Which axis holds the bins, if both could.
    key_added
        Key of the result.
    copy
        Return a copy rather than write into ``adata``.

    Returns
    -------
    None, or the copy. Writes ``.uns[key_added]`` with ``params``, ``version``, ``report`` and

    - ``overlap``: a row for each cell type, annotation and state, with ``state_bases``, ``annotation_bases``,
      ``overlap_bases``, ``fold``, ``pvalue`` (two-sided; NaN where the state or the annotation covers no base, or
      everything) and ``padj`` (Benjamini and Hochberg over all rows)
    - ``neighborhood``: a row for each cell type, set of anchors, state and distance in bases from the anchor's bin
      (positive: downstream), with the number of ``bins`` seen, the ``fraction`` in the state and ``fold`` over the
      state's part of all bins

    Raises
    ------
    KeyError
        If there are no states, or a table lacks a column.
    ValueError
        If neither annotations nor anchors are given, regions are malformed, or share no chromosome with the bins.

    Notes
    -----
    Overlaps at all shifts come from one Fourier transform; the p-value rests on their exact mean, variance and skewness
    (Pearson type III). A chromosome cut into many short sequences offers few shifts, and little power.

    Examples
    --------
    >>> import pandas as pd
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states()
    >>> genes = adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]
    >>> dbio.tl.state_enrichment(adata, {"genes": genes}, column="truth")
    >>> table = dbio.get.state_enrichment(adata).set_index("state")
    >>> bool(table.loc["Transcribed", "padj"] < 1e-4), bool(table.loc["Quiescent", "fold"] == 0)
    (True, True)
    """
    check_options(state_enrichment, locals(), flank="[0, inf) base pairs")
    flank = int(flank)
    began = time.perf_counter()
    require_anndata(adata)
    if annotations is None and anchors is None:
        raise ValueError("expected annotations, anchors or both, found neither.")
    states = read_states(adata, key, column=column, cell_type_key=cell_type_key, axis=axis)
    chromosomes = list(dict.fromkeys(name for part in states.parts for name in part.genome.chromosomes))
    regions = {name: _merged(item, name, chromosomes) for name, item in _named(annotations, "annotations").items()}
    points = {name: _points(item, name, chromosomes) for name, item in _named(anchors, "anchors").items()}
    overlaps, profiles = [], []
    for part in progress(states.parts, "Cell types", total=len(states.parts)):
        if regions:
            overlaps.append(_overlap(states, part, regions, null))
        if points:
            profiles.append(_neighborhood(states, part, points, flank))
    results: dict[str, pd.DataFrame] = {}
    if overlaps:
        table = pd.concat(overlaps, ignore_index=True)
        table["padj"] = _adjusted(table["pvalue"].to_numpy())
        results["overlap"] = table
    if profiles:
        results["neighborhood"] = pd.concat(profiles, ignore_index=True)
    for table in results.values():
        table["state"] = pd.Categorical(table["state"], categories=states.labels)
    params = {
        "key": key,
        "column": column,
        "cell_type_key": states.cell_type_key,
        "axis": states.axis,
        "null": null,
        "flank": flank,
    }
    report = {"seconds": time.perf_counter() - began, "colors": np.array(states.colors)}
    record = make_record(params, report, **results)
    adata = adata.copy() if copy else adata
    write_results(adata, uns={key_added: record})
    return adata if copy else None


def _named(regions: Any, argument: str) -> dict[str, Any]:
    """Sets of regions by name."""
    if regions is None:
        return {}
    if isinstance(regions, Mapping):
        if not regions:
            raise ValueError(f"{argument} must name at least one set of regions, found an empty mapping.")
        return {str(name): item for name, item in regions.items()}
    if isinstance(regions, str | os.PathLike):
        return {Path(regions).name.split(".")[0]: regions}
    return {regions.name if isinstance(regions, Intervals) else argument: regions}


def _frame(item: Any, name: str) -> pd.DataFrame:
    """Regions as a table of their own."""
    from diffbio_sc.io import read_bed

    if isinstance(item, str | os.PathLike):
        item = read_bed(item)
    if isinstance(item, Intervals):
        return item.to_frame()
    if not isinstance(item, pd.DataFrame):
        raise TypeError(
            f"{name!r} must be a table, a BED file or intervals of dbio.io, found {type(item).__name__}; several are "
            "given as a mapping by name."
        )
    return item


def _checked(frame: pd.DataFrame, name: str, chromosomes: list[str]) -> pd.DataFrame:
    """Check that a table holds intervals of the object's genome."""
    from bioframe.core.checks import is_bedframe

    missing = [column for column in ("chrom", "start", "end") if column not in frame]
    if missing:
        raise KeyError(f"{name!r} has no columns {missing}; columns: {list(map(str, frame.columns))}.")
    frame = frame.reset_index(drop=True)
    if not len(frame):
        raise ValueError(f"{name!r} has no regions.")
    try:
        place = {key: whole_numbers(pd.to_numeric(frame[key]), f"column {key!r}") for key in ("start", "end")}
        frame = frame.assign(chrom=frame["chrom"].astype(str), **place)
        is_bedframe(frame, raise_errors=True)
        if (frame["start"] < 0).any():
            raise ValueError("negative starts")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name!r} must hold intervals with 0 <= start <= end: {error}.") from error
    match_chromosomes(list(frame["chrom"].unique()), chromosomes, left_name=repr(name), right_name="the bins of adata")
    return frame


def _merged(item: Any, name: str, chromosomes: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sorted, disjoint starts and ends of each chromosome."""
    import bioframe

    frame = _checked(_frame(item, name), name, chromosomes)
    frame = bioframe.merge(frame[frame["chrom"].isin(chromosomes)][["chrom", "start", "end"]], min_dist=0)
    return {
        str(chromosome): (rows["start"].to_numpy(np.int64), rows["end"].to_numpy(np.int64))
        for chromosome, rows in frame.sort_values(["chrom", "start"]).groupby("chrom", sort=False)
    }


def _points(item: Any, name: str, chromosomes: list[str]) -> pd.DataFrame:
    """Position and direction (+1, -1) of anchors."""
    if isinstance(item, str | os.PathLike):
        item = _read_anchors(item)
    frame = _frame(item, name)
    strand = frame["strand"].astype(str).to_numpy() if "strand" in frame else np.full(len(frame), "+")
    if "pos" in frame and "start" not in frame:
        frame = frame.assign(start=frame["pos"], end=pd.to_numeric(frame["pos"], errors="coerce") + 1)
    frame = _checked(frame, name, chromosomes)
    position = np.where(strand == "-", np.maximum(frame["end"] - 1, frame["start"]), frame["start"])
    known = frame["chrom"].isin(chromosomes).to_numpy()
    return pd.DataFrame(
        {"chrom": frame["chrom"], "position": position.astype(np.int64), "direction": np.where(strand == "-", -1, 1)}
    )[known]


def _read_anchors(path: str | os.PathLike[str]) -> Any:
    """Anchor files of ChromHMM: chromosome, position and strand; other files are BED."""
    import bioframe

    names = ["chrom", "pos", "strand"]
    first = pd.read_csv(path, sep=r"\s+", header=None, nrows=1, comment="#").iloc[0].tolist()
    if len(first) == len(names) and first[2] in ("+", "-"):
        return bioframe.read_table(path, schema=names, dtype={"chrom": str})
    return path


def _overlap(
    states: StoredStates, part: CellTypeBins, regions: dict[str, dict], null: Literal["shift", "bins"]
) -> pd.DataFrame:
    """Bases of each state in each annotation, and p-values, for one cell type."""
    table = part.genome.table
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    code = table["chrom"].cat.codes.to_numpy()
    covered = np.zeros((len(regions), len(table)))
    for row, merged in enumerate(regions.values()):
        for index, chromosome in enumerate(part.genome.chromosomes):
            if chromosome in merged:
                bins = code == index
                covered[row, bins] = covered_bases(start[bins], end[bins], *merged[chromosome])
    number = len(states.labels)
    labels = states.codes[part.positions]
    kept = labels >= 0
    width = (end - start).astype(np.float64)
    state_bases = np.bincount(labels[kept], width[kept], minlength=number)
    overlap = np.stack([np.bincount(labels[kept], row[kept], minlength=number) for row in covered], 1)
    annotation_bases, total = covered[:, kept].sum(1), width[kept].sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        fold = (overlap / state_bases[:, None]) / (annotation_bases / total)
    if null == "bins":
        both = np.stack([np.bincount(labels[kept & (row > 0)], minlength=number) for row in covered], 1)
        in_state = np.bincount(labels[kept], minlength=number)[:, None]
        annotated = np.array([[np.count_nonzero(kept & (row > 0)) for row in covered]])
        pvalue = bin_pvalues(both, in_state, annotated, int(kept.sum()))
    else:
        moments = [np.zeros((number, len(regions)))] * 3
        for sequence in part.genome.sequences:
            found = shift_moments(np.where(kept, labels, -1)[sequence], covered[:, sequence], number)
            moments = [before + more for before, more in zip(moments, found, strict=True)]
        pvalue = shift_pvalues(overlap, ShiftMoments(*moments))
        if np.isnan(pvalue).all():
            warnings.warn(
                "no shift along the sequences changes an overlap (sequences of one bin, or annotations that cover all "
                "or nothing): p-values are NaN; null='bins' does not need shifts.",
                UserWarning,
                stacklevel=4,
            )
    empty = (state_bases[:, None] == 0) | (annotation_bases[None] == 0)
    grid = np.meshgrid(np.arange(len(regions)), np.arange(number), indexing="ij")
    names = list(regions)
    return pd.DataFrame(
        {
            "cell_type": "" if part.name is None else part.name,
            "annotation": [names[row] for row in grid[0].ravel()],
            "state": [states.labels[row] for row in grid[1].ravel()],
            "state_bases": np.tile(state_bases, len(names)),
            "annotation_bases": np.repeat(annotation_bases, number),
            "overlap_bases": overlap.T.ravel(),
            "fold": fold.T.ravel(),
            "pvalue": np.where(empty, np.nan, pvalue).T.ravel(),
        }
    )


def _adjusted(pvalue: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's rates, of the p-values that are there."""
    from scipy.stats import false_discovery_control

    rates = np.full(len(pvalue), np.nan)
    known = ~np.isnan(pvalue)
    if known.any():
        rates[known] = false_discovery_control(pvalue[known])
    return rates


def _neighborhood(
    states: StoredStates, part: CellTypeBins, points: dict[str, pd.DataFrame], flank: int
) -> pd.DataFrame:
    """States of the bins about anchors, for one cell type."""
    genome = part.genome
    table, order = genome.table, genome.order
    width = genome.width or int(np.median(table["end"] - table["start"]))
    if genome.width is None:
        warnings.warn(
            f"bins differ in width; distances from anchors are counted in bins of {width} bases, the median.",
            UserWarning,
            stacklevel=4,
        )
    reach = flank // width
    sequence = np.zeros(len(order), np.int64)
    sequence[genome.breaks] = 1
    sequence = np.cumsum(sequence)
    code = table["chrom"].cat.codes.to_numpy()[order]
    start, end = table["start"].to_numpy()[order], table["end"].to_numpy()[order]
    labels = states.codes[part.positions][order]
    number = len(states.labels)
    share = np.bincount(labels[labels >= 0], minlength=number) / max((labels >= 0).sum(), 1)
    offsets = np.arange(-reach, reach + 1)
    tables = []
    for name, anchors in points.items():
        place = np.full(len(anchors), -1)
        where, chromosome = anchors["position"].to_numpy(), anchors["chrom"].to_numpy(dtype=object)
        for index, label in enumerate(genome.chromosomes):
            mine = np.flatnonzero(chromosome == label)
            first, last = np.searchsorted(code, [index, index + 1])
            found = first + np.searchsorted(start[first:last], where[mine], side="right") - 1
            inside = (found >= first) & (where[mine] < end[np.maximum(found, 0)])
            place[mine[inside]] = found[inside]
        if not (place >= 0).any():
            raise ValueError(
                f"no anchor of {name!r} lies in a bin of adata; first anchors: "
                f"{anchors.iloc[:3, :2].values.tolist()}, chromosomes of the bins: {name_heads(genome.chromosomes)}."
            )
        direction = anchors["direction"].to_numpy()[place >= 0]
        place = place[place >= 0]
        counts = np.zeros((number, len(offsets)), np.int64)
        for column, offset in enumerate(offsets):
            target = place + offset * direction
            inside = (target >= 0) & (target < len(order))
            inside[inside] = sequence[target[inside]] == sequence[place[inside]]
            seen = labels[target[inside]]
            counts[:, column] = np.bincount(seen[seen >= 0], minlength=number)
        seen_bins = counts.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = counts / seen_bins
            fold = fraction / share[:, None]
        tables.append(
            pd.DataFrame(
                {
                    "cell_type": "" if part.name is None else part.name,
                    "anchors": name,
                    "state": np.repeat(np.array(states.labels, dtype=object), len(offsets)),
                    "distance": np.tile(offsets * width, number),
                    "bins": np.tile(seen_bins, number),
                    "fraction": fraction.ravel(),
                    "fold": fold.ravel(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
