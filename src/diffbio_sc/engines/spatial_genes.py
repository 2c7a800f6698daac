"""Test of all genes of a tissue for spatial patterns, over blocks of genes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from diffbio_sc._compiled import one_blas_thread
from diffbio_sc._settings import settings
from diffbio_sc.blocks.matrix import CountMatrix
from diffbio_sc.blocks.plan import column_blocks
from diffbio_sc.blocks.steps import Step
from diffbio_sc.numerics.local_false_discovery import local_false_discovery
from diffbio_sc.numerics.spatial.depth_pattern import DepthPattern
from diffbio_sc.numerics.spatial.gene_moments import GeneSums, nuisance_columns, pearson_residuals, sum_genes
from diffbio_sc.numerics.spatial.kriging import smooth
from diffbio_sc.numerics.spatial.representatives import representative_spots
from diffbio_sc.numerics.spatial.score_test import Law, SpatialScoreTest
from diffbio_sc.numerics.spatial.variance import KernelDecomposition, Spectrum, VarianceComponents

_FEWEST_SPOTS = 3  # with reads, for a slope on depth
_FEWEST_ON_A_SLIDE = 3  # a slide of one or two spots has neither neighbours nor a depth effect
_GENES_A_BLOCK = 1000
_BYTES_AN_ENTRY = 32  # of a gene in a task: its row and value as they come, turned, and in the order of the layout
_ROWS_AT_ONCE = 256
_VARIANCE_SPOTS = 1000  # variance components take time n^3; on 1000 spots half a minute
_SHORTEST_FITTED = 1.0  # lengthscale, in spacings, below which spatial and other variance look alike
_LARGEST_SHARE_OF_COLUMNS = 0.25  # of covariates by slide, in spots whose variance is estimated
_SHUFFLES = 3
_SMALLEST_P = np.finfo(np.float64).tiny


class Spots(NamedTuple):
    """Spots of a test.

    Attributes
    ----------
    counts
        All spots by all genes.
    coordinates
        All spots by 2 or 3 axes.
    slides
        Code of each spot's slide.
    depth
        Depth of each spot.
    covariates
        Nuisance columns (spots, columns), NaN where missing; None without any.
    """

    counts: CountMatrix
    coordinates: np.ndarray
    slides: np.ndarray
    depth: np.ndarray
    covariates: np.ndarray | None = None

    @property
    def used(self) -> np.ndarray:
        """Spots with counts, covariates and at least two others on their slide."""
        used = _complete(self)
        sizes = np.bincount(self.slides[used], minlength=self.slides.max() + 1)
        return used & (sizes[self.slides] >= _FEWEST_ON_A_SLIDE)


class SumGenes(Step):
    """Sums over the spots from which means and dispersions of all genes follow; see :func:`sum_genes`.

    Parameters
    ----------
    depth
        Depth of each spot; None for its counts.
    complete
        Spots that may be used.
    """

    def __init__(self, depth: np.ndarray | None, complete: np.ndarray):
        self.depth, self.complete = depth, complete

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums over the block's spots."""
        rows = slice(start, start + block.shape[0])
        if self.depth is None:
            depth = block @ np.ones(block.shape[1]) if sp.issparse(block) else block.sum(1, dtype=np.float64)
        else:
            depth = self.depth[rows]
        kept = self.complete[rows] & (depth > 0)
        if not kept.all():
            block, depth = block[kept], depth[kept]
        return np.stack(sum_genes(block, depth))

    def finish(self, total: np.ndarray) -> GeneSums:
        """Name the sums."""
        return GeneSums(*total)


class Genes(NamedTuple):
    """Results of all genes; NaN where there are none.

    ``variance`` has columns fraction of spatial variance, its error, lengthscale, at bound, noise ratio;
    ``depth_slope`` is that of :class:`~diffbio_sc.numerics.spatial.depth_pattern.DepthPattern`.
    """

    log_p: np.ndarray
    mean: np.ndarray
    dispersion: np.ndarray
    variance: np.ndarray
    depth_slope: np.ndarray


@one_blas_thread()
def make_test(spots: Spots, lengthscales: np.ndarray | None = None) -> SpatialScoreTest:
    """Prepare the test on the spots that can be used."""
    kept = _of_used(spots, spots.used)
    return SpatialScoreTest(
        kept.coordinates, kept.depth, groups=kept.slides, covariates=kept.covariates, lengthscales=lengthscales
    )


def _of_used(spots: Spots, used: np.ndarray) -> Spots:
    """Coordinates, slides, depth and covariates of the spots that are used; not copied where all are."""
    if used.all():
        return spots
    covariates = None if spots.covariates is None else spots.covariates[used]
    return Spots(spots.counts, spots.coordinates[used], spots.slides[used], spots.depth[used], covariates)


def median_depth_slope(spots: Spots, sums: GeneSums) -> float:
    """By how much a gene, in the median over genes, changes with the totals of the spots; NaN without variation.

    The slope of a gene's share of its mean on the spots' share of theirs. Over all genes, weighted by their counts, it
    is 1 by construction where depth is the sum of them; where few genes make up the variation of the totals, most genes
    have slopes far below.
    """
    depth = spots.depth[_complete(spots)]
    variance = depth.var() / depth.mean() ** 2
    tested = sums.spots >= _FEWEST_SPOTS
    if not tested.any() or variance < 1e-9:
        return float("nan")
    at_reads = sums.with_depth[tested] / sums.counts[tested] / depth.mean()
    return float(np.median((at_reads - 1.0) / variance))


def _complete(spots: Spots) -> np.ndarray:
    complete = spots.depth > 0
    if spots.covariates is not None:
        complete &= np.isfinite(spots.covariates).all(1)
    return complete


@one_blas_thread()
def find_spatial_genes(
    spots: Spots,
    sums: GeneSums,
    genes: np.ndarray,
    test: SpatialScoreTest,
    generator: np.random.Generator | None = None,
) -> Genes:
    """Test genes, and estimate their variance components if there is a ``generator`` for the sample of spots.

    Parameters
    ----------
    spots
        Spots.
    sums
        What :class:`SumGenes` found, of all genes.
    genes
        Columns to test.
    test
        The test of these spots.
    generator
        Draws the spots on which the variance of large tissues is estimated; None leaves the variance out.
    """
    used = spots.used
    moments = test.moments_of(_without_small_slides(spots, sums, used))
    width = spots.counts.shape[1]
    classes = np.full(width, -1)
    classes[genes] = test.classes(type(moments)(*(part[genes] for part in moments)))
    kept = _of_used(spots, used)
    sample = None if generator is None else _draw_sample(test, kept, generator)
    variance = _prepare(spots.counts, test, classes, sample)
    pattern = DepthPattern(kept.coordinates, kept.slides, kept.depth)
    del kept
    function = _TestBlock(test, used, moments.mean, moments.dispersion, classes, variance, pattern)
    log_p, fits, slopes = np.full(width, np.nan), np.full((width, 5), np.nan), np.full(width, np.nan)
    blocks = _blocks_of(genes, moments.spots)
    for block, (one_log_p, one_fits, one_slopes) in zip(
        blocks, spots.counts.map_columns(function, blocks, description="Spatial genes"), strict=True
    ):
        log_p[block], fits[block], slopes[block] = one_log_p, one_fits, one_slopes
    return Genes(log_p, moments.mean, moments.dispersion, fits, slopes)


def _blocks_of(genes: np.ndarray, entries: np.ndarray) -> list[np.ndarray]:
    """Cut genes into blocks whose work fits into ``settings.block_bytes``, by the entries of each gene."""
    return column_blocks(genes, entries[genes] * _BYTES_AN_ENTRY, settings.block_bytes, _GENES_A_BLOCK)


def _without_small_slides(spots: Spots, sums: GeneSums, used: np.ndarray) -> GeneSums:
    """Take the spots of slides that are too small out of the sums; which these are is known only after the pass."""
    rows = np.flatnonzero(_complete(spots) & ~used)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        extra = sum_genes(spots.counts.take(some), spots.depth[some])
        sums = GeneSums(*(all_of - part for all_of, part in zip(sums, extra, strict=True)))
    return sums


class _Sample(NamedTuple):
    """Spots (among the used) on which variance is estimated, with their depth, and the lengthscales to try."""

    spots: np.ndarray
    depth: np.ndarray
    coordinates: np.ndarray
    slides: np.ndarray
    design: np.ndarray
    lengthscales: np.ndarray


class _Variance(NamedTuple):
    """What the variance of a block of genes is estimated with: spots (among the used), depth and components."""

    spots: np.ndarray
    depth: np.ndarray
    components: VarianceComponents


def _draw_sample(test: SpatialScoreTest, spots: Spots, generator: np.random.Generator) -> _Sample:
    chosen = representative_spots(spots.coordinates, spots.slides, size=_VARIANCE_SPOTS, generator=generator)
    slides = spots.slides[chosen]
    depth = spots.depth[chosen] / spots.depth.mean()
    covariates = None if spots.covariates is None else spots.covariates[chosen]
    columns = 0 if covariates is None else covariates.shape[1] * len(np.unique(slides))
    by_group = columns < _LARGEST_SHARE_OF_COLUMNS * len(chosen)
    design = nuisance_columns(depth, slides, covariates, by_group=by_group)
    longest = test.lengthscales.max()
    shortest = min(_SHORTEST_FITTED * test.layout.spacing, longest / 2)
    scales = np.geomspace(shortest, longest, max(3, int(np.ceil(np.log(longest / shortest) / np.log(1.5))) + 1))
    return _Sample(chosen, depth, spots.coordinates[chosen], slides, design, scales)


def _prepare(
    counts: CountMatrix, test: SpatialScoreTest, classes: np.ndarray, sample: _Sample | None
) -> _Variance | None:
    """Null laws of the genes' classes, for the test, and the kernels of the sample taken apart.

    None of them waits for another: on a cluster the workers share them, as nothing else goes on meanwhile.
    """
    codes = np.unique(classes[classes >= 0]).tolist()
    scales = [] if sample is None else sample.lengthscales.tolist()
    decompose = None if sample is None else KernelDecomposition(sample.coordinates, sample.design, sample.slides)
    prepare = _Preparation(test, decompose)
    made = counts.map_items(prepare, [*codes, *scales], description="Null laws and kernels")
    test.know(dict(zip(codes, [one for one in made if not isinstance(one, Spectrum)], strict=True)))
    if sample is None:
        return None
    spectra = [one for one in made if isinstance(one, Spectrum)]
    components = VarianceComponents(
        sample.coordinates, sample.lengthscales, sample.design, sample.slides, spectra=spectra
    )
    return _Variance(sample.spots, sample.depth, components)


class _Preparation:
    """The law of a class of genes, a whole number, or the kernel of a lengthscale taken apart; for dask workers too."""

    def __init__(self, test: SpatialScoreTest, decompose: KernelDecomposition | None):
        self.test, self.decompose = test, decompose

    @one_blas_thread()
    def __call__(self, item: int | float) -> Law | Spectrum:
        if isinstance(item, int):
            return self.test.law(item)
        assert self.decompose is not None
        return self.decompose(item)


class _TestBlock:
    """Test of one block of genes, and its variance on the representative spots; picklable for dask workers."""

    def __init__(self, test, used, mean, dispersion, classes, variance: _Variance | None, pattern: DepthPattern):
        self.test, self.used, self.variance, self.pattern = test, used, variance, pattern
        self.mean, self.dispersion, self.classes = mean, dispersion, classes

    def __call__(self, counts: sp.csc_array, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = _used_rows(counts, self.used)
        classes = self.classes[block]
        log_p = self.test.test(counts, self.mean[block], classes).log_p
        fits = np.full((len(block), 5), np.nan)
        tested = np.flatnonzero(classes >= 0)
        if self.variance is not None and len(tested):
            dense = counts[self.variance.spots][:, tested].toarray()
            chosen = block[tested]
            residuals = pearson_residuals(dense, self.variance.depth, self.mean[chosen], self.dispersion[chosen])
            fit = self.variance.components.fit(residuals)
            parts = (fit.fsv, fit.fsv_se, fit.lengthscale, fit.lengthscale_at_bound, fit.noise_ratio)
            fits[tested] = np.stack([np.asarray(part, np.float64) for part in parts], 1)
        return log_p, fits, self.pattern.slopes(counts)


def _used_rows(counts: sp.csc_array, used: np.ndarray) -> sp.csc_array:
    return counts if used.all() else sp.csc_array(counts.tocsr()[np.flatnonzero(used)])


class Significance(NamedTuple):
    """P-values of all genes, false discovery rates, local ones, and the call; NaN and False for genes not tested."""

    pvalue: np.ndarray
    adjusted: np.ndarray
    local: np.ndarray
    significant: np.ndarray


def call_significant(log_p: np.ndarray, mean: np.ndarray, alpha: float, fdr: str) -> Significance:
    """Adjust p-values for the number of genes tested (Benjamini and Hochberg, or Yekutieli) and call at ``alpha``.

    Local false discovery rates know how far each gene's test can get by its mean.
    """
    from scipy.stats import false_discovery_control  # a third of a CPU second to load

    tested = np.isfinite(log_p)
    # Of the strongest genes p underflows, but it is never 0; their scores still tell them apart.
    pvalue, adjusted = np.maximum(np.exp(log_p), _SMALLEST_P), np.full(len(log_p), np.nan)
    if tested.any():
        adjusted[tested] = false_discovery_control(pvalue[tested], method=fdr)
    local = local_false_discovery(log_p, np.log(np.maximum(mean, 1e-12)))
    return Significance(pvalue, adjusted, local, np.nan_to_num(adjusted, nan=1.0) < alpha)


@one_blas_thread()
def smooth_expression(spots: Spots, genes: np.ndarray, found: Genes) -> np.ndarray:
    """Expected counts at mean depth of some genes under their Gaussian processes (spots, genes of the whole matrix)."""
    used = spots.used
    layer = np.full(spots.counts.shape, np.nan, np.float32)
    if not len(genes):
        return layer
    blocks = _blocks_of(genes, np.full(spots.counts.shape[1], len(used)))
    values = spots.counts.map_columns(_SmoothBlock(spots, used, found), blocks, description="Smoothing")
    for block, part in zip(blocks, values, strict=True):
        layer[np.ix_(np.flatnonzero(used), block)] = part
    return layer


class _SmoothBlock:
    """Smoothed expression of one block of genes at the used spots; picklable for dask workers."""

    def __init__(self, spots: Spots, used: np.ndarray, found: Genes):
        self.coordinates, self.slides, self.depth = spots.coordinates[used], spots.slides[used], spots.depth[used]
        self.used, self.found = used, found

    def __call__(self, counts: sp.csc_array, block: np.ndarray) -> np.ndarray:
        dense = _used_rows(counts, self.used).toarray()
        mean, dispersion = self.found.mean[block], self.found.dispersion[block]
        residuals = pearson_residuals(dense, self.depth / self.depth.mean(), mean, dispersion)
        lengthscale, ratio = self.found.variance[block, 2], self.found.variance[block, 4]
        posterior = smooth(residuals, self.coordinates, lengthscale, ratio, groups=self.slides)
        values = np.maximum(mean + posterior * np.sqrt(mean * (1.0 + dispersion * mean)), 0.0)
        return values.astype(np.float32)


@one_blas_thread()
def shuffled_scores(
    spots: Spots,
    sums: GeneSums,
    genes: np.ndarray,
    generator: np.random.Generator,
    lengthscales: np.ndarray | None = None,
) -> np.ndarray:
    """-log10 p of genes with the coordinates shuffled within each slide, three times: what chance alone gives."""
    scores = []
    for _ in range(_SHUFFLES):
        order = np.arange(len(spots.depth))
        for slide in np.unique(spots.slides):
            inside = np.flatnonzero(spots.slides == slide)
            order[inside] = generator.permutation(inside)
        shuffled = spots._replace(coordinates=spots.coordinates[order])
        log_p = find_spatial_genes(shuffled, sums, genes, make_test(shuffled, lengthscales)).log_p[genes]
        scores.append(-log_p[np.isfinite(log_p)] / np.log(10.0))
    return np.concatenate(scores)
