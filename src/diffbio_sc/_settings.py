"""Settings of the session: verbosity, progress bars, cache folder, memory of blocks and plot defaults."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEVELS = ("error", "warning", "info", "hint", "debug")
_LOGGING_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, 15, logging.DEBUG)
logging.addLevelName(15, "HINT")
_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LEAST_BLOCK = 10**6


def _flag(text: str) -> bool:
    return text.strip().lower() not in {"0", "false", "no", "off", ""}


class Settings:
    """Session settings, as attributes of ``diffbio_sc.settings``.

    Attributes
    ----------
    verbosity
        0 or ``"error"``, 1 or ``"warning"`` (default), 2 or ``"info"``, 3 or ``"hint"``, 4 or ``"debug"``.
    progress_bar
        Whether work of more than a second shows a progress bar. Default: environment variable
        ``DIFFBIO_SC_PROGRESS`` (``0`` silences), else True.
    cache_dir
        Folder for files that may be rebuilt at any time; made at first use. Default
        ``$XDG_CACHE_HOME/diffbio_sc`` or ``~/.cache/diffbio_sc``.
    block_bytes
        Memory that a block of a matrix may take while it is worked on, as a number of bytes or a text such as
        ``"256MB"`` (default). Matrices in files and on clusters are worked through in such blocks; smaller blocks need
        less memory, larger ones less time.
    figure_dpi
        Resolution of saved figures, in dots per inch.
    color_map
        Name of the matplotlib colour map of continuous values.
    palette
        Name of the matplotlib colour map of categories.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> with dbio.settings.override(verbosity="info", progress_bar=False):
    ...     dbio.settings.verbosity
    2
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("diffbio_sc")
        self._verbosity = 1
        self._progress_bar = _flag(os.environ.get("DIFFBIO_SC_PROGRESS", "1"))
        self._cache_dir = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffbio_sc"
        self._block_bytes = 256_000_000
        self._figure_dpi = 150
        self._color_map = "viridis"
        self._palette = "tab20"
        self._logger.setLevel(_LOGGING_LEVELS[self._verbosity])

    @property
    def verbosity(self) -> int:
        return self._verbosity

    @verbosity.setter
    def verbosity(self, value: int | str) -> None:
        if isinstance(value, str) and value.lower() in _LEVELS:
            value = _LEVELS.index(value.lower())
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(_LEVELS):
            raise ValueError(
                f"settings.verbosity must be 0 to {len(_LEVELS) - 1} or one of {_LEVELS}, found {value!r}."
            )
        self._verbosity = value
        self._logger.setLevel(_LOGGING_LEVELS[value])

    @property
    def progress_bar(self) -> bool:
        return self._progress_bar

    @progress_bar.setter
    def progress_bar(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"settings.progress_bar must be True or False, found {value!r}.")
        self._progress_bar = value

    @property
    def cache_dir(self) -> Path:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        return self._cache_dir

    @cache_dir.setter
    def cache_dir(self, value: str | os.PathLike[str]) -> None:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise ValueError(f"settings.cache_dir must be the path of a folder, found {value!r}.")
        path = Path(value).expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError(f"settings.cache_dir must be a folder, found the file {str(path)!r}.")
        self._cache_dir = path

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @block_bytes.setter
    def block_bytes(self, value: int | str) -> None:
        number = _number_of_bytes(value)
        if number is None or number < _LEAST_BLOCK:
            raise ValueError(
                f"settings.block_bytes must be at least {_LEAST_BLOCK:,} bytes, or a text such as '256MB', found "
                f"{value!r}."
            )
        self._block_bytes = number

    @property
    def figure_dpi(self) -> int:
        return self._figure_dpi

    @figure_dpi.setter
    def figure_dpi(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"settings.figure_dpi must be a positive integer, found {value!r}.")
        self._figure_dpi = value

    @property
    def color_map(self) -> str:
        return self._color_map

    @color_map.setter
    def color_map(self, value: str) -> None:
        self._color_map = _color_map_name("color_map", value)

    @property
    def palette(self) -> str:
        return self._palette

    @palette.setter
    def palette(self, value: str) -> None:
        self._palette = _color_map_name("palette", value)

    @contextlib.contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Set some settings for the length of a ``with`` block.

        Parameters
        ----------
        values
            Settings by name.

        Raises
        ------
        AttributeError
            If a name is no setting; nothing is changed then.
        """
        unknown = [name for name in values if not isinstance(getattr(type(self), name, None), property)]
        if unknown:
            raise AttributeError(f"No such settings: {unknown}; there are {self._names()}.")
        before = {name: getattr(self, "_" + name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, "_" + name, value)
            self._logger.setLevel(_LOGGING_LEVELS[self._verbosity])

    def _names(self) -> list[str]:
        return [name for name, value in vars(type(self)).items() if isinstance(value, property)]

    def __repr__(self) -> str:
        return "Settings(" + ", ".join(f"{name}={getattr(self, '_' + name)!r}" for name in self._names()) + ")"


def _number_of_bytes(value: Any) -> int | None:
    """Bytes of a number or a text with a unit; None for anything else."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", value)
        units = {name.lower(): size for name, size in _BYTES.items()}
        if found is None or found[2].lower() not in units:
            return None
        return int(float(found[1]) * units[found[2].lower()])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _color_map_name(name: str, value: str) -> str:
    import matplotlib

    if not isinstance(value, str) or value not in matplotlib.colormaps:
        raise ValueError(f"settings.{name} must be the name of a matplotlib colour map, found {value!r}.")
    return value


settings = Settings()
