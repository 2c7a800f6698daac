"""Warnings left out or caught, also where several threads do so at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Filters belong to the process: threads that save and restore them side by side leave the wrong ones behind.
_TURN = threading.RLock()


@contextmanager
def unheard(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Leave out warnings that begin with ``message`` (a regular expression), of a category; for short calls.

    Other threads that want the same wait; those that only warn are not heard meanwhile either.
    """
    with _TURN, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield


@contextmanager
def heard() -> Iterator[list[warnings.WarningMessage]]:
    """Catch all warnings; those of other threads too, of which those that want the same wait."""
    with _TURN, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
