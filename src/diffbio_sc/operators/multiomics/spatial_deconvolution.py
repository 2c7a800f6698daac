"""Cell-type composition of spatial spots, by regression of counts on reference profiles.

The model. The counts of gene g in spot s are negative binomial with

    mean       m_sg = d_s * sum_k w_sk * mu_kg
    variance   m_sg * (1 + e_g + alpha * m_sg)
    signature  mu_kg = p_kg * gamma_g * theta_kg

where d_s is the spot's depth, w_sk >= 0 the share of its RNA from type k, p_k the reference profile scaled to sum 1,
gamma_g a factor of the gene between the two platforms and theta_kg what sets the type in this tissue apart from the
type in the reference. e_g is for cells of one type that differ: a spot holds few of them. Proportions are w_sk divided
by the row sums of the reference profiles: profiles in counts a
cell give fractions of cells, profiles that sum to one give fractions of RNA.

Untrained, gamma and theta are 1 and the operator returns the optimum of the regression. ``fit`` estimates

1. e_g, known from the reference's cells up to a factor, by the likelihood of the spots;
2. gamma from the counts of all spots summed (a robust regression on the log scale), and again from the spots, as far as
   the sum leaves the composition open;
3. theta by expectation maximisation under a Gamma prior at 1, without what other signatures could explain as well
   (a mixture of signatures is not a new signature), but only if signatures refined on half of the spots predict genes
   of the other half better than the reference's do;
4. how often each type is present, which turns the regression's estimate into a posterior mean (spike and slab).

The platform factor and the likelihood follow RCTD (Cable et al. 2022, Nature Biotechnology 40:517) and cell2location
(Kleshchevnikov et al. 2022, Nature Biotechnology 40:661); estimating signatures on the spots follows the idea of
BayesPrism (Chu et al. 2022, Nature Cancer 3:505).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc._compiled import one_blas_thread, one_thread_at_a_time
from diffbio_sc._random import as_generator
from diffbio_sc.numerics.counts import negative_binomial, regression, signatures
from diffbio_sc.numerics.counts.cell_variation import fit_excess, share_beyond_counting
from diffbio_sc.numerics.counts.presence import learn_presence, pull_to_sum, spike_and_slab
from diffbio_sc.numerics.counts.proportions import SIGNATURE_INFLATION, proportion_deviation
from diffbio_sc.numerics.counts.refinement import CONVERGED, refinement_rounds
from diffbio_sc.numerics.counts.spot_chunks import padded_sample
from diffbio_sc.numerics.counts.spot_regression import SpotSolution, SpotSolver, diagnose
from diffbio_sc.numerics.counts.unknown_signature import first_unknown, standard_excess, unknown_rounds
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.operators.contract import FitReport, FittedStatistic, Operator, OperatorConfig, as_float_array
from diffbio_sc.operators.correction import NetworkMinusStart

FIT_SPOTS = 2000  # signatures estimated on 2000 spots are as accurate as on all of a large slide
# Of the log composition as re-estimated from spots: model error, not sampling (benchmarks/deconvolution.py constants).
_SPOT_VARIANCE = 0.12**2
_DECISION_SPOTS = 500  # to see whether refined signatures predict better
_GENE_FOLDS = 4
_SPOT_FOLDS = 4
_STANDARD_ERRORS = 1.0  # by which refined signatures have to predict better: the usual rule of cross-validation
# Power of the share of variance beyond counting. The likelihood takes that variance for independent between genes; in
# cells it is not, and types look dispensable that are not (benchmarks/deconvolution.py left_out).
_KEPT_POWER = 2.0


class UnknownSignature(NamedTuple):
    """Signature outside the reference.

    Attributes
    ----------
    signature
        Its share of counts in each gene; sums to 1.
    log_factor
        Log of what remains of the platform factors beside it.
    """

    signature: np.ndarray
    log_factor: np.ndarray

    def beside(self, signatures: np.ndarray) -> np.ndarray:
        """Signatures of the reference's types with their factors adapted, and this one as the last."""
        return np.concatenate([signatures * np.exp(self.log_factor), self.signature[None]]).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialDeconvolutionConfig(OperatorConfig):
    """Settings of :class:`SpatialDeconvolution`.

    Parameters
    ----------
    n_cell_types
        Number of cell types, rows of the reference.
    n_genes
        Number of genes, columns of both inputs.
    hidden_dim
        Width of the learnable correction of the log proportions; 0 leaves it out. It is exactly 0 until trained.
    temperature
        1 gives the regression's proportions; toward 0 each spot gets its largest type alone, above 1 they even out.
    dispersion
        Initial overdispersion alpha of the counts.
    solver_steps
        Steps of Fisher scoring in the regression.
    fit_rounds
        Rounds of ``fit``.
    prior_counts
        Strength of the prior of theta: the counts with which each entry is shrunk toward 1.
    relative_prior
        Strength of the prior of theta that grows with the data, times types / genes: the fewer genes there are for
        each type, the less the spots can say about signatures.
    """

    n_cell_types: int = 10
    n_genes: int = 2000
    hidden_dim: int = 128
    temperature: float = 1.0
    dispersion: float = 0.05
    solver_steps: int = 8
    fit_rounds: int = 30
    prior_counts: float = 10.0
    relative_prior: float = 10.0

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("n_cell_types", "n_genes", "solver_steps", "fit_rounds")
        self.require_integers("hidden_dim", minimum=0)
        self.require_positive("temperature", "dispersion", "prior_counts")
        self.require_positive("relative_prior", zero_allowed=True)


class SpatialDeconvolution(Operator):
    """Cell-type proportions of spots, by a count regression on reference profiles that can be trained.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; the ``params`` stream makes the correction network.

    Notes
    -----
    Inputs of ``apply``: ``spatial_expression`` (spots, genes), one spot (genes,) or batches (..., genes), counts;
    ``reference_profiles`` (types, genes).

    Outputs: ``proportions`` (spots, types), rows sum to 1; ``reconstructed`` (spots, genes), expected counts;
    ``proportions_std``; ``abundance``, the coefficients of the reference profiles before scaling to sum 1. A spot
    without counts gets equal proportions here; :func:`diffbio_sc.tl.deconvolve` reports it as missing.

    Gradients run through the regression by implicit differentiation, to counts, profiles and parameters.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig
    >>> profiles = jnp.array([[8.0, 1.0, 1.0], [1.0, 1.0, 8.0]])
    >>> operator = SpatialDeconvolution(SpatialDeconvolutionConfig(n_cell_types=2, n_genes=3), rngs=nnx.Rngs(0))
    >>> counts = 10 * (jnp.array([[0.25, 0.75]]) @ profiles)
    >>> result, _, _ = operator.apply({"spatial_expression": counts, "reference_profiles": profiles}, {}, None)
    >>> result["proportions"].round(2).tolist()
    [[0.25, 0.75]]
    """

    config_class: ClassVar[type[OperatorConfig]] = SpatialDeconvolutionConfig
    required_keys: ClassVar[tuple[str, ...]] = ("spatial_expression", "reference_profiles")
    config: SpatialDeconvolutionConfig

    def __init__(self, config: SpatialDeconvolutionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        types, genes = config.n_cell_types, config.n_genes
        # Made on the host: a program would be compiled for each number of genes.
        self.log_platform = nnx.Param(jax.device_put(np.zeros(genes, np.float32)))
        self.log_deviation = nnx.Param(jax.device_put(np.zeros((types, genes), np.float32)))
        self.log_dispersion = nnx.Param(jax.device_put(np.float32(np.log(config.dispersion))))
        sizes = (genes, config.hidden_dim, types)
        self.correction = NetworkMinusStart(sizes, rngs=rngs) if config.hidden_dim else None
        self.excess = FittedStatistic(jax.device_put(np.zeros(genes, np.float32)))
        self.signature_error = FittedStatistic(jax.device_put(np.zeros((types, genes), np.float32)))
        self.kept = FittedStatistic(jax.device_put(np.zeros((), np.float32)))
        self.fitted = FittedStatistic(jax.device_put(np.zeros((), np.float32)))
        self.presence_probability = FittedStatistic(jax.device_put(np.full(types, 0.5, np.float32)))
        self.typical_weight = FittedStatistic(jax.device_put(np.full(types, 1.0 / types, np.float32)))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``proportions``, ``reconstructed``, ``proportions_std`` and ``abundance``."""
        # Compiled as one also while gradients are taken from outside: one operation after the other takes far longer.
        return _compiled(SpatialDeconvolution._outputs, *nnx.split(self), *self._inputs(data), self._is_plain())

    def _is_plain(self) -> bool:
        """Whether the correction is known to add exactly nothing, so that it need not be run."""
        return self.correction is None or self.correction.is_zero()

    def _outputs(
        self, counts: Float[Array, "... genes"], profiles: Float[Array, "types genes"], plain: bool
    ) -> dict[str, Array]:
        leading = counts.shape[:-1]
        counts = jnp.maximum(counts.reshape(-1, counts.shape[-1]), 0.0)
        depth = counts.sum(-1)
        size = profiles.sum(-1)
        mu = self.signatures(profiles)
        dispersion = jnp.exp(self.log_dispersion[...])
        weights = regression.regression_weights(
            counts, depth, mu, dispersion, self.excess[...], self.signature_error[...], self.config.solver_steps
        )
        used = jnp.ones(counts.shape[1], counts.dtype)
        solution = diagnose(*jax.lax.stop_gradient((weights, counts, depth, mu, dispersion, self.excess[...], used)))
        deviation = jnp.where(solution.deviation > 0, solution.deviation, 1.0)
        prior = (self.presence_probability[...], self.typical_weight[...])
        posterior = spike_and_slab(weights, deviation, *prior, pull_to_sum(weights, deviation, *prior, self.kept[...]))
        fitted = self.fitted[...] > 0
        weights = jnp.where(fitted, posterior.mean, weights)
        variance = jnp.where(fitted, posterior.variance, deviation**2) * solution.inflation
        variance = SIGNATURE_INFLATION * variance

        coefficients = weights / size
        total = coefficients.sum(-1, keepdims=True)
        empty = (depth <= 0)[:, None] | (total <= 0)
        coefficients = jnp.where(empty, 1.0, coefficients)
        proportions = self._proportions(coefficients, counts, depth, plain)
        abundance = jnp.where(empty, 0.0, depth[:, None] * total) * proportions
        result = {
            "proportions": proportions,
            "reconstructed": abundance @ (mu * size[:, None]),
            "proportions_std": proportion_deviation(coefficients, variance / size**2),
            "abundance": abundance,
        }
        return {name: value.reshape(*leading, -1) for name, value in result.items()}

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Negative log-likelihood of the reconstruction, per spot and gene."""
        return _compiled(SpatialDeconvolution._loss, *nnx.split(self), *self._inputs(data), self._is_plain())

    def _loss(
        self, counts: Float[Array, "... genes"], profiles: Float[Array, "types genes"], plain: bool
    ) -> Float[Array, ""]:
        mean = self._outputs(counts, profiles, plain)["reconstructed"]
        dispersion = jnp.exp(self.log_dispersion[...])
        return -negative_binomial.negative_binomial_log_likelihood(jnp.maximum(counts, 0.0), mean, dispersion).mean()

    @one_thread_at_a_time
    @one_blas_thread()
    def fit(
        self,
        data: Mapping[str, Any],
        *,
        platform_effect: bool = True,
        refine: bool = True,
        cells: np.ndarray | None = None,
        max_spots: int = FIT_SPOTS,
        rng: int | np.random.Generator = 0,
        excess_shape: np.ndarray | None = None,
        signature_error: np.ndarray | None = None,
    ) -> FitReport:
        """Estimate platform effect, signatures and presence of types from spots.

        Parameters
        ----------
        data
            ``spatial_expression`` (spots, genes) and ``reference_profiles`` (types, genes).
        platform_effect
            Whether to estimate gamma.
        refine
            Whether to estimate theta, if that lets spots be predicted better.
        cells
            Cells in each spot, if known.
        max_spots
            Signatures are estimated on at most so many spots, drawn at random.
        rng
            Seed or generator of that draw.
        excess_shape
            Relative excess variance of the genes (genes,), see :func:`excess_shape
            <diffbio_sc.numerics.counts.cell_variation.excess_shape>`; default: the same for all.
        signature_error
            Squared relative errors of the profiles (types, genes), see :func:`relative_error
            <diffbio_sc.numerics.counts.signatures.relative_error>`, by which the regression is corrected if that brings
            the weights nearer to the true ones; default: none.

        Returns
        -------
        Report with the deviance per count after each round.
        """
        started = time.perf_counter()
        self.check_keys(data)
        counts, profiles = self._inputs(data)
        if counts.ndim != 2:
            raise ValueError(f"fit needs data['spatial_expression'] of shape (spots, genes), found {counts.shape}.")
        counts, profiles = np.maximum(counts, 0.0), np.asarray(profiles)
        sample = counts[counts.sum(1) > 0]
        if not len(sample):
            raise ValueError("fit needs at least one spot with counts, data['spatial_expression'] has none.")
        if len(sample) > max_spots:
            generator = as_generator(rng)
            sample = sample[np.sort(generator.choice(len(sample), max_spots, replace=False))]
        history, converged = self._fit_signatures(
            sample, profiles, platform_effect, refine, excess_shape, signature_error
        )
        solution = self.solve(counts, profiles)
        filled = counts.sum(-1) > 0
        self.set_presence(
            np.asarray(solution.weights)[filled],
            np.asarray(solution.deviation)[filled],
            None if cells is None else np.asarray(cells)[filled],
        )
        return FitReport({"deviance": history}, converged, len(history), time.perf_counter() - started)

    @one_thread_at_a_time
    @one_blas_thread()
    def fit_signatures(
        self,
        counts: np.ndarray,
        profiles: np.ndarray,
        *,
        platform_effect: bool = True,
        refine: bool = True,
        excess_shape: np.ndarray | None = None,
        signature_error: np.ndarray | None = None,
        decide: bool = True,
    ) -> FitReport:
        """Estimate gamma, theta and excess variance alone, on exactly these spots (all with counts).

        Without ``decide`` signatures are refined, or their errors corrected for, without asking whether that pays.
        """
        started = time.perf_counter()
        profiles = np.asarray(profiles, np.float32)
        history, converged = self._fit_signatures(
            counts, profiles, platform_effect, refine, excess_shape, signature_error, decide
        )
        return FitReport({"deviance": history}, converged, len(history), time.perf_counter() - started)

    @one_thread_at_a_time
    @one_blas_thread()
    def adapt_platform(self, counts: np.ndarray, profiles: np.ndarray) -> None:
        """Re-estimate gamma alone on one slide, starting from, and shrunk toward, the present one."""
        counts = np.asarray(counts, np.float32)
        base = self._host_signatures(profiles)
        log_platform, _, _ = self._rounds(
            counts, base, np.zeros(counts.shape[1]), spread=0.3, openness=1.0, refine=False, platform_effect=True
        )
        self.log_platform[...] = jax.device_put(np.asarray(self.log_platform[...]) + log_platform)

    def solve(
        self,
        counts: Float[Array, "spots genes"],
        profiles: Float[Array, "types genes"],
        prior_mean: np.ndarray | None = None,
        prior_precision: np.ndarray | None = None,
    ) -> SpotSolution:
        """Regress a block of spots under the present signatures; see :class:`SpotSolver`."""
        return self.solver(profiles)(np.asarray(counts), prior_mean, prior_precision)

    @one_thread_at_a_time
    def solver(self, profiles: Float[Array, "types genes"]) -> SpotSolver:
        """Return the regression under the present signatures as a function of counts that can be sent to workers."""
        return SpotSolver(
            self._host_signatures(profiles),
            self._dispersion(),
            self.config.solver_steps,
            room=1,
            excess=np.asarray(self.excess[...]),
            error=np.asarray(self.signature_error[...]),
        )

    @one_thread_at_a_time
    @one_blas_thread()
    def unknown_signature(
        self,
        counts: np.ndarray,
        profiles: Float[Array, "types genes"],
        signature_error: np.ndarray | None = None,
        rounds: int = 15,
    ) -> UnknownSignature:
        """Learn one signature outside the reference, as of a type that it lacks.

        It starts from genes that are in excess of the reference on this platform, by more than sampling and the spread
        of the platform factors explain, and whose residuals go together; see
        :mod:`~diffbio_sc.numerics.counts.unknown_signature`.

        Parameters
        ----------
        counts
            Spots by genes, all with counts.
        profiles
            Types by genes.
        signature_error
            Squared relative errors of the profiles, as for :meth:`fit`; default: none.
        rounds
            Rounds of expectation maximisation.
        """
        return self._unknown(np.asarray(counts), np.asarray(profiles), signature_error, rounds)

    @one_thread_at_a_time
    @one_blas_thread()
    def unknown_pays(
        self, counts: np.ndarray, profiles: Float[Array, "types genes"], signature_error: np.ndarray | None = None
    ) -> bool:
        """Whether a signature outside the reference, learned on other spots, lets genes be predicted better.

        The signature is learned on three quarters of the spots. In the last quarter, weights from three quarters of the
        genes predict the rest, with it and without, the other signatures being the same. It has to win by more than one
        standard error.
        """
        profiles = np.asarray(profiles)
        counts, fold = self._decision_sample(np.asarray(counts, np.float32))
        own = self.platform_signatures(profiles)
        part = np.arange(len(counts)) % _SPOT_FOLDS
        gains = []
        for left_out in range(_SPOT_FOLDS):
            # Spots left out stay as empty rows: one compiled program serves all.
            seen = np.where((part != left_out)[:, None], counts, 0.0).astype(np.float32)
            found = self._unknown(seen, profiles, signature_error)
            unseen = counts[part == left_out]
            with_it = np.concatenate([own, found.signature[None]])
            losses = [self._prediction_loss(unseen, mu, fold) for mu in (own, with_it)]
            gains.append(losses[0] - losses[1])
        return _pays(np.concatenate(gains))

    def _unknown(self, counts, profiles, signature_error, rounds: int = 15) -> UnknownSignature:
        spots, genes = counts.shape
        types = len(profiles)
        padded, depth = padded_sample(counts)
        width = padded.shape[1]
        dispersion = self._dispersion()
        log_platform = np.asarray(self.log_platform[...])
        base = np.asarray(profiles) / np.asarray(profiles).sum(-1, keepdims=True)
        # Without excess variance: a missing type shows in genes that vary between cells, they keep their full say.
        solver = SpotSolver(self.platform_signatures(profiles), dispersion, self.config.solver_steps, room=1)
        weights = solver(counts).weights
        exposure = (counts.sum(1, keepdims=True) * weights).sum(0, dtype=np.float64)
        mean, total = np.maximum(exposure @ base, 1e-12), counts.sum(0, dtype=np.float64)
        log_ratio = np.log(total + 0.5) - np.log(mean + 0.5)
        sampling = 1.0 / np.maximum(total, 1.0)
        if signature_error is not None:
            sampling = sampling + exposure**2 @ (signature_error * base.astype(np.float64) ** 2) / mean**2
        free = bool(log_platform.any())
        start, factor = first_unknown(
            counts, weights, base, log_platform, standard_excess(log_ratio, sampling), dispersion, free=free
        )
        signature, log_factor = unknown_rounds(
            padded,
            depth,
            np.int32(spots),
            zero_padded(weights, (len(padded), types)),
            zero_padded(base.astype(np.float32), (types, width)),
            zero_padded(start, (width,)),
            zero_padded(factor, (width,)),
            np.float32(signatures.robust_spread(log_ratio)),
            np.float32(dispersion),
            zero_padded(np.ones(genes, np.float32), (width,)),
            np.float32(self.config.prior_counts),
            np.float32(self._prior_rate(genes)),
            rounds,
            np.bool_(free),
        )
        return UnknownSignature(np.asarray(signature)[:genes], np.asarray(log_factor)[:genes] - log_platform)

    def platform_signatures(self, profiles: Float[Array, "types genes"]) -> np.ndarray:
        """Profiles scaled to sum 1 times the platform factor, without the types' own deviations."""
        scaled = np.asarray(profiles) / np.asarray(profiles).sum(-1, keepdims=True)
        return (scaled * np.exp(np.asarray(self.log_platform[...]))).astype(np.float32)

    def _host_signatures(self, profiles) -> np.ndarray:
        """Signatures mu on the host: elementary programs of JAX would be compiled for each number of genes."""
        return (self.platform_signatures(profiles) * np.exp(np.asarray(self.log_deviation[...]))).astype(np.float32)

    @one_thread_at_a_time
    def set_presence(self, weights: np.ndarray, deviation: np.ndarray, cells: np.ndarray | None = None) -> None:
        """Learn from regressed spots how often each type is present; from then on proportions are posterior means."""
        prior = learn_presence(weights, np.maximum(deviation, 1e-12), cells=cells, kept=float(self.kept[...]))
        probability, typical = prior.probability, prior.typical_weight
        if cells is not None:
            probability, typical = (values.mean(0) for values in prior.in_spots_of(cells))
        self.presence_probability[...] = jax.device_put(np.asarray(probability, np.float32))
        self.typical_weight[...] = jax.device_put(np.asarray(typical, np.float32))
        self.fitted[...] = jax.device_put(np.ones((), np.float32))

    def signatures(self, profiles: Float[Array, "types genes"]) -> Float[Array, "types genes"]:
        """Signatures mu: profiles scaled to sum 1, times platform factor and deviation."""
        scaled = profiles / profiles.sum(-1, keepdims=True)
        return scaled * jnp.exp(self.log_platform[...] + self.log_deviation[...])

    def _proportions(self, coefficients, counts, depth, plain):
        temperature = self.config.temperature
        share = coefficients / coefficients.max(-1, keepdims=True)
        positive = share > 0
        log_share = jnp.log(jnp.where(positive, share, 1.0))
        if self.correction is not None and not plain:
            # Shares of the genes times their number are about 1 on average, whatever the panel.
            shares = counts / jnp.maximum(depth, 1.0)[:, None]
            log_share = log_share + self.correction(jnp.log1p(shares * shares.shape[-1]))
        # Not softmax of a floored logarithm: a type of weight 0 stays at exactly 0 and its gradient stays finite.
        top = jnp.where(positive, log_share, -jnp.inf).max(-1, keepdims=True)
        raised = jnp.where(positive, jnp.exp((log_share - jax.lax.stop_gradient(top)) / temperature), 0.0)
        return raised / raised.sum(-1, keepdims=True)

    def _inputs(self, data):
        counts = as_float_array(data, "spatial_expression", range(1, 9))
        profiles = as_float_array(data, "reference_profiles", (2,))
        types, genes = self.config.n_cell_types, self.config.n_genes
        if profiles.shape != (types, genes):
            raise ValueError(
                f"data['reference_profiles'] must have shape (n_cell_types, n_genes) = ({types}, {genes}), "
                f"found {profiles.shape}."
            )
        if counts.shape[-1] != genes:
            raise ValueError(
                f"data['spatial_expression'] must have n_genes = {genes} columns, found shape {counts.shape}."
            )
        return counts, profiles

    def _fit_signatures(self, counts, profiles, platform_effect, refine, excess_shape, signature_error, decide=True):
        counts = np.asarray(counts, np.float32)
        base = np.asarray(profiles / profiles.sum(-1, keepdims=True))
        shape = np.ones(counts.shape[1]) if excess_shape is None else np.asarray(excess_shape, np.float64)
        spread, openness, anchor = 0.0, 0.0, np.zeros(counts.shape[1])
        if platform_effect:
            bulk = signatures.fit_bulk(counts.sum(0, dtype=np.float64), base.astype(np.float64))
            spread, anchor = bulk.spread, bulk.log_ratio
            # How far the summed counts leave the composition open, against the accuracy of the spots' own answer.
            openness = _openness(bulk.composition_variance)
        platform = {"anchor": anchor, "spread": spread, "openness": openness, "platform_effect": platform_effect}
        self.excess[...] = jax.device_put(np.zeros(counts.shape[1], np.float32))
        self.signature_error[...] = jax.device_put(np.zeros(base.shape, np.float32))
        start, _, _ = self._rounds(counts, base, refine=False, **platform)
        self._fit_excess(counts, base * np.exp(start), start, shape)
        asked = refine
        refine = asked and (not decide or self._refinement_pays(counts, base, platform))
        # Refined signatures follow the spots: the reference's sampling error is not theirs.
        if signature_error is not None and not refine:
            error = np.asarray(signature_error, np.float32)
            if not decide or self._correction_pays(counts, base * np.exp(start), error):
                # The summed counts are fitted as if signatures had no errors: they are off as far as they disagree with
                # the spots. Not where types differ here from the reference, of which spots know less than their sum.
                alike = asked or not decide or not self._refinement_pays(counts, base, platform)
                self.signature_error[...] = jax.device_put(error)
                if platform_effect and alike:
                    weights = self._solver(base * np.exp(start))(counts).weights
                    variance = bulk.composition_variance + _disagreement(counts, weights, bulk.composition)
                    platform["openness"] = _openness(variance)
        log_platform, log_deviation, history = self._rounds(counts, base, refine=refine, **platform)
        self.log_platform[...] = jax.device_put(log_platform)
        self.log_deviation[...] = jax.device_put(log_deviation)
        self._fit_excess(counts, base * np.exp(log_platform + log_deviation), log_platform, shape)
        history = np.asarray(history, np.float64)
        history = history[np.isfinite(history)]
        settled = len(history) > 2 and abs(history[-1] - history[-3]) <= 5 * CONVERGED * abs(history[-1])
        return history, bool(settled or len(history) < self.config.fit_rounds)

    def _fit_excess(self, counts, mu, log_platform, shape):
        """Set the excess variance, and how much of the sum of weights to keep, from the residuals of the regression."""
        weights = self._solver(mu)(counts).weights
        mean = counts.sum(1, keepdims=True) * (weights @ mu)
        active = (weights > 1e-6).sum(1)
        # What differs between cells is multiplied by the platform's factor as well, counting noise is not.
        shape = shape * np.exp(log_platform - np.median(log_platform))
        factor = fit_excess(counts, mean, shape, self._dispersion(), float(active.mean()))
        self.excess[...] = jax.device_put((factor * shape).astype(np.float32))
        self.kept[...] = jax.device_put(np.float32(share_beyond_counting(counts, mean, active) ** _KEPT_POWER))

    def _refinement_pays(self, counts, base, platform) -> bool:
        """Whether signatures refined on half of the spots predict the genes of the other half better.

        Weights of the other half come from three quarters of the genes, and the rest is predicted. Refined signatures
        have to win by more than one standard error.
        """
        counts, fold = self._decision_sample(counts)
        first = np.arange(len(counts)) % 2 == 0
        gains = []
        for fitted in (first, ~first):
            losses = []
            for refine in (False, True):
                log_platform, log_deviation, _ = self._rounds(counts[fitted], base, refine=refine, **platform)
                losses.append(self._prediction_loss(counts[~fitted], base * np.exp(log_platform + log_deviation), fold))
            gains.append(losses[0] - losses[1])
        return _pays(np.concatenate(gains))

    def _correction_pays(self, counts, mu, error) -> bool:
        """Whether weights corrected for the signatures' errors are nearer to the true ones.

        Weights come from three quarters of the genes and predict the rest, whose squared residuals hold three parts:
        the counts' noise, the errors of these genes' signatures, and the errors of the weights. The first is the same
        with and without the correction, and the second is known.

        With information H, of which the signatures' errors make up D, uncorrected weights have the bias H^-1 D w, and
        it costs w'D H^-1 (H - D) H^-1 D w: at most a quarter of w'Dw, as r (1 - r) is. A gain that is not smaller, by
        one standard error, comes from something else that the correction happens to mend, a wrong platform factor for
        example, and is not believed. Nor can there be a correction where the errors make up all of the difference
        between some signatures.
        """
        counts, fold = self._decision_sample(counts)
        depth = counts.sum(1, keepdims=True, dtype=np.float64)
        mean = np.maximum(depth * (self._solver(mu)(counts).weights @ mu), 1e-2)
        dispersion, excess = self._dispersion(), np.asarray(self.excess[...], np.float64)
        variance = mean * (1.0 + excess + dispersion * mean)
        precision = (depth**2 / variance).mean(0)
        variances = error * mu**2
        if np.linalg.eigvalsh((mu * precision) @ mu.T - np.diag(variances @ precision))[0] <= 0:
            return False
        loss, from_errors = np.zeros((2, len(counts))), np.zeros(len(counts))
        for left_out in range(_GENE_FOLDS):
            seen, unseen = fold != left_out, fold == left_out
            known = counts * seen
            solver = self._solver(mu * seen)
            for number, correction in enumerate((0.0 * error, error)):
                weights = dataclasses.replace(solver, error=correction * seen)(known).weights
                mass = known.sum(1, keepdims=True) * weights.astype(np.float64)
                errors = (mass**2 @ variances[:, unseen] / variance[:, unseen]).sum(1)
                squared = (counts[:, unseen] - mass @ mu[:, unseen]) ** 2 / variance[:, unseen]
                loss[number] += squared.sum(1) - errors
                from_errors += 0.5 * errors
        gain = loss[0] - loss[1]
        return _pays(gain) and _pays(0.25 * from_errors - gain)

    @staticmethod
    def _decision_sample(counts):
        """Some of the spots, and the fold of each gene; neither depends on the order in which they are given."""
        order = np.argsort(counts.sum(1), kind="stable")
        counts = counts[order[:: -(-len(order) // _DECISION_SPOTS)]]
        return counts, np.argsort(np.argsort(counts.sum(0), kind="stable")) % _GENE_FOLDS

    def _prediction_loss(self, counts, mu, fold):
        """Pseudo-likelihood loss of each spot, each gene predicted from weights that have not seen its fold."""
        dispersion = self._dispersion()
        excess = np.asarray(self.excess[...], np.float64)
        loss = np.zeros(len(counts))
        for left_out in range(_GENE_FOLDS):
            seen, unseen = fold != left_out, fold == left_out
            known = counts * seen
            weights = dataclasses.replace(self._solver(mu * seen), error=None)(known).weights
            mean = np.maximum(known.sum(1, keepdims=True) * (weights @ mu[:, unseen]).astype(np.float64), 1e-2)
            variance = mean * (1.0 + excess[unseen] + dispersion * mean)
            loss += 0.5 * ((counts[:, unseen] - mean) ** 2 / variance + np.log(variance)).sum(1)
        return loss

    def _prior_rate(self, genes: int) -> float:
        return max(0.05, self.config.relative_prior * self.config.n_cell_types / genes)

    def _dispersion(self) -> float:
        return float(np.exp(np.asarray(self.log_dispersion[...])))

    def _solver(self, mu) -> SpotSolver:
        return SpotSolver(
            np.asarray(mu, np.float32),
            self._dispersion(),
            self.config.solver_steps,
            room=1,
            excess=np.asarray(self.excess[...]),
            error=np.asarray(self.signature_error[...]),
        )

    def _rounds(self, counts, base, anchor, *, spread, openness, refine, platform_effect):
        spots, genes = counts.shape
        types = base.shape[0]
        padded, depth = padded_sample(counts)
        width = padded.shape[1]
        log_platform, log_theta, history = refinement_rounds(
            padded,
            depth,
            np.int32(spots),
            zero_padded(base.astype(np.float32), (types, width)),
            zero_padded(np.asarray(anchor, np.float32), (width,)),
            zero_padded(np.ones(genes, np.float32), (width,)),
            np.float32(self._dispersion()),
            zero_padded(np.asarray(self.excess[...]), (width,)),
            zero_padded(np.asarray(self.signature_error[...]), (types, width)),
            np.float32(spread),
            np.float32(openness),
            np.float32(self.config.prior_counts),
            np.float32(self._prior_rate(genes)),
            np.bool_(refine),
            np.bool_(platform_effect),
            self.config.fit_rounds,
        )
        return np.asarray(log_platform)[:genes], np.asarray(log_theta)[:, :genes], history


@partial(jax.jit, static_argnums=(0, 1, 5))
def _compiled(method, graph, state, counts, profiles, plain):
    return method(nnx.merge(graph, state), counts, profiles, plain)


def _openness(composition_variance: float) -> float:
    return composition_variance**2 / (composition_variance**2 + _SPOT_VARIANCE**2)


def _disagreement(counts, weights, composition) -> float:
    """Squared difference, relative to the squares, between the spots' composition and that of their summed counts."""
    spots = (counts.sum(1, keepdims=True, dtype=np.float64) * weights).sum(0)
    share, of_sum = spots / spots.sum(), composition / composition.sum()
    return float(((share - of_sum) ** 2).sum() / (of_sum**2).sum())


def _pays(gain: np.ndarray) -> bool:
    """Whether the spots gain on average, by more than one standard error."""
    return bool(len(gain) > 2 and gain.mean() > _STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)))
