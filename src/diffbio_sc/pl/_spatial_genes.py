from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import require_anndata
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options
from diffbio_sc.pl._figure import check_save, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GENES_PERMUTED = 500
_GREY, _COLOUR = "0.72", "#c23b22"


def spatial_genes(
    adata: AnnData,
    *,
    kind: Literal["volcano", "maps", "qq", "patterns"] = "volcano",
    genes: Sequence[str] | None = None,
    n_top: int = 4,
    key: str = "spatial_genes",
    patterns_key: str = "spatial_patterns",
    spatial_key: str | None = None,
    layer: str | None = None,
    n_columns: int = 4,
    size: float | None = None,
    color_map: str | None = None,
    covariates: str | Sequence[str] | pd.DataFrame | np.ndarray | None = None,
    rng: int | np.random.Generator = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure:
    """Draw the result of :func:`diffbio_sc.tl.spatial_genes` or :func:`diffbio_sc.tl.spatial_patterns`.

    Parameters
    ----------
    adata
        Object that was tested.
    kind
        ``"volcano"``: -log10 p of each gene against its fraction of spatial variance, significant genes in colour, some
        of them named. ``"maps"``: for each of some genes the expression (log1p of counts normalised to the spots'
        totals) and, beside it, the smooth map. ``"qq"``: p-values against uniform ones, beside p-values of the same
        test with the coordinates shuffled, which should lie in the 95 % band if the test is calibrated. ``"patterns"``:
        smooth maps of the patterns.
    genes
        Genes to name or to map; default: the ``n_top`` with the smallest p-values.
    n_top
        Number of genes to name or to map.
    key
        The ``key_added`` of the test.
    patterns_key
        The ``key_added`` of the patterns.
    spatial_key
        Coordinates in ``adata.obsm``; default: those of the test.
    layer
        Layer with the raw counts; default: that of the test.
    n_columns
        Maps in a row.
    size
        Size of a spot in maps, in units of the coordinates; default from the distance between spots.
    color_map
        Colour map of maps; default ``settings.color_map``, for patterns (which are signed) blue to red.
    covariates
        Covariates of the test, for ``"qq"``; default: what the test regressed out. A table (spots × covariates) that
        was given to the test must be given again.
    rng
        Seed or generator of the shuffling, and of the choice of the 500 genes that are tested again, for ``"qq"``.
    ax
        Axes to draw on; for ``"volcano"`` and ``"qq"``.
    show, save
        Show the figure; save it to this path.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The axes, or a list of them for maps and patterns (for maps two for each gene, expression first).

    Raises
    ------
    KeyError
        If the result, a gene, a layer or the coordinates are missing.
    ValueError
        If ``kind`` is unknown, a gene was not tested, no fraction of spatial variance was estimated (volcano), or
        ``n_top`` or ``n_columns`` is not a positive whole number.

    Notes
    -----
    Smooth maps are log1p of ``adata.layers["spatial_smoothed"]`` where the test wrote it, else computed here: the mean
    of the gene's Gaussian process, given its expression, lengthscale and fraction of spatial variance.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, _ = dbio.datasets.pbmc_tissue(n_spots=225)
    >>> dbio.tl.spatial_genes(spots)
    >>> axis = dbio.pl.spatial_genes(spots, show=False)
    """
    import matplotlib.pyplot as plt

    from diffbio_sc.get import spatial_genes as read_table

    check_options(spatial_genes, locals(), n_top="[1, inf)", n_columns="[1, inf)", size="(0, inf)")
    n_top, n_columns = int(n_top), int(n_columns)
    if ax is not None and kind in ("maps", "patterns"):
        raise ValueError(f"ax= is for kind 'volcano' and 'qq'; kind {kind!r} draws several axes.")
    check_save(save)
    require_anndata(adata)
    record = in_memory(adata.uns.get(patterns_key if kind == "patterns" else key, {})).get("params", {})
    spatial_key = spatial_key or str(record.get("spatial_key", "spatial"))
    layer = layer or record.get("layer")
    library_key = record.get("library_key")
    axes: Axes | list[Axes]
    if kind == "patterns":
        axes = _patterns(adata, patterns_key, spatial_key, library_key, n_columns, size, color_map)
    else:
        table = read_table(adata, key=key).set_index("gene", drop=False)
        chosen = _choose(table, genes, n_top)
        if kind == "maps":
            axes = _maps(adata, table.loc[chosen], record, spatial_key, layer, key, n_columns, size, color_map)
        else:
            if ax is None:
                _, ax = plt.subplots(figsize=(4.8, 4), layout="constrained")
            if kind == "volcano":
                axes = _volcano(table, chosen, ax)
            else:
                permuted = _permuted_scores(adata, table, record, spatial_key, layer, covariates, rng)
                axes = _quantiles(table["spatial_score"].dropna().to_numpy(), permuted, ax)
    return finish(axes, show, save, return_fig)


def _choose(table: pd.DataFrame, genes: Sequence[str] | None, n_top: int) -> list[str]:
    tested = table.index[table["spatial_pvalue"].notna()]
    if genes is None:
        return list(tested[:n_top])
    genes = [genes] if isinstance(genes, str) else list(genes)
    missing = [gene for gene in genes if gene not in table.index]
    if missing:
        raise KeyError(f"adata.var_names has no genes {missing[:5]}.")
    untested = [gene for gene in genes if gene not in tested]
    if untested:
        raise ValueError(f"These genes were not tested, they have no p-value: {untested[:5]}.")
    return genes


def _volcano(table: pd.DataFrame, named: list[str], axis: Axes) -> Axes:
    table = table[table["spatial_pvalue"].notna()]
    if table["fsv"].isna().all():
        raise ValueError(
            "No gene has a fraction of spatial variance: run diffbio_sc.tl.spatial_genes with variance=True."
        )
    named = [name for name in named if np.isfinite(table.loc[name, "fsv"])]
    significant = table["is_spatial"].to_numpy(dtype=bool)
    for chosen, color, label in ((~significant, _GREY, "not significant"), (significant, _COLOUR, "significant")):
        part = table[chosen]
        axis.scatter(
            part["fsv"], part["spatial_score"], s=9, color=color, linewidth=0, label=f"{label} ({len(part)})",
            rasterized=len(part) > 5000,
        )  # fmt: skip
    axis.set(xlabel="fraction of spatial variance", ylabel="$-\\log_{10}$ p", xlim=(-0.02, 1.02))
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]), top=axis.get_ylim()[1] * 1.12)
    axis.legend(frameon=False, fontsize="small", loc="lower right")
    _name_points(axis, table.loc[named, "fsv"].to_numpy(), table.loc[named, "spatial_score"].to_numpy(), named)
    return axis


def _name_points(axis: Axes, x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    """Write names beside their points, each at the first of some places that no earlier name covers."""
    from matplotlib.text import Text

    axis.figure.canvas.draw()
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    taken: list = []
    places = [
        (side * (4 + 7 * ring), step * 5, "left" if side > 0 else "right")
        for ring in range(6)
        for step in (0, *(sign * i for i in range(1, 3 + 4 * ring) for sign in (1, -1)))
        for side in (1, -1)
    ]
    for i in np.argsort(-y, kind="stable"):
        label = axis.annotate(
            names[i], (x[i], y[i]), xytext=(4, 0), textcoords="offset points", fontsize="small", va="center",
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        for across, up, alignment in places:
            label.set_position((across, up))
            label.set_horizontalalignment(alignment)
            # The text's own box: that of the annotation would include the line to the point.
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _slides(adata: AnnData, library_key: str | None) -> tuple[np.ndarray | None, list[str] | None]:
    """Codes and names of the slides that were tested."""
    from diffbio_sc._anndata import read_labels, read_slides

    if library_key is None:
        return None, None
    return read_slides(adata, str(library_key)), read_labels(adata.obs, str(library_key), name="adata.obs")[1]


def _patterns(adata, patterns_key, spatial_key, library_key, n_columns, size, color_map) -> list[Axes]:
    from diffbio_sc.pl._spatial_maps import draw_maps

    if patterns_key not in adata.obsm:
        raise KeyError(
            f"adata.obsm has no {patterns_key!r}: run diffbio_sc.tl.spatial_patterns first; keys: {list(adata.obsm)}."
        )
    table = in_memory(adata.obsm[patterns_key])
    slides, names = _slides(adata, library_key)
    sizes = in_memory(adata.uns.get(patterns_key, {})).get("n_genes")
    titles = [f"pattern {name}" for name in table.columns]
    if sizes is not None:
        titles = [f"{title} ({size} genes)" for title, size in zip(titles, sizes, strict=True)]
    return draw_maps(
        adata, table, label="standard deviations", spatial_key=spatial_key, slides=slides, slide_names=names,
        titles=titles, n_columns=n_columns, size=size, color_map=color_map, scale="signed", together=0,
    )  # fmt: skip


def _maps(adata, chosen: pd.DataFrame, params, spatial_key, layer, key, n_columns, size, color_map) -> list[Axes]:
    from diffbio_sc._anndata import read_coordinates, result_column, survey_counts
    from diffbio_sc.blocks.matrix import dense_block
    from diffbio_sc.blocks.steps import RowSums
    from diffbio_sc.engines.spatial_map import smooth_map
    from diffbio_sc.numerics.counts.normalise import LogNormalise
    from diffbio_sc.pl._spatial_maps import draw_maps

    names = list(chosen.index)
    columns = adata.var_names.get_indexer(names)
    slides, slide_names = _slides(adata, params.get("library_key"))
    coordinates = read_coordinates(adata, spatial_key)
    fractional = bool(params.get("allow_fractional", False))
    counts, (totals,) = survey_counts(adata, RowSums(), layer=layer, allow_fractional=fractional)
    normalise = LogNormalise(_depth(adata, params, totals))
    raw = np.concatenate(counts.map(lambda start, block: normalise(start, dense_block(block, columns))))
    smooth = np.full(raw.shape, np.nan, np.float32)
    stored = "spatial_smoothed" if key == "spatial_genes" else result_column(key, "smoothed")
    if stored in adata.layers:
        smooth = np.log1p(np.array(adata.layers[stored][:, columns], dtype=np.float32))
    codes = np.zeros(adata.n_obs, np.int32) if slides is None else slides
    for number in np.flatnonzero(~np.isfinite(smooth).any(0)):
        gene = chosen.iloc[number]
        lengthscale = float(gene["spatial_lengthscale"])
        if not (np.isfinite(lengthscale) and lengthscale > 0):
            raise ValueError(f"{gene['gene']!r} has no lengthscale to smooth with, found {lengthscale}.")
        smooth[:, number] = smooth_map(raw[:, number], coordinates, codes, float(gene["fsv"]), lengthscale)
    values = np.stack([raw, smooth], 2).reshape(len(raw), -1)
    titles = [title for name in names for title in (name, f"{name}, smooth")]
    table = pd.DataFrame(values, index=adata.obs_names, columns=range(values.shape[1]))
    return draw_maps(
        adata, table, label="log1p of counts", spatial_key=spatial_key, slides=slides, slide_names=slide_names,
        titles=titles, n_columns=max(n_columns // 2 * 2, 2), size=size, color_map=color_map, together=2,
    )  # fmt: skip


def _depth(adata: AnnData, params, totals: np.ndarray) -> np.ndarray:
    """Depth that the test used: a column, or the spots' totals."""
    from diffbio_sc._anndata import read_numbers

    key = params.get("total_counts_key")
    return totals if key is None else read_numbers(adata.obs, str(key), name="adata.obs")


def _permuted_scores(adata, table: pd.DataFrame, params, spatial_key, layer, covariates, rng) -> np.ndarray:
    """-log10 p of at most 500 of the tested genes, with the coordinates shuffled within each slide, three times."""
    from diffbio_sc._anndata import read_coordinates, read_test_covariates, survey_counts
    from diffbio_sc._random import as_generator
    from diffbio_sc.blocks.steps import RowSums
    from diffbio_sc.engines import spatial_genes as engine
    from diffbio_sc.numerics.spatial.slides import without_flat_axis
    from diffbio_sc.numerics.spatial.smooth_covariates import smooth_covariates

    generator = as_generator(rng)
    slides, _ = _slides(adata, params.get("library_key"))
    slides = np.zeros(adata.n_obs, np.int64) if slides is None else slides
    coordinates = without_flat_axis(read_coordinates(adata, spatial_key), slides)
    nuisance = read_test_covariates(adata, params, covariates)
    if nuisance is not None and params.get("smooth_covariates"):
        nuisance = smooth_covariates(nuisance, coordinates, slides)
    complete = np.ones(adata.n_obs, bool) if nuisance is None else np.isfinite(nuisance).all(1)
    depth = None if params.get("total_counts_key") is None else _depth(adata, params, np.empty(0))
    counts, (totals, sums) = survey_counts(
        adata,
        RowSums(),
        engine.SumGenes(depth, complete),
        layer=layer,
        allow_fractional=bool(params.get("allow_fractional", False)),
    )
    spots = engine.Spots(
        counts,
        coordinates,
        slides,
        totals if depth is None else depth,
        nuisance,
    )
    tested = np.sort(table.index[table["spatial_pvalue"].notna()].to_numpy(dtype=str))
    if len(tested) > _GENES_PERMUTED:
        tested = np.sort(generator.choice(tested, _GENES_PERMUTED, replace=False))
    genes = np.sort(adata.var_names.get_indexer(tested))
    return engine.shuffled_scores(spots, sums, genes, generator, params.get("lengthscales"))


def _quantiles(observed: np.ndarray, permuted: np.ndarray, axis: Axes) -> Axes:
    from scipy.stats import beta

    number = len(permuted)
    rank = np.arange(1, number + 1)
    # Order statistics of uniform p-values are beta distributed.
    upper, lower = (-np.log10(beta.ppf(level, rank, number + 1 - rank)) for level in (0.025, 0.975))
    expected = _expected(number)
    axis.fill_between(expected, lower, upper, color="0.85", linewidth=0, label="95 % of uniform p")
    limit = max(_expected(max(len(observed), 1))[0], expected[0])
    axis.plot([0, limit], [0, limit], color="0.4", linewidth=0.8)
    axis.scatter(_expected(len(observed)), np.sort(observed)[::-1], s=9, color=_COLOUR, linewidth=0, label="observed")
    axis.scatter(expected, np.sort(permuted)[::-1], s=9, color="k", linewidth=0, label="coordinates shuffled")
    axis.set(xlabel="expected $-\\log_{10}$ p", ylabel="$-\\log_{10}$ p", xlim=(0, 1.04 * limit))
    # Strong genes would flatten the rest to a line: linear up to a little over the largest expected value, then log.
    top = max(float(observed.max(initial=0.0)), float(permuted.max(initial=0.0)), limit)
    if top > 4 * limit:
        axis.set_yscale("symlog", linthresh=1.5 * limit, linscale=1.5)
        steps = [0, *range(1, int(1.5 * limit) + 1), *(m * 10**e for e in range(1, 4) for m in (1, 2, 5))]
        axis.set_yticks([step for step in steps if step <= top], minor=False)
        axis.set_yticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:.0f}")
    axis.set_ylim(0, 1.1 * top)
    axis.legend(frameon=False, fontsize="small", loc="upper left")
    return axis


def _expected(number: int) -> np.ndarray:
    return -np.log10((np.arange(1, number + 1) - 0.5) / number)
