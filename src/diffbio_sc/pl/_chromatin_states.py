from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.chromatin_states import DEFAULT_KEY, read_model_record, read_states, state_colors
from diffbio_sc._options import check_options
from diffbio_sc.get import chromatin_states as states_table
from diffbio_sc.pl._figure import check_save, finish
from diffbio_sc.pl._heatmap import heatmap, new_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["emissions", "transitions", "coverage", "track"]

_KINDS = ("emissions", "transitions", "coverage", "track")
_REGION = re.compile(r"^(?P<chrom>.+?)(?::(?P<start>[\d,]+)-(?P<end>[\d,]+))?$")
_TRACK_BINS = 1000


def chromatin_states(
    adata: AnnData,
    kind: Kind = "emissions",
    *,
    region: str | tuple[str, int, int] | None = None,
    key: str = DEFAULT_KEY,
    column: str | None = None,
    cell_type_key: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | Figure:
    """Draw chromatin states: the model's heat maps, how much of the genome each covers, or a track along a region.

    Parameters
    ----------
    adata
        Object with states (see :func:`diffbio_sc.tl.chromatin_states`).
    kind
        ``"emissions"``: states by marks. ``"transitions"``: the next bin's state given this bin's, on a logarithmic
        scale, for staying is far more likely than leaving. ``"coverage"``: part of the genome in each state.
        ``"track"``: states along a region, a row for each cell type, and their reproducibility where it was estimated.
    region
        Of a track: ``"chr1:1,000-2,000"``, ``"chr1"`` or ``("chr1", 1000, 2000)``; default the first 1000 bins.
    key
        The ``key_added`` of the states.
    column, cell_type_key, axis
        As in :func:`diffbio_sc.get.chromatin_states`.
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
        If there are no such states.
    ValueError
        If ``kind`` is none of these, or the region cannot be read or holds no bins.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> axes = dbio.pl.chromatin_states(adata, key="truth", show=False)
    >>> axes.get_yticklabels()[0].get_text()
    'Active promoter'
    """
    check_options(chromatin_states, locals())
    check_save(save)
    if kind == "emissions":
        ax = _emissions(adata, key, ax)
    elif kind == "transitions":
        ax = _transitions(adata, key, ax)
    else:
        options: dict[str, Any] = {"key": key, "column": column, "cell_type_key": cell_type_key, "axis": axis}
        ax = _coverage(adata, options, ax) if kind == "coverage" else _track(adata, region, options, ax)
    return finish(ax, show, save, return_fig)


def _model(adata: AnnData, key: str):
    record = read_model_record(adata, key)
    emission = np.asarray(record["emission"], float)
    labels = [str(label) for label in record.get("states", [f"E{number}" for number in range(1, len(emission) + 1)])]
    return record, emission, labels, state_colors(record, labels)


def _emissions(adata: AnnData, key: str, ax: Axes | None) -> Axes:
    record, emission, labels, colors = _model(adata, key)
    marks = [str(mark) for mark in record["marks"]]
    kind = str(record.get("emission_kind", "bernoulli"))
    shares = kind in ("bernoulli", "multinomial")
    label = {"bernoulli": "probability of the mark", "multinomial": "share of the reads"}.get(kind)
    # Means of different marks have scales of their own.
    values = emission if shares else emission / np.maximum(abs(emission).max(0), 1e-12)
    lowest = 0.0 if values.min() >= 0 else -1.0
    ax = new_axes(ax, 2.8 + 0.42 * len(marks), 1.3 + 0.27 * len(labels))
    heatmap(
        ax, values, rows=labels, columns=marks, label=label or "mean, over the mark's largest", row_colors=colors,
        cmap="Blues" if lowest == 0 else "RdBu_r", vmin=lowest, vmax=1.0,
    )  # fmt: skip
    ax.set_title("Emissions")
    return ax


def _transitions(adata: AnnData, key: str, ax: Axes | None) -> Axes:
    from matplotlib.colors import LogNorm

    record, _, labels, colors = _model(adata, key)
    transition = np.asarray(record["transition"], float)
    ax = new_axes(ax, 2.8 + 0.4 * len(labels), 1.6 + 0.3 * len(labels))
    heatmap(
        ax, np.where(transition > 0, transition, np.nan), rows=labels, columns=labels, row_colors=colors,
        label="probability of the next bin's state", cmap="Blues", norm=LogNorm(1e-4, 1.0, clip=True),
    )  # fmt: skip
    ax.set(title="Transitions", xlabel="state of the next bin", ylabel="state of a bin")
    return ax


def _coverage(adata: AnnData, options: dict[str, Any], ax: Axes | None) -> Axes:
    states = read_states(adata, **options)
    table = states_table(adata, kind="coverage", **options)
    several = "cell_type" in table
    wide = table.pivot(index="state", columns="cell_type", values="fraction") if several else table.set_index("state")
    wide = wide.reindex(states.labels) if several else wide[["fraction"]].reindex(states.labels)
    ax = new_axes(ax, 6.0, 1.3 + 0.3 * len(wide) * max(1, 0.6 * wide.shape[1]))
    height = 0.8 / wide.shape[1]
    for index, name in enumerate(wide.columns):
        place = np.arange(len(wide)) + (index - (wide.shape[1] - 1) / 2) * height
        bars = ax.barh(place, wide[name], height=height, color=states.colors, edgecolor="0.3", linewidth=0.4)
        texts = [f"{value:.1%}" + (f"  {name}" if several else "") for value in wide[name]]
        ax.bar_label(bars, texts, padding=2, fontsize=7)
    ax.set_yticks(np.arange(len(wide)), wide.index)
    ax.invert_yaxis()
    ax.margins(x=0.25)
    ax.set(xlabel="part of the annotated genome", title="Coverage")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _track(adata: AnnData, region: Any, options: dict[str, Any], ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    states = read_states(adata, **options)
    segments = states_table(adata, kind="segments", **options)
    chrom, first, last = _read_region(region, states)
    here = segments[(segments["chrom"] == chrom) & (segments["end"] > first) & (segments["start"] < last)]
    if not len(here):
        raise ValueError(
            f"adata has no bins with a state in {chrom}:{first:,}-{last:,}; chromosomes: "
            f"{list(segments['chrom'].cat.categories)[:10]}."
        )
    names = [part.name for part in states.parts]
    side = getattr(adata, states.axis)
    sure = "state_reproducibility"
    rows = len(names) * (2 if sure in side else 1)
    ax = new_axes(ax, 9.0, 1.3 + 0.45 * rows + 0.2 * -(-len(here["state"].unique()) // 6))
    level, ticks = 0.0, []
    for part in states.parts:
        mine = here if part.name is None else here[here["cell_type"] == part.name]
        spans = np.stack([np.maximum(mine["start"], first), np.minimum(mine["end"], last)], 1)
        ax.broken_barh(
            [(start, end - start) for start, end in spans], (level, 0.9), facecolors=list(mine["color"]), linewidth=0
        )
        ticks.append((level + 0.45, part.name or "state"))
        level -= 1.0
        if sure in side:
            _draw_probability(ax, part, side[sure].to_numpy(), chrom, first, last, level)
            ticks.append((level + 0.45, "comes back"))
            level -= 1.0
    ax.set_ylim(level + 0.9, 1.0)
    ax.set_xlim(first, last)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel(f"{chrom}, position (bases)")
    ax.xaxis.set_major_locator(plt.MaxNLocator(6))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    shown = [label for label in states.labels if (here["state"] == label).any()]
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=color, label=label)
        for label, color in zip(states.labels, states.colors, strict=True)
        if label in shown
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, fontsize="small")
    return ax


def _draw_probability(ax, part, values, chrom, first, last, level) -> None:
    """Line of the probability between 0 and 1, with both ends marked."""
    table, order = part.genome.table, part.genome.order
    inside = (
        (table["chrom"] == chrom).to_numpy() & (table["end"] > first).to_numpy() & (table["start"] < last).to_numpy()
    )[order]
    bins = order[inside]
    if not len(bins):
        return
    edges = np.append(table["start"].to_numpy()[bins], table["end"].to_numpy()[bins[-1]])
    ax.stairs(level + 0.9 * values[part.positions][bins], edges, baseline=level, fill=True, color="0.45", lw=0)
    for height in (0.0, 0.9):
        ax.axhline(level + height, color="0.8", lw=0.6, zorder=0)


def _read_region(region: Any, states) -> tuple[str, int, int]:
    genome = states.parts[0].genome
    if region is None:
        bins = genome.order[:_TRACK_BINS]
        chrom = str(genome.table["chrom"].iloc[bins[0]])
        bins = bins[(genome.table["chrom"].iloc[bins] == chrom).to_numpy()]
        return chrom, int(genome.table["start"].iloc[bins[0]]), int(genome.table["end"].iloc[bins[-1]])
    if isinstance(region, str):
        found = _REGION.match(region)
        if found is None:
            raise ValueError(f"region must be written as 'chr1:1000-2000' or 'chr1', found {region!r}.")
        chrom = found["chrom"]
        if found["start"] is None:
            mine = genome.table[genome.table["chrom"].astype(str) == chrom]
            if not len(mine):
                raise ValueError(f"adata has no bins on {chrom!r}; chromosomes: {genome.chromosomes[:10]}.")
            return chrom, int(mine["start"].min()), int(mine["end"].max())
        first, last = (int(found[name].replace(",", "")) for name in ("start", "end"))
    else:
        chrom, first, last = str(region[0]), int(region[1]), int(region[2])
    if last <= first:
        raise ValueError(f"region must have start < end, found {chrom}:{first}-{last}.")
    return chrom, first, last
