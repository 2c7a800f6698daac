"""Regions of a genome along one axis of an AnnData: in the manner of this package, or with CREsted's column ``chr``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.genome_axis import COLUMNS, REGION, GenomeAxis, make_genome_axis, read_genome_axis
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import read_table

if TYPE_CHECKING:
    from anndata import AnnData


def read_region_axis(adata: AnnData, *, axis: Literal["var", "obs"] | None = None, name: str = "adata") -> GenomeAxis:
    """Find the axis of regions, which may overlap and occur twice, and check it.

    Parameters
    ----------
    adata
        Object; its table of regions has ``chrom`` (or ``chr``), ``start`` and ``end``.
    axis
        Which axis, if both tables have the columns.
    name
        What messages call the object.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`~diffbio_sc._anndata.genome_axis.read_genome_axis`.
    """
    require_anndata(adata, name)
    sides = [side for side in ("var", "obs") if _column_of_chromosomes(getattr(adata, side)) == "chr"]
    plain = [side for side in ("var", "obs") if set(COLUMNS) <= set(getattr(adata, side).columns)]
    if len(sides) != 1 or plain or axis not in (None, sides[0]):
        return read_genome_axis(adata, axis=axis, name=name, allow_overlaps=True)
    side: Literal["var", "obs"] = "var" if sides[0] == "var" else "obs"
    table = read_table(getattr(adata, side), ["chr", "start", "end"]).rename(columns={"chr": "chrom"})
    return make_genome_axis(table, axis=side, name=f"{name}.{side}", allow_overlaps=True)


def warn_of_names(genome: GenomeAxis, *, stacklevel: int = 3) -> None:
    """Warn if names look like regions and are not those of the columns, which are what counts."""
    names = pd.Series(pd.Index(genome.names).astype(str))
    parts = names.str.extract(REGION)
    looks = parts["chrom"].notna().to_numpy()
    if not looks.any():
        return
    start, end = (
        pd.to_numeric(parts[key].str.replace(",", ""), errors="coerce").to_numpy(np.float64) for key in ("start", "end")
    )
    chrom = np.asarray(genome.chromosomes, dtype=object)[genome.code]
    same = (parts["chrom"].to_numpy(dtype=object) == chrom) & (end == genome.end)
    same &= (start == genome.start) | (start == genome.start + 1)  # names may count from 1
    bad = np.flatnonzero(looks & ~same)
    if len(bad):
        first = bad[0]
        warnings.warn(
            f"{len(bad)} of {len(names)} names of regions are not where their columns say: {names.iloc[first]!r} is at "
            f"{chrom[first]}:{genome.start[first]}-{genome.end[first]}. The columns are used; "
            "dbio.pp.parse_regions writes them from the names.",
            UserWarning,
            stacklevel=stacklevel,
        )


def warn_of_repeats(genome: GenomeAxis, *, stacklevel: int = 3) -> None:
    """Warn if regions occur more than once."""
    order = genome.order
    same = np.ones(max(len(order) - 1, 0), bool)
    for values in (genome.code, genome.start, genome.end):
        same &= values[order[1:]] == values[order[:-1]]
    if same.any():
        first = order[1:][same][0]
        warnings.warn(
            f"{int(same.sum())} of {len(order)} regions occur more than once, first: {str(genome.names[first])!r}. "
            "Each counts in training and scores; keep one of each unless that is meant.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _column_of_chromosomes(table: pd.DataFrame) -> str | None:
    columns = set(map(str, table.columns))
    if not {"start", "end"} <= columns:
        return None
    return next((name for name in ("chrom", "chr") if name in columns), None)
