"""Samples of an epoch on the devices: all of them for the whole run, or part after part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from diffbio_sc.numerics.padding import bucket_size
from diffbio_sc.training import batches
from diffbio_sc.training.devices import Placement
from diffbio_sc.training.epoch import number_of_steps
from diffbio_sc.training.streams import BatchSource, Rooms, ahead


class EpochSource(Protocol):
    """What the loop goes through in an epoch.

    Attributes
    ----------
    n_parts
        Number of sample sets of an epoch.
    bucket
        Room for samples in each of them.
    """

    @property
    def n_parts(self) -> int:
        """Number of sample sets of an epoch."""
        ...

    @property
    def bucket(self) -> int:
        """Room for samples in each of them."""
        ...

    def parts(self, epoch: int) -> Iterator[batches.SampleSet]:
        """One sample set after the other."""
        ...

    def steps(self, batch_size: int, *, weighted: bool) -> int:
        """Steps of an epoch."""
        ...

    def fits(self, held_out: batches.SampleSet | None) -> bool:
        """Whether validation samples have the shapes of those to train on."""
        ...


class Resident:
    """One set of samples that stays on the devices."""

    n_parts = 1

    def __init__(self, samples: batches.SampleSet):
        self.samples = samples

    @property
    def bucket(self) -> int:
        """Room for samples."""
        return len(self.samples.index)

    def parts(self, epoch: int) -> Iterator[batches.SampleSet]:
        """Yield the one set."""
        yield self.samples

    def steps(self, batch_size: int, *, weighted: bool) -> int:
        """Steps of an epoch."""
        return number_of_steps(self.samples.size, batch_size, weighted=weighted)

    def fits(self, held_out: batches.SampleSet | None) -> bool:
        """Whether the held-out samples are some of the same arrays."""
        return held_out is not None and held_out.samples is self.samples.samples


class Streamed:
    """Parts of a source, put on the devices one after the other.

    Parameters
    ----------
    source
        Where they come from.
    placement
        Devices.
    check
        Raises if a part lacks an array.
    """

    def __init__(self, source: BatchSource, placement: Placement, check: Callable[[Any], None] | None = None):
        self.source, self.placement, self.check = source, placement, check

    @property
    def n_parts(self) -> int:
        """Number of parts of an epoch."""
        return self.source.n_parts

    @property
    def bucket(self) -> int:
        """Room for samples in each part."""
        return bucket_size(self.source.part_rows)

    def parts(self, epoch: int) -> Iterator[batches.SampleSet]:
        """Put one part after the other on the devices; the next is read, and put there, meanwhile."""
        placed = self._placed_parts(epoch)
        yield from ahead(placed) if self.source.reads_ahead else placed

    def _placed_parts(self, epoch: int) -> Iterator[batches.SampleSet]:
        for part in self.source.parts(epoch):
            if self.check is not None:
                self.check(part)
            yield self._placed(part, "a part of the source")

    def held_out(self, data: Mapping[str, Any]) -> batches.SampleSet:
        """Put validation samples on the devices, in the shapes of the parts if they are no more than a part."""
        size, rooms = max((value.shape[0] for value in data.values()), default=0), self.source.rooms
        if size > self.source.part_rows:
            # The parts would be given room for as many.
            rooms = Rooms(size, rooms.batch_size, stratified=rooms.stratified)
        return self._placed(rooms.arranged(data), "validation data")

    def steps(self, batch_size: int, *, weighted: bool) -> int:
        """Steps of an epoch: all parts but the last are whole batches."""
        return number_of_steps(self.source.size, batch_size, weighted=weighted)

    def fits(self, held_out: batches.SampleSet | None) -> bool:
        """Whether the held-out samples have the shapes of the parts."""
        return held_out is not None and held_out.size <= self.source.part_rows

    def _placed(self, data: Mapping[str, Any], name: str) -> batches.SampleSet:
        size = batches.count_samples(data, None, name=name)
        bucket = bucket_size(max(size, self.source.part_rows))
        samples, shared = batches.place_samples(data, None, size, placement=self.placement, rows=bucket)
        index = batches.padded_index(np.arange(size), bucket=bucket, placement=self.placement)
        return batches.SampleSet(samples, shared, index, size)
