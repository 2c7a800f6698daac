"""Runs of the deconvolution over blocks: what is read, how often, and which spots inform each other."""

from __future__ import annotations

import weakref
from collections import Counter

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffbio_sc.blocks.matrix import InMemory
from diffbio_sc.engines import deconvolution as engine
from diffbio_sc.numerics.counts import signatures, unknown_signature
from diffbio_sc.numerics.counts.spot_regression import SpotSolution


def test_no_spot_is_its_own_neighbour():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 10, (60, 2))
    places[:9] = places[0]  # more spots in one place than neighbours are asked for
    nearest = engine.nearest_others(places, 6)
    assert not (nearest == np.arange(60)[:, None]).any()
    distance = cdist(places, places)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(
        np.sort(distance[np.arange(60)[:, None], nearest], 1), np.sort(distance, 1)[:, :6], atol=1e-12
    )


def test_neighbours_are_of_the_same_slide_and_filled():
    places = np.array([[0.0, 0], [1, 0], [2, 0], [0, 0.1], [1, 0.1], [5, 5]])
    slides = np.array([0, 0, 0, 1, 1, 2])
    filled = np.array([True, True, False, True, True, True])
    weights = np.arange(12.0).reshape(6, 2)
    mean, precision = engine.neighbour_prior(weights, places, slides, filled, 0.5)
    np.testing.assert_array_equal(mean, weights[[1, 0, 2, 4, 3, 5]])
    spread = (weights - mean)[filled].var(0)
    np.testing.assert_allclose(precision, 0.5 / spread)


class _Counting(InMemory):
    def __init__(self, matrix):
        super().__init__(matrix)
        self.reads = Counter()

    def read(self, start, stop):
        self.reads[start] += 1
        return super().read(start, stop)


def _spots(number=2500, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.3, 1.0, (3, genes)) + 0.01
    share = rng.dirichlet(np.ones(3), number)
    counts = rng.poisson(share @ (profiles / profiles.sum(1, keepdims=True)) * 300).astype(np.float32)
    return counts, (profiles / profiles.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n_slides", [1, 2])
def test_two_passes_serve_sample_fit_and_regression(n_slides):
    counts, profiles = _spots()
    matrix = _Counting(counts)
    slides = np.arange(2500) * n_slides // 2500
    spots = engine.Spots(matrix, np.arange(40), slides)
    sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
    fit = engine.fit_signatures(spots, sample, profiles)
    engine.regress_spots(spots, sample, fit)
    assert set(matrix.reads.values()) == {2}
    assert matrix.plan().rows == 1250  # two even blocks share one compiled program


def test_results_of_blocks_are_let_go_as_they_are_copied():
    alive: list[weakref.ref] = []

    def blocks():
        for number in range(4):
            assert not any(reference() is not None for reference in alive[:-1])
            block = SpotSolution(*(np.full((3, 2), number, np.float32) for _ in range(3)), np.full(3, number + 0.5))
            alive.append(weakref.ref(block.weights))
            yield block, np.full(3, -number), None

    solution, share, further = engine._stacked(blocks(), 12)
    np.testing.assert_array_equal(solution.weights[:, 1], np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(solution.misfit, np.repeat(np.arange(4), 3) + 0.5)
    np.testing.assert_array_equal(share, -np.repeat(np.arange(4), 3))
    assert further is None


def test_the_sample_is_filled_spots_of_each_slide_and_their_own_counts():
    counts, _ = _spots(6000, 12)
    counts[::2] = 0  # half of the spots are empty: the rows gathered do not suffice
    spots = engine.Spots(InMemory(counts), np.array([1, 3, 5]), np.zeros(6000, int))
    sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(sample.depth, counts[:, [1, 3, 5]].sum(1))
    rows = np.sort(sample.order[0][:2500])
    np.testing.assert_array_equal(sample.take(spots.counts, spots.columns, 2500), counts[np.ix_(rows, [1, 3, 5])])
    assert sample.filled[rows].all()
    again = engine.survey_spots(spots, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(again.order[0], sample.order[0])


def test_spots_without_a_number_of_cells_go_by_all_spots():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(3, 0.3), 50).astype(np.float32)
    solution = SpotSolution(
        weights, np.full((50, 3), 0.1, np.float32), np.ones((50, 3), np.float32), np.ones(50, np.float32)
    )
    depth = np.full(50, 200.0)
    sample = engine.Sample(depth, depth > 0, [np.arange(50)], np.arange(50), None)
    profiles = np.full((3, 10), 20.0)
    cells = np.full(50, 1.0)
    cells[:2] = [0, np.nan]
    mixed = engine.posterior_composition(solution, profiles, sample, cells)
    plain = engine.posterior_composition(solution, profiles, sample)
    np.testing.assert_allclose(mixed.proportions[:2], plain.proportions[:2])
    assert np.abs(mixed.proportions[2:] - plain.proportions[2:]).max() > 0.01
    np.testing.assert_array_equal(mixed.abundance[0], 0)
    assert np.isnan(mixed.abundance[1]).all()
    np.testing.assert_allclose(mixed.abundance[2:].sum(1), 1, rtol=1e-5)


def test_refinement_leaves_to_the_weights_what_other_signatures_explain():
    """Deviations of signatures hold little that a mixture of signatures could explain, unlike plain maximisation."""
    from flax import nnx

    from diffbio_sc.operators.multiomics import SpatialDeconvolution, SpatialDeconvolutionConfig

    rng = np.random.default_rng(3)
    base = rng.gamma(0.5, 1.0, (4, 150)) + 0.02
    base /= base.sum(1, keepdims=True)
    tissue = base * rng.lognormal(0, 0.4, base.shape)
    tissue[0] = 0.7 * tissue[0] + 0.3 * tissue[1]
    tissue /= tissue.sum(1, keepdims=True)
    counts = rng.poisson(rng.dirichlet(np.full(4, 0.5), 400) @ tissue * 2000).astype(np.float32)
    operator = SpatialDeconvolution(
        SpatialDeconvolutionConfig(n_cell_types=4, n_genes=150, hidden_dim=0), rngs=nnx.Rngs(0)
    )
    operator.fit_signatures(counts, base.astype(np.float32), platform_effect=False)
    deviation = base * np.expm1(np.asarray(operator.log_deviation[...]))
    mean = counts.mean(0)
    weight = np.sqrt(1 / (mean * (1 + 0.05 * mean)))
    basis = np.linalg.qr((base * weight).T)[0]
    whitened = (deviation * weight).T
    explained = np.square(basis.T @ whitened).sum() / np.square(whitened).sum()
    assert explained < 0.06  # .093 if nothing were taken out, .02 with three tenths instead of one


def test_shared_signatures_are_chosen_by_the_usual_rule():
    rng = np.random.default_rng(0)
    sums = rng.poisson(20.0, (3, 30)).astype(float)
    chosen, profiles = engine.choose_genes(
        sums, np.full(30, 9.0), np.array([100.0, 200.0, 50.0]), exact=False, fraction_of="cells", n_top_genes=50
    )
    np.testing.assert_array_equal(chosen, np.arange(30))
    np.testing.assert_allclose(profiles, signatures.shrunken_profiles(sums) * [[100], [200], [50]], rtol=1e-6)


def test_sizes_of_cells_widen_deviations_as_the_mean_of_their_number_varies():
    weights = np.array([[0.6, 0.4], [0.5, 0.5]], np.float32)
    tiny, ones = np.full((2, 2), 1e-6, np.float32), np.ones((2, 2), np.float32)
    solution = SpotSolution(weights, tiny, ones, np.ones(2, np.float32))
    depth = np.array([1000.0, 4.0])  # ten cells; less than one
    sample = engine.Sample(depth, depth > 0, [np.arange(2)], np.arange(2), None)
    profiles = np.full((2, 10), 10.0)  # 100 counts a cell
    found = engine.posterior_composition(solution, profiles, sample, size_variation=np.array([0.3, 0.2]))
    share = found.proportions[0]
    expected = (1 - share) * share * np.sqrt(0.3 / (10 * share[0]) + 0.2 / (10 * share[1]))
    np.testing.assert_allclose(found.deviation[0], expected, rtol=1e-3)
    np.testing.assert_allclose(found.deviation[1], 0.25 * np.sqrt(0.5), rtol=1e-3)
    without = engine.posterior_composition(solution, profiles, sample)
    assert without.deviation.max() < 1e-4


def test_sum_of_confusable_types_is_kept_as_asked():
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(8, 0.6), 300).astype(np.float32)
    deviation = np.full((300, 8), 0.12, np.float32)
    solution = SpotSolution(weights, deviation, np.ones((300, 8), np.float32), np.ones(300, np.float32))
    depth = np.full(300, 500.0)
    sample = engine.Sample(depth, depth > 0, [np.arange(300)], np.arange(300), None)
    sums = [
        engine.posterior_composition(solution, np.ones((8, 5)), sample, kept=kept).weights.sum(1) for kept in (0.0, 1.0)
    ]
    assert sums[0].mean() < 0.9
    np.testing.assert_allclose(sums[1], np.maximum(sums[1], 1.0), atol=2e-3)


@pytest.mark.parametrize(("change", "expected"), [(0.0, False), (0.8, True)])
def test_signatures_are_refined_only_where_that_predicts_better(change, expected):
    rng = np.random.default_rng(4)
    base = rng.gamma(0.5, 1.0, (4, 120)) + 0.02
    base /= base.sum(1, keepdims=True)
    tissue = base * rng.lognormal(0, change, base.shape)
    tissue /= tissue.sum(1, keepdims=True)
    counts = rng.poisson(rng.dirichlet(np.full(4, 0.5), 300) @ tissue * 2000).astype(np.float32)
    spots = engine.Spots(InMemory(counts), np.arange(120), np.zeros(300, int))
    sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
    fit = engine.fit_signatures(spots, sample, base.astype(np.float32))
    assert fit.refined is expected
    assert not engine.fit_signatures(spots, sample, base.astype(np.float32), refine=False).refined


def _few_cells_many_genes(genes, *, seed=0):
    """Spots of three types, and a reference of few counts with a fourth type that is like the first."""
    rng = np.random.default_rng(seed)
    true = rng.gamma(0.4, 1.0, (4, genes)) + 0.02
    true /= true.sum(1, keepdims=True)
    true[3] = 0.75 * true[0] + 0.25 * true[3]
    share = rng.dirichlet(np.full(3, 0.5), 200)
    counts = rng.poisson(share @ true[:3] * 3000).astype(np.float32)
    return counts, rng.poisson(true * 100_000).astype(np.float64)


def test_mass_does_not_leak_to_a_similar_type_as_genes_are_added():
    leaked = {True: [], False: []}
    for genes in (400, 2000):
        counts, sums = _few_cells_many_genes(genes)
        profiles = signatures.shrunken_profiles(sums).astype(np.float32)
        error = signatures.relative_error(sums, np.ones(genes))
        spots = engine.Spots(InMemory(counts), np.arange(genes), np.zeros(200, int))
        sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
        for corrected in leaked:
            fit = engine.fit_signatures(
                spots, sample, profiles, signature_error=error if corrected else None, refine=False
            )
            assert fit.corrected == fit.solvers[0].known.error.any() == corrected
            solution = engine.regress_spots(spots, sample, fit).solution
            found = engine.posterior_composition(solution, profiles, sample, kept=fit.kept)
            leaked[corrected].append(found.proportions[:, 3].mean())
    assert leaked[False][1] > 2 * leaked[False][0]
    assert leaked[True][1] < 1.05 * leaked[True][0]


@pytest.mark.parametrize("factor", [0.0, 30.0])
def test_errors_that_are_not_those_of_the_signatures_are_not_corrected(factor):
    """None, and so large that they would be all of the difference between signatures."""
    counts, sums = _few_cells_many_genes(400)
    profiles = signatures.shrunken_profiles(sums).astype(np.float32)
    spots = engine.Spots(InMemory(counts), np.arange(400), np.zeros(200, int))
    sample = engine.survey_spots(spots, 10, np.random.default_rng(0))
    error = factor * signatures.relative_error(sums, np.ones(400))
    fit = engine.fit_signatures(spots, sample, profiles, signature_error=error, refine=False)
    assert not fit.corrected


def test_excess_is_in_units_of_sampling_and_of_how_platforms_differ():
    rng = np.random.default_rng(3)
    sampling = rng.gamma(1.0, 0.05, 4001)
    log_ratio = rng.normal(0.2, np.sqrt(sampling + 0.3**2))
    expected = np.maximum((log_ratio - np.median(log_ratio)) / np.sqrt(sampling + 0.3**2), 0.0)
    np.testing.assert_allclose(unknown_signature.standard_excess(log_ratio, sampling), expected, rtol=0.05)
    # Ratios that sampling alone explains: nothing is added to it.
    log_ratio = rng.normal(0.0, 0.9 * np.sqrt(sampling))
    expected = np.maximum((log_ratio - np.median(log_ratio)) / np.sqrt(sampling), 0.0)
    np.testing.assert_allclose(unknown_signature.standard_excess(log_ratio, sampling), expected, rtol=1e-6)
    assert not unknown_signature.standard_excess(np.zeros(5), np.zeros(5)).any()


def test_answers_with_and_without_a_further_type_are_mixed_by_its_share():
    rng = np.random.default_rng(4)
    proportions = rng.dirichlet(np.ones(4), 3).astype(np.float32)
    extended = rng.dirichlet(np.ones(5), 3).astype(np.float32)
    deviation, wide = rng.uniform(0.01, 0.1, (3, 4)), rng.uniform(0.01, 0.1, (3, 5))
    share = np.array([0.0, 0.4, 0.9])
    one = engine.Composition(proportions, proportions, deviation, 3 * proportions, np.ones(4))
    two = engine.Composition(extended, extended, wide, 5 * extended, np.ones(5))
    found = engine.beside_unexplained(one, two, share)
    weight, rest = 0.5 * share[:, None], 1 - extended[:, -1:]
    among = extended[:, :-1] / rest
    np.testing.assert_allclose(found.proportions, (1 - weight) * proportions + weight * among, rtol=1e-5)
    # Variance of a mixture: that of a draw from either answer.
    second = (1 - weight) * (deviation**2 + proportions**2) + weight * ((wide[:, :-1] / rest) ** 2 + among**2)
    np.testing.assert_allclose(found.deviation, np.sqrt(second - found.proportions**2), rtol=1e-4)
    np.testing.assert_allclose(
        found.abundance, (1 - weight) * 3 * proportions + weight * 5 * extended[:, :-1], rtol=1e-5
    )
    np.testing.assert_array_equal(found.proportions[0], proportions[0])
    whole = engine.Composition(*(np.eye(5)[[4, 4, 4]] for _ in range(4)), np.ones(5))
    np.testing.assert_allclose(engine.beside_unexplained(one, whole, share).proportions, proportions, rtol=1e-6)
