from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.text import Annotation, Text
from scipy.stats import beta

from diffbio_sc.engines.spatial_map import smooth_map

module = importlib.import_module("diffbio_sc.pl._spatial_genes")
plot = module.spatial_genes


@pytest.fixture
def result():
    """Tested object, filled by hand: 40 genes of which 8 follow a gradient, 2 were not tested."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(12.0), np.arange(9.0)), -1).reshape(-1, 2)
    effect = np.zeros((108, 40))
    effect[:, :8] = 0.15 * (grid[:, :1] - 5.5)
    depth = rng.lognormal(0, 0.3, (108, 1))
    typical = np.where(np.arange(40) == 38, 2000, 6)  # most counts are of a gene that follows depth alone
    counts = rng.poisson(typical * np.exp(effect) * depth).astype(np.float32)
    score = np.concatenate([np.linspace(400, 20, 8), rng.uniform(0, 2, 30), [np.nan, np.nan]])
    fsv = np.concatenate([np.linspace(0.9, 0.4, 8), rng.uniform(0, 0.3, 30), [np.nan, np.nan]])
    var = pd.DataFrame(
        {
            "fsv": fsv, "fsv_se": 0.05, "spatial_pvalue": 10.0**-score, "spatial_padj": 10.0**-score,
            "spatial_score": score, "is_spatial": np.arange(40) < 8,
            "spatial_lengthscale": np.where(fsv >= 0, 200.0, np.nan),
        },
        index=[f"gene{i}" for i in range(40)],
    )  # fmt: skip
    adata = ad.AnnData(
        sp.csr_matrix(counts), var=var, obs=pd.DataFrame(index=[f"spot{i}" for i in range(108)]),
        obsm={"spatial": grid * 50, "place": grid},
    )  # fmt: skip
    adata.uns["spatial_genes"] = {"params": {"spatial_key": "spatial"}, "spacing": 50.0}
    return adata


def points(collection):
    return np.asarray(collection.get_offsets())


def places_of(axis):
    """Centres of the squares of a map."""
    return np.stack([path.vertices[:4].mean(0) for path in axis.collections[0].get_paths()])


def drawn_values(axis):
    return np.asarray(axis.collections[0].get_array())


def test_volcano_shows_every_tested_gene(result):
    axis = plot(result, show=False)
    grey, coloured = axis.collections
    np.testing.assert_allclose(
        points(coloured), result.var.loc[result.var["is_spatial"], ["fsv", "spatial_score"]], rtol=1e-6
    )
    assert len(points(grey)) == 30
    low, high = axis.get_ylim()
    assert low <= 0
    assert high > 400
    named = [text.get_text() for text in axis.texts]
    assert sorted(named) == ["gene0", "gene1", "gene2", "gene3"]


def test_names_in_the_volcano_do_not_overlap(result):
    # All significant genes at nearly the same place.
    result.var["fsv"] = np.where(result.var["is_spatial"], 0.5 + np.arange(40) * 1e-3, result.var["fsv"])
    result.var["spatial_score"] = np.where(result.var["is_spatial"], 50.0 + np.arange(40), result.var["spatial_score"])
    result.var["spatial_pvalue"] = 10.0 ** -result.var["spatial_score"]
    axis = plot(result, n_top=8, show=False)
    renderer = axis.figure.canvas.get_renderer()
    boxes = []
    for text in axis.texts:
        assert isinstance(text, Annotation)
        text.update_positions(renderer)
        boxes.append(Text.get_window_extent(text, renderer))
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    frame = axis.get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)


def test_chosen_genes_are_named_on_given_axes(result):
    import matplotlib.pyplot as plt

    _, axis = plt.subplots()
    assert plot(result, genes=["gene7", "gene20"], ax=axis, show=False) is axis
    assert sorted(text.get_text() for text in axis.texts) == ["gene20", "gene7"]


def test_maps_show_expression_and_its_smooth_beside_it(result):
    axes = plot(result, kind="maps", genes=["gene3", "gene0"], show=False)
    assert [axis.get_title() for axis in axes] == ["gene3", "gene3, smooth", "gene0", "gene0, smooth"]
    counts = result.X.toarray()
    total = counts.sum(1)
    for position, gene in ((0, 3), (2, 0)):
        expected = np.log1p(counts[:, gene] / total * np.median(total))
        drawn = drawn_values(axes[position])
        np.testing.assert_allclose(np.sort(drawn), np.sort(expected), rtol=1e-5)
        smooth = drawn_values(axes[position + 1])
        assert smooth.std() < expected.std()
    # The gradient runs along x.
    place = places_of(axes[3])[:, 0]
    assert np.corrcoef(place, drawn_values(axes[3]))[0, 1] > 0.93
    assert "gene0" not in result.obs


def test_smooth_map_is_gaussian_process_regression(result):
    values = np.random.default_rng(0).normal(size=108).astype(np.float32)
    place = result.obsm["place"]
    found = smooth_map(values, place, np.zeros(108, int), 0.6, 2.0)
    kernel = np.exp(-0.5 * ((place[:, None] - place[None]) ** 2).sum(-1) / 2.0**2)
    centre = np.eye(108) - 1 / 108
    kernel = centre @ kernel @ centre
    noise = 0.4 / 0.6 * np.trace(kernel) / 108
    expected = values.mean() + kernel @ np.linalg.solve(kernel + noise * np.eye(108), values - values.mean())
    np.testing.assert_allclose(found, expected, atol=3e-3)


def test_stored_smooth_expression_is_used(result):
    stored = np.full(result.shape, np.nan, np.float32)
    stored[:, 1] = np.arange(108)
    result.layers["spatial_smoothed"] = stored
    axes = plot(result, kind="maps", genes=["gene1"], show=False)
    np.testing.assert_allclose(np.sort(drawn_values(axes[1])), np.log1p(np.arange(108.0)), rtol=1e-6)
    axes = plot(result, kind="maps", genes=["gene2"], show=False)  # not stored: computed
    assert np.isfinite(drawn_values(axes[1])).all()


def test_maps_take_the_top_genes_and_the_layer_of_the_test(result):
    result.layers["counts"] = result.X.copy()
    result.X = np.full(result.shape, np.nan, np.float32)
    result.uns["spatial_genes"]["params"]["layer"] = "counts"
    axes = plot(result, kind="maps", n_top=3, show=False)
    assert [axis.get_title() for axis in axes[::2]] == ["gene0", "gene1", "gene2"]


def test_slides_are_drawn_side_by_side(result):
    result.obs["slide"] = np.where(np.arange(108) < 54, "a", "b")
    result.obsm["spatial"][54:] = result.obsm["spatial"][:54]
    result.uns["spatial_genes"]["params"]["library_key"] = "slide"
    before = result.obsm["spatial"].copy()
    axes = plot(result, kind="maps", n_top=1, show=False)
    drawn = places_of(axes[0]).round(3)
    assert len(np.unique(drawn, axis=0)) == 108
    np.testing.assert_array_equal(result.obsm["spatial"], before)


def test_patterns_are_drawn_with_their_sizes(result):
    maps = np.stack([np.arange(108.0), -np.arange(108.0)], 1).astype(np.float32)
    result.obsm["spatial_patterns"] = pd.DataFrame(maps, index=result.obs_names, columns=["0", "1"])
    result.uns["spatial_patterns"] = {"params": {"spatial_key": "place"}, "n_genes": np.array([5, 3])}
    axes = plot(result, kind="patterns", show=False)
    assert [axis.get_title() for axis in axes] == ["pattern 0 (5 genes)", "pattern 1 (3 genes)"]
    np.testing.assert_array_equal(np.sort(drawn_values(axes[1])), np.sort(maps[:, 1]))
    # Signed values: colours are symmetric about 0, the same for all patterns.
    assert {tuple(axis.collections[0].get_clim()) for axis in axes} == {(-107.0, 107.0)}
    assert axes[0].collections[0].get_cmap().name == "RdBu_r"
    assert places_of(axes[0])[:, 0].max() == pytest.approx(11)  # the coordinates of the patterns' parameters


def test_spots_in_maps_meet_and_do_not_overlap(result):
    axes = plot(result, kind="maps", n_top=1, show=False)
    corners = axes[0].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.ptp(corners, axis=0), 50)
    assert axes[0].collections[0].get_clim() == axes[1].collections[0].get_clim()  # a gene and its smooth map


def test_quantiles_and_band_of_uniform_values():
    import matplotlib.pyplot as plt

    uniform = -np.log10((np.arange(1, 201) - 0.5) / 200)
    observed = np.linspace(0, 300, 50)
    axis = module._quantiles(observed, uniform, plt.subplots()[1])
    band, seen, permuted = axis.collections
    np.testing.assert_allclose(points(permuted)[:, 0], points(permuted)[:, 1])
    np.testing.assert_allclose(points(seen)[:, 1], observed[::-1])
    np.testing.assert_allclose(points(seen)[0], [-np.log10(0.5 / 50), 300])
    corners = band.get_paths()[0].vertices
    smallest = corners[np.isclose(corners[:, 0], uniform[0])]
    limits = -np.log10(beta(1, 200).ppf([0.975, 0.025]))
    np.testing.assert_allclose([smallest[:, 1].min(), smallest[:, 1].max()], limits, rtol=1e-6)
    assert axis.get_ylim()[1] > 300


def test_shuffled_coordinates_give_uniform_p(result):
    before = result.copy()
    axis = plot(result, kind="qq", show=False)
    band, observed, shuffled = axis.collections
    np.testing.assert_allclose(points(observed)[:, 1], np.sort(result.var["spatial_score"].dropna())[::-1])
    assert len(points(shuffled)) == 3 * 38
    pvalue = 10.0 ** -points(shuffled)[:, 1]
    assert pvalue.min() > 1e-4
    assert 0.35 < np.median(pvalue) < 0.65
    again = plot(result, kind="qq", show=False)
    np.testing.assert_array_equal(points(again.collections[2]), points(shuffled))
    # Covariates are smoothed over the true places, as the test smoothed them.
    along = result.obsm["spatial"][:, 0]
    result.obs["age"] = along + np.random.default_rng(0).normal(0, 2 * along.std(), result.n_obs)
    params = result.uns["spatial_genes"]["params"]
    params.update(covariates=["age"])
    plain = points(plot(result, kind="qq", show=False).collections[2])
    params.update(smooth_covariates=True)
    smoothed = points(plot(result, kind="qq", show=False).collections[2])
    assert np.abs(smoothed - plain).max() > 0.01
    assert (10.0 ** -smoothed[:, 1]).min() > 1e-4
    pd.testing.assert_frame_equal(result.var, before.var)
    np.testing.assert_array_equal(result.obsm["spatial"], before.obsm["spatial"])
    assert set(result.uns["spatial_genes"]) == set(before.uns["spatial_genes"])


def test_figure_is_saved(result, tmp_path):
    plot(result, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_missing_things_are_named(result):
    import matplotlib.pyplot as plt

    with pytest.raises(KeyError, match="run diffbio_sc.tl.spatial_genes"):
        plot(result, key="nosuch")
    with pytest.raises(KeyError, match="no 'spatial_patterns': run diffbio_sc.tl.spatial_patterns"):
        plot(result, kind="patterns")
    with pytest.raises(KeyError, match="no genes .'nosuch'"):
        plot(result, genes=["nosuch"])
    with pytest.raises(ValueError, match="not tested.*'gene39'"):
        plot(result, kind="maps", genes=["gene39"])
    with pytest.raises(KeyError, match="adata.obsm has no 'nosuch'"):
        plot(result, kind="maps", spatial_key="nosuch")
    with pytest.raises(KeyError, match="no 'nosuch'"):
        plot(result, kind="maps", layer="nosuch")
    with pytest.raises(ValueError, match="'volcano', 'maps', 'qq' or 'patterns', found 'pie'"):
        plot(result, kind="pie")
    with pytest.raises(ValueError, match="n_top must be a whole number"):
        plot(result, n_top=0)
    with pytest.raises(ValueError, match="ax= is for kind"):
        plot(result, kind="maps", ax=plt.subplots()[1])
    result.uns["spatial_genes"]["params"]["covariates"] = "given"
    with pytest.raises(ValueError, match="pass it as covariates="):
        plot(result, kind="qq")
    result.var["fsv"] = np.nan
    with pytest.raises(ValueError, match="variance=True"):
        plot(result)
