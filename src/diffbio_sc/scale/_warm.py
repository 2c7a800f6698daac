from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

_WORKER_BYTES = 700_000_000  # of a worker that has loaded JAX and compiled programs, before any block
_BLOCKS = 2  # that a thread holds: one that is read, one that is worked on


def warm(client: Client | None = None) -> None:
    """Make the workers of a cluster ready: libraries loaded, and one store of compiled programs for all.

    Programs that one process compiles are then loaded by the others, by workers that join later or take the place of
    lost ones, and by the next session: ``settings.cache_dir`` keeps them, which workers on other machines must see as
    well. A store that JAX was already told to use (``JAX_COMPILATION_CACHE_DIR``) is used instead.

    Parameters
    ----------
    client
        Client of the cluster; default: the active one. Without any, only this process is made ready.

    Raises
    ------
    TypeError
        If ``client`` is no client.

    Warns
    -----
    UserWarning
        If a worker's memory limit is too low for its threads and ``settings.block_bytes``.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> dbio.scale.warm()  # this process; with a cluster: warm(client)
    """
    from diffbio_sc._settings import settings
    from diffbio_sc.blocks.cluster import active_client
    from diffbio_sc.scale._ready import make_ready

    if client is not None and not hasattr(client, "scheduler_info"):
        raise TypeError(f"client must be a Client of dask.distributed or None, found {client!r}.")
    client = active_client() if client is None else client
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(settings.cache_dir / "compiled")
    make_ready(folder)
    if client is None:
        return
    from diffbio_sc.scale._plugin import MakeReady

    _check_memory(client, settings.block_bytes)
    client.register_plugin(MakeReady(folder))


def _check_memory(client: Any, block_bytes: int) -> None:
    """Warn of workers that would run out of memory."""
    low = []
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        needed = _WORKER_BYTES + _BLOCKS * worker["nthreads"] * block_bytes
        if 0 < worker["memory_limit"] < needed:
            low.append((address, worker["memory_limit"], needed))
    if low:
        address, limit, needed = low[0]
        warnings.warn(
            f"{len(low)} workers have less memory than their blocks may take, first: {address} has {limit / 1e9:.1f} "
            f"GB, {needed / 1e9:.1f} GB are needed. Give them more, fewer threads, or lower settings.block_bytes.",
            UserWarning,
            stacklevel=3,
        )
