"""Kernels of directions: patterns that agree along one axis and alternate along the other."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from no_warnings import SHARED_STORE

from diffbio_sc.numerics.spatial.layout import SpotLayout
from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest


def lattice(side, *, hexagonal=False):
    across, down = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(side), np.arange(side)))
    return np.stack([across + 0.5 * (down % 2), down * np.sqrt(0.75)] if hexagonal else [across, down], 1)


def run(places, counts, depth, **options):
    test = SpatialScoreTest(places, depth, **options)
    moments = test.moments(sp.csc_array(counts))
    return test.test(sp.csc_array(counts), moments.mean, test.classes(moments))


def draw(rng, depth, genes, effect=None):
    mean = np.outer(depth, np.full(genes, 3.0)) * (1.0 if effect is None else effect[:, None])
    return rng.poisson(mean * rng.gamma(5, 0.2, mean.shape)).astype(float)


def matrices(places, scale):
    x, y = ((axis[:, None] - axis[None, :]) / scale for axis in places.T)
    kernel = np.exp(-(x**2 + y**2) / 2)
    return kernel * (x**2 - y**2), kernel * 2 * x * y


@pytest.mark.parametrize("most_dense_spots", [500, 50])
def test_kernels_are_the_second_derivatives_of_a_gaussian(most_dense_spots):
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 16, (256, 2))
    layout = SpotLayout(places, most_dense_spots=most_dense_spots, directions=True)
    level = layout.levels[0]
    assert layout.directions == 2
    if level.dense:
        points = places
    else:  # cells at their own places
        points = np.stack(np.unravel_index(level.kernels.used, level.kernels.shape), 1) * level.kernels._width
    values = rng.normal(size=(4, 256)).astype(np.float32)
    found = layout.quadratic(values)
    assert len(found) == len(layout.lengthscales) + 2
    sums = np.stack([level.sums(row) for row in values])
    for direction, matrix in enumerate(matrices(points, layout.lengthscales[0])):
        exact = np.einsum("gi,ij,gj->g", sums, matrix, sums)
        np.testing.assert_allclose(found[-2 + direction], exact, rtol=1e-3, atol=1e-2)
        for power in (1, 2, 3, 4):
            applied = level.kernels.apply(len(level.scales) + direction, sums[0], power)
            np.testing.assert_allclose(applied, matrix**power @ sums[0], atol=1e-6)


@pytest.mark.parametrize("most_dense_spots", [500, 50])
def test_null_law_has_the_cumulants_of_the_quadratic_form(most_dense_spots):
    rng = np.random.default_rng(1)
    places, depth = lattice(18, hexagonal=True), rng.lognormal(0, 0.5, 324)
    test = SpatialScoreTest(places, depth, most_dense_spots=most_dense_spots)
    weights, level = test._weights_of(4), test.layout.levels[0]
    cumulants, spectra = test._law_of(4, weights)
    assert len(cumulants) == len(spectra) == len(test.lengthscales) + 2
    projection = np.eye(len(depth)) - weights.weighted_design @ weights.inverse @ weights.design.T
    values, vectors = np.linalg.eigh(projection @ np.diag(weights.v) @ projection.T)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    points = int(level.point_of_spot.max()) + 1
    for direction in (0, 1):
        index = len(level.scales) + direction
        kernel = np.stack([level.kernels.apply(index, column) for column in np.eye(points)])
        kernel = kernel[np.ix_(level.point_of_spot, level.point_of_spot)]
        form = root @ kernel @ root
        square, found = form @ form, cumulants[-2 + direction]
        assert found.mean == pytest.approx(np.trace(form), abs=1e-9)
        assert found.second == pytest.approx(2 * np.trace(square))
        assert found.pairs == pytest.approx(weights.v @ kernel**2 @ weights.v)
        assert found.cubes == pytest.approx(weights.v @ kernel**3 @ weights.v, abs=1e-6)
        assert found.fourths == pytest.approx(weights.v**2 @ kernel**4 @ weights.v**2)
        # By random signs: of the skewness .03, of the fourth cumulant some 5 %.
        assert found.third / found.second**1.5 == pytest.approx(8 * np.sum(square * form) / found.second**1.5, abs=0.03)
        assert found.bottom**2 == pytest.approx(np.trace(square @ square) / np.trace(square), rel=0.1)


@pytest.mark.parametrize("side", [20, 26])  # exact kernels, and the grid
@pytest.mark.parametrize("pattern", ["rows", "columns", "diagonals"])
def test_stripes_are_found_by_their_direction(side, pattern):
    rng = np.random.default_rng(2)
    places, depth = lattice(side), rng.lognormal(0, 0.4, side**2)
    across, down = places.T
    high = {"rows": down % 2, "columns": across % 2, "diagonals": (across + down) % 4 < 2}[pattern]
    result = run(places, draw(rng, depth, 20, 0.5 + high), depth)
    direction = 1 if pattern == "diagonals" else 0
    assert (result.directional_log_p[:, direction] < np.log(1e-4)).mean() > 0.9
    assert (result.directional_log_p[:, 1 - direction] > np.log(1e-3)).mean() > 0.9
    others = np.concatenate([result.alternating_log_p[:, None], result.scale_log_p], 1).min(1)
    assert (result.directional_log_p[:, direction] < others + np.log(0.01)).mean() > 0.9
    assert np.median(result.log_p) < np.log(1e-3)


@pytest.mark.parametrize("tissue", ["lattice", "hexagons", "random", "covariate"])
def test_each_direction_has_its_level(tissue):
    """Genes without pattern, 800 on 676 spots; with a covariate that doubles the level of a fifth of the spots."""
    rng = np.random.default_rng(3)
    depth = rng.lognormal(0, 0.4, 676)
    places = rng.uniform(0, 26, (676, 2)) if tissue == "random" else lattice(26, hexagonal=tissue == "hexagons")
    inside, options = np.zeros(676), {}
    if tissue == "covariate":
        inside = (places[:, 0] < 5.0).astype(float)
        options = {"covariates": inside[:, None]}
    result = run(places, draw(rng, depth, 800, 1.0 + inside), depth, **options)
    p = np.exp(result.directional_log_p)
    assert np.isfinite(p).all()
    assert p.max() <= 1
    for kind in (0, 1):
        for direction in (0, 1):
            assert 0.025 < (p[kind, direction] < 0.05).mean() < 0.075  # binomial standard error .008
            assert 0.4 < np.median(p[kind, direction]) < 0.6
            assert (p[kind, direction] < 0.001).sum() <= 5  # of 800: Poisson of mean .8
    assert 0.03 < (np.exp(result.log_p) < 0.05).mean() < 0.07


def test_what_directions_need():
    """Two axes, kernels of neighbours, and reads in pairs of them; without them the level is that of the others."""
    rng = np.random.default_rng(4)
    places, depth = lattice(12), rng.lognormal(0, 0.4, 144)
    counts = draw(rng, depth, 5)
    assert np.isnan(run(places, counts, depth, lengthscales=np.array([3.0])).directional_log_p).all()
    space = np.column_stack([places, rng.uniform(0, 3, 144)])
    assert np.isnan(run(space, counts, depth).directional_log_p).all()
    assert np.isfinite(run(space, counts, depth).log_p).all()
    sparse = np.zeros((400, 5))
    for gene in range(5):
        sparse[rng.choice(400, 5, replace=False), gene] = 1
    result = run(lattice(20), sparse, rng.lognormal(0, 0.4, 400))
    assert np.isnan(result.directional_log_p).all()
    assert np.isfinite(result.log_p).all()


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning", f"ignore:{SHARED_STORE}")
@pytest.mark.parametrize("options", [{}, {"covariates": np.arange(600.0)[:, None] % 7}])
def test_spots_on_a_line_have_one_direction(options):
    rng = np.random.default_rng(5)
    depth = rng.lognormal(0, 0.4, 600)
    places = np.stack([np.arange(600.0), np.zeros(600)], 1)
    result = run(places, draw(rng, depth, 20), depth, **options)
    assert np.isfinite(result.directional_log_p[:, 0]).all()
    assert np.isnan(result.directional_log_p[:, 1]).all()
    assert np.isfinite(result.log_p).all()
