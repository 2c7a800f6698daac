"""Counts of reads or fragments in genomic bins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from diffbio_sc import io
from diffbio_sc._anndata.fragments import fragments_of, holds_fragments, read_barcode_labels
from diffbio_sc._anndata.results import make_record
from diffbio_sc._checks import is_path, whole_number
from diffbio_sc._logging import logger
from diffbio_sc._options import check_options
from diffbio_sc.engines.coverage import Ends, Rows, count_groups, count_sample, move_bins, signal_means
from diffbio_sc.genome.axis import Tiles
from diffbio_sc.genome.barcodes import found_barcodes, group_codes, report_barcodes
from diffbio_sc.genome.chrom_sizes import LONGEST, ChromSizes, match_chromosomes, read_chrom_sizes
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

    - ``.X``: CSR, int32 (float32 for a signal)
    - ``.var``: ``chrom`` (category), ``start``, ``end`` (int64; 0-based, half-open), in the order of the sizes
    - ``.obs["n_fragments"]``: fragments or reads counted in each row
    - ``.uns["coverage"]``: parameters and versions

    Raises
    ------
    TypeError
        If a source is neither intervals nor a signal nor a path.
    ValueError
        If files share no chromosome with the sizes, or name those of the blacklist differently; if reads cannot be
        extended, none of the barcodes is there, or an option does not go with a source.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.Intervals.from_arrays(["chr1", "chr1"], [100, 250], [300, 400])
    >>> dbio.pp.coverage(fragments, bin_size=100).X.toarray()
    array([[0, 1, 2, 1]], dtype=int32)
    """
    check_options(
        coverage,
        locals(),
        bin_size="[1, inf) base pairs",
        extension="[1, inf) base pairs",
        min_mapping_quality="[0, inf)",
    )
    min_mapping_quality = int(min_mapping_quality)
    extension = None if extension is None else int(extension)
    bin_size = whole_number(bin_size, "bin_size", unit=" base")
    samples = {str(name): item for name, item in source.items()} if isinstance(source, Mapping) else {"sample": source}
    if not samples:
        raise ValueError("source must name at least one sample, found an empty mapping.")
    grouping = _Grouping(groupby, barcodes, several=len(samples) > 1)
    regions = None if blacklist is None else io.read_regions(blacklist, name="the blacklist")
    preparation = _Preparation(shift, extension, remove_duplicates, regions, min_mapping_quality)
    sizes = None if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    known: dict[str, int] = {}
    parts: list[_Part] = []
    for name, item in samples.items():
        opened = preparation.open(item)
        own = _add_sizes(known, opened, sizes)
        if isinstance(opened, Signal):
            preparation.check_signal(opened, grouping.by_sample)
            tiles = Tiles.over(own, bin_size)
            parts.append(_Part(name, [name], signal_means(opened, tiles), tiles))
        else:
            parts.append(grouping.count(name, preparation.apply(opened), Tiles.over(own, bin_size), ends))
    grouping.report()
    adata = _as_anndata(parts, Tiles.over(known, bin_size), with_samples=grouping.several and not grouping.by_sample)
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


class _Part(NamedTuple):
    """Counts of one sample."""

    sample: str
    names: list[str]
    rows: Rows
    tiles: Tiles


def _add_sizes(known: dict[str, int], opened: Intervals | Signal, sizes: Mapping[str, int] | None) -> Mapping[str, int]:
    """Sizes of a sample's chromosomes, added to those of the samples before it."""
    if sizes is not None:
        match_chromosomes(opened.chromosomes, list(sizes), left_name=opened.name, right_name="the chromosome sizes")
    if known:
        match_chromosomes(opened.chromosomes, list(known), left_name=opened.name, right_name="the samples before")
    own = sizes or opened.extent()
    for chromosome, size in own.items():
        known[chromosome] = max(size, known.get(chromosome, 0))
    if sizes is None and opened.sizes is None:
        logger.info(f"{opened.name}: chromosome sizes are taken from the last end on each; pass chrom_sizes=.")
    return own


class _Grouping:
    """Which row a fragment belongs to, and which of the barcodes asked for were found in any sample."""

    def __init__(self, groupby: Any, barcodes: Sequence[str] | None, *, several: bool):
        self.labels = _labels(groupby, barcodes)
        self.by_sample = isinstance(groupby, str) and groupby == "sample"
        self.several = several
        self._found: set[str] = set()
        self._there: list[str] = []
        self._name = "source"

    def count(self, sample: str, intervals: Intervals, tiles: Tiles, ends: Ends) -> _Part:
        """Count the intervals of a sample in its rows."""
        if self.by_sample:
            return _Part(sample, [sample], count_sample(intervals, tiles, ends), tiles)
        codes, names = group_codes(intervals, self.labels)
        if self.labels is not None and len(codes):
            found = found_barcodes(intervals, self.labels)
            self._found |= found
            self._there = self._there or intervals.barcodes or []
            self._name = "source" if self.several else intervals.name
            if not found:  # an error; how many were found in all samples together comes at the end
                report_barcodes(list(self.labels), found, intervals.name, intervals.barcodes or [])
        rows = count_groups(intervals, codes, len(names), tiles, ends)
        return _Part(sample, [f"{sample}:{name}" if self.several else name for name in names], rows, tiles)

    def report(self) -> None:
        """Warn if few of the barcodes asked for were found."""
        if self._found:
            report_barcodes(list(self.labels or ()), self._found, self._name, self._there, stacklevel=4)


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
        for bases in shift or ():
            whole_number(bases, "shift", minimum=-LONGEST, unit=" bases")
        if extension is not None:
            whole_number(extension, "extension", unit=" base")
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
        """Deduplicate, shift, extend and leave out what overlaps the blacklist, in this order."""
        if self.remove_duplicates:  # first: reads of either strand may become one fragment
            intervals = intervals.deduplicate()
        if self.shift is not None:
            intervals = intervals.shift_ends(*self.shift)
        if self.extension is not None:
            intervals = intervals.extend(self.extension)
        return intervals if self.regions is None else intervals.exclude(self.regions)

    def check_signal(self, signal: Signal, by_sample: bool) -> None:
        """Raise if a signal is to be treated as fragments."""
        asked = {
            "groupby": not by_sample,
            "shift": self.shift is not None,
            "extension": self.extension is not None,
            "remove_duplicates": self.remove_duplicates,
            "blacklist": self.regions is not None,
        }
        wrong = [name for name, given in asked.items() if given]
        if wrong:
            raise ValueError(f"{wrong} need fragments or reads, but {signal.name} is a signal: leave them out.")


def _as_anndata(parts: Sequence[_Part], tiles: Tiles, *, with_samples: bool) -> AnnData:
    """Rows of all samples over the bins of all of them."""
    import anndata
    import pandas as pd

    matrix = sp.vstack([move_bins(part.rows.matrix, part.tiles, tiles) for part in parts], format="csr")
    obs = pd.DataFrame(
        {"n_fragments": np.concatenate([part.rows.intervals for part in parts])},
        index=[name for part in parts for name in part.names],
    )
    if with_samples:
        obs["sample"] = pd.Categorical([part.sample for part in parts for _ in part.names])
    code, start, end = tiles.places()
    chromosomes = list(tiles.sizes)
    prefix = np.array(chromosomes, dtype=object)[code] if len(code) else np.empty(0, object)
    names = [f"{name}:{first}-{last}" for name, first, last in zip(prefix, start.tolist(), end.tolist(), strict=True)]
    var = pd.DataFrame({"chrom": pd.Categorical.from_codes(code, chromosomes), "start": start, "end": end}, index=names)
    return anndata.AnnData(sp.csr_matrix(matrix), obs=obs, var=var)
