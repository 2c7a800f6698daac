"""Writing bigWig files, through pyBigWig."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffbio_sc._checks import is_path, name_heads
from diffbio_sc._files import replacing
from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes, match_chromosomes, read_chrom_sizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.signal import Signal
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._pybigwig import pybigwig
from diffbio_sc.numerics.genome.pileup import pileup

if TYPE_CHECKING:
    from anndata import AnnData

# Runs written at a time.
_RUNS = 1_000_000


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
        Name of the track of an AnnData; may be left out if there is only one.
    layer
        Layer of the AnnData; default ``X``.
    scale
        Factor for all values, such as 1e6 over the number of fragments.

    Returns
    -------
    None.

    Raises
    ------
    FileNotFoundError
        If the folder of ``path`` does not exist.
    ImportError
        If pyBigWig is not installed (``pip install 'diffbio-sc[genome]'``).
    KeyError
        If the AnnData has no such track or layer.
    TypeError
        If ``source`` is something else.
    ValueError
        If values reach beyond the chromosome sizes. A failed writer leaves no file behind, and an old one as it was.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments, _, _ = dbio.datasets.simulate_fragments()
    >>> dbio.io.write_bigwig(fragments, "pileup.bw")
    >>> sorted(dbio.io.read_bigwig("pileup.bw").chromosomes)
    ['chr1', 'chr2']
    """
    check_options(write_bigwig, locals())
    library = pybigwig()
    if isinstance(source, Signal | Intervals):
        runs: Any = source
    elif isinstance(source, Mapping):
        runs = Signal(source)
    elif hasattr(source, "obs"):
        from diffbio_sc._anndata.genome_axis import read_track_signal

        runs = read_track_signal(source, track=track, layer=layer)
    else:
        found = f"the path {str(source)!r}: read it first" if is_path(source) else type(source).__name__
        raise TypeError(f"source must be a Signal, Intervals, a mapping or an AnnData, found {found}.")
    sizes = runs.extent() if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    match_chromosomes(runs.chromosomes, list(sizes), left_name=runs.name, right_name="the chromosome sizes")
    missing = [chromosome for chromosome in runs.chromosomes if chromosome not in sizes]
    if missing:
        raise ValueError(f"chrom_sizes must have each chromosome of {runs.name}, missing: {name_heads(missing)}.")
    if not sizes:
        raise ValueError(f"{runs.name} has no chromosomes: a bigWig file needs one at least; pass chrom_sizes=.")
    with replacing(path) as temporary, library.open(temporary, "w") as handle:
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
