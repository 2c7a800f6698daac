"""Mixtures of held-out reference cells: what they are made of, and that they widen intervals to the level asked for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.blocks.matrix import InMemory
from diffbio_sc.engines import deconvolution as engine
from diffbio_sc.engines import held_out_mixtures as mixtures
from diffbio_sc.numerics.counts.cell_variation import variation_beyond_counting


def test_mixtures_are_sums_of_as_many_cells_of_the_types_drawn():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [30, 1, 20])
    size = np.array([4, 7, 10])[codes]
    cells = mixtures.Cells(np.eye(3)[codes] * size[:, None], codes)  # a type counts in a gene of its own
    composition = np.tile([0.5, 0.0, 0.5], (4000, 1))
    number = np.where(np.arange(4000) % 2 == 0, 2, 6)
    made = mixtures.mix(cells, composition, number, np.full(4000, 1e9), rng, fraction_of="cells")
    of_cells = made.counts / [4, 7, 10]
    np.testing.assert_array_equal(of_cells.sum(1), number)
    np.testing.assert_allclose(made.truth, of_cells / number[:, None])
    share = made.truth[number == 6, 0]
    assert abs(share.mean() - 0.5) < 0.02
    assert abs(share.var() - 0.25 / 6) < 0.004  # binomial
    rna = mixtures.mix(cells, composition, number, np.full(4000, 1e9), rng, fraction_of="rna")
    np.testing.assert_allclose(rna.truth, rna.counts / rna.counts.sum(1, keepdims=True), rtol=1e-6)
    thinned = mixtures.mix(cells, composition, number, np.full(4000, 5.0), rng, fraction_of="cells")
    assert abs(thinned.counts.sum(1).mean() - 5) < 0.1


def test_variation_beyond_counting_falls_with_the_number_summed():
    rng = np.random.default_rng(1)
    mean = rng.uniform(1, 8, 50)
    for number in (1, 4, 16):
        cells = rng.poisson(mean * rng.gamma(2.0, 0.5, (2000, number, 50))).sum(1)
        found = variation_beyond_counting(cells, np.broadcast_to(number * mean, cells.shape), 1.0)
        np.testing.assert_allclose(found, 0.5 / number, rtol=0.04)


def _tissue(seed: int, kinds: int = 6, genes: int = 120, deep: float = 1.0):
    """Cells whose types overlap, each partly like another type, and spots that are sums of five others."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.5, 1.0, (kinds, genes)) + 0.05
    profiles /= profiles.sum(1, keepdims=True)

    def cell(code, factor):
        like = rng.beta(1, 5, len(code))[:, None]
        mean = (1 - like) * profiles[code] + like * profiles[rng.integers(kinds, size=len(code))]
        return rng.poisson(mean * factor * rng.lognormal(np.log(400), 0.4, (len(code), 1))).astype(np.float32)

    codes = np.repeat(np.arange(kinds), 40)
    spot_codes = np.where(
        rng.random((300, 5)) < 0.6, rng.integers(kinds, size=(300, 1)), rng.integers(kinds, size=(300, 5))
    )
    spots = sum(cell(spot_codes[:, i], deep) for i in range(5))
    truth = np.stack([(spot_codes == kind).mean(1) for kind in range(kinds)], 1)
    return mixtures.Cells(cell(codes, 1.0), codes), spots, truth


@pytest.mark.parametrize("deep", [1.0, 6.0])
def test_intervals_hold_what_cells_that_differ_do_to_spots(deep):
    """Asked: nine tenths of present types. The spots' own cells are others, on a platform that may be deeper."""
    covered, without = [], []
    for seed in (0, 1):
        cells, counts, truth = _tissue(seed, deep=deep)
        types, genes = truth.shape[1], counts.shape[1]
        sums = np.stack([cells.counts[cells.codes == kind].sum(0) for kind in range(types)]).astype(np.float64)
        profiles = (sums / np.bincount(cells.codes)[:, None]).astype(np.float32)
        spots = engine.Spots(InMemory(sp.csr_matrix(counts)), np.arange(genes), np.zeros(300, int))
        sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
        fit = engine.fit_signatures(spots, sample, profiles, dispersion_index=np.full(genes, 1.5))
        regressed = engine.regress_spots(spots, sample, fit)
        found = engine.posterior_composition(regressed.solution, profiles, sample, kept=fit.kept)
        low, high = mixtures.cells_in_a_spot(spots, sample, fit, regressed.solution.weights, cells)
        assert low <= 5.5
        assert high >= 4.5
        if deep > 1:
            assert high > 20  # by depth alone
        calibration = mixtures.calibrate(
            spots,
            sample,
            fit,
            regressed.solution.weights,
            found,
            cells,
            sums,
            np.random.default_rng(1),
            fraction_of="cells",
            dispersion_index=np.full(genes, 1.5),
            sampling_index=np.full(genes, 1.5),
            size_variation=None,
            platform_effect=True,
        )
        miss = np.abs(found.proportions - truth)[truth > 0]
        without.append((miss <= 1.645 * found.deviation[truth > 0]).mean())
        covered.append((miss <= 1.645 * calibration.widen(found.deviation)[truth > 0]).mean())
    assert np.mean(without) < 0.75
    assert 0.84 < np.mean(covered) < 0.96


def test_few_cells_of_each_type_are_chosen_at_random():
    codes = np.repeat([0, 1, -1, 2], [400, 3, 50, 151])
    chosen = mixtures.choose_cells(codes, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(codes[chosen]), [150, 3, 150])
    assert (np.diff(chosen) > 0).all()
    assert chosen[:150].max() > 300
