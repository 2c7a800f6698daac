"""Keys by one program each are those of JAX and nnx."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from compiled_programs import compiled_programs
from flax import nnx

from diffbio_sc.numerics.random_keys import divided_keys, draw_key, streams


def bits(keys):
    return np.stack([np.asarray(jax.random.key_data(key)) for key in keys])


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31, 2**32 + 7])
def test_streams_are_those_of_nnx(seed):
    expected, found = nnx.Rngs(seed), streams(seed)
    np.testing.assert_array_equal(
        bits([draw_key(found.params) for _ in range(3)]), bits([expected.params() for _ in range(3)])
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # A call of the stream itself goes on where the drawn keys end.
    np.testing.assert_array_equal(bits([found.params()]), bits([expected.params()]))


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 + 7])
def test_divided_keys_are_those_of_jax(seed):
    expected = jax.random.key(seed)
    for given in (seed, expected):
        key, parts = divided_keys(given, 3)
        np.testing.assert_array_equal(bits([key, *parts]), bits([expected, *jax.random.split(expected, 3)]))


def test_the_kind_of_key_is_the_users():
    before = jax.config.jax_default_prng_impl
    streams(1), divided_keys(1, 2)
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        kinds = [str(jax.random.key_impl(key)) for key in (streams(1).params.key[...], divided_keys(1, 2)[0])]
    finally:
        jax.config.update("jax_default_prng_impl", before)
    assert kinds == ["rbg", "rbg"]


def test_each_is_one_program():
    jax.clear_caches()
    with compiled_programs() as programs:
        draw_key(streams(3).params)
        divided_keys(3, 3)
    assert len(programs) == 3
