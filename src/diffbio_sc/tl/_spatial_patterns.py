from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from diffbio_sc._anndata import (
    check_key,
    covariates_given,
    covariates_of_test,
    make_record,
    read_column,
    read_coordinates,
    read_numbers,
    read_slides,
    read_test_covariates,
    require_anndata,
    result_column,
    survey_counts,
    write_results,
)
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.blocks.steps import RowSums

if TYPE_CHECKING:
    from anndata import AnnData


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
        What to regress out, as in the test; default: what the test regressed out. A table (spots × covariates) that
        was given to the test must be given again.
    max_genes
        Patterns are fitted on this many of the significant genes, those with the smallest p-values; the others are then
        assigned to them.
    key_added
        Name of the results, without ``/``; see below.
    rng
        Seed or numpy generator, for the starts of the fit; None draws anew in every run.
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
        If values are not counts, fewer than two genes are significant, there are more patterns than genes, or an
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
    from diffbio_sc.engines import spatial_patterns as engine
    from diffbio_sc.numerics.spatial.slide_basis import slide_bases
    from diffbio_sc.numerics.spatial.slides import without_flat_axis
    from diffbio_sc.numerics.spatial.smooth_covariates import smooth_covariates

    check_options(
        spatial_patterns,
        locals(),
        replaced=("spatial_key",),
        n_patterns="[1, inf)",
        lengthscale="(0, inf)",
        max_genes="[2, inf)",
    )
    max_genes = int(max_genes)
    n_patterns = None if n_patterns is None else int(n_patterns)
    started = time.perf_counter()
    require_anndata(adata)
    check_key(key_added)
    generator = as_generator(rng)
    genes = _significant_genes(adata, key)
    tested = in_memory(adata.uns[key])["params"] if key in adata.uns else {}
    spatial_key = spatial_key or str(tested.get("spatial_key", "spatial"))
    layer = layer or tested.get("layer")
    library_key = library_key or tested.get("library_key")
    _check_arguments(n_patterns, max_genes, len(genes))
    lengthscale = _choose_lengthscale(adata, key, genes, lengthscale)
    params = {
        "n_patterns": n_patterns, "lengthscale": lengthscale, "key": key, "spatial_key": spatial_key, "layer": layer,
        "library_key": library_key, "max_genes": max_genes, "key_added": key_added, "rng": rng,
        "covariates": covariates_given(covariates_of_test(tested, covariates)),
    }  # fmt: skip
    slides = read_slides(adata, library_key)
    coordinates = without_flat_axis(read_coordinates(adata, spatial_key), slides)
    nuisance = read_test_covariates(adata, tested, covariates)
    if nuisance is not None and tested.get("smooth_covariates"):
        nuisance = smooth_covariates(nuisance, coordinates, slides)
    depth_key, fractional = tested.get("total_counts_key"), bool(tested.get("allow_fractional", False))
    counts, (totals,) = survey_counts(adata, RowSums(), layer=layer, allow_fractional=fractional, keep=True)
    if depth_key is not None:
        totals = read_numbers(adata.obs, str(depth_key), name="adata.obs")

    used = totals > 0
    if nuisance is not None:
        used &= np.isfinite(nuisance).all(1)
    bases = slide_bases(coordinates, slides, lengthscale, used)
    coarsest = max(basis.lengthscale for basis in bases)
    if coarsest > lengthscale:
        logger.info(
            f"lengthscale {lengthscale:.4g} is raised to {coarsest:.4g}, which the representative places resolve."
        )
    projected = engine.project_genes(counts, totals, genes, slides, bases, nuisance)
    usable = projected.variance.sum(1) > 0
    genes = genes[usable]
    _check_usable(len(genes), n_patterns)
    spectrum = np.concatenate([basis.values for basis in bases])
    found = engine.find_patterns(projected.coefficients[usable], spectrum, n_patterns, max_genes, generator)
    if n_patterns is not None and len(found.sizes) < n_patterns:
        warnings.warn(
            f"Only {len(found.sizes)} of n_patterns = {n_patterns} patterns have genes; the empty ones are left out.",
            UserWarning,
            stacklevel=2,
        )

    if copy:
        adata = adata.copy()
    names = [str(number) for number in range(len(found.sizes))]
    codes, probability = np.full(adata.n_vars, -1), np.full(adata.n_vars, np.nan, np.float32)
    codes[genes], probability[genes] = found.pattern, found.probability
    maps = engine.pattern_maps(found.mean, slides, bases)
    column = "spatial_pattern" if key_added == "spatial_patterns" else f"{key_added}_pattern"
    report = {
        "history": {"evidence": found.fit.history},
        "converged": found.fit.converged,
        "steps": len(found.fit.history),
        "seconds": time.perf_counter() - started,
    }
    record = make_record(
        params,
        report,
        n_genes=found.sizes,
        lengthscale=np.array([basis.lengthscale for basis in bases]),
        criterion={"n_patterns": found.tried, "evidence": found.evidence},
    )
    write_results(
        adata,
        var={
            column: pd.Series(pd.Categorical.from_codes(codes, names), index=adata.var_names),
            f"{column}_probability": probability,
        },
        obsm={key_added: pd.DataFrame(maps, index=adata.obs_names, columns=names)},
        uns={key_added: record},
    )
    return adata if copy else None


def _significant_genes(adata: AnnData, key: str) -> np.ndarray:
    """Positions of the significant genes, the most significant first, ties in the order of their names."""
    for name in ("is_spatial", "spatial_score"):
        if result_column(key, name) not in adata.var:
            raise KeyError(
                f"adata.var has no column {result_column(key, name)!r}: run diffbio_sc.tl.spatial_genes first, or pass "
                f"its key_added as key=...; columns: {list(map(str, adata.var.columns))}."
            )
    column = result_column(key, "is_spatial")
    genes = np.flatnonzero(read_column(adata.var, column).to_numpy(dtype=bool))
    if len(genes) < 2:
        raise ValueError(f"At least 2 significant genes are needed, adata.var[{column!r}] has {len(genes)}.")
    score = read_column(adata.var, result_column(key, "spatial_score")).to_numpy(dtype=np.float64)[genes]
    return genes[np.lexsort((adata.var_names[genes].to_numpy(dtype=str), -score))]


def _check_usable(genes: int, n_patterns: int | None) -> None:
    if genes < 2:
        raise ValueError(f"At least 2 significant genes must vary over the spots, found {genes}.")
    if n_patterns is not None and n_patterns > genes:
        raise ValueError(f"n_patterns must be at most the {genes} significant genes that vary, found {n_patterns}.")


def _check_arguments(n_patterns, max_genes, n_genes) -> None:
    if n_patterns is None:
        return
    if n_patterns > n_genes:
        raise ValueError(f"n_patterns must be at most the {n_genes} significant genes, found {n_patterns}.")
    if max_genes < n_patterns:
        raise ValueError(f"max_genes must be at least n_patterns, found {max_genes} and {n_patterns}.")


def _choose_lengthscale(adata: AnnData, key: str, genes: np.ndarray, lengthscale: float | None) -> float:
    if lengthscale is not None:
        return float(lengthscale)
    column = result_column(key, "spatial_lengthscale")
    if column not in adata.var:
        raise KeyError(f"adata.var has no column {column!r}: run diffbio_sc.tl.spatial_genes, or pass lengthscale=...")
    values = read_column(adata.var, column).to_numpy(dtype=np.float64)[genes]
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        raise ValueError(f"adata.var[{column!r}] has no positive value for the significant genes: pass lengthscale=...")
    return float(np.median(values))
