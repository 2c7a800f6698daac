"""bedGraph files."""

from __future__ import annotations

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.signal import Signal
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._line_reader import Layout, LineReader, layout_columns


def read_bedgraph(path: PathLike, *, chrom_sizes: ChromSizes | None = None) -> Signal:
    r"""Read values along chromosomes: chromosome, start, end, value.

    Parameters
    ----------
    path
        Text separated by tabs or blanks, plain or compressed by gzip (whatever the name says), in any order.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly (see :func:`read_chrom_sizes`). Runs beyond are
        clipped or left out, with a warning; so are chromosomes that are not listed.

    Returns
    -------
    Values by chromosome, in runs. An empty file gives an empty object and a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line cannot be read, or runs overlap.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> from pathlib import Path
    >>> _ = Path("signal.bedgraph").write_text("chr1\t0\t100\t2.5\nchr1\t100\t200\t4\n")
    >>> dbio.io.read_bedgraph("signal.bedgraph")["chr1"].value.tolist()
    [2.5, 4.0]
    """
    check_options(read_bedgraph, locals())

    def locate(layout: Layout, where: str) -> tuple[np.ndarray, bool]:
        if len(layout.fields) < 4:
            raise ValueError(
                f"{where} has {len(layout.fields)} columns, {layout.fields}; expected chromosome, start, end, value."
            )
        return layout_columns(value=3), False

    return Signal.from_intervals(LineReader(locate, columns=["value"], sizes=chrom_sizes).read(path))
