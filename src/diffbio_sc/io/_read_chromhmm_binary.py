"""Presence and absence of marks in bins, in ChromHMM's text format: reading."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc._progress import progress
from diffbio_sc.genome.chrom_sizes import ChromSizes, match_chromosomes, read_chrom_sizes
from diffbio_sc.io._byte_source import PathLike, as_paths, open_bytes

if TYPE_CHECKING:
    from anndata import AnnData

_NAME = re.compile(r"_binary\.txt(\.gz)?$")
_MISSING = 2


def read_chromhmm_binary(
    paths: PathLike | Sequence[PathLike], *, bin_size: int = 200, chrom_sizes: ChromSizes | None = None
) -> AnnData:
    r"""Read binarised marks that ChromHMM wrote (``*_binary.txt``, also with ``.gz``).

    Parameters
    ----------
    paths
        A file, several files, or a folder: all its files whose names end with ``_binary.txt`` or ``_binary.txt.gz``.
        Each holds one chromosome of one cell type. Line ends may be of any kind, the last may be missing.
    bin_size
        Width of the bins in bases, which the files do not say.
    chrom_sizes
        Length of each chromosome (a mapping, a file or an assembly such as ``"hg38"``): the last bin is clipped, and
        files that reach past the end of their chromosome are refused, for their bins are of another width.

    Returns
    -------
    AnnData of bins by marks:

    - ``.X``: uint8, 1 where the mark is present; float32 with NaN where values are missing (2 in the files, or a mark
      that only other files have)
    - ``.obs``: ``chrom`` (category), ``start``, ``end`` (int64; 0-based, half-open) and ``cell_type`` (category)
    - ``.var_names``: marks, in the order of the first file; others are aligned by name

    Raises
    ------
    FileNotFoundError
        If a file is missing, or a folder has no such files.
    ValueError
        If a file is empty or malformed (the line is named), a value is none of 0, 1 and 2, a mark or a pair of cell
        type and chromosome occurs twice, or a chromosome ends before its bins do.

    Examples
    --------
    >>> import tempfile, pathlib, diffbio_sc as dbio
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "K562_chr1_binary.txt"
    ...     _ = file.write_text("K562\tchr1\nH3K4me3\tH3K36me3\n1\t0\n0\t1\n")
    ...     adata = dbio.io.read_chromhmm_binary(folder)
    >>> adata.X.tolist(), adata.obs["end"].tolist()
    ([[1, 0], [0, 1]], [200, 400])
    """
    import anndata
    import pandas as pd

    check_options(read_chromhmm_binary, locals(), bin_size="[1, inf) base pairs")
    bin_size = int(bin_size)
    sizes = None if chrom_sizes is None else read_chrom_sizes(chrom_sizes)
    files = _files(paths)
    parts: list[_Part] = []
    seen: dict[tuple[str, str], str] = {}
    for path in progress(files, "Binary files", total=len(files)):
        part = _read(path)
        key = (part.cell_type, part.chromosome)
        if key in seen:
            raise ValueError(f"{path} and {seen[key]} both hold {key[1]} of {key[0]!r}.")
        seen[key] = path
        parts.append(part)
    if sizes is not None:
        found = list(dict.fromkeys(part.chromosome for part in parts))
        match_chromosomes(found, list(sizes), left_name="the files", right_name="the chromosome sizes")
        for part in parts:
            _check_size(part, bin_size, sizes)
    parts = _in_order(parts)
    marks = list(dict.fromkeys(mark for part in parts for mark in part.marks))
    values = _stack(parts, marks)
    counts = np.array([len(part.values) for part in parts])
    chromosomes = list(dict.fromkeys(part.chromosome for part in parts))
    cell_types = list(dict.fromkeys(part.cell_type for part in parts))
    start = bin_size * (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))
    code = np.repeat([chromosomes.index(part.chromosome) for part in parts], counts)
    cell = np.repeat([cell_types.index(part.cell_type) for part in parts], counts)
    end = start + bin_size
    if sizes is not None:
        end = np.minimum(end, np.array([sizes.get(name, 2**31) for name in chromosomes])[code])
    prefix = np.repeat(
        [part.chromosome if len(cell_types) == 1 else f"{part.cell_type}:{part.chromosome}" for part in parts], counts
    )
    index = [f"{name}:{first}-{last}" for name, first, last in zip(prefix, start.tolist(), end.tolist(), strict=True)]
    obs = pd.DataFrame(
        {
            "chrom": pd.Categorical.from_codes(code, chromosomes),
            "start": start,
            "end": end,
            "cell_type": pd.Categorical.from_codes(cell, cell_types),
        },
        index=index,
    )
    return anndata.AnnData(values, obs=obs, var=pd.DataFrame(index=marks))


class _Part(NamedTuple):
    cell_type: str
    chromosome: str
    marks: list[str]
    values: np.ndarray
    path: str


def _files(paths: PathLike | Sequence[PathLike]) -> list[str]:
    if isinstance(paths, str | os.PathLike) and Path(paths).is_dir():
        files = sorted(str(path) for path in Path(paths).iterdir() if _NAME.search(path.name))
        if not files:
            raise FileNotFoundError(
                f"the folder {os.fspath(paths)!r} has no files whose names end with _binary.txt or _binary.txt.gz; "
                f"it has {sorted(path.name for path in Path(paths).iterdir())[:5]}."
            )
        return files
    return as_paths(paths)


def _read(path: str) -> _Part:
    with open_bytes(path) as source:
        data = source.stream.read()
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n") + b"\n"
    lines = data.split(b"\n", 2)
    first = lines[0].decode(errors="backslashreplace").split("\t")
    if len(first) != 2 or not all(first):
        raise ValueError(
            f"{path}, line 1 must hold cell type and chromosome separated by a tab, found {first[:4]}"
            f"{' (the file is empty)' if first == [''] else ''}."
        )
    marks = lines[1].decode(errors="backslashreplace").split("\t") if len(lines) > 1 else [""]
    if not all(marks):
        raise ValueError(f"{path}, line 2 must hold the names of the marks separated by tabs, found {marks[:6]}.")
    if len(set(marks)) < len(marks):
        twice = [mark for mark in dict.fromkeys(marks) if marks.count(mark) > 1]
        raise ValueError(f"{path}, line 2 has marks that occur twice: {twice[:5]}.")
    body = lines[2] if len(lines) > 2 else b""
    if not body:
        raise ValueError(f"{path} has no bins after its two lines of names.")
    width = 2 * len(marks)
    table = np.frombuffer(body, np.uint8)
    if len(table) % width:
        raise _malformed(path, body, len(marks))
    table = table.reshape(-1, width)
    values = table[:, ::2] - np.uint8(ord("0"))
    separators = np.full(len(marks), ord("\t"), np.uint8)
    separators[-1] = ord("\n")
    if (values > _MISSING).any() or (table[:, 1::2] != separators).any():
        raise _malformed(path, body, len(marks))
    return _Part(first[0], first[1], marks, values, path)


def _malformed(path: str, body: bytes, marks: int) -> ValueError:
    """Say which line is the first that is not as it should be."""
    for number, line in enumerate(body.split(b"\n")[:-1], 3):
        fields = line.decode(errors="backslashreplace").split("\t")
        if len(fields) != marks:
            return ValueError(f"{path}, line {number} has {len(fields)} values, expected {marks}: {fields[:12]}.")
        if not set(fields) <= {"0", "1", "2"}:
            return ValueError(
                f"{path}, line {number} must hold 0 (absent), 1 (present) or 2 (missing), found {fields[:12]}. Counts "
                "are binarised by dbio.pp.binarize."
            )
    return ValueError(f"{path} cannot be read.")


def _check_size(part: _Part, bin_size: int, sizes: dict[str, int]) -> None:
    if part.chromosome not in sizes:
        warnings.warn(f"{part.path}: {part.chromosome!r} is not in the chromosome sizes.", UserWarning, stacklevel=3)
        return
    size, number = sizes[part.chromosome], len(part.values)
    if number > -(-size // bin_size):
        raise ValueError(
            f"{part.path} has {number:,} bins, which of {bin_size} bases reach past the end of {part.chromosome} "
            f"({size:,} bases): pass the bin_size that the file was made with, or the sizes of its assembly."
        )
    if number < size // bin_size:
        warnings.warn(
            f"{part.path} has {number:,} bins, fewer than the {size // bin_size:,} of {bin_size} bases in "
            f"{part.chromosome} ({size:,} bases): check bin_size and the assembly.",
            UserWarning,
            stacklevel=3,
        )


def _in_order(parts: list[_Part]) -> list[_Part]:
    """By cell type in order of first appearance, then chromosomes as people count them."""
    cell_types = list(dict.fromkeys(part.cell_type for part in parts))
    return sorted(parts, key=lambda part: (cell_types.index(part.cell_type), natural_key(part.chromosome)))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Order of names in which chr2 comes before chr10, and numbers before letters."""
    pieces = (piece for piece in re.split(r"(\d+)", name) if piece)
    return tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces)


def _stack(parts: list[_Part], marks: list[str]) -> np.ndarray:
    lacking = {mark for part in parts for mark in set(marks) - set(part.marks)}
    if lacking:
        having = [Path(part.path).name for part in parts if set(part.marks) < set(marks)]
        warnings.warn(
            f"marks {sorted(lacking)} are not in all files; they are missing (NaN) in {len(having)} files, such as "
            f"{having[0]}.",
            UserWarning,
            stacklevel=3,
        )
    missing = bool(lacking) or any((part.values == _MISSING).any() for part in parts)
    total = sum(len(part.values) for part in parts)
    stacked = np.full((total, len(marks)), np.nan, np.float32) if missing else np.empty((total, len(marks)), np.uint8)
    start = 0
    for part in parts:
        columns = [marks.index(mark) for mark in part.marks]
        rows = slice(start, start + len(part.values))
        values = np.where(part.values == _MISSING, np.float32(np.nan), part.values) if missing else part.values
        stacked[rows, columns] = values
        start += len(part.values)
    return stacked
