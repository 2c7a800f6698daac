"""Showing and saving figures, in the scanpy manner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diffbio_sc._settings import settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_or_save(figure: Figure, show: bool | None, save: str | os.PathLike[str] | None) -> None:
    """Save ``figure`` if a path is given; show it if asked to, or by default if it was not saved."""
    import matplotlib
    import matplotlib.pyplot as plt

    if save is not None:
        figure.savefig(save, dpi=settings.figure_dpi, bbox_inches="tight")
    interactive = matplotlib.get_backend().lower() not in ("agg", "pdf", "svg", "ps", "cairo")
    if show or (show is None and save is None and interactive):
        plt.show()
