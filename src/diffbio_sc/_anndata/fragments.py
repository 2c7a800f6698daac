"""Fragments that an AnnData of SnapATAC2 carries, and labels of barcodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._checks import name_heads, whole_numbers
from diffbio_sc.genome.barcodes import found_barcodes, group_codes, report_barcodes
from diffbio_sc.genome.interval_kernels import group_rows
from diffbio_sc.genome.intervals import Intervals

_KEY, _REFERENCE = "fragment_paired", "reference_sequences"
_NAME, _LENGTH = "reference_seq_name", "reference_seq_length"


def holds_fragments(adata: Any) -> bool:
    """Whether an AnnData has fragments in ``.obsm["fragment_paired"]`` and no axis of bins."""
    columns = {"chrom", "start", "end"}
    return _KEY in adata.obsm and not any(columns <= set(frame.columns) for frame in (adata.var, adata.obs))


def fragments_of(adata: Any) -> Intervals:
    """Fragments of an AnnData of SnapATAC2, with the names of the cells as barcodes.

    Parameters
    ----------
    adata
        With ``.obsm["fragment_paired"]``, a sparse matrix of cells by base pairs of all chromosomes one after the
        other, whose values are the lengths of the fragments that start there; and ``.uns["reference_sequences"]``, the
        chromosomes' names and lengths.

    Raises
    ------
    KeyError
        If the chromosomes are not there.
    ValueError
        If the matrix does not fit them, or a length is not a positive whole number that stays on its chromosome.
    """
    reference = in_memory(adata.uns.get(_REFERENCE))
    if reference is None or _NAME not in reference or _LENGTH not in reference:
        raise KeyError(
            f"adata.obsm[{_KEY!r}] needs adata.uns[{_REFERENCE!r}] with {_NAME!r} and {_LENGTH!r}; .uns holds "
            f"{list(map(str, adata.uns))[:10]}."
        )
    names = [str(name) for name in reference[_NAME]]
    lengths = np.asarray(reference[_LENGTH], np.int64)
    matrix = in_memory(adata.obsm[_KEY]).tocsr()
    if matrix.shape[1] != lengths.sum():
        raise ValueError(
            f"adata.obsm[{_KEY!r}] must have a column for each of the {lengths.sum():,} base pairs of the "
            f"{len(names)} sequences of adata.uns[{_REFERENCE!r}], found {matrix.shape[1]:,}."
        )
    size = whole_numbers(matrix.data, f"adata.obsm[{_KEY!r}]")
    if len(size) and size.min() <= 0:
        raise ValueError(f"adata.obsm[{_KEY!r}] must hold lengths above 0, found {size.min()}.")
    position = np.asarray(matrix.indices, np.int64)
    offset = np.concatenate([[0], np.cumsum(lengths)])
    chromosome = np.searchsorted(offset, position, side="right") - 1
    start = position - offset[chromosome]
    beyond = start + size > lengths[chromosome]
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        raise ValueError(
            f"adata.obsm[{_KEY!r}] must hold fragments within their sequences, found {int(beyond.sum())} that reach "
            f"beyond; the first is {names[chromosome[first]]}:{start[first]}-{start[first] + size[first]}."
        )
    cell = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    order = group_rows(chromosome, max(len(names), 1))
    stops = np.concatenate([[0], np.cumsum(np.bincount(chromosome, minlength=len(names)))])
    columns = {"start": start, "end": start + size, "cell_code": cell}
    return Intervals(
        {key: values[order].astype(np.int32) for key, values in columns.items()},
        np.stack([stops[:-1], stops[1:]], axis=1),
        names,
        barcodes=[str(name) for name in adata.obs_names],
        sizes=dict(zip(names, lengths.tolist(), strict=True)),
        name=f"adata.obsm[{_KEY!r}]",
    )


def cell_labels(adata: Any, groupby: str) -> Any:
    """Column of the cells that holds their labels."""
    if groupby not in adata.obs:
        raise KeyError(f"adata.obs has no column {groupby!r}; columns: {list(map(str, adata.obs.columns))}.")
    return read_column(adata.obs, groupby)


def read_groups(
    intervals: Intervals, groupby: Mapping[str, str] | pd.Series, *, stacklevel: int = 4
) -> tuple[np.ndarray, list[str]]:
    """Group of each barcode of a sample, -1 for none, and the names of the groups; warns if few have a label.

    Raises
    ------
    TypeError, ValueError
        As :func:`read_barcode_labels`, or if there are no barcodes, or none with a label.
    """
    labels = read_barcode_labels(groupby)
    codes, names = group_codes(intervals, labels)
    if len(codes):
        found = found_barcodes(intervals, labels)
        report_barcodes(list(labels), found, intervals.name, intervals.barcodes or [], stacklevel=stacklevel + 1)
    return codes, names


def read_barcode_labels(labels: Mapping[str, str] | pd.Series) -> dict[str, str]:
    """Label of each barcode, without missing labels; in the order of the labels, which a categorical column gives.

    Raises
    ------
    TypeError
        If ``labels`` is neither a mapping nor a column.
    ValueError
        If a barcode occurs twice, or none has a label.
    """
    if not isinstance(labels, Mapping | pd.Series):
        raise TypeError(
            "groupby must map barcodes to labels (a mapping, or a column such as adata.obs['cell_type']), found "
            f"{type(labels).__name__}."
        )
    column = labels if isinstance(labels, pd.Series) else pd.Series(dict(labels), dtype=object)
    if not column.index.is_unique:
        twice = column.index[column.index.duplicated()].unique()
        raise ValueError(f"barcodes must be unique, found twice: {name_heads(twice)}.")
    column = column.dropna()
    if not len(column):
        raise ValueError("groupby must give a label to at least one barcode, found none.")
    if isinstance(column.dtype, pd.CategoricalDtype):
        ordered = column.cat.remove_unused_categories().sort_values(kind="stable")
    else:
        ordered = column.astype(str).sort_values(kind="stable")
    return dict(zip(ordered.index.astype(str), ordered.astype(str), strict=True))
