"""Means of observed over expected contacts: over classes of bins (saddle) and over windows about points (pile-up)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

_CHUNK = 2_000_000  # pixels looked up at once


def quantile_classes(values: np.ndarray, number: int, tails: float) -> tuple[np.ndarray, np.ndarray]:
    """Class of each value by quantiles, -1 for NaN and for the tails; and the inner edges.

    As of cooltools: the values between the quantiles ``tails`` and ``1 - tails`` are split into classes of like size.
    Where so many values are equal that a class would be empty, equal values are dealt to the classes that they span, in
    an order that does not follow the genome.
    """
    known = np.isfinite(values)
    edges = np.quantile(values[known], np.linspace(tails, 1.0 - tails, number + 1))
    if (np.diff(edges) <= 0).any():
        return _classes_by_rank(values, known, number, tails), edges
    code = np.searchsorted(edges, values, side="right") - 1
    # The largest value belongs to the last class when no tail is cut.
    code = np.where(values == edges[-1], number - 1, code)
    return np.where(known & (code >= 0) & (code < number), code, -1), edges


def _classes_by_rank(values: np.ndarray, known: np.ndarray, number: int, tails: float) -> np.ndarray:
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(known))
    ranked = shuffled[np.argsort(values[shuffled], kind="stable")]
    place = (np.arange(len(ranked)) + 0.5) / len(ranked)
    code = np.floor((place - tails) / (1.0 - 2.0 * tails) * number).astype(np.int64)
    result = np.full(len(values), -1, np.int64)
    result[ranked] = np.where((code >= 0) & (code < number), code, -1)
    return result


def class_sums(
    counts: sp.csr_array,
    weights: np.ndarray,
    decay: np.ndarray,
    code: np.ndarray,
    number: int,
    distances: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of observed over expected, and number of pairs of bins, for each pair of classes.

    Parameters
    ----------
    counts
        Upper triangle of one region.
    weights, decay
        Balancing weights of its bins, and expected balanced contacts at each distance.
    code, number
        Class of each bin (-1: none), and how many there are.
    distances
        First and last (exclusive) distance in bins.

    Returns
    -------
    Two symmetric matrices (classes, classes); each pair of bins is in both triangles, once.
    """
    size = len(code)
    code = np.where(np.isfinite(weights), code, -1)
    first, last = max(distances[0], 0), min(distances[1], size)
    row = np.repeat(np.arange(size), np.diff(counts.indptr))
    column = counts.indices
    distance = column - row
    kept = (code[row] >= 0) & (code[column] >= 0) & (distance >= first) & (distance < last)
    row, column, distance = row[kept], column[kept], distance[kept]
    ratio = counts.data[kept] * weights[row] * weights[column] / decay[distance]
    sums = np.bincount(code[row] * number + code[column], ratio, number**2).reshape(number, number)
    # Pairs at any distance, less those too near or too far; of these there is a loop over the fewer side.
    usable = code >= 0
    if last - first < size - (last - first):
        pairs = _pairs_at(code, usable, number, range(first, last))
    else:
        members = np.bincount(code[usable], minlength=number).astype(np.float64)
        # Ordered pairs of bins of any distance; a pair of one bin with itself is at distance 0.
        pairs = 0.5 * (np.outer(members, members) + np.diag(members))
        near = _pairs_at(code, usable, number, [*range(first), *range(last, size)])
        pairs = pairs - 0.5 * (near + near.T)
        return _both(sums), 2.0 * pairs
    return _both(sums), _both(pairs)


def trans_class_sums(
    counts: sp.csr_array, chrom: np.ndarray, weights: np.ndarray, code: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of observed over expected contacts between chromosomes, and number of pairs of bins, for pairs of classes.

    Expected is the mean of each pair of chromosomes over its pairs of bins with weights; pairs of chromosomes without
    contacts have none and are left out.

    Parameters
    ----------
    counts
        Upper triangle of the whole map.
    chrom
        Code of each bin's chromosome, never falling.
    weights
        Balancing weights.
    code, number
        Class of each bin (-1: none), and how many there are.

    Returns
    -------
    Two symmetric matrices (classes, classes); each pair of bins is in both triangles, once.
    """
    used = np.isfinite(weights)
    code = np.where(used, code, -1)
    size, chromosomes = len(code), int(chrom.max(initial=-1)) + 1
    row = np.repeat(np.arange(size), np.diff(counts.indptr))
    column = counts.indices
    kept = (chrom[row] != chrom[column]) & used[row] & used[column]
    row, column = row[kept], column[kept]
    balanced = counts.data[kept] * weights[row] * weights[column]
    block = chrom[row].astype(np.int64) * chromosomes + chrom[column]
    total = np.bincount(block, balanced, chromosomes**2).reshape(chromosomes, chromosomes)
    usable = np.bincount(chrom[used], minlength=chromosomes).astype(np.float64)
    mean = total / np.maximum(np.outer(usable, usable), 1.0)
    classed = (code[row] >= 0) & (code[column] >= 0)
    place = code[row][classed] * number + code[column][classed]
    sums = np.bincount(place, (balanced / mean.ravel()[block])[classed], number**2).reshape(number, number)
    member = code >= 0
    members = np.bincount(chrom[member] * number + code[member], minlength=chromosomes * number)
    members = members.reshape(chromosomes, number).astype(np.float64)
    return _both(sums), _both(members.T @ (total > 0) @ members)


def _both(upper: np.ndarray) -> np.ndarray:
    return upper + upper.T


def _pairs_at(code: np.ndarray, usable: np.ndarray, number: int, distances: Sequence[int] | range) -> np.ndarray:
    pairs = np.zeros(number**2)
    for distance in distances:
        both = usable[: len(code) - distance] & usable[distance:]
        place = code[: len(code) - distance][both] * number + code[distance:][both]
        pairs += np.bincount(place, minlength=number**2)
    return pairs.reshape(number, number)


def saddle_strength(sums: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Contacts within over between the ``k`` outermost classes of both ends, for k from 1 to half of them."""
    number = len(sums)
    strength = []
    for extent in range(1, number // 2 + 1):
        low, high = slice(0, extent), slice(number - extent, number)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = (sums[low, low].sum() + sums[high, high].sum()) / (pairs[low, low].sum() + pairs[high, high].sum())
            between = sums[low, high].sum() / pairs[low, high].sum()
            strength.append(within / between)
    return np.array(strength)


def window_means(
    counts: sp.csr_array,
    weights: np.ndarray,
    decay: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    flank: int,
    nearest: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of observed over expected in windows about points, and how many windows have each pixel.

    Parameters
    ----------
    counts, weights, decay
        Upper triangle, weights and decay of one region.
    row, column
        Points; windows that leave the region have no pixels there.
    flank
        Bins on each side of a point.
    nearest
        Nearer pixels to the diagonal have no value.
    """
    size = len(weights)
    # A key that no row of the map has stops look-ups past its end.
    key = np.repeat(np.arange(size), np.diff(counts.indptr)).astype(np.int64) * size + counts.indices
    key = np.append(key, np.int64(size) * size)
    data = np.append(counts.data.astype(np.float64), 0.0)
    reach = np.arange(-flank, flank + 1)
    side = len(reach)
    sums, number = np.zeros((side, side)), np.zeros((side, side))
    chunk = max(_CHUNK // side**2, 1)
    for begin in range(0, len(row), chunk):
        i = row[begin : begin + chunk, None, None] + reach[None, :, None]
        j = column[begin : begin + chunk, None, None] + reach[None, None, :]
        i, j = np.broadcast_arrays(i, j)
        inside = (i >= 0) & (i < size) & (j >= 0) & (j < size)
        low, high = np.clip(np.minimum(i, j), 0, size - 1), np.clip(np.maximum(i, j), 0, size - 1)
        wanted = low.astype(np.int64) * size + high
        at = np.searchsorted(key, wanted)
        value = np.where(key[at] == wanted, data[at], 0.0)
        distance = high - low
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = value * weights[low] * weights[high] / decay[distance]
        good = inside & (distance >= nearest) & np.isfinite(ratio)
        sums += np.where(good, ratio, 0.0).sum(0)
        number += good.sum(0)
    return sums, number
