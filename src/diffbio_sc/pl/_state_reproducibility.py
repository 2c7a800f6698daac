from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.get import state_reproducibility as reproducibility_table
from diffbio_sc.pl._figure import check_save, finish
from diffbio_sc.pl._heatmap import heatmap, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINT, _CHANCE = "#0072b2", "#d55e00"


def state_reproducibility(
    adata: AnnData,
    kind: Literal["states", "reliability", "overlap"] = "states",
    *,
    replicate: str | None = None,
    key: str = "state_reproducibility",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw how chromatin states come back in another replicate.

    Parameters
    ----------
    adata
        Object whose states were compared (see :func:`diffbio_sc.tl.state_reproducibility`).
    kind
        ``"states"``: for each state the rate at which it comes back, with two standard errors, the mean posterior of
        its calls, and the rate expected by chance. ``"reliability"``: predicted against found rates, points sized by
        the number of bins. ``"overlap"``: for each state where the other replicate has its bins.
    replicate
        Replicate whose states are looked for in the other; default the first.
    key
        The ``key_added`` of the comparison.
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
        If there is no such result or replicate.
    ValueError
        If ``kind`` is none of the three.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000, n_replicates=2)
    >>> dbio.tl.chromatin_states(adata, n_states=4, effort="fast", cell_type_key="sample")
    >>> dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    >>> axes = dbio.pl.state_reproducibility(adata, "reliability", show=False)
    """
    check_options(state_reproducibility, locals())
    check_save(save)
    kinds = ("states", "reliability", "overlap")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {kinds}, found {kind!r}.")
    table = reproducibility_table(adata, key=key, kind=kind)
    there = list(dict.fromkeys(table["replicate"].astype(str)))
    if replicate is not None and replicate not in there:
        raise KeyError(f"no replicate {replicate!r} in the result; there are {there}.")
    table = table[table["replicate"].astype(str) == (replicate or there[0])]
    ax = {"states": _states, "reliability": _reliability, "overlap": _overlap}[kind](table, ax)
    return finish(ax, show, save, return_fig)


def _states(table: pd.DataFrame, ax: Axes | None) -> Axes:
    ax = new_axes(ax, 6.0, 1.6 + 0.28 * len(table))
    place = np.arange(len(table))
    ax.hlines(place, table["by_chance"], table["found"], color="0.85", lw=3, zorder=1)
    ax.scatter(table["by_chance"], place, marker="|", s=60, color=_CHANCE, label="by chance", zorder=2)
    ax.scatter(
        table["posterior"],
        place,
        marker="o",
        s=28,
        facecolor="white",
        edgecolor="0.4",
        label="mean posterior",
        zorder=3,
    )
    ax.errorbar(
        table["found"], place, xerr=2 * table["found_se"].fillna(0), fmt="o", ms=5, color=_POINT, capsize=2,
        label="comes back (± 2 SE)", zorder=4,
    )  # fmt: skip
    ax.set_yticks(place, table["state"])
    ax.invert_yaxis()
    ax.set_xlim(-0.02, 1.02)
    ax.set(xlabel="part of a state's bins", title="Reproducibility of states")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return ax


def _reliability(table: pd.DataFrame, ax: Axes | None) -> Axes:
    ax = new_axes(ax, 4.6, 4.4)
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", zorder=1)
    filled = table[table["bins"] > 0]
    size = 20 + 280 * filled["bins"] / filled["bins"].max()
    ax.scatter(filled["predicted"], filled["found"], s=size, color=_POINT, alpha=0.85, edgecolor="white", zorder=2)
    for row in filled.itertuples():
        ax.annotate(
            f"{row.bins:,}", (row.predicted, row.found), xytext=(7, -11), textcoords="offset points", fontsize=7,
            color="0.35",
        )  # fmt: skip
    ax.set(
        xlim=(-0.03, 1.06),
        ylim=(-0.03, 1.06),
        xlabel="stated probability that the state comes back",
        ylabel="part of the bins that came back",
        title="Reliability (numbers: bins)",
    )
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _overlap(table: pd.DataFrame, ax: Axes | None) -> Axes:
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("state", "other_state"))
    joint = table.pivot(index="state", columns="other_state", values="bins").loc[rows, columns].to_numpy(float)
    total = joint.sum(1, keepdims=True)
    share = np.divide(joint, total, out=np.full_like(joint, np.nan), where=total > 0)
    ax = new_axes(ax, 2.8 + 0.42 * len(columns), 1.6 + 0.3 * len(rows))
    heatmap(ax, share, rows=rows, columns=columns, label="part of the state's bins", cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="state in the other replicate", ylabel="state", title="Where the other replicate has them")
    return ax
