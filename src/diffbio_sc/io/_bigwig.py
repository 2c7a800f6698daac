"""bigWig files, through pyBigWig."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc.genome.chrom_sizes import ChromSizes, read_chrom_sizes
from diffbio_sc.genome.intervals import Intervals, match_chromosomes
from diffbio_sc.genome.signal import Signal
from diffbio_sc.io._text import PathLike
from diffbio_sc.numerics.genome.pileup import pileup

if TYPE_CHECKING:
    from anndata import AnnData

# Bases read, and runs written, at a time.
_WINDOW = 10_000_000
_RUNS = 1_000_000


def _pybigwig() -> Any:
    try:
        import pyBigWig
    except ImportError as error:
        raise ImportError("bigWig files need pyBigWig: pip install 'diffbio-sc[genome]'.") from error
    return pyBigWig


def read_bigwig(path: PathLike, *, chromosomes: Sequence[str] | None = None) -> Signal:
    """Read a bigWig file.

    Parameters
    ----------
    path
        File.
    chromosomes
        Read these only.

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
        If the file is no bigWig file or has none of ``chromosomes``.
    """
    where = os.fspath(path)
    if not Path(where).exists():
        raise FileNotFoundError(f"there is no file {where!r}.")
    try:
        handle = _pybigwig().open(where)
    except RuntimeError as error:
        raise ValueError(f"{where} is no bigWig file, or is damaged ({error}).") from error
    with handle:
        if not handle.isBigWig():
            raise ValueError(f"{where} is a bigBed file, expected a bigWig file.")
        sizes = handle.chroms()
        wanted = list(sizes)
        if chromosomes is not None:
            wanted = match_chromosomes(
                list(chromosomes), list(sizes), left_name="chromosomes", right_name=Path(where).name
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


def write_bigwig(
    source: Signal | Intervals | AnnData | Mapping[str, Sequence[np.ndarray]],
    path: PathLike,
    *,
    chrom_sizes: ChromSizes | None = None,
    track: str | None = None,
    layer: str | None = None,
    scale: float = 1.0,
) -> None:
    """Write values along chromosomes as a bigWig file.

    Parameters
    ----------
    source
        A signal, start, end and value by chromosome, intervals (their pile-up is written), or an AnnData with a genome
        axis (one of its tracks is written).
    path
        File to write.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly (see :func:`read_chrom_sizes`). By default what the
        source says, else where its last value ends.
    track
        Which track of an AnnData; may be left out if there is one.
    layer
        Layer of the AnnData; default ``X``.
    scale
        Factor for all values, such as 1e6 over the number of fragments.

    Returns
    -------
    None.

    Raises
    ------
    ImportError
        If pyBigWig is not installed (``pip install 'diffbio-sc[genome]'``).
    KeyError
        If the AnnData has no such track or layer.
    ValueError
        If values reach beyond the chromosome sizes.
    """
    library = _pybigwig()
    if not isinstance(source, Signal | Intervals) and hasattr(source, "obs"):
        runs: Any = _track_signal(source, track, layer)
    elif isinstance(source, Mapping):
        runs = Signal(source)
    else:
        runs = source
    sizes = runs.extent() if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    match_chromosomes(runs.chromosomes, list(sizes), left_name=runs.name, right_name="the chromosome sizes")
    missing = [chromosome for chromosome in runs.chromosomes if chromosome not in sizes]
    if missing:
        raise ValueError(f"chrom_sizes must have each chromosome of {runs.name}, missing: {missing[:5]}.")
    with library.open(os.fspath(path), "w") as handle:
        handle.addHeader([(name, max(size, 1)) for name, size in sizes.items()])
        for chromosome, size in sizes.items():
            if chromosome in runs:
                for start, end, value in _pieces(runs, chromosome, size):
                    handle.addEntries(
                        [chromosome] * len(start), start.tolist(), ends=end.tolist(), values=(value * scale).tolist()
                    )


def _pieces(source: Signal | Intervals, chromosome: str, size: int) -> Iterator[tuple[np.ndarray, ...]]:
    if isinstance(source, Signal):
        start, end, value = source[chromosome]
        kept = np.isfinite(value)
    else:
        depth = pileup(*source[chromosome][:2], weight=source[chromosome].count)
        start, end, value = depth.start, depth.end, depth.value.astype(np.float64)
        kept = value != 0
    if len(end) and end[-1] > size:
        raise ValueError(f"{source.name} has values up to {chromosome}:{end[-1]}, its size is given as {size}.")
    start, end, value = start[kept], end[kept], value[kept]
    for first in range(0, len(start), _RUNS):
        yield start[first : first + _RUNS], end[first : first + _RUNS], value[first : first + _RUNS]


def _track_signal(adata: Any, track: str | None, layer: str | None) -> Signal:
    """One track of an AnnData as runs of its non-zero bins."""
    from diffbio_sc._anndata.genome_axis import read_genome_axis

    axis = read_genome_axis(adata)
    names = axis.track_names(adata)
    if track is None and len(names) != 1:
        raise ValueError(f"adata has {len(names)} tracks; pass track=..., one of {list(map(str, names[:5]))} ...")
    position = 0 if track is None else int(names.get_indexer([track])[0])
    if position < 0:
        raise KeyError(f"adata has no track {track!r}; tracks: {list(map(str, names[:5]))} ...")
    block = next(
        block[position - start]
        for start, block in axis.signal(adata, layer).blocks(1)
        if start <= position < start + block.shape[0]
    )
    values = (block.toarray() if sp.issparse(block) else np.asarray(block)).ravel().astype(np.float64)
    start, end = (axis.table[key].to_numpy() for key in ("start", "end"))
    codes = axis.table["chrom"].cat.codes.to_numpy()
    order = axis.order[values[axis.order] != 0]
    arrays = {}
    for code, chromosome in enumerate(axis.chromosomes):
        rows = order[codes[order] == code]
        arrays[chromosome] = (start[rows], end[rows], values[rows])
    sizes = {chromosome: int(end[codes == code].max()) for code, chromosome in enumerate(axis.chromosomes)}
    return Signal(arrays, sizes=sizes, name=f"track {names[position]!r}")
