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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc._compiled import compiled_turn
from diffbio_sc.numerics.spatial.kernel_algebra_jax import Kernel, inducing_kernel
from diffbio_sc.numerics.spatial.kernels import KERNELS
from diffbio_sc.numerics.spatial.residuals_jax import residuals_of
from diffbio_sc.numerics.spatial.score_test_jax import log_pvalues
from diffbio_sc.numerics.spatial.variance_jax import fit_ratios
from diffbio_sc.operators.contract import (
    FitReport,
    FittedStatistic,
    Operator,
    OperatorConfig,
    as_float_array,
    check_axis_size,
)
from diffbio_sc.operators.correction import NetworkMinusStart

# The two terms of the loss share no parameter, and the step of Adam has no scale: this is how they are reported.
_RECONSTRUCTION_WEIGHT = 0.1


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
        Initial signal and noise variance, of which the ratio counts: each gene's own ratio is shrunk toward it.
    hidden_dims
        Widths of the network that corrects the smoothed expression; empty leaves it out. It is exactly 0 until
        trained.
    temperature
        Of the soft call, on the scale of log p; toward 0 it becomes the hard call.
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
    at the gene's own ratio of variances, plus the trained correction; for counts in counts per spot of mean depth.

    This is the differentiable twin of :func:`diffbio_sc.tl.spatial_genes`, at one lengthscale where that combines
    several. On the same counts at the same lengthscale, log p agrees to a few per cent (r > .99; genes of few reads
    differ more, because the twin leaves their discreteness out) and FSV within its standard error (r > .99; the prior
    raises genes without any signal by .02 to .04).

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
        sizes = (config.n_genes, *config.hidden_dims, config.n_genes)
        self.correction = NetworkMinusStart(sizes, rngs=rngs) if config.hidden_dims else None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``fsv``, ``spatial_pvalues``, ``is_spatial``, ``smoothed_expression`` and ``spatial_variance``."""
        return self._over_slides(data, self._detect)

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        r"""Minus the log posterior of the variance ratios, and a reconstruction term for the network.

        The first term is minus the restricted log-likelihood at each gene's ratio plus the log prior of the ratio, per
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
        with compiled_turn():
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
        residuals = residuals_of(expression, total)
        kernel = self._kernel(coordinates)
        fit = fit_ratios(kernel, residuals, self._prior_log_ratio())
        log_p = log_pvalues(kernel, residuals)
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
        residuals = residuals_of(expression, total)
        fit = fit_ratios(self._kernel(coordinates), residuals, self._prior_log_ratio())
        if self.correction is None:
            return -fit.objective.mean()
        smoothed = jax.lax.stop_gradient(residuals.mean + residuals.unit * fit.posterior_mean)
        target = residuals.target
        variance = jnp.var(target, axis=0)
        error = jnp.square(self._correct(smoothed) - target) / jnp.where(variance > 0, variance, 1.0)
        return -fit.objective.mean() + _RECONSTRUCTION_WEIGHT * error.mean()

    def _correct(self, smoothed):
        """Add the correction, which sees all genes at a spot in standard deviations and answers in the same unit."""
        if self.correction is None:
            return smoothed
        centred = smoothed - smoothed.mean(0)
        variance = jnp.square(centred).mean(0)
        deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        return smoothed + deviation * self.correction(centred / jnp.where(deviation > 0, deviation, 1.0))

    def _prior_log_ratio(self):
        return self.log_variance[...] - self.log_noise_variance[...]

    def _kernel(self, coordinates) -> Kernel:
        config = self.config
        lengthscale = jnp.exp(self.log_lengthscale[...]).astype(coordinates.dtype)
        return inducing_kernel(coordinates, lengthscale, config.kernel, config.period, config.n_inducing_points)


def _check_leading(key, array, expected, part):
    found = array.shape if part == "" else array.shape[:-1]
    wanted = tuple(expected)[: len(found)] if part else tuple(expected)[:-1]
    if found != wanted:
        raise ValueError(f"data[{key!r}]{part} must be {wanted} as data['expression'] has, found {found}.")
