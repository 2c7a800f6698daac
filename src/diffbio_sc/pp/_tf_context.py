from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.region_axis import read_region_axis
from diffbio_sc._anndata.results import make_record, storable_names
from diffbio_sc._anndata.tf_context import align_cell_types, case_hint, read_expression
from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_MILLION = 1e6


def tf_context(
    adata: AnnData,
    expression: pd.DataFrame | AnnData | MuData,
    *,
    tfs: Sequence[str] | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    modality: str = "rna",
    normalize: bool | None = None,
    axis: Literal["var", "obs"] | None = None,
    key_added: str = "tf_context",
    copy: bool = False,
) -> AnnData | None:
    """Give each cell type the expression of its transcription factors, for :func:`diffbio_sc.tl.contextual`.

    Parameters
    ----------
    adata
        Object of regions by cell types, either way round.
    expression
        Expression of the same cell types: a table (cell types by genes), an AnnData of cell types or, with ``groupby``,
        of cells, or a MuData with such a modality. Names of cell types and genes are compared as they are.
    tfs
        Names of the factors; those that ``expression`` lacks are left out with a warning. Default: all genes, of at
        most 5,000.
    groupby
        Column with the cell type of each cell: raw counts are added up by cell type.
    layer
        Layer of ``expression`` with the values; default ``X``.
    modality
        Modality of a MuData.
    normalize
        Whether to turn values into log2(CPM + 1), over the total of all genes. Default: where they are counts (whole
        numbers, not only 0 and 1); others are taken as they are.
    axis
        Axis of ``adata`` with the regions, if both tables have their columns.
    key_added
        Key of the result.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.obsm["tf_context"]` : table of float32 (cell types, factors)
        Expression; a row of NaN for a cell type of which ``expression`` has none. In ``.varm`` if cell types lie along
        ``.var``.
    `.uns["tf_context"]` : dict
        ``params``, ``version`` and ``report``: ``n_factors``, ``normalized``, ``missing_cell_types``,
        ``unused_cell_types``, ``missing_factors`` and, with ``groupby``, ``n_cells``.

    Raises
    ------
    KeyError
        If there is no such modality, layer or column, or no axis of regions.
    TypeError
        If ``expression`` is of another kind.
    ValueError
        If no cell type or factor is shared (the message says if case alone is why), names occur twice, or values are
        missing within a cell type, infinite, negative where counts are normalised, or no numbers.

    Warns
    -----
    UserWarning
        If cell types have no expression, factors are missing, or every factor is the same in all cell types.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=100)
    >>> table = adata.obsm["tf_context"].iloc[:5]
    >>> dbio.pp.tf_context(adata, table, tfs=["TF1", "TF2"], key_added="two")
    >>> adata.obsm["two"].shape
    (6, 2)
    """
    check_options(tf_context, locals())
    if normalize not in (None, True, False):
        raise ValueError(f"normalize must be True, False or None, found {normalize!r}.")
    regions = read_region_axis(adata, axis=axis)
    read = read_expression(expression, groupby=groupby, layer=layer, modality=modality, tfs=tfs)
    owner = "adata.obs_names" if regions.axis == "var" else "adata.var_names"
    table = read.table
    use_log = read.counts if normalize is None else bool(normalize)
    values = table.to_numpy(np.float64)
    _check_values(values, table, use_log)
    if use_log:
        empty = read.total <= 0
        if empty.any():
            raise ValueError(f"cell types without any count: {name_heads(list(table.index[empty]))}; leave them out.")
        values = np.log2(values / read.total[:, None] * _MILLION + 1)
    aligned, missing, unused = align_cell_types(
        pd.DataFrame(values, index=table.index, columns=table.columns), regions.track_names(adata), owner=owner
    )
    known = aligned.notna().all(axis=1).to_numpy()
    lacking = [] if tfs is None else [str(name) for name in tfs if str(name) not in table.columns]
    _warn(aligned, known, missing, lacking, pd.Index(table.index.astype(str)), read.genes)
    columns = storable_names([str(name) for name in aligned.columns])
    result = aligned.astype(np.float32).set_axis(regions.track_names(adata), axis=0).set_axis(columns, axis=1)
    record = make_record(
        {
            "expression": type(expression).__name__,
            "groupby": groupby,
            "layer": layer,
            "modality": modality if hasattr(expression, "mod") and hasattr(expression, "obsmap") else None,
            "normalize": normalize,
            "axis": regions.axis,
        },
        {
            "n_factors": len(columns),
            "normalized": use_log,
            "missing_cell_types": missing,
            "unused_cell_types": unused,
            "missing_factors": lacking,
            "n_cells": {name: read.cells[name] for name in aligned.index if name in read.cells} or None,
        },
    )
    logger.info(
        f"Expression of {len(columns)} factors in {int(known.sum())} of {len(known)} cell types"
        f"{' as log2(CPM + 1)' if use_log else ''}; not used: {unused or 'none'}."
    )
    if copy:
        adata = adata.copy()
    regions.write(adata, track_matrices={key_added: result}, uns={key_added: record})
    return adata if copy else None


def _check_values(values: np.ndarray, table: pd.DataFrame, use_log: bool) -> None:
    nan = np.isnan(values)
    partly = nan.any(axis=1) & ~nan.all(axis=1)
    for bad, problem in (
        (nan & partly[:, None], "missing values within a cell type"),
        (np.isinf(values), "infinite values"),
        ((values < 0) if use_log else np.zeros_like(nan), "negative values, which are no counts"),
    ):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"expression has {problem}: {int(bad.sum())}, first in {str(table.index[row])!r}, gene "
                f"{str(table.columns[column])!r}. A cell type without expression is a row of NaN, or no row."
            )


def _warn(
    aligned: pd.DataFrame,
    known: np.ndarray,
    missing: list[str],
    lacking: list[str],
    cell_types: pd.Index,
    genes: pd.Index,
) -> None:
    if not known.all():
        without = [str(name) for name in aligned.index[~known]]
        hint = case_hint(missing, cell_types)
        warnings.warn(
            f"{len(without)} of {len(known)} cell types have no expression: {name_heads(without)}. Their rows are "
            f"NaN.{hint}",
            UserWarning,
            stacklevel=3,
        )
    if lacking:
        hint = case_hint(lacking, genes)
        warnings.warn(
            f"{len(lacking)} factors are not in expression and are left out: {name_heads(lacking)}.{hint}",
            UserWarning,
            stacklevel=3,
        )
    values = aligned.to_numpy()[known]
    if len(values) > 1 and (values == values[0]).all():
        warnings.warn(
            "every factor has one value in all cell types: they tell no cell types apart.", UserWarning, stacklevel=3
        )
