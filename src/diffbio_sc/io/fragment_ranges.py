"""Fragments of some chromosomes of a file with an index, for functions that share a file among processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._read_fragments import fragment_reader
from diffbio_sc.io.tabix import FileRange


def read_fragment_range(path: PathLike, place: FileRange) -> tuple[Intervals, np.ndarray]:
    """Fragments of some chromosomes of an indexed file, and the counters of what was left out."""
    return fragment_reader().read_range(path, place)


def report_ranges(path: PathLike, counters: Sequence[np.ndarray], rows: int) -> None:
    """Warn about what was left out in all ranges of a file, as :func:`read_fragments` does."""
    reader = fragment_reader()
    for one in counters:
        reader.counters += one
    reader.report(Path(path).name, rows)
