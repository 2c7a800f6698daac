from __future__ import annotations

import importlib

import anndata as ad
import matplotlib.pyplot as plt
import mudata as md
import numpy as np
import pandas as pd
import pytest

plot = importlib.import_module("diffbio_sc.pl._multiomics_vae").multiomics_vae


@pytest.fixture
def result():
    """MuData with the record of a fit, filled by hand: 60 cells of two types, the last 10 without proteins."""
    rng = np.random.default_rng(0)
    cells = [f"c{i}" for i in range(60)]
    rna = ad.AnnData(np.ones((60, 2), np.float32), obs=pd.DataFrame(index=cells))
    protein = ad.AnnData(np.ones((50, 2), np.float32), obs=pd.DataFrame(index=cells[:50]))
    rna.var_names, protein.var_names = ["g0", "g1"], ["p0", "p1"]
    rna.obs["depth"], protein.obs["depth"] = np.arange(60.0), np.arange(50.0)
    protein.obs["stain"] = np.arange(50.0)
    mdata = md.MuData({"rna": rna, "prot": protein})
    mdata.obs["type"] = pd.Categorical(np.where(np.arange(60) % 3 == 0, "B", "T"))
    mdata.obsm["X_multiomics_vae"] = (rng.normal(size=(60, 5)) + 8.0 * (np.arange(60) % 3 == 0)[:, None]).astype(
        np.float32
    )
    share = np.where(np.arange(60) % 3 == 0, 0.2, 0.5).astype(np.float32)
    mdata.obs["multiomics_vae_weight_rna"] = share
    mdata.obs["multiomics_vae_weight_prot"] = np.where(np.arange(60) < 50, 0.4, np.nan).astype(np.float32)
    epochs = np.arange(1.0, 9.0)
    history = {
        "loss": 10 / epochs, "validation_loss": (epochs - 5.0) ** 2, "kl": epochs, "validation_kl": epochs + 1,
        "nll_0": 5 / epochs, "nll_1": 3 / epochs, "validation_nll_0": 6 / epochs,
    }  # fmt: skip
    mdata.uns["multiomics_vae"] = {
        "params": {"modalities": np.array(["rna", "prot"])},
        "version": {"diffbio_sc": "0"},
        "report": {"history": history, "converged": True, "steps": 8, "seconds": 1.0},
    }
    return mdata


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def places(axis):
    return np.asarray(axis.collections[0].get_offsets())


def test_each_term_of_the_loss_has_a_panel(result):
    axes = plot(result, show=False)
    assert [axis.get_title() for axis in axes] == [
        "loss", "divergence from the prior", "rna, -log-likelihood", "prot, -log-likelihood",
    ]  # fmt: skip
    history = result.uns["multiomics_vae"]["report"]["history"]
    for axis, name in zip(axes, ("loss", "kl", "nll_0", "nll_1"), strict=True):
        drawn = lines(axis)
        np.testing.assert_array_equal(drawn["training"].get_xydata(), np.stack([np.arange(1, 9), history[name]], 1))
        assert ("held-out" in drawn) == (name != "nll_1")  # not recorded
        if name != "nll_1":
            np.testing.assert_array_equal(drawn["held-out"].get_ydata(), history[f"validation_{name}"])
        # The epoch of the smallest held-out loss, (epoch - 5)^2.
        assert axis.get_lines()[-1].get_xdata()[0] == 5


def test_chosen_terms_and_given_axes(result):
    _, axis = plt.subplots()
    assert plot(result, terms="prot", ax=axis, show=False) is axis
    assert axis.get_title() == "prot, -log-likelihood"
    assert len(plot(result, terms=["kl", "loss"], show=False)) == 2


@pytest.mark.slow  # numba compiles all of UMAP
def test_map_of_scanpy_separates_what_the_embedding_separates(result):
    before = result.copy()
    axes = plot(result, kind="umap", show=False)
    assert [axis.get_title() for axis in axes] == ["weight of rna", "weight of prot"]
    point = places(axes[0])
    assert point.shape == (60, 2)
    # scanpy draws cells without a number apart and the others by their number, so types are found by the number.
    value = np.asarray(axes[0].collections[0].get_array())
    first, second = point[value < 0.3], point[value > 0.3]
    assert len(first) == 20
    within = max(np.ptp(part, axis=0).max() for part in (first, second))
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > 0.7 * within
    again = plot(result, kind="umap", show=False)
    np.testing.assert_array_equal(places(again[0]), point)
    assert set(result.obsm) == set(before.obsm)
    assert set(result.uns) == set(before.uns)
    assert set(result.obsp) == set(before.obsp)
    pd.testing.assert_frame_equal(result.obs, before.obs)


def test_stored_map_is_drawn(result):
    stored = np.random.default_rng(1).normal(size=(60, 2))
    result.obsm["X_umap"] = stored
    axis = plot(result, kind="umap", color="rna:depth", show=False)
    drawn = places(axis)
    order = np.argsort(np.asarray(axis.collections[0].get_array()))
    np.testing.assert_allclose(drawn[order], stored)  # depth numbers the cells
    result.obsm["X_mine"] = stored * 2
    axis = plot(result, kind="umap", color="rna:depth", basis="X_mine", show=False)
    order = np.argsort(np.asarray(axis.collections[0].get_array()))
    np.testing.assert_allclose(places(axis)[order], stored * 2)


def test_legend_has_the_types_that_there_are_in_their_colors(result):
    from matplotlib.colors import to_rgb

    types = [f"a rather long name of cell type {i}" for i in range(40)]
    result.obs["many"] = pd.Categorical([types[2 * (i % 17)] for i in range(60)], types)
    result.uns["many_colors"] = [f"#0000{i:02x}" for i in range(40)]
    result.obsm["X_umap"] = np.random.default_rng(1).normal(size=(60, 2))
    axes = plot(result, kind="umap", color=["many", "type"], show=False)
    legend = axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == types[:34:2]
    blue = [round(255 * to_rgb(handle.get_facecolor()[0][:3])[2]) for handle in legend.legend_handles]
    assert blue == list(range(0, 34, 2))
    figure = axes[0].figure
    figure.canvas.draw()
    assert all(axis.get_window_extent().width > 2 * figure.dpi for axis in axes)  # a legend must not squeeze the maps
    assert "many" in result.obs
    assert len(result.obs["many"].cat.categories) == 40


@pytest.mark.parametrize(("types", "letters"), [(2, 8), (40, 30), (60, 60)])
def test_a_legend_is_not_wider_than_its_map(result, types, letters):
    names = [f"{'type ' * 20}"[: letters - 3] + f"{i:3d}" for i in range(types)]
    result.obs["many"] = pd.Categorical([names[i % types] for i in range(60)], names)
    result.obsm["X_umap"] = np.random.default_rng(1).normal(size=(60, 2))
    axis = plot(result, kind="umap", color="many", show=False)
    axis.figure.canvas.draw()
    legend, own = axis.get_legend(), axis.get_window_extent()
    assert len(legend.get_texts()) == types
    box = legend.get_window_extent()
    assert box.width <= 1.1 * own.width
    assert box.height <= 1.1 * own.height
    assert own.width > 2 * axis.figure.dpi


def test_cells_without_the_modality_of_a_column_are_drawn_too(result):
    result.obsm["X_umap"] = np.random.default_rng(1).normal(size=(60, 2))
    axis = plot(result, kind="umap", color="stain", show=False)
    assert sum(len(collection.get_offsets()) for collection in axis.collections[:1]) == 60
    assert np.isnan(np.ma.filled(axis.collections[0].get_array(), np.nan)).sum() == 10


def test_weights_of_groups_are_means_that_sum_to_one_with_the_prior(result):
    axis = plot(result, kind="weights", color="type", show=False)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["B (20)", "T (40)"]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers}
    types = result.obs["type"].to_numpy()
    with_protein = np.arange(60) < 50
    expected = {"rna": [0.2, 0.5], "prot": [0.4 * with_protein[types == name].mean() for name in ("B", "T")]}
    np.testing.assert_allclose(widths["rna"], expected["rna"], rtol=1e-6)
    np.testing.assert_allclose(widths["prot"], expected["prot"], rtol=1e-6)
    np.testing.assert_allclose(np.sum(list(widths.values()), axis=0), 1.0)
    assert list(widths) == ["rna", "prot", "prior"]
    # One standard deviation of the summed shares, at the end of the second bar.
    sums = result.obs["multiomics_vae_weight_rna"] + result.obs["multiomics_vae_weight_prot"].fillna(0.0)
    segments = np.array(axis.collections[1].get_segments())[:, :, 0]
    for (low, high), name in zip(segments, ("B", "T"), strict=True):
        own = sums[types == name]
        np.testing.assert_allclose([low, high], [own.mean() - own.std(), own.mean() + own.std()], rtol=1e-5)


def test_weights_of_all_cells_leave_out_cells_without_the_modality(result):
    for absent in (np.nan, 0.0):
        result.obs["multiomics_vae_weight_prot"] = np.where(np.arange(60) < 50, np.arange(60) / 100 + 0.1, absent)
        axis = plot(result, kind="weights", show=False)
        assert [label.get_text() for label in axis.get_xticklabels()] == ["rna\n60 cells", "prot\n50 cells"]
        median = axis.get_lines()[1].get_ydata()[0]
        assert median == pytest.approx(np.median(np.arange(50) / 100 + 0.1))
        quartiles = axis.collections[3].get_segments()[0][:, 1]
        np.testing.assert_allclose(quartiles, np.quantile(np.arange(50) / 100 + 0.1, [0.25, 0.75]))
        extent = axis.collections[2].get_paths()[0].vertices[:, 1]
        assert extent.min() == pytest.approx(0.1)
        assert extent.max() == pytest.approx(0.59)


def test_default_is_the_map_where_there_are_no_losses_or_a_color_is_asked_for(result):
    stored = result.obsm["X_umap"] = np.random.default_rng(1).normal(size=(60, 2))
    assert len(plot(result, show=False)) == 4  # loss, divergence, two modalities
    mapped = places(plot(result, color="rna:depth", show=False))
    np.testing.assert_allclose(np.sort(mapped, 0), np.sort(stored, 0))
    result.uns["multiomics_vae"]["report"]["history"] = {}
    maps = plot(result, show=False)
    assert [axis.get_title() for axis in maps] == [
        "weight of rna",
        "weight of prot",
    ]  # coloured by the weights of the modalities


def test_figure_is_saved(result, tmp_path):
    plot(result, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_missing_things_are_named(result):
    with pytest.raises(ValueError, match="'losses', 'umap', 'weights' or None, found 'pie'"):
        plot(result, kind="pie")
    with pytest.raises(ValueError, match="n_neighbors must be a whole number"):
        plot(result, n_neighbors=0)
    with pytest.raises(ValueError, match="terms must be some of .'loss', 'kl', 'rna', 'prot'.*found .'nosuch'"):
        plot(result, terms=["nosuch"])
    with pytest.raises(ValueError, match="single panel, found 4"):
        plot(result, ax=plt.subplots()[1])
    with pytest.raises(KeyError, match="no column 'nosuch'"):
        plot(result, kind="umap", color="nosuch")
    with pytest.raises(KeyError, match="modalities .'rna', 'prot'.*'rna:depth'"):
        plot(result, kind="umap", color="depth")
    with pytest.raises(KeyError, match="no 'X_nosuch'"):
        plot(result, kind="umap", basis="X_nosuch")
    with pytest.raises(ValueError, match="one column of groups"):
        plot(result, kind="weights", color=["type", "nosuch"])
    with pytest.raises(ValueError, match="holds numbers"):
        plot(result, kind="weights", color="rna:depth")
    del result.obsm["X_multiomics_vae"]
    with pytest.raises(KeyError, match="no 'X_multiomics_vae': run"):
        plot(result, kind="umap")
    result.uns["multiomics_vae"]["report"]["history"] = {}
    with pytest.raises(ValueError, match="was not trained"):
        plot(result, kind="losses")
    del result.uns["multiomics_vae"]
    with pytest.raises(KeyError, match="no result 'multiomics_vae': run diffbio_sc.tl.multiomics_vae first"):
        plot(result)
