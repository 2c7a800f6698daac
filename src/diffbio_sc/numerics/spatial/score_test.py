"""Score test of a spatial random effect in a negative binomial model of counts, at many lengthscales at once.

1. Null model of a gene: y_i ~ NB(s_i m exp(b z_i), alpha) with depth s_i and nuisance columns z (log depth,
   covariates; intercepts by slide). Genes of similar c = alpha m share working weights w_i = 1 / (1 + c s_i),
   v_i = s_i w_i.
2. Residuals, by weighted least squares on X = [1, z]: of the counts, e = w (y - s m), the score of the model; and of
   their square roots, e = v s^(-1/2) (sqrt(y + 0.4) - E sqrt(y + 0.4)), for genes with enough reads. The expectation
   is the model's own, because that of few reads does not grow with the root of depth and X cannot take it out.
   U = (I - V X (X'VX)^-1 X') e has variance proportional to V without the random effect. The score is the more
   powerful for hot spots, the root for many moderate changes; both are tested.
3. Statistic at lengthscale l: T = sum over i != j of K_ij U_i U_j. Without the diagonal it does not feel the kurtosis
   of counts. Its null law, given the sum of U^2, is that of a ratio of quadratic forms with the spectrum of
   S^(1/2) (K - I) S^(1/2), S = V - V X (X'VX)^-1 X'V: exact where matrices are small, by its cumulants on a grid.
4. Counts are not Gaussian: the spread of U^2 among spots rescales T, and discreteness adds to its third and fourth
   cumulants. Scales at which that is no small correction are left out, gene by gene.
5. Scales and residuals are combined by the Cauchy combination, fine scales and those that can see something first.
6. Patterns that alternate from spot to spot make T at the finest scale too small: its lower tail has a share of the
   level. Patterns that alternate along one axis and agree along the other leave T as it is; two kernels of directions,
   whose law is that of T, have another share.

After the score tests of SPARK (Sun et al. 2020, Nature Methods 17:193) and SpatialDE2 (Kats et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from diffbio_sc.numerics.spatial.gene_moments import (
    GeneMoments,
    GeneSums,
    gene_moments,
    nuisance_columns,
    sum_genes,
)
from diffbio_sc.numerics.spatial.layout import Level, SpotLayout
from diffbio_sc.numerics.spatial.null_law import LawOfGaussian, NullLaw
from diffbio_sc.numerics.spatial.quadratic_forms import combine_cauchy, compress_spectrum
from diffbio_sc.numerics.spatial.root_mean import RootMeans, expected_roots
from diffbio_sc.numerics.spatial.variance_model import VarianceModel

# Classes of c = alpha m that share weights, and those at which spectra are computed (interpolated between).
_CLASSES = np.array([0, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 40.0])
_SPECTRUM_CLASSES = np.array([0, 0.5, 3, 40.0])
# What the constants below do to power and level, each halved and doubled: benchmarks/spatial_genes.py constants.
_FEWEST_SPOTS = 3  # with reads: fewer are not tested
_CLIP = 4.0  # residuals are cut at so many standard deviations and one read
_ROOT_OFFSET = 0.4  # near the 3/8 that steadies the variance of Poisson roots (Anscombe 1948, Biometrika 35:246)
_ROOT_FROM_MEAN = 1.0
_LARGEST_SKEWNESS = 2.0
_LARGEST_TWO_SIDED = 1.0  # of directions: beyond, few pairs of spots with reads make T, on both sides of 0
_LARGEST_BALANCE = 16.0  # of variances of slides: those with hardly any reads are not blown up
_SCALE_WEIGHT = 0.85  # each scale weighs 2^-0.85 of the next finer one
_ALTERNATION_SHARE = 0.01  # of the level, for the lower tail and for directions: what others lose (planted)
_EFFECT = 0.3  # variance on the log scale of the effect that weights are made for
_CAUCHY_EXCESS = 0.08  # by how much the combination of such dependent tests is too small around 0.05
_LEAST_LEFT = 0.6  # of the variance of T beside what it owes to the sum of squares (spatial_covariates.py left_out)
_MOST_TAKEN = 0.5  # of the third cumulant, by nuisance columns: beyond, it is a difference of large numbers
_PROBES = 32  # right to some 5 %: of a kernel with n eigenvalues to sqrt(2 / 32 n)
_PROBES_AT_ONCE = 4
_DIRECTION_PROBES = 4000  # spots by random signs: the fourth cumulant to some 5 %
_BLOCK_VALUES = 2**22
_SPOTS_AT_ONCE = 8192


class ScoreTest(NamedTuple):
    """Result by gene; NaN where untested.

    Attributes
    ----------
    log_p
        Natural log of the p-value.
    scale_log_p
        The same by residual (score, root), lengthscale and gene, before combination.
    alternating_log_p
        Of neighbours that differ more than by chance, by residual and gene; NaN where the finest scale is not that of
        neighbours.
    directional_log_p
        Of neighbours that agree along one axis and not along the other, along the axes and between them, by residual
        and gene; NaN as before, and in space.
    """

    log_p: Float[np.ndarray, " genes"]
    scale_log_p: Float[np.ndarray, "residuals scales genes"]
    alternating_log_p: Float[np.ndarray, "residuals genes"]
    directional_log_p: Float[np.ndarray, "residuals 2 genes"]


class _Weights:
    """Working weights of a class of genes and the projection on the nuisance columns; v has mean 1."""

    def __init__(self, c: float, depth: np.ndarray, design: np.ndarray):
        self.c = c
        w = 1.0 / (1.0 + c * depth)
        v = depth * w
        self.scale = v.mean()
        self.v, self.w = v / self.scale, (w / self.scale).astype(np.float32)
        self.design = design
        weighted = self.weighted_design
        self.inverse = np.linalg.inv(design.T @ weighted)
        self._first = design.astype(np.float32)
        self._second = (self.inverse @ weighted.T).astype(np.float32)
        self.trace = self.v.sum() - np.sum(self.inverse * (weighted.T @ weighted))

    @property
    def weighted_design(self) -> Float[np.ndarray, "spots columns"]:
        """Nuisance columns times v."""
        return self.v[:, None] * self.design

    @property
    def kept(self) -> Float[np.ndarray, " spots"]:
        """Share of the variance of each spot that the sum of squares keeps; over all variances it is the trace."""
        weighted = self.weighted_design
        both = self.inverse @ (weighted.T @ weighted) @ self.inverse
        return 1.0 - np.sum(self.design * (2.0 * weighted @ self.inverse - self.design @ both), 1)

    def fit(self, counts: Float[np.ndarray, "genes spots"]) -> Float[np.ndarray, "genes spots"]:
        """Expected share of the depth, as the nuisance columns let expect."""
        share = (self.inverse @ self.design.T).astype(np.float32)
        return ((counts * self.w) @ self._first) @ share

    def project(self, residuals: Float[np.ndarray, "genes spots"]) -> Float[np.ndarray, "genes spots"]:
        """Take the nuisance columns out, in place."""
        fitted = residuals @ self._first
        for some in _stretches(residuals.shape[1]):
            residuals[:, some] -= fitted @ self._second[:, some]
        return residuals

    def whiten(self, values: Float[np.ndarray, "spots columns"]) -> Float[np.ndarray, "spots columns"]:
        """Take the nuisance columns out of residuals divided by the root of their variance."""
        root = np.sqrt(self.v)[:, None]
        return values - root * (self.design @ (self.inverse @ (self.weighted_design.T @ (values / root))))


class _Cumulants(NamedTuple):
    """Of T at one scale: first three cumulants; sums of K^2 v v, K^3 v v and K^4 v^2 v^2 over distinct pairs.

    ``shares`` says by how much the variance of each spot adds to the mean; empty where the weights tell all variances.
    ``bottom`` is minus the lower one of two eigenvalues that stand for a spectrum.
    """

    mean: float
    second: float
    third: float
    pairs: float
    cubes: float
    fourths: float
    shares: np.ndarray
    bottom: float


Law = tuple[list[_Cumulants], list]  # of a class of genes: cumulants and spectra by kernel


class SpatialScoreTest:
    """The test for one set of spots, to be applied to genes block by block.

    Parameters
    ----------
    coordinates
        Spots by 2 or 3 axes.
    depth
        Depth (total counts or size factor) of each spot, above 0.
    groups
        Slide of each spot; kernels and depth effects do not cross slides.
    covariates
        Nuisance columns. Columns that others already span are dropped.
    lengthscales
        Scales to test; default :func:`~diffbio_sc.numerics.spatial.layout.lengthscale_grid`.
    most_dense_spots
        Up to so many spots, kernels are exact matrices.
    """

    def __init__(
        self,
        coordinates: Float[np.ndarray, "spots axes"],
        depth: Float[np.ndarray, " spots"],
        *,
        groups: Int[np.ndarray, " spots"] | None = None,
        covariates: Float[np.ndarray, "spots columns"] | None = None,
        lengthscales: np.ndarray | None = None,
        most_dense_spots: int | None = None,
    ):
        options = {} if most_dense_spots is None else {"most_dense_spots": most_dense_spots}
        groups = np.zeros(len(depth), np.int64) if groups is None else np.asarray(groups)
        self.layout = SpotLayout(coordinates, groups, lengthscales, directions=True, **options)
        order = self.layout.order
        self.depth = (depth / depth.mean())[order]
        groups = groups[order]
        names, codes = np.unique(groups, return_inverse=True)
        self._indicator = np.eye(len(names), dtype=np.float32)[codes] if len(names) > 1 else None
        del codes
        covariates = None if covariates is None else covariates[order]
        self.design = nuisance_columns(self.depth, groups, covariates)
        self._variance_model = None if covariates is None else VarianceModel(covariates)
        if len(depth) <= self.design.shape[1] + 2:
            raise ValueError(f"{len(depth)} spots are too few for {self.design.shape[1]} nuisance columns.")
        self._root_means = RootMeans(self.depth, _ROOT_OFFSET)
        self._spectra = [self._class_spectra(_Weights(c, self.depth, self.design)) for c in _SPECTRUM_CLASSES]
        kernels = np.ones(len(self.lengthscales)), np.zeros(self.layout.directions)
        self._diagonal = np.concatenate(kernels)[:, None]
        self._prepared: dict[int, Law] = {}

    @property
    def lengthscales(self) -> np.ndarray:
        """Scales tested."""
        return self.layout.lengthscales

    def moments(self, counts: sp.csc_array) -> GeneMoments:
        """Mean and dispersion of each gene (columns; spots in the given order)."""
        depth = np.empty_like(self.depth)
        depth[self.layout.order] = self.depth
        return self.moments_of(sum_genes(counts, depth))

    def moments_of(self, sums: GeneSums) -> GeneMoments:
        """Mean and dispersion from sums over the same spots, whatever the unit of the depth they were made with."""
        return gene_moments(sums, self.depth)

    def classes(self, moments: GeneMoments) -> Int[np.ndarray, " genes"]:
        """Class of c of each gene, or -1 if it is not tested; dispersions are shrunk toward their median over genes."""
        mean, dispersion, spots = moments
        tested = spots >= _FEWEST_SPOTS
        if not tested.any():
            return np.full(len(mean), -1)
        high = mean > np.median(mean[mean > 0])
        common = max(float(np.median(dispersion[high])) if high.any() else 0.1, 1e-3)
        error = 2.0 / len(self.depth) * (1.0 / np.maximum(mean, 1e-6) + common) ** 2
        dispersion = (dispersion * common**2 + common * error) / (common**2 + error)
        nearest = np.abs(np.log((dispersion * mean)[:, None] + 0.05) - np.log(_CLASSES + 0.05)).argmin(1)
        return np.where(tested, nearest, -1)

    def law(self, code: int) -> Law:
        """Null law of a class of genes. Classes do not wait for each other."""
        return self._law_of(code, self._weights_of(code))

    def know(self, laws: Mapping[int, Law]) -> None:
        """Take the null laws of classes as computed, so that copies of the test need not, and are small."""
        self._prepared.update(laws)

    def test(self, counts: sp.csc_array, mean: np.ndarray, classes: np.ndarray) -> ScoreTest:
        """Test genes.

        Parameters
        ----------
        counts
            Spots by genes.
        mean, classes
            Of the same genes, from :meth:`moments` and :meth:`classes`.
        """
        genes, scales = counts.shape[1], len(self.lengthscales)
        rows = sp.csr_array(counts.T.tocsr()[:, self.layout.order]).astype(np.float32, copy=False)
        log_p = np.full((2, scales + 3, genes), np.nan)  # the last: the lower tail of the first, and two directions
        skewness = np.zeros(log_p.shape)
        detectable = np.zeros((scales, genes))
        size = max(8, _BLOCK_VALUES // (len(self.depth) + self.layout.grid_size))
        for code in np.unique(classes[classes >= 0]):
            weights = self._weights_of(int(code))
            cumulants, spectra = self._law_of(int(code), weights)
            members = np.flatnonzero(classes == code)
            spread = np.sqrt([one.second for one in cumulants[:scales]])
            detectable[:, members] = 0.5 * spread[:, None] * weights.scale * mean[members]
            for kind in (0, 1):
                kept = members if kind == 0 else members[mean[members] >= _ROOT_FROM_MEAN]
                for start in range(0, len(kept), size):
                    block = kept[start : start + size]
                    # Passed on without a name: the last ones are gone before the next are made.
                    tail = self._tails(
                        self._residuals(rows[block], kind, weights, mean[block]), weights, cumulants, spectra
                    )
                    log_p[kind][:, block], skewness[kind][:, block] = tail
            del weights  # before the next are made
        power = (_EFFECT * detectable) ** 2
        weight = 2.0 ** (-_SCALE_WEIGHT * np.arange(scales))[:, None] * power / (1.0 + power)
        weight = np.concatenate([weight, weight[[0, 0, 0]]])[None] / (1.0 + skewness**2)
        parts = (slice(scales), slice(scales, scales + 1), slice(scales + 1, None))
        combined, lower, directions = (
            combine_cauchy(log_p[:, part].reshape(-1, genes), weight[:, part].reshape(-1, genes)) for part in parts
        )
        combined = combined + np.log1p(_CAUCHY_EXCESS * -np.expm1(combined))
        combined = _share_level(combined, np.stack([lower, directions]))
        return ScoreTest(np.minimum(combined, 0.0), log_p[:, :scales], log_p[:, scales], log_p[:, scales + 1 :])

    def _residuals(self, counts: sp.csr_array, kind: int, weights: _Weights, mean: np.ndarray) -> np.ndarray:
        """Residuals U (genes, spots) in float32: of the counts (kind 0) or of their roots (kind 1)."""
        if kind == 1:
            factor = (weights.v / np.sqrt(self.depth)).astype(np.float32)
            roots = counts.copy()
            roots.data = np.sqrt(roots.data + np.float32(_ROOT_OFFSET)) - np.float32(np.sqrt(_ROOT_OFFSET))
            dense = roots.toarray()
            dense += np.float32(np.sqrt(_ROOT_OFFSET))
            if self._variance_model is None:
                self._root_means.take_from(dense, mean, weights.c)
            else:
                fitted = np.maximum(weights.fit(counts.toarray()), mean[:, None] / _LARGEST_BALANCE) * self.depth
                dense -= expected_roots(fitted, weights.c / np.maximum(mean, 1e-12), _ROOT_OFFSET)
            dense *= factor
            return weights.project(dense)
        dense = counts.toarray()
        dense *= weights.w
        weights.project(dense)
        spread = (_CLIP * np.sqrt(mean / weights.scale)).astype(np.float32)
        root = np.sqrt(weights.v).astype(np.float32)
        for some in _stretches(dense.shape[1]):
            limit = np.multiply.outer(spread, root[some])
            limit += weights.w[some]
            np.minimum(dense[:, some], limit, out=dense[:, some])
        return weights.project(dense)

    def _balance_groups(self, residuals: np.ndarray, weights: _Weights) -> None:
        """Scale residuals, in place, so that the slides of a gene have the variance that the weights expect.

        The level of a gene, and with it its variance, may differ between slides by more than the depth does.
        """
        if self._indicator is None:
            return
        indicator = self._indicator
        observed = (residuals**2) @ indicator
        expected = weights.v.astype(np.float32) @ indicator
        ratio = expected / expected.sum() * observed.sum(1, keepdims=True) / np.maximum(observed, 1e-12)
        residuals *= np.sqrt(np.clip(ratio, 1.0 / _LARGEST_BALANCE, _LARGEST_BALANCE)) @ indicator.T

    def _weights_of(self, code: int) -> _Weights:
        # Not kept: they are made in an instant, and have some sixty bytes for each spot.
        return _Weights(float(_CLASSES[code]), self.depth, self.design)

    def _law_of(self, code: int, weights: _Weights) -> Law:
        """Cumulants and spectra of a class; a few numbers for each scale."""
        if code not in self._prepared:
            cumulants = [
                self._cumulants(level, scale, weights)
                for level in self.layout.levels
                for scale in range(len(level.scales))
            ]
            spectra = self._interpolated_spectra(weights.c)
            for direction in range(self.layout.directions):
                cumulants.append(self._cumulants_of_direction(direction, weights))
                spectra.append(None)
            self._prepared[code] = cumulants, spectra
        return self._prepared[code]

    def _moments_of(self, level: Level, scale: int, weights: _Weights) -> tuple[float, float, float, np.ndarray]:
        """Mean and second cumulant of T, sum of K^2 v v over distinct pairs, and K V X by spot without the diagonal."""
        kernels, v = level.kernels, weights.v
        diagonal = kernels.diagonal[scale]
        applied = kernels.apply(scale, level.sums(weights.weighted_design))[level.point_of_spot]
        hollow = applied - diagonal * weights.weighted_design
        middle = weights.inverse @ (weights.weighted_design.T @ hollow)
        by_point = level.sums(v)
        pairs = by_point @ kernels.apply(scale, by_point, 2) - diagonal * (v**2).sum()
        crossed = np.sum(weights.inverse * (hollow.T @ (v[:, None] * hollow)))
        return -np.trace(middle), 2.0 * (pairs - 2.0 * crossed + np.trace(middle @ middle)), pairs, hollow

    def _cumulants(self, level: Level, scale: int, weights: _Weights) -> _Cumulants:
        mean, second, pairs, hollow = self._moments_of(level, scale, weights)
        kernels, v = level.kernels, weights.v
        by_point, squares = level.sums(v), level.sums(v**2)
        if level.dense:
            reach, third = kernels.apply(scale, by_point), 0.0  # the third is that of its spectrum
            # The kernel with its mean over spots taken out, as the intercepts do; across slides it is 0 anyway.
            total = np.bincount(kernels.groups, by_point)[kernels.groups]
            both = np.bincount(kernels.groups, by_point * reach)[kernels.groups]
            shift = reach / total
            centred = kernels.matrices[scale] - shift[:, None] - shift[None, :] + (both / total**2)[:, None]
            centred *= kernels.same_group
            diagonal = np.diag(centred)
            squared = centred * centred  # not centred**3: a power costs a hundred products
            cubes = by_point @ ((squared * centred) @ by_point) - squares @ diagonal**3
            fourths = squares @ ((squared * squared) @ squares) - level.sums(v**4) @ diagonal**4
        else:
            third = self._third_cumulant(level, scale, weights, hollow)
            cubes = by_point @ kernels.apply(scale, by_point, 3) - (v**2).sum()
            fourths = squares @ kernels.apply(scale, squares, 4) - (v**4).sum()
        shares, bottom = self._shares(hollow, weights), (v**2).sum() / v.sum()
        return _Cumulants(mean, second, third, pairs, max(cubes, 0.0), max(fourths, 0.0), shares, bottom)

    def _shares(self, hollow: np.ndarray, weights: _Weights) -> np.ndarray:
        if self._variance_model is None:  # not asked for
            return np.empty(0)
        middle = weights.inverse @ (weights.weighted_design.T @ hollow) @ weights.inverse
        return np.sum((weights.design @ middle - 2.0 * hollow @ weights.inverse) * weights.design, 1)

    def _cumulants_of_direction(self, direction: int, weights: _Weights) -> _Cumulants:
        """Of T with a kernel of directions: its eigenvalues lie on both sides of 0, so do two with their tr (A S)^4."""
        level, v = self.layout.levels[0], weights.v
        kernels, index = level.kernels, len(level.scales) + direction
        mean, second, pairs, hollow = self._moments_of(level, index, weights)
        by_point, squares = level.sums(v), level.sums(v**2)
        cubes = by_point @ kernels.apply(index, by_point, 3)
        fourths = squares @ kernels.apply(index, squares, 4)
        number = int(np.ceil(_DIRECTION_PROBES / len(v)))
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(v), number))
        root = np.sqrt(v)[:, None]

        def apply(values: np.ndarray) -> np.ndarray:
            return root * kernels.apply(index, level.sums(root * values))[level.point_of_spot]

        once = weights.whiten(apply(weights.whiten(signs)))
        twice = weights.whiten(apply(once))
        third, fourth = np.sum(once * twice) / number, np.sum(twice**2) / number
        bottom = np.sqrt(fourth / max(second / 2.0, 1e-12))  # 0 on a line of spots
        shares = self._shares(hollow, weights)
        return _Cumulants(mean, second, 8.0 * third, pairs, cubes, max(fourths, 0.0), shares, bottom)

    def _third_cumulant(self, level: Level, scale: int, weights: _Weights, hollow: np.ndarray) -> float:
        """Of T on a grid: 8 tr (A S)^3 with A = K - I; nuisance columns take the largest eigenvalues out.

        The triangles of A V are those of a continuum; what the columns take is exact. Where they take most of it, by
        random signs z, whose mean of z'(A S)^3 z is the trace.
        """
        v, inverse = weights.v, weights.inverse

        def apply(values: np.ndarray) -> np.ndarray:
            weighted = v * values if values.ndim == 1 else v[:, None] * values
            return level.kernels.apply(scale, level.sums(weighted))[level.point_of_spot] - weighted

        factor = level.third[scale] / 3.0 ** (len(level.kernels.shape) / 2.0)
        triangles = factor * np.sum(v * apply(np.ones(len(v))) ** 2)
        weighted = v[:, None] * hollow
        once = inverse @ (weights.weighted_design.T @ hollow)
        twice, thrice = inverse @ (weighted.T @ hollow), inverse @ (weighted.T @ apply(hollow))
        taken = 3.0 * np.trace(thrice) - 3.0 * np.trace(twice @ once) + np.trace(once @ once @ once)
        if taken <= _MOST_TAKEN * triangles:
            return 8.0 * (triangles - taken)
        signs, root, total = _random_signs(len(v), _PROBES), np.sqrt(v)[:, None], 0.0
        for start in range(0, _PROBES, _PROBES_AT_ONCE):
            some = signs[:, start : start + _PROBES_AT_ONCE].astype(np.float64)
            first = weights.whiten(root * apply(weights.whiten(some) / root))
            total += float(np.sum(first * root * apply(first / root)))
        return 8.0 * total / _PROBES

    def _class_spectra(self, weights: _Weights) -> list:
        """Eigenvalues of each scale at one class, with a bulk (number, value) to match the second cumulant; or None."""
        result: list = []
        for level in self.layout.levels:
            for scale in range(len(level.scales)):
                result.append(self._spectrum(level, scale, weights) if level.dense else None)
        return result

    def _spectrum(self, level: Level, scale: int, weights: _Weights):
        v = weights.v
        by_point = level.sums(v)
        matrix = level.kernels.matrices[scale]
        if level.exact:
            matrix = matrix - np.diag(np.diag(matrix))
        root = np.sqrt(by_point)
        basis = level.sums(weights.weighted_design) / np.maximum(root, 1e-15)[:, None]
        basis = basis @ np.linalg.cholesky(weights.inverse)
        scaled = root[:, None] * matrix * root[None, :]
        product = scaled @ basis
        scaled = scaled - product @ basis.T - basis @ product.T + basis @ (basis.T @ product) @ basis.T
        eigenvalues = np.linalg.eigvalsh(scaled)[::-1]
        if level.exact:
            return eigenvalues, (0.0, 1.0)
        # Cells: few eigenvalues, minus the diagonal; the rest of the sum and of the sum of squares in a bulk.
        mean, second, _, _ = self._moments_of(level, scale, weights)
        diagonal = (v**2).sum() / v.sum()
        kept = eigenvalues[eigenvalues > 1e-3 * eigenvalues[0]][: len(v) // 2] - diagonal
        rest = kept.sum() - mean
        square = max(second / 2.0 - (kept**2).sum(), 1e-9)
        bulk = (rest**2 / square, square / rest) if rest > 0 else (0.0, diagonal)
        return kept, bulk

    def _interpolated_spectra(self, c: float) -> list:
        position = _SPECTRUM_CLASSES / (1.0 + _SPECTRUM_CLASSES)
        here = c / (1.0 + c)
        index = int(np.clip(np.searchsorted(position, here) - 1, 0, len(position) - 2))
        share = (here - position[index]) / (position[index + 1] - position[index])
        result: list = []
        for low, high in zip(self._spectra[index], self._spectra[index + 1], strict=True):
            if low is None:
                result.append(None)
                continue
            size = min(len(low[0]), len(high[0]))
            values, counts = compress_spectrum((1 - share) * low[0][:size] + share * high[0][:size])
            number, value = ((1 - share) * a + share * b for a, b in zip(low[1], high[1], strict=True))
            if number > 0:
                values, counts = np.r_[values, -value], np.r_[counts, number]
            result.append((values, counts))
        return result

    def _tails(self, residuals, weights: _Weights, cumulants: list[_Cumulants], spectra: list):
        """Log p-values and skewness, by gene; NaN where skewness is too large.

        Of each scale, of the first one's lower tail and of two directions.
        """
        v = weights.v
        self._balance_groups(residuals, weights)
        sum2, sum3, sum4 = np.concatenate([_power_sums(residuals[some]) for some in _stretches(len(residuals), 4)], 1)
        constant = sum2 <= 1e-9 * weights.trace  # no variation left once depth and covariates are out
        sum2 = np.where(constant, 1.0, sum2)
        variances = v if self._variance_model is None else self._variance_model(residuals * residuals, v)
        statistic = self.layout.quadratic(residuals).astype(np.float64) - self._diagonal * sum2
        means, ratios = self._law_of_variances(variances, weights, cumulants)
        stretch = kurtosis_stretch(sum4 / sum2**2, variances)
        third_moment = sum3 / sum2 * np.sqrt(weights.trace / sum2)  # of a residual of variance v, by v
        kurtosis = sum4 / sum2**2 * v.sum() ** 2 / (variances**2).sum(-1)
        scales = len(self.lengthscales)
        log_p = np.full((scales + 3, len(sum2)), np.nan)
        skewness = np.zeros(log_p.shape)
        for index, (cumulant, spectrum) in enumerate(zip(cumulants, spectra, strict=True)):
            mean, second = cumulant.mean, cumulant.second
            varies = second - 2.0 * mean**2 / weights.trace
            if varies < 0.02 * weights.trace or varies < _LEAST_LEFT * second:
                # The kernel is nearly constant, or 0, on these spots, or nuisance columns take most of it out: what is
                # left is the missing diagonal, minus the sum of squares.
                continue
            wider = np.sqrt(ratios[index])
            observed = mean + (statistic[index] / sum2 * weights.trace - means[index]) * stretch / wider
            extra_third = 4.0 * cumulant.cubes * third_moment**2 / wider
            extra_fourth = np.maximum(8.0 * cumulant.fourths * (kurtosis**2 - 9.0) / second**2, 0.0)
            row = index if index < scales else index + 1
            skewness[row] = np.maximum(abs(extra_third) / second**1.5, np.sqrt(extra_fourth))
            # Variance on a part of the spots: the wider the spread the fewer they are, and the more skewed.
            third = cumulant.third if spectrum is None else 8.0 * (spectrum[1] * spectrum[0] ** 3).sum()
            extra_third = extra_third + (wider - 1.0) * third
            corrected = (skewness[row] > 0.01) | (wider != 1.0)
            gaussian = LawOfGaussian(mean, second, third, cumulant.bottom, spectrum)
            law = NullLaw(gaussian, weights.trace, extra_third, extra_fourth, corrected)
            largest = _LARGEST_SKEWNESS if index < scales else _LARGEST_TWO_SIDED
            usable = ~constant & (skewness[row] <= largest)
            if index >= scales:
                tail = np.minimum(law.log_tail(observed / weights.trace, observed < mean) + np.log(2.0), 0.0)
            else:
                tail = law.log_tail(observed / weights.trace)
            log_p[row] = np.where(usable, tail, np.nan)
            if index == 0 and self.layout.sees_neighbours:
                log_p[scales] = np.where(usable, law.log_tail(observed / weights.trace, True), np.nan)
                skewness[scales] = skewness[0]
        return log_p, skewness

    def _law_of_variances(self, variances: np.ndarray, weights: _Weights, cumulants: list[_Cumulants]):
        """Mean of T, and by what its variance is larger, by scale and gene of residuals with these variances."""
        if variances.ndim == 1:
            return [cumulant.mean for cumulant in cumulants], np.ones(len(cumulants))
        kept = weights.trace / (variances @ weights.kept)
        means = np.stack([variances @ cumulant.shares * kept for cumulant in cumulants])
        pairs = self.layout.quadratic(variances.astype(np.float32), 2) - self._diagonal * (variances**2).sum(1)
        expected = np.array([[max(cumulant.pairs, 1e-12)] for cumulant in cumulants])
        return means, np.clip(pairs / expected, 1.0 / _LARGEST_BALANCE, _LARGEST_BALANCE)


def _stretches(number: int, size: int = _SPOTS_AT_ONCE) -> Iterator[slice]:
    """Some spots or genes after the other: what is computed of all of them at once is as large as the residuals."""
    for start in range(0, number, size):
        yield slice(start, start + size)


def _power_sums(residuals: Float[np.ndarray, "genes spots"]) -> Float[np.ndarray, "3 genes"]:
    """Sums of squares, third and fourth powers over the spots."""
    squared = residuals * residuals
    sum2 = squared.sum(1, dtype=np.float64)
    sum3, sum4 = (np.einsum("gi,gi->g", squared, other).astype(np.float64) for other in (residuals, squared))
    return np.stack([sum2, sum3, sum4])


def _random_signs(rows: int, columns: int) -> Int[np.ndarray, "rows columns"]:
    """-1 or 1, in a byte each; drawn in parts, because they are drawn in eight."""
    generator, signs = np.random.default_rng(0), np.empty((rows, columns), np.int8)
    for some in _stretches(rows):
        signs[some] = generator.choice([-1, 1], signs[some].shape)
    return signs


def _share_level(upper: Float[np.ndarray, " genes"], others: Float[np.ndarray, "tests genes"]) -> np.ndarray:
    """Log p-value of the smallest of tests that each have their share of the level; of the upper tail without others.

    Bonferroni, not Cauchy: a tail near 1 would cancel the other in a sum, and hardly two are small at once.
    """
    share = _ALTERNATION_SHARE * np.isfinite(others).sum(0)
    smallest = np.fmin.reduce(others, 0)
    return np.fmin(upper - np.log1p(-share), smallest - np.log(_ALTERNATION_SHARE))


def kurtosis_stretch(share: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """By what to stretch a statistic about its mean so that its spread is that of Gaussian residuals.

    Given the absolute residuals U, the variance of T is proportional to (sum U^2)^2 - sum U^4.

    Parameters
    ----------
    share
        sum U^4 / (sum U^2)^2 of each gene.
    variances
        Variance of each residual under the null model.
    """
    squares = (variances**2).sum(-1)
    gaussian = 3.0 * squares / (variances.sum(-1) ** 2 + 2.0 * squares)
    return np.sqrt((1.0 - gaussian) / (1.0 - np.minimum(share, 0.9)))
