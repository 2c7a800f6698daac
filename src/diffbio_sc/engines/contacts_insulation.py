"""Insulation of every region of a map: scores of windows, boundaries, and the domains between them."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy.special import expit, logsumexp

from diffbio_sc.engines.contacts_expected import RegionDecay
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.insulation import (
    PSEUDOCOUNT,
    contrast,
    cooltools_insulation,
    li_threshold,
    local_maxima,
    prominence,
    window_sums,
)
from diffbio_sc.numerics.genome.pixels import cis_rows

TEMPERATURE = 0.1
"""Width of the soft calls, in units of the score: standard deviations of the contrast over the genome."""
LEAST_Z = 3.0
"""A boundary's contrast in its own counting errors; a call on noise alone is none."""
NULL_QUANTILE = 0.95
LEAST_VALID = 0.66
_FEWEST_PEAKS = 8


@dataclasses.dataclass(frozen=True)
class MapInsulation:
    """Insulation of all bins, at the start of each.

    Attributes
    ----------
    insulation
        (bins, windows): log enrichment of the diamond over its expectation, low where contacts stop.
    score
        Boundary score, high where contacts stop.
    probability
        Soft call.
    boundary
        Hard call.
    threshold
        Score from which a local maximum is a boundary.
    domains
        First and last (exclusive) bin of each domain and the score of its two boundaries, NaN at the end of a region;
        (domains, 4).
    """

    insulation: np.ndarray
    score: np.ndarray
    probability: np.ndarray
    boundary: np.ndarray
    threshold: float
    domains: np.ndarray


def insulation_map(
    contacts: ContactMap,
    weights: np.ndarray,
    decays: list[RegionDecay],
    *,
    windows: list[int],
    nearest: int = 2,
    distance: int = 5,
    threshold: float | None = None,
    call: bool = True,
    method: Literal["contrast", "cooltools"] = "contrast",
) -> MapInsulation:
    """Score and call boundaries; the arguments are those of :func:`diffbio_sc.tl.insulation`, lengths in bins."""
    n = contacts.n_bins
    scores = np.full((n, len(windows)), np.nan)
    parts = np.full((n, len(windows)), np.nan)
    z = np.full(n, np.nan)
    for region in decays:
        span = slice(region.first, region.last)
        rows = cis_rows(contacts.counts, region.first, region.last, nearest)
        for k, window in enumerate(windows):
            if window >= region.last - region.first:
                continue
            if method == "cooltools":
                scores[span, k], pixels = cooltools_insulation(rows, weights[span], window, nearest)
                enough = pixels >= LEAST_VALID * pixels.max(initial=0)
                peaks, size = prominence(np.where(enough, -scores[span, k], np.nan))
                parts[region.first + peaks, k] = size
            else:
                sums = window_sums(rows, region.value, weights[span], window, nearest)
                scores[span, k], parts[span, k] = contrast(sums)
                if window == max(windows):
                    error = np.sqrt(1.0 / (sums.diamond + PSEUDOCOUNT) + 1.0 / (sums.sides + PSEUDOCOUNT))
                    z[span] = parts[span, k] / error
    if method == "cooltools":
        score = parts[:, -1]
        peaks = np.flatnonzero(np.isfinite(score))
        least = li_threshold(score) if threshold is None else threshold
        called = peaks[score[peaks] > least] if call and np.isfinite(least) else peaks[:0]
        probability = np.where(np.isfinite(score), _sigmoid((score - least) / TEMPERATURE), 0.0)
    else:
        score = _combine(parts)
        peaks = np.concatenate(
            [region.first + local_maxima(score[region.first : region.last], distance) for region in decays]
            or [np.zeros(0, np.int64)]
        )
        least = _threshold(score, peaks, decays, distance) if threshold is None else threshold
        called = peaks[(score[peaks] > least) & (z[peaks] > LEAST_Z)] if call and np.isfinite(least) else peaks[:0]
        probability = _soft(score, least, distance, decays)
    boundary = np.zeros(n, bool)
    boundary[called] = True
    return MapInsulation(scores, score, probability, boundary, float(least), _domains(boundary, score, weights, decays))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return expit(np.where(np.isfinite(values), values, -np.inf))


def _combine(parts: np.ndarray) -> np.ndarray:
    """Mean over windows, each over its own standard deviation; a position needs all windows that any position has."""
    with np.errstate(invalid="ignore"):
        present = np.isfinite(parts).any(0)
        if not present.any():
            return np.full(len(parts), np.nan)
        parts = parts[:, present]
        spread = np.nanstd(parts, axis=0)
        return (parts / np.where(spread > 0, spread, 1.0)).mean(1)


def _threshold(score: np.ndarray, peaks: np.ndarray, decays: list[RegionDecay], distance: int) -> float:
    """Li's threshold between low and high maxima, but no lower than what minima, mirrored at the median, reach."""
    if len(peaks) < _FEWEST_PEAKS:
        return np.nan
    middle = np.nanmedian(score)
    depths = np.concatenate(
        [
            2.0 * middle - part[local_maxima(-part, distance)]
            for part in (score[region.first : region.last] for region in decays)
        ]
    )
    return float(max(li_threshold(score[peaks]), np.quantile(depths, NULL_QUANTILE)))


def _soft(score: np.ndarray, threshold: float, distance: int, decays: list[RegionDecay]) -> np.ndarray:
    """Product of soft comparisons with the threshold and with the neighbours."""
    result = np.zeros(len(score))
    for region in decays:
        own = score[region.first : region.last]
        filled = np.where(np.isfinite(own), own, -np.inf)
        size = len(own)
        padded = np.pad(filled, distance, constant_values=-np.inf)
        around = np.stack(
            [padded[distance + shift : distance + shift + size] for shift in range(-distance, distance + 1) if shift]
        )
        with np.errstate(invalid="ignore"):
            rival = TEMPERATURE * logsumexp(around / TEMPERATURE, axis=0)
        above = _sigmoid((own - threshold) / TEMPERATURE)
        result[region.first : region.last] = above * np.where(
            np.isneginf(rival), 1.0, _sigmoid((own - np.where(np.isneginf(rival), 0.0, rival)) / TEMPERATURE)
        )
    return result


def _domains(boundary: np.ndarray, score: np.ndarray, weights: np.ndarray, decays: list[RegionDecay]) -> np.ndarray:
    """Domains between consecutive boundaries of a region, those of which less than half is usable left out."""
    rows = []
    for region in decays:
        inner = region.first + np.flatnonzero(boundary[region.first : region.last])
        if not len(inner):
            continue
        edges = np.unique([region.first, *inner, region.last])
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if np.isfinite(weights[first:last]).mean() >= 0.5:
                left = score[first] if boundary[first] else np.nan
                right = score[last] if last < region.last and boundary[last] else np.nan
                rows.append((first, last, left, right))
    return np.array(rows, np.float64).reshape(-1, 4)
