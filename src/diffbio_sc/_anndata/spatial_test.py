"""What a test of spatial genes left in an object, for the functions that go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._anndata.results import prefix_of
from diffbio_sc._anndata.tables import read_covariates

if TYPE_CHECKING:
    from anndata import AnnData


def result_column(key: str, name: str) -> str:
    """Column of ``adata.var`` in which :func:`diffbio_sc.tl.spatial_genes` writes ``name`` for ``key_added=key``."""
    return prefix_of(key, "spatial_genes") + name


def covariates_given(covariates: Any) -> Any:
    """Return how a record names covariates: their key or columns, or ``"given"`` for a table."""
    if covariates is None or isinstance(covariates, str):
        return covariates
    return list(map(str, covariates)) if isinstance(covariates, list | tuple) else "given"


def read_test_covariates(adata: AnnData, tested: Mapping[str, Any], covariates: Any) -> np.ndarray | None:
    """Covariates (spots, columns), by default those of the test with the parameters ``tested``; NaN where missing."""
    covariates = covariates_of_test(tested, covariates)
    if covariates is None:
        return None
    return read_covariates(adata, covariates)


def covariates_of_test(tested: Mapping[str, Any], covariates: Any) -> Any:
    """Return the covariates given, else those that the test's record names."""
    if covariates is not None:
        return covariates
    stored = tested.get("covariates")
    if isinstance(stored, str) and stored == "given":
        raise ValueError("The test was given a table of covariates, which is not stored: pass it as covariates=...")
    return [str(name) for name in stored] if isinstance(stored, np.ndarray) else stored
