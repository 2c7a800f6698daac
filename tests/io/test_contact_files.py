"""Reading and writing contact maps: .cool, .mcool, .scool and .hic."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import diffbio_sc as dbio

cooler = pytest.importorskip("cooler")

DATA = Path(os.environ.get("DIFFBIO_SC_DATA", "missing")) / "hic"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="DIFFBIO_SC_DATA holds no hic folder")


@pytest.fixture(scope="module")
def two():
    """Two chromosomes, with contacts between them and weights."""
    adata = dbio.datasets.simulate_contacts({"chr1": 60, "chr2": 45}, contacts_per_bin=80, trans_share=0.2)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, adata.n_obs)
    weight[5] = np.nan
    adata.obs["contact_weight"] = weight
    return adata


def same(left, right):
    assert (left.obsp["contacts"] != right.obsp["contacts"]).nnz == 0
    for column in ("start", "end"):
        np.testing.assert_array_equal(left.obs[column], right.obs[column])
    assert list(left.obs["chrom"].astype(str)) == list(right.obs["chrom"].astype(str))


def test_round_trip_of_cool(two, tmp_path):
    path = tmp_path / "map.cool"
    dbio.io.write_cool(two, path, assembly="hg38")
    back = dbio.io.read_cool(path)
    same(back, two)
    assert back.obsp["contacts"].dtype == np.int32
    np.testing.assert_allclose(back.obs["contact_weight"], two.obs["contact_weight"])
    assert list(np.flatnonzero(back.obs["contact_bad_bin"])) == [5]
    assert back.uns["genome_assembly"] == "hg38"
    assert list(back.obs_names[:2]) == ["chr1:0-10000", "chr1:10000-20000"]
    # What cooler itself makes of the file: balanced contacts of a region.
    weight = two.obs["contact_weight"].to_numpy()[:60]
    expected = two.obsp["contacts"][:60, :60].toarray() * np.outer(weight, weight)
    np.testing.assert_allclose(cooler.Cooler(str(path)).matrix(balance=True).fetch("chr1"), expected)


def test_storage_of_one_triangle(two, tmp_path):
    dbio.io.write_cool(two, tmp_path / "map.cool")
    upper = dbio.io.read_cool(tmp_path / "map.cool", storage="upper")
    assert upper.uns["contacts_storage"]["storage"] == "upper"
    assert (upper.obsp["contacts"] != sp.triu(two.obsp["contacts"])).nnz == 0
    # Written again from one triangle, the file is the same.
    dbio.io.write_cool(upper, tmp_path / "again.cool")
    same(dbio.io.read_cool(tmp_path / "again.cool"), two)


def test_some_chromosomes_in_another_order(two, tmp_path):
    dbio.io.write_cool(two, tmp_path / "map.cool")
    order = np.r_[60:105, 0:60]
    swapped = dbio.io.read_cool(tmp_path / "map.cool", chroms=["chr2", "chr1"])
    same(swapped, two[order])
    one = dbio.io.read_cool(tmp_path / "map.cool", chroms="chr2")
    same(one, two[60:])
    cis = dbio.io.read_cool(tmp_path / "map.cool", trans=False).obsp["contacts"]
    assert cis[:60, 60:].nnz == 0
    assert (cis[:60, :60] != two.obsp["contacts"][:60, :60]).nnz == 0


def test_blocks_of_pixels_join(two, tmp_path, monkeypatch):
    dbio.io.write_cool(two, tmp_path / "map.cool")
    monkeypatch.setattr("diffbio_sc.io._cooler_files._BLOCK", 37)
    same(dbio.io.read_cool(tmp_path / "map.cool"), two)


def test_resolutions_of_mcool(two, tmp_path):
    path = tmp_path / "map.mcool"
    coarse = dbio.datasets.simulate_contacts(50, resolution=50_000, contacts_per_bin=30, rng=1)
    dbio.io.write_cool(two, path)
    same(dbio.io.read_cool(path), two)
    dbio.io.write_cool(coarse, path)
    assert cooler.fileops.is_multires_file(str(path))
    same(dbio.io.read_cool(path, resolution=50_000), coarse)
    same(dbio.io.read_cool(f"{path}::/resolutions/10000"), two)
    with pytest.raises(ValueError, match=r"several resolutions: pass resolution=, one of \[10000, 50000\]"):
        dbio.io.read_cool(path)
    with pytest.raises(KeyError, match="no resolution 5000"):
        dbio.io.read_cool(path, resolution=5000)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        dbio.io.write_cool(two, path)
    dbio.io.write_cool(two, path, overwrite=True)
    same(dbio.io.read_cool(path, resolution=50_000), coarse)


@pytest.mark.parametrize("name", ["map.cool", "map.mcool"])
def test_a_failed_writer_leaves_the_old_file(two, tmp_path, monkeypatch, name):
    path = tmp_path / name

    def fail(uri, *values, **options):
        with open(uri.partition("::")[0], "ab") as handle:
            handle.write(b"half a file")
        raise OSError("disk full")

    def broken():
        with monkeypatch.context() as patch:
            patch.setattr(cooler, "create_cooler", fail)
            with pytest.raises(OSError, match="disk full"):
                dbio.io.write_cool(two, path, overwrite=True)

    broken()
    assert list(tmp_path.iterdir()) == []
    dbio.io.write_cool(two, path)
    before = path.read_bytes()
    broken()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_large_and_fractional_counts(tmp_path):
    adata = dbio.datasets.simulate_contacts(40, contacts_per_bin=20)
    large = adata.copy()
    large.obsp["contacts"] = adata.obsp["contacts"].astype(np.int64) * 3_000_000_000
    dbio.io.write_cool(large, tmp_path / "large.cool")
    back = dbio.io.read_cool(tmp_path / "large.cool").obsp["contacts"]
    assert back.dtype == np.int64
    assert (back != large.obsp["contacts"]).nnz == 0
    half = adata.copy()
    half.obsp["contacts"] = adata.obsp["contacts"].astype(float) * 0.5
    with pytest.warns(UserWarning, match="fractional"):
        dbio.io.write_cool(half, tmp_path / "half.cool")
    with pytest.warns(UserWarning, match="fractional values"):
        values = dbio.io.read_cool(tmp_path / "half.cool").obsp["contacts"]
    np.testing.assert_allclose(values.toarray(), half.obsp["contacts"].toarray())


def test_variable_bins_are_refused(tmp_path):
    bins = pd.DataFrame({"chrom": "chr1", "start": [0, 10, 35], "end": [10, 35, 50]})
    pixels = pd.DataFrame({"bin1_id": [0], "bin2_id": [2], "count": [3]})
    cooler.create_cooler(str(tmp_path / "fragments.cool"), bins, pixels)
    with pytest.raises(ValueError, match="different widths"):
        dbio.io.read_cool(tmp_path / "fragments.cool")


def test_errors_name_what_is_there(two, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        dbio.io.read_cool(tmp_path / "nothing.cool")
    (tmp_path / "text.cool").write_text("no map")
    with pytest.raises(ValueError, match="not HDF5"):
        dbio.io.read_cool(tmp_path / "text.cool")
    with pytest.raises(ValueError, match="not HDF5"):
        dbio.io.read_scool(tmp_path / "text.cool")
    path = tmp_path / "map.cool"
    dbio.io.write_cool(two, path)
    with pytest.raises(KeyError, match="no chromosomes.*'1'.*chr1"):
        dbio.io.read_cool(path, chroms=["1"])
    with pytest.raises(KeyError, match="bins of 10000 bp, not 5000"):
        dbio.io.read_cool(path, resolution=5000)
    with pytest.raises(ValueError, match="no .scool file"):
        dbio.io.read_cool(path, cell="a")
    with pytest.raises(ValueError, match="read_cool"):
        dbio.io.read_scool(path)
    with pytest.raises(ValueError, match="storage"):
        dbio.io.read_cool(path, storage="lower")
    with pytest.raises(FileExistsError, match="overwrite"):
        dbio.io.write_cool(two, path)
    with pytest.raises(KeyError, match="no column 'nothing'"):
        dbio.io.write_cool(two, tmp_path / "other.cool", columns=["nothing"])
    assert not (tmp_path / "other.cool").exists()


def test_cells_of_scool(tmp_path):
    maps = {f"cell_{k}": dbio.datasets.simulate_contacts(50, contacts_per_bin=5, rng=k) for k in range(3)}
    bins = maps["cell_0"].obs[["chrom", "start", "end"]].astype({"chrom": str}).reset_index(drop=True)
    pixels = {}
    for name, each in maps.items():
        upper = sp.triu(each.obsp["contacts"]).tocoo()
        table = pd.DataFrame({"bin1_id": upper.row, "bin2_id": upper.col, "count": upper.data})
        pixels[name] = table.sort_values(["bin1_id", "bin2_id"]).reset_index(drop=True)
    path = tmp_path / "cells.scool"
    cooler.create_scool(str(path), bins, pixels, ordered=True)
    cells = dbio.io.read_scool(path)
    assert sorted(cells) == list(maps)
    for name, each in maps.items():
        same(cells[name], each)
        same(dbio.io.read_cool(path, cell=name), each)
    with pytest.raises(ValueError, match="3 cells: pass cell="):
        dbio.io.read_cool(path)
    with pytest.raises(KeyError, match="no cell 'x'"):
        dbio.io.read_cool(path, cell="x")
    with pytest.raises(KeyError, match="no cell 'x'"):
        cells["x"]


def test_cells_of_other_bins_are_refused():
    cells = dbio.io.ContactCells(
        {"a": dbio.datasets.simulate_contacts(50, contacts_per_bin=5), "b": dbio.datasets.simulate_contacts(60)}
    )
    with pytest.raises(ValueError, match="those of 'b'"):
        list(cells.contact_maps())
    with pytest.raises(ValueError, match="at least one cell"):
        dbio.io.ContactCells({})


@pytest.mark.data
@needs_data
def test_real_cool_and_its_weights():
    adata = dbio.io.read_cool(DATA / "gm12878_chr21_10kb_hg19.cool")
    assert adata.shape == (4813, 0)
    assert sp.triu(adata.obsp["contacts"]).sum() == 2_433_581
    source = cooler.Cooler(str(DATA / "gm12878_chr21_10kb_hg19.cool"))
    np.testing.assert_array_equal(adata.obs["contact_weight"], source.bins()["weight"][:])
    juicer = dbio.io.read_cool(
        DATA / "gm12878_2500kb_KR_VC.cool", chroms=source_names(DATA / "gm12878_2500kb_KR_VC.cool")[:2]
    )
    assert {"KR", "VC", "VC_SQRT"} <= set(juicer.obs)
    assert "contact_weight" not in juicer.obs


def source_names(path):
    return cooler.Cooler(str(path)).chromnames


@pytest.mark.data
@needs_data
def test_real_hic_against_hictkpy():
    hictkpy = pytest.importorskip("hictkpy")
    path = DATA / "straw_test.hic"
    adata = dbio.io.read_hic(path, chroms=["3", "1"], weights="VC")
    source = hictkpy.File(str(path), 2_500_000)
    cis = source.fetch("3").to_coo().toarray()
    size = len(cis)
    counts = adata.obsp["contacts"].toarray()
    np.testing.assert_array_equal(counts[:size, :size], np.maximum(cis, np.triu(cis, 1).T))
    np.testing.assert_array_equal(counts[size:, :size], source.fetch("1", "3").to_numpy())
    # Weights multiply: the file's own normalised contacts.
    weight = adata.obs["contact_weight"].to_numpy()[:size]
    expected = source.fetch("3", normalization="VC").to_numpy()
    found = counts[:size, :size] * np.outer(weight, weight)
    known = np.isfinite(found) & np.isfinite(expected)
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4)
    assert adata.uns["genome_assembly"] == "hg19"
    with pytest.raises(KeyError, match="no normalisation 'ICE'"):
        dbio.io.read_hic(path, weights="ICE")
    with pytest.raises(KeyError, match="no resolution 10"):
        dbio.io.read_hic(path, resolution=10)
    with pytest.raises(KeyError, match="chromosomes"):
        dbio.io.read_hic(path, chroms="chr1")
    with pytest.raises(ValueError, match="no .hic file"):
        dbio.io.read_hic(DATA / "HIC001_chr21_50kb.cool")
    with pytest.raises(FileNotFoundError, match="nothing"):
        dbio.io.read_hic("nothing.hic")
