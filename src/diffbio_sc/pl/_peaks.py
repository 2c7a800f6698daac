from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata.tables import in_memory, read_column
from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COVERAGE, _BACKGROUND, _POSTERIOR, _PEAK = "0.72", "#1f4e79", "#e08e0b", "#c23b22"
_LABELS = {"noPeaks": "#f6f4bf", "peaks": "#a445ee", "peakStart": "#ffafaf", "peakEnd": "#ff4c4c"}
_REGION = re.compile(r"^(?P<chrom>.+):(?P<start>[\d,]+)-(?P<end>[\d,]+)$")


def peaks(
    adata: AnnData,
    region: str | tuple[str, int, int] | None = None,
    *,
    tracks: Sequence[str] | None = None,
    labels: pd.DataFrame | None = None,
    key: str = "peaks",
    layer: str | None = None,
    axis: str | None = None,
    height: float = 1.4,
    width: float = 9.0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw counts, posterior and peaks of :func:`diffbio_sc.tl.peaks` along a region, like a genome browser.

    Parameters
    ----------
    adata
        Object whose peaks were called.
    region
        ``"chr1:1000-2000"`` or ``("chr1", 1000, 2000)``; default 100 bins about the strongest peak.
    tracks
        Rows (or groups) to draw, one panel each; default the first six.
    labels
        Expert labels to draw behind (see :func:`diffbio_sc.tl.train_peaks`).
    key
        The ``key_added`` of the peaks.
    layer
        Layer with the counts; default that of the call.
    axis
        Which axis holds the bins, if both could.
    height, width
        Of one panel, in inches.
    ax
        Axes to draw on, for a single track.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes, or a list of them for several tracks.

    Raises
    ------
    KeyError
        If there are no peaks of that key, or no such track.
    ValueError
        If the region cannot be read or holds no bins.

    Notes
    -----
    Grey: counts. Blue line: background (the mean of all tracks where matrices are sparse). Orange line: posterior
    probability of a peak, on the scale to the right. Red bars: peaks, with a triangle below the summit.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, cell_types = dbio.datasets.simulate_fragments()
    >>> bins = dbio.pp.coverage(fragments, bin_size=50, groupby=cell_types)
    >>> dbio.tl.peaks(bins)
    >>> axes = dbio.pl.peaks(bins, "chr1:100000-160000", show=False)
    """
    import matplotlib.pyplot as plt
    import scipy.sparse as sp

    check_options(peaks, locals(), height="(0, inf)", width="(0, inf)")
    check_save(save)
    from diffbio_sc._anndata import prefix_of, read_labels
    from diffbio_sc._anndata.genome_axis import read_genome_axis
    from diffbio_sc._anndata.peak_tables import read_peak_tables

    tables = read_peak_tables(adata, key)
    params = in_memory(adata.uns[key])["params"]
    groupby = params.get("groupby")
    prefix = prefix_of(key, "peaks")
    genome = read_genome_axis(adata, axis=axis)  # type: ignore[arg-type]
    names = list(tables)
    chosen = list(tracks) if tracks is not None else names[:6]
    missing = [name for name in chosen if name not in tables]
    if missing:
        raise KeyError(f"no peaks of tracks {missing}; tracks: {names[:10]}.")
    if ax is not None and len(chosen) != 1:
        raise ValueError(f"ax= is for one track, found {len(chosen)}: pass tracks=[name].")
    chrom, first, last = _region(region, genome, {name: tables[name] for name in chosen})
    bins = genome.order[
        (genome.table["chrom"].astype(str) == chrom).to_numpy()[genome.order]
        & (genome.table["end"].to_numpy()[genome.order] > first)
        & (genome.table["start"].to_numpy()[genome.order] < last)
    ]
    if not len(bins):
        raise ValueError(f"adata has no bins in {chrom}:{first}-{last}; chromosomes: {genome.chromosomes[:10]}.")
    start, end = genome.table["start"].to_numpy()[bins], genome.table["end"].to_numpy()[bins]
    edges = np.append(start, end[-1])
    layer = layer or params.get("layer")
    counts = genome.signal(adata, layer)
    side = adata.var if genome.axis == "var" else adata.obs
    if groupby is None:
        codes = np.arange(counts.shape[0])
    else:
        codes, _ = read_labels(genome.track_table(adata), groupby, name="adata.obs")

    def stored(name: str) -> np.ndarray | None:
        """Rows of a result, tracks or groups by the bins of the region."""
        field = adata.layers if groupby is None else (adata.varm if genome.axis == "var" else adata.obsm)
        if f"{prefix}{name}" not in field:
            return None
        matrix = field[f"{prefix}{name}"]
        rows = matrix[:, bins] if groupby is None and genome.axis == "var" else matrix[bins].T
        return rows.toarray() if sp.issparse(rows) else np.asarray(rows)

    scores, background = stored("peak_scores"), stored("peak_background")
    if scores is None:
        raise KeyError(f"adata has no matrix '{prefix}peak_scores': run diffbio_sc.tl.peaks again.")
    if background is None:
        mean = read_column(side, f"{prefix}peak_background").to_numpy()[bins]
        background = np.broadcast_to(mean, scores.shape)

    if ax is None:
        _, grid = plt.subplots(
            len(chosen),
            1,
            figsize=(width, height * len(chosen) + 0.5),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid[:, 0])
    else:
        axes = [ax]
    for panel, name in zip(axes, chosen, strict=True):
        index = names.index(name)
        values = counts.take(np.flatnonzero(codes == index), bins).sum(0)
        _panel(panel, edges, values, background[index], scores[index], tables[name], chrom, first, last)
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
        if labels is not None:
            mine = labels[(labels["sample"].astype(str) == name) & (labels["chrom"].astype(str) == chrom)]
            for row in mine.itertuples():
                panel.axvspan(row.start, row.end, color=_LABELS.get(row.annotation, "0.9"), alpha=0.45, lw=0, zorder=0)
    axes[-1].set_xlabel(f"position on {chrom} (bp)")
    axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[-1].xaxis.set_major_locator(plt.MaxNLocator(4))
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=_COVERAGE, label="counts"),
        plt.Line2D([], [], color=_BACKGROUND, label="background"),
        plt.Line2D([], [], color=_POSTERIOR, label="posterior (right)"),
        plt.Rectangle((0, 0), 1, 1, color=_PEAK, label="peaks"),
    ]
    if labels is not None:
        handles += [
            plt.Rectangle((0, 0), 1, 1, color=_LABELS[kind], alpha=0.45, label=f"label {kind}") for kind in _LABELS
        ]
    axes[0].legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize="small"
    )
    return finish(axes[0] if len(axes) == 1 else axes, show, save, return_fig)


def _region(region, genome, tables) -> tuple[str, int, int]:
    if region is None:
        some = [table for table in tables.values() if len(table)]
        if not some:
            first = genome.table.iloc[genome.order[0]]
            return (
                str(first["chrom"]),
                int(first["start"]),
                int(first["end"]) + 100 * int(first["end"] - first["start"]),
            )
        every = pd.concat(some)
        best = every.iloc[int(np.argmax(every["pValue"].to_numpy()))]
        reach = 50 * int(np.median(genome.table["end"] - genome.table["start"])) + (best["end"] - best["start"])
        middle = int(best["start"] + best["peak"])
        return str(best["chrom"]), max(middle - reach, 0), middle + reach
    if isinstance(region, str):
        match = _REGION.match(region)
        if match is None:
            raise ValueError(f"region must be written as 'chr1:1000-2000', found {region!r}.")
        chrom, first, last = match["chrom"], int(match["start"].replace(",", "")), int(match["end"].replace(",", ""))
    else:
        chrom, first, last = str(region[0]), int(region[1]), int(region[2])
    if last <= first:
        raise ValueError(f"region must have start < end, found {chrom}:{first}-{last}.")
    return chrom, first, last


def _panel(panel, edges, values, background, score, table, chrom, first, last) -> None:
    top = max(float(values.max()), 1.0)
    panel.stairs(values, edges, fill=True, color=_COVERAGE, lw=0)
    panel.stairs(background, edges, color=_BACKGROUND, lw=1.0, baseline=None)
    panel.set_xlim(first, last)
    panel.set_ylim(-0.3 * top, 1.1 * top)
    panel.set_yticks([0, top])
    probability = panel.twinx()
    probability.stairs(score, edges, color=_POSTERIOR, lw=1.0, baseline=None)
    # The same zero and top as the counts have.
    probability.set_ylim(-0.3, 1.1)
    probability.set_yticks([0, 1])
    probability.tick_params(axis="y", colors=_POSTERIOR)
    here = table[(table["chrom"].astype(str) == chrom) & (table["end"] > first) & (table["start"] < last)]
    start, end = here["start"].to_numpy(), here["end"].to_numpy()
    if len(here):
        panel.broken_barh(list(zip(start, end - start, strict=True)), (-0.16 * top, 0.1 * top), color=_PEAK, lw=0)
        known = here["peak"].to_numpy() >= 0
        summit = (start + here["peak"].to_numpy())[known]
        # Below the bar, not through it: a mark across would part it in two.
        panel.plot(summit, np.full(len(summit), -0.24 * top), ls="", marker="^", color=_PEAK, ms=4, mew=0)
    for axis in (panel, probability):
        axis.spines["top"].set_visible(False)
