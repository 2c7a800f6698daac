"""Maps of values over the spots, each spot drawn in units of the coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from diffbio_sc._anndata import read_coordinates
from diffbio_sc._settings import settings

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection

_GAP = 0.08  # between slides, of the width of a slide
_MISSING = "0.82"
_FIGURE_WIDTH = 13.2  # inches of a figure with several maps in a row
_MANY = 5000  # spots beyond which a vector file holds the map as a picture
_DIVERGING = "RdBu_r"


def draw_maps(
    adata: AnnData,
    table: pd.DataFrame,
    *,
    label: str,
    spatial_key: str = "spatial",
    slides: np.ndarray | None = None,
    slide_names: list[str] | None = None,
    titles: list[str] | None = None,
    n_columns: int = 4,
    size: float | None = None,
    color_map: str | None = None,
    scale: Literal["zero", "own", "signed"] = "own",
    together: int = 1,
    ax: Axes | None = None,
) -> list[Axes]:
    """Draw one map for each column of ``table``.

    Parameters
    ----------
    adata
        Object with the coordinates; it is left as it is.
    table
        Spots by maps, in the order of the object. Missing values are drawn in grey, and counted below the map.
    label
        What the colours show, with the unit.
    spatial_key
        Coordinates in ``adata.obsm``; of three, the first two are drawn.
    slides, slide_names
        Code of each spot's slide, and the slides' names; slides are drawn side by side in each map.
    titles
        Titles of the maps; default the names of the columns.
    n_columns
        Maps in a row.
    size
        Width of a spot in units of the coordinates; default from the distance between spots.
    color_map
        Default ``settings.color_map``, for signed values blue to red.
    scale
        ``"zero"``: colours start at 0; ``"own"``: at the smallest value; ``"signed"``: symmetric about 0.
    together
        Maps that share a scale, one after the other; 0 for all, with one colour bar.
    ax
        Axes to draw on, for a single map.

    Returns
    -------
    The axes, one for each map.

    Raises
    ------
    KeyError
        If the coordinates are missing.
    ValueError
        If coordinates are not finite numbers, or ``ax`` is given for several maps.
    """
    import matplotlib.pyplot as plt

    if ax is not None and table.shape[1] != 1:
        raise ValueError(f"ax= draws one map, found {table.shape[1]}: name one.")
    coordinates = read_coordinates(adata, spatial_key)[:, :2]
    width = _spot_width(coordinates, slides) if size is None else size
    lattice = size is None and _is_square_lattice(coordinates, slides, width)
    if slides is not None:
        coordinates = _side_by_side(coordinates, slides, width)
    axes = [ax] if ax is not None else _grid(plt, table.shape[1], n_columns, coordinates)
    values = table.to_numpy(np.float64)
    group = together or values.shape[1]
    color_map = color_map or (_DIVERGING if scale == "signed" else settings.color_map)
    drawn: list[Collection] = []
    for number, (title, axis) in enumerate(zip(titles or list(map(str, table.columns)), axes, strict=True)):
        low, high = _limits(values[:, number // group * group : (number // group + 1) * group], scale)
        drawn.append(_draw(axis, coordinates, values[:, number], width, lattice, color_map, low, high))
        axis.set_title(title, fontsize="medium")
        if slides is not None:
            _name_slides(axis, coordinates, slides, slide_names, width)
        if together:
            axis.figure.colorbar(drawn[-1], ax=axis, label=label, fraction=0.046, pad=0.02)
    if not together:
        axes[0].figure.colorbar(drawn[0], ax=axes, label=label, fraction=0.05, pad=0.01, aspect=30)
    return axes


def _draw(axis, coordinates, values, width, lattice, color_map, low, high) -> Collection:
    there = np.isfinite(values)
    shown = _spots(axis, coordinates[there], width, lattice, cmap=color_map)
    shown.set_array(values[there])
    shown.set_clim(low, high)
    axis.add_collection(shown)
    if not there.all():
        axis.add_collection(_spots(axis, coordinates[~there], width, lattice, facecolor=_MISSING))
        number = int((~there).sum())
        axis.set_xlabel(f"grey: no value ({number} spot{'s' * (number > 1)})", fontsize="small")
    # Half a spot and a little more around the outermost: collections do not widen the frame by themselves.
    least, most = coordinates.min(0) - 0.6 * width, coordinates.max(0) + 0.6 * width
    axis.set(xlim=(least[0], most[0]), ylim=(most[1], least[1]), aspect="equal", xticks=[], yticks=[])
    return shown


def _spots(axis, places: np.ndarray, width: float, lattice: bool, **options) -> Collection:
    """Squares that meet on a square lattice, else circles; one collection, in units of the coordinates."""
    from matplotlib.collections import EllipseCollection, PolyCollection

    many = len(places) > _MANY
    if lattice:
        corners = 0.5 * width * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        # Without smoothing of edges, through which the background would show as a grid.
        return PolyCollection(places[:, None] + corners, linewidth=0, antialiased=False, rasterized=many, **options)
    sizes = np.full(len(places), 0.95 * width)
    return EllipseCollection(
        sizes, sizes, np.zeros(len(places)), units="xy", offsets=places, offset_transform=axis.transData, linewidth=0,
        rasterized=many, **options,
    )  # fmt: skip


def _limits(values: np.ndarray, scale: str) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if scale == "signed":
        high = max(abs(low), abs(high)) or 1.0
        return -high, high
    low = min(low, 0.0) if scale == "zero" else low
    return low, high if high > low else low + 1.0


def _nearest(coordinates: np.ndarray, slides: np.ndarray | None) -> np.ndarray:
    """Vectors from each place to its nearest other of the same slide."""
    codes = np.zeros(len(coordinates), int) if slides is None else slides
    steps = []
    for slide in np.unique(codes):
        places = np.unique(coordinates[codes == slide], axis=0)
        if len(places) > 1:
            steps.append(places[cKDTree(places).query(places, k=2)[1][:, 1]] - places)
    return np.concatenate(steps) if steps else np.empty((0, 2))


def _spot_width(coordinates: np.ndarray, slides: np.ndarray | None) -> float:
    steps = _nearest(coordinates, slides)
    return float(np.median(np.linalg.norm(steps, axis=1))) if len(steps) else 1.0


def _is_square_lattice(coordinates: np.ndarray, slides: np.ndarray | None, width: float) -> bool:
    """Whether nearly all nearest neighbours are one width away along an axis, and both axes occur."""
    steps = np.abs(_nearest(coordinates, slides))
    straight = (steps.min(1) < 0.02 * width) & (np.abs(steps.max(1) - width) < 0.02 * width)
    if len(steps) < 4 or straight.mean() < 0.95:
        return False
    places = np.unique(coordinates, axis=0)
    # Hexagonal lattices have straight steps along one axis; on square ones the other axis has neighbours too.
    across = cKDTree(places).query(places + [0.0, width], k=1)[0] < 0.05 * width
    along = cKDTree(places).query(places + [width, 0.0], k=1)[0] < 0.05 * width
    return bool(across.mean() > 0.3 and along.mean() > 0.3)


def _side_by_side(coordinates: np.ndarray, slides: np.ndarray, width: float) -> np.ndarray:
    moved = np.empty_like(coordinates)
    left = 0.0
    for slide in np.unique(slides):
        inside = slides == slide
        places = coordinates[inside] - coordinates[inside].min(0)
        moved[inside] = places + [left, 0.0]
        left += places[:, 0].max() + max(_GAP * places[:, 0].max(), 2 * width)
    return moved


def _name_slides(axis, coordinates: np.ndarray, slides: np.ndarray, names: list[str] | None, width: float) -> None:
    codes = np.unique(slides)
    if len(codes) < 2 or names is None:
        return
    for code in codes:
        places = coordinates[slides == code]
        axis.text(
            places[:, 0].mean(), places[:, 1].min() - width, names[code], ha="center", va="bottom", fontsize="x-small"
        )
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top - 0.08 * abs(bottom - top) - width)


def _grid(plt, number: int, n_columns: int, coordinates: np.ndarray) -> list[Axes]:
    rows, columns = -(-number // n_columns), min(n_columns, number)
    extent = np.ptp(coordinates, axis=0)
    shape = float(extent[0] / max(extent[1], 1e-300))
    # Wide tissues share the width of a page, so that letters stay readable on it.
    widest = max(_FIGURE_WIDTH / columns - 0.8, 1.6)
    width = float(np.clip(2.4 * shape, 1.6, min(5.0, widest)))
    height = float(np.clip(min(5.0, widest) / max(shape, 1e-300), 0.9, 2.4))
    figure, grid = plt.subplots(
        rows, columns, figsize=((width + 0.8) * columns, (height + 0.4) * rows), squeeze=False, layout="constrained"
    )
    axes = list(grid.ravel())
    for spare in axes[number:]:
        spare.remove()
    return axes[:number]
