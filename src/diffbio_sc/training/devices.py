"""Where training runs: every device gets an equal part of each batch and its own copy of everything else."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding


class Placement(NamedTuple):
    """Shardings of a run.

    Attributes
    ----------
    replicated
        Of samples, parameters and optimiser state.
    batch
        Of the sample axis of a batch; None on a single device.
    """

    replicated: Sharding
    batch: Sharding | None


def place_training(batch_size: int) -> Placement:
    """Use the largest number of visible devices that divides ``batch_size``."""
    devices = jax.devices()
    count = max(number for number in range(1, len(devices) + 1) if batch_size % number == 0)
    if count == 1:
        return Placement(jax.numpy.zeros(()).sharding, None)
    mesh = Mesh(np.array(devices[:count]), ("batch",))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch")))
