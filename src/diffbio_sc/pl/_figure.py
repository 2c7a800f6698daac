"""Showing and saving figures, in the scanpy manner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._settings import settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_save(save: str | os.PathLike[str] | None) -> None:
    """Raise, before anything is drawn, if no figure can be written to ``save``.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    TypeError
        If it is no path.
    ValueError
        If it is empty, an ending without a name, or of a kind that matplotlib does not write.
    """
    if save is None:
        return
    if not isinstance(save, str | os.PathLike):
        raise TypeError(f"save must be the path of a file, such as 'figure.pdf', found {save!r}.")
    path = Path(save)
    if not path.name or (path.name.startswith(".") and not path.suffix):
        raise ValueError(
            f"save must be the whole path of a file, such as 'figure{path.name}', found {os.fspath(save)!r}."
        )
    if path.is_dir():
        raise ValueError(f"save must be the path of a file, {os.fspath(save)!r} is a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"save={os.fspath(save)!r}: there is no folder {os.fspath(path.parent)!r}; make it first."
        )
    if path.suffix:
        from matplotlib.backend_bases import FigureCanvasBase

        known = sorted(FigureCanvasBase.get_supported_filetypes())
        if path.suffix[1:].lower() not in known:
            raise ValueError(f"save must end in one of {known}, found {os.fspath(save)!r}.")


def show_or_save(figure: Figure, show: bool | None, save: str | os.PathLike[str] | None) -> None:
    """Save ``figure`` if a path is given; show it if asked to, or by default if it was not saved."""
    import matplotlib
    import matplotlib.pyplot as plt

    check_save(save)
    if save is not None:
        figure.savefig(save, dpi=settings.figure_dpi, bbox_inches="tight")
    interactive = matplotlib.get_backend().lower() not in ("agg", "pdf", "svg", "ps", "cairo")
    if show or (show is None and save is None and interactive):
        plt.show()


def finish(axes: Any, show: bool | None, save: str | os.PathLike[str] | None, return_fig: bool) -> Any:
    """Show or save the figure of some axes, and return them (one alone, or a list), or the figure if asked for."""
    several = list(axes) if isinstance(axes, Sequence) else [axes]
    figure = several[0].figure
    show_or_save(figure, show, save)
    return figure if return_fig else axes


def distinct_colors(number: int) -> np.ndarray:
    """Colours (number, 4) that differ: of ``settings.palette`` while it has enough, else of larger palettes."""
    import matplotlib
    from matplotlib.colors import to_rgba_array

    palette = matplotlib.colormaps[settings.palette]
    if number <= palette.N:
        return palette(np.linspace(0, 1, max(number, 2)))[:number]
    from scanpy.plotting import palettes

    if number <= len(palettes.default_102):
        return to_rgba_array(palettes.default_102[:number])
    return matplotlib.colormaps["hsv"](np.linspace(0, 1, number, endpoint=False))
