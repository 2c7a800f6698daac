"""Writing files: a failed writer leaves the old file, or none, but never half of one; a full disk is told."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a full disk, a quota or a limit of the session raises; numpy's writers give no number.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
#: What helps where temporary files of this process find no room, and those that workers share.
MORE_ROOM = "Set TMPDIR to a folder with more room before Python starts."
MORE_SHARED_ROOM = (
    "Set dask's 'temporary-directory', or else TMPDIR or settings.cache_dir, to a folder with more room that all "
    "workers see."
)


class TemporaryFolder:
    """A folder among temporary ones (``TMPDIR``), which goes with the object, without a word."""

    def __init__(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="diffbio-sc-", ignore_cleanup_errors=True)
        weakref.finalize(self, folder.cleanup)
        self.path = Path(folder.name)


@contextmanager
def room_for(size: int, folder: str | os.PathLike[str], remedy: str = MORE_ROOM) -> Iterator[None]:
    """Write temporary files of ``size`` bytes in a folder inside the block, if they fit.

    Raises
    ------
    OSError
        If there is no room for them, before the block or within it; the message says so, and ``remedy``.
    """
    try:
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno or errno.ENOSPC,
            f"{os.fspath(folder)!r} has no room for temporary files of {size / 1e6:,.1f} MB: {free / 1e6:,.1f} MB were "
            f"free, of which a quota may allow less. {remedy}",
        ) from error


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
