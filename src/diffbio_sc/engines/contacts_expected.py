"""Expected contacts of every region of a map."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.decay import (
    FEWEST_CONTACTS,
    Decay,
    DistanceSums,
    decay_knots,
    distance_sums,
    fit_decay,
    log_smooth,
)
from diffbio_sc.numerics.genome.pixels import cis_rows

Method = Literal["regression", "cooltools"]


@dataclasses.dataclass(frozen=True)
class RegionDecay:
    """Expected contacts of one region.

    Attributes
    ----------
    name, first, last
        Region: its name and its first and last (exclusive) bin in the map.
    sums
        Counts and exposures by distance.
    value
        Expected balanced contacts at each distance in bins, NaN at distances left out.
    slope
        d log value / d log distance.
    pooled
        Whether the shape was taken from all regions together, because the region has too few contacts.
    """

    name: str
    first: int
    last: int
    sums: DistanceSums
    value: np.ndarray
    slope: np.ndarray
    pooled: bool


def expected_map(
    contacts: ContactMap,
    weights: np.ndarray,
    *,
    ignore_diags: int = 2,
    breaks: np.ndarray | None = None,
    method: Method = "regression",
    monotone: bool = False,
) -> list[RegionDecay]:
    """Estimate the decay of each region; the arguments are those of :func:`diffbio_sc.tl.expected`."""
    regions = contacts.regions(breaks)
    sums = [distance_sums(cis_rows(contacts.counts, first, last), weights[first:last]) for _, first, last in regions]
    if method == "cooltools":
        return [
            RegionDecay(*region, own, *_smoothed(own, ignore_diags), False)
            for region, own in zip(regions, sums, strict=True)
        ]
    shape: Decay | None = None
    result = []
    for region, own in zip(regions, sums, strict=True):
        knots = len(decay_knots(ignore_diags, max(len(own.pairs) - 1, 1)))
        pooled = len(regions) > 1 and own.count[ignore_diags:].sum() < FEWEST_CONTACTS * knots
        if pooled and shape is None:
            total = sums[0]
            for other in sums[1:]:
                total = total + other
            shape = fit_decay(total, ignore_diags, monotone=monotone)
        fitted = fit_decay(own, ignore_diags, shape if pooled else None, monotone)
        result.append(RegionDecay(*region, own, fitted.value, fitted.slope, pooled))
    return result


def _smoothed(sums: DistanceSums, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    size = len(sums.pairs)
    value, slope = np.full(size, np.nan), np.full(size, np.nan)
    if size < 2:
        return value, slope
    # As cooltools: distances that are left out enter the smoother with their pairs and without their contacts.
    balanced = sums.balanced.copy()
    balanced[:nearest] = 0.0
    distances = np.arange(1.0, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        contacts, pairs = log_smooth(distances, np.stack([balanced[1:], sums.pairs[1:]]))
        value[1:] = contacts / pairs
        if size > 2:
            slope[1:] = np.gradient(np.log(value[1:]), np.log(distances))
    value[:nearest] = slope[:nearest] = np.nan
    return value, slope
