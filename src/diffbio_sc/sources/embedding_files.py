"""Reading embeddings from npy, npz, parquet, h5ad and zarr, without ever running code that a file holds."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._checks import name_heads
from diffbio_sc.sources.artifact_errors import (
    ArtifactError,
    CorruptArtifactError,
    DuplicatedSamplesError,
    MisalignedArtifactError,
    TruncatedArtifactError,
    UnsafeArtifactError,
)

_MODELS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pkl", ".pickle", ".joblib", ".model", ".vocab")
_ID_COLUMNS = ("sample_ids", "sample_id")
_UNPICKLED = "save numbers and text alone: np.savez(path, embeddings=values, sample_ids=np.asarray(names, dtype=str))"


class EmbeddingTable(NamedTuple):
    """Embeddings of one modality.

    Attributes
    ----------
    values
        One row a sample, float32, finite.
    sample_ids
        Identifier of each row, all different.
    dimensions
        Name of each column.
    """

    values: np.ndarray
    sample_ids: pd.Index
    dimensions: list[str]


def read_embeddings(
    path: str | os.PathLike[str], *, key: str | None = None, sample_ids: Sequence[Any] | None = None
) -> EmbeddingTable:
    """Read embeddings of one modality.

    Parameters
    ----------
    path
        ``.npy`` (a matrix; ``sample_ids`` has to be given), ``.npz`` (``embeddings`` and ``sample_ids``), ``.parquet``
        (numeric columns; identifiers are the column ``sample_ids`` or ``sample_id``, or the index), ``.h5ad``, or
        ``.zarr`` (an AnnData, or arrays ``embeddings`` and ``sample_ids``).
    key
        Name of the array: of an npz or zarr, by default ``"embeddings"``; of an AnnData the key of ``.obsm`` or
        ``"X"``, by default the only matrix in ``.obsm``.
    sample_ids
        Identifiers of the rows, where the file has none. If it has them, they have to be equal.

    Returns
    -------
    The embeddings, checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If the file lacks the array.
    ArtifactError
        Of one of the kinds of :mod:`diffbio_sc.sources.artifact_errors`, if the file cannot be used.
    """
    path = Path(path)
    where = repr(str(path))
    ending = path.suffix.lower()
    if ending in _MODELS:
        raise UnsafeArtifactError(
            f"{where} is a checkpoint, tokenizer or pickle, which is not read: imported models are outside the "
            f"supported scope, only their embeddings are. Run the model where it belongs, and {_UNPICKLED}."
        )
    if ending not in _READERS:
        raise ArtifactError(f"{where} must end in one of {sorted(_READERS)}, found {ending!r}.")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {where}.")
    if path.is_dir() != (ending == ".zarr"):
        raise CorruptArtifactError(f"{where} must be a {'folder' if ending == '.zarr' else 'file'}.")
    if path.is_file() and path.stat().st_size == 0:
        raise TruncatedArtifactError(f"{where} is empty.")
    values, found, dimensions = _READERS[ending](path, key)
    return check_embeddings(values, _choose_ids(found, sample_ids, where), dimensions, where=where)


def check_embeddings(
    values: Any, sample_ids: Sequence[Any], dimensions: Sequence[Any] | None = None, *, where: str
) -> EmbeddingTable:
    """Return embeddings as a table, or raise if they are none.

    Parameters
    ----------
    values
        Matrix, one row a sample.
    sample_ids
        Identifier of each row.
    dimensions
        Name of each column; default their numbers.
    where
        What messages call the matrix.

    Raises
    ------
    ArtifactError
        Of the kind that fits.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise CorruptArtifactError(f"{where} must hold real numbers, found dtype {values.dtype}.")
    if values.ndim != 2 or 0 in values.shape:
        raise CorruptArtifactError(f"{where} must hold a matrix, samples by dimensions, found shape {values.shape}.")
    missing = pd.isna(pd.Series(list(sample_ids), dtype=object)).to_numpy()
    names = pd.Index([_text(name) for name in sample_ids], dtype=object)
    if len(names) != len(values):
        raise MisalignedArtifactError(
            f"{where} has {len(values)} rows and {len(names)} sample_ids: each row needs one identifier."
        )
    empty = missing | (names.str.strip() == "")
    if empty.any():
        raise MisalignedArtifactError(
            f"{where} has {int(empty.sum())} rows without identifier, the first is row {int(np.flatnonzero(empty)[0])}."
        )
    require_different(names, where)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise CorruptArtifactError(
            f"{where} must be finite in single precision: {int(bad.sum())} samples are not, first "
            f"{name_heads(list(names[bad]))}. Leave such samples out; missing ones are told by their identifiers."
        )
    dimensions = range(values.shape[1]) if dimensions is None else dimensions
    return EmbeddingTable(values, names, [str(name) for name in dimensions])


def require_different(names: pd.Index, where: str) -> None:
    """Raise DuplicatedSamplesError if a name occurs twice."""
    if not names.is_unique:
        twice = list(dict.fromkeys(names[names.duplicated()]))
        raise DuplicatedSamplesError(
            f"{where} has {len(twice)} sample_ids more than once: {name_heads(twice)}. Keep one row of each."
        )


def _text(name: Any) -> str:
    if isinstance(name, bytes):
        return name.decode()
    # A whole number that went through a column with gaps comes as a float.
    return str(int(name)) if isinstance(name, float | np.floating) and name == name and name == int(name) else str(name)


def _choose_ids(found: Sequence[Any] | None, given: Sequence[Any] | None, where: str) -> Sequence[Any]:
    if found is None and given is None:
        raise MisalignedArtifactError(
            f"{where} holds no sample_ids, and rows are never aligned by their order alone: pass sample_ids, or write "
            "a file that has them (np.savez(path, embeddings=values, sample_ids=names))."
        )
    if found is not None and given is not None:
        own, other = [_text(name) for name in found], [_text(name) for name in given]
        if own != other:
            raise MisalignedArtifactError(
                f"the sample_ids given are not those in {where}: {len(other)} given, first {name_heads(other, 3)}; "
                f"{len(own)} in the file, first {name_heads(own, 3)}. Leave them out, and those of the file are taken."
            )
    return given if found is None else found  # type: ignore[return-value]


# Formats -------------------------------------------------------------------------------------------------------------

Found = tuple[Any, Sequence[Any] | None, Sequence[Any] | None]


def _read_npy(path: Path, key: str | None) -> Found:
    where = repr(str(path))
    with path.open("rb") as file:
        _refuse_pickle(file.read(8), where)
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            kind = TruncatedArtifactError if _ends_early(str(error)) else CorruptArtifactError
            raise kind(f"{where} is no .npy file: {error}") from error
        if dtype.hasobject:
            raise _pickled(where)
        needed = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        size = path.stat().st_size
        if size < needed:
            raise TruncatedArtifactError(f"{where} ends early: {size:,} of {needed:,} bytes are there. Copy it again.")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False), None, None


def _read_npz(path: Path, key: str | None) -> Found:
    where = repr(str(path))
    start = path.open("rb").read(8)
    _refuse_pickle(start, where)
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise CorruptArtifactError(f"{where} is one array, not an archive of arrays: call it .npy.")
            name = _array_name(key, file.files, where)
            ids = next((file[column] for column in _ID_COLUMNS if column in file.files), None)
            dimensions = file["dimensions"] if "dimensions" in file.files else None
            return file[name], ids, dimensions
    except ArtifactError:
        raise
    except zipfile.BadZipFile as error:
        whole = b"PK\x05\x06" in path.read_bytes()[-65_557:]
        if start.startswith(b"PK\x03\x04") and not whole:
            raise TruncatedArtifactError(
                f"{where} ends early: its table of contents is missing. Copy it again."
            ) from error
        raise CorruptArtifactError(f"{where} is no .npz file, or damaged: {error}.") from error
    except (ValueError, EOFError, OSError) as error:
        if "allow_pickle" in str(error):
            raise (
                _pickled(where)
                if start.startswith(b"PK")
                else CorruptArtifactError(f"{where} is no .npz file: it does not begin as one.")
            ) from error
        raise CorruptArtifactError(f"{where} is damaged: {error}.") from error


def _read_parquet(path: Path, key: str | None) -> Found:
    where = repr(str(path))
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        end = file.read(4)
    if start != b"PAR1":
        raise CorruptArtifactError(f"{where} is no parquet file: it does not begin as one.")
    if end != b"PAR1":
        raise TruncatedArtifactError(f"{where} ends early: the footer of a parquet file is missing. Copy it again.")
    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"reading {where} needs pyarrow: pip install 'diffbio-sc[sources]'.") from error
    except Exception as error:  # pyarrow has errors of its own, which are no ValueError in all versions
        raise CorruptArtifactError(f"{where} is damaged: {error}.") from error
    column = next((name for name in _ID_COLUMNS if name in table), None)
    ids: Sequence[Any] | None = None
    if column is not None:
        ids, table = table[column].tolist(), table.drop(columns=column)
    elif not isinstance(table.index, pd.RangeIndex):
        ids = table.index.tolist()
    other = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if other:
        raise CorruptArtifactError(
            f"{where} has columns that are no numbers: {name_heads(other)}. Identifiers belong into 'sample_ids'."
        )
    return table.to_numpy(np.float64, na_value=np.nan), ids, list(table.columns)


def _read_h5ad(path: Path, key: str | None) -> Found:
    import h5py

    where = repr(str(path))
    try:
        with h5py.File(path, "r") as file:
            return _of_anndata(file, key, where)
    except OSError as error:
        kind = TruncatedArtifactError if "truncated" in str(error) else CorruptArtifactError
        raise kind(f"{where} is no .h5ad file, or damaged: {error}.") from error


def _read_zarr(path: Path, key: str | None) -> Found:
    import zarr

    where = repr(str(path))
    try:
        group: Any = zarr.open_group(str(path), mode="r")
    except Exception as error:  # zarr 2 and 3 raise errors of their own kinds
        raise CorruptArtifactError(f"{where} is no group of zarr arrays: {error}.") from error
    try:
        if "obsm" in group and "obs" in group:
            return _of_anndata(group, key, where)
        array = group[_array_name(key, list(group.array_keys()), where)]
        _require_all_chunks(array, where)
        ids = next((group[column][...].tolist() for column in _ID_COLUMNS if column in group), None)
        return array[...], ids, None
    except (ArtifactError, KeyError):
        raise
    except Exception as error:  # the codecs raise whatever they like
        raise CorruptArtifactError(f"{where} is damaged: {error}.") from error


def _of_anndata(store: Any, key: str | None, where: str) -> Found:
    """Embeddings in an open AnnData file; nothing else of it is read."""
    from anndata.io import read_elem

    for name in ("obs", "obsm"):
        if name not in store:
            raise CorruptArtifactError(f"{where} is no AnnData: it has no {name!r}.")
    keys = list(store["obsm"].keys())
    if key is None and len(keys) == 1:
        key = keys[0]
    if key is None or (key not in keys and key != "X"):
        asked = "pass key" if key is None else f"there is no {key!r}"
        raise KeyError(f"{where}: {asked}; .obsm has {keys}, and key='X' takes the matrix itself.")
    element = store["X"] if key == "X" else store["obsm"][key]
    if hasattr(element, "nchunks_initialized"):
        _require_all_chunks(element, where)
    values = read_elem(element)
    obs = store["obs"]
    ids = read_elem(obs[obs.attrs["_index"]])
    dimensions = list(values.columns) if isinstance(values, pd.DataFrame) else None
    if hasattr(values, "toarray"):
        values = values.toarray()
    return np.asarray(values), list(ids), dimensions


def _require_all_chunks(array: Any, where: str) -> None:
    """A chunk that is missing reads as zeros without a word."""
    there, needed = int(array.nchunks_initialized), int(array.nchunks)
    if there < needed:
        raise TruncatedArtifactError(
            f"{where}: {needed - there} of {needed} chunks of {array.name!r} are missing. Copy it again; if they are "
            "zeros that were left out, write the array with write_empty_chunks=True."
        )


_READERS: dict[str, Callable[[Path, str | None], Found]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".h5ad": _read_h5ad,
    ".zarr": _read_zarr,
}


def _array_name(key: str | None, names: Sequence[str], where: str) -> str:
    name = "embeddings" if key is None else key
    if name not in names:
        raise KeyError(f"{where} has no array {name!r}; it has {sorted(names)}: pass key.")
    return name


def _refuse_pickle(start: bytes, where: str) -> None:
    """A pickle of protocol 2 and later begins with its number."""
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        raise _pickled(where)


def _pickled(where: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"{where} holds pickled Python objects, which are not read (allow_pickle=False), because reading them runs "
        f"code: {_UNPICKLED}."
    )


def _ends_early(message: str) -> bool:
    return "EOF" in message
