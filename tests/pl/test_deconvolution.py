from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def result():
    spots, reference = dbio.datasets.pbmc_tissue(n_spots=64)
    dbio.tl.deconvolve(spots, reference, cell_type_key="cell_type")
    return spots


def test_maps_colour_each_spot_by_its_proportion(result):
    axes = dbio.pl.deconvolution(result, cell_types=["Dendritic", "CD56+ NK"], show=False)
    assert [axis.get_title() for axis in axes] == ["Dendritic", "CD56+ NK"]
    drawn = np.asarray(axes[0].collections[0].get_array())
    np.testing.assert_allclose(np.sort(drawn), np.sort(result.obsm["deconvolution"]["Dendritic"]), atol=1e-6)
    assert "Dendritic" not in result.obs


def test_all_maps_are_ordered_by_abundance(result):
    titles = [axis.get_title() for axis in dbio.pl.deconvolution(result, show=False)]
    assert titles == list(result.obsm["deconvolution"].mean().sort_values(ascending=False).index)


def test_stacked_bars_reach_one(result):
    axis = dbio.pl.deconvolution(result, kind="stacked", show=False)
    assert len(axis.collections) == 7
    assert not axis.patches  # one polygon for each type, not one for each spot
    assert axis.collections[-1].get_paths()[0].vertices[:, 1].max() == pytest.approx(1, abs=1e-5)
    table = result.obsm["deconvolution"]
    lowest = axis.collections[0].get_paths()[0].vertices
    heights = {height.round(5) for height in lowest[:, 1]}
    most_abundant = table.mean().idxmax()
    assert heights >= {np.float64(value).round(5) for value in table[most_abundant]}


def test_many_types_have_colours_of_their_own_and_a_legend_in_columns():
    rng = np.random.default_rng(0)
    for number in (20, 30, 120):
        shares = rng.dirichlet(np.full(number, 0.1), 50)
        adata = ad.AnnData(np.zeros((50, 1), np.float32))
        adata.obsm["deconvolution"] = pd.DataFrame(
            shares, index=adata.obs_names, columns=[f"type {i}" for i in range(number)]
        )
        axis = dbio.pl.deconvolution(adata, kind="stacked", show=False)
        colors = {tuple(part.get_facecolor()[0]) for part in axis.collections}
        assert len(colors) == number
        assert axis.get_legend()._ncols == -(-number // 12)
        plt.close(axis.figure)


def test_maps_share_a_scale_that_is_labelled_and_show_all_spots_and_missing_ones(result):
    adata = result.copy()
    adata.obsm["deconvolution"].iloc[[3, 9]] = np.nan
    axes = dbio.pl.deconvolution(adata, show=False)
    top = np.nanmax(adata.obsm["deconvolution"].to_numpy())
    assert {tuple(axis.collections[0].get_clim()) for axis in axes} == {(0.0, top)}
    bars = [axis for axis in axes[0].figure.axes if axis not in axes]
    assert [bar.get_ylabel() for bar in bars] == ["proportion"]
    places = adata.obsm["spatial"]
    width = np.ptp(axes[0].collections[0].get_paths()[0].vertices[:, 0])
    for axis in axes:
        shown, missing = axis.collections
        assert len(shown.get_paths()) == 62
        assert len(missing.get_paths()) == 2
        assert axis.get_xlabel() == "grey: no value (2 spots)"
        assert axis.get_xlim()[0] <= places[:, 0].min() - width / 2
        assert axis.get_xlim()[1] >= places[:, 0].max() + width / 2
        assert axis.get_ylim()[0] >= places[:, 1].max() + width / 2
        assert axis.get_ylim()[1] <= places[:, 1].min() - width / 2
    own = dbio.pl.deconvolution(adata, show=False, common_scale=False)
    assert [axis.collections[0].get_clim()[1] for axis in own] == pytest.approx(
        [adata.obsm["deconvolution"][axis.get_title()].max() for axis in own]
    )
    assert sum(axis.get_ylabel() == "proportion" for axis in own[0].figure.axes) == len(own)


def test_squares_of_a_lattice_meet_and_other_spots_are_circles(result):
    axis = dbio.pl.deconvolution(result, cell_types="Dendritic", show=False)[0]
    corners = axis.collections[0].get_paths()[0].vertices
    step = np.diff(np.unique(result.obsm["spatial"][:, 0])).min()
    assert np.ptp(corners[:, 0]) == pytest.approx(step)
    adata = result.copy()
    adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 10, (64, 2))
    axis = dbio.pl.deconvolution(adata, cell_types="Dendritic", show=False)[0]
    assert type(axis.collections[0]).__name__ == "EllipseCollection"


def test_maps_of_a_wide_tissue_fit_a_page(result):
    wide = result.copy()
    wide.obsm["spatial"] = wide.obsm["spatial"] * np.array([6.0, 1.0])
    for tissue in (result, wide):
        figure = dbio.pl.deconvolution(tissue, show=False, return_fig=True)
        assert figure.get_figwidth() <= 13.3
        assert figure.get_figheight() >= 2


def test_slides_lie_side_by_side_under_their_names(result):
    adata = result.copy()
    adata.obs["slide"] = np.where(np.arange(64) % 2, "second", "first")
    adata.uns["deconvolution"] = {**adata.uns["deconvolution"], "params": {"library_key": "slide"}}
    axis = dbio.pl.deconvolution(adata, cell_types=["Dendritic"], show=False)[0]
    assert [text.get_text() for text in axis.texts] == ["first", "second"]
    centres = np.concatenate(
        [path.vertices[:4].mean(0, keepdims=True) for path in axis.collections[0].get_paths()]
        if type(axis.collections[0]).__name__ == "PolyCollection"
        else [axis.collections[0].get_offsets()]
    )
    second = (adata.obs["slide"] == "second").to_numpy()
    assert centres[~second, 0].max() < centres[second, 0].min()


@pytest.mark.parametrize(
    ("save", "error", "message"),
    [
        (True, TypeError, "save must be the path of a file"),
        (".pdf", ValueError, "whole path of a file, such as 'figure.pdf'"),
        ("nosuch/figure.png", FileNotFoundError, "no folder 'nosuch'"),
        ("figure.docx", ValueError, "must end in one of"),
        ("", ValueError, "whole path"),
    ],
)
@pytest.mark.parametrize("kind", ["maps", "stacked", "fit"])
def test_places_where_no_figure_can_be_saved(result, kind, save, error, message):
    with pytest.raises(error, match=message):
        dbio.pl.deconvolution(result, kind=kind, save=save)


def test_a_coordinate_that_is_missing_or_text_is_named(result):
    adata = result.copy()
    adata.obsm["spatial"][5, 0] = np.nan
    with pytest.raises(ValueError, match=rf"obsm\['spatial'\] must be finite.*{adata.obs_names[5]}"):
        dbio.pl.deconvolution(adata, show=False)
    adata.obsm["spatial"] = pd.DataFrame({"x": ["1", "b"] * 32, "y": "3"}, index=adata.obs_names)
    with pytest.raises(ValueError, match=r"obsm\['spatial'\] must hold numbers, found 'b'"):
        dbio.pl.deconvolution(adata, show=False)


def test_fit_draws_spots_and_genes(result):
    spots, genes = dbio.pl.deconvolution(result, kind="fit", show=False)
    assert len(spots.collections[0].get_offsets()) == 64
    used = result.var["deconvolution_log_platform_effect"].notna().sum()
    assert sum(bar.get_height() for bar in genes.patches) == used


def test_figure_is_saved(result, tmp_path):
    dbio.pl.deconvolution(result, kind="stacked", save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_missing_things_are_named(result):
    with pytest.raises(KeyError, match="no 'nosuch': run diffbio_sc.tl.deconvolve"):
        dbio.pl.deconvolution(result, key="nosuch")
    with pytest.raises(KeyError, match="no cell types .'Neuron'"):
        dbio.pl.deconvolution(result, cell_types=["Neuron"])
    with pytest.raises(KeyError, match="adata.obsm has no 'nosuch'"):
        dbio.pl.deconvolution(result, spatial_key="nosuch")
    with pytest.raises(ValueError, match="'maps', 'stacked' or 'fit'"):
        dbio.pl.deconvolution(result, kind="pie")


def test_proportions_as_tidy_table(result):
    tidy = dbio.get.deconvolution(result)
    assert list(tidy.columns) == ["spot", "cell_type", "proportion", "std", "abundance"]
    wide = tidy.pivot(index="spot", columns="cell_type", values="proportion")
    table = result.obsm["deconvolution"]
    np.testing.assert_array_equal(wide.loc[table.index, table.columns].to_numpy(), table.to_numpy())
    with pytest.raises(KeyError, match="run diffbio_sc.tl.deconvolve"):
        dbio.get.deconvolution(result, key="nosuch")
