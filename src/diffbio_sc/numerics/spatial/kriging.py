"""Smoothing of expression by Gaussian processes: exact for few spots, from near cells of spots for many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.slides import same_slide, slide_codes

_EXACT_SPOTS = 1500
_NEIGHBOURS = 48
_CELL_SIDE = 0.4  # of the lengthscale: a kernel averaged over such a cell loses about 1 %
_SPOT_BLOCK = 4096


def smooth(
    values: np.ndarray,
    coordinates: np.ndarray,
    lengthscale: np.ndarray,
    noise_ratio: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    exact_spots: int = _EXACT_SPOTS,
    neighbours: int = _NEIGHBOURS,
    n_lengthscales: int = 24,
    n_noise_ratios: int = 12,
) -> np.ndarray:
    r"""Posterior mean of each gene under an RBF Gaussian process, plus the gene's mean in the slide.

    Parameters
    ----------
    values
        Expression (n, genes).
    coordinates
        Positions (n, d).
    lengthscale, noise_ratio
        By gene, as :class:`VarianceComponents` estimates them. A gene with a noise ratio that is infinite or NaN is
        flat: its mean.
    groups
        Slide codes (n,); slides do not inform each other.
    exact_spots
        Largest number of spots for the exact formula :math:`K (K + \delta I)^{-1} (y - \bar y)`. Beyond it each spot
        is predicted from its ``neighbours`` nearest spots, or, where the lengthscale spans several spots, from its
        nearest cells of spots, each cell with its mean and its smaller noise.
    neighbours
        Spots or cells that a prediction uses, if not exact.
    n_lengthscales, n_noise_ratios
        Genes with more distinct values share bins, of this number at most, evenly spaced on the log scale; exact
        smoothing bins the lengthscale alone.

    Returns
    -------
    Smoothed values (n, genes), float64 unless ``values`` is float32.
    """
    values, coordinates = np.asarray(values), np.asarray(coordinates, np.float64)
    spots, genes = values.shape
    dtype = np.float32 if values.dtype == np.float32 else np.float64
    lengthscale = np.broadcast_to(np.asarray(lengthscale, np.float64), genes)
    noise_ratio = np.broadcast_to(np.asarray(noise_ratio, np.float64), genes)
    codes = slide_codes(groups, spots)
    member = csr_array((np.ones(spots), (codes, np.arange(spots))))
    means = (member @ values.astype(np.float64)) / np.bincount(codes)[:, None]
    result = means[codes].astype(dtype)
    used = np.flatnonzero(np.isfinite(noise_ratio) & np.isfinite(lengthscale))
    if not len(used):
        return result
    exact = spots <= exact_spots
    distances = cdist(coordinates, coordinates, "sqeuclidean") if exact else np.zeros((0, 0))
    if exact:
        distances[~same_slide(codes, spots)] = np.inf
    for scale, at_scale in _bins(lengthscale[used], n_lengthscales):
        members = used[at_scale]
        if exact:
            kernel = rbf(distances, scale)
            spectrum, vectors = eigh(kernel, overwrite_a=True, check_finite=False, driver="evd")
            spectrum = np.maximum(spectrum, 0.0)
            for block in _blocks(members):
                centred = values[:, block] - means[np.ix_(codes, block)]
                weights = spectrum[:, None] / (spectrum[:, None] + noise_ratio[block])
                result[:, block] += vectors @ (weights * (vectors.T @ centred))
            continue
        cells = _Cells(coordinates, codes, scale, neighbours)
        for ratio, at_ratio in _bins(noise_ratio[members], n_noise_ratios):
            weights = cells.weights(ratio)
            for block in _blocks(members[at_ratio]):
                centred = values[:, block] - means[np.ix_(codes, block)]
                result[:, block] += weights @ (cells.average @ centred)
    return result


def _blocks(genes: np.ndarray, size: int = 256) -> Iterator[np.ndarray]:
    for start in range(0, len(genes), size):
        yield genes[start : start + size]


def _bins(values: np.ndarray, most: int) -> Iterator[tuple[float, np.ndarray]]:
    """Group equal values, or near ones if there are more than ``most``; yield each bin's value and members."""
    centres, codes = np.unique(values, return_inverse=True)
    if len(centres) > most:
        logs = np.log(values)
        edges = np.linspace(logs.min(), logs.max(), most + 1)
        codes = np.clip(np.searchsorted(edges, logs, side="right") - 1, 0, most - 1)
        centres = np.exp(0.5 * (edges[1:] + edges[:-1]))
    for code in np.unique(codes):
        yield float(centres[code]), np.flatnonzero(codes == code)


class _Cells:
    """Spots gathered into cells that are small against the lengthscale, and each spot's nearest cells."""

    def __init__(self, coordinates: np.ndarray, codes: np.ndarray, lengthscale: float, neighbours: int):
        spots = len(coordinates)
        places = np.floor((coordinates - coordinates.min(0)) / (_CELL_SIDE * lengthscale)).astype(np.int64)
        cells = np.unique(np.column_stack([codes, places]), axis=0, return_inverse=True)[1].ravel()
        if cells.max() + 1 > 0.5 * spots:
            cells = np.arange(spots)  # hardly more than one spot a cell: the spots themselves are as quick, and exact
        counts = np.bincount(cells)
        self.average = csr_array((1.0 / counts[cells], (cells, np.arange(spots))))
        self.noise = 1.0 / counts
        self.centres = self.average @ coordinates
        self.coordinates, self.lengthscale = coordinates, lengthscale
        slide = np.zeros(len(counts), np.int64)
        slide[cells] = codes
        smallest = int(np.bincount(slide)[np.unique(slide)].min())
        self.nearest = np.empty((spots, min(neighbours, smallest)), np.int64)
        for code in np.unique(slide):
            own, here = np.flatnonzero(slide == code), np.flatnonzero(codes == code)
            found = cKDTree(self.centres[own]).query(coordinates[here], k=self.nearest.shape[1])[1]
            self.nearest[here] = own[found.reshape(len(here), -1)]

    def weights(self, noise_ratio: float) -> csr_array:
        """Kriging weights of the cells for each spot."""
        spots, width = self.nearest.shape
        weights = np.empty((spots, width))
        for start in range(0, spots, _SPOT_BLOCK):
            nearest = self.nearest[start : start + _SPOT_BLOCK]
            centres = self.centres[nearest]
            here = self.coordinates[start : start + _SPOT_BLOCK, None, :]
            kernel = np.zeros((len(nearest), width, width))
            for axis in range(centres.shape[2]):
                kernel += np.square(centres[:, :, None, axis] - centres[:, None, :, axis])
            kernel = rbf(kernel, self.lengthscale)
            kernel[:, np.arange(width), np.arange(width)] += noise_ratio * self.noise[nearest]
            target = rbf(np.square(centres - here).sum(2), self.lengthscale)
            weights[start : start + _SPOT_BLOCK] = np.linalg.solve(kernel, target[:, :, None])[:, :, 0]
        starts = np.arange(0, spots * width + 1, width)
        return csr_array((weights.ravel(), self.nearest.ravel(), starts), shape=(spots, len(self.noise)))
