from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.features import PAIR_COLUMNS
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.records import read_record
from diffbio_sc._anndata.results import make_record, write_results
from diffbio_sc._options import check_options
from diffbio_sc.numerics.genome.loop_merging import merge_loops as merge

if TYPE_CHECKING:
    from anndata import AnnData

RADIUS = 2.0
"""Bins of the coarser map: HiCCUPS takes 20 kb for bins of 10 kb and 50 kb for bins of 25 kb."""


def merge_loops(
    adata: AnnData,
    others: Sequence[AnnData],
    *,
    key: str = "loops",
    radius: float = RADIUS,
    key_added: str = "merged_loops",
    copy: bool = False,
) -> AnnData | None:
    """Merge the loops of one map that were found at several resolutions, as HiCCUPS does :cite:p:`Rao2014`.

    Fine bins place a loop, coarse bins find weak and far ones. Of the loops that are the same at several resolutions
    the one of the finest bins is kept; loops that coarser bins alone have found are added.

    Parameters
    ----------
    adata
        Object with loops of :func:`diffbio_sc.tl.loops`, in which the merged list is written.
    others
        Objects with the loops of the same contacts in bins of other widths.
    key
        Key of the loops in ``.uns`` of all of them.
    radius
        Largest distance of two anchors that are the same, in bins of the coarser of both maps.
    key_added
        Key of the result in ``.uns``.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with this field:

    `.uns["merged_loops"]` : dict
        ``params``, ``version``, ``report`` and ``table``: the loops with the columns of :func:`diffbio_sc.tl.loops`,
        ``resolution`` (width in base pairs of the bins that a loop is taken from) and ``n_resolutions`` (at how many it
        was found), those of the smallest ``qval`` first.

    Raises
    ------
    TypeError
        If ``others`` are no objects.
    KeyError
        If one of them has no loops.
    ValueError
        If there are no others, two have bins of the same width, or no chromosome is in all. Nothing has been written
        then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fine = dbio.datasets.simulate_contacts(300, resolution=10_000)
    >>> coarse = dbio.datasets.simulate_contacts(150, resolution=20_000)
    >>> for each in (fine, coarse):
    ...     dbio.tl.balance(each)
    ...     dbio.tl.loops(each)
    >>> dbio.tl.merge_loops(fine, [coarse])
    >>> table = dbio.get.loops(fine, key="merged_loops")
    >>> sorted(set(table["resolution"]))
    [10000, 20000]
    """
    check_options(merge_loops, locals(), radius="(0, inf)")
    started = time.perf_counter()
    if hasattr(others, "obs_names"):
        raise TypeError("others must be a list of objects, found one AnnData: pass [other].")
    objects = [adata, *others]
    if len(objects) < 2:
        raise ValueError("others is empty: there is nothing to merge with.")
    tables = [_loops(each, key, number) for number, each in enumerate(objects)]
    widths = [int(table["resolution"].iloc[0]) for table in tables if len(table)]
    if len(set(widths)) < len(widths):
        raise ValueError(
            f"the maps must have bins of different widths, found {widths}; replicates are summed by "
            "dbio.pp.combine_contacts."
        )
    names = [set(table["chrom1"].astype(str)) for table in tables if len(table)]
    if names and not set.intersection(*names):
        raise ValueError(
            f"no chromosome has loops at all resolutions: {[sorted(each)[:5] for each in names]}. Are the names alike?"
        )
    joined = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    code = pd.factorize(joined["chrom1"].astype(str))[0]
    anchors = np.column_stack([(joined[f"start{side}"] + joined[f"end{side}"]) / 2 for side in "12"])
    merged = merge(anchors.astype(np.float64), code, joined["resolution"].to_numpy(np.int64), radius)
    table = joined.iloc[merged.kept].assign(n_resolutions=merged.n_resolutions)
    table = table.sort_values("qval", kind="stable").reset_index(drop=True)
    params = {"key": key, "radius": radius, "resolutions": sorted(widths)}
    report = {"converged": True, "seconds": time.perf_counter() - started}
    adata = adata.copy() if copy else adata
    write_results(adata, uns={key_added: make_record(params, report, table=table)})
    return adata if copy else None


def _loops(adata: Any, key: str, number: int) -> pd.DataFrame:
    require_anndata(adata, "adata" if number == 0 else f"others[{number - 1}]")
    table = read_record(adata, key, "table", "dbio.tl.loops")["table"]
    missing = [column for column in (*PAIR_COLUMNS, "qval") if column not in table]
    if missing:
        raise KeyError(f"adata.uns[{key!r}]['table'] lacks the columns {missing}; columns: {list(table.columns)}.")
    width = (table["end1"] - table["start1"]).max() if len(table) else 0
    return table.assign(resolution=np.int64(width))
