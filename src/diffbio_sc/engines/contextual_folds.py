"""Which regions a model of regions learns from, and which it is judged by: whole chromosomes, or blocks of one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from diffbio_sc._checks import counted

__all__ = ["TEST", "TRAIN", "UNLABELLED", "VALIDATION", "balanced_folds", "choose_split", "pieces"]

TRAIN, VALIDATION, TEST = 0, 1, 2
UNLABELLED = 3
N_FOLDS = 5
# Of a single chromosome, so many blocks are taken for chromosomes.
_BLOCKS = 20
_SHARE = 0.08  # of the regions held out at least, if no validation is given


def pieces(chromosome: Int[np.ndarray, " n"], position: Int[np.ndarray, " n"] | None) -> Int[np.ndarray, " n"]:
    """Return codes of what is never divided: chromosomes or, of too few of these, contiguous blocks.

    Parameters
    ----------
    chromosome
        Code of each region's chromosome.
    position
        Of each region; None: regions stand in the order of the genome.
    """
    codes = np.unique(chromosome, return_inverse=True)[1]
    if not len(codes):
        return codes
    if codes.max() + 1 >= N_FOLDS:
        return codes
    place = np.arange(len(codes)) if position is None else position
    order = np.lexsort((place, codes))
    result = np.empty(len(codes), np.int64)
    result[order] = np.arange(len(codes)) * _BLOCKS // len(codes)
    # A block that reaches over the end of a chromosome is two.
    return np.unique(result * (codes.max() + 1) + codes, return_inverse=True)[1]


def balanced_folds(piece: Int[np.ndarray, " n"], folds: int = N_FOLDS) -> Int[np.ndarray, " n"]:
    """Return a fold for each region, of equal sizes as far as pieces allow: the largest first, to the smallest fold."""
    codes, sizes = np.unique(piece, return_counts=True)
    taken, fold_of = np.zeros(min(folds, len(codes)), np.int64), np.zeros(len(codes), np.int64)
    for number in np.argsort(-sizes, kind="stable"):
        fold_of[number] = taken.argmin()
        taken[fold_of[number]] += sizes[number]
    return fold_of[np.searchsorted(codes, piece)]


def choose_split(
    split: Int[np.ndarray, " n"] | None,
    chromosome: Int[np.ndarray, " n"],
    position: Int[np.ndarray, " n"] | None,
    generator: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Return a split with validation regions: those given, or some pieces of training if there are none.

    Parameters
    ----------
    split
        0 training, 1 validation, 2 test; None: all training.
    chromosome, position
        Of each region, as :func:`pieces` takes them.
    generator
        Chooses the pieces.
    """
    chosen = np.full(len(chromosome), TRAIN) if split is None else split.copy()
    training = np.flatnonzero(chosen == TRAIN)
    if (chosen == VALIDATION).any() or not len(training):
        return chosen
    piece = pieces(chromosome[training], None if position is None else position[training])
    sizes = np.bincount(piece)
    if len(sizes) < 2:
        raise ValueError(
            f"{counted(len(training), 'training region')}: none can be held out. Give more regions, or a split with "
            "validation regions."
        )
    # Small ones first: what is held out teaches nothing.
    order = generator.permutation(len(sizes))
    order = order[np.argsort(sizes[order] > np.median(sizes), kind="stable")]
    taken: list[int] = []
    for number in order[:-1]:
        if sizes[taken].sum() >= _SHARE * len(training):
            break
        taken.append(int(number))
    chosen[training[np.isin(piece, taken)]] = VALIDATION
    return chosen
