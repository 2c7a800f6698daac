"""Reading bigWig files, through pyBigWig."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.signal import Signal
from diffbio_sc.io._byte_source import PathLike, existing_file
from diffbio_sc.io._pybigwig import pybigwig

# Bases read at a time.
_WINDOW = 10_000_000


def read_bigwig(path: PathLike, *, chromosomes: Sequence[str] | None = None) -> Signal:
    r"""Read a bigWig file.

    Parameters
    ----------
    path
        Path of the file.
    chromosomes
        Chromosomes to read; default all.

    Returns
    -------
    Values by chromosome, in runs, with the sizes of the chromosomes. Values of bigWig files have 32 bits.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If pyBigWig is not installed (``pip install 'diffbio-sc[genome]'``).
    ValueError
        If the file is not a bigWig file or has none of ``chromosomes``.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> from pathlib import Path
    >>> _ = Path("signal.bedgraph").write_text("chr1\t0\t100\t2.5\n")
    >>> dbio.io.write_bigwig(dbio.io.read_bedgraph("signal.bedgraph"), "signal.bw")
    >>> dbio.io.read_bigwig("signal.bw")["chr1"].value.tolist()
    [2.5]
    """
    check_options(read_bigwig, locals())
    where = existing_file(path)
    try:
        handle = pybigwig().open(where)
    except RuntimeError as error:
        raise ValueError(f"{where} is not a bigWig file, or is damaged ({error}).") from error
    with handle:
        if not handle.isBigWig():
            raise ValueError(f"{where} is a bigBed file, expected a bigWig file.")
        sizes = handle.chroms()
        wanted = list(sizes)
        if chromosomes is not None:
            wanted = match_chromosomes(
                [chromosomes] if isinstance(chromosomes, str) else list(chromosomes),
                list(sizes),
                left_name="chromosomes",
                right_name=Path(where).name,
            )
        arrays = {chromosome: _read_runs(handle, chromosome, sizes[chromosome]) for chromosome in wanted}
    return Signal(arrays, sizes={chromosome: sizes[chromosome] for chromosome in wanted}, name=Path(where).name)


def _read_runs(handle: Any, chromosome: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts, ends, values = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0)]
    for begin in range(0, size, _WINDOW):
        found = handle.intervals(chromosome, begin, min(begin + _WINDOW, size))
        runs = np.array(found or (), np.float64).reshape(-1, 3)
        # A run across the border of two windows comes with both; it belongs to that where it starts.
        runs = runs[runs[:, 0] >= begin] if begin else runs
        starts.append(runs[:, 0].astype(np.int32))
        ends.append(runs[:, 1].astype(np.int32))
        values.append(runs[:, 2])
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(values)
