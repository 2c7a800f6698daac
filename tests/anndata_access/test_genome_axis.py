"""The genome axis: found on either side, checked, cut at gaps, read and written the same way round."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc._anndata.genome_axis import make_genome_axis, read_genome_axis
from diffbio_sc.blocks.matrix import dense_block

BINS = pd.DataFrame(
    {
        "chrom": ["chr2", "chr2", "chr10", "chr2", "chr10", "chr2", "chr10"],
        "start": [100, 0, 50, 300, 0, 400, 100],
        "end": [200, 100, 100, 400, 50, 430, 150],
    },
    index=[f"bin{number}" for number in range(7)],
)


def _counts():
    return np.random.default_rng(0).poisson(2.0, (5, 7)).astype(np.float32)


def _build(kind, side, folder=None):
    values = _counts() if side == "var" else _counts().T
    tracks = pd.DataFrame({"type": list("aabba")}, index=[f"t{number}" for number in range(5)])
    made = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}.get(kind.split("-")[-1], np.asarray)(
        values
    )
    tables = {"obs": tracks, "var": BINS} if side == "var" else {"obs": BINS, "var": tracks}
    adata = ad.AnnData(made, **{key: table.copy() for key, table in tables.items()})
    if kind.startswith("backed"):
        adata.write_h5ad(folder / f"{side}.h5ad")
        return ad.read_h5ad(folder / f"{side}.h5ad", backed="r")
    if kind == "dask":
        adata.X = pytest.importorskip("dask.array").from_array(values, chunks=(2, 3))
    return adata


def test_sequences_end_at_gaps_and_chromosomes():
    for side in ("var", "obs"):
        axis = read_genome_axis(_build("dense", side))
        assert axis.axis == side
        assert axis.chromosomes == ["chr2", "chr10"]
        # chr2: 0-100-200, gap, 300-400-430; chr10: 0-50-100-150.
        assert [list(sequence) for sequence in axis.sequences] == [[1, 0], [3, 5], [4, 2, 6]]
        assert len(axis) == 7
        assert axis.width is None  # 100 on chr2, 50 on chr10
        assert list(axis.table.index) == list(BINS.index)


@pytest.mark.parametrize(
    ("start", "end", "width"),
    [
        ([0, 10, 20, 0], [10, 20, 24, 10], 10),  # the last of a chromosome is shorter
        ([0, 10, 20, 0], [10, 20, 32, 10], None),  # longer is another width
        ([0, 10, 14, 0], [10, 14, 24, 10], None),
        ([0, 10, 20, 0], [10, 20, 30, 10], 10),
    ],
)
def test_common_width(start, end, width):
    table = pd.DataFrame({"chrom": ["a", "a", "a", "b"], "start": start, "end": end}, index=list("wxyz"))
    assert make_genome_axis(table, axis="var", name="table").width == width


def test_one_bin_a_chromosome():
    table = pd.DataFrame({"chrom": ["a", "b"], "start": [0, 5], "end": [10, 15]}, index=list("xy"))
    axis = make_genome_axis(table, axis="obs", name="table")
    assert axis.width == 10
    assert [list(sequence) for sequence in axis.sequences] == [[0], [1]]


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "backed-dense", "backed-csr", "backed-csc", "dask"])
def test_tracks_are_the_same_from_both_sides(kind, tmp_path):
    for side in ("var", "obs"):
        adata = _build(kind, side, tmp_path)
        axis = read_genome_axis(adata)
        for matrix in (axis.tracks(adata), axis.signal(adata)):
            assert matrix.shape == (5, 7)
            found = np.zeros((5, 7))
            for start, block in matrix.blocks(2):
                found[start : start + block.shape[0]] = block.toarray() if sp.issparse(block) else block
            np.testing.assert_array_equal(found, _counts())
            dense = matrix.map(lambda first, block: (first, dense_block(block)), 2)
            np.testing.assert_array_equal(np.concatenate([block for _, block in dense]), _counts())
            np.testing.assert_array_equal(matrix.column_sums(), _counts().sum(axis=0))
            np.testing.assert_array_equal(matrix.row_sums(), _counts().sum(axis=1))
            np.testing.assert_array_equal(matrix.take(np.array([1, 4]), np.array([6, 0])), _counts()[[1, 4]][:, [6, 0]])
            codes = np.array([0, 1, -1, 1, 0])
            expected = [_counts()[codes == code].sum(axis=0) for code in (0, 1)]
            np.testing.assert_array_equal(matrix.sum_by_group(codes, 2), expected)
        assert list(axis.track_names(adata)) == ["t0", "t1", "t2", "t3", "t4"]
        assert "type" in axis.track_table(adata)


@pytest.mark.parametrize("kind", ["backed-dense", "backed-csr", "backed-csc", "dask"])
def test_pooling_cells_goes_through_a_file_once(kind, tmp_path, monkeypatch):
    """However many blocks of cells there are: bins of (bins, cells) are summed over the cells of each group."""
    tracks = read_genome_axis(_build(kind, "obs", tmp_path)).tracks(_build(kind, "obs", tmp_path))
    monkeypatch.setattr(type(tracks), "read", None)
    codes = np.array([2, 0, -1, 0, 2])
    expected = [_counts()[codes == code].sum(axis=0) for code in range(3)]
    np.testing.assert_array_equal(tracks.sum_by_group(codes, 3), expected)


def test_counts_are_checked_and_signals_are_not():
    adata = _build("dense", "obs")
    adata.X = adata.X + 0.5
    axis = read_genome_axis(adata)
    with pytest.raises(ValueError, match="raw counts"):
        axis.tracks(adata)
    assert axis.signal(adata).shape == (5, 7)
    with pytest.raises(KeyError, match="no 'x'"):
        axis.signal(adata, "x")


def test_results_are_written_where_they_belong():
    scores = np.random.default_rng(1).normal(size=(5, 7))
    for side in ("var", "obs"):
        adata = _build("csr", side)
        axis = read_genome_axis(adata)
        axis.write(
            adata,
            columns={"rate": np.arange(7.0)},
            matrices={"posterior": np.ones((7, 2))},
            track_columns={"depth": np.arange(5)},
            track_matrices={"loadings": np.zeros((5, 3))},
            layers={"scores": scores, "calls": sp.csr_array(scores > 0)},
            uns={"record": {"a": 1}},
        )
        there = "obs" if side == "var" else "var"
        assert getattr(adata, side)["rate"].tolist() == list(range(7))
        assert getattr(adata, f"{side}m")["posterior"].shape == (7, 2)
        assert getattr(adata, there)["depth"].tolist() == list(range(5))
        assert getattr(adata, f"{there}m")["loadings"].shape == (5, 3)
        turned = (lambda layer: layer) if side == "var" else np.transpose
        np.testing.assert_array_equal(turned(adata.layers["scores"]), scores)
        np.testing.assert_array_equal(turned(adata.layers["calls"].toarray()), scores > 0)
        assert adata.uns["record"] == {"a": 1}
    with pytest.raises(ValueError, match="rows"):
        axis.write(adata, columns={"rate": np.arange(6.0)}, uns={"late": 1})
    assert "late" not in adata.uns


def test_both_axes_qualify():
    adata = _build("dense", "var")
    adata.obs[["chrom", "start", "end"]] = BINS.iloc[[0, 1, 2, 3, 4]].to_numpy()
    with pytest.raises(ValueError, match="both adata.var and adata.obs.*axis='var' or axis='obs'"):
        read_genome_axis(adata)
    assert len(read_genome_axis(adata, axis="obs")) == 5
    assert len(read_genome_axis(adata, axis="var")) == 7


def test_missing_columns_say_what_is_there_and_what_to_do():
    adata = _build("dense", "var")
    adata.var = adata.var.rename(columns={"chrom": "seqnames"})
    with pytest.raises(KeyError, match=r"adata.var: \['seqnames', 'start', 'end'\].*columns=\{'seqnames': 'chrom'\}"):
        read_genome_axis(adata)
    adata.var = pd.DataFrame(index=[f"chr1:{100 * i}-{100 * i + 50}" for i in range(7)])
    with pytest.raises(KeyError, match=r"look like regions \('chr1:0-50'\): dbio.pp.parse_regions\(adata\)"):
        read_genome_axis(adata)
    with pytest.raises(KeyError, match=r"adata.obs, found adata.obs: \['type'\]"):
        read_genome_axis(adata, axis="obs")
    with pytest.raises(ValueError, match="axis must be"):
        read_genome_axis(adata, axis="rows")


@pytest.mark.parametrize(
    ("column", "row", "value", "problem"),
    [
        ("chrom", 2, None, r"must name a chromosome for each bin, missing for \['bin2'\]"),
        ("start", 3, np.nan, r"\['start'\] must hold whole numbers, found nan at 'bin3'"),
        ("start", 3, 300.5, "whole numbers, found 300.5"),
        ("start", 3, "x", "whole numbers, found 'x'"),
        ("start", 1, -5, r"negative starts: \['bin1'\]; the first is chr2:-5-100"),
        ("end", 1, 0, r"ends that do not lie after their starts .*\['bin1'\]; the first is chr2:0-0"),
        ("end", 1, 101, r"overlapping bins \(1 .*'bin1' \(chr2:0-101\) and 'bin0' \(chr2:100-200\)"),
    ],
)
def test_bad_coordinates(column, row, value, problem):
    adata = _build("dense", "var")
    adata.var[column] = adata.var[column].astype(object)
    adata.var.iloc[row, adata.var.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=problem):
        read_genome_axis(adata)


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float64", "Int64", "O", str],
)
def test_places_of_any_type(dtype):
    table = pd.DataFrame({"chrom": ["b", "a", "b"], "start": [50, 0, 0], "end": [100, 7, 50]}, index=list("xyz"))
    axis = make_genome_axis(table.astype({"start": dtype, "end": dtype}), axis="var", name="table")
    assert axis.start.tolist() == [50, 0, 0]
    assert axis.end.dtype == axis.start.dtype == np.int64
    assert [list(sequence) for sequence in axis.sequences] == [[2, 0], [1]]
    assert axis.extent() == {"b": 100, "a": 7}


@pytest.mark.parametrize("value", [2**62, np.inf, pd.NA, None, "1e400"])
def test_places_that_no_genome_has(value):
    table = pd.DataFrame({"chrom": ["a", "a"], "start": [0, 5], "end": pd.Series([5, value], dtype=object)})
    with pytest.raises(ValueError, match=r"table\['end'\] must hold whole numbers, found .* at '1' \(1 such values\)"):
        make_genome_axis(table, axis="var", name="table")


def test_names_of_chromosomes_that_are_numbers():
    for chrom in ([1, 2, 1], pd.Categorical([1, 2, 1]), pd.Categorical(["1", "2", 1])):
        table = pd.DataFrame({"chrom": chrom, "start": [0, 0, 10], "end": [10, 10, 20]})
        axis = make_genome_axis(table, axis="var", name="table")
        assert axis.chromosomes == ["1", "2"]
        assert axis.table["chrom"].astype(str).tolist() == ["1", "2", "1"]
        assert [list(sequence) for sequence in axis.sequences] == [[0, 2], [1]]


@pytest.mark.parametrize("seed", range(4))
def test_overlapping_regions_where_they_are_allowed(seed):
    """A sequence ends where no earlier region of the chromosome reaches the next: a loop over bases tells."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 120, 25)
    table = pd.DataFrame({"chrom": rng.choice(["a", "b"], 25), "start": start, "end": start + rng.integers(1, 15, 25)})
    with pytest.raises(ValueError, match="overlapping bins|duplicated bins"):
        make_genome_axis(table, axis="var", name="table")
    axis = make_genome_axis(table, axis="var", name="table", allow_overlaps=True)
    assert axis.overlapping
    assert axis.width is None
    expected = []
    for chrom in dict.fromkeys(table["chrom"]):
        rows = table[table["chrom"] == chrom].sort_values(["start", "end"], kind="stable")
        reach = -1
        for index, first, last in zip(rows.index, rows["start"], rows["end"], strict=True):
            if first > reach:
                expected.append([])
            expected[-1].append(index)
            reach = max(reach, last)
    assert [list(sequence) for sequence in axis.sequences] == expected


def test_pairs_of_bins_are_written_beside_them():
    for side in ("var", "obs"):
        adata = _build("csr", side)
        contacts = sp.random(7, 7, 0.5, format="csr", random_state=0)
        read_genome_axis(adata).write(adata, pairs={"contacts": contacts})
        np.testing.assert_array_equal(getattr(adata, f"{side}p")["contacts"].toarray(), contacts.toarray())
        with pytest.raises(ValueError, match=r"must have shape \(7, 7\)"):
            read_genome_axis(adata).write(adata, pairs={"contacts": contacts[:5, :5]}, uns={"late": 1})
        assert "late" not in adata.uns


def test_duplicated_bins():
    adata = _build("dense", "var")
    adata.var.iloc[0] = adata.var.iloc[1]
    with pytest.raises(ValueError, match="duplicated bins.*Remove one of each pair"):
        read_genome_axis(adata)


def test_text_numbers_and_categories_are_read():
    adata = _build("dense", "var")
    adata.var = adata.var.astype({"chrom": "category", "start": str, "end": "Int64"})
    axis = read_genome_axis(adata)
    assert axis.table["start"].tolist() == BINS["start"].tolist()
    assert axis.chromosomes == ["chr2", "chr10"]  # as they appear, not as the categories are sorted


def test_no_bins():
    with pytest.raises(ValueError, match="adata.var has no bins"):
        read_genome_axis(_build("dense", "var")[:, :0])
