"""Encoders and decoders of single modalities: linear maps, each with a small network that starts near zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.numerics.random_keys import draw_key
from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig

_START = 1e-3  # size of the networks' last layers before training
_LOG_VARIANCE_BOUND = 8.0


class Networks(Protocol):
    """What the posterior, the bound and runs over blocks of cells need of the operator.

    Attributes
    ----------
    config
        Settings.
    encoders, decoders
        Of each modality.
    """

    config: MultiOmicsVAEConfig
    encoders: Any
    decoders: Any


class ModalityEncoder(nnx.Module):
    """Expert of one modality: a linear map of its features, plus a network that starts near zero."""

    def __init__(self, features: int, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent, inputs = config.hidden_dim, config.latent_dim, config.feature_dim
        self.scale = FittedStatistic(filled(features, 1.0))
        self.frequency = FittedStatistic(filled(features, 1.0))
        self.limit = FittedStatistic(filled(features, np.inf))
        self.target = FittedStatistic(device_copy(1e4, np.float32))
        self.depth_moments = FittedStatistic(device_copy([0.0, 1.0], np.float32))
        self.basis = FittedStatistic(_normal(rngs, (features, inputs), features))
        self.offsets = FittedStatistic(filled((2, inputs), 0.0))
        self.input_scale = FittedStatistic(filled(inputs, 1.0))
        self.batch_offset = nnx.Param(filled((config.n_batches, inputs), 0.0))
        self.kernel = nnx.Param(_normal(rngs, (inputs, latent), inputs))
        self.log_precision = nnx.Param(filled(latent, 0.0))
        self.first_kernel = nnx.Param(_normal(rngs, (inputs + 1, width), inputs + 1))
        self.first_bias = nnx.Param(filled(width, 0.0))
        self.second_kernel = nnx.Param(_normal(rngs, (width, width), width))
        self.second_bias = nnx.Param(filled(width, 0.0))
        self.last_kernel = nnx.Param(_normal(rngs, (width, 2 * latent), width, scale=_START))

    def arrays(self) -> dict[str, Array]:
        """What :func:`expert` needs, of the same shapes in all modalities."""
        names = (
            "depth_moments", "input_scale", "batch_offset", "kernel", "log_precision", "first_kernel", "first_bias",
            "second_kernel", "second_bias", "last_kernel",
        )  # fmt: skip
        return {name: getattr(self, name)[...] for name in names}


def expert(
    arrays: Mapping[str, Array],
    features: Float[Array, "cells inputs"],
    log_size: Float[Array, " cells"],
    by_depth: Float[Array, ""],
    kept: Float[Array, "cells width"],
    batch: Int[Array, " cells"],
) -> tuple[Float[Array, "cells latent"], Float[Array, "cells latent"]]:
    """Mean and log variance of the expert of one modality; ``kept`` multiplies its hidden units."""
    centred = features - of_batch(arrays["batch_offset"], batch)
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


def of_batch(parameter: Float[Array, "batches k"], batch: Int[Array, " cells"]) -> Float[Array, "cells k"]:
    """Row of each cell's batch; its gradient is a product of matrices, not a sum over cells one by one."""
    if len(parameter) == 1:
        return jnp.broadcast_to(parameter, (len(batch), parameter.shape[1]))
    return jnp.matmul(_indicators(batch, len(parameter)), parameter, precision="highest")


def _indicators(batch: Int[Array, " cells"], batches: int) -> Float[Array, "cells batches"]:
    return jnp.ones((len(batch), 1)) if batches == 1 else jax.nn.one_hot(batch, batches)


class ModalityDecoder(nnx.Module):
    """Parameters of one modality's likelihood from z: linear, plus a network that starts near zero."""

    def __init__(self, features: int, likelihood: str, config: MultiOmicsVAEConfig, *, rngs: nnx.Rngs):
        width, latent = config.hidden_dim, config.latent_dim
        self.intercept = nnx.Param(filled((config.n_batches, features), -float(np.log(features))))
        self.slopes = nnx.Param(_normal(rngs, (features, latent), scale=_START))
        self.hidden_kernel = nnx.Param(_normal(rngs, (latent, width), latent))
        self.hidden_bias = nnx.Param(filled(width, 0.0))
        self.hidden_slopes = nnx.Param(_normal(rngs, (features, width), width, scale=_START))
        if likelihood in ("negative_binomial", "zero_inflated_negative_binomial", "protein_mixture"):
            self.log_inverse_dispersion = nnx.Param(filled(features, float(np.log(2.0))))
        if likelihood == "zero_inflated_negative_binomial":
            self.dropout_logits = nnx.Param(filled(features, -3.0))
        if likelihood == "protein_mixture":
            self.log_background = nnx.Param(filled((config.n_batches, features), -float(np.log(features)) - 2.0))
            self.background_slopes = nnx.Param(_normal(rngs, (latent, features), scale=_START))
            self.background_intercept = nnx.Param(filled(features, -2.0))
        if likelihood == "gaussian":
            self.log_variance = nnx.Param(filled(features, 0.0))

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
    ) -> dict[str, Array]:
        """Arguments of the likelihood after the counts."""
        # Intercepts are weights of what says which batch a cell is of: one product, one gradient.
        intercept = self.intercept[...]
        inputs = jnp.concatenate([self.extended(latent), _indicators(batch, len(intercept))], axis=1)
        logits = inputs @ jnp.concatenate([self.weights(), intercept.T], axis=1).T
        size = log_size[:, None]
        if likelihood == "multinomial":
            return {"logits": logits}
        if likelihood == "bernoulli":
            return {"logits": logits + size}
        if likelihood == "gaussian":
            return {"mean": logits, "log_variance": self.log_variance[...]}
        dispersion = {}
        if likelihood != "poisson":
            dispersion["log_inverse_dispersion"] = self.log_inverse_dispersion[...]
        if likelihood == "protein_mixture":
            background = of_batch(self.log_background[...], batch)
            mixing = latent @ self.background_slopes[...] + self.background_intercept[...]
            return {
                "log_background": background + size,
                "log_excess": logits - background,
                "background_logits": mixing,
                **dispersion,
            }
        log_mean = jax.nn.log_softmax(logits, axis=-1) + size
        if likelihood == "zero_inflated_negative_binomial":
            dispersion["dropout_logits"] = self.dropout_logits[...]
        return {"log_mean": log_mean, **dispersion}


def filled(shape: int | tuple[int, ...], value: float) -> Array:
    """A constant array; by numpy, because JAX would compile for each shape."""
    return device_copy(np.full(shape, value, np.float32))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int = 1, *, scale: float = 1.0) -> Array:
    """Normal draws of variance scale^2 / fan_in; by numpy, because JAX would compile for each shape."""
    words = np.asarray(jax.random.key_data(draw_key(rngs.params)))
    return device_copy(scale * np.random.default_rng(words).normal(size=shape) / fan_in**0.5, np.float32)
