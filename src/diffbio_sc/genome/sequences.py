"""What a DNA sequence is: rows of small whole numbers, A C G T = 0 1 2 3, anything else N = 4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from diffbio_sc._checks import counted

__all__ = ["LETTERS", "N", "check_tokens", "decode", "encode", "one_hot", "one_strand", "reverse_complement"]

#: Letter of each token.
LETTERS = "ACGTN"
#: Token of a base that is not known.
N = 4

_TOKEN_OF_BYTE = np.full(256, N, np.int8)
for _token, _letter in enumerate("ACGT"):
    _TOKEN_OF_BYTE[[ord(_letter), ord(_letter.lower())]] = _token
_TOKEN_OF_BYTE[[ord("U"), ord("u")]] = 3
_COMPLEMENT = np.array([3, 2, 1, 0, 4], np.int8)
# N is a row of zeros: a base that is not known speaks for no letter.
_ONE_HOT = np.eye(5, 4, dtype=np.float32)


def encode(sequences: Sequence[str | bytes]) -> Int[np.ndarray, "sequences length"]:
    """Turn sequences of one length into tokens.

    Parameters
    ----------
    sequences
        Letters in either case. U is read as T; IUPAC codes of several bases and every other letter become N.

    Returns
    -------
    Tokens, int8: A C G T = 0 1 2 3, N = 4.

    Raises
    ------
    TypeError
        If an entry is not text.
    ValueError
        If the sequences differ in length, or have none.
    """
    rows = [_as_bytes(sequence, number) for number, sequence in enumerate(sequences)]
    if not rows:
        return np.zeros((0, 0), np.int8)
    lengths = np.array([len(row) for row in rows])
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        other = int(np.flatnonzero((lengths != lengths[0]) | (lengths == 0))[0])
        raise ValueError(
            "sequences must all have the same length of at least 1: sequence 0 has "
            f"{counted(int(lengths[0]), 'letter')}, sequence {other} has {lengths[other]:,}. "
            "Resize the regions to one width first."
        )
    return _TOKEN_OF_BYTE[np.frombuffer(b"".join(rows), np.uint8)].reshape(len(rows), lengths[0])


def decode(tokens: Int[np.ndarray, "sequences length"]) -> list[str]:
    """Return the letters of tokens, upper case."""
    letters = np.frombuffer(LETTERS.encode(), np.uint8)
    return [row.tobytes().decode() for row in letters[check_tokens(tokens)]]


def reverse_complement(tokens: Int[np.ndarray, "... length"]) -> Int[np.ndarray, "... length"]:
    """Return the other strand of tokens, read in its own direction."""
    return _COMPLEMENT[np.asarray(tokens)[..., ::-1]]


def one_strand(tokens: Int[np.ndarray, "sequences length"]) -> Int[np.ndarray, "sequences length"]:
    """Return of each sequence the strand that comes first in the alphabet.

    What is computed from it is the same for both strands to the last digit.
    """
    other = reverse_complement(tokens)
    differs = tokens != other
    first = differs.argmax(1)[:, None]
    smaller = np.take_along_axis(tokens, first, 1) <= np.take_along_axis(other, first, 1)
    return np.where(smaller, tokens, other)


def one_hot(tokens: Int[np.ndarray, "... length"]) -> Float[np.ndarray, "... length 4"]:
    """Return tokens as rows of one 1 in the order A C G T, float32; N is a row of zeros."""
    return _ONE_HOT[np.asarray(tokens)]


def check_tokens(tokens: Int[np.ndarray, "sequences length"], name: str = "tokens") -> Int[np.ndarray, "n length"]:
    """Return tokens as C-ordered int8, or raise ValueError if they are no table of whole numbers from 0 to 4."""
    array = np.asarray(tokens)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be whole numbers (sequences, length), found {array.dtype} of shape {array.shape}. "
            "diffbio_sc.genome.sequences.encode makes them from letters."
        )
    bad = (array < 0) | (array > N)
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be from 0 to 4 (A C G T N), found {counted(int(bad.sum()), 'other value')}; the first is "
            f"{array[row, column]} in sequence {row} at position {column}."
        )
    return np.ascontiguousarray(array, dtype=np.int8)


def _as_bytes(sequence: str | bytes, number: int) -> bytes:
    if isinstance(sequence, bytes):
        return sequence
    if not isinstance(sequence, str):
        raise TypeError(f"sequences must be text, found {type(sequence).__name__} at position {number}.")
    # A letter outside ASCII is one unknown base, not several bytes.
    return sequence.encode("ascii", errors="replace")
