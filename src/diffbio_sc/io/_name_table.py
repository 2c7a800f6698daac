"""Names of chromosomes and barcodes, looked up by compiled code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

from diffbio_sc.genome.barcodes import report_barcodes


@njit(cache=True, nogil=True)
def name_hash(buffer, first, last):
    """Hash of the bytes ``first`` to ``last`` (FNV-1a with a final mix)."""
    value = np.uint64(14695981039346656037)
    for position in range(first, last):
        value = (value ^ np.uint64(buffer[position])) * np.uint64(1099511628211)
    return value ^ (value >> np.uint64(29))


@njit(cache=True, nogil=True)
def find_name(buffer, first, last, slots, hashes, offsets, pool, used, insert):
    """Index of a name in the table; -1 if absent and not to be inserted, -2 if the table must grow first."""
    value = name_hash(buffer, first, last)
    mask = np.uint64(len(slots) - 1)
    slot = value & mask
    width = last - first
    while True:
        index = slots[slot]
        if index < 0:
            break
        if hashes[index] == value and offsets[index + 1] - offsets[index] == width:
            begin = offsets[index]
            same = True
            for position in range(width):
                if pool[begin + position] != buffer[first + position]:
                    same = False
                    break
            if same:
                return index
        slot = (slot + np.uint64(1)) & mask
    if not insert:
        return -1
    count = used[0]
    begin = offsets[count]
    if 2 * (count + 1) > len(slots) or begin + width > len(pool):
        return -2
    for position in range(width):
        pool[begin + position] = buffer[first + position]
    hashes[count] = value
    offsets[count + 1] = begin + width
    slots[slot] = count
    used[0] = count + 1
    return count


@njit(cache=True, nogil=True)
def rehash(slots, hashes, count):
    """Fill a larger table with the names there are."""
    mask = np.uint64(len(slots) - 1)
    for index in range(count):
        slot = hashes[index] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = index


class NameTable:
    """Names in order of first appearance, looked up by compiled code; grows as needed."""

    def __init__(self, names: Sequence[str] = ()):
        encoded = [name.encode() for name in names]
        self.pool = np.zeros(max(1 << 12, 2 * sum(map(len, encoded))), np.uint8)
        self.hashes = np.zeros(max(1 << 8, 2 * len(encoded)), np.uint64)
        self.offsets = np.zeros(len(self.hashes) + 1, np.int64)
        self.slots = np.full(1 << int(np.ceil(np.log2(2 * len(self.hashes)))), -1, np.int32)
        self.used = np.zeros(1, np.int64)
        for name in encoded:
            find_name(
                np.frombuffer(name, np.uint8),
                0,
                len(name),
                self.slots,
                self.hashes,
                self.offsets,
                self.pool,
                self.used,
                True,
            )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the compiled loops take."""
        return self.slots, self.hashes, self.offsets, self.pool, self.used

    def grow(self) -> None:
        """Make room for twice as many names."""
        self.pool = np.concatenate([self.pool, np.zeros(len(self.pool) + (1 << 16), np.uint8)])
        self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
        self.offsets = np.concatenate([self.offsets, np.zeros(len(self.hashes) + 1 - len(self.offsets), np.int64)])
        self.slots = np.full(2 * len(self.hashes), -1, np.int32)
        rehash(self.slots, self.hashes, self.used[0])

    def names(self) -> list[str]:
        """All names, in order of first appearance."""
        pool, offsets = self.pool.tobytes(), self.offsets
        return [
            pool[offsets[index] : offsets[index + 1]].decode(errors="backslashreplace") for index in range(self.used[0])
        ]


class BarcodeTable:
    """Barcodes to keep (all by default) and the code that each is read as: its own, or that of its label."""

    def __init__(self, barcodes: Sequence[str] | Mapping[str, str] | None = None):
        if isinstance(barcodes, str):
            raise TypeError(
                f"barcodes must be a list of barcodes or a mapping from barcode to label, found {barcodes!r}."
            )
        self.insert = barcodes is None
        self.listed = [str(name) for name in barcodes] if barcodes is not None else []
        self.codes = np.empty(0, np.int32)
        self.seen = np.zeros(len(self.listed), np.bool_)
        self.table = NameTable(self.listed)
        self._labels = self.listed
        if barcodes is None:
            return
        if not self.listed:
            raise ValueError("barcodes must hold at least one barcode, found none.")
        if self.table.used[0] != len(self.listed):
            raise ValueError(
                f"barcodes must be unique, found {len(self.listed)} of which {self.table.used[0]} are different."
            )
        labels = [str(label) for label in barcodes.values()] if isinstance(barcodes, Mapping) else self.listed
        self._labels = list(dict.fromkeys(labels))
        lookup = {label: code for code, label in enumerate(self._labels)}
        self.codes = np.array([lookup[label] for label in labels], np.int32)

    def labels(self) -> list[str]:
        """Names that the codes point to."""
        return self.table.names() if self.insert else self._labels

    def report(self, name: str, there: Sequence[str], *, stacklevel: int) -> None:
        """Warn if few of the listed barcodes occurred, raise if none did; ``there`` are some that the sample has."""
        if not self.insert:
            found = [barcode for barcode, seen in zip(self.listed, self.seen, strict=True) if seen]
            report_barcodes(self.listed, set(found), name, there, stacklevel=stacklevel)
