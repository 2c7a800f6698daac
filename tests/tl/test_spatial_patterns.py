from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm, truncnorm
from sklearn.metrics import adjusted_rand_score

from diffbio_sc.blocks.matrix import as_count_matrix
from diffbio_sc.engines import spatial_patterns as engine
from diffbio_sc.numerics.spatial import pattern_mixture as model
from diffbio_sc.numerics.spatial.slide_basis import slide_bases
from diffbio_sc.tl import spatial_patterns


def planted(seed=0, *, side=16, genes=(40, 30, 20), null=30, strength=(0.25, 0.6), slides=1):
    """Counts of genes that follow one of some maps, with strengths, means and depths of their own."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    x, y = grid.T
    shapes = np.stack(
        [
            np.exp(-((x - 0.25) ** 2 + (y - 0.3) ** 2) / 0.05),
            np.cos(2 * np.pi * y),
            x,
            np.exp(-((x - 0.75) ** 2 + (y - 0.7) ** 2) / 0.05),
        ],
        1,
    )[:, : len(genes)]
    shapes = (shapes - shapes.mean(0)) / shapes.std(0)
    # On another slide a pattern has another map: here that of the next pattern.
    truth = np.concatenate([np.roll(shapes, slide, axis=1) for slide in range(slides)])
    label = rng.permutation(np.concatenate([np.repeat(np.arange(len(genes)), genes), np.full(null, -1)]))
    effect = rng.uniform(*strength, len(label)) * np.where(label >= 0, truth[:, label], 0.0)
    depth = rng.lognormal(0, 0.4, len(truth))
    typical = rng.lognormal(1.2, 0.7, len(label))
    # The rest of the transcriptome, as one gene: without it the spots' totals would follow the patterns.
    typical[np.flatnonzero(label < 0)[0]] = 2000
    counts = rng.poisson(typical * np.exp(effect) * depth[:, None])
    score = np.where(label >= 0, rng.uniform(5, 60, len(label)), rng.uniform(0, 1, len(label)))
    adata = ad.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(
            {"slide": pd.Categorical([f"slide {i // side**2}" for i in range(len(truth))])},
            index=[f"spot{i}" for i in range(len(truth))],
        ),
        var=pd.DataFrame(
            {
                "truth": label,
                "is_spatial": label >= 0,
                "spatial_score": score,
                "spatial_pvalue": 10.0**-score,
                "spatial_lengthscale": np.where(label >= 0, 100 * side * rng.uniform(0.15, 0.25, len(label)), np.nan),
            },
            index=[f"gene{i}" for i in range(len(label))],
        ),
        obsm={"spatial": np.tile(grid, (slides, 1)) * side * 100, "truth": truth},
    )
    adata.uns["spatial_genes"] = {"params": {"spatial_key": "spatial"}}
    return adata


@pytest.fixture(scope="module")
def _tissue():
    return planted()


@pytest.fixture
def tissue(_tissue):
    return _tissue.copy()


def agreement(adata, column="spatial_pattern"):
    genes = adata.var[adata.var["is_spatial"]]
    return adjusted_rand_score(genes["truth"], genes[column])


def likeness(adata):
    """Correlation of each planted map with the pattern map that is most like it."""
    maps, truth = adata.obsm["spatial_patterns"].to_numpy(), adata.obsm["truth"]
    return np.corrcoef(maps.T, truth.T)[: maps.shape[1], maps.shape[1] :].max(0)


def test_planted_patterns_and_their_number_are_found(tissue):
    spatial_patterns(tissue)
    assert agreement(tissue) >= 0.95
    assert (likeness(tissue) >= 0.97).all()
    record = tissue.uns["spatial_patterns"]
    assert list(record["n_genes"]) == [40, 30, 20]
    assert list(record["criterion"]["n_patterns"]) == list(range(2, 13))
    evidence = record["criterion"]["evidence"]
    assert evidence[1] >= evidence.max() - 5
    assert evidence[0] < evidence.max() - 5
    assert record["report"]["converged"]
    assert set(record["report"]) == {"history", "converged", "steps", "seconds"}
    assert set(record) >= {"params", "version", "report"}


@pytest.mark.parametrize(("genes", "seed"), [((60, 50), 1), ((30, 40, 25, 35), 2), ((60, 6, 6), 3)])
def test_number_of_patterns_is_found_for_other_tissues(genes, seed):
    adata = planted(seed, genes=genes)
    spatial_patterns(adata)
    assert adata.obsm["spatial_patterns"].shape[1] == len(genes)
    assert agreement(adata) >= 0.95


def test_fields_have_the_documented_form(tissue):
    spatial_patterns(tissue, n_patterns=3)
    pattern, probability = tissue.var["spatial_pattern"], tissue.var["spatial_pattern_probability"]
    significant = tissue.var["is_spatial"]
    assert list(pattern.cat.categories) == ["0", "1", "2"]
    np.testing.assert_array_equal(pattern.notna(), significant)
    np.testing.assert_array_equal(probability.notna(), significant)
    assert probability.dtype == np.float32
    assert probability[significant].between(1 / 3, 1).all()
    assert list(pattern.value_counts(sort=False)) == sorted(pattern.value_counts(), reverse=True)
    maps = tissue.obsm["spatial_patterns"]
    assert (maps.dtypes == np.float32).all()
    assert list(maps.columns) == ["0", "1", "2"]
    assert maps.index.equals(tissue.obs_names)


def test_given_number_is_kept_and_other_names_are_used(tissue):
    tissue.var = tissue.var.rename(columns=lambda name: name if name == "truth" else f"mine_{name}")
    tissue.uns["mine"] = tissue.uns.pop("spatial_genes")
    spatial_patterns(tissue, n_patterns=2, key="mine", key_added="aeh")
    assert tissue.obsm["aeh"].shape[1] == 2
    assert tissue.var["aeh_pattern"].nunique() == 2
    assert "aeh_pattern_probability" in tissue.var
    assert "spatial_pattern" not in tissue.var


def test_spots_without_counts_change_no_pattern():
    tissue = planted()
    spatial_patterns(tissue, n_patterns=3)
    count = 40
    empty = ad.AnnData(
        np.zeros((count, tissue.n_vars)), obs=pd.DataFrame(index=[f"empty{n}" for n in range(count)]), var=tissue.var
    )
    empty.obsm["spatial"] = tissue.obsm["spatial"][:count] + 0.01
    more = ad.concat([tissue[:, :], empty], merge="same", uns_merge="first")
    spatial_patterns(more, n_patterns=3)
    assert (more.var["spatial_pattern"] == tissue.var["spatial_pattern"])[tissue.var["spatial_pattern"].notna()].all()
    np.testing.assert_allclose(
        more.obsm["spatial_patterns"].iloc[: tissue.n_obs], tissue.obsm["spatial_patterns"], atol=1e-4
    )


def test_map_is_that_of_gaussian_process_regression_on_the_mean_gene():
    # One pattern of equal genes, all with amplitude 1: the posterior mean of the process given their mean.
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), -1).reshape(-1, 2)
    kernel = np.exp(-0.5 * ((places[:, None] - places[None]) ** 2).sum(-1) / 2.0**2)
    centre = np.eye(81) - 1 / 81
    mean = centre @ np.linalg.cholesky(kernel + 1e-9 * np.eye(81)) @ rng.normal(size=81)
    expression = mean[:, None] + centre @ rng.normal(0, 0.7, (81, 150))
    (basis,) = slide_bases(places, np.zeros(81, int), 2.0)
    fit = model.fit_mixture((basis.vectors.T @ expression).T, basis.values, 1, np.random.default_rng(0))
    found = basis.vectors @ fit.mean[0]
    scale = fit.mixture.scale[0]
    assert np.corrcoef(found, mean)[0, 1] > 0.995
    average = expression.mean(1)
    prior = scale * centre @ kernel @ centre
    expected = prior @ np.linalg.solve(prior + 0.49 / 150 * np.eye(81), average)
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=0.01)


def test_spots_that_are_not_used_leave_the_basis_as_it_is_and_get_its_extension():
    rng = np.random.default_rng(0)
    places, used = rng.uniform(0, 10, (120, 2)), np.arange(120) % 4 > 0
    (basis,) = slide_bases(places, np.zeros(120, int), 2.0, used)
    (alone,) = slide_bases(places[used], np.zeros(90, int), 2.0)
    np.testing.assert_array_equal(basis.vectors[used], alone.vectors)
    np.testing.assert_array_equal(basis.values, alone.values)
    kernel = np.exp(-0.5 * ((places[:, None] - places[None, used]) ** 2).sum(-1) / 2.0**2)
    kernel -= kernel[used].mean(0)
    first = basis.values > 0.1
    expected = kernel @ alone.vectors[:, first] / basis.values[first]
    np.testing.assert_allclose(basis.vectors[:, first], expected, atol=1e-3)
    _, empty = slide_bases(places, np.repeat([0, 1], 60), 2.0, np.arange(120) < 60)
    assert empty.vectors.shape == (60, 0)


def test_basis_is_the_eigenbasis_of_the_centred_kernel():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 10, (120, 2))
    (basis,) = slide_bases(places, np.zeros(120, int), 2.0)
    kernel = np.exp(-0.5 * ((places[:, None] - places[None]) ** 2).sum(-1) / 2.0**2)
    centre = np.eye(120) - 1 / 120
    expected = np.linalg.eigvalsh(centre @ kernel @ centre)[::-1]
    np.testing.assert_allclose(basis.values, expected[: len(basis.values)], rtol=1e-3)
    np.testing.assert_allclose(basis.vectors.T @ basis.vectors, np.eye(len(basis.values)), atol=1e-5)
    rebuilt = (basis.vectors * basis.values) @ basis.vectors.T
    np.testing.assert_allclose(rebuilt, centre @ kernel @ centre, atol=0.01)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_basis_of_many_spots_is_close_to_the_full_one(dimensions):
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 10, (2500, dimensions))
    (basis,) = slide_bases(places, np.zeros(2500, int), 2.5)
    kernel = np.exp(-0.5 * ((places[:, None] - places[None]) ** 2).sum(-1) / 2.5**2)
    kernel -= kernel.mean(0)
    kernel -= kernel.mean(1, keepdims=True)
    expected = np.linalg.eigvalsh(kernel)[::-1][:25]
    np.testing.assert_allclose(basis.values[:25], expected, rtol=1e-3)
    np.testing.assert_allclose(basis.vectors.T @ basis.vectors, np.eye(len(basis.values)), atol=1e-4)


def test_lengthscale_finer_than_the_places_is_raised_to_what_they_resolve():
    places = np.stack(np.meshgrid(np.arange(50.0), np.arange(50.0)), -1).reshape(-1, 2)
    (basis,) = slide_bases(places, np.zeros(2500, int), 0.1)
    assert 1.0 < basis.lengthscale < 2.5
    assert np.isfinite(basis.vectors).all()


def test_projection_equals_regression_spot_by_spot():
    adata = planted(4, side=8, genes=(10, 8), slides=2)
    counts = adata.X.toarray()
    counts[[3, 70]] = 0  # empty spots
    counts[:64, 2] = 0  # a gene that one slide lacks
    adata.X = sp.csr_matrix(counts)
    slides = np.repeat([0, 1], 64)
    bases = slide_bases(adata.obsm["spatial"], slides, 200.0)
    genes = np.array([5, 2, 11])
    total = counts.sum(1).astype(float)
    nuisance = np.random.default_rng(1).normal(size=(128, 1)) * 50
    nuisance[[9, 100]] = np.nan
    projected = engine.project_genes(as_count_matrix(adata.X), total, genes, slides, bases, nuisance)
    total[[9, 100]] = 0
    expected = []
    for slide in (0, 1):
        inside = (slides == slide) & (total > 0)
        vectors = bases[slide].vectors[total[slides == slide] > 0].astype(float)
        for gene in genes:
            value = np.log1p(counts[inside, gene] / total[inside] * np.median(total[total > 0]))
            design = np.stack([np.ones(inside.sum()), np.log(total[inside]), nuisance[inside, 0]], 1)
            residual = value - design @ np.linalg.lstsq(design, value, rcond=None)[0]
            spread = residual.std()
            expected.append(vectors.T @ (residual / spread if spread > 0 else residual))
    ranks = [len(basis.values) for basis in bases]
    found = [part for half in np.split(projected.coefficients, [ranks[0]], axis=1) for part in half]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert projected.variance[1, 0] == 0
    assert (projected.variance[1, 1], projected.variance[0, 0]) > (0, 0)


def test_amplitudes_and_evidence_equal_numerical_integration():
    rng = np.random.default_rng(0)
    data = rng.normal(0, 1.5, (4, 6))
    mixture = model.Mixture(
        mean=rng.normal(size=(1, 2, 6)), variance=rng.uniform(0.01, 0.1, (1, 2, 6)),
        log_share=np.log([[0.3, 0.7]]), noise=rng.uniform(0.5, 2, (1, 6)), scale=np.ones(1),
    )  # fmt: skip
    found = model.expect(mixture, data)
    prior = truncnorm(-2, np.inf, loc=1, scale=0.5)
    joint = np.empty((4, 2))
    for gene in range(4):
        for k in range(2):
            mean, variance, noise = mixture.mean[0, k], mixture.variance[0, k], mixture.noise[0]

            def density(a, gene=gene, mean=mean, variance=variance, noise=noise):
                expected = norm(a * mean, np.sqrt(noise)).logpdf(data[gene]) - 0.5 * a**2 * variance / noise
                return np.exp(expected.sum()) * prior.pdf(a)

            moments = [quad(lambda a, p=p: a**p * density(a), 0, 8, epsabs=0, limit=200)[0] for p in range(3)]
            joint[gene, k] = moments[0] * np.exp(mixture.log_share[0, k])
            assert found.amplitude[0, gene, k] == pytest.approx(moments[1] / moments[0], rel=1e-6)
            assert found.squared[0, gene, k] == pytest.approx(moments[2] / moments[0], rel=1e-6)
    np.testing.assert_allclose(found.responsibility[0], joint / joint.sum(1, keepdims=True), rtol=1e-6)
    assert found.log_likelihood[0] == pytest.approx(np.log(joint.sum(1)).sum(), rel=1e-8)


def test_fewest_good_patterns_are_chosen_and_none_of_one_or_two_genes():
    evidence = np.array([-500.0, -4.0, 0.0, -1.0, 30.0])
    assert engine.choose_fit(evidence, np.array([20, 10, 8, 5, 3])) == 4
    assert engine.choose_fit(evidence, np.array([20, 10, 8, 5, 2])) == 1
    assert engine.choose_fit(evidence, np.array([20, 2, 2, 1, 0])) == 0
    assert engine.choose_fit(np.array([0.0, 9.0]), np.array([1, 1])) == 1


def test_noise_has_the_highest_likelihood():
    rng = np.random.default_rng(0)
    spectrum = np.exp(-np.arange(40) / 6.0)
    error = (0.4 + 2.0 * spectrum) * rng.gamma(20, 1 / 20, 40)
    noise = np.ones((1, 40))
    for _ in range(10):
        noise = model.fit_noise(noise, error[None], spectrum)

    def cost(parameters):
        variance = np.exp(parameters[0]) + np.exp(parameters[1]) * spectrum
        return (np.log(variance) + error / variance).sum()

    best = np.exp(minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x)
    np.testing.assert_allclose(noise[0], best[0] + best[1] * spectrum, rtol=1e-4)


def test_bound_rises_step_by_step(tissue):
    spatial_patterns(tissue, n_patterns=3)
    history = tissue.uns["spatial_patterns"]["report"]["history"]["evidence"]
    assert len(history) > 5
    assert (np.diff(history) > -0.05).all()


def test_genes_of_opposite_maps_are_not_put_together():
    adata = planted(5, genes=(30,), null=30)
    label = adata.var["truth"].to_numpy()
    rng = np.random.default_rng(0)
    # A third of the genes decrease where the others increase.
    flipped = np.flatnonzero(label == 0)[:10]
    counts = adata.X.toarray()
    effect = np.exp(-0.4 * adata.obsm["truth"][:, :1])
    counts[:, flipped] = rng.poisson(5 * effect * rng.lognormal(0, 0.3, (len(counts), 1)), (len(counts), 10))
    adata.X = sp.csr_matrix(counts)
    spatial_patterns(adata)
    first = adata.var["spatial_pattern"].to_numpy()[flipped]
    others = adata.var["spatial_pattern"].to_numpy()[np.setdiff1d(np.flatnonzero(label == 0), flipped)]
    assert not set(first) & set(others)


def test_seed_reproduces_bit_for_bit(tissue):
    one = spatial_patterns(tissue, rng=3, copy=True)
    other = spatial_patterns(tissue, rng=3, copy=True)
    np.testing.assert_array_equal(one.obsm["spatial_patterns"].to_numpy(), other.obsm["spatial_patterns"].to_numpy())
    pd.testing.assert_frame_equal(one.var, other.var)
    assert "spatial_patterns" not in tissue.obsm
    generator = spatial_patterns(tissue, rng=np.random.default_rng(3), copy=True)
    np.testing.assert_array_equal(
        one.obsm["spatial_patterns"].to_numpy(), generator.obsm["spatial_patterns"].to_numpy()
    )


def test_order_of_genes_and_spots_does_not_matter(tissue):
    order = np.random.default_rng(0)
    spots, genes = order.permutation(tissue.n_obs), order.permutation(tissue.n_vars)
    shuffled = tissue[spots][:, genes].copy()
    spatial_patterns(tissue)
    spatial_patterns(shuffled)
    assert list(shuffled.var["spatial_pattern"]) == list(tissue.var["spatial_pattern"].iloc[genes])
    np.testing.assert_allclose(
        shuffled.obsm["spatial_patterns"], tissue.obsm["spatial_patterns"].iloc[spots], atol=1e-3
    )


def test_order_of_many_spots_does_not_matter():
    adata = planted(6, side=42, genes=(15, 10), null=5)  # more spots than representative places
    spots = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = adata[spots].copy()
    spatial_patterns(adata, n_patterns=2)
    spatial_patterns(shuffled, n_patterns=2)
    assert list(shuffled.var["spatial_pattern"]) == list(adata.var["spatial_pattern"])
    np.testing.assert_allclose(shuffled.obsm["spatial_patterns"], adata.obsm["spatial_patterns"].iloc[spots], atol=1e-3)
    assert agreement(adata) == 1
    assert (likeness(adata) > 0.9).all()


def test_units_and_origin_of_coordinates_do_not_matter(tissue):
    moved = tissue.copy()
    moved.obsm["spatial"] = moved.obsm["spatial"] * 0.01 + [1e4, -1e4]
    moved.var["spatial_lengthscale"] *= 0.01
    spatial_patterns(tissue)
    spatial_patterns(moved)
    assert list(moved.var["spatial_pattern"]) == list(tissue.var["spatial_pattern"])
    np.testing.assert_allclose(moved.obsm["spatial_patterns"], tissue.obsm["spatial_patterns"], atol=1e-3)


def test_two_slides_have_maps_of_their_own():
    adata = planted(7, side=14, slides=2)
    adata.uns["spatial_genes"]["params"]["library_key"] = "slide"
    spatial_patterns(adata)
    assert agreement(adata) >= 0.95
    assert (likeness(adata) >= 0.97).all()  # over both slides, whose coordinates are the same
    assert adata.uns["spatial_patterns"]["params"]["library_key"] == "slide"
    assert len(adata.uns["spatial_patterns"]["lengthscale"]) == 2


def test_genes_beyond_the_limit_are_assigned_to_the_patterns(tissue):
    spatial_patterns(tissue, max_genes=45, n_patterns=3)
    assert tissue.var["spatial_pattern"].notna().sum() == 90
    assert agreement(tissue) >= 0.9


def test_gene_without_variation_is_left_out(tissue):
    name = tissue.var_names[tissue.var["is_spatial"]][0]
    counts = tissue.X.toarray()
    counts[:, tissue.var_names.get_loc(name)] = 0
    tissue.X = sp.csr_matrix(counts)
    spatial_patterns(tissue, n_patterns=3)
    assert tissue.var["spatial_pattern"].notna().sum() == 89
    assert pd.isna(tissue.var.loc[name, "spatial_pattern"])


@pytest.mark.parametrize("kind", ["dense", "csc", "layer", "backed", "dask"])
def test_same_result_from_every_kind_of_matrix(tissue, tmp_path, kind):
    expected = spatial_patterns(tissue, n_patterns=3, copy=True).obsm["spatial_patterns"].to_numpy()
    if kind == "dense":
        tissue.X = tissue.X.toarray()
    elif kind == "csc":
        tissue.X = tissue.X.tocsc()
    elif kind == "layer":
        tissue.layers["counts"] = tissue.X.copy()
        tissue.X = np.log1p(tissue.X.toarray())
        tissue.uns["spatial_genes"]["params"]["layer"] = "counts"
    elif kind == "backed":
        tissue.write_h5ad(tmp_path / "a.h5ad")
        tissue = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    else:
        tissue.X = pytest.importorskip("dask.array").from_array(tissue.X.toarray(), chunks=(50, -1))
    spatial_patterns(tissue, n_patterns=3)
    np.testing.assert_allclose(tissue.obsm["spatial_patterns"], expected, atol=1e-4)


def test_round_trip_through_h5ad(tissue, tmp_path):
    spatial_patterns(tissue)
    tissue.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        back.obsm["spatial_patterns"], tissue.obsm["spatial_patterns"],
        check_names=False, check_index_type=False, check_column_type=False,
    )  # fmt: skip
    assert list(back.var["spatial_pattern"].dropna()) == list(tissue.var["spatial_pattern"].dropna())
    np.testing.assert_array_equal(back.var["spatial_pattern_probability"], tissue.var["spatial_pattern_probability"])
    record = back.uns["spatial_patterns"]
    np.testing.assert_array_equal(
        record["criterion"]["evidence"], tissue.uns["spatial_patterns"]["criterion"]["evidence"]
    )
    assert record["params"]["max_genes"] == 2000
    spatial_patterns(back)  # from what the file holds of the test's parameters
    assert list(back.var["spatial_pattern"].dropna()) == list(tissue.var["spatial_pattern"].dropna())


@pytest.mark.parametrize("given", ["by the test", "as a table", "smoothed"])
def test_what_covariates_explain_is_no_pattern(tissue, given):
    # With the first two maps as covariates only genes of the third have a map left.
    strength = []
    for option in ("without", given):
        adata = tissue.copy()
        adata.obs["one"], adata.obs["two"] = adata.obsm["truth"][:, 0], adata.obsm["truth"][:, 1]
        options = {}
        if option == "by the test":
            adata.uns["spatial_genes"]["params"]["covariates"] = np.array(["one", "two"])
        elif option == "smoothed":  # read with an error at each spot, as large as the maps
            names, rng = ["one", "two"], np.random.default_rng(0)
            adata.obs[names] += rng.normal(0, adata.obs[names].std(), (adata.n_obs, 2))
            adata.uns["spatial_genes"]["params"].update(covariates=np.array(names), smooth_covariates=True)
        elif option == "as a table":
            adata.uns["spatial_genes"]["params"]["covariates"] = "given"
            with pytest.raises(ValueError, match="pass it as covariates="):
                spatial_patterns(adata)
            options["covariates"] = adata.obs[["one", "two"]]
        spatial_patterns(adata, n_patterns=3, **options)
        truth, maps = adata.obsm["truth"], adata.obsm["spatial_patterns"].to_numpy()
        strength.append(np.abs(truth.T @ maps).max(1) / len(truth))
    assert (strength[0] > 0.25).all()
    assert (strength[1][:2] < 0.08).all()
    assert strength[1][2] > 0.25


def drop(column):
    def spoil(adata):
        del adata.var[column]

    return spoil


def keep_one(adata):
    adata.var["is_spatial"] = np.arange(adata.n_vars) == 0


def same_place(adata):
    adata.obsm["spatial"] = np.ones((adata.n_obs, 2))


def missing_place(adata):
    adata.obsm["spatial"][0, 0] = np.nan


def fractions(adata):
    adata.X = adata.X * 0.5


@pytest.mark.parametrize(
    ("spoil", "options", "kind", "message"),
    [
        (drop("is_spatial"), {}, KeyError, "no column 'is_spatial': run diffbio_sc.tl.spatial_genes"),
        (drop("spatial_score"), {}, KeyError, "no column 'spatial_score'"),
        (drop("spatial_lengthscale"), {}, KeyError, "no column 'spatial_lengthscale'"),
        (None, {"key": "other"}, KeyError, "no column 'other_is_spatial'"),
        (keep_one, {}, ValueError, "At least 2 significant genes are needed, adata.var.'is_spatial'. has 1"),
        (None, {"n_patterns": 91}, ValueError, "at most the 90 significant genes, found 91"),
        (None, {"n_patterns": 0}, ValueError, "n_patterns must be a whole number"),
        (None, {"n_patterns": 2.5}, ValueError, "n_patterns must be a whole number"),
        (None, {"max_genes": 1}, ValueError, "max_genes must be"),
        (None, {"lengthscale": -1.0}, ValueError, "lengthscale must be a number above 0"),
        (None, {"lengthscale": np.inf}, ValueError, "lengthscale must be a number above 0"),
        (None, {"lengthscale": "long"}, ValueError, "lengthscale must be a number above 0"),
        (None, {"spatial_key": "nosuch"}, KeyError, "adata.obsm has no 'nosuch'"),
        (None, {"library_key": "nosuch"}, KeyError, "adata.obs has no column 'nosuch'"),
        (None, {"layer": "nosuch"}, KeyError, "no 'nosuch'"),
        (same_place, {}, ValueError, "coordinates of all 256 spots are the same"),
        (missing_place, {}, ValueError, "must be finite"),
        (fractions, {}, ValueError, "must hold raw counts"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(tissue, spoil, options, kind, message):
    if spoil is not None:
        spoil(tissue)
    before = tissue.copy()
    with pytest.raises(kind, match=message):
        spatial_patterns(tissue, **options)
    assert set(tissue.obsm) == set(before.obsm)
    assert set(tissue.uns) == set(before.uns)
    pd.testing.assert_frame_equal(tissue.var, before.var)
    np.testing.assert_array_equal(tissue.X.toarray(), before.X.toarray())


def test_mudata_is_told_to_pass_the_modality(tissue):
    mudata = pytest.importorskip("mudata")
    with pytest.raises(TypeError, match=r"mdata\['rna'\]"):
        spatial_patterns(mudata.MuData({"rna": tissue}))


@pytest.mark.parametrize("number", [2, 4])
def test_evidence_pays_for_proportions_and_counts_orders(tissue, number):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(60, 12))
    fit = model.fit_mixture(data, np.linspace(4, 0.1, 12), number, rng)
    orders = {2: np.log(2), 4: np.log(24)}[number]
    assert fit.evidence == pytest.approx(fit.history[-1] - 0.5 * (number - 1) * np.log(60) + orders)
