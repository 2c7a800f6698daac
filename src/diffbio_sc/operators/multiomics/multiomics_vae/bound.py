"""The loss: the negative evidence lower bound of a cell on average, its weights of modalities and its penalty."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffbio_sc.numerics.counts import likelihoods, sparse_rows
from diffbio_sc.operators.multiomics.multiomics_vae import posterior
from diffbio_sc.operators.multiomics.multiomics_vae.networks import Networks
from diffbio_sc.training.batches import TRAINING_KEY, WEIGHT_KEY
from diffbio_sc.training.losses import balanced_loss


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of one evaluation of the bound.

    Attributes
    ----------
    noise
        Standard normal draws of z.
    key
        Random key of a mixture's choice of modalities.
    sampling
        Random key of the features that stand for all in the multinomial; None takes all of them.
    """

    noise: Float[Array, "cells latent"]
    key: Array
    sampling: Array | None = None

    @classmethod
    def fixed(cls, noise: Array | None, shape: tuple[int, int]) -> Draws:
        """Return the given noise, or draws that are the same in every call, with all features."""
        key = jax.random.key(0)
        return cls(jax.random.normal(key, shape) if noise is None else noise, key)


def negative_bound(
    operator: Networks,
    counts: Sequence[Any],
    cells: Mapping[str, Array],
    experts: posterior.Gaussians,
    used: Array,
    draws: Draws,
) -> tuple[Array, dict[str, Array]]:
    """Negative evidence lower bound, with the modalities' weights, and its terms.

    Parameters
    ----------
    operator
        Operator.
    counts
        Counts of each modality, dense or the entries of sparse rows.
    cells
        ``present`` (cells, modalities), ``log_size`` (cells, modalities), ``batch`` (cells,) and, where cells weigh
        differently, ``sample_weight`` (cells,).
    experts
        Opinions of all modalities.
    used
        Which of them z is drawn from (cells, modalities).
    draws
        Random numbers.
    """
    config = operator.config
    latent, divergence = posterior.draw(config.fusion, experts, used, draws.noise, draws.key)
    present, batch = cells["present"], cells["batch"]
    weight = cells[WEIGHT_KEY] if WEIGHT_KEY in cells else jnp.ones(len(batch))

    def of_modality(m: int, latent: Array) -> Array:
        value = _log_likelihood(operator, m, counts[m], cells, latent, draws.sampling)
        here = present[:, m] * weight
        return -(jnp.where(here > 0, value, 0.0) * here).sum() / jnp.maximum(here.sum(), 1e-6)

    losses = jnp.stack([of_modality(m, latent) for m in range(len(counts))])
    share = (present * weight[:, None]).sum(0) / weight.sum()
    weighted = losses * share
    if config.modality_weight_mode == "learnable":
        weighted = _tempered(operator, losses) * share
    total = weighted.sum()
    if config.use_gradnorm:
        fixed = jax.lax.stop_gradient(latent)
        slopes = [jax.grad(functools.partial(of_modality, m))(fixed) for m in range(len(counts))]
        learned: Any = operator  # has the weights of GradNorm, which other networks lack
        norms = jnp.stack([jnp.linalg.norm(slope, axis=1).sum() for slope in slopes])
        total = balanced_loss(
            losses,
            norms,
            learned.log_balance[...],
            initial_losses=learned.initial_losses[...],
            alpha=config.gradnorm_alpha,
            weighted=weighted,
        )
    divergence = (divergence * weight).sum() / weight.sum()
    terms = {"kl": divergence, **{f"nll_{m}": losses[m] for m in range(len(counts))}}
    return total + config.kl_weight * divergence, terms


def _log_likelihood(
    operator: Networks, m: int, counts: Any, cells: Mapping[str, Array], latent: Array, sampling: Array | None
) -> Float[Array, " cells"]:
    config, decoder = operator.config, operator.decoders[m]
    name, features = config.modality_likelihoods[m], config.modality_dims[m]
    few = isinstance(counts, sparse_rows.RowEntries) and 0 < config.n_sampled < features
    if sampling is not None and few and name == "multinomial" and config.n_batches == 1:
        columns = likelihoods.sample_columns(jax.random.fold_in(sampling, m), features, config.n_sampled)
        return likelihoods.sampled_multinomial(
            counts, decoder.extended(latent), decoder.weights(), decoder.intercept[...][0], columns
        )
    parameters = decoder.parameters(name, latent, cells["batch"], cells["log_size"][:, m])
    return getattr(likelihoods, name)(counts, **parameters)


def _tempered(operator: Any, losses: Float[Array, " modalities"]) -> Float[Array, " modalities"]:
    """Each loss divided by its learned variance, with the log term that holds the variance back (Kendall 2018)."""
    sizes = jnp.asarray(operator.config.modality_dims, jnp.float32)
    temperature = operator.log_temperature[...]
    return losses * jnp.exp(-temperature) + sizes * temperature


def training_loss(
    operator: Any, cells: Mapping[str, Array], counts: Sequence[Any], key: Array
) -> tuple[Array, dict[str, Array]]:
    """Loss of a batch and its terms; where ``cells["is_training"]`` is False, the bound itself."""
    config, training = operator.config, cells[TRAINING_KEY]
    kept = None
    if config.dropout_rate > 0:
        share, shape = 1.0 - config.dropout_rate, (len(counts), len(cells["batch"]), config.hidden_dim)
        drawn = jax.random.bernoulli(jax.random.fold_in(key, 1), share, shape) / share
        kept = jnp.where(training, drawn, 1.0)
    experts = posterior.experts(posterior.stack_encoders(operator), cells, kept=kept)
    used = cells["present"]
    if config.subset_rate > 0:
        few = _random_subset(jax.random.fold_in(key, 2), used, config.subset_rate)
        used = jnp.where(training, few, used)
    noise = _normal_draws(key, (len(used), config.latent_dim))
    draws = Draws(noise, jax.random.fold_in(key, 4), jax.random.fold_in(key, 3))
    value, terms = negative_bound(operator, counts, cells, experts, used, draws)
    return value + jnp.where(training, _slope_penalty(operator), 0.0), terms


def _slope_penalty(operator: Any) -> Array:
    slopes = [part[...] for decoder in operator.decoders for part in (decoder.slopes, decoder.hidden_slopes)]
    total = sum((part**2).sum() for part in slopes)
    return 0.5 * operator.config.slope_precision * total / operator.n_cells[...]


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
