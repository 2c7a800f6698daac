"""Counts of reads or fragments in genomic bins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from diffbio_sc import io
from diffbio_sc._anndata.fragments import fragments_of, holds_fragments, read_barcode_labels
from diffbio_sc._anndata.results import make_record
from diffbio_sc._checks import is_path, whole_number
from diffbio_sc._logging import logger
from diffbio_sc.engines.coverage import Ends, Rows, count_groups, count_sample, move_bins, signal_means
from diffbio_sc.genome.axis import Tiles
from diffbio_sc.genome.barcodes import found_barcodes, group_codes, report_barcodes
from diffbio_sc.genome.chrom_sizes import ChromSizes, match_chromosomes, read_chrom_sizes
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.signal import Signal

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Source = Intervals | Signal | str | os.PathLike[str]

_SIGNAL_ENDINGS: dict[tuple[str, ...], Any] = {
    (".bw", ".bigwig"): io.read_bigwig,
    (".bedgraph", ".bdg", ".bg"): io.read_bedgraph,
}


def coverage(
    source: Source | AnnData | Mapping[str, Source],
    *,
    bin_size: int = 500,
    chrom_sizes: ChromSizes | None = None,
    groupby: Literal["sample", "barcode"] | Mapping[str, str] | pd.Series = "sample",
    barcodes: Sequence[str] | None = None,
    ends: Ends = "fragment",
    shift: tuple[int, int] | None = None,
    extension: int | None = None,
    remove_duplicates: bool = False,
    blacklist: Intervals | pd.DataFrame | str | os.PathLike[str] | None = None,
    min_mapping_quality: int = 0,
) -> AnnData:
    """Count reads or fragments in bins along the genome, for samples, cells or groups of cells.

    Works through one chromosome after the other; memory is that of the fragments and of the result. A fragment counts
    once, or as often as its ``count`` says if it was read with ``use_counts=True``.

    Parameters
    ----------
    source
        Fragments or reads of :mod:`diffbio_sc.io`, or a file of them (see :func:`~diffbio_sc.io.read_intervals`); or
        several, by name of the sample. An AnnData with fragments of SnapATAC2, ``.obsm["fragment_paired"]``, is taken
        as those. A signal, or a bedGraph or bigWig file, gives its mean in each bin instead of counts.
    bin_size
        Width of the bins in bases; the last bin of a chromosome may be shorter.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly such as ``"hg38"``. The bins cover these
        chromosomes. By default what the source says (BAM and bigWig files do), else where its last fragment ends.
    groupby
        ``"sample"``: one row per sample. ``"barcode"``: one row per barcode. A mapping from barcode to label, or a
        column such as ``adata.obs["cell_type"]``: one row per label; barcodes without one are left out. A warning says
        so if fewer than half of the barcodes are found.
    barcodes
        With ``groupby="barcode"``: the rows, in this order; others are left out. Default: all in the file.
    ends
        What counts. ``"fragment"``: each fragment once in every bin that it touches (with ``bin_size=1``, the depth).
        ``"cut_sites"``: each end of a fragment, or the first base of a single read, in its bin. ``"midpoint"``: each
        fragment once, in the bin of its middle.
    shift
        Bases added to the start of each fragment (or forward read) and to the end of each fragment (or reverse read)
        first. ``(4, -5)`` moves the ends of ATAC-seq alignments to the middle of where the transposase Tn5 has cut
        :cite:p:`Buenrostro2013`; fragment files of Cell Ranger and SnapATAC2 have been shifted already.
    extension
        Length to which single reads are extended along their strand first.
    remove_duplicates
        Count fragments of one position (and barcode) once. Alignments that a BAM file marks as duplicates are always
        left out.
    blacklist
        Regions, a table of them (``chrom``, ``start``, ``end``) or a BED file; fragments that overlap one are left out.
    min_mapping_quality
        Leave out alignments of lower mapping quality; for BAM files.

    Returns
    -------
    AnnData of rows by bins:

    - ``.X``: CSR, int32 (float32 of a signal)
    - ``.var``: ``chrom`` (category), ``start``, ``end`` (int64; 0-based, half-open), in the order of the sizes
    - ``.obs["n_fragments"]``: fragments or reads counted in each row
    - ``.uns["coverage"]``: parameters and versions

    Raises
    ------
    TypeError
        If a source is neither intervals nor a signal nor a path.
    ValueError
        If files share no chromosome with the sizes or the blacklist, reads cannot be extended, none of the barcodes is
        there, or an option does not go with a source.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.Intervals.from_arrays(["chr1", "chr1"], [100, 250], [300, 400])
    >>> dbio.pp.coverage(fragments, bin_size=100).X.toarray()
    array([[0, 1, 2, 1]], dtype=int32)
    """
    bin_size = whole_number(bin_size, "bin_size", unit=" base")
    if ends not in ("fragment", "cut_sites", "midpoint"):
        raise ValueError(f"ends must be 'fragment', 'cut_sites' or 'midpoint', found {ends!r}.")
    samples = dict(source) if isinstance(source, Mapping) else {"sample": source}
    if not samples:
        raise ValueError("source must name at least one sample, found an empty mapping.")
    labels = _labels(groupby, barcodes)
    regions = None if blacklist is None else io.read_regions(blacklist, name="the blacklist")
    sizes = None if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    preparation = _Preparation(shift, extension, remove_duplicates, regions, min_mapping_quality)
    known: dict[str, int] = {}
    parts: dict[str, tuple[Rows, Tiles, list[str]]] = {}
    found: set[str] = set()
    for name, item in samples.items():
        opened = preparation.open(item)
        if sizes is not None:
            match_chromosomes(opened.chromosomes, list(sizes), left_name=opened.name, right_name="the chromosome sizes")
        if known:
            match_chromosomes(opened.chromosomes, list(known), left_name=opened.name, right_name="the samples before")
        for chromosome, size in (sizes or opened.extent()).items():
            known[chromosome] = max(size, known.get(chromosome, 0))
        if sizes is None and opened.sizes is None:
            logger.info(f"{opened.name}: chromosome sizes are taken from the last end on each; pass chrom_sizes=.")
        if isinstance(opened, Signal):
            tiles = Tiles.over(known if sizes is None else sizes, bin_size)
            parts[name] = signal_means(preparation.check_signal(opened, groupby), tiles), tiles, [name]
            continue
        fragments = preparation.apply(opened)
        tiles = Tiles.over(sizes or opened.extent(), bin_size)
        if isinstance(groupby, str) and groupby == "sample":
            parts[name] = count_sample(fragments, tiles, ends), tiles, [name]
            continue
        codes, names = group_codes(fragments, labels)
        if labels is not None and len(codes):
            here = found_barcodes(fragments, labels)
            found |= here
            if not here or (len(samples) == 1):
                report_barcodes(list(labels), here, fragments.name, fragments.barcodes or [])
        names = [f"{name}:{row}" for row in names] if len(samples) > 1 else list(names)
        parts[name] = count_groups(fragments, codes, len(names), tiles, ends), tiles, names
    if found and len(samples) > 1:
        report_barcodes(list(labels or ()), found, "source", [])
    adata = _as_anndata(parts, Tiles.over(known, bin_size), several=len(samples) > 1 and not _is(groupby, "sample"))
    adata.uns["coverage"] = make_record(
        {
            "bin_size": bin_size,
            "groupby": groupby if isinstance(groupby, str) else "labels",
            "ends": ends,
            "shift": shift,
            "extension": extension,
            "remove_duplicates": remove_duplicates,
            "blacklist": None if regions is None else regions.name,
            "min_mapping_quality": min_mapping_quality,
        },
        None,
        samples=list(samples),
    )
    return adata


def _is(value: Any, word: str) -> bool:
    return isinstance(value, str) and value == word


class _Preparation:
    """What happens to a sample before it is counted."""

    def __init__(
        self,
        shift: tuple[int, int] | None,
        extension: int | None,
        remove_duplicates: bool,
        regions: Intervals | None,
        min_mapping_quality: int,
    ):
        if shift is not None and (isinstance(shift, str) or np.shape(shift) != (2,)):
            raise ValueError(f"shift must be two whole numbers of bases, such as (4, -5), found {shift!r}.")
        self.shift, self.extension, self.remove_duplicates = shift, extension, remove_duplicates
        self.regions, self.min_mapping_quality = regions, min_mapping_quality

    def open(self, item: Any) -> Intervals | Signal:
        """Read a sample unless it has been read."""
        if isinstance(item, Intervals | Signal):
            return item
        if not is_path(item):
            if hasattr(item, "obsm") and holds_fragments(item):
                return fragments_of(item)
            lacking = " without fragments (.obsm['fragment_paired'])" if hasattr(item, "obsm") else ""
            raise TypeError(
                "source must be dbio.io.Intervals, dbio.io.Signal, a path, or a mapping of these by name, found "
                f"{type(item).__name__}{lacking}."
            )
        name = os.fspath(item).lower()
        for endings, reader in _SIGNAL_ENDINGS.items():
            if name.removesuffix(".gz").endswith(endings):
                return reader(item)
        if name.endswith(".bam"):
            return io.read_bam(item, min_mapping_quality=self.min_mapping_quality)
        if self.min_mapping_quality:
            raise ValueError(f"min_mapping_quality is for BAM files, found {os.fspath(item)!r}.")
        return io.read_intervals(item)

    def apply(self, intervals: Intervals) -> Intervals:
        """Shift, extend, deduplicate and leave out what overlaps the blacklist, in this order."""
        if self.shift is not None:
            intervals = intervals.shift_ends(*self.shift)
        if self.extension is not None:
            intervals = intervals.extend(self.extension)
        if self.remove_duplicates:
            intervals = intervals.deduplicate()
        return intervals if self.regions is None else intervals.exclude(self.regions)

    def check_signal(self, signal: Signal, groupby: Any) -> Signal:
        """Return a signal, or raise if it is to be treated as fragments."""
        asked = {
            "groupby": not _is(groupby, "sample"),
            "shift": self.shift is not None,
            "extension": self.extension is not None,
            "remove_duplicates": self.remove_duplicates,
            "blacklist": self.regions is not None,
        }
        wrong = [name for name, given in asked.items() if given]
        if wrong:
            raise ValueError(f"{wrong} need fragments or reads, but {signal.name} is a signal: leave them out.")
        return signal


def _as_anndata(parts: Mapping[str, tuple[Rows, Tiles, list[str]]], tiles: Tiles, *, several: bool) -> AnnData:
    """Rows of all samples over the bins of all of them."""
    import anndata
    import pandas as pd

    matrix = sp.vstack([move_bins(rows.matrix, own, tiles) for rows, own, _ in parts.values()], format="csr")
    obs = pd.DataFrame(
        {"n_fragments": np.concatenate([rows.intervals for rows, _, _ in parts.values()])},
        index=[row for _, _, names in parts.values() for row in names],
    )
    if several:
        obs["sample"] = pd.Categorical([name for name, (_, _, names) in parts.items() for _ in names])
    code, start, end = tiles.places()
    chromosomes = list(tiles.sizes)
    prefix = np.array(chromosomes, dtype=object)[code] if len(code) else np.empty(0, object)
    names = [f"{name}:{first}-{last}" for name, first, last in zip(prefix, start.tolist(), end.tolist(), strict=True)]
    var = pd.DataFrame({"chrom": pd.Categorical.from_codes(code, chromosomes), "start": start, "end": end}, index=names)
    return anndata.AnnData(sp.csr_matrix(matrix), obs=obs, var=var)


def _labels(groupby: Any, barcodes: Sequence[str] | None) -> dict[str, str] | None:
    """Row of each barcode, if rows are not all barcodes or the samples themselves."""
    if isinstance(groupby, str):
        if groupby not in ("sample", "barcode"):
            raise ValueError(
                f"groupby must be 'sample', 'barcode' or a mapping from barcode to label (such as "
                f"adata.obs['cell_type']), found {groupby!r}."
            )
        if barcodes is None:
            return None
        if groupby == "sample":
            raise ValueError("barcodes are the rows of groupby='barcode'; to select within groups pass a mapping.")
        if isinstance(barcodes, str):
            raise TypeError(f"barcodes must be a list of barcodes, found the text {barcodes!r}.")
        return {str(barcode): str(barcode) for barcode in barcodes}
    if barcodes is not None:
        raise ValueError("pass barcodes with groupby='barcode'; a mapping in groupby selects by itself.")
    return read_barcode_labels(groupby)
