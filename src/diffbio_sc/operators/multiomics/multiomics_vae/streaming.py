"""Training on cells that lie on disk: runs of rows drawn at random, several of them shuffled together."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from diffbio_sc._logging import logger
from diffbio_sc._settings import settings
from diffbio_sc.blocks.row_store import ArrayStore, RowStore, entries_of_rows, type_of_values
from diffbio_sc.operators.multiomics.multiomics_vae.features import log_sizes, read_features
from diffbio_sc.operators.multiomics.multiomics_vae.networks import Networks
from diffbio_sc.training.batches import Samples
from diffbio_sc.training.streams import BatchSource

_RUN = 64  # neighbours that are read together; a part has hundreds of such runs
_MOST_ROWS = 16_384  # of a part: more make no better shuffle
_FEWEST_ROWS = 2_048
_FEATURE_ROWS = 8_192  # at a time
_DRAWN_PARTS = 64  # by which the room that a part needs is known; all parts of an epoch at least
_COPIES = 6  # of a part's entries, at 8 bytes each, that are in memory while it is read, sorted and put on a device


def part_rows(matrices: Sequence[Any]) -> int:
    """Rows of a part, as many as the budget of a block allows."""
    bytes_of_row = sum(_row_bytes(matrix) for matrix in matrices)
    return int(np.clip(settings.block_bytes // (_COPIES * max(bytes_of_row, 1)), _FEWEST_ROWS, _MOST_ROWS))


def _is_dense(matrix: Any) -> bool:
    """Whether rows are given as arrays, which need no room of their own."""
    return bool(getattr(matrix, "is_dense", not hasattr(matrix, "nnz")))


def _row_bytes(matrix: Any) -> int:
    rows, columns = matrix.shape
    if _is_dense(matrix):
        return 4 * columns
    return 8 * -(-matrix.nnz // max(rows, 1))


def read_if_few(matrices: list[Any]) -> tuple[list[Any], bool]:
    """Matrices, in memory if all their rows are no more than a part; and whether any is on disk still."""
    if not any(isinstance(matrix, RowStore) for matrix in matrices):
        return matrices, False
    if matrices[0].shape[0] > part_rows(matrices):
        return matrices, True
    return [matrix.to_memory() if isinstance(matrix, RowStore) else matrix for matrix in matrices], False


class CellSource(BatchSource):
    """Cells of matrices of which some lie on disk, as batches of the training loop.

    In each epoch the cells are cut into runs of neighbours, at other places each time; the runs are shuffled, and so
    many put together as a part has rows. Within a part batches are those of training in memory.

    Parameters
    ----------
    networks
        The operator, with its encoders ready.
    matrices, present, batch
        As of ``fit_matrices``.
    cells
        Rows to train on, ascending.
    rng
        Generator of the order of the runs.
    """

    reads_ahead = True

    def __init__(
        self,
        networks: Networks,
        matrices: Sequence[Any],
        present: Bool[np.ndarray, "cells modalities"],
        batch: Int[np.ndarray, " cells"],
        cells: Int[np.ndarray, " trained"],
        rng: np.random.Generator,
    ):
        self.networks, self.matrices = networks, matrices
        self.present, self.batch, self.cells = present, batch.astype(np.int32), cells
        self.size, self.part_rows = len(cells), part_rows(matrices)
        self.seed = int(rng.integers(2**32))
        self.sparse = {f"counts_{m}": matrix for m, matrix in enumerate(matrices) if not _is_dense(matrix)}
        self.lengths = sum(map(entries_of_rows, self.sparse.values()), np.zeros(len(present), np.int64))
        # What the encoders read stays the same: it is made once.
        blocks = (slice(start, start + _FEATURE_ROWS) for start in range(0, len(present), _FEATURE_ROWS))
        self.features = ArrayStore(self._features(rows) for rows in blocks)

    def _features(self, rows: slice) -> np.ndarray:
        names = self.networks.config.modality_likelihoods
        parts = zip(self.networks.encoders, names, self.matrices, strict=True)
        return np.stack([read_features(encoder, name, matrix[rows]) for encoder, name, matrix in parts], axis=1)

    def begin(self, batch_size: int, *, stratified: bool) -> None:
        """Make room for the parts of all epochs, and say in the log how the cells will be read."""
        super().begin(batch_size, stratified=stratified)
        types = {key: type_of_values(matrix) for key, matrix in self.sparse.items()}
        self.rooms.reserve(self._drawn_parts(), types)
        logger.info(
            f"{self.size} cells are trained on from disk, in each epoch in {self.n_parts} parts of at most "
            f"{self.part_rows}."
        )

    def _drawn_parts(self) -> Iterator[dict[str, Int[np.ndarray, " part"]]]:
        """Entries of each cell in parts like those of an epoch.

        They are drawn from all cells, by numbers of their own: the room, and with it compiled code, is the same
        whatever the seed of the training and the cells that it holds out.
        """
        entries = {key: entries_of_rows(matrix) for key, matrix in self.sparse.items()}
        for number in range(-(-_DRAWN_PARTS // self.n_parts)):
            order = _runs(np.arange(len(self.present)), np.random.default_rng(number))[: self.size]
            for start in range(0, self.size, self.part_rows):
                cells = np.sort(order[start : start + self.part_rows])
                yield {key: lengths[cells] for key, lengths in entries.items()}

    def order(self, epoch: int) -> Int[np.ndarray, " trained"]:
        """Cells of an epoch in the order in which they are read."""
        return _runs(self.cells, np.random.default_rng([self.seed, epoch]))

    def parts(self, epoch: int) -> Iterator[dict[str, Samples]]:
        """Read one part after the other."""
        order = self.order(epoch)
        for start in range(0, self.size, self.part_rows):
            yield self.rooms.arranged(self.arrays(np.sort(order[start : start + self.part_rows])))

    def arrays(self, cells: Int[np.ndarray, " part"]) -> dict[str, Any]:
        """What the loss needs of some cells, given in ascending order, in the order of their entries."""
        names = self.networks.config.modality_likelihoods
        features = self.features[cells]
        order = np.argsort(self.lengths[cells], kind="stable")
        cells = cells[order]
        matrices = [matrix[cells] for matrix in self.matrices]
        return {
            "present": self.present[cells],
            "batch": self.batch[cells],
            "log_size": log_sizes(matrices, names),
            "features": features[order],
            **{f"counts_{m}": matrix for m, matrix in enumerate(matrices)},
        }

    def identity(self) -> Any:
        """Sizes and a checksum of the sums of all cells."""
        sums = [np.asarray(matrix.sum(1), np.float64).ravel() for matrix in self.matrices]
        return [self.size, self.part_rows, self.seed, *(zlib.crc32(np.ascontiguousarray(part)) for part in sums)]


def _runs(cells: Int[np.ndarray, " cells"], rng: np.random.Generator) -> Int[np.ndarray, " cells"]:
    """Cells in runs of neighbours, cut at another place each time, in random order."""
    bounds = np.arange(int(rng.integers(1, _RUN + 1)), len(cells), _RUN)
    runs = np.split(cells, bounds)
    return np.concatenate([runs[number] for number in rng.permutation(len(runs))])
