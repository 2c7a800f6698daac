"""BEDPE files of fragments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._line_reader import Layout, LineReader, layout_columns


def read_bedpe(
    path: PathLike | Sequence[PathLike],
    *,
    chrom_sizes: ChromSizes | None = None,
) -> Intervals:
    r"""Read the fragments of read pairs from a BEDPE file, as MACS or bedtools writes it.

    Parameters
    ----------
    path
        Either three columns (chromosome, start and end of the fragment, as MACS writes them) or at least six (both
        mates, as bedtools writes them: the fragment goes from the first start to the last end). Plain or compressed by
        gzip, in any order. Several files are read as one sample.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly (see :func:`read_chrom_sizes`). What lies beyond
        is clipped or left out, with a warning; so are chromosomes that are not listed.

    Returns
    -------
    Fragments by chromosome. Pairs on two chromosomes or with an unmapped mate are left out with a warning.

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
    >>> _ = Path("pairs.bedpe").write_text("chr1\t100\t150\tchr1\t250\t300\n")
    >>> pairs = dbio.io.read_bedpe("pairs.bedpe")["chr1"]
    >>> pairs.start.tolist(), pairs.end.tolist()
    ([100], [300])
    """
    check_options(read_bedpe, locals())

    def locate(layout: Layout, where: str) -> tuple[np.ndarray, bool]:
        mates = len(layout.fields) >= 6 and all(_is_number(layout.fields[column]) for column in (4, 5))
        return layout_columns(), mates

    return LineReader(locate, sizes=chrom_sizes).read(path)


def _is_number(text: str) -> bool:
    return text.lstrip("+-").isdigit()
