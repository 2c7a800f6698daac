"""Reads or fragments of any file that can be told by its name."""

from __future__ import annotations

import os
from typing import Any

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
    ".tsv": read_fragments,
    ".frag": read_fragments,
    ".fragments": read_fragments,
}


def read_intervals(path: PathLike, **options: Any) -> Intervals:
    """Read fragments or reads with the reader that the name of the file calls for.

    ``.bam`` goes to :func:`read_bam`, ``.bedpe`` to :func:`read_bedpe`, ``.bed`` to :func:`read_bed`, ``.tsv``,
    ``.frag`` and ``.fragments`` to :func:`read_fragments`, each with or without ``.gz``.

    Parameters
    ----------
    path
        File.
    options
        Passed to the reader.

    Returns
    -------
    Fragments or reads by chromosome.

    Raises
    ------
    ValueError
        If the name tells no format; call the reader itself then.
    """
    name = os.fspath(path).lower()
    for ending in (".gz", ".bgz"):
        name = name.removesuffix(ending)
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader(path, **options)  # type: ignore[operator]
    raise ValueError(
        f"the name of {os.fspath(path)!r} tells no format (known: {list(_READERS)}); read it with "
        "dbio.io.read_fragments, read_bed, read_bedpe or read_bam."
    )
