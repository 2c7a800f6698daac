"""Deconvolution of slides of any size: sampled, fitted and regressed over blocks of spots."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from flax import nnx

from diffbio_sc.blocks.matrix import CountMatrix, dense_block
from diffbio_sc.blocks.steps import Gather, RowSums
from diffbio_sc.numerics.counts import signatures
from diffbio_sc.numerics.counts.cell_sizes import sizes_from_samples
from diffbio_sc.numerics.counts.cell_variation import excess_shape
from diffbio_sc.numerics.counts.presence import PresencePrior, learn_presence, pull_to_sum, spike_and_slab
from diffbio_sc.numerics.counts.proportions import SIGNATURE_INFLATION, proportion_deviation
from diffbio_sc.numerics.counts.spot_regression import SpotSolution, SpotSolver
from diffbio_sc.operators.contract import FitReport
from diffbio_sc.operators.multiomics.spatial_deconvolution import (
    FIT_SPOTS,
    SpatialDeconvolution,
    SpatialDeconvolutionConfig,
)

_FEWEST_SAMPLED = 50  # of each slide, however many slides share the sample
_NEIGHBOURS = 6  # of a spot on a hexagonal lattice
_SOLVER_STEPS = 6
_SPOTS_AT_ONCE = 2**14  # of which the posterior is computed
_UNKNOWN_STEPS = 3
_BELIEVED = 0.5  # even odds, whether RNA outside the reference is of a missing type (benchmarks/deconvolution.py odds)


def choose_genes(
    sums: np.ndarray,
    spot_counts: np.ndarray,
    counts_per_cell: np.ndarray,
    *,
    exact: bool,
    fraction_of: str,
    n_top_genes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Genes to use, and the types' profiles on them, in counts per cell or scaled to RNA.

    Parameters
    ----------
    sums
        Reference counts summed over the cells of each type (types, shared genes), or profiles if ``exact``.
    spot_counts
        Counts of the shared genes over all spots.
    counts_per_cell
        Mean counts in the shared genes of a cell of each type.
    exact
        Whether the profiles are known, not estimated from so many counts.
    fraction_of
        ``"cells"`` or ``"rna"``.
    n_top_genes
        About how many genes to choose.
    """
    if exact:
        # A gene that a type never expresses would otherwise exclude the type.
        profiles = np.maximum(sums / sums.sum(1, keepdims=True).clip(1e-300), 1e-9)
    else:
        profiles = signatures.shrunken_profiles(sums)
    chosen = signatures.informative_genes(profiles, spot_counts, sums.sum(0), n_top=n_top_genes)
    scale = counts_per_cell if fraction_of == "cells" else 1.0 / profiles[:, chosen].sum(1).clip(1e-300)
    return chosen, (profiles * scale[:, None])[:, chosen].astype(np.float32)


class Spots(NamedTuple):
    """Spots to deconvolve.

    Attributes
    ----------
    counts
        Spots by all genes.
    columns
        Genes to use.
    slides
        Code of each spot's slide, 0, 1, ...
    cells
        Cells in each spot, NaN or 0 where not known; None if not known at all.
    coordinates
        Places, for ``smoothing``.
    """

    counts: CountMatrix
    columns: np.ndarray
    slides: np.ndarray
    cells: np.ndarray | None = None
    coordinates: np.ndarray | None = None


class Sample(NamedTuple):
    """Depth of all spots, and the rows of those that signatures may be estimated on.

    Attributes
    ----------
    depth
        Counts in the genes used.
    filled
        Whether the spot has enough of them.
    order
        Filled spots in random order, by slide.
    rows
        Spots whose counts were gathered, increasing.
    counts
        Their counts in the genes used.
    """

    depth: np.ndarray
    filled: np.ndarray
    order: list[np.ndarray]
    rows: np.ndarray
    counts: sp.csr_array

    def take(self, spots: CountMatrix, columns: np.ndarray, each: int) -> np.ndarray:
        """Dense counts of the first ``each`` spots of every slide, in the order of the spots."""
        return self.dense(spots, columns, np.sort(np.concatenate([order[:each] for order in self.order])))

    def take_slide(self, spots: CountMatrix, columns: np.ndarray, slide: int, most: int) -> np.ndarray:
        """Dense counts of the first ``most`` spots of one slide."""
        return self.dense(spots, columns, np.sort(self.order[slide][:most]))

    def dense(self, spots: CountMatrix, columns: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Dense counts of the spots at increasing indices; those that were not gathered are read."""
        place = np.minimum(np.searchsorted(self.rows, chosen), max(len(self.rows) - 1, 0))
        here = self.rows[place] == chosen
        result = np.empty((len(chosen), len(columns)), np.float32)
        result[here] = self.counts[place[here]].toarray()
        if not here.all():  # so many spots were empty that the rows gathered do not suffice
            result[~here] = spots.take(chosen[~here], columns)
        return result


def survey_spots(spots: Spots, min_counts: int, generator: np.random.Generator) -> Sample:
    """Depth of all spots and a random sample of each slide, in one pass.

    Twice as many spots as needed are gathered of a large slide, because which of them have enough counts is only known
    at the end of the pass.
    """
    number = int(spots.slides.max()) + 1
    shuffled = [generator.permutation(np.flatnonzero(spots.slides == slide)) for slide in range(number)]
    wanted = np.zeros(len(spots.slides), bool)
    for order in shuffled:
        wanted[order[: 2 * FIT_SPOTS]] = True
    depth, counts = spots.counts.reduce(RowSums(spots.columns), Gather(wanted, spots.columns), description="Depth")
    filled = depth >= max(min_counts, 1)
    return Sample(depth, filled, [order[filled[order]] for order in shuffled], np.flatnonzero(wanted), counts)


def sampled_rows(sample: Sample) -> np.ndarray:
    """Spots of the sample that is shared by all slides, increasing."""
    return np.sort(np.concatenate([order[: _most(sample)] for order in sample.order]))


def _most(sample: Sample) -> int:
    """Spots of each slide in the sample that is shared by all."""
    return max(FIT_SPOTS // len(sample.order), _FEWEST_SAMPLED)


class SlideSolver(NamedTuple):
    """Regressions of one slide.

    Attributes
    ----------
    known
        On the reference's signatures, refined if the spots are.
    with_unknown
        On the reference's own and one outside it, for the fit.
    extended
        On those of ``known`` and the one outside.
    """

    known: SpotSolver
    with_unknown: SpotSolver
    extended: SpotSolver


class Fit(NamedTuple):
    """What is learned before the spots are regressed.

    Attributes
    ----------
    log_platform
        Platform effect common to all slides.
    dispersion
        Overdispersion.
    kept
        Share of the sum of weights that the posterior keeps, see
        :func:`~diffbio_sc.numerics.counts.presence.pull_to_sum`.
    refined, corrected
        Whether signatures were refined on the spots, and weights corrected for the signatures' errors.
    solvers
        Regression of each slide.
    report
        Course of the fit.
    incomplete
        Whether a signature outside the reference predicts better; None if not asked.
    """

    log_platform: np.ndarray
    dispersion: float
    kept: float
    refined: bool
    corrected: bool
    solvers: list[SlideSolver]
    report: FitReport
    incomplete: bool | None = None


def fit_signatures(
    spots: Spots,
    sample: Sample,
    profiles: np.ndarray,
    *,
    dispersion_index: np.ndarray | None = None,
    signature_error: np.ndarray | None = None,
    platform_effect: bool = True,
    refine: bool = True,
    unexplained: bool = False,
) -> Fit:
    """Fit the operator on the sample, then give each slide its own platform effect.

    Parameters
    ----------
    spots, sample
        Spots, and what :func:`survey_spots` found.
    profiles
        Types by genes used.
    dispersion_index
        Variance over mean of these genes between reference cells of a type; None if not known.
    signature_error
        Squared relative errors of the profiles; None if they are exact.
    platform_effect, refine
        Whether to estimate the genes' factors between the platforms, and the types' own deviations (if these let spots
        be predicted better).
    unexplained
        Whether to ask if the reference is complete.
    """
    counts, columns = spots.counts, spots.columns
    types, genes = profiles.shape
    config = SpatialDeconvolutionConfig(n_cell_types=types, n_genes=genes, hidden_dim=0, solver_steps=_SOLVER_STEPS)
    operator = SpatialDeconvolution(config, rngs=nnx.Rngs())
    slides = len(sample.order)
    few = sample.take(counts, columns, _most(sample))
    report = operator.fit_signatures(
        few,
        profiles,
        platform_effect=platform_effect,
        refine=refine,
        excess_shape=None if dispersion_index is None else excess_shape(dispersion_index),
        signature_error=signature_error,
    )
    unknown = operator.unknown_signature(few, profiles, signature_error)
    incomplete = operator.unknown_pays(few, profiles, signature_error) if unexplained else None

    def solver() -> SlideSolver:
        known = operator.solver(profiles)
        error = None if known.error is None else np.concatenate([known.error, np.zeros((1, genes))])
        return SlideSolver(
            known,
            SpotSolver(unknown.beside(operator.platform_signatures(profiles)), known.dispersion, _UNKNOWN_STEPS),
            dataclasses.replace(known, signatures=unknown.beside(known.signatures), error=error, room=0),
        )

    common = operator.log_platform[...]
    if slides == 1 or not platform_effect:
        solvers = [solver()] * slides
    else:
        solvers = []
        for slide in range(slides):
            if len(sample.order[slide]):
                operator.adapt_platform(sample.take_slide(counts, columns, slide, FIT_SPOTS), profiles)
            solvers.append(solver())
            operator.log_platform[...] = common
    refined, corrected = (
        bool(np.any(np.asarray(part[...]))) for part in (operator.log_deviation, operator.signature_error)
    )
    kept = float(operator.kept[...])
    return Fit(np.asarray(common), config.dispersion, kept, refined, corrected, solvers, report, incomplete)


class Regressed(NamedTuple):
    """Regression of all spots, the share of each that the reference explains, and the regression with one type more.

    ``extended`` is None unless asked for.
    """

    solution: SpotSolution
    fit: np.ndarray
    extended: SpotSolution | None = None


def regress_spots(
    spots: Spots, sample: Sample, fit: Fit, smoothing: float = 0.0, *, unexplained: bool = False
) -> Regressed:
    """Regress all spots in one pass; with ``smoothing`` in a second one, toward the first answer of the neighbours.

    With ``unexplained`` the unknown signature takes part as a further type.
    """
    counts = spots.counts
    regress = _RegressBlock(fit.solvers, spots, unexplained)
    solution, explained, further = _stacked(counts.stream(regress, description="Deconvolution"), counts.shape[0])
    if smoothing and spots.coordinates is not None:
        answers = [solution] if further is None else [solution, further]
        for number, answer in enumerate(answers):
            prior = neighbour_prior(answer.weights, spots.coordinates, spots.slides, sample.filled, smoothing)
            smooth = _SmoothBlock([one.extended if number else one.known for one in fit.solvers], spots, prior)
            answers[number] = _stacked(counts.stream(smooth, description="Smoothing"), counts.shape[0])
        solution, further = answers[0], answers[1] if len(answers) > 1 else None
    return Regressed(solution, explained, further)


class _RegressBlock:
    """Regression and fit of one block of spots, each row with the solver of its slide; picklable for dask workers."""

    def __init__(self, solvers: list[SlideSolver], spots: Spots, unexplained: bool):
        self.solvers, self.slides, self.columns = solvers, spots.slides, spots.columns
        self.unexplained = unexplained

    def __call__(self, start: int, block) -> tuple[SpotSolution, np.ndarray, SpotSolution | None]:
        def regress(slide: int, counts: np.ndarray, _: np.ndarray):
            solvers = self.solvers[slide]
            weights = solvers.with_unknown(counts).weights
            share = 1.0 - weights[:, -1] / np.maximum(weights.sum(1), 1e-12)
            return solvers.known(counts), share, solvers.extended(counts) if self.unexplained else None

        return _slide_by_slide(regress, dense_block(block, self.columns), self.slides, start)


class _SmoothBlock:
    """The regression again, drawn toward a mean of its own for each spot; picklable for dask workers."""

    def __init__(self, solvers: list[SpotSolver], spots: Spots, prior: tuple[np.ndarray, np.ndarray]):
        self.solvers, self.slides, self.columns, self.prior = solvers, spots.slides, spots.columns, prior

    def __call__(self, start: int, block) -> SpotSolution:
        mean, precision = self.prior

        def regress(slide: int, counts: np.ndarray, rows: np.ndarray) -> SpotSolution:
            return self.solvers[slide](counts, mean[rows], precision)

        return _slide_by_slide(regress, dense_block(block, self.columns), self.slides, start)


def _by_slide(slides: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(int(slide), np.flatnonzero(slides == slide)) for slide in np.unique(slides)]


def _slide_by_slide(regress: Callable[[int, np.ndarray, np.ndarray], Any], dense: np.ndarray, slides, start: int):
    """``regress(slide, its counts, its spots)`` of the slides in a block, in the order of the block's spots."""
    here = _by_slide(slides[start : start + len(dense)])
    if len(here) == 1:  # nothing to copy
        return regress(here[0][0], dense, start + here[0][1])
    parts = [regress(slide, dense[rows], start + rows) for slide, rows in here]
    position = np.argsort(np.concatenate([rows for _, rows in here]))
    return jax.tree.map(lambda *fields: np.concatenate(fields)[position], *parts)


def _stacked(blocks: Iterable[Any], spots: int) -> Any:
    """Arrays of all spots from those of blocks, each of which is let go once it is copied."""
    wholes: list[np.ndarray] = []
    start = 0
    for block in blocks:
        parts, structure = jax.tree.flatten(block)
        wholes = wholes or [np.empty((spots, *part.shape[1:]), part.dtype) for part in parts]
        for whole, part in zip(wholes, parts, strict=True):
            whole[start : start + len(part)] = part
        start += len(parts[0])
    return jax.tree.unflatten(structure, wholes)


def neighbour_prior(
    weights: np.ndarray, coordinates: np.ndarray, slides: np.ndarray, filled: np.ndarray, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean weights of the nearest spots of the same slide, itself left out, and that prior's precision for each type.

    Spots without counts, and spots alone on their slide, keep their own weights as mean.
    """
    mean = weights.copy()
    for slide in np.unique(slides):
        rows = np.flatnonzero((slides == slide) & filled)
        if len(rows) < 2:
            continue
        nearest = nearest_others(coordinates[rows], _NEIGHBOURS)
        mean[rows] = weights[rows][nearest].mean(1)
    variance = (weights - mean)[filled].var(0)
    return mean, smoothing / np.maximum(variance, 1e-6)


def nearest_others(places: np.ndarray, number: int) -> np.ndarray:
    """Indices of the nearest other places (places, number or all others), also where some coincide."""
    from scipy.spatial import cKDTree

    number = min(number, len(places) - 1)
    found = cKDTree(places).query(places, k=number + 1)[1]
    itself = found == np.arange(len(places))[:, None]
    # Of more places at one spot than neighbours asked for, a place may not be among its own nearest: drop the last.
    itself[~itself.any(1), -1] = True
    return found[~itself].reshape(len(places), number)


class Composition(NamedTuple):
    """Posterior of each spot's composition; NaN for spots without enough counts.

    Attributes
    ----------
    weights
        Shares of the spot's RNA, posterior means.
    proportions, deviation
        Proportions (rows sum to 1) and their standard deviations.
    abundance
        Cells of each type: proportions times ``cells``, or times the depth in units of a reference cell's.
    presence_probability
        How often each type is present.
    """

    weights: np.ndarray
    proportions: np.ndarray
    deviation: np.ndarray
    abundance: np.ndarray
    presence_probability: np.ndarray


def posterior_composition(
    solution: SpotSolution,
    profiles: np.ndarray,
    sample: Sample,
    cells: np.ndarray | None = None,
    *,
    kept: float = 0.0,
    size_variation: np.ndarray | None = None,
) -> Composition:
    """Posterior mean and standard deviation of the proportions, with presence learned from all spots.

    Where the number of cells is known a type with share q of all cells is present with probability 1 - (1 - q)^n;
    spots without a number go by how often types are present over all spots.
    """
    filled = sample.filled
    # What is learned of all spots is learned as well from the sample, in the order of the spots.
    few = np.zeros(len(filled), bool)
    few[sampled_rows(sample)] = True

    def learn(rows: np.ndarray, cells: np.ndarray | None = None) -> PresencePrior:
        return learn_presence(solution.weights[rows], solution.deviation[rows], cells=cells, kept=kept)

    prior = learn(few)
    probability = np.broadcast_to(prior.probability, solution.weights.shape)
    typical = np.broadcast_to(prior.typical_weight, solution.weights.shape)
    frequency = prior.probability
    if cells is not None:
        known = filled & (np.nan_to_num(cells) > 0)
        if (few & known).any():
            probability, typical = probability.copy(), typical.copy()
            by_cells = learn(few & known, cells[few & known])
            probability[known], typical[known] = by_cells.in_spots_of(cells[known])
        frequency = probability[filled].mean(0)
    # Block by block: what a spot takes on the way is ten times what is kept of it.
    fields: list[np.ndarray] = []
    for start in range(0, len(filled), _SPOTS_AT_ONCE):
        rows = slice(start, start + _SPOTS_AT_ONCE)
        parts = _compose(
            SpotSolution(*(field[rows] for field in solution)),
            profiles.sum(1),
            (probability[rows].astype(np.float32), typical[rows].astype(np.float32)),
            sample.depth[rows],
            None if cells is None else cells[rows],
            kept,
            size_variation,
        )
        fields = fields or [np.empty(solution.weights.shape, np.float32) for _ in parts]
        for field, part in zip(fields, parts, strict=True):
            field[rows] = part
    weights, proportions, deviation, abundance = fields
    for field in (weights, proportions, deviation):
        field[~filled] = np.nan
    return Composition(weights, proportions, deviation, abundance, frequency)


def _compose(
    solution: SpotSolution,
    size: np.ndarray,
    prior: tuple[np.ndarray, np.ndarray],
    depth: np.ndarray,
    cells: np.ndarray | None,
    kept: float,
    size_variation: np.ndarray | None,
) -> tuple[np.ndarray, ...]:
    """Weights, proportions, their deviations and abundance of some spots, whether they are filled or not."""
    here = (solution.weights, solution.deviation, *prior)
    posterior = spike_and_slab(*here, pull_to_sum(*here, kept) if kept > 0 else 0.0)
    weights = posterior.mean
    coefficients = weights / size
    total = coefficients.sum(1, keepdims=True)
    number = depth[:, None] * total if cells is None else cells[:, None]
    variance = SIGNATURE_INFLATION * posterior.variance * solution.inflation / size**2
    with np.errstate(divide="ignore", invalid="ignore"):
        proportions = coefficients / total
        if size_variation is not None:
            # The RNA of n cells varies as the mean of n sizes does; fewer than one cell is not expected anywhere.
            in_spot = np.maximum(np.nan_to_num(number * proportions), 1.0)
            variance = variance + coefficients**2 * size_variation / in_spot
        deviation = proportion_deviation(coefficients, variance)
    return weights, proportions, deviation, number * proportions


def with_sizes_of_samples(profiles: np.ndarray, weights: np.ndarray, composition: np.ndarray) -> np.ndarray:
    """Profiles in counts a cell whose sizes suit the spots of known composition; rows not known are missing.

    ``weights`` are shares of RNA, which sizes do not change.
    """
    known = np.isfinite(composition).all(1) & np.isfinite(weights).all(1)
    if not known.any():
        return profiles
    rna = weights[known] / weights[known].sum(1, keepdims=True)
    size = profiles.sum(1, dtype=np.float64)
    new = sizes_from_samples(rna, composition[known], size)
    return (profiles * (new / size)[:, None]).astype(np.float32)


def beside_unexplained(found: Composition, extended: Composition, share: np.ndarray) -> Composition:
    """Proportions when a type may be missing from the reference: between two answers.

    One is ``found`` without the unknown signature, the other ``extended`` by it as last type, among the types known. A
    spot moves to the second as far as the signature takes part in it, ``share``, and by half of that: what it takes may
    be RNA of the types known. The difference of the answers is part of the variance.
    """
    weight = (_BELIEVED * share)[:, None]
    rest = np.maximum(1.0 - extended.proportions[:, -1:], 1e-3)
    # Where it takes all, nothing is said about the types known.
    known = extended.proportions[:, -1:] < 1.0 - 1e-3
    other = np.where(known, extended.proportions[:, :-1] / rest, found.proportions)
    spread = np.where(known, extended.deviation[:, :-1] / rest, found.deviation)

    def between(one, two):
        return (1.0 - weight) * one + weight * two

    variance = between(found.deviation**2, spread**2) + weight * (1.0 - weight) * (found.proportions - other) ** 2
    return found._replace(
        weights=between(found.weights, extended.weights[:, :-1]),
        proportions=between(found.proportions, other),
        deviation=np.sqrt(variance),
        abundance=between(found.abundance, extended.abundance[:, :-1]),
    )


def expected_counts(spots: Spots, sample: Sample, fit: Fit, weights: np.ndarray) -> np.ndarray:
    """Expected counts of all spots and genes (dense float32); missing for genes not used."""
    result = np.full(spots.counts.shape, np.nan, np.float32)
    for slide, rows in _by_slide(spots.slides):
        signatures = fit.solvers[slide].known.signatures
        result[np.ix_(rows, spots.columns)] = sample.depth[rows, None] * (weights[rows] @ signatures)
    return result
