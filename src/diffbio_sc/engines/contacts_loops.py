"""Loops of every region of a map, tile by tile along the diagonal."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import ndtr

from diffbio_sc.engines.contacts_expected import RegionDecay
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.loops import (
    TILE,
    LoopShape,
    LoopTile,
    NullModel,
    fit_null,
    loop_tile,
    strata,
    z_scores,
)
from diffbio_sc.numerics.genome.pixels import cis_rows

NULL_TILES = 16
"""Tiles, evenly spread, that the null model is fitted to."""
LEAST_Z = 1.0
_APART = 2
_HISTOGRAM = np.linspace(-10.0, 50.0, 6001)


@dataclasses.dataclass(frozen=True)
class MapLoops:
    """Candidate loops, the best first.

    Attributes
    ----------
    first, second
        Bins of the two anchors.
    observed, expected, level
        Filtered count, its expectation by the largest background, and by the decay alone.
    ratios
        Of the four backgrounds (candidates, 4): how many times more contacts than the decay expects.
    z, p, q
        Score, one-sided p-value and false discovery rate within the stratum of distance.
    null
        Null model of the scores, None if nothing could be scored.
    """

    first: np.ndarray
    second: np.ndarray
    observed: np.ndarray
    expected: np.ndarray
    level: np.ndarray
    ratios: np.ndarray
    z: np.ndarray
    p: np.ndarray
    q: np.ndarray
    null: NullModel | None


def loops_map(
    contacts: ContactMap,
    weights: np.ndarray,
    decays: list[RegionDecay],
    *,
    shape: LoopShape,
    smallest: int,
    largest: int,
    enrichment: float = 1.2,
    valid: float = 0.5,
    nearest: int = 2,
) -> MapLoops:
    """Score all pairs of bins and list local maxima; arguments as of :func:`diffbio_sc.tl.loops`, lengths in bins."""
    work = [
        (region, first, min(first + TILE, region.last - region.first))
        for region in decays
        if np.isfinite(region.value).any() and region.last - region.first > smallest
        for first in range(0, region.last - region.first, TILE)
    ]
    longest = max((region.last - region.first for region, *_ in work), default=0)
    largest = min(largest, longest - 1)
    if not work or largest < smallest:
        return _empty()
    edges = strata(smallest, largest)

    def tile(region: RegionDecay, first: int, last: int, margin: int) -> LoopTile:
        rows = cis_rows(contacts.counts, region.first, region.last, nearest)
        return loop_tile(
            rows,
            region.value,
            weights[region.first : region.last],
            shape,
            first - margin,
            last + margin,
            nearest,
            smallest,
            largest,
            valid,
        )

    sample = sorted({round(k) for k in np.linspace(0, len(work) - 1, min(NULL_TILES, len(work)))})
    null = fit_null([tile(work[k][0], work[k][1], work[k][2], 0) for k in sample], edges)
    dispersion = null.of_distance(null.dispersion).astype(np.float32)
    histogram = np.zeros((len(edges) - 1, len(_HISTOGRAM)), np.int64)
    found = []
    for region, first, last in work:
        part = tile(region, first, last, _APART)
        z = z_scores(part, dispersion).astype(np.float32)
        inner = z[_APART : _APART + last - first]
        for k in range(len(edges) - 1):
            values = inner[:, edges[k] - smallest : edges[k + 1] - smallest]
            values = values[np.isfinite(values)]
            bins = np.clip(np.searchsorted(_HISTOGRAM, values, side="right") - 1, 0, len(_HISTOGRAM) - 1)
            histogram[k] += np.bincount(bins, minlength=len(_HISTOGRAM))
        row, column = local_peaks(z, part.observed, part.expected, _APART, last - first, LEAST_Z, enrichment)
        at = (row, column)
        found.append(
            np.column_stack(
                [
                    region.first + first - _APART + row,
                    region.first + first - _APART + row + column + smallest,
                    part.observed[at],
                    part.expected[at],
                    part.level[at],
                    part.ratios[:, row, column].T,
                    z[at],
                ]
            )
        )
    table = np.concatenate(found)
    distance = (table[:, 1] - table[:, 0]).astype(np.int64)
    stratum = np.searchsorted(edges, distance, side="right") - 1
    p = ndtr(-table[:, 9])
    q = _false_discovery(table[:, 9], p, stratum, histogram)
    order = np.argsort(-table[:, 9], kind="stable")
    table, p, q = table[order], p[order], q[order]
    first_bin, second_bin = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    observed, expected, level = table[:, 2:5].T
    return MapLoops(first_bin, second_bin, observed, expected, level, table[:, 5:9], table[:, 9], p, q, null)


def _empty() -> MapLoops:
    none, whole = np.zeros(0), np.zeros(0, np.int64)
    return MapLoops(whole, whole, none, none, none, np.zeros((0, 4)), none, none, none, None)


def local_peaks(
    z: np.ndarray, observed: np.ndarray, expected: np.ndarray, margin: int, size: int, least: float, enrichment: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scored pairs that no other within ``margin`` bins of both anchors exceeds; of equal ones the first.

    Parameters
    ----------
    z, observed, expected
        Score and contacts of pairs (bins, distances), NaN where they are not scored.
    margin
        Bins around an anchor; as many rows at either end are only looked at.
    size
        Rows between these.
    least, enrichment
        Least score, and least ratio of observed to expected contacts.
    """
    inner = slice(margin, margin + size)
    with np.errstate(invalid="ignore"):
        row, column = np.nonzero((z[inner] >= least) & ~(observed[inner] < enrichment * expected[inner]))
    row += margin
    value, best = z[row, column], np.ones(len(row), bool)
    for down in range(-margin, margin + 1):
        for along in range(-margin, margin + 1):
            if down == along == 0:
                continue
            other = column + along - down
            inside = (other >= 0) & (other < z.shape[1])
            near = z[row + down, np.where(inside, other, 0)]
            exceeds = near >= value if (down, along) < (0, 0) else near > value
            best &= ~(inside & exceeds)
    return row[best], column[best]


def _false_discovery(z: np.ndarray, p: np.ndarray, stratum: np.ndarray, histogram: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg within strata, over all scored pairs, of which the histogram says how many score as high."""
    q = np.ones(len(z))
    for k in range(len(histogram)):
        above = np.cumsum(histogram[k][::-1])[::-1]
        number = above[0]
        # Pairs at or above each edge: the step-up rule needs q at every pair, of which the edges are a fine grid.
        edge_q = np.minimum.accumulate(number * ndtr(-_HISTOGRAM) / np.maximum(above, 1))
        own = np.flatnonzero(stratum == k)
        at = np.clip(np.searchsorted(_HISTOGRAM, z[own], side="right") - 1, 0, len(_HISTOGRAM) - 1)
        q[own] = np.clip(edge_q[at], 0.0, 1.0)
    return np.maximum(q, p)
