from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.tables import in_memory, numbers_or_nan, read_column
from diffbio_sc._options import check_options
from diffbio_sc.pl._contact_panels import (
    LINE,
    LOOP,
    coarsen,
    draw_rotated,
    draw_signed,
    finish_track,
    mark_domains,
    mark_loops,
)
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRACKS = ("compartment", "insulation")
_MARKS = ("loops", "tads")


def contacts(
    adata: AnnData,
    region: str | tuple[str, int, int] | None = None,
    *,
    values: Literal["balanced", "oe", "counts"] = "balanced",
    tracks: Sequence[str] | None = None,
    marks: Sequence[str] | None = None,
    max_distance: int | None = None,
    key: str = "contacts",
    weight_key: str = "contact_weight",
    axis: Literal["var", "obs"] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    width: float = 9.0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw a contact map as a triangle above the genome, with loops and domains on it and tracks under it.

    Parameters
    ----------
    adata
        Object with a contact map.
    region
        ``"chr1"``, ``"chr1:1,000,000-2,000,000"`` or ``("chr1", 1_000_000, 2_000_000)``; default the first chromosome.
    values
        ``"balanced"`` contacts, those over expected (``"oe"``), or raw ``"counts"``.
    tracks
        What to draw under the map: ``"compartment"`` (grey where :func:`diffbio_sc.tl.compartments` cannot tell A from
        B), ``"insulation"`` (all windows, with boundaries) and any numeric
        column of the bins. Default those of the two that are there.
    marks
        What to mark on the map: ``"loops"`` and ``"tads"``. Default those that are there.
    max_distance
        Height of the map in base pairs; default half of the region, at most 5 Mb.
    key, weight_key, axis
        Key of the counts, column with the weights, and which axis holds the bins, if both could.
    vmin, vmax
        Range of the colours; default from the values shown.
    cmap
        Colours; default ``"magma_r"``, of observed over expected ``"RdBu_r"``.
    width
        Of the figure in inches.
    ax
        Axes to draw on, for the map alone (``tracks=[]``).
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes of the map, or a list of them, the map's first, where there are tracks.

    Raises
    ------
    KeyError
        If the map, its weights, or a track or mark that was asked for is missing.
    ValueError
        If the region cannot be read or holds no bins, or ``ax`` is given for several panels.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(300)
    >>> dbio.tl.contacts(adata, phasing_track="gc")
    >>> axes = dbio.pl.contacts(adata, "chr1:500,000-2,500,000", show=False)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm, TwoSlopeNorm

    check_options(contacts, locals(), empty=("tracks", "marks"), max_distance="(0, inf) base pairs", width="(0, inf)")
    check_save(save)
    from diffbio_sc._anndata.contacts import read_contacts, read_weights
    from diffbio_sc._anndata.regions import bins_of_region, region_matrix

    found = read_contacts(adata, key, axis=axis, allow_fractional=True)
    bins = bins_of_region(region, found)
    weights = None if values == "counts" else read_weights(adata, found, weight_key)
    rows = _track_values(adata, found, bins, tracks)
    tables = _mark_tables(adata, marks)
    if ax is not None and rows:
        raise ValueError(f"ax= is for the map alone, found tracks {[name for name, _ in rows]}: pass tracks=[].")
    matrix, factor = coarsen(region_matrix(found, bins, values, weights))
    start, resolution = int(found.map.start[bins.start]), found.map.resolution * factor
    length = (bins.stop - bins.start) * found.map.resolution
    height = max(min(length // 2, 5_000_000), resolution) if max_distance is None else max_distance
    norm: Any
    if values == "oe":
        with np.errstate(divide="ignore"):
            ratio = np.log2(matrix)
        reach = max(_upper(np.abs(ratio), height // resolution), 0.5)
        low, high = (-reach if vmin is None else vmin), (reach if vmax is None else vmax)
        # A pixel without a contact is as low as any, not missing.
        norm, shown, label = TwoSlopeNorm(0.0, low, high), np.maximum(ratio, low), "log2 observed / expected"
    else:
        shown = np.where(matrix > 0, matrix, np.nan)
        near = _band(shown, height // resolution)
        known = near[np.isfinite(near)]
        default = (1.0, 10.0) if not len(known) else tuple(np.quantile(known, [0.02, 0.995]))
        low, high = (default[0] if vmin is None else vmin), (default[1] if vmax is None else vmax)
        norm = LogNorm(low, max(high, 1.01 * low))
        shown = np.where(matrix == 0, low, matrix)
        label = "balanced contacts" if values == "balanced" else "contacts"
    panels = 1 + len(rows)
    if ax is None:
        tall = width * 0.5 * min(2 * height / length, 1.0) + 0.6
        figure, grid = plt.subplots(
            panels,
            1,
            figsize=(width, tall + 0.75 * len(rows)),
            sharex=True,
            squeeze=False,
            layout="constrained",
            height_ratios=[tall, *[0.75] * len(rows)],
        )
        axes: list[Axes] = list(grid[:, 0])
    else:
        figure, axes = ax.figure, [ax]  # type: ignore[assignment]
    top = axes[0]
    colors = plt.get_cmap(cmap or ("RdBu_r" if values == "oe" else "magma_r")).with_extremes(bad="0.93")
    mesh = draw_rotated(top, shown, start, resolution, height, colors, norm)
    figure.colorbar(mesh, ax=top, label=label, shrink=0.7, pad=0.01, aspect=18)
    chrom = found.map.chrom_names[found.map.chrom[bins.start]]
    here = (chrom, start, int(found.map.end[bins.stop - 1]))
    if "tads" in tables:
        mark_domains(top, tables["tads"], here)
    if "loops" in tables:
        mark_loops(top, tables["loops"], here, LOOP)
    edges = np.append(found.map.start[bins], found.map.end[bins.stop - 1]).astype(float)
    for panel, (name, track) in zip(axes[1:], rows, strict=True):
        _draw_track(panel, edges, name, track)
    axes[-1].set_xlabel(f"{chrom} (Mb)")
    top.set_xlim(edges[0] / 1e6, edges[-1] / 1e6)
    return finish(axes[0] if panels == 1 else axes, show, save, return_fig)


def _band(matrix: np.ndarray, reach: int) -> np.ndarray:
    """Values up to a distance, the two first diagonals left out."""
    return matrix[np.tri(len(matrix), k=reach, dtype=bool) & ~np.tri(len(matrix), k=1, dtype=bool)]


def _upper(values: np.ndarray, reach: int) -> float:
    near = _band(values, reach)
    known = near[np.isfinite(near)]
    return float(np.quantile(known, 0.97)) if len(known) else 1.0


def _track_values(adata: AnnData, found, bins: slice, tracks: Sequence[str] | None) -> list[tuple[str, Any]]:

    table = getattr(adata, found.axis.axis)
    field = adata.varm if found.axis.axis == "var" else adata.obsm
    if tracks is None:
        tracks = [name for name in _TRACKS if name in (table if name == "compartment" else field)]
    rows: list[tuple[str, Any]] = []
    for name in [tracks] if isinstance(tracks, str) else tracks:
        if name == "insulation" and name in field:
            windows = in_memory(field[name])
            columns = {
                str(window): found.to_map(windows[window].to_numpy(np.float64))[bins] for window in windows.columns
            }
            marked = "is_boundary" in table
            boundary = found.to_map(read_column(table, "is_boundary").to_numpy(bool), False)[bins] if marked else None
            rows.append((name, (columns, boundary)))
            continue
        if name not in table:
            raise KeyError(
                f"no track {name!r}; columns of the bins: {list(map(str, table.columns))}, and 'insulation' after "
                "dbio.tl.insulation."
            )
        values = found.to_map(numbers_or_nan(table, name))[bins]
        if name == "compartment" and "compartment_label" in table:
            named = read_column(table, "compartment_label").notna().to_numpy()
            rows.append((name, (values, found.to_map(named, False)[bins])))
        else:
            rows.append((name, (values, None)))
    return rows


def _mark_tables(adata: AnnData, marks: Sequence[str] | None) -> dict[str, Any]:
    where = {"loops": ("loops", "table"), "tads": ("insulation", "tads")}
    wanted = _MARKS if marks is None else [marks] if isinstance(marks, str) else marks
    unknown = [name for name in wanted if name not in where]
    if unknown:
        raise ValueError(f"marks must be some of {list(_MARKS)}, found {list(wanted)}.")
    tables = {}
    for name in wanted:
        key, entry = where[name]
        record = in_memory(adata.uns.get(key))
        if hasattr(record, "keys") and entry in record:
            tables[name] = record[entry]
        elif marks is not None:
            raise KeyError(f"adata.uns has no {name}: run dbio.tl.{key}(adata) first; keys: {list(adata.uns)}.")
    return tables


def _draw_track(ax: Axes, edges: np.ndarray, name: str, track: Any) -> None:
    if name != "insulation":
        values, known = track
        if name == "compartment" or np.nanmin(np.append(values, 0.0)) < 0:
            draw_signed(ax, edges, values, name, known)
        else:
            ax.stairs(np.nan_to_num(values), edges / 1e6, fill=True, color="0.6", lw=0)
            finish_track(ax, name)
        return
    columns, boundary = track
    shades = np.linspace(0.0, 0.55, len(columns))
    for shade, (window, values) in zip(shades, columns.items(), strict=True):
        ax.plot(edges[:-1] / 1e6, values, color=str(shade), lw=0.9, label=f"{int(window) / 1000:g} kb")
    if boundary is not None and boundary.any():
        ax.vlines(
            edges[:-1][boundary] / 1e6,
            0,
            0.12,
            transform=ax.get_xaxis_transform(),
            color=LOOP,
            lw=1.4,
            label="boundary",
        )
    ax.axhline(0, color=LINE, lw=0.4)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False, fontsize="x-small", handlelength=1.2)
    finish_track(ax, name)
