"""Panels that pictures of contact maps are made of: the rotated map and tracks under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

A, B, LINE, LOOP, DOMAIN, UNKNOWN = "#b2402a", "#2c5f8a", "#333333", "#12a5a0", "#4a4a4a", "0.6"
MOST_CELLS = 600
"""Bins a side above which a map is drawn of means of blocks: a screen shows no more."""


def coarsen(matrix: np.ndarray, most: int = MOST_CELLS) -> tuple[np.ndarray, int]:
    """Means of square blocks of a matrix, NaN left out, so that it has at most so many rows; and the blocks' size."""
    factor = -(-len(matrix) // most)
    if factor == 1:
        return matrix, 1
    size = -(-len(matrix) // factor) * factor
    padded = np.full((size, size), np.nan)
    padded[: len(matrix), : len(matrix)] = matrix
    blocks = padded.reshape(size // factor, factor, size // factor, factor)
    known = np.isfinite(blocks)
    number = known.sum((1, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, np.where(known, blocks, 0.0).sum((1, 3)) / number, np.nan), factor


def draw_rotated(
    ax: Axes, matrix: np.ndarray, start: int, resolution: int, max_distance: int, cmap: Any, norm: Any
) -> Any:
    """Draw the upper triangle turned by 45 degrees: position along x, distance of the two bins along y."""
    size, width = len(matrix), resolution
    edge = np.arange(size + 1) * width
    first, second = np.meshgrid(edge, edge, indexing="ij")
    shown = np.where(np.tri(size, k=-1, dtype=bool), np.nan, matrix)
    distance = second - first
    # A pixel whose lower corner lies above the panel would only cost time.
    shown = np.where(distance[:-1, 1:] - width > max_distance + width, np.nan, shown)
    mesh = ax.pcolormesh(
        (start + 0.5 * (first + second)) / 1e6,
        distance / 1e6,
        np.ma.masked_invalid(shown),
        cmap=cmap,
        norm=norm,
        rasterized=True,
        linewidth=0,
        antialiased=False,
    )
    ax.set_xlim(start / 1e6, (start + size * width) / 1e6)
    ax.set_ylim(0, max_distance / 1e6)
    ax.set_ylabel("distance (Mb)")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return mesh


def mark_loops(
    ax: Axes, table: pd.DataFrame, region: tuple[str, int, int], color: str, label: str | None = None
) -> None:
    """Circle the loops of a region on its rotated map."""
    chrom, first, last = region
    inside = (table[["start1", "start2"]].min(axis=1) >= first) & (table[["end1", "end2"]].max(axis=1) <= last)
    mine = table[(table["chrom1"].astype(str) == chrom) & inside]
    one, two = ((mine[f"start{side}"] + mine[f"end{side}"]).to_numpy(float) / 2 for side in "12")
    ax.scatter(
        (one + two) / 2e6, (two - one) / 1e6, s=38, facecolors="none", edgecolors=color, linewidths=1.1, label=label
    )


def mark_domains(ax: Axes, table: pd.DataFrame, region: tuple[str, int, int]) -> None:
    """Outline the domains of a region on its rotated map."""
    chrom, begin, stop = region
    mine = table[(table["chrom"].astype(str) == chrom) & (table["start"] >= begin) & (table["end"] <= stop)]
    for first, last in zip(mine["start"].to_numpy() / 1e6, mine["end"].to_numpy() / 1e6, strict=True):
        ax.plot([first, (first + last) / 2, last], [0, last - first, 0], color=DOMAIN, lw=0.8, solid_joinstyle="miter")


def draw_signed(ax: Axes, edges: np.ndarray, values: np.ndarray, ylabel: str, known: np.ndarray | None = None) -> None:
    """Bars above zero in one colour and below in another; grey where it is not known which is which."""
    values = np.nan_to_num(values)
    known = np.ones(len(values), bool) if known is None else known
    for chosen, low, high, color in ((known, 0.0, None, A), (known, None, 0.0, B), (~known, None, None, UNKNOWN)):
        if chosen.any():
            ax.stairs(np.clip(np.where(chosen, values, 0.0), low, high), edges / 1e6, fill=True, color=color, lw=0)
    ax.axhline(0, color=LINE, lw=0.5)
    finish_track(ax, ylabel)


def finish_track(ax: Axes, ylabel: str) -> None:
    """Label a track and take away what frames it."""
    ax.set_ylabel(ylabel, rotation=0, ha="right", va="center", fontsize="small")
    ax.tick_params(labelsize="small")
    ax.locator_params(axis="y", nbins=3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
