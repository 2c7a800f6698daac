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


def pileup(
    adata: AnnData,
    *,
    key: str = "pileup",
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    width: float = 4.2,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw the pile-up of :func:`diffbio_sc.tl.pileup`: mean contacts about loops or boundaries.

    Parameters
    ----------
    adata
        Object whose windows were averaged.
    key
        The ``key_added`` of the pile-up.
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
        If there is no pile-up of that key.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> dbio.tl.pileup(adata, "loops")
    >>> axes = dbio.pl.pileup(adata, show=False)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    check_options(pileup, locals(), vmax="(0, inf)", width="(0, inf)")
    check_save(save)
    from diffbio_sc._anndata.records import read_record

    record = read_record(adata, key, "mean", "dbio.tl.pileup")
    params = record["params"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(np.asarray(record["mean"], float))
    ratio[~np.isfinite(ratio)] = np.nan
    known = np.abs(ratio[np.isfinite(ratio)])
    reach = (max(float(known.max()), 0.1) if len(known) else 1.0) if vmax is None else vmax
    flank, half = params["flank"] / 1000, params["resolution"] / 2000
    if ax is None:
        figure, ax = plt.subplots(figsize=(width, 0.85 * width), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    colors = plt.get_cmap(cmap).with_extremes(bad="0.93")
    extent = (-flank - half, flank + half, flank + half, -flank - half)
    image = ax.imshow(ratio, cmap=colors, norm=TwoSlopeNorm(0.0, -reach, reach), extent=extent, interpolation="nearest")
    name = "boundaries" if params["diagonal"] else "loops"
    ax.set_xlabel("offset (kb)")
    ax.set_ylabel("offset (kb)")
    ax.set_title(
        f"{int(params['n_features'])} {name}, enrichment {record['report']['enrichment']:.2f}", fontsize="medium"
    )
    figure.colorbar(image, ax=ax, label="log2 observed / expected", shrink=0.85)
    return finish(ax, show, save, return_fig)
