"""Heat maps with labelled cells, as the plots of chromatin states share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NUMBERS = 320  # cells beyond which numbers would be too small to read
_STRIP = 7  # width of the strip of colours, in points


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Axes to draw on: those given, or of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def heatmap(
    ax: Axes,
    values: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    row_colors: Sequence[str] | None = None,
    numbers: bool | None = None,
    **options: Any,
) -> None:
    """Draw a matrix with names of rows and columns, a colour bar, and the states' colours beside the rows.

    ``options`` go to :meth:`matplotlib.axes.Axes.imshow`. Numbers are written into the cells where they are few.
    """
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    image = ax.imshow(values, aspect="auto", interpolation="nearest", **options)
    ax.set_xticks(np.arange(len(columns)), columns, rotation=90)
    ax.set_yticks(np.arange(len(rows)), rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if row_colors is not None:
        # A strip of colours of fixed width, in points, whatever the size of the map.
        place = blended_transform_factory(ax.transAxes, ax.transData)
        place = place + ScaledTranslation(-_STRIP / 72, 0, ax.figure.dpi_scale_trans)
        for row, color in enumerate(row_colors):
            ax.plot(
                [0, 0], [row - 0.5, row + 0.5], color=color, lw=_STRIP, transform=place, clip_on=False,
                solid_capstyle="butt", scalex=False, scaley=False,
            )  # fmt: skip
        ax.tick_params(axis="y", pad=2 * _STRIP)
    if numbers or (numbers is None and values.size <= _MOST_NUMBERS):
        for (row, column), value in np.ndenumerate(np.asarray(values, float)):
            if not np.isfinite(value) or abs(value) < 0.005:
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.2f}".lstrip("0") if abs(value) < 1 else f"{value:.3g}"
            ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02, aspect=25)
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
