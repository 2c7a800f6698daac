"""Making an AnnData of a contact map out of bins and pixels."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from diffbio_sc.genome.contact_map import ContactMap

if TYPE_CHECKING:
    from anndata import AnnData

LARGEST_SYMMETRIC = 50_000_000
"""Pixels above which one triangle is stored alone: both would take twice the memory."""


def bins_table(chrom: pd.Categorical, start: np.ndarray, end: np.ndarray) -> pd.DataFrame:
    """Table of bins, named as ``chr1:0-10000``."""
    names = [f"{name}:{first}-{last}" for name, first, last in zip(chrom, start, end, strict=True)]
    return pd.DataFrame(
        {"chrom": chrom, "start": np.asarray(start, np.int64), "end": np.asarray(end, np.int64)},
        index=pd.Index(names, dtype=object),
    )


def symmetric(upper: sp.csr_array) -> sp.csr_array:
    """Both triangles of a map that holds the upper one."""
    return sp.csr_array(upper + sp.triu(upper, 1, format="csr").T)


def counts_or_values(values: np.ndarray, name: str) -> np.ndarray:
    """Counts as whole numbers in the smallest of int32 and int64 that holds them; other values stay, with a warning."""
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            raise ValueError(f"{name} holds {int((~finite).sum())} NaN or infinite values: contacts must be counts.")
        if (values != np.floor(values)).any():
            warnings.warn(
                f"{name} holds fractional values, such as balanced contacts: counts are needed for most functions.",
                UserWarning,
                stacklevel=4,
            )
            return values.astype(np.float64)
    if len(values) and values.min() < 0:
        raise ValueError(f"{name} holds negative values, the smallest {values.min()}: contacts must be counts.")
    large = len(values) and values.max() > np.iinfo(np.int32).max
    return values.astype(np.int64 if large else np.int32)


def contacts_object(
    bins: pd.DataFrame,
    upper: sp.csr_array,
    *,
    storage: Literal["auto", "symmetric", "upper"] = "auto",
    key: str = "contacts",
) -> AnnData:
    """Return an AnnData of bins with one map in ``.obsp``."""
    import anndata

    if storage not in ("auto", "symmetric", "upper"):
        raise ValueError(f"storage must be 'auto', 'symmetric' or 'upper', found {storage!r}.")
    if storage == "auto":
        storage = "symmetric" if upper.nnz <= LARGEST_SYMMETRIC else "upper"
    result = anndata.AnnData(sp.csr_array((len(bins), 0), dtype=np.float32), obs=bins)
    result.obsp[key] = symmetric(upper) if storage == "symmetric" else upper
    result.uns[f"{key}_storage"] = {"storage": storage}
    return result


def same_bins(left: ContactMap, right: ContactMap) -> bool:
    """Whether two maps lie on the same bins."""
    return (
        left.n_bins == right.n_bins
        and left.chrom_names == right.chrom_names
        and bool((left.chrom == right.chrom).all())
        and bool((left.start == right.start).all())
        and bool((left.end == right.end).all())
    )
