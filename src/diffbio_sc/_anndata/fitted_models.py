"""Fitted operators in ``.uns``: stored in types that h5ad and zarr hold, and built again from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from diffbio_sc._anndata.modalities import (
    Modalities,
    is_mudata,
    object_name,
    read_batches,
    read_known_modalities,
    write_modality_results,
)
from diffbio_sc._anndata.results import storable, storable_names
from diffbio_sc._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc.operators.contract import Operator
    from diffbio_sc.operators.multiomics.multiomics_vae import DifferentiableMultiOmicsVAE, Encoding

OperatorType = TypeVar("OperatorType", bound="Operator")
Result = TypeVar("Result", bound=Mapping[str, np.ndarray])

STORED_FORMAT = 1
UNSEEN_BATCH = ("error", "average")


class MultiOmicsModel(NamedTuple):
    """A fitted multi-omics VAE, and what the arrays that it takes mean.

    Attributes
    ----------
    operator
        The operator.
    modalities, likelihoods
        Names.
    features
        Names of the features of each modality.
    batches
        Names of the batches, empty if it was fitted without.
    batch_key
        Column with the batches, where the model was fitted.
    layers
        Layers with the values, where the model was fitted.
    record
        The entry of ``.uns`` that it was read from.
    """

    operator: DifferentiableMultiOmicsVAE
    modalities: list[str]
    likelihoods: list[str]
    features: list[pd.Index]
    batches: list[str]
    batch_key: str | None
    layers: dict[str, str]
    record: Mapping[str, Any]


def store_operator(operator: Operator) -> dict[str, Any]:
    """Return configuration and variables of an operator as text and arrays."""
    import jax
    import jax.numpy as jnp

    from diffbio_sc.training import storage

    arrays, layout = {}, {}
    for path, value in storage.variables(operator).items():
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            dtype, host = f"key:{jax.random.key_impl(value)}", np.asarray(jax.random.key_data(value))
        else:
            host = np.asarray(value)
            dtype = str(host.dtype)
            # Types that numpy's own formats do not know, bfloat16 and its like, are stored by their bits.
            host = host.view(f"u{host.dtype.itemsize}") if host.dtype.kind == "V" else host
        layout[path] = {"dtype": dtype, "shape": host.shape}
        # A file gives an array without axes back as a number of Python, with another type.
        arrays[_stored_path(path)] = np.atleast_1d(host)
    identity = operator.identity()
    return {
        "format": STORED_FORMAT,
        "operator": identity["operator"],
        "version": identity["version"],
        "config": json.dumps(identity["config"]),
        "layout": json.dumps(layout),
        "arrays": arrays,
    }


def rebuild_operator(stored: Mapping[str, Any], operator_class: type[OperatorType], *, where: str) -> OperatorType:
    """Build an operator from what :func:`store_operator` returned, also after a file.

    Raises
    ------
    ValueError
        If it is another operator, of a format that this version does not know, or incomplete.
    """
    from flax import nnx

    from diffbio_sc.training import storage

    missing = sorted({"format", "operator", "version", "config", "layout", "arrays"} - set(stored))
    if missing:
        raise ValueError(f"{where} is no stored operator: it lacks {missing}; keys: {sorted(map(str, stored))}.")
    if str(stored["operator"]) != operator_class.__name__:
        raise ValueError(f"{where} holds a {stored['operator']}, not a {operator_class.__name__}.")
    if not 1 <= int(stored["format"]) <= STORED_FORMAT:
        raise ValueError(
            f"{where} has format {int(stored['format'])} (written by diffbio_sc {stored['version']}), this version "
            f"reads up to format {STORED_FORMAT}: update diffbio_sc, or fit the model again."
        )
    try:
        config = operator_class.config_class.from_dict(json.loads(str(stored["config"])))
    except ValueError as error:
        raise ValueError(f"{where}, written by diffbio_sc {stored['version']}: {error}") from error
    arrays = {}
    for path, entry in json.loads(str(stored["layout"])).items():
        if _stored_path(path) not in stored["arrays"]:
            raise ValueError(f"{where} is incomplete: array {path!r} is missing.")
        host = np.asarray(stored["arrays"][_stored_path(path)]).reshape(entry["shape"])
        arrays[path] = storage._to_device(host, entry["dtype"], f"{where}: array {path!r}")
    operator = operator_class(config, rngs=nnx.Rngs(0))
    nnx.update(operator, storage.restore(nnx.state(operator), arrays, where=where))
    return operator


def _stored_path(path: str) -> str:
    """Path of a variable as one key: a slash would begin a group in the file."""
    return path.replace("/", "|")


def store_multiomics_model(
    operator: DifferentiableMultiOmicsVAE,
    data: Modalities,
    *,
    batches: list[str],
    batch_key: str | None,
    layers: Mapping[str, str],
) -> dict[str, Any]:
    """Return a fitted model as an entry of its record."""
    return {
        **store_operator(operator),
        "modalities": np.array(data.names, dtype=str),
        "likelihoods": np.array(data.likelihoods, dtype=str),
        # By number: names may hold what a file cannot have in a key.
        "features": {f"modality_{i}": np.array(names, dtype=str) for i, names in enumerate(data.features)},
        "batches": np.array(batches, dtype=str),
        **({} if batch_key is None else {"batch_key": batch_key}),
        "layers": np.array([layers.get(name, "") for name in data.names], dtype=str),
    }


def read_multiomics_model(
    fitted: MuData | AnnData | Mapping[str, Any], *, key: str = "multiomics_vae"
) -> MultiOmicsModel:
    """Build the model that an object or a record of ``.uns`` holds.

    Raises
    ------
    KeyError
        If there is none.
    TypeError
        If ``fitted`` is of another kind.
    ValueError
        If it is damaged or of another version.
    """
    from diffbio_sc.operators.multiomics.multiomics_vae import DifferentiableMultiOmicsVAE

    if hasattr(fitted, "uns"):
        owner = f"{object_name(fitted)}.uns"
        if key not in fitted.uns:
            raise KeyError(
                f"{owner} has no {key!r}: fit a model with dbio.tl.multiomics_vae, or pass one, fitted=...; keys: "
                f"{[str(name) for name in fitted.uns]}."
            )
        record, where = fitted.uns[key], f"{owner}[{key!r}]['model']"
    elif isinstance(fitted, Mapping):
        record, where = fitted, "fitted['model']"
    else:
        raise TypeError(f"fitted must be a MuData, an AnnData or a record of .uns, found {type(fitted).__name__}.")
    if not isinstance(record, Mapping) or "model" not in record:
        raise KeyError(f"{where} is missing: this is no record of dbio.tl.multiomics_vae.")
    stored = record["model"]
    operator = rebuild_operator(stored, DifferentiableMultiOmicsVAE, where=where)
    names = _texts(stored["modalities"])
    layers = {name: layer for name, layer in zip(names, _texts(stored["layers"]), strict=True) if layer}
    return MultiOmicsModel(
        operator,
        names,
        _texts(stored["likelihoods"]),
        [pd.Index(_texts(stored["features"][f"modality_{i}"]), dtype=object) for i in range(len(names))],
        _texts(stored["batches"]),
        str(stored["batch_key"]) if "batch_key" in stored else None,
        layers,
        record,
    )


def _texts(values: Any) -> list[str]:
    return [str(value) for value in np.atleast_1d(values)]


class ModelInput(NamedTuple):
    """Cells as a fitted model takes them; batch -1 is one that the model does not know."""

    modalities: Modalities
    batch: np.ndarray


def read_model_input(
    data: MuData | AnnData,
    model: MultiOmicsModel,
    *,
    layers: str | Mapping[str, str | None] | None,
    batch_key: str | None,
    unseen_batch: str,
) -> ModelInput:
    """Take what a model needs out of an object.

    Raises
    ------
    KeyError, ValueError
        If modalities, features, layers or batches do not fit; the message says which.
    """
    if unseen_batch not in UNSEEN_BATCH:
        raise ValueError(f"unseen_batch must be one of {list(UNSEEN_BATCH)}, found {unseen_batch!r}.")
    read = read_known_modalities(
        data,
        names=model.modalities,
        features=model.features,
        likelihoods=model.likelihoods,
        layers=model.layers if layers is None else layers,
    )
    return ModelInput(read, _read_known_batches(data, model, batch_key, unseen_batch))


def _read_known_batches(data, model: MultiOmicsModel, batch_key: str | None, unseen_batch: str) -> np.ndarray:
    if not model.batches:
        if batch_key is not None:
            raise ValueError("The model was fitted without batches: leave batch_key out, or fit it with batch_key.")
        return np.zeros(data.n_obs, np.int32)
    key = batch_key or model.batch_key
    try:
        codes, names = read_batches(data, str(key))
    except KeyError as error:
        if unseen_batch == "average" and batch_key is None:
            logger.info(f"{object_name(data)} has no column {key!r}: cells are taken as of an average batch.")
            return np.full(data.n_obs, -1, np.int32)
        raise KeyError(
            f"{error.args[0]} The model knows the batches {model.batches}: name their column with batch_key=..., or "
            "pass unseen_batch='average'."
        ) from error
    position = np.array([model.batches.index(name) if name in model.batches else -1 for name in names], np.int32)
    unseen = [name for name, place in zip(names, position, strict=True) if place < 0]
    if unseen and unseen_batch == "error":
        raise ValueError(
            f"{object_name(data)}.obs[{key!r}] has batches that the model does not know: {unseen[:5]}; it knows "
            f"{model.batches}. Pass unseen_batch='average' to take these cells as of the average of its batches."
        )
    if unseen:
        logger.info(f"Batches that the model does not know are taken as the average of its batches: {unseen}.")
    return position[codes]


def over_batches(function: Callable[[np.ndarray], Result], batch: np.ndarray, n_batches: int, cell_axis) -> Result:
    """Results for the batch of each cell; of cells of an unknown batch (-1) the mean over all batches.

    ``function`` maps codes of batches to arrays by name, ``cell_axis`` a name to the axis of the cells.
    """
    unknown = batch < 0
    if not unknown.any():
        return function(batch)
    results = [function(np.where(unknown, code, batch)) for code in range(n_batches)]
    combined: dict[str, np.ndarray] = {}
    for name, first in results[0].items():
        shape = [1] * first.ndim
        shape[cell_axis(name)] = -1
        mean = np.mean([result[name] for result in results], axis=0, dtype=np.float64).astype(first.dtype)
        combined[name] = np.where(unknown.reshape(shape), mean, first)
    return combined  # type: ignore[return-value]


def encode(model: MultiOmicsModel, cells: ModelInput) -> Encoding:
    """Posterior of each cell."""
    from diffbio_sc.operators.multiomics.multiomics_vae import Encoding

    read = cells.modalities

    def of(batch: np.ndarray) -> dict[str, np.ndarray]:
        return model.operator.encode(read.matrices, present=read.present, batch=batch)._asdict()

    axis = {"modality_mean": 1, "modality_variance": 1}
    parts = over_batches(of, cells.batch, max(len(model.batches), 1), lambda name: axis.get(name, 0))
    return Encoding(**parts)


def log_sizes(read: Modalities) -> np.ndarray:
    """Log of the total of each cell in each modality (0 for Gaussian ones), NaN where it lacks the modality."""
    columns = []
    for matrix, likelihood in zip(read.matrices, read.likelihoods, strict=True):
        total = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
        columns.append(np.zeros(len(total)) if likelihood == "gaussian" else np.log(total))
    return np.where(read.present, np.stack(columns, axis=1), np.nan).astype(np.float32)


def record_key(key_added: str) -> str:
    """Key in ``.uns`` and prefix of columns that go with a key of ``.obsm``."""
    return key_added.removeprefix("X_")


def check_key(data: MuData | AnnData, key_added: str) -> None:
    """Raise ValueError if results cannot be stored under the key."""
    if not isinstance(key_added, str) or not record_key(key_added) or "/" in key_added:
        raise ValueError(f"key_added must be a name without '/', found {key_added!r}.")
    if is_mudata(data) and key_added in data.mod:
        # mudata keeps in .obsm, by the name of a modality, which cells have it.
        raise ValueError(f"key_added must not be the name of a modality, found {key_added!r}.")


def write_embedding(
    data: MuData | AnnData,
    names: list[str],
    encoding: Encoding,
    record: Mapping[str, Any],
    *,
    lengths: np.ndarray,
    key_added: str,
) -> None:
    """Write the posterior of all cells, jointly and from each modality alone, and the record.

    Axes are stretched by ``lengths``, the operator's ``axis_lengths``.
    """
    prefix = record_key(key_added)
    stored = storable_names(names)
    obs, obsm, modality_obsm = _earlier_modalities(data, prefix, key_added)
    obsm |= {key_added: encoding.mean * lengths, f"{key_added}_var": encoding.variance * lengths**2}
    for index, (name, label) in enumerate(zip(names, stored, strict=True)):
        alone = np.asarray(encoding.modality_mean[index] * lengths, np.float32)
        if not is_mudata(data):
            obsm[f"{key_added}_{label}"] = alone
        elif name in data.mod:
            own = data.obs_names.get_indexer(data.mod[name].obs_names)
            modality_obsm[name] = {key_added: alone[own]}
    shares = np.asarray(encoding.shares, np.float32)
    obs |= {f"{prefix}_weight_{label}": shares[:, index] for index, label in enumerate(stored)}
    write_modality_results(
        data,
        obs=obs,
        obsm={key: value if value is None else np.asarray(value, np.float32) for key, value in obsm.items()},
        uns={prefix: storable(record)},
        modality_obsm=modality_obsm,
    )


def _earlier_modalities(data, prefix: str, key_added: str) -> tuple[dict, dict, dict]:
    """Fields of an earlier result under the same key, to be removed unless they are written anew."""
    record = data.uns.get(prefix)
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    names = _texts(params["modalities"]) if "modalities" in params else []
    labels = [name.replace("/", "|") for name in names]
    obs = {f"{prefix}_weight_{label}": None for label in labels}
    if not is_mudata(data):
        return obs, {f"{key_added}_{label}": None for label in labels}, {}
    return obs, {}, {name: {key_added: None} for name in names if name in data.mod}
