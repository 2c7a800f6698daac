"""How regions of a set lie to each other along the genome: distances, numbers, and means over neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diffbio_sc._checks import whole_numbers

__all__ = [
    "NEIGHBOUR_DISTANCES",
    "RegionSet",
    "check_region_set",
    "column_names",
    "density",
    "neighbour_columns",
    "neighbour_means",
]

#: Distances in bp within which other regions of the set are counted: from a nucleosome's width to that of a domain.
COUNT_DISTANCES = (500, 1_000, 5_000, 20_000, 50_000, 200_000)
#: Distances in bp over which values of other regions are averaged.
NEIGHBOUR_DISTANCES = (1_000, 5_000, 50_000)
# Number of other regions within this distance tells the density of a set.
_DENSITY_DISTANCE = 50_000


class RegionSet(NamedTuple):
    """Where the regions of a set lie.

    Attributes
    ----------
    chromosome
        Code of each region's chromosome (n,).
    position
        Midpoint of each region in bp (n,).
    group
        Code of the kind of each region (n,), such as the factor whose peaks it comes from; None: one kind.
    """

    chromosome: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    group: Int[np.ndarray, " n"] | None = None

    def take(self, rows: np.ndarray) -> RegionSet:
        """Return some of the regions."""
        return RegionSet(self.chromosome[rows], self.position[rows], None if self.group is None else self.group[rows])


def check_region_set(regions: RegionSet, size: int, groups: int | None = None) -> RegionSet:
    """Return a region set as int64 arrays, or raise ValueError saying what does not fit.

    Parameters
    ----------
    regions
        The set.
    size
        Number of regions.
    groups
        Number of kinds that a model knows; None: any.
    """
    chromosome, position, group = regions
    parts = {
        "chromosome": whole_numbers(chromosome, "neighbourhood.chromosome", minimum=0),
        "position": whole_numbers(position, "neighbourhood.position", minimum=0),
    }
    if group is not None:
        parts["group"] = whole_numbers(group, "neighbourhood.group", minimum=0)
    for name, values in parts.items():
        if values.shape != (size,):
            raise ValueError(
                f"neighbourhood.{name} must have one entry for each of {size:,} regions, found {values.shape}."
            )
    if groups is not None:
        found = int(parts["group"].max()) + 1 if "group" in parts and size else 1
        if found > groups or (groups > 1 and group is None):
            raise ValueError(
                f"neighbourhood.group must have the codes 0 ... {groups - 1} of the fitted set, found "
                f"{'none' if group is None else f'codes up to {found - 1}'}."
            )
    return RegionSet(parts["chromosome"], parts["position"], parts.get("group"))


def neighbour_columns(regions: RegionSet, groups: int) -> Float[np.ndarray, "n columns"]:
    """Describe where each region lies among the others of its set.

    Columns: log of the distance to the nearer and to the farther of the two regions beside it (200 kb at most), log of
    one plus the number of others within 0.5, 1, 5, 20, 50 and 200 kb. With several kinds of regions these are followed
    by the numbers of those of each kind, and by the region's own kind (1 or 0 for each but the last).

    Parameters
    ----------
    regions
        The set; every region of it counts.
    groups
        Number of kinds.
    """
    order, key = _order(regions)
    farthest = COUNT_DISTANCES[-1]
    gap = np.full(len(key) + 1, farthest, np.int64)
    gap[1:-1] = np.minimum(np.diff(key), farthest)
    before, after = gap[:-1], gap[1:]
    columns = [np.log1p(np.minimum(before, after)), np.log1p(np.maximum(before, after))]
    columns += [np.log1p(_counts(key, key, distance) - 1) for distance in COUNT_DISTANCES]
    if groups > 1:
        group = np.zeros(len(key), np.int64) if regions.group is None else regions.group[order]
        for code in range(groups):
            mine = group == code
            columns += [np.log1p(_counts(key[mine], key, distance) - mine) for distance in COUNT_DISTANCES]
        columns += [(group == code).astype(np.float64) for code in range(groups - 1)]
    result = np.empty((len(key), len(columns)), np.float32)
    result[order] = np.stack(columns, axis=1)
    return result


def column_names(groups: int) -> list[str]:
    """Return the names of the columns of :func:`neighbour_columns`."""
    names = ["nearer", "farther", *(f"others_{distance}" for distance in COUNT_DISTANCES)]
    if groups > 1:
        names += [f"group{code}_{distance}" for code in range(groups) for distance in COUNT_DISTANCES]
        names += [f"is_group{code}" for code in range(groups - 1)]
    return names


def neighbour_means(
    regions: RegionSet, values: Float[np.ndarray, "n cells"], fallback: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, "n columns"]:
    """Average values over the other regions within each of :data:`NEIGHBOUR_DISTANCES`.

    Parameters
    ----------
    regions
        The set.
    values
        Values of each region.
    fallback
        Value of a region that has no neighbour.

    Returns
    -------
    Columns of the smallest distance, then of the next; float32.
    """
    order, key = _order(regions)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values[order], axis=0, dtype=np.float64)])
    result = np.empty((len(key), len(NEIGHBOUR_DISTANCES) * values.shape[1]), np.float32)
    for number, distance in enumerate(NEIGHBOUR_DISTANCES):
        first, last = np.searchsorted(key, key - distance), np.searchsorted(key, key + distance, side="right")
        others = (last - first - 1)[:, None]
        mean = (sums[last] - sums[first] - values[order]) / np.maximum(others, 1)
        block = slice(number * values.shape[1], (number + 1) * values.shape[1])
        result[order, block] = np.where(others > 0, mean, fallback)
    return result


def density(regions: RegionSet) -> Float[np.ndarray, " chromosomes"]:
    """Return the average number of other regions within 50 kb of one, for each chromosome that has any."""
    order, key = _order(regions)
    others = _counts(key, key, _DENSITY_DISTANCE) - 1
    codes = np.unique(regions.chromosome[order], return_inverse=True)[1]
    return np.bincount(codes, others) / np.bincount(codes)


def _order(regions: RegionSet) -> tuple[np.ndarray, np.ndarray]:
    """Order along the genome, and in it a coordinate that never brings two chromosomes near each other."""
    stride = int(regions.position.max(initial=0)) + 2 * COUNT_DISTANCES[-1]
    key = regions.chromosome * stride + regions.position
    order = np.argsort(key, kind="stable")
    return order, key[order]


def _counts(others: np.ndarray, key: np.ndarray, distance: int) -> np.ndarray:
    return np.searchsorted(others, key + distance, side="right") - np.searchsorted(others, key - distance)
