"""Where training runs: every device has a part of the samples and of each batch, and a copy of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

from diffbio_sc._logging import logger
from diffbio_sc.numerics.placing import device_copy, put_pieces

_AXIS = "batch"


class Placement(NamedTuple):
    """Shardings of a run.

    Attributes
    ----------
    replicated
        Of parameters and optimiser state.
    batch
        Of the sample axis, of all samples and of a batch; None on a single device.
    """

    replicated: Sharding
    batch: Sharding | None

    @property
    def samples(self) -> Sharding:
        """Sharding of arrays with one row a sample."""
        return self.replicated if self.batch is None else self.batch

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.replicated.num_devices

    def put(self, tree: Any) -> Any:
        """Put a copy of each array of the tree on every device."""
        return jax.tree.map(lambda leaf: _put_copies(leaf, self.replicated), tree)


def place_training(batch_size: int) -> Placement:
    """Use the largest number of devices that divides ``batch_size``, the same on each host; told in the log if not all.

    Raises
    ------
    ValueError
        If the hosts of ``jax.distributed`` cannot share a batch equally.
    """
    hosts = _devices_by_host(jax.devices())
    most = min(map(len, hosts))
    each = max((number for number in range(1, most + 1) if batch_size % (number * len(hosts)) == 0), default=0)
    if not each:
        raise ValueError(
            f"{len(hosts)} hosts cannot share batches of {batch_size} samples equally: choose a batch_size that is a "
            f"multiple of {len(hosts)}."
        )
    count, found = each * len(hosts), sum(map(len, hosts))
    if count < found:
        logger.info(
            f"Training uses {count} of {found} devices: batches of {batch_size} samples are not divided equally among "
            f"more. A batch_size that is a multiple of {found} uses all."
        )
    if count == 1:
        return Placement(device_copy(0.0).sharding, None)
    mesh = Mesh(np.array([device for devices in hosts for device in devices[:each]]), (_AXIS,))
    return Placement(NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_AXIS)))


def _devices_by_host(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    by_host: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_host.setdefault(device.process_index, []).append(device)
    return [by_host[number] for number in sorted(by_host)]


def take_rows(array: Array, rows: Int[Array, " n"], sharding: Sharding | None) -> Array:
    """Rows of an array, at indices that are in range; on every device.

    If the rows are divided among devices, each looks up those that it has, and the sum of what they found goes to all:
    no device ever holds the array of another.
    """
    if not isinstance(sharding, NamedSharding):
        return jnp.asarray(array).at[rows].get(mode="promise_in_bounds")

    def found(part: Array, rows: Array) -> Array:
        place = rows - jax.lax.axis_index(_AXIS) * len(part)
        here = (place >= 0) & (place < len(part))
        values = part.at[jnp.where(here, place, 0)].get(mode="promise_in_bounds")
        # One device has each row, the others add zeros; small types are not summed everywhere.
        wide = values.astype(jnp.int32) if values.dtype.itemsize < 4 and values.dtype.kind in "bui" else values
        return jax.lax.psum(jnp.where(here.reshape(-1, *[1] * (values.ndim - 1)), wide, 0), _AXIS)

    whole = PartitionSpec()
    shared = jax.shard_map(found, mesh=sharding.mesh, in_specs=(PartitionSpec(_AXIS), whole), out_specs=whole)
    return shared(array, rows).astype(array.dtype)


class Home(NamedTuple):
    """Where an array is, and whether somebody put it there: compiled code is compiled again for one that was."""

    sharding: Sharding
    committed: bool


def home_of(leaf: Array) -> Home:
    """Return where an array is."""
    return Home(leaf.sharding, leaf.committed)


def bring_home(leaf: Any, home: Home) -> Any:
    """Put an array, of which this process has a copy, where it was before."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    if not home.committed and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        free = device_copy(leaf)
        if free.sharding == home.sharding:
            return free
    return jax.device_put(leaf, home.sharding)


def _put_copies(leaf: Any, sharding: Sharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = _put_copies(jax.random.key_data(leaf), sharding)
        return jax.jit(lambda bits: jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf)))(bits)
    # Every process puts its own copies: an array of one device is not to be had from the others.
    values = np.asarray(leaf)

    def write(piece: np.ndarray, start: int) -> None:
        piece[...] = values.reshape(piece.shape)

    return put_pieces(values.shape, values.dtype, sharding, write)
