from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.modalities import require_object
from diffbio_sc._anndata.multiomics_model import read_model_input, read_multiomics_model
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def multiomics_score(
    mdata: MuData | AnnData,
    *,
    fitted: MuData | AnnData | Mapping[str, Any] | None = None,
    batch_key: str | None = None,
    unseen_batch: Literal["error", "average"] = "error",
    layers: str | Mapping[str, str | None] | None = None,
    key: str = "multiomics_vae",
) -> pd.DataFrame:
    """Say how well a fitted model explains each cell, modality by modality.

    The model is that of :func:`diffbio_sc.tl.multiomics_vae`.

    Parameters
    ----------
    mdata
        Cells.
    fitted, batch_key, unseen_batch, layers, key
        As in :func:`~diffbio_sc.tl.multiomics_encode`; by default the model that ``mdata`` holds.

    Returns
    -------
    Table indexed by the cells, in nats: ``log_likelihood_<modality>`` at the posterior mean, missing where the cell
    lacks the modality, and ``kl``, the divergence of the posterior from the prior.

    Raises
    ------
    KeyError, ValueError
        As :func:`~diffbio_sc.tl.multiomics_encode`.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=0)
    >>> len(dbio.tl.multiomics_score(mdata)["log_likelihood_rna"].nsmallest(10))
    10
    """
    from diffbio_sc.engines import multiomics_cells

    check_options(multiomics_score, locals())
    require_object(mdata)
    model = read_multiomics_model(mdata if fitted is None else fitted, key=key)
    cells = read_model_input(mdata, model, layers=layers, batch_key=batch_key, unseen_batch=unseen_batch)
    read = cells.modalities
    parts = multiomics_cells.score(model.operator, read.matrices, read.present, cells.batch)
    columns = {f"log_likelihood_{name}": parts[f"log_likelihood_{i}"] for i, name in enumerate(model.modalities)}
    table = pd.DataFrame({**columns, "kl": parts["kl"]}, index=mdata.obs_names.copy())
    return table.astype(np.float64)
