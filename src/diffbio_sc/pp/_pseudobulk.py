"""Sums of the cells of each label: of counts in bins, of fragments, or of contact maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import scipy.sparse as sp

from diffbio_sc._anndata.contacts_object import bins_table, contacts_object
from diffbio_sc._anndata.fragments import cell_labels, fragments_of, holds_fragments, read_barcode_labels, read_groups
from diffbio_sc._anndata.genome_axis import read_genome_axis
from diffbio_sc._anndata.matrix import require_anndata, survey_counts
from diffbio_sc._anndata.results import make_record
from diffbio_sc._anndata.tables import read_labels
from diffbio_sc._checks import is_path
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.pseudobulk import SumOfCells, SumOfCellsByBins, split_groups
from diffbio_sc.genome.barcodes import report_barcodes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io import ContactCells

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@overload
def pseudobulk(source: Intervals, *, groupby: Mapping[str, str] | pd.Series) -> dict[str, Intervals]: ...


@overload
def pseudobulk(source: ContactCells, *, groupby: Mapping[str, str] | pd.Series) -> dict[str, AnnData]: ...


@overload
def pseudobulk(
    source: AnnData, *, groupby: str, layer: str | None = None, axis: Literal["var", "obs"] | None = None
) -> AnnData | dict[str, Intervals]: ...


def pseudobulk(
    source: Intervals | ContactCells | AnnData,
    *,
    groupby: str | Mapping[str, str] | pd.Series,
    layer: str | None = None,
    axis: Literal["var", "obs"] | None = None,
) -> AnnData | dict[str, Intervals] | dict[str, AnnData]:
    """Add up the cells of each label.

    Parameters
    ----------
    source
        An AnnData of raw counts with a genome axis (cells by bins or bins by cells), or fragments with barcodes. An
        AnnData without such an axis but with fragments of SnapATAC2, ``.obsm["fragment_paired"]``, stands for these.
        Contact maps of cells (:func:`diffbio_sc.io.read_scool`) are read one at a time. Bins may overlap. Backed and
        dask matrices are read once, block by block.
    groupby
        For an AnnData, the column that holds the label of each cell; for fragments and contact maps, a mapping from
        barcode, or name of the cell, to label, such as ``adata.obs["cell_type"]``. Cells without a label are left out;
        a warning says so if fewer than half of the barcodes of a mapping are found.
    layer
        Layer that holds the counts; default ``X``.
    axis
        Which axis of the AnnData holds the bins, if both could.

    Returns
    -------
    For an AnnData: an AnnData of labels by bins, with

    - ``.X``: CSR, float64 sums of whole numbers
    - ``.var``: the table of the bins; ``.obs["n_cells"]``: number of cells of each label
    - ``.uns["pseudobulk"]``: parameters and versions

    For fragments: the fragments of each label with their barcodes, by label (for :func:`coverage` and peak calling).

    For contact maps: an AnnData of bins for each label, by label, with the summed counts in ``.obsp["contacts"]`` and
    the number of cells in ``.uns["pseudobulk"]["n_cells"]``.

    Raises
    ------
    KeyError
        If there is no genome axis, or no such column or layer.
    TypeError
        If the source is neither, or ``groupby`` is not what the source needs.
    ValueError
        If values are not counts, or fragments have no barcodes or none with a label.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.Intervals.from_arrays(
    ...     ["chr1"] * 3, [100, 250, 300], [300, 400, 500], cell_code=[0, 1, 0], barcodes=["AAAC-1", "AAAG-1"]
    ... )
    >>> {label: len(group) for label, group in dbio.pp.pseudobulk(fragments, groupby={"AAAC-1": "T"}).items()}
    {'T': 2}
    """
    check_options(pseudobulk, locals())
    if isinstance(source, ContactCells):
        if isinstance(groupby, str):
            raise TypeError(
                f"groupby must map names of cells to labels for contact maps, found the string {groupby!r}."
            )
        return _sum_contacts(source, read_barcode_labels(groupby))
    if isinstance(source, Intervals):
        if isinstance(groupby, str):
            raise TypeError(
                f"groupby must map barcodes to labels for fragments (such as adata.obs[{groupby!r}]), found a string."
            )
        return _split_fragments(source, groupby)
    if is_path(source):
        raise TypeError(
            f"source must be an AnnData or dbio.io.Intervals, found the path {str(source)!r}: read it first, with "
            "anndata.read_h5ad or dbio.io.read_fragments."
        )
    require_anndata(source, "source")
    if not isinstance(groupby, str):
        raise TypeError(f"groupby must name a column of the cells of an AnnData, found {type(groupby).__name__}.")
    if layer is None and holds_fragments(source):
        return _split_fragments(fragments_of(source), cell_labels(source, groupby))
    return _sum_cells(source, groupby, layer, axis)


def _sum_cells(adata: AnnData, groupby: str, layer: str | None, axis: Literal["var", "obs"] | None) -> AnnData:
    import anndata
    import pandas as pd

    genome = read_genome_axis(adata, axis=axis, allow_overlaps=True)
    there = "obs" if genome.axis == "var" else "var"
    codes, names = read_labels(genome.track_table(adata), groupby, name=f"adata.{there}")
    step = (SumOfCells if genome.axis == "var" else SumOfCellsByBins)(codes, len(names))
    _, (sums,) = survey_counts(adata, step, layer=layer)  # one pass checks the counts and adds them up
    obs = pd.DataFrame({"n_cells": np.bincount(codes[codes >= 0], minlength=len(names))}, index=names)
    result = anndata.AnnData(sp.csr_matrix(sums), obs=obs, var=getattr(adata, genome.axis).copy())
    result.uns["pseudobulk"] = make_record({"groupby": groupby, "layer": layer}, None)
    logger.info(f"{int(obs['n_cells'].sum())} cells in {len(names)} groups, {int((codes < 0).sum())} without a label.")
    return result


def _sum_contacts(cells: ContactCells, label_of: Mapping[str, str]) -> dict[str, AnnData]:
    import pandas as pd

    known = [name for name in cells if name in label_of]
    report_barcodes(list(label_of), set(known), "source", list(cells), stacklevel=4)
    sums: dict[str, sp.csr_array] = {}
    number: dict[str, int] = {}
    bins: pd.DataFrame | None = None
    for name, contact_map in cells.contact_maps():
        if bins is None:
            chrom = pd.Categorical.from_codes(contact_map.chrom, list(contact_map.chrom_names))
            bins = bins_table(chrom, contact_map.start, contact_map.end)
        if name in label_of:
            label = str(label_of[name])
            sums[label] = sums[label] + contact_map.counts if label in sums else contact_map.counts
            number[label] = number.get(label, 0) + 1
    assert bins is not None  # there is a cell with a label
    result = {}
    for label in dict.fromkeys(map(str, label_of.values())):
        if label not in sums:
            continue
        result[label] = contacts_object(bins.copy(), sp.csr_array(sums[label]))
        result[label].uns["pseudobulk"] = make_record({"label": label}, None, n_cells=number[label])
    logger.info(f"{len(known)} cells in {len(sums)} groups, {len(cells) - len(known)} without a label.")
    return result


def _split_fragments(intervals: Intervals, groupby: Mapping[str, str] | pd.Series) -> dict[str, Intervals]:
    codes, names = read_groups(intervals, groupby)
    return split_groups(intervals, codes, names)
