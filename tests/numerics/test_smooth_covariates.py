from __future__ import annotations

import numpy as np
import pytest

from diffbio_sc.numerics.spatial.smooth_covariates import smooth_covariates


def make(spots, slides, rng):
    """Two smooth covariates of unit variance read with an error each, and one of errors alone."""
    places = rng.uniform(0, np.sqrt(spots), (spots, 2))
    codes = np.arange(spots) % slides
    waves = np.stack([np.sin(places[:, 0] / 4 + codes), np.cos(places[:, 1] / 5 + 2 * codes)], 1) * np.sqrt(2)
    truth = np.column_stack([waves, np.zeros(spots)])
    return truth + rng.normal(0, [0.5, 1.0, 1.0], truth.shape), truth, places, codes


@pytest.mark.parametrize(("spots", "slides"), [(400, 1), (400, 2), (3000, 1), (3000, 3)])
def test_the_smooth_part_is_near_the_truth(spots, slides):
    values, truth, places, codes = make(spots, slides, np.random.default_rng(0))
    found = smooth_covariates(values, places, codes)
    error, before = ((found - truth) ** 2).mean(0), ((values - truth) ** 2).mean(0)
    assert (error < [0.25 * before[0], 0.15 * before[1], 0.05 * before[2]]).all()


def test_slides_do_not_inform_each_other_and_rows_left_out_stay():
    values, _, places, codes = make(400, 2, np.random.default_rng(1))
    values[5, 1] = np.nan
    used = np.ones(400, bool)
    used[7] = False
    codes[9] = 2  # a slide of one spot
    found = smooth_covariates(values, places, codes, used)
    np.testing.assert_array_equal(found[[5, 7, 9]], values[[5, 7, 9]])
    other = values.copy()
    other[7], other[9] = 1e3, -1e3
    np.testing.assert_array_equal(smooth_covariates(other, places, codes, used)[codes < 2][10:], found[codes < 2][10:])
    assert not np.allclose(found[codes == 0], values[codes == 0])
    assert np.isnan(smooth_covariates(np.full((400, 1), np.nan), places, codes)).all()
