"""Several maps of the same bins side by side: what each would hold if only depth, decay and visibility differed.

The pooled counts Y of all maps are split by shares that add up to one,

    E_r(i, j) = Y(i, j) * q_r(i, j) / sum_k q_k(i, j),    q_r(i, j) = s_r(|i - j|) * u_r(i) * u_r(j)

where s_r follows from the contacts that map r has at a distance, and u_r from those it has at a bin. Sums of the
counts of map r over any set of pixels, a loop or a window, are then compared with the same sum of E_r, whatever
structure the pooled map has there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

_DISTANCE_RATIO = 1.12  # distances are pooled to bins this wide, so that far ones hold enough contacts
_ROUNDS = 3


class Pixels(NamedTuple):
    """Pixels of the upper triangle that hold contacts in any of several maps, sorted by row and column.

    Attributes
    ----------
    row, column
        Bins of each pixel.
    counts, expected
        Counts (pixels, maps), and what each map would hold if the maps did not differ in structure.
    n_bins
        Number of bins.
    """

    row: np.ndarray
    column: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    n_bins: int

    @property
    def distance(self) -> np.ndarray:
        """Distance of each pixel in bins."""
        return self.column - self.row


def align_pixels(maps: list[sp.csr_array], good: np.ndarray, least_distance: int = 2) -> Pixels:
    """Pixels of all maps, between good bins from the least distance on, with their shares as expectation.

    Parameters
    ----------
    maps
        Upper triangles of counts, one chromosome each, of the same bins.
    good
        Bins that take part.
    least_distance
        Nearer pixels are left out: contacts of a bin with itself and its neighbour are ligation products mostly.
    """
    size = maps[0].shape[0]
    keys, values, owner = [], [], []
    for number, counts in enumerate(maps):
        part = counts.tocoo()
        row, column = part.row.astype(np.int64), part.col.astype(np.int64)
        kept = good[row] & good[column] & (column - row >= least_distance)
        keys.append(row[kept] * size + column[kept])
        values.append(part.data[kept])
        owner.append(np.full(int(kept.sum()), number))
    joined, place = np.unique(np.concatenate(keys), return_inverse=True)
    counts = np.zeros((len(joined), len(maps)), np.float32)
    counts[place, np.concatenate(owner)] = np.concatenate(values)
    row, column = joined // size, joined % size
    return Pixels(row, column, counts, _shares(row, column, counts, size, None), size)


def share_again(pixels: Pixels, steady: np.ndarray) -> Pixels:
    """Pixels whose expectation takes decay and visibility of each map from contacts with steady bins alone.

    Where much of a chromosome changes, the contacts at a distance change with it, and so would the expectation of what
    stays. With few steady bins (less than a fifth of the contacts) the expectation stays as it was.
    """
    among = steady[pixels.row] & steady[pixels.column]
    if among.all() or pixels.counts[among].sum(dtype=np.float64) < 0.2 * pixels.counts.sum(dtype=np.float64):
        return pixels
    return pixels._replace(expected=_shares(pixels.row, pixels.column, pixels.counts, pixels.n_bins, steady))


def distance_bins(longest: int) -> np.ndarray:
    """Bin of each distance from 0: one each for short ones, wider by the ratio for long ones."""
    edges = np.unique(np.concatenate([[1.0], np.geomspace(1.0, longest + 2.0, max(_steps(longest), 2))]).astype(int))
    return np.searchsorted(edges, np.arange(longest + 1), side="right")


def _steps(longest: int) -> int:
    return int(np.log(longest + 2.0) / np.log(_DISTANCE_RATIO)) + 1


def _shares(
    row: np.ndarray, column: np.ndarray, counts: np.ndarray, size: int, steady: np.ndarray | None
) -> np.ndarray:
    if not len(row):
        return np.zeros_like(counts)
    pooled = counts.sum(1, dtype=np.float64)
    stratum = distance_bins(size)[column - row]
    strata = int(stratum.max()) + 1

    to_row = to_column = among = np.ones(1)
    if steady is not None:
        to_row, to_column = steady[column].astype(np.float64), steady[row].astype(np.float64)
        among = to_row * to_column

    def by_distance(values: np.ndarray) -> np.ndarray:
        return np.bincount(stratum, values * among, strata)

    def marginals(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, values * to_row, size) + np.bincount(column, values * to_column, size)

    maps = range(counts.shape[1])
    found = [counts[:, number].astype(np.float64) for number in maps]
    # One contact in each stratum, split as the depths are, keeps empty strata finite.
    depth = [each.sum() / max(pooled.sum(), 1.0) for each in found]
    found_distance, found_marginals = [by_distance(each) for each in found], [marginals(each) for each in found]
    share = [(each + part) / (by_distance(pooled) + 1.0) for each, part in zip(found_distance, depth, strict=True)]
    visibility = [np.ones(size) for _ in maps]

    def expected() -> np.ndarray:
        parts = np.stack(
            [share[number][stratum] * visibility[number][row] * visibility[number][column] for number in maps], 1
        )
        parts *= (pooled / np.maximum(parts.sum(1), 1e-300))[:, None]
        return parts

    for _ in range(_ROUNDS):
        predicted = expected()
        for number in maps:
            visibility[number] *= _shrunken_ratio(found_marginals[number], marginals(predicted[:, number]))
        predicted = expected()
        for number in maps:
            held = by_distance(predicted[:, number]) + depth[number]
            share[number] *= (found_distance[number] + depth[number]) / np.maximum(held, 1e-12)
    return expected().astype(np.float32)


def _shrunken_ratio(found: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Ratio of marginals, shrunk toward 1 by as much as it is noise.

    The ratios of a map's bins have a variance of counting, 1 / found, and one of their own; each log ratio is kept by
    the second's share of both.
    """
    some = (found > 0) & (predicted > 0)
    if some.sum() < 10:
        return np.ones_like(found)
    log_ratio = np.zeros_like(found)
    log_ratio[some] = np.log((found[some] + 0.5) / (predicted[some] + 0.5))
    noise = 1.0 / (found[some] + 0.5)
    middle = np.median(log_ratio[some])
    spread = (1.4826 * np.median(np.abs(log_ratio[some] - middle))) ** 2
    own = max(spread - float(np.median(noise)), 0.0)
    result = np.zeros_like(found)
    result[some] = log_ratio[some] * own / (own + noise)
    return np.exp(result)
