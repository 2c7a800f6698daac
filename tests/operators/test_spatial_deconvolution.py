from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_programs import compiled_programs
from flax import nnx
from scipy.optimize import nnls

from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig

TYPES, GENES, SPOTS = 4, 60, 30


def simulate(seed=0, *, spots=SPOTS, genes=GENES, types=TYPES, platform=0.0, depth=4000.0):
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.4, 1.0, (types, genes)) + 0.01
    profiles *= rng.uniform(50, 150, types)[:, None] / profiles.sum(1, keepdims=True)
    truth = np.zeros((spots, types))
    for spot in range(spots):
        present = rng.choice(types, 2, replace=False)
        truth[spot, present] = rng.dirichlet(np.ones(2))
    mean = truth @ (profiles * rng.lognormal(0, platform, genes))
    counts = rng.poisson(mean * depth / mean.sum(1, keepdims=True))
    data = {
        "spatial_expression": jnp.asarray(counts, jnp.float32),
        "reference_profiles": jnp.asarray(profiles, jnp.float32),
    }
    return data, truth


def make(seed=0, **config):
    settings = {"n_cell_types": TYPES, "n_genes": GENES, "hidden_dim": 8, **config}
    return SpatialDeconvolution(SpatialDeconvolutionConfig(**settings), rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def data():
    return simulate()[0]


def test_m1_importable_and_fully_differentiable(data):
    """M1: importable from operators.multiomics; gradients reach both inputs."""

    def objective(counts, profiles):
        inputs = {"spatial_expression": counts, "reference_profiles": profiles}
        return (make()(inputs)["proportions"][:, 0] ** 2).sum()

    gradients = jax.grad(objective, argnums=(0, 1))(data["spatial_expression"], data["reference_profiles"])
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_m4_config_fields_and_keys(data):
    """M4: defaults of the specification, its inputs, its outputs and their shapes."""
    config = SpatialDeconvolutionConfig()
    assert (config.n_cell_types, config.n_genes, config.hidden_dim, config.temperature) == (10, 2000, 128, 1.0)
    result, state, metadata = make().apply({**data, "extra": 1}, {"a": 2}, None)
    assert result["proportions"].shape == (SPOTS, TYPES)
    assert result["reconstructed"].shape == (SPOTS, GENES)
    assert result["spatial_expression"] is data["spatial_expression"]
    assert result["extra"] == 1
    assert state == {"a": 2}
    assert metadata is None


def test_m5_proportions_solve_the_regression():
    """M5: X is close to sum_k pi_k R_k; proportions are on the simplex; agreement with scipy's NNLS without noise."""
    data, _ = simulate(seed=3, depth=1e6)
    result = make().apply(data, {}, None)[0]
    proportions = np.asarray(result["proportions"])
    assert (proportions >= 0).all()
    np.testing.assert_allclose(proportions.sum(1), 1, atol=1e-6)
    counts, profiles = (np.asarray(data[key], float) for key in ("spatial_expression", "reference_profiles"))
    expected = np.stack([nnls(profiles.T, row)[0] for row in counts])
    np.testing.assert_allclose(proportions, expected / expected.sum(1, keepdims=True), atol=0.01)
    scale = np.asarray(result["abundance"]).sum(1, keepdims=True)
    np.testing.assert_allclose(result["reconstructed"], scale * (proportions @ profiles), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.asarray(result["reconstructed"]).sum(1), counts.sum(1), rtol=0.01)


def test_m5_temperature_acts_towards_both_ends(data):
    """M5: temperature 1 is the regression, towards 0 the largest type alone, large the types present evenly."""
    plain = np.asarray(make()(data)["proportions"])
    hard = np.asarray(make(temperature=1e-3)(data)["proportions"])
    clear = np.sort(plain, 1)[:, -1] - np.sort(plain, 1)[:, -2] > 0.02
    assert clear.sum() > 20
    np.testing.assert_allclose(hard[clear], np.eye(TYPES)[plain.argmax(1)][clear], atol=1e-4)
    even = np.asarray(make(temperature=1e4)(data)["proportions"])
    present = plain > 0
    np.testing.assert_allclose(even, present / present.sum(1, keepdims=True), atol=5e-3)
    half = np.asarray(make(temperature=2.0)(data)["proportions"])
    np.testing.assert_allclose(half, np.sqrt(plain) / np.sqrt(plain).sum(1, keepdims=True), atol=1e-4)


def test_m6_training_recipe_of_the_specification_runs_and_lowers_its_loss(data):
    """M6: reconstruction + entropy as a user-written loss on the operator, trained through nnx.grad."""
    import optax

    def deconv_loss(deconv, spatial_expr, reference):
        result, _, _ = deconv.apply({"spatial_expression": spatial_expr, "reference_profiles": reference}, {}, None)
        recon_loss = jnp.mean((result["reconstructed"] - spatial_expr) ** 2)
        entropy = -jnp.sum(result["proportions"] * jnp.log(result["proportions"] + 1e-8))
        return recon_loss - 0.01 * entropy

    deconv = make()
    optimizer = nnx.Optimizer(deconv, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(deconv, optimizer):
        value, gradients = nnx.value_and_grad(deconv_loss)(
            deconv, data["spatial_expression"], data["reference_profiles"]
        )
        optimizer.update(deconv, gradients)
        return value

    values = [float(step(deconv, optimizer)) for _ in range(20)]
    assert np.isfinite(values).all()
    assert values[-1] < values[0]


def test_m6_sign_of_the_entropy_term(data):
    """M6: the recipe's minus sign rewards entropy (evens out); a plus sign gives sparse proportions."""
    import optax

    def entropy_after(sign):
        deconv = make()
        optimizer = nnx.Optimizer(deconv, optax.adam(3e-3), wrt=nnx.Param)

        def entropy(deconv):
            proportions = deconv(data)["proportions"]
            return -jnp.sum(proportions * jnp.log(proportions + 1e-8), -1).mean()

        @nnx.jit
        def step(deconv, optimizer):
            optimizer.update(deconv, nnx.grad(lambda deconv: sign * entropy(deconv))(deconv))

        for _ in range(20):
            step(deconv, optimizer)
        return float(entropy(deconv))

    assert entropy_after(+1.0) < entropy_after(-1.0) - 0.05


def test_m25_contract_under_jit_grad_and_vmap(data):
    """M25: (data, state, metadata) in and out; nnx.grad through it; jit."""
    operator = make()
    plain = operator.apply(data, {}, None)[0]["proportions"]
    jitted = nnx.jit(lambda operator, data: operator.apply(data, {}, None)[0]["proportions"])(operator, data)
    np.testing.assert_allclose(jitted, plain, atol=1e-5)
    one_spot = lambda row: operator({**data, "spatial_expression": row})["proportions"]  # noqa: E731
    np.testing.assert_allclose(jax.vmap(one_spot)(data["spatial_expression"]), plain, atol=1e-5)
    gradients = nnx.grad(lambda operator: operator.loss(data))(operator)
    assert len(jax.tree.leaves(gradients)) == 7


def test_quick_start_of_the_specification_runs():
    spot_expression = np.random.default_rng(0).poisson(2.0, (20, 2000))
    cell_type_profiles = np.random.default_rng(1).gamma(1.0, 1.0, (10, 2000))
    config = SpatialDeconvolutionConfig(n_cell_types=10, n_genes=2000, hidden_dim=128, temperature=1.0)
    rngs = nnx.Rngs(42)
    deconv = SpatialDeconvolution(config, rngs=rngs)
    data = {"spatial_expression": spot_expression, "reference_profiles": cell_type_profiles}
    result, _, _ = deconv.apply(data, {}, None)
    np.testing.assert_allclose(result["proportions"].sum(1), 1, atol=1e-5)
    assert result["reconstructed"].shape == (20, 2000)


def test_every_parameter_has_a_finite_gradient_that_is_not_zero(data):
    operator = make()
    operator.fit(data)
    gradients = nnx.grad(lambda operator: operator.loss(data))(operator)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(gradients)[0]]
    for name, gradient in zip(names, jax.tree.leaves(gradients), strict=True):
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_loss_gradient_equals_finite_differences(data):
    # Through the implicit derivative of the regression and everything after it.
    operator = make(solver_steps=30)
    gradient = nnx.grad(lambda operator: operator.loss(data))(operator)
    direction = np.random.default_rng(0).normal(size=GENES).astype(np.float32)
    base = operator.log_platform[...]

    def loss_at(step):
        operator.log_platform[...] = base + step * direction
        return float(operator.loss(data))

    step = 3e-3
    expected = (loss_at(step) - loss_at(-step)) / (2 * step)
    found = float((gradient["log_platform"][...] * direction).sum())
    assert found == pytest.approx(expected, rel=0.02)


def test_untrained_correction_is_exactly_zero(data):
    with_network, without = make()(data), make(hidden_dim=0)(data)
    np.testing.assert_array_equal(with_network["proportions"], without["proportions"])


def test_a_trained_correction_takes_part(data):
    operator = make()
    assert operator.correction.is_zero()
    with compiled_programs() as programs:
        before = operator(data)["proportions"]
    assert sum("_compiled" in program for program in programs) <= 1  # none if another test has compiled it
    assert len(programs) <= 3
    kernel = operator.correction.layers[1].kernel
    kernel[...] = kernel[...].at[:, 0].add(0.05)  # of one type
    assert not operator.correction.is_zero()
    assert np.abs(operator(data)["proportions"] - before).max() > 1e-3


def test_fit_lowers_the_loss_and_the_error():
    data, truth = simulate(seed=5, platform=0.7, spots=200)
    operator = make()
    before, error_before = float(operator.loss(data)), np.abs(operator(data)["proportions"] - truth).mean()
    report = operator.fit(data)
    assert float(operator.loss(data)) < before
    assert np.abs(operator(data)["proportions"] - truth).mean() < 0.6 * error_before
    assert 3 <= report.steps == len(report.history["deviance"]) <= 30
    assert report.history["deviance"][-1] < report.history["deviance"][0]


def test_platform_effect_is_recovered():
    data, truth = simulate(seed=6, platform=0.7, spots=200)
    operator = make()
    operator.fit(data)
    counts, profiles = (np.asarray(data[key], float) for key in ("spatial_expression", "reference_profiles"))
    plain = truth @ profiles
    plain *= (counts.sum(1) / plain.sum(1))[:, None]
    expected = np.log(counts.sum(0) / plain.sum(0))  # oracle: composition known
    found = np.asarray(operator.log_platform[...])
    expressed = counts.sum(0) > 200
    assert np.corrcoef(found[expressed], expected[expressed])[0, 1] > 0.95


def test_unbatched_and_batched_inputs_agree(data):
    operator = make()
    whole = operator(data)["proportions"]
    single = operator({**data, "spatial_expression": data["spatial_expression"][3]})
    assert single["proportions"].shape == (TYPES,)
    assert single["reconstructed"].shape == (GENES,)
    np.testing.assert_allclose(single["proportions"], whole[3], atol=1e-5)
    batches = operator({**data, "spatial_expression": data["spatial_expression"].reshape(3, 10, GENES)})
    np.testing.assert_allclose(batches["proportions"].reshape(SPOTS, TYPES), whole, atol=1e-5)


def test_depth_of_spots_and_scale_of_profiles_do_not_change_proportions(data):
    operator = make()
    base = operator(data)["proportions"]
    scaled = operator({**data, "reference_profiles": data["reference_profiles"] * 1e-3})["proportions"]
    np.testing.assert_allclose(scaled, base, atol=1e-4)


def test_spot_without_counts_is_even_and_harms_no_gradient(data):
    counts = data["spatial_expression"].at[0].set(0.0)
    operator = make()
    result = operator({**data, "spatial_expression": counts})
    np.testing.assert_allclose(result["proportions"][0], 1 / TYPES, atol=1e-6)
    np.testing.assert_array_equal(result["reconstructed"][0], 0.0)
    gradients = nnx.grad(lambda operator: operator.loss({**data, "spatial_expression": counts}))(operator)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_save_and_load_give_the_same_outputs(data, tmp_path):
    operator = make()
    operator.fit(data)
    operator.save(tmp_path / "operator.npz")
    loaded = SpatialDeconvolution.load(tmp_path / "operator.npz")
    assert loaded.config == operator.config
    for key, value in operator(data).items():
        np.testing.assert_array_equal(value, loaded(data)[key])


def test_unknown_signature_is_that_of_the_missing_type():
    data, truth = simulate(seed=8, spots=200, types=5, depth=8000)
    counts, profiles = np.asarray(data["spatial_expression"]), np.asarray(data["reference_profiles"])
    operator = make()
    operator.fit_signatures(counts, profiles[:4])
    found = operator.unknown_signature(counts, profiles[:4]).signature
    similarity = [np.corrcoef(found, profile)[0, 1] for profile in profiles]
    assert int(np.argmax(similarity)) == 4
    assert similarity[4] > 0.8


def spots_with_a_common_type(seed=1):
    """Three spots of five hold a fifth to all of the fifth type; platforms differ by a factor for each gene."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.3, 1.0, (5, 60)) + 0.02
    profiles /= profiles.sum(1, keepdims=True)
    share = rng.dirichlet(np.ones(4), 200)
    missing = np.where(rng.random(200) < 0.6, rng.uniform(0.2, 1.0, 200), 0.0)[:, None]
    factor = rng.lognormal(0, 0.3, 60)
    mean = np.hstack([(1 - missing) * share, missing]) @ (profiles * factor)
    counts = rng.poisson(3000 * mean / mean.sum(1, keepdims=True)).astype(np.float32)
    return counts, profiles.astype(np.float32), missing[:, 0] * (profiles[4] @ factor) / mean.sum(1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_unknown_signature_of_a_type_that_most_spots_have(seed):
    """Its own genes are in excess of the reference; the factors between platforms give back what they took of it."""
    counts, profiles, missing = spots_with_a_common_type(seed)
    operator = make(n_cell_types=4, n_genes=60)
    operator.fit_signatures(counts, profiles[:4], refine=False)
    found = operator.unknown_signature(counts, profiles[:4])
    relative = profiles[4] / counts.mean(0)
    assert np.corrcoef(found.signature / counts.mean(0), relative)[0, 1] > 0.8
    assert np.corrcoef(found.log_factor, relative)[0, 1] < -0.5
    own = operator.platform_signatures(profiles[:4])
    solver = dataclasses.replace(operator.solver(profiles[:4]), error=None)

    def share(signatures):
        rna = dataclasses.replace(solver, signatures=signatures)(counts).weights * signatures.sum(1)
        return rna[:, -1] / rna.sum(1)

    assert np.corrcoef(share(found.beside(own)), missing)[0, 1] > 0.98
    assert np.abs(share(found.beside(own)) - missing).mean() < 0.1


def test_a_signature_more_pays_only_where_a_type_is_missing():
    counts, profiles, _ = spots_with_a_common_type()
    operator = make(n_cell_types=4, n_genes=60)
    operator.fit_signatures(counts, profiles[:4], refine=False)
    assert operator.unknown_pays(counts, profiles[:4])
    operator = make(n_cell_types=5, n_genes=60)
    operator.fit_signatures(counts, profiles, refine=False)
    assert not operator.unknown_pays(counts, profiles)


def test_factors_stay_at_one_without_platform_effect():
    counts, profiles, _ = spots_with_a_common_type()
    operator = make(n_cell_types=4, n_genes=60)
    operator.fit_signatures(counts, profiles[:4], refine=False, platform_effect=False)
    np.testing.assert_array_equal(operator.unknown_signature(counts, profiles[:4]).log_factor, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_genes", 0), ("n_cell_types", 2.5), ("temperature", 0.0), ("dispersion", -1.0), ("hidden_dim", -1)],
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"SpatialDeconvolutionConfig.{field}"):
        SpatialDeconvolutionConfig(**{field: value})


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpatialDeconvolutionConfig().n_genes = 3


def test_bad_inputs_name_key_and_shape(data):
    operator = make()
    with pytest.raises(KeyError, match="reference_profiles"):
        operator.apply({"spatial_expression": data["spatial_expression"]}, {}, None)
    with pytest.raises(ValueError, match=r"reference_profiles.*\(4, 60\).*\(3, 60\)"):
        operator.apply({**data, "reference_profiles": data["reference_profiles"][:3]}, {}, None)
    with pytest.raises(ValueError, match=r"spatial_expression.*60.*\(30, 50\)"):
        operator.apply({**data, "spatial_expression": data["spatial_expression"][:, :50]}, {}, None)
    with pytest.raises(ValueError, match="at least one spot"):
        operator.fit({**data, "spatial_expression": jnp.zeros((5, GENES))})
