"""Raw counts out of an AnnData, checked."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.matrix import CountMatrix, as_count_matrix

if TYPE_CHECKING:
    from anndata import AnnData


class CountCheck:
    """Finds the first value of a block that is no count: (problem, row, column, value) or None."""

    def __call__(self, start: int, block: Any) -> tuple[str, int, int, float] | None:
        if sp.issparse(block):
            values = block.data
        else:
            block = np.asarray(block)
            values = block.ravel()
        if values.dtype.kind in "bu":
            return None
        if values.dtype.kind not in "if":
            return ("non-numeric", start, 0, float("nan"))
        for problem, bad in (
            ("missing or infinite", ~np.isfinite(values)),
            ("negative", values < 0),
            ("non-integer", values != np.floor(values)),
        ):
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                if sp.issparse(block):
                    row = int(np.searchsorted(block.indptr, first, side="right") - 1)
                    column = int(block.indices[first])
                else:
                    row, column = divmod(first, block.shape[1])
                return (problem, start + row, column, float(values[first]))
        return None


def read_counts(
    adata: AnnData,
    *,
    layer: str | None = None,
    name: str = "adata",
    layer_argument: str = "layer",
    allow_fractional: bool = False,
) -> CountMatrix:
    """Take raw counts out of an AnnData, checked.

    Parameters
    ----------
    adata
        Object.
    layer
        Layer that holds the counts; default ``X``.
    name, layer_argument
        How messages call the object and the argument that names the layer.
    allow_fractional
        Warn about values that are no whole numbers rather than refuse them.

    Raises
    ------
    KeyError
        If the layer is missing.
    ValueError
        If the matrix is empty or holds missing, infinite, negative or (unless allowed) non-integer values.
    """
    layers = [repr(key) for key in adata.layers.keys() if key is not None]  # newer anndata lists X as None
    if layer is None:
        matrix, where = adata.X, f"{name}.X"
        if matrix is None:
            raise ValueError(f"{name}.X is None; pass the counts with {layer_argument}=...; layers: {layers}.")
    else:
        if layer not in adata.layers:
            raise KeyError(f"{name}.layers has no {layer!r}; layers: {layers}.")
        matrix, where = adata.layers[layer], f"{name}.layers[{layer!r}]"
    if 0 in matrix.shape:
        raise ValueError(f"{where} is empty: shape {tuple(matrix.shape)}.")
    counts = as_count_matrix(matrix)
    found = next((problem for problem in counts.map_blocks(CountCheck()) if problem is not None), None)
    if found is not None:
        problem, row, column, value = found
        message = (
            f"{where} must hold raw counts, found {problem} values (first: {value:.6g} at observation "
            f"{adata.obs_names[row]!r}, variable {adata.var_names[column]!r}). "
            f"If the counts are elsewhere pass {layer_argument}=...; layers: {layers}."
        )
        if problem != "non-integer":
            raise ValueError(message)
        if not allow_fractional:
            raise ValueError(message + " Counts that really are fractional need allow_fractional=True.")
        warnings.warn(message + " Going on with fractional counts.", UserWarning, stacklevel=3)
    return counts
