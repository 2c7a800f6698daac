"""Checkpoints of a training run: one file that holds all that the next epoch depends on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from diffbio_sc._checks import whole_number
from diffbio_sc.training import storage
from diffbio_sc.training.epoch import Variables
from diffbio_sc.training.vectors import Layout, Vectors

CHECKPOINT_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and when a run writes its state.

    Parameters
    ----------
    path
        File to keep the state of the run in; it stays when the run ends.
    every
        Number of epochs between writes.
    resume
        Whether to go on from the file if it exists. The end is bit-identical to that of an uninterrupted run.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> dbio.training.Checkpoint("run.npz", every=5)
    Checkpoint(path='run.npz', every=5, resume=True)
    """

    path: str | os.PathLike[str]
    every: int = 1
    resume: bool = True

    @classmethod
    def of(cls, checkpoint: Checkpoint | str | os.PathLike[str] | None) -> Checkpoint | None:
        """Return the checkpoint that an argument stands for; a path is one that is written after each epoch."""
        return checkpoint if checkpoint is None or isinstance(checkpoint, Checkpoint) else cls(checkpoint)

    def __post_init__(self) -> None:
        whole_number(self.every, "Checkpoint.every", unit=" epochs")


def as_trees(layout: Layout, variables: Variables, best: tuple[Vectors, nnx.State] | None) -> dict[str, Any]:
    """Return the trees of a checkpoint; in its file each parameter has its own name."""
    trees: dict[str, Any] = {"variables": variables._replace(trained=on_host(layout, variables.trained))}
    if best is not None:
        trees["best"] = (on_host(layout, best[0]), best[1])
    return trees


def from_trees(layout: Layout, trees: Mapping[str, Any]) -> tuple[Variables, tuple[Vectors, nnx.State] | None]:
    """Inverse of :func:`as_trees`."""
    variables = trees["variables"]
    variables = variables._replace(trained=layout.join(variables.trained, library=np))
    best = None
    if "best" in trees:
        best = (layout.join(trees["best"][0], library=np), trees["best"][1])
    return variables, best


def on_host(layout: Layout, vectors: Vectors) -> Any:
    """Return the tree of the vectors, as numpy arrays."""
    return layout.split({dtype: np.asarray(vector) for dtype, vector in vectors.items()})


def write_checkpoint(
    path: str | os.PathLike[str], run: Mapping[str, Any], progress: Mapping[str, Any], trees: Mapping[str, Any]
) -> None:
    """Replace the checkpoint at ``path`` in one step.

    Parameters
    ----------
    path
        File to write.
    run
        What the run is (operator, configuration, data sizes, settings), in JSON types; compared at resumption.
    progress
        How far it is (epoch, history, stopping), in JSON types.
    trees
        Trees of arrays by name: variables, optimiser state, best parameters.
    """
    arrays = {f"{name}/{key}": leaf for name, tree in trees.items() for key, leaf in storage.flatten(tree).items()}
    header = {
        "kind": "training checkpoint",
        "format": CHECKPOINT_FORMAT,
        "version": run["version"],
        "run": dict(run),
        "progress": dict(progress),
    }
    storage.write_file(path, header, arrays)


def read_checkpoint(
    path: str | os.PathLike[str], run: Mapping[str, Any], templates: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint of the same run: ``progress, trees``.

    Raises
    ------
    ValueError
        If the file is no checkpoint, or one of another operator, configuration, data size or setting.
    """
    header, arrays = storage.read_file(path, kind="training checkpoint", newest_format=CHECKPOINT_FORMAT)
    # A resumed run may use another package version; the format decides whether it can be read.
    differing = [name for name in run if name != "version" and header["run"].get(name) != run[name]]
    if differing:
        expected = {name: run[name] for name in differing}
        found = {name: header["run"].get(name) for name in differing}
        raise ValueError(
            f"{os.fspath(path)!r} is the checkpoint of another run: expected {expected}, found {found}. "
            "Give another path, or Checkpoint(path, resume=False) to overwrite it."
        )
    trees = {}
    for name, template in templates.items():
        prefix = f"{name}/"
        mine = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        trees[name] = storage.restore(template, mine, where=f"{os.fspath(path)!r} ({name})")
    return header["progress"], trees
