"""Progress bars: shown for work of more than a second, silenced by ``settings.progress_bar = False``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from diffbio_sc._settings import settings
from diffbio_sc._warnings import unheard

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over ``items`` under a progress bar named ``description``."""
    yield from _bar()(items, desc=description, total=total, delay=1.0, disable=not settings.progress_bar, leave=False)


@cache
def _bar() -> Any:
    with unheard("IProgress not found"):  # without ipywidgets the bar is drawn as text
        from tqdm.auto import tqdm
    return tqdm
