"""Lazy matrices that tell what is read of them, and steps that kill their worker: importable by the workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp

from diffbio_sc.blocks.steps import ColumnSums, Step


def load(source, log, start, stop, trouble=None, fatal=None):
    """A chunk of an array, or of a file that holds one; every time that it is made is a file in ``log``.

    ``trouble`` is the first row of a chunk that cannot be read; ``fatal`` that of one that kills its worker when it is
    made for the so-manieth time, once.
    """
    log = Path(log)
    (log / f"{start}-{os.getpid()}-{threading.get_ident()}-{os.urandom(4).hex()}").touch()
    if trouble == start:
        raise OSError("checksum does not match")
    if fatal is not None and fatal[0] == start and len(list(log.glob(f"{start}-*"))) == fatal[1]:
        (log / "dead").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    array = source if isinstance(source, np.ndarray) else np.load(source, mmap_mode="r")
    return sp.csr_matrix(array[start:stop])


def lazy(array, log, size=20, trouble=None, fatal=None, stored=True):
    """A dask array whose chunks come from a file, as they do in earnest, or from one array that they share."""
    log.mkdir(exist_ok=True)
    source = array
    if stored:
        source = str(log.with_suffix(".npy"))
        np.save(source, array)
    node = dask.delayed(load, pure=False)
    parts = [
        da.from_delayed(
            node(source, str(log), start, start + size, trouble, fatal),
            (min(size, len(array) - start), array.shape[1]),
            meta=sp.csr_matrix((0, 0), dtype=array.dtype),
        )
        for start in range(0, len(array), size)
    ]
    return da.concatenate(parts)


def reads(log, size=20):
    starts = [int(path.name.split("-")[0]) for path in log.iterdir() if path.name[0].isdigit()]
    return np.bincount(np.array(starts, int) // size) if starts else np.zeros(0, int)


class Rounded(Step):
    """A sum that depends on the order in which it is made."""

    def __call__(self, start, block):
        return np.asarray(block.sum(0)).ravel().astype(np.float32) * np.float32(1.1 + start)


def total(piece, indices):
    return float(piece.sum()), piece.shape, indices.tolist()


class Scaled:
    """Where items are worked on, and the product of each with a constant; the item ``fatal`` kills its worker, once."""

    def __init__(self, constant, mark=None, fatal=None):
        self.constant, self.mark, self.fatal = constant, mark, fatal

    def __call__(self, item):
        if item == self.fatal and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 0:
            raise ZeroDivisionError("an item of nothing")
        return os.getpid(), self.constant * item


class Dies:
    """Kills its worker at one block, once."""

    def __init__(self, mark, at, function):
        self.mark, self.at, self.function = str(mark), at, function

    def __call__(self, first, second):
        key = first if np.isscalar(first) else int(second[0])
        if key == self.at and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(first, second)


def block_sum(start, block):
    return start, float(block.sum())


class DyingSums(ColumnSums):
    def __init__(self, mark, at):
        self.mark, self.at = str(mark), at

    def __call__(self, start, block):
        return Dies(self.mark, self.at, lambda first, second: super(DyingSums, self).__call__(first, second))(
            start, block
        )


def dying_chunk(block, mark, total):
    if total and block.sum() == total and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def die_at_load(log, start, number):
    """Let this process end when it loads what was kept of the read that begins at a row for the so-manieth time, once.

    ``number`` counts the loads of all workers that were told so; those that take the place of a lost one were not.
    """
    from diffbio_sc.blocks import lazy as module

    log, load_kept = Path(log), module.load_kept

    def load_or_die(path):
        if path.name.split("-")[0] == str(start):
            (log / f"load-{os.urandom(4).hex()}").touch()
            if len(list(log.glob("load-*"))) == number:
                (log / "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return load_kept(path)

    module.load_kept = load_or_die


def to_dense(block):
    return block.toarray()


def broken(block, block_info=None):
    if block_info[0]["chunk-location"][0] == 2:
        raise OSError("checksum does not match")
    return block


def divides_by_zero(start, block):
    return 1 / 0


class Heavy:
    """Something like an array that is heavy to send."""

    def __init__(self, array):
        self.array, self.ballast = array, np.zeros(100_000)
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, 2

    def __getitem__(self, index):
        return self.array[index]


def compiled_store():
    """Where programs of this process are stored, threads of its pool, and whether the engines are loaded."""
    import jax

    return (
        jax.config.jax_compilation_cache_dir,
        os.environ.get("NPROC"),
        "diffbio_sc.engines.deconvolution" in sys.modules,
    )


def pages_taken_anew():
    """Page faults of arrays of 2 MB, made and freed a hundred times, before and after a worker is made ready."""
    import resource

    from diffbio_sc.scale._ready import keep_freed_memory

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            np.ones(2**18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = faults()
    keep_freed_memory()
    return f"{before} {faults()}"
