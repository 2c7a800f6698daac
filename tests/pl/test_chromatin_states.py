"""Plots of states show the numbers of the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import diffbio_sc as dbio


@pytest.fixture(scope="module")
def annotated():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=1200, n_replicates=2, n_chromosomes=3)
    rng = np.random.default_rng(0)
    other = rng.random(len(adata)) < 0.1
    labels = adata.obs["truth"].to_numpy(dtype=object).copy()
    labels[other] = rng.permutation(labels[other])
    states = adata.obs["truth"].cat.categories
    adata.obs["chromatin_state"] = pd.Categorical(labels, categories=states)
    adata.uns["chromatin_states"] = {**adata.uns["truth"], "params": {"cell_type_key": "sample", "axis": "obs"}}
    dbio.tl.match_states(adata)
    genes = adata.obs[adata.obs["truth"] == "Transcribed"][["chrom", "start", "end"]]
    starts = genes.iloc[:20].rename(columns={"start": "pos"})[["chrom", "pos"]]
    dbio.tl.state_enrichment(adata, {"genes": genes, "none": genes.iloc[:3]}, anchors={"tss": starts})
    dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    return adata


def test_emissions(annotated):
    axes = dbio.pl.chromatin_states(annotated, show=False)
    np.testing.assert_array_equal(axes.images[0].get_array(), annotated.uns["chromatin_states"]["emission"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(annotated.var_names)
    assert [tick.get_text() for tick in axes.get_yticklabels()][1] == "E2_Strong_enhancer"
    assert [to_hex(line.get_color()) for line in axes.lines] == annotated.uns["chromatin_states"]["colors"].tolist()
    assert axes.texts[0].get_text() == ".92"


def test_means_are_drawn_in_units_of_each_mark():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=50, family="poisson")
    image = dbio.pl.chromatin_states(adata, key="truth", show=False).images[0].get_array()
    emission = adata.uns["truth"]["emission"]
    np.testing.assert_allclose(image, emission / emission.max(0))


def test_transitions_leave_zeros_empty(annotated):
    adata = annotated.copy()
    transition = adata.uns["chromatin_states"]["transition"].copy()
    transition[0] = [0.5, 0.5, 0, 0, 0, 0, 0]
    adata.uns["chromatin_states"]["transition"] = transition
    image = dbio.pl.chromatin_states(adata, "transitions", show=False).images[0].get_array()
    shown = np.ma.filled(image, np.nan)
    np.testing.assert_array_equal(np.isnan(shown), transition == 0)
    np.testing.assert_array_equal(shown[1], transition[1])


def test_coverage(annotated):
    axes = dbio.pl.chromatin_states(annotated, "coverage", show=False)
    table = dbio.get.chromatin_states(annotated, kind="coverage")
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(widths, table.sort_values("cell_type", kind="stable")["fraction"])


def test_tracks_show_segments_and_probabilities(annotated, tmp_path):
    axes = dbio.pl.chromatin_states(annotated, "track", region="chr2:10,000-30,000", save=tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000
    assert axes.get_xlim() == (10_000, 30_000)
    table = dbio.get.chromatin_states(annotated)
    here = table[(table["chrom"] == "chr2") & (table["end"] > 10_000) & (table["start"] < 30_000)]
    for rows, bars in zip(("cell1_rep1", "cell1_rep2"), axes.collections, strict=True):
        mine = here[here["cell_type"] == rows]
        boxes = [path.get_extents() for path in bars.get_paths()]
        np.testing.assert_allclose([box.x0 for box in boxes], mine["start"].clip(lower=10_000))
        np.testing.assert_allclose([box.x1 for box in boxes], mine["end"].clip(upper=30_000))
        assert [to_hex(color) for color in bars.get_facecolors()] == mine["color"].tolist()
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["cell1_rep1", "comes back", "cell1_rep2", "comes back"]
    heights = axes.patches[0].get_data().values
    bins = annotated.obs[(annotated.obs["sample"] == "cell1_rep1") & (annotated.obs["chrom"] == "chr2")]
    bins = bins[(bins["end"] > 10_000) & (bins["start"] < 30_000)]
    np.testing.assert_allclose(heights, -1 + 0.9 * bins["state_reproducibility"], rtol=1e-6)
    whole = dbio.pl.chromatin_states(annotated, "track", region="chr3", show=False)
    assert whole.get_xlim() == (0, 80_000)
    assert dbio.pl.chromatin_states(annotated, "track", show=False).get_xlabel().startswith("chr1")


def test_enrichment(annotated):
    axes = dbio.pl.state_enrichment(annotated, cell_type="cell1_rep2", show=False)
    table = dbio.get.state_enrichment(annotated)
    table = table[table["cell_type"] == "cell1_rep2"].set_index(["state", "annotation"])
    image = np.asarray(axes.images[0].get_array())
    states = list(annotated.uns["chromatin_states"]["states"])
    fold = table.loc[(states[3], "genes"), "fold"]
    assert image[3, 0] == pytest.approx(np.clip(np.log2(fold), -4, 4))
    assert f"{fold:.3g}" in [text.get_text() for text in axes.texts]
    hidden = dbio.pl.state_enrichment(annotated, max_padj=0.0, show=False)
    assert np.isnan(np.ma.filled(hidden.images[0].get_array(), np.nan)).all()
    axes = dbio.pl.state_enrichment(annotated, "neighborhood", show=False)
    profile = dbio.get.state_enrichment(annotated, kind="neighborhood")
    profile = profile[(profile["cell_type"] == "cell1_rep1") & (profile["state"] == states[3])]
    with np.errstate(divide="ignore"):
        expected = np.clip(np.log2(profile["fold"]), -4, 4)
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), np.nan)[3], expected)
    with pytest.raises(KeyError, match="no cell_type 'x'"):
        dbio.pl.state_enrichment(annotated, cell_type="x", show=False)
    with pytest.raises(KeyError, match="no anchors 'x'"):
        dbio.pl.state_enrichment(annotated, "neighborhood", anchors="x", show=False)


def test_reproducibility(annotated):
    table = dbio.get.state_reproducibility(annotated)
    first = table[table["replicate"] == "rep1"]
    axes = dbio.pl.state_reproducibility(annotated, show=False)
    np.testing.assert_allclose(axes.collections[1].get_offsets()[:, 0], first["by_chance"])
    np.testing.assert_allclose(axes.containers[0].lines[0].get_xdata(orig=False), first["found"])
    axes = dbio.pl.state_reproducibility(annotated, "reliability", replicate="rep2", show=False)
    levels = dbio.get.state_reproducibility(annotated, kind="reliability")
    levels = levels[(levels["replicate"] == "rep2") & (levels["bins"] > 0)]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), levels[["predicted", "found"]])
    axes = dbio.pl.state_reproducibility(annotated, "overlap", show=False)
    np.testing.assert_allclose(np.diag(axes.images[0].get_array()), first["found"])


def test_bad_arguments(annotated):
    for plot, options in (
        (dbio.pl.chromatin_states, {"kind": "x"}),
        (dbio.pl.state_enrichment, {"kind": "x"}),
        (dbio.pl.state_reproducibility, {"kind": "x"}),
    ):
        with pytest.raises(ValueError, match="kind must be '.* found 'x'"):
            plot(annotated, show=False, **options)
    with pytest.raises(KeyError, match="no model of chromatin states 'x'"):
        dbio.pl.chromatin_states(annotated, key="x", show=False)
    with pytest.raises(ValueError, match="no bins on 'chr9'"):
        dbio.pl.chromatin_states(annotated, "track", region="chr9", show=False)
    with pytest.raises(ValueError, match="no bins with a state in chr9:1-5"):
        dbio.pl.chromatin_states(annotated, "track", region=("chr9", 1, 5), show=False)
    with pytest.raises(ValueError, match="start < end"):
        dbio.pl.chromatin_states(annotated, "track", region=("chr1", 5, 5), show=False)
    with pytest.raises(KeyError, match="no replicate 'x'"):
        dbio.pl.state_reproducibility(annotated, replicate="x", show=False)
