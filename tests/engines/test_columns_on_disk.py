"""Peaks of files whose intervals lie on disk while they are worked on: the same tables, in bounded memory."""

from __future__ import annotations

import gzip
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.blocks.rounds import run_here
from diffbio_sc.engines import interval_sample, peak_sets
from diffbio_sc.engines.peak_sets import pool_intervals
from diffbio_sc.engines.peak_settings import PeakSettings
from diffbio_sc.engines.pseudobulk import split_groups, split_rounds
from diffbio_sc.genome import columns
from diffbio_sc.genome import intervals as intervals_module
from diffbio_sc.numerics.genome.duplicates import drop_duplicates
from diffbio_sc.numerics.genome.false_discovery import PValueHistogram


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


def test_two_threads_call_at_once(tmp_path, on_disk):
    on_disk()
    paths = [write(tmp_path / f"{seed}.tsv.gz", seed) for seed in (0, 1)]
    expected = [dbio.tl.call_peaks(path, mode="narrow", groupby=CELLS) for path in paths]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            found = threads.map(lambda path: dbio.tl.call_peaks(path, mode="narrow", groupby=CELLS), paths)
            for one, known in zip(found, expected, strict=True):
                same(one, known)


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


def test_duplicates_are_dropped_into_other_arrays():
    rng = np.random.default_rng(0)
    start = np.sort(rng.integers(0, 30, 80)).astype(np.int32)
    end = (start + rng.integers(1, 4, 80)).astype(np.int32)
    place, other = (start.copy(), end.copy()), (np.zeros(80, np.int32), np.zeros(80, np.int32))
    kept = drop_duplicates(*place, np.array([[0, 80]]), 1)
    bounds, before = np.array([[0, 80]]), (start.copy(), end.copy())
    assert drop_duplicates(start, end, bounds, 1, into=other) == kept == bounds[0, 1] < 80
    for source, known in zip((start, end), before, strict=True):
        np.testing.assert_array_equal(source, known)  # they stay as they are
    np.testing.assert_array_equal(np.stack(other)[:, :kept], np.stack(place)[:, :kept])


def test_one_chromosome_is_cut_where_no_equal_starts_are_torn_apart(monkeypatch):
    monkeypatch.setattr(interval_sample, "_ROWS_AT_ONCE", 4)
    start = np.array([9, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7], np.int32)
    blocks = [block.tolist() for block in interval_sample._blocks(start, np.array([[1, 11]]))]
    assert blocks == [[[1, 7]], [[7, 11]]]
    two = np.array([[0, 1], [1, 11]])
    (block,) = interval_sample._blocks(start, two)
    np.testing.assert_array_equal(block, two)


def test_rows_of_several_samples_between_the_same_places(monkeypatch):
    monkeypatch.setattr(peak_sets, "_MERGED_ROWS", 30)
    rng = np.random.default_rng(1)
    starts = [np.sort(rng.integers(0, 200, number)) for number in (150, 0, 70, 3)]
    ranges = list(peak_sets._ranges(starts))
    assert len(ranges) > 4
    for number, column in enumerate(starts):
        rows = [one[number] for one in ranges]
        assert [rows[0][0], rows[-1][1]] == [0, len(column)]
        assert all(left[1] == right[0] for left, right in zip(rows, rows[1:], strict=False))
    joined = [np.concatenate([c[low:high] for c, (low, high) in zip(starts, one, strict=True)]) for one in ranges]
    assert all(left.max() < right.min() for left, right in zip(joined, joined[1:], strict=False))
    assert max(map(len, joined)) < 90


def test_columns_of_a_shared_folder_travel_by_their_place(tmp_path):
    with columns.columns_on_disk(tmp_path):
        column = columns.new_column(50_000, np.int32)
        columns.write_rows(column, 0, np.arange(50_000))
        copied = columns.copy_column(column)
        fragments = dbio.io.read_fragments(write(tmp_path / "a.tsv.gz", 0))
        assert columns.new_column(0, np.int8).shape == (0,)
    place = columns.stored(column[1000:2000])
    assert place == (str(column.filename), "<i4", 1000, 1000)
    opened = place.open()
    np.testing.assert_array_equal(opened, np.arange(1000, 2000))
    assert columns.stored(opened[5:][:7]) == (str(column.filename), "<i4", 1005, 7)  # again, from a view of a part
    columns.write_rows(opened[10:], 2, np.array([-1, -2], np.int64))
    np.testing.assert_array_equal(column[1010:1016], [1010, 1011, -1, -2, 1014, 1015])
    opened[0] = 7  # reaches no file
    assert column[1000] == 1000
    np.testing.assert_array_equal(copied, np.arange(50_000))
    assert copied.filename != column.filename
    memory = np.arange(5)
    assert columns.stored(memory) is not memory
    np.testing.assert_array_equal(columns.stored(memory), memory)
    assert columns.stored(None) is columns.opened(None) is None
    chosen = fragments.select_chromosomes(["chr10", "chr3"])
    sent = pickle.dumps(chosen)
    assert len(sent) < 3000
    found = pickle.loads(sent)
    for name in chosen:
        for mine, theirs in zip(chosen[name], found[name], strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)
    (again,) = pickle.loads(pickle.dumps(columns.ColumnTuple((column[3:9],))))
    np.testing.assert_array_equal(again, np.arange(3, 9))
    columns.discard(column, copied, memory)
    assert not any(map(Path.exists, map(Path, (column.filename, copied.filename))))
    assert column[5] == 5


def test_parts_that_several_processes_write_share_no_page():
    starts = columns.row_starts([3, 0, 20_000, 5])
    assert starts == [0, 1 << 14, 1 << 14, 3 << 14, (3 << 14) + 5]
    assert columns.row_starts([]) == [0]
    assert columns.row_starts([70_000]) == [0, 70_000]


def test_a_list_of_columns_goes_out_of_memory_one_by_one(tmp_path, monkeypatch):
    gone = []
    monkeypatch.setattr(columns, "release", lambda column: gone.append(column.copy()))
    listed = columns.ColumnList([np.arange(3), np.arange(2)])
    for _ in range(2):
        found = list(listed)
    assert [len(one) for one in gone] == [3, 2, 3, 2]
    assert len(listed) == 2
    assert found[1] is listed[1]


def test_histograms_of_parts_add_up():
    values = np.random.default_rng(0).exponential(3, 5000)
    whole, sum_of_parts = PValueHistogram(), PValueHistogram()
    whole.add_values(values)
    for part in np.array_split(values, 7):
        one = PValueHistogram()
        one.add_values(part)
        sum_of_parts.add_filled(*one.filled())
    np.testing.assert_array_equal(whole.counts, sum_of_parts.counts)


def test_fragments_are_dealt_to_groups_by_part(tmp_path, monkeypatch):
    fragments = dbio.io.read_fragments(write(tmp_path / "a.tsv.gz", 0))
    codes = (np.arange(len(fragments.barcodes)) % 4 - 1).astype(np.int32)
    monkeypatch.setattr("diffbio_sc.genome.intervals.PART_ROWS", 1)
    groups = run_here(split_rounds(fragments, codes, ["a", "b", "c"]))
    whole = split_groups(fragments, codes, ["a", "b", "c"])
    for number, name in enumerate("abc"):
        assert groups[name].chromosomes == fragments.chromosomes
        assert len(groups[name]) == (codes[fragments.columns["cell_code"]] == number).sum() == len(whole[name])
        assert len(whole[name].columns["start"]) == len(whole[name])
        for chromosome in fragments:
            expected = fragments[chromosome].start[codes[fragments[chromosome].cell_code] == number]
            np.testing.assert_array_equal(groups[name][chromosome].start, expected)
            np.testing.assert_array_equal(whole[name][chromosome].start, expected)


def many_chromosomes(chromosomes, *, rows=400, cells=40, strands=False, seed=0):
    """Fragments of cells, or reads, in columns as they are: a file's where those are asked for."""
    rng = np.random.default_rng(seed)
    number = chromosomes * rows
    values = {key: columns.new_column(number, np.int32) for key in ("start", "end", "cell_code")}
    if strands:
        values["strand"] = columns.new_column(number, np.int8)
        values["strand"][:] = rng.choice([-1, 1], number)
    for first in range(0, number, rows):
        places = np.concatenate([rng.integers(0, 90_000, rows - 120), rng.normal(40_000, 60, 120).astype(int)])
        values["start"][first : first + rows] = np.sort(places)
    values["end"][:] = values["start"] + (50 if strands else rng.integers(100, 102, number))
    values["cell_code"][:] = rng.integers(0, cells, number)
    stops = rows * np.arange(1, chromosomes + 1)
    return dbio.io.Intervals(
        values,
        np.stack([stops - rows, stops], axis=1),
        [f"chr{k}" for k in range(chromosomes)],
        barcodes=[f"cell{k}" for k in range(cells)],
        paired=not strands,
        in_order=True,
    )


@pytest.fixture
def apart(monkeypatch):
    """Groups whose rows of each chromosome or two lie apart."""
    monkeypatch.setattr(intervals_module, "PART_ROWS", 500)
    monkeypatch.setattr(interval_sample, "_APART", 100)


@pytest.mark.parametrize("strands", [False, True])
@pytest.mark.parametrize("duplicates", ["auto", 2, None])
def test_groups_that_lie_apart_have_the_peaks_of_each_alone(on_disk, apart, duplicates, strands):
    on_disk()
    with columns.columns_on_disk():
        whole = many_chromosomes(9, strands=strands)
    groups = dbio.tl.call_peaks(whole, groupby=CELLS, mode="narrow", duplicates=duplicates)
    on_disk(False)
    for number, (name, table) in enumerate(groups.items()):
        kept = {chromosome: whole[chromosome].cell_code % 3 == number for chromosome in whole}
        for chromosome, mask in kept.items():
            mask &= whole[chromosome].cell_code < 38
        expected = dbio.tl.call_peaks(whole.keep(kept), mode="narrow", duplicates=duplicates)
        assert len(expected) >= 9
        assert table["name"].tolist() == [f"{name}_{peak}" for peak in expected["name"]]
        same(table.drop(columns="name"), expected.drop(columns="name"))


@pytest.mark.parametrize("duplicates", ["auto", None])
def test_no_more_of_a_group_is_in_memory_with_more_chromosomes_and_groups(on_disk, apart, monkeypatch, duplicates):
    """Neither of the columns, from one release to the next, nor of anything else beside the result."""
    on_disk()
    settings = PeakSettings(mode="narrow", duplicates=duplicates)
    touched = []

    def watched(start, end, bounds, *rest, **into):
        filled = bounds[bounds[:, 1] > bounds[:, 0]]
        touched.append(int(filled.max() - filled.min()) if len(filled) else 0)
        return drop_duplicates(start, end, bounds, *rest, **into)

    def released(*values):
        touched.append(0)
        columns.release(*values)

    monkeypatch.setattr(interval_sample, "drop_duplicates", watched)
    monkeypatch.setattr(interval_sample, "release", released)
    most, allocated = {}, {}
    for chromosomes, number in ((8, 4), (8, 4), (64, 4), (64, 32)):  # the first one again: it may have compiled
        touched.clear()
        with columns.columns_on_disk():
            whole = many_chromosomes(chromosomes, cells=64)
            groups = run_here(split_rounds(whole, np.arange(64) % number, [str(k) for k in range(number)]))
            samples = []
            tracemalloc.start()
            for group in groups.values():
                sample = run_here(interval_sample.sample_rounds(group, settings))
                # Ready to be called, the rows of a task follow each other.
                for part in sample.parts:
                    assert (part.bounds[1:, 0] == part.bounds[:-1, 1]).all()
                samples.append(sample.number)
                del sample, part
            allocated[chromosomes, number] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert 0.9 * len(whole) < sum(samples) <= len(whole)
        assert len(touched) > chromosomes * number / 2
        assert all(first == 0 or second == 0 for first, second in pairwise(touched))
        most[chromosomes, number] = max(touched)
    # Two chromosomes of 400 rows at most, of whatever group.
    assert max(most.values()) <= 800
    assert max(allocated.values()) < 200_000, allocated
