"""Imported embeddings: every format, alignment by identifiers, and every way in which a file can be bad."""

from __future__ import annotations

import pickle
import zipfile

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from diffbio_sc.sources import MultiOmicsEmbeddingSource
from diffbio_sc.sources.artifact_errors import (
    ArtifactError,
    CorruptArtifactError,
    DuplicatedSamplesError,
    MisalignedArtifactError,
    TruncatedArtifactError,
    UnsafeArtifactError,
)
from diffbio_sc.sources.provenance import Provenance, artifact_metadata, validate_artifact_metadata

NAMES = [f"cell_{index}" for index in range(40)]
RNA = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
ATAC = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)


def in_anndata(values, names=NAMES):
    adata = anndata.AnnData(obs=pd.DataFrame(index=pd.Index(names)))
    adata.obsm["X_model"] = values
    return adata


def write(path, values=RNA, names=NAMES):
    """The embeddings in the format that the name of the file says."""
    kind = path.suffix
    if kind == ".npy":
        np.save(path, values)
    elif kind == ".npz":
        np.savez(path, embeddings=values, sample_ids=np.array(names))
    elif kind == ".parquet":
        table = pd.DataFrame(values, columns=[f"d{index}" for index in range(values.shape[1])])
        table.insert(0, "sample_id", names)
        table.to_parquet(path)
    elif kind == ".h5ad":
        in_anndata(values, names).write_h5ad(path)
    else:
        in_anndata(values, names).write_zarr(path)
    return path


FORMATS = [".npy", ".npz", ".parquet", ".h5ad", ".zarr"]


@pytest.mark.parametrize("ending", FORMATS)
def test_M3_every_format_gives_the_values_that_were_written_at_their_identifiers(tmp_path, ending):
    path = write(tmp_path / f"rna{ending}")
    ids = NAMES if ending == ".npy" else None
    source = MultiOmicsEmbeddingSource.from_path(path, modality="rna", sample_ids=ids, model_name="some-model")
    assert source.sample_ids.tolist() == NAMES
    np.testing.assert_array_equal(source.embeddings["rna"], RNA)
    wanted = NAMES[::-1]
    np.testing.assert_array_equal(source.align(wanted).embeddings["rna"], RNA[::-1])
    record = source.artifacts["rna"]
    assert record["artifact_type"] == "imported_embedding"
    assert record["stable_scope"] == "imported_foundation_model"
    assert record["foundation_source_name"] == "some-model"
    assert record["promotion_eligible"] is False
    assert record["provenance"]["source_path"] == str(path)


def test_zarr_of_plain_arrays_and_parquet_with_an_index_are_read(tmp_path):
    import zarr

    group = zarr.open_group(str(tmp_path / "plain.zarr"), mode="w")
    for name, values in (("embeddings", RNA), ("sample_ids", np.arange(40))):
        group.create_array(name, data=values) if hasattr(group, "create_array") else group.array(name, values)
    source = MultiOmicsEmbeddingSource.from_path(tmp_path / "plain.zarr")
    assert source.sample_ids[:3].tolist() == ["0", "1", "2"]
    np.testing.assert_array_equal(source.embeddings["rna"], RNA)
    pd.DataFrame(RNA, index=NAMES, columns=list("abcde")).to_parquet(tmp_path / "indexed.parquet")
    source = MultiOmicsEmbeddingSource.from_path(tmp_path / "indexed.parquet")
    assert source.sample_ids.tolist() == NAMES
    assert source.dimensions["rna"] == list("abcde")


def test_M3_RNA_and_ATAC_are_aligned_by_sample_ids_whatever_their_order(tmp_path):
    order = np.random.default_rng(2).permutation(40)
    rna = write(tmp_path / "rna.npz")
    atac = write(tmp_path / "atac.parquet", ATAC[order], [NAMES[index] for index in order])
    source = MultiOmicsEmbeddingSource.from_paths({"rna": rna, "atac": atac})
    np.testing.assert_array_equal(source.embeddings["rna"], RNA)
    np.testing.assert_array_equal(source.embeddings["atac"], ATAC)
    mdata = source.to_mudata()
    np.testing.assert_array_equal(mdata["atac"].obsm["X_embedding"], ATAC)
    mdata.write(tmp_path / "aligned.h5mu")
    read = mudata.read_h5mu(tmp_path / "aligned.h5mu")
    record = read["rna"].uns["X_embedding"]["artifact"]
    assert record["provenance"]["sha256"] == source.artifacts["rna"]["provenance"]["sha256"] != ""
    assert not bool(record["promotion_eligible"])
    validate_artifact_metadata(record)


def test_strict_and_intersection_alignment():
    rna = pd.DataFrame(RNA, index=NAMES)
    atac = pd.DataFrame(ATAC[10:], index=NAMES[10:])
    with pytest.raises(MisalignedArtifactError, match=r"'atac' lacks 10 of 'rna' .*cell_0.*intersection"):
        MultiOmicsEmbeddingSource({"rna": rna, "atac": atac})
    with pytest.warns(UserWarning, match=r"30 samples are in all modalities.*'rna': 10"):
        source = MultiOmicsEmbeddingSource({"rna": rna, "atac": atac}, join="intersection")
    assert source.report["rna"] == {"found": 40, "kept": 30, "left_out": 10}
    np.testing.assert_array_equal(source.embeddings["rna"], RNA[10:])
    with pytest.raises(MisalignedArtifactError, match=r"1 are not in the source \['x'\], 29 are in the source alone"):
        source.align(["cell_12", "x"])
    with pytest.raises(DuplicatedSamplesError, match="cell_12"):
        source.align(["cell_12", "cell_12"], join="intersection")
    with pytest.raises(MisalignedArtifactError, match="no sample is shared"):
        source.align(["x"], join="intersection")
    with pytest.warns(UserWarning, match="1 samples are kept, of 30 in the source and 2 given"):
        source = source.align_to_reference_sample_ids(reference_sample_ids=["x", "cell_12"], require_sample_ids=False)
    np.testing.assert_array_equal(source.embeddings["atac"], ATAC[12:13])
    with pytest.raises(MisalignedArtifactError, match="share no sample"):
        MultiOmicsEmbeddingSource({"rna": rna, "atac": atac.set_axis(range(30))}, join="intersection")
    with pytest.raises(MisalignedArtifactError, match="order alone"):
        MultiOmicsEmbeddingSource({"rna": RNA})


def test_write_to_puts_rows_at_their_cells_and_all_or_nothing():
    cells = NAMES[::-1]
    mdata = mudata.MuData({"rna": in_anndata(RNA[::-1], cells), "atac": in_anndata(ATAC[5:], NAMES[5:])})
    source = MultiOmicsEmbeddingSource({"rna": RNA, "atac": ATAC}, sample_ids=NAMES)
    before = {name: set(mdata[name].obsm) for name in ("rna", "atac")}
    with pytest.raises(MisalignedArtifactError, match="5 are in the source alone"):
        source.write_to(mdata)
    assert {name: set(mdata[name].obsm) for name in ("rna", "atac")} == before
    assert "X_embedding" not in mdata.uns
    source.write_to(mdata, join="intersection")
    np.testing.assert_array_equal(mdata["rna"].obsm["X_embedding"], RNA[::-1])
    np.testing.assert_array_equal(mdata["atac"].obsm["X_embedding"], ATAC[5:])
    adata = in_anndata(RNA)[:, :].copy()
    few = source.align(NAMES[:30], join="intersection", quiet=True)
    with pytest.warns(UserWarning, match="10 of 40 cells have no embedding of 'rna'"):
        MultiOmicsEmbeddingSource({"rna": few.embeddings["rna"]}, sample_ids=NAMES[:30]).write_to(
            adata, join="intersection"
        )
    np.testing.assert_array_equal(adata.obsm["X_embedding_rna"][:30], RNA[:30])
    assert np.isnan(adata.obsm["X_embedding_rna"][30:]).all()
    with pytest.raises(KeyError, match="has no modalities"):
        MultiOmicsEmbeddingSource({"protein": RNA}, sample_ids=NAMES).write_to(mdata)


def test_operator_inputs_run_through_the_VAE_as_they_are():
    from diffbio_sc.operators.multiomics import DifferentiableMultiOmicsVAE, MultiOmicsVAEConfig

    source = MultiOmicsEmbeddingSource({"rna": RNA, "atac": ATAC}, sample_ids=NAMES)
    config = MultiOmicsVAEConfig(
        modality_dims=(5, 3), latent_dim=2, hidden_dim=4, encoder_dim=4, likelihoods=("gaussian", "gaussian")
    )
    vae = DifferentiableMultiOmicsVAE(config, rngs=nnx.Rngs(0))
    vae.mark_fitted()
    result, _, _ = vae.apply(source.operator_inputs())
    assert result["joint_latent"].shape == (40, 2)
    assert np.isfinite(result["elbo_loss"])


# Bad files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".h5ad"])
def test_a_truncated_file_says_so(tmp_path, ending):
    path = write(tmp_path / f"rna{ending}")
    whole = path.read_bytes()
    for size in (len(whole) // 2, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(TruncatedArtifactError, match="ends early|truncated|is empty"):
            MultiOmicsEmbeddingSource.from_path(path, sample_ids=NAMES)


def test_a_zarr_without_a_chunk_is_not_read_as_zeros(tmp_path):
    path = write(tmp_path / "rna.zarr")
    chunks = [
        one for one in (path / "obsm" / "X_model").rglob("*") if one.is_file() and not one.name.startswith(("z", "."))
    ]
    assert chunks
    chunks[0].unlink()
    with pytest.raises(TruncatedArtifactError, match="1 of 1 chunks .* missing"):
        MultiOmicsEmbeddingSource.from_path(path)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".h5ad"])
def test_a_corrupt_file_says_so(tmp_path, ending):
    path = tmp_path / f"rna{ending}"
    path.write_bytes(b"this is something else, " * 50)
    with pytest.raises(CorruptArtifactError, match="no .*file|damaged") as caught:
        MultiOmicsEmbeddingSource.from_path(path, sample_ids=NAMES)
    assert not isinstance(caught.value, TruncatedArtifactError)


def test_changed_bytes_are_found_by_the_checksum_of_an_archive(tmp_path):
    path = write(tmp_path / "rna.npz")
    with zipfile.ZipFile(path) as file:
        place = file.infolist()[0].header_offset + 300
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptArtifactError, match="damaged"):
        MultiOmicsEmbeddingSource.from_path(path)


def test_pickles_are_never_read(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    hostile = np.empty(40, object)
    hostile[:] = [Payload()] * 40
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    np.savez(tmp_path / "b.npz", embeddings=RNA, sample_ids=hostile)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(RNA))
    (tmp_path / "d.npz").write_bytes(pickle.dumps(RNA))
    for name in ("a.npy", "b.npz", "c.npy", "d.npz"):
        with pytest.raises(UnsafeArtifactError, match=r"pickled Python objects.*allow_pickle=False.*np\.savez"):
            MultiOmicsEmbeddingSource.from_path(tmp_path / name, sample_ids=NAMES)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".safetensors", ".pkl"])
def test_M3_checkpoints_and_tokenizers_are_out_of_scope(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"weights")
    with pytest.raises(UnsafeArtifactError, match="outside the supported scope, only their embeddings are"):
        MultiOmicsEmbeddingSource.from_path(path)


def test_misaligned_and_duplicated_rows_have_errors_of_their_own(tmp_path):
    path = write(tmp_path / "short.npz", names=NAMES[:39])
    with pytest.raises(MisalignedArtifactError, match="40 rows and 39 sample_ids"):
        MultiOmicsEmbeddingSource.from_path(path)
    path = write(tmp_path / "twice.npz", names=[*NAMES[:39], "cell_3"])
    with pytest.raises(DuplicatedSamplesError, match=r"1 sample_ids more than once: \['cell_3'\]"):
        MultiOmicsEmbeddingSource.from_path(path)
    path = write(tmp_path / "nameless.npz", names=[*NAMES[:39], ""])
    with pytest.raises(MisalignedArtifactError, match="1 rows without identifier, the first is row 39"):
        MultiOmicsEmbeddingSource.from_path(path)
    path = write(tmp_path / "bare.npy")
    with pytest.raises(MisalignedArtifactError, match="order alone"):
        MultiOmicsEmbeddingSource.from_path(path)
    path = write(tmp_path / "other.npz")
    with pytest.raises(MisalignedArtifactError, match="not those in"):
        MultiOmicsEmbeddingSource.from_path(path, sample_ids=NAMES[::-1])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.where(np.arange(200).reshape(40, 5) == 7, np.nan, RNA), r"1 samples are not, first \['cell_1'\]"),
        (RNA.astype(np.float64) * 1e300, "finite in single precision"),
        (RNA[:, 0], r"samples by dimensions, found shape \(40,\)"),
        (RNA[:, :0], r"found shape \(40, 0\)"),
        (RNA + 1j, "real numbers, found dtype complex"),
        (RNA.astype(str), "real numbers, found dtype"),
    ],
)
def test_values_that_are_no_embeddings(tmp_path, values, match):
    np.savez(tmp_path / "bad.npz", embeddings=values.astype(np.float64) if values.dtype.kind == "f" else values,
             sample_ids=np.array(NAMES))  # fmt: skip
    with pytest.raises(CorruptArtifactError, match=match):
        MultiOmicsEmbeddingSource.from_path(tmp_path / "bad.npz")


def test_missing_files_keys_and_unknown_endings(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        MultiOmicsEmbeddingSource.from_path(tmp_path / "none.npz")
    with pytest.raises(ArtifactError, match="must end in one of"):
        MultiOmicsEmbeddingSource.from_path(tmp_path / "none.csv")
    np.savez(tmp_path / "other.npz", latent=RNA, sample_ids=np.array(NAMES))
    with pytest.raises(KeyError, match="no array 'embeddings'.*latent"):
        MultiOmicsEmbeddingSource.from_path(tmp_path / "other.npz")
    source = MultiOmicsEmbeddingSource.from_path(tmp_path / "other.npz", key="latent")
    np.testing.assert_array_equal(source.embeddings["rna"], RNA)
    with pytest.raises(KeyError, match="X_other.*X_model"):
        MultiOmicsEmbeddingSource.from_path(write(tmp_path / "rna.h5ad"), key="X_other")


# The boundary --------------------------------------------------------------------------------------------------------


def test_M3_operator_support_and_imported_models_do_not_mix():
    real = Provenance(
        dataset_name="d", source_type="file", modalities=("rna",), biological_validation="sorted cells",
        promotion_eligible=True,
    )  # fmt: skip
    drawn = Provenance(dataset_name="d", source_type="synthetic", modalities=("rna",))
    made = artifact_metadata(
        "x", artifact_type="operator_output", modalities=("rna",), promotion_eligible=True, provenance=real
    )
    assert (made["stable_scope"], made["embedding_source"]) == ("operator_support", "in_process_operator")
    with pytest.raises(ValueError, match="must not name a foundation model"):
        artifact_metadata("x", artifact_type="operator_output", modalities=("rna",), foundation_source_name="m")
    with pytest.raises(ValueError, match="promotion_eligible=False"):
        artifact_metadata("x", artifact_type="imported_embedding", modalities=("rna",), promotion_eligible=True)
    with pytest.raises(ValueError, match="not eligible itself"):
        artifact_metadata(
            "x", artifact_type="operator_output", modalities=("rna",), promotion_eligible=True, provenance=drawn
        )
    with pytest.raises(ValueError, match="must be 'operator_support', found 'imported_foundation_model'"):
        validate_artifact_metadata({**made, "stable_scope": "imported_foundation_model"})
    with pytest.raises(KeyError, match="lacks"):
        validate_artifact_metadata({"artifact_id": "x"})
    with pytest.raises(ValueError, match="regressions only"):
        Provenance(dataset_name="d", source_type="synthetic", modalities=("rna",), promotion_eligible=True)
