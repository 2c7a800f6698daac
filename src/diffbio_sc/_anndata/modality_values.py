"""Values of one modality: a canonical sparse matrix, checked, and the likelihood that they are for."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import CountCheck
from diffbio_sc._anndata.stored_modality import StoredModality, store_values
from diffbio_sc._anndata.tables import read_labels
from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger
from diffbio_sc.blocks.interface import refuse_masked
from diffbio_sc.blocks.matrix import BLOCK_ROWS, as_count_matrix
from diffbio_sc.blocks.row_store import RowStore
from diffbio_sc.numerics.counts.likelihood_choice import ModalitySummary, choose_likelihood

if TYPE_CHECKING:
    from anndata import AnnData

FEATURE_TYPES = "feature_types"
_PROBLEMS = ("non-numeric", "missing or infinite", "negative", "non-integer")  # of counts, the worst first
_CHUNK = 1 << 22  # values that are looked at together
_MOSTLY = 0.5  # share of fractional values above which a matrix is normalised, not counts with some bad values


def read_values(part: AnnData, layer: str | None, where: str, *, stored: StoredModality | None = None) -> Any:
    """Finite float32 values that share nothing that is changed: canonical CSR, or an array that is no counts.

    Those that are not in memory are put into temporary files, unless they are ``stored`` there already.
    """
    if stored is not None:
        return _checked(stored, part, where)
    layers = _layer_names(part)
    if layer is not None and layer not in part.layers:
        raise KeyError(f"{where.rsplit('[', 1)[0]} has no {layer!r}; layers: {layers}.")
    values = part.X if layer is None else part.layers[layer]
    if values is None:
        raise ValueError(f"{where} is None; name the layer with the counts: layers=...; layers: {layers}.")
    if 0 in values.shape:
        raise ValueError(f"{where} is empty: shape {tuple(values.shape)}.")
    if np.dtype(values.dtype).kind not in "biuf":
        raise ValueError(f"{where} must hold real numbers, found dtype {values.dtype}.")
    refuse_masked(values)
    if sp.issparse(values):
        matrix = _as_csr(values)  # the object's own arrays, where they are of this kind
    elif not isinstance(values, np.ndarray):
        return _checked(store_values(as_count_matrix(values))[0], part, where)
    elif _is_normalised(values):
        matrix = np.asarray(values, np.float32)
    else:
        matrix = sp.csr_array(np.asarray(values, dtype=np.float32))
    if sp.issparse(matrix) and (not matrix.has_canonical_format or np.count_nonzero(matrix.data) < matrix.nnz):
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    return _checked(matrix, part, where)


def _checked(matrix: Any, part: AnnData, where: str) -> Any:
    """Raise ValueError if values are not finite."""
    problem = _count_problem(matrix)
    if problem is not None and problem[0] == "missing or infinite":
        raise ValueError(
            f"{where} must hold finite values, found {_first(problem, part)}. Cells without a modality are left out of "
            "it, they need no placeholder."
        )
    return matrix


def _is_normalised(values: Any) -> bool:
    """Whether it is an array in memory, mostly other than 0, of values that are not counts."""
    if not isinstance(values, np.ndarray) or np.count_nonzero(values) <= _MOSTLY * values.size:
        return False
    return _count_problem(values) is not None


def as_read(matrix: Any, likelihood: str) -> Any:
    """Values as the model takes them: dense if Gaussian and mostly other than 0."""
    if isinstance(matrix, StoredModality):
        mostly = matrix.entries > _MOSTLY * matrix.rows.shape[0] * matrix.rows.shape[1]
        return matrix.rows.dense() if mostly and likelihood == "gaussian" else matrix.rows
    mostly = sp.issparse(matrix) and matrix.nnz > _MOSTLY * matrix.shape[0] * matrix.shape[1]
    return matrix.toarray() if mostly and likelihood == "gaussian" else matrix


def _count_problem(matrix: Any) -> tuple[str, int, int, float] | None:
    """First value that is not a count, looked for in blocks of rows: what the search needs is as long as its input."""
    if isinstance(matrix, StoredModality):
        return matrix.problem
    if not sp.issparse(matrix):
        size = max(_CHUNK // matrix.shape[1], 1)
        starts = range(0, len(matrix), size)
        problems = (CountCheck()(start, np.asarray(matrix[start : start + size])) for start in starts)
        found = [problem for problem in problems if problem is not None]
        return min(found, key=lambda problem: _PROBLEMS.index(problem[0]), default=None)
    found = []
    for start in range(0, matrix.shape[0], BLOCK_ROWS):
        indptr = matrix.indptr[start : start + BLOCK_ROWS + 1]
        entries = slice(indptr[0], indptr[-1])
        block = sp.csr_array(
            (matrix.data[entries], matrix.indices[entries], indptr - indptr[0]),
            shape=(len(indptr) - 1, matrix.shape[1]),
        )
        problem = CountCheck()(start, block)
        if problem is not None:
            found.append(problem)
    # In the order of the problems, as the whole matrix would be searched.
    return min(found, key=lambda problem: _PROBLEMS.index(problem[0]), default=None)


def _as_csr(values: Any) -> sp.csr_array:
    """Float32 CSR of sparse values of any type of number."""
    return sp.csr_array(values, dtype=np.float32)


def _layer_names(part: AnnData) -> list[str]:
    return [str(key) for key in part.layers.keys() if key is not None]  # newer anndata lists X as None


def choose_or_check(
    part: AnnData, name: str, matrix: Any, layer: str | None, given: str, where: str, *, fitted: bool = False
) -> str:
    """Likelihood of the modality, after checking that the values are what it is for."""
    if given == "gaussian":
        return given
    problem = _count_problem(matrix)
    if problem is not None:
        fractional = _fractional_share(matrix)
        counts = [f"layers={{{name!r}: {key!r}}}" for key in _other_counts(part, layer)]
        advice = f"Counts are elsewhere: pass {' or '.join(counts)}. " if counts else ""
        if given != "auto" or counts or fractional < _MOSTLY:
            model = (
                f"The model was fitted to counts of {name!r} ({given})."
                if fitted
                else f"To model normalised values pass likelihoods={{{name!r}: 'gaussian'}}."
            )
            raise ValueError(
                f"{where} must hold raw counts, found {_first(problem, part)}. {advice}Layers: {_layer_names(part)}. "
                f"{model}"
            )
        warnings.warn(
            f"{where} holds normalised values, not counts, found {_first(problem, part)}: modelled as Gaussian. "
            f"Counts tell more: pass layers={{{name!r}: ...}}; layers: {_layer_names(part)}. Say so with "
            f"likelihoods={{{name!r}: 'gaussian'}} if it is meant.",
            UserWarning,
            stacklevel=4,
        )
    if given != "auto":
        if given == "bernoulli" and _largest(matrix) > 1:
            logger.info(f"{name}: counts above 1 count as 1, the likelihood is Bernoulli.")
        return given
    choice = choose_likelihood(_summary(part, name, matrix))
    logger.info(f"{name}: {choice.likelihood} likelihood: {choice.reason}.")
    return choice.likelihood


def _fractional_share(matrix: Any) -> float:
    """Share of the values other than 0 that are not whole."""
    if isinstance(matrix, StoredModality):
        return matrix.fractional / max(matrix.entries, 1)
    values = _values(matrix)
    chunks = (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
    return sum(int((chunk != np.floor(chunk)).sum()) for chunk in chunks) / np.count_nonzero(values)


def _largest(matrix: Any) -> float:
    if isinstance(matrix, StoredModality):
        return matrix.largest
    return float(matrix.data.max()) if matrix.nnz else 0.0


def _values(matrix: Any) -> np.ndarray:
    return matrix.data if sp.issparse(matrix) else matrix.ravel()


def _other_counts(part: AnnData, layer: str | None) -> list[str]:
    """Layers other than the one read that hold counts."""
    found = []
    for key in _layer_names(part):
        if key != layer and not any(as_count_matrix(part.layers[key]).map(CountCheck())):
            found.append(key)
    return found


def _summary(part: AnnData, name: str, matrix: Any) -> ModalitySummary:
    found = matrix if isinstance(matrix, StoredModality) else _described(matrix)
    size = found.rows.shape[0] * found.rows.shape[1]
    kinds = set(read_labels(part.var, FEATURE_TYPES, name="var")[1]) if FEATURE_TYPES in part.var else set()
    return ModalitySummary(
        n_features=found.rows.shape[1],
        integer=not found.fractional,
        minimum=float(min(found.smallest, 0 if found.entries < size else np.inf)),
        maximum=float(max(found.largest, 0 if found.entries < size else -np.inf)),
        zero_share=1 - found.entries / size,
        large_share=found.large / max(found.looked_at, 1),
        name=" ".join([name, *kinds]) if len(kinds) == 1 and kinds != {name} else name,
    )


def _described(matrix: Any) -> StoredModality:
    """What :func:`store_values` finds, of values in memory."""
    values = _values(matrix)
    found = StoredModality(matrix)
    for start in range(0, len(values), _CHUNK):
        found.look_at(values[start : start + _CHUNK])
    return found


def _first(problem: tuple[str, int, int, float], part: AnnData) -> str:
    what, row, column, value = problem
    return (
        f"{what} values (first: {value:.6g} at observation {str(part.obs_names[row])!r}, variable "
        f"{str(part.var_names[column])!r})"
    )


def to_features(matrix: Any, found: pd.Index, wanted: pd.Index, name: str) -> Any:
    """Columns of the features that a model knows; zero for those not found."""
    if found.equals(wanted):
        return matrix
    column = wanted.get_indexer(found)
    known = int((column >= 0).sum())
    missing = wanted.difference(found)
    if 2 * known < len(wanted):
        raise ValueError(
            f"Modality {name!r} has {known} of the {len(wanted)} features of the model, at least half are needed. "
            f"Model: {name_heads(wanted)}; found: {name_heads(found)}."
        )
    if len(missing):
        warnings.warn(
            f"Modality {name!r} lacks {len(missing)} of the {len(wanted)} features of the model, they are taken as "
            f"zero: {name_heads(missing)}.",
            UserWarning,
            stacklevel=4,
        )
    if known < len(found):
        logger.info(f"{name}: {len(found) - known} features that the model does not know are not used.")
    if isinstance(matrix, StoredModality):
        blocks = (slice(start, start + BLOCK_ROWS) for start in range(0, matrix.rows.shape[0], BLOCK_ROWS))
        moved = (_to_columns(matrix.rows[rows], column, len(wanted)) for rows in blocks)
        return matrix.moved(RowStore.of(moved, len(wanted)))
    return _to_columns(matrix, column, len(wanted))


def _to_columns(matrix: Any, column: np.ndarray, width: int) -> Any:
    """Columns moved to the places given; those at -1 are left out."""
    if not sp.issparse(matrix):
        placed = np.zeros((len(matrix), width), np.float32)
        placed[:, column[column >= 0]] = matrix[:, column >= 0]
        return placed
    kept = column[matrix.indices] >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    result = sp.csr_array((matrix.data[kept], column[matrix.indices[kept]], indptr), shape=(matrix.shape[0], width))
    result.sort_indices()
    return result
