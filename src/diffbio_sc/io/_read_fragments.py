"""Fragment files of 10x Genomics, SnapATAC2 and ArchR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.genome.chrom_sizes import ChromSizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.io._byte_source import PathLike
from diffbio_sc.io._line_reader import Layout, LineReader, layout_columns


def read_fragments(
    path: PathLike | Sequence[PathLike],
    *,
    barcodes: Sequence[str] | Mapping[str, str] | None = None,
    use_barcodes: bool = True,
    use_counts: bool = False,
    chrom_sizes: ChromSizes | None = None,
) -> Intervals:
    r"""Read a fragment file: chromosome, start, end, and optionally barcode and count.

    The file is read block by block: memory is the result (8 bytes per fragment, 4 more with barcodes) and a few
    megabytes.

    Parameters
    ----------
    path
        Text separated by tabs, plain or compressed by gzip (whatever the name says), with or without ``#`` lines, in
        any order. Several files are read as one sample.
    barcodes
        Keep these barcodes only. A mapping from barcode to label (such as ``adata.obs["cell_type"]`` as a dict) reads
        the label in place of the barcode: fragments come grouped by cell type.
    use_barcodes
        Whether to keep the barcode of each fragment, where the file has them.
    use_counts
        Whether to keep the fifth column, the number of read pairs that support a fragment. Coverage and pile-ups then
        count a fragment that often, as MACS does; without, each fragment counts once.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly (see :func:`read_chrom_sizes`). What lies beyond
        is clipped or left out, with a warning; so are chromosomes that are not listed.

    Returns
    -------
    Fragments by chromosome. A file without fragments gives an empty object and a warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line cannot be read, or the file shares no chromosome with ``chrom_sizes`` or no barcode with ``barcodes``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import diffbio_sc as dbio
    >>> path = Path(tempfile.mkdtemp()) / "fragments.tsv"
    >>> _ = path.write_text("chr1\t100\t300\tAAAC-1\t1\nchr1\t250\t400\tAAAG-1\t2\n")
    >>> fragments = dbio.io.read_fragments(path)
    >>> fragments
    Intervals(fragments.tsv: 2 fragments on 1 chromosome, 2 barcodes)
    >>> fragments["chr1"].end
    array([300, 400], dtype=int32)
    """
    check_options(read_fragments, locals())
    reader = fragment_reader(
        barcodes=barcodes, use_barcodes=use_barcodes, use_counts=use_counts, chrom_sizes=chrom_sizes
    )
    return reader.read(path)


def fragment_reader(
    *,
    barcodes: Sequence[str] | Mapping[str, str] | None = None,
    use_barcodes: bool = True,
    use_counts: bool = False,
    chrom_sizes: ChromSizes | None = None,
) -> LineReader:
    """Reader of the lines of fragments files, with the options of :func:`read_fragments`."""

    def locate(layout: Layout, where: str) -> tuple[np.ndarray, bool]:
        has_barcodes, has_counts = len(layout.fields) > 3, len(layout.fields) > 4
        if (barcodes is not None and not has_barcodes) or (use_counts and not has_counts):
            raise ValueError(
                f"{where} has {len(layout.fields)} columns, {layout.fields}; the barcode is expected in the fourth, "
                "the count in the fifth."
            )
        keep_barcodes = has_barcodes and (use_barcodes or barcodes is not None)
        return layout_columns(barcode=3 if keep_barcodes else -1, count=4 if use_counts else -1), False

    columns = [*(["cell_code"] if use_barcodes or barcodes is not None else []), *(["count"] if use_counts else [])]
    return LineReader(locate, columns=columns, sizes=chrom_sizes, barcodes=barcodes)
