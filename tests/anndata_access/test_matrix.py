from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc._anndata import read_counts
from diffbio_sc.blocks import matrix as matrix_module

ROWS, COLUMNS = 130, 17
KINDS = ["dense", "csr", "csc", "csr_array", "coo-layer", "uint16", "bool", "int64", "backed-csr", "backed-csc",
         "backed-dense", "dask-dense", "dask-sparse", "view"]  # fmt: skip


def plain() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(0.7, (ROWS, COLUMNS)).astype(np.float32)


def build(kind: str, folder) -> ad.AnnData:
    values = plain()
    names = {"obs": pd.DataFrame(index=[f"o{i}" for i in range(ROWS)])}
    names["var"] = pd.DataFrame(index=[f"v{i}" for i in range(COLUMNS)])
    if kind.startswith("backed"):
        made = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind.split("-")[1]](values)
        ad.AnnData(made, **names).write_h5ad(folder / "a.h5ad")
        return ad.read_h5ad(folder / "a.h5ad", backed="r")
    if kind.startswith("dask"):
        da = pytest.importorskip("dask.array")
        array = da.from_array(values, chunks=(40, 9))
        return ad.AnnData(array if kind.endswith("dense") else array.map_blocks(sp.csr_matrix), **names)
    if kind == "view":
        return ad.AnnData(sp.csr_matrix(np.concatenate([values, values])))[:ROWS]
    if kind == "coo-layer":
        return ad.AnnData(sp.csr_matrix((ROWS, COLUMNS)), layers={"counts": sp.csc_array(values)}, **names)
    if kind in ("uint16", "int64"):
        return ad.AnnData(sp.csr_matrix(values.astype(kind)), **names)
    if kind == "bool":
        return ad.AnnData(sp.csr_matrix(values > 0), **names)
    make = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}[kind]
    return ad.AnnData(make(values), **names)


@pytest.fixture(params=KINDS)
def matrix_and_values(request, tmp_path):
    adata = build(request.param, tmp_path)
    values = plain() > 0 if request.param == "bool" else plain()
    yield read_counts(adata, layer="counts" if request.param == "coo-layer" else None), values.astype(np.float32)
    if adata.isbacked:
        adata.file.close()


class _Dense:
    """Picklable, for workers elsewhere."""

    def __init__(self, columns):
        self.columns = columns

    def __call__(self, start, block):
        return start, matrix_module.dense_block(block, self.columns)


def _columns_and_block(block, columns):
    return columns, block


def test_every_kind_gives_the_plain_answer(matrix_and_values):
    matrix, values = matrix_and_values
    assert tuple(matrix.shape) == values.shape
    np.testing.assert_array_equal(matrix.column_sums(), values.sum(0, dtype=float))
    np.testing.assert_array_equal(matrix.row_sums(), values.sum(1, dtype=float))
    codes = np.arange(ROWS) % 4 - 1
    expected = np.stack([values[codes == group].sum(0) for group in range(3)])
    np.testing.assert_array_equal(matrix.sum_by_group(codes, 3), expected)
    columns = np.array([5, 2, 11])
    rows = np.array([0, 3, 64, 129])
    np.testing.assert_array_equal(matrix.take(rows, columns), values[np.ix_(rows, columns)])
    np.testing.assert_array_equal(matrix.take(np.array([], int)), values[:0])
    blocks = matrix.map(_Dense(columns), 50)
    assert [start for start, _ in blocks] == [start for start, _ in matrix.plan(50).blocks]
    assert max(len(block) for _, block in blocks) == matrix.plan(50).rows <= 50
    assert all(block.dtype == np.float32 and block.flags.c_contiguous for _, block in blocks)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), values[:, columns])
    parts = [np.array([5, 2]), np.array([11])]
    by_columns = matrix.map_columns(_columns_and_block, parts)
    for part, (found, block) in zip(parts, by_columns, strict=True):
        np.testing.assert_array_equal(found, part)
        assert block.format == "csc"
        np.testing.assert_array_equal(block.toarray(), values[:, part])
        np.testing.assert_array_equal(matrix.columns(part).toarray(), values[:, part])


def test_sums_of_small_integers_do_not_overflow():
    adata = ad.AnnData(sp.csr_matrix(np.full((300, 2), 60_000, np.uint16)))
    np.testing.assert_array_equal(read_counts(adata).column_sums(), [1.8e7, 1.8e7])


@pytest.mark.parametrize("kind", ["csr", "dense", "backed-csr", "dask-sparse"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [(np.nan, "missing or infinite"), (np.inf, "missing or infinite"), (-2.0, "negative"), (0.5, "non-integer")],
)
def test_bad_values_are_located(tmp_path, kind, value, problem):
    values = plain()
    values[77, 4] = value
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(ROWS)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(COLUMNS)])
    if kind == "dask-sparse":
        da = pytest.importorskip("dask.array")
        made = da.from_array(values, chunks=(40, 9)).map_blocks(sp.csr_matrix)
    else:
        made = values if kind == "dense" else sp.csr_matrix(values)
    adata = ad.AnnData(made, obs=obs, var=var, layers={"other": values})
    if kind.startswith("backed"):
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match=rf"adata\.X must.*{problem}.*'cell77'.*'gene4'.*layer=.*'other'"):
        read_counts(adata)


def test_empty_and_missing_matrices_are_refused():
    with pytest.raises(ValueError, match=r"empty: shape \(0, 3\)"):
        read_counts(ad.AnnData(np.zeros((0, 3), np.float32)))
    with pytest.raises(ValueError, match="X is None"):
        read_counts(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["b"])))
    with pytest.raises(KeyError, match=r"reference\.layers has no 'x'"):
        read_counts(ad.AnnData(np.ones((2, 2), np.float32)), layer="x", name="reference")


def test_columns_of_a_file_are_never_read_whole(tmp_path, monkeypatch):
    """A CSC matrix in a file: slabs of columns at most, dealt out to pieces of rows, and blocks of these."""
    values = plain()
    ad.AnnData(sp.csc_matrix(values)).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    monkeypatch.setattr(matrix_module, "_SLAB_VALUES", 2 * np.count_nonzero(values) // COLUMNS)
    monkeypatch.setattr(matrix_module, "_PIECES", 4)
    monkeypatch.setattr(type(adata.X), "to_memory", None)
    counts = read_counts(adata)
    slabs = [slab.shape for slab in counts._slabs()]
    assert sum(columns for columns, _ in slabs) == COLUMNS
    assert 1 < max(columns for columns, _ in slabs) <= 3
    plan = counts.plan(10)
    assert len(plan.tasks) == 4
    assert [start for start, _ in counts.blocks(10)] == [start for start, _ in plan.blocks]
    np.testing.assert_array_equal(np.concatenate([block.toarray() for _, block in counts.blocks(10)]), values)
    np.testing.assert_array_equal(counts.read(20, 35).toarray(), values[20:35])
    np.testing.assert_array_equal(counts.column_sums(), values.sum(0))
