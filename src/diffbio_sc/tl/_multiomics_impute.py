from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from diffbio_sc._anndata import require_unique
from diffbio_sc._anndata.modalities import is_mudata, require_object
from diffbio_sc._anndata.multiomics_model import read_model_input, read_multiomics_model
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_MOST_VALUES = 2 * 10**8


def multiomics_impute(
    mdata: MuData | AnnData,
    *,
    modality: str,
    features: Sequence[str] | None = None,
    fitted: MuData | AnnData | Mapping[str, Any] | None = None,
    batch_key: str | None = None,
    unseen_batch: Literal["error", "average"] = "error",
    layers: str | Mapping[str, str | None] | None = None,
    key: str = "multiomics_vae",
) -> AnnData:
    """Expected values of a modality in every cell, also in cells that lack it.

    Each cell is taken at its posterior mean, from all the modalities that it has
    (:func:`diffbio_sc.tl.multiomics_vae`).

    Parameters
    ----------
    mdata
        Cells.
    modality
        Modality of the model to impute; none of the cells needs to have it.
    features
        Names of its features; default all, if those are not too many values.
    fitted, batch_key, unseen_batch, layers, key
        As in :func:`~diffbio_sc.tl.multiomics_encode`; by default the model that ``mdata`` holds.

    Returns
    -------
    AnnData of cells by features:

    `.X` : float32
        Expected values: counts at the cell's own depth or, where it lacks the modality, at the depth that its embedding
        and its other modalities predict; probabilities for ``"bernoulli"``. Of proteins (at most 1,024) what a
        kernel ridge regression on the embedding by the other modalities tells: typical counts, ``expm1`` of the
        expected log1p count; of a cell that has them, between that and its own counts, each by its variance.
    `.obs["observed"]` : bool
        Whether the cell has the modality. If so, the expected values draw on its own.
    `.obs["log_size"]` : float32
        Log of the depth taken.

    Raises
    ------
    KeyError
        If there is no model, or it has no such modality.
    ValueError
        If all features of all cells are more than 200 million values, or features are unknown; otherwise as
        :func:`~diffbio_sc.tl.multiomics_encode`.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=0)
    >>> dbio.tl.multiomics_impute(mdata, modality="atac").shape
    (400, 500)
    """
    from diffbio_sc.engines import multiomics_cells

    check_options(multiomics_impute, locals())
    require_object(mdata)
    model = read_multiomics_model(mdata if fitted is None else fitted, key=key)
    if modality not in model.modalities:
        raise KeyError(f"The model has no modality {modality!r}; it has {model.modalities}.")
    index = model.modalities.index(modality)
    known = model.features[index]
    columns = _columns(known, features, modality)
    if features is None and len(known) * mdata.n_obs > _MOST_VALUES:
        raise ValueError(
            f"{mdata.n_obs} cells by {len(known)} features of modality {modality!r} are more than {_MOST_VALUES:.0e} "
            "values: name the features wanted, features=[...], or impute a part of the cells."
        )
    cells = read_model_input(mdata, model, layers=layers, batch_key=batch_key, unseen_batch=unseen_batch)
    read = cells.modalities
    values, log_size = multiomics_cells.impute(model.operator, index, read.matrices, read.present, cells.batch, columns)
    observed = read.present[:, index]
    obs = pd.DataFrame({"observed": observed, "log_size": log_size}, index=mdata.obs_names.copy())
    return ad.AnnData(values, obs=obs, var=_feature_table(mdata, modality, known[columns]))


def _columns(known: pd.Index, features: Sequence[str] | None, modality: str) -> np.ndarray:
    if features is None:
        return np.arange(len(known))
    wanted = pd.Index([features] if isinstance(features, str) else list(features))
    if not len(wanted):
        raise ValueError("features must name at least one feature, found none.")
    require_unique(wanted, "features", "Name each feature once.")
    position = known.get_indexer(wanted)
    if (position < 0).any():
        missing = [str(name) for name in wanted[position < 0]]
        raise ValueError(f"{len(missing)} of features are not in modality {modality!r} of the model: {missing[:5]}.")
    return position


def _feature_table(mdata: MuData | AnnData, modality: str, names: pd.Index) -> pd.DataFrame:
    """What the object knows of the features; the names alone if it lacks some."""
    table = (mdata.mod[modality].var if modality in mdata.mod else None) if is_mudata(mdata) else mdata.var
    if table is None or not table.index.is_unique or not names.isin(table.index).all():
        return pd.DataFrame(index=names.astype(str))
    return table.loc[names].copy()
