"""ChromatinStateAnnotator: the statements of the specification, and its results against enumeration."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_program import one_program

from diffbio_sc.operators import epigenomics
from diffbio_sc.operators.epigenomics import ChromatinStateAnnotator, ChromatinStateConfig

KINDS = ("bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial")


def annotator(seed=0, **fields):
    config = ChromatinStateConfig(**{"num_states": 3, "num_marks": 2, **fields})
    return ChromatinStateAnnotator(config, rngs=nnx.Rngs(seed))


def values(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "bernoulli":
        return rng.integers(0, 2, shape).astype(np.float32)
    return (rng.normal(size=shape) if kind == "gaussian" else rng.poisson(2.0, shape)).astype(np.float32)


def leaves(module):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(module))}


# --- the specification


def test_e1_the_operator_is_importable_and_differentiable():
    assert {"ChromatinStateAnnotator", "ChromatinStateConfig"} <= set(epigenomics.__all__)
    marks = values("bernoulli", (20, 2))
    gradient = nnx.jit(
        nnx.grad(lambda one: one.apply({"histone_marks": marks}, {}, None)[0]["state_probabilities"][:, 0].sum())
    )(annotator())
    assert all(np.abs(leaf).max() > 0 for leaf in leaves(gradient).values())


def test_e18_the_configuration_has_the_stated_defaults():
    config = ChromatinStateConfig()
    assert (config.num_states, config.num_marks, config.temperature) == (15, 6, 1.0)
    assert (config.use_cell_type_conditioning, config.num_cell_types, config.emission) == (False, 1, "bernoulli")
    with pytest.raises(ValueError, match="ChromatinStateConfig.temperature must be a finite number above 0, found 0"):
        ChromatinStateConfig(temperature=0)
    with pytest.raises(ValueError, match="ChromatinStateConfig.emission must be one of"):
        ChromatinStateConfig(emission="beta")


def test_e19_the_quick_start_runs_as_printed_and_batches_are_sequences():
    marks = values("bernoulli", (50, 6))
    config = ChromatinStateConfig(num_states=15, num_marks=6, temperature=1.0)
    rngs = nnx.Rngs(42)
    operator = ChromatinStateAnnotator(config, rngs=rngs)
    data = {"histone_marks": marks}
    result, state, metadata = operator.apply(data, {}, None)
    assert (state, metadata) == ({}, None)
    assert result["state_probabilities"].shape == result["state_posteriors"].shape == (50, 15)
    np.testing.assert_allclose(result["state_posteriors"].sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(result["state_probabilities"], result["state_posteriors"])
    assert result["viterbi_path"].shape == (50,)
    assert jnp.issubdtype(result["viterbi_path"].dtype, jnp.integer)
    assert result["log_likelihood"].shape == ()
    batch, _, _ = operator.apply({"histone_marks": np.stack([marks, marks[::-1]])}, {}, None)
    for key in ("state_probabilities", "state_posteriors", "viterbi_path", "log_likelihood"):
        np.testing.assert_allclose(batch[key][0], result[key], rtol=1e-5, atol=1e-6)


def test_e19_outputs_are_those_of_all_paths_enumerated():
    operator = annotator()
    marks = values("bernoulli", (6, 2), seed=3)
    initial, transition, emission = (
        np.asarray(part, float)
        for part in (operator.initial_distribution, operator.transition_matrix, operator.emission_matrix)
    )
    rows = np.prod(np.where(marks[:, None] > 0, emission, 1 - emission), 2)
    paths = np.array(list(itertools.product(range(3), repeat=6)))
    weight = initial[paths[:, 0]] * rows[0, paths[:, 0]]
    for t in range(1, 6):
        weight *= transition[paths[:, t - 1], paths[:, t]] * rows[t, paths[:, t]]
    result = operator.apply({"histone_marks": marks}, {}, None)[0]
    assert float(result["log_likelihood"]) == pytest.approx(np.log(weight.sum()), rel=1e-5)
    posterior = np.stack([(weight[:, None] * (paths == k)).sum(0) for k in range(3)], 1) / weight.sum()
    np.testing.assert_allclose(result["state_posteriors"], posterior, atol=1e-5)
    np.testing.assert_array_equal(result["viterbi_path"], paths[weight.argmax()])


@pytest.mark.parametrize("kind", KINDS)
def test_e20_transition_emission_and_initial_are_learned_and_readable(kind):
    operator = annotator(emission=kind)
    np.testing.assert_allclose(operator.transition_matrix.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(operator.initial_distribution.sum(), 1.0, rtol=1e-6)
    before = operator.loss({"histone_marks": values(kind, (300, 2))})
    report = operator.fit({"histone_marks": values(kind, (300, 2))}, max_steps=20)
    after = operator.loss({"histone_marks": values(kind, (300, 2))})
    assert float(after) < float(before)
    # The history is in float64, on the host; the loss in float32, in JAX: one number.
    assert float(after) == pytest.approx(report.history["loss"][-1], rel=1e-4, abs=1e-4)
    assert operator.emission_matrix.shape == (3, 2)


def test_e23_scaled_recursions_are_stable_with_finite_gradients_over_a_million_bins():
    operator = annotator()
    marks = jnp.asarray(values("bernoulli", (1_000_000, 2)))
    gradient = nnx.jit(nnx.grad(lambda one: one.loss({"histone_marks": marks})))(operator)
    for name, leaf in leaves(gradient).items():
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 1e-9, name


def test_e24_enhancers_are_found_where_they_were_planted():
    rng = np.random.default_rng(0)
    enhancer = np.repeat(rng.random(100) < 0.2, 20)
    marks = (rng.random((2000, 2)) < np.where(enhancer[:, None], [0.9, 0.8], [0.05, 0.1])).astype(np.float32)
    operator = annotator(num_states=2)
    assert operator.fit({"histone_marks": marks}).converged
    path = np.asarray(operator.apply({"histone_marks": marks}, {}, None)[0]["viterbi_path"])
    state = int(operator.emission_matrix[:, 0].argmax())
    assert ((path == state) == enhancer).mean() > 0.97


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_m23_accessibility_as_marks_joins_other_features(kind):
    signal = values(kind, (30, 2))
    states = annotator(emission=kind).apply({"histone_marks": signal}, {}, None)[0]["state_probabilities"]
    proportions = jnp.ones((30, 4)) / 4
    assert jnp.concatenate([proportions, states], axis=-1).shape == (30, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_m25_jit_gradients_of_every_leaf_and_pass_through(kind):
    operator = annotator(emission=kind, use_cell_type_conditioning=True, num_cell_types=2)
    data = {"histone_marks": values(kind, (2, 40, 2)), "cell_type": np.array([0, 1]), "note": 1}
    result, state, metadata = operator.apply(data, {"step": 3}, "m")
    assert (state, metadata, result["note"]) == ({"step": 3}, "m", 1)
    arrays = {key: data[key] for key in ("histone_marks", "cell_type")}
    jitted = nnx.jit(lambda one, given: one.apply(given, {}, None)[0])(operator, arrays)
    np.testing.assert_allclose(jitted["state_posteriors"], result["state_posteriors"], atol=1e-5)
    for loss in (
        lambda one: one.loss(arrays),
        lambda one: (one.apply(arrays, {}, None)[0]["state_probabilities"][..., 0] ** 2).sum(),
    ):
        for name, leaf in leaves(nnx.jit(nnx.grad(loss))(operator)).items():
            assert np.isfinite(leaf).all(), name
            # Shares of two marks lie on a line, and shifts act on both cell types: every leaf moves something.
            assert np.abs(leaf).max() > 0, name


# --- temperature


def test_temperature_goes_from_the_posterior_to_the_path():
    marks = values("bernoulli", (200, 2), seed=5)
    exact = annotator().apply({"histone_marks": marks}, {}, None)[0]
    cold = annotator(temperature=0.002).apply({"histone_marks": marks}, {}, None)[0]
    warm = annotator(temperature=0.5).apply({"histone_marks": marks}, {}, None)[0]
    np.testing.assert_allclose(cold["state_posteriors"], exact["state_posteriors"], atol=1e-6)
    np.testing.assert_array_equal(cold["viterbi_path"], exact["viterbi_path"])
    share = np.asarray(cold["state_probabilities"])[np.arange(200), np.asarray(cold["viterbi_path"])]
    assert np.mean(share > 0.99) > 0.9  # all but ties
    sharpness = [float((one["state_probabilities"] ** 2).sum(1).mean()) for one in (exact, warm, cold)]
    assert sharpness == sorted(sharpness)


# --- inputs


def test_missing_marks_say_nothing():
    operator = annotator()
    marks = values("bernoulli", (30, 2), seed=6)
    mask = np.ones(marks.shape, bool)
    mask[4:9, 1] = False
    holed = np.where(mask, marks, np.nan)
    by_nan = operator.apply({"histone_marks": holed}, {}, None)[0]
    by_mask = operator.apply({"histone_marks": marks, "mark_mask": mask}, {}, None)[0]
    np.testing.assert_allclose(by_nan["state_posteriors"], by_mask["state_posteriors"], atol=1e-7)
    # Summed over both values of one missing mark, the likelihoods add up.
    one = np.where(mask | (np.arange(30) != 4)[:, None], marks, np.nan)
    parts = []
    for value in (0.0, 1.0):
        filled = one.copy()
        filled[4, 1] = value
        parts.append(float(operator.apply({"histone_marks": filled}, {}, None)[0]["log_likelihood"]))
    whole = float(operator.apply({"histone_marks": one}, {}, None)[0]["log_likelihood"])
    assert whole == pytest.approx(np.logaddexp(*parts), rel=1e-5)


def test_sequences_may_follow_each_other_or_be_padded():
    operator = annotator()
    outputs = one_program(operator)
    first, second = values("bernoulli", (12, 2), seed=7), values("bernoulli", (8, 2), seed=8)
    alone = [outputs({"histone_marks": part}) for part in (first, second)]
    starts = np.zeros(20, bool)
    starts[12] = True
    joined = outputs({"histone_marks": np.concatenate([first, second]), "sequence_start": starts})
    np.testing.assert_allclose(joined["state_posteriors"][12:], alone[1]["state_posteriors"], atol=1e-6)
    total = sum(float(one["log_likelihood"]) for one in alone)
    assert float(joined["log_likelihood"]) == pytest.approx(total, rel=1e-5)
    padded = np.stack([first, np.pad(second, ((0, 4), (0, 0)), constant_values=1.0)])
    batch = outputs({"histone_marks": padded, "length": np.array([12, 8])})
    np.testing.assert_allclose(batch["log_likelihood"], [one["log_likelihood"] for one in alone], rtol=1e-5)
    np.testing.assert_array_equal(batch["viterbi_path"][1, 8:], -1)
    np.testing.assert_array_equal(batch["viterbi_path"][1, :8], alone[1]["viterbi_path"])
    loss = one_program(operator.loss)({"histone_marks": padded, "length": np.array([12, 8])})
    assert float(loss) == pytest.approx(-total / 20, rel=1e-5)
    report = operator.fit({"histone_marks": padded, "length": np.array([12, 8])}, max_steps=3)
    assert report.steps > 0


@pytest.mark.parametrize("dtype", [np.int32, bool, np.float16, "bfloat16"])
def test_types_are_taken_as_given(dtype):
    marks = values("bernoulli", (20, 2))
    given = jnp.asarray(marks).astype(dtype) if dtype == "bfloat16" else marks.astype(dtype)
    result = annotator().apply({"histone_marks": given}, {}, None)[0]
    plain = annotator().apply({"histone_marks": marks}, {}, None)[0]
    low = dtype in (np.float16, "bfloat16")
    assert result["state_posteriors"].dtype == (jnp.asarray(given).dtype if low else jnp.float32)
    difference = np.asarray(result["state_posteriors"], np.float32) - np.asarray(plain["state_posteriors"])
    assert np.abs(difference).max() < (0.05 if low else 1e-6)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (
            "bernoulli",
            2.0,
            r"must be 0 or 1 \(or an expected presence between\) with config.emission='bernoulli', found 2",
        ),
        ("poisson", -1.0, "must be finite and not negative with config.emission='poisson', found -1"),
        ("gaussian", np.inf, "must be finite with config.emission='gaussian', found inf"),
    ],
)
def test_values_that_do_not_fit_are_refused(kind, value, message):
    marks = values(kind, (10, 2))
    marks[3, 1] = value
    with pytest.raises(ValueError, match=message):
        annotator(emission=kind).apply({"histone_marks": marks}, {}, None)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({}, KeyError, r"ChromatinStateAnnotator needs data\['histone_marks'\]"),
        ({"histone_marks": np.ones((5, 3))}, ValueError, r"must have 2 entries along axis -1 \(config.num_marks\)"),
        ({"histone_marks": np.ones((0, 2))}, ValueError, "must have at least one bin"),
        ({"histone_marks": np.ones((5, 2)), "mark_mask": np.ones((4, 2))}, ValueError, "mark_mask"),
        ({"histone_marks": np.ones((5, 2)), "sequence_start": np.ones(4)}, ValueError, "sequence_start"),
        ({"histone_marks": np.ones((5, 2)), "cell_type": 0}, ValueError, "use_cell_type_conditioning=True"),
    ],
)
def test_bad_inputs_are_named(data, error, message):
    with pytest.raises(error, match=message):
        annotator().apply(data, {}, None)


# --- training


def test_em_and_gradient_descent_agree_and_em_is_the_maximum():
    rng = np.random.default_rng(1)
    hidden = np.repeat(rng.integers(0, 2, 60), 25)
    marks = (rng.random((1500, 2)) < np.array([[0.1, 0.2], [0.8, 0.5]])[hidden]).astype(np.float32)
    data = {"histone_marks": marks}
    by_em, by_gradient = annotator(num_states=2), annotator(num_states=2)
    em = by_em.fit(data, max_steps=300, tolerance=1e-9)
    gradient = by_gradient.fit(data, method="gradient", max_steps=400, learning_rate=0.1)
    assert em.history["loss"][-1] <= gradient.history["loss"][-1] + 1e-5
    assert float(by_gradient.loss(data)) == pytest.approx(em.history["loss"][-1], abs=2e-4)
    # At the maximum the gradient is nothing.
    slopes = leaves(nnx.jit(nnx.grad(lambda one: one.loss(data)))(by_em))
    assert all(np.abs(slopes[name]).max() < 2e-4 for name in slopes if "initial" not in name)


def test_cell_types_shift_emissions_when_trained():
    rng = np.random.default_rng(2)
    hidden = np.repeat(rng.integers(0, 2, (2, 40)), 20, axis=1)
    mean = np.array([[[0.05, 0.1], [0.9, 0.5]], [[0.05, 0.1], [0.4, 0.9]]])
    marks = np.stack([(rng.random((800, 2)) < mean[c][hidden[c]]) for c in range(2)]).astype(np.float32)
    data = {"histone_marks": marks, "cell_type": np.array([0, 1])}
    operator = annotator(num_states=2, use_cell_type_conditioning=True, num_cell_types=2)
    np.testing.assert_array_equal(operator.cell_type_shift[...], 0.0)
    report = operator.fit(data, max_steps=60)
    assert report.history["loss"][-1] < report.history["loss"][0] - 0.02
    assert np.abs(operator.cell_type_shift[...]).max() > 0.3
    with pytest.raises(ValueError, match="EM does not train the shifts of cell types"):
        operator.fit(data, method="em")
    with pytest.raises(KeyError, match="cell_type"):
        operator.apply({"histone_marks": marks}, {}, None)


def test_given_parameters_come_back_with_exact_zeros():
    operator = annotator(emission="gaussian")
    transition = np.array([[0.5, 0.5, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]])
    mean, variance = np.arange(6.0).reshape(3, 2), np.full((3, 2), 0.25)
    operator.set_parameters(np.array([1.0, 0.0, 0.0]), transition, mean, variance=variance)
    np.testing.assert_allclose(operator.transition_matrix, transition, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(operator.transition_matrix) == 0, transition == 0)
    np.testing.assert_array_equal(operator.initial_distribution, [1.0, 0.0, 0.0])
    np.testing.assert_allclose(operator.emission_matrix, mean, atol=1e-6)
    with pytest.raises(ValueError, match=r"a gaussian emission takes \['variance'\], found \[\]"):
        operator.set_parameters(np.ones(3) / 3, transition, mean)
    with pytest.raises(ValueError, match=r"transition must be finite and have shape \(3, 3\)"):
        operator.set_parameters(np.ones(3) / 3, transition[:2], mean, variance=variance)


def test_saved_and_loaded_annotators_agree(tmp_path):
    operator = annotator(emission="negative_binomial")
    data = {"histone_marks": values("negative_binomial", (40, 2))}
    operator.fit(data, max_steps=5)
    operator.save(tmp_path / "states.npz")
    loaded = ChromatinStateAnnotator.load(tmp_path / "states.npz")
    for key in ("state_posteriors", "viterbi_path", "log_likelihood"):
        np.testing.assert_array_equal(loaded.apply(data, {}, None)[0][key], operator.apply(data, {}, None)[0][key])
