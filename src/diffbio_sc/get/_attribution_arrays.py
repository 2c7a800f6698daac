from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffbio_sc._anndata.attributions import DEFAULT_ATTRIBUTIONS, read_attributions
from diffbio_sc._options import check_options
from diffbio_sc.genome.sequences import one_hot

if TYPE_CHECKING:
    from anndata import AnnData


class AttributionArrays(NamedTuple):
    """Attributions of one cell type as arrays.

    Attributes
    ----------
    one_hot
        Sequences (regions, width, 4), float32; unknown bases are rows of zeros.
    hypothetical
        Hypothetical contributions (regions, width, 4), float32: of each letter, whether it stands there or not.
    regions
        Names of the regions.
    """

    one_hot: np.ndarray
    hypothetical: np.ndarray
    regions: list[str]

    @property
    def contributions(self) -> np.ndarray:
        """Contributions of the letters that stand there (regions, width, 4), 0 elsewhere."""
        return self.one_hot * self.hypothetical


def attribution_arrays(
    adata: AnnData, *, cell_type: str | None = None, key: str = DEFAULT_ATTRIBUTIONS
) -> AttributionArrays:
    """Attributions of bases in one cell type as arrays, in the form that TF-MoDISco (modisco-lite) takes.

    Parameters
    ----------
    adata
        Object with attributions (see :func:`diffbio_sc.tl.attributions`).
    cell_type
        Cell type; may be left out if there is one. ``"mean"`` is the mean over all.
    key
        The ``key_added`` of the attributions.

    Returns
    -------
    Arrays ``one_hot`` and ``hypothetical`` (regions, width, 4), and ``contributions``, their product.

    Raises
    ------
    KeyError
        If there are no attributions of bases, or no such cell type.
    ValueError
        If there are several cell types and none is named.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.tl.attributions(adata, regions=range(3))
    >>> arrays = dbio.get.attribution_arrays(adata, cell_type="cell2")
    >>> arrays.one_hot.shape, arrays.hypothetical.shape
    ((3, 100, 4), (3, 100, 4))
    """
    check_options(attribution_arrays, locals())
    found = read_attributions(adata, key, "scores")
    assert found.scores is not None
    if cell_type == "mean" and "mean" not in found.cell_types:
        chosen = found.scores.mean(axis=1)
    else:
        if cell_type is None and len(found.cell_types) > 1:
            raise ValueError(f"there are several cell types: pass cell_type=..., 'mean' or one of {found.cell_types}.")
        name = found.cell_types[0] if cell_type is None else cell_type
        if name not in found.cell_types:
            raise KeyError(f"there are no attributions of cell type {name!r}; cell types: {found.cell_types}.")
        chosen = found.scores[:, found.cell_types.index(name)]
    return AttributionArrays(one_hot(found.tokens), np.ascontiguousarray(chosen, np.float32), found.regions)
