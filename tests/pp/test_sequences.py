from __future__ import annotations

import gzip

import anndata
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.genome.sequences import decode

GENOME = {"chr1": "ACGTACGTTTGGCCAANNRYacgt", "chr2": "TTTTTTTTTT"}


def regions(rows, *, axis="var", names=None, chrom="chrom", **columns):
    table = pd.DataFrame(rows, columns=[chrom, "start", "end"])
    table.index = [f"r{number}" for number in range(len(rows))] if names is None else names
    for name, values in columns.items():
        table[name] = values
    other = pd.DataFrame(index=["T", "B"])
    shape = (2, len(rows)) if axis == "var" else (len(rows), 2)
    obs, var = (other, table) if axis == "var" else (table, other)
    return anndata.AnnData(np.zeros(shape, np.float32), obs=obs, var=var)


def written(tmp_path):
    """A FASTA file of lines of equal length, as an index needs."""
    path = tmp_path / "genome.fa"
    with path.open("w") as file:
        for name, text in GENOME.items():
            file.write(f">{name} a description\n")
            file.writelines(f"{text[start : start + 6]}\n" for start in range(0, len(text), 6))
    return path


ROWS = [("chr1", 0, 6), ("chr2", 2, 8), ("chr1", 14, 20), ("chr1", 18, 24)]
EXPECTED = ["ACGTAC", "TTTTTT", "AANNNN", "NNACGT"]


def test_file_mapping_pysam_and_objects_agree(tmp_path):
    pyfaidx, pysam = pytest.importorskip("pyfaidx"), pytest.importorskip("pysam")
    path = written(tmp_path)
    with pyfaidx.Fasta(str(path)) as opened, pysam.FastaFile(str(path)) as other:
        for genome in (GENOME, path, str(path), opened, other):
            adata = regions(ROWS)
            dbio.pp.sequences(adata, genome)
            assert decode(adata.varm["dna"]) == EXPECTED
            assert adata.varm["dna"].dtype == np.int8
    assert adata.uns["dna"]["report"] == {
        "regions": 4,
        "width": 6,
        "padded_regions": 0,
        "unknown_bases": 6,
        "regions_without_known_base": 0,
    }


def test_windows_beyond_the_ends_are_padded_and_not_shifted(tmp_path):
    adata = regions([("chr1", 0, 4), ("chr1", 20, 24), ("chr2", 0, 11)])
    dbio.pp.sequences(adata, written(tmp_path), width=8)
    # Middles 2, 22 and 5 of chromosomes of 24 and 10 bases: windows -2..6, 18..26, 1..9.
    assert decode(adata.varm["dna"]) == ["NNACGTAC", "NNACGTNN", "TTTTTTTT"]
    assert adata.uns["dna"]["report"]["padded_regions"] == 2
    whole = regions([("chr2", 0, 12), ("chr1", 0, 12)])
    dbio.pp.sequences(whole, GENOME)
    assert decode(whole.varm["dna"]) == ["TTTTTTTTTTNN", "ACGTACGTTTGG"]


def test_either_axis_and_columns_of_crested():
    adata = regions(ROWS, axis="obs", chrom="chr")
    dbio.pp.sequences(adata, GENOME)
    assert decode(adata.obsm["dna"]) == EXPECTED
    both = regions(ROWS)
    both.obs[["chrom", "start", "end"]] = [["chr1", 0, 6]] * 2
    with pytest.raises(ValueError, match="pass axis="):
        dbio.pp.sequences(both, GENOME)
    dbio.pp.sequences(both, GENOME, axis="var")
    assert decode(both.varm["dna"]) == EXPECTED


def test_a_column_of_text():
    adata = regions(ROWS, sequence=["acgtAC", "NNRYKM", "TTTTTT", "uuGGCC"])
    kept = adata.copy()
    result = dbio.pp.sequences(adata, copy=True)
    assert decode(result.varm["dna"]) == ["ACGTAC", "NNNNNN", "TTTTTT", "TTGGCC"]
    assert "dna" not in adata.varm
    pd.testing.assert_frame_equal(adata.var, kept.var)
    ragged = regions(ROWS[:2], other=["ACGTACGT", "GGG"])
    with pytest.raises(ValueError, match=r"one width.*3 to 8.*width="):
        dbio.pp.sequences(ragged, "other")
    dbio.pp.sequences(ragged, "other", width=5)
    assert decode(ragged.varm["dna"]) == ["CGTAC", "NGGGN"]
    assert ragged.uns["dna"]["report"]["padded_regions"] == 1


def test_strand():
    adata = regions([("chr1", 0, 6)] * 3, strand=["+", "-", None], names=["a", "b", "c"])
    with pytest.warns(UserWarning, match="more than once"):
        dbio.pp.sequences(adata, GENOME, strand="strand")
    assert decode(adata.varm["dna"]) == ["ACGTAC", "GTACGT", "ACGTAC"]
    adata.var["strand"] = ["+", "1", "-"]
    with pytest.raises(ValueError, match="'1' at 'b'"):
        dbio.pp.sequences(adata, GENOME, strand="strand")
    with pytest.raises(KeyError, match="no column 'side'"):
        dbio.pp.sequences(adata, GENOME, strand="side")


def test_other_names_of_chromosomes():
    plain = regions([("1", 0, 6)])
    with pytest.raises(KeyError, match=r"Names with 'chr' would match.*'chr' \+"):
        dbio.pp.sequences(plain, GENOME)
    prefixed = regions([("chr1", 0, 6)])
    with pytest.raises(KeyError, match="without 'chr' would match"):
        dbio.pp.sequences(prefixed, {"1": "ACGTAC"})
    with pytest.raises(KeyError, match="take the assembly"):
        dbio.pp.sequences(regions([("scaffold7", 0, 6)]), GENOME)


def test_bad_places_and_letters(tmp_path):
    adata = regions([("chr1", 0, 6), ("chr2", 40, 46)])
    with pytest.raises(ValueError, match="beyond the end of their chromosome, first: 'r1' at 40 of 10"):
        dbio.pp.sequences(adata, GENOME)
    with pytest.raises(ValueError, match="one width"):
        dbio.pp.sequences(regions([("chr1", 0, 6), ("chr1", 0, 8)]), GENOME)
    with pytest.raises(ValueError, match=r"must be DNA.*'L'.*'r1'"):
        dbio.pp.sequences(regions(ROWS[:2], sequence=["ACGT", "ACLT"]))
    with pytest.raises(ValueError, match=r"missing for \['r1'\]"):
        dbio.pp.sequences(regions(ROWS[:2], sequence=["ACGT", None]))
    with pytest.raises(TypeError, match="found 3 at 'r0'"):
        dbio.pp.sequences(regions(ROWS[:2], sequence=[3, 4]))
    with pytest.raises(KeyError, match="no column 'sequence'"):
        dbio.pp.sequences(regions(ROWS))
    with pytest.raises(FileNotFoundError, match="neither a file nor a column"):
        dbio.pp.sequences(regions(ROWS), "hg38.fa")
    with pytest.raises(TypeError, match="genome must be"):
        dbio.pp.sequences(regions(ROWS), 5)
    with pytest.raises(ValueError, match="width must be a whole number"):
        dbio.pp.sequences(regions(ROWS), GENOME, width=0)
    with pytest.raises(ValueError, match="must not contain '/'"):
        dbio.pp.sequences(regions(ROWS), GENOME, key_added="a/b")
    path = tmp_path / "plain.fa.gz"
    with gzip.open(path, "wt") as file:
        file.write(">chr1\nACGT\n")
    with pytest.raises((ValueError, ImportError), match="bgzip|decompress it"):
        dbio.pp.sequences(regions(ROWS), path)


def test_names_that_disagree_with_the_columns():
    adata = regions(ROWS[:2], names=["chr1:0-6", "chr2:3-8"])  # the second counts from 1
    dbio.pp.sequences(adata, GENOME)
    adata = regions(ROWS[:2], names=["chr1:0-6", "chr1:100-106"])
    with pytest.warns(UserWarning, match=r"'chr1:100-106' is at chr2:2-8. The columns are used"):
        dbio.pp.sequences(adata, GENOME)
    assert decode(adata.varm["dna"]) == EXPECTED[:2]


def test_regions_without_known_base():
    with pytest.warns(UserWarning, match="1 region of 2 have no known base"):
        dbio.pp.sequences(regions(ROWS[:2], sequence=["NNNN", "ACGT"]))


def test_views_and_files(tmp_path):
    adata = regions(ROWS)
    view = adata[:, [3, 1]]
    dbio.pp.sequences(view, GENOME)
    assert decode(view.varm["dna"]) == [EXPECTED[3], EXPECTED[1]]
    assert "dna" not in adata.varm
    view.write_h5ad(tmp_path / "a.h5ad")
    view.write_zarr(tmp_path / "a.zarr")
    for read in (anndata.read_h5ad(tmp_path / "a.h5ad"), anndata.read_zarr(tmp_path / "a.zarr")):
        np.testing.assert_array_equal(read.varm["dna"], view.varm["dna"])
        assert int(read.uns["dna"]["report"]["width"]) == 6
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    dbio.pp.sequences(backed, GENOME, key_added="again")
    np.testing.assert_array_equal(backed.varm["again"], view.varm["dna"])
    with pytest.raises(ValueError, match="in memory"):
        dbio.pp.sequences(backed, GENOME, copy=True)
