from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options
from diffbio_sc.get import combine_features as feature_table
from diffbio_sc.pl._figure import check_save, finish
from diffbio_sc.pl._heatmap import heatmap, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

_MOST_NAMES = 80  # columns beyond which names would overlap: blocks are named alone
_LIMIT = 2.0  # standard deviations at which colours end


def combine_features(
    data: AnnData | MuData,
    *,
    groupby: str | None = None,
    blocks: Sequence[str] | None = None,
    key: str = "X_combined",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw combined features: their mean in each group, or the correlations of all with all.

    Parameters
    ----------
    data
        Object with the result of :func:`diffbio_sc.tl.combine_features`.
    groupby
        Column of groups. Each feature then has its mean in each group, as a distance from its mean over all rows in
        standard deviations, so that features of different units compare. Default: no groups, and Pearson correlations
        of all pairs of features, over the rows that have both.
    blocks
        Keys whose features to draw, in this order; default all.
    key
        The ``key_added`` of the features.
    ax
        Axes to draw on.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes. Lines part the blocks. Grey: a feature that is constant, or missing in the whole group. Colours of groups
    end at 2 standard deviations.

    Raises
    ------
    KeyError
        If there is no such result, column or block.
    ValueError
        If no row has a group.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> spots.obs["dense"] = (spots.obs["n_cells"] > 8).map({True: "many cells", False: "few cells"})
    >>> dbio.tl.combine_features(spots, ["truth", "n_cells"])
    >>> axes = dbio.pl.combine_features(spots, groupby="dense", show=False)
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['few cells (60)', 'many cells (40)']
    """
    check_options(combine_features, locals())
    check_save(save)
    features = _chosen(feature_table(data, key=key), blocks)
    axis = str(in_memory(data.uns[key])["params"]["axis"])
    values = in_memory(getattr(data, f"{axis}m")[key])[list(features.index)]
    several = features["block"].nunique() > 1
    # Within blocks the names of the features alone: a line under them names the block.
    columns = list(features["feature"].astype(str)) if len(features) <= _MOST_NAMES else [""] * len(features)
    if groupby is None:
        side = 1.8 + min(0.24 * len(columns), 9.0)
        ax = new_axes(ax, side + 1.2, side)
        found, rows = values.corr().to_numpy(), columns
        options: dict[str, Any] = {"label": "Pearson correlation", "vmin": -1.0, "vmax": 1.0}
    else:
        found, rows = _means(values, _groups(data, axis, groupby))
        ax = new_axes(ax, 2.6 + min(0.26 * len(columns), 12.0), 1.9 + 0.28 * len(rows))
        options = {"label": "mean (standard deviations\nfrom the mean of all)", "vmin": -_LIMIT, "vmax": _LIMIT}
    import matplotlib

    colors = matplotlib.colormaps["PuOr_r"].with_extremes(bad="0.85")
    heatmap(ax, found, rows=rows, columns=columns, numbers=False, cmap=colors, **options)
    ax.tick_params(labelsize=8)
    if groupby is not None:
        ax.set_ylabel(groupby)
    if several or len(features) > _MOST_NAMES:
        alone = features["block"].map(features["block"].value_counts()) == 1
        told = np.where(alone & (features["block"] == features["feature"]), "", features["block"])
        _part(ax, list(features["block"].astype(str)), list(told), both=groupby is None)
    return finish(ax, show, save, return_fig)


def _chosen(table: pd.DataFrame, blocks: Sequence[str] | None) -> pd.DataFrame:
    if blocks is None:
        return table
    blocks = [blocks] if isinstance(blocks, str) else list(blocks)
    known = list(dict.fromkeys(table["block"]))
    unknown = [block for block in blocks if block not in known]
    if unknown or not blocks:
        raise KeyError(f"blocks must be among {known}, found {unknown or blocks}.")
    return pd.concat([table[table["block"] == block] for block in dict.fromkeys(blocks)])


def _groups(data: Any, axis: str, groupby: str) -> pd.Series:
    table = getattr(data, axis)
    if groupby not in table:
        raise KeyError(f"groupby={groupby!r} is no column of .{axis}; columns: {list(map(str, table.columns))}.")
    groups = read_column(table, groupby)
    if not groups.notna().any():
        raise ValueError(f"groupby={groupby!r} has no group: all rows of .{axis}[{groupby!r}] are missing.")
    return groups


def _means(values: pd.DataFrame, groups: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Mean of each feature in each group in standard deviations from its mean, and the groups with their sizes."""
    numbers = values.astype(np.float64)
    spread = numbers.std(ddof=0)
    # A constant column has a spread of rounding errors.
    spread = spread.where(spread > 1e-6 * numbers.abs().max())
    # Not by the Series: names of rows may occur twice. A Categorical keeps the order of its categories.
    by = groups.array if isinstance(groups.dtype, pd.CategoricalDtype) else groups.to_numpy()
    grouped = ((numbers - numbers.mean()) / spread).groupby(by, observed=True)
    means, sizes = grouped.mean(), grouped.size()
    return means.to_numpy(), [f"{name} ({sizes[name]})" for name in means.index]


def _part(ax: Axes, blocks: list[str], told: list[str], *, both: bool) -> None:
    """Part blocks by lines, and write the name of each, unless its column has it already, above its columns."""
    edges = [0, *(place for place, (a, b) in enumerate(pairwise(blocks), 1) if a != b), len(blocks)]
    for edge in edges[1:-1]:
        ax.axvline(edge - 0.5, color="black", lw=1.2)
        if both:
            ax.axhline(edge - 0.5, color="black", lw=1.2)
    for start, end in pairwise(edges):
        ax.annotate(
            told[start], ((start + end - 1) / 2, 1), xycoords=ax.get_xaxis_transform(), xytext=(0, 4),
            textcoords="offset points", ha="left" if end - start < 4 else "center", va="bottom",
            rotation=35 if end - start < 4 else 0, fontsize=9, fontweight="bold",
        )  # fmt: skip
