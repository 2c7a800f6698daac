"""Samples that come in parts, from a file or from any iterator of batches: more of them than memory holds.

A part is a few thousand samples, which the compiled loop goes through as it does through a whole data set: shuffled, in
batches. All parts are padded to one shape.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from diffbio_sc._checks import whole_number
from diffbio_sc.blocks.row_store import smallest_type
from diffbio_sc.numerics.counts.sparse_rows import batch_entries, capacity_of, stratified_entries
from diffbio_sc.numerics.padding import bucket_size, round_up
from diffbio_sc.training.batches import Samples

Item = TypeVar("Item")
_MARGIN = 1.05  # room beyond what is needed at first: parts differ a little, and another shape is compiled anew
# Room beyond the largest of some parts that are drawn beforehand. Too little costs a compilation, never a result.
_DEVIATIONS = 1.0
_DTYPES = (np.uint8, np.uint16, np.float32)


class BatchSource(abc.ABC):
    """Where the samples of each epoch come from.

    Attributes
    ----------
    size
        Samples of an epoch.
    part_rows
        Most samples of a part.
    reads_ahead
        Whether the next part may be made in another thread while training goes on. What is done there must not run
        compiled code of this package, which takes turns with training.

    Examples
    --------
    >>> import numpy as np
    >>> from diffbio_sc.training import BatchSource
    >>> class Drawn(BatchSource):
    ...     size, part_rows = 1000, 256
    ...
    ...     def parts(self, epoch):
    ...         rng = np.random.default_rng(epoch)
    ...         for start in range(0, self.size, self.part_rows):
    ...             rows = min(self.part_rows, self.size - start)
    ...             yield self.rooms.arranged({"features": rng.normal(size=(rows, 3))})
    >>> source = Drawn()
    >>> source.begin(128, stratified=False)
    >>> source.n_parts
    4
    """

    size: int
    part_rows: int
    reads_ahead = False
    rooms: Rooms

    def begin(self, batch_size: int, *, stratified: bool) -> None:
        """Take note of how the parts will be gone through: they are of (nearly) equal numbers of whole batches."""
        self.part_rows = round_up(-(-self.size // -(-self.size // self.part_rows)), batch_size)
        self.rooms = Rooms(self.part_rows, batch_size, stratified=stratified)

    @property
    def n_parts(self) -> int:
        """Number of parts of an epoch."""
        return -(-self.size // self.part_rows)

    @abc.abstractmethod
    def parts(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """Yield arrays by name, with one row a sample, of one part after the other.

        Each part but the last has ``part_rows`` samples. ``self.rooms.arranged(arrays)`` makes room in sparse ones,
        CSR, as in the parts before; a source that knows the entries of its rows asks in ``begin`` for
        ``self.rooms.reserve``, so that no part needs more room than those before.
        """

    def identity(self) -> Any:
        """Return what a checkpoint compares."""
        return {"size": self.size, "part_rows": self.part_rows}


class IteratorSource(BatchSource):
    """Batches of any loader, such as ``annbatch.Loader``, put together to parts.

    Parameters
    ----------
    batches
        What each epoch iterates over; or a function of the number of the epoch that returns it.
    size
        Samples of an epoch.
    convert
        Makes arrays by name, with one row a sample, of a batch; sparse ones as CSR. Default: the batch is a dict of
        them.
    part_rows
        Samples of a part. They are shuffled within it.

    Raises
    ------
    ValueError
        If a number is none; in training if an epoch has another number of samples, or a batch other arrays than the
        first. The message says which batch.

    Examples
    --------
    >>> import numpy as np
    >>> from diffbio_sc.training import IteratorSource
    >>> loader = [{"X": np.ones((30, 2))}, {"X": np.ones((20, 2))}]
    >>> source = IteratorSource(loader, 50, convert=lambda batch: {"features": batch["X"]}, part_rows=32)
    >>> source.begin(16, stratified=False)
    >>> [part["features"].values.shape for part in source.parts(0)]
    [(32, 2), (18, 2)]
    """

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[int], Iterable[Any]],
        size: int,
        *,
        convert: Callable[[Any], Mapping[str, Any]] | None = None,
        part_rows: int = 8192,
    ):
        self.batches, self.convert = batches, convert
        self.size, self.part_rows = whole_number(size, "size"), whole_number(part_rows, "part_rows")

    def parts(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """Put batches together to parts; what one has too much goes into the next."""
        held: list[dict[str, Any]] = []
        number = total = 0
        first: dict[str, tuple[int, ...]] = {}
        for place, batch in enumerate(self.batches(epoch) if callable(self.batches) else self.batches):
            arrays, rows = self._arrays(batch, place)
            shapes = {key: value.shape[1:] for key, value in sorted(arrays.items())}
            first = first or shapes
            if shapes != first:
                raise ValueError(
                    f"batch {place} must hold the arrays of batch 0, a row of each of shape {first}, found {shapes}."
                )
            held.append(arrays)
            number += rows
            while number >= self.part_rows:
                whole = _stack(held)
                yield self.rooms.arranged({key: value[: self.part_rows] for key, value in whole.items()})
                held = [{key: value[self.part_rows :] for key, value in whole.items()}]
                total, number = total + self.part_rows, number - self.part_rows
        if number:
            yield self.rooms.arranged(_stack(held))
        if total + number != self.size:
            raise ValueError(
                f"an epoch of the loader had {total + number} samples, {self.size} were announced: pass the number of "
                "samples that it goes through. An iterator that ends for good is given as a function that returns a "
                "new one."
            )

    def _arrays(self, batch: Any, place: int) -> tuple[dict[str, Any], int]:
        """Arrays of a batch, and the number of its samples."""
        made = batch if self.convert is None else self.convert(batch)
        if not isinstance(made, Mapping) or not made:
            raise TypeError(
                f"batch {place} must be a dict of arrays, or convert make one of it, found {type(made).__name__}."
            )
        arrays = {key: value if sp.issparse(value) else np.asarray(value) for key, value in made.items()}
        for key, value in arrays.items():
            if not value.shape or value.dtype.kind in "OSUMm":
                raise TypeError(
                    f"array {key!r} of batch {place} must hold numbers, a row for each sample, found dtype "
                    f"{value.dtype} and shape {value.shape}."
                )
        rows = {key: value.shape[0] for key, value in arrays.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"the arrays of batch {place} must have one row a sample each, found {rows}.")
        return arrays, min(rows.values())


class Rooms:
    """Shapes that sparse samples of all parts are padded to; they grow where a part needs more.

    Parameters
    ----------
    part_rows
        Most samples of a part.
    batch_size
        Samples of a batch.
    stratified
        Whether each batch has one sample of every run of neighbours: parts are then put in the order of their entries.
    """

    def __init__(self, part_rows: int, batch_size: int, *, stratified: bool):
        self.part_rows, self.batch_size, self.stratified = part_rows, batch_size, stratified
        self._known: dict[str, tuple[int, int, int]] = {}

    def reserve(self, drawn: Iterable[Mapping[str, np.ndarray]], dtypes: Mapping[str, Any]) -> None:
        """Make room for parts to come, as far as it can be known: one that needs more is given it, and compiled anew.

        Parameters
        ----------
        drawn
            Entries of each row of the sparse arrays, by name, of some parts drawn as those to come are. There is room
            for the largest of them and a standard deviation more.
        dtypes
            Type of the values of each sparse array.
        """
        needed: dict[str, list[tuple[int, int]]] = {}
        for lengths in drawn:
            order = self._order(lengths)
            for key, found in lengths.items():
                needed.setdefault(key, []).append((self._entries(found, order), int(found.sum())))
        for key, found in needed.items():
            values = np.array(found, np.float64)
            capacity, room = (values.max(0) + _DEVIATIONS * values.std(0)).astype(int).tolist()
            self._known[key] = (capacity_of(capacity), bucket_size(max(room, 1)), _DTYPES.index(dtypes[key]))

    def arranged(self, arrays: Mapping[str, Any]) -> dict[str, Samples]:
        """Return the arrays of a part, sparse ones as CSR, as samples with room as in the parts before."""
        lengths = {key: np.diff(value.indptr) for key, value in arrays.items() if sp.issparse(value)}
        order = self._order(lengths)
        return {
            key: self._sparse(key, value, lengths[key], order) if key in lengths else Samples(value, order)
            for key, value in arrays.items()
        }

    def _order(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Rows by their entries in all arrays, if batches follow that order; None if they lie in it."""
        if not self.stratified or not lengths:
            return None
        total = sum(lengths.values())
        return None if (np.diff(total) >= 0).all() else np.argsort(total, kind="stable")

    def _entries(self, lengths: np.ndarray, order: np.ndarray | None) -> int:
        """Entries that a batch can have at most."""
        if self.stratified:
            return stratified_entries(lengths if order is None else lengths[order], self.batch_size)
        return batch_entries(lengths, self.batch_size)

    def _sparse(self, key: str, matrix: sp.csr_array, lengths: np.ndarray, order: np.ndarray | None) -> Samples:
        needed, kind = self._entries(lengths, order), _DTYPES.index(smallest_type(matrix.data))
        if key not in self._known:
            room = max(matrix.nnz / max(len(lengths), 1) * self.part_rows, matrix.nnz)
            self._known[key] = (capacity_of(int(needed * _MARGIN)), bucket_size(int(room * _MARGIN) + 1), kind)
        capacity, room, known = self._known[key]
        capacity, room = max(capacity, capacity_of(needed)), max(room, bucket_size(max(matrix.nnz, 1)))
        self._known[key] = capacity, room, max(known, kind)
        return Samples(matrix, order, capacity, room, _DTYPES[max(known, kind)])


def _stack(parts: list[dict[str, Any]]) -> dict[str, Any]:
    def joined(values: list[Any]) -> Any:
        if sp.issparse(values[0]):
            return sp.csr_array(sp.vstack(values, format="csr"))
        return np.concatenate(values)

    return {key: joined([part[key] for part in parts]) for key in parts[0]}


@functools.cache
def _reader() -> ThreadPoolExecutor:
    """The one thread that reads ahead: each new one would take memory of its own from the system and leave it."""
    return ThreadPoolExecutor(1, thread_name_prefix="diffbio_sc_reader")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, while the next one is made in another thread."""
    end = object()
    pending = _reader().submit(next, items, end)
    try:
        while (item := pending.result()) is not end:
            pending = _reader().submit(next, items, end)
            yield item  # type: ignore[misc]
            del item
    finally:
        wait([pending])
