r"""Gaussian processes on spots: kernels, variance components of many genes at once, and smoothing.

The model of one gene on n spots, in every part of this module:

.. math:: y = X \beta + f + \epsilon, \qquad f \sim N(0, \sigma_s^2 K), \qquad \epsilon \sim N(0, \sigma_e^2 I)

with nuisance columns X, a kernel matrix K of unit diagonal, and the noise ratio :math:`\delta = \sigma_e^2/\sigma_s^2`.
Genes share K, therefore one eigendecomposition serves all of them (Svensson, Teichmann, Stegle 2018, Nature Methods
15:343; the idea is that of Kang et al. 2008 and Lippert et al. 2011 for mixed models of the genome).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

KERNELS = ("rbf", "matern32", "matern52", "periodic", "linear")

_GENE_BLOCK = 2048
_LOG_RATIO_STEP = 0.25
_LOG_RATIOS = np.arange(np.log(1e-3), np.log(1e3) + _LOG_RATIO_STEP, _LOG_RATIO_STEP)
_NEGLIGIBLE = 1e-6  # eigenvalues below it count as 0: they are under a thousandth of the smallest noise ratio


def squared_distances(
    first: Float[Array, "spots axes"], second: Float[Array, "others axes"]
) -> Float[Array, "spots others"]:
    """Squared Euclidean distances, from differences: exact for near points far from the origin."""
    return sum((first[:, None, axis] - second[None, :, axis]) ** 2 for axis in range(first.shape[1]))


def rbf(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""]) -> Float[Array, "..."]:
    r"""Squared exponential kernel :math:`\exp(-d^2 / 2\ell^2)`."""
    return jnp.exp(-0.5 * squared_distance / lengthscale**2)


def matern32(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""]) -> Float[Array, "..."]:
    r"""Matérn kernel of order 3/2, :math:`(1 + a) e^{-a}`, :math:`a = \sqrt3 d / \ell`."""
    scaled = jnp.sqrt(3.0) * _root(squared_distance) / lengthscale
    return (1.0 + scaled) * jnp.exp(-scaled)


def matern52(squared_distance: Float[Array, "..."], lengthscale: Float[Array, ""]) -> Float[Array, "..."]:
    r"""Matérn kernel of order 5/2, :math:`(1 + a + a^2/3) e^{-a}`, :math:`a = \sqrt5 d / \ell`."""
    scaled = jnp.sqrt(5.0) * _root(squared_distance) / lengthscale
    return (1.0 + scaled + scaled**2 / 3.0) * jnp.exp(-scaled)


def periodic(
    first: Float[Array, "spots axes"],
    second: Float[Array, "others axes"],
    lengthscale: Float[Array, ""],
    period: Float[Array, ""] | float,
) -> Float[Array, "spots others"]:
    r"""Periodic kernel :math:`\exp(-2 \sum_a \sin^2(\pi (x_a - y_a) / p) / \ell^2)`.

    A product over the axes: the periodic function of the Euclidean distance is not positive definite in the plane.
    The lengthscale is in units of the period here.
    """
    phase = sum(
        jnp.sin(jnp.pi * (first[:, None, axis] - second[None, :, axis]) / period) ** 2 for axis in range(first.shape[1])
    )
    return jnp.exp(-2.0 * phase / lengthscale**2)


def linear(
    first: Float[Array, "spots axes"], second: Float[Array, "others axes"], lengthscale: Float[Array, ""]
) -> Float[Array, "spots others"]:
    r"""Linear kernel :math:`\langle x, y \rangle / \ell^2` of coordinates that the caller has centred: a gradient."""
    return (first @ second.T) / lengthscale**2


def kernel_matrix(
    coordinates: Float[Array, "spots axes"],
    lengthscale: Float[Array, ""] | float,
    kind: str = "rbf",
    period: Float[Array, ""] | float = 1.0,
    other: Float[Array, "others axes"] | None = None,
) -> Float[Array, "spots others"]:
    """Kernel between all spots, or between spots and ``other`` points.

    Parameters
    ----------
    coordinates
        Positions of the spots.
    lengthscale
        Range of the kernel, in units of the coordinates (of the period, for the periodic kernel).
    kind
        One of :data:`KERNELS`. All but ``linear`` have a unit diagonal; ``linear`` is about the mean of
        ``coordinates``.
    period
        Period of the periodic kernel, in units of the coordinates.
    other
        Second set of points; default the spots themselves.

    Raises
    ------
    ValueError
        If ``kind`` is unknown.
    """
    second = coordinates if other is None else other
    lengthscale = jnp.asarray(lengthscale, coordinates.dtype)
    if kind == "periodic":
        return periodic(coordinates, second, lengthscale, period)
    if kind == "linear":
        centre = coordinates.mean(0)
        return linear(coordinates - centre, second - centre, lengthscale)
    stationary = {"rbf": rbf, "matern32": matern32, "matern52": matern52}
    if kind not in stationary:
        raise ValueError(f"kind must be one of {list(KERNELS)}, found {kind!r}.")
    return stationary[kind](squared_distances(coordinates, second), lengthscale)


def _root(squared: Float[Array, "..."]) -> Float[Array, "..."]:
    # The derivative of the root is infinite at 0, where these kernels are smooth in the coordinates.
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


class VarianceFit(NamedTuple):
    """Variance components by gene; NaN for genes without variance beyond the design.

    Attributes
    ----------
    fsv
        Fraction of spatial variance.
    fsv_se
        Its standard error.
    lengthscale
        Lengthscale of highest restricted likelihood, in units of the coordinates.
    lengthscale_at_bound
        Whether that is the shortest or longest of those tried, or the gene shows no spatial variance at all: the
        likelihood says nothing about the scale, or only that it lies beyond the bound.
    log_likelihood_ratio
        Restricted log-likelihood over that of the model without spatial variance; not negative.
    noise_ratio
        Noise variance over signal variance; infinite where ``fsv`` is 0.
    """

    fsv: np.ndarray
    fsv_se: np.ndarray
    lengthscale: np.ndarray
    lengthscale_at_bound: np.ndarray
    log_likelihood_ratio: np.ndarray
    noise_ratio: np.ndarray


class _Spectrum(NamedTuple):
    """Eigenvectors and eigenvalues of one kernel beyond the design; ``share`` is the Gower factor."""

    vectors: np.ndarray
    values: np.ndarray
    share: float


class _Profile(NamedTuple):
    """Restricted likelihood maximised over the noise ratio, (lengthscales, genes)."""

    log_likelihood: np.ndarray
    log_ratio: np.ndarray
    log_ratio_variance: np.ndarray


class VarianceComponents:
    r"""Restricted maximum likelihood of signal variance, noise variance and lengthscale, for many genes at once.

    Parameters
    ----------
    coordinates
        Positions (n, d).
    lengthscales
        Lengthscales to try, in units of the coordinates; at least three for an estimate between them.
    design
        Nuisance columns (n, p), the intercepts among them. Columns may be collinear.
    groups
        Slide of each spot as integer codes; the kernel is 0 between slides. Default: one slide.

    Notes
    -----
    For each lengthscale the RBF kernel restricted to the complement of the design is decomposed once,
    :math:`PKP = U \Lambda U^\top` with :math:`m = n - \mathrm{rank} X` dimensions. With :math:`z = U^\top y` the
    restricted log-likelihood, maximal over :math:`\sigma_s^2`, is

    .. math:: -\tfrac m2 \log \sum_j \frac{z_j^2}{\lambda_j + \delta} - \tfrac12 \sum_j \log(\lambda_j + \delta)

    up to constants: for a grid of :math:`\delta` one matrix product gives it for all genes. Parabolas refine
    :math:`\log\delta` within the grid, then :math:`\log\ell` through the best lengthscale and its neighbours.

    The fraction of spatial variance counts the variance that the kernel shows on these spots, as SpatialDE does
    (Svensson et al. 2018; the factor is Gower's):

    .. math:: \mathrm{FSV} = \frac{g \sigma_s^2}{g \sigma_s^2 + \sigma_e^2}, \qquad g = \mathrm{tr}(PKP) / m

    because a field of long range hardly varies over a small slide, whatever its :math:`\sigma_s^2`.
    """

    def __init__(
        self,
        coordinates: np.ndarray,
        lengthscales: np.ndarray,
        design: np.ndarray,
        groups: np.ndarray | None = None,
    ):
        coordinates = np.asarray(coordinates, np.float64)
        lengthscales = np.sort(np.asarray(lengthscales, np.float64).ravel())
        design = np.asarray(design, np.float64)
        spots = len(coordinates)
        if not len(lengthscales) or not np.all(lengthscales > 0):
            raise ValueError(f"lengthscales must be numbers above 0, at least one, found {lengthscales}.")
        if design.ndim != 2 or len(design) != spots:
            raise ValueError(f"design must have shape ({spots}, p), one row a spot, found {design.shape}.")
        left, singular, _ = np.linalg.svd(design, full_matrices=False)
        rank = int((singular > 1e-10 * max(singular[0], 1e-300)).sum()) if len(singular) else 0
        if spots - rank < 3:
            raise ValueError(f"at least {rank + 3} spots are needed with a design of rank {rank}, found {spots}.")
        self.lengthscales = lengthscales
        self.nuisance = left[:, :rank]
        self.freedom = spots - rank
        distances = cdist(coordinates, coordinates, "sqeuclidean")
        same = None if groups is None else _same_group(groups, spots)
        self.spectra = [self._decompose(distances, same, lengthscale) for lengthscale in lengthscales]

    def _decompose(self, distances: np.ndarray, same: np.ndarray | None, lengthscale: float) -> _Spectrum:
        kernel = np.exp(-0.5 / lengthscale**2 * distances)
        if same is not None:
            kernel *= same
        nuisance = self.nuisance
        inner = kernel @ nuisance
        half = inner - 0.5 * nuisance @ (nuisance.T @ inner)
        cross = nuisance @ half.T
        kernel -= cross
        kernel -= cross.T
        share = float(np.trace(kernel)) / self.freedom
        values, vectors = eigh(kernel, overwrite_a=True, check_finite=False, driver="evd")
        kept = values > _NEGLIGIBLE
        return _Spectrum(np.ascontiguousarray(vectors[:, kept].T), values[kept], share)

    def fit(self, values: np.ndarray) -> VarianceFit:
        """Estimate the variance components of each column of ``values`` (n, genes)."""
        values = np.asarray(values)
        if values.ndim != 2 or len(values) != len(self.nuisance):
            raise ValueError(f"values must have shape ({len(self.nuisance)}, genes), found {values.shape}.")
        starts = range(0, max(values.shape[1], 1), _GENE_BLOCK)
        fits = [self._fit_block(values[:, start : start + _GENE_BLOCK]) for start in starts]
        return VarianceFit(*(np.concatenate(parts) for parts in zip(*fits, strict=True)))

    def _fit_block(self, values: np.ndarray) -> VarianceFit:
        values = np.asarray(values, np.float64)
        level = np.square(values).sum(0)
        values = values - self.nuisance @ (self.nuisance.T @ values)
        total = np.square(values).sum(0)
        constant = ~(total > 1e-20 * np.maximum(level, 1e-280))
        values = values / np.sqrt(np.where(constant, 1.0, total) / self.freedom)
        total = np.full(values.shape[1], float(self.freedom))
        profile = _Profile(*map(np.stack, zip(*(self._profile(s, values, total) for s in self.spectra), strict=True)))
        fit = self._summarise(profile, -0.5 * self.freedom * np.log(total))
        return VarianceFit(
            *(np.where(constant, np.nan, part) if part.dtype != bool else part & ~constant for part in fit)
        )

    def _profile(self, spectrum: _Spectrum, values: np.ndarray, total: np.ndarray) -> _Profile:
        ratios = np.exp(_LOG_RATIOS)
        squares = np.square(spectrum.vectors @ values)
        rest = np.maximum(total - squares.sum(0), 0.0)
        shifted = spectrum.values + ratios[:, None]
        quadratic = (1.0 / shifted) @ squares + rest / ratios[:, None]
        determinant = np.log(shifted).sum(1) + (self.freedom - len(spectrum.values)) * _LOG_RATIOS
        curve = -0.5 * (self.freedom * np.log(quadratic) + determinant[:, None])
        best = curve.argmax(0)
        middle = np.clip(best, 1, len(ratios) - 2)
        genes = np.arange(curve.shape[1])
        before, here, after = (curve[middle + shift, genes] for shift in (-1, 0, 1))
        bend = before - 2.0 * here + after
        inside = (best == middle) & (bend < 0)
        slope = 0.5 * (after - before)
        offset = np.where(inside, -slope / np.where(inside, bend, -1.0), 0.0)
        log_likelihood = np.where(inside, here + 0.5 * slope * offset, curve[best, genes])
        log_ratio = np.where(inside, _LOG_RATIOS[middle] + _LOG_RATIO_STEP * offset, _LOG_RATIOS[best])
        variance = np.where(inside, _LOG_RATIO_STEP**2 / np.where(inside, -bend, 1.0), np.inf)
        return _Profile(log_likelihood, log_ratio, variance)

    def _summarise(self, profile: _Profile, null: np.ndarray) -> VarianceFit:
        genes = np.arange(profile.log_likelihood.shape[1])
        best = profile.log_likelihood.argmax(0)
        shares = np.array([spectrum.share for spectrum in self.spectra])[:, None]
        fractions = shares / (shares + np.exp(profile.log_ratio))
        count = len(self.lengthscales)
        log_scale = np.log(self.lengthscales)
        fsv, log_ratio = fractions[best, genes], profile.log_ratio[best, genes]
        log_likelihood, log_lengthscale = profile.log_likelihood[best, genes], log_scale[best]
        spread = np.zeros(len(genes))
        if count > 2:
            middle = np.clip(best, 1, count - 2)
            places = middle + np.array([[-1], [0], [1]])
            steps = log_scale[places] - log_scale[middle]
            slope, bend = _parabola(steps, profile.log_likelihood[places, genes])
            inside = (best == middle) & (bend < 0)
            offset = np.where(inside, -slope / np.where(inside, bend, -1.0), 0.0)
            offset = np.clip(offset, 0.5 * steps[0], 0.5 * steps[2]) * inside
            log_likelihood = log_likelihood + np.where(inside, (slope + 0.5 * bend * offset) * offset, 0.0)
            log_lengthscale = log_lengthscale + offset
            rise, turn = _parabola(steps, fractions[places, genes])
            fsv = np.clip(fsv + np.where(inside, (rise + 0.5 * turn * offset) * offset, 0.0), 0.0, 1.0)
            turned, turning = _parabola(steps, profile.log_ratio[places, genes])
            log_ratio = log_ratio + np.where(inside, (turned + 0.5 * turning * offset) * offset, 0.0)
            # Law of total variance: the part of FSV's uncertainty that comes with the lengthscale's.
            spread = np.where(inside, (rise + turn * offset) ** 2 / np.where(inside, -bend, 1.0), 0.0)
        absent = profile.log_ratio[best, genes] >= _LOG_RATIOS[-1] - 1e-9
        curvature = profile.log_ratio_variance[best, genes]
        within = np.square(fsv * (1.0 - fsv)) * np.where(np.isfinite(curvature), curvature, 0.0)
        # At zero signal the information about sigma_s^2 / sigma_e^2 is half the spread of the eigenvalues.
        information = np.array(
            [0.5 * (np.square(s.values).sum() - s.values.sum() ** 2 / self.freedom) for s in self.spectra]
        )
        at_zero = shares[best, 0] / np.sqrt(np.maximum(information[best], 1e-300))
        error = np.where(absent, np.minimum(at_zero, 1.0), np.sqrt(within + np.minimum(spread, 1.0 / 12.0)))
        edge = (best == 0) | (best == count - 1) if count > 1 else np.zeros(len(genes), bool)
        return VarianceFit(
            np.where(absent, 0.0, fsv),
            error,
            np.exp(log_lengthscale),
            edge | absent,
            np.where(absent, 0.0, np.maximum(log_likelihood - null, 0.0)),
            np.where(absent, np.inf, np.exp(log_ratio)),
        )


def _parabola(steps: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and second derivative at 0 of the parabola through three points, the middle one at step 0."""
    before = (heights[0] - heights[1]) / steps[0]
    after = (heights[2] - heights[1]) / steps[2]
    bend = 2.0 * (after - before) / (steps[2] - steps[0])
    return before - 0.5 * bend * steps[0], bend


def _same_group(groups: np.ndarray, spots: int) -> np.ndarray:
    groups = _group_codes(groups, spots)
    return groups[:, None] == groups[None, :]


def _group_codes(groups: np.ndarray | None, spots: int) -> np.ndarray:
    if groups is None:
        return np.zeros(spots, np.int64)
    codes = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(codes) != spots:
        raise ValueError(f"groups must have {spots} entries, one a spot, found {len(codes)}.")
    return codes


def representative_spots(
    coordinates: np.ndarray,
    groups: np.ndarray | None = None,
    size: int = 1000,
    generator: np.random.Generator | int | None = 0,
) -> np.ndarray:
    """Choose spots on which the exact likelihood still sees all scales.

    Half are scattered over all spots, for the long lengthscales; half are about 20 small neighbourhoods, for the
    short ones, which a thinned sample no longer shows.

    Parameters
    ----------
    coordinates
        Positions (n, d).
    groups
        Slide codes (n,); neighbourhoods do not cross slides.
    size
        Number of spots to choose; all of them if there are no more.
    generator
        Seed or generator.

    Returns
    -------
    Sorted indices.
    """
    coordinates = np.asarray(coordinates, np.float64)
    spots = len(coordinates)
    if spots <= size:
        return np.arange(spots)
    codes = _group_codes(groups, spots)
    random = np.random.default_rng(generator)
    order = random.permutation(spots)
    chosen = np.zeros(spots, bool)
    chosen[order[: size - size // 2]] = True
    wanted = size // 2
    each = max(2, -(-wanted // 20))
    for centre in random.permutation(spots):
        if wanted <= 0:
            break
        distance = np.square(coordinates - coordinates[centre]).sum(1)
        distance[codes != codes[centre]] = np.inf
        nearest = np.argpartition(distance, min(each, spots - 1))[:each]
        new = nearest[~chosen[nearest] & np.isfinite(distance[nearest])][:wanted]
        chosen[new] = True
        wanted -= len(new)
    return np.flatnonzero(chosen)


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
    codes = _group_codes(groups, spots)
    member = csr_array((np.ones(spots), (codes, np.arange(spots))))
    means = (member @ values.astype(np.float64)) / np.bincount(codes)[:, None]
    result = means[codes].astype(dtype)
    used = np.flatnonzero(np.isfinite(noise_ratio) & np.isfinite(lengthscale))
    if not len(used):
        return result
    exact = spots <= exact_spots
    distances = cdist(coordinates, coordinates, "sqeuclidean") if exact else np.zeros((0, 0))
    if exact:
        distances[~_same_group(codes, spots)] = np.inf
    for scale, at_scale in _bins(lengthscale[used], n_lengthscales):
        members = used[at_scale]
        if exact:
            kernel = np.exp(-0.5 / scale**2 * distances)
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
            kernel = np.exp(-0.5 / self.lengthscale**2 * kernel)
            kernel[:, np.arange(width), np.arange(width)] += noise_ratio * self.noise[nearest]
            target = np.exp(-0.5 / self.lengthscale**2 * np.square(centres - here).sum(2))
            weights[start : start + _SPOT_BLOCK] = np.linalg.solve(kernel, target[:, :, None])[:, :, 0]
        starts = np.arange(0, spots * width + 1, width)
        return csr_array((weights.ravel(), self.nearest.ravel(), starts), shape=(spots, len(self.noise)))
