"""Segments of chromatin states in BED files: writing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes, match_chromosomes, read_chrom_sizes
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._region_tables import checked_regions, unbroken, write_lines

if TYPE_CHECKING:
    import pandas as pd


def write_segments(
    segments: pd.DataFrame,
    path: PathLike,
    *,
    dense: bool = False,
    colors: Mapping[str, str] | None = None,
    name: str = "chromatin states",
    chrom_sizes: ChromSizes | None = None,
) -> None:
    """Write segments of chromatin states as BED, plain or with colours for a genome browser.

    Parameters
    ----------
    segments
        Table with columns ``chrom``, ``start``, ``end`` and ``state``, and ``color`` (``#rrggbb``) where known, such as
        that of :func:`diffbio_sc.get.chromatin_states`.
    path
        File to write; compressed by gzip if its name ends with ``.gz``.
    dense
        Write nine columns with colours, after a line that declares the track, as ChromHMM's ``*_dense.bed``. By
        default four columns, as its ``*_segments.bed``.
    colors
        Colour (``#rrggbb``) of each state; default the table's, else shades of grey.
    name
        Name of the track, in a dense file.
    chrom_sizes
        Length of each chromosome; ends past them are clipped, as genome browsers demand.

    Returns
    -------
    None.

    Raises
    ------
    KeyError
        If a column, or the colour of a state, is missing.
    TypeError
        If ``segments`` is no table.
    ValueError
        If there are no segments, an end is not after its start, segments of several cell types are mixed, a segment
        lies beyond its chromosome, or a name holds a tab or a line end.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000)
    >>> dbio.tl.chromatin_states(adata, n_states=4, effort="fast")
    >>> dbio.io.write_segments(dbio.get.chromatin_states(adata), "states_dense.bed", dense=True)
    """
    check_options(write_segments, locals())
    if not hasattr(segments, "columns"):
        raise TypeError(
            f"segments must be a table, found {type(segments).__name__}; of an AnnData take "
            "dbio.get.chromatin_states(adata)."
        )
    missing = [key for key in ("chrom", "start", "end", "state") if key not in segments]
    if missing:
        raise KeyError(f"segments have no columns {missing}; columns: {list(map(str, segments.columns))}.")
    if not len(segments):
        raise ValueError("segments must have at least one row, found none.")
    if "cell_type" in segments and segments["cell_type"].nunique() > 1:
        raise ValueError(
            f"segments must be of one cell type, found {list(map(str, segments['cell_type'].unique()))[:5]}; write a "
            "file for each: segments[segments['cell_type'] == name]."
        )
    frame = checked_regions(segments)[["chrom", "start", "end", "state"]].copy()
    for key in ("chrom", "state"):
        frame[key] = unbroken(frame[key], f"column {key!r}")
    if chrom_sizes is not None:
        sizes = read_chrom_sizes(chrom_sizes)
        chromosomes = list(frame["chrom"].unique())
        match_chromosomes(chromosomes, list(sizes), left_name="segments", right_name="the chromosome sizes")
        frame["end"] = np.minimum(frame["end"], frame["chrom"].map(sizes).fillna(2**31).astype(np.int64))
    bad = (frame["end"] <= frame["start"]) | (frame["start"] < 0)
    if bad.any():
        raise ValueError(
            f"segments must have 0 <= start < end within their chromosome, found {int(bad.sum())} that have not; "
            f"first: {list(map(str, frame[bad].iloc[0]))}."
        )
    head = ""
    if dense:
        if re.search('["\t\r\n]', name):
            raise ValueError(f"name must not hold quotes, tabs or line ends, found {name!r}.")
        rgb = _colors(segments.assign(state=frame["state"]), colors)
        frame["score"], frame["strand"] = 0, "."
        frame["thickStart"], frame["thickEnd"] = frame["start"], frame["end"]
        frame["itemRgb"] = frame["state"].map(rgb)
        head = f'track name="{name}" description="{name}" visibility=1 itemRgb="On"\n'
    write_lines(frame, path, head=head)


def _colors(segments: pd.DataFrame, colors: Mapping[str, str] | None) -> dict[str, str]:
    """Colour of each state as ``r,g,b``."""
    from matplotlib.colors import to_rgb

    states = list(dict.fromkeys(segments["state"]))
    if colors is not None:
        chosen = {str(state): color for state, color in colors.items()}
        lacking = [state for state in states if state not in chosen]
        if lacking:
            raise KeyError(f"colors have no colour for states {lacking[:10]}; they have {list(chosen)[:20]}.")
    elif "color" in segments:
        chosen = dict(zip(segments["state"], segments["color"].astype(str), strict=True))
    else:
        shades = np.linspace(0.2, 0.85, len(states))
        chosen = {state: f"{shade:.3f}" for state, shade in zip(states, shades, strict=True)}
    return {state: ",".join(str(round(255 * part)) for part in to_rgb(chosen[state])) for state in states}
