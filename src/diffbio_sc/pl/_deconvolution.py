from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._settings import settings
from diffbio_sc.pl._figure import show_or_save
from diffbio_sc.pl._spatial_maps import draw_maps

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def deconvolution(
    adata: AnnData,
    *,
    kind: Literal["maps", "stacked", "fit"] = "maps",
    cell_types: Sequence[str] | None = None,
    key: str = "deconvolution",
    spatial_key: str = "spatial",
    n_columns: int = 4,
    size: float | None = None,
    color_map: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | list[Axes]:
    """Draw the result of :func:`diffbio_sc.tl.deconvolve`.

    Parameters
    ----------
    adata
        Object that was deconvolved.
    kind
        ``"maps"``: a map of each cell type's proportion, drawn by squidpy. ``"stacked"``: the composition of each spot
        as a stacked bar, spots ordered by their largest type. ``"fit"``: goodness of fit of each spot against its
        total abundance, and a histogram of the genes' platform effects.
    cell_types
        Types to draw; default all, the most abundant first.
    key
        The ``key_added`` of the deconvolution.
    spatial_key
        Coordinates in ``adata.obsm``, for maps.
    n_columns
        Maps in a row.
    size
        Size of a spot in maps; default chosen from the distance between spots.
    color_map
        Colour map of maps; default ``settings.color_map``.
    ax
        Axes to draw on; for ``"stacked"``, or maps of a single type.
    show, save
        Show the figure; save it to this path.

    Returns
    -------
    The axes, or a list of them for maps and fit.

    Raises
    ------
    KeyError
        If the result, a cell type or the coordinates are missing.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    >>> axes = dbio.pl.deconvolution(spots, cell_types=["Dendritic"], show=False)
    """
    import matplotlib.pyplot as plt

    if key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {key!r}: run diffbio_sc.tl.deconvolve; keys: {list(adata.obsm)}.")
    table = adata.obsm[key]
    chosen = list(table.mean().sort_values(ascending=False).index) if cell_types is None else list(cell_types)
    missing = [name for name in chosen if name not in table.columns]
    if missing:
        raise KeyError(f"adata.obsm[{key!r}] has no cell types {missing}; types: {list(table.columns)}.")
    if kind == "maps":
        axes = draw_maps(
            adata, table[chosen], spatial_key=spatial_key, n_columns=n_columns, size=size, color_map=color_map, ax=ax
        )
        figure = axes[0].figure
    elif kind == "stacked":
        if ax is None:
            _, ax = plt.subplots(figsize=(9, 3), layout="constrained")
        axes, figure = _stacked(table[chosen], ax), ax.figure
    elif kind == "fit":
        axes = _fit(adata, key)
        figure = axes[0].figure
    else:
        raise ValueError(f"kind must be 'maps', 'stacked' or 'fit', found {kind!r}.")
    show_or_save(figure, show, save)
    return axes


def _stacked(table: pd.DataFrame, axis: Axes) -> Axes:
    import matplotlib

    kept = table.dropna()
    values = kept.to_numpy()
    largest = values.argmax(1)
    values = values[np.lexsort((-values.max(1), largest))]
    colors = matplotlib.colormaps[settings.palette](np.linspace(0, 1, max(values.shape[1], 2)))
    bottom = np.zeros(len(values))
    for column, name in enumerate(table.columns):
        axis.bar(np.arange(len(values)), values[:, column], bottom=bottom, width=1.0, color=colors[column], label=name)
        bottom += values[:, column]
    axis.set(xlim=(-0.5, len(values) - 0.5), ylim=(0, 1), xlabel="spots, by largest type", ylabel="proportion")
    axis.set_xticks([])
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axis


def _fit(adata: AnnData, key: str) -> list[Axes]:
    import matplotlib.pyplot as plt

    fit = adata.obs[f"{key}_fit"].to_numpy()
    effect = adata.var[f"{key}_log_platform_effect"].dropna().to_numpy()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    abundance = adata.obsm[f"{key}_abundance"].sum(axis=1).to_numpy()
    axes[0].scatter(np.maximum(abundance, 1e-3), fit, s=8, color="0.3", linewidth=0)
    axes[0].set(xscale="log", xlabel="total abundance (cells)", ylabel="goodness of fit", title="spots")
    axes[1].hist(effect, bins=50, color="0.5")
    axes[1].set(xlabel="log platform effect", ylabel="genes", title="genes")
    return list(axes)
