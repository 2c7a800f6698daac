from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from diffbio_sc._anndata import (
    CountMatrix,
    align_names,
    make_record,
    read_coordinates,
    read_counts,
    read_labels,
    read_numbers,
    read_slides,
    require_unique,
    storable_names,
    write_results,
)
from diffbio_sc._logging import logger
from diffbio_sc.numerics.counts import signatures

if TYPE_CHECKING:
    from anndata import AnnData

    from diffbio_sc.operators.multiomics.spatial_deconvolution import SpotSolution, SpotSolver

_MINIMUM_GENES = 10
_FEW_CELLS = 5
_NEIGHBOURS = 6
_SOLVER_STEPS = 6
_UNKNOWN_STEPS = 3


def deconvolve(
    adata: AnnData,
    reference: AnnData | pd.DataFrame,
    *,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    reference_layer: str | None = None,
    genes: Sequence[str] | None = None,
    n_top_genes: int = 2000,
    fraction_of: Literal["cells", "rna"] = "cells",
    platform_effect: bool = True,
    refine: bool = True,
    library_key: str | None = None,
    smoothing: float = 0.0,
    spatial_key: str = "spatial",
    n_cells_key: str | None = None,
    min_counts: int = 10,
    allow_fractional: bool = False,
    reconstruct: bool = False,
    key_added: str = "deconvolution",
    rng: int | np.random.Generator = 0,
    copy: bool = False,
) -> AnnData | None:
    """Estimate the cell-type composition of spatial spots from a single-cell reference.

    Counts are regressed on the types' expression signatures under a negative binomial model with a depth for each spot
    and a factor for each gene between the two platforms :cite:p:`Cable2022,Kleshchevnikov2022`. The signatures, learned
    from the reference, are then refined on the spots themselves as far as the data allow, and how often each type is
    present is learned from all spots; proportions are posterior means. The operator behind this function is
    :class:`~diffbio_sc.operators.multiomics.SpatialDeconvolution`.

    Parameters
    ----------
    adata
        Spots by genes, raw counts; numpy, CSR, CSC, backed or dask. Read in blocks of rows.
    reference
        Single cells by genes with raw counts, labelled in ``.obs[cell_type_key]``; or profiles, types by genes, as a
        DataFrame or (``cell_type_key=None``) an AnnData. Profiles in counts a cell give fractions of cells.
    cell_type_key
        Column of ``reference.obs`` with the cell types. Cells without a label are left out.
    batch_key
        Column of ``reference.obs`` with batches, whose gene-specific effects are removed from the signatures.
    layer, reference_layer
        Layers with the raw counts; default ``X``.
    genes
        Names of the genes to use; default: chosen by how well they tell types apart.
    n_top_genes
        About how many genes to choose. All usable genes (5 counts on both sides) are used if there are fewer.
    fraction_of
        ``"cells"``: fractions of cells, weighing types by their mean counts a cell in the reference. ``"rna"``:
        fractions of RNA.
    platform_effect
        Whether to estimate a factor for each gene between the two platforms.
    refine
        Whether to refine the signatures on the spots.
    library_key
        Column of ``adata.obs`` with the slide of each spot: each slide gets its own platform effect.
    smoothing
        Strength of the pull to the mean of the six nearest spots of the same slide; 0 is off, 0.1 is moderate.
    spatial_key
        Coordinates in ``adata.obsm``, for ``smoothing``.
    n_cells_key
        Column of ``adata.obs`` with the cells in each spot, from nuclei counts for example. Spots of few cells are then
        expected to hold few types, and abundances are in cells.
    min_counts
        Spots with fewer counts get missing values.
    allow_fractional
        Accept fractional counts (volume-normalised, for example) with a warning.
    reconstruct
        Whether to write the expected counts as a layer.
    key_added
        Prefix of the keys written.
    rng
        Seed or generator, of the sample of spots that signatures are refined on (slides of over 2000 spots).
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields (for the default ``key_added``):

    `.obsm["deconvolution"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Proportions; rows sum to 1. Missing for spots with fewer than ``min_counts`` counts.
    `.obsm["deconvolution_std"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Their posterior standard deviations.
    `.obsm["deconvolution_abundance"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Cells of each type: the spot's counts in units of a reference cell's, or ``n_cells_key`` times proportion.
    `.obs["deconvolution_fit"]` : float32
        1 minus the share of the spot's RNA that a signature outside the reference would take, the one signature that
        explains most of what the reference leaves over on all spots. Near 1 for a spot that the reference explains,
        lower where a type that the reference lacks is present.
    `.var["deconvolution_log_platform_effect"]` : float32
        Natural log of the gene's factor between the platforms; missing for genes not used.
    `.layers["deconvolution_reconstructed"]` : float32
        Expected counts, if ``reconstruct``; missing for genes not used.
    `.uns["deconvolution"]` : dict
        ``params``, ``version``, ``report`` (history, converged, steps, seconds), ``cell_types`` (original names),
        ``genes`` used, ``presence_probability`` of each type, ``dispersion``.

    Raises
    ------
    KeyError
        If a key or layer is missing.
    ValueError
        If values are no counts, names are duplicated, fewer than 10 genes are shared, there are fewer than two types,
        or an argument is out of range. Nothing has been written then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    >>> spots.obsm["deconvolution"].shape
    (100, 7)
    """
    started = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in ("adata", "reference", "started")}
    _check_arguments(adata, fraction_of, n_top_genes, smoothing, min_counts, copy)
    require_unique(adata.obs_names, "adata.obs_names", "Call adata.obs_names_make_unique() first.")
    libraries = read_slides(adata, library_key)
    coordinates = read_coordinates(adata, spatial_key) if smoothing else None
    cells = None if n_cells_key is None else read_numbers(adata.obs, n_cells_key, name="adata.obs", positive=True)
    counts = read_counts(adata, layer=layer, allow_fractional=allow_fractional)
    table = _read_reference(reference, cell_type_key, batch_key, reference_layer, allow_fractional)

    columns, profiles = _choose_genes(adata, counts, table, genes, n_top_genes, fraction_of)
    if copy:
        adata = adata.copy()
    depth = np.concatenate(counts.map_row_blocks(_row_totals, columns=columns, description="Depth"))
    filled = depth >= max(min_counts, 1)
    if not filled.any():
        raise ValueError(
            f"No spot has min_counts = {min_counts} counts in the {len(columns)} genes used; the largest has "
            f"{int(depth.max())}."
        )

    operator, report, unknown = _fit(counts, columns, profiles, libraries, filled, platform_effect, refine, rng)
    solvers = _slide_solvers(operator, counts, columns, profiles, libraries, filled, platform_effect, rng, unknown)
    solution, fit = _solve(counts, columns, solvers, libraries)
    if coordinates is not None:
        prior = _neighbour_prior(solution.weights, coordinates, libraries, filled, smoothing)
        solution, fit = _solve(counts, columns, solvers, libraries, prior)
    estimate = _posterior(solution, profiles, filled, cells)

    n_empty = int((~filled).sum())
    if n_empty:
        warnings.warn(
            f"{n_empty} spots have fewer than min_counts = {min_counts} counts in the genes used; "
            f"their results are missing (NaN).",
            UserWarning,
            stacklevel=2,
        )
    proportions = np.where(filled[:, None], estimate.proportions, np.nan)
    if cells is None:
        size = (depth * (estimate.weights / profiles.sum(1)).sum(1))[:, None]
    else:
        size = cells[:, None]
    names = storable_names(table.types)

    def frame(values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values.astype(np.float32), index=adata.obs_names, columns=names)

    log_platform = np.full(adata.n_vars, np.nan, np.float32)
    log_platform[columns] = np.asarray(operator.log_platform[...])
    layers = {}
    if reconstruct:
        layers[f"{key_added}_reconstructed"] = _reconstruct(
            adata.shape, columns, solvers, libraries, depth, np.where(filled[:, None], estimate.weights, np.nan)
        )
    report = report._replace(seconds=time.perf_counter() - started)
    record = make_record(
        params,
        report,
        cell_types=np.array(table.types, dtype=str),
        columns=np.array(names, dtype=str),
        genes=np.array(adata.var_names[columns], dtype=str),
        presence_probability=estimate.presence_probability,
        dispersion=operator.config.dispersion,
    )
    write_results(
        adata,
        obsm={
            key_added: frame(proportions),
            f"{key_added}_std": frame(np.where(filled[:, None], estimate.deviation, np.nan)),
            f"{key_added}_abundance": frame(size * proportions),
        },
        obs={f"{key_added}_fit": np.where(filled, fit, np.nan).astype(np.float32)},
        var={f"{key_added}_log_platform_effect": log_platform},
        layers=layers,
        uns={key_added: record},
    )
    return adata if copy else None


class _Reference(NamedTuple):
    """Reference as types by genes: counts summed over cells, and the mean counts of a cell."""

    types: list[str]
    genes: pd.Index
    sums: np.ndarray
    counts_a_cell: np.ndarray
    exact: bool


class _Estimate(NamedTuple):
    weights: np.ndarray
    proportions: np.ndarray
    deviation: np.ndarray
    presence_probability: np.ndarray


def _check_arguments(adata, fraction_of, n_top_genes, smoothing, min_counts, copy) -> None:
    if not hasattr(adata, "obs_names") or hasattr(adata, "mod"):
        raise TypeError(
            f"adata must be an AnnData, found {type(adata).__name__}; of a MuData pass the modality: mdata['rna']."
        )
    if fraction_of not in ("cells", "rna"):
        raise ValueError(f"fraction_of must be 'cells' or 'rna', found {fraction_of!r}.")
    if n_top_genes < _MINIMUM_GENES:
        raise ValueError(f"n_top_genes must be at least {_MINIMUM_GENES}, found {n_top_genes!r}.")
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing must be a finite number of at least 0, found {smoothing!r}.")
    if min_counts < 0:
        raise ValueError(f"min_counts must not be negative, found {min_counts!r}.")
    if copy and adata.isbacked:
        raise ValueError("copy=True needs an object in memory: call adata.to_memory() first.")


def _read_reference(reference, cell_type_key, batch_key, layer, allow_fractional) -> _Reference:
    if cell_type_key is None:
        table = _read_profiles(reference, layer)
    elif isinstance(reference, pd.DataFrame):
        raise ValueError("cell_type_key is for a reference of single cells; with a DataFrame of profiles leave it out.")
    else:
        table = _read_cells(reference, cell_type_key, batch_key, layer, allow_fractional)
    require_unique(pd.Index(table.types), "The reference's cell types", "Merge or rename them.")
    if len(table.types) < 2:
        raise ValueError(f"The reference must have at least two cell types, found {table.types}.")
    empty = [name for name, total in zip(table.types, table.sums.sum(1), strict=True) if total <= 0]
    if empty:
        raise ValueError(f"These cell types have no counts in the reference: {empty}.")
    return table


def _read_profiles(reference: AnnData | pd.DataFrame, layer: str | None) -> _Reference:
    if isinstance(reference, pd.DataFrame):
        values, types, genes = reference.to_numpy(np.float64), reference.index, reference.columns
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # profiles are means: fractions are what is expected
            matrix = read_counts(
                reference, layer=layer, name="reference", layer_argument="reference_layer", allow_fractional=True
            )
        values = matrix.rows(np.arange(matrix.shape[0])).astype(np.float64)
        types, genes = reference.obs_names, reference.var_names
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("reference profiles must be finite and not negative; found missing or negative values.")
    totals = values.sum(1)
    # A profile says nothing about its own accuracy: count it as well known, a million counts.
    sums = values / np.maximum(totals, 1e-300)[:, None] * 1e6
    return _Reference([str(name) for name in types], pd.Index(genes), sums, totals, exact=True)


def _read_cells(reference, cell_type_key, batch_key, layer, allow_fractional) -> _Reference:
    codes, types = read_labels(reference.obs, cell_type_key, name="reference.obs")
    matrix = read_counts(
        reference, layer=layer, name="reference", layer_argument="reference_layer", allow_fractional=allow_fractional
    )
    n_cells = np.bincount(codes[codes >= 0], minlength=len(types))
    few = [f"{name} ({n})" for name, n in zip(types, n_cells, strict=True) if n < _FEW_CELLS]
    if few:
        warnings.warn(
            f"Cell types with fewer than {_FEW_CELLS} reference cells, their signatures are uncertain: {few}.",
            UserWarning,
            stacklevel=4,
        )
    if (codes < 0).any():
        logger.warning(f"{int((codes < 0).sum())} reference cells without {cell_type_key!r} are left out.")
    if batch_key is None:
        sums = matrix.sum_by_group(codes, len(types))
        counts_a_cell = sums.sum(1) / np.maximum(n_cells, 1)
    else:
        batches, names = read_labels(reference.obs, batch_key, name="reference.obs")
        both = np.where((codes >= 0) & (batches >= 0), batches * len(types) + codes, -1)
        sums = matrix.sum_by_group(both, len(names) * len(types)).reshape(len(names), len(types), -1)
        cells = np.bincount(both[both >= 0], minlength=len(names) * len(types)).reshape(len(names), len(types))
        counts_a_cell = signatures.size_without_batch_depth(sums.sum(2), cells)
        sums = signatures.remove_batch_effect(sums)
    return _Reference(types, reference.var_names, sums, counts_a_cell, exact=False)


def _choose_genes(adata, counts: CountMatrix, table: _Reference, genes, n_top_genes, fraction_of):
    """Columns of adata to use and the types' profiles on them, in counts a cell or scaled to RNA."""
    columns, reference_columns = align_names(
        adata.var_names,
        table.genes,
        left_name="adata.var_names",
        right_name="the reference's genes",
        minimum=_MINIMUM_GENES,
    )
    if genes is not None:
        wanted = pd.Index(genes)
        require_unique(wanted, "genes", "Name each gene once.")
        missing = [str(name) for name in wanted if name not in adata.var_names[columns]]
        if missing:
            raise ValueError(f"{len(missing)} of genes are not in both adata and reference: {missing[:5]}.")
        keep = adata.var_names[columns].isin(wanted)
        columns, reference_columns = columns[keep], reference_columns[keep]
        n_top_genes = max(n_top_genes, len(columns))
    sums = table.sums[:, reference_columns]
    profiles = sums / sums.sum(1, keepdims=True).clip(1e-300) if table.exact else signatures.shrunken_profiles(sums)
    if table.exact:
        profiles = np.maximum(profiles, 1e-9)  # a gene that a type never expresses would otherwise exclude the type
    chosen = signatures.informative_genes(profiles, counts.column_sums()[columns], sums.sum(0), n_top=n_top_genes)
    if len(chosen) < _MINIMUM_GENES:
        raise ValueError(
            f"Only {len(chosen)} of {len(columns)} shared genes have at least 5 counts in both adata and reference; "
            f"{_MINIMUM_GENES} are needed."
        )
    if fraction_of == "cells":
        scale = table.counts_a_cell * sums.sum(1) / np.maximum(table.sums.sum(1), 1e-300)
    else:
        scale = 1.0 / profiles[:, chosen].sum(1)
    return columns[chosen], (profiles * scale[:, None])[:, chosen].astype(np.float32)


def _row_totals(block: np.ndarray, start: int) -> np.ndarray:
    return block.sum(1, dtype=np.float64)


def _sample(filled: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    indices = np.flatnonzero(filled)
    return indices if len(indices) <= size else np.sort(generator.choice(indices, size, replace=False))


def _fit(counts, columns, profiles, libraries, filled, platform_effect, refine, rng):
    """Operator fitted on a sample of spots, its report, and the signature of what the reference lacks."""
    from flax import nnx

    from diffbio_sc.operators.multiomics.spatial_deconvolution import (
        FIT_SPOTS,
        SpatialDeconvolution,
        SpatialDeconvolutionConfig,
    )

    types, genes = profiles.shape
    config = SpatialDeconvolutionConfig(n_cell_types=types, n_genes=genes, hidden_dim=0, solver_steps=_SOLVER_STEPS)
    operator = SpatialDeconvolution(config, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(rng)
    slides = np.unique(libraries)
    parts = [_sample(filled & (libraries == slide), max(FIT_SPOTS // len(slides), 50), generator) for slide in slides]
    sample = counts.rows(np.sort(np.concatenate(parts)), columns)
    report = operator.fit_signatures(sample, profiles, platform_effect=platform_effect, refine=refine)
    return operator, report, operator.unknown_signature(sample, profiles)


class _SlideSolver(NamedTuple):
    """Regressions of one slide: on the reference alone, and with the unknown signature added."""

    known: SpotSolver
    with_unknown: SpotSolver


def _slide_solvers(
    operator, counts, columns, profiles, libraries, filled, platform_effect, rng, unknown
) -> list[_SlideSolver]:
    """Regressions of each slide: the common signatures, each slide with its own platform effect."""
    from diffbio_sc.operators.multiomics.spatial_deconvolution import FIT_SPOTS, SpotSolver

    def solver() -> _SlideSolver:
        known = operator.solver(profiles)
        extended = np.concatenate([operator.platform_signatures(profiles), unknown[None]]).astype(np.float32)
        return _SlideSolver(known, SpotSolver(extended, known.dispersion, _UNKNOWN_STEPS))

    slides = np.unique(libraries)
    if len(slides) == 1 or not platform_effect:
        return [solver()] * len(slides)
    generator = np.random.default_rng(rng)
    common = operator.log_platform[...]
    solvers = []
    for slide in slides:
        sample = _sample(filled & (libraries == slide), FIT_SPOTS, generator)
        if len(sample):
            operator.adapt_platform(counts.rows(sample, columns), profiles)
        solvers.append(solver())
        operator.log_platform[...] = common
    return solvers


class _SolveBlock:
    """Regression of one block of spots, each row with the solver of its slide; picklable for dask workers."""

    def __init__(self, solvers: list[_SlideSolver], libraries: np.ndarray, prior: tuple[np.ndarray, np.ndarray] | None):
        self.solvers, self.libraries, self.prior = solvers, libraries, prior

    def __call__(self, block: np.ndarray, start: int) -> tuple[SpotSolution, np.ndarray]:
        libraries = self.libraries[start : start + len(block)]
        parts, fits, order = [], [], []
        for slide in np.unique(libraries):
            rows = np.flatnonzero(libraries == slide)
            prior = () if self.prior is None else (self.prior[0][start + rows], self.prior[1])
            parts.append(self.solvers[slide].known(block[rows], *prior))
            weights = self.solvers[slide].with_unknown(block[rows]).weights
            fits.append(1.0 - weights[:, -1] / np.maximum(weights.sum(1), 1e-12))
            order.append(rows)
        position = np.argsort(np.concatenate(order))
        return _concatenate(parts, position), np.concatenate(fits)[position]


def _concatenate(parts: list[SpotSolution], order: np.ndarray | None = None) -> SpotSolution:
    fields = [np.concatenate(field) for field in zip(*parts, strict=True)]
    return type(parts[0])(*(field if order is None else field[order] for field in fields))


def _solve(counts, columns, solvers, libraries, prior=None) -> tuple[SpotSolution, np.ndarray]:
    """Regression and fit of all spots."""
    function = _SolveBlock(solvers, libraries, prior)
    blocks = counts.map_row_blocks(function, columns=columns, description="Deconvolution")
    solutions, fits = zip(*blocks, strict=True)
    return _concatenate(list(solutions)), np.concatenate(fits)


def _neighbour_prior(weights, coordinates, libraries, filled, smoothing) -> tuple[np.ndarray, np.ndarray]:
    """Mean weights of the nearest spots of the same slide, and the precision of that prior for each type."""
    mean = weights.copy()
    for slide in np.unique(libraries):
        rows = np.flatnonzero((libraries == slide) & filled)
        if len(rows) < 2:
            continue
        _, nearest = cKDTree(coordinates[rows]).query(coordinates[rows], k=min(_NEIGHBOURS + 1, len(rows)))
        mean[rows] = (weights[rows][nearest].sum(1) - weights[rows]) / (nearest.shape[1] - 1)
    variance = (weights - mean)[filled].var(0)
    return mean, smoothing / np.maximum(variance, 1e-6)


def _posterior(solution: SpotSolution, profiles: np.ndarray, filled: np.ndarray, cells: np.ndarray | None) -> _Estimate:
    """Posterior mean and standard deviation of the proportions, with presence learned from all spots."""
    from diffbio_sc.numerics.counts.presence import learn_presence, spike_and_slab
    from diffbio_sc.operators.multiomics.spatial_deconvolution import SIGNATURE_INFLATION, proportion_deviation

    prior = learn_presence(
        solution.weights[filled], solution.deviation[filled], cells=None if cells is None else cells[filled]
    )
    probability, typical = prior
    if cells is not None:  # a row for each spot
        probability, typical = np.full(solution.weights.shape, 0.5), np.ones(solution.weights.shape)
        probability[filled], typical[filled] = prior
    posterior = spike_and_slab(
        solution.weights, solution.deviation, probability.astype(np.float32), typical.astype(np.float32)
    )
    weights = posterior.mean
    size = profiles.sum(1)
    coefficients = weights / size
    total = coefficients.sum(1, keepdims=True)
    variance = SIGNATURE_INFLATION * posterior.variance * solution.inflation
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = proportion_deviation(coefficients, variance / size**2)
        proportions = coefficients / total
    return _Estimate(weights, proportions, deviation, probability.mean(0) if cells is not None else probability)


def _reconstruct(shape, columns, solvers, libraries, depth, weights) -> np.ndarray:
    result = np.full(shape, np.nan, np.float32)
    for slide in np.unique(libraries):
        rows = np.flatnonzero(libraries == slide)
        result[np.ix_(rows, columns)] = depth[rows, None] * (weights[rows] @ solvers[slide].known.signatures)
    return result
