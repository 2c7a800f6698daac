from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def state_reproducibility(
    adata: AnnData,
    *,
    key: str = "state_reproducibility",
    kind: Literal["states", "reliability", "overlap", "summary"] = "states",
) -> pd.DataFrame:
    """Result of :func:`diffbio_sc.tl.state_reproducibility` as a tidy table.

    Parameters
    ----------
    adata
        Object whose states were compared with another replicate's.
    key
        The ``key_added`` of the comparison.
    kind
        ``"states"``: how often each state comes back. ``"reliability"``: predicted and found rates in ten levels.
        ``"overlap"``: bins of each pair of states. ``"summary"``: agreement and calibration as a whole.

    Returns
    -------
    The table that :func:`diffbio_sc.tl.state_reproducibility` describes under that name, with ``replicate``, the
    replicate whose states were looked for in the other, as first column.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``kind`` is none of the four.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_replicates=2)
    >>> adata.obs["chromatin_state"] = adata.obs["truth"]
    >>> dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    >>> table = dbio.get.state_reproducibility(adata)
    """
    check_options(state_reproducibility, locals())
    kinds = ("states", "reliability", "overlap", "summary")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {kinds}, found {kind!r}.")
    require_anndata(adata)
    record = in_memory(adata.uns.get(key, {}))
    if not hasattr(record, "get") or kind not in record:
        raise KeyError(
            f"adata.uns has no reproducibility {key!r}: run diffbio_sc.tl.state_reproducibility first, or pass its "
            f"key_added; keys: {[str(name) for name in adata.uns]}."
        )
    table = record[kind]
    return table[["replicate", *(name for name in table.columns if name != "replicate")]].copy()
