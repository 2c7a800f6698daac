"""Gaussian kernels between spots at many lengthscales, as quadratic forms that cost no spots x spots matrix.

Few spots: the kernel matrices themselves. Many spots: spots fall into cells of a fine grid, where a kernel is a product
in Fourier space, so that all fine scales together cost one transform; and into coarse cells, whose kernel matrices are
small, for the wide scales. A kernel that sees cells in place of spots is a kernel too: what is tested at each scale
stays exactly defined, only its shape is a little coarser.

Spots of different groups (slides) have kernel 0: they lie side by side on the grid, beyond each other's reach. So do
parts of a slide that are farther apart than the longest scale reaches: one far spot must not stretch the grid.

Kernels of one sign cannot see what agrees along one axis and alternates along the other. Two more at the finest scale
can, the traceless second derivatives of the Gaussian: K times (x^2 - y^2) / l^2, and the same turned by 45 degrees.
"""

from __future__ import annotations

from math import comb
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.spatial.islands import islands, main_island
from diffbio_sc.numerics.spatial.kernels import rbf

MOST_DENSE_SPOTS = 500
_HALF_CELL_SPOTS = 20_000  # up to so many spots, fine cells are half a spacing wide
_COARSE_CELLS = 576
_MOST_GRID_CELLS = 2**18
_MOST_SCALES = 8
_FINEST_ALTERNATION = 1.0  # spacings: beyond, spots that alternate cancel within the kernel
_FINEST, _WIDEST = 0.7, 0.5  # lengthscales: from so many spacings to such a part of the extent
# The fourth neighbour (sixth in space) of a spot, in spacings: 1 on a square lattice; of random spots pi r^2 has a
# Gamma(4) distribution of median 3.67, r = 1.08 (in space 1.11). One divisor between them is right to some 6 %.
_NEIGHBOUR_DISTANCE = 1.06
_PLACES_AT_ONCE = 8192
_VALUES_AT_ONCE = 2**19  # of grids that are transformed together
_CROWD = 600
_REACH = 2.5  # in lengthscales: the room left around the tissue
_NO_REACH = 4.0  # in lengthscales: a kernel of exp(-8), beyond which parts of a slide are laid out on their own


def spot_spacing(coordinates: Float[np.ndarray, "spots axes"], groups: Int[np.ndarray, " spots"]) -> float:
    """Distance between neighbouring spots: of a lattice its constant, of random spots the mean spacing."""
    neighbour = 2 * coordinates.shape[1]
    distances = []
    for group in np.unique(groups):
        places = np.unique(coordinates[groups == group], axis=0)
        if len(places) > 1:
            k = min(neighbour, len(places) - 1)
            tree = cKDTree(places)
            for start in range(0, len(places), _PLACES_AT_ONCE):
                distances.append(tree.query(places[start : start + _PLACES_AT_ONCE], k=k + 1)[0][:, k])
    if not distances:
        raise ValueError("all spots lie at the same place: coordinates must differ.")
    return float(np.median(np.concatenate(distances))) / _NEIGHBOUR_DISTANCE


def lengthscale_grid(
    coordinates: Float[np.ndarray, "spots axes"], groups: Int[np.ndarray, " spots"], spacing: float
) -> Float[np.ndarray, " scales"]:
    """At most eight lengthscales, from below the spacing (neighbours only) to half the extent, even on a log scale."""
    extents = []
    for places in _by_group(coordinates, groups):
        sizes = tissue_extent(places[main_island(places)])
        sizes = sizes[sizes > 0]
        if len(sizes):
            extents.append(np.exp(np.log(sizes).mean()))
    smallest = _FINEST * spacing
    largest = max(_WIDEST * float(np.median(extents)), smallest * 1.01)
    ratio = max(np.sqrt(2.0), (largest / smallest) ** (1.0 / (_MOST_SCALES - 1)))
    return smallest * ratio ** np.arange(int(np.floor(np.log(largest / smallest) / np.log(ratio) + 1e-9)) + 1)


def _by_group(coordinates: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    return [coordinates[groups == group] for group in np.unique(groups)]


def tissue_extent(coordinates: Float[np.ndarray, "spots axes"]) -> Float[np.ndarray, " axes"]:
    """Extent along each axis; of the central 98 % where a few far spots more than double it."""
    whole = np.ptp(coordinates, axis=0)
    core = np.diff(np.quantile(coordinates, [0.01, 0.99], axis=0), axis=0)[0]
    return np.where(whole > 2.0 * core, core, whole) if (core > 0).all() else whole


class DenseKernels:
    """Kernel matrices between points; with ``directions`` two more, of the first scale."""

    def __init__(
        self,
        points: Float[np.ndarray, "points axes"],
        groups: Int[np.ndarray, " points"],
        scales: np.ndarray,
        *,
        directions: bool = False,
    ):
        distance = cdist(points, points, "sqeuclidean")
        self.same_group = groups[:, None] == groups[None, :]
        self.groups = groups
        self.matrices = [rbf(distance, scale) * self.same_group for scale in scales]
        self.diagonal = _diagonal(scales, directions)
        if directions:
            x, y = ((axis[:, None] - axis[None, :]) / scales[0] for axis in points.T)
            self.matrices += [self.matrices[0] * (x**2 - y**2), self.matrices[0] * (2.0 * x * y)]
        self._single = [matrix.astype(np.float32) for matrix in self.matrices]

    def quadratic(self, values: Float[np.ndarray, "genes points"], power: int = 1) -> Float[np.ndarray, "scales genes"]:
        """Quadratic form of each row with K (elementwise to a power), at each scale."""
        return np.stack([np.einsum("gi,gi->g", values @ matrix**power, values) for matrix in self._single])

    def apply(self, scale: int, values: np.ndarray, power: int = 1) -> np.ndarray:
        """K (elementwise to a power) times a vector, or each column."""
        matrix = self.matrices[scale]
        for _ in range(power - 1):
            matrix = matrix * self.matrices[scale]
        return matrix @ values


class GridKernels:
    """Kernels between the cells of a periodic grid, diagonal in Fourier space; with ``directions`` two more."""

    def __init__(
        self,
        shape: tuple[int, ...],
        used: Int[np.ndarray, " cells"],
        width: float,
        scales: np.ndarray,
        *,
        directions: bool = False,
    ):
        self.shape, self.used, self._width, self._scales = shape, used, width, scales
        self.diagonal = _diagonal(scales, directions)
        # The real transform keeps one of each pair of conjugate frequencies.
        twice = np.full(shape[-1] // 2 + 1, 2.0)
        twice[0] = 1.0
        if shape[-1] % 2 == 0:
            twice[-1] = 1.0
        self._once_or_twice = twice
        self._weights: dict[int, np.ndarray] = {}

    def _weights_of(self, power: int) -> np.ndarray:
        """What each frequency counts in the quadratic form of each scale (frequencies, scales)."""
        if power not in self._weights:
            size = int(np.prod(self.shape[:-1])) * len(self._once_or_twice)
            weights = np.empty((size, len(self.diagonal)), np.float32)
            for scale in range(len(self.diagonal)):
                weights[:, scale] = (self._spectrum(scale, power) * self._once_or_twice).ravel() / np.prod(self.shape)
            self._weights[power] = weights
        return self._weights[power]

    def _spectrum(self, scale: int, power: int) -> np.ndarray:
        """Fourier transform of a kernel, elementwise to a power: like the kernel, products over the axes."""
        if scale < len(self._scales):
            result = np.ones(())
            for axis in range(len(self.shape)):
                result = np.multiply.outer(result, self._transform(axis, self._scales[scale], power).real)
            return result
        finest = self._scales[0]
        if scale == len(self._scales):  # of (x^2 - y^2)^power K^power
            result = np.zeros(())
            for k in range(power + 1):
                x, y = (self._transform(axis, finest, power, 2 * of) for axis, of in ((0, power - k), (1, k)))
                result = result + comb(power, k) * (-1.0) ** k * np.multiply.outer(x.real, y.real)
            return result
        turned = [self._transform(axis, finest, power, power) for axis in (0, 1)]
        return 2.0**power * np.multiply.outer(*turned).real

    def _transform(self, axis: int, scale: float, power: int, degree: int = 0) -> np.ndarray:
        """Fourier transform along an axis of ``(x / scale)^degree exp(-power x^2 / 2 scale^2)``."""
        size = self.shape[axis]
        steps = (np.arange(size) + size // 2) % size - size // 2
        values = steps * (self._width / scale)
        transform = scipy.fft.rfft if axis == len(self.shape) - 1 else scipy.fft.fft
        return transform(values**degree * rbf(values**2, 1.0 / np.sqrt(power)))

    def _on_grid(self, values: Float[np.ndarray, "rows cells"]) -> np.ndarray:
        grid = np.zeros((len(values), int(np.prod(self.shape))), values.dtype)
        grid[:, self.used] = values
        return grid.reshape(-1, *self.shape)

    def quadratic(self, values: Float[np.ndarray, "genes cells"], power: int = 1) -> Float[np.ndarray, "scales genes"]:
        """Quadratic form of each row with K (elementwise to a power, at most 2), at each scale."""
        transform = scipy.fft.rfftn(self._on_grid(values), axes=range(1, len(self.shape) + 1))
        strength = transform.real**2
        strength += transform.imag**2
        return (strength.reshape(len(values), -1) @ self._weights_of(power)).T

    def apply(self, scale: int, values: np.ndarray, power: int = 1) -> np.ndarray:
        """K (elementwise to a power) times a vector, or each column."""
        rows = np.atleast_2d(values.T)
        spectrum, result = self._spectrum(scale, power), np.empty((len(rows), len(self.used)))
        axes = range(1, len(self.shape) + 1)
        for number, row in enumerate(rows):  # one transform at a time, each a few numbers for every cell
            transform = scipy.fft.rfftn(self._on_grid(np.asarray(row, np.float64)[None]), axes=axes)
            transform *= spectrum
            result[number] = scipy.fft.irfftn(transform, s=self.shape, axes=axes).ravel()[self.used]
        return result[0] if values.ndim == 1 else result.T


def _diagonal(scales: np.ndarray, directions: bool) -> np.ndarray:
    """Kernel of a point and itself: none in the kernels of directions."""
    return np.r_[np.ones(len(scales)), np.zeros(2 if directions else 0)]


class Level(NamedTuple):
    """Kernels of some scales, and the point of each spot (in the layout's order) that they see.

    ``third`` corrects the third cumulant of grid kernels, see :func:`triangle_factor`; ``exact`` says that each spot is
    a point of its own.
    """

    kernels: Any
    scales: np.ndarray
    point_of_spot: Int[np.ndarray, " spots"]
    third: np.ndarray
    exact: bool

    @property
    def dense(self) -> bool:
        """Whether spectra can be computed from matrices."""
        return isinstance(self.kernels, DenseKernels)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the spots of each point, of a vector or of each column."""
        size = int(self.point_of_spot.max()) + 1
        if values.ndim == 1:
            return np.bincount(self.point_of_spot, values, size)
        return np.stack([np.bincount(self.point_of_spot, column, size) for column in values.T], 1)


class SpotLayout:
    """Spots in an order in which those of a cell are neighbours, and kernels at all scales.

    Attributes
    ----------
    spacing
        Distance between neighbouring spots.
    lengthscales
        Scales, increasing.
    order
        Spots in the layout's order.
    levels
        Fine to wide; their scales together are ``lengthscales``.
    grid_size
        Cells of the periodic grid, 0 without one: what a transform of one gene takes.
    sees_neighbours
        Whether the finest kernel is one of neighbours, in which what alternates from spot to spot does not cancel.
    directions
        Number of kernels of directions, 2 or 0; they are the last of the first level.
    """

    def __init__(
        self,
        coordinates: Float[np.ndarray, "spots axes"],
        groups: Int[np.ndarray, " spots"] | None = None,
        lengthscales: np.ndarray | None = None,
        most_dense_spots: int = MOST_DENSE_SPOTS,
        *,
        directions: bool = False,
    ):
        spots = len(coordinates)
        groups = np.zeros(spots, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
        self.spacing = spot_spacing(coordinates, groups)
        given = lengthscales is not None
        self.lengthscales = (
            np.sort(np.asarray(lengthscales, np.float64))
            if given
            else lengthscale_grid(coordinates, groups, self.spacing)
        )
        self.sees_neighbours = bool(self.lengthscales[0] <= _FINEST_ALTERNATION * self.spacing)
        directions = directions and self.sees_neighbours and coordinates.shape[1] == 2
        self.directions = 2 if directions else 0
        self.grid_size = 0
        if spots <= most_dense_spots:
            self.order = np.arange(spots)
            kernels = DenseKernels(coordinates, groups, self.lengthscales, directions=directions)
            ones = np.ones(len(self.lengthscales))
            self.levels = [Level(kernels, self.lengthscales, self.order, ones, exact=True)]
            return
        self._on_grid(coordinates, groups)

    def _on_grid(self, coordinates: np.ndarray, groups: np.ndarray) -> None:
        spots, axes = coordinates.shape
        # Scales wider than the tissue itself see coarse cells at their true places, not this grid.
        main = [np.ptp(places[main_island(places)], axis=0).max() for places in _by_group(coordinates, groups)]
        codes = islands(coordinates, groups, _NO_REACH * min(self.lengthscales.max(), _WIDEST * max(main)))
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        corners = np.stack([coordinates[spots_of].min(0) for spots_of in members])
        sizes = np.stack([np.ptp(coordinates[spots_of], axis=0) for spots_of in members])
        tissue = np.stack([tissue_extent(coordinates[spots_of]) for spots_of in members])
        # Half a spacing, or one; wider where far spots would make the grid much larger than the tissue.
        width = max(
            self.spacing * (0.5 if spots <= _HALF_CELL_SPOTS else 1.0),
            (np.maximum(sizes, self.spacing).prod(1).sum() / max(_MOST_GRID_CELLS, 16 * spots)) ** (1.0 / axes),
        )
        # Coarse cells of a whole number of fine ones, so many in all that their matrices stay small.
        areas = np.maximum(tissue, self.spacing).prod(1)
        across = max((_COARSE_CELLS * areas.max() / areas.sum()) ** (1.0 / axes), 3.0)
        factor = max(1, int(np.ceil(tissue.max() / across / width)))
        fine = self.lengthscales < 2.0 * factor * width
        room = int(np.ceil(_REACH * self.lengthscales[fine].max() / width)) if fine.any() else 0
        del members
        index = np.floor((coordinates - corners[codes]) / width + 1e-9).astype(np.int32)
        columns = np.full(len(corners), 0)
        np.maximum.at(columns, codes, index[:, 0] + 1)
        starts = np.concatenate([[0], np.cumsum(columns + room)[:-1]])
        coarse_index = index // factor
        index[:, 0] += starts[codes]
        shape = tuple(
            scipy.fft.next_fast_len(int(size + room), real=axis == axes - 1)
            for axis, size in enumerate(index.max(0) + 1)
        )
        cell = np.ravel_multi_index(tuple(index.T), shape)
        # Numbers of cells and spots stay as long as the test, in four bytes each.
        self.order = np.argsort(cell, kind="stable").astype(np.int32)
        found = np.unique(cell[self.order], return_index=True, return_inverse=True)
        used, self._starts, cell_of_spot = (numbers.astype(np.int32) for numbers in found)
        del cell, found
        self.levels = []
        if fine.any():
            scales = self.lengthscales[fine]
            kernels = GridKernels(shape, used, width, scales, directions=self.directions > 0)
            third = triangle_factor(index[self.order] * width, scales, self.spacing)
            self.levels.append(Level(kernels, scales, cell_of_spot, third, exact=False))
            self.grid_size = int(np.prod(shape))
        else:
            self.directions = 0
        self._coarse: sp.csr_array | None = None
        if not fine.all():
            sizes_of = (len(corners), *(coarse_index.max(0) + 1))
            keys = np.ravel_multi_index((codes, *coarse_index.T), sizes_of)[self.order]
            _, first, point = np.unique(keys, return_index=True, return_inverse=True)
            point = point.astype(np.int32)
            spots_of_point = np.bincount(point)
            places = coordinates[self.order]
            centres = np.stack([np.bincount(point, places[:, axis]) / spots_of_point for axis in range(axes)], 1)
            wide = self.lengthscales[~fine]
            dense = DenseKernels(centres, groups[self.order][first], wide)
            self.levels.append(Level(dense, wide, point, np.ones(len(wide)), exact=False))
            point_of_cell = point[self._starts]
            self._coarse = sp.csr_array(
                (np.ones(len(used), np.float32), (point_of_cell, np.arange(len(used)))),
                shape=(len(spots_of_point), len(used)),
            )

    def quadratic(self, values: Float[np.ndarray, "genes spots"], power: int = 1) -> Float[np.ndarray, "scales genes"]:
        """Quadratic form of each row (spots in the layout's order) with K (elementwise to a power).

        At each scale, then with the kernels of directions.
        """
        if self.levels[0].exact:
            return self.levels[0].kernels.quadratic(values, power)
        rows = max(1, _VALUES_AT_ONCE // max(self.grid_size, values.shape[1]))
        starts = range(0, max(len(values), 1), rows)
        return np.concatenate([self._quadratic_of_cells(values[start : start + rows], power) for start in starts], 1)

    def _quadratic_of_cells(self, values: np.ndarray, power: int) -> np.ndarray:
        by_cell = np.add.reduceat(values, self._starts, axis=1)
        results = []
        for level in self.levels:
            if level.dense:
                results.append(level.kernels.quadratic(np.ascontiguousarray((self._coarse @ by_cell.T).T), power))
            else:
                results.append(level.kernels.quadratic(by_cell, power))
        if self.directions:  # the last of the first level
            results.append(results[0][-self.directions :])
            results[0] = results[0][: -self.directions]
        return np.concatenate(results)


def triangle_factor(places: np.ndarray, scales: np.ndarray, spacing: float, rows: int = 400) -> np.ndarray:
    """Sum over distinct i, j, k of K_ij K_jk K_ki, over its value ``3^(-axes/2) sum_i (sum_j K_ij)^2`` in a continuum.

    On a lattice fine kernels have few such triangles. Counted on evenly spaced spots; 1 beyond five spacings and where
    hundreds of spots are in reach.
    """
    sample = np.unique(np.linspace(0, len(places) - 1, min(rows, len(places))).astype(int))
    tree = cKDTree(places)
    factors = np.ones(len(scales))
    for index, scale in enumerate(scales):
        if scale > 5.0 * spacing:
            continue
        chosen = sample if scale < 2.0 * spacing else sample[::4]
        triangles = continuum = 0.0
        if np.median(tree.query_ball_point(places[chosen], 3.3 * scale, return_length=True)) > _CROWD:
            continue
        for centre, near in zip(chosen, tree.query_ball_point(places[chosen], 3.3 * scale), strict=True):
            neighbours = np.setdiff1d(near, [centre])
            edge = rbf(((places[neighbours] - places[centre]) ** 2).sum(1), scale)
            among = rbf(cdist(places[neighbours], places[neighbours], "sqeuclidean"), scale)
            triangles += edge @ among @ edge - (edge**2).sum()
            continuum += edge.sum() ** 2 / 3.0 ** (places.shape[1] / 2.0)
        factors[index] = triangles / max(continuum, 1e-12)
    return factors
