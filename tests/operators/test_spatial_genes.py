from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist
from scipy.stats import beta, kstest

from diffbio_sc.numerics.spatial.quadratic_forms_jax import log_tail
from diffbio_sc.operators.multiomics.spatial_genes import (
    DifferentiableSpatialGeneDetector,
    SpatialGeneDetectorConfig,
)

SIDE, GENES = 11, 8
SPOTS = SIDE * SIDE
OUTPUTS = {"fsv", "spatial_pvalues", "is_spatial", "smoothed_expression", "spatial_variance"}
COORDINATES = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2).astype(float)


def patterns(seed=0, genes=GENES):
    """The first half of the genes has a pattern in space, the second half has none."""
    rng = np.random.default_rng(seed)
    x = COORDINATES
    pattern = np.stack([np.sin(x @ rng.normal(size=2) * 0.5 + rng.uniform(0, 6)) for _ in range(genes)], 1)
    pattern /= pattern.std(0)
    pattern[:, genes // 2 :] = 0.0
    return pattern


def simulate(seed=0, genes=GENES):
    values = 1.5 * patterns(seed, genes) + np.random.default_rng(seed + 100).normal(size=(SPOTS, genes)) + 3
    return {"spatial_coords": jnp.asarray(COORDINATES, jnp.float32), "expression": jnp.asarray(values, jnp.float32)}


def simulate_counts(seed=0, genes=GENES, strength=0.8, depth_spread=0.5):
    """Negative binomial counts, on depths that follow a pattern of their own."""
    rng = np.random.default_rng(seed + 200)
    depth = np.exp(depth_spread * (rng.normal(size=SPOTS) + np.sin(COORDINATES[:, 0] / 2)))
    mean = rng.uniform(0.5, 5, genes) * np.exp(strength * patterns(seed, genes)) * depth[:, None]
    counts = rng.poisson(mean * rng.gamma(5, 0.2, mean.shape))
    return {
        "spatial_coords": jnp.asarray(COORDINATES, jnp.float32),
        "expression": jnp.asarray(counts, jnp.float32),
        "total_counts": jnp.asarray(1000 * depth, jnp.float32),
    }


def make(seed=0, **config):
    settings = {"n_genes": GENES, "lengthscale": 1.5, "hidden_dims": (6, 4), **config}
    return DifferentiableSpatialGeneDetector(SpatialGeneDetectorConfig(**settings), rngs=nnx.Rngs(seed))


def run(operator, data):
    # Not under one jit: the compiled parts inside serve operators of other settings as well.
    return operator(data)


@pytest.fixture(scope="module")
def data():
    return simulate()


@pytest.fixture(scope="module")
def counts():
    return simulate_counts()


def rbf(lengthscale=1.5):
    return np.exp(-cdist(COORDINATES, COORDINATES, "sqeuclidean") / (2 * lengthscale**2))


def test_m13_config_fields_and_defaults():
    """M13: the fields of the specification, lists made hashable, and inducing points."""
    config = SpatialGeneDetectorConfig()
    assert (config.n_genes, config.lengthscale, config.variance, config.noise_variance) == (2000, 1.0, 1.0, 0.1)
    assert (config.hidden_dims, config.temperature, config.pvalue_threshold) == ((64, 32), 1.0, 0.05)
    assert config.learnable_kernel is True
    assert config.n_inducing_points == 0
    assert hash(SpatialGeneDetectorConfig(hidden_dims=[64, 32])) == hash(config)


def test_m14_inputs_and_outputs(data, counts):
    """M14: the inputs and outputs of the specification and their shapes; total counts are optional."""
    for inputs in (data, counts):
        result, state, metadata = make().apply({**inputs, "extra": 1}, {"a": 2}, None)
        assert set(result) == OUTPUTS | set(inputs) | {"extra"}
        for name in ("fsv", "spatial_pvalues", "is_spatial", "spatial_variance"):
            assert result[name].shape == (GENES,)
        assert result["smoothed_expression"].shape == (SPOTS, GENES)
        for name in ("fsv", "spatial_pvalues", "is_spatial"):
            assert ((result[name] >= 0) & (result[name] <= 1)).all()
        assert (state, metadata) == ({"a": 2}, None)


def test_m14_quick_start_of_the_specification_runs():
    """M14: the Quick Start with only the package renamed."""
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, 5, (60, 2))
    expression = rng.poisson(2.0, (60, 2000))
    expression[:, 0] = rng.poisson(np.exp(1 + np.sin(2 * coords[:, 0])))
    total_counts = expression.sum(1)
    config = SpatialGeneDetectorConfig(
        n_genes=2000,
        lengthscale=1.0,
        variance=1.0,
        noise_variance=0.1,
        hidden_dims=[64, 32],
        temperature=1.0,
        pvalue_threshold=0.05,
    )
    rngs = nnx.Rngs(42)
    detector = DifferentiableSpatialGeneDetector(config, rngs=rngs)
    data = {"spatial_coords": coords, "expression": expression, "total_counts": total_counts}
    result, state, metadata = detector.apply(data, {}, None)
    assert result["fsv"].shape == result["spatial_pvalues"].shape == result["is_spatial"].shape == (2000,)
    assert result["smoothed_expression"].shape == (60, 2000)
    assert result["is_spatial"][0] > 0.5
    assert (result["spatial_pvalues"][1:] < 0.05).mean() < 0.08


def dense_log_posterior(values, log_ratio, kernel):
    """Restricted log-likelihood with the scale at its maximum, plus the log prior, on dense matrices."""
    spots = len(values)
    covariance = np.exp(log_ratio) * kernel + np.eye(spots)
    inverse = np.linalg.inv(covariance)
    level = inverse.sum()
    residual = values - (inverse @ values).sum() / level
    quadratic = residual @ inverse @ residual
    determinants = np.linalg.slogdet(covariance)[1] + np.log(level) - np.log(spots)
    return -0.5 * ((spots - 1) * np.log(quadratic) + determinants) - 0.5 * ((log_ratio - np.log(10.0)) / 3) ** 2


def test_m15_fsv_is_that_of_the_dense_model(data):
    """M15: y = f + e with f of RBF covariance; FSV from the maximum found by scipy on dense matrices."""
    result = run(make(), data)
    kernel = rbf()
    share = (np.trace(kernel) - kernel.sum() / SPOTS) / (SPOTS - 1)
    for gene in range(GENES):
        values = np.asarray(data["expression"][:, gene], float)
        log_ratio = minimize_scalar(
            lambda theta: -dense_log_posterior(values, theta, kernel),  # noqa: B023
            bounds=(-9, 9),
            method="bounded",
            options={"xatol": 1e-6},
        ).x
        ratio = np.exp(log_ratio)
        expected = share * ratio / (share * ratio + 1)
        assert float(result["fsv"][gene]) == pytest.approx(expected, abs=2e-3)
        # The Gaussian process posterior mean about the generalised least squares mean, textbook formula.
        inverse = np.linalg.inv(ratio * kernel + np.eye(SPOTS))
        level = (inverse @ values).sum() / inverse.sum()
        expected = level + ratio * kernel @ inverse @ (values - level)
        np.testing.assert_allclose(result["smoothed_expression"][:, gene], expected, atol=5e-3)
        residual = values - level
        noise = residual @ inverse @ residual / (SPOTS - 1)
        assert float(result["spatial_variance"][gene]) == pytest.approx(share * ratio * noise, rel=0.02)


@pytest.mark.slow
def test_m15_learnable_kernel_changes_results():
    """M15: training finds the lengthscale of the data, and the p-values follow; a fixed kernel is no parameter."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(rbf(2.5) + 1e-8 * np.eye(SPOTS))
    values = root @ rng.normal(size=(SPOTS, 40)) + 0.7 * rng.normal(size=(SPOTS, 40))
    inputs = {"spatial_coords": COORDINATES, "expression": values}
    operator = make(n_genes=40, lengthscale=1.0)
    loss, pvalues = float(operator.loss(inputs)), operator(inputs)["spatial_pvalues"]
    report = operator.fit(inputs, steps=50, learning_rate=0.06)
    assert float(operator.loss(inputs)) < loss
    assert report.steps == len(report.history["loss"]) == 50
    assert float(jnp.exp(operator.log_lengthscale[...])) == pytest.approx(2.5, rel=0.15)
    assert np.abs(operator(inputs)["spatial_pvalues"] - pvalues).max() > 1e-4
    fixed = nnx.to_flat_state(nnx.state(make(learnable_kernel=False), nnx.Param))
    assert {path[0] for path, _ in fixed} == {"correction"}


def test_m15_pvalues_are_the_tail_of_the_null_law(data):
    """M15: against the exact law of the statistic, drawn 400,000 times."""
    kernel = rbf()
    projector = np.eye(SPOTS) - 1 / SPOTS
    spectrum = np.linalg.eigvalsh(projector @ (kernel - np.eye(SPOTS)) @ projector)
    spectrum = np.delete(spectrum, np.abs(spectrum).argmin())
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(SPOTS, GENES - 4)), np.asarray(data["expression"][:, :4])], 1)
    values[:, 4:] = 0.2 * values[:, 4:] + rng.normal(size=(SPOTS, 4))
    operator = make(hidden_dims=())
    found = run(operator, {**data, "expression": values.astype(np.float32)})["spatial_pvalues"]
    centred = values - values.mean(0)
    statistic = ((centred * (kernel @ centred)).sum(0) - (centred**2).sum(0)) / (centred**2).sum(0)
    share = (centred**4).sum(0) / (centred**2).sum(0) ** 2
    statistic = spectrum.mean() + (statistic - spectrum.mean()) * np.sqrt((1 - 3 / (SPOTS + 2)) / (1 - share))
    exceeded = np.zeros(GENES)
    for _ in range(20):
        draws = rng.chisquare(1, (20000, SPOTS - 1))
        exceeded += ((draws @ spectrum / draws.sum(1))[:, None] > statistic).sum(0)
    np.testing.assert_allclose(found, exceeded / 400_000, rtol=0.06, atol=2e-4)
    assert (exceeded > 0).all()


@pytest.mark.parametrize("degrees", [1, 5, 40])
def test_m15_tail_is_valid_far_out(degrees):
    """M15: for two distinct eigenvalues the tail is that of a beta variable, known to 1e-30."""

    spectrum = jnp.array([[1.0, 0.0]])
    multiplicity = jnp.array([float(degrees), 60.0])
    places = np.array([0.05, 0.2, 0.4, 0.6, 0.9])
    found = jax.jit(log_tail)(jnp.broadcast_to(spectrum, (5, 2)), multiplicity, jnp.asarray(places))
    expected = beta.logsf(places, degrees / 2, 30.0)
    assert expected.min() < np.log(1e-12)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.04 if degrees > 1 else 0.1)


@pytest.mark.parametrize("kind", ["values", "counts"])
def test_m15_pvalues_are_uniform_under_permuted_coordinates(kind):
    """M15: genes with patterns, at permuted places, have uniform p-values, also in the tail."""
    genes = 400
    inputs = simulate(seed=1, genes=genes) if kind == "values" else simulate_counts(seed=1, genes=genes)
    operator = make(n_genes=genes, hidden_dims=())
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        places = np.asarray(inputs["spatial_coords"])[rng.permutation(SPOTS)]
        found.append(np.asarray(run(operator, {**inputs, "spatial_coords": places})["spatial_pvalues"]))
    found = np.concatenate(found)
    assert 0.04 < (found < 0.05).mean() < 0.06
    assert 0.006 < (found < 0.01).mean() < 0.015
    assert (found < 0.001).mean() < 0.003
    # Genes share the permutation and the patterns: the distance is that of a smaller sample.
    assert kstest(found, "uniform").statistic < 0.03


def test_m15_depth_pattern_alone_is_not_significant():
    """M15: counts whose rates are constant, on depths that vary in space and by a factor of ten."""
    genes = 800
    inputs = simulate_counts(seed=2, genes=genes, strength=0.0)
    found = np.asarray(run(make(n_genes=genes, hidden_dims=()), inputs)["spatial_pvalues"])
    assert (found < 0.05).mean() < 0.07
    assert (found < 0.01).mean() < 0.02


def spatial_loss(detector, data):
    """Train spatial gene detector, as written in the specification."""
    result, _, _ = detector.apply(data, {}, None)
    fsv_loss = -result["fsv"].mean()
    smooth_loss = jnp.mean((result["smoothed_expression"] - data["expression"]) ** 2)
    return fsv_loss + 0.1 * smooth_loss


@pytest.mark.slow
def test_m16_training_recipe_runs_and_cannot_inflate_pvalues():
    """M16: the recipe lowers its loss; genes without pattern keep their p-values' level."""
    genes = 200
    rng = np.random.default_rng(0)
    null = {**simulate(), "expression": jnp.asarray(rng.normal(size=(SPOTS, genes)), jnp.float32)}
    detector = make(n_genes=genes, hidden_dims=(8,))
    optimizer = nnx.Optimizer(detector, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(detector, optimizer):
        value, gradients = nnx.value_and_grad(spatial_loss)(detector, null)
        optimizer.update(detector, gradients)
        return value

    before = run(detector, null)
    values = [float(step(detector, optimizer)) for _ in range(40)]
    after = run(detector, null)
    assert np.isfinite(values).all()
    assert values[-1] < values[0]
    assert after["fsv"].mean() > before["fsv"].mean()
    assert (after["spatial_pvalues"] < 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / genes)


def test_m16_variances_do_not_enter_the_pvalue(data):
    """M16: a signal variance a thousand times larger raises FSV and leaves every p-value as it is."""
    plain, inflated = run(make(), data), run(make(variance=1000.0), data)
    assert (inflated["fsv"] > plain["fsv"]).all()
    np.testing.assert_array_equal(inflated["spatial_pvalues"], plain["spatial_pvalues"])


def test_m17_interpretation_finds_the_planted_genes(data, counts):
    """M17: is_spatial above one half and the top genes by FSV are those with a pattern, smoothed towards it."""
    for inputs in (data, counts):
        result = run(make(), inputs)
        spatial_genes = np.asarray(result["is_spatial"]) > 0.5
        assert spatial_genes[: GENES // 2].all()
        assert spatial_genes.sum() <= GENES // 2 + 1
        top = np.argsort(np.asarray(result["fsv"]))[::-1][: GENES // 2]
        assert set(top) == set(range(GENES // 2))
        for gene in range(GENES // 2):
            smoothed = np.asarray(result["smoothed_expression"][:, gene])
            truth = patterns()[:, gene]
            expression = np.asarray(inputs["expression"][:, gene])
            assert np.corrcoef(smoothed, truth)[0, 1] > np.corrcoef(expression, truth)[0, 1]
            assert np.corrcoef(smoothed, truth)[0, 1] > 0.85


def test_m25_spatial_genes_contract_under_jit_grad_and_vmap(counts):
    """M25: (data, state, metadata) in and out; jit; nnx.grad through it; vmap over slides."""
    operator = make()
    plain = operator.apply(counts, {}, None)[0]
    differentiate = nnx.value_and_grad(lambda operator: operator(counts)["is_spatial"].sum())
    value, gradients = nnx.jit(differentiate)(operator)
    assert float(value) == pytest.approx(float(plain["is_spatial"].sum()), rel=1e-3)
    assert float(jnp.abs(gradients["log_lengthscale"][...])) > 0
    batch = {key: jnp.stack([value, value[::-1]]) for key, value in counts.items()}
    mapped = jax.jit(jax.vmap(lambda slide: operator(slide)))(batch)
    for name in OUTPUTS:
        atol = 1e-3 * float(jnp.abs(plain[name]).max())
        np.testing.assert_allclose(mapped[name][0], plain[name], atol=atol)
    np.testing.assert_allclose(mapped["fsv"][1], plain["fsv"], atol=1e-3)


@pytest.mark.slow
def test_batches_of_slides_equal_slides_one_by_one(data):
    operator = make()
    shifted = {**data, "expression": data["expression"][::-1]}
    batch = {key: jnp.stack([data[key], shifted[key]])[None] for key in data}
    batched = operator(batch)
    shared = operator({**batch, "spatial_coords": data["spatial_coords"]})
    for number, inputs in enumerate((data, shifted)):
        for name, value in operator(inputs).items():
            atol = 1e-3 * float(jnp.abs(value).max())
            np.testing.assert_allclose(batched[name][0, number], value, atol=atol)
            np.testing.assert_allclose(shared[name][0, number], value, atol=atol)


def objective(operator, inputs):
    result = operator(inputs)
    weights = jnp.arange(1.0, GENES + 1)
    return {
        "fsv": result["fsv"] @ weights,
        "log_p": jnp.log(result["spatial_pvalues"]) @ weights,
        "smoothed": jnp.sin(result["smoothed_expression"]).sum(),
        "variance": result["spatial_variance"].sum(),
        "loss": operator.loss(inputs),
    }


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("values", {"kernel": "matern52", "n_inducing_points": 25}),
        ("counts", {}),
    ],
)
def test_gradients_equal_finite_differences(kind, settings):
    with jax.enable_x64(True):
        inputs = simulate() if kind == "values" else simulate_counts()
        inputs = {key: jnp.asarray(np.asarray(value), jnp.float64) for key, value in inputs.items()}
        # Off the lattice, whose spectrum is degenerate and whose distances have ties: also checked, below.
        inputs["spatial_coords"] += 0.1 * np.random.default_rng(0).normal(size=(SPOTS, 2))
        operator = make(hidden_dims=(), variance=0.7, noise_variance=0.5, **settings)
        names = ("log_lengthscale", "log_variance", "log_noise_variance")
        start = {name: jnp.asarray(float(getattr(operator, name)[...]), jnp.float64) for name in names} | inputs
        graph, state = nnx.split(operator)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state)

        @jax.jit
        def evaluate(point):
            changed = jax.tree.map(lambda leaf: leaf, state)  # variables of this trace
            for name in names:
                changed[name][...] = point[name]
            return objective(nnx.merge(graph, changed), {key: point[key] for key in inputs})

        derivatives = jax.jit(jax.jacrev(evaluate))(start)
        rng = np.random.default_rng(1)
        for name, value in start.items():
            step = rng.normal(size=value.shape)
            step = 1e-5 * np.maximum(np.abs(np.asarray(value)), 1e-2) * step
            above, below = evaluate({**start, name: value + step}), evaluate({**start, name: value - step})
            for output in above:
                expected = float(above[output] - below[output]) / 2
                found = float((derivatives[output][name] * step).sum())
                assert found == pytest.approx(expected, rel=1e-3, abs=1e-9), (name, output)


def test_gradients_are_finite_on_a_lattice_with_coinciding_eigenvalues_and_spots(data):
    places = data["spatial_coords"].at[1].set(data["spatial_coords"][0])
    operator = make(kernel="matern32", hidden_dims=())
    total = jax.grad(lambda places: sum(objective(operator, {**data, "spatial_coords": places}).values()))
    gradient = jax.jit(total)(places)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    "leaf",
    [
        ("log_lengthscale",),
        ("log_variance",),
        ("log_noise_variance",),
        *[("correction", "layers", layer, part) for layer in range(3) for part in ("kernel", "bias")],
    ],
)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(leaf, loss_gradients):
    gradient = loss_gradients[leaf]
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.fixture(scope="module")
def loss_gradients(data):
    gradients = nnx.jit(nnx.grad(lambda operator: operator.loss(data)))(make())
    flat = {path: value[...] for path, value in nnx.to_flat_state(gradients)}
    assert len(flat) == 9
    return flat


def test_untrained_correction_is_exactly_zero(data):
    with_network, without = make()(data), make(hidden_dims=())(data)
    np.testing.assert_array_equal(with_network["smoothed_expression"], without["smoothed_expression"])


def test_temperature_acts_towards_both_ends(data):
    plain = run(make(), data)
    hard = np.asarray(run(make(temperature=1e-4), data)["is_spatial"])
    np.testing.assert_allclose(hard, np.asarray(plain["spatial_pvalues"]) < 0.05, atol=1e-4)
    np.testing.assert_allclose(run(make(temperature=1e6), data)["is_spatial"], 0.5, atol=1e-3)
    log_p = np.log(np.asarray(plain["spatial_pvalues"], float))
    np.testing.assert_allclose(plain["is_spatial"], 1 / (1 + np.exp(log_p - np.log(0.05))), rtol=1e-3)


def test_strong_patterns_keep_a_graded_logarithm_of_p():
    x = COORDINATES
    strong = np.stack([np.sin(x[:, 0] / 2) + noise * np.cos(97 * x[:, 0] * x[:, 1]) for noise in (0.1, 0.2, 0.4)], 1)
    operator = make(n_genes=3, temperature=50.0)
    calls = np.asarray(run(operator, {"spatial_coords": x, "expression": strong})["is_spatial"])
    assert (np.diff(calls) < 0).all()
    assert calls[0] < 1


def test_constant_and_empty_genes_are_not_spatial_and_harm_nothing(data, counts):
    for inputs, constant in ((data, 7.3), (counts, 0.0)):
        changed = {**inputs, "expression": inputs["expression"].at[:, 0].set(0.0).at[:, 1].set(constant)}
        operator = make()
        result = run(operator, changed)
        np.testing.assert_array_equal(result["fsv"][:2], 0.0)
        np.testing.assert_array_equal(result["spatial_pvalues"][:2], 1.0)
        np.testing.assert_allclose(result["smoothed_expression"][:, 1], constant, rtol=1e-5)
        plain = run(operator, inputs)
        np.testing.assert_allclose(result["fsv"][2:], plain["fsv"][2:], atol=1e-4)
        assert all(np.isfinite(value).all() for value in result.values())

        def total(operator, expression):
            inside = {**changed, "expression": expression}  # noqa: B023
            result = operator(inside)
            return operator.loss(inside) + sum(value.sum() for value in result.values())

        gradients = nnx.jit(nnx.grad(total, argnums=(0, 1)))(operator, changed["expression"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_spots_without_counts_are_harmless(counts):
    changed = {
        **counts,
        "expression": counts["expression"].at[5].set(0.0),
        "total_counts": counts["total_counts"].at[5].set(0.0),
    }
    result, plain = run(make(), changed), run(make(), counts)
    assert all(np.isfinite(value).all() for value in result.values())
    np.testing.assert_allclose(result["fsv"], plain["fsv"], atol=0.06)


def test_depth_unit_does_not_matter(counts):
    scaled = {**counts, "total_counts": counts["total_counts"] * 1e3}
    result, plain = run(make(), scaled), run(make(), counts)
    for name in OUTPUTS:
        np.testing.assert_allclose(result[name], plain[name], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_all_inducing_spots_and_two_thirds_of_them_give_nearly_the_exact_answer(data):
    exact = run(make(lengthscale=2.5), data)
    for points, tolerance in ((SPOTS, 1e-6), (80, 0.02)):
        found = run(make(lengthscale=2.5, n_inducing_points=points), data)
        np.testing.assert_allclose(found["fsv"], exact["fsv"], atol=tolerance)
        near = np.abs(np.log10(found["spatial_pvalues"] / exact["spatial_pvalues"]))
        assert (near[GENES // 2 :] < 0.1).all()


def test_three_dimensional_coordinates(data):
    flat = np.column_stack([data["spatial_coords"], np.zeros(SPOTS)])
    np.testing.assert_allclose(
        run(make(), {**data, "spatial_coords": flat})["fsv"], run(make(), data)["fsv"], atol=1e-5
    )


def test_save_and_load_give_the_same_outputs(data, tmp_path):
    operator = make(kernel="matern32")
    operator.log_lengthscale[...] = jnp.float32(0.3)
    operator.save(tmp_path / "operator.npz")
    loaded = DifferentiableSpatialGeneDetector.load(tmp_path / "operator.npz")
    assert loaded.config == operator.config
    expected = run(operator, data)
    for key, value in run(loaded, data).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_genes", 0),
        ("lengthscale", 0.0),
        ("variance", -1.0),
        ("noise_variance", float("nan")),
        ("hidden_dims", (8, 0)),
        ("temperature", 0.0),
        ("pvalue_threshold", 1.0),
        ("learnable_kernel", 1),
        ("kernel", "cosine"),
        ("period", 0.0),
        ("n_inducing_points", -1),
    ],
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"SpatialGeneDetectorConfig.{field}"):
        SpatialGeneDetectorConfig(**{field: value})


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpatialGeneDetectorConfig().n_genes = 3


def test_bad_inputs_name_key_and_shape(data, counts):
    operator = make()
    with pytest.raises(KeyError, match="spatial_coords"):
        operator.apply({"expression": data["expression"]}, {}, None)
    with pytest.raises(ValueError, match=r"expression.*8.*\(121, 7\)"):
        operator.apply({**data, "expression": data["expression"][:, :7]}, {}, None)
    with pytest.raises(ValueError, match=r"spatial_coords.*\(121,\).*\(120,\)"):
        operator.apply({**data, "spatial_coords": data["spatial_coords"][:-1]}, {}, None)
    with pytest.raises(ValueError, match=r"spatial_coords.*2 or 3 columns.*\(121, 1\)"):
        operator.apply({**data, "spatial_coords": data["spatial_coords"][:, :1]}, {}, None)
    with pytest.raises(ValueError, match=r"total_counts.*\(121,\).*\(120,\)"):
        operator.apply({**counts, "total_counts": counts["total_counts"][:-1]}, {}, None)
    with pytest.raises(ValueError, match="at least 5 spots"):
        operator.apply({key: value[:3] for key, value in data.items()}, {}, None)


@pytest.mark.slow
def test_linear_kernel_finds_gradients_as_the_f_test_does():
    # Two columns beyond the mean: the score test of the linear kernel on a round slide is the test of two slopes.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # both directions count the same
    values = rng.normal(size=(200, GENES)) + 0.1 * x[:, :1] * np.arange(GENES)
    found = run(make(kernel="linear", hidden_dims=()), {"spatial_coords": x, "expression": values})
    centred = values - values.mean(0)
    explained = ((x / np.sqrt(199)).T @ centred) ** 2
    share = explained.sum(0) / (centred**2).sum(0)
    expected = np.exp(0.5 * 197 * np.log1p(-share))  # P(Beta(1, 197 / 2) > share)
    assert np.corrcoef(np.log(found["spatial_pvalues"]), np.log(expected))[0, 1] > 0.99
