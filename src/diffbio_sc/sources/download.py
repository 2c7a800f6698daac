"""Files that are downloaded once, checked by their hash, or not there at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffbio_sc._logging import logger


def download(
    url: str,
    sha256: str,
    *,
    file_name: str,
    folder: str | os.PathLike[str] | None = None,
    downloader: Callable[..., Any] | None = None,
) -> Path:
    """Return a file of the cache, downloading it if it is not there.

    The file is written under another name, its hash is compared, and only then it gets its own: a download that breaks
    off, is interrupted or brings other bytes leaves nothing behind, not even a folder that it made.

    Parameters
    ----------
    url
        Address.
    sha256
        Checksum of the file in hexadecimal digits.
    file_name
        Name of the file in the folder.
    folder
        Folder to keep it in; default ``downloads`` in ``dbio.settings.cache_dir``.
    downloader
        How to fetch it, as pooch's downloaders; default by the kind of address.

    Returns
    -------
    Path of the file.

    Raises
    ------
    ValueError
        If the file that is there, or what was downloaded, has another checksum.
    """
    import pooch

    from diffbio_sc._settings import settings

    place = Path(folder) if folder is not None else settings.cache_dir / "downloads"
    target = place / file_name
    if target.exists():
        found = file_sha256(target)
        if found != sha256:
            raise ValueError(
                f"{str(target)!r} is not the file expected: its SHA-256 is {found}, expected {sha256}. Delete it, and "
                "it is downloaded again."
            )
        return target
    made = [path for path in (place, *place.parents) if not path.exists()]
    logger.info(f"Downloading {url} to {target}.")
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=file_name, path=place, downloader=downloader)
    except BaseException:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
    return target


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
