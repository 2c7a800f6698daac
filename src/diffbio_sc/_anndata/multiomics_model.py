"""A fitted multi-omics VAE in ``.uns``, and the cells that it is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.cell_batches import read_batches
from diffbio_sc._anndata.fitted_models import rebuild_operator, store_operator
from diffbio_sc._anndata.modalities import (
    Modalities,
    object_name,
    read_known_modalities,
    require_object,
)
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE

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
    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE

    if hasattr(fitted, "uns"):
        owner = f"{object_name(fitted)}.uns"
        if key not in fitted.uns:
            raise KeyError(
                f"{owner} has no {key!r}: fit a model with dbio.tl.multiomics_vae, or pass one, fitted=...; keys: "
                f"{[str(name) for name in fitted.uns]}."
            )
        record, where = in_memory(fitted.uns[key]), f"{owner}[{key!r}]['model']"
    elif isinstance(fitted, Mapping):
        record, where = in_memory(fitted), "fitted['model']"
    else:
        require_object(fitted, "fitted")
        raise TypeError(f"fitted must be a MuData, an AnnData or a record of .uns, found {type(fitted).__name__}.")
    if not isinstance(record, Mapping) or "model" not in record:
        raise KeyError(f"{where} is missing: this is no record of dbio.tl.multiomics_vae.")
    stored = record["model"]
    operator = rebuild_operator(stored, DifferentiableMultiOmicsVAE, where=where)
    names = texts(stored["modalities"])
    layers = {name: layer for name, layer in zip(names, texts(stored["layers"]), strict=True) if layer}
    return MultiOmicsModel(
        operator,
        names,
        texts(stored["likelihoods"]),
        [pd.Index(texts(stored["features"][f"modality_{i}"]), dtype=object) for i in range(len(names))],
        texts(stored["batches"]),
        str(stored["batch_key"]) if "batch_key" in stored else None,
        layers,
        record,
    )


def texts(values: Any) -> list[str]:
    """Return an array of text, also after a file, as a list."""
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
    require_object(data)
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
