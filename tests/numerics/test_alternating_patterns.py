"""The lower tail of the score test: spots that differ from their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest


def run(places, counts, depth, **options):
    test = SpatialScoreTest(places, depth, **options)
    moments = test.moments(sp.csc_array(counts))
    return test.test(sp.csc_array(counts), moments.mean, test.classes(moments))


@pytest.fixture(scope="module", params=[20, 26])
def found(request):
    """Twenty genes on a checkerboard and 800 without pattern; exact kernels and the grid."""
    side = request.param
    rng = np.random.default_rng(1)
    across, down = np.arange(side**2) % side, np.arange(side**2) // side
    effect = np.ones((side**2, 820))
    effect[:, :20] = (0.5 + (across + down) % 2)[:, None]
    depth = rng.lognormal(0, 0.4, side**2)
    mean = depth[:, None] * 3.0 * effect
    counts = rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(float)
    places = np.stack([across, down], 1).astype(float)
    return places, counts, depth, run(places, counts, depth)


def test_a_checkerboard_is_found_by_the_lower_tail_alone(found):
    result = found[3]
    assert (result.alternating_log_p[:, :20] < np.log(1e-3)).mean() > 0.9
    assert (result.scale_log_p[0, 0, :20] > np.log(0.9)).all()
    assert np.median(result.log_p[:20]) < np.log(1e-4)


def test_both_tails_have_their_share_of_the_level(found):
    result = found[3]
    for kind in (0, 1):
        level = np.exp(result.alternating_log_p[kind, 20:])
        assert 0.01 < (level < 0.05).mean() < 0.075  # binomial standard error .008
        assert (level < 0.001).sum() <= 5  # of 800: Poisson of mean .8
    # The level of both together is that of the upper tail, but for the share (a hundredth) given to the lower one.
    called = np.exp(result.log_p[20:]) < 0.05
    by_lower = called & (np.exp(result.alternating_log_p[:, 20:]) < 0.05 * 0.01 * 2).any(0)
    assert by_lower.mean() < 0.005
    assert 0.03 < called.mean() < 0.07


def test_wide_kernels_have_no_lower_tail(found):
    places, counts, depth, _ = found
    result = run(places, counts[:, :40], depth, lengthscales=np.array([3.0]))
    assert np.isnan(result.alternating_log_p).all()
