"""Progress bars: shown for work of more than a second, silenced by ``settings.progress_bar = False``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from diffbio_sc._settings import settings

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over ``items`` under a progress bar named ``description``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # without ipywidgets the bar is drawn as text
        from tqdm.auto import tqdm

    yield from tqdm(items, desc=description, total=total, delay=1.0, disable=not settings.progress_bar, leave=False)
