r"""Variance components of many genes at once under Gaussian processes on spots.

The model of one gene on n spots:

.. math:: y = X \beta + f + \epsilon, \qquad f \sim N(0, \sigma_s^2 K), \qquad \epsilon \sim N(0, \sigma_e^2 I)

with nuisance columns X, a kernel matrix K of unit diagonal, and the noise ratio :math:`\delta = \sigma_e^2/\sigma_s^2`.
Genes share K, therefore one eigendecomposition serves all of them (Svensson, Teichmann, Stegle 2018, Nature Methods
15:343; the idea is that of Kang et al. 2008 and Lippert et al. 2011 for mixed models of the genome).
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from diffbio_sc.numerics.spatial.kernels import rbf
from diffbio_sc.numerics.spatial.slides import same_slide

_GENE_BLOCK = 2048
_LOG_RATIO_STEP = 0.25
_LOG_RATIOS = np.arange(np.log(1e-3), np.log(1e3) + _LOG_RATIO_STEP, _LOG_RATIO_STEP)
_NEGLIGIBLE = 1e-6  # eigenvalues below it count as 0: they are under a thousandth of the smallest noise ratio


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


class Spectrum(NamedTuple):
    """Eigenvectors and eigenvalues of one kernel beyond the design; ``share`` is the Gower factor.

    The vectors, most of what a test holds, are float32: squares of products with them are right to 1e-7.
    """

    vectors: np.ndarray
    values: np.ndarray
    share: float


class _Profile(NamedTuple):
    """Restricted likelihood maximised over the noise ratio, (lengthscales, genes)."""

    log_likelihood: np.ndarray
    log_ratio: np.ndarray
    log_ratio_variance: np.ndarray


class KernelDecomposition:
    """Takes kernels on some spots, without what the design explains, apart: a function of the lengthscale.

    Lengthscales do not wait for each other. Picklable, for workers elsewhere.

    Parameters
    ----------
    coordinates, design, groups
        As of :class:`VarianceComponents`.
    """

    def __init__(self, coordinates: np.ndarray, design: np.ndarray, groups: np.ndarray | None = None):
        self.coordinates, self.groups = np.asarray(coordinates, np.float64), groups
        design = np.asarray(design, np.float64)
        spots = len(self.coordinates)
        if design.ndim != 2 or len(design) != spots:
            raise ValueError(f"design must have shape ({spots}, p), one row for each spot, found {design.shape}.")
        left, singular, _ = np.linalg.svd(design, full_matrices=False)
        rank = int((singular > 1e-10 * max(singular[0], 1e-300)).sum()) if len(singular) else 0
        if spots - rank < 3:
            raise ValueError(f"at least {rank + 3} spots are needed with a design of rank {rank}, found {spots}.")
        self.nuisance = left[:, :rank]
        self.freedom = spots - rank

    @cached_property
    def _distances(self) -> np.ndarray:
        return cdist(self.coordinates, self.coordinates, "sqeuclidean")

    def __call__(self, lengthscale: float) -> Spectrum:
        """Decompose the kernel of one lengthscale."""
        kernel = rbf(self._distances, lengthscale)
        if self.groups is not None:
            kernel *= same_slide(self.groups, len(kernel))
        nuisance = self.nuisance
        inner = kernel @ nuisance
        half = inner - 0.5 * nuisance @ (nuisance.T @ inner)
        cross = nuisance @ half.T
        kernel -= cross
        kernel -= cross.T
        del cross
        share = float(np.trace(kernel)) / self.freedom
        # Transposed it is in LAPACK's order, and overwritten where it lies.
        values, vectors = eigh(kernel.T, overwrite_a=True, check_finite=False, driver="evd")
        first = int(np.searchsorted(values, _NEGLIGIBLE, side="right"))  # they increase
        return Spectrum(vectors[:, first:].T.astype(np.float32, order="C"), values[first:], share)


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
    spectra
        What :class:`KernelDecomposition` of the same arguments gives for each lengthscale, from the shortest; default:
        it is computed here.

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
        *,
        spectra: list[Spectrum] | None = None,
    ):
        lengthscales = np.sort(np.asarray(lengthscales, np.float64).ravel())
        if not len(lengthscales) or not np.all(lengthscales > 0):
            raise ValueError(f"lengthscales must be numbers above 0, at least one, found {lengthscales}.")
        decompose = KernelDecomposition(coordinates, design, groups)
        self.lengthscales = lengthscales
        self.nuisance, self.freedom = decompose.nuisance, decompose.freedom
        self.spectra = [decompose(lengthscale) for lengthscale in lengthscales] if spectra is None else spectra

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

    def _profile(self, spectrum: Spectrum, values: np.ndarray, total: np.ndarray) -> _Profile:
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
