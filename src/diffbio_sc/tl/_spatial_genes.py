from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import (
    covariates_given,
    make_record,
    read_coordinates,
    read_covariates,
    read_numbers,
    read_slides,
    require_anndata,
    require_unique,
    result_column,
    survey_counts,
    write_results,
)
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.blocks.steps import RowSums

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.engines.spatial_genes import Genes, Significance, Spots

_FEWEST_SPOTS = 10
_NOT_PARAMETERS = ("adata", "started", "engine", "numerics")
# Median slope of genes on the totals, and on the totals as far as neighbours share them: .88 and more on seven tissues;
# where a quarter of the genes share a hot spot one of them is below .6 (benchmarks/spatial_genes.py panel).
_LARGEST_PANEL = 500  # genes of a targeted panel
_LOWEST_SLOPE = 0.7
_LEAST_TESTED = 0.5  # of the genes


def spatial_genes(
    adata: AnnData,
    *,
    spatial_key: str = "spatial",
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    library_key: str | None = None,
    covariates: str | Sequence[str] | pd.DataFrame | np.ndarray | None = None,
    smooth_covariates: bool | None = None,
    total_counts_key: str | None = None,
    lengthscales: Sequence[float] | None = None,
    alpha: float = 0.05,
    fdr: Literal["bh", "by"] = "bh",
    variance: bool = True,
    smooth: bool = False,
    allow_fractional: bool = False,
    key_added: str = "spatial_genes",
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Find spatially variable genes.

    Each gene's counts are tested for a spatial random effect in a negative binomial model with the depth of each spot,
    by score tests at lengthscales from the distance of neighbours to half the tissue, combined into one p-value
    :cite:p:`Sun2020,Kats2021`. The fraction of spatial variance and the lengthscale are those of a Gaussian process
    fitted to the gene by restricted maximum likelihood :cite:p:`Svensson2018`. The operator
    :class:`~diffbio_sc.operators.multiomics.DifferentiableSpatialGeneDetector` is the differentiable twin; its page
    says how closely both agree.

    Parameters
    ----------
    adata
        Spots or cells by genes, raw counts; numpy, CSR, CSC, backed or dask, of any numeric type. Read twice
        in blocks (three times with ``smooth``).
    spatial_key
        Coordinates in ``adata.obsm``, in 2 or 3 dimensions.
    layer
        Layer with the raw counts; default ``X``.
    genes
        Genes to test; default all. Depth is counted over all genes in any case.
    library_key
        Column of ``adata.obs`` with the slide of each spot. Slides are tested jointly: each has its own level and
        depth effect, and spots of different slides are not neighbours.
    covariates
        What to regress out: the name of a matrix or table in ``adata.obsm`` (``"deconvolution"``: genes variable beyond
        cell-type composition), names of columns of ``adata.obs`` (categorical ones as indicators), or a table itself
        (spots × covariates). Spots where one is missing are left out.
    smooth_covariates
        Whether to regress out what a Gaussian process makes of each covariate over the slide instead of its values. For
        covariates that were estimated: their errors leave a part of a gene's dependence on them, with its pattern.
        Default: if ``adata.obsm`` holds their standard deviations, ``f"{covariates}_std"``, as
        :func:`~diffbio_sc.tl.deconvolve` writes them.
    total_counts_key
        Column of ``adata.obs`` with each spot's total counts, or whatever else measures its size; default their sum
        over all genes of the matrix. Small panels whose genes share a pattern need one, and get a warning.
    lengthscales
        Lengthscales to test, in units of the coordinates; default at most eight chosen from the coordinates.
    alpha
        False discovery rate below which a gene ``is_spatial``.
    fdr
        ``"bh"``: Benjamini and Hochberg; ``"by"``: Benjamini and Yekutieli, for any dependence.
    variance
        Whether to estimate fraction of spatial variance and lengthscale (on at most 1000 spots that carry all scales).
    smooth
        Whether to write the smoothed expression of the significant genes as a layer (dense).
    allow_fractional
        Accept fractional counts (volume-normalised, for example) with a warning.
    key_added
        Key of the record in ``adata.uns``, without ``/``. Columns have the names below for the default key, and
        ``f"{key_added}_"`` in front for others.
    rng
        Seed or numpy generator, for the sample of spots on which the variance of large tissues is estimated; None draws
        anew in every run.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.var["spatial_pvalue"]`, `.var["spatial_padj"]` : float64
        P-value and false discovery rate. Missing for genes not tested: those with counts in fewer than three spots,
        and those not in ``genes``.
    `.var["spatial_lfdr"]` : float64
        Local false discovery rate: the probability that the gene has no pattern, given its p-value and its mean count
        (few reads hardly show one). Ranks genes of unlike expression better than the p-value does.
    `.var["spatial_score"]` : float64
        Minus the base-10 logarithm of the p-value; does not underflow.
    `.var["is_spatial"]` : bool
        Whether ``spatial_padj`` is below ``alpha``.
    `.var["fsv"]`, `.var["fsv_se"]` : float32
        Fraction of spatial variance of the Pearson residuals, and its standard error.
    `.var["spatial_lengthscale"]` : float32
        Lengthscale, in units of the coordinates.
    `.var["spatial_lengthscale_at_bound"]` : bool
        Whether that is only a bound: the shortest or longest lengthscale tried.
    `.layers["spatial_smoothed"]` : float32
        Expected counts at mean depth under the gene's Gaussian process, if ``smooth``; missing for other genes.
    `.uns["spatial_genes"]` : dict
        ``params``, ``version``, ``report``, ``spacing`` of the spots, ``lengthscales`` tested, ``n_tested``,
        ``n_spatial``.

    Raises
    ------
    KeyError
        If a key, layer or column is missing.
    ValueError
        If values are not counts, coordinates are missing or all equal, there are fewer than 10 usable spots, names are
        duplicated, or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, _ = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.spatial_genes(spots)
    >>> bool(spots.var.loc["CD79A", "is_spatial"])
    True
    """
    from diffbio_sc.engines import spatial_genes as engine
    from diffbio_sc.numerics.spatial import smooth_covariates as numerics
    from diffbio_sc.numerics.spatial.slides import without_flat_axis

    check_options(spatial_genes, locals(), lengthscales="(0, inf)", alpha="(0, 1)")
    started = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in _NOT_PARAMETERS}
    params["covariates"] = covariates_given(covariates)
    _check_arguments(adata, variance, smooth)
    params["smooth_covariates"] = _estimated(adata, covariates, smooth_covariates)
    generator = as_generator(rng)
    slides = read_slides(adata, library_key)
    coordinates = without_flat_axis(read_coordinates(adata, spatial_key), slides)
    nuisance = None if covariates is None else read_covariates(adata, covariates)
    chosen = _read_genes(adata, genes)
    depth = None if total_counts_key is None else _read_depth(adata, total_counts_key)
    complete = np.ones(adata.n_obs, bool) if nuisance is None else np.isfinite(nuisance).all(1)
    counts, (totals, sums) = survey_counts(
        adata, RowSums(), engine.SumGenes(depth, complete), layer=layer, allow_fractional=allow_fractional, keep=True
    )
    spots = engine.Spots(counts, coordinates, slides, totals if depth is None else depth, nuisance)
    _check_spots(spots, complete, spatial_key)
    if nuisance is not None and params["smooth_covariates"]:
        smoothed = numerics.smooth_covariates(nuisance, coordinates, slides, spots.used)
        spots = spots._replace(covariates=smoothed)
    slope = engine.median_depth_slope(spots, sums) if depth is None else np.nan

    test = engine.make_test(spots, None if lengthscales is None else np.asarray(lengthscales, np.float64))
    found = engine.find_spatial_genes(spots, sums, chosen, test, generator if variance else None)
    if depth is None:
        _check_totals(slope, found, with_covariates=nuisance is not None)
    called = engine.call_significant(found.log_p, found.mean, alpha, fdr)
    expression = engine.smooth_expression(spots, np.flatnonzero(called.significant), found) if smooth else None
    n_tested, n_spatial = int(np.isfinite(found.log_p).sum()), int(called.significant.sum())
    logger.info(f"{n_spatial} of {n_tested} tested genes are spatially variable.")

    if copy:
        adata = adata.copy()
    report = {"history": {}, "converged": True, "steps": 1, "seconds": time.perf_counter() - started}
    record = make_record(
        params,
        report,
        spacing=test.layout.spacing,
        lengthscales=test.lengthscales,
        n_tested=n_tested,
        n_spatial=n_spatial,
        n_spots=int(spots.used.sum()),
    )
    columns = _columns(found, called, with_variance=variance)
    write_results(
        adata,
        var={result_column(key_added, name): values for name, values in columns.items()},
        layers={_smoothed_layer(key_added): expression},
        uns={key_added: record},
    )
    return adata if copy else None


def _check_arguments(adata, variance, smooth) -> None:
    require_anndata(adata)
    if smooth and not variance:
        raise ValueError("smooth=True needs the lengthscales that variance=True estimates.")
    require_unique(adata.var_names, "adata.var_names", "Call adata.var_names_make_unique() first.")
    require_unique(adata.obs_names, "adata.obs_names", "Call adata.obs_names_make_unique() first.")


def _estimated(adata: AnnData, covariates, smooth_covariates: bool | None) -> bool:
    """Whether covariates are to be smoothed: as asked for, else if their standard deviations are known."""
    if smooth_covariates is None:
        return isinstance(covariates, str) and {covariates, f"{covariates}_std"} <= set(adata.obsm)
    if smooth_covariates and covariates is None:
        raise ValueError("smooth_covariates=True needs covariates.")
    return bool(smooth_covariates)


def _read_genes(adata: AnnData, genes: Sequence[str] | None) -> np.ndarray:
    if genes is None:
        return np.arange(adata.n_vars)
    wanted = pd.Index([genes] if isinstance(genes, str) else genes)
    if not len(wanted):
        raise ValueError("genes is empty: name at least one gene, or leave it out to test all.")
    require_unique(wanted, "genes", "Name each gene once.")
    position = adata.var_names.get_indexer(wanted)
    if (position < 0).any():
        raise ValueError(f"{int((position < 0).sum())} of genes are not in adata: {list(wanted[position < 0][:5])}.")
    return np.sort(position)


def _read_depth(adata: AnnData, total_counts_key: str) -> np.ndarray:
    depth = read_numbers(adata.obs, total_counts_key, name="adata.obs")
    if (depth < 0).any():
        raise ValueError(f"adata.obs[{total_counts_key!r}] must not be negative, smallest: {depth.min()}.")
    return depth


def _check_spots(spots: Spots, complete: np.ndarray, spatial_key: str) -> None:
    left_out = int(((spots.depth > 0) & ~complete).sum())
    if left_out:
        warnings.warn(f"{left_out} spots with missing covariates are left out.", UserWarning, stacklevel=3)
    used = spots.used
    if used.sum() < _FEWEST_SPOTS:
        raise ValueError(
            f"spatial_genes needs at least {_FEWEST_SPOTS} spots with counts (and covariates), found {int(used.sum())} "
            f"of {len(used)}."
        )
    slides = np.unique(spots.slides[used])
    if all(np.ptp(spots.coordinates[used & (spots.slides == slide)], axis=0).max() == 0 for slide in slides):
        raise ValueError(f"adata.obsm[{spatial_key!r}] holds the same coordinates for all spots of a slide.")


def _check_totals(slope: float, found: Genes, *, with_covariates: bool) -> None:
    tested = np.isfinite(found.log_p) & np.isfinite(found.depth_slope)
    # As far as neighbours share the totals: of a panel only, since over many genes the RNA that types hold is such a
    # pattern; where no composition is taken out, which totals may follow; and by most genes, since a few do not say
    # what the others do.
    is_panel = len(tested) <= _LARGEST_PANEL and not with_covariates
    if is_panel and tested.mean() >= _LEAST_TESTED:
        slope = np.fmin(slope, np.median(found.depth_slope[tested]))
    if slope < _LOWEST_SLOPE:
        warnings.warn(
            f"The spots' total counts are a pattern of few genes: where they double, half of the genes change by "
            f"{max(slope, 0.0):.0%} or less. Depth correction takes that pattern out of the very genes that have it. "
            "Pass total_counts_key with a size of spots that it does not change: the area of cells, counts beyond this "
            "panel, the sum over genes known to be even, or ones if depth is even.",
            UserWarning,
            stacklevel=3,
        )


def _smoothed_layer(key_added: str) -> str:
    return "spatial_smoothed" if key_added == "spatial_genes" else f"{key_added}_smoothed"


def _columns(found: Genes, called: Significance, *, with_variance: bool) -> dict[str, np.ndarray | None]:
    columns: dict[str, np.ndarray | None] = {
        "spatial_pvalue": called.pvalue,
        "spatial_padj": called.adjusted,
        "spatial_lfdr": called.local,
        "spatial_score": -found.log_p / np.log(10.0),
        "is_spatial": called.significant,
    }
    if with_variance:
        fsv, error, lengthscale, at_bound, _ = found.variance.T
        columns["fsv"], columns["fsv_se"] = fsv.astype(np.float32), error.astype(np.float32)
        columns["spatial_lengthscale"] = lengthscale.astype(np.float32)
        columns["spatial_lengthscale_at_bound"] = np.nan_to_num(at_bound).astype(bool)
    else:  # those of an earlier call are removed
        columns |= dict.fromkeys(("fsv", "fsv_se", "spatial_lengthscale", "spatial_lengthscale_at_bound"))
    return columns
