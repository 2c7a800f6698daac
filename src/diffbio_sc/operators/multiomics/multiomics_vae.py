"""Joint embedding of several modalities of the same cells: a variational autoencoder that begins as a factor analysis.

The model. A cell has a latent vector z ~ N(0, I). Each modality m that it has is drawn from a likelihood of its own

    x_m ~ p_m(size_m, b_m[batch] + z A_m + h_m(z))

with a small network h_m. Each modality gives a Gaussian opinion on z (its expert), and the posterior is their product
with the prior N(0, I), or their mixture or mean. Absent modalities are left out of it exactly.

Training starts from a solution in closed form (:mod:`diffbio_sc.numerics.joint_factors`): the experts are those of a
factor analysis of all modalities, the decoders' slopes one Newton step of the count regression on z, and all networks
begin near zero. ``fit`` raises the evidence lower bound from there and stops when held-out cells say.

Product of experts: Wu and Goodman 2018, NeurIPS. Weights of the modalities: Kendall et al. 2018, CVPR (learnable), Chen
et al. 2018, ICML (GradNorm). Likelihoods as MULTIVI (Ashuach et al. 2023, Nature Methods 20:1222) and totalVI (Gayoso
et al. 2021, Nature Methods 18:272).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse as sp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics import gaussian_fusion, joint_factors
from diffbio_sc.numerics import modality_likelihoods as likelihoods
from diffbio_sc.operators._operator import (
    FitReport,
    FittedStatistic,
    Operator,
    OperatorConfig,
    as_float_array,
    check_axis_size,
)
from diffbio_sc.training import sparse_rows
from diffbio_sc.training.batches import WEIGHT_KEY, bucket_size
from diffbio_sc.training.loop import train

FUSIONS = ("poe", "moe", "mean")
WEIGHT_MODES = ("equal", "learnable")
_ACCESSIBILITY = ("multinomial", "poisson", "bernoulli")  # of chromatin: features by TF-IDF
_LOSS_CELLS = 512  # cells from which the losses at the start are averaged
_FACTOR_CELLS = 20_000  # cells that the factor analysis is computed from
_START = 1e-3  # size of the networks' last layers before training
_SLOPE_PRIOR = 10.0  # reads that draw each slope of a decoder to 0
_LINK_PRIOR = 100.0  # the same for the slopes from which an accessibility expert is made
_BELIEVED = 0.5
_NEWTON = 0.5  # share of the Newton step taken: slopes of a rate overshoot those of its logarithm
_LARGEST_SLOPE = 1.0
_ENCODE_ROWS = 2048
_LOG_VARIANCE_BOUND = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiOmicsVAEConfig(OperatorConfig):
    """Settings of :class:`DifferentiableMultiOmicsVAE`.

    Parameters
    ----------
    modality_dims
        Features of each modality.
    latent_dim
        Dimensions of z.
    hidden_dim
        Width of the networks.
    modality_weight_mode
        ``"equal"``: the evidence lower bound itself. ``"learnable"``: each likelihood is tempered by a variance that is
        learned with its log term.
    use_gradnorm
        Balance the modalities so that their gradients on z have norms in proportion to how far they still have to go.
    gradnorm_alpha
        How much more a modality that lags behind is favoured.
    likelihoods
        One name of :data:`diffbio_sc.numerics.modality_likelihoods.LIKELIHOODS` for each modality. Default: negative
        binomial and multinomial for two (RNA and ATAC), negative binomial for any other number.
    fusion
        ``"poe"`` (product of experts with the prior), ``"moe"`` (mixture) or ``"mean"``.
    n_batches
        Batches; each has its own intercepts in encoders and decoders.
    encoder_dim
        Features of each modality that its encoder reads, at most.
    dropout_rate
        Share of hidden units dropped in training.
    subset_rate
        Share of training cells whose z comes from a random part of their modalities; all of them are reconstructed.
    kl_weight
        Weight of the divergence from the prior; 1 is the evidence lower bound.
    slope_precision
        Precision of the decoders' Gaussian prior.
    n_sampled
        Features that stand for all in the multinomial during training; 0 takes all of them.
    """

    modality_dims: tuple[int, ...] = (2000, 500)
    latent_dim: int = 10
    hidden_dim: int = 64
    modality_weight_mode: str = "equal"
    use_gradnorm: bool = False
    gradnorm_alpha: float = 1.5
    likelihoods: tuple[str, ...] | None = None
    fusion: str = "poe"
    n_batches: int = 1
    encoder_dim: int = 50
    dropout_rate: float = 0.0
    subset_rate: float = 0.0
    kl_weight: float = 1.0
    slope_precision: float = 40.0
    n_sampled: int = 0

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        dims = self.modality_dims
        good = isinstance(dims, tuple) and len(dims) >= 1
        good = good and all(isinstance(size, int) and not isinstance(size, bool) and size >= 2 for size in dims)
        self.require("modality_dims", good, "a sequence of integers of at least 2, one for each modality")
        self.require_integers("latent_dim", "hidden_dim", "n_batches", "encoder_dim")
        self.require_integers("n_sampled", minimum=0)
        self.require("modality_weight_mode", self.modality_weight_mode in WEIGHT_MODES, f"one of {WEIGHT_MODES}")
        self.require("fusion", self.fusion in FUSIONS, f"one of {FUSIONS}")
        self.require("use_gradnorm", isinstance(self.use_gradnorm, bool), "True or False")
        self.require_positive("gradnorm_alpha", "kl_weight", "slope_precision", zero_allowed=True)
        self.require_fractions("dropout_rate", "subset_rate", one_allowed=False)
        if self.likelihoods is not None:
            known = all(name in likelihoods.LIKELIHOODS for name in self.likelihoods)
            self.require(
                "likelihoods",
                isinstance(self.likelihoods, tuple) and len(self.likelihoods) == len(dims) and known,
                f"one of {likelihoods.LIKELIHOODS} for each of the {len(dims)} modalities",
            )

    @property
    def modality_likelihoods(self) -> tuple[str, ...]:
        """Likelihood of each modality, with the defaults filled in."""
        if self.likelihoods is not None:
            return self.likelihoods
        if len(self.modality_dims) == 2:
            return ("negative_binomial", "multinomial")
        return ("negative_binomial",) * len(self.modality_dims)

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names in the keys of data and results: rna and atac for two modalities, else modality_<i>."""
        if len(self.modality_dims) == 2:
            return ("rna", "atac")
        return tuple(f"modality_{i}" for i in range(len(self.modality_dims)))

    @property
    def feature_dim(self) -> int:
        """Width of the encoders' input."""
        return max(self.encoder_dim, self.latent_dim)


class Encoding(NamedTuple):
    """Posterior of cells.

    Attributes
    ----------
    mean, variance
        Of the joint posterior.
    shares
        Share of each modality in the joint mean, averaged over the dimensions; the prior has the rest.
    modality_mean, modality_variance
        Posterior from each modality alone; NaN where the cell lacks it.
    """

    mean: Float[np.ndarray, "cells latent"]
    variance: Float[np.ndarray, "cells latent"]
    shares: Float[np.ndarray, "cells modalities"]
    modality_mean: Float[np.ndarray, "modalities cells latent"]
    modality_variance: Float[np.ndarray, "modalities cells latent"]


def product_of_experts(
    means: Float[Array, "experts cells latent"], log_variances: Float[Array, "experts cells latent"]
) -> tuple[Float[Array, "cells latent"], Float[Array, "cells latent"]]:
    """Mean and log variance of the product of Gaussians: precisions add up, means are averaged by precision.

    Without a prior; :func:`diffbio_sc.numerics.gaussian_fusion.product_of_experts` has one, weights and absent experts.

    Parameters
    ----------
    means, log_variances
        Of each expert.

    Returns
    -------
    Mean and log variance (cells, latent).
    """
    means, log_variances = jnp.asarray(means), jnp.asarray(log_variances)
    present = jnp.ones(means.shape[:2], bool)
    fused = gaussian_fusion.product_of_experts(means, log_variances, present, prior=False)
    return fused.mean, fused.log_variance


class ModalityEncoder(nnx.Module):
    """Expert of one modality: a linear map of its features, plus a network that starts near zero."""

    def __init__(self, features: int, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent, inputs = config.hidden_dim, config.latent_dim, config.feature_dim
        self.scale = FittedStatistic(jnp.ones(features))
        self.frequency = FittedStatistic(jnp.ones(features))
        self.limit = FittedStatistic(jnp.full(features, jnp.inf))
        self.target = FittedStatistic(jnp.float32(1e4))
        self.depth_moments = FittedStatistic(jnp.array([0.0, 1.0]))
        self.basis = FittedStatistic(_normal(rngs, (features, inputs), features))
        self.offsets = FittedStatistic(jnp.zeros((2, inputs)))
        self.input_scale = FittedStatistic(jnp.ones(inputs))
        self.batch_offset = nnx.Param(jnp.zeros((config.n_batches, inputs)))
        self.kernel = nnx.Param(_normal(rngs, (inputs, latent), inputs))
        self.log_precision = nnx.Param(jnp.zeros(latent))
        self.first_kernel = nnx.Param(_normal(rngs, (inputs + 1, width), inputs + 1))
        self.first_bias = nnx.Param(jnp.zeros(width))
        self.second_kernel = nnx.Param(_normal(rngs, (width, width), width))
        self.second_bias = nnx.Param(jnp.zeros(width))
        self.last_kernel = nnx.Param(_START * _normal(rngs, (width, 2 * latent), width))

    def __call__(
        self,
        features: Float[Array, "cells inputs"],
        log_size: Float[Array, " cells"],
        batch: Int[Array, " cells"],
        by_depth: bool,
        keep: float,
        key: Array | None,
    ) -> tuple[Float[Array, "cells latent"], Float[Array, "cells latent"]]:
        """Mean and log variance of the expert."""
        centred = features - self.batch_offset[...][batch]
        mean, deviation = self.depth_moments[...]
        depth = ((log_size - mean) / deviation)[:, None]
        inputs = jnp.concatenate([centred * self.input_scale[...], depth], axis=1)
        hidden = jax.nn.relu(inputs @ self.first_kernel[...] + self.first_bias[...])
        hidden = hidden @ self.second_kernel[...] + self.second_bias[...]
        if key is not None and keep < 1:
            hidden = hidden * jax.random.bernoulli(key, keep, hidden.shape) / keep
        correction = jax.nn.relu(hidden) @ self.last_kernel[...]
        latent = correction.shape[1] // 2
        log_precision = self.log_precision[...] + correction[:, latent:]
        if by_depth:
            log_precision = log_precision + (log_size - mean)[:, None]
        bound = _LOG_VARIANCE_BOUND
        return centred @ self.kernel[...] + correction[:, :latent], -jnp.clip(log_precision, -bound, bound)


class ModalityDecoder(nnx.Module):
    """Parameters of one modality's likelihood from z: linear, plus a network that starts near zero."""

    def __init__(self, features: int, likelihood: str, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent = config.hidden_dim, config.latent_dim
        self.intercept = nnx.Param(jnp.full((config.n_batches, features), -float(np.log(features))))
        self.slopes = nnx.Param(_START * _normal(rngs, (features, latent)))
        self.hidden_kernel = nnx.Param(_normal(rngs, (latent, width), latent))
        self.hidden_bias = nnx.Param(jnp.zeros(width))
        self.hidden_slopes = nnx.Param(_START * _normal(rngs, (features, width), width))
        if likelihood in ("negative_binomial", "zero_inflated_negative_binomial", "protein_mixture"):
            self.log_inverse_dispersion = nnx.Param(jnp.full(features, float(np.log(2.0))))
        if likelihood == "zero_inflated_negative_binomial":
            self.dropout_logits = nnx.Param(jnp.full(features, -3.0))
        if likelihood == "protein_mixture":
            self.log_background = nnx.Param(jnp.full((config.n_batches, features), -float(np.log(features)) - 2.0))
            self.background_slopes = nnx.Param(_START * _normal(rngs, (latent, features)))
            self.background_intercept = nnx.Param(jnp.full(features, -2.0))
        if likelihood == "gaussian":
            self.log_variance = nnx.Param(jnp.zeros(features))

    def extended(self, latent: Float[Array, "cells latent"]) -> Float[Array, "cells latent_and_hidden"]:
        """The latent vector and the hidden units beside it."""
        return jnp.concatenate([latent, jnp.tanh(latent @ self.hidden_kernel[...] + self.hidden_bias[...])], axis=1)

    def weights(self) -> Float[Array, "features latent_and_hidden"]:
        """Slopes of the extended latent vector."""
        return jnp.concatenate([self.slopes[...], self.hidden_slopes[...]], axis=1)

    def parameters(
        self,
        likelihood: str,
        latent: Float[Array, "cells latent"],
        batch: Int[Array, " cells"],
        log_size: Float[Array, " cells"],
        columns: Int[Array, " columns"] | None = None,
    ) -> dict[str, Array]:
        """Arguments of the likelihood after the counts."""
        take = (lambda array: array) if columns is None else (lambda array: array[..., columns])
        logits = self.extended(latent) @ self.weights().T + self.intercept[...][batch]
        size = log_size[:, None]
        if likelihood == "multinomial":
            return {"logits": logits}
        if likelihood == "bernoulli":
            return {"logits": take(logits + size)}
        if likelihood == "gaussian":
            return {"mean": take(logits), "log_variance": take(self.log_variance[...])}
        dispersion = {}
        if likelihood != "poisson":
            dispersion["log_inverse_dispersion"] = take(self.log_inverse_dispersion[...])
        if likelihood == "protein_mixture":
            background = self.log_background[...][batch]
            mixing = latent @ self.background_slopes[...] + self.background_intercept[...]
            return {
                "log_background": take(background + size),
                "log_excess": take(logits - background),
                "background_logits": take(mixing),
                **dispersion,
            }
        log_mean = take(jax.nn.log_softmax(logits, axis=-1) + size)
        if likelihood == "zero_inflated_negative_binomial":
            dispersion["dropout_logits"] = take(self.dropout_logits[...])
        return {"log_mean": log_mean, **dispersion}


class DifferentiableMultiOmicsVAE(Operator):
    """Joint latent space of several modalities, with reconstructions; differentiable from counts to everything.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; ``params`` makes the networks.

    Notes
    -----
    Inputs of ``apply``: ``rna_counts`` and ``atac_counts`` for two modalities, else ``modality_<i>_counts``, each
    (cells, features); optional ``present`` (cells, modalities), which modalities a cell has, ``batch`` (cells,) codes,
    and ``noise`` (cells, latent), standard normal draws for the bound (fixed draws otherwise).

    Outputs: ``joint_latent`` (cells, latent), the posterior mean, ``joint_log_variance``, ``modality_shares`` (cells,
    modalities), ``rna_reconstructed`` and so on (cells, features), expected values given each cell's own depth, and
    ``elbo_loss``, the negative evidence lower bound of a cell on average.

    Before :meth:`initialize` or :meth:`fit` the networks are random and ``apply`` warns. ``initialize`` alone gives the
    factor analysis.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig
    >>> rng = np.random.default_rng(0)
    >>> rates = rng.gamma(1.0, 1.0, (3, 50))[rng.integers(0, 3, 100)]
    >>> data = {"rna_counts": rng.poisson(rates[:, :30]), "atac_counts": rng.poisson(rates[:, 30:])}
    >>> config = MultiOmicsVAEConfig(modality_dims=[30, 20], latent_dim=2)
    >>> vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    >>> vae.initialize([data["rna_counts"], data["atac_counts"]])
    >>> result, _, _ = vae.apply(data, {}, None)
    >>> result["joint_latent"].shape, result["atac_reconstructed"].shape
    ((100, 2), (100, 20))
    """

    config_class: ClassVar[type[OperatorConfig]] = MultiOmicsVAEConfig
    is_network: ClassVar[bool] = True
    config: MultiOmicsVAEConfig

    def __init__(self, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.required_keys = tuple(f"{name}_counts" for name in config.modality_names)  # type: ignore[misc]
        self.optional_keys = ("present", "batch", "noise")  # type: ignore[misc]
        modalities = len(config.modality_dims)
        self.encoders = nnx.List([ModalityEncoder(size, config, rngs=rngs) for size in config.modality_dims])
        names = config.modality_likelihoods
        self.decoders = nnx.List(
            [
                ModalityDecoder(size, name, config, rngs=rngs)
                for size, name in zip(config.modality_dims, names, strict=True)
            ]
        )
        if config.modality_weight_mode == "learnable":
            self.log_temperature = nnx.Param(jnp.zeros(modalities))
        if config.use_gradnorm:
            self.log_balance = nnx.Param(jnp.zeros(modalities))
        self.initial_losses = FittedStatistic(jnp.ones(modalities))
        self.n_cells = FittedStatistic(jnp.float32(1e3))
        # Log size of a modality from z and the other modalities' log sizes: constant, slopes of z, slopes of the sizes.
        self.size_model = FittedStatistic(jnp.zeros((modalities, 1 + config.latent_dim + modalities)))
        self.size_means = FittedStatistic(jnp.zeros(modalities))
        self.deterministic = True

    # --- on arrays ----------------------------------------------------------------------------------------------------

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return latent vectors, reconstructions and the negative evidence lower bound."""
        self.check_keys(data)
        return _apply(*nnx.split(self), self._arrays(data))

    def _outputs(self, data: Mapping[str, Array]) -> dict[str, Array]:
        counts, batch_data = self._dense_batch(data)
        experts = self._experts(batch_data, None)
        posterior = self._fuse(experts, batch_data["present"])
        value, _ = self._bound(counts, batch_data, experts, batch_data["present"], data.get("noise"), None)
        known = jnp.where(batch_data["present"], batch_data["log_size"], jnp.nan)
        result = {
            "joint_latent": posterior.mean,
            "joint_log_variance": posterior.log_variance,
            "modality_shares": posterior.shares.mean(-1).T,
        }
        for m, name in enumerate(self.config.modality_names):
            size = jnp.where(
                batch_data["present"][:, m], batch_data["log_size"][:, m], self._size(m, posterior.mean, known)
            )
            result[f"{name}_reconstructed"] = self._expected(m, posterior.mean, batch_data["batch"], size)
        result["elbo_loss"] = value
        return result

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Negative evidence lower bound of a cell, on average, with the modalities' weights.

        Drawn with ``data["noise"]``, standard normals (cells, latent); without it the same draws at every call.
        """
        self.check_keys(data)
        return _loss(*nnx.split(self), self._arrays(data))

    def _dense_loss(self, data: Mapping[str, Array]) -> Float[Array, ""]:
        counts, batch_data = self._dense_batch(data)
        experts = self._experts(batch_data, None)
        return self._bound(counts, batch_data, experts, batch_data["present"], data.get("noise"), None)[0]

    def traverse(
        self,
        modality: int,
        latent: Float[np.ndarray, " latent"],
        dimension: int,
        values: Sequence[float],
        *,
        batch: int = 0,
        log_size: float = 0.0,
    ) -> Float[np.ndarray, "values features"]:
        """Expected values of a modality as one latent dimension takes ``values`` and the others stay."""
        moved = np.repeat(np.asarray(latent, np.float32)[None], len(values), axis=0)
        moved[:, dimension] = values
        codes = np.full(len(moved), batch)
        return self.expected(modality, moved, batch=codes, log_size=np.full(len(moved), log_size))

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> FitReport:
        """Initialise from the data and raise the evidence lower bound; options as :meth:`fit_matrices`."""
        self.check_keys(data)
        matrices = [np.asarray(data[key]) for key in self.required_keys]
        return self.fit_matrices(matrices, *arguments, present=data.get("present"), batch=data.get("batch"), **options)

    def fit_matrices(
        self,
        matrices: Sequence[Any],
        *,
        present: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        encoder_rate: float | None = None,
        validation_fraction: float = 0.1,
        patience: int = 5,
        rng: int | np.random.Generator = 0,
        initialize: bool = True,
        checkpoint: str | None = None,
        description: str = "Multi-omics VAE",
    ) -> FitReport:
        """Fit to count matrices, sparse or dense, which are never made dense as a whole.

        Parameters
        ----------
        matrices
            One for each modality, (cells, features); rows of cells that lack the modality are not read.
        present
            Cells by modalities, which modalities each cell has. Default: all.
        batch
            Code of each cell's batch. Default: one batch.
        max_epochs
            Epochs at most; by default so many that there are 1500 steps, but between 20 and 200.
        batch_size
            Cells a step; default 128, 64 below 2000 cells.
        learning_rate
            Of the decoders; default 0.001, 0.005 below 2000 cells.
        encoder_rate
            Learning rate of the encoders over that of the decoders. Default 1 where cells lack modalities, 0.02 where
            none does: the product of the linear experts is then close to the exact posterior, and good already.
        validation_fraction, patience
            Held-out cells, and epochs without progress on them after which to stop; the best parameters are kept.
        rng
            Seed or generator.
        initialize
            Whether to compute the start from these data; otherwise training goes on from the present parameters.
        checkpoint
            File to keep the state of the run in.
        description
            Name on the progress bar.

        Returns
        -------
        Report with ``loss``, ``kl`` and ``nll_<i>`` of each epoch, and the same with ``validation_`` before.
        """
        started = time.perf_counter()
        generator = np.random.default_rng(rng)
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        if initialize:
            self.initialize(matrices, present=present, batch=batch, rng=generator)
        cells = len(present)
        batch_size = min(batch_size or (128 if cells >= 2000 else 64), cells)
        learning_rate = learning_rate or (1e-3 if cells >= 2000 else 5e-3)
        if encoder_rate is None:
            encoder_rate = 0.02 if present.all() else 1.0
        trained = cells - max(round(validation_fraction * cells), 1) if validation_fraction else cells
        if max_epochs is None:
            max_epochs = int(np.clip(-(-1500 // max(trained // batch_size, 1)), 20, 200))
        data: dict[str, Any] = {
            "row": np.arange(cells, dtype=np.int32),
            "present": present,
            "batch": batch.astype(np.int32),
            "log_size": self._log_sizes(matrices),
        }
        data["features"] = np.stack([self._features(m, matrix) for m, matrix in enumerate(matrices)], axis=1)
        sample_keys, capacities = tuple(data), []
        for m, matrix in enumerate(matrices):
            rows = sparse_rows.place_sparse(matrix, n_rows=bucket_size(cells))
            data.update({f"indptr_{m}": rows.indptr, f"indices_{m}": rows.indices, f"values_{m}": rows.data})
            capacities.append(sparse_rows.batch_capacity(np.diff(matrix.indptr), batch_size))
        report = train(
            self,
            data,
            loss=_sparse_loss(tuple(capacities), self.config.modality_dims),
            weighted=True,
            sample_keys=sample_keys,
            optimizer=_optimizer(float(learning_rate), float(encoder_rate)),
            batch_size=batch_size,
            max_epochs=max_epochs,
            rng=generator,
            validation_fraction=validation_fraction,
            patience=patience,
            checkpoint=checkpoint,
            description=description,
        )
        self._fit_sizes(matrices, present, batch)
        self.mark_fitted()
        return report._replace(seconds=time.perf_counter() - started)

    def initialize(
        self,
        matrices: Sequence[Any],
        *,
        present: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        rng: int | np.random.Generator = 0,
    ) -> None:
        """Set all parameters to the linear solution: factor analysis for the experts, one Newton step for the decoders.

        Parameters
        ----------
        matrices, present, batch
            As in :meth:`fit_matrices`.
        rng
            Seed or generator of the random projections.
        """
        generator = np.random.default_rng(rng)
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        chosen = np.arange(len(present))
        if len(chosen) > _FACTOR_CELLS:
            chosen = np.sort(generator.choice(len(chosen), _FACTOR_CELLS, replace=False))
        matrices = [matrix[chosen] for matrix in matrices]
        present, batch = present[chosen], batch[chosen]
        log_size = self._log_sizes(matrices)
        scores, noise = [], []
        for m, matrix in enumerate(matrices):
            known = np.flatnonzero(present[:, m])
            components = self._fit_transform(m, matrix[known], generator)
            scores.append(self._features(m, matrix, linked=False)[:, : len(components.noise)].astype(np.float64))
            noise.append(components.noise)
        factors = joint_factors.fit_factors(scores, present, batch, self.config.latent_dim, noise, rng=generator)
        for m, matrix in enumerate(matrices):
            known = np.flatnonzero(present[:, m])
            kernel, precision = joint_factors.unimodal_expert(factors.loadings[m], factors.noise[m])
            encoder = self.encoders[m]
            inputs = self.config.feature_dim
            encoder.kernel[...] = jnp.asarray(_padded(kernel, (inputs, kernel.shape[1])))
            encoder.log_precision[...] = jnp.asarray(np.log(precision), jnp.float32)
            offset = factors.offsets[m]
            encoder.batch_offset[...] = jnp.asarray(_padded(offset, (self.config.n_batches, inputs)))
            spread = np.sqrt(((scores[m][known] - offset[batch[known]]) ** 2).mean(0))
            encoder.input_scale[...] = jnp.asarray(
                _padded(np.full(len(spread), 1.0 / max(np.sqrt((spread**2).mean()), 1e-6)), (inputs,))
            )
            if self.config.modality_likelihoods[m] in _ACCESSIBILITY:
                self._link(m, matrix[known], factors.latent[known], batch[known])
            self._start_decoder(m, matrix[known], factors.latent[known], batch[known], log_size[known, m])
        self.n_cells[...] = jnp.float32(len(present))
        self._fit_sizes(matrices, present, batch)
        few = slice(0, _LOSS_CELLS)
        score = self.score([matrix[few] for matrix in matrices], present=present[few], batch=batch[few])
        values = [score[f"log_likelihood_{m}"] for m in range(len(matrices))]
        losses = [-np.nanmean(value) if np.isfinite(value).any() else 1.0 for value in values]
        self.initial_losses[...] = jnp.asarray(losses, jnp.float32)
        self.mark_fitted()

    # --- on matrices --------------------------------------------------------------------------------------------------

    def encode(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> Encoding:
        """Posterior of each cell, in blocks of rows; arguments as :meth:`fit_matrices`."""
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        graph, state = self._split()
        blocks = []
        for start in range(0, len(present), _ENCODE_ROWS):
            rows = slice(start, start + _ENCODE_ROWS)
            blocks.append(_encode_block(graph, state, self._block(matrices, present, batch, rows)))
            blocks[-1] = [part[..., : len(present[rows]), :] for part in blocks[-1]]
        joined = [np.concatenate(parts, axis=-2) for parts in zip(*blocks, strict=True)]
        return Encoding(*joined)

    def score(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> dict[str, Float[np.ndarray, " cells"]]:
        """Divergence from the prior (``kl``) and ``log_likelihood_<i>`` at the posterior mean, of each cell, nats."""
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        graph, state = self._split()
        parts = []
        for start in range(0, len(present), _ENCODE_ROWS // 4):
            rows = slice(start, start + _ENCODE_ROWS // 4)
            block = self._block(matrices, present, batch, rows, _ENCODE_ROWS // 4)
            dense = [_padded(_dense(matrix[rows]), (_ENCODE_ROWS // 4, matrix.shape[1])) for matrix in matrices]
            parts.append(_score_block(graph, state, block, dense)[:, : len(present[rows])])
        joined = np.concatenate(parts, axis=1)
        names = ["kl", *(f"log_likelihood_{m}" for m in range(len(matrices)))]
        return dict(zip(names, joined, strict=True))

    def expected(
        self,
        modality: int,
        latent: Float[np.ndarray, "cells latent"],
        *,
        batch: np.ndarray | None = None,
        log_size: np.ndarray | None = None,
        columns: np.ndarray | None = None,
    ) -> Float[np.ndarray, "cells features"]:
        """Expected values of a modality at ``latent``, in blocks of rows.

        Parameters
        ----------
        modality
            Its number.
        latent
            Cells by latent dimensions.
        batch
            Code of each cell's batch; default 0.
        log_size
            Log of each cell's total count; default 0, shares of the total.
        columns
            Features to return; default all.
        """
        latent = np.asarray(latent, np.float32)
        cells = len(latent)
        batch = np.zeros(cells, np.int32) if batch is None else np.asarray(batch, np.int32)
        log_size = np.zeros(cells, np.float32) if log_size is None else np.asarray(log_size, np.float32)
        chosen = np.arange(self.config.modality_dims[modality]) if columns is None else np.asarray(columns)
        graph, state = self._split()
        result = np.empty((cells, len(chosen)), np.float32)
        for start in range(0, cells, _ENCODE_ROWS // 4):
            rows = slice(start, start + _ENCODE_ROWS // 4)
            shape = (_ENCODE_ROWS // 4,)
            values = _expected_block(
                graph,
                state,
                modality,
                _padded(latent[rows], (*shape, latent.shape[1])),
                _padded(batch[rows], shape),
                _padded(log_size[rows], shape),
            )
            result[rows] = np.asarray(values)[: len(latent[rows])][:, chosen]
        return result

    def predict_log_size(
        self, modality: int, latent: Float[np.ndarray, "cells latent"], log_sizes: Float[np.ndarray, "cells modalities"]
    ) -> Float[np.ndarray, " cells"]:
        """Log of the total count that a modality would have, from z and the other modalities' sizes (NaN: unknown)."""
        return np.asarray(self._size(modality, jnp.asarray(latent, jnp.float32), jnp.asarray(log_sizes, jnp.float32)))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _arrays(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """The operator's own inputs, checked."""
        arrays = {}
        for key, size in zip(self.required_keys, self.config.modality_dims, strict=True):
            arrays[key] = as_float_array(data, key, (2,))
            check_axis_size(key, arrays[key], 1, size, "config.modality_dims")
        cells, modalities = arrays[self.required_keys[0]].shape[0], len(arrays)
        for key in self.required_keys:
            check_axis_size(key, arrays[key], 0, cells, f"the cells of {self.required_keys[0]}")
        expected = {"present": (cells, modalities), "batch": (cells,), "noise": (cells, self.config.latent_dim)}
        for key, shape in expected.items():
            if data.get(key) is not None:
                arrays[key] = jnp.asarray(data[key])
                if arrays[key].shape != shape:
                    raise ValueError(f"data[{key!r}] must have shape {shape}, found {arrays[key].shape}.")
        return arrays

    def _dense_batch(self, data: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        counts = [data[key] for key in self.required_keys]
        cells = len(counts[0])
        present = data["present"] > 0 if "present" in data else jnp.ones((cells, len(counts)), bool)
        batch = data["batch"].astype(jnp.int32) if "batch" in data else jnp.zeros(cells, jnp.int32)
        names = self.config.modality_likelihoods
        features = [self._transform(m, array) for m, array in enumerate(counts)]
        log_size = jnp.stack([_log_size(array, name) for array, name in zip(counts, names, strict=True)], axis=1)
        return counts, {
            "features": jnp.stack(features, axis=1),
            "log_size": log_size,
            "present": present,
            "batch": batch,
        }

    def _transform(self, m: int, counts: Float[Array, "cells features"]) -> Float[Array, "cells inputs"]:
        """Features of dense counts: the twin of :meth:`_features`, with gradients."""
        encoder, name = self.encoders[m], self.config.modality_likelihoods[m]
        size = jnp.maximum(counts.sum(1, keepdims=True), 1.0)
        regressor = jnp.ones((len(counts), 1))
        depth = jnp.zeros_like(size)
        if name in _ACCESSIBILITY:
            values = counts / size
        elif name == "protein_mixture":
            values = jnp.log1p(counts)
            values = values - values.mean(1, keepdims=True)
        elif name == "gaussian":
            values = counts
        else:
            values = jnp.log1p(counts * encoder.target[...] / size)
        values = jnp.minimum(values * encoder.scale[...], encoder.limit[...])
        return values @ encoder.basis[...] - jnp.concatenate([regressor, depth], axis=1) @ encoder.offsets[...]

    def _host_values(self, m: int, matrix: Any, *, linked: bool = True) -> tuple[Any, np.ndarray]:
        """Transformed values before scaling, and the regressors, on the host.

        Accessibility is read as shares of the depth where it is ``linked`` to the latent vector, else as TF-IDF.
        """
        encoder, name = self.encoders[m], self.config.modality_likelihoods[m]
        size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
        regressors = np.zeros((matrix.shape[0], 2))
        regressors[:, 0] = 1.0
        if name in ("protein_mixture", "gaussian"):
            values = _dense(matrix)
            if name == "protein_mixture":
                values = np.log1p(values)
                values = values - values.mean(1, keepdims=True)
            return values, regressors
        values = matrix.copy().astype(np.float32)
        lengths = np.diff(values.indptr)
        if name in _ACCESSIBILITY and linked:
            values.data = (values.data / np.repeat(size, lengths)).astype(np.float32)
        elif name in _ACCESSIBILITY:
            frequency = np.asarray(encoder.frequency[...])
            number = np.maximum(lengths, 1)
            values.data = np.log1p(1e4 * frequency[values.indices] / np.repeat(number, lengths)).astype(np.float32)
            mean, deviation = np.asarray(encoder.depth_moments[...])
            regressors[:, 1] = (np.log(size) - mean) / deviation
        else:
            factor = float(encoder.target[...]) / size
            values.data = np.log1p(values.data * np.repeat(factor, lengths)).astype(np.float32)
        return values, regressors

    def _features(self, m: int, matrix: Any, *, linked: bool = True) -> Float[np.ndarray, "cells inputs"]:
        """Features of all rows of a matrix, in blocks."""
        encoder = self.encoders[m]
        scale, limit = np.asarray(encoder.scale[...]), np.asarray(encoder.limit[...])
        basis, offsets = np.asarray(encoder.basis[...]), np.asarray(encoder.offsets[...])
        blocks = []
        for start in range(0, matrix.shape[0], 4 * _ENCODE_ROWS):
            values, regressors = self._host_values(m, matrix[start : start + 4 * _ENCODE_ROWS], linked=linked)
            blocks.append(_scaled(values, scale, limit) @ basis - regressors.astype(np.float32) @ offsets)
        return np.concatenate(blocks).astype(np.float32)

    def _fit_transform(self, m: int, matrix: Any, generator: np.random.Generator) -> joint_factors.Components:
        """Learn how counts of a modality become features."""
        encoder, name = self.encoders[m], self.config.modality_likelihoods[m]
        size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
        log_size = np.log(size) if name != "gaussian" else np.zeros(len(size))
        deviation = log_size.std()
        encoder.depth_moments[...] = jnp.asarray([log_size.mean(), deviation if deviation > 1e-6 else 1.0], jnp.float32)
        encoder.target[...] = jnp.float32(np.median(size))
        if name in _ACCESSIBILITY:
            detected = np.maximum(np.bincount(matrix.indices, minlength=matrix.shape[1]), 1)
            encoder.frequency[...] = jnp.asarray(len(size) / detected, jnp.float32)
        values, regressors = self._host_values(m, matrix, linked=False)
        scale = 1.0 / joint_factors.standard_deviations(values)
        limit = np.asarray(values.mean(0)).ravel() * scale + joint_factors.LARGEST_VALUE
        if not (regressors[:, 1] ** 2).sum() > 0:
            regressors = regressors[:, :1]
        components = joint_factors.fit_components(
            _scaled(values, scale, limit), regressors, self.config.encoder_dim, generator
        )
        inputs = self.config.feature_dim
        encoder.scale[...], encoder.limit[...] = jnp.asarray(scale), jnp.asarray(limit, jnp.float32)
        encoder.basis[...] = jnp.asarray(_padded(components.basis, (matrix.shape[1], inputs)))
        encoder.offsets[...] = jnp.asarray(_padded(components.offsets, (2, inputs)))
        return components

    def _start_decoder(self, m: int, matrix: Any, latent: np.ndarray, batch: np.ndarray, log_size: np.ndarray) -> None:
        """Intercepts of each batch, and one Newton step of the regression on the latent vectors for the slopes."""
        decoder, name = self.decoders[m], self.config.modality_likelihoods[m]
        design = sp.csr_array(
            (np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(self.config.n_batches, len(batch))
        )
        if name == "gaussian":
            values = _dense(matrix).astype(np.float64)
            centre = (
                np.asarray(design @ values)
                / np.maximum(np.bincount(batch, minlength=self.config.n_batches), 1)[:, None]
            )
            residual = values - centre[batch]
            slopes = np.linalg.solve(latent.T @ latent + np.eye(latent.shape[1]), latent.T @ residual)
            variance = np.maximum(((residual - latent @ slopes) ** 2).mean(0), 1e-6)
            decoder.intercept[...] = jnp.asarray(centre, jnp.float32)
            decoder.slopes[...] = jnp.asarray(slopes.T, jnp.float32)
            decoder.log_variance[...] = jnp.asarray(np.log(variance), jnp.float32)
            return
        size = np.exp(log_size.astype(np.float64))
        # Rates of the batches are drawn to the common rate with the weight of a thousand reads.
        totals = np.asarray(
            design @ matrix.toarray() if matrix.shape[1] <= 4096 else (design @ matrix).toarray(), np.float64
        )
        share = (totals.sum(0) + 0.5 / len(size)) / (size.sum() + 0.5)
        rate = (totals + 1e3 * share) / (np.asarray(design @ size) + 1e3)[:, None]
        weighted = latent * size[:, None]
        observed = np.asarray(matrix.T @ latent, np.float64).T
        expected = sum(weighted[batch == b].sum(0)[:, None] * rate[b] for b in range(self.config.n_batches))
        curvature = (latent * weighted).sum(0)[:, None] * share + _SLOPE_PRIOR
        slopes = np.clip((observed - expected) / curvature, -_LARGEST_SLOPE, _LARGEST_SLOPE) * _NEWTON
        decoder.intercept[...] = jnp.asarray(np.log(np.maximum(rate, 1e-9)), jnp.float32)
        decoder.slopes[...] = jnp.asarray(slopes.T, jnp.float32)
        if name == "protein_mixture":
            decoder.log_background[...] = decoder.intercept[...] - 2.0

    def _link(self, m: int, matrix: Any, latent: np.ndarray, batch: np.ndarray) -> None:
        """Expert of an accessibility modality from its likelihood: what the counts say of z by one Newton step.

        With log-rates linear in z, of slopes S, the counts of a cell of depth N have the score S (x - N p) and the
        information N S diag(p) S' at z = 0. S is estimated from all cells, so that the expert also knows what is too
        weak to be a principal component but goes with the other modalities. The information of S is partly its own
        noise: half of it is believed, and more of that in deep cells.
        """
        encoder, inputs = self.encoders[m], self.config.feature_dim
        size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
        share = (np.asarray(matrix.sum(0), np.float64).ravel() + 0.5) / (size.sum() + 0.5)
        counts = sp.csr_array(
            (np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(self.config.n_batches, len(batch))
        )
        totals = (counts @ matrix).toarray().astype(np.float64)
        rates = (totals + 1e3 * share) / (np.asarray(counts @ size) + 1e3)[:, None]
        expected = sum((latent * size[:, None])[batch == b].sum(0)[:, None] * rates[b] for b in range(len(rates)))
        curvature = (latent**2 * size[:, None]).sum(0)[:, None] * share + _LINK_PRIOR
        slopes = (np.asarray(matrix.T @ latent, np.float64).T - expected) / curvature
        information = np.maximum((slopes**2 * share).sum(1) - (slopes @ share) ** 2, 1e-6)
        basis = slopes.T / information
        encoder.scale[...] = jnp.ones(matrix.shape[1])
        encoder.limit[...] = jnp.full(matrix.shape[1], jnp.inf)
        encoder.basis[...] = jnp.asarray(_padded(basis, (matrix.shape[1], inputs)))
        encoder.offsets[...] = jnp.zeros((2, inputs))
        encoder.batch_offset[...] = jnp.asarray(_padded(rates @ basis, (self.config.n_batches, inputs)))
        encoder.kernel[...] = jnp.asarray(_padded(np.eye(latent.shape[1]), (inputs, latent.shape[1])))
        precision = _BELIEVED * information * np.median(size)
        encoder.log_precision[...] = jnp.asarray(np.log(precision), jnp.float32)
        spread = np.sqrt(((matrix @ basis / size[:, None] - rates[batch] @ basis) ** 2).mean(0))
        encoder.input_scale[...] = jnp.asarray(_padded(1.0 / np.maximum(spread, 1e-6), (inputs,)))

    def _fit_sizes(self, matrices: Sequence[Any], present: np.ndarray, batch: np.ndarray) -> None:
        """Regress the log size of each modality on z without it, and on the other modalities' log sizes."""
        log_size = self._log_sizes(matrices)
        known = np.where(present, log_size, np.nan)
        means = np.nan_to_num(np.nanmean(np.where(present.any(0), known, 0.0), axis=0))
        self.size_means[...] = jnp.asarray(means, jnp.float32)
        rows = []
        for m in range(len(matrices)):
            others = present.copy()
            others[:, m] = False
            used = np.flatnonzero(present[:, m] & others.any(1))[:_FACTOR_CELLS]
            row = np.zeros(1 + self.config.latent_dim + len(matrices))
            row[0] = means[m]
            if len(used) > row.size:
                latent = self.encode(
                    [matrix[used] for matrix in matrices], present=others[used], batch=batch[used]
                ).mean
                sizes = np.where(others[used], log_size[used] - means, 0.0)
                design = np.concatenate([np.ones((len(used), 1)), latent, sizes], axis=1)
                gram = design.T @ design + np.eye(design.shape[1])
                row = np.linalg.solve(gram, design.T @ (log_size[used, m] - means[m]))
                row[0] += means[m]
            rows.append(row)
        self.size_model[...] = jnp.asarray(np.stack(rows), jnp.float32)

    def _size(self, m: int, latent: Array, log_sizes: Array) -> Array:
        deviation = jnp.where(jnp.isnan(log_sizes), 0.0, log_sizes - self.size_means[...])
        deviation = deviation.at[:, m].set(0.0)
        row, width = self.size_model[...][m], self.config.latent_dim
        return row[0] + latent @ row[1 : 1 + width] + deviation @ row[1 + width :]

    def _expected(self, m: int, latent: Array, batch: Array, log_size: Array) -> Array:
        name = self.config.modality_likelihoods[m]
        parameters = self.decoders[m].parameters(name, latent, batch, log_size)
        return likelihoods.expected_counts(name, depth=jnp.exp(log_size), **parameters)

    def _experts(self, batch_data: Mapping[str, Array], key: Array | None) -> tuple[Array, Array]:
        keep = 1.0 - self.config.dropout_rate
        names = self.config.modality_likelihoods
        keys = [None] * len(names) if key is None else list(jax.random.split(key, len(names)))
        pairs = [
            encoder(
                batch_data["features"][:, m],
                batch_data["log_size"][:, m],
                batch_data["batch"],
                names[m] in _ACCESSIBILITY,
                keep,
                keys[m],
            )
            for m, encoder in enumerate(self.encoders)
        ]
        return jnp.stack([mean for mean, _ in pairs]), jnp.stack([log_variance for _, log_variance in pairs])

    def _fuse(self, experts: tuple[Array, Array], present: Array) -> gaussian_fusion.FusedGaussian:
        fuse = {
            "poe": gaussian_fusion.product_of_experts,
            "moe": gaussian_fusion.mixture_of_experts,
            "mean": gaussian_fusion.mean_fusion,
        }[self.config.fusion]
        return fuse(*experts, present.T)

    def _bound(
        self,
        counts: Sequence[Any],
        batch_data: Mapping[str, Array],
        experts: tuple[Array, Array],
        used: Array,
        noise: Array | None,
        sampling: Array | None,
    ) -> tuple[Array, dict[str, Array]]:
        """Negative evidence lower bound, and its terms; ``sampling`` is the key of sampled features, None takes all."""
        config, names = self.config, self.config.modality_likelihoods
        posterior = self._fuse(experts, used)
        if noise is None:
            noise = jax.random.normal(jax.random.key(0), posterior.mean.shape)
        latent = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise
        present, batch = batch_data["present"], batch_data["batch"]
        weight = batch_data[WEIGHT_KEY] if WEIGHT_KEY in batch_data else jnp.ones(len(batch))

        def negative(m: int, latent: Array) -> Array:
            size = batch_data["log_size"][:, m]
            decoder, name = self.decoders[m], names[m]
            few = isinstance(counts[m], sparse_rows.RowEntries) and 0 < config.n_sampled < config.modality_dims[m]
            if sampling is not None and few and name == "multinomial" and config.n_batches == 1:
                columns = likelihoods.sample_columns(
                    jax.random.fold_in(sampling, m), config.modality_dims[m], config.n_sampled
                )
                value = likelihoods.sampled_multinomial(
                    counts[m], decoder.extended(latent), decoder.weights(), decoder.intercept[...][0], columns
                )
            else:
                parameters = decoder.parameters(name, latent, batch, size)
                value = getattr(likelihoods, name)(counts[m], **parameters)
            here = present[:, m] * weight
            return -(jnp.where(here > 0, value, 0.0) * here).sum() / jnp.maximum(here.sum(), 1e-6)

        losses = jnp.stack([negative(m, latent) for m in range(len(names))])
        share = (present * weight[:, None]).sum(0) / weight.sum()
        weighted = losses * share
        if config.modality_weight_mode == "learnable":
            sizes = jnp.asarray(config.modality_dims, jnp.float32)
            temperature = self.log_temperature[...]
            weighted = (losses * jnp.exp(-temperature) + sizes * temperature) * share
        total = weighted.sum()
        if config.use_gradnorm:
            balance = len(names) * jax.nn.softmax(self.log_balance[...])
            total = (jax.lax.stop_gradient(balance) * weighted).sum()
            fixed = jax.lax.stop_gradient(latent)
            norms = jnp.stack(
                [
                    jnp.linalg.norm(jax.grad(functools.partial(negative, m))(fixed), axis=1).sum()
                    for m in range(len(names))
                ]
            )
            norms = balance * jax.lax.stop_gradient(norms)
            progress = jax.lax.stop_gradient(losses) / self.initial_losses[...]
            progress = (progress / progress.mean()) ** config.gradnorm_alpha
            target = jax.lax.stop_gradient(norms.mean() * progress)
            imbalance = jnp.abs(norms - target).sum()
            total = total + imbalance - jax.lax.stop_gradient(imbalance)
        if config.fusion == "moe":
            density = gaussian_fusion.gaussian_log_density(latent, posterior.mean, posterior.log_variance)
            zeros = jnp.zeros_like(latent)
            divergence = density - gaussian_fusion.gaussian_log_density(latent, zeros, zeros)
        else:
            divergence = gaussian_fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)
        divergence = (divergence * weight).sum() / weight.sum()
        terms = {"kl": divergence, **{f"nll_{m}": losses[m] for m in range(len(names))}}
        return total + config.kl_weight * divergence, terms

    def _slope_penalty(self) -> Array:
        total = sum((decoder.weights() ** 2).sum() for decoder in self.decoders)
        return 0.5 * self.config.slope_precision * total / self.n_cells[...]

    def _training_loss(
        self, batch_data: dict[str, Any], counts: list[Any], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        training = not self.deterministic
        dropped = training and self.config.dropout_rate > 0
        experts = self._experts(batch_data, jax.random.fold_in(key, 1) if dropped else None)
        used = batch_data["present"]
        if training and self.config.subset_rate > 0:
            used = _random_subset(jax.random.fold_in(key, 2), used, self.config.subset_rate)
        noise = jax.random.normal(key, (len(used), self.config.latent_dim))
        value, terms = self._bound(
            counts, batch_data, experts, used, noise, jax.random.fold_in(key, 3) if training else None
        )
        if training:
            value = value + self._slope_penalty()
        return value, terms

    def _check_matrices(
        self, matrices: Sequence[Any], present: np.ndarray | None, batch: np.ndarray | None
    ) -> tuple[list[sp.csr_array], np.ndarray, np.ndarray]:
        dims = self.config.modality_dims
        if len(matrices) != len(dims):
            raise ValueError(f"expected {len(dims)} matrices (config.modality_dims), found {len(matrices)}.")
        cells = matrices[0].shape[0]
        for m, (matrix, size) in enumerate(zip(matrices, dims, strict=True)):
            if matrix.shape != (cells, size):
                raise ValueError(f"matrix {m} must have shape {(cells, size)}, found {tuple(matrix.shape)}.")
        present = np.ones((cells, len(dims)), bool) if present is None else np.asarray(present) > 0
        if present.shape != (cells, len(dims)):
            raise ValueError(f"present must have shape {(cells, len(dims))}, found {present.shape}.")
        batch = np.zeros(cells, np.int32) if batch is None else np.asarray(batch)
        if batch.shape != (cells,) or batch.max(initial=0) >= self.config.n_batches:
            raise ValueError(
                f"batch must hold a code below config.n_batches = {self.config.n_batches} for each of {cells} cells."
            )
        return [_canonical(matrix) for matrix in matrices], present, batch

    def _log_sizes(self, matrices: Sequence[Any]) -> Float[np.ndarray, "cells modalities"]:
        columns = []
        for matrix, name in zip(matrices, self.config.modality_likelihoods, strict=True):
            size = np.maximum(np.asarray(matrix.sum(1), np.float64).ravel(), 1.0)
            columns.append(np.zeros(len(size)) if name == "gaussian" else np.log(size))
        return np.stack(columns, axis=1).astype(np.float32)

    def _split(self) -> tuple[Any, Any]:
        """Structure and variables; fresh arrays, as code is compiled anew for those that training bound to a device."""
        graph, state = nnx.split(self)
        return graph, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)

    def _block(self, matrices, present, batch, rows: slice, size: int = _ENCODE_ROWS) -> dict[str, np.ndarray]:
        """Encoder inputs of a block of cells, padded to ``size`` rows."""
        parts = [matrix[rows] for matrix in matrices]
        features = np.stack([self._features(m, part) for m, part in enumerate(parts)], axis=1)
        return {
            "features": _padded(features, (size, *features.shape[1:])),
            "log_size": _padded(self._log_sizes(parts), (size, len(parts))),
            "present": _padded(present[rows], (size, len(parts))),
            "batch": _padded(batch[rows].astype(np.int32), (size,)),
        }


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int = 1) -> Array:
    """Normal draws of variance 1 / fan_in; by numpy, because JAX would compile for each shape."""
    words = np.asarray(jax.random.key_data(rngs.params()))
    return jnp.asarray(np.random.default_rng(words).normal(size=shape) / fan_in**0.5, jnp.float32)


def _random_subset(key: Array, present: Array, rate: float) -> Array:
    """For a share ``rate`` of the cells, a random non-empty part of their modalities."""
    choice_key, half_key, cell_key = jax.random.split(key, 3)
    draw = jax.random.uniform(choice_key, present.shape) * present
    one = jax.nn.one_hot(draw.argmax(1), present.shape[1]) > 0
    kept = (jax.random.bernoulli(half_key, 0.5, present.shape) | one) & present
    # All modalities again would be no subset: take the one.
    kept = jnp.where((kept == present).all(1, keepdims=True), one & present, kept)
    return jnp.where(jax.random.bernoulli(cell_key, rate, (len(present), 1)), kept, present)


@functools.lru_cache(maxsize=32)
def _sparse_loss(capacities: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    """Loss on batches of sparse rows; one function for each set of sizes, so that compiled code is found again."""

    def loss(operator: DifferentiableMultiOmicsVAE, batch: dict[str, Array], key: Array) -> Any:
        counts = []
        for m, (capacity, columns) in enumerate(zip(capacities, dims, strict=True)):
            rows = sparse_rows.SparseRows(batch[f"indptr_{m}"], batch[f"indices_{m}"], batch[f"values_{m}"], columns)
            entries = sparse_rows.gather(rows, batch["row"], capacity=capacity)
            dense = operator.config.modality_likelihoods[m] in ("protein_mixture", "gaussian")
            counts.append(sparse_rows.scatter_dense(entries) if dense else entries)
        return operator._training_loss(batch, counts, key)

    return loss


@functools.lru_cache(maxsize=32)
def _optimizer(learning_rate: float, encoder_rate: float) -> optax.GradientTransformation:
    """Adam, slower for the encoders; one object for each pair of rates, so that compiled code is found again."""

    def labels(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "encoder" if "encoders" in jax.tree_util.keystr(path) else "decoder", parameters
        )

    return optax.multi_transform(
        {
            "encoder": optax.adam(learning_rate * encoder_rate, eps=1e-6),
            "decoder": optax.adam(learning_rate, eps=1e-6),
        },
        labels,
    )


@jax.jit
def _apply(graph, state, data):
    return nnx.merge(graph, state)._outputs(data)


@jax.jit
def _loss(graph, state, data):
    return nnx.merge(graph, state)._dense_loss(data)


@jax.jit
def _encode_block(graph, state, block):
    operator = nnx.merge(graph, state)
    mean, log_variance = operator._experts(block, None)
    posterior = operator._fuse((mean, log_variance), block["present"])
    alone = jax.vmap(lambda m, v: gaussian_fusion.product_of_experts(m[None], v[None], jnp.ones((1, len(m)))))(
        mean, log_variance
    )
    absent = ~block["present"].T[..., None]
    return (
        posterior.mean,
        jnp.exp(posterior.log_variance),
        posterior.shares.mean(-1).T,
        jnp.where(absent, jnp.nan, alone.mean),
        jnp.where(absent, jnp.nan, jnp.exp(alone.log_variance)),
    )


@jax.jit
def _score_block(graph, state, block, counts):
    operator = nnx.merge(graph, state)
    posterior = operator._fuse(operator._experts(block, None), block["present"])
    values = [gaussian_fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)]
    for m, name in enumerate(operator.config.modality_likelihoods):
        parameters = operator.decoders[m].parameters(name, posterior.mean, block["batch"], block["log_size"][:, m])
        value = getattr(likelihoods, name)(counts[m], **parameters)
        values.append(jnp.where(block["present"][:, m], value, jnp.nan))
    return jnp.stack(values)


@functools.partial(jax.jit, static_argnames=("modality",))
def _expected_block(graph, state, modality, latent, batch, log_size):
    operator = nnx.merge(graph, state)
    return operator._expected(modality, latent, batch, log_size)


def _log_size(counts: Array, likelihood: str) -> Array:
    if likelihood == "gaussian":
        return jnp.zeros(len(counts))
    return jnp.log(jnp.maximum(counts.sum(1), 1.0))


def _scaled(values: Any, scale: np.ndarray, limit: np.ndarray) -> Any:
    """Columns divided by their standard deviation and cut at ``limit``; sparse stays sparse."""
    if sp.issparse(values):
        data = np.minimum(values.data * scale[values.indices], limit[values.indices])
        return sp.csr_array((data.astype(np.float32), values.indices, values.indptr), shape=values.shape)
    return np.minimum(values * scale, limit).astype(np.float32)


def _canonical(matrix: Any) -> sp.csr_array:
    matrix = sp.csr_array(matrix, dtype=np.float32)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array)
    dtype = np.float32 if array.dtype == np.float64 else array.dtype
    if array.shape == shape:
        return array.astype(dtype)
    padded = np.zeros(shape, dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded
