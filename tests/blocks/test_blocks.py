"""The one block interface: plans, passes, what is read how often, and arithmetic types."""

from __future__ import annotations

import threading
from collections import Counter

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from diffbio_sc.blocks.matrix import InMemory, as_count_matrix, as_working
from diffbio_sc.blocks.plan import column_blocks, plan_rows
from diffbio_sc.blocks.shuffle import ColumnSpool
from diffbio_sc.blocks.steps import ColumnSquares, ColumnSums, Gather, GroupSums, RowSums, Step, combine_in_order

TYPES = [
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
]


def counts(rows=130, columns=17, seed=0):
    return np.random.default_rng(seed).poisson(0.7, (rows, columns)).astype(np.float32)


def chunked(values, size, reads: Counter, *, sparse=False):
    """A dask array that counts how often each chunk of rows is computed."""
    da = pytest.importorskip("dask.array")
    lock = threading.Lock()

    def load(start, stop):
        with lock:
            reads[start] += 1
        return sp.csr_matrix(values[start:stop]) if sparse else values[start:stop]

    import dask

    pieces = [
        da.from_delayed(
            dask.delayed(load, pure=False)(start, min(start + size, len(values))),
            (min(size, len(values) - start), values.shape[1]),
            meta=sp.csr_matrix((0, 0), dtype=values.dtype) if sparse else np.empty((0, 0), values.dtype),
        )
        for start in range(0, len(values), size)
    ]
    return da.concatenate(pieces)


@pytest.mark.parametrize(
    ("rows", "size", "chunks", "tasks", "largest"),
    [
        (10, 4, None, [[(0, 4)], [(4, 8)], [(8, 10)]], 4),
        (9, 8, None, [[(0, 5)], [(5, 9)]], 5),  # even, not 8 and 1
        (10, 4, [2, 2, 2, 2, 2], [[(0, 4)], [(4, 8)], [(8, 10)]], 4),  # whole chunks together
        (10, 4, [3, 3, 3, 1], [[(0, 3)], [(3, 6)], [(6, 10)]], 4),
        (13, 4, [10, 3], [[(0, 4), (4, 8), (8, 10)], [(10, 13)]], 4),  # a large chunk is read once and cut
        (9, 4, [4, 4, 1], [[(0, 4)], [(4, 7), (7, 9)]], 4),  # a remainder goes with the chunk before it
        (13, 4, [1, 4, 4, 1, 3], [[(0, 3), (3, 5)], [(5, 9)], [(9, 13)]], 4),
        (0, 4, None, [], 0),
        (5, 4, [5, 0], [[(0, 3), (3, 5)]], 3),
    ],
)
def test_plans_follow_chunks_and_are_even(rows, size, chunks, tasks, largest):
    plan = plan_rows(rows, size, chunks)
    assert plan.tasks == tasks
    assert plan.rows == largest
    covered = [row for start, stop in plan.blocks for row in range(start, stop)]
    assert covered == list(range(rows))


@pytest.mark.parametrize(
    ("sizes", "budget", "most", "lengths"),
    [
        ([1] * 10, 4, 100, [4, 4, 2]),
        ([1] * 100, 40, 100, [34, 34, 32]),
        ([1] * 100, 40, 30, [26, 26, 26, 22]),
        ([5, 1, 1, 1, 1, 9, 1, 1], 8, 100, [4, 1, 1, 2]),  # one may be larger than the budget
        ([3, 3], 10, 100, [2]),
        ([], 10, 100, []),
    ],
)
def test_blocks_of_columns_are_even_where_that_makes_them_no_more(sizes, budget, most, lengths):
    columns = np.arange(7, 7 + len(sizes))
    blocks = column_blocks(columns, np.array(sizes), budget, most)
    assert [len(block) for block in blocks] == lengths
    np.testing.assert_array_equal(np.concatenate([*blocks, columns[:0]]), columns)


def test_parts_are_combined_in_a_tree_that_depends_on_their_number_alone():
    assert combine_in_order(map(str, range(7)), lambda a, b: f"({a}{b})") == "(((01)(23))((45)6))"
    with pytest.raises(ValueError, match="no blocks"):
        combine_in_order([], str.__add__)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_pass_of_many_steps_reads_every_chunk_once(sparse):
    values = counts()
    reads: Counter = Counter()
    matrix = as_count_matrix(chunked(values, 40, reads, sparse=sparse))
    wanted = np.arange(130) % 9 == 2
    codes = np.arange(130) % 4 - 1
    steps = (
        ColumnSums(),
        RowSums(np.array([4, 2])),
        GroupSums(codes, 3),
        Gather(wanted, np.array([7, 1])),
        ColumnSquares(codes >= 0),
    )
    columns, rows, groups, gathered, squares = matrix.reduce(*steps, size=50)
    assert reads == Counter({0: 1, 40: 1, 80: 1, 120: 1})
    np.testing.assert_array_equal(columns, values.sum(0, dtype=float))
    np.testing.assert_array_equal(rows, values[:, [4, 2]].sum(1))
    np.testing.assert_array_equal(groups, [values[codes == group].sum(0) for group in range(3)])
    np.testing.assert_array_equal(gathered.toarray(), values[wanted][:, [7, 1]])
    np.testing.assert_allclose(squares, (values[codes >= 0].astype(float) ** 2).sum(0))


def test_taken_rows_touch_only_the_chunks_that_hold_them(tmp_path):
    values = counts(10_000)
    reads: Counter = Counter()
    matrix = as_count_matrix(chunked(values, 2500, reads))
    rows = np.array([3, 2400, 7600])
    np.testing.assert_array_equal(matrix.take(rows, np.array([3, 0])), values[np.ix_(rows, [3, 0])])
    assert reads == Counter({0: 1, 7500: 1})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        stored = as_count_matrix(file.create_dataset("x", data=values, chunks=(1000, 17)))
        assert stored.plan().tasks[0] == [(0, 2000)]  # two whole chunks
        touched = []
        read = stored.read
        stored.read = lambda start, stop: touched.append((start, stop)) or read(start, stop)
        np.testing.assert_array_equal(stored.take(rows), values[rows])
        assert touched == [(0, 1000), (2000, 3000), (7000, 8000)]  # one chunk each


def test_blocks_of_columns_are_shuffled_once():
    values = counts()
    blocks = [np.array([5, 2]), np.array([11]), np.arange(6, 10)]
    reads: Counter = Counter()
    matrix = as_count_matrix(chunked(values, 40, reads))
    for block, found in zip(blocks, matrix.map_columns(_toarray, blocks), strict=True):
        np.testing.assert_array_equal(found, values[:, block])
    assert reads == Counter({0: 1, 40: 1, 80: 1, 120: 1})


def _toarray(piece, indices):
    return piece.toarray()


@pytest.mark.parametrize("in_memory", [10**9, 10])  # the second goes through files
@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
def test_spooled_columns_come_back(in_memory, make):
    values = counts()
    blocks = [np.array([5, 2]), np.arange(3)]
    with ColumnSpool(blocks, in_memory) as spool:
        for start in range(0, 130, 50):
            spool.deal(make(values[start : start + 50]))
        for number in (1, 0):
            np.testing.assert_array_equal(spool.collect(number).toarray(), values[:, blocks[number]])


def test_memory_and_tasks_of_the_same_blocks_agree_bit_for_bit():
    da = pytest.importorskip("dask.array")
    values = np.random.default_rng(0).lognormal(size=(700, 5)).astype(np.float32)

    class Squares(Step):
        def __call__(self, start, block):
            return np.square(block).sum(0)

    in_memory = as_count_matrix(values).reduce(Squares(), size=100)[0]
    by_tasks = as_count_matrix(da.from_array(values, chunks=(100, -1))).reduce(Squares(), size=100)[0]
    np.testing.assert_array_equal(in_memory, by_tasks)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "dask", "backed"])
@pytest.mark.parametrize("dtype", TYPES)
def test_arithmetic_never_happens_in_the_stored_type(dtype, kind, tmp_path):
    largest = {"bool": 1, "int8": 127, "uint8": 255, "float16": 2000}.get(dtype, 30_000)
    values = np.full((300, 3), largest).astype(dtype)
    values[::2, 1] = 0
    truth = values.astype(np.float64)
    stored = values
    if kind in ("csr", "csc"):
        stored = (sp.csr_array if kind == "csr" else sp.csc_array)(truth)
        stored.data = stored.data.astype(dtype)
    elif kind == "dask":
        stored = pytest.importorskip("dask.array").from_array(values, chunks=(100, 2))
    file = None
    if kind == "backed":
        file = h5py.File(tmp_path / "x.h5", "w")
        stored = file.create_dataset("x", data=values)
    matrix = as_count_matrix(stored)
    working = matrix.read(0, 10)
    assert working.dtype == (np.float64 if np.dtype(dtype).itemsize > 2 and dtype != "float32" else np.float32)
    np.testing.assert_array_equal(matrix.column_sums(), truth.sum(0))
    np.testing.assert_array_equal(matrix.row_sums(), truth.sum(1))
    np.testing.assert_array_equal(matrix.sum_by_group(np.arange(300) % 2, 2), [truth[::2].sum(0), truth[1::2].sum(0)])
    np.testing.assert_array_equal(matrix.columns(np.array([1])).toarray(), truth[:, [1]])
    np.testing.assert_array_equal(matrix.take(np.array([0, 299])), truth[[0, 299]])
    if file is not None:
        file.close()


def test_entries_stored_twice_are_one():
    doubled = sp.csr_matrix(([1, 2, 3], [0, 0, 1], [0, 3, 3]), shape=(2, 2))
    matrix = as_count_matrix(doubled)
    assert matrix.read(0, 2).data.tolist() == [3, 3]
    assert doubled.nnz == 3  # the caller's own is as it was
    with pytest.raises(TypeError, match="real numbers, found dtype complex"):
        as_working(np.ones(2, complex))


def test_chunks_of_unknown_size_are_explained():
    da = pytest.importorskip("dask.array")
    array = da.from_array(counts(), chunks=(40, -1))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        as_count_matrix(array[array[:, 0] > 0])


def test_in_memory_blocks_hold_no_more_than_asked_for():
    largest = []

    class Watched(InMemory):
        def read(self, start, stop):
            largest.append(stop - start)
            return super().read(start, stop)

    matrix = Watched(sp.random_array((20_000, 50), density=0.01, format="csr", dtype=np.float32))
    matrix.reduce(ColumnSums(), RowSums())
    assert sum(largest) == 20_000
    assert max(largest) <= 2048
