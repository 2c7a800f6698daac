"""Training over windows, and what bases and factors add to its predictions, against plain computation."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from diffbio_sc.engines import attributions
from diffbio_sc.engines.contextual_windows import ContextMap, WindowModel, fit_windows, strongest_contacts
from diffbio_sc.genome.sequences import one_hot
from diffbio_sc.operators.epigenomics import ContextualEpigenomicsConfig

CELLS, FACTORS, POSITIONS, WIDTH = 4, 3, 6, 10
MOTIFS = np.random.default_rng(5).integers(0, 4, (FACTORS, 9))


def world(windows=160, seed=0):
    """Motifs of factors are open where their factor is expressed."""
    draws = np.random.default_rng(seed)
    expression = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    tokens = draws.integers(0, 4, (windows, POSITIONS * WIDTH)).astype(np.int8)
    targets = np.zeros((windows, CELLS, POSITIONS), np.uint8)
    site = np.zeros((windows, POSITIONS * WIDTH), bool)
    for window, position in np.argwhere(draws.random((windows, POSITIONS)) < 0.3):
        factor = draws.integers(FACTORS)
        motif = MOTIFS[factor] if draws.random() < 0.5 else 3 - MOTIFS[factor][::-1]
        where = slice(position * WIDTH, position * WIDTH + 9)
        tokens[window, where], site[window, where] = motif, True
        targets[window, :, position] = expression[:, factor]
    contacts = draws.random((windows, POSITIONS, POSITIONS)).astype(np.float32)
    contacts = (contacts + contacts.transpose(0, 2, 1)) / 2
    return tokens, targets, expression, contacts, site


def config(**settings):
    small = {
        "hidden_dim": 16, "num_heads": 2, "num_layers": 2, "intermediate_dim": 16, "max_length": 60, "token_width": 10,
        "stem_filters": 12, "stem_width": 9, "context_dim": 8, "readout_dim": 8, "contact_dim": 4, "dropout_rate": 0.1,
    }  # fmt: skip
    return ContextualEpigenomicsConfig(**{**small, **settings})


@pytest.fixture(scope="module")
def model():
    tokens, targets, expression, _, _ = world()
    return fit_windows(tokens, targets, config(), tf_context=expression, max_epochs=25, batch_size=16)


def log_loss(logits, targets):
    return float(np.mean(np.logaddexp(0, logits) - targets * logits))


def test_a_model_of_windows_learns_and_predicts_new_ones(model):
    tokens, targets, expression, _, _ = world(80, seed=1)
    logits = model.predict(tokens)
    assert logits.shape == (80, CELLS, POSITIONS)
    base = targets.mean()
    floor = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    assert log_loss(logits, targets) < 0.4 * floor
    assert model.report["kept_start"] is False
    assert model.report["windows"] + model.report["validation_windows"] == 160
    np.testing.assert_allclose(model.predict(tokens, tf_context=expression), logits, atol=1e-5)
    # A new cell type with the factors of another is predicted as that one.
    swapped = model.predict(tokens, tf_context=expression[[2, 2]])
    np.testing.assert_allclose(swapped, logits[:, [2, 2]], atol=1e-5)
    np.testing.assert_allclose(model.predict(tokens[:3]), logits[:3], atol=1e-5)


def test_a_model_is_rebuilt_from_its_arrays(model):
    tokens = world(8, seed=2)[0]
    arrays = model.arrays()
    assert all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in arrays.values())
    again = WindowModel.from_arrays(arrays)
    np.testing.assert_array_equal(again.predict(tokens), model.predict(tokens))
    np.testing.assert_array_equal(again.report["history"]["loss"], model.report["history"]["loss"])


def test_labels_without_signal_leave_the_base_rate():
    tokens, _, expression, _, _ = world(60)
    targets = (np.random.default_rng(9).random((60, CELLS, POSITIONS)) < 0.25).astype(np.uint8)
    held_out = np.arange(30, 60)
    found = fit_windows(
        tokens, targets, config(), tf_context=expression, validation=held_out, max_epochs=3, batch_size=30,
        learning_rate=0.3, average=None,
    )  # fmt: skip
    assert found.report["kept_start"] is True
    ones = targets.sum()
    np.testing.assert_allclose(found.predict(tokens), np.log((ones + 0.5) / (targets.size - ones + 0.5)), rtol=1e-5)


def test_training_adds_to_logits_that_it_is_given():
    tokens, targets, _, _, _ = world(40)
    start = np.random.default_rng(0).normal(size=(40, CELLS, POSITIONS)).astype(np.float32)
    blind = config(use_tf_context=False)
    with pytest.raises(ValueError, match="start_logits"):
        fit_windows(tokens, targets, blind, start_logits=start, max_epochs=1)
    seeing = fit_windows(
        tokens, targets, config(), tf_context=world()[2], start_logits=start, max_epochs=1, learning_rate=1e-9
    )
    np.testing.assert_allclose(seeing.predict(tokens, start_logits=start), start, atol=1e-4)


def test_components_of_contexts_are_white_and_few():
    contexts = np.random.default_rng(0).normal(size=(6, 30)) * np.linspace(1, 50, 30)
    contexts[:, 3] = 7.0
    found = ContextMap.of(contexts)
    values = found(contexts)
    assert values.shape == (6, 5)
    np.testing.assert_allclose(values.T @ values / 6, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-6)
    standard = np.delete(contexts, 3, 1)
    standard = (standard - standard.mean(0)) / standard.std(0)
    # Products of contexts keep their directions: the leading component is that of the standardised table.
    _, vectors = np.linalg.eigh(standard @ standard.T)
    assert abs(values[:, 0] @ vectors[:, -1]) / np.sqrt(6) == pytest.approx(1.0, abs=1e-4)
    assert found(contexts * 1e6).max() == 4.0
    assert ContextMap.of(contexts[:1])(contexts[:1]).shape == (1, 1)


def test_strong_contacts_are_those_beyond_their_distance():
    contacts = np.random.default_rng(0).random((20, 12, 12)) * 0.1
    apart = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    contacts = (contacts + contacts.transpose(0, 2, 1)) / 2 + 1 / (1 + apart)
    contacts[4, 2, 9] += 0.5
    contacts[4, 9, 2] += 0.5
    marked = strongest_contacts(contacts, share=2 / 240)
    assert np.argwhere(marked[..., 0]).tolist() == [[4, 2], [4, 9]]


@pytest.mark.parametrize("average", [True, False])
def test_mutagenesis_is_prediction_of_every_mutant(model, average):
    tokens = world(3, seed=3)[0]
    tokens[1, 5] = 4
    operator = model.operator
    if not average:
        operator = type(operator)(config(num_tf_features=3, average_strands=False), rngs=nnx.Rngs(0))
        nnx.update(operator, nnx.state(model.operator))
    chosen = WindowModel(operator, model.context_map, model.contexts, CELLS, model.report)
    position = np.array([0, 3, 5])
    found = attributions.window_mutagenesis(chosen, tokens, position=position)
    assert found.shape == (3, CELLS, 60, 4)
    for row in range(3):
        mutants = np.repeat(tokens[row : row + 1], 240, 0)
        mutants[np.arange(240), np.repeat(np.arange(60), 4)] = np.tile(np.arange(4), 60)
        logits = chosen.predict(mutants)[:, :, position[row]].reshape(60, 4, CELLS).transpose(2, 0, 1)
        np.testing.assert_allclose(found[row], logits - logits.mean(2, keepdims=True), atol=2e-5)
    part = attributions.window_mutagenesis(chosen, tokens, position=position, first=np.array([0, 20, 45]), width=15)
    np.testing.assert_allclose(part[1], found[1][:, 20:35], atol=2e-5)
    any_position = attributions.window_mutagenesis(chosen, tokens[:1])
    logits = np.logaddexp.reduce(chosen.predict(mutants[:1]), axis=2)
    assert any_position.shape == (1, CELLS, 60, 4)
    assert np.isfinite(logits).all()


def test_gradients_are_those_of_the_operator_and_integrals_sum_to_the_difference(model):
    tokens = world(2, seed=4)[0]
    position = np.array([2, 2])
    found = attributions.window_gradients(model, tokens, position=position)
    for cell in range(CELLS):

        def logit(sequence, cell=cell):
            data = {"sequence": sequence, "tf_context": model.contexts[None]}
            return model.operator(data)["logits"][:, cell, 2].sum()

        slope = np.asarray(jax.grad(logit)(one_hot(tokens)))
        np.testing.assert_allclose(found[:, cell], slope - slope.mean(2, keepdims=True), atol=1e-4)
    references = np.random.default_rng(1).permuted(tokens[:, None], axis=2)
    whole = attributions.window_integrated_gradients(model, tokens, references, position=position, steps=60)
    total = (whole * one_hot(tokens)[:, None]).sum((2, 3))
    difference = model.predict(tokens)[:, :, 2] - model.predict(references[:, 0])[:, :, 2]
    np.testing.assert_allclose(total, difference, atol=0.25)


def test_factors_are_credited_for_their_motifs(model):
    tokens, targets, expression, _, _ = world(40, seed=5)
    window, position = np.argwhere(targets[:, 0] & ~targets[:, 1].astype(bool))[:12].T
    found = attributions.factor_contributions(model, tokens[window], expression, position=position)
    assert found.shape == (len(window), CELLS, FACTORS)
    # These sites are of factor 0, which cell type 0 has and cell type 1 lacks.
    assert (found[:, 0].argmax(1) == 0).mean() > 0.8
    step = 1e-3
    moved = expression.copy()
    moved[0, 0] += step
    raised = model.predict(tokens[window], tf_context=moved)[np.arange(len(window)), 0, position]
    moved[0, 0] -= 2 * step
    lowered = model.predict(tokens[window], tf_context=moved)[np.arange(len(window)), 0, position]
    slope = (raised - lowered) / (2 * step) * (expression[0, 0] - expression[:, 0].mean())
    np.testing.assert_allclose(found[:, 0, 0], slope, rtol=0.05, atol=0.02)


def test_models_with_contacts_take_and_predict_them():
    tokens, targets, expression, contacts, _ = world(40)
    seeing = fit_windows(
        tokens, targets, config(use_contact_input=True), tf_context=expression, contacts=contacts, max_epochs=1
    )
    assert seeing.predict(tokens[:3], contacts=contacts[:3]).shape == (3, CELLS, POSITIONS)
    with pytest.raises(ValueError, match="pass contacts"):
        seeing.predict(tokens[:3])
    scores = attributions.window_mutagenesis(seeing, tokens[:2], contacts=contacts[:2])
    assert np.isfinite(scores).all()
    guided = fit_windows(
        tokens, targets, config(use_chromatin_guidance=True), tf_context=expression, contacts=contacts, max_epochs=2
    )
    found = guided.predict_contacts(tokens[:3])
    np.testing.assert_allclose(found, found.transpose(0, 2, 1), atol=1e-5)
    assert len(guided.report["history"]["validation_chromatin_guidance"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.full((160, 60), 5)}, "tokens must be from 0 to 4"),
        ({"tokens": np.zeros((160, 60))}, "tokens must be whole numbers"),
        ({"targets": np.zeros((160, CELLS, 5))}, r"targets must have the shape \(160, contexts, 6\)"),
        ({"targets": np.full((160, CELLS, POSITIONS), 2)}, "targets must be 0 or 1"),
        ({"tf_context": None}, "needs tf_context"),
        ({"tf_context": np.ones((3, 3))}, "one row for each of 4 contexts"),
        ({"tf_context": np.full((4, 3), np.nan)}, "tf_context must be finite"),
        ({"config": config(use_contact_input=True)}, "need contacts"),
        ({"validation": 0.0}, "validation must be a share"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    tokens, targets, expression, _, _ = world()
    given = {"tokens": tokens, "targets": targets, "config": config(), "tf_context": expression, **change}
    with pytest.raises(ValueError, match=message):
        fit_windows(given.pop("tokens"), given.pop("targets"), given.pop("config"), **given, max_epochs=1)
