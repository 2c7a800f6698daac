from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from diffbio_sc._anndata.region_axis import read_region_axis, warn_of_names, warn_of_repeats
from diffbio_sc._anndata.results import make_record
from diffbio_sc._anndata.sequences import read_genome_sequences, read_sequence_column, turn_reverse
from diffbio_sc._anndata.tables import read_column
from diffbio_sc._checks import counted, whole_number
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData


def sequences(
    adata: AnnData,
    genome: Any = None,
    *,
    width: int | None = None,
    strand: str | None = None,
    axis: Literal["var", "obs"] | None = None,
    key_added: str = "dna",
    copy: bool = False,
) -> AnnData | None:
    """Read the DNA of regions, for :func:`diffbio_sc.tl.contextual`.

    Parameters
    ----------
    adata
        Object with regions along one axis: columns ``chrom`` (or ``chr``, as CREsted has it), ``start`` and ``end``,
        0-based and half-open.
    genome
        Path of a FASTA file (read by pyfaidx, extra ``sequence``; one of bgzip needs Biopython too), a dict from
        chromosome to sequence, an open file of pyfaidx or pysam, or the name of a column of the regions' table that
        holds their sequences. Default: the column ``"sequence"``. Lower case is read as upper case; codes of IUPAC for
        several bases are unknown bases.
    width
        Bases about the middle of each region. Needed where regions differ in width; default their own. What lies beyond
        the end of a chromosome, or of a text, is unknown: the window is not shifted.
    strand
        Column with strands; regions of ``-`` are written as reverse complement. The models of this package take both
        strands alike, so that it seldom matters.
    axis
        Axis with the regions, if both tables have the columns.
    key_added
        Key of the result.
    copy
        Return a copy instead of writing into ``adata``.

    Returns
    -------
    None, or the copy, with these fields:

    `.varm["dna"]` : int8 (regions, width)
        A, C, G, T as 0, 1, 2, 3 and unknown bases as 4. In ``.obsm`` if regions lie along ``.obs``.
    `.uns["dna"]` : dict
        ``params``, ``version`` and ``report``: ``regions``, ``width``, ``padded_regions`` (windows that reach beyond
        the end of a chromosome or text), ``unknown_bases`` and ``regions_without_known_base``.

    Raises
    ------
    KeyError
        If there is no axis of regions, the genome lacks a chromosome, or there is no such column.
    TypeError
        If ``genome`` or the values of the column are of another kind.
    ValueError
        If regions differ in width and ``width`` is not given, lie beyond the end of their chromosome, or letters are
        no DNA.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> import diffbio_sc as dbio
    >>> var = pd.DataFrame({"chrom": ["chr1"] * 2, "start": [0, 4], "end": [4, 8]}, index=["a", "b"])
    >>> adata = anndata.AnnData(np.ones((1, 2)), var=var)
    >>> dbio.pp.sequences(adata, {"chr1": "ACGTNacg"})
    >>> adata.varm["dna"].tolist()
    [[0, 1, 2, 3], [4, 0, 1, 2]]
    """
    check_options(sequences, locals(), width="[1, inf) base pairs")
    if width is not None:
        width = whole_number(width, "width", unit=" bases")
    regions = read_region_axis(adata, axis=axis)
    table, side = getattr(adata, regions.axis), f"adata.{regions.axis}"
    if strand is not None and strand not in table:
        raise KeyError(f"{side} has no column {strand!r}; columns: {list(map(str, table.columns))}.")
    column = "sequence" if genome is None else genome
    if isinstance(column, str) and column in table:
        read = read_sequence_column(read_column(table, column), width, f"{side}[{column!r}]")
    elif genome is None:
        raise KeyError(
            f"{side} has no column 'sequence': pass genome=..., the path of a FASTA file, a dict from chromosome to "
            f"sequence or the name of a column; columns: {list(map(str, table.columns))}."
        )
    else:
        try:
            read = read_genome_sequences(genome, regions, width)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"genome={genome!r} is neither a file nor a column of {side}; columns: {list(map(str, table.columns))}."
            ) from error
    tokens = read.tokens
    if strand is not None:
        tokens = turn_reverse(tokens, read_column(table, strand), f"{side}[{strand!r}]")
    warn_of_names(regions)
    warn_of_repeats(regions)
    report = read.report
    if report["regions_without_known_base"]:
        warnings.warn(
            f"{counted(report['regions_without_known_base'], 'region')} of {report['regions']:,} have no known base: a "
            "model can only say of them what it says of any region.",
            UserWarning,
            stacklevel=2,
        )
    logger.info(
        f"Sequences of {report['regions']:,} regions of {report['width']:,} bases: "
        f"{report['padded_regions']:,} reach beyond the end of their chromosome or text, "
        f"{report['unknown_bases']:,} bases are unknown."
    )
    if copy:
        adata = adata.copy()
    params = {"genome": genome if isinstance(genome, str) else type(genome).__name__, "width": width, "strand": strand}
    if genome is None:
        params["genome"] = "sequence"
    regions.write(
        adata, matrices={key_added: tokens}, uns={key_added: make_record({**params, "axis": regions.axis}, report)}
    )
    return adata if copy else None
