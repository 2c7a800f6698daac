from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.pl._contact_panels import A, B, draw_rotated, draw_signed, mark_loops
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PSEUDOCOUNT = 20.0  # contacts: blocks with fewer show little of their ratio
_MOST_BLOCKS = 200  # a side: changes are smooth, noise is not, and blocks hold more contacts


def differential_contacts(
    adata: AnnData,
    region: str | tuple[str, int, int] | None = None,
    *,
    key: str = "differential_contacts",
    max_qvalue: float = 0.05,
    tracks: bool = True,
    max_distance: int | None = None,
    axis: Literal["var", "obs"] | None = None,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    width: float = 9.0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw how the contacts of two groups differ, with what :func:`diffbio_sc.tl.differential_contacts` found.

    Parameters
    ----------
    adata
        Object whose maps were compared.
    region
        ``"chr1"``, ``"chr1:1,000,000-2,000,000"`` or ``("chr1", 1_000_000, 2_000_000)``; default the first chromosome.
    key
        The ``key_added`` of the comparison.
    max_qvalue
        Features with at most this false discovery rate are marked.
    tracks
        Draw the change of boundaries and compartments under the map, where they were tested.
    max_distance
        Height of the map in base pairs; default half of the region, at most 5 Mb.
    axis
        Which axis holds the bins, if both could.
    vmax
        Range of the colours in log2; default from the values shown.
    cmap
        Colours.
    width
        Of the figure in inches.
    ax
        Axes to draw on, for the map alone (``tracks=False``).
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes of the map, or a list of them, the map's first.

    Raises
    ------
    KeyError
        If there is no such comparison, or its maps are no longer there.
    ValueError
        If the region cannot be read or holds no bins, or ``ax`` is given for several panels.

    Notes
    -----
    Red: more contacts in the second group, depth, decay and visibility taken out, as in the tests. Circles: loops that
    change. Bars: change of boundary strength and of compartment (log2), solid where significant.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_contacts(400, n_replicates=2, n_conditions=2)
    >>> groups = {"a": ["contacts_a_1", "contacts_a_2"], "b": ["contacts_b_1", "contacts_b_2"]}
    >>> dbio.tl.differential_contacts(
    ...     adata, groups=groups, features=["loops", "boundaries"], loops=adata.uns["truth"]["loops"]
    ... )
    >>> axes = dbio.pl.differential_contacts(adata, "chr1:500,000-2,500,000", show=False)
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    check_options(
        differential_contacts,
        locals(),
        max_qvalue="(0, 1]",
        max_distance="(0, inf) base pairs",
        vmax="(0, inf)",
        width="(0, inf)",
    )
    check_save(save)
    from diffbio_sc._anndata.contacts import read_contacts
    from diffbio_sc._anndata.records import read_record
    from diffbio_sc._anndata.regions import bins_of_region
    from diffbio_sc._anndata.results import prefix_of
    from diffbio_sc.engines.contact_differences import good_bins, ratio_of_region

    record = read_record(adata, key, "params", "dbio.tl.differential_contacts")
    params = record["params"]
    names, keys = [str(name) for name in params["groups"]], [str(name) for name in params["maps"]]
    group = np.array([names.index(str(name)) for name in params["group_of_map"]])
    contacts = [read_contacts(adata, name, axis=axis) for name in keys]
    found = contacts[0]
    bins = bins_of_region(region, found)
    prefix = prefix_of(key, "differential_contacts")
    table = getattr(adata, found.axis.axis)
    rows = [
        (label, stem)
        for label, stem in (("boundary\nstrength", "boundary"), ("compartment", "compartment"))
        if tracks and f"{prefix}{stem}_change" in table
    ]
    if ax is not None and rows:
        raise ValueError("ax= is for the map alone: pass tracks=False.")
    maps = [each.map for each in contacts]
    factor = -(-(bins.stop - bins.start) // _MOST_BLOCKS)
    ratio = ratio_of_region(maps, group, good_bins(maps), bins, factor, _PSEUDOCOUNT) / np.log(2.0)
    start, resolution = int(found.map.start[bins.start]), found.map.resolution * factor
    length = (bins.stop - bins.start) * found.map.resolution
    height = max(min(length // 2, 5_000_000), resolution) if max_distance is None else max_distance
    if vmax is None:
        known = np.abs(ratio[np.isfinite(ratio)])
        vmax = max(float(np.quantile(known, 0.99)), 0.25) if len(known) else 1.0
    if ax is None:
        tall = width * 0.5 * min(2 * height / length, 1.0) + 0.6
        figure, grid = plt.subplots(
            1 + len(rows),
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
    colors = plt.get_cmap(cmap).with_extremes(bad="0.93")
    mesh = draw_rotated(axes[0], ratio, start, resolution, height, colors, TwoSlopeNorm(0.0, -vmax, vmax))
    figure.colorbar(
        mesh, ax=axes[0], label=f"log2 {names[1]} / {names[0]}", shrink=0.7, pad=0.01, aspect=18, extend="both"
    )
    chrom = found.map.chrom_names[found.map.chrom[bins.start]]
    if "loops" in record:
        loops = record["loops"]
        loops = loops[loops["qval"] <= max_qvalue]
        gain = loops["log2_fold_change"] > 0
        here = (chrom, start, int(found.map.end[bins.stop - 1]))
        mark_loops(axes[0], loops[gain], here, A, f"stronger in {names[1]}")
        mark_loops(axes[0], loops[~gain], here, B, f"weaker in {names[1]}")
        axes[0].legend(loc="upper right", frameon=False, fontsize="small")
    edges = np.append(found.map.start[bins], found.map.end[bins.stop - 1]).astype(float)
    for panel, (label, stem) in zip(axes[1:], rows, strict=True):
        change = found.to_map(table[f"{prefix}{stem}_change"].to_numpy(np.float64))[bins]
        qvalue = found.to_map(table[f"{prefix}{stem}_change_qval"].to_numpy(np.float64))[bins]
        panel.stairs(np.nan_to_num(change), edges / 1e6, color="0.75", lw=0.7, baseline=None)
        draw_signed(panel, edges, np.where(qvalue <= max_qvalue, change, 0.0), label)
    axes[-1].set_xlabel(f"{chrom} (Mb)")
    return finish(axes[0] if len(axes) == 1 else axes, show, save, return_fig)
