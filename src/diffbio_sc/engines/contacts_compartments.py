"""Compartments of every region of a map: eigenvectors, and which of them in which direction is A against B."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from diffbio_sc.engines.contacts_expected import RegionDecay
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.compartments import (
    GAMMA,
    EigenPairs,
    cis_eigenvectors,
    shrink,
    trans_eigenvectors,
)
from diffbio_sc.numerics.genome.pixels import cis_rows, pixel_rows
from diffbio_sc.numerics.genome.plain_eigenvectors import plain_eigenvectors
from diffbio_sc.numerics.ranking import average_ranks

CONFIDENT = 3.0
"""Correlation with the track, in standard errors at the effective number of bins, from which a sign is trusted."""
_FEWEST_OF_TRACK = 10


@dataclasses.dataclass(frozen=True)
class Phasing:
    """How the eigenvectors of one region were ordered and oriented.

    Attributes
    ----------
    name
        Region.
    values
        Eigenvalues, the chosen vector's first.
    chosen
        Rank of the chosen vector among the eigenvalues, from 0.
    correlation
        Spearman correlation of the oriented vector with the track; NaN without one.
    margin
        By how much |correlation| x eigenvalue of the chosen vector exceeds that of the next.
    confident
        Whether the correlation is beyond chance, given how far the values of neighbours agree.
    """

    name: str
    values: np.ndarray
    chosen: int
    correlation: float
    margin: float
    confident: bool


@dataclasses.dataclass(frozen=True)
class MapCompartments:
    """Compartments of all bins.

    Attributes
    ----------
    vectors
        Eigenvectors (bins, k), the chosen one first, positive for A.
    shrunk
        The chosen vector, each entry drawn to its neighbours as far as noise asks.
    phasing
        How each region was phased.
    """

    vectors: np.ndarray
    shrunk: np.ndarray
    phasing: list[Phasing]


def compartments_map(
    contacts: ContactMap,
    weights: np.ndarray,
    decays: list[RegionDecay],
    *,
    track: np.ndarray | None = None,
    contact: Literal["cis", "trans"] = "cis",
    nearest: int = 50,
    count: int = 3,
    gamma: float = GAMMA,
    method: Literal["weighted", "cooltools"] = "weighted",
    ignore_diags: int = 2,
) -> MapCompartments:
    """Find the compartments of a map; the arguments are those of :func:`diffbio_sc.tl.compartments`.

    ``nearest`` is in bins, ``track`` has a value for each bin, NaN where it has none.
    """
    vectors, shrunk = np.full((contacts.n_bins, count), np.nan), np.full(contacts.n_bins, np.nan)
    phasing = []
    if contact == "trans":
        n = contacts.n_bins
        behind = np.searchsorted(contacts.chrom, contacts.chrom, side="right")
        rows = pixel_rows(contacts.counts, 0, n, behind, np.full(n, n))
        regions = [("trans", 0, n, trans_eigenvectors(rows, contacts.chrom, weights, count, gamma))]
    else:
        regions = []
        for decay in decays:
            if method == "cooltools":
                rows = cis_rows(contacts.counts, decay.first, decay.last)
                found = plain_eigenvectors(rows, weights[decay.first : decay.last], ignore_diags, count)
                regions.append((decay.name, decay.first, decay.last, found))
                continue
            # A region of few bins has no pairs so far apart: what is left must still span its plaid.
            apart = max(2, min(nearest, (decay.last - decay.first) // 5))
            rows = cis_rows(contacts.counts, decay.first, decay.last, apart)
            own = weights[decay.first : decay.last]
            found = cis_eigenvectors(rows, decay.value, own, apart, count, gamma)
            regions.append((decay.name, decay.first, decay.last, found))
    for name, first, last, pairs in regions:
        oriented, how = phase(name, pairs, None if track is None else track[first:last], method == "weighted")
        vectors[first:last] = oriented.T
        phasing.append(how)
        if method == "cooltools":
            shrunk[first:last] = oriented[0]
            continue
        # No chromosome tells about the next.
        for start, stop in _runs(contacts.chrom[first:last]):
            shrunk[first + start : first + stop] = shrink(oriented[0, start:stop], pairs.noise[how.chosen, start:stop])
    return MapCompartments(vectors, shrunk, phasing)


def _runs(codes: np.ndarray) -> list[tuple[int, int]]:
    edges = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def phase(name: str, pairs: EigenPairs, track: np.ndarray | None, choose: bool = True) -> tuple[np.ndarray, Phasing]:
    """Choose the vector that follows the track most, by |correlation| x eigenvalue, and turn it to follow it upwards.

    Without a track the order is that of the eigenvalues and the largest entry of each vector is positive: a convention,
    not a finding. The first vector stays the first unless ``choose``.
    """
    values, vectors = pairs.values.copy(), pairs.vectors.copy()
    present = [k for k in range(len(values)) if np.isfinite(values[k])]
    for k in present:
        largest = np.nanargmax(np.abs(vectors[k]))
        if vectors[k, largest] < 0:
            vectors[k] = -vectors[k]
    if track is None:
        track = np.full(vectors.shape[1], np.nan)
    usable = np.isfinite(vectors[0]) & np.isfinite(track)
    if usable.sum() < _FEWEST_OF_TRACK or np.ptp(track[usable]) == 0:
        return vectors, Phasing(name, values, 0, np.nan, np.nan, False)
    correlations = np.full(len(values), np.nan)
    for k in present:
        correlations[k] = _spearman(vectors[k, usable], track[usable])
        if correlations[k] < 0:
            vectors[k] = -vectors[k]
    merit = np.where(np.isfinite(correlations), np.abs(correlations) * np.maximum(values, 0.0), -np.inf)
    chosen = int(np.argmax(merit)) if choose else 0
    order = [chosen, *(k for k in range(len(values)) if k != chosen)]
    others = np.delete(merit, chosen)
    margin = float(merit[chosen] - others.max()) if len(others) and np.isfinite(others.max()) else float(merit[chosen])
    size = _effective_size(vectors[chosen, usable], track[usable])
    confident = abs(correlations[chosen]) * np.sqrt(max(size - 1.0, 0.0)) > CONFIDENT
    how = Phasing(name, values[order], chosen, float(abs(correlations[chosen])), margin, bool(confident))
    return vectors[order], how


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    left, right = average_ranks(left), average_ranks(right)
    return float(np.corrcoef(left, right)[0, 1]) if np.ptp(left) > 0 and np.ptp(right) > 0 else 0.0


def _effective_size(left: np.ndarray, right: np.ndarray) -> float:
    """Number of independent pairs of values in two series whose neighbours agree (Bartlett's formula, first order)."""
    agreement = 1.0
    for values in (left, right):
        ranks = average_ranks(values)
        ranks = ranks - ranks.mean()
        agreement *= float((ranks[1:] * ranks[:-1]).sum() / max((ranks * ranks).sum(), 1e-300))
    return len(left) * (1.0 - agreement) / (1.0 + agreement)
