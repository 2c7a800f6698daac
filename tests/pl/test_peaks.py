from __future__ import annotations

import importlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio

plot = importlib.import_module("diffbio_sc.pl._peaks").peaks


@pytest.fixture(scope="module")
def called():
    rng = np.random.default_rng(0)
    start = np.arange(0, 30_000, 50)
    mean = np.full((3, len(start)), 2.0)
    mean[:2, 200:212] = 60.0
    adata = ad.AnnData(
        sp.csr_matrix(rng.poisson(mean).astype(np.float32)),
        obs=pd.DataFrame({"kind": ["t", "t", "u"]}, index=["a", "b", "c"]),
        var=pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 50}, index=start.astype(str)),
    )
    dbio.tl.peaks(adata, fragment_length=50)
    return adata


def test_panels_show_counts_background_posterior_and_peaks(called):
    axes = plot(called, "chr1:9,000-12,000", tracks=["a", "c"], show=False)
    assert len(axes) == 2
    counts, background = (patch for patch in axes[0].patches if hasattr(patch, "get_data"))
    (right,) = (axis for axis in axes[0].figure.axes if axis not in axes and axis.bbox.bounds == axes[0].bbox.bounds)
    (posterior,) = right.patches
    low, high = 180, 240
    np.testing.assert_array_equal(counts.get_data().values, called.X[0, low:high].toarray().ravel())
    np.testing.assert_allclose(background.get_data().values, called.layers["peak_background"][0, low:high])
    np.testing.assert_allclose(posterior.get_data().values, called.layers["peak_scores"][0, low:high])
    # Zero and one of the posterior stand where zero and the highest count do.
    top = called.X[0, low:high].max()
    for count, probability in ((0, 0), (top, 1)):
        place = axes[0].transData.transform((9500, count)), right.transData.transform((9500, probability))
        np.testing.assert_allclose(*place, atol=1e-6)
    table = called.uns["peaks"]["tables"]["a"]
    (bars,) = axes[0].collections
    (corners,) = (path.vertices for path in bars.get_paths())
    assert (corners[:, 0].min(), corners[:, 0].max()) == (table["start"].iloc[0], table["end"].iloc[0])
    summit = table["start"].iloc[0] + table["peak"].iloc[0]
    assert axes[0].lines[0].get_xdata().tolist() == [summit]
    # The mark of the summit lies below the bar.
    assert axes[0].lines[0].get_ydata()[0] < corners[:, 1].min()
    assert not axes[1].lines
    assert axes[0].get_xlim() == (9000, 12_000)
    assert [axis.get_ylabel() for axis in axes] == ["a", "c"]


def test_default_region_holds_the_strongest_peak(called, tmp_path):
    axis = plot(called, tracks=["a"], save=tmp_path / "x.png")
    low, high = axis.get_xlim()
    table = called.uns["peaks"]["tables"]["a"]
    assert low < table["start"].iloc[0] < table["end"].iloc[0] < high
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_other_axis_and_groups_give_the_same_picture(called):
    turned = ad.AnnData(called.X.T.tocsr(), obs=called.var[["chrom", "start", "end"]], var=called.obs)
    dbio.tl.peaks(turned, groupby="kind", fragment_length=50)
    axis = plot(turned, ("chr1", 9000, 12_000), tracks=["t"], show=False)
    counts = axis.patches[0].get_data().values
    np.testing.assert_array_equal(counts, called.X[:2, 180:240].toarray().sum(0))
    assert len(axis.lines) == len(axis.collections) == 1


def test_labels_are_drawn_behind(called):
    labels = pd.DataFrame(
        {"sample": ["a", "b"], "chrom": "chr1", "start": [9500, 9500], "end": [10_200, 9900], "annotation": "peakStart"}
    )
    axes = plot(called, "chr1:9000-12000", tracks=["a"], labels=labels, show=False)
    spans = [patch for patch in axes.patches if hasattr(patch, "get_width") and patch.get_width() == 700]
    assert len(spans) == 1


def test_nothing_to_see_and_bad_arguments(called):
    empty = called.copy()
    empty.X = sp.csr_matrix(empty.shape, dtype=np.float32)
    dbio.tl.peaks(empty)
    plot(empty, show=False)
    with pytest.raises(ValueError, match="written as 'chr1:1000-2000'"):
        plot(called, "chr1", show=False)
    with pytest.raises(ValueError, match="no bins in chr7"):
        plot(called, "chr7:1-100", show=False)
    with pytest.raises(ValueError, match="start < end"):
        plot(called, ("chr1", 5, 5), show=False)
    with pytest.raises(KeyError, match="no peaks of tracks \\['z'\\]"):
        plot(called, tracks=["z"], show=False)
    with pytest.raises(KeyError, match="run diffbio_sc.tl.peaks"):
        plot(called, key="other", show=False)
