"""Modalities of a MuData, or of an AnnData with feature types, as sparse matrices over the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.matrix import CountCheck
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.results import write_results
from diffbio_sc._anndata.tables import read_labels
from diffbio_sc._logging import logger
from diffbio_sc.blocks.matrix import BLOCK_ROWS, InMemory, as_count_matrix
from diffbio_sc.numerics.counts.likelihood_choice import ModalitySummary, choose_likelihood

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

FEATURE_TYPES = "feature_types"
_FEWEST_CELLS = 10
_FEWEST_FEATURES = 2
_PROBLEMS = ("non-numeric", "missing or infinite", "negative", "non-integer")  # of counts, the worst first
_CHUNK = 1 << 22  # values that are looked at together
_MOSTLY = 0.5  # share of fractional values above which a matrix is normalised, not counts with some bad values


class Modalities(NamedTuple):
    """Modalities of the same cells, in the order of the object.

    Attributes
    ----------
    names
        Modalities: those of a MuData, or the feature types of an AnnData.
    matrices
        Float32 CSR matrix (cells, features) of each; rows of cells without the modality are empty.
    present
        Which cells have which modality (cells, modalities).
    features
        Names of the features of each.
    likelihoods
        Name of the likelihood of each.
    """

    names: list[str]
    matrices: list[sp.csr_array]
    present: np.ndarray
    features: list[pd.Index]
    likelihoods: list[str]


def is_mudata(data: Any) -> bool:
    """Whether it is a MuData (or looks like one), not an AnnData."""
    return hasattr(data, "mod") and hasattr(data, "obsmap")  # a DataFrame has a method mod


def object_name(data: Any) -> str:
    """What messages call the object."""
    return "mdata" if is_mudata(data) else "adata"


def read_modalities(
    data: MuData | AnnData,
    *,
    modalities: Sequence[str] | str | None = None,
    likelihoods: str | Mapping[str, str] = "auto",
    layers: str | Mapping[str, str | None] | None = None,
) -> Modalities:
    """Take modalities out of an object, checked, and choose a likelihood for each.

    Parameters
    ----------
    data
        MuData, whose modalities may have different cells, or AnnData with feature types.
    modalities
        Which; default all.
    likelihoods
        ``"auto"``, or a likelihood for each modality; those left out are chosen from the values.
    layers
        Layer with the values of each modality; default ``X``.

    Raises
    ------
    KeyError
        If a modality or layer is missing.
    TypeError
        If the object is of another kind.
    ValueError
        If there is no modality, names are duplicated, a modality has too few cells or features, a cell has no
        modality, or values are no counts where the likelihood asks for them.
    """
    parts = _split(data)
    names = _chosen(parts, modalities, data)
    given = _by_modality(likelihoods, names, "likelihoods", "auto")
    layer_of = _by_modality(layers, names, "layers", None)
    _check_likelihoods(given)
    owner = object_name(data)
    columns, matrices, likelihood = [], [], []
    for name in names:
        part = parts[name]
        where = _where(data, name, layer_of[name])
        require_unique(part.var_names, f"var_names of modality {name!r}", "Call .var_names_make_unique() of it first.")
        if part.n_vars < _FEWEST_FEATURES:
            raise ValueError(
                f"Modality {name!r} has {part.n_vars} features, at least {_FEWEST_FEATURES} are needed. Leave it out: "
                f"modalities={[other for other in names if other != name]}."
            )
        matrix = _read_matrix(part, layer_of[name], where)
        chosen = _likelihood(part, name, matrix, layer_of[name], given[name], where)
        likelihood.append(chosen)
        matrices.append(matrix)
        columns.append(pd.Index(part.var_names))
    if data.n_obs < _FEWEST_CELLS:
        raise ValueError(f"A model needs at least {_FEWEST_CELLS} cells, {owner} has {data.n_obs}.")
    placed, present = _place(data, {name: parts[name] for name in names}, matrices, likelihood)
    for name, cells in zip(names, present.sum(0), strict=True):
        if cells < _FEWEST_CELLS:
            raise ValueError(
                f"Modality {name!r} has {cells} cells with counts, at least {_FEWEST_CELLS} are needed. Leave it out: "
                f"modalities={[other for other in names if other != name]}."
            )
    return Modalities(names, placed, present, columns, likelihood)


def read_known_modalities(
    data: MuData | AnnData,
    *,
    names: Sequence[str],
    features: Sequence[pd.Index],
    likelihoods: Sequence[str],
    layers: str | Mapping[str, str | None] | None = None,
) -> Modalities:
    """Take the modalities and features that a model knows out of an object that may lack some of them.

    Parameters
    ----------
    data
        Object. A modality that it has not is missing in all cells; others than those of the model are not used.
    names, features, likelihoods
        Modalities of the model.
    layers
        Layer with the values of each modality; default ``X``.

    Raises
    ------
    ValueError
        If the object has none of the modalities, or fewer than half of the features of one; otherwise as
        :func:`read_modalities`.
    """
    parts = _split(data)
    found = [name for name in names if name in parts]
    if not found:
        raise ValueError(
            f"{object_name(data)} has none of the modalities of the model, {list(names)}; found {list(parts)}."
        )
    layer_of = _by_modality(layers, list(names), "layers", None)
    matrices, kinds = [], []
    for name, wanted, likelihood in zip(names, features, likelihoods, strict=True):
        if name not in parts:
            continue
        part, where = parts[name], _where(data, name, layer_of[name])
        require_unique(part.var_names, f"var_names of modality {name!r}", "Call .var_names_make_unique() of it first.")
        matrix = _read_matrix(part, layer_of[name], where)
        _likelihood(part, name, matrix, layer_of[name], likelihood, where)
        matrices.append(_to_features(matrix, pd.Index(part.var_names), wanted, name))
        kinds.append(likelihood)
    placed, present_found = _place(data, {name: parts[name] for name in found}, matrices, kinds)
    by_name = dict(zip(found, placed, strict=True))
    present = np.zeros((data.n_obs, len(names)), bool)
    present[:, [list(names).index(name) for name in found]] = present_found
    absent = [name for name in names if name not in by_name]
    if absent:
        logger.info(f"{object_name(data)} has no modality {absent}: missing in all {data.n_obs} cells.")
    filled = [
        by_name[name] if name in by_name else sp.csr_array((data.n_obs, len(wanted)), dtype=np.float32)
        for name, wanted in zip(names, features, strict=True)
    ]
    return Modalities(list(names), filled, present, [pd.Index(wanted) for wanted in features], list(likelihoods))


def read_batches(data: MuData | AnnData, key: str) -> tuple[np.ndarray, list[str]]:
    """Codes and names of the batch of each cell.

    A column of the object; or, of a MuData, columns of that name of its modalities taken together.

    Raises
    ------
    KeyError
        If neither exists.
    ValueError
        If a cell has no batch, or two modalities disagree about it.
    """
    owner = object_name(data)
    table = data.obs
    if key not in table and is_mudata(data):
        table = _joined_column(data, key)
    if key not in table:
        raise KeyError(f"{owner}.obs has no column {key!r}; columns: {[str(column) for column in data.obs.columns]}.")
    codes, names = read_labels(table, key, name=f"{owner}.obs")
    missing = codes < 0
    if missing.any():
        hint = ""
        modality, _, rest = key.partition(":")
        if is_mudata(data) and rest and modality in data.mod:
            hint = (
                f" It is the column of modality {modality!r} alone: batch_key={rest!r} joins those of all modalities."
            )
        raise ValueError(
            f"{owner}.obs[{key!r}] must name a batch for each cell, it is missing for {int(missing.sum())}: "
            f"{_some(data.obs_names[missing])}.{hint}"
        )
    cells = np.bincount(codes, minlength=len(names))
    lonely = [name for name, number in zip(names, cells, strict=True) if number == 1]
    if lonely:
        warnings.warn(
            f"Batches of a single cell, whose effect cannot be told from the cell: {lonely}.", UserWarning, stacklevel=3
        )
    return codes.astype(np.int32), names


def write_modality_results(
    data: MuData | AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    modality_obsm: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write results into an object and its modalities, all or nothing.

    Parameters
    ----------
    data
        Object; a view is made a real object first.
    obs, obsm, uns
        Entries over all cells.
    modality_obsm
        Entries of ``.obsm`` of each modality of a MuData, over its own cells. A value of None removes the key, here as
        in the others.

    Raises
    ------
    ValueError
        If a value has another length than the object; nothing is written then.
    """
    here = {key: dict(values) for key, values in {"obs": obs, "obsm": obsm, "uns": uns}.items() if values}
    if data.is_view:
        _check_lengths(data, here, modality_obsm)
        data._init_as_actual(data.copy())
    written: list[tuple[Any, dict[str, Any]]] = []
    try:
        for name, values in (modality_obsm or {}).items():
            before = {key: data.mod[name].obsm.get(key) for key in values}
            write_results(data.mod[name], obsm=values)
            written.append((data.mod[name], before))
        write_results(data, **here)  # the last: it undoes its own part
    except BaseException:
        for modality, before in reversed(written):
            write_results(modality, obsm=before)
        raise


def _check_lengths(data, here, modality_obsm) -> None:
    """Raise before a view is made a real object, so that an error leaves it a view."""
    parts = [(data, {**here.get("obs", {}), **here.get("obsm", {})})]
    parts += [(data.mod[name], values) for name, values in (modality_obsm or {}).items()]
    for part, values in parts:
        for key, value in values.items():
            if value is not None and len(value) != part.n_obs:
                raise ValueError(f"{key!r} must have {part.n_obs} rows, found shape {np.shape(value)}.")


def _split(data: MuData | AnnData) -> dict[str, AnnData]:
    """Modalities by name."""
    if is_mudata(data):
        return _split_mudata(data)
    if not hasattr(data, "obs_names") or not hasattr(data, "layers"):
        raise TypeError(f"expected a MuData, or an AnnData with feature types, found {type(data).__name__}.")
    if FEATURE_TYPES not in data.var:
        raise ValueError(
            f"adata.var has no column {FEATURE_TYPES!r} that tells the modality of each feature; columns: "
            f"{[str(column) for column in data.var.columns]}. Add it, or pass a MuData: "
            "mudata.MuData({'rna': rna, 'atac': atac})."
        )
    require_unique(data.obs_names, "adata.obs_names", "Call adata.obs_names_make_unique() first.")
    codes, names = read_labels(data.var, FEATURE_TYPES, name="adata.var")
    if (codes < 0).any():
        raise ValueError(
            f"adata.var[{FEATURE_TYPES!r}] must name a modality for each feature, it is missing for "
            f"{int((codes < 0).sum())}: {_some(data.var_names[codes < 0])}."
        )
    return {name: data[:, np.flatnonzero(codes == code)] for code, name in enumerate(names)}


def _split_mudata(data: MuData) -> dict[str, AnnData]:
    if data.axis == 1:
        raise ValueError(
            "The modalities of mdata must share their cells: it was made with axis=1, they share features."
        )
    if not data.mod:
        raise ValueError("mdata has no modality.")
    # Those of each modality first: duplicates in one show in the whole too.
    for name, part in data.mod.items():
        if is_mudata(part):
            raise TypeError(f"Modality {name!r} is a MuData itself, expected an AnnData: pass mdata[{name!r}].")
        require_unique(
            part.obs_names,
            f"obs_names of modality {name!r}",
            f"Call mdata[{name!r}].obs_names_make_unique(), then mdata.update().",
        )
        strange = part.obs_names.difference(data.obs_names)
        if len(strange):
            raise ValueError(
                f"{len(strange)} cells of modality {name!r} are not in mdata.obs_names: {_some(strange)}. It was "
                "changed since: call mdata.update()."
            )
    require_unique(data.obs_names, "mdata.obs_names", "Make them unique in each modality, then call mdata.update().")
    return dict(data.mod.items())


def _chosen(parts: Mapping[str, Any], modalities: Sequence[str] | str | None, data) -> list[str]:
    names = list(parts) if modalities is None else [modalities] if isinstance(modalities, str) else list(modalities)
    if not names:
        raise ValueError(f"modalities must name at least one of {list(parts)}, found none.")
    unknown = [name for name in names if name not in parts]
    if unknown:
        raise KeyError(f"{object_name(data)} has no modality {unknown}; it has {list(parts)}.")
    require_unique(pd.Index(names), "modalities", "Name each once.")
    return names


def _by_modality(given: Any, names: list[str], argument: str, default: Any) -> dict[str, Any]:
    """One value for each modality from an argument that is one value for all or a dict."""
    if given is None or isinstance(given, str):
        return dict.fromkeys(names, default if given is None else given)
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a dict by modality, found {type(given).__name__}.")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise KeyError(f"{argument} names {unknown}, which are no modalities; they are {names}.")
    return {name: given.get(name, default) for name in names}


def _check_likelihoods(given: Mapping[str, Any]) -> None:
    if all(value == "auto" for value in given.values()):
        return
    from diffbio_sc.numerics.counts.likelihoods import LIKELIHOODS

    wrong = {name: value for name, value in given.items() if value not in (*LIKELIHOODS, "auto")}
    if wrong:
        raise ValueError(f"likelihoods has unknown names {wrong}; choose from {['auto', *LIKELIHOODS]}.")


def _where(data, name: str, layer: str | None) -> str:
    part = f"mdata[{name!r}]" if is_mudata(data) else f"adata[:, adata.var[{FEATURE_TYPES!r}] == {name!r}]"
    return f"{part}.X" if layer is None else f"{part}.layers[{layer!r}]"


def _read_matrix(part: AnnData, layer: str | None, where: str) -> sp.csr_array:
    """Values as canonical CSR in float32 that shares nothing that is changed; finite."""
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
    if sp.issparse(values):
        matrix = sp.csr_array(values, dtype=np.float32)  # the object's own arrays, where they are of this kind
    else:
        source = as_count_matrix(values)
        pieces = source.map_blocks(_to_csr, source.shape[0] if isinstance(source, InMemory) else BLOCK_ROWS)
        matrix = pieces[0] if len(pieces) == 1 else sp.csr_array(sp.vstack(pieces, format="csr"))
    if not matrix.has_canonical_format or np.count_nonzero(matrix.data) < matrix.nnz:
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    problem = _count_problem(matrix)
    if problem is not None and problem[0] == "missing or infinite":
        raise ValueError(
            f"{where} must hold finite values, found {_first(problem, part)}. Cells without a modality are left out of "
            "it, they need no placeholder."
        )
    return matrix


def _count_problem(matrix: sp.csr_array) -> tuple[str, int, int, float] | None:
    """First value that is no count, looked for in blocks of rows: what the search needs is as long as its input."""
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


def _to_csr(start: int, block: Any) -> sp.csr_array:
    return sp.csr_array(block, dtype=np.float32)


def _layer_names(part: AnnData) -> list[str]:
    return [str(key) for key in part.layers.keys() if key is not None]  # newer anndata lists X as None


def _likelihood(part, name: str, matrix: sp.csr_array, layer: str | None, given: str, where: str) -> str:
    """Likelihood of the modality, after checking that the values are what it is for."""
    if given == "gaussian":
        return given
    problem = _count_problem(matrix)
    if problem is not None:
        fractional = float((matrix.data != np.floor(matrix.data)).mean())
        counts = [f"layers={{{name!r}: {key!r}}}" for key in _other_counts(part, layer)]
        advice = f"Counts are elsewhere: pass {' or '.join(counts)}. " if counts else ""
        if given != "auto" or counts or fractional < _MOSTLY:
            raise ValueError(
                f"{where} must hold raw counts, found {_first(problem, part)}. {advice}Layers: {_layer_names(part)}. "
                f"To model normalised values pass likelihoods={{{name!r}: 'gaussian'}}."
            )
        warnings.warn(
            f"{where} holds no counts but normalised values, found {_first(problem, part)}: modelled as Gaussian. "
            f"Counts tell more: pass layers={{{name!r}: ...}}; layers: {_layer_names(part)}. Say so with "
            f"likelihoods={{{name!r}: 'gaussian'}} if it is meant.",
            UserWarning,
            stacklevel=4,
        )
    if given != "auto":
        if given == "bernoulli" and matrix.nnz and matrix.data.max() > 1:
            logger.info(f"{name}: counts above 1 count as 1, the likelihood is Bernoulli.")
        return given
    choice = choose_likelihood(_summary(part, name, matrix))
    logger.info(f"{name}: {choice.likelihood} likelihood: {choice.reason}.")
    return choice.likelihood


def _other_counts(part: AnnData, layer: str | None) -> list[str]:
    """Layers other than the one read that hold counts."""
    found = []
    for key in _layer_names(part):
        if key != layer and not any(as_count_matrix(part.layers[key]).map_blocks(CountCheck())):
            found.append(key)
    return found


def _summary(part: AnnData, name: str, matrix: sp.csr_array) -> ModalitySummary:
    entries, size = matrix.nnz, matrix.shape[0] * matrix.shape[1]
    values = matrix.data if entries else np.zeros(1, np.float32)
    chunks = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
    kinds = set(part.var[FEATURE_TYPES].dropna().astype(str)) if FEATURE_TYPES in part.var else set()
    return ModalitySummary(
        n_features=matrix.shape[1],
        integer=all(bool((chunk == np.floor(chunk)).all()) for chunk in chunks),
        minimum=float(min(values.min(), 0 if entries < size else np.inf)),
        maximum=float(max(values.max(), 0 if entries < size else -np.inf)),
        zero_share=1 - entries / size,
        large_share=sum(int((chunk > 2).sum()) for chunk in chunks) / len(values),
        name=" ".join([name, *kinds]) if len(kinds) == 1 and kinds != {name} else name,
    )


def _first(problem: tuple[str, int, int, float], part: AnnData) -> str:
    what, row, column, value = problem
    return (
        f"{what} values (first: {value:.6g} at observation {str(part.obs_names[row])!r}, variable "
        f"{str(part.var_names[column])!r})"
    )


def _place(data, parts: Mapping[str, AnnData], matrices, likelihoods) -> tuple[list[sp.csr_array], np.ndarray]:
    """Rows in the order of the object, and which cells have which modality."""
    placed, present = [], np.zeros((data.n_obs, len(parts)), bool)
    for index, (name, part) in enumerate(parts.items()):
        matrix, likelihood = matrices[index], likelihoods[index]
        row = part.obs_names.get_indexer(data.obs_names)
        if not np.array_equal(row, np.arange(matrix.shape[0])):
            # One more row, empty, for the cells without the modality.
            indptr = np.append(matrix.indptr, matrix.indptr[-1])
            shape = (matrix.shape[0] + 1, matrix.shape[1])
            matrix = sp.csr_array((matrix.data, matrix.indices, indptr), shape=shape)[
                np.where(row < 0, shape[0] - 1, row)
            ]
        has = row >= 0
        # A cell of normalised values may be all zero; one of counts was not measured.
        empty = has & (np.diff(matrix.indptr) == 0) if likelihood != "gaussian" else np.zeros_like(has)
        if empty.any():
            warnings.warn(
                f"{int(empty.sum())} cells have no counts in modality {name!r}, it is taken as missing in them: "
                f"{_some(data.obs_names[empty])}.",
                UserWarning,
                stacklevel=4,
            )
        present[:, index] = has & ~empty
        placed.append(matrix)
    nowhere = ~present.any(1)
    if nowhere.any():
        raise ValueError(
            f"{int(nowhere.sum())} cells have none of the modalities {list(parts)}, or no counts in them: "
            f"{_some(data.obs_names[nowhere])}. Leave these cells out of {object_name(data)} first."
        )
    return placed, present


def _to_features(matrix: sp.csr_array, found: pd.Index, wanted: pd.Index, name: str) -> sp.csr_array:
    """Columns of the features that a model knows; zero for those not found."""
    if found.equals(wanted):
        return matrix
    column = wanted.get_indexer(found)
    known = int((column >= 0).sum())
    missing = wanted.difference(found)
    if 2 * known < len(wanted):
        raise ValueError(
            f"Modality {name!r} has {known} of the {len(wanted)} features of the model, at least half are needed. "
            f"Model: {_some(wanted)}; found: {_some(found)}."
        )
    if len(missing):
        warnings.warn(
            f"Modality {name!r} lacks {len(missing)} of the {len(wanted)} features of the model, they are taken as "
            f"zero: {_some(missing)}.",
            UserWarning,
            stacklevel=4,
        )
    if known < len(found):
        logger.info(f"{name}: {len(found) - known} features that the model does not know are not used.")
    kept = column[matrix.indices] >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    result = sp.csr_array(
        (matrix.data[kept], column[matrix.indices[kept]], indptr), shape=(matrix.shape[0], len(wanted))
    )
    result.sort_indices()
    return result


def _joined_column(data: MuData, key: str) -> pd.DataFrame:
    """Column ``key`` of the modalities taken together, over all cells; without it if no modality has it."""
    table = pd.DataFrame(index=data.obs_names)
    having = [name for name, part in data.mod.items() if key in part.obs]
    if not having:
        return table
    joined = pd.Series(np.nan, index=table.index, dtype=object)
    for name in having:
        column = data.mod[name].obs[key].astype(object).reindex(table.index)
        conflict = joined.notna() & column.notna() & (joined.astype(str) != column.astype(str))
        if conflict.any():
            cell = conflict.index[conflict][0]
            raise ValueError(
                f"The modalities {having} disagree in their column {key!r} about {int(conflict.sum())} cells: "
                f"{str(cell)!r} is {joined[cell]!r}, but in {name!r} {column[cell]!r}. Write one column into mdata.obs."
            )
        joined = joined.where(joined.notna(), column)
    logger.info(f"mdata.obs has no column {key!r}: joined from {[f'{name}:{key}' for name in having]}.")
    return table.assign(**{key: joined})


def _some(names: pd.Index) -> str:
    return str([str(name) for name in names[:5]]) + (f" ... ({len(names)})" if len(names) > 5 else "")
