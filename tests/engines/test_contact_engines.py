"""Whole-map runs of contacts: what decides signs, calls, pooled decays and false discovery rates, recomputed here."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, norm, spearmanr

from diffbio_sc.engines.contacts_balance import balance_map
from diffbio_sc.engines.contacts_compartments import phase
from diffbio_sc.engines.contacts_expected import expected_map
from diffbio_sc.engines.contacts_insulation import insulation_map
from diffbio_sc.engines.contacts_loops import _HISTOGRAM, _false_discovery, local_peaks
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome.compartments import EigenPairs
from diffbio_sc.numerics.genome.decay import decay_knots
from diffbio_sc.numerics.genome.insulation import li_threshold

N = 160


def contact_map(upper: np.ndarray, sizes: list[int]) -> ContactMap:
    chrom = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    start = np.concatenate([np.arange(size) * 10_000 for size in sizes])
    names = tuple(f"chr{k + 1}" for k in range(len(sizes)))
    return ContactMap(sp.csr_array(upper.astype(np.int32)), chrom, names, start, start + 10_000)


def pairs_of(vectors: np.ndarray, values: list[float]) -> EigenPairs:
    return EigenPairs(np.array(values), vectors, np.zeros_like(vectors))


def test_trans_weights_balance_what_lies_between_chromosomes():
    rng = np.random.default_rng(6)
    sizes = [60, 40, 20]
    chrom = np.repeat([0, 1, 2], sizes)
    bias = rng.lognormal(0.0, 0.2, 120)
    upper = np.triu(rng.poisson(4.0 * np.outer(bias, bias)))
    weights = balance_map(contact_map(upper, sizes), contact="trans").weights
    between = np.where(chrom[:, None] != chrom, upper + np.triu(upper, 1).T, 0)
    # As cooler: a bin's weight is smaller by the share of the genome on its own chromosome.
    even = weights / (1.0 - np.repeat(sizes, sizes) / 120.0)
    assert np.isfinite(even).all()
    np.testing.assert_allclose(even * (between @ even), 1.0, atol=1e-5)


def test_vector_with_most_correlation_times_eigenvalue_is_chosen_and_turned():
    rng = np.random.default_rng(0)
    track = rng.normal(size=300)
    weak, strong = 0.3 * track + rng.normal(size=300), -(track + 0.3 * rng.normal(size=300))
    vectors = np.stack([weak, strong])
    merit = np.abs([spearmanr(weak, track)[0], spearmanr(strong, track)[0]])
    oriented, how = phase("chr1", pairs_of(vectors, [1.0, 0.8]), track)
    assert how.chosen == 1
    np.testing.assert_allclose(oriented, [-strong, weak])
    np.testing.assert_allclose(how.values, [0.8, 1.0])
    np.testing.assert_allclose(how.margin, 0.8 * merit[1] - merit[0])
    np.testing.assert_allclose(how.correlation, merit[1])
    # A vector that explains next to nothing is not chosen for its correlation alone.
    assert phase("chr1", pairs_of(vectors, [1.0, 0.1]), track)[1].chosen == 0
    kept, how = phase("chr1", pairs_of(vectors, [1.0, 0.8]), track, choose=False)
    assert how.chosen == 0
    np.testing.assert_allclose(kept, [weak, -strong])


def test_sign_is_confident_beyond_three_standard_errors():
    rng = np.random.default_rng(1)
    smooth = np.convolve(rng.normal(size=420), np.ones(4), "valid")[:400]
    t, confident = [], []
    for share in np.linspace(0.0, 0.6, 120):
        vector = share * smooth + np.convolve(rng.normal(size=420), np.ones(4), "valid")[:400]
        lag = 1.0
        for values in (vector, smooth):
            ranks = np.argsort(np.argsort(values)) - 199.5
            lag *= (ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum()
        size = 400 * (1 - lag) / (1 + lag)
        t.append(abs(spearmanr(vector, smooth)[0]) * np.sqrt(size - 1))
        confident.append(phase("chr1", pairs_of(vector[None], [1.0]), smooth)[1].confident)
    t, confident = np.array(t), np.array(confident)
    np.testing.assert_array_equal(confident, t > 3.0)
    assert ((t > 2.5) & (t < 3.0)).any()
    assert ((t > 3.0) & (t < 3.5)).any()


@pytest.mark.parametrize(("more", "pooled"), [(-1, True), (0, False)])
def test_a_region_of_less_than_twenty_contacts_a_knot_takes_the_common_shape(more, pooled):
    rng = np.random.default_rng(2)
    sizes = [120, 40]
    distance = np.abs(np.subtract.outer(np.arange(160), np.arange(160)))
    upper = np.triu(rng.poisson(30.0 / (1.0 + distance)))
    upper[:120, 120:] = upper[120:, 120:] = 0
    wanted = 20 * len(decay_knots(2, 39)) + more
    pixels = [(i, j) for i in range(120, 158) for j in range(i + 2, 160)]
    for k in range(wanted):
        upper[pixels[k % len(pixels)]] += 1
    decays = expected_map(contact_map(upper, sizes), np.ones(160))
    assert [decay.pooled for decay in decays] == [False, pooled]


@pytest.mark.parametrize("planted", [False, True])
def test_boundaries_are_maxima_beyond_threshold_minima_and_noise(planted):
    """All of it anew from dense sums: windows, contrast, standardised mean, maxima, threshold, counting errors."""
    rng = np.random.default_rng(5)
    at = np.arange(N)
    distance = np.abs(np.subtract.outer(at, at))
    domain = (at // 20)[:, None] == (at // 20)[None]
    mean = 8.0 / (1.0 + distance) * (np.where(domain, 1.5, 0.8) if planted else 1.0)
    whole = contact_map(np.triu(rng.poisson(mean)), [N])
    weights = np.ones(N)
    decays = expected_map(whole, weights)
    found = insulation_map(whole, weights, decays, windows=[6, 12])
    counts = whole.counts.toarray().astype(float)
    counts[distance < 2] = 0
    expected = np.triu(np.nan_to_num(decays[0].value)[distance])
    parts, z = [], None
    for window in (6, 12):
        sums = np.zeros((N, 4))
        for i in range(N):
            before, after = slice(max(i - window, 0), i), slice(i, i + window)
            for k, values in enumerate((counts, expected)):
                sums[i, 2 * k] = values[before, after].sum()
                sums[i, 2 * k + 1] = values[before, before].sum() + values[after, after].sum()
        part = np.log((sums[:, 1] + 2) / (sums[:, 3] + 2)) - np.log((sums[:, 0] + 2) / (sums[:, 2] + 2))
        for k in (2, 3):
            part[sums[:, k] < 0.3 * np.median(sums[sums[:, k] > 0, k])] = np.nan
        parts.append(part)
        z = part / np.sqrt(1 / (sums[:, 0] + 2) + 1 / (sums[:, 1] + 2))
    score = np.mean([part / np.nanstd(part) for part in parts], axis=0)
    np.testing.assert_allclose(found.score, score, atol=1e-9)

    def extrema(values):
        filled = np.where(np.isfinite(values), values, -np.inf)
        around = [filled[max(i - 5, 0) : i + 6].max() for i in range(N)]
        return np.flatnonzero(np.isfinite(values) & (filled == around))

    peaks = extrema(score)
    reach = np.quantile(2 * np.nanmedian(score) - score[extrema(-score)], 0.95)
    threshold = max(li_threshold(score[peaks]), reach)
    assert found.threshold == pytest.approx(threshold)
    assert np.flatnonzero(found.boundary).tolist() == [i for i in peaks if score[i] > threshold and z[i] > 3.0]
    assert len(np.flatnonzero(found.boundary)) == (5 if planted else 0)
    # With the threshold out of the way counting noise decides.
    free = insulation_map(whole, weights, decays, windows=[6, 12], threshold=-10.0)
    assert np.flatnonzero(free.boundary).tolist() == [i for i in peaks if z[i] > 3.0]
    assert ((z[peaks] > 2.5) & (z[peaks] < 3.0)).any()


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg_within_strata():
    rng = np.random.default_rng(4)
    z = np.concatenate([rng.normal(size=20_000), rng.normal(3.5, 1.0, 150)])
    z = _HISTOGRAM[np.searchsorted(_HISTOGRAM, z)]  # on the grid the count of pairs above is exact
    stratum = rng.integers(0, 2, len(z))
    histogram = np.stack(
        [np.bincount(np.rint((z[stratum == k] + 10.0) * 100).astype(int), minlength=len(_HISTOGRAM)) for k in (0, 1)]
    )
    chosen = np.flatnonzero(z > 1.0)
    q = _false_discovery(z[chosen], norm.sf(z[chosen]), stratum[chosen], histogram)
    wanted = np.empty(len(z))
    for k in (0, 1):
        wanted[stratum == k] = false_discovery_control(norm.sf(z[stratum == k]))
    np.testing.assert_allclose(q, wanted[chosen], rtol=0.05)
    assert (q < 0.05).sum() > 30


def test_peaks_of_scores_are_those_of_comparing_each_pair_with_its_neighbours():
    """Scores of few values, so that many are equal; some pairs are not scored; both borders of distance are met."""
    rng, margin, size = np.random.default_rng(0), 2, 40
    z = rng.integers(0, 5, (size + 2 * margin, 12)).astype(np.float32)
    z[rng.random(z.shape) < 0.1] = np.nan
    expected = rng.uniform(1.0, 2.0, z.shape)
    observed = rng.uniform(1.0, 6.0, z.shape)
    expected[rng.random(z.shape) < 0.1] = np.nan
    found = []
    for i in range(margin, margin + size):
        for k in range(z.shape[1]):
            if not z[i, k] >= 2 or observed[i, k] < 1.2 * expected[i, k]:
                continue
            # Pairs by their bins, not by their distance: (i, i + k).
            rivals = [
                (a, b - a)
                for a in range(i - margin, i + margin + 1)
                for b in range(i + k - margin, i + k + margin + 1)
                if 0 <= b - a < z.shape[1] and (a, b - a) != (i, k)
            ]
            if not any(z[at] > z[i, k] or (z[at] == z[i, k] and at < (i, k)) for at in rivals):
                found.append((i, k))
    assert len(found) > 5
    np.testing.assert_array_equal(np.transpose(local_peaks(z, observed, expected, margin, size, 2, 1.2)), found)
