from __future__ import annotations

import os

from diffbio_sc._anndata.contextual_model import ContextualModel
from diffbio_sc._anndata.contextual_model import read_contextual_model as _read
from diffbio_sc._options import check_options


def read_contextual_model(path: str | os.PathLike[str]) -> ContextualModel:
    """Read a model that :func:`diffbio_sc.io.write_contextual_model` wrote.

    Parameters
    ----------
    path
        File.

    Returns
    -------
    The model with what its arrays mean: ``cell_types``, ``width``, ``mode``, ``kind`` and ``context`` (expression of
    its ``factors``). :func:`diffbio_sc.tl.contextual_predict` and :func:`diffbio_sc.tl.attributions` take it, or the
    path itself, as ``model``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such file, damaged, or of a newer version.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.io.write_contextual_model(adata, "cells.npz")
    >>> model = dbio.io.read_contextual_model("cells.npz")
    >>> model.cell_types[:2], model.width
    (['cell1', 'cell2'], 100)
    """
    check_options(read_contextual_model, locals())
    return _read(path)
