"""Raw counts out of an AnnData, checked."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc._checks import found_object, is_path
from diffbio_sc.blocks.matrix import CountMatrix, as_count_matrix
from diffbio_sc.blocks.steps import Step

if TYPE_CHECKING:
    from anndata import AnnData


class CountCheck(Step):
    """Finds the first value of a block that is not a count: (problem, row, column, value) or None."""

    def __call__(self, start: int, block: Any) -> tuple[str, int, int, float] | None:
        """Look through one block."""
        values = block.data if sp.issparse(block) else np.asarray(block).ravel()
        if values.dtype.kind in "bu":
            return None
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

    def combine(self, left: Any, right: Any) -> Any:
        """Keep the first problem."""
        return left if left is not None else right


def read_counts(adata: AnnData, **options: Any) -> CountMatrix:
    """Take raw counts out of an AnnData, checked; :func:`survey_counts` without steps, with its options."""
    return survey_counts(adata, stacklevel=4, **options)[0]


def survey_counts(
    adata: AnnData,
    *steps: Step,
    layer: str | None = None,
    name: str = "adata",
    layer_argument: str = "layer",
    allow_fractional: bool = False,
    keep: bool = False,
    stacklevel: int = 3,
) -> tuple[CountMatrix, tuple[Any, ...]]:
    """Take raw counts out of an AnnData, checked, and run ``steps`` in the pass that checks them.

    Parameters
    ----------
    adata
        Object.
    steps
        What to compute from the counts, see :class:`~diffbio_sc.blocks.steps.Step`.
    layer
        Layer that holds the counts; default ``X``.
    name, layer_argument
        How messages call the object and the argument that names the layer.
    allow_fractional
        Warn about values that are not whole numbers rather than refuse them.
    keep
        Whether further passes will follow: they read what this one keeps, see
        :meth:`~diffbio_sc.blocks.matrix.CountMatrix.keep`.
    stacklevel
        Frame that a warning points to, as :func:`warnings.warn` counts.

    Returns
    -------
    The counts, and the results of the steps.

    Raises
    ------
    KeyError
        If the layer is missing.
    TypeError
        If the object is not an AnnData.
    ValueError
        If the matrix is empty or holds missing, infinite, negative or (unless allowed) non-integer values.
    """
    require_anndata(adata, name)
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
    if np.dtype(matrix.dtype).kind not in "biuf":
        raise ValueError(f"{where} must hold raw counts, found values of dtype {matrix.dtype}.")
    counts = as_count_matrix(matrix)
    if keep:
        counts.keep()
    with np.errstate(
        all="ignore"
    ):  # a matrix that does not hold counts is refused below, whatever the steps made of it
        found, *results = counts.reduce(CountCheck(), *steps, description="Counts")
    if found is not None:
        problem, row, column, value = found
        message = (
            f"{where} must hold raw counts, found {problem} values (first: {value:.6g} at observation "
            f"{adata.obs_names[row]!r}, variable {adata.var_names[column]!r}). "
            f"If the counts are elsewhere pass {layer_argument}=...; layers: {layers}.{_raw_hint(adata, name)}"
        )
        if problem != "non-integer":
            raise ValueError(message)
        if not allow_fractional:
            raise ValueError(message + " Counts that really are fractional need allow_fractional=True.")
        warnings.warn(message + " Going on with fractional counts.", UserWarning, stacklevel=stacklevel)
    return counts, tuple(results)


def require_anndata(adata: Any, name: str = "adata") -> None:
    """Raise TypeError, saying what to pass instead, if ``adata`` is not an AnnData."""
    if hasattr(adata, "obs_names") and not hasattr(adata, "mod") and not isinstance(adata, type):
        return
    found = f"{name} must be an AnnData, {found_object(adata)}"
    if is_path(adata):
        raise TypeError(f"{found}.")
    raise TypeError(
        f"{found}; of a MuData pass the modality: mdata['rna'], of a SpatialData a table: sdata.tables['table']."
    )


def _raw_hint(adata: AnnData, name: str) -> str:
    """Where else the counts are: in ``.raw``, if whole numbers lie there."""
    raw = getattr(adata, "raw", None)
    if raw is None:
        return ""
    matrix = as_count_matrix(raw.X)
    start, stop = matrix.plan(256).blocks[0]
    if CountCheck()(start, matrix.read(start, stop)) is not None:
        return ""
    return (
        f" {name}.raw seems to hold counts: pass {name}.raw.to_adata(), which keeps .obs and .obsm, or copy them into "
        "a layer."
    )
