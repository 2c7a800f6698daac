"""Random keys of JAX, each by one compiled program.

Outside compiled code every step to a key (the seed's conversion, the key, the next number of a stream) is a program of
its own, which takes a hundredth of a second to be found in the store of compiled programs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

__all__ = ["divided_keys", "draw_key", "streams"]


def streams(seed: int) -> nnx.Rngs:
    """Return ``nnx.Rngs(seed)``."""
    return _streams(np.int64(seed), jax.config.jax_default_prng_impl)


def draw_key(stream: nnx.RngStream) -> Array:
    """Return the next key of a stream, as a call of it does."""
    key, stream.count[...] = _drawn(stream.key[...], stream.count[...])
    return key


def divided_keys(rng: int | Array, number: int) -> tuple[Array, Array]:
    """Return the key of a seed, or the key given, and keys that are split from it."""
    seed = rng if isinstance(rng, jax.Array) else np.int64(rng)
    return _divided(seed, number, jax.config.jax_default_prng_impl)


# The user's kind of key is an argument: compiled code is found again by its arguments.


@functools.partial(jax.jit, static_argnames="kind")
def _streams(seed: Array, kind: str) -> nnx.Rngs:
    return nnx.Rngs(jax.random.key(seed, impl=kind))


@jax.jit
def _drawn(key: Array, count: Array) -> tuple[Array, Array]:
    return jax.random.fold_in(key, count), count + 1


@functools.partial(jax.jit, static_argnames=("number", "kind"))
def _divided(seed: Array, number: int, kind: str) -> tuple[Array, list[Array]]:
    key = seed if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) else jax.random.key(seed, impl=kind)
    return key, list(jax.random.split(key, number))
