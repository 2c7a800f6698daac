"""Functions of JAX as tests call them: compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def one_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` as one program for its arrays' shapes; what is no array is a constant of the program.

    Run as it stands, each of its operations is compiled by itself: often a hundred small programs, which take ten times
    as long. Tests of what a user calls without ``jax.jit``, and of values that are refused, call the function itself.
    """
    programs: dict[Any, Callable[..., Any]] = {}

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        constants = tuple(None if isinstance(leaf, jax.Array | np.ndarray | np.generic) else leaf for leaf in leaves)

        def call(arrays: list[Any]) -> Any:
            given = iter(arrays)
            filled = [next(given) if constant is None else constant for constant in constants]
            args, kwargs = jax.tree.unflatten(tree, filled)
            return function(*args, **kwargs)

        program = programs.setdefault((tree, constants), jax.jit(call))
        return program([leaf for leaf, constant in zip(leaves, constants, strict=True) if constant is None])

    return run
