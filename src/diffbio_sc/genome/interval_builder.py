"""Collecting intervals block by block, as readers find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffbio_sc._logging import logger
from diffbio_sc.genome.columns import copy_into, new_column, release, row_batches
from diffbio_sc.genome.interval_kernels import group_rows, move_runs
from diffbio_sc.genome.intervals import COLUMN_TYPES, Intervals


class IntervalBuilder:
    """Collects intervals block by block and groups them by chromosome at the end.

    A column grows to the length that the part of the file read so far foretells, and memory that is not written to is
    not taken. Where the chromosomes of a file come one after the other, the columns are the result as they stand;
    otherwise runs of rows are moved, one column at a time.
    """

    def __init__(self, columns: Sequence[str]):
        self.columns = {key: np.empty(0, COLUMN_TYPES[key]) for key in columns}
        self.rows = 0
        self._codes: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def append(self, codes: np.ndarray, values: Mapping[str, np.ndarray], fraction_read: float) -> None:
        """Add rows; ``fraction_read`` is the part of the input that has been read with them."""
        if not len(codes):
            return
        starts = np.flatnonzero(np.diff(codes)) + 1
        run_codes = codes[np.concatenate([[0], starts])]
        if len(run_codes) > 1 and len(np.unique(run_codes)) < len(run_codes):
            order = group_rows(codes, int(codes.max()) + 1)
            codes = codes[order]
            values = {key: array[order] for key, array in values.items()}
            starts = np.flatnonzero(np.diff(codes)) + 1
            run_codes = codes[np.concatenate([[0], starts])]
        self._codes.append(np.array(run_codes))
        self._lengths.append(np.diff(np.concatenate([[0], starts, [len(codes)]])))
        end = self.rows + len(codes)
        if end > len(self.columns["start"]):
            foretold = int(end / max(fraction_read, 1e-3) * 1.02)
            capacity = max(end, min(foretold, 2 * end + 10_000_000) if fraction_read < 1 else end)
            for key, array in self.columns.items():
                grown = new_column(capacity, array.dtype)
                copy_into(grown, array[: self.rows])
                self.columns[key] = grown
        for key, array in values.items():
            self.columns[key][self.rows : end] = array
            release(self.columns[key])
        self.rows = end

    def finish(
        self,
        names: Sequence[str],
        *,
        barcodes: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        paired: bool = True,
        name: str = "intervals",
    ) -> Intervals:
        """Group by chromosome. ``names`` belong to the codes; chromosomes without rows stay only if in ``sizes``."""
        codes = np.concatenate(self._codes) if self._codes else np.empty(0, np.int64)
        lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, np.int64)
        total = np.bincount(codes, lengths, minlength=len(names)).astype(np.int64)
        run_starts = np.cumsum(lengths) - lengths
        runs = 1 + np.count_nonzero(np.diff(codes)) if len(codes) else 0
        if runs == np.count_nonzero(total):
            first = np.zeros(len(names), np.int64)
            first[codes[::-1]] = run_starts[::-1]
            columns = {key: array[: self.rows] for key, array in self.columns.items()}
        else:
            first = np.cumsum(total) - total
            order = np.argsort(codes, kind="stable")
            moved = lengths[order]
            rows = np.stack([run_starts[order], moved, np.cumsum(moved) - moved], axis=1)
            columns = {}
            for key in list(self.columns):
                source = self.columns.pop(key)
                target = new_column(self.rows, source.dtype)
                for batch in row_batches(rows[:, 1]):
                    move_runs(source, target, rows[batch])
                    release(source, target)
                columns[key] = target
        kept = np.arange(len(names)) if sizes is not None else np.flatnonzero(total)
        bounds = np.stack([first, first + total], axis=1)[kept]
        chromosomes = [names[index] for index in kept]
        result = Intervals(columns, bounds, chromosomes, barcodes=barcodes, sizes=sizes, paired=paired, name=name)
        logger.info(f"Read {result!r}.")
        return result
