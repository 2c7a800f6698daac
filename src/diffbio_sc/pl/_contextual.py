from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options
from diffbio_sc.get import contextual as contextual_table
from diffbio_sc.pl._figure import check_save, distinct_colors, finish
from diffbio_sc.pl._heatmap import new_axes

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODEL, _FLOOR, _CHANCE, _ALL = "#0072b2", "#d55e00", "0.55", "0.1"
_BINS = 10
_FEWEST = 20  # regions of a bin of the reliability curve
_FEW = 8  # cell types that have a line of their own
_CURVES = {"loss": ("training regions", _MODEL), "validation_loss": ("validation regions", _FLOOR)}
_REPORTED = {"auroc": "auroc", "auprc": "auprc", "auroc_variable": "auroc_var"}  # names of the training's report
_METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "auroc_variable": "AUROC of regions that differ between cell types",
}


def contextual(
    adata: AnnData,
    kind: Literal["accuracy", "reliability", "history"] = "accuracy",
    *,
    metric: Literal["auroc", "auprc", "auroc_variable"] = "auroc",
    split: str | None = None,
    layer: str | None = None,
    key: str = "contextual",
    axis: Literal["var", "obs"] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw how good a contextual sequence model is, and how it was trained.

    Parameters
    ----------
    adata
        Object with predictions (see :func:`diffbio_sc.tl.contextual`).
    kind
        ``"accuracy"``: a metric of each cell type on held-out chromosomes, with what chance gives and, where the
        training measured it, the floor: a linear model of words, which a network must beat to be of use.
        ``"reliability"``: share of active regions against their predicted probability, in ten bins of equal numbers,
        with two standard errors. ``"history"``: losses of each network by epoch.
    metric
        Of the accuracy.
    split
        Regions to judge by; default ``"test"``, or ``"val"`` where there is no test.
    layer, key, axis
        As in :func:`diffbio_sc.get.contextual`.
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
        If there are no predictions, no such split, or no history.
    ValueError
        If ``kind`` or ``metric`` is none of these.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.pl.contextual(adata, show=False).get_xlabel()
    'AUROC'
    """
    check_options(contextual, locals())
    check_save(save)
    kinds = ("accuracy", "reliability", "history")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {kinds}, found {kind!r}.")
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {tuple(_METRICS)}, found {metric!r}.")
    options: dict[str, Any] = {"layer": layer, "key": key, "axis": axis}
    if kind == "history":
        ax = _history(adata, key, ax)
    elif kind == "accuracy":
        ax = _accuracy(adata, metric, split, options, ax)
    else:
        ax = _reliability(adata, split, options, ax)
    return finish(ax, show, save, return_fig)


def _choose_split(table: pd.DataFrame, split: str | None) -> tuple[pd.DataFrame, str]:
    if "split" not in table:
        if split is not None:
            raise KeyError(f"adata has no split: leave split={split!r} out.")
        return table, "all"
    have = [name for name in ("test", "val", "train", "all") if (table["split"] == name).any()]
    name = split if split is not None else have[0]
    if name not in have:
        raise KeyError(f"adata has no region of split {name!r}; splits: {have}.")
    return table[table["split"] == name], name


def _accuracy(adata: AnnData, metric: str, split: str | None, options: dict[str, Any], ax: Axes | None) -> Axes:
    table, name = _choose_split(contextual_table(adata, kind="cell_types", **options), split)
    table = table.sort_values(metric, ascending=True, na_position="first")
    cells = [str(cell) for cell in table["cell_type"]]
    values = table[metric].to_numpy()
    ax = new_axes(ax, 5.6, 1.5 + 0.26 * len(cells))
    rows = np.arange(len(cells))
    chance = table["active"].to_numpy() if metric == "auprc" else np.full(len(cells), 0.5)
    ax.hlines(rows, chance, values, color="0.8", lw=1.5, zorder=1)
    ax.plot(chance, rows, "|", color=_CHANCE, ms=8, mew=1.5, label="chance", zorder=2)
    floor = _floor_of(adata, options["key"], name, metric)
    if floor is not None:
        ax.axvline(floor, color=_FLOOR, lw=1.2, ls="--", label="floor, mean of cell types", zorder=1)
    ax.plot(values, rows, "o", color=_MODEL, ms=6, label="model", zorder=4)
    for row in np.flatnonzero(np.isnan(values)):
        ax.text(chance[row], row, "  not defined: one label in all regions", va="center", fontsize=7, color="0.4")
    ax.set_yticks(rows, cells)
    ax.set_ylim(-0.7, len(cells) - 0.3)
    ax.set(xlabel=_METRICS[metric], title=f"Accuracy, split {name!r}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.08)
    below = -0.55 / (0.26 * len(cells) + 0.3)  # under the label of the axis, whatever the height
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, below), ncols=3)
    return ax


def _floor_of(adata: AnnData, key: str, split: str, metric: str) -> float | None:
    """The floor's metric, the mean over cell types, where the training measured it."""
    try:
        table = contextual_table(adata, kind="metrics", key=key)
    except KeyError:
        return None
    chosen = (table["part"] == "floor") & (table["split"] == split) & (table["metric"] == _REPORTED[metric])
    values = table.loc[chosen, "value"].dropna()
    return float(values.iloc[0]) if len(values) else None


def _reliability(adata: AnnData, split: str | None, options: dict[str, Any], ax: Axes | None) -> Axes:
    table = contextual_table(adata, **options)
    if "label" not in table:
        raise ValueError("these predictions have no labels to be held against: pass layer=..., the layer with labels.")
    table, name = _choose_split(table, split)
    table = table[table["label"].notna()]
    cells = [cell for cell in table["cell_type"].cat.categories if (table["cell_type"] == cell).any()]
    ax = new_axes(ax, 5.4, 4.2)
    ax.plot([0, 1], [0, 1], color=_CHANCE, lw=1, ls=":", label="predicted = observed")
    groups = [(str(cell), table[table["cell_type"] == cell]) for cell in cells] if 1 < len(cells) <= _FEW else []
    colors = [*distinct_colors(len(groups)), _ALL] if groups else [_ALL]
    for color, (label, mine) in zip(colors, [*groups, ("all", table)], strict=True):
        order = np.argsort(mine["probability"].to_numpy(), kind="stable")
        parts = np.array_split(order, max(1, min(_BINS, len(order) // _FEWEST)))
        predicted = np.array([mine["probability"].to_numpy()[part].mean() for part in parts])
        observed = np.array([mine["label"].to_numpy()[part].mean() for part in parts])
        if mine is not table:
            ax.plot(predicted, observed, "-", color=color, lw=1, label=label, zorder=2)
            continue
        # Regions are what was sampled: the labels of one region's cell types are no independent draws.
        error = np.sqrt(observed * (1 - observed) * len(cells) / np.array([len(part) for part in parts]))
        ax.errorbar(predicted, observed, 2 * error, fmt="o-", color=color, ms=4, lw=1.6, label=label, zorder=3)
    ax.set(
        xlabel="predicted probability of activity",
        ylabel="share of active regions",
        title=f"Reliability, split {name!r}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def _history(adata: AnnData, key: str, ax: Axes | None) -> Axes:
    record = in_memory(adata.uns.get(key))
    report = record.get("report", {}) if hasattr(record, "get") else {}
    history = report.get("history", {})
    # One network, or several by their number.
    runs = [run for run in history.values() if hasattr(run, "keys")] or [history]
    curves = [
        (label, color, np.asarray(run[name], float))
        for name, (label, color) in _CURVES.items()
        for run in runs
        if name in run and np.size(run[name])
    ]
    if not curves:
        raise KeyError(f"adata.uns[{key!r}] has no history: no network was trained (refine=True trains some).")
    ax = new_axes(ax, 5.2, 3.4)
    told: set[str] = set()
    for label, color, curve in curves:
        name = "_" if label in told else label  # once in the legend
        told.add(label)
        ax.plot(np.arange(1, len(curve) + 1), curve, "o-", ms=3, lw=1, color=color, label=name)
    ax.set(
        xlabel="epoch",
        ylabel="loss (nats)",
        title="Training of the networks" if len(runs) > 1 else "Training of the network",
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax
