from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def state_enrichment(
    adata: AnnData, *, key: str = "state_enrichment", kind: Literal["overlap", "neighborhood"] | None = None
) -> pd.DataFrame:
    """Result of :func:`diffbio_sc.tl.state_enrichment` as a tidy table.

    Parameters
    ----------
    adata
        Object whose states were tested.
    key
        The ``key_added`` of the test.
    kind
        ``"overlap"`` with annotations or ``"neighborhood"`` of anchors; default what there is, overlap first.

    Returns
    -------
    The table that :func:`diffbio_sc.tl.state_enrichment` describes under that name.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``kind`` is none of the two.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states()
    >>> genes = adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]
    >>> dbio.tl.state_enrichment(adata, {"genes": genes}, column="truth")
    >>> dbio.get.state_enrichment(adata).query("padj < 0.01 and fold > 1")["state"].tolist()
    ['Transcribed']
    """
    check_options(state_enrichment, locals())
    kinds = ("overlap", "neighborhood")
    if kind is not None and kind not in kinds:
        raise ValueError(f"kind must be one of {kinds} or None, found {kind!r}.")
    require_anndata(adata)
    record = in_memory(adata.uns.get(key, {}))
    there = [name for name in kinds if hasattr(record, "get") and name in record]
    if not there:
        raise KeyError(
            f"adata.uns has no enrichment {key!r}: run diffbio_sc.tl.state_enrichment first, or pass its key_added; "
            f"keys: {[str(name) for name in adata.uns]}."
        )
    if kind is not None and kind not in there:
        argument = "annotations" if kind == "overlap" else "anchors"
        raise KeyError(f"adata.uns[{key!r}] has no {kind!r}, only {there}: pass {argument}=... to tl.state_enrichment.")
    return record[kind or there[0]].copy()
