from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.multiomics_model import read_multiomics_model
from diffbio_sc._anndata.multiomics_results import read_embedding, read_record, weight_columns
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_FIRST = ("loss", "validation_loss", "kl", "validation_kl")
_STEP = 0.1  # of the latent space, whose prior has standard deviation 1


def multiomics_vae(
    mdata: MuData | AnnData,
    what: Literal["history", "weights", "loadings"] = "history",
    *,
    key: str = "multiomics_vae",
) -> pd.DataFrame:
    """Result of :func:`diffbio_sc.tl.multiomics_vae` as a table.

    Parameters
    ----------
    mdata
        Object that the model was fitted to, or whose cells were mapped by one.
    what
        ``"history"``: the terms of the loss, epoch by epoch. ``"weights"``: what share each modality has in the
        embedding of each cell. ``"loadings"``: how each feature changes along each latent dimension.
    key
        Key of the record in ``mdata.uns``: the ``key_added`` of the fit without a leading ``X_``.

    Returns
    -------
    The history has one row per epoch: ``epoch`` (from 1), ``loss``, ``validation_loss``, ``kl``, ``validation_kl``,
    then ``nll_<modality>`` and ``validation_nll_<modality>``, the negative log-likelihood of each modality, and what
    else training recorded. Columns that it did not record are left out; without training there are no rows.

    The weights have one row per cell, in the order of ``mdata.obs``, and one column per modality: 0 where the cell
    lacks it. What the modalities leave to a sum of 1 is the share of the prior; it is large where a cell tells little.

    The loadings have one row per feature: ``modality``, ``feature``, ``latent_0`` and so on, the slopes of the
    logarithm of the expected count along each dimension at the mean of the cells' embeddings. Those of Bernoulli
    modalities are slopes of the log-odds, those of Gaussian ones slopes of the value itself.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``what`` is unknown.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=5)
    >>> len(dbio.get.multiomics_vae(mdata, "history"))
    5
    >>> by_type = dbio.get.multiomics_vae(mdata, "weights").groupby(mdata.obs["cell_type"], observed=True).mean()
    """
    check_options(multiomics_vae, locals())
    read = {"history": _history, "weights": _weights, "loadings": _loadings}
    if what not in read:
        raise ValueError(f"what must be 'history', 'weights' or 'loadings', found {what!r}.")
    return read[what](mdata, key)


def _history(mdata: MuData | AnnData, key: str) -> pd.DataFrame:
    names = list(weight_columns(mdata, key))
    # A model that was not trained has no curves, and no file keeps an empty dict.
    history = read_record(mdata, key).get("report", {}).get("history", {})
    table = pd.DataFrame({_named(str(curve), names): np.atleast_1d(values) for curve, values in history.items()})
    of_modalities = [f"{kind}nll_{name}" for name in names for kind in ("", "validation_")]
    order = [column for column in (*_FIRST, *of_modalities) if column in table]
    table = table[[*order, *(column for column in table.columns if column not in order)]]
    table.insert(0, "epoch", np.arange(1, len(table) + 1))
    return table


def _named(curve: str, names: list[str]) -> str:
    """Name of the modality in place of its number in the name of a curve."""
    stem, _, number = curve.rpartition("_")
    if stem.endswith("nll") and number.isdecimal() and int(number) < len(names):
        return f"{stem}_{names[int(number)]}"
    return curve


def _weights(mdata: MuData | AnnData, key: str) -> pd.DataFrame:
    columns = weight_columns(mdata, key)
    missing = [column for column in columns.values() if column not in mdata.obs]
    if missing:
        raise KeyError(
            f"mdata.obs has no columns {missing}: run diffbio_sc.tl.multiomics_vae again; columns: "
            f"{[str(column) for column in mdata.obs.columns]}."
        )
    return mdata.obs[list(columns.values())].set_axis(list(columns), axis=1).astype(np.float64)


def _loadings(mdata: MuData | AnnData, key: str) -> pd.DataFrame:
    centre = read_embedding(mdata, key).mean(0, dtype=np.float64)
    model = read_multiomics_model(mdata, key=key)
    lengths = np.asarray(model.operator.axis_lengths[...], np.float64)
    centre = centre / lengths
    tables = []
    for index, (name, features) in enumerate(zip(model.modalities, model.features, strict=True)):
        slopes = _slopes(model.operator, index, model.likelihoods[index], centre) / lengths
        table = pd.DataFrame(slopes, columns=[f"latent_{dimension}" for dimension in range(len(centre))])
        table.insert(0, "feature", features)
        table.insert(0, "modality", name)
        tables.append(table)
    result = pd.concat(tables, ignore_index=True)
    result["modality"] = pd.Categorical(result["modality"], categories=model.modalities)
    return result


def _slopes(operator: Any, modality: int, likelihood: str, centre: np.ndarray) -> np.ndarray:
    """Features by dimensions, by central differences; the mean over the batches."""
    steps = _STEP * np.eye(len(centre))
    points = np.concatenate([centre - steps, centre + steps])
    total = np.zeros((operator.config.modality_dims[modality], len(centre)))
    for batch in range(operator.config.n_batches):
        values = operator.expected(modality, points, batch=np.full(len(points), batch)).astype(np.float64)
        if likelihood != "gaussian":
            values = np.maximum(values, np.finfo(np.float32).tiny)
            values = np.log(values) - (np.log1p(-values) if likelihood == "bernoulli" else 0.0)
        low, high = np.split(values, 2)
        total += ((high - low) / (2 * _STEP)).T
    return total / operator.config.n_batches
