from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def saddle(
    adata: AnnData,
    *,
    key: str = "saddle",
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    width: float = 4.2,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw the saddle of :func:`diffbio_sc.tl.saddle`: contacts by the compartment values of both bins.

    Parameters
    ----------
    adata
        Object whose saddle was averaged.
    key
        The ``key_added`` of the saddle.
    vmax
        Range of the colours in log2; default from the values.
    cmap
        Colours.
    width
        Of the figure in inches.
    ax
        Axes to draw on.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If there is no saddle of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> dbio.tl.saddle(adata)
    >>> axes = dbio.pl.saddle(adata, show=False)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    check_options(saddle, locals(), vmax="(0, inf)", width="(0, inf)")
    check_save(save)
    from diffbio_sc._anndata.records import read_record

    record = read_record(adata, key, "mean", "dbio.tl.saddle")
    mean = np.asarray(record["mean"], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(mean)
    known = np.abs(ratio[np.isfinite(ratio)])
    reach = (max(float(np.quantile(known, 0.98)), 0.1) if len(known) else 1.0) if vmax is None else vmax
    if ax is None:
        figure, ax = plt.subplots(figsize=(width, 0.85 * width), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    image = ax.imshow(ratio, cmap=cmap, norm=TwoSlopeNorm(0.0, -reach, reach), interpolation="nearest")
    last = len(mean) - 1
    ax.set_xticks([0, last], ["B", "A"])
    ax.set_yticks([0, last], ["B", "A"])
    ax.set_xlabel("compartment value, low to high")
    ax.set_ylabel("compartment value")
    strength = float(record["report"]["strength"])
    ax.set_title(f"compartment strength {strength:.2f}", fontsize="medium")
    figure.colorbar(image, ax=ax, label="log2 observed / expected", shrink=0.85)
    return finish(ax, show, save, return_fig)
