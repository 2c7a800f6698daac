"""Maps of values over the spots, drawn by squidpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from diffbio_sc._settings import settings

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_GAP = 0.08


def draw_maps(
    adata: AnnData,
    table: pd.DataFrame,
    *,
    spatial_key: str = "spatial",
    slides: np.ndarray | None = None,
    titles: list[str] | None = None,
    n_columns: int = 4,
    size: float | None = None,
    color_map: str | None = None,
    smallest: float | None = 0.0,
    ax: Axes | None = None,
) -> list[Axes]:
    """Draw one map for each column of ``table``.

    Parameters
    ----------
    adata
        Object with the coordinates; it is left as it is.
    table
        Spots by maps, indexed by the object's names.
    spatial_key
        Coordinates in ``adata.obsm``; of three, the first two are drawn.
    slides
        Code of each spot's slide; slides are drawn side by side in each map.
    titles
        Titles of the maps; default the names of the columns.
    n_columns
        Maps in a row.
    size
        Size of a spot in units of the coordinates; default from the distance between spots.
    color_map
        Default ``settings.color_map``.
    smallest
        Value of the colour map's lower end; None: the smallest value of each map.
    ax
        Axes to draw on, for a single map.

    Returns
    -------
    The axes, one a map.

    Raises
    ------
    KeyError
        If the coordinates are missing.
    ValueError
        If ``ax`` is given for several maps.
    """
    import anndata
    import matplotlib.pyplot as plt
    import squidpy

    if spatial_key not in adata.obsm:
        raise KeyError(f"adata.obsm has no {spatial_key!r}, which maps need; keys: {list(adata.obsm)}.")
    if ax is not None and table.shape[1] != 1:
        raise ValueError(f"ax= draws one map, found {table.shape[1]}: name one.")
    coordinates = np.asarray(adata.obsm[spatial_key], dtype=np.float64)
    if size is None:
        size = _spot_size(coordinates, slides)
    coordinates = coordinates[:, :2]
    if slides is not None:
        coordinates = _side_by_side(coordinates, slides, size)
    # squidpy colours by columns of obs: a small object of its own leaves the user's object as it is.
    names = [f"map {number}" for number in range(table.shape[1])]
    shown = anndata.AnnData(
        np.zeros((adata.n_obs, 0), np.float32), obs=table.set_axis(names, axis=1), obsm={"spatial": coordinates}
    )
    axes = [ax] if ax is not None else _grid(plt, len(names), n_columns, coordinates)
    for name, title, axis in zip(names, titles or [str(column) for column in table.columns], axes, strict=True):
        squidpy.pl.spatial_scatter(
            shown, shape=None, library_id="spatial", color=name, cmap=color_map or settings.color_map, size=size,
            ax=axis, vmin=smallest, marker="s", title=title, axis_label=["", ""],
        )  # fmt: skip
        axis.set_aspect("equal")
    # Sizes last, in one go: the layout settles only when all maps are there.
    axes[0].figure.canvas.draw()
    for axis in axes:
        _size_in_data_units(axis, size)
    return axes


def _spot_size(coordinates: np.ndarray, slides: np.ndarray | None) -> float:
    codes = np.zeros(len(coordinates), int) if slides is None else slides
    distances = []
    for slide in np.unique(codes):
        places = np.unique(coordinates[codes == slide], axis=0)
        if len(places) > 1:
            distances.append(cKDTree(places).query(places, k=2)[0][:, 1])
    return 0.9 * float(np.median(np.concatenate(distances))) if distances else 1.0


def _side_by_side(coordinates: np.ndarray, slides: np.ndarray, size: float) -> np.ndarray:
    moved = np.empty_like(coordinates)
    left = 0.0
    for slide in np.unique(slides):
        inside = slides == slide
        places = coordinates[inside] - coordinates[inside].min(0)
        moved[inside] = places + [left, 0.0]
        left += places[:, 0].max() + max(_GAP * places[:, 0].max(), 2 * size)
    return moved


def _grid(plt, number: int, n_columns: int, coordinates: np.ndarray) -> list[Axes]:
    rows, columns = -(-number // n_columns), min(n_columns, number)
    extent = np.ptp(coordinates, axis=0)
    shape = float(extent[0] / max(extent[1], 1e-300))
    width, height = float(np.clip(2.4 * shape, 1.6, 5.0)), float(np.clip(5.0 / max(shape, 1e-300), 1.2, 2.4))
    figure, grid = plt.subplots(
        rows, columns, figsize=((width + 0.7) * columns, (height + 0.4) * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.ravel())
    for spare in axes[number:]:
        spare.remove()
    return axes[:number]


def _size_in_data_units(axis: Axes, size: float) -> None:
    # matplotlib's scatter takes points squared; squidpy's size in data units is drawn as such only with shapes
    (x0, _), (x1, _) = axis.transData.transform([(0, 0), (size, 0)])
    points = abs(x1 - x0) * 72 / axis.figure.dpi
    for collection in axis.collections:
        collection.set_sizes([points**2])
        collection.set_linewidth(0)
