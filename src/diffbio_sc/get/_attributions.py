from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.attributions import DEFAULT_ATTRIBUTIONS, Attributions, read_attributions
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options
from diffbio_sc.engines.sequence_attributions import importance

if TYPE_CHECKING:
    from anndata import AnnData

_LETTERS = np.array(list("ACGTN"))


def attributions(
    adata: AnnData,
    *,
    kind: Literal["bases", "letters", "factors"] | None = None,
    cell_type: str | None = None,
    key: str = DEFAULT_ATTRIBUTIONS,
) -> pd.DataFrame:
    """What bases or transcription factors add to predictions, as a tidy table.

    Parameters
    ----------
    adata
        Object with attributions (see :func:`diffbio_sc.tl.attributions`).
    kind
        Which table; default ``"factors"`` for attributions by ``method="tf"``, else ``"bases"``.
    cell_type
        One cell type; default all.
    key
        The ``key_added`` of the attributions.

    Returns
    -------
    A row for each region, cell type (``cell_type``) and

    - ``"bases"``: base, with its place in the window (``position``) and on its chromosome (``chrom``, ``start``,
      0-based), the letter that stands there (``base``), its ``contribution`` in log-odds, and the ``importance`` of
      the base: the standard deviation of the scores of the four letters. To find the bases of a binding site take the
      importance: a site also holds letters that its motif does not like.
    - ``"letters"``: base and each of the four letters (``letter``), with its hypothetical ``score``
    - ``"factors"``: factor, with the ``contribution`` of its expression in log-odds, as against the mean cell type

    Raises
    ------
    KeyError
        If there are no such attributions, or no such cell type.
    ValueError
        If ``kind`` is none of the three.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.tl.attributions(adata, regions=[0], cell_types="cell1")
    >>> dbio.get.attributions(adata).shape
    (100, 8)
    """
    check_options(attributions, locals())
    require_anndata(adata)
    record = in_memory(adata.uns.get(key, {}))
    if kind is None:
        kind = "factors" if "factor_scores" in record else "bases"
    found = read_attributions(adata, key, "factor_scores" if kind == "factors" else "scores")
    cells = found.cell_types if cell_type is None else [cell_type]
    if cell_type is not None and cell_type not in found.cell_types:
        raise KeyError(f"there are no attributions of cell type {cell_type!r}; cell types: {found.cell_types}.")
    columns = [found.cell_types.index(cell) for cell in cells]
    if kind == "factors":
        assert found.factor_scores is not None
        values = found.factor_scores[:, columns]
        table = _frame(found, cells, values.shape[2])
        table["factor"] = pd.Categorical(np.tile(found.factors, values.shape[0] * len(cells)), found.factors)
        table["contribution"] = values.ravel()
        return table
    assert found.scores is not None
    return _bases(found, cells, found.scores[:, columns], letters=kind == "letters")


def _frame(found: Attributions, cells: list[str], each: int) -> pd.DataFrame:
    """Regions and cell types, so many rows of each pair."""
    regions = np.repeat(np.asarray(found.regions, dtype=object), len(cells) * each)
    names = np.tile(np.repeat(np.asarray(cells, dtype=object), each), len(found.regions))
    return pd.DataFrame({"region": regions, "cell_type": pd.Categorical(names, cells)})


def _bases(found: Attributions, cells: list[str], scores: np.ndarray, *, letters: bool) -> pd.DataFrame:
    width = found.tokens.shape[1]
    each = width * (4 if letters else 1)
    table = _frame(found, cells, each)
    position = np.tile(np.repeat(np.arange(width), 4 if letters else 1), len(found.regions) * len(cells))
    table["position"] = position
    table["chrom"] = np.repeat(np.asarray(found.chrom, dtype=object), len(cells) * each)
    table["start"] = np.repeat(found.start, len(cells) * each) + position
    standing = np.repeat(found.tokens[:, None], len(cells), axis=1)
    if letters:
        table["base"] = _LETTERS[np.repeat(standing.reshape(-1), 4)]
        table["letter"] = np.tile(_LETTERS[:4], len(table) // 4)
        table["score"] = scores.ravel()
        return table
    table["base"] = _LETTERS[standing.ravel()]
    padded = np.concatenate([scores, np.zeros((*scores.shape[:3], 1), scores.dtype)], axis=3)
    table["contribution"] = np.take_along_axis(padded, standing[..., None].astype(np.int64), axis=3).ravel()
    table["importance"] = importance(scores).ravel()
    return table
