"""Joint embedding of several modalities of the same cells: a variational autoencoder that begins as a factor analysis.

The model. A cell has a latent vector z ~ N(0, I). Each modality m that it has is drawn from a likelihood of its own

    x_m ~ p_m(size_m, b_m[batch] + z A_m + h_m(z))

with a small network h_m. Each modality gives a Gaussian opinion on z (its expert), and the posterior is their product
with the prior N(0, I), or their mixture or mean. Absent modalities are left out of it exactly.

Training starts from a solution in closed form (:mod:`diffbio_sc.numerics.latent.factors`): the experts are those of a
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
import scipy.sparse as sp
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics.counts import likelihoods, sparse_rows
from diffbio_sc.numerics.latent import fusion
from diffbio_sc.numerics.padding import bucket_size
from diffbio_sc.operators.contract import (
    FitReport,
    FittedStatistic,
    Operator,
    OperatorConfig,
    as_float_array,
    check_axis_size,
)
from diffbio_sc.operators.multiomics import _multiomics_start
from diffbio_sc.operators.multiomics._multiomics_start import ACCESSIBILITY, as_dense, padded, read_features
from diffbio_sc.training.batches import TRAINING_KEY, WEIGHT_KEY
from diffbio_sc.training.loop import train
from diffbio_sc.training.optimizers import Adam

FUSIONS = ("poe", "moe", "mean")
WEIGHT_MODES = ("equal", "learnable")
_ADAM_EPSILON = 1e-6
_READS_A_FEATURE = 1000.0  # reads of a feature below which its modality learns more slowly
_LOSS_CELLS = 512  # cells from which the losses at the start are averaged
_FACTOR_CELLS = 20_000  # cells that the factor analysis is computed from
_START = 1e-3  # size of the networks' last layers before training
_ENCODE_ROWS = 2048
_DENSE_VALUES = 1 << 23  # of a block of rows that is written out
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
        One name of :data:`diffbio_sc.numerics.counts.likelihoods.LIKELIHOODS` for each modality. Default: negative
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

    Without a prior; :func:`diffbio_sc.numerics.latent.fusion.product_of_experts` has one, weights and absent experts.

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
    fused = fusion.product_of_experts(means, log_variances, present, prior=False)
    return fused.mean, fused.log_variance


class ModalityEncoder(nnx.Module):
    """Expert of one modality: a linear map of its features, plus a network that starts near zero."""

    def __init__(self, features: int, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent, inputs = config.hidden_dim, config.latent_dim, config.feature_dim
        self.scale = FittedStatistic(_filled(features, 1.0))
        self.frequency = FittedStatistic(_filled(features, 1.0))
        self.limit = FittedStatistic(_filled(features, np.inf))
        self.target = FittedStatistic(jnp.float32(1e4))
        self.depth_moments = FittedStatistic(jnp.asarray(np.array([0.0, 1.0], np.float32)))
        self.basis = FittedStatistic(_normal(rngs, (features, inputs), features))
        self.offsets = FittedStatistic(_filled((2, inputs), 0.0))
        self.input_scale = FittedStatistic(_filled(inputs, 1.0))
        self.batch_offset = nnx.Param(_filled((config.n_batches, inputs), 0.0))
        self.kernel = nnx.Param(_normal(rngs, (inputs, latent), inputs))
        self.log_precision = nnx.Param(_filled(latent, 0.0))
        self.first_kernel = nnx.Param(_normal(rngs, (inputs + 1, width), inputs + 1))
        self.first_bias = nnx.Param(_filled(width, 0.0))
        self.second_kernel = nnx.Param(_normal(rngs, (width, width), width))
        self.second_bias = nnx.Param(_filled(width, 0.0))
        self.last_kernel = nnx.Param(_normal(rngs, (width, 2 * latent), width, scale=_START))

    def arrays(self) -> dict[str, Array]:
        """What :func:`_expert` needs, of the same shapes in all modalities."""
        names = (
            "depth_moments", "input_scale", "batch_offset", "kernel", "log_precision", "first_kernel", "first_bias",
            "second_kernel", "second_bias", "last_kernel",
        )  # fmt: skip
        return {name: getattr(self, name)[...] for name in names}


def _expert(
    arrays: Mapping[str, Array],
    features: Float[Array, "cells inputs"],
    log_size: Float[Array, " cells"],
    by_depth: Float[Array, ""],
    kept: Float[Array, "cells width"],
    batch: Int[Array, " cells"],
) -> tuple[Float[Array, "cells latent"], Float[Array, "cells latent"]]:
    """Mean and log variance of the expert of one modality; ``kept`` multiplies its hidden units."""
    centred = features - _of_batch(arrays["batch_offset"], batch)
    mean, deviation = arrays["depth_moments"]
    depth = ((log_size - mean) / deviation)[:, None]
    inputs = jnp.concatenate([centred * arrays["input_scale"], depth], axis=1)
    hidden = jax.nn.relu(inputs @ arrays["first_kernel"] + arrays["first_bias"])
    hidden = jax.nn.relu((hidden @ arrays["second_kernel"] + arrays["second_bias"]) * kept)
    correction = hidden @ arrays["last_kernel"]
    latent = correction.shape[1] // 2
    log_precision = arrays["log_precision"] + correction[:, latent:] + by_depth * (log_size - mean)[:, None]
    bound = _LOG_VARIANCE_BOUND
    return centred @ arrays["kernel"] + correction[:, :latent], -jnp.clip(log_precision, -bound, bound)


def _of_batch(parameter: Float[Array, "batches k"], batch: Int[Array, " cells"]) -> Float[Array, "cells k"]:
    """Row of each cell's batch; its gradient is a product of matrices, not a sum over cells one by one."""
    if len(parameter) == 1:
        return jnp.broadcast_to(parameter, (len(batch), parameter.shape[1]))
    return jnp.matmul(jax.nn.one_hot(batch, len(parameter)), parameter, precision="highest")


class ModalityDecoder(nnx.Module):
    """Parameters of one modality's likelihood from z: linear, plus a network that starts near zero."""

    def __init__(self, features: int, likelihood: str, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent = config.hidden_dim, config.latent_dim
        self.intercept = nnx.Param(_filled((config.n_batches, features), -float(np.log(features))))
        self.slopes = nnx.Param(_normal(rngs, (features, latent), scale=_START))
        self.hidden_kernel = nnx.Param(_normal(rngs, (latent, width), latent))
        self.hidden_bias = nnx.Param(_filled(width, 0.0))
        self.hidden_slopes = nnx.Param(_normal(rngs, (features, width), width, scale=_START))
        if likelihood in ("negative_binomial", "zero_inflated_negative_binomial", "protein_mixture"):
            self.log_inverse_dispersion = nnx.Param(_filled(features, float(np.log(2.0))))
        if likelihood == "zero_inflated_negative_binomial":
            self.dropout_logits = nnx.Param(_filled(features, -3.0))
        if likelihood == "protein_mixture":
            self.log_background = nnx.Param(_filled((config.n_batches, features), -float(np.log(features)) - 2.0))
            self.background_slopes = nnx.Param(_normal(rngs, (latent, features), scale=_START))
            self.background_intercept = nnx.Param(_filled(features, -2.0))
        if likelihood == "gaussian":
            self.log_variance = nnx.Param(_filled(features, 0.0))

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
        logits = self.extended(latent) @ self.weights().T + _of_batch(self.intercept[...], batch)
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
            background = _of_batch(self.log_background[...], batch)
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
            self.log_temperature = nnx.Param(_filled(modalities, 0.0))
        if config.use_gradnorm:
            self.log_balance = nnx.Param(_filled(modalities, 0.0))
        self.initial_losses = FittedStatistic(_filled(modalities, 1.0))
        self.n_cells = FittedStatistic(jnp.float32(1e3))
        self.axis_lengths = FittedStatistic(_filled(config.latent_dim, 1.0))
        # Log size of a modality from z and the other modalities' log sizes: constant, slopes of z, slopes of the sizes.
        self.size_model = FittedStatistic(_filled((modalities, 1 + config.latent_dim + modalities), 0.0))
        self.size_means = FittedStatistic(_filled(modalities, 0.0))

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
        learning_rate: float = 1e-3,
        encoder_rate: float | None = None,
        validation_fraction: float = 0.1,
        patience: int | None = None,
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
            Of the decoders; less, in proportion, for a modality of fewer than 1000 reads a feature (for its encoder
            too, where no cell lacks a modality).
        encoder_rate
            Learning rate of the encoders over that of the decoders. Default 1 where cells lack modalities, 0.1 where
            none does: the product of the linear experts is then close to the exact posterior, and good already.
        validation_fraction, patience
            Held-out cells, and epochs without progress on them after which to stop (default 5, 20 below 2000 cells,
            where an epoch is a few steps); the best parameters are kept, those at the start if no epoch is better.
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
        if encoder_rate is None:
            encoder_rate = 0.1 if present.all() else 1.0
        if patience is None:
            patience = 5 if cells >= 2000 else 20
        # In the order of their entries: a batch of one cell of each run of neighbours needs hardly more than mean room.
        lengths = np.stack([np.diff(matrix.indptr) for matrix in matrices], axis=1)
        order = np.argsort(lengths.sum(1), kind="stable").astype(np.int32)
        held_out = None
        if validation_fraction:
            held_out = np.sort(generator.permutation(cells)[: max(round(validation_fraction * cells), 1)])
        trained = cells if held_out is None else cells - len(held_out)
        if max_epochs is None:
            max_epochs = int(np.clip(-(-1500 // max(trained // batch_size, 1)), 20, 200))
        log_size = self._log_sizes(matrices)
        features = np.stack([self._features(m, matrix) for m, matrix in enumerate(matrices)], axis=1)
        data: dict[str, Any] = {
            "row": order,
            "present": present[order],
            "batch": batch[order].astype(np.int32),
            "log_size": log_size[order],
            "features": features[order],
        }
        sample_keys, capacities = tuple(data), []
        parts = [np.arange(cells)] if held_out is None else [np.delete(np.arange(cells), held_out), held_out]
        for m, matrix in enumerate(matrices):
            rows = sparse_rows.place_sparse(matrix, n_rows=bucket_size(cells))
            data.update({f"indptr_{m}": rows.indptr, f"indices_{m}": rows.indices, f"values_{m}": rows.data})
            sizes = lengths[order, m]
            capacities.append(max(sparse_rows.stratified_capacity(sizes[part], batch_size) for part in parts))
        # A step of Adam has one size for all parameters. Where a feature has few reads, what a batch says of its slopes
        # is mostly noise: steps of full size lead away from the start, and what one modality loses stops all.
        slower = [
            1.0 if name == "gaussian" else min(1.0, float(matrix.sum()) / matrix.shape[1] / _READS_A_FEATURE)
            for matrix, name in zip(matrices, self.config.modality_likelihoods, strict=True)
        ]
        factors = [(f"decoders/{m}", factor) for m, factor in enumerate(slower)]
        # Where cells lack modalities, the experts have to agree one by one: those of weak ones learn at full speed.
        agreeing = not present.all()
        factors += [(f"encoders/{m}", encoder_rate * (1.0 if agreeing else factor)) for m, factor in enumerate(slower)]
        report = train(
            self,
            data,
            loss=_sparse_loss(tuple(capacities), self.config.modality_dims),
            weighted=True,
            sample_keys=sample_keys,
            optimizer=Adam(float(learning_rate), tuple(factors), _ADAM_EPSILON),
            batch_size=batch_size,
            stratified=True,
            max_epochs=max_epochs,
            rng=generator,
            validation_rows=held_out,
            patience=patience if held_out is not None else None,
            keep_start=held_out is not None,
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
        lengths = _multiomics_start.start(
            self.encoders, self.decoders, self.config, matrices, present, batch, log_size, rng=generator
        )
        self.axis_lengths[...] = jnp.asarray(lengths, jnp.float32)
        self.n_cells[...] = jnp.float32(len(present))
        self._fit_sizes(matrices, present, batch)
        if self.config.use_gradnorm:
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
            parts = _encode_block(graph, state, self._block(matrices, present, batch, rows))
            blocks.append([np.asarray(part)[..., : len(present[rows]), :] for part in parts])
        joined = [np.concatenate(parts, axis=-2) for parts in zip(*blocks, strict=True)]
        return Encoding(*joined)

    def score(
        self, matrices: Sequence[Any], *, present: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> dict[str, Float[np.ndarray, " cells"]]:
        """Divergence from the prior (``kl``) and ``log_likelihood_<i>`` at the posterior mean, of each cell, nats."""
        matrices, present, batch = self._check_matrices(matrices, present, batch)
        graph, state = self._split()
        parts = []
        size = _dense_rows(max(self.config.modality_dims))
        for start in range(0, len(present), size):
            rows = slice(start, start + size)
            block = self._block(matrices, present, batch, rows, size)
            counts = [padded(as_dense(matrix[rows]), (size, matrix.shape[1])) for matrix in matrices]
            parts.append(_score_block(graph, state, block, counts)[:, : len(present[rows])])
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
        shape = (_dense_rows(self.config.modality_dims[modality]),)
        for start in range(0, cells, shape[0]):
            rows = slice(start, start + shape[0])
            values = _expected_block(
                graph,
                state,
                modality,
                padded(latent[rows], (*shape, latent.shape[1])),
                padded(batch[rows], shape),
                padded(log_size[rows], shape),
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
        """Features of dense counts: the twin of ``_multiomics_start.read_features``, with gradients."""
        encoder, name = self.encoders[m], self.config.modality_likelihoods[m]
        size = jnp.maximum(counts.sum(1, keepdims=True), 1.0)
        regressor = jnp.ones((len(counts), 1))
        depth = jnp.zeros_like(size)
        if name in ACCESSIBILITY:
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

    def _features(self, m: int, matrix: Any) -> Float[np.ndarray, "cells inputs"]:
        """Features of all rows of a matrix, in blocks."""
        return read_features(self.encoders[m], self.config.modality_likelihoods[m], matrix)

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

    def _experts(
        self, batch_data: Mapping[str, Array], key: Array | None, training: Array | bool = False
    ) -> tuple[Array, Array]:
        keep, names = 1.0 - self.config.dropout_rate, self.config.modality_likelihoods
        cells = len(batch_data["batch"])
        kept = jnp.ones((len(names), 1, 1))
        if key is not None and keep < 1:
            drawn = jax.random.bernoulli(key, keep, (len(names), cells, self.config.hidden_dim)) / keep
            kept = jnp.where(training, drawn, 1.0)
        by_depth = jnp.array([float(name in ACCESSIBILITY) for name in names])
        # All modalities at once: their experts have the same shapes, and code is compiled for one.
        arrays = jax.tree.map(lambda *parts: jnp.stack(parts), *(encoder.arrays() for encoder in self.encoders))
        features, log_size = jnp.swapaxes(batch_data["features"], 0, 1), batch_data["log_size"].T
        return jax.vmap(_expert, in_axes=(0, 0, 0, 0, 0, None))(
            arrays, features, log_size, by_depth, kept, batch_data["batch"]
        )

    def _fuse(self, experts: tuple[Array, Array], present: Array) -> fusion.FusedGaussian:
        fuse = {
            "poe": fusion.product_of_experts,
            "moe": fusion.mixture_of_experts,
            "mean": fusion.mean_fusion,
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
            density = fusion.gaussian_log_density(latent, posterior.mean, posterior.log_variance)
            zeros = jnp.zeros_like(latent)
            divergence = density - fusion.gaussian_log_density(latent, zeros, zeros)
        else:
            divergence = fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)
        divergence = (divergence * weight).sum() / weight.sum()
        terms = {"kl": divergence, **{f"nll_{m}": losses[m] for m in range(len(names))}}
        return total + config.kl_weight * divergence, terms

    def _slope_penalty(self) -> Array:
        total = sum((decoder.weights() ** 2).sum() for decoder in self.decoders)
        return 0.5 * self.config.slope_precision * total / self.n_cells[...]

    def _training_loss(
        self, batch_data: dict[str, Any], counts: list[Any], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Loss of a batch and its terms; where ``batch_data["is_training"]`` is False, the bound itself."""
        config, training = self.config, batch_data[TRAINING_KEY]
        experts = self._experts(batch_data, jax.random.fold_in(key, 1), training)
        used = batch_data["present"]
        if config.subset_rate > 0:
            few = _random_subset(jax.random.fold_in(key, 2), used, config.subset_rate)
            used = jnp.where(training, few, used)
        noise = _normal_draws(key, (len(used), config.latent_dim))
        value, terms = self._bound(counts, batch_data, experts, used, noise, jax.random.fold_in(key, 3))
        return value + jnp.where(training, self._slope_penalty(), 0.0), terms

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
            "features": padded(features, (size, *features.shape[1:])),
            "log_size": padded(self._log_sizes(parts), (size, len(parts))),
            "present": padded(present[rows], (size, len(parts))),
            "batch": padded(batch[rows].astype(np.int32), (size,)),
        }


def _dense_rows(features: int) -> int:
    """Rows of a block that is written out: a power of 2, at most 512 and so many that the block stays small."""
    return max(min(512, 1 << (_DENSE_VALUES // features).bit_length() - 1), 8)


def _filled(shape: int | tuple[int, ...], value: float) -> Array:
    """A constant array; by numpy, because JAX would compile for each shape."""
    return jnp.asarray(np.full(shape, value, np.float32))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int = 1, *, scale: float = 1.0) -> Array:
    """Normal draws of variance scale^2 / fan_in; by numpy, because JAX would compile for each shape."""
    words = np.asarray(jax.random.key_data(rngs.params()))
    return jnp.asarray(scale * np.random.default_rng(words).normal(size=shape) / fan_in**0.5, jnp.float32)


def _normal_draws(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal draws by the device's own generator: code that is compiled in a third of the time."""
    state = jnp.resize(jax.random.key_data(key), 4)
    bits = jax.lax.rng_bit_generator(state, shape, dtype=np.uint32)[1]
    # 23 bits, in the middle of their interval, are exact: the draws lie within 5.3 standard deviations.
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
    return np.float32(np.sqrt(2.0)) * jax.lax.erf_inv(uniform)


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
    alone = jax.vmap(lambda m, v: fusion.product_of_experts(m[None], v[None], jnp.ones((1, len(m)))))(
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
    values = [fusion.kl_to_standard_normal(posterior.mean, posterior.log_variance)]
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


def _canonical(matrix: Any) -> sp.csr_array:
    matrix = sp.csr_array(matrix, dtype=np.float32)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix
