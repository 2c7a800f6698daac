"""Writing text files, plain or compressed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from diffbio_sc._files import replacing
from diffbio_sc.io._byte_source import PathLike


@contextmanager
def open_writer(path: PathLike) -> Iterator[IO[bytes] | Any]:
    """Open a file for bytes, compressed if its name ends with ``.gz``; equal contents give equal files."""
    with replacing(path) as temporary, open(temporary, "wb") as raw:
        if not os.fspath(path).endswith(".gz"):
            yield raw
            return
        # Without a time stamp and a name, which gzip would store.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6) as stream:
            yield stream


def write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8."""
    with open_writer(path) as stream:
        stream.write(text.encode())
