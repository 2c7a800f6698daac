from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diffbio_sc._anndata.contextual_model import (
    DEFAULT_KEY,
    ContextualModel,
    read_contextual_model,
    write_contextual_file,
)
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def write_contextual_model(
    model: AnnData | ContextualModel, path: str | os.PathLike[str], *, key: str = DEFAULT_KEY
) -> None:
    """Write a contextual sequence model into a file of its own, without the data: npz, without pickle.

    Parameters
    ----------
    model
        An AnnData that :func:`diffbio_sc.tl.contextual` has written to, or what
        :func:`diffbio_sc.io.read_contextual_model` returned.
    path
        File to write; the old one stays if writing fails.
    key
        Key of the model, of an AnnData.

    Returns
    -------
    None. Writes the file.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    KeyError
        If the AnnData holds no model.
    TypeError
        If ``model`` is of another kind.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.io.write_contextual_model(adata, "cells.npz")
    >>> dbio.tl.contextual_predict(adata, model="cells.npz", key_added="again")
    """
    check_options(write_contextual_model, locals())
    write_contextual_file(read_contextual_model(model, key=key), path)
