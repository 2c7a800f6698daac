"""E8 and the sources of the contextual sequence model: what is planted is there, and an object's arrays come out."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc.operators.epigenomics import validate_contextual_epigenomics_dataset
from diffbio_sc.sources import ContextualEpigenomicsSource, build_synthetic_contextual_epigenomics_dataset
from diffbio_sc.sources._synthetic_contextual import motif_bases

SETTINGS = {"n_examples": 30, "sequence_length": 48, "num_tf_features": 4}


def strand_matches(bases, motif):
    """Bases that a motif covers, on either strand (examples, length)."""
    found = np.zeros(bases.shape, bool)
    for one in (motif, 3 - motif[::-1]):
        windows = np.lib.stride_tricks.sliding_window_view(bases, len(one), axis=1)
        for row, start in np.argwhere((windows == one).all(2)):
            found[row, start : start + len(one)] = True
    return found


def test_E8_labels_are_the_motifs_of_expressed_factors():
    data = build_synthetic_contextual_epigenomics_dataset(**SETTINGS)
    bases, targets = data["sequence"].argmax(-1), data["targets"]
    expected = np.zeros(targets.shape, bool)
    for factor, motif in enumerate(motif_bases(4)):
        expected |= strand_matches(bases, motif) & (data["tf_context"][:, factor] > 0.5)[:, None]
    assert expected[targets == 1].all()
    # Background bases form a motif by chance now and then, 4 in 4,096 places on two strands.
    assert expected[targets == 0].mean() < 0.08


def test_E8_the_arguments_of_the_specification_and_nothing_random():
    arguments = {"target_semantics": "binary_peak_mask", "num_output_classes": 1, **SETTINGS}
    first, second = (build_synthetic_contextual_epigenomics_dataset(**arguments) for _ in range(2))
    assert set(first) == {"sequence", "tf_context", "chromatin_contacts", "targets"}
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value)
    other = build_synthetic_contextual_epigenomics_dataset(**arguments, rng=1)
    assert not np.array_equal(other["sequence"], first["sequence"])
    assert len(np.unique(first["sequence"].argmax(-1), axis=0)) == 30
    assert len(np.unique(first["tf_context"], axis=0)) == 30
    assert len(np.unique(first["chromatin_contacts"].reshape(30, -1), axis=0)) == 30


def test_E8_no_input_alone_tells_the_answer():
    data = build_synthetic_contextual_epigenomics_dataset(**{**SETTINGS, "n_examples": 200})
    bases, targets = data["sequence"].argmax(-1), data["targets"]
    sites = np.zeros(targets.shape, bool)
    for motif in motif_bases(4):
        sites |= strand_matches(bases, motif)
    # Where a motif is, the label is a toss-up without the context.
    assert 0.3 < targets[sites].mean() < 0.7
    # Contacts show sites, active or not.
    degree = data["chromatin_contacts"].mean(2)
    active, inactive = degree[targets == 1].mean(), degree[sites & (targets == 0)].mean()
    assert abs(active - inactive) < 0.02
    assert min(active, inactive) > degree[~sites].mean() + 0.05
    # The context alone predicts no place.
    assert np.abs(targets.mean(0) - targets.mean()).max() < 0.2


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_E8_states_are_named_by_site_and_family(classes):
    data = build_synthetic_contextual_epigenomics_dataset(
        **SETTINGS, target_semantics="chromatin_state_id", num_output_classes=classes
    )
    mask = build_synthetic_contextual_epigenomics_dataset(**SETTINGS)["targets"]
    states = data["targets"]
    active = states >= 2 if classes > 2 else states == 1
    np.testing.assert_array_equal(active, mask == 1)
    assert states.max() == min(classes - 1, 3)
    validate_contextual_epigenomics_dataset(data, target_semantics="chromatin_state_id", num_output_classes=classes)


def test_E8_small_sizes_and_sizes_that_are_refused():
    for factors in (1, 3, 20):
        data = build_synthetic_contextual_epigenomics_dataset(
            n_examples=4, sequence_length=6, num_tf_features=factors, rng=2
        )
        assert data["targets"].shape == (4, 6)
    with pytest.raises(ValueError, match="sequence_length must be a whole number of at least 6"):
        build_synthetic_contextual_epigenomics_dataset(sequence_length=5)
    with pytest.raises(ValueError, match="num_output_classes"):
        build_synthetic_contextual_epigenomics_dataset(target_semantics="chromatin_state_id")
    motifs = motif_bases(12)
    both = np.concatenate([motifs, 3 - motifs[:, ::-1]])
    differences = (both[:, None] != both[None]).sum(2) + 6 * np.eye(24, dtype=int)
    assert differences.min() >= 3
    np.testing.assert_array_equal(motif_bases(4), motifs[:4])


def test_a_source_of_arrays_hands_out_batches_after_checking():
    data = build_synthetic_contextual_epigenomics_dataset(**SETTINGS)
    source = ContextualEpigenomicsSource({**data, "names": ["a"] * 30}, batch_size=8)
    batches = list(source)
    assert [len(batch["sequence"]) for batch in batches] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate([batch["targets"] for batch in batches]), data["targets"])
    assert (len(source), source.contract.length) == (30, 48)
    assert set(source[3:5]) == set(data)
    with pytest.raises(ValueError, match="must be symmetric"):
        ContextualEpigenomicsSource({**data, "chromatin_contacts": np.tril(data["chromatin_contacts"])})


def regions_object(turned=False):
    """Two chromosomes of adjoining bins of 4 bases, with a gap, three cell types."""
    start = np.array([0, 4, 8, 12, 20, 24, 0, 4, 8])
    chrom = ["chr1"] * 6 + ["chr2"] * 3
    regions = pd.DataFrame({"chrom": chrom, "start": start, "end": start + 4}, index=[f"r{i}" for i in range(9)])
    labels = np.random.default_rng(0).integers(0, 2, (3, 9)).astype(np.float32)
    cells = pd.DataFrame(index=["B", "T", "NK"])
    counts = np.random.default_rng(1).poisson(20, (9, 9)).astype(np.float64)
    counts = np.triu(counts) + np.triu(counts, 1).T
    tokens = np.random.default_rng(2).integers(0, 5, (9, 4)).astype(np.int8)
    context = pd.DataFrame([[1.0, 2.0], [3.0, 4.0], [np.nan, np.nan]], index=cells.index, columns=["PAX5", "TCF7"])
    if turned:
        adata = anndata.AnnData(labels.T, obs=regions, var=cells)
        adata.obsm["dna"], adata.varm["tf_context"], adata.obsp["contacts"] = tokens, context, sp.csr_array(counts)
    else:
        adata = anndata.AnnData(labels, obs=cells, var=regions)
        adata.varm["dna"], adata.obsm["tf_context"], adata.varp["contacts"] = tokens, context, sp.csr_array(counts)
    return adata, labels, counts, tokens


@pytest.mark.parametrize("turned", [False, True])
def test_an_object_of_regions_gives_one_example_each(turned):
    adata, labels, _, tokens = regions_object(turned)
    source = ContextualEpigenomicsSource.from_anndata(adata)
    data = source[:]
    assert source.report == {
        "examples": 9, "regions_left_out": 0, "cell_types": ["B", "T"], "cell_types_left_out": ["NK"],
    }  # fmt: skip
    np.testing.assert_array_equal(data["sequence"].argmax(-1)[tokens < 4], tokens[tokens < 4])
    np.testing.assert_array_equal(data["sequence"][tokens == 4], 0.0)
    np.testing.assert_array_equal(data["targets"], labels[:2].T[:, :, None])
    np.testing.assert_array_equal(data["tf_context"], np.tile([[1.0, 2.0], [3.0, 4.0]], (9, 1, 1)))
    assert "chromatin_contacts" not in data


@pytest.mark.parametrize("turned", [False, True])
def test_regions_in_a_row_make_an_example_with_contacts(turned):
    adata, labels, counts, tokens = regions_object(turned)
    source = ContextualEpigenomicsSource.from_anndata(adata, positions=2, contacts="contacts")
    data = source[:]
    rows = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])  # chr1 has a gap after r3, and r8 has no partner
    assert source.report["regions_left_out"] == 1
    np.testing.assert_array_equal(data["targets"], labels[:2][:, rows].transpose(1, 0, 2))
    np.testing.assert_array_equal((data["sequence"].sum(-1) > 0), tokens[rows].reshape(4, 8) < 4)
    here = np.stack([counts[np.ix_(pair, pair)] for pair in rows])
    expected = np.empty_like(here)
    for distance in (0, 1):
        where = np.abs(np.subtract.outer(np.arange(2), np.arange(2))) == distance
        expected[:, where] = here[:, where] / (here[:, where] + here[:, where].mean())
    np.testing.assert_allclose(data["chromatin_contacts"], expected, rtol=1e-6)


def test_contacts_come_from_a_file_of_cooler_and_contexts_from_cells(tmp_path):
    cooler = pytest.importorskip("cooler")
    adata, _, _, _ = regions_object()
    bins = pd.DataFrame({"chrom": ["chr1"] * 7 + ["chr2"] * 3, "start": [*range(0, 28, 4), 0, 4, 8]})
    bins["end"] = bins["start"] + 4
    pixels = pd.DataFrame({"bin1_id": [0, 0, 1, 2, 2, 7], "bin2_id": [0, 1, 1, 2, 3, 8], "count": [6, 2, 2, 4, 6, 4]})
    cooler.create_cooler(str(tmp_path / "maps.cool"), bins, pixels)
    cells = anndata.AnnData(
        np.array([[3, 1, 6], [1, 1, 8], [0, 5, 5]], np.float32),
        obs=pd.DataFrame({"type": ["B", "B", "T"]}, index=list("abc")),
        var=pd.DataFrame(index=["PAX5", "TCF7", "ACTB"]),
    )
    source = ContextualEpigenomicsSource.from_anndata(
        adata, positions=2, contacts=tmp_path / "maps.cool", expression=cells, groupby="type", tfs=["PAX5", "TCF7"]
    )
    data = source[:]
    expected = np.log2(np.array([[4 / 20, 2 / 20], [0, 5 / 10]]) * 1e6 + 1)
    np.testing.assert_allclose(data["tf_context"][0], expected, rtol=1e-5)
    # Off the diagonal the four examples have 2, 6, 0 and 4 contacts, 3 on average.
    np.testing.assert_allclose(data["chromatin_contacts"][:, 0, 1], [2 / 5, 6 / 9, 0, 4 / 7], rtol=1e-5)


def test_an_object_that_lacks_something_is_told():
    adata, _, _, _ = regions_object()
    with pytest.raises(ValueError, match="pass positions="):
        ContextualEpigenomicsSource.from_anndata(adata, contacts="contacts")
    with pytest.raises(KeyError, match="has no 'hic'"):
        ContextualEpigenomicsSource.from_anndata(adata, positions=2, contacts="hic")
    with pytest.raises(ValueError, match="at most 4 regions do"):
        ContextualEpigenomicsSource.from_anndata(adata, positions=5)
    with pytest.raises(KeyError, match="run dbio.pp.tf_context"):
        ContextualEpigenomicsSource.from_anndata(adata, tf_context="other")
    adata.X[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"'targets'\] must be finite"):
        ContextualEpigenomicsSource.from_anndata(adata)
