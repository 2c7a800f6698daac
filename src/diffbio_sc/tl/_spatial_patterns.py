from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._anndata import (
    CountMatrix,
    make_record,
    read_coordinates,
    read_counts,
    read_covariates,
    read_numbers,
    read_slides,
    write_results,
)
from diffbio_sc._logging import logger
from diffbio_sc.numerics.spatial.pattern_mixture import SlideBasis, fit_mixture, slide_bases

if TYPE_CHECKING:
    from anndata import AnnData

_CANDIDATES = range(2, 13)
_VERY_STRONG = 5.0
_FEWEST_GENES = 3
_COLUMNS_AT_ONCE = 4096


def spatial_patterns(
    adata: AnnData,
    *,
    n_patterns: int | None = None,
    lengthscale: float | None = None,
    key: str = "spatial_genes",
    spatial_key: str | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    covariates: str | Sequence[str] | pd.DataFrame | np.ndarray | None = None,
    max_genes: int = 2000,
    key_added: str = "spatial_patterns",
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Cluster the spatially variable genes into patterns, each with a smooth map (automatic expression histology).

    Run :func:`diffbio_sc.tl.spatial_genes` first. Counts of the significant genes are normalised to the spots' totals,
    log-transformed, freed of what the log total and the covariates explain, and standardised, for each gene and slide.
    A mixture of Gaussian processes is then fitted to them, a process for each pattern :cite:p:`Svensson2018`.

    Parameters
    ----------
    adata
        Spots by genes with raw counts, tested by :func:`diffbio_sc.tl.spatial_genes`. Read in blocks of rows.
    n_patterns
        Number of patterns; default: the fewest of 2 to 12 whose log evidence is within 5 of the highest, leaving out
        fits in which a pattern has fewer than 3 genes.
    lengthscale
        Lengthscale of the patterns, in units of the coordinates; default: the median over the significant genes.
    key
        The ``key_added`` of the test.
    spatial_key
        Coordinates in ``adata.obsm``; default: those of the test.
    layer
        Layer with the raw counts; default: that of the test.
    library_key
        Column of ``adata.obs`` with the slide of each spot; default: that of the test. A pattern has a map on each
        slide, and the maps of two slides are independent.
    covariates
        What to regress out, as in the test; default: what the test regressed out. A table that was given to the test
        must be given again.
    max_genes
        Patterns are fitted on this many of the significant genes, those with the smallest p-values; the others are then
        assigned to them.
    key_added
        Name of the results; see below.
    rng
        Seed or generator, of the starts of the fit.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields (for another ``key_added`` the columns of ``.var`` begin with it):

    `.var["spatial_pattern"]` : categorical
        Pattern of each significant gene: ``"0"`` is the largest, ``"1"`` the next, ... Missing for all other genes.
    `.var["spatial_pattern_probability"]` : float32
        Posterior probability of that pattern.
    `.obsm["spatial_patterns"]` : :class:`pandas.DataFrame` (float32, spots × patterns)
        Smooth map of each pattern, in standard deviations of a gene that follows it with average strength.
    `.uns["spatial_patterns"]` : dict
        ``params``, ``version``, ``report`` (history: the evidence of the chosen fit step by step; converged, steps,
        seconds), ``n_genes`` of each pattern, ``lengthscale`` used on each slide, and ``criterion``: the evidence
        (``evidence``) for each number of patterns tried (``n_patterns``).

    Raises
    ------
    KeyError
        If the test has not been run, or a key or layer is missing.
    ValueError
        If values are no counts, fewer than two genes are significant, there are more patterns than genes, or an
        argument is out of range. Nothing has been written then.

    Notes
    -----
    Gene g of pattern k has expression :math:`y_g = a_g \mu_k + e_g`, with :math:`\mu_k \sim GP(0, v K)` and K the
    squared exponential kernel :math:`\exp(-d^2 / 2 l^2)`, 0 between slides. This differs from Svensson et al. in: 1. a
    positive amplitude :math:`a_g \sim N(1, 0.5^2)`, because genes of one pattern differ in how much of their variance
    it explains; 2. deviations :math:`e_g \sim N(0, s^2 I + w^2 K)`, because genes of one pattern also deviate smoothly
    from it, which would otherwise split patterns without end; 3. the number of patterns is chosen, by the variational
    bound on the log evidence (less the cost of the proportions, plus log k! for their order); 4. the kernel has low
    rank: at most 256 eigenvectors (fewer for each of many slides), and on slides of over 1,500 spots those of 1,500
    representative places, extended to all spots. Patterns finer than the distance between these places are not resolved
    and ``lengthscale`` is raised to it.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, _ = dbio.datasets.pbmc_tissue(n_spots=225)
    >>> dbio.tl.spatial_genes(spots)
    >>> dbio.tl.spatial_patterns(spots, n_patterns=3)
    >>> spots.obsm["spatial_patterns"].shape
    (225, 3)
    """
    started = time.perf_counter()
    if copy and adata.isbacked:
        raise ValueError("copy=True needs an object in memory: call adata.to_memory() first.")
    genes = _significant_genes(adata, key)
    tested = adata.uns[key]["params"] if key in adata.uns else {}
    spatial_key = spatial_key or str(tested.get("spatial_key", "spatial"))
    layer = layer or tested.get("layer")
    library_key = library_key or tested.get("library_key")
    _check_arguments(n_patterns, max_genes, len(genes))
    lengthscale = _choose_lengthscale(adata, key, genes, lengthscale)
    params = {
        "n_patterns": n_patterns, "lengthscale": lengthscale, "key": key, "spatial_key": spatial_key, "layer": layer,
        "library_key": library_key, "max_genes": max_genes, "key_added": key_added, "rng": rng,
        "covariates": covariates_of_test(tested, covariates),
    }  # fmt: skip
    if not isinstance(params["covariates"], str | list | tuple | None):
        params["covariates"] = "given"
    coordinates = read_coordinates(adata, spatial_key)
    slides = read_slides(adata, library_key)
    nuisance = read_test_covariates(adata, tested, covariates)
    counts = read_counts(adata, layer=layer, allow_fractional=bool(tested.get("allow_fractional", False)))
    totals = spot_totals(adata, counts, tested)

    bases = slide_bases(coordinates, slides, lengthscale)
    coarsest = max(basis.lengthscale for basis in bases)
    if coarsest > lengthscale:
        logger.info(
            f"lengthscale {lengthscale:.4g} is raised to {coarsest:.4g}, which the representative places resolve."
        )
    projected = _project(counts, totals, genes, slides, bases, nuisance)
    usable = projected.variance.sum(1) > 0
    genes = genes[usable]
    spectrum = np.concatenate([basis.values for basis in bases])
    data = projected.coefficients[usable]
    if len(genes) < 2:
        raise ValueError(f"At least 2 significant genes must vary over the spots, found {len(genes)}.")
    if n_patterns is not None and n_patterns > len(genes):
        raise ValueError(
            f"n_patterns must be at most the {len(genes)} significant genes that vary, found {n_patterns}."
        )

    generator = np.random.default_rng(rng)
    fitted = data[:max_genes]
    candidates = [n for n in _CANDIDATES if n <= len(fitted)] if n_patterns is None else [n_patterns]
    fits = [fit_mixture(fitted, spectrum, number, generator) for number in candidates]
    criterion = np.array([fit.evidence for fit in fits])
    smallest = np.array(
        [np.bincount(fit.assign(fitted).argmax(1), minlength=n).min() for fit, n in zip(fits, candidates, strict=True)]
    )
    best = fits[_choose_fit(criterion, smallest)]
    responsibility = best.assign(data)
    pattern = responsibility.argmax(1)
    sizes = np.bincount(pattern, minlength=responsibility.shape[1])
    first = [np.flatnonzero(pattern == k)[0] if sizes[k] else len(pattern) for k in range(len(sizes))]
    order = np.lexsort((first, -sizes))
    order = order[sizes[order] > 0]
    if n_patterns is not None and len(order) < n_patterns:
        warnings.warn(
            f"Only {len(order)} of n_patterns = {n_patterns} patterns have genes; the empty ones are left out.",
            UserWarning,
            stacklevel=2,
        )

    if copy:
        adata = adata.copy()
    names = [str(number) for number in range(len(order))]
    rank = np.full(len(sizes), -1)
    rank[order] = np.arange(len(order))
    codes = np.full(adata.n_vars, -1)
    codes[genes] = rank[pattern]
    probability = np.full(adata.n_vars, np.nan, np.float32)
    probability[genes] = responsibility.max(1)
    maps = pd.DataFrame(_maps(best.mean[order], slides, bases), index=adata.obs_names, columns=names)
    column = "spatial_pattern" if key_added == "spatial_patterns" else f"{key_added}_pattern"
    report = {
        "history": {"evidence": best.history},
        "converged": best.converged,
        "steps": len(best.history),
        "seconds": time.perf_counter() - started,
    }
    record = make_record(
        params,
        report,
        n_genes=sizes[order],
        lengthscale=np.array([basis.lengthscale for basis in bases]),
        criterion={"n_patterns": np.array(candidates), "evidence": criterion},
    )
    write_results(
        adata,
        var={
            column: pd.Series(pd.Categorical.from_codes(codes, names), index=adata.var_names),
            f"{column}_probability": probability,
        },
        obsm={key_added: maps},
        uns={key_added: record},
    )
    return adata if copy else None


def _choose_fit(criterion: np.ndarray, smallest: np.ndarray) -> int:
    """Fewest patterns whose log evidence is close to the highest, among fits without patterns of one or two genes.

    A gene unlike all others is evidence for a pattern of its own, but no cluster.
    """
    eligible = smallest >= min(_FEWEST_GENES, smallest.max())
    # A difference of 5 in the log evidence is "very strong" on the scale of Kass and Raftery.
    return int(np.flatnonzero(eligible & (criterion >= criterion[eligible].max() - _VERY_STRONG))[0])


def result_column(key: str, name: str) -> str:
    """Column of ``adata.var`` in which :func:`diffbio_sc.tl.spatial_genes` writes ``name`` for ``key_added=key``."""
    return name if key == "spatial_genes" else f"{key}_{name}"


def _significant_genes(adata: AnnData, key: str) -> np.ndarray:
    """Positions of the significant genes, the most significant first, ties in the order of their names."""
    if not hasattr(adata, "obs_names") or hasattr(adata, "mod"):
        raise TypeError(
            f"adata must be an AnnData, found {type(adata).__name__}; of a MuData pass the modality: mdata['rna']."
        )
    for name in ("is_spatial", "spatial_score"):
        if result_column(key, name) not in adata.var:
            raise KeyError(
                f"adata.var has no column {result_column(key, name)!r}: run diffbio_sc.tl.spatial_genes first, or pass "
                f"its key_added as key=...; columns: {list(map(str, adata.var.columns))}."
            )
    column = result_column(key, "is_spatial")
    genes = np.flatnonzero(adata.var[column].to_numpy(dtype=bool))
    if len(genes) < 2:
        raise ValueError(f"At least 2 significant genes are needed, adata.var[{column!r}] has {len(genes)}.")
    score = adata.var[result_column(key, "spatial_score")].to_numpy(dtype=np.float64)[genes]
    return genes[np.lexsort((adata.var_names[genes].to_numpy(dtype=str), -score))]


def _check_arguments(n_patterns, max_genes, n_genes) -> None:
    whole = int | np.integer
    if n_patterns is not None:
        if isinstance(n_patterns, bool) or not isinstance(n_patterns, whole) or n_patterns < 1:
            raise ValueError(f"n_patterns must be a whole number of at least 1 or None, found {n_patterns!r}.")
        if n_patterns > n_genes:
            raise ValueError(f"n_patterns must be at most the {n_genes} significant genes, found {n_patterns}.")
    if isinstance(max_genes, bool) or not isinstance(max_genes, whole) or max_genes < max(n_patterns or 2, 2):
        raise ValueError(f"max_genes must be a whole number of at least 2 and n_patterns, found {max_genes!r}.")


def _choose_lengthscale(adata: AnnData, key: str, genes: np.ndarray, lengthscale: float | None) -> float:
    if lengthscale is not None:
        number = isinstance(lengthscale, int | float | np.number) and not isinstance(lengthscale, bool)
        if not (number and np.isfinite(lengthscale) and lengthscale > 0):
            raise ValueError(f"lengthscale must be a positive finite number or None, found {lengthscale!r}.")
        return float(lengthscale)
    column = result_column(key, "spatial_lengthscale")
    if column not in adata.var:
        raise KeyError(f"adata.var has no column {column!r}: run diffbio_sc.tl.spatial_genes, or pass lengthscale=...")
    values = adata.var[column].to_numpy(dtype=np.float64)[genes]
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        raise ValueError(f"adata.var[{column!r}] has no positive value for the significant genes: pass lengthscale=...")
    return float(np.median(values))


def read_test_covariates(adata: AnnData, tested: Mapping[str, Any], covariates: Any) -> np.ndarray | None:
    """Covariates (spots, columns), by default those of the test with the parameters ``tested``; NaN where missing."""
    covariates = covariates_of_test(tested, covariates)
    if covariates is None:
        return None
    return read_covariates(adata, covariates)


def covariates_of_test(tested: Mapping[str, Any], covariates: Any) -> Any:
    """Return the covariates given, else those that the test's record names."""
    if covariates is not None:
        return covariates
    stored = tested.get("covariates")
    if isinstance(stored, str) and stored == "given":
        raise ValueError("The test was given a table of covariates, which is not stored: pass it as covariates=...")
    return [str(name) for name in stored] if isinstance(stored, np.ndarray) else stored


def spot_totals(adata: AnnData, counts: CountMatrix, tested: Mapping[str, Any]) -> np.ndarray:
    """Total counts of the spots, from the column that the test took them from if it did."""
    column = tested.get("total_counts_key")
    return counts.row_sums() if column is None else read_numbers(adata.obs, str(column), name="adata.obs")


class _Projected(NamedTuple):
    """Standardised genes in the slides' eigenbases (genes, all ranks), and their variance before (genes, slides)."""

    coefficients: np.ndarray
    variance: np.ndarray


class LogNormalise:
    """log1p of counts over the spot's total, times the median total; 0 for empty spots. Picklable for dask workers."""

    def __init__(self, totals: np.ndarray):
        filled = totals > 0
        typical = np.median(totals[filled]) if filled.any() else 1.0
        self.factor = np.where(filled, typical / np.where(filled, totals, 1.0), 0.0).astype(np.float32)

    def __call__(self, block: np.ndarray, start: int) -> np.ndarray:
        return np.log1p(block * self.factor[start : start + len(block), None])


class _BlockSums:
    """Products of one block's log-expression with each slide's basis and design, and sums of squares."""

    def __init__(self, normalise: LogNormalise, slides, basis, design, ranks: list[int]):
        self.normalise, self.slides, self.basis, self.design, self.ranks = normalise, slides, basis, design, ranks

    def __call__(self, block: np.ndarray, start: int) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        values = self.normalise(block, start)
        slides = self.slides[start : start + len(block)]
        sums = {}
        for slide in np.unique(slides):
            inside = np.flatnonzero(slides == slide)
            part, rows = values[inside], start + inside
            sums[int(slide)] = (
                self.basis[rows, : self.ranks[slide]].T @ part,
                self.design[rows].T @ part.astype(np.float64),
                np.einsum("ng,ng->g", part, part, dtype=np.float64),
            )
        return sums


def _project(
    counts: CountMatrix,
    totals: np.ndarray,
    genes: np.ndarray,
    slides: np.ndarray,
    bases: list[SlideBasis],
    nuisance: np.ndarray | None = None,
) -> _Projected:
    """Residuals of the genes in the eigenbases, from one pass over the counts for every 4096 genes.

    Spots without counts, or with a missing covariate, are left out.
    """
    if nuisance is None:
        nuisance = np.empty((len(totals), 0))
    filled = (totals > 0) & np.isfinite(nuisance).all(1)
    # One table for all slides, each row with the vectors of its slide, for blocks that span slides.
    ranks = [len(basis.values) for basis in bases]
    table = np.zeros((len(slides), max(ranks)), np.float32)
    for slide, basis in enumerate(bases):
        table[slides == slide, : ranks[slide]] = basis.vectors
    table[~filled] = 0
    log_total = np.log(np.where(filled, totals, 1.0))
    explaining = np.where(filled[:, None], np.column_stack([log_total, nuisance]), 0.0)
    for slide in range(len(bases)):
        inside = (slides == slide) & filled
        if inside.any():
            explaining[inside] -= explaining[inside].mean(0)
            explaining[inside] /= np.maximum(np.abs(explaining[inside]).max(0), 1e-12)
    design = np.column_stack([filled, explaining])
    function = _BlockSums(LogNormalise(np.where(filled, totals, 0.0)), slides, table, design, ranks)
    coefficients, variances = [], []
    for start in range(0, len(genes), _COLUMNS_AT_ONCE):
        columns = genes[start : start + _COLUMNS_AT_ONCE]
        blocks = counts.map_row_blocks(function, columns=columns, description="Projection")
        parts, variance = [], []
        for slide in range(len(bases)):
            inside = slides == slide
            sums = [block[slide] for block in blocks if slide in block]
            projected, with_design, squares = (
                np.sum(field, axis=0, dtype=np.float64) for field in zip(*sums, strict=True)
            )
            slope = np.linalg.pinv(design[inside].T @ design[inside]) @ with_design
            spots = max(int(filled[inside].sum()), 1)
            spread = np.maximum(squares - (slope * with_design).sum(0), 0.0) / spots
            spread[spread < 1e-6 * squares / spots] = 0.0
            residual = projected - (table[inside, : ranks[slide]].astype(np.float64).T @ design[inside]) @ slope
            parts.append(np.where(spread > 0, residual / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0))
            variance.append(spread)
        coefficients.append(np.concatenate(parts).T)
        variances.append(np.stack(variance, 1))
    return _Projected(np.concatenate(coefficients), np.concatenate(variances))


def _maps(mean: np.ndarray, slides: np.ndarray, bases: list[SlideBasis]) -> np.ndarray:
    """Patterns (patterns, all ranks) at the spots."""
    result = np.zeros((len(slides), len(mean)), np.float32)
    start = 0
    for slide, basis in enumerate(bases):
        stop = start + len(basis.values)
        result[slides == slide] = basis.vectors @ mean[:, start:stop].T.astype(np.float32)
        start = stop
    return result
