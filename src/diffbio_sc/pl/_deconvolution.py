from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import read_labels
from diffbio_sc._anndata.matrix import require_anndata
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, distinct_colors, finish
from diffbio_sc.pl._spatial_maps import draw_maps

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_ROWS = 12
_MANY_BARS = 2000


def deconvolution(
    adata: AnnData,
    *,
    kind: Literal["maps", "stacked", "fit"] = "maps",
    cell_types: Sequence[str] | None = None,
    key: str = "deconvolution",
    spatial_key: str = "spatial",
    n_columns: int = 4,
    size: float | None = None,
    common_scale: bool = True,
    color_map: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw the result of :func:`diffbio_sc.tl.deconvolve`.

    Parameters
    ----------
    adata
        Object that was deconvolved.
    kind
        ``"maps"``: a map of each cell type's proportion; the slides of the deconvolution's ``library_key`` lie side by
        side. ``"stacked"``: the composition of each spot as a stacked bar, spots ordered by their largest type.
        ``"fit"``: goodness of fit of each spot against its total abundance, and a histogram of the genes' platform
        effects.
    cell_types
        Types to draw; default all, the most abundant first.
    key
        The ``key_added`` of the deconvolution.
    spatial_key
        Coordinates in ``adata.obsm``, for maps.
    n_columns
        Maps in a row.
    size
        Width of a spot in maps, in units of the coordinates; default from the distance between spots.
    common_scale
        Whether all maps share one scale of colours, from 0 to the largest proportion drawn. Without it each map has a
        colour bar of its own, which shows where rare types lie.
    color_map
        Colour map of maps; default ``settings.color_map``.
    ax
        Axes to draw on; for ``"stacked"``, or maps of a single type.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes, or a list of them for maps and fit.

    Raises
    ------
    KeyError
        If the result, a cell type or the coordinates are missing.
    ValueError
        If ``kind`` is unknown, ``n_columns`` is not a positive whole number, or coordinates are not finite.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    >>> axes = dbio.pl.deconvolution(spots, cell_types=["Dendritic"], show=False)
    """
    import matplotlib.pyplot as plt

    check_options(deconvolution, locals(), n_columns="[1, inf)", size="(0, inf)")
    n_columns = int(n_columns)
    check_save(save)
    require_anndata(adata)
    if key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {key!r}: run diffbio_sc.tl.deconvolve; keys: {list(adata.obsm)}.")
    table = in_memory(adata.obsm[key])
    chosen = _by_abundance(table) if cell_types is None else _as_list(cell_types)
    missing = [name for name in chosen if name not in table.columns]
    if missing:
        raise KeyError(f"adata.obsm[{key!r}] has no cell types {missing}; types: {list(table.columns)}.")
    if kind == "maps":
        slides, names = _slides(adata, key)
        axes = draw_maps(
            adata, table[chosen], label="proportion", spatial_key=spatial_key, slides=slides, slide_names=names,
            n_columns=n_columns, size=size, color_map=color_map, scale="zero", together=0 if common_scale else 1, ax=ax,
        )  # fmt: skip
    elif kind == "stacked":
        if ax is None:
            columns = -(-len(chosen) // _LEGEND_ROWS)
            _, ax = plt.subplots(figsize=(8 + 1.6 * columns, 3.2), layout="constrained")
        axes = _stacked(table[chosen], ax)
    else:
        axes = _fit(adata, key)
    return finish(axes, show, save, return_fig)


def _by_abundance(table: pd.DataFrame) -> list[str]:
    return list(table.mean().sort_values(ascending=False).index)


def _as_list(cell_types: Sequence[str]) -> list[str]:
    return [cell_types] if isinstance(cell_types, str) else list(cell_types)


def _slides(adata: AnnData, key: str) -> tuple[np.ndarray | None, list[str] | None]:
    """Codes and names of the slides that were deconvolved."""
    library_key = in_memory(adata.uns.get(key, {})).get("params", {}).get("library_key")
    if library_key is None or str(library_key) not in adata.obs:
        return None, None
    codes, names = read_labels(adata.obs, str(library_key), name="adata.obs")
    return codes, names


def _stacked(table: pd.DataFrame, axis: Axes) -> Axes:
    kept = table.dropna()
    values = kept.to_numpy()
    order = np.lexsort((-values.max(1), values.argmax(1)))
    tops = np.cumsum(values[order], axis=1)
    colors = distinct_colors(values.shape[1])
    # Edges of the bars, each with the height of the bar to its right: one polygon for each type.
    edges = np.arange(len(values) + 1) - 0.5
    steps = np.concatenate([tops, tops[-1:]])
    bottom = np.zeros(len(edges))
    for column, name in enumerate(table.columns):
        axis.fill_between(
            edges, bottom, steps[:, column], step="post", color=colors[column], linewidth=0, label=name,
            rasterized=len(values) > _MANY_BARS,
        )  # fmt: skip
        bottom = steps[:, column]
    axis.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), xlabel=f"{len(values)} spots, by largest type")
    axis.set_ylabel("proportion")
    axis.set_xticks([])
    axis.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small",
        ncols=-(-values.shape[1] // _LEGEND_ROWS), handlelength=1.0, columnspacing=1.0,
    )  # fmt: skip
    return axis


def _fit(adata: AnnData, key: str) -> list[Axes]:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    fit = read_column(adata.obs, f"{key}_fit").to_numpy()
    effect = read_column(adata.var, f"{key}_log_platform_effect").dropna().to_numpy()
    found = np.isfinite(fit)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    abundance = in_memory(adata.obsm[f"{key}_abundance"]).sum(axis=1).to_numpy()
    axes[0].scatter(np.maximum(abundance, 1e-3)[found], fit[found], s=8, color="0.3", linewidth=0)
    axes[0].set(xscale="log", xlabel="total abundance (cells)", ylabel="goodness of fit", title="spots")
    low, high = axes[0].get_xlim()
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[1].hist(effect, bins=50, color="0.5")
    axes[1].set(xlabel="log platform effect (natural log)", ylabel="genes", title="genes")
    return list(axes)
