"""Adam on vectors is Adam on trees, with rates by path."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffbio_sc.training.optimizers import Adam, adam_step
from diffbio_sc.training.vectors import Layout, piecewise

TREE = {"decoder": {"slopes": (3, 2), "bias": (2,)}, "encoder": {"kernel": (4,)}, "scale": ()}


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        TREE,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def in_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)


def test_vectors_and_trees_are_the_same():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.float32(7.0), "c": jnp.arange(4, dtype=jnp.bfloat16)}
    layout = Layout.of(tree)
    for library in (np, jnp):
        vectors = layout.join(tree, library=library)
        assert {name: vector.shape for name, vector in vectors.items()} == {"float32": (7,), "bfloat16": (4,)}
        jax.tree.map(np.testing.assert_array_equal, layout.split(vectors), tree)


@pytest.mark.parametrize("number", [3, 8, 9, 20])
def test_pieces_of_a_compiled_vector_are_not_read_beyond_their_ends(number):
    """As part of a loop over the vector a concatenation reads all pieces everywhere, and may take 20 times as long."""
    tree = {f"{k}": jnp.ones((32 + k, 64)) if k % 2 else jnp.ones(96 + k) for k in range(number)}
    layout = Layout.of(tree)
    vectors = layout.join(tree, library=np)

    @jax.jit
    def step(vectors, inputs):
        parts = layout.split(vectors)
        gradient = jax.tree.map(lambda part: jnp.sin(part) if part.ndim == 1 else part @ inputs, parts)
        joined = layout.join(gradient, library=jnp)
        return {name: vectors[name] - part for name, part in joined.items()}, jnp.isfinite(joined["float32"]).all()

    code = step.lower(vectors, jnp.ones((64, 64))).compile().as_text()
    loops = [part for part in code.split("\n\n") if part.startswith("%fused_computation")]
    assert loops
    assert not any(" concatenate(" in loop for loop in loops)


def test_piecewise_vectors():
    values = jnp.array([2.0, 3.0, 5.0])
    np.testing.assert_array_equal(piecewise([2, 1, 3, 1], [0, 2, 2, 1], values), [2, 2, 5, 5, 5, 5, 3])
    assert piecewise([2, 3], [1, 1], values) == 3


@pytest.mark.parametrize("factors", [(), (("encoder", 0.1), ("decoder/slopes", 3.0))])
def test_adam_is_that_of_optax_with_a_rate_for_each_part(factors):
    tree, adam = random_tree(0), Adam(0.05, factors, 1e-6)
    rates = {"encoder/kernel": 0.1, "decoder/slopes": 3.0} if factors else {}
    layout, vectors, state = Layout.of(tree), Layout.of(tree).join(tree, library=jnp), adam.init(tree)
    step = jax.jit(functools.partial(adam_step, adam.plan(tree), layout))
    # In float64: in float32 optax loses five digits of 1 - 0.999**step in the first steps.
    reference = optax.adam(0.05, eps=1e-6)
    with jax.enable_x64(True):
        expected = in_float64(tree)
        expected_state = reference.init(expected)
    factor = jax.tree_util.tree_map_with_path(lambda path, _: rates.get("/".join(step.key for step in path), 1.0), tree)
    for number in range(5):
        slopes = random_tree(number + 1)
        with jax.enable_x64(True):
            change, expected_state = reference.update(in_float64(slopes), expected_state)
            expected = jax.tree.map(lambda old, new, by: old + by * new, expected, change, factor)
        gradient = layout.join(slopes, library=jnp)
        vectors, state = step(vectors, gradient, state, jnp.float32(1.0), jnp.bool_(True))
        skipped, same = step(vectors, gradient, state, jnp.float32(1.0), jnp.bool_(False))
        jax.tree.map(np.testing.assert_array_equal, (skipped, same), (vectors, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), layout.split(vectors), expected)
