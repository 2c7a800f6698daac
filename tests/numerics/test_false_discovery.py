from __future__ import annotations

import numpy as np
from scipy import stats

from diffbio_sc.numerics.genome.false_discovery import PValueHistogram


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    log10_p = np.concatenate([rng.exponential(1 / np.log(10), 20_000), rng.uniform(3, 30, 300)])
    histogram = PValueHistogram()
    histogram.add_values(log10_p)
    expected = -np.log10(stats.false_discovery_control(10.0**-log10_p))
    np.testing.assert_allclose(histogram(log10_p), expected, atol=0.01)
    # Lengths of runs count as that many tests.
    runs = PValueHistogram()
    ends = np.cumsum(np.full(len(log10_p), 3)).astype(np.int32)
    runs.add_runs(ends, log10_p.astype(np.float32))
    np.testing.assert_allclose(runs(log10_p), expected, atol=0.01)
    # Tests known to be far from significant need not be counted one by one.
    few = PValueHistogram()
    few.add_values(log10_p[log10_p > 1])
    strong = expected > 1
    np.testing.assert_allclose(few(log10_p, len(log10_p))[strong], expected[strong], atol=0.01)
    assert (PValueHistogram()(np.array([5.0])) >= 0).all()
