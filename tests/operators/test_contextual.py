"""The contextual sequence model: the specification's statements (E1 to E7), masks, strands, and numpy references."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from one_program import one_program

import diffbio_sc.operators.epigenomics as epigenomics
from diffbio_sc.operators import NotFittedWarning
from diffbio_sc.operators.epigenomics import (
    ContextualEpigenomicsConfig,
    ContextualEpigenomicsOperator,
    compute_contextual_epigenomics_loss,
)
from diffbio_sc.operators.epigenomics.contextual.attention import attend, rotate
from diffbio_sc.operators.epigenomics.contextual.loss import contact_loss, similarity_loss
from diffbio_sc.operators.epigenomics.contextual.stem import SequenceStem, best_matches

SMALL = {
    "hidden_dim": 8, "num_heads": 2, "num_layers": 2, "intermediate_dim": 12, "num_tf_features": 3, "stem_filters": 6,
    "stem_width": 5, "max_length": 64, "context_dim": 4, "readout_dim": 5, "contact_dim": 4,
}  # fmt: skip
# Compiling is what these tests cost: one block where a second would show nothing more.
ONE_BLOCK = {"num_layers": 1}
BATCH, LENGTH = 3, 16


outputs = one_program(lambda operator, data: operator(data))
loss_of = one_program(lambda operator, data: operator.loss(data))
terms_of = one_program(compute_contextual_epigenomics_loss)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sequences(batch=BATCH, length=LENGTH, seed=0):
    return np.eye(4, dtype=np.float32)[np.random.default_rng(seed).integers(0, 4, (batch, length))]


def symmetric(batch=BATCH, length=LENGTH, seed=1):
    values = np.random.default_rng(seed).random((batch, length, length)).astype(np.float32)
    return (values + values.transpose(0, 2, 1)) / 2


def inputs(length=LENGTH, tokens=None):
    tokens = length if tokens is None else tokens
    return {
        "sequence": sequences(length=length),
        "tf_context": draw(BATCH, 3),
        "chromatin_contacts": symmetric(length=tokens),
        "targets": (draw(BATCH, tokens, seed=2) > 0.5).astype(np.float32),
    }


def trained(seed=0, **settings):
    """An operator with parameters that are nowhere 0."""
    operator = ContextualEpigenomicsOperator(ContextualEpigenomicsConfig(**{**SMALL, **settings}), rngs=nnx.Rngs(seed))
    state, draws = nnx.state(operator, nnx.Param), np.random.default_rng(seed + 1)
    nnx.update(
        operator,
        jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf) + 0.3 * draws.normal(size=leaf.shape).astype(np.float32)), state
        ),
    )
    operator.mark_fitted()
    return operator


GUIDED = {"use_chromatin_guidance": True}
VARIANTS = {
    "sequence_only": {"use_tf_context": False},
    "tf_plus_chromatin": GUIDED,
    "similarity_of_tokens": {**GUIDED, "guidance": "embedding_similarity", "token_width": 4},
    "contacts_as_input_and_classes": {"use_contact_input": True, "num_outputs": 3},
    "windows": {**GUIDED, "attention_window": 3, "use_contact_input": True},
}


def variant_inputs(name):
    return inputs(tokens=LENGTH // VARIANTS[name].get("token_width", 1))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param, trained(**VARIANTS[request.param]), variant_inputs(request.param)


def test_quick_start_of_the_specification():
    from diffbio_sc.sources import build_synthetic_contextual_epigenomics_dataset

    data = build_synthetic_contextual_epigenomics_dataset(
        n_examples=4,
        sequence_length=24,
        num_tf_features=3,
        target_semantics="binary_peak_mask",
        num_output_classes=1,
    )
    config = ContextualEpigenomicsConfig(
        hidden_dim=64,
        num_layers=2,
        num_heads=4,
        intermediate_dim=256,
        max_length=24,
        num_tf_features=3,
        num_outputs=1,
        use_tf_context=True,
        use_chromatin_guidance=True,
        chromatin_guidance_weight=0.1,
    )
    operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(42))
    with pytest.warns(NotFittedWarning):
        result, state, metadata = operator.apply(data, {}, None)
    losses = compute_contextual_epigenomics_loss(operator, data)
    assert result["logits"].shape == (4, 24)
    assert result["token_embeddings"].shape == (4, 24, 64)
    assert result["embeddings"].shape == (4, 64)
    assert (state, metadata) == ({}, None)
    # Untrained, every base is a toss-up, which costs log 2; the guidance term is the result's.
    assert float(losses["supervised"]) == pytest.approx(np.log(2), rel=1e-6)
    assert float(losses["chromatin_guidance"]) == pytest.approx(float(result["chromatin_guidance_loss"]), rel=1e-6)
    assert float(losses["total"]) == pytest.approx(
        float(losses["supervised"]) + 0.1 * float(losses["chromatin_guidance"]), rel=1e-6
    )


def test_E1_the_operators_of_the_page_are_importable_and_differentiable(variant):
    assert {"DifferentiablePeakCaller", "ChromatinStateAnnotator", "ContextualEpigenomicsOperator"} <= set(
        epigenomics.__all__
    )
    name, operator, data = variant
    gradient = nnx.jit(nnx.grad(lambda operator: operator.loss(data)))(operator)
    for path, leaf in nnx.to_flat_state(gradient):
        value = np.asarray(leaf[...])
        assert np.isfinite(value).all(), path
        assert value.any(), (name, path)


def test_E2_three_ablations_are_flags_of_one_class():
    data = inputs()
    blind = trained(use_tf_context=False)
    assert blind.context is None
    assert blind.contact_head is None
    np.testing.assert_array_equal(
        outputs(blind, data)["logits"],
        outputs(blind, {"sequence": data["sequence"]})["logits"],
        err_msg="context and contacts unread",
    )
    seeing = trained()
    other = {**data, "tf_context": data["tf_context"][::-1]}
    assert np.abs(outputs(seeing, data)["logits"] - outputs(seeing, other)["logits"]).max() > 0.1
    # Guidance is a term of the loss: the contacts change no prediction.
    guided = trained(**GUIDED)
    other = {**data, "chromatin_contacts": symmetric(seed=9)}
    np.testing.assert_array_equal(outputs(guided, data)["logits"], outputs(guided, other)["logits"])
    assert float(loss_of(guided, data)) != float(loss_of(guided, other))
    assert (
        float(outputs(trained(**GUIDED), data)["chromatin_guidance_loss"])
        > 0
        == float(outputs(seeing, data)["chromatin_guidance_loss"])
    )


def test_E3_defaults_of_the_configuration():
    config = ContextualEpigenomicsConfig()
    expected = {
        "hidden_dim": 64, "num_layers": 2, "num_heads": 4, "intermediate_dim": 256, "max_length": 512,
        "num_tf_features": 8, "num_outputs": 1, "use_tf_context": True, "use_chromatin_guidance": False,
        "chromatin_guidance_weight": 0.1,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "hidden_dim / num_heads is a whole, even number"),
        ({"stem_width": 4}, "stem_width must be an odd number"),
        ({"num_outputs": 0}, "num_outputs must be a positive integer"),
        ({"chromatin_guidance_weight": -1.0}, "chromatin_guidance_weight must be"),
        ({"dropout_rate": 1.0}, "dropout_rate must be"),
        ({"guidance": "attention"}, "guidance must be one of"),
        ({"token_width": 1000}, "token_width must be at most max_length"),
    ],
)
def test_E3_settings_that_are_not_allowed_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ContextualEpigenomicsConfig(**settings)


def test_E4_one_sequence_is_a_batch_of_one(variant):
    _, operator, data = variant
    mask = np.ones((BATCH, LENGTH))
    mask[1, 12:] = 0
    data = {**data, "sequence_mask": mask}
    whole, one = outputs(operator, data), outputs(operator, {key: value[1] for key, value in data.items()})
    assert set(whole) == set(one)
    for key in set(whole) - {"chromatin_guidance_loss"}:  # products of other sizes are summed in another order
        np.testing.assert_allclose(one[key], whole[key][1], rtol=1e-5, atol=1e-5, err_msg=key)
    single = loss_of(operator, {key: value[1] for key, value in data.items()})
    assert float(single) == pytest.approx(
        float(loss_of(operator, {key: value[1:2] for key, value in data.items()})), rel=1e-5
    )


def test_E4_what_is_masked_changes_nothing(variant):
    """Not by a rounding error: attention, pooling, loss and guidance."""
    _, operator, data = variant
    mask = np.ones((BATCH, LENGTH))
    mask[:, 12:], mask[0, 4:8] = 0, 0
    width = LENGTH // data["targets"].shape[1]
    hidden = ~mask.reshape(BATCH, -1, width).any(2)
    other = {key: np.array(value) for key, value in data.items()}
    other["sequence"][mask == 0] = [7.0, -3.0, 0.0, 5.0]
    other["targets"][hidden] = 1 - other["targets"][hidden]
    other["chromatin_contacts"][hidden] = 0.7
    other["chromatin_contacts"].swapaxes(1, 2)[hidden] = np.nan
    data, other = ({**one, "sequence_mask": mask} for one in (data, other))
    found, expected = outputs(operator, other), outputs(operator, data)
    for key in set(found) - {"contact_logits"}:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    found, expected = (terms_of(operator, one) for one in (other, data))
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_padded_tail_changes_no_logit(variant):
    name, operator, data = variant
    width = LENGTH // data["targets"].shape[1]
    behind, tokens = 24, 24 // width
    padded = {
        "sequence": np.pad(data["sequence"], ((0, 0), (0, behind), (0, 0)), constant_values=0.25),
        "sequence_mask": np.pad(np.ones((BATCH, LENGTH)), ((0, 0), (0, behind))),
        "tf_context": data["tf_context"],
        "chromatin_contacts": np.pad(data["chromatin_contacts"], ((0, 0), (0, tokens), (0, tokens))),
        "targets": np.pad(data["targets"], ((0, 0), (0, tokens)), constant_values=1.0),
    }
    found, expected = outputs(operator, padded), outputs(operator, data)
    number = LENGTH // width
    np.testing.assert_allclose(found["logits"][:, :number], expected["logits"], atol=1e-5)
    np.testing.assert_allclose(found["embeddings"], expected["embeddings"], atol=1e-5)
    np.testing.assert_array_equal(found["logits"][:, number:], 0.0)
    assert float(loss_of(operator, padded)) == pytest.approx(float(loss_of(operator, data)), rel=1e-5), name


def test_both_strands_give_the_same_prediction(variant):
    _, operator, data = variant
    other = {
        **data,
        "sequence": data["sequence"][:, ::-1, ::-1],
        "chromatin_contacts": data["chromatin_contacts"][:, ::-1, ::-1],
    }
    found, expected = outputs(operator, other), outputs(operator, data)
    np.testing.assert_allclose(found["logits"][:, ::-1], expected["logits"], atol=1e-5)
    np.testing.assert_allclose(found["token_embeddings"][:, ::-1], expected["token_embeddings"], atol=1e-5)
    if "contact_logits" in found:
        np.testing.assert_allclose(found["contact_logits"][:, ::-1, ::-1], expected["contact_logits"], atol=1e-5)
    # The strands do differ until they are averaged: orientation is seen.
    one = ContextualEpigenomicsOperator(dataclasses.replace(operator.config, average_strands=False), rngs=nnx.Rngs(0))
    nnx.update(one, nnx.state(operator))
    assert np.abs(outputs(one, other)["logits"][:, ::-1] - outputs(one, data)["logits"]).max() > 1e-2


def test_prediction_is_the_mean_over_strands():
    operator, data = trained(), inputs()
    one = ContextualEpigenomicsOperator(dataclasses.replace(operator.config, average_strands=False), rngs=nnx.Rngs(0))
    nnx.update(one, nnx.state(operator))
    other = {**data, "sequence": data["sequence"][:, ::-1, ::-1]}
    expected = (outputs(one, data)["logits"] + outputs(one, other)["logits"][:, ::-1]) / 2
    np.testing.assert_allclose(outputs(operator, data)["logits"], expected, atol=1e-5)


def test_E6_outputs_have_the_shapes_of_the_page():
    data = inputs()
    result, state, metadata = trained(num_outputs=5, **GUIDED).apply(data, "state", "metadata")
    assert result["logits"].shape == (BATCH, LENGTH, 5)
    assert result["token_embeddings"].shape == (BATCH, LENGTH, 8)
    assert result["embeddings"].shape == (BATCH, 8)
    assert result["chromatin_guidance_loss"].shape == ()
    assert (state, metadata) == ("state", "metadata")
    np.testing.assert_allclose(result["embeddings"], result["token_embeddings"].mean(1), atol=1e-6)


def test_E7_losses_are_those_of_their_formulas():
    data = inputs()
    data["sequence_mask"] = np.ones((BATCH, LENGTH))
    data["sequence_mask"][0, 9:] = 0
    seen = data["sequence_mask"] > 0
    operator = trained(**GUIDED, chromatin_guidance_weight=0.7)
    result, losses = outputs(operator, data), terms_of(operator, data)
    p = 1 / (1 + np.exp(-np.asarray(result["logits"], np.float64)))
    expected = -(data["targets"] * np.log(p) + (1 - data["targets"]) * np.log(1 - p))[seen].mean()
    assert float(losses["supervised"]) == pytest.approx(expected, rel=1e-5)

    total, number = 0.0, 0
    for example in range(BATCH):
        row, column = np.nonzero(np.outer(seen[example], seen[example]) & ~np.eye(LENGTH, dtype=bool))
        contact = data["chromatin_contacts"][example, row, column].astype(np.float64)
        z = np.asarray(result["contact_logits"], np.float64)[example, row, column]
        share = contact.mean()
        present, absent = contact / (2 * share), (1 - contact) / (2 * (1 - share))
        entropy = present * np.log1p(np.exp(-z)) + absent * np.log1p(np.exp(z))
        best = present / (present + absent)
        total += (entropy + present * np.log(best) + absent * np.log(1 - best)).sum()
        number += len(row)
    assert float(losses["chromatin_guidance"]) == pytest.approx(total / number, rel=1e-4)
    assert float(result["chromatin_guidance_loss"]) == pytest.approx(total / number, rel=1e-4)
    assert float(losses["total"]) == pytest.approx(expected + 0.7 * total / number, rel=1e-4)


def test_E7_classes_have_the_cross_entropy_of_a_softmax():
    data = inputs()
    data["targets"] = np.random.default_rng(3).integers(0, 3, (BATCH, LENGTH))
    operator = trained(num_outputs=3)
    logits = np.asarray(operator(data)["logits"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, data["targets"][..., None], -1)).mean()
    assert float(operator.loss(data)) == pytest.approx(expected, rel=1e-5)


def test_E7_embedding_similarity_is_the_rescaled_cosine():
    data = inputs()
    operator = trained(**GUIDED, guidance="embedding_similarity")
    result = operator(data)
    tokens = np.asarray(result["token_embeddings"], np.float64)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    squares = ((1 + unit @ unit.swapaxes(1, 2)) / 2 - data["chromatin_contacts"]) ** 2
    expected = squares[:, ~np.eye(LENGTH, dtype=bool)].mean()
    assert float(result["chromatin_guidance_loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_optimum_of_guidance_is_reached_and_is_0():
    contacts, mask = symmetric(2, 6), np.ones((2, 6), bool)
    contacts[0, 1, 2] = contacts[0, 2, 1] = 0.0
    off = ~np.eye(6, dtype=bool)
    share = contacts[:, off].mean(1)[:, None, None]
    odds = contacts * (1 - share) / np.maximum((1 - contacts) * share, 1e-30)
    best = jnp.asarray(np.log(np.maximum(odds, 1e-12)))
    value = jax.jit(jax.value_and_grad(lambda logits: contact_loss(logits, contacts, mask).mean()))
    least, slope = value(best)
    assert float(least) == pytest.approx(0.0, abs=1e-6)
    assert float(value(best + 0.5)[0]) > 0.01
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    # Embeddings in two opposite groups realise a map of contacts 0 and 1 exactly.
    side = np.array([1, 1, -1, 1, -1, -1.0])
    tokens = np.stack([side[:, None] * np.ones((6, 3))] * 2)
    together = np.stack([(np.outer(side, side) + 1) / 2] * 2)
    assert float(similarity_loss(jnp.asarray(tokens), together, mask).mean()) == pytest.approx(0.0, abs=1e-6)


def test_contacts_all_absent_or_all_present_have_finite_terms():
    logits, mask = draw(2, 5, 5), np.ones((2, 5), bool)
    for value in (0.0, 1.0):
        contacts = jnp.full((2, 5, 5), value)
        found, slope = jax.jit(jax.value_and_grad(lambda z, c=contacts: contact_loss(z, c, mask).mean()))(logits)
        assert np.isfinite(found)
        assert np.isfinite(slope).all()


def test_M25_jit_vmap_and_gradients_in_the_sequence():
    operator, data = trained(**GUIDED, token_width=4), inputs(tokens=LENGTH // 4)
    graph, state = nnx.split(operator)
    found = jax.jit(lambda state, data: nnx.merge(graph, state)(data))(state, data)
    np.testing.assert_allclose(found["logits"], operator(data)["logits"], atol=1e-6)
    each = jax.jit(jax.vmap(lambda data: nnx.merge(graph, state)(data)["logits"]))(data)
    np.testing.assert_allclose(each, found["logits"], atol=2e-6)
    slope = jax.jit(jax.grad(lambda sequence: operator({**data, "sequence": sequence})["logits"].sum()))(
        jnp.asarray(data["sequence"])
    )
    direction = draw(*slope.shape, seed=4)
    step = 1e-3

    def value(sequence):
        return float(np.asarray(operator({**data, "sequence": sequence})["logits"], np.float64).sum())

    change = (value(data["sequence"] + step * direction) - value(data["sequence"] - step * direction)) / (2 * step)
    assert change == pytest.approx(float((slope * direction).sum()), rel=0.05, abs=0.02)


def test_contexts_of_a_batch_may_be_one_several_or_shared():
    operator, data = trained(**ONE_BLOCK), inputs()
    contexts = draw(4, 3, seed=5)
    shared = outputs(operator, {**data, "tf_context": contexts[None]})["logits"]
    assert shared.shape == (BATCH, 4, LENGTH)
    listed = outputs(operator, {**data, "tf_context": list(contexts)})["logits"]
    several = outputs(operator, {**data, "tf_context": np.stack([contexts] * BATCH)})["logits"]
    np.testing.assert_array_equal(listed, shared)
    np.testing.assert_allclose(several, shared, atol=1e-6)
    for number, context in enumerate(contexts):
        one = outputs(operator, {**data, "tf_context": np.stack([context] * BATCH)})["logits"]
        np.testing.assert_allclose(one, shared[:, number], atol=2e-6)
    alone = outputs(operator, {"sequence": data["sequence"][0], "tf_context": contexts})["logits"]
    np.testing.assert_allclose(alone, shared[0], atol=2e-6)
    targets = (draw(BATCH, 4, LENGTH, seed=6) > 0).astype(np.float32)
    loss = loss_of(operator, {**data, "tf_context": contexts[None], "targets": targets})
    expected = np.mean(np.log1p(np.exp(shared)) - targets * shared)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    # Without contexts one prediction serves all of them.
    blind = trained(use_tf_context=False, **ONE_BLOCK)
    logits = outputs(blind, data)["logits"][:, None]
    expected = np.mean(np.log1p(np.exp(logits)) - targets * logits)
    assert float(loss_of(blind, {**data, "targets": targets})) == pytest.approx(float(expected), rel=1e-5)


def test_fourteen_contexts_cost_at_most_1_3_times_one():
    """Counted by the compiler, of windows of 1,024 bases at the default sizes."""
    config = ContextualEpigenomicsConfig(max_length=1024, token_width=32, num_tf_features=13, stem_width=19)
    operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(operator)

    def cost(contexts):
        def logits(sequence, context):
            return nnx.merge(graph, state)({"sequence": sequence, "tf_context": context})["logits"]

        shapes = jax.ShapeDtypeStruct((8, 1024, 4), np.float32), jax.ShapeDtypeStruct((1, contexts, 13), np.float32)
        return jax.jit(logits).lower(*shapes).compile().cost_analysis()["flops"]

    assert cost(14) <= 1.3 * cost(1)


def test_attention_is_that_of_a_plain_loop():
    tokens, heads, width = 7, 2, 4
    query, key, value = (draw(2, tokens, heads, width, seed=seed) for seed in range(3))
    bias = draw(2, heads, tokens, tokens, seed=3)
    mask = np.ones((2, tokens), bool)
    mask[1, 4:] = False
    by_offset = draw(heads, 5, seed=4)
    found = attend(query, key, value, jnp.asarray(mask), jnp.asarray(bias), 3, jnp.asarray(by_offset))
    for b in range(2):
        for h in range(heads):
            for i in range(tokens):
                seen = [j for j in range(tokens) if mask[b, j] and abs(i - j) < 3]
                if not seen:
                    continue
                logits = np.array([query[b, i, h] @ key[b, j, h] / np.sqrt(width) + bias[b, h, i, j] for j in seen])
                logits += [by_offset[h, j - i + 2] for j in seen]
                weights = np.exp(logits - logits.max())
                expected = weights / weights.sum() @ value[b, seen, h]
                np.testing.assert_allclose(found[b, i, h], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [10, 12, 23])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_blocks_is_attention(tokens, biased):
    query, key, value = (draw(2, tokens, 2, 4, seed=seed) for seed in range(3))
    mask = np.random.default_rng(0).random((2, tokens)) > 0.2
    bias = draw(2, 2, tokens, tokens, seed=3) if biased else None
    near = np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens))) < 3
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / 2.0 + (0.0 if bias is None else bias)
    by_offset = draw(2, 5, seed=4)
    offset = np.arange(tokens) - np.arange(tokens)[:, None]
    logits = logits + by_offset[:, np.clip(offset, -2, 2) + 2]
    logits = np.where(mask[:, None, None] & near, logits, -1e30)
    expected = np.einsum("bhqk,bkhd->bqhd", scipy.special.softmax(logits, -1), value)
    found = jax.jit(attend, static_argnums=5)(query, key, value, mask, bias, 3, by_offset)
    some = (mask[:, None] & near).any(2)
    np.testing.assert_allclose(np.asarray(found)[some], expected[some], rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    vectors = draw(2, 4)
    at = np.broadcast_to(vectors[:, None, None], (2, 40, 1, 4))
    query, key = rotate(jnp.asarray(at))[..., 0, :]
    products = np.asarray(query @ key.T)
    for shift in (-5, 0, 3):
        diagonal = np.diagonal(products, shift)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    pairs = vectors[:, :2] + 1j * vectors[:, 2:]  # a rotation is a product with exp(i angle)
    turned = pairs[1] * np.exp(3j * 10_000.0 ** (-np.arange(0, 4, 2) / 4))
    assert products[0, 3] == pytest.approx(float((pairs[0] * turned.conj()).real.sum()), abs=1e-5)


def test_filters_match_both_strands_and_skip_masked_bases():
    stem = SequenceStem(2, 3, 4, 5, rngs=nnx.Rngs(0))
    sequence, mask = sequences(1, 8)[0], np.ones(8, bool)
    mask[4:8] = False
    found = np.asarray(
        stem.best_matches(jnp.asarray(np.where(mask[:, None], sequence, 0))[None], jnp.asarray(mask)[None])
    )[0]
    kernel = np.asarray(stem.kernel[...])
    other = kernel[::-1, ::-1]
    padded = np.pad(np.where(mask[:, None], sequence, 0), ((1, 1), (0, 0)))
    for number, weights in enumerate((kernel[..., 0], kernel[..., 1], other[..., 0], other[..., 1])):
        scores = [(padded[start : start + 3] * weights).sum() for start in range(4)]
        assert found[0, number] == pytest.approx(max(scores), rel=1e-5)
        assert found[1, number] == -np.inf
    np.testing.assert_array_equal(stem.embed(jnp.asarray(found)[None])[0, 1], 0.0)


@pytest.mark.parametrize("width", [1, 4])
def test_the_gradient_of_the_best_match_is_that_of_jax(width):
    sequence, kernel = jnp.asarray(draw(2, 12, 4)), jnp.asarray(draw(5, 4, 6, seed=1))
    mask = jnp.ones((2, 12), bool).at[1, 8:].set(False)
    weights = draw(2, 12 // width, 6, seed=2)

    def plain(sequence, kernel):
        padded = jnp.pad(sequence, ((0, 0), (2, 2), (0, 0)))
        scores = sum(padded[:, i : i + 12] @ kernel[i] for i in range(5))
        scores = jnp.where(mask[..., None], scores, -jnp.inf).reshape(2, -1, width, 6).max(2)
        return (jnp.where(jnp.isfinite(scores), scores, 0.0) * weights).sum()

    def ours(sequence, kernel):
        scores = best_matches(sequence, kernel, mask, width)
        return (jnp.where(jnp.isfinite(scores), scores, 0.0) * weights).sum()

    values, slopes = zip(
        *(jax.jit(jax.value_and_grad(one, (0, 1)))(sequence, kernel) for one in (ours, plain)), strict=True
    )
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-5)
    found, expected = slopes
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_filters_can_be_motifs():
    stem = SequenceStem(4, 7, 1, 5, rngs=nnx.Rngs(0))
    before = np.asarray(stem.kernel[...])
    motif = np.log(np.full((5, 4), 0.1) + 0.6 * np.eye(4)[[0, 1, 2, 3, 0]])
    stem.set_filters([motif])
    kernel = np.asarray(stem.kernel[...])
    np.testing.assert_array_equal(kernel[..., 1:], before[..., 1:])
    random = np.random.default_rng(0).integers(0, 4, (20_000, 7))
    scores = kernel[np.arange(7), random, 0].sum(1)
    assert scores.mean() == pytest.approx(0.0, abs=0.05)
    assert scores.std() == pytest.approx(1.0, abs=0.03)
    assert list(kernel[1:6, :, 0].argmax(1)) == [0, 1, 2, 3, 0]
    with pytest.raises(ValueError, match="5 motifs are more than the 4"):
        stem.set_filters([motif] * 5)


def test_dropout_and_random_strands_act_in_training_alone():
    operator, data = trained(dropout_rate=0.5, **ONE_BLOCK), inputs()
    logits = nnx.jit(lambda operator, data: operator(data)["logits"])
    np.testing.assert_array_equal(logits(operator, data), logits(operator, data))
    operator.train()
    first, second = logits(operator, data), logits(operator, data)
    assert np.abs(first - second).max() > 0.1
    operator.eval()
    still = trained(dropout_rate=0.0, **ONE_BLOCK)
    np.testing.assert_array_equal(logits(operator, data), logits(still, data))
    # Without dropout a training pass reads one strand or the other of each sequence.
    still.train()
    passes = np.stack([logits(still, data)[0] for _ in range(12)])
    one = ContextualEpigenomicsOperator(dataclasses.replace(still.config, average_strands=False), rngs=nnx.Rngs(0))
    nnx.update(one, nnx.state(still))
    one.eval()
    forward = logits(one, data)[0]
    backward = logits(one, {**data, "sequence": data["sequence"][:, ::-1, ::-1]})[0, ::-1]
    near = [[np.abs(found - strand).max() < 1e-4 for strand in (forward, backward)] for found in passes]
    assert all(any(pair) for pair in near)
    assert np.any(near, axis=0).all()


class Start(nnx.Module):
    """Share of each letter, times weights: the same for both strands if those of A and T, of C and G agree."""

    def __init__(self, columns, per_base=False):
        # Of eighths, so that sums are exact in any order.
        weights = np.round(8 * draw(2, columns, seed=8)) / 8
        self.weights, self.per_base = nnx.Param(jnp.asarray(weights[[0, 1, 1, 0]])), per_base

    def __call__(self, sequence):
        return (sequence if self.per_base else sequence.mean(1)) @ self.weights[...]


def test_an_operator_with_a_start_begins_as_the_start():
    data, contexts = inputs(), draw(1, 4, 3, seed=5)
    config = ContextualEpigenomicsConfig(**{**SMALL, **ONE_BLOCK})
    for per_base in (False, True):
        start = Start(4, per_base)
        operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0), start=start)
        with warnings.catch_warnings():
            warnings.simplefilter("error", NotFittedWarning)
            result = operator.apply({"sequence": data["sequence"], "tf_context": contexts})[0]
        logits = np.asarray(start(jnp.asarray(data["sequence"])))
        expected = logits.transpose(0, 2, 1) if per_base else np.repeat(logits[..., None], LENGTH, 2)
        np.testing.assert_array_equal(result["logits"], expected)
        given = {"sequence": data["sequence"], "tf_context": contexts, "start_logits": 3 * expected}
        np.testing.assert_array_equal(operator(given)["logits"], 3 * expected)
    given["start_logits"] = 3 * expected[..., 0]  # one for all positions
    np.testing.assert_array_equal(operator(given)["logits"], np.repeat(3 * expected[..., :1], LENGTH, 2))
    with pytest.raises(ValueError, match=r"start_logits'\] must have the shape of the logits, \(3, 4, 16\)"):
        operator({**given, "start_logits": expected[:, :3]})
    with pytest.raises(ValueError, match="the start must return logits"):
        ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0), start=Start(2))(data)


def test_a_start_is_saved_and_trained_with_the_rest(tmp_path):
    data = inputs()
    config = ContextualEpigenomicsConfig(**{**SMALL, **ONE_BLOCK})
    operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0), start=Start(1))
    before = float(operator.loss(data))
    operator.fit(data, max_epochs=5, learning_rate=0.01)
    assert float(operator.loss(data)) < before
    operator.save(tmp_path / "operator.npz")
    loaded = ContextualEpigenomicsOperator.load(tmp_path / "operator.npz", start=Start(1))
    np.testing.assert_array_equal(loaded(data)["logits"], operator(data)["logits"])
    with pytest.raises(ValueError, match="unknown"):
        ContextualEpigenomicsOperator.load(tmp_path / "operator.npz")


def test_without_a_start_an_initialised_operator_predicts_the_base_rate():
    data = inputs()
    data["tf_context"][:, 1] = 5.0
    operator = ContextualEpigenomicsOperator(ContextualEpigenomicsConfig(**{**SMALL, **ONE_BLOCK}), rngs=nnx.Rngs(0))
    operator.initialize(data)
    ones = data["targets"].sum()
    expected = np.log((ones + 0.5) / (data["targets"].size - ones + 0.5))
    np.testing.assert_allclose(operator.apply(data)[0]["logits"], expected, rtol=1e-5)
    np.testing.assert_allclose(operator.context.shift[...], data["tf_context"].mean(0), rtol=1e-5)
    spread = data["tf_context"].std(0)
    np.testing.assert_allclose(operator.context.scale[...], [spread[0], 1.0, spread[2]], rtol=1e-5)
    classes = ContextualEpigenomicsOperator(
        ContextualEpigenomicsConfig(**{**SMALL, **ONE_BLOCK, "num_outputs": 3}), rngs=nnx.Rngs(0)
    )
    data["targets"] = np.random.default_rng(0).integers(0, 2, (BATCH, LENGTH))
    classes.initialize(data)
    counts = np.bincount(data["targets"].ravel(), minlength=3) + 0.5
    np.testing.assert_allclose(jax.nn.softmax(classes(data)["logits"])[0, 0], counts / counts.sum(), rtol=1e-5)


def test_training_follows_the_weights_of_samples():
    operator, data = trained(**GUIDED), inputs()
    weighted = loss_of(operator, {**data, "sample_weight": np.array([0.0, 2.0, 2.0])})
    assert float(weighted) == pytest.approx(
        float(loss_of(operator, {key: value[1:] for key, value in data.items()})), rel=1e-5
    )


def test_unknown_bases_are_rows_of_zeros_and_leave_gradients_finite():
    operator, data = trained(**GUIDED), inputs()
    data["sequence"][:] = 0.0
    slope = jax.jit(jax.grad(lambda sequence: operator({**data, "sequence": sequence})["logits"].sum()))(
        jnp.asarray(data["sequence"])
    )
    assert np.isfinite(slope).all()
    assert np.isfinite(operator.loss(data))


@pytest.mark.parametrize(
    ("settings", "change", "error", "message"),
    [
        ({}, {"sequence": sequences(length=65)}, ValueError, "1 to 64 bases"),
        ({}, {"sequence": np.ones((3, 16, 5))}, ValueError, "A C G T"),
        ({}, {"tf_context": None}, KeyError, "use_tf_context needs"),
        ({}, {"tf_context": np.ones((3, 2))}, ValueError, "config.num_tf_features"),
        ({}, {"tf_context": np.ones((2, 3))}, ValueError, "must have 3 rows"),
        ({}, {"sequence_mask": np.ones((3, 15))}, ValueError, "one value for each base"),
        (GUIDED, {"chromatin_contacts": np.ones((3, 15, 15))}, ValueError, "each pair of positions"),
        (GUIDED, {"chromatin_contacts": None}, KeyError, "use_chromatin_guidance needs"),
        ({"use_contact_input": True}, {"chromatin_contacts": None}, KeyError, "use_contact_input needs"),
        ({}, {"targets": np.ones((3, 15))}, ValueError, "positions"),
        ({}, {"targets": None}, KeyError, "needs data"),
    ],
)
def test_inputs_that_do_not_fit_are_named(settings, change, error, message):
    with pytest.raises(error, match=message):
        trained(**settings).loss({**inputs(), **change})


def test_a_fit_learns_labels_that_need_sequence_and_context_together():
    from diffbio_sc.sources import build_synthetic_contextual_epigenomics_dataset

    settings = {"n_examples": 48, "sequence_length": 24, "num_tf_features": 2}
    data = build_synthetic_contextual_epigenomics_dataset(**settings)
    new = build_synthetic_contextual_epigenomics_dataset(**settings, rng=1)
    config = ContextualEpigenomicsConfig(
        hidden_dim=16, num_heads=2, num_layers=1, intermediate_dim=16, max_length=24, num_tf_features=2,
        dropout_rate=0.0, stem_filters=16, stem_width=7,
    )  # fmt: skip
    operator = ContextualEpigenomicsOperator(config, rngs=nnx.Rngs(0))
    operator.fit(data, max_epochs=60, batch_size=16, learning_rate=1e-2)
    base = data["targets"].mean()
    floor = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    assert float(operator.loss(new)) < 0.6 * floor
    # The sequences with contexts of others, and the contexts with sequences of others, are worse than the base rate.
    for key in ("tf_context", "sequence"):
        assert float(operator.loss({**new, key: np.roll(new[key], 1, 0)})) > floor, key
