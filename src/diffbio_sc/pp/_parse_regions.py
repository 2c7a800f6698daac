"""Coordinates of regions from their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffbio_sc._anndata.genome_axis import COLUMNS, REGION, make_genome_axis
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.results import write_results
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def parse_regions(
    adata: AnnData, *, axis: Literal["var", "obs"] = "var", one_based: bool = False, copy: bool = False
) -> AnnData | None:
    """Write the columns ``chrom``, ``start`` and ``end`` from the names of regions.

    Understands names such as ``chr1:100-200``, ``chr1-100-200`` and ``chr1_100_200``. Regions may overlap here;
    functions that need bins which do not overlap say so.

    Parameters
    ----------
    adata
        Object whose ``var_names`` (or ``obs_names``) are regions.
    axis
        Which names.
    one_based
        Whether starts count from 1, as in genome browsers, rather than from 0, as in BED files and the peak names of
        10x Genomics, ArchR and SnapATAC2.
    copy
        Return a copy rather than write into ``adata``.

    Returns
    -------
    None, or the copy, with these fields (in ``.obs`` if the regions lie there):

    `.var["chrom"]` : category
        Chromosome.
    `.var["start"]`, `.var["end"]` : int64
        Borders, 0-based, half-open.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    ValueError
        If a name is not a region, or its end does not lie after its start.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> import diffbio_sc as dbio
    >>> adata = anndata.AnnData(np.ones((2, 1)), var=pd.DataFrame(index=["chr1:9790-10675"]))
    >>> dbio.pp.parse_regions(adata)
    >>> adata.var.loc["chr1:9790-10675", "start"].item()
    9790
    """
    import pandas as pd

    check_options(parse_regions, locals())
    require_anndata(adata)
    adata = adata.copy() if copy else adata
    names = (adata.var_names if axis == "var" else adata.obs_names).astype(str)
    parts = names.to_series().str.extract(REGION)
    bad = parts["chrom"].isna().to_numpy()
    if bad.any():
        raise ValueError(
            f"adata.{axis}_names must be regions such as 'chr1:100-200', found {int(bad.sum())} of {len(names)} that "
            f"are not, first: {list(names[bad][:5])}. Leave those features out first, or write the columns "
            f"{list(COLUMNS)} of adata.{axis} yourself."
        )
    start, end = (parts[key].str.replace(",", "").to_numpy() for key in ("start", "end"))
    table = pd.DataFrame({"chrom": parts["chrom"].to_numpy(), "start": start, "end": end}, index=names)
    if one_based:
        table["start"] = pd.to_numeric(table["start"]) - 1
    genome = make_genome_axis(table, axis=axis, name=f"adata.{axis}_names", allow_overlaps=True)
    columns = {"chrom": genome.table["chrom"].array, "start": genome.start, "end": genome.end}
    write_results(adata, **{axis: columns})
    logger.info(f"Wrote {list(COLUMNS)} of {len(names)} regions on {len(genome.chromosomes)} chromosomes.")
    return adata if copy else None
