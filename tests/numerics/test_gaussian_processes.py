from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from diffbio_sc._compiled import full_products
from diffbio_sc.numerics.spatial.kernels import KERNELS
from diffbio_sc.numerics.spatial.kernels import kernel_matrix as unjitted_kernel_matrix
from diffbio_sc.numerics.spatial.kriging import smooth
from diffbio_sc.numerics.spatial.representatives import representative_spots
from diffbio_sc.numerics.spatial.variance import VarianceComponents

kernel_matrix = one_program(unjitted_kernel_matrix)


def lattice(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)


def rbf(coordinates, lengthscale):
    return np.exp(-cdist(coordinates, coordinates, "sqeuclidean") / (2 * lengthscale**2))


def gower_factor(kernel):
    """Expected sample variance of a draw from the kernel."""
    spots = len(kernel)
    return (np.trace(kernel) - kernel.sum() / spots) / (spots - 1)


def draw(coordinates, lengthscale, fsv, genes, seed):
    """Values of known FSV, and the FSV that the field and the noise drawn happen to have."""
    rng = np.random.default_rng(seed)
    kernel = rbf(coordinates, lengthscale)
    root = np.linalg.cholesky(kernel + 1e-8 * np.eye(len(kernel)))
    field = root @ rng.normal(size=(len(kernel), genes)) * np.sqrt(fsv / gower_factor(kernel))
    noise = rng.normal(size=field.shape) * np.sqrt(1 - fsv)
    return field + noise, field.var(0) / (field.var(0) + noise.var(0))


def restricted_log_likelihood(values, kernel, design, signal, noise):
    """Textbook form on dense matrices (Patterson and Thompson 1971), without constants."""
    covariance = signal * kernel + noise * np.eye(len(values))
    inverse = np.linalg.inv(covariance)
    information = design.T @ inverse @ design
    residual = values - design @ np.linalg.solve(information, design.T @ inverse @ values)
    determinants = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(information)[1]
    return -0.5 * (determinants + residual @ inverse @ residual)


@pytest.mark.parametrize("kind", ["rbf", "matern32", "matern52"])
def test_stationary_kernels_are_their_formulas(kind):
    x = np.random.default_rng(0).uniform(0, 5, (12, 3))
    distance = cdist(x, x)
    scaled = {"rbf": distance / 1.7, "matern32": np.sqrt(3) * distance / 1.7, "matern52": np.sqrt(5) * distance / 1.7}
    a = scaled[kind]
    expected = {
        "rbf": np.exp(-(a**2) / 2),
        "matern32": (1 + a) * np.exp(-a),
        "matern52": (1 + a + a**2 / 3) * np.exp(-a),
    }
    np.testing.assert_allclose(kernel_matrix(jnp.asarray(x), 1.7, kind), expected[kind], atol=2e-6)


def test_periodic_kernel_repeats_and_linear_kernel_is_an_inner_product():
    x = jnp.array([[0.0, 0.0], [3.0, 0.0], [6.0, -3.0], [1.5, 0.0]])
    kernel = kernel_matrix(x, 1.0, "periodic", 3.0)
    np.testing.assert_allclose(kernel[0, :3], 1.0, atol=1e-5)
    np.testing.assert_allclose(kernel[0, 3], np.exp(-2), atol=1e-5)
    centred = np.asarray(x) - np.asarray(x).mean(0)
    np.testing.assert_allclose(kernel_matrix(x, 2.0, "linear"), centred @ centred.T / 4, atol=1e-5)


@pytest.mark.parametrize("kind", KERNELS)
@full_products()
def test_kernels_are_positive_and_have_finite_gradients_where_spots_coincide(kind):
    x = np.random.default_rng(0).uniform(0, 5, (30, 2)).astype(np.float32)
    x[1] = x[0]
    kernel = np.asarray(kernel_matrix(x, 1.3, kind, 2.0))
    assert np.linalg.eigvalsh(kernel).min() > -1e-4
    if kind != "linear":
        np.testing.assert_allclose(np.diagonal(kernel), 1.0, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: (kernel_matrix(x, 1.3, kind, 2.0) ** 2).sum()))(x)
    assert np.isfinite(gradient).all()
    others = kernel_matrix(x, 1.3, kind, 2.0, other=x[:4])
    np.testing.assert_allclose(others, kernel[:, :4], atol=1e-6)


def test_unknown_kernel_is_named():
    with pytest.raises(ValueError, match=r"rbf.*'cosine'"):
        kernel_matrix(jnp.zeros((3, 2)), 1.0, "cosine")


def test_variance_components_equal_dense_restricted_maximum_likelihood():
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 8, (60, 2))
    groups = np.repeat([7, 9], 30)
    design = np.column_stack([groups == 7, groups == 9, rng.normal(size=60)]).astype(float)
    same = groups[:, None] == groups[None]
    values = draw(x, 1.5, 0.6, 5, 4)[0] + design @ rng.normal(size=(3, 5)) * 3
    scales = 1.5 * 1.1 ** np.arange(-18.0, 19.0)
    fit = VarianceComponents(x, scales, design, groups).fit(values)
    projector = np.eye(60) - design @ np.linalg.pinv(design)
    for gene in range(5):

        def loss(parameters, gene=gene):
            kernel = rbf(x, np.exp(parameters[2])) * same
            return -restricted_log_likelihood(values[:, gene], kernel, design, *np.exp(parameters[:2]))

        starts = [(0.0, 0.0, np.log(scale)) for scale in (0.7, 1.5, 3.0)]
        bounds = [(-9, 9), (-9, 9), tuple(np.log(scales[[0, -1]]))]
        best = min((minimize(loss, start, bounds=bounds) for start in starts), key=lambda result: result.fun)
        signal, noise, lengthscale = np.exp(best.x)
        share = np.trace(projector @ (rbf(x, lengthscale) * same) @ projector) / 57
        assert fit.fsv[gene] == pytest.approx(share * signal / (share * signal + noise), abs=0.01)
        assert fit.lengthscale[gene] == pytest.approx(lengthscale, rel=0.03)
        null = minimize(lambda log_noise: loss((-30.0, log_noise[0], 0.0)), [0.0])
        assert fit.log_likelihood_ratio[gene] == pytest.approx(null.fun - best.fun, abs=0.03)
        at_bound = np.isclose(lengthscale, scales[[0, -1]], rtol=1e-3).any()
        assert bool(fit.lengthscale_at_bound[gene]) == bool(at_bound)


@pytest.mark.parametrize(("side", "genes"), [(20, 100), (31, 60)])
@pytest.mark.parametrize("lengthscale", [2.0, 3.5, 6.0])
def test_known_fsv_and_lengthscale_are_recovered(side, genes, lengthscale):
    x = lattice(side)
    components = VarianceComponents(x, 0.7 * 2 ** (np.arange(10) / 2), np.ones((len(x), 1)))
    for fsv in (0.1, 0.3, 0.6, 0.9):
        values, shown = draw(x, lengthscale, fsv, genes, seed=round(100 * fsv))
        fit = components.fit(values)
        # A small slide shows few independent pieces of a wide field: what it shows is the truth that can be known.
        assert abs((fit.fsv - shown).mean()) <= 0.05
        assert np.abs(fit.fsv - shown).mean() <= 0.07
        assert abs((fit.fsv - fsv).mean()) <= 0.05
        if fsv >= 0.3:
            ratio = np.abs(np.log(fit.lengthscale / lengthscale))
            assert abs(np.log(np.median(fit.lengthscale) / lengthscale)) < np.log(1.15)
            assert np.median(ratio) < np.log(1.25)
            assert fit.lengthscale_at_bound.mean() < 0.05


def test_standard_errors_are_those_of_repeated_draws():
    x = lattice(20)
    components = VarianceComponents(x, 0.7 * 2 ** (np.arange(10) / 2), np.ones((400, 1)))
    for fsv in (0.3, 0.6):
        fit = components.fit(draw(x, 2.5, fsv, 400, seed=1)[0])
        assert np.median(fit.fsv_se) == pytest.approx(fit.fsv.std(), rel=0.2)
        assert 0.9 < (np.abs(fit.fsv - fsv) < 1.96 * fit.fsv_se).mean() < 0.98


def test_boundary_hits_are_flagged():
    x = lattice(20)
    components = VarianceComponents(x, [2.0, 3.0, 4.0], np.ones((400, 1)))
    too_wide = components.fit(draw(x, 8.0, 0.8, 30, seed=0)[0])
    too_fine = components.fit(draw(x, 1.0, 0.8, 30, seed=0)[0])
    assert too_wide.lengthscale_at_bound.mean() > 0.8
    assert too_fine.lengthscale_at_bound.mean() > 0.9
    assert (too_wide.lengthscale[too_wide.lengthscale_at_bound] <= 4.0 + 1e-9).all()


def test_genes_without_spatial_variance_have_fsv_near_zero_and_constants_are_nan():
    rng = np.random.default_rng(0)
    x = lattice(18)
    values = rng.normal(size=(324, 200))
    values[:, 0], values[:, 1] = 0.0, 3.7
    fit = VarianceComponents(x, [1.0, 2.0, 4.0, 8.0], np.ones((324, 1))).fit(values)
    for part in (fit.fsv, fit.fsv_se, fit.lengthscale, fit.noise_ratio, fit.log_likelihood_ratio):
        assert np.isnan(part[:2]).all()
        assert not np.isnan(part[2:]).any()
    assert fit.fsv[2:].mean() < 0.03
    zero = fit.fsv[2:] == 0
    assert zero.any()
    assert np.isinf(fit.noise_ratio[2:][zero]).all()
    assert fit.lengthscale_at_bound[2:][zero].all()
    assert (fit.fsv_se[2:][zero] > 0).all()


def test_scale_and_shift_of_a_gene_change_nothing():
    x = lattice(15)
    values = draw(x, 2.0, 0.5, 10, seed=0)[0]
    components = VarianceComponents(x, [1.0, 2.0, 4.0], np.ones((225, 1)))
    plain, moved = components.fit(values), components.fit(1e4 + 1e-3 * values)
    np.testing.assert_allclose(moved.fsv, plain.fsv, atol=1e-6)
    np.testing.assert_allclose(moved.noise_ratio, plain.noise_ratio, rtol=1e-5)


def test_bad_designs_name_shape_and_rank():
    x = lattice(3)
    with pytest.raises(ValueError, match=r"\(9, p\).*\(8, 1\)"):
        VarianceComponents(x, [1.0], np.ones((8, 1)))
    with pytest.raises(ValueError, match="at least 12 spots"):
        VarianceComponents(x, [1.0], np.eye(9))
    with pytest.raises(ValueError, match="lengthscales"):
        VarianceComponents(x, [], np.ones((9, 1)))
    with pytest.raises(ValueError, match=r"\(9, genes\).*\(8, 2\)"):
        VarianceComponents(x, [1.0], np.ones((9, 1))).fit(np.zeros((8, 2)))


@pytest.mark.slow
def test_representative_spots_hold_all_scales():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 100, (10000, 2))
    groups = np.repeat([0, 1], 5000)
    chosen = representative_spots(x, groups, 1000, 0)
    assert len(chosen) == 1000 == len(np.unique(chosen))
    assert chosen.max() < 10000
    np.testing.assert_array_equal(chosen, representative_spots(x, groups, 1000, np.random.default_rng(0)))
    assert 300 < (groups[chosen] == 0).sum() < 700
    distance = cdist(x[chosen], x[chosen])
    distance[groups[chosen][:, None] != groups[chosen][None]] = np.inf
    np.fill_diagonal(distance, np.inf)
    nearest = distance.min(1)
    # Neighbourhoods keep the spacing of the slide (about 0.7 here); scattered spots are several times as far apart.
    assert (nearest < 1.0).mean() > 0.35
    assert np.ptp(x[chosen], axis=0).min() > 90
    np.testing.assert_array_equal(representative_spots(x[:50], None, 50), np.arange(50))


def posterior_mean(values, kernel, noise_ratio):
    mean = values.mean(0)
    return mean + kernel @ np.linalg.solve(kernel + noise_ratio * np.eye(len(kernel)), values - mean)


def test_smoothing_is_the_posterior_mean_by_slide():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 6, (80, 2))
    groups = np.repeat(["a", "b"], 40)
    values = rng.normal(size=(80, 4)) + 5
    scales, ratios = np.array([1.0, 1.0, 2.0, 2.0]), np.array([0.5, 2.0, 0.1, np.inf])
    found = smooth(values, x, scales, ratios, groups=groups)
    for own in (groups == "a", groups == "b"):
        for gene in range(3):
            expected = posterior_mean(values[own, gene], rbf(x[own], scales[gene]), ratios[gene])
            np.testing.assert_allclose(found[own, gene], expected, atol=1e-9)
        np.testing.assert_allclose(found[own, 3], values[own, 3].mean())


@pytest.mark.parametrize("lengthscale", [1.5, 5.0])
def test_local_smoothing_is_close_to_the_exact(lengthscale):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 30, (900, 2))
    pattern = np.sin(x / lengthscale)
    values = pattern + 0.7 * rng.normal(size=pattern.shape)
    exact = smooth(values, x, np.full(2, lengthscale), np.full(2, 0.8))
    local = smooth(values, x, np.full(2, lengthscale), np.full(2, 0.8), exact_spots=0)
    assert np.sqrt(((local - exact) ** 2).mean()) < 0.08 * exact.std()
    assert ((local - pattern) ** 2).mean() < 1.1 * ((exact - pattern) ** 2).mean()
    groups = np.zeros(900, int)
    groups[:3] = 1  # a slide of fewer spots than neighbours
    few = smooth(values, x, np.full(2, lengthscale), np.full(2, 0.8), groups=groups, exact_spots=0)
    assert np.isfinite(few).all()


def test_smoothing_bins_many_lengthscales():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, (100, 2))
    values = rng.normal(size=(100, 50)).astype(np.float32)
    scales = np.geomspace(1, 3, 50)
    found = smooth(values, x, scales, np.full(50, 1.0), n_lengthscales=12)
    assert found.dtype == np.float32
    exact = np.stack([posterior_mean(v, rbf(x, scale), 1.0) for v, scale in zip(values.T, scales, strict=True)], 1)
    assert np.abs(found - exact).max() < 0.1


def test_standard_error_at_zero_signal_is_the_curvature_of_the_expected_likelihood():
    rng = np.random.default_rng(4)
    coordinates = rng.uniform(0, 8, (90, 2))
    fit = VarianceComponents(coordinates, [1.5], np.ones((90, 1))).fit(rng.normal(size=(90, 60)))
    absent = fit.fsv == 0
    assert absent.any()
    centre = np.eye(90) - 1 / 90
    spectrum = np.linalg.eigvalsh(centre @ rbf(coordinates, 1.5) @ centre)[1:]

    def expected(ratio):  # restricted log-likelihood of white noise, every squared coefficient at its mean
        return -89 / 2 * np.log((1 / (1 + ratio * spectrum)).sum()) - 0.5 * np.log1p(ratio * spectrum).sum()

    step = 1e-3
    curvature = (expected(step) - 2 * expected(0.0) + expected(-step)) / step**2
    np.testing.assert_allclose(fit.fsv_se[absent], spectrum.sum() / 89 / np.sqrt(-curvature), rtol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_the_differentiable_ratio_is_the_optimum(seed):
    from scipy.optimize import minimize_scalar

    from diffbio_sc.numerics.spatial import variance_jax

    rng = np.random.default_rng(seed)
    spectrum = rng.gamma(0.3, 3.0, 60)
    ratio = np.exp(rng.uniform(-3, 3, 20))
    squares = rng.chisquare(1, (60, 20)) * (1 + spectrum[:, None] * ratio)
    squares *= 60 / squares.sum(0)
    found, _ = one_program(variance_jax._largest_posterior)(jnp.asarray(spectrum), jnp.asarray(squares), 60.0, 0.5)

    def objective(theta, gene):
        load = np.exp(theta) * spectrum
        quadratic = (squares[:, gene] / (1 + load)).sum()
        return 0.5 * (60 * np.log(quadratic) + np.log1p(load).sum()) + (theta - 0.5) ** 2 / 18

    for gene in range(20):
        grid = np.linspace(-9, 9, 400)
        start = grid[np.argmin([objective(theta, gene) for theta in grid])]
        best = minimize_scalar(objective, args=(gene,), bounds=(start - 0.1, start + 0.1), method="bounded")
        assert float(found[gene]) == pytest.approx(best.x, abs=2e-3)
