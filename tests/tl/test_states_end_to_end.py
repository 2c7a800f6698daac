"""From counts and files of ChromHMM to named, tested and weighed states, with the real annotator between."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio


@pytest.mark.slow
def test_counts_become_named_states_that_come_back(tmp_path):
    adata = dbio.datasets.simulate_chromatin_states(n_bins=16_000, n_replicates=2, family="poisson", rng=3)
    dbio.pp.binarize(adata, cell_type_key="sample")
    dbio.tl.chromatin_states(adata, n_states=7, layer="binary", cell_type_key="sample", effort="fast")
    dbio.tl.match_states(adata)
    # Each planted state has one state of its own, called by its name, which holds nearly all of its bins.
    table = pd.crosstab(adata.obs["chromatin_state"], adata.obs["truth"], normalize="columns")
    for state in adata.uns["truth"]["states"]:
        best = table[state].idxmax()
        assert best.split("_", 1)[1] == state.replace(" ", "_")
        assert table.loc[best, state] > 0.85
    dbio.tl.state_reproducibility(adata, replicate_key="replicate")
    summary = dbio.get.state_reproducibility(adata, kind="summary")
    one, two = (adata[adata.obs["replicate"] == name].obs["chromatin_state"].to_numpy() for name in ("rep1", "rep2"))
    assert summary["found"].tolist() == pytest.approx([(one == two).mean()] * 2)
    assert (summary["calibration_error"] < 0.01).all()
    # Through ChromHMM's files: the model and the marks give the same states again.
    dbio.io.write_chromhmm_model(dbio.get.chromatin_state_model(adata), tmp_path / "model.txt")
    dbio.io.write_chromhmm_binary(adata, tmp_path, layer="binary", cell_type_key="sample")
    again = dbio.io.read_chromhmm_binary(tmp_path)
    dbio.tl.chromatin_states(again, model=tmp_path / "model.txt", cell_type_key="cell_type")
    np.testing.assert_array_equal(again.obs["chromatin_state"].cat.codes, adata.obs["chromatin_state"].cat.codes)
    np.testing.assert_allclose(
        again.obsm["chromatin_state_posterior"], adata.obsm["chromatin_state_posterior"], atol=1e-5
    )
    segments = dbio.get.chromatin_states(adata)
    first = segments[segments["cell_type"] == "cell1_rep1"]
    dbio.io.write_segments(first, tmp_path / "s_dense.bed", dense=True)
    read = dbio.io.read_segments(tmp_path / "s_dense.bed")
    assert read["state"].astype(str).tolist() == first["state"].astype(str).tolist()
    assert read["color"].tolist() == first["color"].tolist()


@pytest.mark.slow
def test_top_states_alone_serve_all_that_follows():
    adata = dbio.datasets.simulate_chromatin_states(n_bins=6000, n_replicates=2)
    model = dbio.get.chromatin_state_model(adata, key="truth")
    dbio.tl.chromatin_states(adata, model=model, cell_type_key="sample")
    few = adata.copy()
    dbio.tl.chromatin_states(few, model=model, cell_type_key="sample", top_states=1)
    assert "chromatin_state_posterior" not in few.obsm
    for each in (adata, few):
        dbio.tl.state_reproducibility(each, replicate_key="replicate")
    np.testing.assert_allclose(few.obs["state_reproducibility"], adata.obs["state_reproducibility"], atol=1e-6)
    np.testing.assert_allclose(
        dbio.get.chromatin_states(few)["posterior"], dbio.get.chromatin_states(adata)["posterior"], atol=1e-5
    )


@pytest.mark.data
@pytest.mark.slow
def test_roadmaps_model_on_other_marks(data_folder):
    folder = data_folder / "chromatin_states"
    files = [folder / f"{cell}_chr11_binary.txt.gz" for cell in ("GM12878", "K562")]
    adata = dbio.io.read_chromhmm_binary(files, chrom_sizes=folder / "annot" / "chromsizes.hg18.txt")
    with pytest.warns(UserWarning, match="the model has no marks.*CTCF"):
        dbio.tl.chromatin_states(
            adata, model=folder / "models" / "roadmap_model_15_coreMarks.txt", cell_type_key="cell_type"
        )
    # H3K9me3 was not measured. Its state cannot be told from quiescent chromatin, and gets few bins.
    coverage = dbio.get.chromatin_states(adata, kind="coverage").set_index(["cell_type", "state"])["fraction"]
    for cell in ("GM12878", "K562"):
        assert coverage[(cell, "E15")] == pytest.approx(0.6, abs=0.1)
        assert coverage[(cell, "E9")] < 0.01
    dbio.tl.state_enrichment(
        adata,
        {"cpg": folder / "annot" / "CpGIsland.hg18.bed.gz", "genes": folder / "annot" / "RefSeqGene.hg18.bed.gz"},
    )
    table = dbio.get.state_enrichment(adata).set_index(["cell_type", "annotation", "state"])
    for cell in ("GM12878", "K562"):
        assert table.loc[(cell, "cpg", "E1"), "fold"] > 20  # TssA
        assert table.loc[(cell, "genes", "E4"), "fold"] > 1.8  # Tx
        assert table.loc[(cell, "cpg", "E15"), "fold"] < 0.4  # Quies
        assert table.loc[(cell, "genes", "E4"), "padj"] < 1e-6
