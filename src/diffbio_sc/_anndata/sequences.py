"""Sequences of regions, from a genome or from a column of text, as tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from diffbio_sc._checks import counted, is_path, name_heads
from diffbio_sc.genome.sequences import N, check_tokens, encode, reverse_complement

if TYPE_CHECKING:
    from diffbio_sc._anndata.genome_axis import GenomeAxis

_KNOWN = "ACGT"
_AMBIGUOUS = "NRYSWKMBDHV"  # codes of IUPAC for several bases


class SequenceRead(NamedTuple):
    """Sequences of regions.

    Attributes
    ----------
    tokens
        Whole numbers (regions, width), int8: A C G T N = 0 1 2 3 4.
    report
        Number of regions, width, regions that reach over the end of their chromosome, and bases that are not known.
    """

    tokens: np.ndarray
    report: dict[str, int]


def read_genome_sequences(genome: Any, regions: GenomeAxis, width: int | None) -> SequenceRead:
    """Take the windows of regions out of a genome; what lies beyond a chromosome's ends is N.

    Parameters
    ----------
    genome
        Path of a FASTA file, a mapping from chromosome to sequence, or an open file of pyfaidx or pysam.
    regions
        Regions.
    width
        Bases about the middle of each region; default their own common width.

    Raises
    ------
    ImportError
        If a file is given and pyfaidx is not installed.
    KeyError
        If the genome lacks a chromosome.
    ValueError
        If regions differ in width and none is given, one lies outside its chromosome, or letters are no DNA.
    """
    first, last = _windows(regions, width)
    opened = _open(genome)
    try:
        fetch = _Fetcher(opened, genome)
        _require_chromosomes(regions, fetch)
        lengths = np.array([fetch.length(name) for name in regions.chromosomes], np.int64)[regions.code]
        outside = np.flatnonzero(regions.start >= lengths)
        if len(outside):
            row = outside[0]
            raise ValueError(
                f"{counted(len(outside), 'region')} of {len(lengths):,} lie beyond the end of their chromosome, first: "
                f"{str(regions.names[row])!r} at {regions.start[row]:,} of {lengths[row]:,} bases of "
                f"{regions.chromosomes[regions.code[row]]!r}. Is the genome another assembly?"
            )
        text: list[str] = [""] * len(first)
        for row in regions.order:  # neighbours lie together in the file
            name = regions.chromosomes[regions.code[row]]
            inside = fetch(name, max(int(first[row]), 0), min(int(last[row]), int(lengths[row])))
            text[row] = "N" * max(-int(first[row]), 0) + inside + "N" * max(int(last[row] - lengths[row]), 0)
    finally:
        if opened is not genome and hasattr(opened, "close"):
            opened.close()
    padded = int(((first < 0) | (last > lengths)).sum())
    return _encode(text, regions.names, padded)


def read_sequence_column(column: pd.Series, width: int | None, name: str) -> SequenceRead:
    """Take sequences out of a column of text; with ``width``, the middle of each, with N where it is shorter."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"{name} must hold a sequence for each region, missing for {name_heads(column.index[missing])}."
        )
    values = [value.decode("ascii", "replace") if isinstance(value, bytes) else value for value in column]
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is not None:
        raise TypeError(f"{name} must hold text, found {values[wrong]!r} at {str(column.index[wrong])!r}.")
    lengths = np.array([len(value) for value in values])
    if width is None and (lengths != lengths[0]).any():
        raise ValueError(_unequal(lengths, column.index, f"sequences of {name}"))
    padded = 0
    if width is not None:
        padded = int((lengths < width).sum())
        values = [_middle(value, width) for value in values]
    return _encode(values, column.index, padded)


def read_tokens(values: Any, name: str) -> np.ndarray:
    """Return stored tokens, checked."""
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    return check_tokens(np.asarray(values), name)


def turn_reverse(tokens: np.ndarray, strand: pd.Series, name: str) -> np.ndarray:
    """Return tokens with those of strand ``-`` as reverse complement.

    Raises
    ------
    ValueError
        If a strand is none of ``+``, ``-``, ``.`` and missing.
    """
    text = strand.astype(object).where(strand.notna(), ".").astype(str).to_numpy(dtype=object)
    bad = ~np.isin(text, ["+", "-", "."])
    if bad.any():
        raise ValueError(
            f"{name} must be '+', '-' or '.', found {text[bad][0]!r} at {str(strand.index[bad][0])!r} "
            f"({int(bad.sum())} such values)."
        )
    return np.where((text == "-")[:, None], reverse_complement(tokens), tokens)


def _windows(regions: GenomeAxis, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    if width is not None:
        first = (regions.start + regions.end) // 2 - width // 2
        return first, first + width
    lengths = regions.end - regions.start
    if (lengths != lengths[0]).any():
        raise ValueError(_unequal(lengths, regions.names, "regions"))
    return regions.start, regions.end


def _unequal(lengths: np.ndarray, names: Any, what: str) -> str:
    other = int(np.flatnonzero(lengths != lengths[0])[0])
    return (
        f"{what} must have one width, found {int(lengths.min()):,} to {int(lengths.max()):,} bases (first that differ: "
        f"{str(names[0])!r} {int(lengths[0]):,}, {str(names[other])!r} {int(lengths[other]):,}). Pass width=..., for "
        f"example the median, {int(np.median(lengths)):,}: windows about the middle of each."
    )


def _middle(text: str, width: int) -> str:
    spare = len(text) - width
    if spare >= 0:
        return text[spare // 2 : spare // 2 + width]
    left = -spare // 2
    return "N" * left + text + "N" * (-spare - left)


def _encode(text: Sequence[str], names: Any, padded: int) -> SequenceRead:
    tokens = encode(text)
    if not tokens.shape[1]:
        raise ValueError("sequences are empty.")
    _require_dna(text, names)
    unknown = tokens == N
    report = {
        "regions": len(tokens),
        "width": int(tokens.shape[1]),
        "padded_regions": padded,
        "unknown_bases": int(unknown.sum()),
        "regions_without_known_base": int(unknown.all(axis=1).sum()),
    }
    return SequenceRead(tokens, report)


def _require_dna(text: Sequence[str], names: Any) -> None:
    """Refuse letters that no sequence of DNA has: a column of another kind, or of proteins."""
    counts = np.bincount(np.frombuffer("".join(text).encode("ascii", "replace"), np.uint8), minlength=256)
    allowed = {ord(letter) for letter in _KNOWN + _AMBIGUOUS + "U" for letter in (letter, letter.lower())}
    strange = [chr(code) for code in np.flatnonzero(counts) if code not in allowed]
    if strange:
        row = next(
            (number for number, value in enumerate(text) if not set(strange).isdisjoint(value)),
            next((number for number, value in enumerate(text) if not value.isascii()), 0),
        )
        raise ValueError(
            f"sequences must be DNA (A, C, G, T, or a code of IUPAC), found {strange} first at {str(names[row])!r}: "
            f"{text[row][:40]!r}."
        )


def _open(genome: Any) -> Any:
    if not is_path(genome):
        return genome
    path = os.fspath(genome)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no FASTA file {path!r}.")
    try:
        import pyfaidx
    except ImportError as error:
        raise ImportError(
            "reading a FASTA file needs pyfaidx: pip install 'diffbio-sc[sequence]'. Or pass a dict from chromosome to "
            "sequence."
        ) from error
    try:
        return pyfaidx.Fasta(path, as_raw=True, sequence_always_upper=False)
    except ImportError as error:  # its reader of compressed files is Biopython's
        raise ImportError(f"{path!r} is compressed: decompress it, or pip install biopython. ({error})") from error
    except (pyfaidx.FastaIndexingError, pyfaidx.UnsupportedCompressionFormat, OSError) as error:
        raise ValueError(
            f"{path!r} cannot be read as an indexed FASTA file: {error} A compressed file must be of bgzip, not gzip, "
            "and its folder writable where it has no index (samtools faidx) yet."
        ) from error


class _Fetcher:
    """One way to ask mappings, pyfaidx and pysam for names, lengths and letters."""

    def __init__(self, genome: Any, given: Any) -> None:
        self.genome = genome
        self.pysam = hasattr(genome, "fetch") and hasattr(genome, "references")
        if not self.pysam and not (isinstance(genome, Mapping) or hasattr(genome, "keys")):
            raise TypeError(
                "genome must be the path of a FASTA file, a dict from chromosome to sequence, a file of pyfaidx or "
                f"pysam, or the name of a column with sequences, found {type(given).__name__}."
            )
        self.names = list(map(str, genome.references if self.pysam else genome.keys()))

    def length(self, chrom: str) -> int:
        return int(self.genome.get_reference_length(chrom)) if self.pysam else len(self.genome[chrom])

    def __call__(self, chrom: str, first: int, last: int) -> str:
        if last <= first:
            return ""
        found = self.genome.fetch(chrom, first, last) if self.pysam else self.genome[chrom][first:last]
        return found.decode("ascii", "replace") if isinstance(found, bytes) else str(found)


def _require_chromosomes(regions: GenomeAxis, fetch: _Fetcher) -> None:
    have = set(fetch.names)
    lacking = [name for name in regions.chromosomes if name not in have]
    if not lacking:
        return
    message = (
        f"the genome has no chromosome {lacking[:5]} of the regions ({len(lacking)} of {len(regions.chromosomes)} are "
        f"missing); it has {fetch.names[:5]}."
    )
    side = f"adata.{regions.axis}"
    if all(name.removeprefix("chr") in have for name in lacking):
        message += f" Names without 'chr' would match: {side}['chrom'] = {side}['chrom'].str.removeprefix('chr')."
    elif all(f"chr{name}" in have for name in lacking):
        message += f" Names with 'chr' would match: {side}['chrom'] = 'chr' + {side}['chrom'].astype(str)."
    else:
        message += " Leave these regions out, or take the assembly that they come from."
    raise KeyError(message)
