"""The bytes of files, compressed or not, whatever their name says; and what kind of file they are not."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from diffbio_sc._checks import is_path

PathLike = str | os.PathLike[str]

BLOCK_BYTES = 1 << 22
"""Bytes that readers hold at a time."""

_MAGIC = {
    b"BAM\x01": "a BAM file: use dbio.io.read_bam",
    b"CRAM": "a CRAM file: convert it with `samtools view -b`, then use dbio.io.read_bam",
    b"@HD\t": "a SAM file: convert it with `samtools view -b`, then use dbio.io.read_bam",
    b"@SQ\t": "a SAM file: convert it with `samtools view -b`, then use dbio.io.read_bam",
    b"\x26\xfc\x8f\x88": "a bigWig file: use dbio.io.read_bigwig",
    b"\x88\x8f\xfc\x26": "a bigWig file: use dbio.io.read_bigwig",
    b"\xeb\xf2\x89\x87": "a bigBed file: convert it with `bigBedToBed`",
    b"\x87\x89\xf2\xeb": "a bigBed file: convert it with `bigBedToBed`",
    b"BZh": "compressed by bzip2: decompress it first, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: decompress it first, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: decompress it first, or compress it by gzip",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x89HDF": "an HDF5 file",
}
# Every bgzip file ends with this empty block (SAM specification, section 4.1.2).
LAST_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class ByteSource:
    """A file's bytes, decompressed if they are compressed, and the part of the file read so far."""

    def __init__(self, raw: IO[bytes], stream: Any, path: str):
        self.raw, self.stream, self.path = raw, stream, path
        self.size = os.fstat(raw.fileno()).st_size

    def readinto(self, target: memoryview) -> int:
        """Fill ``target`` as far as possible; returns the number of bytes, 0 at the end."""
        damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, OSError, *library_errors())
        filled = 0
        try:
            while filled < len(target):
                count = self.stream.readinto(target[filled:])
                if not count:
                    break
                filled += count
        except damaged as error:
            raise ValueError(
                f"{self.path} cannot be decompressed ({error}): it is cut short or damaged. Get the file again."
            ) from error
        return filled

    def fraction(self) -> float:
        """Part of the file that has been read."""
        return min(self.raw.tell() / self.size, 1.0) if self.size else 1.0


def library_errors() -> tuple[type[Exception], ...]:
    """What the faster library raises in place of :class:`zlib.error`, where it is installed."""
    try:
        from isal import igzip_lib
    except ImportError:
        return ()
    found: Any = igzip_lib.IsalError  # its stub takes it for a value
    return (found,)


@contextmanager
def open_bytes(path: PathLike) -> Iterator[ByteSource]:
    """Open a plain or gzip (also bgzip) file by what it holds, not by its name.

    Warns about a bgzip file without the block that ends it: one that was cut between two blocks looks whole otherwise.
    """
    where = existing_file(path)
    with open(where, "rb", buffering=0) as raw:
        head = raw.read(18)
        if head[:2] != b"\x1f\x8b":
            raw.seek(0)
            yield ByteSource(raw, raw, where)
            return
        if head[3] & 4 and head[12:14] == b"BC":
            raw.seek(max(os.fstat(raw.fileno()).st_size - len(LAST_BLOCK), 0))
            if raw.read() != LAST_BLOCK:
                warnings.warn(
                    f"{where} lacks the block that ends every bgzip and BAM file: it is probably cut short. Get the "
                    "file again, or make sure that nothing is missing.",
                    UserWarning,
                    stacklevel=5,
                )
        raw.seek(0)
        try:
            from isal import igzip as gzip  # several times as fast as zlib
        except ImportError:
            import gzip  # type: ignore[no-redef]
        with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            yield ByteSource(raw, stream, where)


def existing_file(path: PathLike) -> str:
    """Return the path of a file that is there, or raise an error that says what is wrong with it."""
    if not is_path(path):
        raise TypeError(f"expected the path of a file, found an object of type {type(path).__name__}.")
    where = os.fspath(path)
    if os.path.isdir(where):
        raise IsADirectoryError(f"{where!r} is a folder; pass the path of a file in it.")
    if not os.path.exists(where):
        remote = " Download it first." if "://" in where else ""
        raise FileNotFoundError(f"there is no file {where!r}.{remote}")
    return where


def as_paths(paths: PathLike | Sequence[PathLike]) -> list[str]:
    """One path or several as a list."""
    several = list(paths) if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths]
    strange = [path for path in several if not is_path(path)]
    if strange:
        raise TypeError(f"expected a path or a list of paths, found an object of type {type(strange[0]).__name__}.")
    if not several:
        raise ValueError("expected a path or a list of paths, found an empty list.")
    return [os.fspath(path) for path in several]


def require_text(head: bytes, path: str) -> None:
    """Raise ValueError, saying what to do, if the first bytes are not those of text."""
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is not text of intervals but {what}.")
    if b"\x00" in head:
        raise ValueError(f"{path} is not text of intervals: it holds bytes of value 0 (UTF-16, or binary).")
