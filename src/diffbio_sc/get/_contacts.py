from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from diffbio_sc._anndata.contacts import read_contacts, read_weights
from diffbio_sc._anndata.contacts_object import bins_table
from diffbio_sc._anndata.regions import bins_of_region, region_matrix
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

VALUES = ("counts", "balanced", "expected", "oe")
_MOST_BINS = 10_000


def contacts(
    adata: AnnData,
    region: str | tuple[str, int, int] | None = None,
    *,
    values: Literal["counts", "balanced", "expected", "oe"] = "balanced",
    key: str = "contacts",
    weight_key: str = "contact_weight",
    axis: Literal["var", "obs"] | None = None,
) -> pd.DataFrame:
    """Contacts among the bins of a region, as a symmetric table.

    Parameters
    ----------
    adata
        Object with a contact map.
    region
        ``"chr1"``, ``"chr1:1,000,000-2,000,000"`` or ``("chr1", 1_000_000, 2_000_000)``; default the first chromosome.
    values
        Raw ``"counts"``; ``"balanced"`` ones; those ``"expected"`` at the distance; or ``"oe"``, balanced over
        expected.
    key
        Key of the counts in ``.obsp`` or ``.varp``.
    weight_key
        Column with the balancing weights.
    axis
        Which axis holds the bins, if both could.

    Returns
    -------
    Table of bins by bins, named as ``chr1:0-10000``. Counts are whole; other values are NaN at bins left out, and, of
    expected and ``"oe"``, on the two first diagonals.

    Raises
    ------
    KeyError
        If there is no such map, or it has no weights.
    ValueError
        If the region holds no bins, or more than 10,000.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(100, contacts_per_bin=50)
    >>> dbio.get.contacts(adata, "chr1:0-200,000", values="counts").shape
    (20, 20)
    """
    check_options(contacts, locals())
    found = read_contacts(adata, key, axis=axis, allow_fractional=True)
    bins = bins_of_region(region, found)
    if bins.stop - bins.start > _MOST_BINS:
        raise ValueError(
            f"the region holds {bins.stop - bins.start} bins, more than {_MOST_BINS}: choose a smaller one."
        )
    weights = None if values == "counts" else read_weights(adata, found, weight_key)
    matrix = region_matrix(found, bins, values, weights)
    table = found.map
    names = bins_table(
        pd.Categorical.from_codes(table.chrom[bins], list(table.chrom_names)), table.start[bins], table.end[bins]
    ).index
    return pd.DataFrame(matrix, index=names, columns=names)
