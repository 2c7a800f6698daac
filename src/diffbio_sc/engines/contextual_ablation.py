"""Variants of a model held against each other on the same held-out regions, with paired intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffbio_sc.numerics.weighted_ranking import weighted_auprc, weighted_auroc

__all__ = ["METRICS", "Comparison", "compare_variants", "genome_blocks"]

#: Measures of a variant: the mean over cell types.
METRICS = ("auroc", "auprc", "auroc_variable", "auprc_variable")


class Comparison(NamedTuple):
    """Measures of variants, and draws of these.

    Attributes
    ----------
    values
        (variants, seeds, metrics) of all regions.
    draws
        (variants, draws, metrics): blocks of the genome and seeds drawn with replacement, the same for all variants.
    """

    values: Float[np.ndarray, "variants seeds metrics"]
    draws: Float[np.ndarray, "variants draws metrics"]

    def difference(self, one: int, other: int, level: float) -> Float[np.ndarray, "metrics 3"]:
        """Mean difference of two variants and the interval that holds it at this level, by percentiles."""
        mean = (self.values[one] - self.values[other]).mean(axis=0)
        tails = np.nanquantile(self.draws[one] - self.draws[other], [(1 - level) / 2, (1 + level) / 2], axis=0)
        return np.stack([mean, *tails], axis=1)


def genome_blocks(
    chromosome: Int[np.ndarray, " n"], start: Int[np.ndarray, " n"], number: int = 50
) -> Int[np.ndarray, " n"]:
    """Cut the genome into about ``number`` blocks of equally many neighbouring regions, none across chromosomes.

    Neighbouring regions share domains and sometimes sequence: they are drawn together.
    """
    order = np.lexsort((start, chromosome))
    size = max(1, len(order) // number)
    codes = chromosome[order]
    first = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    lengths = np.diff(np.append(first, len(order)))
    within = np.arange(len(order)) - np.repeat(first, lengths)
    pieces = np.maximum(1, np.rint(lengths / size)).astype(np.int64)
    piece = within * np.repeat(pieces, lengths) // np.repeat(lengths, lengths)
    blocks = np.empty(len(order), np.int64)
    blocks[order] = np.repeat(np.cumsum(pieces) - pieces, lengths) + piece
    return blocks


def compare_variants(
    logits: Float[np.ndarray, "variants seeds n cells"],
    labels: Float[np.ndarray, "n cells"],
    blocks: Int[np.ndarray, " n"],
    *,
    n_draws: int = 500,
    rng: np.random.Generator,
) -> Comparison:
    """Measure variants on the same regions.

    Parameters
    ----------
    logits
        Predictions of each variant and seed.
    labels
        0, 1, or NaN where not known.
    blocks
        Block of each region.
    n_draws
        Number of draws.
    rng
        Generator.
    """
    n_variants, n_seeds = logits.shape[:2]
    n_blocks = int(blocks.max()) + 1
    drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_draws)
    # The first weighting is the regions as they are.
    weights = np.concatenate([np.ones((1, n_blocks)), drawn])
    known = ~np.isnan(labels)
    low, high = np.where(known, labels, 1).min(axis=1), np.where(known, labels, 0).max(axis=1)
    variable = low < high
    measured = np.full((n_variants, n_seeds, len(METRICS), n_draws + 1, labels.shape[1]), np.nan)
    for cell in range(labels.shape[1]):
        for place, (measure, rows) in enumerate(
            (
                (weighted_auroc, known[:, cell]),
                (weighted_auprc, known[:, cell]),
                (weighted_auroc, known[:, cell] & variable),
                (weighted_auprc, known[:, cell] & variable),
            )
        ):
            if not rows.any():
                continue
            truth, mine = labels[rows, cell], blocks[rows]
            for variant in range(n_variants):
                for seed in range(n_seeds):
                    measured[variant, seed, place, :, cell] = measure(
                        truth, logits[variant, seed, rows, cell], weights, mine
                    )
    # A cell type without a value in one draw is left out of that draw, for all variants alike.
    counted = ~np.isnan(measured)
    mean = np.where(counted, measured, 0).sum(axis=4) / np.maximum(counted.sum(axis=4), 1)
    mean = np.where(counted.any(axis=4), mean, np.nan)
    seeds = rng.integers(0, n_seeds, (n_draws, n_seeds))
    resampled = mean[:, :, :, 1:]  # variants, seeds, metrics, draws
    draws = np.stack([resampled[..., draw][:, seeds[draw]].mean(axis=1) for draw in range(n_draws)], axis=1)
    return Comparison(mean[:, :, :, 0], draws)
