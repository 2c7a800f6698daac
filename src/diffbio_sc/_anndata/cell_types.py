"""Bins of several cell types one after the other along an axis: each a genome of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc._anndata.genome_axis import COLUMNS, GenomeAxis, make_genome_axis, read_genome_axis
from diffbio_sc._anndata.tables import read_labels, read_table

if TYPE_CHECKING:
    from anndata import AnnData


@dataclasses.dataclass(frozen=True)
class CellTypeBins:
    """The bins of one cell type."""

    name: str | None
    """Cell type; None where the object does not tell cell types apart."""
    positions: np.ndarray
    """Positions of its bins along the object's axis."""
    genome: GenomeAxis
    """Its bins; positions in ``genome.order`` count within ``positions``."""

    @property
    def sequences(self) -> list[np.ndarray]:
        """Positions along the object's axis of each sequence of bins without a gap, in genomic order."""
        return [self.positions[sequence] for sequence in self.genome.sequences]


def read_cell_type_bins(
    adata: AnnData,
    cell_type_key: str | None = None,
    *,
    axis: Literal["var", "obs"] | None = None,
    name: str = "adata",
) -> tuple[Literal["var", "obs"], list[CellTypeBins]]:
    """Take the genome axis apart by cell type.

    Parameters
    ----------
    adata
        Object with genomic bins along one axis.
    cell_type_key
        Column of that axis's table with the cell type of each bin; None: all bins are of one cell type.
    axis
        Which axis, if both tables have the columns of bins.
    name
        What messages call the object.

    Returns
    -------
    The axis, and the bins of each cell type in categorical (else alphabetical) order.

    Raises
    ------
    KeyError
        If the axis or the column is missing.
    ValueError
        If a bin has no cell type, or bins of one cell type are no bins or overlap.
    """
    if cell_type_key is None:
        try:
            genome = read_genome_axis(adata, axis=axis, name=name)
        except ValueError as error:
            if "duplicated bins" not in str(error):
                raise
            raise ValueError(
                f"{error} If they are bins of several cell types or samples, name their column as cell_type_key."
            ) from error
        return genome.axis, [CellTypeBins(None, np.arange(len(genome)), genome)]
    found = [side for side in ("var", "obs") if set(COLUMNS) <= set(getattr(adata, side).columns)]
    if axis is None and len(found) == 2:
        found = [side for side in found if cell_type_key in getattr(adata, side).columns]
    if axis not in (None, "var", "obs") or not found or (axis is not None and axis not in found):
        read_genome_axis(adata, axis=axis, name=name)  # says what is missing
    side: Literal["var", "obs"] = axis or found[0]  # type: ignore[assignment]
    table = getattr(adata, side)
    codes, names = read_labels(table, cell_type_key, name=f"{name}.{side}")
    if (codes < 0).any():
        raise ValueError(
            f"{name}.{side}[{cell_type_key!r}] must name a cell type for each bin, {int((codes < 0).sum())} lack one."
        )
    places = read_table(table, COLUMNS)
    parts = []
    for code, label in enumerate(names):
        positions = np.flatnonzero(codes == code)
        genome = make_genome_axis(places.iloc[positions], axis=side, name=f"{name}.{side} of {cell_type_key} {label!r}")
        parts.append(CellTypeBins(label, positions, genome))
    return side, parts
