"""What the contact map of one cell tells: decay, share between chromosomes, strength of compartments."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

_PER_DECADE = 6
_NEAR, _MITOTIC = 2e6, 12e6  # base pairs; contacts between them are frequent in mitosis (Nagano et al., 2017)


class CellProfile(NamedTuple):
    """Description of one cell.

    Attributes
    ----------
    n_contacts
        All contacts.
    share
        Share of the contacts within chromosomes in each stratum of distance.
    trans_share, near_share, mitotic_share
        Share of all contacts between chromosomes; of those within, below 2 Mb and from there to 12 Mb.
    strength, strength_error
        Log of contacts within over between compartments against the expectation, and its standard error.
    """

    n_contacts: int
    share: np.ndarray
    trans_share: float
    near_share: float
    mitotic_share: float
    strength: float
    strength_error: float


def distance_edges(longest: int, resolution: int) -> np.ndarray:
    """Edges of the strata of distance in bins: 0, then six a decade of base pairs from one bin on."""
    decades = max(np.log10(max(longest, 2)), 0.3)
    steps = np.geomspace(1.0, longest, max(int(np.ceil(decades * _PER_DECADE)), 1) + 1)
    return np.unique(np.concatenate([[0], np.round(steps).astype(np.int64), [longest]]))


def cell_profile(
    upper: sp.csr_array, chrom: np.ndarray, edges: np.ndarray, resolution: int, label: np.ndarray | None, reach: int
) -> CellProfile:
    """Describe one cell.

    Parameters
    ----------
    upper
        Upper triangle of its counts.
    chrom
        Chromosome of each bin.
    edges
        Edges of the strata of distance, in bins.
    resolution
        Width of the bins in base pairs.
    label
        1 for bins of compartment A, -1 for B, 0 for neither; None to leave strength out.
    reach
        Nearest distance in bins that counts for strength.
    """
    row = np.repeat(np.arange(upper.shape[0]), np.diff(upper.indptr))
    column, value = upper.indices, upper.data.astype(np.float64)
    cis = chrom[row] == chrom[column]
    distance = (column - row)[cis]
    within = value[cis]
    total, cis_total = float(value.sum()), float(within.sum())
    strata = np.bincount(np.searchsorted(edges, distance, side="right") - 1, within, len(edges))[: len(edges) - 1]
    nan = float("nan")
    base_pairs = distance * resolution
    near = float(within[base_pairs < _NEAR].sum())
    mitotic = float(within[(base_pairs >= _NEAR) & (base_pairs < _MITOTIC)].sum())
    strength = error = nan
    if label is not None:
        strength, error = _strength(row[cis], column[cis], within, distance, chrom, label, reach)
    return CellProfile(
        int(total),
        strata / cis_total if cis_total else np.full(len(strata), nan),
        1.0 - cis_total / total if total else nan,
        near / cis_total if cis_total else nan,
        mitotic / cis_total if cis_total else nan,
        strength,
        error,
    )


def _strength(row, column, value, distance, chrom, label, reach) -> tuple[float, float]:
    """Contacts within over between compartments, against those of the cell's decay and the bins' coverage.

    The expectation at a distance is the product of the coverage of both bins, summed over the pairs of bins at that
    distance within and between compartments: correlations of coverage and label along each chromosome.
    """
    size = int(np.bincount(chrom).max())
    coverage = np.bincount(row, value, len(chrom)) + np.bincount(column, value, len(chrom))
    far = distance >= reach
    observed = np.bincount(distance[far], value[far], size)
    product = label[row[far]] * label[column[far]]
    within = np.bincount(distance[far], value[far] * (product > 0), size)
    between = np.bincount(distance[far], value[far] * (product < 0), size)
    pairs, signed, every = np.zeros(size), np.zeros(size), np.zeros(size)
    for code in np.unique(chrom):
        here = chrom == code
        every_one = coverage[here]
        for total, values in (
            (pairs, every_one * np.abs(label[here])),
            (signed, every_one * label[here]),
            (every, every_one),
        ):
            total[: here.sum()] += _lagged(values)
    same, other = 0.5 * (pairs + signed), 0.5 * (pairs - signed)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(every > 0, observed / every, 0.0)
    rate[:reach] = 0.0
    expected_same, expected_other = float((rate * same).sum()), float((rate * other).sum())
    found_same, found_other = float(within.sum()), float(between.sum())
    if min(found_same, found_other, expected_same, expected_other) <= 0:
        return float("nan"), float("nan")
    strength = np.log(found_same / found_other) - np.log(expected_same / expected_other)
    return float(strength), float(np.sqrt(1.0 / found_same + 1.0 / found_other))


def _lagged(values: np.ndarray) -> np.ndarray:
    """Sum of products of values at each distance."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = len(values)
    length = next_fast_len(2 * size, real=True)
    spectrum = rfft(values, length)
    return irfft(spectrum * spectrum.conj(), length)[:size]
