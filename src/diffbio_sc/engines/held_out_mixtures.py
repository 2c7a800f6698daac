"""How far proportions are off on mixtures of held-out reference cells: what standard deviations must hold.

The likelihood knows the noise of counts. It does not know that a spot holds few cells, that cells of a type differ in
many genes at once and in size, that some look like another type, and that the reference has few of them. All of that is
in the reference's own cells: a fifth of them is left out of the signatures and mixed into spots, which are then
deconvolved like the real ones. The true composition of these is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from flax import nnx

from diffbio_sc.engines.deconvolution import Composition, Fit, Sample, Spots, posterior_composition, sampled_rows
from diffbio_sc.numerics.counts import signatures
from diffbio_sc.numerics.counts.cell_variation import excess_shape, variation_beyond_counting
from diffbio_sc.numerics.counts.presence import PSEUDO_SPOTS
from diffbio_sc.numerics.counts.spot_regression import SpotSolver
from diffbio_sc.operators.multiomics.spatial_deconvolution import SpatialDeconvolution, SpatialDeconvolutionConfig

_MOST_CELLS = 150  # of each type
_FOLDS = 5
_MOST_FOLDS = 3
_MIXTURES = 500  # in all folds, and the most of one; more say little more about one factor and one number for each type
_FEWEST_IN_A_SPOT, _MOST_IN_A_SPOT = 2, 30  # one cell is no mixture; beyond, the mean cell is all that is left
_LEVEL, _GAUSSIAN_LEVEL = 0.9, 1.6448536
_LARGEST_DEVIATION = 0.5  # of anything between 0 and 1


class Cells(NamedTuple):
    """Reference cells, or a sample of them.

    Attributes
    ----------
    counts
        Counts in the genes used (cells, genes).
    codes
        Type of each cell.
    """

    counts: np.ndarray
    codes: np.ndarray

    def sizes(self, types: int) -> np.ndarray:
        """Mean counts of a cell of each type."""
        number = np.bincount(self.codes, minlength=types)
        total = np.bincount(self.codes, self.counts.sum(1, dtype=np.float64), types)
        return np.maximum(total / np.maximum(number, 1), 1e-9)


class Calibration(NamedTuple):
    """What widens standard deviations so that they hold the errors on mixtures of held-out cells.

    Attributes
    ----------
    scale
        Factor under which nine tenths of the errors, of types that are present, lie within 1.645 deviations.
    error
        Root mean squared error of each type where it is present; types rarely seen are drawn toward all others.
    cells
        Cells in a spot, from and to.
    """

    scale: float
    error: np.ndarray
    cells: tuple[float, float]

    def widen(self, deviation: np.ndarray) -> np.ndarray:
        """Return standard deviations that hold these errors too."""
        return np.minimum(self.scale * np.sqrt(deviation**2 + self.error**2), _LARGEST_DEVIATION)


def choose_cells(codes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows of at most :data:`_MOST_CELLS` cells of each type, increasing; cells of code -1 are left out."""
    order = generator.permutation(np.flatnonzero(codes >= 0))
    return np.sort(order[_rank_within(codes[order]) < _MOST_CELLS])


def _rank_within(codes: np.ndarray) -> np.ndarray:
    """Place of each entry among those of its code, in the order given."""
    order = np.argsort(codes, kind="stable")
    start = np.searchsorted(codes[order], codes[order])
    rank = np.empty(len(codes), np.int64)
    rank[order] = np.arange(len(codes)) - start
    return rank


def cells_in_a_spot(spots: Spots, sample: Sample, fit: Fit, weights: np.ndarray, cells: Cells) -> tuple[float, float]:
    """From and to how many cells a typical spot may hold.

    One bound is its depth in units of a reference cell's, right if cells give as much RNA here as there. The other is
    how much less its counts vary around the fit than those of single cells around their type, right if nothing but
    cells makes the fit miss.
    """
    types = weights.shape[1]
    sizes = cells.sizes(types)
    rows = sampled_rows(sample)
    counts = sample.dense(spots.counts, spots.columns, rows)
    mean = np.empty_like(counts)
    for slide in np.unique(spots.slides[rows]):
        here = spots.slides[rows] == slide
        mean[here] = weights[rows][here] @ fit.solvers[slide].known.signatures
    mean *= sample.depth[rows, None].astype(np.float32)
    freedom = np.maximum(1.0 - (weights[rows] > 1e-6).sum(1) / counts.shape[1], 0.05)
    in_spots = variation_beyond_counting(counts, mean, freedom[:, None])

    # Cells are regressed as spots are: what makes a cell look like another type does not make the fit miss.
    sums = _sums(cells, types)
    profiles = (sums / np.maximum(sums.sum(1, keepdims=True), 1e-300)).astype(np.float32)
    solver = fit.solvers[0].known
    found = SpotSolver(profiles, solver.dispersion, solver.steps, room=1)(cells.counts).weights
    share = (weights[rows].sum(0) / sizes / np.bincount(cells.codes, minlength=types).clip(1))[cells.codes]
    total = cells.counts.sum(1)
    freedom = np.maximum(1.0 - (found > 1e-6).sum(1) / cells.counts.shape[1], 0.05)
    in_cells = variation_beyond_counting(
        cells.counts, total[:, None] * (found @ profiles), freedom[:, None], share[:, None]
    )
    by_depth = float(np.median(sample.depth[rows] * (weights[rows] / sizes).sum(1)))
    by_misfit = in_cells / max(in_spots, 1e-9)
    low, high = np.clip(sorted((by_depth, by_misfit)), _FEWEST_IN_A_SPOT, _MOST_IN_A_SPOT)
    return float(low), float(high)


class _Mixtures(NamedTuple):
    """Mixtures of held-out cells.

    Attributes
    ----------
    counts
        Counts of each mixture.
    truth
        Share of its cells, or of their counts, of each type.
    cells
        Number of its cells.
    """

    counts: np.ndarray
    truth: np.ndarray
    cells: np.ndarray


def mix(
    cells: Cells,
    composition: np.ndarray,
    number: np.ndarray,
    depth: np.ndarray,
    generator: np.random.Generator,
    *,
    fraction_of: str,
) -> _Mixtures:
    """Draw cells by the compositions and add them up; mixtures deeper than ``depth`` are thinned to it.

    Parameters
    ----------
    cells
        Cells to draw from, with replacement.
    composition
        Shares of the types among the cells (mixtures, types).
    number, depth
        Cells and counts of each mixture.
    generator
        Draws.
    fraction_of
        Whether the truth is of ``"cells"`` or of their ``"rna"``.
    """
    mixtures, types = composition.shape
    order = np.argsort(cells.codes, kind="stable")
    first = np.searchsorted(cells.codes[order], np.arange(types))
    available = np.bincount(cells.codes, minlength=types)
    # A little of every type, so that a composition of types without cells can be drawn too.
    cumulative = np.cumsum((composition + 1e-9) * (available > 0), axis=1)
    mixture = np.repeat(np.arange(mixtures), number)
    drawn = generator.uniform(size=len(mixture)) * cumulative[mixture, -1]
    code = np.minimum((drawn[:, None] >= cumulative[mixture]).sum(1), types - 1)
    cell = order[first[code] + (generator.uniform(size=len(code)) * available[code]).astype(int)]
    # In float32: scipy would make a copy of the cells in float64.
    ones = np.ones(len(cell), np.float32)
    chosen = sp.csr_array((ones, (mixture, cell)), shape=(mixtures, len(cells.codes)))
    counts = np.rint(chosen @ cells.counts).astype(np.int64)
    total = counts.sum(1)
    kept = np.minimum(depth / np.maximum(total, 1), 1.0)
    worth = np.ones(len(cell)) if fraction_of == "cells" else cells.counts.sum(1)[cell]
    truth = np.zeros((mixtures, types))
    np.add.at(truth, (mixture, code), worth)
    truth /= np.maximum(truth.sum(1, keepdims=True), 1e-300)
    return _Mixtures(generator.binomial(counts, kept[:, None]).astype(np.float32), truth, number)


def calibrate(
    spots: Spots,
    sample: Sample,
    fit: Fit,
    weights: np.ndarray,
    found: Composition,
    cells: Cells,
    sums: np.ndarray,
    generator: np.random.Generator,
    *,
    fraction_of: str,
    dispersion_index: np.ndarray,
    sampling_index: np.ndarray,
    size_variation: np.ndarray | None,
    platform_effect: bool,
) -> Calibration:
    """Deconvolve mixtures of held-out cells like the spots, and compare with their truth.

    Signatures are refined, or their errors corrected for, if the spots' were.

    Parameters
    ----------
    spots, sample, fit, weights, found
        The spots and what has been found of them, ``weights`` by the regression.
    cells
        Reference cells.
    sums
        Counts of all reference cells in the genes used, summed by type.
    generator
        Draws compositions, numbers and cells.
    fraction_of, dispersion_index, sampling_index, size_variation, platform_effect
        As the spots were deconvolved.
    """
    types, genes = sums.shape
    rows = sampled_rows(sample)
    between = cells_in_a_spot(spots, sample, fit, weights, cells)
    sizes = cells.sizes(types)
    shuffled = generator.permutation(len(cells.codes))
    fold = np.empty(len(shuffled), np.int64)
    fold[shuffled] = _rank_within(cells.codes[shuffled]) % _FOLDS
    each = min(len(rows), _MIXTURES)
    errors, deviations, present = [], [], []
    for held_out in range(min(_MOST_FOLDS, -(-_MIXTURES // each))):
        inside = fold == held_out
        rest = Cells(cells.counts[~inside], cells.codes[~inside])
        # A type of one cell, or without one in this fold, is drawn from the cells that its signature is made of.
        lonely = np.isin(cells.codes, np.setdiff1d(cells.codes, cells.codes[inside]))
        without = np.bincount(rest.codes, minlength=types) == 0
        drawn = inside | lonely
        left = np.maximum(sums - _sums(Cells(cells.counts[inside], cells.codes[inside]), types), 0.0)
        left[without] = sums[without]
        row = rows[generator.integers(len(rows), size=each)]
        composition = found.proportions[row] / (1.0 if fraction_of == "cells" else sizes)
        number = np.rint(np.exp(generator.uniform(*np.log(between), each))).astype(np.int64)
        known = None
        if spots.cells is not None:
            in_spot = np.nan_to_num(spots.cells[row])
            number = np.where(in_spot > 0, np.clip(in_spot, 1, None), number).astype(np.int64)
            known = np.where(in_spot > 0, number, 0)
        mixtures = mix(
            Cells(cells.counts[drawn], cells.codes[drawn]),
            composition,
            number,
            sample.depth[row],
            generator,
            fraction_of=fraction_of,
        )
        filled = mixtures.counts.sum(1) > 0
        if not filled.any():
            continue
        profiles = signatures.shrunken_profiles(left)
        if fraction_of == "cells":
            of_rest = rest.sizes(types)
            profiles = profiles * np.where(without, sizes, of_rest)[:, None]
        profiles = profiles.astype(np.float32)
        operator = SpatialDeconvolution(
            SpatialDeconvolutionConfig(n_cell_types=types, n_genes=genes, hidden_dim=0), rngs=nnx.Rngs()
        )
        operator.fit_signatures(
            mixtures.counts[filled],
            profiles,
            platform_effect=platform_effect,
            refine=fit.refined,
            excess_shape=excess_shape(dispersion_index),
            signature_error=signatures.relative_error(left, sampling_index) if fit.corrected else None,
            decide=False,
        )
        solution = operator.solver(profiles)(mixtures.counts)
        order = np.flatnonzero(filled)
        few = Sample(mixtures.counts.sum(1), filled, [order], np.arange(0), sp.csr_array((0, genes)))
        answer = posterior_composition(
            solution, profiles, few, known, kept=float(operator.kept[...]), size_variation=size_variation
        )
        errors.append((answer.proportions - mixtures.truth)[filled])
        deviations.append(answer.deviation[filled])
        present.append(mixtures.truth[filled] > 0)
    return _from_errors(np.concatenate(errors), np.concatenate(deviations), np.concatenate(present), between)


def _from_errors(errors: np.ndarray, deviation: np.ndarray, present: np.ndarray, cells) -> Calibration:
    squared = np.where(present, errors**2, 0.0)
    common = squared.sum() / max(present.sum(), 1)
    error = np.sqrt((squared.sum(0) + PSEUDO_SPOTS * common) / (present.sum(0) + PSEUDO_SPOTS))
    standard = np.abs(errors) / np.sqrt(deviation**2 + error**2)
    return Calibration(float(np.quantile(standard[present], _LEVEL)) / _GAUSSIAN_LEVEL, error, cells)


def _sums(cells: Cells, types: int) -> np.ndarray:
    sums = np.zeros((types, cells.counts.shape[1]))
    for code in np.unique(cells.codes):
        sums[code] = cells.counts[cells.codes == code].sum(0, dtype=np.float64)
    return sums
