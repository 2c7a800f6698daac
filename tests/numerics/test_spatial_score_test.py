from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.spatial import layout, score_test
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest, nuisance_columns


def draw(rng, depth, genes, *, rate=None, dispersion=0.3, effect=None):
    """Negative binomial counts (spots, genes) at constant proportion, times an effect."""
    rate = rng.gamma(1.0, 2.0, genes) + 0.05 if rate is None else rate
    mean = np.outer(depth / depth.mean(), rate)
    if effect is not None:
        mean = mean * effect
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape)).astype(float)


def run(places, counts, depth, **options):
    test = SpatialScoreTest(places, depth, **options)
    matrix = sp.csc_array(counts)
    moments = test.moments(matrix)
    return test, test.test(matrix, moments.mean, test.classes(moments))


@pytest.fixture(scope="module")
def tissue():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 18, (320, 2)), rng.lognormal(0, 0.5, 320) * 1000


def test_moments_are_those_of_the_counts(tissue):
    places, depth = tissue
    counts = draw(np.random.default_rng(1), depth, 3000, rate=np.full(3000, 4.0), dispersion=0.5)
    test = SpatialScoreTest(places, depth)
    moments = test.moments(sp.csc_array(counts))
    s = depth / depth.mean()
    np.testing.assert_allclose(moments.mean, counts.sum(0) / s.sum())
    assert moments.mean.mean() == pytest.approx(4.0, rel=0.01)
    assert moments.dispersion.mean() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(moments.spots, (counts > 0).sum(0))


def test_preparing_adds_no_bytes_a_spot_and_a_copy_computes_no_law_again(monkeypatch):
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(60.0)] * 2), -1).reshape(-1, 2)
    depth = rng.lognormal(0, 0.3, len(places)) * 100
    counts = sp.csc_array(draw(rng, depth, 12, rate=np.geomspace(0.05, 20, 12)))
    test = SpatialScoreTest(places, depth)
    moments = test.moments(counts)
    classes = test.classes(moments)
    assert len(np.unique(classes)) > 3
    before = len(pickle.dumps(test))
    test.know({code: test.law(code) for code in np.unique(classes[classes >= 0]).tolist()})
    stored = pickle.dumps(test)
    assert len(stored) - before < 40_000  # eight bytes a spot and class would be 115,000
    expected = test.test(counts, moments.mean, classes)
    monkeypatch.setattr(SpatialScoreTest, "_cumulants", None)
    found = pickle.loads(stored).test(counts, moments.mean, classes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("slides", [1, 2])
def test_nothing_depends_on_how_many_spots_and_genes_are_worked_on_at_once(monkeypatch, slides):
    rng = np.random.default_rng(3)
    places = np.stack(np.meshgrid(*[np.arange(30.0)] * 2), -1).reshape(-1, 2)
    depth = rng.lognormal(0, 0.3, len(places)) * 100
    groups = np.arange(len(places)) * slides // len(places)
    counts = draw(rng, depth, 12, rate=np.geomspace(0.05, 20, 12), effect=np.exp(np.sin(places[:, [0]] / 3)))
    _, expected = run(places, counts, depth, groups=groups)
    monkeypatch.setattr(score_test, "_SPOTS_AT_ONCE", 13)
    monkeypatch.setattr(score_test._stretches, "__defaults__", (13,))
    monkeypatch.setattr(score_test, "_PROBES_AT_ONCE", 3)
    monkeypatch.setattr(layout, "_VALUES_AT_ONCE", 1)
    _, found = run(places, counts, depth, groups=groups)
    np.testing.assert_allclose(found.log_p, expected.log_p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.scale_log_p, expected.scale_log_p, rtol=1e-5, atol=1e-6)


def test_signs_drawn_in_parts_are_those_drawn_at_once():
    found = score_test._random_signs(20_001, 3)
    np.testing.assert_array_equal(found, np.random.default_rng(0).choice([-1, 1], (20_001, 3)))
    assert found.dtype == np.int8


@pytest.mark.parametrize("most_dense_spots", [500, 50])
def test_null_law_has_the_cumulants_of_the_quadratic_form(tissue, most_dense_spots):
    """Mean, variance and (up to its approximation) third cumulant, from the matrices themselves."""
    places, depth = tissue
    test = SpatialScoreTest(places, depth, most_dense_spots=most_dense_spots)
    weights = test._weights_of(4)
    cumulants, spectra = test._law_of(4, weights)
    projection = np.eye(len(depth)) - weights.weighted_design @ weights.inverse @ weights.design.T
    covariance = projection @ np.diag(weights.v) @ projection.T
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    index = 0
    for level in test.layout.levels:
        for scale in range(len(level.scales)):
            kernel = np.stack(
                [level.kernels.apply(scale, column) for column in np.eye(int(level.point_of_spot.max()) + 1)]
            )[np.ix_(level.point_of_spot, level.point_of_spot)]
            form = root @ (kernel - np.eye(len(depth))) @ root
            assert weights.trace == pytest.approx(np.trace(covariance))
            assert cumulants[index].mean == pytest.approx(np.trace(form))
            assert cumulants[index].second == pytest.approx(2 * np.sum(form * form))
            third = 8 * np.trace(form @ form @ form)
            if spectra[index] is not None:
                values, counts = spectra[index]
                assert 8 * (counts * values**3).sum() == pytest.approx(third, rel=0.02)
            else:
                assert cumulants[index].third == pytest.approx(third, rel=0.2)
            index += 1
    assert index == len(test.lengthscales)


@pytest.mark.slow
@pytest.mark.parametrize("most_dense_spots", [500, 50])
def test_p_values_are_uniform_under_the_null(tissue, most_dense_spots):
    places, depth = tissue
    _, result = run(places, draw(np.random.default_rng(2), depth, 6000), depth, most_dense_spots=most_dense_spots)
    p = np.exp(result.log_p)
    # Genes are independent here: binomial standard errors .0028, .0013 and .0004.
    assert 0.04 <= (p < 0.05).mean() <= 0.058
    assert 0.006 <= (p < 0.01).mean() <= 0.014
    assert (p < 0.001).mean() <= 0.0023
    assert p.min() > 1e-6
    assert np.mean(p) == pytest.approx(0.5, abs=0.03)


def test_depth_alone_is_no_pattern():
    """Counts at constant proportion under a depth that itself is a smooth map."""
    rng = np.random.default_rng(3)
    places = rng.uniform(0, 18, (320, 2))
    depth = 1000 * np.exp(np.sin(places[:, 0] / 3))
    _, result = run(places, draw(rng, depth, 2000), depth)
    assert (np.exp(result.log_p) < 0.05).mean() <= 0.065


@pytest.mark.parametrize("most_dense_spots", [500, 50])
def test_patterns_of_all_scales_are_found(tissue, most_dense_spots):
    places, depth = tissue
    rng = np.random.default_rng(4)
    hot = (((places - [9, 9]) ** 2).sum(1) < 9)[:, None]
    gradient = places[:, :1] / 18
    fine = (np.sin(places[:, :1] * 1.2) * np.sin(places[:, 1:] * 1.2)) > 0
    for effect in (1 + 2 * hot, 0.3 + 1.4 * gradient, 0.4 + 1.2 * fine):
        counts = draw(rng, depth, 60, rate=np.full(60, 5.0), dispersion=0.1, effect=effect)
        _, result = run(places, counts, depth, most_dense_spots=most_dense_spots)
        assert np.median(result.log_p) < np.log(1e-4)


def test_grid_agrees_with_exact_kernels(tissue):
    places, depth = tissue
    rng = np.random.default_rng(5)
    effect = 1 + np.exp(-((places - 9) ** 2).sum(1) / 20)[:, None] * np.linspace(0, 2, 80)
    counts = draw(rng, depth, 80, rate=np.full(80, 4.0), effect=effect)
    _, exact = run(places, counts, depth)
    _, grid = run(places, counts, depth, most_dense_spots=50)
    assert np.corrcoef(exact.log_p, grid.log_p)[0, 1] > 0.98
    assert abs(np.median(exact.log_p - grid.log_p)) < 0.5


def test_covariates_take_their_pattern_out(tissue):
    places, depth = tissue
    rng = np.random.default_rng(6)
    share = 1 / (1 + np.exp(places[:, 0] - 9))
    composition = np.column_stack([share, 1 - share])
    counts = draw(rng, depth, 200, rate=np.full(200, 5.0), dispersion=0.1, effect=(0.4 + share)[:, None])
    _, without = run(places, counts, depth)
    _, given = run(places, counts, depth, covariates=composition)
    assert np.median(without.log_p) < np.log(1e-6)
    assert (np.exp(given.log_p) < 0.05).mean() < 0.1


def test_slides_are_tested_jointly_and_apart():
    rng = np.random.default_rng(7)
    places = np.tile(rng.uniform(0, 12, (150, 2)), (2, 1))
    groups = np.repeat([3, 8], 150)
    depth = rng.lognormal(0, 0.3, 300) * np.where(groups == 3, 500, 2000)
    level = np.where(groups == 3, 0.5, 2.0)[:, None]  # slides differ in level: no pattern
    _, null = run(places, draw(rng, depth, 800, rate=np.full(800, 3.0), effect=level), depth, groups=groups)
    assert (np.exp(null.log_p) < 0.05).mean() <= 0.075
    effect = 1 + 1.5 * (((places - 6) ** 2).sum(1) < 8)[:, None]
    counts = draw(rng, depth, 60, rate=np.full(60, 2.0), effect=effect * level)
    _, both = run(places, counts, depth, groups=groups)
    _, one = run(places[:150], counts[:150], depth[:150])
    assert np.median(both.log_p) < np.median(one.log_p)


def test_scale_and_order_of_spots_do_not_matter(tissue):
    places, depth = tissue
    rng = np.random.default_rng(8)
    counts = draw(rng, depth, 50)
    _, first = run(places, counts, depth)
    order = rng.permutation(len(depth))
    _, second = run(1e4 * places[order] + 77, counts[order], 3 * depth[order])
    np.testing.assert_allclose(first.log_p, second.log_p, atol=2e-3)


def test_genes_with_few_or_no_reads_are_not_tested(tissue):
    places, depth = tissue
    counts = draw(np.random.default_rng(9), depth, 4, rate=np.full(4, 2.0))
    counts[:, 0] = 0
    counts[2:, 1] = 0
    counts[:2, 1] = 1
    _, result = run(places, counts, depth)
    assert np.isnan(result.log_p[:2]).all()
    assert np.isfinite(result.log_p[2:]).all()


def test_one_hot_spot_alone_is_not_a_pattern(tissue):
    """A gene with all reads in a few scattered spots must not get a tiny p-value."""
    places, depth = tissue
    rng = np.random.default_rng(10)
    counts = np.zeros((320, 400))
    for gene in range(400):
        counts[rng.choice(320, 4, replace=False), gene] = rng.integers(1, 200, 4)
    _, result = run(places, counts, depth)
    assert np.nanmin(result.log_p) > np.log(1e-5)


def test_collinear_columns_are_dropped():
    rng = np.random.default_rng(0)
    depth, groups = rng.lognormal(0, 0.5, 40), np.repeat([0, 1], 20)
    share = rng.dirichlet(np.ones(3), 40)
    columns = nuisance_columns(depth, groups, share)
    assert columns.shape == (40, 8)  # two intercepts, two depths, and of three shares that sum to 1 two on each slide
    assert np.linalg.matrix_rank(columns) == 8
    assert nuisance_columns(np.ones(40), groups, np.column_stack([groups, np.ones(40)])).shape == (40, 2)
    assert nuisance_columns(depth, groups, share, by_group=False).shape == (40, 6)
    assert nuisance_columns(np.ones(40), groups, share, by_group=False).shape == (40, 4)  # even depth: shares alone


def test_columns_span_the_share_of_genes_whose_types_differ_in_size():
    rng = np.random.default_rng(1)
    share, groups = rng.dirichlet(np.ones(3), 60), np.repeat([0, 1], 30)
    depth = share @ [1.0, 3.0, 0.5]
    depth[groups == 1] *= depth[groups == 0].mean() / depth[groups == 1].mean()
    gene = share @ [0.2, 0.1, 2.0] / (share @ [1.0, 3.0, 0.5])
    for by_group in (True, False):
        columns = nuisance_columns(depth, np.zeros(60, int), share, by_group=by_group)
        exact = nuisance_columns(share @ [1.0, 3.0, 0.5], np.zeros(60, int), share, by_group=by_group)
        left = [gene - one @ np.linalg.lstsq(one, gene, rcond=None)[0] for one in (exact, columns)]
        assert np.abs(left[0]).max() < 1e-8
        assert left[1].std() < 0.2 * gene.std()


def test_genes_of_cell_types_are_no_pattern_beyond_composition():
    """Types that differ in region, size and expression on four slides: mean and variance follow the composition."""
    rng = np.random.default_rng(4)
    side = 14
    one = np.stack([np.arange(side**2) % side, np.arange(side**2) // side], 1).astype(float)
    places, slides = np.tile(one, (4, 1)), np.repeat(np.arange(4), side**2)
    centres = rng.uniform(2, side - 2, (5, 2))
    chance = np.exp(-((places[:, None] - centres) ** 2).sum(-1) / 18) + 1e-3
    cells = np.stack([rng.multinomial(8, one / one.sum()) for one in chance])
    rate = rng.gamma(0.4, 2.0, (5, 400)) * np.array([1.0, 1.5, 0.6, 1.0, 2.0])[:, None]
    counts = rng.poisson((cells @ rate) * rng.lognormal(0, 0.2, (len(places), 1)))
    test = SpatialScoreTest(places, counts.sum(1), groups=slides, covariates=cells / cells.sum(1, keepdims=True))
    columns = sp.csc_array(counts.astype(float))
    moments = test.moments(columns)
    found = test.test(columns, moments.mean, test.classes(moments)).log_p
    found = np.exp(found[np.isfinite(found)])
    assert 0.02 < (found < 0.05).mean() < 0.08  # binomial standard error .011; .2 with even variances and plain shares
    assert (found < 0.001).mean() < 0.01


def test_covariates_have_an_effect_of_their_own_on_each_slide():
    """The same composition raises a gene on one slide and lowers it on the other: no pattern is left beyond it."""
    rng = np.random.default_rng(3)
    place = np.stack([np.arange(400) % 20, np.arange(400) // 20], 1).astype(float)
    wave = np.sin(place[:, 0] / 3)
    slides = np.repeat([0, 1], 400)
    slope = np.where(slides == 0, 0.6, -0.6)
    rate = 4 * (1 + slope * np.tile(wave, 2))
    counts = rng.poisson(np.repeat(rate[:, None], 200, 1)).astype(float)
    places, depth = np.tile(place, (2, 1)), np.ones(800)
    test = SpatialScoreTest(places, depth, groups=slides, covariates=np.tile(wave, 2)[:, None])
    moments = test.moments(sp.csc_array(counts))
    found = np.exp(test.test(sp.csc_array(counts), moments.mean, test.classes(moments)).log_p)
    assert 0.01 < (found < 0.05).mean() < 0.11  # binomial standard error .015
    columns = test.design
    assert (np.abs(columns[:400]).sum(0) * np.abs(columns[400:]).sum(0) < 1e-6).all()


def test_scales_that_smooth_covariates_take_out_are_not_tested():
    """Twelve wide maps as covariates leave of the widest kernels little but their missing diagonals."""
    rng = np.random.default_rng(8)
    places = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), -1).reshape(-1, 2)
    maps = np.exp(-((places[:, None] - rng.uniform(0, 16, (12, 2))) ** 2).sum(-1) / (2 * 4.0**2))
    rate = 0.2 + maps @ rng.gamma(1.0, 2.0, (12, 300)) * (rng.uniform(size=300) < 0.7)
    counts = rng.poisson(rate * rng.gamma(3.0, 1 / 3, rate.shape))
    test = SpatialScoreTest(places, np.ones(256), covariates=maps)
    given = sp.csc_array(counts.astype(np.float32))
    moments = test.moments(given)
    found = test.test(given, moments.mean, test.classes(moments))
    assert (found.log_p < np.log(1e-3)).sum() <= 3
    assert 0.01 < (found.log_p < np.log(0.05)).mean() < 0.08
    tested = np.isfinite(found.scale_log_p[0]).mean(1)
    assert tested[0] > 0.9
    assert tested[-1] < 0.1
