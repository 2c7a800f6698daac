"""What ``dbio.tl.multiomics_vae`` writes into an object, and how it is read from there again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._anndata.modalities import is_mudata, object_name, require_object
from diffbio_sc._anndata.modality_results import write_modality_results
from diffbio_sc._anndata.multiomics_model import texts
from diffbio_sc._anndata.results import check_key, storable, storable_names
from diffbio_sc._anndata.tables import in_memory

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from diffbio_sc.operators.multiomics.multiomics_vae import Encoding


def record_key(key_added: str) -> str:
    """Key in ``.uns`` and prefix of columns that go with a key of ``.obsm``."""
    return key_added.removeprefix("X_")


def check_embedding_key(data: MuData | AnnData, key_added: str) -> None:
    """Raise ValueError or TypeError if results cannot be stored under the key."""
    check_key(key_added)
    if not record_key(key_added):
        raise ValueError(f"key_added must be a name, with or without 'X_' before it, found {key_added!r}.")
    if is_mudata(data) and key_added in data.mod:
        # mudata keeps in .obsm, by the name of a modality, which cells have it.
        raise ValueError(f"key_added must not be the name of a modality, found {key_added!r}.")


def write_embedding(
    data: MuData | AnnData,
    names: list[str],
    encoding: Encoding,
    record: Mapping[str, Any],
    *,
    key_added: str,
) -> None:
    """Write the posterior of all cells in the embedding, jointly and from each modality alone, and the record."""
    prefix = record_key(key_added)
    stored = storable_names(names)
    obs, obsm, modality_obsm = _earlier_modalities(data, prefix, key_added)
    obsm |= {key_added: encoding.mean, f"{key_added}_var": encoding.variance}
    for index, (name, label) in enumerate(zip(names, stored, strict=True)):
        alone = np.asarray(encoding.modality_mean[index], np.float32)
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
    record = in_memory(data.uns.get(prefix))
    params = record.get("params", {}) if isinstance(record, Mapping) else {}
    names = texts(params["modalities"]) if "modalities" in params else []
    labels = [name.replace("/", "|") for name in names]
    obs = {f"{prefix}_weight_{label}": None for label in labels}
    if not is_mudata(data):
        return obs, {f"{key_added}_{label}": None for label in labels}, {}
    return obs, {}, {name: {key_added: None} for name in names if name in data.mod}


def read_record(data: MuData | AnnData, key: str) -> Mapping[str, Any]:
    """Return what a fit left in ``.uns``.

    Raises
    ------
    KeyError
        If there is none under the key.
    TypeError
        If it is no object.
    """
    require_object(data)
    record = in_memory(data.uns.get(key))
    if record is None or "modalities" not in record.get("params", {}):
        raise KeyError(
            f"{object_name(data)}.uns has no result {key!r}: run diffbio_sc.tl.multiomics_vae first, or pass its "
            f"key_added as key=...; keys: {[str(name) for name in data.uns]}."
        )
    return record


def read_embedding(data: MuData | AnnData, key: str) -> np.ndarray:
    """Return the joint embedding, cells by latent dimensions."""
    name = str(read_record(data, key)["params"].get("key_added", f"X_{key}"))
    if name not in data.obsm:
        raise KeyError(
            f"{object_name(data)}.obsm has no {name!r}: run diffbio_sc.tl.multiomics_vae again; keys: "
            f"{[str(k) for k in data.obsm]}."
        )
    return np.asarray(data.obsm[name], dtype=np.float32)


def weight_columns(data: MuData | AnnData, key: str) -> dict[str, str]:
    """Return the column of ``.obs`` with the weight of each modality, by its name and in the order of the fit."""
    names = texts(read_record(data, key)["params"]["modalities"])
    stored = storable_names(names, warn=False)  # the fit has warned of a name that had to be changed
    return {name: f"{key}_weight_{label}" for name, label in zip(names, stored, strict=True)}
