"""That nothing is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What libraries say of their own next versions, some of them when they are first loaded, which may be in any test.
_OF_LIBRARIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)

# Of JAX, where another process is just writing the program that this one takes from their store: it compiles it then.
SHARED_STORE = "Error (reading|writing) persistent compilation cache entry"


@contextmanager
def no_warnings() -> Iterator[None]:
    """Let warnings be errors: those of this package, of arithmetic and of wrong use."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in _OF_LIBRARIES:
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", SHARED_STORE)
        yield
