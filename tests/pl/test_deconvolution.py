from __future__ import annotations

import numpy as np
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
    tops = np.array([bar.get_y() + bar.get_height() for bar in axis.containers[-1]])
    np.testing.assert_allclose(tops, 1, atol=1e-5)
    assert len(axis.containers) == 7


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
    with pytest.raises(KeyError, match="which maps need"):
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
