"""Patterns of spatially variable genes: projection over blocks of spots, choice of their number, maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffbio_sc._compiled import one_blas_thread
from diffbio_sc.blocks.matrix import CountMatrix, dense_block
from diffbio_sc.blocks.steps import Step
from diffbio_sc.numerics.counts.normalise import LogNormalise
from diffbio_sc.numerics.spatial.pattern_mixture import MixtureFit, fit_mixture
from diffbio_sc.numerics.spatial.slide_basis import SlideBasis

_CANDIDATES = range(2, 13)
_VERY_STRONG = 5.0  # difference of log evidence, on the scale of Kass and Raftery 1995 (JASA 90:773)
_FEWEST_GENES = 3
_COLUMNS_AT_ONCE = 4096


class Projected(NamedTuple):
    """Standardised genes in the slides' eigenbases (genes, all ranks), and their variance before (genes, slides)."""

    coefficients: np.ndarray
    variance: np.ndarray


@one_blas_thread()
def project_genes(
    counts: CountMatrix,
    totals: np.ndarray,
    genes: np.ndarray,
    slides: np.ndarray,
    bases: list[SlideBasis],
    nuisance: np.ndarray | None = None,
) -> Projected:
    """Residuals of the genes in the eigenbases, from one pass over the counts.

    Spots without counts, or with a missing covariate, are left out.

    Parameters
    ----------
    counts, totals
        Spots by all genes, and the spots' total counts.
    genes
        Columns to project.
    slides, bases
        Code of each spot's slide, and the slides' eigenbases.
    nuisance
        Covariates (spots, columns), NaN where missing.
    """
    if nuisance is None:
        nuisance = np.empty((len(totals), 0))
    filled = (totals > 0) & np.isfinite(nuisance).all(1)
    ranks = [len(basis.values) for basis in bases]
    # One table for all slides, each row with the vectors of its slide, for blocks that span slides.
    table = np.zeros((len(slides), max(ranks)), np.float32)
    for slide, basis in enumerate(bases):
        table[slides == slide, : ranks[slide]] = basis.vectors
    table[~filled] = 0
    design = _design(totals, nuisance, filled, slides, len(bases))
    normalise = LogNormalise(np.where(filled, totals, 0.0))
    step = _BlockSums(normalise, genes, slides, table, design, ranks)
    (sums,) = counts.reduce(step, description="Projection")
    parts, variance = [], []
    for slide in range(len(bases)):
        inside = slides == slide
        projected, with_design, squares = sums[slide]
        slope = np.linalg.pinv(design[inside].T @ design[inside]) @ with_design
        spots = max(int(filled[inside].sum()), 1)
        spread = np.maximum(squares - (slope * with_design).sum(0), 0.0) / spots
        spread[spread < 1e-6 * squares / spots] = 0.0
        residual = projected - (table[inside, : ranks[slide]].astype(np.float64).T @ design[inside]) @ slope
        parts.append(np.where(spread > 0, residual / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0))
        variance.append(spread)
    return Projected(np.concatenate(parts).T, np.stack(variance, 1))


def _design(totals, nuisance, filled, slides, number) -> np.ndarray:
    """Intercept, log total and covariates, scaled slide by slide; 0 for spots that are left out."""
    log_total = np.log(np.where(filled, totals, 1.0))
    explaining = np.where(filled[:, None], np.column_stack([log_total, nuisance]), 0.0)
    for slide in range(number):
        inside = (slides == slide) & filled
        if inside.any():
            explaining[inside] -= explaining[inside].mean(0)
            explaining[inside] /= np.maximum(np.abs(explaining[inside]).max(0), 1e-12)
    return np.column_stack([filled, explaining])


class _BlockSums(Step):
    """Products of log-expression with each slide's basis and design, and sums of squares, by slide."""

    def __init__(self, normalise: LogNormalise, genes, slides, basis, design, ranks: list[int]):
        self.normalise, self.genes, self.slides = normalise, genes, slides
        self.basis, self.design, self.ranks = basis, design, ranks

    def __call__(self, start: int, block: Any) -> dict[int, list[np.ndarray]]:
        slides = self.slides[start : start + block.shape[0]]
        parts: dict[int, list[list[np.ndarray]]] = {int(slide): [] for slide in np.unique(slides)}
        for first in range(0, len(self.genes), _COLUMNS_AT_ONCE):
            columns = self.genes[first : first + _COLUMNS_AT_ONCE]
            values = self.normalise(start, dense_block(block, columns))
            for slide, found in parts.items():
                inside = np.flatnonzero(slides == slide)
                part, rows = values[inside], start + inside
                found.append(
                    [
                        (self.basis[rows, : self.ranks[slide]].T @ part).astype(np.float64),
                        self.design[rows].T @ part.astype(np.float64),
                        np.einsum("ng,ng->g", part, part, dtype=np.float64),
                    ]
                )
        return {
            slide: [np.concatenate(field, -1) for field in zip(*found, strict=True)] for slide, found in parts.items()
        }

    def combine(self, left: Any, right: Any) -> dict[int, list[np.ndarray]]:
        """Add slide by slide."""
        return {
            slide: (
                [a + b for a, b in zip(left[slide], right[slide], strict=True)]
                if slide in left and slide in right
                else left.get(slide, right.get(slide))
            )
            for slide in {**left, **right}
        }


class Patterns(NamedTuple):
    """Patterns, the largest first, those without genes left out.

    Attributes
    ----------
    pattern, probability
        Pattern of each gene, and its posterior probability.
    sizes
        Genes of each pattern.
    mean
        Patterns in the eigenbases (patterns, all ranks).
    tried, evidence
        Numbers of patterns tried, and the log evidence of each.
    fit
        The chosen fit.
    """

    pattern: np.ndarray
    probability: np.ndarray
    sizes: np.ndarray
    mean: np.ndarray
    tried: np.ndarray
    evidence: np.ndarray
    fit: MixtureFit


@one_blas_thread()
def find_patterns(
    data: np.ndarray,
    spectrum: np.ndarray,
    n_patterns: int | None,
    max_genes: int,
    generator: np.random.Generator,
) -> Patterns:
    """Fit mixtures of 2 to 12 patterns, or of ``n_patterns``, and assign all genes to the best.

    Parameters
    ----------
    data
        Genes in the eigenbases, the most significant first.
    spectrum
        Eigenvalues.
    n_patterns
        Number of patterns, if it is not to be chosen.
    max_genes
        The mixtures are fitted to the first of the genes, so many.
    generator
        Of the starts.
    """
    fitted = data[:max_genes]
    tried: Sequence[int] = [n for n in _CANDIDATES if n <= len(fitted)] if n_patterns is None else [n_patterns]
    fits = [fit_mixture(fitted, spectrum, number, generator) for number in tried]
    evidence = np.array([fit.evidence for fit in fits])
    smallest = np.array(
        [np.bincount(fit.assign(fitted).argmax(1), minlength=n).min() for fit, n in zip(fits, tried, strict=True)]
    )
    best = fits[choose_fit(evidence, smallest)]
    responsibility = best.assign(data)
    pattern = responsibility.argmax(1)
    sizes = np.bincount(pattern, minlength=responsibility.shape[1])
    first = [np.flatnonzero(pattern == k)[0] if sizes[k] else len(pattern) for k in range(len(sizes))]
    order = np.lexsort((first, -sizes))
    order = order[sizes[order] > 0]
    rank = np.full(len(sizes), -1)
    rank[order] = np.arange(len(order))
    return Patterns(
        rank[pattern], responsibility.max(1), sizes[order], best.mean[order], np.array(tried), evidence, best
    )


def choose_fit(criterion: np.ndarray, smallest: np.ndarray) -> int:
    """Fewest patterns whose log evidence is close to the highest, among fits without patterns of one or two genes.

    A gene unlike all others is evidence for a pattern of its own, but no cluster.
    """
    eligible = smallest >= min(_FEWEST_GENES, smallest.max())
    return int(np.flatnonzero(eligible & (criterion >= criterion[eligible].max() - _VERY_STRONG))[0])


@one_blas_thread()
def pattern_maps(mean: np.ndarray, slides: np.ndarray, bases: list[SlideBasis]) -> np.ndarray:
    """Patterns (patterns, all ranks) at the spots."""
    result = np.zeros((len(slides), len(mean)), np.float32)
    start = 0
    for slide, basis in enumerate(bases):
        stop = start + len(basis.values)
        result[slides == slide] = basis.vectors @ mean[:, start:stop].T.astype(np.float32)
        start = stop
    return result
