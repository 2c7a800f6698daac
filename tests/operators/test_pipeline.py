"""Pipelines: what their steps compute by hand, gradients through all steps, one file, and clear errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_program import one_program

from diffbio_sc.operators import Operator, OperatorConfig, Pipeline
from diffbio_sc.operators.epigenomics import (
    ChromatinStateAnnotator,
    ChromatinStateConfig,
    CoverageSmoother,
    CoverageSmootherConfig,
    DifferentiablePeakCaller,
    MarkBinarizer,
    MarkBinarizerConfig,
    PeakCallerConfig,
)
from diffbio_sc.operators.multiomics import (
    DifferentiableMultiOmicsVAE,
    DifferentiableSpatialGeneDetector,
    HiCContactAnalysis,
    HiCContactAnalysisConfig,
    MultiOmicsVAEConfig,
    SpatialDeconvolution,
    SpatialDeconvolutionConfig,
    SpatialGeneDetectorConfig,
)

RNG = np.random.default_rng(0)
STATES = np.repeat([0, 1, 2, 0, 1], 12)
COUNTS = RNG.poisson(np.array([[0.3, 0.4], [7.0, 0.5], [0.6, 5.0]])[STATES]).astype(np.float32)


def of_states():
    return Pipeline(
        {
            # Not in alphabetical order: the order is that of the dict.
            "presence": MarkBinarizer(MarkBinarizerConfig(num_marks=2), rngs=nnx.Rngs(0)),
            "chain": ChromatinStateAnnotator(ChromatinStateConfig(num_states=3, num_marks=2), rngs=nnx.Rngs(0)),
        },
        losses={"chain": 1.0, "presence_bound": -1.0},
    )


def of_peaks():
    return Pipeline(
        {
            "smooth": CoverageSmoother(CoverageSmootherConfig(width=30.0, reach=100), rngs=nnx.Rngs(0)),
            "peaks": DifferentiablePeakCaller(PeakCallerConfig(num_filters=0, mode="narrow"), rngs=nnx.Rngs(0)),
        },
        inputs={"peaks": {"signal": "smoothed_coverage"}},
    )


def of_tissue():
    return Pipeline(
        {
            "composition": SpatialDeconvolution(
                SpatialDeconvolutionConfig(n_cell_types=2, n_genes=6, hidden_dim=0), rngs=nnx.Rngs(0)
            ),
            "genes": DifferentiableSpatialGeneDetector(
                SpatialGeneDetectorConfig(n_genes=6, hidden_dims=(), lengthscale=1.5), rngs=nnx.Rngs(0)
            ),
        },
        inputs={"genes": {"expression": "reconstructed"}},
        losses={"composition": 1.0, "fsv": 0.1},
    )


def tissue():
    place = np.stack(np.meshgrid(np.arange(6), np.arange(5)), -1).reshape(-1, 2).astype(np.float32)
    share = 1 / (1 + np.exp(-(place[:, 0] - 2.5)))
    profiles = RNG.gamma(1.0, 4.0, (2, 6)).astype(np.float32) + 0.5
    mean = 3 * (share[:, None] * profiles[0] + (1 - share[:, None]) * profiles[1])
    return {"spatial_expression": RNG.poisson(mean).astype(np.float32), "reference_profiles": profiles,
            "spatial_coords": place}  # fmt: skip


class TypeProfiles(Operator):
    """Mean of the reconstructed cells of each type; ``tilt`` weighs them by where they lie in the latent space."""

    config_class = OperatorConfig
    required_keys = ("reconstructed", "joint_latent", "cell_types")

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.tilt = nnx.Param(jnp.zeros((2, 2)))

    def __call__(self, data):
        weights = jnp.asarray(data["cell_types"]) * jnp.exp(data["joint_latent"] @ self.tilt[...].T)
        return {"reference_profiles": (weights / weights.sum(0)).T @ data["reconstructed"] + 1e-3}


def of_cells_and_spots():
    pipeline = Pipeline(
        {
            "vae": DifferentiableMultiOmicsVAE(
                MultiOmicsVAEConfig(modality_dims=(8, 10), latent_dim=2, hidden_dim=4, encoder_dim=3), rngs=nnx.Rngs(0)
            ),
            "profiles": TypeProfiles(OperatorConfig(), rngs=nnx.Rngs(0)),
            "spots": SpatialDeconvolution(
                SpatialDeconvolutionConfig(n_cell_types=2, n_genes=8, hidden_dim=0, solver_steps=40), rngs=nnx.Rngs(0)
            ),
        },
        inputs={"profiles": {"reconstructed": "rna_reconstructed"}},
        losses={"spots": 1.0},  # the cells' own bound is left out: gradients come through the profiles alone
    )
    cells = cells_and_spots()
    pipeline.steps["vae"].initialize([cells["rna_counts"], cells["atac_counts"]])
    return pipeline


def cells_and_spots():
    rng = np.random.default_rng(5)
    kind = np.arange(40) % 2
    rna, atac = rng.gamma(1.0, 4.0, (2, 8)) + 1.0, rng.gamma(1.0, 1.0, (2, 10)) + 0.2
    share = rng.dirichlet(np.ones(2), 12)
    return {
        "rna_counts": rng.poisson(rna[kind] * rng.gamma(4.0, 0.25, (40, 8))).astype(np.float32),
        "atac_counts": rng.poisson(atac[kind]).astype(np.float32),
        "cell_types": np.eye(2, dtype=np.float32)[kind],
        "spatial_expression": rng.poisson(5 * share @ rna * rng.lognormal(0, 0.4, 8)).astype(np.float32),
    }


TRACK = {"coverage": RNG.poisson(np.where(np.arange(80) // 10 == 4, 6.0, 1.0)).astype(np.float32)[None]}
CASES = {
    "states": (of_states, lambda: {"mark_counts": COUNTS}, "presence"),
    "peaks": (of_peaks, lambda: {**TRACK, "labels": (np.arange(80) // 10 == 4).astype(np.float32)[None]}, "smooth"),
    "tissue": (of_tissue, tissue, "composition"),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter_of_the_first_operator_as_finite_differences_say(name):
    make, inputs, first = CASES[name]
    pipeline, data = make(), {key: jnp.asarray(value) for key, value in inputs().items()}
    graph, parameters, rest = nnx.split(pipeline, nnx.Param, ...)

    @jax.jit
    def loss(parameters):
        return nnx.merge(graph, parameters, rest).loss(data)

    gradient = nnx.to_pure_dict(jax.grad(loss)(parameters))["steps"][first]
    plain = nnx.to_pure_dict(parameters)
    checked = 0
    for leaf, values in plain["steps"][first].items():
        direction = RNG.choice([-1.0, 1.0], np.shape(values)).astype(np.float32)
        # Large enough for single precision; three-point differences of step h and h / 2, extrapolated to 0.
        ends = {}
        for size in (0.04, 0.02):
            sides = []
            for sign in (1.0, -1.0):
                moved = jax.tree.map(lambda value: value, plain)
                moved["steps"][first][leaf] = values + sign * size * direction
                state = jax.tree.map(lambda value: value, parameters)
                nnx.replace_by_pure_dict(state, moved)
                sides.append(float(loss(state)))
            ends[size] = (sides[0] - sides[1]) / (2 * size)
        expected = (4 * ends[0.02] - ends[0.04]) / 3
        found = float((gradient[leaf] * direction).sum())
        assert found != 0, leaf
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=2e-4, err_msg=leaf)
        checked += 1
    assert checked >= (1 if name == "peaks" else 3)


def test_gradients_of_loop_labels_reach_decay_and_background_as_finite_differences_say():
    bins = 60
    rng = np.random.default_rng(3)
    distance = np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    upper = np.triu(rng.poisson(200.0 / (1.0 + distance)))
    known = np.zeros((bins, bins))
    known[20, 35] = known[35, 20] = 1.0
    with jax.enable_x64(True):
        config = HiCContactAnalysisConfig(resolution=25_000, max_distance=600_000, hidden_dim=2, n_layers=0)
        pipeline = Pipeline({"contacts": HiCContactAnalysis(config, rngs=nnx.Rngs(0))})
        # The estimate of the dispersion is held fixed in gradients.
        pipeline.steps["contacts"].log_dispersion[...] = jnp.asarray(-30.0)
        # With equal biases backgrounds tie, and which one is the largest jumps.
        pipeline.steps["contacts"].background_bias[...] = jnp.asarray([0.0, 0.11, -0.13, 0.07])
        data = {"contact_matrix": jnp.asarray(upper + np.triu(upper, 1).T, jnp.float64), "known_loops": known}
        graph, parameters, rest = nnx.split(pipeline, nnx.Param, ...)
        parameters = jax.tree.map(lambda value: jnp.asarray(value, jnp.float64), parameters)

        @jax.jit
        def loss(parameters):
            return nnx.merge(graph, parameters, rest).loss(data)

        gradient = nnx.to_pure_dict(jax.grad(loss)(parameters))["steps"]["contacts"]
        plain = nnx.to_pure_dict(parameters)
        for leaf in ("decay_correction", "background_bias", "log_shrinkage", "log_filter_width"):
            values = plain["steps"]["contacts"][leaf]
            direction = rng.normal(size=np.shape(values))
            ends = []
            for size in (1e-6, -1e-6):
                moved = jax.tree.map(lambda value: value, plain)
                moved["steps"]["contacts"][leaf] = values + size * direction
                state = jax.tree.map(lambda value: value, parameters)
                nnx.replace_by_pure_dict(state, moved)
                ends.append(float(loss(state)))
            found = float((gradient[leaf] * direction).sum())
            assert found != 0, leaf
            np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-3, err_msg=leaf)


def test_gradients_of_spots_reach_the_encoders_and_decoder_of_cells_as_finite_differences_say():
    """Cells of two modalities -> profiles of types -> composition of spots: the VAE is trained through the spots."""
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        pipeline = of_cells_and_spots()
        data = {key: jnp.asarray(value, jnp.float64) for key, value in cells_and_spots().items()}
        for encoder in pipeline.steps["vae"].encoders:
            # It starts so near zero that hidden layers hardly matter; and a unit that gets nothing is at its kink.
            encoder.last_kernel[...] = 100 * encoder.last_kernel[...]
            encoder.second_bias[...] = jnp.asarray(rng.normal(size=encoder.second_bias.shape), jnp.float32)
        graph, parameters, rest = nnx.split(pipeline, nnx.Param, ...)
        parameters, rest = (
            jax.tree.map(lambda value: value.astype(jnp.float64) if value.dtype == jnp.float32 else value, part)
            for part in (parameters, rest)
        )
        leaves, tree = jax.tree.flatten(parameters)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(parameters)[0]]

        @jax.jit
        def loss(leaves):
            return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest).loss(data)

        gradient = jax.jit(jax.grad(loss))(leaves)
        reached = set()
        for place, path in enumerate(paths):
            direction = rng.normal(size=leaves[place].shape)
            found = float((gradient[place] * direction).sum())
            ends = [
                float(loss([*leaves[:place], leaves[place] + size * direction, *leaves[place + 1 :]]))
                for size in (3e-4, -3e-4)
            ]
            np.testing.assert_allclose(found, (ends[0] - ends[1]) / 6e-4, rtol=2e-3, atol=3e-7, err_msg=path)
            if found != 0:
                reached.add(path)
    # All of both encoders and of the decoder of RNA; the other decoder and the dispersion have no say in the profiles.
    for part in ("['encoders'][0]", "['encoders'][1]", "['decoders'][0]", "['tilt']", "['log_platform']"):
        names = [path for path in paths if part in path]
        assert names, part
        assert [path for path in names if path not in reached and "log_inverse_dispersion" not in path] == [], part
    assert not [path for path in reached if "['decoders'][1]" in path]


def test_outputs_and_loss_are_those_of_the_steps_by_hand():
    pipeline, data = of_peaks(), {**TRACK, "labels": np.zeros((1, 80), np.float32)}
    smooth, peaks = pipeline.steps["smooth"], pipeline.steps["peaks"]
    smoothed = one_program(smooth)(data)["smoothed_coverage"]
    expected = one_program(peaks)({"signal": smoothed})
    result, state, metadata = pipeline.apply({**data, "note": 7}, {"a": 1}, "m")
    np.testing.assert_array_equal(result["smoothed_coverage"], smoothed)
    np.testing.assert_array_equal(result["peak_scores"], expected["peak_scores"])
    np.testing.assert_array_equal(result["coverage"], data["coverage"])
    assert (result["note"], state, metadata) == (7, {"a": 1}, "m")
    np.testing.assert_allclose(pipeline.loss(data), peaks.loss({**data, "signal": smoothed}), rtol=1e-6)
    jitted = nnx.jit(lambda one, data: one(data))(pipeline, {"coverage": jnp.asarray(TRACK["coverage"])})
    np.testing.assert_allclose(jitted["peak_scores"], expected["peak_scores"], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_steps_and_means_of_outputs():
    pipeline, data = of_states(), {"mark_counts": COUNTS}
    presence, chain = pipeline.steps["presence"], pipeline.steps["chain"]
    found = one_program(presence)(data)
    terms = one_program(pipeline.loss_terms)(data)
    np.testing.assert_allclose(terms["chain"], one_program(chain.loss)(found), rtol=1e-6)
    np.testing.assert_allclose(terms["presence_bound"], found["presence_bound"].mean(), rtol=1e-6)
    np.testing.assert_allclose(one_program(pipeline.loss)(data), terms["chain"] - terms["presence_bound"], rtol=1e-6)


def exact_log_likelihood(pipeline, counts):
    """Of counts, by summing over all paths and all presences."""
    import itertools

    import scipy.stats

    presence, chain = pipeline.steps["presence"], pipeline.steps["chain"]
    value = {name: np.exp(np.asarray(getattr(presence, f"log_{name}")[...], float)) for name in
             ("background", "excess", "dispersion")}  # fmt: skip
    low = counts.mean(0) * value["background"]
    laws = [
        scipy.stats.nbinom.pmf(counts, 1 / dispersion, 1 / (1 + dispersion * mean))
        for mean, dispersion in zip((low, low * (1 + value["excess"])), value["dispersion"], strict=True)
    ]
    initial, transition, emission = (
        np.asarray(one, float) for one in (chain.initial_distribution, chain.transition_matrix, chain.emission_matrix)
    )
    total = 0.0
    for path in itertools.product(range(3), repeat=len(counts)):
        weight = initial[path[0]] * np.prod([transition[a, b] for a, b in itertools.pairwise(path)])
        given = emission[list(path)]
        total += weight * np.prod((1 - given) * laws[0] + given * laws[1])
    return np.log(total)


def test_the_loss_of_soft_presence_and_states_bounds_the_exact_likelihood_of_the_counts():
    pipeline, counts = of_states(), COUNTS[9:15]
    exact = exact_log_likelihood(pipeline, counts)
    assert -len(counts) * float(one_program(pipeline.loss)({"mark_counts": counts})) < exact
    pipeline.fit({"mark_counts": counts}, max_epochs=150, learning_rate=0.05)
    exact = exact_log_likelihood(pipeline, counts)
    bound = -len(counts) * float(one_program(pipeline.loss)({"mark_counts": counts}))
    assert exact - 1.0 < bound < exact


def test_fit_in_turn_is_each_fit_by_hand_and_joint_training_goes_on_from_there():
    data = {"mark_counts": COUNTS}
    pipeline, by_hand = of_states(), of_states()
    reports = pipeline.fit_in_turn(data, {"presence": {"steps": 20}})
    presence, chain = by_hand.steps["presence"], by_hand.steps["chain"]
    presence.fit(data, steps=20)
    chain.fit(presence(data))
    np.testing.assert_array_equal(
        pipeline.steps["chain"].emission_logits[...], by_hand.steps["chain"].emission_logits[...]
    )
    assert list(reports) == ["presence", "chain"]
    before = float(pipeline.loss(data))
    report = pipeline.fit(data, max_epochs=30, learning_rate=0.02)
    assert float(pipeline.loss(data)) < before - 0.01
    np.testing.assert_allclose(report.history["loss"][0], before, rtol=1e-5)
    threshold = np.asarray(presence.log_threshold_factor[...])
    by_hand.fit(data, max_epochs=3, wrt=nnx.All(nnx.Param, nnx.PathContains("chain")))
    np.testing.assert_array_equal(presence.log_threshold_factor[...], threshold)
    assert list(of_states().fit_in_turn(data, {"presence": None})) == ["chain"]


def test_a_pipeline_is_saved_and_read_as_one(tmp_path):
    pipeline, data = of_states(), {"mark_counts": COUNTS}
    pipeline.fit(data, max_epochs=3)
    pipeline.save(tmp_path / "states.npz")
    read = Pipeline.load(tmp_path / "states.npz")
    assert read.config == pipeline.config
    for name, value in pipeline(data).items():
        np.testing.assert_array_equal(read(data)[name], value)
    assert float(read.loss(data)) == float(pipeline.loss(data))
    with pytest.raises(ValueError, match="holds a Pipeline, not a MarkBinarizer"):
        MarkBinarizer.load(tmp_path / "states.npz")


class Doubler(Operator):
    required_keys = ("x",)

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.factor = nnx.Param(jnp.float32(2.0))

    def __call__(self, data):
        return {"y": self.factor[...] * jnp.asarray(data["x"])}


def doubler():
    return Doubler(OperatorConfig(), rngs=nnx.Rngs(0))


def test_own_operators_are_steps_and_found_again_by_their_class(tmp_path):
    pipeline = Pipeline(
        {"b": doubler(), "a": doubler()}, inputs={"a": {"x": "y"}}, outputs={"a": {"y": "z"}}, losses={"z": 1.0}
    )
    np.testing.assert_array_equal(pipeline.apply({"x": np.ones(2)})[0]["z"], [4.0, 4.0])
    pipeline.save(tmp_path / "own.npz")
    assert float(Pipeline.load(tmp_path / "own.npz").loss({"x": np.ones(2)})) == 4.0
    unknown = pipeline.config.to_dict()
    unknown["steps"] = [("b", "Tripler", "{}")]
    unknown["inputs"] = unknown["outputs"] = []
    with pytest.raises(ValueError, match="no operator 'Tripler': import the module that defines it"):
        Pipeline.from_config(type(pipeline.config).from_dict(unknown), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Pipeline({}), ValueError, "at least one operator"),
        (lambda: Pipeline({"a": 3}), TypeError, r"steps\['a'\] must be an operator, found int"),
        (lambda: Pipeline({"a": doubler()}, inputs={"b": {"x": "y"}}), ValueError, r"not there: \['b'\]"),
        (lambda: Pipeline({"a": doubler()}, losses={}), ValueError, "losses must name"),
        (lambda: Pipeline({"a": doubler(), "b": doubler()})({"x": np.ones(1)}), ValueError, r"'b' puts out \['y'\]"),
        (lambda: Pipeline({"a": doubler()}, inputs={"a": {"x": "w"}})({"x": 1.0}), KeyError, r"reads \['w'\]"),
        (lambda: Pipeline({"a": doubler()}, outputs={"a": {"q": "w"}})({"x": 1.0}), KeyError, r"names \['q'\]"),
        (lambda: Pipeline({"a": doubler()}, losses={"q": 1.0}).loss({"x": 1.0}), KeyError, r"losses names \['q'\]"),
        (lambda: Pipeline({"a": doubler()}).apply({"w": 1.0}), KeyError, r"needs data\['x'\]"),
        (lambda: Pipeline({"a": doubler()}).fit_in_turn({"x": 1.0}, {"b": {}}), ValueError, r"not there: \['b'\]"),
    ],
)
def test_errors_name_the_step_and_what_is_missing(make, error, match):
    with pytest.raises(error, match=match):
        make()
