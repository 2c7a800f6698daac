from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd
import scipy.sparse as sp

from diffbio_sc._anndata.contextual_model import DEFAULT_KEY
from diffbio_sc._anndata.contextual_results import probability_layer
from diffbio_sc._anndata.region_axis import read_region_axis
from diffbio_sc._anndata.tables import read_table
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def crested(
    adata: AnnData, *, layer: str | None = None, key: str = DEFAULT_KEY, axis: Literal["var", "obs"] | None = None
) -> AnnData:
    """Regions and labels in the layout of CREsted: classes by regions, with ``chr``, ``start``, ``end`` and ``split``.

    The other way needs no step: functions of this package take CREsted's objects as they are.

    Parameters
    ----------
    adata
        Object of regions by cell types, either way round.
    layer
        Layer that becomes ``.X``; default ``.X``.
    key
        The ``key_added`` of predictions; where there are any, their probabilities become the layer of this name, which
        is where CREsted looks for a model's predictions, and their split the column ``split``.
    axis
        Axis with the regions, if both tables have the columns.

    Returns
    -------
    A new AnnData: ``.X``, ``.obs`` of the classes, ``.var`` of the regions, named ``chr:start-end``.

    Raises
    ------
    KeyError
        If there is no axis of regions or no such layer.
    ValueError
        If regions occur twice, which CREsted does not allow.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=20)
    >>> dbio.get.crested(adata).var.columns[:3].tolist()
    ['chr', 'start', 'end']
    """
    import anndata

    check_options(crested, locals())
    regions = read_region_axis(adata, axis=axis)
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"adata.layers has no {layer!r}; layers: {[str(name) for name in adata.layers]}.")
    names = [
        f"{regions.chromosomes[code]}:{start}-{end}"
        for code, start, end in zip(regions.code, regions.start, regions.end, strict=True)
    ]
    index = pd.Index(names)
    if not index.is_unique:
        raise ValueError(f"regions must occur once each, found {index[index.duplicated()][0]!r} more than once.")
    side = read_table(getattr(adata, regions.axis))
    var = regions.table.rename(columns={"chrom": "chr"}).set_axis(index, axis=0)
    var["chr"] = var["chr"].astype(str)
    for column in side.columns:
        if column not in ("chrom", "chr", "start", "end"):
            var[str(column)] = side[column].to_numpy()
    split = f"{key}_split"
    if split in side:
        var["split"] = side[split].astype(object).to_numpy()
        del var[split]

    def turned(matrix):
        if not hasattr(matrix, "copy"):  # it lies in a file
            matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix[()]
        matrix = matrix.copy() if regions.axis == "var" else matrix.T.copy()
        return sp.csr_matrix(matrix) if sp.issparse(matrix) else matrix

    result = anndata.AnnData(
        turned(adata.X if layer is None else adata.layers[layer]),
        obs=read_table(regions.track_table(adata)).copy(),
        var=var,
    )
    predicted = probability_layer(key)
    if predicted in adata.layers:
        result.layers[key] = turned(adata.layers[predicted])
    return result
