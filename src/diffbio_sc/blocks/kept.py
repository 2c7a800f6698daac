"""What a pass has read of a stored matrix, kept in temporary files, so that later passes need not read it again.

A store of chunks is read through codecs and layers of libraries, many times slower than a plain file of the same rows
that still lies in the system's cache. The process that reads keeps nothing in its own memory.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.cluster import shared_folder
from diffbio_sc.blocks.plan import Plan, Task
from diffbio_sc.blocks.row_store import smallest_type

_SPARE = 2**30  # bytes of the disk that stay free


class KeptReads:
    """Files of what was read, one a read, which go with the object.

    Parameters
    ----------
    client
        Of ``dask.distributed``, whose workers read; None if this process does.
    """

    def __init__(self, client: Any | None):
        self.client = client
        files = ExitStack()
        weakref.finalize(self, files.close)
        if client is None:
            self._folder: Path | None = Path(
                files.enter_context(tempfile.TemporaryDirectory(prefix="diffbio-sc-", ignore_cleanup_errors=True))
            )
        else:
            self._folder = files.enter_context(shared_folder(client))

    def path(self, start: int, stop: int) -> Path | None:
        """File of the rows from ``start`` to before ``stop``; None if workers share no folder."""
        return None if self._folder is None else self._folder / f"{start}-{stop}"

    def wholes(self, plan: Plan, read: Callable[[Plan], Iterator[tuple[Task, Any]]]) -> Iterator[tuple[Task, Any]]:
        """Each task of a plan with its rows: from the files if all are there, else as ``read`` gives them."""
        paths = [self.path(task[0][0], task[-1][1]) for task in plan.tasks]
        files = [file for path in paths if (file := file_at(path)) is not None]
        if len(files) == len(paths):
            yield from zip(plan.tasks, map(load_kept, files), strict=True)
            return
        for path, (task, whole) in zip(paths, read(plan), strict=True):
            keep(whole, path)
            yield task, whole


def file_at(path: Path | None) -> Path | None:
    """Return the path if there is a file."""
    return path if path is not None and path.exists() else None


def keep(block: Any, path: Path | None) -> None:
    """Write a block in the working type, dense or CSR, in the smallest types that hold it.

    Not if less of the disk than a gigabyte would be free then: the next pass reads the matrix itself.
    """
    if path is None:
        return
    packed = _packed(block)
    size = sum(part.nbytes for part in packed if isinstance(part, np.ndarray))
    if shutil.disk_usage(path.parent).free < size + _SPARE:
        return
    with suppress(OSError):  # a quota, of files too, or others fill the disk
        # Tasks may run twice, on two workers: each writes a file of its own, and the last one stays.
        handle, part = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                pickle.dump(packed, file, protocol=pickle.HIGHEST_PROTOCOL)
            os.replace(part, path)
        except BaseException:
            os.remove(part)
            raise


def load_kept(path: Path) -> Any:
    """Return what :func:`keep` wrote, equal in all its values and their type."""
    with open(path, "rb") as file:
        dtype, shape, values, indices, indptr = pickle.load(file)
    values = values.astype(dtype, copy=False)
    if indices is None:
        return values
    block = sp.csr_array((values, indices.astype(indptr.dtype, copy=False), indptr), shape=shape)
    block.has_canonical_format = True  # as blocks in the working type are
    return block


def _packed(block: Any) -> tuple[Any, ...]:
    values = block.data if sp.issparse(block) else block
    kind = smallest_type(values)
    small = values.astype(kind) if np.dtype(kind).kind == "u" else values
    if not sp.issparse(block):
        return block.dtype, block.shape, small, None, None
    indices = block.indices.astype(np.uint16) if block.shape[1] <= 2**16 else block.indices
    return block.dtype, block.shape, small, indices, block.indptr
