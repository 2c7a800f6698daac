from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from diffbio_sc._anndata.attributions import DEFAULT_ATTRIBUTIONS, Attributions, choose_cell_types, read_attributions
from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the palette of Okabe and Ito, which colour-blind readers tell apart, as near as it comes to the usual colours.
_COLORS = {"A": "#009e73", "C": "#0072b2", "G": "#e69f00", "T": "#d55e00"}
_BASES_AN_INCH = 12.0
_HEIGHT = 1.3  # of a row, in inches


def logo(
    adata: AnnData,
    region: str | int,
    *,
    cell_type: str | Sequence[str] | None = None,
    start: int = 0,
    end: int | None = None,
    hypothetical: bool = False,
    highlight: Iterable[tuple[int, int, str]] | None = None,
    key: str = DEFAULT_ATTRIBUTIONS,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw what each base of a region adds to its predicted activity, as a sequence logo.

    Letters above the line make the region more active in the cell type, letters below it less. Needs logomaker
    (extra ``sequence``) :cite:p:`Tareen2020`.

    Parameters
    ----------
    adata
        Object with attributions (see :func:`diffbio_sc.tl.attributions`).
    region
        Name of a region that was asked for, or its place among these.
    cell_type
        Cell type, or several, one below the other on a common scale; default all.
    start, end
        Part of the region to draw, in bases from its first one; default all.
    hypothetical
        Draw all four letters at each position, not only the one that stands there.
    highlight
        Parts to shade, as (start, end, label) in bases of the region, such as known motifs.
    key
        The ``key_added`` of the attributions.
    ax
        Axes to draw on, of one cell type.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes; of several cell types a list.

    Raises
    ------
    ImportError
        If logomaker is not installed.
    KeyError
        If there are no attributions of that region or cell type.
    ValueError
        If the part is empty, or ``ax`` is given for several cell types.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_regulatory_regions(n_regions=600)
    >>> dbio.pp.sequences(adata)
    >>> dbio.tl.contextual(adata, refine=False, average=False)
    >>> dbio.tl.attributions(adata, regions=[3])
    >>> axes = dbio.pl.logo(adata, 0, cell_type="cell1", show=False)
    >>> axes.get_xlabel()
    'position in the region (bases)'
    """
    check_options(logo, locals(), empty=("highlight",), region="[0, inf)", start="[0, inf)", end="[1, inf)")
    start = int(start)
    end = None if end is None else int(end)
    check_save(save)
    try:
        import logomaker
    except ImportError as error:
        raise ImportError("dbio.pl.logo needs logomaker: pip install 'diffbio-sc[sequence]'.") from error
    found = read_attributions(adata, key, "scores")
    row = _row(found, region)
    cells = choose_cell_types(cell_type, found.cell_types)
    if ax is not None and len(cells) > 1:
        raise ValueError(f"ax is one and cell types are {len(cells)}: name one with cell_type=..., or leave ax out.")
    width = found.tokens.shape[1]
    end = width if end is None else end
    if not 0 <= start < end <= width:
        raise ValueError(f"start and end must be within the region's {width} bases, found {start} and {end}.")
    columns = [found.cell_types.index(cell) for cell in cells]
    values = _heights(found, row, columns, hypothetical)[:, start:end]
    axes = [ax] if ax is not None else _new_rows(len(cells), end - start)
    top, bottom = values.clip(min=0).sum(2).max(), values.clip(max=0).sum(2).min()
    pad = 0.06 * max(top - bottom, 1e-6)
    spans = list(highlight or [])
    for place, (one, cell, heights) in enumerate(zip(axes, cells, values, strict=True)):
        table = pd.DataFrame(heights, columns=list("ACGT"), index=np.arange(start, end))
        logomaker.Logo(table, ax=one, color_scheme=_COLORS, baseline_width=0.6, show_spines=False)
        one.set_ylim(bottom - pad, top + pad * (5 if spans else 1))
        _shade(one, spans, start, end, labelled=place == 0)
        one.spines["left"].set_visible(True)
        one.set_ylabel(f"{cell}\nlog-odds" if len(axes) > 1 else "contribution (log-odds)")
        one.set_xlabel("")
    name = found.regions[row]
    axes[0].set_title(name if len(axes) > 1 else f"{name}, {cells[0]}", fontsize="medium")
    axes[-1].set_xlabel("position in the region (bases)")
    return finish(axes[0] if len(axes) == 1 else axes, show, save, return_fig)


def _row(found: Attributions, region: Any) -> int:
    if isinstance(region, int | np.integer) and not isinstance(region, bool):
        if not 0 <= region < len(found.regions):
            raise KeyError(f"there are attributions of {len(found.regions)} regions, found place {region}.")
        return int(region)
    if str(region) not in found.regions:
        raise KeyError(
            f"there are no attributions of region {region!r}: name it in dbio.tl.attributions(adata, regions=...); "
            f"there are those of {found.regions[:5]}."
        )
    return found.regions.index(str(region))


def _heights(found: Attributions, row: int, columns: list[int], hypothetical: bool) -> np.ndarray:
    """Heights of the letters (cell types, width, 4)."""
    from diffbio_sc.genome.sequences import one_hot

    assert found.scores is not None
    scores = found.scores[row, columns].astype(np.float64)
    return scores if hypothetical else scores * one_hot(found.tokens[row])


def _new_rows(number: int, bases: int) -> list[Axes]:
    import matplotlib.pyplot as plt

    width = float(np.clip(bases / _BASES_AN_INCH, 4.0, 16.0))
    figure, axes = plt.subplots(
        number, 1, figsize=(width, 0.9 + _HEIGHT * number), sharex=True, squeeze=False, layout="constrained"
    )
    return list(axes[:, 0])


def _shade(ax: Axes, spans: list[tuple[int, int, str]], start: int, end: int, *, labelled: bool) -> None:
    for first, last, label in spans:
        if last <= start or first >= end:
            continue
        left, right = max(first, start) - 0.5, min(last, end) - 0.5
        ax.axvspan(left, right, color="0.9", zorder=-1, lw=0)
        if labelled:
            place = ((left + right) / 2, 0.98)
            ax.text(*place, label, transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=8)
