from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from diffbio_sc._anndata.genome_axis import read_genome_axis
from diffbio_sc._anndata.records import bin_columns, read_record
from diffbio_sc._anndata.results import prefix_of
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def insulation(
    adata: AnnData,
    *,
    key: str = "insulation",
    boundaries: bool = False,
    axis: Literal["var", "obs"] | None = None,
) -> pd.DataFrame:
    """Insulation and boundaries of :func:`diffbio_sc.tl.insulation`.

    Parameters
    ----------
    adata
        Object whose insulation was scored.
    key
        The ``key_added`` of the insulation.
    boundaries
        Return the boundaries only, in genomic order.
    axis
        Which axis holds the bins, if both could.

    Returns
    -------
    A row for each bin, indexed by its name: ``chrom``, ``start``, ``end``, ``insulation_<window>`` for each window in
    base pairs, ``boundary_score``, ``boundary_prob`` and ``is_boundary``. A boundary lies at the start of its bin.

    Raises
    ------
    KeyError
        If there is no insulation of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.insulation(adata)
    >>> table = dbio.get.insulation(adata, boundaries=True)
    >>> bool(len(table) == adata.obs["is_boundary"].sum())
    True
    """
    check_options(insulation, locals())
    read_record(adata, key, "tads", "dbio.tl.insulation")
    prefix = prefix_of(key, "insulation")
    genome = read_genome_axis(adata, axis=axis)
    names = [f"{prefix}{name}" for name in ("boundary_score", "boundary_prob", "is_boundary")]
    table = bin_columns(adata, genome, names, "dbio.tl.insulation")
    table = table.rename(columns={name: name.removeprefix(prefix) for name in names})
    field = adata.varm if genome.axis == "var" else adata.obsm
    matrix = f"{prefix}insulation"
    if matrix not in field:
        raise KeyError(f"adata has no matrix {matrix!r}: run dbio.tl.insulation(adata) again.")
    windows = in_memory(field[matrix]).add_prefix("insulation_")
    table = pd.concat([table[["chrom", "start", "end"]], windows, table.iloc[:, 3:]], axis=1)
    return table.iloc[genome.order][lambda frame: frame["is_boundary"]] if boundaries else table
