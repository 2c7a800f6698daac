"""HiCContactAnalysis: the specification's statements, the engines' numbers, gradients, training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from flax import nnx

from diffbio_sc.engines.contacts_balance import balance_map
from diffbio_sc.engines.contacts_compartments import compartments_map
from diffbio_sc.engines.contacts_expected import expected_map
from diffbio_sc.engines.contacts_insulation import insulation_map
from diffbio_sc.genome.contact_map import ContactMap
from diffbio_sc.numerics.genome import loops as loop_numerics
from diffbio_sc.numerics.genome.bands_jax import band_of_matrix, band_of_pixel_list, matrix_of_band
from diffbio_sc.numerics.genome.pixels import cis_rows
from diffbio_sc.operators.multiomics import HiCContactAnalysis, HiCContactAnalysisConfig
from diffbio_sc.operators.multiomics.contact_training import calibrated, loop_cross_entropy
from diffbio_sc.operators.multiomics.hic_contacts import _bounded

N = 120


def simulated(seed: int = 0, depth: float = 150.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    at = np.arange(N)
    distance = np.abs(np.subtract.outer(at, at))
    bias = rng.lognormal(0.0, 0.3, N)
    sign = np.where((at // 20) % 2 == 0, 1.0, -1.0)
    domain = (at[:, None] // 40) == (at[None] // 40)
    mean = depth / (1.0 + distance) ** 0.9 * np.exp(0.4 * np.outer(sign, sign)) * np.where(domain, 1.6, 1.0)
    mean[10:13, 34:37] *= 4.0
    upper = np.triu(rng.poisson(mean * np.outer(bias, bias)))
    upper[77] = 0
    upper[:, 77] = 0
    return upper + np.triu(upper, 1).T


@pytest.fixture(scope="module")
def matrix():
    return simulated()


def small(**options) -> HiCContactAnalysis:
    return HiCContactAnalysis(HiCContactAnalysisConfig(**{"hidden_dim": 4, "n_layers": 1, **options}), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def operator():
    return HiCContactAnalysis(HiCContactAnalysisConfig(), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def result(operator, matrix):
    return operator.apply({"contact_matrix": matrix}, {}, None)[0]


@pytest.fixture(scope="module")
def engine(matrix):
    contact_map = ContactMap(
        sp.csr_array(np.triu(matrix).astype(np.int32)),
        np.zeros(N, np.int32),
        ("chr1",),
        np.arange(N) * 10_000,
        (np.arange(N) + 1) * 10_000,
    )
    weights = balance_map(contact_map).weights
    return contact_map, weights, expected_map(contact_map, weights)


@pytest.mark.slow
def test_m1_importable_and_differentiable(operator, matrix):
    def total(counts):
        found = operator.apply({"contact_matrix": counts}, {}, None)[0]
        return sum(
            (found[key] ** 2).sum() for key in ("normalized_contacts", "compartments", "tad_boundaries", "loop_scores")
        )

    gradient = jax.grad(total)(jnp.asarray(matrix, jnp.float32))
    assert np.isfinite(np.asarray(gradient)).all()
    assert (gradient != 0).mean() > 0.5


def test_m7_config():
    config = HiCContactAnalysisConfig()
    assert (config.resolution, config.hidden_dim, config.n_layers, config.distance_decay) == (10_000, 64, 4, True)
    for field, bad in (
        ("resolution", 0),
        ("hidden_dim", 1.5),
        ("n_layers", -1),
        ("distance_decay", 2),
        ("windows", (15_000,)),
        ("gamma", 2.0),
        ("boundary_form", "other"),
        ("temperature", 0.0),
    ):
        with pytest.raises(ValueError, match=field):
            HiCContactAnalysisConfig(**{field: bad})


def test_m8_quick_start_as_printed(matrix):
    hic_matrix = matrix
    config = HiCContactAnalysisConfig(
        resolution=10000,
        hidden_dim=64,
        n_layers=4,
        distance_decay=True,
    )
    rngs = nnx.Rngs(42)
    hic_analysis = HiCContactAnalysis(config, rngs=rngs)
    data = {"contact_matrix": hic_matrix}
    result, state, metadata = hic_analysis.apply(data, {}, None)
    assert result["normalized_contacts"].shape == (N, N)
    assert result["compartments"].shape == (N,)
    assert result["tad_boundaries"].shape == (N,)
    assert result["loop_scores"].shape == (N, N)
    assert result["contact_matrix"] is hic_matrix
    assert (state, metadata) == ({}, None)
    assert set(np.argsort(-np.asarray(result["tad_boundaries"]))[:2]) == {40, 80}
    best = np.unravel_index(np.argmax(np.triu(result["loop_scores"])), (N, N))
    assert max(abs(best[0] - 11), abs(best[1] - 35)) <= 1
    np.testing.assert_array_equal(result["loop_scores"], result["loop_scores"].T)
    for key in ("compartments", "tad_boundaries", "loop_scores"):
        assert (np.abs(result[key]) <= 1).all()


def test_m9_contacts_are_observed_over_the_engines_expectation(result, engine, matrix):
    _, weights, (decay,) = engine
    np.testing.assert_allclose(result["balancing_weights"], np.nan_to_num(weights), rtol=1e-3)
    exposure = np.nan_to_num(1.0 / weights)
    distance = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    expected = np.nan_to_num(decay.value)[distance] * np.outer(exposure, exposure)
    np.testing.assert_allclose(result["expected_contacts"], expected, rtol=0.02)
    inside = expected > 0
    ratio = np.where(inside, matrix / np.where(inside, expected, 1.0), 0.0)
    np.testing.assert_allclose(result["normalized_contacts"], ratio, rtol=0.02)
    assert (np.asarray(result["normalized_contacts"])[77] == 0).all()


def test_m9_without_decay_all_pairs_are_expected_alike(matrix):
    found = small(distance_decay=False).apply({"contact_matrix": matrix})[0]
    balanced = np.asarray(found["expected_contacts"]) * np.outer(*[found["balancing_weights"]] * 2)
    values = balanced[balanced > 0]
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


@pytest.mark.slow
def test_m9_resolution_gives_lengths_in_base_pairs(matrix):
    coarse = small(resolution=25_000, max_distance=500_000).apply({"contact_matrix": matrix})[0]
    distance = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    floor = float(coarse["loop_scores"].min())
    scored = np.asarray(coarse["loop_scores"]) > floor
    assert scored[distance == 20].any()
    assert not scored[distance > 20].any()
    same = small(windows=(100_000, 200_000))
    assert same.config.windows_in_bins == small().config.windows_in_bins == (10, 20)


def test_m10_compartments_are_the_engines_eigenvector(result, engine):
    contact_map, weights, decays = engine
    vector = compartments_map(contact_map, weights, decays, nearest=50, count=1).vectors[:, 0]
    used = np.isfinite(vector)
    np.testing.assert_allclose(np.asarray(result["compartments"])[used], np.tanh(vector[used]), atol=0.02)
    assert result["compartments"][77] == 0


def test_m10_sign_follows_the_track_and_temperature_hardens(operator, matrix):
    track = np.where((np.arange(N) // 20) % 2 == 0, 1.0, -1.0)
    for direction in (1.0, -1.0):
        found = operator.apply({"contact_matrix": matrix, "phasing_track": direction * track})[0]["compartments"]
        assert np.corrcoef(found, direction * track)[0, 1] > 0.8
    hard_operator = nnx.clone(operator)
    hard_operator.log_compartment_temperature[...] = jnp.float32(np.log(1e-4))
    hard = np.asarray(hard_operator.apply({"contact_matrix": matrix})[0]["compartments"])
    np.testing.assert_allclose(np.abs(np.delete(hard, 77)), 1.0, atol=1e-3)


def test_m11_boundaries_are_the_engines_soft_calls(result, engine):
    contact_map, weights, decays = engine
    found = insulation_map(contact_map, weights, decays, windows=[10, 20], threshold=1.0)
    np.testing.assert_allclose(result["tad_boundaries"], found.probability, atol=0.03)


def test_m11_rivals_lie_within_five_bins(operator):
    """With a low threshold the probability is that of beating all neighbours: two equal maxima share it or not."""
    good = jnp.ones(40, bool)
    for apart, wanted in ((5, 0.5), (6, 1.0)):
        score = jnp.zeros(40).at[15].set(20.0).at[15 + apart].set(20.0)
        logits = operator._boundary_logits(score, jnp.zeros(40), good)
        np.testing.assert_allclose(jax.nn.sigmoid(logits)[15], wanted, atol=1e-4)


def test_m11_gradient_form(matrix, engine):
    contact_map, weights, decays = engine
    operator = small(boundary_form="gradient", boundary_temperature=0.5)
    found = np.asarray(operator.apply({"contact_matrix": matrix})[0]["tad_boundaries"])
    score = insulation_map(contact_map, weights, decays, windows=[10, 20]).insulation.mean(1)
    expected = 1.0 / (1.0 + np.exp(np.gradient(score) / 0.5))
    good = np.isfinite(expected)
    np.testing.assert_allclose(found[good], expected[good], atol=0.01)
    # A gradient marks the falling flank, not the minimum itself.
    assert found[38] > found[40] > found[42]


def test_loop_scores_are_the_engines(result, engine):
    contact_map, weights, (decay,) = engine
    shape = loop_numerics.default_shape(10_000)
    smallest, largest = shape.inner + 2, N - 1
    rows = cis_rows(contact_map.counts, 0, N, 2)
    tile = loop_numerics.loop_tile(rows, decay.value, weights, shape, 0, N, 2, smallest, largest, 0.5)
    null = loop_numerics.fit_null([tile], loop_numerics.strata(smallest, largest))
    z = loop_numerics.z_scores(tile, null.of_distance(null.dispersion))
    logits = np.asarray(band_of_matrix(result["loop_logits"], N))[smallest:].T
    scored = np.isfinite(z)
    assert np.corrcoef(z[scored], logits[scored])[0, 1] > 0.999
    np.testing.assert_allclose(logits[scored] + 4.0, z[scored], atol=0.3)


@pytest.mark.slow
def test_m12_recipe_as_printed(matrix):
    def binary_cross_entropy(scores, known):
        return -(known * jnp.log(scores) + (1 - known) * jnp.log(1 - scores)).mean()

    def hic_loss(hic_model, contact_matrix, known_loops):
        """Train Hi-C analysis model."""
        data = {"contact_matrix": contact_matrix}
        result, _, _ = hic_model.apply(data, {}, None)
        loop_loss = binary_cross_entropy(result["loop_scores"], known_loops)
        return loop_loss

    known = np.zeros((N, N))
    known[11, 35] = known[35, 11] = 1.0
    value, gradient = nnx.value_and_grad(hic_loss)(small(), matrix, known)
    assert np.isfinite(float(value))
    assert all(np.isfinite(np.asarray(leaf[...])).all() for _, leaf in nnx.to_flat_state(gradient))
    assert float(gradient["loop_threshold"][...]) != 0


def test_m12_loss_is_the_cross_entropy_of_known_loops_and_of_pairs_without_one(operator, matrix, result):
    known = np.zeros((N, N))
    known[11, 35] = known[60, 90] = 1.0
    logits = np.asarray(result["loop_logits"], np.float64)
    scored = np.triu(logits > logits.min())
    at = np.arange(N)

    def near(loop, reach):
        return (np.abs(at - loop[0]) <= reach)[:, None] & (np.abs(at - loop[1]) <= reach)

    total = 0.0
    others = scored.copy()
    for loop in ((11, 35), (60, 90)):
        odds = np.exp(logits[near(loop, 2) & scored]).sum()
        total += np.log1p(1.0 / odds)
        others &= ~near(loop, 3)
    total += np.log1p(np.exp(logits[others])).sum()
    found = operator.loss({"contact_matrix": matrix, "known_loops": known})
    np.testing.assert_allclose(found, total / 2, rtol=1e-3)
    masked = np.ones((N, N))
    masked[:50] = masked[:, :50] = 0.0
    found = operator.loss({"contact_matrix": matrix, "known_loops": known, "loop_mask": masked})
    counted = scored & (masked > 0)
    odds = np.exp(logits[near((60, 90), 2) & counted]).sum()
    total = np.log1p(1.0 / odds) + np.log1p(np.exp(logits[counted & others])).sum()
    np.testing.assert_allclose(found, total, rtol=1e-3)


def test_m12_loss_of_boundaries_and_compartments(operator, matrix, result):
    boundaries = np.zeros(N)
    boundaries[[40, 80]] = 1.0
    boundaries[3] = np.nan
    p = np.asarray(result["tad_boundaries"], np.float64)
    used = np.isfinite(boundaries) & (np.arange(N) != 77)
    brute = -(boundaries * np.log(p) + (1 - boundaries) * np.log1p(-p))[used].mean()
    sides = np.where(np.arange(N) < 60, 1.0, -1.0)
    brute += ((np.asarray(result["compartments"]) - sides)[np.arange(N) != 77] ** 2).mean()
    both = operator.loss({"contact_matrix": matrix, "known_compartments": sides, "known_boundaries": boundaries})
    np.testing.assert_allclose(both, brute, rtol=1e-3)


@pytest.mark.slow
def test_m25_jit_vmap_and_passing_through(operator, matrix, result):
    data = {"contact_matrix": matrix, "sample": "a"}
    found, state, metadata = operator.apply(data, {"s": 1}, {"m": 2})
    assert (found["sample"], state, metadata) == ("a", {"s": 1}, {"m": 2})
    compiled = nnx.jit(lambda op, counts: op({"contact_matrix": counts}))(operator, jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(compiled["loop_scores"], result["loop_scores"], atol=1e-3)
    other = simulated(1)
    batch = operator({"contact_matrix": np.stack([matrix, other])})
    single = operator({"contact_matrix": other})
    for key in ("normalized_contacts", "tad_boundaries", "loop_scores", "compartments"):
        np.testing.assert_allclose(batch[key][0], result[key], atol=2e-3)
        np.testing.assert_allclose(batch[key][1], single[key], atol=2e-3)


def test_every_parameter_has_a_gradient(matrix):
    known = np.zeros((N, N))
    known[11, 35] = known[35, 11] = 1.0
    data = {
        "contact_matrix": matrix,
        "known_loops": known,
        "known_boundaries": (np.arange(N) == 40).astype(float),
        "known_compartments": np.where(np.arange(N) < 60, 1.0, -1.0),
    }
    gradient = nnx.grad(lambda op: op.loss(data))(small(boundary_threshold=0.3, boundary_temperature=0.5))
    for path, leaf in nnx.to_flat_state(gradient):
        values = np.asarray(leaf[...])
        assert np.isfinite(values).all(), path
        assert (values != 0).all(), path


@pytest.mark.slow
def test_gradient_of_the_whole_against_finite_differences(matrix):
    operator = small()
    operator.log_dispersion[...] = jnp.float32(-30.0)  # the estimate of the dispersion is held fixed in gradients
    with jax.enable_x64(True):
        counts = jnp.asarray(matrix, jnp.float64)
        probe = jnp.asarray(np.random.default_rng(0).normal(size=(N, N)))

        def value(counts):
            found = operator({"contact_matrix": counts})
            return (
                (probe * found["normalized_contacts"]).mean()
                + (probe[0] * found["compartments"]).mean()
                + (probe[1] * found["boundary_logits"]).mean()
                + (probe * found["loop_logits"]).mean()
            )

        gradient = jax.grad(value)(counts)
        direction = jnp.asarray(np.random.default_rng(1).normal(size=(N, N))) * (counts > 0)
        size = 1e-5
        numeric = (value(counts + size * direction) - value(counts - size * direction)) / (2 * size)
        np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=1e-3)


def test_band_input_gives_the_same_as_the_matrix(operator, matrix, result):
    band = band_of_matrix(jnp.asarray(matrix, jnp.float32), N)
    found = operator({"contact_band": band})
    for key in ("normalized_contacts", "loop_scores"):
        np.testing.assert_allclose(matrix_of_band(found[key]), result[key], atol=1e-4)
    np.testing.assert_allclose(found["compartments"], result["compartments"], atol=1e-3)


@pytest.mark.slow
def test_bin_mask_leaves_bins_out(operator, matrix):
    holes = matrix.astype(float)
    holes[20] = holes[:, 20] = np.nan
    masked = operator({"contact_matrix": matrix, "bin_mask": np.arange(N) != 20})
    np.testing.assert_allclose(masked["compartments"], operator({"contact_matrix": holes})["compartments"], atol=1e-3)


@pytest.mark.slow
def test_shallow_band(operator, matrix):
    shallow = operator({"contact_band": band_of_matrix(jnp.asarray(matrix, jnp.float32), 60)})
    assert shallow["loop_scores"].shape == (60, N)
    assert set(np.argsort(-np.asarray(shallow["tad_boundaries"]))[:2]) == {40, 80}


@pytest.mark.slow
def test_training_recovers_a_perturbed_decay(matrix):
    operator = small()
    data = {"contact_matrix": matrix}
    before = np.asarray(operator(data)["expected_contacts"])
    reached = float(operator.loss(data))
    operator.decay_correction[...] = jnp.asarray(np.random.default_rng(0).normal(0.0, 0.5, 16), jnp.float32)
    perturbed = float(operator.loss(data))
    report = operator.fit(data, steps=200, learning_rate=0.05)
    assert len(report.history["loss"]) == 200
    assert float(operator.loss(data)) - reached < 0.02 * (perturbed - reached)
    after = np.asarray(operator(data)["expected_contacts"])
    ratio = np.log(after[before > 0] / before[before > 0])
    assert np.sqrt(np.average(ratio**2, weights=before[before > 0])) < 0.02
    assert np.abs(ratio).max() < 0.2  # the farthest few pairs say little


def test_calibration_is_the_best_threshold_and_temperature():
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.normal(size=(30, 200)), jnp.float32).at[12, 50:150:25].add(7.0)
    known = jnp.zeros_like(z).at[12, 50:150:25].set(1.0)
    counted = jnp.ones_like(z, bool)
    nothing = jnp.zeros_like(z)

    def loss(threshold, log_temperature):
        return float(loop_cross_entropy((z - threshold) * np.exp(-log_temperature), known, counted))

    found = calibrated(z, nothing, known, counted, (4.0, 0.0))
    best = min(loss(a, b) for a in np.linspace(2.0, 7.0, 26) for b in np.linspace(-2.0, 1.0, 16))
    assert loss(*found) <= best + 1e-3
    assert loss(*found) < loss(4.0, 0.0)


def test_bounded_logits_keep_their_order_and_small_ones_their_value():
    logits = jnp.array([-jnp.inf, -25.0, -12.0, -10.0, -3.0, 0.0, 7.0, 10.0, 12.0, 20.0])
    found = np.asarray(_bounded(logits))
    np.testing.assert_allclose(found[3:8], logits[3:8], rtol=1e-6)
    assert (np.diff(found) > 0).all()
    assert np.abs(found).max() <= 14.0
    np.testing.assert_allclose(found[8], 10.0 + 4.0 * np.tanh(0.5), rtol=1e-6)
    assert float(jax.grad(_bounded)(0.0)) == 1.0


@pytest.mark.slow
def test_training_on_loops_lowers_the_loss_and_is_saved(tmp_path, matrix):
    operator = small()
    known = np.zeros((N, N))
    known[10:13, 34:37] = 1.0
    data = {"contact_matrix": matrix, "known_loops": np.maximum(known, known.T)}
    before = float(operator.loss(data))
    report = operator.fit(data, steps=40, learning_rate=0.02)
    assert float(operator.loss(data)) < 0.7 * before
    # Training goes on from the best threshold and temperature, where the ranking is that of the statistic.
    assert report.history["loss"][0] < before
    assert report.history["loss"].min() < report.history["loss"][0]
    operator.save(tmp_path / "hic.npz")
    loaded = HiCContactAnalysis.load(tmp_path / "hic.npz")
    np.testing.assert_array_equal(loaded(data)["loop_scores"], operator(data)["loop_scores"])
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(operator.config)


def test_asymmetric_counts_are_averaged_and_nan_bins_left_out(operator, matrix, result):
    upper = 2.0 * np.triu(matrix, 1)
    np.testing.assert_allclose(operator({"contact_matrix": upper})["loop_scores"], result["loop_scores"], atol=1e-3)
    holes = matrix.astype(float)
    holes[20] = np.nan
    holes[:, 20] = np.nan
    found = operator({"contact_matrix": holes})
    assert found["balancing_weights"][20] == 0
    assert all(np.isfinite(np.asarray(value)).all() for value in found.values())


def test_empty_map_gives_zeros_and_no_nan(operator):
    found = operator({"contact_matrix": np.zeros((N, N))})
    for key, value in found.items():
        assert np.isfinite(np.asarray(value)).all(), key
    assert (np.asarray(found["compartments"]) == 0).all()
    assert np.asarray(found["loop_scores"]).max() < 1e-5


def test_refusals(operator, matrix):
    with pytest.raises(KeyError, match="contact_matrix"):
        operator.apply({"contacts": matrix})
    with pytest.raises(TypeError, match="sparse"):
        operator.apply({"contact_matrix": sp.csr_matrix(matrix)})
    with pytest.raises(ValueError, match="square"):
        operator.apply({"contact_matrix": matrix[:50]})
    with pytest.raises(ValueError, match="not negative"):
        operator.apply({"contact_matrix": -matrix})
    with pytest.raises(ValueError, match="at least 15 bins"):
        operator.apply({"contact_matrix": matrix[:10, :10]})
    with pytest.raises(ValueError, match=r"phasing_track.*120 bins"):
        operator.apply({"contact_matrix": matrix, "phasing_track": np.zeros(7)})
    with pytest.raises(ValueError, match=r"known_loops.*shape \(120, 120\)"):
        operator.loss({"contact_matrix": matrix, "known_loops": np.zeros((3, 3))})
    with pytest.raises(ValueError, match="steps"):
        operator.fit({"contact_matrix": matrix}, steps=0)


@pytest.mark.slow
def test_pixel_list_gives_the_same_as_the_band(operator, matrix):
    depth = 200 + 2 * 5 + 1
    row, column = np.nonzero(np.triu(matrix))
    bins = np.column_stack([row, column])
    bins[::2] = bins[::2, ::-1]
    data = {"pixel_bins": bins, "pixel_counts": matrix[row, column], "bin_mask": np.ones(N)}
    found = operator(data)
    band = operator({"contact_band": band_of_matrix(jnp.asarray(matrix, jnp.float32), min(depth, N))})
    for key in ("normalized_contacts", "compartments", "tad_boundaries", "loop_scores"):
        np.testing.assert_allclose(found[key], band[key], atol=1e-6)
    with pytest.raises(KeyError, match="bin_mask"):
        operator({key: data[key] for key in ("pixel_bins", "pixel_counts")})
    with pytest.raises(ValueError, match="between 0 and 118"):
        operator({**data, "bin_mask": np.ones(N - 1)})
    with pytest.raises(ValueError, match="two whole numbers"):
        operator({**data, "pixel_bins": bins[:-1]})


def test_pixel_list_drops_what_lies_beyond_the_band_and_adds_equal_pixels():
    bins = jnp.array([[0, 1], [1, 0], [3, 3], [0, 4]])
    found = band_of_pixel_list(bins, jnp.array([1.0, 2.0, 5.0, 7.0]), 3, 5)
    expected = np.zeros((3, 5))
    expected[1, 0], expected[0, 3] = 3.0, 5.0
    np.testing.assert_array_equal(found, expected)
    weights = jnp.arange(15.0).reshape(3, 5)
    gradient = jax.grad(lambda counts: (weights * band_of_pixel_list(bins, counts, 3, 5)).sum())(jnp.ones(4))
    np.testing.assert_array_equal(gradient, [5.0, 5.0, 3.0, 0.0])
