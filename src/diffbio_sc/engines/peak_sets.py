"""Sets of peaks: cut at a blacklist, supported by replicates, merged over groups; pooled reads of replicates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numba import njit

from diffbio_sc._logging import logger
from diffbio_sc.blocks.rounds import Flow, Round, run_here
from diffbio_sc.genome.chrom_sizes import match_chromosomes
from diffbio_sc.genome.columns import new_column, release, row_batches, row_starts, write_rows
from diffbio_sc.genome.intervals import PART_ROWS, Intervals
from diffbio_sc.genome.overlap import Regions, chromosome_codes
from diffbio_sc.genome.peak_table import NARROWPEAK, PeakTable

__all__ = ["count_support", "cut_at_regions", "merge_tables", "pool_intervals", "pool_rounds"]

_MERGED_ROWS = 1 << 18  # of several samples, put in order at a time
_NO_LIMIT = np.iinfo(np.int64).max


def cut_at_regions(table: PeakTable, regions: Intervals | None, name: str) -> PeakTable:
    """Leave out peaks with their summit in a region, and cut off others where they reach into one.

    Parameters
    ----------
    table
        Peaks; where a summit is not known the middle of the peak stands for it.
    regions
        Regions such as a blacklist; None changes nothing.
    name
        What messages call the peaks.
    """
    if regions is None or not len(table):
        return table
    counts = regions.counts()
    rows = [np.arange(first, last) for first, last in regions.bounds.tolist()]
    order = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    codes, theirs = chromosome_codes(table["chrom"], np.repeat(np.asarray(regions.chromosomes, object), counts))
    known = Regions(theirs, regions.columns["start"][order], regions.columns["end"][order])
    summit = table.summits()
    reach = known.reach(codes, summit)
    kept = reach <= summit
    start = np.maximum(table["start"], np.minimum(reach, summit))
    end = np.minimum(table["end"], known.next_start(codes, summit))
    peak = np.where(table["peak"] >= 0, summit - start, table["peak"])
    if not kept.all():
        logger.info(f"{int((~kept).sum())} peaks of {name} lie in the blacklist.")
    return table.replace(start=start, end=end, peak=peak).take(kept)


def count_support(table: PeakTable, replicates: Sequence[PeakTable] | Sequence[Mapping[str, np.ndarray]]) -> PeakTable:
    """Add ``n_replicates``: how many tables (or their places) have a peak that overlaps."""
    number = np.zeros(len(table), np.int64)
    for other in replicates:
        number += table.overlapped_by(other)
    return table.replace(n_replicates=number)


def pool_intervals(parts: Sequence[Intervals], name: str = "the pooled replicates") -> Intervals:
    """All intervals of several samples as one sample, in this process; see :func:`pool_rounds`."""
    return run_here(pool_rounds(parts, name))


def pool_rounds(parts: Sequence[Intervals], name: str = "the pooled replicates") -> Flow[Intervals]:
    """All intervals of several samples as one sample, some chromosomes a task; a barcode is a cell of its own in each.

    Raises
    ------
    ValueError
        If the samples share no chromosome, or hold fragments and single reads.
    """
    chromosomes = list(dict.fromkeys(name for part in parts for name in part.chromosomes))
    for part in parts[1:]:
        match_chromosomes(part.chromosomes, parts[0].chromosomes, left_name=part.name, right_name=parts[0].name)
    if len({part.paired for part in parts}) > 1:
        raise ValueError("replicates must be all of fragments or all of single reads, found both.")
    known = ("start", "end", "cell_code", "count", "strand")
    keys = [key for key in known if all(key in part.columns for part in parts)]
    number = np.zeros(len(chromosomes), np.int64)
    place = {chromosome: index for index, chromosome in enumerate(chromosomes)}
    for part in parts:
        number[[place[chromosome] for chromosome in part.chromosomes]] += part.counts()
    sizes = None
    if all(part.sizes is not None for part in parts):
        sizes = {key: max((part.sizes or {}).get(key, 0) for part in parts) for key in chromosomes}
    batches = list(row_batches(number.tolist(), PART_ROWS))
    starts = row_starts(number[batch].sum() for batch in batches)
    stops = np.zeros(len(number), np.int64)
    for first, batch in zip(starts, batches, strict=False):
        stops[batch] = first + np.cumsum(number[batch])
    pooled = Intervals(
        {key: new_column(starts[-1], parts[0].columns[key].dtype) for key in keys},
        np.stack([stops - number, stops], axis=1),
        chromosomes,
        sizes=sizes,
        paired=parts[0].paired,
        name=name,
        in_order=True,
    )
    # Equal fragments of different cells are no duplicates: codes of the samples do not meet.
    first_code = np.cumsum([0, *(_cells(part) for part in parts)])[:-1] if "cell_code" in keys else np.zeros(0, int)
    items = []
    for batch in batches:
        some = chromosomes[batch]
        items.append(([one.select_chromosomes(some) for one in parts], first_code, pooled.select_chromosomes(some)))
    yield Round(_pool, items, "Pooling")
    return pooled


def _cells(part: Intervals) -> int:
    """Number of codes of cells that a sample uses."""
    codes, highest = part.columns["cell_code"], -1
    for first, last in part.bounds.tolist():
        highest = max(highest, int(codes[first:last].max(initial=-1)))
        release(codes)
    return highest + 1


def _pool(item: tuple[Sequence[Intervals], np.ndarray, Intervals]) -> None:
    """Write the intervals of several samples to the rows of their pool, in the order of starts."""
    parts, first_code, pooled = item
    for chromosome, (first, _) in zip(pooled.chromosomes, pooled.bounds.tolist(), strict=True):
        for rows in _ranges([part[chromosome].start for part in parts]):
            columns = {
                key: np.concatenate(
                    [getattr(part[chromosome], key)[low:high] for part, (low, high) in zip(parts, rows, strict=True)]
                )
                for key in pooled.columns
            }
            if "cell_code" in columns:
                columns["cell_code"] += np.repeat(first_code, [high - low for low, high in rows])
            # Equal places stand in the order of the samples.
            order = np.argsort(columns["start"], kind="stable")
            for key, target in pooled.columns.items():
                write_rows(target, first, columns[key][order])
            first += len(order)
            release(*(column for part in parts for column in part.columns.values()))


def _ranges(starts: Sequence[np.ndarray]) -> Iterator[list[tuple[int, int]]]:
    """Rows of each of several sorted columns that lie between the same places, not too many together."""
    step = max(_MERGED_ROWS // len(starts), 1)
    marks = np.sort(np.concatenate([column[step::step] for column in starts]))
    low = [0] * len(starts)
    for mark in np.unique(marks[len(starts) - 1 :: len(starts)]):
        high = [int(np.searchsorted(column, mark)) for column in starts]
        yield list(zip(low, high, strict=True))
        low = high
    yield list(zip(low, map(len, starts), strict=True))


def merge_tables(
    tables: Mapping[str, PeakTable], width: int, score: str, sizes: Mapping[str, int] | None = None
) -> PeakTable:
    """Merge the peaks of groups into windows of one width that do not overlap, the best first.

    Parameters
    ----------
    tables
        Peaks by group.
    width
        Width of the windows in base pairs; they are shorter only on chromosomes that are.
    score
        Column that ranks the peaks of a group. Peaks without a value come last.
    sizes
        Length of chromosomes, which windows stay within.

    Returns
    -------
    The windows with the columns of narrowPeak of the peaks that were kept, ``n_groups``, and a column of each group
    that says whether one of its peaks overlaps.
    """
    parts = list(tables.values())
    codes = np.concatenate(chromosome_codes(*(part["chrom"] for part in parts)))
    names = list(dict.fromkeys(name for part in parts for name in part.chromosomes()))
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    start, end = (np.concatenate([part[name] for part in parts]) for name in ("start", "end"))
    summit = np.concatenate([part.summits() for part in parts])
    value = np.nan_to_num(np.concatenate([part.scores(score) for part in parts]), nan=0.0)
    total = np.bincount(group, np.maximum(value, 0), minlength=len(parts))
    ranked = value / np.where(total > 0, total, 1.0)[group]
    begin = np.maximum(summit - width // 2, 0)
    limit = np.array([(sizes or {}).get(name, _NO_LIMIT) for name in names] or [_NO_LIMIT], np.int64)[codes]
    begin = np.maximum(np.minimum(begin, limit - width), 0)
    # Best first; ties by place, so that the order of the groups decides nothing.
    order = np.lexsort((begin, codes, -ranked))
    kept = order[_without_overlap(codes[order], begin[order], width)]
    rank = _rank(ranked[kept])
    place = np.lexsort((begin[kept], codes[kept]))
    kept, rank = kept[place], rank[place]
    columns = {
        name: np.concatenate([part[name] for part in parts])[kept] for name in ("signalValue", "pValue", "qValue")
    }
    merged = PeakTable(
        {
            "chrom": np.concatenate([part["chrom"] for part in parts])[kept],
            "start": begin[kept],
            "end": np.minimum(begin[kept] + width, limit[kept]),
            "name": [f"peak_{number}" for number in range(1, len(kept) + 1)],
            "score": np.round(1000 * rank).astype(np.int64),
            **columns,
            "peak": summit[kept] - begin[kept],
        }
    )
    members = np.zeros((len(kept), len(parts)), bool)
    for index in range(len(parts)):
        mine = group == index
        regions = Regions(codes[mine], start[mine], end[mine])
        members[:, index] = regions.overlaps(codes[kept], merged["start"], merged["end"])
    result = PeakTable({name: merged[name] for name in NARROWPEAK})
    result.columns = {name: result.columns[name] for name in NARROWPEAK}
    result.columns["n_groups"] = members.sum(1)
    for index, name in enumerate(tables):
        result.columns[str(name)] = members[:, index]
    logger.info(f"{len(group)} peaks of {len(parts)} groups merged into {len(kept)}.")
    return result


def _rank(values: np.ndarray) -> np.ndarray:
    """Share of the values that each is not below, ties counted half."""
    ordered = np.sort(values)
    low, high = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (low + high + 1) / (2 * max(len(values), 1))


def _without_overlap(codes: np.ndarray, begin: np.ndarray, width: int) -> np.ndarray:
    """Positions, in order, of windows that overlap none kept before."""
    # A cell of the window's width holds the start of one kept window at most.
    cells = begin // width
    largest = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    np.maximum.at(largest, codes, cells)
    # A cell more on either side, so that no chromosome sees its neighbour's.
    offset = np.cumsum(largest + 3) - largest - 2
    return np.flatnonzero(_mark_kept(offset[codes] + cells, begin, width, int((largest + 3).sum())))


@njit(cache=True, nogil=True)
def _mark_kept(cell, begin, width, cells):
    taken = np.full(cells + 1, -1, np.int64)
    kept = np.zeros(len(cell), np.bool_)
    for index in range(len(cell)):
        free = True
        for near in range(cell[index] - 1, cell[index] + 2):
            if taken[near] >= 0 and abs(taken[near] - begin[index]) < width:
                free = False
        if free:
            taken[cell[index]] = begin[index]
            kept[index] = True
    return kept
