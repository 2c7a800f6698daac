"""Lazy loading of a package's public names from its stub, with a suggestion for a misspelt one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lazy_loader


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of ``package``, as its stub beside ``file`` lists them."""
    load, names, public = lazy_loader.attach_stub(package, file)

    def __getattr__(name: str) -> Any:
        try:
            return load(name)
        except AttributeError as error:
            if name in public or name.startswith("__"):  # the fault lies deeper, or a protocol is being probed
                raise
            from difflib import get_close_matches

            close = get_close_matches(name, public, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"public names: {public}."
            raise AttributeError(f"{package} has no {name!r}; {hint}", name=name) from error

    return __getattr__, names, public
