"""Sums of contacts over windows: squares about loops, diamonds and triangles at boundaries, bins with a compartment."""

from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.genome.contact_replicates import Pixels


def square_sums(pixels: Pixels, values: np.ndarray, row: np.ndarray, column: np.ndarray, reach: int) -> np.ndarray:
    """Sums of ``values`` (pixels, maps) over squares of ``2 * reach + 1`` bins about points.

    Parameters
    ----------
    pixels
        Where the values lie.
    values
        Values (pixels, maps).
    row, column
        Centres of the squares.
    reach
        Bins on each side of the centre.

    Returns
    -------
    Sums (points, maps). What lies outside the map, or below the diagonal, is not there.
    """
    size = pixels.n_bins
    keys = pixels.row * size + pixels.column
    sums = np.zeros((len(row), values.shape[1]))
    if not len(keys):
        return sums
    for step in range(-reach, reach + 1):
        here = row + step
        inside = (here >= 0) & (here < size)
        # Pixels of a row are neighbours in the table: a stretch of columns is a difference of cumulative sums, but one
        # taken of few values at a time, so that no rounding of far sums comes in.
        low = np.searchsorted(keys, np.where(inside, here * size + np.maximum(column - reach, 0), 0))
        high = np.searchsorted(keys, np.where(inside, here * size + np.minimum(column + reach + 1, size), 0))
        for offset in range(2 * reach + 1):
            found = low + offset < high
            sums[found] += values[low[found] + offset]
    return sums


def band(pixels: Pixels, values: np.ndarray, width: int) -> np.ndarray:
    """Values (pixels, maps) up to a distance as (maps, distance, bins): ``[r, d, i]`` is pixel (i, i + d)."""
    near = pixels.distance < width
    result = np.zeros((values.shape[1], width, pixels.n_bins))
    result[:, pixels.distance[near], pixels.row[near]] = values[near].T
    return result


def boundary_sums(bands: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Contacts across and beside each boundary.

    Parameters
    ----------
    bands
        Values (maps, distances, bins) up to twice the window at least.
    window
        Bins on each side.

    Returns
    -------
    Sums (bins, maps) across the boundary before each bin, over pairs of a bin among the ``window`` before it and one
    among those from it on; and beside it, over pairs within either side. NaN where a side is cut off by the end of the
    chromosome.
    """
    maps, _, size = bands.shape
    across, beside = np.zeros((maps, size)), np.zeros((maps, size))
    place = np.arange(size)
    for distance in range(1, min(2 * window, bands.shape[1])):
        sums = np.zeros((maps, size + 1))
        np.cumsum(bands[:, distance], axis=1, out=sums[:, 1:])

        def between(first: np.ndarray, last: np.ndarray, sums: np.ndarray = sums) -> np.ndarray:
            """Sum over starts from first up to, not including, last."""
            first, last = np.clip(first, 0, size), np.clip(last, 0, size)
            return sums[:, np.maximum(first, last)] - sums[:, first]

        across += between(np.maximum(place - window, place - distance), np.minimum(place, place + window - distance))
        if distance < window:
            beside += between(place - window, place - distance) + between(place, place + window - distance)
    cut = (place < window) | (place > size - window)
    across[:, cut] = beside[:, cut] = np.nan
    return across.T, beside.T


def compartment_sums(
    pixels: Pixels, values: np.ndarray, label: np.ndarray, least_distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """Contacts of each bin with bins of compartment A and with bins of compartment B.

    Parameters
    ----------
    pixels, values
        Pixels and their values (pixels, maps).
    label
        1 for A, -1 for B, 0 for neither, for each bin.
    least_distance
        Nearer contacts, in bins, are left out: domains make these.

    Returns
    -------
    Sums (bins, maps) with A and with B.
    """
    far = pixels.distance >= least_distance
    row, column, values = pixels.row[far], pixels.column[far], values[far]
    sums = []
    for sign in (1, -1):
        total = np.zeros((pixels.n_bins, values.shape[1]))
        for number in range(values.shape[1]):
            mine = values[:, number]
            total[:, number] += np.bincount(row, mine * (label[column] == sign), pixels.n_bins)
            total[:, number] += np.bincount(column, mine * (label[row] == sign), pixels.n_bins)
        sums.append(total)
    return sums[0], sums[1]


def grid_sums(
    pixels: Pixels, counts: np.ndarray, expected: np.ndarray, factor: int, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Contacts of blocks of ``factor`` by ``factor`` pixels up to a distance in bins, the diagonal's left out.

    Returns
    -------
    Row and column of each block, its counts (blocks, maps) and expected counts.
    """
    near = pixels.distance <= longest
    row, column = pixels.row[near] // factor, pixels.column[near] // factor
    size = pixels.n_bins // factor + 1
    key, place = np.unique(row * size + column, return_inverse=True)
    row, column = key // size, key % size
    off = row != column
    sums = [
        np.stack([np.bincount(place, values[near, number], len(key)) for number in range(values.shape[1])], 1)[off]
        for values in (counts, expected)
    ]
    return row[off], column[off], sums[0], sums[1]
