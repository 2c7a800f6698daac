"""Counts of reads or fragments in genomic bins."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from diffbio_sc._anndata.results import make_record
from diffbio_sc._logging import logger
from diffbio_sc._progress import progress
from diffbio_sc.genome.chrom_sizes import ChromSizes, read_chrom_sizes
from diffbio_sc.genome.intervals import IntervalArrays, Intervals, match_chromosomes
from diffbio_sc.genome.signal import Signal
from diffbio_sc.io._read_bam import read_bam
from diffbio_sc.io._read_bed import read_bed
from diffbio_sc.io._read_intervals import read_intervals
from diffbio_sc.numerics.genome.pileup import overlap_counts, point_counts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Ends = Literal["fragment", "cut_sites", "midpoint"]
Source = Intervals | Signal | str | os.PathLike[str]


def coverage(
    source: Source | Mapping[str, Source],
    *,
    bin_size: int = 500,
    chrom_sizes: ChromSizes | None = None,
    groupby: Literal["sample", "barcode"] | Mapping[str, str] | pd.Series = "sample",
    barcodes: Sequence[str] | None = None,
    ends: Ends = "fragment",
    extension: int | None = None,
    remove_duplicates: bool = False,
    blacklist: Intervals | str | os.PathLike[str] | None = None,
    min_mapping_quality: int = 0,
) -> AnnData:
    """Count reads or fragments in bins along the genome, for samples, cells or groups of cells.

    Works through one chromosome after the other; memory is that of the fragments and of the result. A fragment counts
    once, or as often as its ``count`` says if it was read with ``use_counts=True``.

    Parameters
    ----------
    source
        Fragments or reads of :mod:`diffbio_sc.io`, or a file of them (``.bam``, ``.bedpe``, ``.bed``, ``.tsv``,
        ``.frag``, also with ``.gz``); or several, by name of the sample. A signal (bedGraph, bigWig) gives its mean in
        each bin in place of counts.
    bin_size
        Width of the bins in bases; the last bin of a chromosome may be shorter.
    chrom_sizes
        Length of each chromosome: a mapping, a file or an assembly such as ``"hg38"``. The bins cover these
        chromosomes. By default what the source says (BAM and bigWig files do), else where its last fragment ends.
    groupby
        ``"sample"``: a row for each sample. ``"barcode"``: a row for each barcode. A mapping from barcode to label, or
        a column such as ``adata.obs["cell_type"]``: a row for each label; barcodes without one are left out.
    barcodes
        With ``groupby="barcode"``: the rows, in this order; others are left out. Default: all in the file.
    ends
        What counts. ``"fragment"``: each fragment once in every bin that it touches (with ``bin_size=1``, the depth).
        ``"cut_sites"``: each end of a fragment, or the first base of a single read, in its bin. ``"midpoint"``: each
        fragment once, in the bin of its middle.
    extension
        Length to which single reads are extended along their strand first.
    remove_duplicates
        Count fragments of one position (and barcode) once. Alignments that a BAM file marks as duplicates are always
        left out.
    blacklist
        Regions, or a BED file of them; fragments that overlap one are left out.
    min_mapping_quality
        For BAM files.

    Returns
    -------
    AnnData of rows by bins:

    - ``.X``: CSR, int32 (float32 of a signal)
    - ``.var``: ``chrom`` (category), ``start``, ``end`` (int64; 0-based, half-open), in the order of the sizes
    - ``.obs["n_fragments"]``: fragments or reads counted in each row
    - ``.uns["coverage"]``: parameters and versions

    Raises
    ------
    ValueError
        If files share no chromosome with the sizes or the blacklist, reads cannot be extended, or barcodes are wanted
        that are not there.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> fragments = dbio.io.Intervals.from_arrays(["chr1", "chr1"], [100, 250], [300, 400])
    >>> dbio.pp.coverage(fragments, bin_size=100).X.toarray()
    array([[0, 1, 2, 1]], dtype=int32)
    """
    import anndata
    import pandas as pd

    if int(bin_size) != bin_size or bin_size < 1:
        raise ValueError(f"bin_size must be a positive whole number of bases, found {bin_size!r}.")
    if ends not in ("fragment", "cut_sites", "midpoint"):
        raise ValueError(f"ends must be 'fragment', 'cut_sites' or 'midpoint', found {ends!r}.")
    bin_size = int(bin_size)
    samples = dict(source) if isinstance(source, Mapping) else {"sample": source}
    if not samples:
        raise ValueError("source must name at least one sample, found an empty mapping.")
    labels = _labels(groupby, barcodes)
    regions = read_bed(blacklist) if isinstance(blacklist, str | os.PathLike) else blacklist
    sizes = None if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    known: dict[str, int] = {}
    parts: dict[str, _Rows] = {}
    for name, item in samples.items():
        item = _open(item, min_mapping_quality)
        if sizes is not None:
            match_chromosomes(item.chromosomes, list(sizes), left_name=item.name, right_name="the chromosome sizes")
        if known:
            match_chromosomes(item.chromosomes, list(known), left_name=item.name, right_name="the samples before it")
        for chromosome, size in (sizes or item.extent()).items():
            known[chromosome] = max(size, known.get(chromosome, 0))
        if sizes is None and item.sizes is None:
            logger.info(f"{item.name}: chromosome sizes are taken from the last end on each; pass chrom_sizes=.")
        if isinstance(item, Signal):
            parts[name] = _signal_rows(item, name, bin_size, known if sizes is None else sizes)
            continue
        if extension is not None:
            item = item.extend(extension)
        if remove_duplicates:
            item = item.deduplicate()
        if regions is not None:
            item = item.exclude(regions)
        parts[name] = _count_rows(item, name, groupby, labels, ends, bin_size, sizes or item.extent(), len(samples) > 1)
    bins = {chromosome: -(-size // bin_size) for chromosome, size in known.items() if size > 0}
    table = _bin_table(known, bins, bin_size)
    matrix = sp.vstack([rows.matrix(bins) for rows in parts.values()], format="csr")
    obs = pd.DataFrame(
        {"n_fragments": np.concatenate([rows.fragments for rows in parts.values()])},
        index=[name for rows in parts.values() for name in rows.names],
    )
    if len(samples) > 1 and groupby != "sample":
        obs["sample"] = pd.Categorical([sample for sample, rows in parts.items() for _ in rows.names])
    adata = anndata.AnnData(matrix, obs=obs, var=table)
    adata.uns["coverage"] = make_record(
        {
            "bin_size": bin_size,
            "groupby": groupby if isinstance(groupby, str) else "labels",
            "ends": ends,
            "extension": extension,
            "remove_duplicates": remove_duplicates,
            "blacklist": None if regions is None else regions.name,
            "min_mapping_quality": min_mapping_quality,
        },
        None,
        samples=list(samples),
    )
    return adata


def _open(item: Source, min_mapping_quality: int) -> Intervals | Signal:
    if isinstance(item, Intervals | Signal):
        return item
    if os.fspath(item).lower().endswith(".bam"):
        return read_bam(item, min_mapping_quality=min_mapping_quality)
    return read_intervals(item)


class _Rows:
    """Rows of one sample: sparse blocks by chromosome."""

    def __init__(self, names: list[str], dtype: type):
        self.names, self.dtype = names, dtype
        self.blocks: dict[str, sp.csr_array] = {}
        self.fragments = np.zeros(len(names), np.int64)

    def matrix(self, bins: Mapping[str, int]) -> sp.csr_matrix:
        """All chromosomes side by side; a block may lack bins at the end of a chromosome."""
        blocks = []
        for chromosome, count in bins.items():
            block = self.blocks.get(chromosome, sp.csr_array((len(self.names), 0), dtype=self.dtype))
            block.resize((len(self.names), count))
            blocks.append(block)
        return sp.csr_matrix(_side_by_side(blocks, len(self.names), self.dtype))


def _side_by_side(blocks: list[sp.csr_array], rows: int, dtype: type) -> sp.csr_array:
    """CSR blocks in one row, in memory of the result: scipy's own goes through triplets of three times the size."""
    lengths = np.sum([np.diff(block.indptr) for block in blocks] or [np.zeros(rows)], axis=0).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], dtype)
    place, offset = indptr[:-1].copy(), 0
    for block in blocks:
        counts = np.diff(block.indptr)
        target = np.arange(block.nnz) + np.repeat(place - block.indptr[:-1], counts)
        indices[target], data[target] = block.indices + offset, block.data
        place += counts
        offset += block.shape[1]
    return sp.csr_array((data, indices, indptr), shape=(rows, offset))


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
        return {str(barcode): str(barcode) for barcode in barcodes}
    if barcodes is not None:
        raise ValueError("pass barcodes with groupby='barcode'; a mapping in groupby selects by itself.")
    return label_mapping(groupby)


def label_mapping(labels: Mapping[str, str] | pd.Series) -> dict[str, str]:
    """Barcode to label, without missing labels; a categorical column orders the labels."""
    import pandas as pd

    column = labels if isinstance(labels, pd.Series) else pd.Series(dict(labels), dtype=object)
    if not column.index.is_unique:
        raise ValueError(f"barcodes must be unique, found twice: {list(column.index[column.index.duplicated()][:5])}.")
    column = column.dropna()
    if not len(column):
        raise ValueError("groupby must give a label to at least one barcode, found none.")
    if isinstance(column.dtype, pd.CategoricalDtype):
        ordered = column.cat.remove_unused_categories().sort_values(kind="stable")
    else:
        ordered = column.astype(str).sort_values(kind="stable")
    return dict(zip(ordered.index.astype(str), ordered.astype(str), strict=True))


def row_codes(intervals: Intervals, labels: Mapping[str, str] | None) -> tuple[np.ndarray, list[str]]:
    """Row of each of the barcodes (-1: none) and the names of the rows."""
    if intervals.barcodes is None or "cell_code" not in intervals.columns:
        raise ValueError(
            f"{intervals.name} has no barcodes to group by; read a fragment file with barcodes, or a BAM file with "
            "dbio.io.read_bam(..., barcode_tag='CB')."
        )
    if labels is None:
        return np.arange(len(intervals.barcodes), dtype=np.int32), intervals.barcodes
    names = list(dict.fromkeys(labels.values()))
    lookup = {name: code for code, name in enumerate(names)}
    codes = np.array([lookup[labels[barcode]] if barcode in labels else -1 for barcode in intervals.barcodes], np.int32)
    if len(codes) and (codes < 0).all():
        raise ValueError(
            f"{intervals.name} has none of the {len(labels)} barcodes asked for: {list(labels)[:5]}. It has "
            f"{intervals.barcodes[:5]}. Compare suffixes such as '-1' and prefixes of samples."
        )
    return codes, names


def _count_rows(
    intervals: Intervals,
    sample: str,
    groupby: Any,
    labels: Mapping[str, str] | None,
    ends: Ends,
    bin_size: int,
    sizes: Mapping[str, int],
    several: bool,
) -> _Rows:
    by_sample = isinstance(groupby, str) and groupby == "sample"
    codes, names = (None, [sample]) if by_sample else row_codes(intervals, labels)
    rows = _Rows([f"{sample}:{name}" for name in names] if several and not by_sample else list(names), np.int32)
    shared = [chromosome for chromosome in sizes if chromosome in intervals]
    outside = len(intervals) - sum(len(intervals[chromosome].start) for chromosome in shared)
    beyond = 0
    for chromosome in progress(shared, "Coverage", total=len(shared)):
        arrays, size = intervals[chromosome], sizes[chromosome]
        inside = arrays.start < size
        if not inside.all():
            beyond += np.count_nonzero(~inside)
            arrays = IntervalArrays(*(None if values is None else values[inside] for values in arrays))
        bins = -(-size // bin_size)
        if codes is None:
            rows.fragments[0] += len(arrays.start)
            rows.blocks[chromosome] = _one_row(arrays, intervals.paired, ends, bin_size, bins, size)
        else:
            row = codes[arrays.cell_code]
            rows.fragments += np.bincount(row[row >= 0], minlength=len(names))
            rows.blocks[chromosome] = _many_rows(arrays, row, intervals.paired, ends, bin_size, bins, size, len(names))
    if outside or beyond:
        warnings.warn(
            f"{intervals.name}: {outside:,} intervals on chromosomes without a size and {beyond:,} past the end of "
            "their chromosome are left out.",
            UserWarning,
            stacklevel=3,
        )
    return rows


def _points(arrays: IntervalArrays, paired: bool, ends: Ends) -> Iterator[np.ndarray]:
    """Positions that count: cut sites or midpoints."""
    start, end, strand = arrays.start, arrays.end, arrays.strand
    if ends == "midpoint":
        yield start + (end - start) // 2
    elif paired or strand is None:
        yield start
        yield end - 1
    else:
        yield np.where(strand < 0, end - 1, start)


def _one_row(arrays: IntervalArrays, paired: bool, ends: Ends, width: int, bins: int, size: int) -> sp.csr_array:
    if ends == "fragment":
        counts = overlap_counts(arrays.start, arrays.end, width, bins, arrays.count)
    else:
        counts = np.zeros(bins, np.int64)
        for positions in _points(arrays, paired, ends):
            inside = positions < size
            counts += point_counts(
                positions[inside], width, bins, None if arrays.count is None else arrays.count[inside]
            )
    indices = np.flatnonzero(counts)
    return sp.csr_array(
        (_as_int32(counts[indices]), indices.astype(np.int32), np.array([0, len(indices)])), shape=(1, bins)
    )


def _many_rows(
    arrays: IntervalArrays,
    row: np.ndarray,
    paired: bool,
    ends: Ends,
    width: int,
    bins: int,
    size: int,
    n_rows: int,
) -> sp.csr_array:
    """Count (row, bin) pairs by sorting them: dense rows of many cells would not fit."""
    if ends == "fragment":
        first = arrays.start // width
        last = np.minimum((arrays.end - 1) // width, bins - 1)
        touched = np.where(row >= 0, last.astype(np.int64) - first + 1, 0)
        begin = np.cumsum(touched) - touched
        source = np.repeat(np.arange(len(row)), touched)
        key = row[source].astype(np.int64) * bins + (np.arange(len(source)) + (first - begin)[source])
    else:
        sources, keys = [], []
        for positions in _points(arrays, paired, ends):
            sources.append(np.flatnonzero((row >= 0) & (positions < size)))
            keys.append(row[sources[-1]].astype(np.int64) * bins + positions[sources[-1]] // width)
        source, key = np.concatenate(sources), np.concatenate(keys)
    if arrays.count is None:
        key.sort()
    else:
        order = np.argsort(key, kind="stable")
        source, key = source[order], key[order]
    first_of = np.flatnonzero(np.concatenate([np.ones(min(1, len(key)), np.bool_), key[1:] != key[:-1]]))
    if arrays.count is None or not len(key):
        counts = np.diff(np.concatenate([first_of, [len(key)]]))
    else:
        counts = np.add.reduceat(arrays.count[source].astype(np.int64), first_of)
    key = key[first_of]
    indptr = np.searchsorted(key, np.arange(n_rows + 1, dtype=np.int64) * bins)
    return sp.csr_array((_as_int32(counts), (key % bins).astype(np.int32), indptr), shape=(n_rows, bins))


def _as_int32(counts: np.ndarray) -> np.ndarray:
    if counts.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"a bin holds {counts.max()} counts, more than 32 bits; use smaller bins.")
    return counts.astype(np.int32)


def _signal_rows(signal: Signal, sample: str, bin_size: int, sizes: Mapping[str, int]) -> _Rows:
    rows = _Rows([sample], np.float32)
    for chromosome in (name for name in sizes if name in signal and sizes[name] > 0):
        means = signal.bin_means(chromosome, bin_size, sizes[chromosome])
        rows.blocks[chromosome] = sp.csr_array(means[None].astype(np.float32))
    return rows


def _bin_table(sizes: Mapping[str, int], bins: Mapping[str, int], bin_size: int) -> pd.DataFrame:
    import pandas as pd

    counts = np.array(list(bins.values()), np.int64)
    codes = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = within * bin_size
    end = np.minimum(start + bin_size, np.array([sizes[name] for name in bins], np.int64)[codes])
    chrom = pd.Categorical.from_codes(codes, list(bins))
    prefix = np.array(list(bins), dtype=object)[codes] if len(codes) else np.empty(0, object)
    names = [f"{name}:{first}-{last}" for name, first, last in zip(prefix, start.tolist(), end.tolist(), strict=True)]
    return pd.DataFrame({"chrom": chrom, "start": start, "end": end}, index=names)
