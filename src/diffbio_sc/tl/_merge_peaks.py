from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._logging import logger
from diffbio_sc.engines.interval_peaks import TABLE_COLUMNS

if TYPE_CHECKING:
    from anndata import AnnData

_NEEDED = ("chrom", "start", "end")
_KEPT = TABLE_COLUMNS[:10]


def merge_peaks(
    data: AnnData | Mapping[str, pd.DataFrame],
    *,
    width: int = 501,
    score: str = "qValue",
    chrom_sizes: Mapping[str, int] | None = None,
    key: str = "peaks",
    key_added: str = "peaks_merged",
    copy: bool = False,
) -> AnnData | pd.DataFrame | None:
    """Merge the peaks of several groups into one set of equal width that do not overlap.

    Each peak becomes the window of ``width`` about its summit. The best one is kept, those that overlap it are removed,
    and so on: iterative overlap removal, as in ArchR and SnapATAC2 :cite:p:`Corces2018`. Scores are divided by their
    sum over the group first, so that deep groups do not outvote others.

    Parameters
    ----------
    data
        An AnnData after :func:`diffbio_sc.tl.peaks`, or tables of peaks by name of the group.
    width
        Width of the merged peaks in base pairs.
    score
        Column that ranks the peaks of a group.
    chrom_sizes
        Length of chromosomes; windows that reach beyond an end are moved inside.
    key
        The ``key_added`` of the peaks; for an AnnData.
    key_added
        Key of the result in ``.uns``; for an AnnData.
    copy
        Return a copy instead of writing into the AnnData.

    Returns
    -------
    Of tables a table, sorted by chromosome (in order of appearance) and start: the columns of narrowPeak, those of
    the peak that was kept; ``n_groups``; and for each group a column of its name, whether one of the group's peaks
    overlaps. ``score`` is the rank among all, scaled to 0 (worst) to 1000 (best). Of an AnnData None, or the copy, with

    `.uns["peaks_merged"]` : pandas.DataFrame
        That table.

    Raises
    ------
    KeyError
        If there are no peaks of that key, or a table lacks a column.
    ValueError
        If there is no group, or ``width`` is no positive whole number.

    Examples
    --------
    >>> tables = dbio.tl.peaks("fragments.tsv.gz", groupby=adata.obs["cell_type"])
    >>> merged = dbio.tl.merge_peaks(tables)
    """
    if isinstance(width, bool) or int(width) != width or width < 1:
        raise ValueError(f"width must be a positive whole number of base pairs, found {width!r}.")
    if isinstance(data, Mapping):
        return _merge(data, int(width), score, chrom_sizes)
    from diffbio_sc._anndata import write_results
    from diffbio_sc.get._peaks import read_tables

    merged = _merge(read_tables(data, key), int(width), score, chrom_sizes)
    adata = data.copy() if copy else data
    write_results(adata, uns={key_added: merged})
    return adata if copy else None


def _merge(tables: Mapping[str, pd.DataFrame], width: int, score: str, sizes: Mapping[str, int] | None) -> pd.DataFrame:
    if not tables:
        raise ValueError("merge_peaks needs at least one table of peaks, found none.")
    for name, table in tables.items():
        missing = [column for column in (*_NEEDED, score) if column not in table]
        if missing:
            raise KeyError(
                f"the peaks of {name!r} have no columns {missing}; columns: {list(map(str, table.columns))}."
            )
    names = [str(name) for name in tables]
    clash = sorted(set(names) & {*_KEPT, "n_groups"})
    if clash:
        raise ValueError(f"groups named {clash} clash with columns of the result; rename them.")
    numbered = [table.assign(_group=index) for index, table in enumerate(tables.values())]
    # Tables without peaks would change the types of columns.
    every = pd.concat([table for table in numbered if len(table)] or numbered[:1], ignore_index=True)
    start, end = every["start"].to_numpy(np.int64), every["end"].to_numpy(np.int64)
    summit = start + every["peak"].to_numpy(np.int64) if "peak" in every else (start + end) // 2
    value = every[score].to_numpy(np.float64)
    group = every["_group"].to_numpy(np.int64)
    total = np.bincount(group, np.maximum(value, 0), minlength=len(names))
    ranked = value / np.where(total > 0, total, 1.0)[group]
    codes, chromosomes = pd.factorize(every["chrom"].astype(object))
    begin = np.maximum(summit - width // 2, 0)
    if sizes is not None:
        limit = np.array([sizes.get(name, np.iinfo(np.int64).max) for name in chromosomes], np.int64)
        begin = np.maximum(np.minimum(begin, limit[codes] - width if len(codes) else begin), 0)
    # Best first; ties by place, so that the order of the groups decides nothing.
    order = np.lexsort((begin, codes, -ranked))
    kept = order[_without_overlap(codes[order], begin[order], width)]
    rank = pd.Series(ranked[kept]).rank(pct=True).to_numpy() if len(kept) else np.zeros(0)
    place = np.lexsort((begin[kept], codes[kept]))
    kept, rank = kept[place], rank[place]
    merged = pd.DataFrame(
        {
            "chrom": every["chrom"].to_numpy(dtype=object)[kept],
            "start": begin[kept],
            "end": begin[kept] + width,
            "name": [f"peak_{number}" for number in range(1, len(kept) + 1)],
            "score": np.round(1000 * rank).astype(np.int64),
            "strand": np.full(len(kept), ".", object),
        }
    )
    for column in ("signalValue", "pValue", "qValue"):
        merged[column] = every[column].to_numpy(np.float64)[kept] if column in every else -1.0
    merged["peak"] = summit[kept] - begin[kept]
    members = np.zeros((len(kept), len(names)), bool)
    kept_codes, kept_begin = codes[kept], begin[kept]
    for index in range(len(names)):
        mine = group == index
        for code in np.unique(codes[mine]):
            rows = np.flatnonzero(kept_codes == code)
            theirs = np.flatnonzero(mine & (codes == code))
            theirs = theirs[np.argsort(start[theirs], kind="stable")]
            reach = np.maximum.accumulate(end[theirs])
            before = np.searchsorted(start[theirs], kept_begin[rows] + width, side="left") - 1
            members[rows, index] = (before >= 0) & (reach[np.maximum(before, 0)] > kept_begin[rows])
    merged["n_groups"] = members.sum(1)
    for index, name in enumerate(names):
        merged[name] = members[:, index]
    logger.info(f"{len(every)} peaks of {len(names)} groups merged into {len(merged)}.")
    return merged


def _without_overlap(codes: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
    """Positions, in order, of windows that overlap none kept before."""
    # A cell of the window's width holds the start of one kept window at most.
    taken: dict[tuple[int, int], int] = {}
    kept = []
    for index, (code, first) in enumerate(zip(codes.tolist(), begin.tolist(), strict=True)):
        cell = first // width
        near = (taken.get((code, cell + shift)) for shift in (-1, 0, 1))
        if all(other is None or abs(other - first) >= width for other in near):
            taken[code, cell] = first
            kept.append(index)
    return np.array(kept, np.int64)
