"""Peaks of files whose intervals lie on disk while they are worked on: the same tables, in bounded memory."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.engines.peak_sets import pool_intervals
from diffbio_sc.engines.pseudobulk import split_groups
from diffbio_sc.genome import columns
from diffbio_sc.numerics.genome.duplicates import drop_duplicates


@pytest.fixture
def on_disk(monkeypatch):
    """Every column in a file, worked on a few rows at a time."""

    def switch(on=True):
        monkeypatch.setattr(columns, "_SMALL", -1 if on else 10**12)
        monkeypatch.setattr(columns, "_ROWS_AT_ONCE", 1000)

    return switch


def write(path, seed, *, shuffled=False, barcodes=True):
    """Fragments on five chromosomes of unequal length, one without any peak."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, length in (("chr1", 400_000), ("chr2", 250_000), ("chr10", 90_000), ("chr3", 60_000), ("chrM", 5000)):
        places = rng.integers(0, length - 300, length // 150)
        for summit in rng.integers(2000, length - 2000, length // 25_000):
            places = np.concatenate([places, np.clip(rng.normal(summit, 90, 60).astype(int), 0, length - 300)])
        ends = places + rng.integers(60, 250, len(places))
        cells = rng.integers(0, 40, len(places))
        order = rng.permutation(len(places)) if shuffled else np.argsort(places, kind="stable")
        rows += [f"{name}\t{places[k]}\t{ends[k]}" + (f"\tcell{cells[k]}\t1" if barcodes else "") for k in order]
    if shuffled:
        rows = [rows[k] for k in rng.permutation(len(rows))]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(rows) + "\n")
    return path


CELLS = {f"cell{k}": f"type{k % 3}" for k in range(38)}


def same(found, expected):
    if isinstance(found, dict):
        assert list(found) == list(expected)
        for name in found:
            pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True)
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("mode", ["narrow", "broad", "macs", "auto"])
def test_tables_are_the_same_from_files_and_from_memory(tmp_path, on_disk, mode, shuffled):
    path = write(tmp_path / "a.tsv.gz", 0, shuffled=shuffled)
    plain = write(tmp_path / "b.bed.gz", 1, shuffled=shuffled, barcodes=False)  # duplicates are dropped
    sources = {"one": path, "two": write(tmp_path / "c.tsv.gz", 2)}
    results = []
    for disk in (False, True):
        on_disk(disk)
        one = dbio.tl.call_peaks(path, mode=mode)
        assert len(one) >= 2
        results.append(
            [
                one,
                dbio.tl.call_peaks(plain, mode=mode, control=path),
                dbio.tl.call_peaks(path, mode=mode, groupby=CELLS),
                dbio.tl.call_peaks(sources, mode=mode, replicate=True),
            ]
        )
    for expected, found in zip(*results, strict=True):
        same(found, expected)


def test_columns_in_files_are_arrays_that_keep_their_values(tmp_path, on_disk):
    on_disk()
    assert type(columns.new_column(10, np.int32)) is np.ndarray  # nobody asked for files
    with columns.columns_on_disk():
        column = columns.new_column(5000, np.int32)
        fragments = dbio.io.read_fragments(write(tmp_path / "a.tsv.gz", 0))
        groups = split_groups(fragments, np.arange(len(fragments.barcodes)) % 3 - 1, ["a", "b"])
        pooled = pool_intervals([fragments, groups["a"]])
    assert isinstance(column, np.memmap)
    column[:] = np.arange(5000)
    columns.release(column, column[3:7], None, np.arange(3))
    assert column.sum() == 5000 * 4999 // 2
    target = np.zeros(6000, np.int32)
    columns.copy_into(target, column)
    np.testing.assert_array_equal(target[:5000], np.arange(5000))
    assert all(columns._whole(values) is not None for values in fragments.columns.values())
    for chromosome in fragments:
        arrays, both = fragments[chromosome], pooled[chromosome]
        code = arrays.cell_code % 3 - 1
        for number, name in enumerate("ab"):
            np.testing.assert_array_equal(groups[name][chromosome].start, arrays.start[code == number])
            np.testing.assert_array_equal(groups[name][chromosome].end, arrays.end[code == number])
        expected = np.concatenate([arrays.start, arrays.start[code == 0]])
        np.testing.assert_array_equal(both.start, np.sort(expected))


def test_batches_cover_all_groups():
    assert list(columns.row_batches([3, 0, 5, 1, 1], 4)) == [slice(0, 3), slice(3, 5)]
    assert list(columns.row_batches([0, 0], 4)) == [slice(0, 2)]
    assert list(columns.row_batches([], 4)) == []


def test_duplicates_are_dropped_batch_by_batch():
    rng = np.random.default_rng(0)
    start = np.concatenate([np.sort(rng.integers(0, 30, 80)) for _ in range(3)]).astype(np.int32)
    end = (start + rng.integers(1, 4, 240)).astype(np.int32)
    bounds = np.array([[0, 80], [80, 160], [160, 240]])
    whole, parts = (start.copy(), end.copy(), bounds.copy()), (start.copy(), end.copy(), bounds.copy())
    kept, place = drop_duplicates(*whole, 2), 0
    for batch in (slice(0, 1), slice(1, 3)):
        place = drop_duplicates(parts[0], parts[1], parts[2][batch], 2, place)
    assert kept == place < 240
    np.testing.assert_array_equal(whole[2], parts[2])
    np.testing.assert_array_equal(whole[0][:kept], parts[0][:kept])
    np.testing.assert_array_equal(whole[1][:kept], parts[1][:kept])
