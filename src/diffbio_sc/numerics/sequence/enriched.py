"""Motifs that are enriched where sequences are marked: what a network's filters can start from.

Greedy, in the manner of STREME (Bailey 2021, Bioinformatics 37:2834) and HOMER (Heinz et al. 2010, Mol. Cell 38:576):
the k-mer that marked places have most in excess becomes a weight matrix from its matches there, with one substitution
allowed; the matrix is refined on its own matches; these are erased, and the next k-mer is sought.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffbio_sc.numerics.sequence.kmers import canonical_columns

__all__ = ["EnrichedMotif", "enriched_motifs"]

_K = 8
_LEAST_Z = 6.0
"""Excess of a k-mer, in standard deviations, below which the search ends: of half a million k-mers and groups that
differ by chance alone, one in two thousand searches sees one that is larger."""
_ROUNDS = 2
_PSEUDOCOUNT = 1.0
_UNKNOWN = 4


class EnrichedMotif(NamedTuple):
    """A motif.

    Attributes
    ----------
    log_odds
        Of each letter against the background, in nats.
    group
        Group of marks in which it was found.
    z
        Excess of the k-mer that it grew from, in standard deviations.
    sites
        Number of its matches at marked places.
    """

    log_odds: Float[np.ndarray, "width 4"]
    group: int
    z: float
    sites: int


def enriched_motifs(
    tokens: Int[np.ndarray, "windows length"],
    marked: Bool[np.ndarray, "windows positions groups"],
    *,
    position_width: int,
    width: int = 15,
    most: int = 16,
) -> list[EnrichedMotif]:
    """Find motifs that marked positions have more often than all positions.

    Parameters
    ----------
    tokens
        Bases, A C G T as 0 to 3, anything else 4.
    marked
        Which positions of each window are marked, in each of several groups (cell types).
    position_width
        Bases of a position.
    width
        Width of motifs, at least 8.
    most
        Largest number of motifs.

    Returns
    -------
    Motifs in the order in which they were found, the most enriched first.
    """
    tokens = np.asarray(tokens, np.int64)
    windows, length = tokens.shape
    if length < max(_K, width):
        return []
    starts = length - _K + 1
    code = sum(np.minimum(tokens[:, i : i + starts], 3) * 4 ** (_K - 1 - i) for i in range(_K))
    column = canonical_columns(_K)[code]
    n_columns = int(column.max()) + 1
    usable = np.stack([tokens[:, i : i + starts] != _UNKNOWN for i in range(_K)]).all(0)
    position = np.minimum((np.arange(starts) + _K // 2) // position_width, marked.shape[1] - 1)
    background = np.bincount(tokens[tokens < 4], minlength=4) + 1.0
    background = (background + background[::-1]) / (2 * background.sum())
    padded = np.pad(tokens, ((0, 0), (width, width)), constant_values=_UNKNOWN)
    found: list[EnrichedMotif] = []
    while len(found) < most:
        best = _most_enriched(column, usable, marked, position, n_columns)
        if best is None or best[0] < _LEAST_Z:
            break
        z, group, seed = best
        rows, places = np.nonzero(usable & marked[:, position, group])
        matches = _matches(padded, rows, places, code[rows, places], seed, column, width)
        if len(matches) == 0:
            break
        log_odds = _refined(_weights(matches, background), padded, rows, places, position_width, width, background)
        erased, sites = _erase(usable, tokens, log_odds, seed, column, position_width)
        found.append(EnrichedMotif(log_odds.astype(np.float32), group, z, int(sites[marked[:, position, group]].sum())))
        usable &= ~erased
    return found


def _most_enriched(column, usable, marked, position, n_columns) -> tuple[float, int, int] | None:
    """Excess, group and column of the k-mer whose counts at marked places are least like those everywhere."""
    everywhere = np.bincount(column[usable], minlength=n_columns).astype(np.float64)
    total, best = everywhere.sum(), None
    for group in range(marked.shape[2]):
        chosen = usable & marked[:, position, group]
        number = int(chosen.sum())
        if number == 0 or number == total:
            continue
        counts = np.bincount(column[chosen], minlength=n_columns).astype(np.float64)
        expected = (everywhere + 1.0) * number / (total + n_columns)
        # Signed root of the Poisson deviance: right also where hardly any is expected.
        deviance = 2.0 * (counts * np.log(np.maximum(counts, 1e-9) / expected) - (counts - expected))
        z = np.where(counts > expected, np.sqrt(np.maximum(deviance, 0.0)), 0.0)
        at = int(z.argmax())
        if best is None or z[at] > best[0]:
            best = (float(z[at]), group, at)
    return best


def _matches(padded, rows, places, codes, seed, column, width):
    """Windows about marked k-mers that differ from the seed in at most one base, all on the seed's strand."""
    table = canonical_columns(_K)
    seed_code = int(np.flatnonzero(table == seed)[0])
    digits = np.array([(seed_code >> (2 * (_K - 1 - i))) & 3 for i in range(_K)])
    letters = np.stack([(codes >> (2 * (_K - 1 - i))) & 3 for i in range(_K)], 1)
    forward = (letters != digits).sum(1) <= 1
    backward = ((3 - letters[:, ::-1]) != digits).sum(1) <= 1
    start = places + width + _K // 2 - width // 2
    shift = _K % 2 - width % 2  # a k-mer and its window seldom have the same middle: it moves on the other strand
    around = padded[rows[forward][:, None], start[forward][:, None] + np.arange(width)]
    other = padded[rows[backward][:, None], start[backward][:, None] + shift + np.arange(width)]
    return np.concatenate([around, _other_strand(other)])


def _other_strand(bases):
    return np.where(bases == _UNKNOWN, _UNKNOWN, 3 - bases)[:, ::-1]


def _weights(matches, background):
    counts = np.stack([(matches == letter).sum(0) for letter in range(4)], 1) + _PSEUDOCOUNT * 4 * background
    return np.log(counts / counts.sum(1, keepdims=True) / background)


def _refined(log_odds, padded, rows, places, position_width, width, background):
    """Weights from the matches of the weights themselves, on both strands of the marked places."""
    around = padded[rows[:, None], (places + width + _K // 2 - width // 2)[:, None] + np.arange(width)]
    both = np.concatenate([around, _other_strand(around)])
    for _ in range(_ROUNDS):
        score = _score(both, log_odds)
        good = both[score > _threshold(position_width)]
        if len(good) < 10:
            break
        log_odds = _weights(good, background)
    return log_odds


def _score(bases, log_odds):
    table = np.vstack([log_odds.T, np.zeros(len(log_odds))])
    return sum(table[bases[:, i], i] for i in range(len(log_odds)))


def _threshold(position_width: int) -> float:
    """Log-odds that a match at one of both strands of a position must have to be a hundred times as likely as not."""
    return float(np.log(100.0 * 2.0 * position_width))


def _erase(usable, tokens, log_odds, seed, column, position_width):
    """Which k-mers overlap a match of the motif or are the seed, and where matches begin."""
    width, (windows, length) = len(log_odds), tokens.shape
    table = np.vstack([log_odds.T, np.zeros(width)]).astype(np.float32)
    other = np.vstack([log_odds[::-1, ::-1].T, np.zeros(width)]).astype(np.float32)
    best = np.full((windows, length - width + 1), -np.inf, np.float32)
    for weights in (table, other):
        score = np.zeros_like(best)
        for i in range(width):
            score += weights[:, i][tokens[:, i : i + score.shape[1]]]
        best = np.maximum(best, score)
    hit = best > _threshold(position_width)
    sites = column == seed
    erased = sites.copy()
    # The informative core alone: what stands beside it may be the next motif.
    information = log_odds.max(1)
    core = np.flatnonzero(information > 0.5 * information.max())
    first, last = core[0], core[-1]
    for step in range(first - _K + 2, last):
        low, high = max(0, step), min(erased.shape[1], hit.shape[1] + step)
        erased[:, low:high] |= hit[:, low - step : high - step]
    middle = np.zeros_like(sites)
    shift = width // 2 - _K // 2
    span = min(hit.shape[1], middle.shape[1] - shift)
    middle[:, shift : shift + span] = hit[:, :span]
    return erased, middle
