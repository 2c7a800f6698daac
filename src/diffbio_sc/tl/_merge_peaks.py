from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diffbio_sc._checks import found_object, require_columns
from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.peak_table import NARROWPEAK, PeakTable

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def merge_peaks(
    data: AnnData | Mapping[str, pd.DataFrame],
    *,
    width: int = 501,
    score: str = "qValue",
    chrom_sizes: ChromSizes | None = None,
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
    >>> import diffbio_sc as dbio
    >>> fragments, _, cell_types = dbio.datasets.simulate_fragments()
    >>> tables = dbio.tl.call_peaks(fragments, groupby=cell_types)
    >>> merged = dbio.tl.merge_peaks(tables)
    >>> set(merged["end"] - merged["start"])
    {501}
    """
    from diffbio_sc._anndata import write_results
    from diffbio_sc._anndata.peak_tables import read_peak_tables
    from diffbio_sc.engines.peak_sets import merge_tables
    from diffbio_sc.genome.chrom_sizes import read_chrom_sizes

    check_options(merge_peaks, locals(), width="[1, inf) base pairs")
    if not isinstance(data, Mapping) and not hasattr(data, "uns"):
        raise TypeError(
            "data must be an AnnData with peaks or a dict of tables by name of the group, such as {'B cell': table}, "
            f"{found_object(data)}."
        )
    given = data if isinstance(data, Mapping) else read_peak_tables(data, key)
    if not given:
        raise ValueError("merge_peaks needs at least one table of peaks, found none.")
    clash = sorted({str(name) for name in given} & {*NARROWPEAK, "n_groups"})
    if clash:
        raise ValueError(f"groups named {clash} clash with columns of the result; rename them.")
    tables = {}
    for name, table in given.items():
        require_columns(table, (score,), f"the peaks of {name!r}")
        tables[str(name)] = PeakTable.from_frame(table, f"the peaks of {name!r}")
    sizes = None if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    merged = merge_tables(tables, int(width), score, sizes).to_frame()
    if isinstance(data, Mapping):
        return merged
    adata = data.copy() if copy else data
    write_results(adata, uns={key_added: merged})
    return adata if copy else None
