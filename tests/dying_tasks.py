"""Tasks that kill their worker, or fail: importable by the workers."""

from __future__ import annotations

import importlib
import os
import signal


class Dies:
    """Kills its worker the first time that it has done a task, before the result is sent."""

    def __init__(self, mark, module, name):
        self.mark, self.module, self.name = str(mark), module, name

    def __call__(self, item):
        result = getattr(importlib.import_module(self.module), self.name)(item)
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)


def double(item):
    return 2 * item


def process(item):
    return os.getpid()


def fails(item):
    raise ValueError(f"task {item} cannot be done")


def nested():
    """A flow within a task."""
    from diffbio_sc.blocks.rounds import Round, task_runner

    def flow():
        values = [1, 2]
        for _ in range(3):
            values = yield Round(double, values, "Doubling")
        return values

    with task_runner() as runner:
        return runner.run([flow()])[0]
