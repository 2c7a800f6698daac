"""The JAX twins of the contact statistics: equal to the engines, with gradients equal to finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from one_program import one_program

from diffbio_sc.numerics.genome import (
    balancing,
    balancing_jax,
    bands_jax,
    compartments,
    compartments_jax,
    decay,
    decay_jax,
    insulation,
    insulation_jax,
    loops,
    loops_jax,
)
from diffbio_sc.numerics.genome.bands_jax import band_of_pixels
from diffbio_sc.numerics.genome.loops import LoopShape
from diffbio_sc.numerics.genome.pixels import cis_rows

ahead, band_of_matrix, band_product, matrix_of_band = map(
    one_program, (bands_jax.ahead, bands_jax.band_of_matrix, bands_jax.band_product, bands_jax.matrix_of_band)
)
balancing_weights = one_program(balancing_jax.balancing_weights)
compartment_vector = one_program(compartments_jax.compartment_vector)
leading_vector = one_program(compartments_jax.leading_vector)
log_decay, sums_by_distance = one_program(decay_jax.log_decay), one_program(decay_jax.sums_by_distance)
contrasts = one_program(insulation_jax.contrasts)
loop_evidence, z_scores = one_program(loops_jax.loop_evidence), one_program(loops_jax.z_scores)

N, NEAREST = 90, 2


@pytest.fixture(scope="module")
def contact_map():
    rng = np.random.default_rng(0)
    distance = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    bias = rng.lognormal(0.0, 0.3, N)
    sign = np.sign(np.sin(np.arange(N) / 8.0))
    inside = (np.arange(N)[:, None] // 30) == (np.arange(N)[None] // 30)
    mean = (
        60.0 * np.outer(bias, bias) / (1.0 + distance) ** 0.9 * np.exp(0.4 * np.outer(sign, sign)) * (1 + 0.5 * inside)
    )
    upper = np.triu(rng.poisson(mean), NEAREST).astype(np.int32)
    upper[[12, 61]] = 0
    upper[:, [12, 61]] = 0
    used = np.ones(N, bool)
    used[[12, 61]] = False
    return upper, used


@pytest.fixture(scope="module")
def engine(contact_map):
    """Weights, exposure and decay of the numpy engine."""
    upper, used = contact_map
    rows = cis_rows(sp.csr_array(upper), 0, N, NEAREST)
    weights = balancing.balance(rows.product, used, rows.diagonal, 1e-10).weights
    sums = decay.distance_sums(rows, weights)
    fitted = decay.fit_decay(sums, NEAREST)
    return rows, weights, sums, fitted


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def full_of(upper):
    return upper + np.triu(upper, 1).T


def expected_band(engine, dtype=np.float32):
    _, weights, _, fitted = engine
    exposure = np.nan_to_num(1.0 / weights)
    value = np.nan_to_num(fitted.value)
    return jnp.asarray(value[:, None] * exposure * np.asarray(ahead(jnp.asarray(exposure, dtype), N)), dtype)


def check_gradient(function, point, size=1e-6, tolerance=1e-3, seed=0):
    """Directional derivatives along random directions against central differences."""
    function = jax.jit(function)
    gradient = jax.jit(jax.grad(function))(point)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        direction = jnp.asarray(rng.normal(size=point.shape)) * (point != 0)
        numeric = (function(point + size * direction) - function(point - size * direction)) / (2 * size)
        np.testing.assert_allclose((gradient * direction).sum(), numeric, rtol=tolerance, atol=1e-9)


def test_bands_hold_the_matrix(contact_map):
    upper, _ = contact_map
    full = full_of(upper)
    for depth in (1, 7, N):
        band = band_of_matrix(jnp.asarray(full, jnp.float32), depth)
        np.testing.assert_array_equal(band, band_of_pixels(sp.csr_array(upper), depth))
        cut = np.where(np.abs(np.subtract.outer(np.arange(N), np.arange(N))) < depth, full, 0)
        np.testing.assert_array_equal(matrix_of_band(band), cut)
        vector = np.random.default_rng(1).normal(size=N)
        np.testing.assert_allclose(band_product(band, jnp.asarray(vector)), cut @ vector, rtol=1e-4, atol=1e-3)


def test_balancing_twin(contact_map, engine):
    upper, used = contact_map
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float32), N)
    found = np.asarray(balancing_weights(band, jnp.asarray(used)))
    np.testing.assert_allclose(found[used], engine[1][used], rtol=1e-4)
    assert (found[~used] == 0).all()


def test_gradient_through_balancing(contact_map, x64):
    upper, used = contact_map
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float64), N)
    probe = jnp.asarray(np.random.default_rng(2).normal(size=N))
    check_gradient(lambda b: (probe * balancing_weights(b, jnp.asarray(used))).sum(), band)


def test_decay_twin(contact_map, engine):
    upper, _ = contact_map
    _, weights, sums, fitted = engine
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float32), N)
    exposure = jnp.asarray(np.nan_to_num(1.0 / weights), jnp.float32)
    counts, offered = sums_by_distance(band, exposure)
    np.testing.assert_allclose(counts, sums.count, rtol=1e-5)
    np.testing.assert_allclose(offered, sums.exposure, rtol=1e-4)
    value = jnp.exp(log_decay(counts, offered, NEAREST, fitted.penalty))
    np.testing.assert_allclose(value[NEAREST:], fitted.value[NEAREST:], rtol=2e-3)


def test_gradient_through_the_decay(contact_map, engine, x64):
    _, _, sums, fitted = engine
    counts, offered = jnp.asarray(sums.count), jnp.asarray(sums.exposure)
    probe = jnp.asarray(np.random.default_rng(3).normal(size=N)).at[:NEAREST].set(0.0)
    check_gradient(lambda c: (probe * log_decay(c, offered, NEAREST, 1.0)).sum(), counts, size=1e-4)
    check_gradient(lambda e: (probe * log_decay(counts, e, NEAREST, 1.0)).sum(), offered, size=1e-4)


def test_compartment_twin(contact_map, engine):
    upper, used = contact_map
    rows, weights, _, fitted = engine
    pairs = compartments.cis_eigenvectors(
        cis_rows(sp.csr_array(upper), 0, N, 5), fitted.value, weights, 5, 1, compartments.GAMMA
    )
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float32), N)
    value, vector = compartment_vector(band, expected_band(engine), 5, compartments.GAMMA)
    np.testing.assert_allclose(value, pairs.values[0], rtol=1e-3)
    own = pairs.vectors[0, used]
    vector = np.asarray(vector)[used] * np.sign(np.asarray(vector)[used] @ own)
    np.testing.assert_allclose(vector, own, atol=1e-3)


def test_gradient_through_the_eigenvector(contact_map, engine, x64):
    upper, _ = contact_map
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float64), N)
    expected = expected_band(engine, np.float64)
    probe = jnp.asarray(np.random.default_rng(4).normal(size=N))
    check_gradient(lambda b: jnp.abs((probe * compartment_vector(b, expected, 5, 0.5)[1]).sum()), band, size=1e-5)
    check_gradient(lambda b: compartment_vector(b, expected, 5, 0.5)[0], band, size=1e-5)


def test_gradient_near_a_tie_is_finite():
    values = np.zeros((2, 40), np.float32)
    values[0] = 1.0
    values[0, 5], values[0, 20] = 3.0, 3.0 + 1e-6
    band = jnp.asarray(values)
    start = jnp.ones(40)
    gradient = jax.jit(jax.grad(lambda b: leading_vector(b, start)[1][3]))(band)
    assert np.isfinite(np.asarray(gradient)).all()


def test_insulation_twin(contact_map, engine):
    upper, _ = contact_map
    rows, weights, _, fitted = engine
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float32), N)
    score, boundary, good = contrasts(band, expected_band(engine), (6, 11), NEAREST)
    for k, window in enumerate((6, 11)):
        sums = insulation.window_sums(rows, fitted.value, weights, window, NEAREST)
        own_score, own_boundary = insulation.contrast(sums)
        np.testing.assert_array_equal(good[k], np.isfinite(own_score))
        np.testing.assert_allclose(score[k], np.nan_to_num(own_score), atol=1e-4)
        np.testing.assert_allclose(boundary[k], np.nan_to_num(own_boundary), atol=1e-4)


def test_gradient_through_insulation(contact_map, engine, x64):
    upper, _ = contact_map
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float64), N)
    expected = expected_band(engine, np.float64)
    probe = jnp.asarray(np.random.default_rng(5).normal(size=(2, N)))
    check_gradient(lambda b: (probe * contrasts(b, expected, (6, 11), NEAREST)[1]).sum(), band, size=1e-5)
    check_gradient(lambda e: (probe * contrasts(band, e, (6, 11), NEAREST)[1]).sum(), expected, size=1e-5)


@pytest.mark.parametrize("shape", [LoopShape(1, 3, 0.8), LoopShape(2, 5, 0.9)])
def test_loop_twin(contact_map, engine, shape):
    upper, used = contact_map
    rows, weights, _, fitted = engine
    smallest, largest = shape.inner + 2, 40
    tile = loops.loop_tile(rows, fitted.value, weights, shape, 0, N, NEAREST, smallest, largest, 0.5)
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float32), N)
    evidence = loop_evidence(
        band,
        expected_band(engine),
        jnp.asarray(used),
        shape,
        shape.width,
        loops.SHRINKAGE,
        jnp.zeros(4),
        smallest,
        largest,
        0.5,
    )
    scored = np.asarray(evidence.scored)[smallest : largest + 1].T
    np.testing.assert_array_equal(scored, np.isfinite(tile.expected))
    phi = 0.01
    for name in ("observed", "expected", "variance", "level"):
        found = np.asarray(getattr(evidence, name))[smallest : largest + 1].T
        np.testing.assert_allclose(found[scored], getattr(tile, name)[scored], rtol=1e-3)
    ratios = np.exp(np.asarray(evidence.log_ratios))[:, smallest : largest + 1].transpose(0, 2, 1)
    np.testing.assert_allclose(ratios[:, scored], tile.ratios[:, scored], rtol=1e-3)
    z = np.asarray(z_scores(evidence, jnp.full(evidence.scored.shape[0], phi)))[smallest : largest + 1].T
    np.testing.assert_allclose(z[scored], loops.z_scores(tile, np.float64(phi))[scored], atol=2e-3)


def test_gradient_through_loops(contact_map, engine, x64):
    upper, used = contact_map
    band = band_of_matrix(jnp.asarray(full_of(upper), jnp.float64), N)
    expected = expected_band(engine, np.float64)
    shape = LoopShape(2, 5, 0.9)
    probe = jnp.asarray(np.random.default_rng(6).normal(size=(51, N)))

    def score(b, e, width, shrinkage):
        evidence = loop_evidence(b, e, jnp.asarray(used), shape, width, shrinkage, jnp.zeros(4), 4, 40, 0.5)
        return (probe * z_scores(evidence, jnp.full(51, 0.02))).sum()

    check_gradient(lambda b: score(b, expected, 0.9, 64.0), band, size=1e-5)
    check_gradient(lambda e: score(band, e, 0.9, 64.0), expected, size=1e-5)
    check_gradient(lambda w: score(band, expected, w, 64.0), jnp.asarray(0.9))
    check_gradient(lambda a: score(band, expected, 0.9, a), jnp.asarray(64.0), size=1e-4)
