"""Reads or fragments from any file that can be told by its name."""

from __future__ import annotations

import os
from typing import Any

from diffbio_sc._checks import is_path
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._read_bam import read_bam
from diffbio_sc.io._read_bed import read_bed
from diffbio_sc.io._read_bedpe import read_bedpe
from diffbio_sc.io._read_fragments import read_fragments

_READERS = {
    ".bam": read_bam,
    ".bedpe": read_bedpe,
    ".bed": read_bed,
    ".tagalign": read_bed,
    ".tsv": read_fragments,
    ".frag": read_fragments,
    ".fragments": read_fragments,
}
_SAMTOOLS = "convert it with `samtools view -b`, then use dbio.io.read_bam"
_OTHERS = {
    ".cram": f"is a CRAM file: {_SAMTOOLS}",
    ".sam": f"is a SAM file: {_SAMTOOLS}",
    ".bw": "holds a signal, not fragments: use dbio.io.read_bigwig",
    ".bigwig": "holds a signal, not fragments: use dbio.io.read_bigwig",
    ".bedgraph": "holds a signal, not fragments: use dbio.io.read_bedgraph",
    ".bdg": "holds a signal, not fragments: use dbio.io.read_bedgraph",
    ".narrowpeak": "holds peaks, not fragments: use dbio.io.read_narrowpeak or dbio.io.read_regions",
    ".broadpeak": "holds peaks, not fragments: use dbio.io.read_regions",
    ".fastq": "holds reads that are not aligned: align them first",
    ".fq": "holds reads that are not aligned: align them first",
    ".h5ad": "holds an AnnData: read it with anndata.read_h5ad",
    ".h5": "is an HDF5 file: pass the fragment file or the BAM file instead",
}


def read_intervals(path: PathLike, **options: Any) -> Intervals:
    """Read fragments or reads with the reader that the name of the file calls for.

    ``.bam`` goes to :func:`read_bam`, ``.bedpe`` to :func:`read_bedpe`, ``.bed`` and ``.tagAlign`` to :func:`read_bed`,
    ``.tsv``, ``.frag`` and ``.fragments`` to :func:`read_fragments`, each with or without ``.gz``.

    Parameters
    ----------
    path
        Path of the file.
    options
        Arguments of the reader.

    Returns
    -------
    Fragments or reads by chromosome.

    Raises
    ------
    TypeError
        If ``path`` is not a path.
    ValueError
        If the name tells no format, or one of another kind; call the reader itself then.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> _ = dbio.datasets.simulate_fragments("fragments.tsv.gz")
    >>> fragments = dbio.io.read_intervals("fragments.tsv.gz")
    >>> len(fragments.barcodes)
    120
    """
    if not is_path(path):
        raise TypeError(f"expected the path of a file, found an object of type {type(path).__name__}.")
    name = os.fspath(path).lower()
    for ending in (".gz", ".bgz"):
        name = name.removesuffix(ending)
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader(path, **options)  # type: ignore[operator]
    for ending, what in _OTHERS.items():
        if name.endswith(ending):
            raise ValueError(f"{os.fspath(path)!r} {what}.")
    raise ValueError(
        f"the name of {os.fspath(path)!r} tells no format (known: {list(_READERS)}); read it with "
        "dbio.io.read_fragments, read_bed, read_bedpe or read_bam."
    )
