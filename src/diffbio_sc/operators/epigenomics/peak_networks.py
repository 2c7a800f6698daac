"""Networks of the peak caller: the correction of its evidence, and the denoiser. Both add nothing until trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.numerics.genome.background import local_background
from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.training.losses import poisson_deviance

if TYPE_CHECKING:
    from diffbio_sc.operators.epigenomics.peak_config import PeakCallerConfig

__all__ = ["CorrectionWeight", "Denoised", "PoissonDenoiser", "SignalCorrection", "elbo_loss"]

_DILATIONS = (1, 5, 21)  # with a kernel of 7 the reach is 81 positions, 2 kb at 25 bp
_BLEND = 0.05
_SMALLEST_RATE = 1e-6


class CorrectionWeight(nnx.Param):
    """A parameter of a network, as against the statistical settings."""


class Weights(nnx.Module):
    """Named arrays, as parameters or as statistics that are stored but not trained."""

    def __init__(self, kind: type[nnx.Variable], arrays: Mapping[str, Array]):
        for name, value in arrays.items():
            setattr(self, name, kind(jnp.array(value)))
        self.names = tuple(arrays)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        return {name: getattr(self, name)[...] for name in self.names}


class SignalCorrection(nnx.Module):
    """Corrections of log-odds and log background by a multi-scale convolution: exactly 0 until trained.

    The network minus its own initial state, so that gradients reach every parameter from the first step.
    """

    def __init__(self, filters: int, kernel_sizes: tuple[int, ...], *, rngs: nnx.Rngs):
        self.kernel_sizes = kernel_sizes
        arrays = {}
        for scale, size in enumerate(kernel_sizes):
            for layer in range(len(_DILATIONS)):
                # The first layer mixes the features; the others are one filter each, whose mixing is the last layer's.
                inputs = _FEATURES if layer == 0 else 1
                arrays[f"kernel_{scale}_{layer}"] = _normal(rngs, (size, inputs, filters), 2.0 / (size * inputs))
                arrays[f"bias_{scale}_{layer}"] = _normal(rngs, (filters,), 0.01)
        width = filters * len(kernel_sizes)
        arrays["output_kernel"] = _normal(rngs, (width, 2), 1.0 / width)
        arrays["output_bias"] = jnp.zeros(2)
        self.weights = Weights(CorrectionWeight, arrays)
        self.initial = Weights(FittedStatistic, arrays)

    def is_zero(self) -> bool:
        """Whether the correction is known to be exactly 0: it is still in its initial state, and not being traced."""
        pairs = list(zip(self.weights.arrays().values(), self.initial.arrays().values(), strict=True))
        if any(isinstance(array, jax.core.Tracer) for pair in pairs for array in pair):
            return False
        return all(np.array_equal(*pair) for pair in pairs)

    def __call__(
        self, reads: Float[Array, "batch length"], log_background: Float[Array, "batch length"]
    ) -> tuple[Float[Array, "batch length"], Float[Array, "batch length"]]:
        """Shift of the log-odds and of the log background."""
        background = jnp.exp(log_background)
        # Square roots have about the same noise at all depths.
        features = jnp.stack([jnp.sqrt(reads + background) - jnp.sqrt(background), jnp.sqrt(background)], -1)
        start = jax.lax.stop_gradient(self.initial.arrays())
        output = self._network(self.weights.arrays(), features) - self._network(start, features)
        return output[..., 0], output[..., 1]

    def _network(self, arrays, features):
        scales = []
        for scale in range(len(self.kernel_sizes)):
            values = features
            for layer, dilation in enumerate(_DILATIONS):
                kernel, bias = arrays[f"kernel_{scale}_{layer}"], arrays[f"bias_{scale}_{layer}"]
                values = jax.nn.relu(_convolve(values, kernel, dilation, mixes=layer == 0) + bias)
            scales.append(values)
        return jnp.concatenate(scales, -1) @ arrays["output_kernel"] + arrays["output_bias"]


def _convolve(values, kernel, dilation, *, mixes):
    """Dilated convolution of (batch, length, channels) as a sum of shifts, which XLA fuses on every device."""
    size, length = len(kernel), values.shape[1]
    before = dilation * ((size - 1) // 2)
    padded = jnp.pad(values, ((0, 0), (before, dilation * (size - 1) - before), (0, 0)))
    total = None
    for tap in range(size):
        shifted = padded[:, tap * dilation : tap * dilation + length]
        part = shifted @ kernel[tap] if mixes else shifted * kernel[tap, 0]
        total = part if total is None else total + part
    return total


_FEATURES = 2


class Denoised(NamedTuple):
    """Output of the denoiser.

    Attributes
    ----------
    rate
        Expected counts.
    divergence
        Kullback-Leibler divergence of the latent posterior from its prior, summed over windows, a position.
    """

    rate: Float[Array, "batch length"]
    divergence: Float[Array, " batch"]


class PoissonDenoiser(nnx.Module):
    """Variational autoencoder of windows of a track with Poisson decoder, as a correction of a Gaussian smoother.

    The rate is the smoothed track, with a share of the window's mean, times exp of the decoder minus the decoder's own
    initial state: exactly the Gaussian smoother until trained.
    """

    def __init__(self, config: PeakCallerConfig, *, rngs: nnx.Rngs):
        window, hidden, latent = config.window_size, config.vae_hidden_dim, config.vae_latent_dim
        self.window = window
        width = config.denoising_width / config.bin_width
        self.reach = max(math.ceil(4.0 * width), 1)
        arrays = {
            "encoder_kernel": _normal(rngs, (window, hidden), 2.0 / window),
            "encoder_bias": _normal(rngs, (hidden,), 0.01),
            "mean_kernel": _normal(rngs, (hidden, latent), 1.0 / hidden),
            "mean_bias": _normal(rngs, (latent,), 0.01),
            "log_variance_kernel": _normal(rngs, (hidden, latent), 0.01 / hidden),
            "log_variance_bias": jnp.full(latent, -2.0, float),
            "decoder_kernel": _normal(rngs, (latent, hidden), 2.0 / latent),
            "decoder_bias": _normal(rngs, (hidden,), 0.01),
            "output_kernel": _normal(rngs, (hidden, window), 0.1 / hidden),
            "output_bias": jnp.zeros(window),
        }
        self.log_width = nnx.Param(jnp.float32(math.log(width)))
        self.blend_logit = nnx.Param(jnp.float32(math.log(_BLEND / (1.0 - _BLEND))))
        self.weights = Weights(CorrectionWeight, arrays)
        self.initial = Weights(FittedStatistic, arrays)

    def __call__(self, reads: Float[Array, "batch length"], *, key: Array | None = None) -> Denoised:
        """Denoise tracks; with a key the latent variables are drawn, without they are their means."""
        batch, length = reads.shape
        base = self._smooth(reads)
        windows = -(-length // self.window)
        padded = jnp.pad(reads, ((0, 0), (0, windows * self.window - length)))
        blocks = padded.reshape(batch, windows, self.window)
        noise = None
        if key is not None:
            noise = jax.random.normal(key, (batch, windows, self.weights.mean_bias.shape[0]), reads.dtype)
        logs, mean, log_variance = self._autoencode(self.weights.arrays(), blocks, noise)
        start = self._autoencode(jax.lax.stop_gradient(self.initial.arrays()), blocks, noise)[0]
        shift = (logs - start).reshape(batch, -1)[:, :length]
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum((-1, -2))
        return Denoised(base * jnp.exp(shift), divergence / length)

    @staticmethod
    def _autoencode(arrays, blocks, noise):
        depth = blocks.mean(-1, keepdims=True)
        values = jnp.sqrt(blocks) - jnp.sqrt(depth)
        hidden = jnp.tanh(values @ arrays["encoder_kernel"] + arrays["encoder_bias"])
        mean = hidden @ arrays["mean_kernel"] + arrays["mean_bias"]
        log_variance = hidden @ arrays["log_variance_kernel"] + arrays["log_variance_bias"]
        latent = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
        hidden = jnp.tanh(latent @ arrays["decoder_kernel"] + arrays["decoder_bias"])
        return hidden @ arrays["output_kernel"] + arrays["output_bias"], mean, log_variance

    def _smooth(self, reads):
        offsets = jnp.arange(-self.reach, self.reach + 1, dtype=reads.dtype)
        kernel = jnp.exp(-0.5 * jnp.square(offsets * jnp.exp(-self.log_width[...])))
        kernel = kernel / kernel.sum()

        def convolved(values):
            return jax.vmap(lambda row: jnp.convolve(row, kernel, mode="same"))(
                jnp.pad(values, ((0, 0), (self.reach, self.reach)))
            )[:, self.reach : -self.reach]

        smooth = convolved(reads) / convolved(jnp.ones_like(reads[:1]))
        blend = jax.nn.sigmoid(self.blend_logit[...])
        around = local_background(reads, [self.window], level=0.0)
        return (1.0 - blend) * smooth + blend * around


def elbo_loss(counts, denoised: Denoised):
    """Half the Poisson deviance (the negative log-likelihood up to what only the counts decide) and the divergence."""
    return 0.5 * poisson_deviance(counts, denoised.rate).mean(-1) + denoised.divergence


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], variance: float) -> Array:
    return math.sqrt(variance) * jax.random.normal(rngs.params(), shape)
