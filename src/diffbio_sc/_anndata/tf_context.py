"""Expression of transcription factors by cell type: read from cells, cell types or tables, and aligned by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.matrix import read_counts
from diffbio_sc._anndata.modalities import is_mudata
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.tables import read_column, read_labels
from diffbio_sc._checks import name_heads
from diffbio_sc.blocks.matrix import as_count_matrix

if TYPE_CHECKING:
    from anndata import AnnData

_MANY = 5000


class Expression(NamedTuple):
    """Expression of genes in cell types.

    Attributes
    ----------
    table
        Cell types by chosen genes, as given.
    genes
        Names of all genes.
    counts
        Whether these are counts, over which a total can be taken.
    total
        Total of each cell type over all genes, of counts.
    cells
        Number of cells of each cell type, where there were cells.
    """

    table: pd.DataFrame
    genes: pd.Index
    counts: bool
    total: np.ndarray
    cells: dict[str, int]


def read_expression(
    expression: Any, *, groupby: str | None, layer: str | None, modality: str, tfs: Sequence[str] | None
) -> Expression:
    """Take expression out of a table, an AnnData of cells or cell types, or a modality of a MuData.

    Raises
    ------
    KeyError
        If there is no such modality, layer or column.
    TypeError
        If it is of another kind.
    ValueError
        If names occur twice, no factor is found, or values are not numbers.
    """
    labels_of = None
    if is_mudata(expression):
        if modality not in expression.mod:
            raise KeyError(f"expression has no modality {modality!r}; modalities: {list(expression.mod)}.")
        labels_of = None if groupby is None else _labels_of(expression, modality, groupby)
        expression = expression.mod[modality]
    if isinstance(expression, pd.DataFrame):
        if groupby is not None or layer is not None:
            raise ValueError("groupby and layer are for an AnnData of cells: expression is a table of cell types.")
        return _of_table(expression, tfs)
    if not (hasattr(expression, "obs_names") and hasattr(expression, "var_names")):
        raise TypeError(
            "expression must be a table (cell types by genes), an AnnData or a MuData, found "
            f"{type(expression).__name__}."
        )
    chosen = _choose(expression.var_names, tfs, "expression.var_names")
    names_of_genes = expression.var_names.astype(str)
    genes = names_of_genes[chosen]
    if groupby is not None:
        cell_table = expression.obs if labels_of is None else labels_of
        codes, labels = read_labels(cell_table, groupby, name="expression.obs")
        counts = read_counts(expression, layer=layer, name="expression")
        sums = counts.sum_by_group(codes, len(labels))
        cells = np.bincount(codes[codes >= 0], minlength=len(labels))
        table = pd.DataFrame(sums[:, chosen], index=labels, columns=genes)
        return Expression(table, names_of_genes, True, sums.sum(axis=1), dict(zip(labels, cells.tolist(), strict=True)))
    require_unique(expression.obs_names, "expression.obs_names", "Rows must be cell types, or pass groupby=...")
    matrix = _values(expression, layer)
    whole, total = _survey(matrix)
    names = [str(name) for name in expression.obs_names]
    table = pd.DataFrame(_columns(matrix, chosen), index=names, columns=genes)
    return Expression(table, names_of_genes, whole, total, {})


def align_cell_types(table: pd.DataFrame, wanted: pd.Index, *, owner: str) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Rows of ``table`` for ``wanted`` cell types, NaN where there is none; those missing, and those not used.

    Raises
    ------
    ValueError
        If no name is shared; the message says whether case, or the other way round, is why.
    """
    names = pd.Index([str(name) for name in wanted])
    rows = pd.Index([str(name) for name in table.index])
    require_unique(rows, "cell types of expression", "Sum or average rows of one name first.")
    shared = names.isin(rows)
    if not shared.any():
        message = f"expression and {owner} share no cell type: {name_heads(rows)} and {name_heads(names)}."
        message += case_hint(names, rows)
        if pd.Index(map(str, table.columns)).isin(names).any():
            message += " Its columns are cell types: pass the table transposed, .T."
        elif len(rows) > 20 * len(names):
            message += " If its rows are cells, pass groupby=..., the column with their cell type."
        raise ValueError(message)
    aligned = table.set_axis(rows, axis=0).reindex(names)
    return aligned, list(names[~shared]), list(rows[~rows.isin(names)])


def case_hint(wanted: Sequence[str] | pd.Index, found: Sequence[str] | pd.Index) -> str:
    """Say which names would match if case did not count, as between species; nothing if none would."""
    lower = {name.lower(): name for name in found}
    have = set(found)
    pairs = [(name, lower[name.lower()]) for name in wanted if name not in have and name.lower() in lower]
    if not pairs:
        return ""
    shown = ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:3])
    return f" {len(pairs)} differ in case alone ({shown}): names are compared as they are; rename one side."


def _labels_of(mdata: Any, modality: str, groupby: str) -> pd.DataFrame:
    """Table with the labels of a modality's cells: its own, or those that the whole has of them."""
    part = mdata.mod[modality]
    found = next((name for name in (f"{modality}:{groupby}", groupby) if name in mdata.obs), None)
    if groupby in part.obs or found is None:
        return part.obs
    return pd.DataFrame({groupby: read_column(mdata.obs, found).reindex(part.obs_names)})


def _of_table(table: pd.DataFrame, tfs: Sequence[str] | None) -> Expression:
    chosen = _choose(table.columns, tfs, "columns of expression")
    values = table.apply(pd.to_numeric, errors="coerce")
    bad = values.isna().to_numpy() & table.notna().to_numpy()
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"expression must hold numbers, found {table.iat[row, column]!r} in row {str(table.index[row])!r}, column "
            f"{str(table.columns[column])!r}."
        )
    array = values.to_numpy(np.float64, na_value=np.nan)
    known = array[~np.isnan(array).all(axis=1)]
    whole = bool(len(known) and (known == np.floor(known)).all() and (known >= 0).all() and known.max() > 1)
    genes = pd.Index([str(name) for name in table.columns])
    return Expression(values.set_axis(genes, axis=1).iloc[:, chosen], genes, whole, array.sum(axis=1), {})


def _choose(names: pd.Index, tfs: Sequence[str] | None, what: str) -> np.ndarray:
    """Positions of the factors asked for, in their order; all without."""
    names = pd.Index([str(name) for name in names])
    require_unique(names, what, "Make them unique first, or sum duplicates.")
    if tfs is None:
        if len(names) > _MANY:
            raise ValueError(
                f"{what} are {len(names):,} genes: pass tfs=..., the names of transcription factors (at most {_MANY:,} "
                "are taken unasked)."
            )
        return np.arange(len(names))
    if isinstance(tfs, str):
        raise TypeError(f"tfs must be a list of names, found the text {tfs!r}.")
    wanted = pd.Index([str(name) for name in tfs])
    require_unique(wanted, "tfs", "Name each factor once.")
    place = names.get_indexer(wanted)
    if (place < 0).all():
        raise ValueError(
            f"none of the {len(wanted)} tfs is among {what}: {name_heads(wanted)} and {name_heads(names)}."
            f"{case_hint(wanted, names)}"
        )
    return place[place >= 0]


def _values(expression: AnnData, layer: str | None) -> Any:
    if layer is None:
        return as_count_matrix(expression.X)
    if layer not in expression.layers:
        raise KeyError(f"expression.layers has no {layer!r}; layers: {[str(key) for key in expression.layers]}.")
    return as_count_matrix(expression.layers[layer])


def _survey(matrix: Any) -> tuple[bool, np.ndarray]:
    """Whether all known values are counts, and the sum of each row."""
    whole, largest, total = True, 0.0, []
    for _, block in matrix.blocks():
        values = np.asarray(block.data if hasattr(block, "indptr") else block)
        known = values[~np.isnan(values)]
        whole &= bool((known == np.floor(known)).all() and (known >= 0).all())
        largest = max(largest, float(known.max(initial=0.0)))
        total.append(np.asarray(block.sum(axis=1), np.float64).ravel())
    return whole and largest > 1, np.concatenate(total)


def _columns(matrix: Any, chosen: np.ndarray) -> np.ndarray:
    order = np.argsort(chosen)
    values = np.asarray(matrix.take(np.arange(matrix.shape[0]), chosen[order]), np.float64)
    result = np.empty_like(values)
    result[:, order] = values
    return result
