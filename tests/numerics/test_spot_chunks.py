"""Spots worked on chunk by chunk: nothing depends on where chunks end, and the rounds do what float64 numpy does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffbio_sc.numerics.counts import refinement
from diffbio_sc.numerics.counts.cell_variation import share_beyond_counting, variation_beyond_counting
from diffbio_sc.numerics.counts.spot_chunks import over_chunks, padded_sample, rows_at_once
from diffbio_sc.numerics.counts.spot_regression import SpotSolver

SPOTS, GENES, TYPES = 600, 40, 3
DISPERSION = 0.05


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    base = rng.gamma(0.5, 1.0, (TYPES, GENES)) + 0.02
    base /= base.sum(1, keepdims=True)
    tissue = base * rng.lognormal(0, 0.3, base.shape) * rng.lognormal(0, 0.5, GENES)
    weights = rng.dirichlet(np.full(TYPES, 0.5), SPOTS)
    counts = rng.poisson(rng.uniform(500, 2000, (SPOTS, 1)) * (weights @ tissue)).astype(np.float32)
    return counts, base.astype(np.float32)


def test_every_row_is_visited_once_and_none_behind_them():
    spots, each = rows_at_once() + 44, rows_at_once()
    values = np.random.default_rng(0).integers(0, 100, (4 * each, 3)).astype(np.float32)
    values[spots:] = 0.0
    values[2 * each :] = np.nan  # chunks without any spot

    @jax.jit
    def run(values, spots):
        def step(carry, take, put):
            return carry[0] + take(values).sum(0), put(carry[1], 2.0 * take(values))

        return over_chunks(spots, step, (jnp.zeros(3), jnp.zeros_like(values)))

    total, doubled = run(values, spots)
    np.testing.assert_array_equal(total, values[:spots].sum(0))
    np.testing.assert_array_equal(doubled[:spots], 2 * values[:spots])
    np.testing.assert_array_equal(doubled[2 * each :], 0.0)


def test_a_sample_is_padded_to_what_all_share():
    counts = np.random.default_rng(0).poisson(3.0, (30, 5)).astype(np.float64)
    padded, depth = padded_sample(counts)
    assert padded.shape == padded_sample(counts[:7])[0].shape == (2048, 128)
    np.testing.assert_array_equal(padded[:30, :5], counts)
    assert padded.sum() == counts.sum()
    np.testing.assert_array_equal(depth[:30], counts.sum(1))
    assert not depth[30:].any()
    assert padded_sample(np.ones((2049, 200)))[0].shape == (4096, 256)


def test_spots_are_regressed_alike_wherever_they_stand(case):
    counts, base = case
    rng = np.random.default_rng(1)
    prior, precision = rng.dirichlet(np.ones(TYPES), SPOTS), np.array([50.0, 0.0, 10.0])
    solver = SpotSolver(base, DISPERSION, 6, room=1)
    whole = solver(counts, prior, precision)
    for rows in (slice(0, 7), slice(200, 300), slice(250, 600)):
        part = solver(counts[rows], prior[rows], precision)
        for one, field in zip(part, whole, strict=True):
            np.testing.assert_array_equal(one, field[rows])
    assert np.abs(whole.weights - solver(counts).weights).max() > 0.01
    assert solver(counts[:0]).weights.shape == (0, TYPES)


def rounds(counts, base, *, refine, platform_effect, steps=12):
    """The compiled rounds, without padding."""
    genes = counts.shape[1]
    rng = np.random.default_rng(2)
    excess, error = rng.uniform(0, 0.5, genes), rng.uniform(0, 0.02, base.shape)
    anchor = rng.normal(0, 0.3, genes)
    padded, depth = padded_sample(counts)
    shape = padded.shape[1:]

    def wide(values):
        values = np.asarray(values, np.float32)
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, shape[0] - genes)])

    problem = {"excess": excess, "error": error, "spread": 0.4, "openness": 0.7, "prior": 10.0, "rate": 0.5}
    log_platform, log_theta, history = refinement.refinement_rounds(
        padded,
        depth,
        np.int32(len(counts)),
        wide(base),
        wide(anchor),
        wide(np.ones(genes)),
        np.float32(DISPERSION),
        wide(excess),
        wide(error),
        *(np.float32(problem[name]) for name in ("spread", "openness", "prior", "rate")),
        np.bool_(refine),
        np.bool_(platform_effect),
        steps,
    )
    found = np.asarray(log_platform)[:genes], np.asarray(log_theta)[:, :genes], np.asarray(history)
    return found, {**problem, "anchor": anchor}


def rounds_in_numpy(counts, base, problem, steps, *, refine, platform_effect):
    """The same in float64: written from the model, all spots at once."""
    counts, base = counts.astype(np.float64), base.astype(np.float64)
    depth, alpha, excess = counts.sum(1), DISPERSION, problem["excess"]
    kept = problem["spread"] ** 2 / (problem["spread"] ** 2 + 0.15**2)
    anchor = kept * problem["anchor"] if platform_effect else np.zeros(len(excess))
    log_platform, theta = anchor - np.median(anchor), np.ones_like(base)
    weights = np.full((len(counts), len(base)), 1.0 / len(base))
    for step in range(steps):
        if step >= 4 and platform_effect:
            mean = depth[:, None] * (weights @ (base * np.exp(log_platform) * theta))
            trust = 1 / (1 + excess + alpha * mean)
            ratio = np.log(((trust * counts).sum(0) + 0.5) / ((trust * mean).sum(0) + 0.5)) + log_platform
            ratio -= np.median(ratio)
            limit = problem["spread"] * (1 - kept)
            ratio -= np.clip((1 - kept) * ratio, -limit, limit)
            target = anchor + problem["openness"] * (ratio - anchor)
            log_platform = 0.5 * (log_platform + target)
            log_platform -= np.median(log_platform)
        if step >= 4 and refine:
            scaled = base * np.exp(log_platform)
            mean = depth[:, None] * (weights @ (scaled * theta))
            trust = 1 / (1 + excess + alpha * mean)
            exposure = (weights * depth[:, None]).T
            expected = scaled * (exposure @ trust)
            observed = scaled * theta * (exposure @ (trust * counts / mean))
            prior = problem["prior"] + problem["rate"] * expected.mean(0)
            deviation = scaled * ((observed + prior) / (expected + prior) - 1)
            average = mean[depth > 0].mean(0)
            metric = 1 / (average * (1 + excess + alpha * average))
            gram = (scaled * metric) @ scaled.T
            gram += 1e-3 * np.trace(gram) / len(base) * np.eye(len(base))
            deviation -= 0.1 * np.linalg.solve(gram, (scaled * metric) @ deviation.T).T @ scaled
            theta = np.clip(1 + deviation / scaled, 0.02, 50.0)
        mu = base * np.exp(log_platform) * theta
        mean = depth[:, None] * (weights @ mu)
        variances = problem["error"] * mu**2
        noise = (depth[:, None] * weights) ** 2 @ variances
        variance = np.maximum(mean, 1e-3) * (1 + excess + alpha * mean) + noise
        own = depth[:, None] * weights * ((depth[:, None] / variance) @ variances.T)
        shift = (1 + excess + 2 * alpha * mean) * noise / variance
        information = np.einsum("sg,kg,lg->skl", depth[:, None] ** 2 / variance, mu, mu)
        linear = (depth[:, None] / variance * (counts - shift)) @ mu.T + own
        new = weights.copy()
        for _ in range(8):
            for k in range(len(base)):
                slope = linear[:, k] - (information[:, k] * new).sum(1)
                new[:, k] = np.maximum(new[:, k] + slope / np.maximum(information[:, k, k], 1e-300), 0.0)
        weights = weights + (1.0 if step == 0 else 2 / 3) * (new - weights)
    return log_platform, np.log(theta)


@pytest.mark.parametrize(("refine", "platform_effect"), [(True, True), (True, False), (False, True)])
def test_rounds_equal_float64(case, refine, platform_effect):
    counts, base = case
    options = {"refine": refine, "platform_effect": platform_effect}
    (log_platform, log_theta, history), problem = rounds(counts, base, **options)
    taken = 4 + int(np.isfinite(history).sum())
    expected = rounds_in_numpy(counts, base, problem, taken, **options)
    np.testing.assert_allclose(log_platform, expected[0], atol=2e-4)
    np.testing.assert_allclose(log_theta, expected[1], atol=2e-4)
    assert (np.abs(log_theta).max() > 0.05) == refine
    assert (np.abs(log_platform).max() > 0.05) == platform_effect


def test_empty_spots_say_nothing_about_signatures(case):
    counts, base = case
    with_empty = np.concatenate([counts, np.zeros((400, GENES), np.float32)])
    one, other = (rounds(values, base, refine=True, platform_effect=True)[0] for values in (counts, with_empty))
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    np.testing.assert_allclose(one[1], other[1], atol=1e-5)


def test_median_of_the_genes_used():
    values = np.array([3.0, -1.0, 2.0, 9.0, 4.0], np.float32)
    for used in ([1, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]):
        expected = np.median(values[np.array(used) > 0])
        assert refinement.masked_median(values, np.array(used, np.float32)) == expected


def test_variation_is_that_of_all_rows(case):
    counts, base = case
    mean = np.asarray(counts.sum(1, keepdims=True) * base.mean(0), np.float64)
    chi_square = (counts - mean) ** 2 / mean
    active = np.full(SPOTS, 2.0)
    expected = 1 - 1 / np.median(chi_square.sum(1) / (GENES - active))
    assert share_beyond_counting(counts, mean, active) == pytest.approx(expected, rel=1e-12)
    weight, freedom = np.random.default_rng(0).uniform(0.5, 1.0, (2, SPOTS, 1))
    expected = (weight * (chi_square / freedom - 1)).sum() / (weight * mean).sum()
    assert variation_beyond_counting(counts, mean, freedom, weight) == pytest.approx(expected, rel=1e-12)


def test_counting_noise_of_a_gene_is_no_signature():
    """One gene far in excess, and ten that go together in the spots: the signature starts from the ten."""
    from diffbio_sc.numerics.counts.unknown_signature import first_unknown

    rng = np.random.default_rng(2)
    mean = np.full((256, 40), 50.0)
    mean[:, :10] *= 1 + 0.6 * (rng.random((256, 1)) < 0.3)
    counts = rng.poisson(mean).astype(np.float32)
    excess = np.zeros(40, np.float32)
    excess[:10], excess[20] = 1.0, 5.0
    base = np.full((2, 40), 1 / 40, np.float32)
    weights = np.full((256, 2), 0.5, np.float32)
    signature, _ = first_unknown(counts, weights, base, np.zeros(40, np.float32), excess, 0.01, free=True)
    assert signature[:10].min() > 1.2 * signature[20]


@pytest.mark.parametrize("free", [True, False])
def test_unknown_signature_starts_from_the_leading_component(case, free):
    """As by a decomposition of the residuals' covariance, all spots at once; empty spots say nothing."""
    from diffbio_sc.numerics.counts.unknown_signature import first_unknown

    _, base = case
    rng = np.random.default_rng(3)
    own = np.arange(GENES) < 12
    weights = rng.dirichlet(np.ones(TYPES), SPOTS).astype(np.float32)
    factor, excess = rng.normal(0, 0.2, GENES), own * rng.uniform(0.5, 3.0, GENES)
    missing = 20.0 * own * (rng.random((SPOTS, 1)) < 0.4)
    counts = rng.poisson(1000 * (weights @ (base * np.exp(factor))) + missing).astype(np.float32)
    empty = np.zeros((300, GENES), np.float32)
    found, found_factor = first_unknown(
        np.concatenate([counts, empty]),
        np.concatenate([weights, np.full((300, TYPES), 1 / TYPES, np.float32)]),
        base,
        factor,
        excess,
        DISPERSION,
        free=free,
    )

    mean = counts.sum(1, keepdims=True) * (weights.astype(np.float64) @ (base * np.exp(factor)))
    residual = (counts - mean) / np.sqrt(np.maximum(mean, 1e-2) * (1 + DISPERSION * mean))
    residual = np.clip(residual, -5.0, 10.0)
    covariance = np.cov(residual.T, bias=True) * np.outer(excess, excess)
    covariance -= np.diag(np.minimum(residual.var(0), 1.0) * excess**2)
    loading = np.linalg.eigh(covariance[np.ix_(own, own)])[1][:, -1]
    loading *= np.sign(loading.sum())
    assert loading.min() > 0  # so that the constraint does not bind
    loading *= excess[own]
    relative = loading * np.sqrt((1 + DISPERSION * mean.mean(0)[own]) / mean.mean(0)[own])
    taken = np.full(GENES, 1 / (TYPES + 1))
    typical = loading**2 @ relative / (loading @ loading)
    taken[own] += (1 - 2 / (TYPES + 1)) * np.minimum(relative / typical, 1.0)
    start = taken * mean.mean(0)
    np.testing.assert_allclose(found, start / start.sum(), rtol=2e-4)
    adapted = factor + np.log(1 - taken)
    np.testing.assert_allclose(found_factor, adapted - np.median(adapted) if free else factor, atol=2e-4)
