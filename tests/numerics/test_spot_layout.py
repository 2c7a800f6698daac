from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.layout import (
    DenseKernels,
    SpotLayout,
    lengthscale_grid,
    spot_spacing,
    triangle_factor,
)


def lattice(side, axes=2):
    return np.stack(np.meshgrid(*[np.arange(side)] * axes, indexing="ij"), -1).reshape(-1, axes).astype(float)


def level_matrix(level, scale):
    """The kernel matrix between spots that a level stands for, column by column."""
    size = int(level.point_of_spot.max()) + 1
    matrix = np.stack([level.kernels.apply(scale, column) for column in np.eye(size)])
    return matrix[np.ix_(level.point_of_spot, level.point_of_spot)]


def test_spacing_of_lattices_and_of_random_spots():
    zeros = np.zeros(400, int)
    assert spot_spacing(3.0 * lattice(20), zeros) == pytest.approx(3.0, rel=0.1)
    assert spot_spacing(3.0 * lattice(13, 3), np.zeros(2197, int)) == pytest.approx(3.0, rel=0.1)
    random = np.random.default_rng(0).uniform(0, 20, (400, 2))
    assert spot_spacing(random, zeros) == pytest.approx(1.0, rel=0.15)
    twice = np.concatenate([3.0 * lattice(20), 3.0 * lattice(20)])  # two slides at the same place, and duplicates
    assert spot_spacing(twice, np.repeat([0, 1], 400)) == spot_spacing(3.0 * lattice(20), zeros)
    assert spot_spacing(twice, np.zeros(800, int)) == spot_spacing(3.0 * lattice(20), zeros)
    with pytest.raises(ValueError, match="same place"):
        spot_spacing(np.zeros((5, 2)), np.zeros(5, int))


def test_lengthscales_go_from_neighbours_to_half_the_extent():
    scales = lengthscale_grid(lattice(40), np.zeros(1600, int), 1.0)
    assert len(scales) <= 8
    assert scales[0] == pytest.approx(0.7)
    assert scales[-1] == pytest.approx(19.5, rel=0.01)
    np.testing.assert_allclose(np.diff(np.log(scales)), np.log(scales[1] / scales[0]))
    far = np.concatenate([lattice(40), [[1e5, 1e5]]])
    np.testing.assert_allclose(lengthscale_grid(far, np.zeros(1601, int), 1.0)[-1], scales[-1], rtol=0.05)


@pytest.mark.parametrize("axes", [2, 3])
def test_exact_layout_is_the_gaussian_kernel(axes):
    rng = np.random.default_rng(axes)
    places = rng.uniform(0, 8, (60, axes))
    groups = rng.integers(0, 2, 60)
    layout = SpotLayout(places, groups, np.array([0.8, 2.0]))
    values = rng.normal(size=(5, 60)).astype(np.float32)
    found = layout.quadratic(values[:, layout.order])
    for scale, row in zip([0.8, 2.0], found, strict=True):
        kernel = np.exp(-(cdist(places, places) ** 2) / (2 * scale**2)) * (groups[:, None] == groups)
        np.testing.assert_allclose(row, np.einsum("gi,ij,gj->g", values, kernel, values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [2, 3])
def test_grid_layout_is_a_gaussian_kernel_of_cells(axes):
    rng = np.random.default_rng(axes)
    places = rng.uniform(0, 9 if axes == 2 else 4, (240, axes))
    groups = np.repeat([0, 1], 120)
    layout = SpotLayout(places, groups, np.array([0.6, 1.1, 6.0]), most_dense_spots=100)
    assert [level.dense for level in layout.levels] == [False, True]
    assert layout.levels[0].kernels.shape[-1] > 1
    values = rng.normal(size=(3, 240))
    ordered = values[:, layout.order]
    found = layout.quadratic(ordered)
    sorted_places, sorted_groups = places[layout.order], groups[layout.order]
    row = 0
    for level in layout.levels:
        for index, scale in enumerate(level.scales):
            matrix = level_matrix(level, index)
            np.testing.assert_allclose(found[row], np.einsum("gi,ij,gj->g", ordered, matrix, ordered), rtol=1e-6)
            # Between spots of one slide it is the Gaussian kernel, up to cells; across slides next to nothing.
            same = sorted_groups[:, None] == sorted_groups
            exact = np.exp(-(cdist(sorted_places, sorted_places) ** 2) / (2 * scale**2))
            assert np.corrcoef(matrix[same], exact[same])[0, 1] > (0.93 if index == 0 else 0.97)
            assert matrix[~same].max() < 0.05
            row += 1
    assert row == len(layout.lengthscales)


def test_powers_of_kernels_are_elementwise():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 12, (600, 2))
    layout = SpotLayout(places, most_dense_spots=100)
    for level in layout.levels:
        matrix = np.stack([level.kernels.apply(0, column) for column in np.eye(int(level.point_of_spot.max()) + 1)])
        vector = rng.normal(size=len(matrix))
        for power in (1, 2, 3):
            np.testing.assert_allclose(level.kernels.apply(0, vector, power), matrix**power @ vector, atol=1e-9)
        columns = rng.normal(size=(len(matrix), 2))
        np.testing.assert_allclose(level.kernels.apply(0, columns), matrix @ columns, atol=1e-9)


def test_far_spots_do_not_make_the_grid_grow():
    places = np.concatenate([np.random.default_rng(0).uniform(0, 30, (900, 2)), [[1e6, 1e6]]])
    layout = SpotLayout(places)
    assert layout.grid_size < 2**20
    assert np.isfinite(layout.quadratic(np.ones((1, 901), np.float32))).all()


def test_triangles_are_counted():
    places = lattice(9) + np.random.default_rng(0).uniform(0, 0.3, (81, 2))
    for scale in (0.8, 1.7):
        kernel = rbf(cdist(places, places, "sqeuclidean"), scale)
        np.fill_diagonal(kernel, 0)
        expected = np.trace(kernel @ kernel @ kernel) / (kernel.sum(1) ** 2).sum() * 3.0
        found = triangle_factor(places, np.array([scale]), 1.0)[0]
        assert found == pytest.approx(expected, rel=0.05 if scale < 1 else 0.2)


def test_dense_kernels_of_groups_are_blocks():
    kernels = DenseKernels(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.array([1.0]))
    np.testing.assert_array_equal(kernels.matrices[0], np.kron(np.eye(2), np.ones((2, 2))))
