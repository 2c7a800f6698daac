from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._anndata import (
    Reference,
    align_names,
    make_record,
    read_cell_numbers,
    read_coordinates,
    read_reference,
    read_slides,
    require_anndata,
    require_unique,
    storable_names,
    survey_counts,
    write_results,
)
from diffbio_sc._anndata.tables import in_memory
from diffbio_sc._options import check_options
from diffbio_sc._random import as_generator
from diffbio_sc.blocks.steps import ColumnSums

if TYPE_CHECKING:
    from anndata import AnnData

_MINIMUM_GENES = 10
_NOT_PARAMETERS = ("adata", "reference", "started", "engine", "held_out_mixtures", "relative_error", "sampling_index")


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
    unexplained: bool = False,
    library_key: str | None = None,
    smoothing: float = 0.0,
    spatial_key: str = "spatial",
    n_cells_key: str | None = None,
    cell_sizes: Mapping[str, float] | str | None = None,
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
        Spots by genes, raw counts; numpy, CSR, CSC, backed or dask, of any numeric type. Read three times in blocks of
        spots (once more with ``smoothing``).
    reference
        Single cells by genes with raw counts, labelled in ``.obs[cell_type_key]``; or profiles, types by genes, as a
        DataFrame or (``cell_type_key=None``, at most 100 types) an AnnData. Profiles in counts per cell give fractions
        of cells.
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
        ``"cells"``: fractions of cells, weighing types by their mean counts per cell in the reference. ``"rna"``:
        fractions of RNA.
    platform_effect
        Whether to estimate a factor for each gene between the two platforms.
    refine
        Whether to refine the signatures on the spots, if refined ones predict further spots better.
    unexplained
        Whether to ask if the reference is complete: report the share of a signature outside it and, if that signature,
        learned on other spots, lets genes be predicted better, give proportions among the other types beside it. For
        tissues that may hold a type that the reference lacks.
    library_key
        Column of ``adata.obs`` with the slide of each spot: each slide gets its own platform effect.
    smoothing
        Strength of the pull toward the mean of the six nearest spots of the same slide; 0 is off, 0.1 is moderate.
    spatial_key
        Coordinates in ``adata.obsm``, for ``smoothing``.
    n_cells_key
        Column of ``adata.obs`` with the cells in each spot, from nuclei counts for example. Spots of few cells are then
        expected to hold few types, and abundances are in cells. Spots where it is 0 or missing go by how often types
        are present over all spots, with a warning.
    cell_sizes
        RNA of a cell of each type, relative to each other (any unit), where it is known better than from the counts of
        the reference's cells, from sorted cells for example. Or the key in ``adata.obsm`` of a table of known
        compositions (rows × types, shares of cells; rows without a value for a type are not known): sizes are then
        those under which these rows come out as known, and serve all rows. Default: the reference's.
    min_counts
        Spots with fewer counts get missing values.
    allow_fractional
        Accept fractional counts (volume-normalised, for example) with a warning.
    reconstruct
        Whether to write the expected counts as a layer.
    key_added
        Prefix of the keys written, without ``/``.
    rng
        Seed or numpy generator, for the sample of spots that signatures are refined on (slides of over 2000 spots) and
        for the mixtures behind the standard deviations; None draws anew in every run.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields (for the default ``key_added``):

    `.obsm["deconvolution"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Proportions; rows sum to 1. Missing for spots with fewer than ``min_counts`` counts.
    `.obsm["deconvolution_std"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Their standard deviations: proportion ± 1.645 of them holds nine tenths of the truth, of types that are
        present, on mixtures of held-out reference cells. With a reference of profiles, posterior ones of the counts
        alone.
    `.obsm["deconvolution_abundance"]` : :class:`pandas.DataFrame` (float32, spots × types)
        Cells of each type: the spot's counts in units of a reference cell's, or ``n_cells_key`` times proportion.
    `.obs["deconvolution_fit"]` : float32
        1 minus the share of the spot's RNA that a signature outside the reference would take, the one signature that
        explains most of what the reference leaves over on all spots. Near 1 for a spot that the reference explains,
        lower where a type that the reference lacks is present.
    `.obs["deconvolution_unexplained"]` : float32
        Share of the spot of that signature, if ``unexplained``; the proportions of the others still sum to 1.
    `.var["deconvolution_log_platform_effect"]` : float32
        Natural log of the gene's factor between the platforms; missing for genes not used.
    `.layers["deconvolution_reconstructed"]` : float32
        Expected counts, if ``reconstruct``; missing for genes not used.
    `.uns["deconvolution"]` : dict
        ``params``, ``version``, ``report`` (history, converged, steps, seconds), ``cell_types`` (original names),
        ``genes`` used, ``presence_probability`` of each type, ``dispersion``, ``refined``: whether signatures were
        refined, ``corrected``: whether weights were corrected for the signatures' sampling error, ``typical_error`` of
        each type where it is present, on mixtures of held-out reference cells, ``cell_sizes``, if they were given or
        learned from rows of known composition, ``incomplete``: with ``unexplained``, whether a signature outside the
        reference predicts better.

    Raises
    ------
    KeyError
        If a key or layer is missing.
    ValueError
        If values are not counts, names are duplicated, fewer than 10 genes are shared, there are fewer than two types,
        cells come without ``cell_type_key``, or an argument is out of range. Nothing has been written then.

    Warns
    -----
    UserWarning
        If fewer than half of the gene names of the shorter side are shared, types have few cells, or spots have few
        counts or no number of cells.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> spots, reference = dbio.datasets.pbmc_tissue(n_spots=100)
    >>> dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    >>> spots.obsm["deconvolution"].shape
    (100, 7)
    """
    from diffbio_sc.engines import deconvolution as engine
    from diffbio_sc.engines import held_out_mixtures
    from diffbio_sc.numerics.counts.signatures import relative_error, sampling_index

    check_options(
        deconvolve,
        locals(),
        replaced=("spatial_key",),
        n_top_genes="[10, inf)",
        smoothing="[0, inf)",
        min_counts="[0, inf)",
    )
    n_top_genes = int(n_top_genes)
    started = time.perf_counter()
    params = {name: value for name, value in locals().items() if name not in _NOT_PARAMETERS}
    require_anndata(adata)
    require_unique(adata.obs_names, "adata.obs_names", "Call adata.obs_names_make_unique() first.")
    generator = as_generator(rng)
    slides = read_slides(adata, library_key)
    coordinates = read_coordinates(adata, spatial_key) if smoothing else None
    cells = None if n_cells_key is None else read_cell_numbers(adata.obs, n_cells_key, name="adata.obs")
    table = read_reference(reference, cell_type_key, batch_key, reference_layer, allow_fractional)
    types = table.types
    # Types are estimated in turn, and end a little short of their limit by an amount that depends on whose turn is
    # first: it goes by their names, whatever the order of categories.
    table = table.by_name()
    place = pd.Index(table.types).get_indexer(types)
    shared, in_reference = _shared_genes(adata, table, genes)
    counts, (totals,) = survey_counts(adata, ColumnSums(), layer=layer, allow_fractional=allow_fractional, keep=True)

    known = None
    if isinstance(cell_sizes, str):
        known = _known_composition(adata, cell_sizes, table, fraction_of)
    elif cell_sizes is not None:
        table = table._replace(counts_per_cell=_known_sizes(table, cell_sizes, fraction_of))
        # In an array: names of types may hold "/", which h5ad cannot store as keys.
        params["cell_sizes"] = table.counts_per_cell[place]
    sums = table.sums[:, in_reference]
    chosen, profiles = engine.choose_genes(
        sums,
        totals[shared],
        table.counts_per_cell * sums.sum(1) / np.maximum(table.sums.sum(1), 1e-300),
        exact=table.exact,
        fraction_of=fraction_of,
        n_top_genes=n_top_genes if genes is None else max(n_top_genes, len(shared)),
    )
    if len(chosen) < _MINIMUM_GENES:
        raise ValueError(
            f"Only {len(chosen)} of {len(shared)} shared genes have at least 5 counts in both adata and reference; "
            f"{_MINIMUM_GENES} are needed."
        )
    columns = shared[chosen]
    spots = engine.Spots(counts, columns, slides, cells, coordinates)
    sample = engine.survey_spots(spots, min_counts, generator)
    _check_depth(sample.depth, sample.filled, min_counts, len(columns))
    index = table.dispersion_index[in_reference][chosen]
    cells_of_type = 0 if table.codes is None else np.bincount(table.codes[table.codes >= 0], minlength=len(table.types))
    sampling = sampling_index(index, sums[:, chosen], cells_of_type, table.size_variation)
    size_variation = table.size_variation if fraction_of == "cells" else None
    fit = engine.fit_signatures(
        spots,
        sample,
        profiles,
        dispersion_index=index,
        signature_error=None if table.exact else relative_error(sums[:, chosen], sampling),
        platform_effect=platform_effect,
        refine=refine,
        unexplained=unexplained,
    )
    regressed = engine.regress_spots(spots, sample, fit, smoothing, unexplained=bool(fit.incomplete))
    found = engine.posterior_composition(
        regressed.solution, profiles, sample, cells, kept=fit.kept, size_variation=size_variation
    )
    if known is not None:
        profiles = engine.with_sizes_of_samples(profiles, found.weights, known)
        found = engine.posterior_composition(
            regressed.solution, profiles, sample, cells, kept=fit.kept, size_variation=size_variation
        )
    obs, weights = {"fit": regressed.fit}, found.weights
    if unexplained:
        obs["unexplained"] = 1.0 - regressed.fit
    if regressed.extended is not None:
        # Nothing is known of the size of its cells: the mean of the others'.
        size = np.full((1, len(columns)), profiles.sum() / profiles.size, np.float32)
        variation = None if size_variation is None else np.append(size_variation, size_variation.mean())
        extended = engine.posterior_composition(
            regressed.extended,
            np.concatenate([profiles, size]),
            sample,
            cells,
            kept=fit.kept,
            size_variation=variation,
        )
        found = engine.beside_unexplained(found, extended, obs["unexplained"])
    calibration = None
    if table.cells is not None and table.codes is not None:
        used = in_reference[chosen]
        rows = held_out_mixtures.choose_cells(table.codes, generator)
        calibration = held_out_mixtures.calibrate(
            spots,
            sample,
            fit,
            regressed.solution.weights,
            found,
            held_out_mixtures.Cells(table.cells.take(rows, used), table.codes[rows]),
            table.sums[:, used],
            generator,
            fraction_of=fraction_of,
            dispersion_index=index,
            sampling_index=sampling,
            size_variation=size_variation,
            platform_effect=platform_effect,
        )
        found = found._replace(deviation=calibration.widen(found.deviation))

    if copy:
        adata = adata.copy()
    names = storable_names(types)
    tables = {"": found.proportions, "_std": found.deviation, "_abundance": found.abundance}
    expected = engine.expected_counts(spots, sample, fit, weights) if reconstruct else None
    log_platform = np.full(adata.n_vars, np.nan, np.float32)
    log_platform[columns] = fit.log_platform
    record = make_record(
        params,
        fit.report._replace(seconds=time.perf_counter() - started),
        cell_types=np.array(types, dtype=str),
        columns=np.array(names, dtype=str),
        genes=np.array(adata.var_names[columns], dtype=str),
        presence_probability=found.presence_probability[place],
        dispersion=fit.dispersion,
        refined=fit.refined,
        corrected=fit.corrected,
        **({} if calibration is None else {"typical_error": calibration.error[place]}),
        **({} if fit.incomplete is None else {"incomplete": fit.incomplete}),
        **({} if cell_sizes is None else {"cell_sizes": profiles.sum(1)[place]}),
    )
    write_results(
        adata,
        obsm={
            f"{key_added}{suffix}": pd.DataFrame(
                values[:, place].astype(np.float32, copy=False), index=adata.obs_names, columns=names, copy=False
            )
            for suffix, values in tables.items()
        },
        obs={
            # What an earlier call was asked for, and this one not, is removed.
            f"{key_added}_unexplained": None,
            **{
                f"{key_added}_{name}": np.where(sample.filled, values, np.nan).astype(np.float32)
                for name, values in obs.items()
            },
        },
        var={f"{key_added}_log_platform_effect": log_platform},
        layers={f"{key_added}_reconstructed": expected},
        uns={key_added: record},
    )
    return adata if copy else None


def _shared_genes(adata: AnnData, reference: Reference, genes: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Columns of adata and of the reference of the genes that both have, or of those asked for."""
    columns, in_reference = align_names(
        adata.var_names,
        reference.genes,
        left_name="adata.var_names",
        right_name="the reference's genes",
        minimum=_MINIMUM_GENES,
        left_table=adata.var,
        right_table=reference.table,
        stacklevel=5,
    )
    if genes is None:
        return columns, in_reference
    wanted = pd.Index([genes] if isinstance(genes, str) else genes)
    missing = [str(name) for name in wanted if name not in adata.var_names[columns]]
    if missing:
        raise ValueError(f"{len(missing)} of genes are not in both adata and reference: {missing[:5]}.")
    keep = adata.var_names[columns].isin(wanted)
    return columns[keep], in_reference[keep]


def _known_composition(adata: AnnData, key: str, table: Reference, fraction_of: str) -> np.ndarray:
    """Shares of the types in the rows of ``adata`` of which they are known; missing in the others."""
    if fraction_of != "cells":
        raise ValueError("cell_sizes are for fractions of cells; leave them out for fraction_of='rna'.")
    if key not in adata.obsm:
        raise KeyError(
            f"cell_sizes: adata.obsm has no table {key!r} of known compositions; it holds {list(adata.obsm)}."
        )
    given = in_memory(adata.obsm[key])
    if not isinstance(given, pd.DataFrame):
        raise ValueError(f"adata.obsm[{key!r}] must be a DataFrame with a column for each cell type.")
    missing = [name for name in table.types if not {name, name.replace("/", "|")} & set(given.columns)]
    if missing:
        raise ValueError(f"adata.obsm[{key!r}] must have a column for each cell type; missing: {missing[:5]}.")
    columns = [name if name in given.columns else name.replace("/", "|") for name in table.types]
    values = given[columns].to_numpy(np.float64)
    complete = np.isfinite(values).all(1)
    if not complete.any() or (values[complete] < 0).any() or (values[complete].sum(1) <= 0).any():
        raise ValueError(f"adata.obsm[{key!r}] must hold shares of cells, not negative, of at least one row in full.")
    values[~complete] = np.nan
    return values / values.sum(1, keepdims=True)


def _known_sizes(table: Reference, sizes: Mapping[str, float], fraction_of: str) -> np.ndarray:
    """Counts of a cell of each type in the ratios of ``sizes``, with the reference's (geometric) mean kept."""
    if fraction_of != "cells":
        raise ValueError(
            "cell_sizes turn fractions of RNA into fractions of cells; leave them out for fraction_of='rna'."
        )
    missing = [name for name in table.types if name not in sizes]
    if missing:
        raise ValueError(f"cell_sizes must name each cell type of the reference; missing: {missing[:5]}.")
    known = np.array([float(sizes[name]) for name in table.types])
    if not (np.isfinite(known).all() and (known > 0).all()):
        raise ValueError(f"cell_sizes must be finite and positive, found {dict(zip(table.types, known, strict=True))}.")
    return known * np.exp(np.log(table.counts_per_cell).mean() - np.log(known).mean())


def _check_depth(depth: np.ndarray, filled: np.ndarray, min_counts: int, genes: int) -> None:
    if not filled.any():
        raise ValueError(
            f"No spot has min_counts = {min_counts} counts in the {genes} genes used; the largest has "
            f"{int(depth.max())}."
        )
    if not filled.all():
        warnings.warn(
            f"{int((~filled).sum())} spots have fewer than min_counts = {min_counts} counts in the genes used; "
            f"their results are missing (NaN).",
            UserWarning,
            stacklevel=3,
        )
