"""Warnings point to the line of the user's code that asked."""

from __future__ import annotations

import numpy as np
import pytest

import diffbio_sc as dbio

LABELS = {"A": "T", **{f"x{number}": "T" for number in range(9)}}


def _fragments(folder):
    (folder / "f.tsv").write_text("chr1\t1\t9\tA\t1\nchr1\t2\t900\tA\t1\n")
    return folder / "f.tsv"


CALLS = {
    "clipped": lambda path: dbio.io.read_fragments(path, chrom_sizes={"chr1": 100}),
    "few barcodes of a file": lambda path: dbio.io.read_fragments(path, barcodes=LABELS),
    "few barcodes of a count": lambda path: dbio.pp.coverage(dbio.io.read_fragments(path), groupby=LABELS),
    "few barcodes of a pseudobulk": lambda path: dbio.pp.pseudobulk(dbio.io.read_fragments(path), groupby=LABELS),
    "past the end": lambda path: dbio.pp.coverage(dbio.io.read_fragments(path), chrom_sizes={"chr1": 2}),
    "other blacklist": lambda path: dbio.io.read_fragments(path).exclude(
        dbio.io.Intervals.from_arrays(["chrM"], [1], [2])
    ),
    "strandless": lambda path: dbio.io.Intervals.from_arrays(
        ["a", "a"], [1, 5], [9, 9], strand=np.array([1, 0]), paired=False
    ).extend(5),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_to_the_call(name, tmp_path):
    path = _fragments(tmp_path)
    with pytest.warns(UserWarning, match="left out|clipped|asked for|no region|no strand") as caught:
        CALLS[name](path)
    assert {warning.filename for warning in caught} == {__file__}
