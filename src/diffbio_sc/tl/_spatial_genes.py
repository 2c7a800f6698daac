from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control

from diffbio_sc._anndata import (
    make_record,
    read_coordinates,
    read_counts,
    read_covariates,
    read_numbers,
    read_slides,
    require_unique,
    write_results,
)
from diffbio_sc._logging import logger
from diffbio_sc.numerics.spatial.score_test import GeneMoments, SpatialScoreTest, nuisance_columns

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.numerics.spatial.gaussian_processes import VarianceComponents

_FEWEST_SPOTS = 10
_GENES_A_BLOCK = 1000
_VARIANCE_SPOTS = 1000
_SHORTEST_FITTED = 1.0  # lengthscale, in spacings, below which spatial and other variance look alike


def spatial_genes(
    adata: AnnData,
    *,
    spatial_key: str = "spatial",
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    library_key: str | None = None,
    covariates: str | Sequence[str] | pd.DataFrame | np.ndarray | None = None,
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
    :class:`~diffbio_sc.operators.multiomics.DifferentiableSpatialGeneDetector` is the differentiable twin.

    Parameters
    ----------
    adata
        Spots or cells by genes, raw counts; numpy, CSR, CSC, backed or dask. Genes are read in blocks.
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
        cell-type composition), names of columns of ``adata.obs`` (categorical ones as indicators), or a table itself.
        Spots where one is missing are left out.
    total_counts_key
        Column of ``adata.obs`` with each spot's total counts; default their sum over all genes of the matrix.
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
        Key of the record in ``adata.uns``. Columns have the names below for the default key, and
        ``f"{key_added}_"`` in front for others.
    rng
        Seed or generator, of the sample of spots for the variance of large tissues.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.var["spatial_pvalue"]`, `.var["spatial_padj"]` : float64
        P-value and false discovery rate. Missing for genes not tested: those with counts in fewer than three spots,
        and those not in ``genes``.
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
        If values are no counts, coordinates are missing or all equal, there are fewer than 10 usable spots, names are
        duplicated, or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, _ = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.spatial_genes(spots)
    >>> bool(spots.var.loc["CD79A", "is_spatial"])
    True
    """
    started = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in ("adata", "started", "covariates")}
    params["covariates"] = covariates if isinstance(covariates, str) or covariates is None else "given"
    if isinstance(covariates, Sequence) and not isinstance(covariates, str):
        params["covariates"] = list(covariates)
    _check_arguments(adata, alpha, fdr, lengthscales, copy)
    if smooth and not variance:
        raise ValueError("smooth=True needs the lengthscales that variance=True estimates.")
    require_unique(adata.var_names, "adata.var_names", "Call adata.var_names_make_unique() first.")
    require_unique(adata.obs_names, "adata.obs_names", "Call adata.obs_names_make_unique() first.")
    coordinates = read_coordinates(adata, spatial_key)
    groups = read_slides(adata, library_key)
    nuisance = None if covariates is None else read_covariates(adata, covariates)
    chosen = _read_genes(adata, genes)
    counts = read_counts(adata, layer=layer, allow_fractional=allow_fractional)
    if total_counts_key is None:
        depth = counts.row_sums()
    else:
        depth = read_numbers(adata.obs, total_counts_key, name="adata.obs")
        if (depth < 0).any():
            raise ValueError(f"adata.obs[{total_counts_key!r}] must not be negative, smallest: {depth.min()}.")
    used = _usable_spots(adata, coordinates, groups, depth, nuisance, spatial_key)
    if copy:
        adata = adata.copy()

    test = SpatialScoreTest(
        coordinates[used],
        depth[used],
        groups=groups[used],
        covariates=None if nuisance is None else nuisance[used],
        lengthscales=None if lengthscales is None else np.asarray(lengthscales, np.float64),
    )
    fitted = _variance_components(test, coordinates[used], groups[used], nuisance, used, rng) if variance else None
    result = _test_genes(counts, chosen, test, used, fitted)
    table = _columns(result, alpha, fdr, with_variance=variance)
    prefix = "" if key_added == "spatial_genes" else f"{key_added}_"
    layers = {}
    if smooth:
        spatial = np.flatnonzero(table["is_spatial"].to_numpy())
        layers["spatial_smoothed" if not prefix else f"{prefix}smoothed"] = _smoothed(
            adata.shape, counts, spatial, used, coordinates, groups, depth, nuisance, result
        )
    tested = np.isfinite(table["spatial_pvalue"])
    logger.info(f"{int(table['is_spatial'].sum())} of {int(tested.sum())} tested genes are spatially variable.")
    from diffbio_sc.training.report import FitReport

    report = FitReport({}, True, 1, time.perf_counter() - started)
    record = make_record(
        params,
        report,
        spacing=test.layout.spacing,
        lengthscales=test.lengthscales,
        n_tested=int(tested.sum()),
        n_spatial=int(table["is_spatial"].sum()),
        n_spots=int(used.sum()),
    )
    columns = {prefix + name: table[name].to_numpy() for name in table}
    write_results(adata, var=columns, layers=layers, uns={key_added: record})
    return adata if copy else None


class _Genes(NamedTuple):
    """Results of all genes; NaN where there are none."""

    log_p: np.ndarray
    mean: np.ndarray
    dispersion: np.ndarray
    variance: np.ndarray  # (genes, 5): fsv, its error, lengthscale, at bound, noise ratio


def _check_arguments(adata, alpha, fdr, lengthscales, copy) -> None:
    if not hasattr(adata, "obs_names") or hasattr(adata, "mod"):
        raise TypeError(
            f"adata must be an AnnData, found {type(adata).__name__}; of a MuData pass the modality: mdata['rna'], of "
            "a SpatialData a table: sdata.tables['table']."
        )
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, found {alpha!r}.")
    if fdr not in ("bh", "by"):
        raise ValueError(f"fdr must be 'bh' or 'by', found {fdr!r}.")
    if lengthscales is not None:
        values = np.asarray(lengthscales, np.float64)
        if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"lengthscales must be numbers above 0, found {lengthscales!r}.")
    if copy and adata.isbacked:
        raise ValueError("copy=True needs an object in memory: call adata.to_memory() first.")


def _read_genes(adata, genes) -> np.ndarray:
    if genes is None:
        return np.arange(adata.n_vars)
    wanted = pd.Index(genes)
    require_unique(wanted, "genes", "Name each gene once.")
    position = adata.var_names.get_indexer(wanted)
    if (position < 0).any():
        raise ValueError(f"{int((position < 0).sum())} of genes are not in adata: {list(wanted[position < 0][:5])}.")
    return np.sort(position)


def _usable_spots(adata, coordinates, groups, depth, nuisance, spatial_key) -> np.ndarray:
    used = depth > 0
    if nuisance is not None:
        complete = np.isfinite(nuisance).all(1)
        if (used & ~complete).any():
            warnings.warn(
                f"{int((used & ~complete).sum())} spots with missing covariates are left out.",
                UserWarning,
                stacklevel=3,
            )
        used &= complete
    # A slide of one or two spots has neither neighbours nor a depth effect.
    sizes = np.bincount(groups[used], minlength=groups.max() + 1)
    used &= sizes[groups] >= 3
    if used.sum() < _FEWEST_SPOTS:
        raise ValueError(
            f"spatial_genes needs at least {_FEWEST_SPOTS} spots with counts (and covariates), found {int(used.sum())} "
            f"of {adata.n_obs}."
        )
    if all(np.ptp(coordinates[used & (groups == g)], axis=0).max() == 0 for g in np.unique(groups[used])):
        raise ValueError(f"adata.obsm[{spatial_key!r}] holds the same coordinates for all spots of a slide.")
    return used


class _Variance(NamedTuple):
    """What the variance of a block of genes is estimated with: spots (among the used), depth and components."""

    spots: np.ndarray
    depth: np.ndarray
    components: VarianceComponents


def _variance_components(test, coordinates, groups, nuisance, used, rng) -> _Variance:
    from diffbio_sc.numerics.spatial.gaussian_processes import VarianceComponents, representative_spots

    spots = representative_spots(coordinates, groups, size=_VARIANCE_SPOTS, generator=np.random.default_rng(rng))
    depth = np.empty_like(test.depth)
    depth[test.layout.order] = test.depth
    design = nuisance_columns(depth[spots], groups[spots], None if nuisance is None else nuisance[used][spots])
    longest = test.lengthscales.max()
    shortest = min(_SHORTEST_FITTED * test.layout.spacing, longest / 2)
    scales = np.geomspace(shortest, longest, max(3, int(np.ceil(np.log(longest / shortest) / np.log(1.5))) + 1))
    return _Variance(spots, depth[spots], VarianceComponents(coordinates[spots], scales, design, groups[spots]))


class _Moments:
    """First pass over a block of genes; picklable for dask workers."""

    def __init__(self, test: SpatialScoreTest, used: np.ndarray):
        self.test, self.used = test, used

    def __call__(self, counts: sp.csc_array, block: np.ndarray):
        return self.test.moments(_used_rows(counts, self.used))


class _Test:
    """Second pass over a block of genes: test, and variance on the representative spots."""

    def __init__(self, test, used, mean, dispersion, classes, variance: _Variance | None):
        self.test, self.used, self.variance = test, used, variance
        self.mean, self.dispersion, self.classes = mean, dispersion, classes

    def __call__(self, counts: sp.csc_array, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = _used_rows(counts, self.used)
        classes = self.classes[block]
        log_p = self.test.test(counts, self.mean[block], classes).log_p
        fits = np.full((len(block), 5), np.nan)
        tested = np.flatnonzero(classes >= 0)
        if self.variance is not None and len(tested):
            dense = counts.tocsr()[self.variance.spots][:, tested].toarray()
            chosen = block[tested]
            residuals = pearson_residuals(dense, self.variance.depth, self.mean[chosen], self.dispersion[chosen])
            fit = self.variance.components.fit(residuals)
            parts = (fit.fsv, fit.fsv_se, fit.lengthscale, fit.lengthscale_at_bound, fit.noise_ratio)
            fits[tested] = np.stack([np.asarray(part, np.float64) for part in parts], 1)
        return log_p, fits


def pearson_residuals(counts: np.ndarray, depth: np.ndarray, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """(y - s m) / sqrt(s m + alpha (s m)^2), cut at the square root of the number of spots."""
    expected = np.maximum(np.outer(depth, mean), 1e-12)
    limit = np.sqrt(len(depth))
    return np.clip((counts - expected) / np.sqrt(expected * (1.0 + dispersion * expected)), -limit, limit)


def _used_rows(counts: sp.csc_array, used: np.ndarray) -> sp.csc_array:
    return counts if used.all() else sp.csc_array(counts.tocsr()[np.flatnonzero(used)])


def _test_genes(counts, chosen, test, used, variance) -> _Genes:
    blocks = [chosen[start : start + _GENES_A_BLOCK] for start in range(0, len(chosen), _GENES_A_BLOCK)]
    genes = counts.shape[1]
    mean, dispersion, spots = np.zeros(genes), np.zeros(genes), np.zeros(genes, int)
    moments = counts.map_column_blocks(_Moments(test, used), blocks, description="Null models")
    for block, one in zip(blocks, moments, strict=True):
        mean[block], dispersion[block], spots[block] = one
    classes = np.full(genes, -1)
    classes[chosen] = test.classes(GeneMoments(mean[chosen], dispersion[chosen], spots[chosen]))
    function = _Test(test, used, mean, dispersion, classes, variance)
    log_p, fits = np.full(genes, np.nan), np.full((genes, 5), np.nan)
    results = counts.map_column_blocks(function, blocks, description="Spatial genes")
    for block, (one_log_p, one_fits) in zip(blocks, results, strict=True):
        log_p[block], fits[block] = one_log_p, one_fits
    return _Genes(log_p, mean, dispersion, fits)


def _columns(result: _Genes, alpha: float, fdr: str, *, with_variance: bool) -> pd.DataFrame:
    tested = np.isfinite(result.log_p)
    pvalue = np.exp(result.log_p)
    adjusted = np.full(len(pvalue), np.nan)
    if tested.any():
        adjusted[tested] = false_discovery_control(pvalue[tested], method=fdr)
    table = pd.DataFrame(
        {
            "spatial_pvalue": pvalue,
            "spatial_padj": adjusted,
            "spatial_score": -result.log_p / np.log(10.0),
            "is_spatial": np.where(tested, np.nan_to_num(adjusted, nan=1.0) < alpha, False).astype(bool),
        }
    )
    if with_variance:
        fsv, error, lengthscale, at_bound, _ = result.variance.T
        table["fsv"], table["fsv_se"] = fsv.astype(np.float32), error.astype(np.float32)
        table["spatial_lengthscale"] = lengthscale.astype(np.float32)
        table["spatial_lengthscale_at_bound"] = np.nan_to_num(at_bound).astype(bool)
    return table


def _smoothed(shape, counts, spatial, used, coordinates, groups, depth, nuisance, result: _Genes) -> np.ndarray:
    """Expected counts at mean depth, of the spatial genes."""
    from diffbio_sc.numerics.spatial.gaussian_processes import smooth

    layer = np.full(shape, np.nan, np.float32)
    if not len(spatial):
        return layer
    relative = depth[used] / depth[used].mean()
    for start in range(0, len(spatial), _GENES_A_BLOCK):
        block = spatial[start : start + _GENES_A_BLOCK]
        dense = _used_rows(counts.columns(block), used).toarray()
        mean, dispersion = result.mean[block], result.dispersion[block]
        residuals = pearson_residuals(dense, relative, mean, dispersion)
        lengthscale, ratio = result.variance[block, 2], result.variance[block, 4]
        posterior = smooth(residuals, coordinates[used], lengthscale, ratio, groups=groups[used])
        values = np.maximum(mean + posterior * np.sqrt(mean * (1.0 + dispersion * mean)), 0.0)
        layer[np.ix_(np.flatnonzero(used), block)] = values
    return layer
