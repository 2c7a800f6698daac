r"""Spatially variable genes: variance components of a Gaussian process, and a score test against its absence.

The model. Residual expression of a gene on n spots at positions x is

    r = f + e,   f ~ N(0, s_s^2 K),   e ~ N(0, s_e^2 I),   K_ij = k(x_i, x_j)

Without ``total_counts`` the residuals are centred values. With ``total_counts`` the expression is counts, negative
binomial with mean s_i m and variance s_i m (1 + c s_i), where s is the depth of the spot over its mean, c = alpha m and
alpha the gene's overdispersion by moments; the residuals are Pearson's, with log depth projected out.

FSV. For each gene log(s_s^2 / s_e^2) maximises the restricted likelihood times a broad Gaussian prior around the
operator's own variance and noise variance. The fraction of spatial variance counts what the kernel shows on these
spots, g = tr(PKP) / m with P the projection that removes the nuisance columns and m its rank:

    FSV = g s_s^2 / (g s_s^2 + s_e^2)

P-values come from a null law, not from the fit. The score of the negative binomial at f = 0 is
u_i = (y_i - s_i m) / (1 + c s_i), of variance proportional to v_i = s_i / (1 + c s_i), and

    t = sum_{i != j} K_ij u_i u_j / sum_i u_i^2 / v_i,   P(t' > t) = P(sum_j (lambda_j - t) chi^2_1 > 0)

with lambda the spectrum of the kernel without its diagonal, weighted by v and projected; the tail is a saddlepoint
approximation (Lugannani and Rice) that holds far out. The variances cancel: of all parameters the p-value sees only the
kernel, its kind and lengthscale. Training that raises FSV therefore cannot lower p-values on genes without pattern,
except by choosing the lengthscale among the few that the spots can tell apart.

The decomposition into spatial and other variance is SpatialDE's (Svensson, Teichmann, Stegle 2018, Nature Methods
15:343) and SpatialDE2's (Kats, Vento-Tormo, Stegle 2021, bioRxiv 2021.10.27.466045), the score test of a kernel that of
SPARK-X (Zhu, Sun, Zhou 2021, Genome Biology 22:184) with an exact instead of a projected kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.spatial.gaussian_processes import KERNELS, kernel_matrix
from diffbio_sc.operators.contract import (
    FitReport,
    FittedStatistic,
    Operator,
    OperatorConfig,
    as_float_array,
    check_axis_size,
)

_PRIOR_DEVIATION = 3.0  # of log(s_s^2 / s_e^2)
_LARGEST_LOG_RATIO = 9.0
_GRID_POINTS = 37
_NEWTON_STEPS = 12
_SADDLEPOINT_STEPS = 40
_LARGEST_DISPERSION = 50.0
_RECONSTRUCTION_WEIGHT = 0.1
_JITTER = 1e-4  # of the inducing spots' kernel: a Cholesky factor in float32 needs so much
# Where 1 / (1 + c) has these values the null spectrum is computed; between them it is interpolated.
_SPECTRUM_NODES = (0.0, 0.5, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialGeneDetectorConfig(OperatorConfig):
    """Settings of :class:`DifferentiableSpatialGeneDetector`.

    Parameters
    ----------
    n_genes
        Number of genes, columns of ``expression``.
    lengthscale
        Initial range of the kernel, in units of the coordinates given (for the periodic kernel, of the period).
    variance, noise_variance
        Initial signal and noise variance, of which the ratio counts: each gene's own ratio is drawn towards it.
    hidden_dims
        Widths of the network that corrects the smoothed expression; empty leaves it out. It is exactly 0 until
        trained.
    temperature
        Of the soft call, on the scale of log p; towards 0 it becomes the hard call.
    pvalue_threshold
        P-value at which the soft call is one half.
    learnable_kernel
        Whether gradient steps change lengthscale and variances.
    kernel
        ``"rbf"``, ``"matern32"``, ``"matern52"``, ``"periodic"`` or ``"linear"``.
    period
        Period of the periodic kernel, in units of the coordinates.
    n_inducing_points
        0 decomposes the whole kernel (time n^3). Otherwise it is approximated through so many inducing spots, each as
        far as possible from those before it (time n times the square of their number), for slides of many spots.
    """

    n_genes: int = 2000
    lengthscale: float = 1.0
    variance: float = 1.0
    noise_variance: float = 0.1
    hidden_dims: tuple[int, ...] = (64, 32)
    temperature: float = 1.0
    pvalue_threshold: float = 0.05
    learnable_kernel: bool = True
    kernel: str = "rbf"
    period: float = 1.0
    n_inducing_points: int = 0

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("n_genes")
        self.require_integers("n_inducing_points", minimum=0)
        self.require_positive("lengthscale", "variance", "noise_variance", "temperature", "period")
        self.require_fractions("pvalue_threshold", zero_allowed=False, one_allowed=False)
        self.require_sizes("hidden_dims", empty_allowed=True)
        self.require_booleans("learnable_kernel")
        self.require_one_of("kernel", KERNELS)


class _Residuals(NamedTuple):
    """Residuals of all genes.

    Attributes
    ----------
    values
        Residuals of constant variance under the null, before projection.
    alive
        Whether the gene varies at all.
    weights
        v by spot and gene, mean 1; None without counts.
    sharpness
        1 / (1 + c), from 1 (Poisson) to 0 (strong overdispersion); None without counts.
    design
        Nuisance columns.
    depth
        s; ones without counts.
    mean, unit
        Smoothed expression is ``mean + unit * residual``.
    target
        Expression on the scale of the smoothed.
    """

    values: Float[Array, "spots genes"]
    alive: Bool[Array, " genes"]
    weights: Float[Array, "spots genes"] | None
    sharpness: Float[Array, " genes"] | None
    design: Float[Array, "spots columns"]
    depth: Float[Array, " spots"]
    mean: Float[Array, " genes"]
    unit: Float[Array, " genes"]
    target: Float[Array, "spots genes"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A kernel matrix: ``matrix`` itself, or ``matrix @ matrix.T`` where it ``is_factor``."""

    matrix: Float[Array, "spots columns"]
    is_factor: bool = dataclasses.field(metadata={"static": True})

    def times(self, vectors: Float[Array, "spots columns"]) -> Float[Array, "spots columns"]:
        if self.is_factor:
            return self.matrix @ (self.matrix.T @ vectors)
        return self.matrix @ vectors

    def diagonal(self) -> Float[Array, " spots"]:
        return jnp.square(self.matrix).sum(1) if self.is_factor else jnp.diagonal(self.matrix)


class _Fit(NamedTuple):
    """Variance components of all genes; ``objective`` is the log posterior at the maximum, a degree of freedom."""

    fsv: Float[Array, " genes"]
    signal: Float[Array, " genes"]
    posterior_mean: Float[Array, "spots genes"]
    objective: Float[Array, " genes"]


class DifferentiableSpatialGeneDetector(Operator):
    """Genes whose expression depends on place, with everything differentiable.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; the ``params`` stream makes the correction network.

    Notes
    -----
    Inputs of ``apply``: ``spatial_coords`` (spots, 2 or 3); ``expression`` (spots, genes), log-normalised values, or
    counts if ``total_counts`` (spots,) is given too. Batches of slides have leading axes, the same for all three;
    coordinates without them serve all slides of the batch.

    Outputs: ``fsv``, ``spatial_pvalues``, ``is_spatial`` (a soft call, one half at the threshold) and
    ``spatial_variance`` (genes,); ``smoothed_expression`` (spots, genes): the posterior mean of the Gaussian process
    at the gene's own ratio of variances, plus the trained correction; for counts in counts a spot of mean depth.

    Untrained, this is the classic answer at the configured lengthscale, whose unit is that of the coordinates: choose
    it as one to five spot spacings, or call ``fit``. A gene without variation has FSV 0 and p-value 1.

    Gradients: FSV is an optimum, its derivative is that of one Newton step at the optimum, which is exact. Spectra
    are differentiated to first order with their eigenvectors held, which is exact for all that is symmetric in the
    eigenvalues, and finite where eigenvalues coincide.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.multiomics.spatial_genes import (
    ...     DifferentiableSpatialGeneDetector,
    ...     SpatialGeneDetectorConfig,
    ... )
    >>> coords = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0)), -1).reshape(-1, 2)
    >>> wave, alternating = jnp.sin(coords[:, 0] / 2), (-1.0) ** coords.sum(1)
    >>> config = SpatialGeneDetectorConfig(n_genes=2, lengthscale=1.5)
    >>> detector = DifferentiableSpatialGeneDetector(config, rngs=nnx.Rngs(0))
    >>> data = {"spatial_coords": coords, "expression": jnp.stack([wave, alternating], 1)}
    >>> result, _, _ = detector.apply(data, {}, None)
    >>> (result["is_spatial"] > 0.5).tolist()
    [True, False]
    """

    config_class: ClassVar[type[OperatorConfig]] = SpatialGeneDetectorConfig
    required_keys: ClassVar[tuple[str, ...]] = ("spatial_coords", "expression")
    optional_keys: ClassVar[tuple[str, ...]] = ("total_counts",)
    config: SpatialGeneDetectorConfig

    def __init__(self, config: SpatialGeneDetectorConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        variable = nnx.Param if config.learnable_kernel else FittedStatistic
        self.log_lengthscale = variable(jnp.log(jnp.float32(config.lengthscale)))
        self.log_variance = variable(jnp.log(jnp.float32(config.variance)))
        self.log_noise_variance = variable(jnp.log(jnp.float32(config.noise_variance)))
        self.correction = (
            SmoothingCorrection(config.n_genes, config.hidden_dims, rngs=rngs) if config.hidden_dims else None
        )

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``fsv``, ``spatial_pvalues``, ``is_spatial``, ``smoothed_expression`` and ``spatial_variance``."""
        return self._over_slides(data, self._detect)

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        r"""Minus the log posterior of the variance ratios, and a reconstruction term for the network.

        The first term is minus the restricted log-likelihood at each gene's ratio plus the log prior of the ratio, a
        degree of freedom, averaged over genes of unit variance. The second is 0.1 times the mean squared difference
        of smoothed and observed expression in units of the gene's standard deviation; its gradient reaches the
        network alone, because the kernel that reproduces the observed values best is the one that does not smooth.
        Without a network there is no second term.
        """
        return self._over_slides(data, self._slide_loss).mean()

    def fit(
        self,
        data: Mapping[str, Any],
        *,
        steps: int = 200,
        learning_rate: float = 0.02,
        **options: Any,
    ) -> FitReport:
        """Lower ``loss`` by gradient descent on all spots at once.

        Parameters
        ----------
        data
            ``spatial_coords``, ``expression`` and, for counts, ``total_counts``.
        steps
            Gradient steps at most.
        learning_rate
            Of Adam; the parameters of the kernel are logarithms.
        options
            Further arguments of :func:`diffbio_sc.training.train`, such as ``patience`` or ``checkpoint``.

        Returns
        -------
        History, whether the stopping rule was met, steps and seconds.
        """
        from diffbio_sc.training.loop import train

        self.check_keys(data)
        coordinates, expression, total = self._inputs(data)
        arrays = {"spatial_coords": coordinates, "expression": expression}
        if total is not None:
            arrays["total_counts"] = total
        settings = {"batch_size": None, "description": "spatial genes", **options}
        return train(self, arrays, max_epochs=steps, learning_rate=learning_rate, **settings)

    def _over_slides(self, data, function):
        coordinates, expression, total = self._inputs(data)
        leading = expression.shape[:-2]
        arrays = [array for array in (coordinates, expression, total) if array is not None]
        if not leading:
            return function(*arrays)
        flat = [array.reshape(-1, *array.shape[len(leading) :]) for array in arrays]
        result = jax.vmap(function)(*flat)
        return jax.tree.map(lambda array: array.reshape(*leading, *array.shape[1:]), result)

    def _inputs(self, data):
        expression = as_float_array(data, "expression", range(2, 9))
        check_axis_size("expression", expression, -1, self.config.n_genes, "config.n_genes")
        coordinates = as_float_array(data, "spatial_coords", (2, expression.ndim)).astype(expression.dtype)
        *leading, spots, _ = expression.shape
        if coordinates.shape[-1] not in (2, 3):
            raise ValueError(f"data['spatial_coords'] must have 2 or 3 columns, found shape {coordinates.shape}.")
        if spots < 5:
            raise ValueError(f"data['expression'] must have at least 5 spots, found shape {expression.shape}.")
        if coordinates.ndim == 2:
            coordinates = jnp.broadcast_to(coordinates, (*leading, *coordinates.shape))
        _check_leading("spatial_coords", coordinates, (*leading, spots), ".shape[:-1]")
        total = None
        if data.get("total_counts") is not None:
            total = as_float_array(data, "total_counts", (expression.ndim - 1,)).astype(expression.dtype)
            _check_leading("total_counts", total, (*leading, spots, 1), "")
        return coordinates, expression, total

    def _detect(self, coordinates, expression, total=None):
        residuals = _residuals(expression, total)
        kernel = self._kernel(coordinates)
        fit = _fit_ratios(kernel, residuals, self._prior_log_ratio())
        log_p = _log_pvalues(kernel, residuals)
        smoothed = residuals.mean + residuals.unit * fit.posterior_mean
        if total is not None:
            smoothed = jnp.maximum(smoothed, 0.0)
        return {
            "fsv": fit.fsv,
            "spatial_pvalues": jnp.exp(log_p),
            "is_spatial": jax.nn.sigmoid((jnp.log(self.config.pvalue_threshold) - log_p) / self.config.temperature),
            "smoothed_expression": self._correct(smoothed),
            "spatial_variance": jnp.square(residuals.unit) * fit.signal,
        }

    def _slide_loss(self, coordinates, expression, total=None):
        residuals = _residuals(expression, total)
        fit = _fit_ratios(self._kernel(coordinates), residuals, self._prior_log_ratio())
        if self.correction is None:
            return -fit.objective.mean()
        smoothed = jax.lax.stop_gradient(residuals.mean + residuals.unit * fit.posterior_mean)
        target = residuals.target
        variance = jnp.var(target, axis=0)
        error = jnp.square(self._correct(smoothed) - target) / jnp.where(variance > 0, variance, 1.0)
        return -fit.objective.mean() + _RECONSTRUCTION_WEIGHT * error.mean()

    def _correct(self, smoothed):
        return smoothed if self.correction is None else smoothed + self.correction(smoothed)

    def _prior_log_ratio(self):
        return self.log_variance[...] - self.log_noise_variance[...]

    def _kernel(self, coordinates) -> _Kernel:
        config = self.config
        lengthscale = jnp.exp(self.log_lengthscale[...]).astype(coordinates.dtype)
        count = config.n_inducing_points
        if not 0 < count < len(coordinates):
            return _Kernel(kernel_matrix(coordinates, lengthscale, config.kernel, config.period), False)
        if config.kernel == "linear":  # of low rank as it is
            return _Kernel((coordinates - coordinates.mean(0)) / lengthscale, True)
        inducing = coordinates[_spread_out(jax.lax.stop_gradient(coordinates), count)]
        among = kernel_matrix(inducing, lengthscale, config.kernel, config.period)
        across = kernel_matrix(coordinates, lengthscale, config.kernel, config.period, other=inducing)
        root = jnp.linalg.cholesky(among + _JITTER * jnp.eye(count, dtype=among.dtype))
        return _Kernel(jax.scipy.linalg.solve_triangular(root, across.T, lower=True).T, True)


class SmoothingCorrection(nnx.Module):
    """A small network minus its own initial state: exactly 0 until trained, with gradients in every parameter.

    It sees the smoothed expression of all genes at a spot, in standard deviations, and answers in the same unit.
    """

    def __init__(self, genes: int, hidden_dims: tuple[int, ...], *, rngs: nnx.Rngs):
        sizes = (genes, *hidden_dims, genes)
        self.layers = nnx.List([nnx.Linear(before, after, rngs=rngs) for before, after in pairwise(sizes)])
        self.initial_kernels = nnx.List([FittedStatistic(jnp.array(layer.kernel[...])) for layer in self.layers])
        self.initial_biases = nnx.List([FittedStatistic(jnp.array(layer.bias[...])) for layer in self.layers])

    def __call__(self, smoothed: Float[Array, "spots genes"]) -> Float[Array, "spots genes"]:
        """Correction of the smoothed expression."""
        centred = smoothed - smoothed.mean(0)
        variance = jnp.square(centred).mean(0)
        deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        features = centred / jnp.where(deviation > 0, deviation, 1.0)
        now = _network(features, [(layer.kernel[...], layer.bias[...]) for layer in self.layers])
        start = [(k[...], b[...]) for k, b in zip(self.initial_kernels, self.initial_biases, strict=True)]
        return deviation * (now - _network(features, jax.lax.stop_gradient(start)))


def _network(values, layers):
    for number, (weights, bias) in enumerate(layers):
        values = (jnp.tanh(values) if number else values) @ weights + bias
    return values


def _check_leading(key, array, expected, part):
    found = array.shape if part == "" else array.shape[:-1]
    wanted = tuple(expected)[: len(found)] if part else tuple(expected)[:-1]
    if found != wanted:
        raise ValueError(f"data[{key!r}]{part} must be {wanted} as data['expression'] has, found {found}.")


def _spread_out(coordinates, count):
    """Indices of spots, each farthest from all before it; the first is the one farthest from the middle."""

    def choose(number, state):
        chosen, distance = state
        new = jnp.argmax(distance)
        chosen = chosen.at[number].set(new)
        return chosen, jnp.minimum(distance, jnp.square(coordinates - coordinates[new]).sum(1))

    first = jnp.argmax(jnp.square(coordinates - coordinates.mean(0)).sum(1))
    chosen = jnp.zeros(count, first.dtype).at[0].set(first)
    distance = jnp.square(coordinates - coordinates[first]).sum(1)
    return jax.lax.fori_loop(1, count, choose, (chosen, distance))[0]


@jax.jit
def _residuals(expression, total) -> _Residuals:
    return _centred_values(expression) if total is None else _count_residuals(expression, total)


def _centred_values(expression) -> _Residuals:
    spots, genes = expression.shape
    mean = expression.mean(0)
    return _Residuals(
        values=expression - mean,
        alive=_varies(expression - mean, expression),
        weights=None,
        sharpness=None,
        design=jnp.ones((spots, 1), expression.dtype),
        depth=jnp.ones(spots, expression.dtype),
        mean=mean,
        unit=jnp.ones(genes, expression.dtype),
        target=expression,
    )


def _count_residuals(counts, total) -> _Residuals:
    filled = total > 0
    typical = total.mean()
    depth = total / jnp.where(typical > 0, typical, 1.0)
    safe = jnp.where(filled, depth, 1.0)
    level = jnp.maximum(depth.sum(), 1e-30)
    mean = counts.sum(0) / level
    shown = mean > 0
    rate = jnp.where(shown, mean, 1.0)
    expected = depth[:, None] * mean
    # E sum (y - s m)^2 = m sum s + alpha m^2 sum s^2.
    excess = jnp.square(counts - expected).sum(0) - rate * level
    dispersion = excess / (jnp.square(rate) * jnp.maximum(jnp.square(depth).sum(), 1e-30))
    strength = jnp.clip(dispersion, 0.0, _LARGEST_DISPERSION) * rate
    deviation = jnp.sqrt(safe[:, None] * rate * (1.0 + strength * safe[:, None]))
    weights = depth[:, None] / (1.0 + strength * depth[:, None])
    # A change of the rate by the share g moves the residual by sqrt(m v) g; one mean of sqrt(v) serves all spots.
    visibility = jnp.where(filled[:, None], jnp.sqrt(safe[:, None] / (1.0 + strength * safe[:, None])), 0.0).mean(0)
    return _Residuals(
        values=jnp.where(shown & filled[:, None], (counts - expected) / deviation, 0.0),
        alive=shown & _varies(counts - expected, counts),
        weights=weights / jnp.maximum(weights.mean(0), 1e-30),
        sharpness=1.0 / (1.0 + strength),
        design=jnp.stack([jnp.ones_like(depth), _standard_log(safe, filled)], 1),
        depth=depth,
        mean=mean,
        unit=jnp.where(shown, jnp.sqrt(rate) / jnp.maximum(visibility, 1e-30), 0.0),
        target=counts / safe[:, None],
    )


def _varies(residuals, expression):
    # Rounding leaves residuals of a constant of about 1e-7 of it, whose squares are far below this.
    return jnp.square(residuals).sum(0) > 1e-11 * jnp.square(expression).sum(0)


def _standard_log(depth, filled):
    logs = jnp.where(filled, jnp.log(depth), 0.0)
    logs = jnp.where(filled, logs - logs.sum() / jnp.maximum(filled.sum(), 1), 0.0)
    spread = jnp.square(logs).mean()
    return jnp.where(spread > 1e-8, logs / jnp.sqrt(jnp.where(spread > 1e-8, spread, 1.0)), 0.0)


def _basis(design):
    """Orthonormal columns that span the design; a column that the others span becomes zero."""
    columns: list[Array] = []
    for index in range(design.shape[1]):
        column = design[:, index]
        for other in columns:
            column = column - other * (other @ column)
        norm = jnp.square(column).sum()
        good = norm > 1e-8 * jnp.maximum(jnp.square(design[:, index]).sum(), 1e-12)
        columns.append(jnp.where(good, column / jnp.sqrt(jnp.where(good, norm, 1.0)), 0.0))
    return jnp.stack(columns, 1)


def _project(basis, vectors):
    return vectors - basis @ (basis.T @ vectors)


@jax.jit
def _fit_ratios(kernel: _Kernel, residuals: _Residuals, prior) -> _Fit:
    r"""Maximise the log posterior of theta = log(s_s^2 / s_e^2) of each gene.

    With C = I + exp(theta) PKP, residuals r = Py, w = C^-1 r, q = r'w and m degrees of freedom,

        J(theta)  = -m/2 log q - 1/2 log det C - (theta - prior)^2 / (2 * 3^2)
        J'(theta) = m/2 (q - w'w) / q - 1/2 sum_j (1 - 1 / (1 + exp(theta) lambda_j)) - (theta - prior) / 3^2

    The maximum is found with the eigenvectors of PKP. The same J' at fixed theta, written with a linear solve and with
    eigenvalues that can be differentiated, gives the maximum its derivative: d theta = -(1 / J'') dJ'.
    """
    basis = _basis(residuals.design)
    freedom = len(residuals.values) - jax.lax.stop_gradient(jnp.square(basis).sum())
    values = _project(basis, residuals.values)
    power = jnp.square(values).sum(0)
    alive = residuals.alive & (power > 1e-10 * jnp.square(residuals.values).sum(0))
    scale = jnp.sqrt(jnp.where(alive, power, 1.0) / freedom)
    values = jnp.where(alive, values / scale, 0.0)

    def times(vectors):
        return _project(basis, kernel.times(_project(basis, vectors)))

    vectors, eigenvalues = _eigenbasis(kernel, basis, times)
    eigenvalues = jnp.maximum(eigenvalues, 0.0)
    held = jax.lax.stop_gradient(eigenvalues)[:, None]
    squares = jnp.square(vectors.T @ jax.lax.stop_gradient(values))
    centre = jax.lax.stop_gradient(prior)
    theta, curvature = _largest_posterior(held[:, 0], squares, freedom, centre)

    def whiten(log_ratio):
        ratio = jnp.exp(log_ratio)
        load = jax.lax.stop_gradient(ratio) * held

        def solve(_, right):
            return right - vectors @ (load / (1.0 + load) * (vectors.T @ right))

        return jax.lax.custom_linear_solve(lambda left: left + ratio * times(left), values, solve, symmetric=True)

    white = whiten(theta)
    quadratic = jnp.where(alive, (values * white).sum(0), 1.0)
    load = jnp.exp(theta) * eigenvalues[:, None]
    objective = -0.5 * (freedom * jnp.log(quadratic / freedom) + jnp.log1p(load).sum(0))
    objective = objective - 0.5 * jnp.square((theta - prior) / _PRIOR_DEVIATION)
    slope = 0.5 * freedom * (1.0 - jnp.square(white).sum(0) / quadratic) - 0.5 * (load / (1.0 + load)).sum(0)
    slope = slope - (theta - prior) / _PRIOR_DEVIATION**2
    free = alive & (jnp.abs(theta) < _LARGEST_LOG_RATIO) & (curvature < 0)
    step = (slope - jax.lax.stop_gradient(slope)) / jnp.where(free, -curvature, 1.0)
    theta = theta + jnp.where(free, step, 0.0)

    share = eigenvalues.sum() / freedom
    ratio = share * jnp.exp(theta)
    white = whiten(theta)
    noise = jnp.where(alive, (values * white).sum(0), 0.0) / freedom * jnp.square(scale)
    return _Fit(
        fsv=jnp.where(alive, ratio / (1.0 + ratio), 0.0),
        signal=jnp.where(alive, ratio * noise, 0.0),
        # r - C^-1 r is the best linear prediction of the field where mean and depth slope are estimated too.
        posterior_mean=jnp.where(alive, (values - white) * scale, 0.0),
        objective=jnp.where(alive, objective / freedom, 0.0),
    )


def _eigenbasis(kernel: _Kernel, basis, times):
    """Eigenvectors of ``times``, held, and its eigenvalues, differentiable as Rayleigh quotients."""
    if kernel.is_factor:
        factor = jax.lax.stop_gradient(_project(basis, kernel.matrix))
        vectors = jnp.linalg.svd(factor, full_matrices=False)[0]
    else:
        dense = jax.lax.stop_gradient(times(jnp.eye(len(basis), dtype=basis.dtype)))
        vectors = jnp.linalg.eigh(0.5 * (dense + dense.T))[1]
    vectors = jax.lax.stop_gradient(vectors)
    return vectors, (vectors * times(vectors)).sum(0)


def _largest_posterior(eigenvalues, squares, freedom, prior):
    """Maximum of J over a grid, which may have several, then safeguarded Newton steps; and J'' there."""
    rest = jnp.maximum(jnp.where(squares.sum(0) > 0, freedom, 0.0) - squares.sum(0), 0.0)
    grid = jnp.linspace(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO, _GRID_POINTS, dtype=squares.dtype)
    load = jnp.exp(grid)[:, None] * eigenvalues
    quadratic = jnp.maximum((1.0 / (1.0 + load)) @ squares + rest, 1e-30)
    flat = jnp.log1p(load).sum(1) + jnp.square((grid - prior) / _PRIOR_DEVIATION)
    start = grid[jnp.argmax(-0.5 * (freedom * jnp.log(quadratic) + flat[:, None]), axis=0)]
    width = grid[1] - grid[0]
    low, high = jnp.maximum(start - width, grid[0]), jnp.minimum(start + width, grid[-1])

    def derivatives(theta):
        load = jnp.exp(theta) * eigenvalues[:, None]
        kept = 1.0 / (1.0 + load)
        first = jnp.maximum((kept * squares).sum(0) + rest, 1e-30)
        second = (jnp.square(kept) * squares).sum(0) + rest
        third = (kept**3 * squares).sum(0) + rest
        slope = 0.5 * freedom * (1.0 - second / first) - 0.5 * (1.0 - kept).sum(0)
        slope = slope - (theta - prior) / _PRIOR_DEVIATION**2
        bend = 2.0 * (second - third) / first - second * (first - second) / jnp.square(first)
        curvature = 0.5 * freedom * bend - 0.5 * (kept * (1.0 - kept)).sum(0) - 1.0 / _PRIOR_DEVIATION**2
        return slope, curvature

    def improve(_, state):
        theta, low, high = state
        slope, curvature = derivatives(theta)
        low, high = jnp.where(slope > 0, theta, low), jnp.where(slope < 0, theta, high)
        new = theta - slope / jnp.where(curvature < 0, curvature, -1.0)
        inside = (new >= low) & (new <= high) & (curvature < 0)  # ends included: there it has converged
        return jnp.where(inside, new, 0.5 * (low + high)), low, high

    theta = jax.lax.fori_loop(0, _NEWTON_STEPS, improve, (start, low, high))[0]
    # A bracket that closes at the end of the grid means that J still rises there.
    end = jnp.where(theta > 0, grid[-1], grid[0])
    theta = jnp.where(jnp.abs(theta - end) < 1e-3, end, theta)
    return jax.lax.stop_gradient((theta, derivatives(theta)[1]))


class _NullLaw(NamedTuple):
    """Law of t if no gene has a pattern: sum_j multiplicity_j (eigenvalues_j - t) chi^2_1 > 0."""

    eigenvalues: Float[Array, " terms"]
    multiplicity: Float[Array, " terms"]


@jax.jit
def _log_pvalues(kernel: _Kernel, residuals: _Residuals) -> Float[Array, " genes"]:
    # The diagonal carries no information on place, but its share in the statistic varies with the counts' kurtosis.
    # A factored kernel has no exact spectrum without it, and keeps it.
    diagonal = jnp.zeros_like(residuals.depth) if kernel.is_factor else kernel.diagonal()
    if residuals.weights is None or residuals.sharpness is None:
        basis = _basis(residuals.design)
        values = _project(basis, residuals.values)
        scores, variances = values, jnp.ones_like(values)
        law = _null_law(kernel, diagonal, basis, jnp.ones_like(residuals.depth))
        eigenvalues, multiplicity = law.eigenvalues[None, :], law.multiplicity
    else:
        variances = residuals.weights
        root = jnp.sqrt(variances)
        values = jax.vmap(
            lambda root, values: _project(_basis(root[:, None] * residuals.design), values), in_axes=1, out_axes=1
        )(root, residuals.values)
        scores = root * values
        eigenvalues, multiplicity = _interpolated_law(
            kernel, diagonal, residuals.depth, residuals.design, residuals.sharpness
        )
    alive = residuals.alive & (jnp.square(values).sum(0) > 1e-10 * jnp.square(residuals.values).sum(0))
    values, scores = jnp.where(alive, values, 1.0), jnp.where(alive, scores, 1.0)
    energy = jnp.square(values).sum(0)
    statistic = (scores * kernel.times(scores)).sum(0) - diagonal @ jnp.square(scores)
    statistic = statistic / energy
    # Given the absolute scores, the variance of the statistic falls with their kurtosis.
    kurtosis = (scores**4).sum(0) / jnp.square(jnp.square(scores).sum(0))
    expected = 3.0 * jnp.square(variances).sum(0)
    expected = expected / (jnp.square(variances.sum(0)) + 2.0 * jnp.square(variances).sum(0))
    typical = (eigenvalues @ multiplicity) / multiplicity.sum()
    spread = jnp.sqrt((1.0 - expected) / jnp.maximum(1.0 - kurtosis, 0.05))
    statistic = typical + (statistic - typical) * spread
    return jnp.where(alive, _log_tail(eigenvalues, multiplicity, statistic), 0.0)


def _null_law(kernel: _Kernel, diagonal, basis, weights) -> _NullLaw:
    root = jnp.sqrt(weights)[:, None]
    rank = jax.lax.stop_gradient(jnp.square(basis).sum())
    if kernel.is_factor:
        weighted = _Kernel(root * kernel.matrix, True)
        eigenvalues = _eigenbasis(weighted, basis, lambda v: _project(basis, weighted.times(_project(basis, v))))[1]
        eigenvalues = jnp.maximum(eigenvalues, 0.0)
        empty = jnp.maximum(len(root) - rank - len(eigenvalues), 0.0)
        return _NullLaw(
            jnp.append(eigenvalues, 0.0), jnp.append(jnp.ones_like(eigenvalues), empty.astype(eigenvalues.dtype))
        )
    dense = root * (kernel.matrix - jnp.diag(diagonal)) * root.T
    # The nuisance columns are eigenvectors of value 0, in the middle of the spectrum: moved below all others.
    apart = 2.0 * jnp.abs(jax.lax.stop_gradient(dense)).sum(1).max() + 1.0

    def times(vectors):
        inner = _project(basis, dense @ _project(basis, vectors))
        return inner - apart * (basis @ (basis.T @ vectors))

    vectors, eigenvalues = _eigenbasis(kernel, basis, times)
    nuisance = jax.lax.stop_gradient(jnp.square(basis.T @ vectors).sum(0)) > 0.5
    multiplicity = jnp.where(nuisance, 0.0, 1.0).astype(eigenvalues.dtype)
    return _NullLaw(jnp.where(nuisance, 0.0, eigenvalues), multiplicity)


def _interpolated_law(kernel: _Kernel, diagonal, depth, design, sharpness):
    """Spectra by gene, a parabola in 1 / (1 + c) through those of the nodes; sorted, they change smoothly."""
    laws = []
    for node in _SPECTRUM_NODES:
        # 1 / (1 + c) = node: s / (1 + c s) is proportional to s / (node + (1 - node) s).
        weights = jnp.where(depth > 0, depth / (node + (1.0 - node) * jnp.where(depth > 0, depth, 1.0)), 0.0)
        weights = weights / jnp.maximum(weights.mean(), 1e-30)
        laws.append(_null_law(kernel, diagonal, _basis(jnp.sqrt(weights)[:, None] * design), weights))
    place = sharpness[:, None]
    eigenvalues = jnp.zeros(())
    for node, law in zip(_SPECTRUM_NODES, laws, strict=True):
        others = [other for other in _SPECTRUM_NODES if other != node]
        share = (place - others[0]) * (place - others[1]) / ((node - others[0]) * (node - others[1]))
        eigenvalues = eigenvalues + share * law.eigenvalues
    return eigenvalues, laws[0].multiplicity


def _log_tail(eigenvalues, multiplicity, statistic) -> Float[Array, " genes"]:
    r"""Log P(sum_j n_j (lambda_j - t) chi^2_1 > 0) by the saddlepoint approximation, finite for every t.

    With a_j = lambda_j - t and the cumulant function K(x) = -1/2 sum n_j log(1 - 2 x a_j) at its minimum K'(x) = 0,
    w = sign(x) sqrt(-2 K), u = x sqrt(K''):  log Phi(-w - log(u / w) / w).
    """
    counted = multiplicity > 0.0
    largest = jnp.where(counted, eigenvalues, -jnp.inf).max(1)
    smallest = jnp.where(counted, eigenvalues, jnp.inf).min(1)
    margin = 1e-4 * (largest - smallest)
    statistic = jnp.clip(statistic, smallest + margin, largest - margin)
    terms = jnp.where(counted, eigenvalues - statistic[:, None], 0.0)

    def sums(terms, place):
        ratio = terms / (1.0 - 2.0 * place[:, None] * terms)
        return (multiplicity * ratio).sum(1), 2.0 * (multiplicity * ratio**2).sum(1), ratio

    held = jax.lax.stop_gradient(terms)

    def improve(_, state):
        place, low, high = state
        first, second, _ = sums(held, place)
        low, high = jnp.where(first < 0, place, low), jnp.where(first > 0, place, high)
        new = place - first / second
        return jnp.where((new >= low) & (new <= high), new, 0.5 * (low + high)), low, high

    low = 0.5 / held.min(1) * (1.0 - 1e-6)
    high = 0.5 / held.max(1) * (1.0 - 1e-6)
    place = jax.lax.fori_loop(0, _SADDLEPOINT_STEPS, improve, (jnp.zeros_like(low), low, high))[0]
    place = jax.lax.stop_gradient(place)
    first, second, _ = sums(terms, place)
    place = place - (first - jax.lax.stop_gradient(first)) / jax.lax.stop_gradient(second)
    _, second, ratio = sums(terms, place)
    third = 8.0 * (multiplicity * ratio**3).sum(1)
    cumulant = -0.5 * (multiplicity * jnp.log1p(-2.0 * place[:, None] * terms)).sum(1)
    score = place * jnp.sqrt(second)
    skewness = third / second**1.5
    near = (jnp.abs(score) < 0.1) | (cumulant >= 0)
    root = jnp.sign(place) * jnp.sqrt(jnp.where(near, 1.0, -2.0 * cumulant))
    root = jnp.where(near, 1.0, root)
    far = root + jnp.log(jnp.where(near, 1.0, score / root)) / root
    # Both sides of w = 0 lose all digits there: the expansion of w + log(u / w) / w.
    close = score + skewness / 6.0 * (1.0 - score**2)
    return log_ndtr(-jnp.where(near, close, far))
