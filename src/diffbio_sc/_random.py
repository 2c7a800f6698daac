"""The one reader of ``rng`` arguments, for faces and operators alike."""

from __future__ import annotations

import numpy as np


def as_generator(
    rng: int | np.random.SeedSequence | np.random.BitGenerator | np.random.Generator | np.random.RandomState | None,
    name: str = "rng",
) -> np.random.Generator:
    """Return the generator that an ``rng`` argument stands for.

    Parameters
    ----------
    rng
        Seed (a whole number of at least 0, or a SeedSequence), numpy Generator, BitGenerator or RandomState; None takes
        fresh entropy, and the result then differs from run to run. A generator is drawn from, not copied.
    name
        Name of the argument, for the message.

    Raises
    ------
    TypeError
        If ``rng`` is something else.
    ValueError
        If it is a negative number.
    """
    if rng is None or isinstance(rng, np.random.Generator | np.random.SeedSequence | np.random.BitGenerator):
        return np.random.default_rng(rng)
    if isinstance(rng, np.random.RandomState):
        return np.random.Generator(rng._bit_generator)
    if isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer):
        raise TypeError(
            f"{name} must be a seed (a whole number of at least 0), a numpy Generator or RandomState, or None for "
            f"fresh entropy, found {rng!r} of type {type(rng).__name__}."
        )
    if rng < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, found {rng}.")
    return np.random.default_rng(int(rng))
