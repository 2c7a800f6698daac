"""Reading and writing of what commands work on: AnnData, MuData, contact maps, tables; all or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffbio_sc._files import replacing

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

CONTACT_MAPS = (".cool", ".mcool", ".hic")


def ending(path: str) -> str:
    """Ending of a path in lower case, without a compression's; of a cooler's address, that of its file."""
    name = path.split("::")[0].lower().rstrip("/")
    name = name.removesuffix(".gz").removesuffix(".bgz")
    return os.path.splitext(name)[1]


def must_exist(path: str) -> str:
    """Return a path, or raise FileNotFoundError if nothing is there."""
    if not os.path.exists(path.split("::")[0]):
        raise FileNotFoundError(f"there is no file {path!r}.")
    return path


def may_write(path: str | None, force: bool) -> None:
    """Raise an error if a result could not be written; asked before any work."""
    if path is None or path == "-":
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder!r} to write {os.path.basename(path)!r} to; make it first.")
    if os.path.exists(path) and not force and (os.path.isfile(path) or os.path.isdir(path)):
        raise FileExistsError(f"{path!r} exists; pass --force to overwrite it.")


def read_object(path: str, *, resolution: int | None = None) -> AnnData | MuData:
    """Read an .h5ad, .h5mu or .zarr store, or a contact map."""
    kind = ending(must_exist(path))
    if kind == ".h5ad":
        import anndata

        return anndata.read_h5ad(path)
    if kind == ".h5mu":
        import mudata

        return mudata.read_h5mu(path)
    if kind == ".zarr":
        return _read_zarr(path)
    if kind in CONTACT_MAPS:
        from diffbio_sc import io

        if kind == ".hic":
            if resolution is None:
                raise ValueError(f"{path!r} holds several resolutions; pass --resolution in base pairs.")
            return io.read_hic(path, resolution=resolution)
        return io.read_cool(path, resolution=resolution)
    raise ValueError(f"cannot tell what {path!r} is; known endings: .h5ad, .h5mu, .zarr, {', '.join(CONTACT_MAPS)}.")


def write_object(data: AnnData | MuData, path: str, *, force: bool = False) -> None:
    """Write an object to an .h5ad, .h5mu, .zarr or .cool store, which is there whole or not at all."""
    kind = ending(path)
    multimodal = hasattr(data, "mod")
    if kind == ".zarr":
        with _replacing_folder(path) as temporary:
            data.write_zarr(temporary) if hasattr(data, "write_zarr") else data.write(temporary)
        return
    if kind == ".cool" and not multimodal:
        from diffbio_sc import io

        io.write_cool(data, path)
        return
    expected = ".h5mu" if multimodal else ".h5ad"
    if kind != expected:
        raise ValueError(f"a {type(data).__name__} is written to {expected} or .zarr, found {path!r}.")
    _check_room(data, path)
    with replacing(path) as temporary:
        data.write_h5mu(temporary) if multimodal else data.write_h5ad(temporary)


def _check_room(data: AnnData | MuData, path: str) -> None:
    """Raise OSError where the matrices alone do not fit: HDF5 takes the process down when a write fails midway."""
    needed = 0
    for part in data.mod.values() if hasattr(data, "mod") else [data]:
        for array in (part.X, *part.layers.values(), *part.obsm.values(), *part.obsp.values(), *part.varp.values()):
            arrays = (array.data, array.indices) if hasattr(array, "indptr") else (array,)
            needed += sum(int(each.nbytes) for each in arrays if isinstance(getattr(each, "nbytes", None), int))
    if needed > shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {needed / 1e9:.3g} GB are needed", path)


def check_object_path(path: str | None, endings: tuple[str, ...]) -> None:
    """Raise ValueError if the ending of an output is none of those that a command writes."""
    if path is not None and ending(path) not in endings:
        raise ValueError(f"the output must end with {' or '.join(endings)}, found {path!r}.")


def write_table(table: pd.DataFrame, path: str, *, header: bool = True) -> None:
    """Write a table as tab-separated text, or comma-separated if its name ends with .csv; ``-`` is standard output."""
    separator = "," if path != "-" and ending(path) == ".csv" else "\t"
    keywords: dict[str, Any] = {"sep": separator, "index": False, "header": header, "na_rep": ""}
    if path == "-":
        table.to_csv(sys.stdout, **keywords)
        sys.stdout.flush()
        return
    with replacing(path) as temporary:
        table.to_csv(temporary, **keywords)


def write_stream(write: Callable[[str], None], path: str) -> None:
    """Call a writer of files; ``-`` is standard output, through a temporary file."""
    if path != "-":
        write(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = os.path.join(folder, "output.txt")
        write(temporary)
        with open(temporary, encoding="utf-8") as lines:
            shutil.copyfileobj(lines, sys.stdout)
    sys.stdout.flush()


def _read_zarr(path: str) -> AnnData | MuData:
    import zarr

    names = set(zarr.open_group(path, mode="r").keys())
    if "mod" in names:
        import mudata

        return mudata.read_zarr(path)
    import anndata

    return anndata.read_zarr(path)


class _replacing_folder:
    """Give the path of a folder beside the target, which takes its place if the block ends without an error."""

    def __init__(self, path: str) -> None:
        self.target = os.path.abspath(path.rstrip("/"))

    def __enter__(self) -> str:
        self.holder = tempfile.mkdtemp(prefix=".diffbio_sc.", dir=os.path.dirname(self.target))
        self.temporary = os.path.join(self.holder, os.path.basename(self.target))
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if os.path.exists(self.target):
                    os.rename(self.target, os.path.join(self.holder, "old"))
                os.rename(self.temporary, self.target)
        finally:
            shutil.rmtree(self.holder, ignore_errors=True)
