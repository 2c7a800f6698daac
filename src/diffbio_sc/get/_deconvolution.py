from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def deconvolution(adata: AnnData, *, key: str = "deconvolution") -> pd.DataFrame:
    """Result of :func:`diffbio_sc.tl.deconvolve` as a tidy table.

    Parameters
    ----------
    adata
        Object that was deconvolved.
    key
        The ``key_added`` of the deconvolution.

    Returns
    -------
    One row for each spot and cell type: ``spot``, ``cell_type`` (original name), ``proportion``, ``std``,
    ``abundance``.

    Raises
    ------
    KeyError
        If there is no such result.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    >>> dbio.get.deconvolution(spots).columns.tolist()
    ['spot', 'cell_type', 'proportion', 'std', 'abundance']
    """
    check_options(deconvolution, locals())
    require_anndata(adata)
    if key not in adata.obsm or key not in adata.uns:
        raise KeyError(f"adata has no deconvolution {key!r}: run diffbio_sc.tl.deconvolve; obsm: {list(adata.obsm)}.")
    types = [str(name) for name in in_memory(adata.uns[key])["cell_types"]]
    spots, n_types = adata.obsm[key].shape
    return pd.DataFrame(
        {
            "spot": np.repeat(adata.obs_names.to_numpy(), n_types),
            "cell_type": pd.Categorical(np.tile(types, spots), categories=types),
            "proportion": in_memory(adata.obsm[key]).to_numpy().ravel(),
            "std": in_memory(adata.obsm[f"{key}_std"]).to_numpy().ravel(),
            "abundance": in_memory(adata.obsm[f"{key}_abundance"]).to_numpy().ravel(),
        }
    )
