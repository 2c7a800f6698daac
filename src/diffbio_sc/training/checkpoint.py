"""Checkpoints of a training run: one file that holds all that the next epoch depends on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from diffbio_sc.training import storage

CHECKPOINT_FORMAT = 1


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
            "Give another path, or resume=False to overwrite it."
        )
    trees = {}
    for name, template in templates.items():
        prefix = f"{name}/"
        mine = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        trees[name] = storage.restore(template, mine, where=f"{os.fspath(path)!r} ({name})")
    return header["progress"], trees
