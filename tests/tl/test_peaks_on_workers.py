"""Peaks of files on a cluster: the same tables, whoever reads them and whoever is lost."""

from __future__ import annotations

import contextlib
import gzip

import numpy as np
import pandas as pd
import pytest
from dying_tasks import Dies

import diffbio_sc as dbio
from diffbio_sc.blocks import cluster as engine
from diffbio_sc.engines import interval_peaks, interval_sample, peak_sets, pseudobulk
from diffbio_sc.io import tabix
from diffbio_sc.tl import _peak_sources

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

LENGTHS = {"chr1": 400_000, "chr2": 250_000, "chr10": 90_000, "chr3": 60_000, "chrM": 5000}
CELLS = {f"cell{k}": f"type{k % 3}" for k in range(38)}


def write(path, seed, kind="cells"):
    """Fragments, with barcodes or without, or single reads, on chromosomes of unequal length."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, length in LENGTHS.items():
        places = rng.integers(0, length - 300, length // 150)
        for summit in rng.integers(2000, length - 2000, length // 25_000):
            places = np.concatenate([places, np.clip(rng.normal(summit, 90, 60).astype(int), 0, length - 300)])
        places.sort()
        ends = places + rng.integers(60, 250, len(places))
        cells, forward = rng.integers(0, 40, len(places)), rng.random(len(places)) < 0.5
        for k in range(len(places)):
            if kind == "reads":
                low = places[k] if forward[k] else ends[k] - 36
                rows.append(f"{name}\t{low}\t{low + 36}\tr\t0\t{'+' if forward[k] else '-'}")
            else:
                rows.append(f"{name}\t{places[k]}\t{ends[k]}" + (f"\tcell{cells[k]}\t1" if kind == "cells" else ""))
    with gzip.open(path, "wt") as file:
        file.write("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fragments")
    return {
        "a": write(folder / "a.tsv.gz", 0),
        "b": write(folder / "b.tsv.gz", 1),
        "plain": write(folder / "plain.bedpe.gz", 2, "plain"),
        "reads": write(folder / "reads.bed.gz", 3, "reads"),
        "input": write(folder / "input.bed.gz", 4, "reads"),
    }


@pytest.fixture
def small_parts(monkeypatch):
    """Every chromosome a task of its own, ranges of an index too."""
    monkeypatch.setattr("diffbio_sc.genome.intervals.PART_ROWS", 1)
    monkeypatch.setattr(peak_sets, "PART_ROWS", 1)
    monkeypatch.setattr(tabix, "_LEAST_BYTES", 0)


def calls(files, mode):
    """All ways to call peaks of files."""
    call = dbio.tl.call_peaks
    two = {"one": files["a"], "two": files["b"]}
    return [
        lambda: call(files["a"], mode=mode),
        lambda: call(files["a"], mode=mode, duplicates=1),
        lambda: call(files["plain"], mode=mode, control=files["a"], duplicates=2),
        lambda: call(files["reads"], mode=mode),
        lambda: call(files["reads"], mode=mode, duplicates=None, control=files["input"]),
        lambda: call(files["a"], mode=mode, groupby=CELLS, control=files["plain"]),
        lambda: call(two, mode=mode),
        lambda: call(two, mode=mode, replicate=True),
    ]


def same(found, expected):
    if isinstance(found, dict):
        assert list(found) == list(expected)
        for name in found:
            pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True)
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("mode", ["narrow", "broad", "macs", "auto"])
def test_tables_are_equal_on_workers(files, workers, small_parts, mode):
    number = 0
    for one in calls(files, mode):
        here = one()
        with workers.as_current():
            assert engine.active_client() is workers
            same(one(), here)
        number += len(here)
    assert number >= 9  # broad ones: few of the samples have domains


STAGES = {
    "reading": (_peak_sources, "_read_whole"),
    "dealing": (pseudobulk, "_deal"),
    "fragments": (interval_sample, "_unique_of_cells"),
    "pooling": (peak_sets, "_pool"),
    "peaks": (interval_peaks, "_chain_task"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_lost_worker_changes_nothing(files, workers, small_parts, tmp_path, monkeypatch, stage):
    def call():
        if stage == "pooling":
            return dbio.tl.call_peaks({"one": files["a"], "two": files["b"]}, mode="narrow", replicate=True)
        return dbio.tl.call_peaks(files["a"], mode="narrow", groupby=CELLS, duplicates=1)

    here = call()
    module, name = STAGES[stage]
    monkeypatch.setattr(module, name, Dies(tmp_path / "dead", module.__name__, name))
    with workers.as_current():
        same(call(), here)
    assert (tmp_path / "dead").exists()
    workers.wait_for_workers(2, timeout=300)


def test_threads_of_one_process(files, small_parts):
    here = [one() for one in calls(files, "auto")[-3:]]
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        for one, expected in zip(calls(files, "auto")[-3:], here, strict=True):
            same(one(), expected)


def test_processes_of_a_call(files, small_parts):
    for one in ({"mode": "auto", "groupby": CELLS}, {"mode": "narrow", "duplicates": 1}):
        same(dbio.tl.call_peaks(files["a"], n_jobs=2, **one), dbio.tl.call_peaks(files["a"], **one))


def test_what_is_in_memory_stays_here(files, workers, monkeypatch):
    fragments = dbio.io.read_fragments(files["a"])
    here = dbio.tl.call_peaks(fragments, mode="narrow")
    monkeypatch.setattr(workers, "submit", None)
    with workers.as_current():
        same(dbio.tl.call_peaks(fragments, mode="narrow"), here)


def test_errors_and_warnings_of_workers_arrive(files, workers, tmp_path):
    broken = tmp_path / "broken.tsv.gz"
    broken.write_bytes(files["a"].read_bytes()[:20_000])
    empty = tmp_path / "empty.tsv.gz"
    empty.write_bytes(gzip.compress(b"chr1\t5\t5\tcell1\t1\n"))
    with workers.as_current():
        with pytest.raises(ValueError, match=r"broken\.tsv\.gz cannot be decompressed"):
            dbio.tl.call_peaks(broken)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            dbio.tl.call_peaks(tmp_path / "none.tsv")
        with pytest.warns(UserWarning, match="1 interval of length 0 left out"), contextlib.suppress(IndexError):
            assert len(dbio.tl.call_peaks(empty, mode="narrow")) == 0


@pytest.mark.parametrize("csi", [False, True])
def test_an_index_is_used_and_changes_nothing(files, workers, small_parts, tmp_path, monkeypatch, csi):
    pysam = pytest.importorskip("pysam", reason="pysam writes the index")
    path = tmp_path / "indexed.tsv.gz"
    with gzip.open(files["a"], "rb") as source, pysam.BGZFile(str(path), "wb") as target:
        target.write(b"# a comment\n" + source.read())
    pysam.tabix_index(str(path), preset="bed", csi=csi)
    expected = [
        dbio.tl.call_peaks(path, mode="narrow"),
        dbio.tl.call_peaks(path, mode="auto", groupby=CELLS),
    ]
    monkeypatch.setattr(_peak_sources, "_whole", None)  # no worker reads all of it
    with workers.as_current():
        same(dbio.tl.call_peaks(path, mode="narrow"), expected[0])
        same(dbio.tl.call_peaks(path, mode="auto", groupby=CELLS), expected[1])
        monkeypatch.setattr(
            _peak_sources, "_read_range", Dies(tmp_path / "dead", _peak_sources.__name__, "_read_range")
        )
        same(dbio.tl.call_peaks(path, mode="narrow"), expected[0])
    assert (tmp_path / "dead").exists()
