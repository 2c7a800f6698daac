"""Differences of contact maps between two groups of replicates: loops, boundaries, compartments, interactions, decay.

Chromosome by chromosome, the pooled map is split into what each replicate would hold if the maps differed in depth,
decay and visibility alone; a feature is a sum of contacts over pixels, compared with the same sum of that expectation.
The variance of features is estimated over all chromosomes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.counts.replicates import (
    UNKNOWN_PRIOR_DF,
    Counts,
    GroupTest,
    LogRatios,
    Observations,
    Variance,
    compare_groups,
    excess_variance,
    fit_variance,
    given_variance,
    swapped_groups,
)
from diffbio_sc.numerics.genome.contact_replicates import Pixels, align_pixels, distance_bins, share_again
from diffbio_sc.numerics.genome.contact_windows import band, boundary_sums, compartment_sums, grid_sums, square_sums

FEATURES = ("loops", "boundaries", "compartments", "interactions")
_LEAST_DISTANCE = 2
_REFERENCE_SQUARES = 20_000
_RING = (3, 5)  # bins about a loop whose contacts are its surroundings: beyond 3, up to 5 on each side
_STEADY = 3.0  # robust standard deviations of the change of compartment, up to which a bin is steady
_STEADY_ROUNDS = 3
_DECAY_RATIO = 1.35  # widths of the strata in which the decay is compared


class Settings(NamedTuple):
    """How to compare; lengths in base pairs. See :func:`diffbio_sc.tl.differential_contacts`."""

    loop_reach: int
    window: int
    compartment_distance: int
    interaction_size: int
    max_distance: int
    least_count: float
    dispersion: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Test of the features of one kind.

    ``place`` holds what they are, arrays by name; ``counts`` the contacts (features, maps) and ``expected`` those of
    maps that do not differ in structure; of ratios, those of the first window. ``tested`` are rows with enough
    contacts.
    """

    place: dict[str, np.ndarray]
    counts: np.ndarray
    expected: np.ndarray
    tested: np.ndarray
    test: GroupTest
    qvalue: np.ndarray
    variance: Variance
    inflation: float
    null_share: float


def good_bins(maps: Sequence[ContactMap]) -> np.ndarray:
    """Bins whose pooled contacts are no outliers below the others of their chromosome.

    As cooler does: log marginals more than five median absolute deviations below their median are left out.
    """
    marginal = np.zeros(maps[0].n_bins)
    for each in maps:
        marginal += each.counts.sum(0) + each.counts.sum(1) - each.counts.diagonal()
    good = marginal > 0
    for code in np.unique(maps[0].chrom):
        here = np.flatnonzero((maps[0].chrom == code) & good)
        if len(here):
            log = np.log(marginal[here])
            middle = np.median(log)
            good[here] = log >= middle - 5.0 * np.median(np.abs(log - middle)) - 1e-9
    return good


class _Collected:
    """Counts and expectations of features, chromosome after chromosome."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]] = []

    def add(self, place: dict[str, np.ndarray], *sums: np.ndarray) -> None:
        self.parts.append((place, sums))

    def join(self) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        places = [place for place, _ in self.parts]
        place = {name: np.concatenate([each[name] for each in places]) for name in places[0]}
        return place, [np.concatenate(each) for each in zip(*(sums for _, sums in self.parts), strict=True)]


def compare_maps(
    maps: Sequence[ContactMap],
    group: np.ndarray,
    settings: Settings,
    *,
    features: Sequence[str],
    good: np.ndarray,
    loops: tuple[np.ndarray, np.ndarray] | None = None,
    compartment: np.ndarray | None = None,
    rng: np.random.Generator,
) -> dict[str, Comparison]:
    """Test features between the maps of group 0 and those of group 1.

    Parameters
    ----------
    maps
        Maps of the same bins.
    group
        0 or 1 for each map.
    settings
        How.
    features
        Which of ``FEATURES``.
    good
        Bins that take part.
    loops
        Bins of both anchors, for loops.
    compartment
        Compartment of each bin, positive for A, for compartments.
    rng
        Chooses the squares that the variance of loops is estimated from.
    """
    resolution = maps[0].resolution
    collected: dict[str, _Collected] = {name: _Collected() for name in (*features, "reference")}
    for name in maps[0].chromosomes():
        span = maps[0].span(name)
        pixels = align_pixels([each.cis(name).counts for each in maps], good[span], _LEAST_DISTANCE)
        first = span.start
        if compartment is not None:
            label = np.where(good[span], np.sign(np.nan_to_num(compartment[span])), 0.0)
            reach = settings.compartment_distance // resolution
            steady = _steady_bins(pixels, label, reach, group)
            pixels = share_again(pixels, steady)
            if "compartments" in features:
                _add_compartments(collected["compartments"], pixels, first, label, steady, reach)
        if "loops" in features and loops is not None:
            chosen = (loops[0] >= first) & (loops[1] < span.stop)
            _add_loops(collected, pixels, first, loops[0][chosen], loops[1][chosen], settings, resolution, rng)
        if "boundaries" in features:
            _add_boundaries(collected["boundaries"], pixels, first, good[span], max(settings.window // resolution, 2))
        if "interactions" in features:
            factor = max(settings.interaction_size // resolution, 1)
            row, column, counts, expected = grid_sums(
                pixels, pixels.counts, pixels.expected, factor, settings.max_distance // resolution
            )
            size = np.full(len(row), pixels.n_bins)
            place = {"bin1": row * factor + first, "bin2": column * factor + first, "distance": column - row}
            place["stop1"] = np.minimum((row + 1) * factor, size) + first
            place["stop2"] = np.minimum((column + 1) * factor, size) + first
            collected["interactions"].add(place, counts, expected)
    return {name: _compare(name, collected, group, settings) for name in features if collected[name].parts}


def _add_loops(collected, pixels: Pixels, first: int, row, column, settings, resolution, rng) -> None:
    row, column = row - first, column - first
    reach = settings.loop_reach
    inner, outer = _RING
    ring = [
        square_sums(pixels, values, row, column, outer) - square_sums(pixels, values, row, column, inner)
        for values in (pixels.counts, pixels.expected)
    ]
    collected["loops"].add(
        {"loop": np.arange(len(row)), "bin1": row + first, "bin2": column + first, "distance": column - row},
        square_sums(pixels, pixels.counts, row, column, reach),
        square_sums(pixels, pixels.expected, row, column, reach),
        *ring,
    )
    # Squares like those of loops, anywhere, tell how replicates vary: at loops alone there are too few.
    longest = max(int((column - row).max(initial=0)), settings.max_distance // resolution)
    near = np.flatnonzero((pixels.distance >= 2 * reach + 2) & (pixels.distance <= longest))
    # As many at each distance as far as there are: loops are anywhere up to the longest, pixels mostly near.
    stratum = distance_bins(longest)[pixels.distance[near]]
    weight = 1.0 / np.bincount(stratum)[stratum]
    number = min(_REFERENCE_SQUARES, len(near) // 4)
    chosen = near[rng.choice(len(near), number, replace=False, p=weight / weight.sum())] if number else near[:0]
    place = {"distance": pixels.distance[chosen]}
    collected["reference"].add(
        place,
        square_sums(pixels, pixels.counts, pixels.row[chosen], pixels.column[chosen], reach),
        square_sums(pixels, pixels.expected, pixels.row[chosen], pixels.column[chosen], reach),
    )


def _add_boundaries(collected: _Collected, pixels: Pixels, first: int, good: np.ndarray, window: int) -> None:
    if pixels.n_bins < 2 * window + 1:
        return
    across, beside, expected_across, expected_beside = (
        sums
        for values in (pixels.counts, pixels.expected)
        for sums in boundary_sums(band(pixels, values, 2 * window), window)
    )
    # A window that is mostly gap compares what is left of it: not a boundary.
    filled = np.convolve(good, np.ones(2 * window), "full")[window - 1 :][: len(good)] / (2 * window)
    here = np.flatnonzero(np.isfinite(across[:, 0]) & (filled >= 0.7))
    collected.add({"bin": here + first}, across[here], beside[here], expected_across[here], expected_beside[here])


def _steady_bins(pixels: Pixels, label: np.ndarray, least_distance: int, group: np.ndarray) -> np.ndarray:
    """Bins that do not change compartment, by far: partners that do would change the contacts of those that do not."""
    steady = label != 0
    for _ in range(_STEADY_ROUNDS):
        ratio = log_ratios(*_compartment_parts(pixels, np.where(steady, label, 0.0), least_distance))
        change = ratio.values[:, group == 1].mean(1) - ratio.values[:, group == 0].mean(1)
        for sign in (1.0, -1.0):
            mine = label == sign
            if mine.any():
                away = np.abs(change[mine] - np.median(change[mine]))
                # The first quartile, because a third of the bins may change.
                steady[mine] = away <= _STEADY * np.quantile(away, 0.25) / stats.norm.ppf(0.625)
    return steady


def _compartment_parts(pixels: Pixels, label: np.ndarray, least_distance: int) -> list[np.ndarray]:
    parts = [compartment_sums(pixels, values, label, least_distance) for values in (pixels.counts, pixels.expected)]
    return [parts[0][0], parts[0][1], parts[1][0], parts[1][1]]


def _add_compartments(
    collected: _Collected, pixels: Pixels, first: int, label: np.ndarray, steady: np.ndarray, least_distance: int
) -> None:
    parts = _compartment_parts(pixels, np.where(steady, label, 0.0), least_distance)
    here = np.flatnonzero(label)
    collected.add({"bin": here + first}, *(each[here] for each in parts))


def compare_decay(maps: Sequence[ContactMap], group: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
    """Share of each map's contacts that lies at a distance, in strata of distance, and its change between groups.

    A map has one decay, so that strata do not vary on their own: each is tested by its replicates alone, Student's t of
    log shares. Groups of one replicate give no p-value.
    """
    size = int(np.bincount(maps[0].chrom).max())
    edges = np.unique(
        np.geomspace(_LEAST_DISTANCE, size, max(int(np.log(size) / np.log(_DECAY_RATIO)), 2)).astype(np.int64)
    )
    number = len(edges) - 1
    counts = np.zeros((number, len(maps)))
    for column, each in enumerate(maps):
        pixels = each.counts.tocoo()
        cis = (each.chrom[pixels.row] == each.chrom[pixels.col]) & good[pixels.row] & good[pixels.col]
        stratum = np.searchsorted(edges, (pixels.col - pixels.row)[cis], side="right") - 1
        inside = (stratum >= 0) & (stratum < number)
        counts[:, column] = np.bincount(stratum[inside], pixels.data[cis][inside], number)
    share = (counts + 0.5) / (counts + 0.5).sum(0)
    log_share = np.log(share)
    effect = log_share[:, group == 1].mean(1) - log_share[:, group == 0].mean(1)
    pvalue = np.full(number, np.nan)
    if min(np.bincount(group, minlength=2)) >= 2:
        pvalue = stats.ttest_ind(log_share[:, group == 1], log_share[:, group == 0], axis=1).pvalue
    return {"start": edges[:-1], "stop": edges[1:], "share": share, "effect": effect, "pvalue": pvalue}


def log_ratios(
    across: np.ndarray, beside: np.ndarray, expected_across: np.ndarray, expected_beside: np.ndarray
) -> LogRatios:
    """Log of (across / expected) / (beside / expected), with its variance of counting."""
    fitted = [np.maximum(values, 0.5) for values in (expected_across, expected_beside)]
    values = np.log((across + 0.5) / (fitted[0] + 0.5)) - np.log((beside + 0.5) / (fitted[1] + 0.5))
    return LogRatios(values, 1.0 / fitted[0] + 1.0 / fitted[1])


def _compare(name: str, collected: dict[str, Any], group: np.ndarray, settings: Settings) -> Comparison:
    place, sums = collected[name].join()
    if name in ("boundaries", "compartments"):
        tested = np.minimum(sums[2], sums[3]).mean(1) >= settings.least_count
        observations: Observations = log_ratios(*(each[tested] for each in sums))
        reference, covariate, of_reference = observations, np.zeros(int(tested.sum())), np.zeros(int(tested.sum()))
        counts, expected = sums[0], sums[2]
    else:
        tested = (sums[0].mean(1) >= settings.least_count) & (sums[1] > 0).all(1)
        observations = Counts(sums[0][tested], sums[1][tested])
        reference, covariate = observations, place["distance"][tested].astype(float)
        of_reference = covariate
        if name == "loops":
            where, squares = collected["reference"].join()
            enough = (squares[0].mean(1) >= settings.least_count) & (squares[1] > 0).all(1)
            reference = Counts(squares[0][enough], squares[1][enough])
            of_reference = where["distance"][enough].astype(float)
            place["ring_effect"] = _log_group_ratio(sums[2], sums[3], group)
        counts, expected = sums[0], sums[1]
    if settings.dispersion is None:
        variance = fit_variance(reference, group, of_reference)
    else:
        variance = given_variance(settings.dispersion, len(group))
    inflation, null_share = _calibrate(reference, group, of_reference, variance)
    if name == "loops" and settings.dispersion is None:
        # Loops vary more between libraries than other squares do, with the share of noise in each.
        excess = excess_variance(observations, group, covariate, variance)
        if excess > 1.0 and not variance.residual_df:
            # Squares do not tell how much loops differ among themselves in it, and there are no replicates that do.
            variance = variance._replace(prior_df=min(variance.prior_df, UNKNOWN_PRIOR_DF))
        inflation = max(inflation, excess)
    test = compare_groups(observations, group, covariate, variance, inflation)
    qvalue = stats.false_discovery_control(test.pvalue) if len(test.pvalue) else test.pvalue
    return Comparison(place, counts, expected, tested, test, qvalue, variance, inflation, null_share)


def _log_group_ratio(counts: np.ndarray, expected: np.ndarray, group: np.ndarray) -> np.ndarray:
    ratio = [
        np.log((counts[:, group == code].sum(1) + 0.5) / (expected[:, group == code].sum(1) + 0.5)) for code in (0, 1)
    ]
    return ratio[1] - ratio[0]


def _calibrate(
    reference: Observations, group: np.ndarray, covariate: np.ndarray, variance: Variance
) -> tuple[float, float]:
    """Factor on the variance, and share of p below .05, in a comparison of replicates with replicates.

    Groups of one replicate have no such comparison: the factor is 1 and the share that of the comparison itself.
    """
    if not len(covariate):
        return 1.0, float("nan")
    swapped = swapped_groups(group)
    if swapped is None:
        test = compare_groups(reference, group, covariate, variance, 1.0)
        return 1.0, float((test.pvalue < 0.05).mean())
    test = compare_groups(reference, swapped, covariate, variance, 1.0)
    # The p-value that a twentieth of comparisons falls below should be .05.
    df = np.inf if np.isinf(variance.prior_df) else variance.prior_df + variance.residual_df
    wanted = stats.norm.isf(0.025) if np.isinf(df) else stats.t.isf(0.025, df)
    found = float(np.quantile(np.abs(test.statistic), 0.95))
    inflation = max((found / wanted) ** 2, 1.0)
    share = float((compare_groups(reference, swapped, covariate, variance, inflation).pvalue < 0.05).mean())
    return inflation, share


def ratio_of_region(
    maps: Sequence[ContactMap], group: np.ndarray, good: np.ndarray, bins: slice, factor: int, pseudocount: float
) -> np.ndarray:
    """Log of the second group's contacts over the first's, as compared, for blocks of pairs of bins of one chromosome.

    NaN for blocks without a bin that takes part; 0 where no map has a contact.
    """
    first = maps[0]
    name = first.chrom_names[first.chrom[bins.start]]
    span = first.span(name)
    pixels = align_pixels([each.cis(name).counts for each in maps], good[span], _LEAST_DISTANCE)
    low, high = bins.start - span.start, bins.stop - span.start
    inside = (pixels.row >= low) & (pixels.column < high)
    size = -(-(high - low) // factor)
    block = (pixels.row[inside] - low) // factor * size + (pixels.column[inside] - low) // factor
    log_ratio = []
    for code in (0, 1):
        sums = [
            np.bincount(block, values[inside][:, group == code].sum(1), size**2).reshape(size, size)
            for values in (pixels.counts, pixels.expected)
        ]
        log_ratio.append(np.log(sums[0] + pseudocount) - np.log(sums[1] + pseudocount))
    result = log_ratio[1] - log_ratio[0]
    result = np.triu(result) + np.triu(result, 1).T
    padded = np.zeros(size * factor, bool)
    padded[: high - low] = good[bins]
    left_out = ~padded.reshape(size, factor).any(1)
    result[left_out] = result[:, left_out] = np.nan
    return result
