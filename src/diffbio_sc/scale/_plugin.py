"""What a worker does when it begins; imported by the workers."""

from __future__ import annotations

import os
from typing import Any

from distributed import WorkerPlugin


class MakeReady(WorkerPlugin):
    """Makes each worker ready, now and when it joins or is started again."""

    name = "diffbio-sc"

    def __init__(self, folder: str):
        self.folder, self.client_process = folder, os.getpid()

    def setup(self, worker: Any) -> None:
        """Make the worker's process ready."""
        from diffbio_sc.scale._ready import keep_freed_memory, make_ready

        if os.getpid() != self.client_process:
            # XLA's pool of a process: as many threads as the worker has, not as the machine has cores.
            os.environ.setdefault("NPROC", str(worker.state.nthreads))
            keep_freed_memory()
        make_ready(self.folder)
