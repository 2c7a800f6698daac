"""Writing files so that a failed writer leaves the old file, or none, but never half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the path of a temporary file to write, which becomes ``path`` if the block ends without an error.

    The temporary file lies beside the target, because a rename is atomic only within a file system, and ends like it,
    because writers look at endings. A link is followed. What is no regular file, such as ``/dev/stdout``, is written
    as it stands.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If ``path`` is a folder.
    """
    target = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; pass the name of a file in it.")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder!r} to write {name!r} to; make it first.")
    if os.path.exists(target) and not os.path.isfile(target):
        yield target
        return
    root, ending = os.path.splitext(name)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{root[:40]}.", suffix=ending, dir=folder)
    os.close(descriptor)
    try:
        yield temporary
        # A temporary file is private; a new file is as open as the user's other files, an old one as it was.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, os.stat(target).st_mode & 0o7777 if os.path.exists(target) else 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
