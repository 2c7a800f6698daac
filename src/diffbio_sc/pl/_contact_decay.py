from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#1f4e79", "#e08e0b", "#0b7a75", "#b2402a", "#7b5aa6", "#5b5b5b", "#8aa82f", "#c45a9c")
_MOST_LINES = 8


def contact_decay(
    adata: AnnData | Mapping[str, AnnData],
    *,
    key: str = "expected",
    regions: bool = False,
    per_decade: int = 10,
    width: float = 5.0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw how contacts fall with distance, P(s), and its slope in the double logarithm.

    Parameters
    ----------
    adata
        Object whose decay was estimated (:func:`diffbio_sc.tl.expected`), or several by name.
    key
        The ``key_added`` of the decay.
    regions
        Draw each region, the first eight, rather than the mean of all.
    per_decade
        Strata of distance a decade.
    width
        Of the figure in inches.
    ax
        Axes to draw P(s) on, without its slope.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes of P(s) and of the slope; the one of P(s) where ``ax`` is given.

    Raises
    ------
    KeyError
        If there is no decay of that key.

    Notes
    -----
    Each curve is scaled to 1 at its first stratum of 100 kb or more, where it has one, so that depths do not matter.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.balance(adata)
    >>> dbio.tl.expected(adata)
    >>> axes = dbio.pl.contact_decay(adata, show=False)
    """
    import matplotlib.pyplot as plt

    check_options(contact_decay, locals(), per_decade="[1, inf)", width="(0, inf)")
    per_decade = int(per_decade)
    check_save(save)
    from diffbio_sc.get import expected

    objects = adata if isinstance(adata, Mapping) else {"": adata}
    curves: dict[str, list[Any]] = {}
    for name, each in objects.items():
        table = expected(each, key=key, per_decade=per_decade)
        for region, part in table.groupby("region", sort=False):
            label = f"{name} {region}".strip() if regions else name
            curves.setdefault(label, []).append(part)
    if ax is None:
        _, (top, bottom) = plt.subplots(
            2, 1, figsize=(width, 1.25 * width), sharex=True, height_ratios=[1.6, 1.0], layout="constrained"
        )
    else:
        top, bottom = ax, None
    for color, (label, parts) in zip(_COLORS, list(curves.items())[:_MOST_LINES], strict=False):
        distance, mean = _pooled(parts)
        scale = mean[np.searchsorted(distance, 1e5)] if distance[-1] >= 1e5 else mean[0]
        top.plot(distance, mean / scale, color=color, lw=1.4, label=label or None)
        if bottom is not None and len(mean) > 1:
            known = mean > 0
            slope = np.gradient(np.log(mean[known]), np.log(distance[known]))
            bottom.plot(distance[known], slope, color=color, lw=1.4)
    top.set(xscale="log", yscale="log", ylabel="P(s), 1 at 100 kb")
    if any(curves):
        top.legend(frameon=False, fontsize="small")
    last = top if bottom is None else bottom
    last.set_xlabel("distance s (bp)")
    if bottom is not None:
        bottom.axhline(-1.0, color="0.6", lw=0.8, ls="--")
        bottom.set_ylabel("slope d log P / d log s")
    for panel in (top, bottom):
        if panel is not None:
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
    return finish(top if bottom is None else [top, bottom], show, save, return_fig)


def _pooled(parts) -> tuple[np.ndarray, np.ndarray]:
    """Mean over regions, by their pairs of bins."""
    import pandas as pd

    # The last fifth of a chromosome has few pairs of bins, all of them at its ends.
    table = pd.concat([part[part["dist_bp"] <= 0.8 * part["dist_bp"].max()] for part in parts])
    stratum = np.rint(np.log(table["dist_bp"].to_numpy()) * 50).astype(int) if len(parts) == 1 else None
    if stratum is None:
        # Regions differ in their pairs only; their strata have like middles, told apart by more than a twentieth.
        order = np.sort(table["dist_bp"].to_numpy())
        edges = order[1:][np.diff(np.log(order)) > 0.05]
        stratum = np.searchsorted(edges, table["dist_bp"].to_numpy(), side="right")
    weight = table["n_valid"].to_numpy(float)
    sums = pd.DataFrame(
        {"w": weight, "d": np.log(table["dist_bp"].to_numpy()) * weight, "p": table["balanced.avg"].to_numpy() * weight}
    )
    total = sums.groupby(stratum).sum()
    return np.exp(total["d"] / total["w"]).to_numpy(), (total["p"] / total["w"]).to_numpy()
