"""BED files of single reads or of regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._line_reader import Layout, LineReader, layout_columns


def read_bed(
    path: PathLike | Sequence[PathLike],
    *,
    chrom_sizes: ChromSizes | None = None,
    paired: bool = False,
) -> Intervals:
    r"""Read intervals of a BED file: single reads with strand, or regions such as a blacklist.

    Parameters
    ----------
    path
        BED of 3 to 12 columns, plain or compressed by gzip (whatever the name says), separated by tabs or blanks, in
        any order. Several files are read as one sample. The strand is column 6, or the last column if that holds ``+``
        or ``-`` and there are fewer; where every line says ``.`` there is none.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly (see :func:`read_chrom_sizes`). What lies beyond
        is clipped or left out, with a warning; so are chromosomes that are not listed.
    paired
        Whether the intervals are whole fragments rather than reads, so that nothing extends them later.

    Returns
    -------
    Reads by chromosome. A file without intervals gives an empty object and a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line cannot be read, or the file shares no chromosome with ``chrom_sizes``.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> from pathlib import Path
    >>> _ = Path("reads.bed").write_text("chr1\t100\t150\tread\t0\t-\n")
    >>> dbio.io.read_bed("reads.bed")["chr1"].start.tolist()
    [100]
    """
    check_options(read_bed, locals())

    def locate(layout: Layout, where: str) -> tuple[np.ndarray, bool]:
        fields = layout.fields
        strand = 5 if len(fields) > 5 else len(fields) - 1
        if strand < 5 and (strand < 3 or fields[strand] not in ("+", "-")):
            strand = -1
        return layout_columns(strand=strand), False

    reads = LineReader(locate, columns=["strand"], sizes=chrom_sizes, paired=paired).read(path)
    if len(reads) and "strand" in reads.columns and not reads.columns["strand"].any():
        del reads.columns["strand"]  # "." in every line is no strand: nothing must take it for "+"
    return reads
