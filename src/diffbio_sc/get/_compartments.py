from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from diffbio_sc._anndata.genome_axis import read_genome_axis
from diffbio_sc._anndata.records import bin_columns, read_record
from diffbio_sc._anndata.results import prefix_of
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def compartments(
    adata: AnnData,
    *,
    key: str = "compartments",
    domains: bool = False,
    axis: Literal["var", "obs"] | None = None,
) -> pd.DataFrame:
    """Compartments of :func:`diffbio_sc.tl.compartments`, of each bin or of each run of bins.

    Parameters
    ----------
    adata
        Object whose compartments were found.
    key
        The ``key_added`` of the compartments.
    domains
        Return runs of bins of one sign in place of bins.
    axis
        Which axis holds the bins, if both could.

    Returns
    -------
    Of bins: ``chrom``, ``start``, ``end``, ``compartment`` and ``compartment_label``, indexed by their names, in the
    object's order. Of runs: ``chrom``, ``start``, ``end``, ``n_bins``, ``mean`` and ``sign`` (1 or -1), in genomic
    order; a bin without a value ends a run.

    Raises
    ------
    KeyError
        If there are no compartments of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> domains = dbio.get.compartments(adata, domains=True)
    >>> bool((domains["end"] > domains["start"]).all())
    True
    """
    check_options(compartments, locals())
    read_record(adata, key, "regions", "dbio.tl.compartments")
    prefix = prefix_of(key, "compartments")
    genome = read_genome_axis(adata, axis=axis)
    names = [f"{prefix}compartment", f"{prefix}compartment_label"]
    table = bin_columns(adata, genome, names, "dbio.tl.compartments")
    table = table.rename(columns={name: name.removeprefix(prefix) for name in names})
    if not domains:
        return table
    ordered = table.iloc[genome.order]
    sign = ordered["compartment"].gt(0).astype(int) - ordered["compartment"].lt(0).astype(int)
    start, end = ordered["start"].to_numpy(), ordered["end"].to_numpy()
    chrom = ordered["chrom"].astype(str).to_numpy()
    new = pd.Series(True, index=range(len(ordered))).to_numpy(copy=True)
    signs = sign.to_numpy()
    new[1:] = (signs[1:] != signs[:-1]) | (chrom[1:] != chrom[:-1]) | (start[1:] != end[:-1])
    run = new.cumsum()
    grouped = ordered.assign(sign=signs, chrom=chrom).groupby(run, sort=True)
    runs = grouped.agg(
        chrom=("chrom", "first"),
        start=("start", "first"),
        end=("end", "last"),
        n_bins=("start", "size"),
        mean=("compartment", "mean"),
        sign=("sign", "first"),
    )
    return runs[runs["sign"] != 0].reset_index(drop=True)
