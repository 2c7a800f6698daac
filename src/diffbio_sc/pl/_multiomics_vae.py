from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata.multiomics_results import read_embedding, weight_columns
from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc._settings import settings
from diffbio_sc.get import multiomics_vae as read_table
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

_TRAINING, _VALIDATION, _PRIOR = "0.65", "#c23b22", "0.88"
_SIDES = (3.2, 4.0, 5.0)  # inches that a map may take
_LINE, _HANDLE, _LETTER = 0.16, 0.35, 0.065  # inches of a legend at its font size


def multiomics_vae(
    mdata: MuData | AnnData,
    *,
    color: str | Sequence[str] | None = None,
    kind: Literal["losses", "umap", "weights"] | None = None,
    terms: Sequence[str] | None = None,
    key: str = "multiomics_vae",
    basis: str | None = None,
    n_neighbors: int = 15,
    n_columns: int = 4,
    size: float | None = None,
    color_map: str | None = None,
    rng: int | np.random.Generator = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw the result of :func:`diffbio_sc.tl.multiomics_vae`.

    Parameters
    ----------
    mdata
        Object that the model was fitted to.
    color
        For ``"umap"`` the columns that colour the cells, one panel each; default the weights of the modalities. For
        ``"weights"`` one column of groups. Columns are those of ``mdata.obs``, else those of the modalities; there
        ``"rna:cell_type"`` says which.
    kind
        Default: the losses of a trained model; the UMAP where it was not trained or ``color`` is given.
        ``"losses"``: the terms of the loss in each epoch, in training and on held-out cells; the dotted line is the
        epoch whose parameters were kept. ``"umap"``: neighbors and UMAP of the embedding, by scanpy. ``"weights"``: the
        share of each modality in the embedding of the cells: violins over the cells that have the modality, with median
        and quartiles; or, with ``color``, mean shares of each group, prior included, with one standard deviation.
    terms
        Terms to draw: ``"loss"``, ``"kl"`` and names of modalities; default all.
    key
        Key of the record in ``mdata.uns``: the ``key_added`` of the fit without a leading ``X_``.
    basis
        Key in ``mdata.obsm`` of the map to draw; default ``"X_umap"`` if there is one, else a UMAP is computed. It is
        not stored.
    n_neighbors
        Neighbors of a cell, for the UMAP.
    n_columns
        Panels in a row.
    size
        Size of a cell in the map, in points squared; default by the number of cells.
    color_map
        Colour map of numbers; default ``settings.color_map``.
    rng
        Seed or generator of the UMAP.
    ax
        Axes to draw on; for ``"weights"``, or a single panel.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes, or a list of them for several panels.

    Raises
    ------
    KeyError
        If the result, a column or the map is missing.
    ValueError
        If ``kind`` or a term is unknown, the model was not trained (losses), ``ax`` is given for several panels,
        groups are asked for by a column of numbers, or a number is not a positive whole one.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> mdata = dbio.datasets.simulate_multiomics()
    >>> dbio.tl.multiomics_vae(mdata, max_epochs=5)
    >>> axes = dbio.pl.multiomics_vae(mdata, kind="umap", color="cell_type", show=False)
    """
    check_options(multiomics_vae, locals(), n_neighbors="[1, inf)", n_columns="[1, inf)", size="(0, inf)")
    n_neighbors, n_columns = int(n_neighbors), int(n_columns)
    check_save(save)
    weights = weight_columns(mdata, key)
    if kind is None:
        kind = "losses" if color is None and len(read_table(mdata, "history", key=key)) else "umap"
    colors = [color] if isinstance(color, str) else list(color or [])
    axes: list[Axes]
    if kind == "losses":
        axes = _losses(mdata, key, list(weights), terms, n_columns, ax)
    elif kind == "umap":
        colors = colors or list(weights.values())
        shown = _shown(mdata, colors)
        shown.obsm["X_umap"] = _map(mdata, key, basis, n_neighbors, rng)
        axes = _maps(shown, colors, {column: name for name, column in weights.items()}, n_columns, size, color_map, ax)
    else:
        if len(colors) > 1:
            raise ValueError(f"kind 'weights' takes one column of groups as color=, found {colors}.")
        axes = [_weights(mdata, key, colors, ax)]
    return finish(axes[0] if len(axes) == 1 else axes, show, save, return_fig)


def _panels(widths: list[float], n_columns: int, height: float, ax: Axes | None) -> list[Axes]:
    import matplotlib.pyplot as plt

    number = len(widths)
    if ax is not None:
        if number != 1:
            raise ValueError(f"ax= is for a single panel, found {number}: name one.")
        return [ax]
    rows, columns = -(-number // n_columns), min(n_columns, number)
    # The layout gives all panels of a figure the same width, apart from their legends.
    width = sum(max(widths[column::columns]) for column in range(columns))
    _, grid = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained")
    for spare in grid.ravel()[number:]:
        spare.remove()
    return list(grid.ravel()[:number])


def _losses(
    mdata, key: str, names: list[str], terms: Sequence[str] | None, n_columns: int, ax: Axes | None
) -> list[Axes]:
    table = read_table(mdata, "history", key=key)
    if not len(table):
        raise ValueError("The model was not trained, it has no history: fit it with max_epochs=None.")
    known = {name: name for name in ("loss", "kl") if name in table}
    known |= {name: f"nll_{name}" for name in names if f"nll_{name}" in table}
    chosen = list(known) if terms is None else [terms] if isinstance(terms, str) else list(terms)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"terms must be some of {list(known)}, found {unknown or chosen}.")
    axes = _panels([3.0] * len(chosen), n_columns, 2.5, ax)
    kept = table["validation_loss" if "validation_loss" in table else "loss"].argmin()
    for axis, name in zip(axes, chosen, strict=True):
        for column, color, label in (
            (known[name], _TRAINING, "training"),
            (f"validation_{known[name]}", _VALIDATION, "held-out"),
        ):
            if column in table:
                axis.plot(table["epoch"], table[column], color=color, linewidth=1.2, label=label)
        axis.axvline(table["epoch"].iloc[kept], color="0.4", linewidth=0.8, linestyle=":")
        title = {"loss": "loss", "kl": "divergence from the prior"}.get(name, f"{name}, -log-likelihood")
        axis.set(title=title, xlabel="epoch")
        axis.title.set_fontsize("medium")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("nats per cell")
    axes[0].legend(frameon=False, fontsize="small", loc="upper right")
    return axes


def _shown(mdata: MuData | AnnData, colors: list[str]) -> AnnData:
    """Object of its own with the columns to draw: nothing of the user's is changed."""
    import anndata

    table = pd.DataFrame({name: _column(mdata, name) for name in colors}, index=mdata.obs_names)
    shown = anndata.AnnData(obs=table)
    for name in table:
        if isinstance(table[name].dtype, pd.CategoricalDtype):
            categories = table[name].cat.categories
            used = np.isin(np.arange(len(categories)), table[name].cat.codes)
            palette = in_memory(mdata.uns.get(f"{name}_colors", ()))
            if len(palette) >= len(categories):
                shown.uns[f"{name}_colors"] = [str(palette[i]) for i in np.flatnonzero(used)]
            # Types that no cell has would fill the legend.
            shown.obs[name] = table[name].cat.remove_unused_categories()
    return shown


class _Legend(NamedTuple):
    """Inches of a map with its legend: side of the map, width of the legend; columns, and letters of each name."""

    side: float
    width: float
    columns: int = 1
    letters: int = 0


def _legend(values: pd.Series) -> _Legend:
    """Room for a legend that is not wider than the map, which grows for it up to a limit; then names are cut."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return _Legend(_SIDES[0], 0.8)
    names = [*values.dropna().astype(str).unique(), *(["NA"] if values.isna().any() else [])]
    longest = max(map(len, names), default=0)
    for side in _SIDES:
        columns = -(-len(names) // int(side / _LINE)) or 1
        width = columns * (_HANDLE + _LETTER * longest)
        if width <= side:
            return _Legend(side, width, columns, longest)
    return _Legend(side, side, columns, max(int((side / columns - _HANDLE) / _LETTER), 6))


def _draw_legend(axis: Axes, shown: AnnData, name: str, room: _Legend) -> None:
    values = shown.obs[name]
    entries = list(zip(values.cat.categories.astype(str), shown.uns[f"{name}_colors"], strict=False))
    if values.isna().any():
        entries.append(("NA", "lightgray"))
    for label, color in entries:
        short = label if len(label) <= room.letters else f"{label[: room.letters - 1]}…"
        axis.scatter([], [], color=color, label=short, s=25)
    axis.legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, ncols=room.columns,
        handletextpad=0.2, columnspacing=0.8, labelspacing=0.3,
    )  # fmt: skip


def _column(mdata: MuData | AnnData, name: str) -> Any:
    """Column of the whole or, where it has none of that name, of the one modality that does."""
    if name in mdata.obs:
        return read_column(mdata.obs, name).array
    modalities = getattr(mdata, "mod", {})
    modality, _, rest = name.partition(":")
    found = [modality] if modality in modalities and rest in modalities[modality].obs else []
    column = rest if found else name
    found = found or [key for key, part in modalities.items() if name in part.obs]
    if len(found) == 1:
        return read_column(modalities[found[0]].obs, column).reindex(mdata.obs_names).array
    columns = [str(column) for column in mdata.obs.columns]
    if found:
        raise KeyError(f"{name!r} is a column of the modalities {found}: write which, as in '{found[0]}:{name}'.")
    raise KeyError(f"mdata.obs has no column {name!r}, nor have the modalities; columns: {columns}.")


def _map(mdata: MuData | AnnData, key: str, basis: str | None, n_neighbors: int, rng) -> np.ndarray:
    import anndata
    import scanpy as sc

    if basis is not None or "X_umap" in mdata.obsm:
        basis = basis or "X_umap"
        if basis not in mdata.obsm:
            raise KeyError(f"mdata.obsm has no {basis!r}; keys: {[str(key) for key in mdata.obsm]}.")
        logger.info("Drawing mdata.obsm[%r] as it is.", basis)
        return np.asarray(mdata.obsm[basis])[:, :2]
    embedding = read_embedding(mdata, key)
    seed = int(as_generator(rng).integers(2**31))
    cells = anndata.AnnData(obs=pd.DataFrame(index=mdata.obs_names), obsm={"embedding": embedding})
    sc.pp.neighbors(cells, use_rep="embedding", n_neighbors=min(n_neighbors, len(embedding) - 1), random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])


def _maps(shown: AnnData, colors, weights, n_columns, size, color_map, ax) -> list[Axes]:
    import scanpy as sc

    rooms = [_legend(shown.obs[name]) for name in colors]
    side = max(room.side for room in rooms)
    axes = _panels([side + room.width for room in rooms], n_columns, side + 0.2, ax)
    size = min(120_000 / shown.n_obs, 60.0) if size is None else size  # scanpy's rule covers a map of few cells
    for axis, name, room in zip(axes, colors, rooms, strict=True):
        sc.pl.umap(
            shown, color=name, ax=axis, show=False, size=size, color_map=color_map or settings.color_map,
            title=f"weight of {weights[name]}" if name in weights else name, legend_loc=None,
            vmin=0 if name in weights else None, vmax=1 if name in weights else None,
        )  # fmt: skip
        if room.letters:
            _draw_legend(axis, shown, name, room)
    return axes


def _weights(mdata, key: str, colors: list[str], ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    table = read_table(mdata, "weights", key=key)
    names = list(table.columns)
    palette = plt.get_cmap("tab10")(np.arange(len(names)) % 10)
    if not colors:
        if ax is None:
            _, ax = plt.subplots(figsize=(1.2 + 1.1 * len(names), 3), layout="constrained")
        for place, name in enumerate(names):
            # A cell without the modality has no weight to show, be that stored as 0 or as missing.
            values = table[name][table[name] > 0].to_numpy()
            if len(values):
                body = ax.violinplot([values], [place], widths=0.8, showextrema=False)["bodies"][0]
                body.set(facecolor=palette[place], alpha=0.6)
                ax.vlines(place, *np.quantile(values, (0.25, 0.75)), color="0.2", linewidth=3)
                ax.plot([place], [np.median(values)], "o", color="white", markeredgecolor="0.2", markersize=5)
        ax.set_xticks(range(len(names)), [f"{name}\n{int((table[name] > 0).sum()):,} cells" for name in names])
        ax.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1), ylabel="share in each cell's embedding")
        return ax
    groups = pd.Series(_column(mdata, colors[0]), index=table.index)
    if pd.api.types.is_numeric_dtype(groups) and not pd.api.types.is_bool_dtype(groups):
        raise ValueError(
            f"{colors[0]!r} holds numbers, color= of kind 'weights' takes groups: make it categorical first."
        )
    shares = table.fillna(0.0).groupby(groups, observed=True)
    # Largest share of the first modality on top.
    means = shares.mean().sort_values(names[0])
    number = shares.size().loc[means.index]
    # How much the cells of a group differ, at the end of each modality's bar.
    spread = table.fillna(0.0).cumsum(axis=1).groupby(groups, observed=True).std().loc[means.index].fillna(0.0)
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 1.0 + 0.24 * len(means)), layout="constrained")
    left = np.zeros(len(means))
    parts = [(name, means[name].to_numpy(), color) for name, color in zip(names, palette, strict=True)]
    for label, widths, color in (*parts, ("prior", 1 - means.sum(axis=1).to_numpy(), _PRIOR)):
        if label != "prior" or widths.max() > 1e-6:
            ax.barh(np.arange(len(means)), widths, left=left, height=0.85, color=color, label=label)
            left = left + widths
            if label != "prior":
                half = spread[label].to_numpy()
                ax.hlines(np.arange(len(means)), left - half, left + half, color="0.15", linewidth=1.2)
    labels = [f"{name} ({count:,})" for name, count in zip(means.index.astype(str), number, strict=True)]
    ax.set_yticks(np.arange(len(means)), labels)
    ax.set(
        xlim=(0, 1), ylim=(-0.6, len(means) - 0.4), xlabel="mean share in the embedding; lines: ± 1 standard deviation"
    )
    ax.set_ylabel(f"{colors[0]} (cells)", labelpad=8)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return ax
