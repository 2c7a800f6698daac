"""Reading a reference of cell types: labelled single cells, or profiles."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.matrix import require_anndata, survey_counts
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.tables import read_column, read_labels
from diffbio_sc._logging import logger
from diffbio_sc.blocks.steps import ColumnSquares, GroupSums, RowSums
from diffbio_sc.numerics.counts import signatures
from diffbio_sc.numerics.counts.cell_variation import dispersion_index, size_variation

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.blocks.matrix import CountMatrix

_FEW_CELLS = 5
_MANY_PROFILES = 100  # an AnnData of more rows holds cells, not cell types


class Reference(NamedTuple):
    """Reference as types by genes.

    Attributes
    ----------
    types, genes
        Names.
    table
        Table of the genes, for hints about names that do not match; None for a data frame.
    sums
        Counts summed over the cells of each type.
    counts_per_cell
        Mean counts of a cell of each type.
    dispersion_index
        Variance over mean of each gene's counts between cells of a type; 2 for profiles, which say nothing about it.
    size_variation
        Squared coefficient of variation of the counts of a cell of each type; 0 for profiles.
    exact
        Whether ``sums`` are profiles, taken for exactly known.
    cells, codes
        Counts of the cells by all genes, and the type of each, -1 for those left out; None for profiles.
    """

    types: list[str]
    genes: pd.Index
    table: pd.DataFrame | None
    sums: np.ndarray
    counts_per_cell: np.ndarray
    dispersion_index: np.ndarray
    size_variation: np.ndarray
    exact: bool
    cells: CountMatrix | None = None
    codes: np.ndarray | None = None

    def by_name(self) -> Reference:
        """With the types in the order of their names."""
        order = sorted(range(len(self.types)), key=self.types.__getitem__)
        place = np.append(np.argsort(order), -1)  # code -1 stays
        return self._replace(
            types=[self.types[index] for index in order],
            sums=self.sums[order],
            counts_per_cell=self.counts_per_cell[order],
            size_variation=self.size_variation[order],
            codes=None if self.codes is None else place[self.codes].astype(self.codes.dtype),
        )


def read_reference(
    reference: AnnData | pd.DataFrame,
    cell_type_key: str | None,
    batch_key: str | None = None,
    layer: str | None = None,
    allow_fractional: bool = False,
) -> Reference:
    """Take a reference apart, checked.

    Parameters
    ----------
    reference
        Single cells by genes, labelled in ``.obs[cell_type_key]``; without ``cell_type_key`` profiles, types by genes.
    cell_type_key, batch_key
        Columns of ``reference.obs``.
    layer
        Layer with the raw counts; default ``X``.
    allow_fractional
        Accept fractional counts of cells with a warning.

    Raises
    ------
    KeyError
        If a column or the layer is missing.
    TypeError
        If the reference is neither an AnnData nor a data frame.
    ValueError
        If values are not counts, there are fewer than two types, a type has no counts, or rows without
        ``cell_type_key`` seem to be cells.
    """
    if not isinstance(reference, pd.DataFrame):
        require_anndata(reference, "reference")
    if cell_type_key is None:
        result = _read_profiles(reference, layer)
    elif isinstance(reference, pd.DataFrame):
        raise ValueError("cell_type_key is for a reference of single cells; with a DataFrame of profiles leave it out.")
    else:
        result = _read_cells(reference, cell_type_key, batch_key, layer, allow_fractional)
    require_unique(pd.Index(result.types), "The reference's cell types", "Merge or rename them.")
    if len(result.types) < 2:
        raise ValueError(f"The reference must have at least two cell types, found {result.types}.")
    empty = [name for name, total in zip(result.types, result.sums.sum(1), strict=True) if total <= 0]
    if empty:
        raise ValueError(f"These cell types have no counts in the reference: {empty}.")
    return result


def _read_profiles(reference: Any, layer: str | None) -> Reference:
    table = None
    if isinstance(reference, pd.DataFrame):
        try:
            values = reference.to_numpy(np.float64)
        except (TypeError, ValueError) as error:
            text = [str(name) for name, kind in reference.dtypes.items() if kind.kind not in "biuf"]
            raise ValueError(
                f"reference must be a DataFrame of numbers, types by genes; not so: {text[:5]}."
            ) from error
        types, genes = reference.index, reference.columns
    else:
        if reference.n_obs > _MANY_PROFILES:
            most = reference.n_obs // 2
            columns = [str(key) for key in reference.obs if 2 <= read_column(reference.obs, key).nunique() <= most]
            raise ValueError(
                f"reference has {reference.n_obs} rows; without cell_type_key each would be a cell type of its own. If "
                f"they are cells, name the column of reference.obs with their types (columns with repeated values: "
                f"{columns}); if they are types, pass a DataFrame, types by genes."
            )
        matrix, _ = survey_counts(
            reference,
            layer=layer,
            name="reference",
            layer_argument="reference_layer",
            allow_fractional=True,
            warn_fractional=False,  # profiles are means: fractions are what is expected
        )
        values = matrix.take(np.arange(matrix.shape[0])).astype(np.float64)
        types, genes, table = reference.obs_names, reference.var_names, reference.var
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("reference profiles must be finite and not negative; found missing or negative values.")
    totals = values.sum(1)
    # A profile says nothing about its own accuracy: count it as well known, a million counts.
    sums = values / np.maximum(totals, 1e-300)[:, None] * 1e6
    return Reference(
        [str(name) for name in types],
        pd.Index(genes),
        table,
        sums,
        totals,
        dispersion_index=np.full(len(genes), 2.0),
        size_variation=np.zeros(len(types)),
        exact=True,
    )


def _read_cells(reference, cell_type_key, batch_key, layer, allow_fractional) -> Reference:
    codes, types = read_labels(reference.obs, cell_type_key, name="reference.obs")
    groups, number = codes, 1
    if batch_key is not None:
        batches, names = read_labels(reference.obs, batch_key, name="reference.obs")
        groups, number = np.where((codes >= 0) & (batches >= 0), batches * len(types) + codes, -1), len(names)
    matrix, (sums, squares, totals) = survey_counts(
        reference,
        GroupSums(groups, number * len(types)),
        ColumnSquares(groups >= 0),
        RowSums(),
        layer=layer,
        name="reference",
        layer_argument="reference_layer",
        allow_fractional=allow_fractional,
        stacklevel=6,
    )
    n_cells = np.bincount(codes[codes >= 0], minlength=len(types))
    few = [f"{name} ({n})" for name, n in zip(types, n_cells, strict=True) if n < _FEW_CELLS]
    if few:
        warnings.warn(
            f"Cell types with fewer than {_FEW_CELLS} reference cells, their signatures are uncertain: {few}.",
            UserWarning,
            stacklevel=4,
        )
    if (codes < 0).any():
        logger.warning(f"{int((codes < 0).sum())} reference cells without {cell_type_key!r} are left out.")
    in_group = np.bincount(groups[groups >= 0], minlength=len(sums))
    index = dispersion_index(sums, squares, in_group)
    # Within batches, whose depths differ; a type's batches count by their cells.
    share = (in_group + 1e-9).reshape(number, -1)
    variation = size_variation(totals, groups, len(sums)).reshape(number, -1)
    variation = (share * variation).sum(0) / share.sum(0)
    if batch_key is None:
        counts_per_cell = sums.sum(1) / np.maximum(n_cells, 1)
    else:
        sums = sums.reshape(number, len(types), -1)
        cells = np.bincount(groups[groups >= 0], minlength=number * len(types)).reshape(number, len(types))
        counts_per_cell = signatures.size_without_batch_depth(sums.sum(2), cells)
        sums = signatures.remove_batch_effect(sums)
    used = np.where(groups >= 0, codes, -1)
    return Reference(
        types, reference.var_names, reference.var, sums, counts_per_cell, index, variation, False, matrix, used
    )
