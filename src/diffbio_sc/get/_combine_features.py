from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from diffbio_sc._anndata.modalities import require_object
from diffbio_sc._anndata.records import find_record
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def combine_features(data: AnnData | MuData, *, key: str = "X_combined") -> pd.DataFrame:
    """Columns of the matrix that :func:`diffbio_sc.tl.combine_features` wrote, as a table.

    Parameters
    ----------
    data
        Object with combined features.
    key
        The ``key_added`` of the features.

    Returns
    -------
    One row for each column of the matrix, which is its index: ``block`` (the key it comes from), ``feature`` (its name
    there), ``mean`` and ``scale`` (what was taken out), ``source``, and ``imported``, whether it is of an imported
    embedding.

    Raises
    ------
    KeyError
        If there is no such result.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.combine_features(spots, ["truth", "n_cells"], scale="block")
    >>> dbio.get.combine_features(spots)["block"].value_counts().to_dict()
    {'truth': 7, 'n_cells': 1}
    """
    check_options(combine_features, locals())
    require_object(data, "data")
    record = find_record(data, key, "features", "diffbio_sc.tl.combine_features")
    table = record["features"].copy()
    provenance = record["provenance"]
    table["source"] = [str(provenance[block]["source"]) for block in table["block"]]
    table["imported"] = [
        provenance[block].get("artifact", {}).get("artifact_type") == "imported_embedding" for block in table["block"]
    ]
    return table
