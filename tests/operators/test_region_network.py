"""The residual network of regions and the linear start as an operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_program import one_program

from diffbio_sc.genome.sequences import one_hot, reverse_complement
from diffbio_sc.numerics.linear.design import Design
from diffbio_sc.numerics.sequence import kmers
from diffbio_sc.numerics.sequence.motifs import best_scores
from diffbio_sc.operators.epigenomics.region_network import (
    RegionNetwork,
    compute_region_loss,
    training_loss,
    within_loss,
)
from diffbio_sc.operators.epigenomics.sequence_ridge import SequenceRidge

PATTERNS = (kmers.contiguous(3), kmers.mirrored(1, 2))
N_COLUMNS = kmers.n_columns((kmers.contiguous(2),))


@pytest.fixture
def tokens():
    tokens = np.random.default_rng(0).integers(0, 4, (6, 24)).astype(np.int8)
    tokens[0, 3] = 4
    return tokens


@pytest.fixture
def ridge():
    rng = np.random.default_rng(1)
    motifs = [rng.normal(size=(width, 4)) for width in (8, 7)]
    return SequenceRidge(
        rng.normal(size=(kmers.n_columns(PATTERNS) + 2, 3)), rng.normal(size=3), patterns=PATTERNS, motifs=motifs
    )


def make_network(**changes):
    rng = np.random.default_rng(2)
    settings = {
        "column_mean": rng.normal(size=N_COLUMNS),
        "column_scale": np.full(N_COLUMNS, 0.5),
        "further_mean": rng.normal(size=6),
        "further_scale": np.ones(6),
        "codes": np.linalg.qr(rng.normal(size=(3, 3)))[0],
        "main": np.array([True, True, False]),
        "hidden": (8, 6),
        "rngs": nnx.Rngs(0),
    }
    return RegionNetwork(**(settings | changes))


@pytest.fixture
def batch(tokens):
    rng = np.random.default_rng(3)
    counts = np.rint(np.expm1(kmers.dense(kmers.kmer_rows(tokens, [kmers.contiguous(2)])))).astype(np.uint8)
    return {
        "counts": counts,
        "further": rng.normal(size=(6, 3)).astype(np.float32),
        "start": rng.normal(size=(6, 3)).astype(np.float32),
        "labels": np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0], [1, np.nan, 0], [0, 1, np.nan], [0, 0, 0]], np.float32),
    }


def test_the_linear_start_is_its_engine_on_hard_sequences(ridge, tokens):
    design = Design(
        kmers.kmer_rows(tokens, PATTERNS), best_scores(tokens, [np.asarray(motif[...]) for motif in ridge.motifs])
    )
    expected = design.products(np.asarray(ridge.weights[...])) + np.asarray(ridge.intercept[...])
    sequence, values = jnp.asarray(one_hot(tokens)), one_program(ridge)
    np.testing.assert_allclose(values(sequence), expected, atol=1e-4)
    np.testing.assert_allclose(values(jnp.asarray(one_hot(reverse_complement(tokens)))), expected, atol=1e-4)
    parts = values(sequence, n_tokens=3)
    np.testing.assert_allclose(parts[:, 1], values(sequence[:, 8:16]), atol=1e-5)
    wide = values(sequence, n_tokens=3, reach=4)
    np.testing.assert_allclose(wide[:, 1], values(sequence[:, 4:20]), atol=1e-5)
    np.testing.assert_allclose(wide[:, 0], values(jnp.pad(sequence[:, :12], ((0, 0), (4, 0), (0, 0)))), atol=1e-5)
    with pytest.raises(ValueError, match="n_tokens must divide the 24 bases"):
        ridge(sequence, n_tokens=5)
    with pytest.raises(ValueError, match="weights must have .* rows"):
        SequenceRidge(np.zeros((3, 2)), np.zeros(2), patterns=PATTERNS)


def directional(function, point, direction, step=1e-2):
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)


def test_gradients_of_the_linear_start_are_differences(ridge):
    rng = np.random.default_rng(4)
    # Nearly hard, and motifs so long that none matches twice: the best place is the same on both sides of a difference.
    near = 0.1 * rng.dirichlet(np.ones(4), (2, 24)) + 0.9 * np.eye(4)[rng.integers(0, 4, (2, 24))]
    sequence = jnp.asarray(near.astype(np.float32))
    weights = rng.normal(size=(2, 3)).astype(np.float32)

    @jax.jit
    def of_sequence(values):
        return (ridge(values) * weights).sum()

    slope = jax.jit(jax.grad(of_sequence))(sequence)
    for seed in range(3):
        direction = jnp.asarray(np.random.default_rng(seed).normal(size=sequence.shape).astype(np.float32))
        assert float((slope * direction).sum()) == pytest.approx(
            float(directional(of_sequence, sequence, direction, 1e-3)), rel=1e-2, abs=1e-2
        )
    graph, state = nnx.split(ridge)
    slopes = jax.jit(jax.grad(lambda state: (nnx.merge(graph, state)(sequence) * weights).sum()))(state)
    np.testing.assert_allclose(slopes["intercept"][...], weights.sum(0), rtol=1e-5)
    np.testing.assert_allclose(
        slopes["weights"][...], np.asarray(one_program(ridge.features)(sequence)).T @ weights, rtol=1e-4, atol=1e-5
    )


def test_a_new_network_adds_nothing_and_can_learn(batch):
    network = make_network()
    np.testing.assert_array_equal(network.from_batch(batch), batch["start"])
    np.testing.assert_array_equal(network.from_batch(batch, jax.random.key(0)), batch["start"])
    graph, state = nnx.split(network)
    slopes = jax.jit(jax.grad(lambda state: nnx.merge(graph, state).loss(batch), allow_int=True))(state)
    assert np.abs(slopes["head"][...]).max() > 0
    assert np.abs(slopes["head_bias"][...]).max() > 0


def test_every_parameter_has_a_gradient_that_is_a_difference(batch):
    network = make_network()
    network.head[...] = jnp.asarray(np.random.default_rng(6).normal(size=network.head.shape), jnp.float32)
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def loss(params):
        return nnx.merge(graph, params, rest).loss(batch)

    slopes = jax.jit(jax.grad(loss))(params)
    for name in params:
        value, slope = params[name][...], slopes[name][...]
        direction = slope / jnp.linalg.norm(slope)

        def along(changed, name=name):
            moved = jax.tree.map(lambda leaf: leaf, params)
            moved[name][...] = changed
            return float(loss(moved))

        found = directional(along, value, direction, 2e-3)
        assert float(jnp.linalg.norm(slope)) > 1e-4
        assert found == pytest.approx(float(jnp.linalg.norm(slope)), rel=3e-2)


def test_the_loss_is_that_of_a_loop(batch):
    logits, labels, main = batch["start"], batch["labels"], np.array([True, True, False])
    weight = np.array([1.0, 2.0, 1.0, 1.0, 0.5, 0.0], np.float32)
    entropy, known, within, compared = 0.0, 0.0, 0.0, 0.0
    for row in range(6):
        for cell in range(3):
            if np.isfinite(labels[row, cell]):
                p = 1 / (1 + np.exp(-logits[row, cell]))
                entropy -= weight[row] * np.log(p if labels[row, cell] else 1 - p)
                known += weight[row]
        cells = [c for c in range(3) if main[c] and np.isfinite(labels[row, c])]
        active = [c for c in cells if labels[row, c] == 1]
        if active and len(active) < len(cells):
            total = np.exp(logits[row, cells]).sum()
            within -= weight[row] * np.mean([np.log(np.exp(logits[row, c]) / total) for c in active])
            compared += weight[row]
    loss = one_program(compute_region_loss)
    found = loss(logits, labels, main, weight)
    assert float(found["cross_entropy"]) == pytest.approx(entropy / known, rel=1e-5)
    assert float(found["within"]) == pytest.approx(within / compared, rel=1e-5)
    assert float(found["total"]) == pytest.approx(entropy / known + 0.3 * within / compared, rel=1e-5)
    alike = loss(logits, labels, main, np.ones(6, np.float32))
    assert within_loss(logits, labels, main) == pytest.approx(0.3 * float(alike["within"]), rel=1e-6)
    assert within_loss(logits, np.zeros_like(labels), main) == 0
    slope = jax.jit(jax.grad(lambda logits: loss(logits, labels, main, weight)["total"]))(jnp.asarray(logits))
    assert np.isfinite(slope).all()
    assert (np.asarray(slope)[~np.isfinite(labels)] == 0).all()
    none = loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), main, jnp.ones(2))
    assert float(none["within"]) == 0


def test_dropout_changes_what_training_sees_and_nothing_else(batch):
    network = make_network()
    network.head[...] = jnp.ones_like(network.head[...])
    many = {name: np.repeat(value[:1], 4000, axis=0) for name, value in batch.items()}
    noisy, quiet = network.from_batch(many, jax.random.key(1)), network.from_batch(many)
    assert float(noisy.std(0).max()) > 0.05
    assert float(quiet.std(0).max()) < 1e-5
    # One program for both: whether anything is dropped is data.
    kept = network.from_batch(many, jax.random.key(1), jnp.bool_(False))
    np.testing.assert_array_equal(kept, quiet)
    batch = {**batch, "sample_weight": jnp.ones(6)}
    for trains in (False, True):
        found = jax.jit(training_loss)(network, {**batch, "is_training": jnp.bool_(trains)}, jax.random.key(2))[0]
        logits = network.from_batch(batch, jax.random.key(2) if trains else None)
        expected = compute_region_loss(logits, batch["labels"], network.main[...], batch["sample_weight"])["total"]
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_network_is_its_arrays(batch):
    network = make_network()
    network.head[...] = jnp.asarray(np.random.default_rng(7).normal(size=network.head.shape), jnp.float32)
    copy = RegionNetwork.from_arrays(network.arrays())
    np.testing.assert_array_equal(copy.from_batch(batch), network.from_batch(batch))
    with pytest.raises(KeyError, match="needs \\['labels'\\]"):
        network.check_keys({name: value for name, value in batch.items() if name != "labels"})
