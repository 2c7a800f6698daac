"""Modalities of a MuData, or of an AnnData with feature types, as sparse matrices over the same cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.modality_values import FEATURE_TYPES, as_read, choose_or_check, read_values, to_features
from diffbio_sc._anndata.name_lists import difference_of_names
from diffbio_sc._anndata.names import require_unique
from diffbio_sc._anndata.stored_modality import StoredModality, is_stored, store_values
from diffbio_sc._anndata.tables import read_labels
from diffbio_sc._checks import found_object, name_heads
from diffbio_sc._logging import logger
from diffbio_sc.blocks.matrix import as_count_matrix
from diffbio_sc.blocks.row_store import RowStore, entries_of_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_FEWEST_CELLS = 10
_FEWEST_FEATURES = 2
_FEW_LINKS = 0.05  # cells with two modalities, as a share of the rarest one, below which a warning says so


class Modalities(NamedTuple):
    """Modalities of the same cells, in the order of the object.

    Attributes
    ----------
    names
        Modalities: those of a MuData, or the feature types of an AnnData.
    matrices
        Float32 values (cells, features) of each, CSR, or dense where they are Gaussian and mostly other than 0; rows of
        cells without the modality are 0. Those that were lazy or in a file are in temporary files
        (:class:`~diffbio_sc.blocks.row_store.RowStore`), and rows of them are read as they are needed.
    present
        Which cells have which modality (cells, modalities).
    features
        Names of the features of each.
    likelihoods
        Name of the likelihood of each.
    """

    names: list[str]
    matrices: list[Any]
    present: np.ndarray
    features: list[pd.Index]
    likelihoods: list[str]


def is_mudata(data: Any) -> bool:
    """Whether it is a MuData (or looks like one), not an AnnData."""
    return hasattr(data, "mod") and hasattr(data, "obsmap")  # a DataFrame has a method mod


def object_name(data: Any) -> str:
    """What messages call the object."""
    return "mdata" if is_mudata(data) else "adata"


def require_object(data: Any, argument: str = "mdata") -> None:
    """Raise TypeError unless it is a MuData or an AnnData."""
    if is_mudata(data) or (hasattr(data, "obs_names") and hasattr(data, "layers")):
        return
    raise TypeError(f"{argument} must be a MuData or an AnnData, {found_object(data)}.")


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
        modality, no cell has two modalities (also by way of a third), or values are no counts where the likelihood asks
        for them.
    """
    parts = _split(data)
    names = _chosen(parts, modalities, data)
    given = _by_modality(likelihoods, names, "likelihoods", "auto")
    layer_of = _by_modality(layers, names, "layers", None)
    _check_likelihoods(given)
    owner = object_name(data)
    columns, matrices, likelihood = [], [], []
    together = _Together(data, layer_of)
    for name in names:
        part = parts[name]
        where = _where(data, name, layer_of[name])
        require_unique(part.var_names, f"var_names of modality {name!r}", "Call .var_names_make_unique() of it first.")
        if part.n_vars < _FEWEST_FEATURES:
            raise ValueError(
                f"Modality {name!r} has {part.n_vars} features, at least {_FEWEST_FEATURES} are needed. Leave it out: "
                f"modalities={[other for other in names if other != name]}."
            )
        matrix = read_values(part, layer_of[name], where, stored=together.get(name))
        likelihood.append(choose_or_check(part, name, matrix, layer_of[name], given[name], where))
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
    _require_links(data, names, present)
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
    together = _Together(data, {name: layer_of[name] for name in found})
    for name, wanted, likelihood in zip(names, features, likelihoods, strict=True):
        if name not in parts:
            continue
        part, where = parts[name], _where(data, name, layer_of[name])
        require_unique(part.var_names, f"var_names of modality {name!r}", "Call .var_names_make_unique() of it first.")
        matrix = read_values(part, layer_of[name], where, stored=together.get(name))
        choose_or_check(part, name, matrix, layer_of[name], likelihood, where, fitted=True)
        matrices.append(to_features(matrix, pd.Index(part.var_names), wanted, name))
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


class _Together:
    """Modalities of an AnnData whose matrix is lazy or in a file, which is read once for all of them."""

    def __init__(self, data: MuData | AnnData, layer_of: Mapping[str, str | None]):
        self.data, self.layer_of = data, layer_of
        self._found: dict[str, StoredModality] = {}

    def get(self, name: str) -> StoredModality | None:
        """Values of a modality; None if they are in memory, or an object of their own."""
        if is_mudata(self.data) or name in self._found:
            return self._found.get(name)
        layer = self.layer_of[name]
        if layer is not None and layer not in self.data.layers:
            return None
        values = self.data.X if layer is None else self.data.layers[layer]
        if not is_stored(values) or np.dtype(values.dtype).kind not in "biuf" or 0 in values.shape:
            return None
        codes, types = read_labels(self.data.var, FEATURE_TYPES, name="adata.var")
        names = [one for one, key in self.layer_of.items() if key == layer]
        stored = store_values(as_count_matrix(values), [np.flatnonzero(codes == types.index(one)) for one in names])
        self._found |= dict(zip(names, stored, strict=True))
        return self._found[name]


def _split(data: MuData | AnnData) -> dict[str, AnnData]:
    """Modalities by name."""
    if is_mudata(data):
        return _split_mudata(data)
    require_object(data)
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
            f"{int((codes < 0).sum())}: {name_heads(data.var_names[codes < 0])}."
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
                f"{len(strange)} cells of modality {name!r} are not in mdata.obs_names: {name_heads(strange)}. It was "
                "changed since: call mdata.update()."
            )
    require_unique(data.obs_names, "mdata.obs_names", "Make them unique in each modality, then call mdata.update().")
    return dict(data.mod.items())


def _require_links(data: MuData | AnnData, names: list[str], present: np.ndarray) -> None:
    """Raise, or warn, where too few cells have several modalities to say how these go together."""
    shared = present.T.astype(np.int64) @ present
    reached, new = {0}, {0}
    while new:
        new = {int(other) for one in new for other in np.flatnonzero(shared[one])} - reached
        reached |= new
    apart = [m for m in range(len(names)) if m not in reached]
    if apart:
        left, right = names[0], names[apart[0]]
        examples = [data.obs_names[present[:, m]] for m in (0, apart[0])]
        raise ValueError(
            f"No cell has both {left!r} and {right!r} (nor does a third modality link them), so that nothing says how "
            f"they go together. Cells of {left!r}: {name_heads(examples[0])}; of {right!r}: {name_heads(examples[1])}."
            f"{difference_of_names(*examples, left_name=repr(left), right_name=repr(right))} Embed each alone with "
            f"modalities=[{left!r}] if they were measured in different cells."
        )
    linking, fewest = int((present.sum(1) > 1).sum()), int(present.sum(0).min())
    if len(names) > 1 and linking < _FEW_LINKS * fewest:
        warnings.warn(
            f"Only {linking} of {len(present)} cells have more than one modality: how {names} go together is known "
            "from them alone. Check that the names of the cells match, such as their suffix '-1'.",
            UserWarning,
            stacklevel=4,
        )


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


def _place(data, parts: Mapping[str, AnnData], matrices, likelihoods) -> tuple[list[Any], np.ndarray]:
    """Rows in the order of the object, and which cells have which modality."""
    placed, present = [], np.zeros((data.n_obs, len(parts)), bool)
    for index, (name, part) in enumerate(parts.items()):
        likelihood = likelihoods[index]
        matrix = as_read(matrices[index], likelihood)
        row = part.obs_names.get_indexer(data.obs_names)
        if isinstance(matrix, RowStore):
            matrix = matrix if np.array_equal(row, np.arange(matrix.shape[0])) else matrix.placed(row)
        elif not np.array_equal(row, np.arange(matrix.shape[0])) and not sp.issparse(matrix):
            dense = np.zeros((len(row), matrix.shape[1]), np.float32)
            dense[row >= 0] = matrix[row[row >= 0]]
            matrix = dense
        elif not np.array_equal(row, np.arange(matrix.shape[0])):
            # One more row, empty, for the cells without the modality.
            indptr = np.append(matrix.indptr, matrix.indptr[-1])
            shape = (matrix.shape[0] + 1, matrix.shape[1])
            matrix = sp.csr_array((matrix.data, matrix.indices, indptr), shape=shape)[
                np.where(row < 0, shape[0] - 1, row)
            ]
        has = row >= 0
        # A cell of normalised values may be all zero; one of counts was not measured.
        empty = np.zeros_like(has) if likelihood == "gaussian" else has & (entries_of_rows(matrix) == 0)
        if empty.any():
            warnings.warn(
                f"{int(empty.sum())} cells have no counts in modality {name!r}, it is taken as missing in them: "
                f"{name_heads(data.obs_names[empty])}.",
                UserWarning,
                stacklevel=4,
            )
        present[:, index] = has & ~empty
        placed.append(matrix)
    nowhere = ~present.any(1)
    if nowhere.any():
        raise ValueError(
            f"{int(nowhere.sum())} cells have none of the modalities {list(parts)}, or no counts in them: "
            f"{name_heads(data.obs_names[nowhere])}. Leave these cells out of {object_name(data)} first."
        )
    return placed, present
