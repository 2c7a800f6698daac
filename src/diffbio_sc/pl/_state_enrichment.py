from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options
from diffbio_sc.get import state_enrichment as enrichment_table
from diffbio_sc.pl._figure import check_save, finish
from diffbio_sc.pl._heatmap import heatmap, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def state_enrichment(
    adata: AnnData,
    kind: Literal["overlap", "neighborhood"] | None = None,
    *,
    cell_type: str | None = None,
    anchors: str | None = None,
    max_padj: float | None = None,
    key: str = "state_enrichment",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw enrichments of chromatin states in annotations, or around anchors, as heat maps of log2 folds.

    Parameters
    ----------
    adata
        Object whose states were tested (see :func:`diffbio_sc.tl.state_enrichment`).
    kind
        ``"overlap"`` with annotations or ``"neighborhood"`` of anchors; default what there is, overlap first.
    cell_type
        Cell type to draw; default the first.
    anchors
        Set of anchors to draw; default the first.
    max_padj
        Of overlaps: leave cells empty whose adjusted p-value is above it.
    key
        The ``key_added`` of the test.
    ax
        Axes to draw on.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes. Colours end at 16 times more or less than the genome; numbers, where there is room, are folds.

    Raises
    ------
    KeyError
        If there is no such result, cell type or set of anchors.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states()
    >>> genes = adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]
    >>> dbio.tl.state_enrichment(adata, {"genes": genes}, anchors={"starts": genes}, column="truth")
    >>> axes = dbio.pl.state_enrichment(adata, "neighborhood", show=False)
    """
    check_options(state_enrichment, locals(), max_padj="[0, 1]")
    check_save(save)
    table = enrichment_table(adata, key=key, kind=kind)
    overlap = "annotation" in table
    table = _chosen(table, "cell_type", cell_type)
    if not overlap:
        table = _chosen(table, "anchors", anchors)
    labels = list(table["state"].cat.categories)
    colors = list(map(str, in_memory(adata.uns[key])["report"].get("colors", [])))
    column = "annotation" if overlap else "distance"
    fold = table.pivot(index="state", columns=column, values="fold").reindex(labels)
    fold = fold[list(dict.fromkeys(table[column]))]
    values = fold.to_numpy(float)
    if overlap and max_padj is not None:
        padj = table.pivot(index="state", columns=column, values="padj").reindex(labels)[fold.columns].to_numpy(float)
        values = np.where(padj <= max_padj, values, np.nan)
    with np.errstate(divide="ignore"):
        logs = np.where(values > 0, np.log2(np.where(values > 0, values, 1.0)), np.where(values == 0, -np.inf, np.nan))
    width = 2.8 + (0.55 * fold.shape[1] if overlap else min(0.25 * fold.shape[1], 7.0))
    ax = new_axes(ax, width, 1.4 + 0.28 * len(labels))
    heatmap(
        ax,
        np.clip(logs, -4, 4),
        rows=labels,
        columns=[str(name) for name in fold.columns],
        label="fold over the genome (log2)",
        row_colors=colors if len(colors) == len(labels) else None,
        numbers=False,
        cmap="PuOr_r",
        vmin=-4,
        vmax=4,
    )
    if overlap:
        for (row, place), value in np.ndenumerate(values):
            if np.isfinite(value):
                text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
                strong = abs(np.clip(logs[row, place], -4, 4)) > 2.4
                ax.text(place, row, text, ha="center", va="center", fontsize=7, color="white" if strong else "black")
        ax.set_title("Fold enrichment")
    else:
        step = max(1, fold.shape[1] // 10)
        middle = fold.shape[1] // 2
        ticks = np.arange(middle % step, fold.shape[1], step)
        ax.set_xticks(ticks, [f"{fold.columns[tick]:+,}" if fold.columns[tick] else "0" for tick in ticks])
        ax.axvline(middle, color="0.3", lw=0.8, ls=":")
        ax.set(xlabel=f"distance from {table['anchors'].iloc[0]} (bases)", title="Enrichment around anchors")
    return finish(ax, show, save, return_fig)


def _chosen(table: pd.DataFrame, column: str, name: str | None) -> pd.DataFrame:
    there = list(dict.fromkeys(table[column].astype(str)))
    if name is not None and name not in there:
        raise KeyError(f"no {column} {name!r} in the result; there are {there[:20]}.")
    return table[table[column].astype(str) == (there[0] if name is None else name)]
