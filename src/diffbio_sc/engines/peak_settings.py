"""How peaks are to be called: what a user may set, checked once, for bins and for fragments alike."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal

__all__ = ["PeakSettings"]

_MODES = ("auto", "narrow", "broad", "macs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakSettings:
    """Settings of a call, as documented in :func:`diffbio_sc.tl.call_peaks`.

    Those below ``qvalue`` mean something for fragments and reads alone, whose bins, duplicates and lengths are ours to
    choose; bins of an AnnData have been counted already. What the two ways in share and what not of the model itself
    is in :mod:`diffbio_sc.numerics.genome.marks`.
    """

    mode: str = "auto"
    qvalue: float = 0.05
    bin_size: int = 25
    genome_size: float | None = None
    fragment_length: float | None = None
    duplicates: int | Literal["auto"] | None = "auto"
    prefix: str = ""
    """What names of peaks begin with."""
    unguarded: bool = False
    """Whether there is neither a control nor a blacklist, and a call says so with its kind of mark."""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {list(_MODES)}, found {self.mode!r}.")
        if not _is_number(self.qvalue) or not 0 < self.qvalue <= 1:
            raise ValueError(f"qvalue must lie between 0 and 1, found {self.qvalue!r}.")
        if not _is_whole(self.bin_size):
            raise ValueError(f"bin_size must be a positive whole number of base pairs, found {self.bin_size!r}.")
        if self.duplicates not in ("auto", None) and not _is_whole(self.duplicates):
            raise ValueError(
                "duplicates must be a positive whole number of equal fragments to keep, None to keep all of them, or "
                f"'auto', found {self.duplicates!r}."
            )
        if self.fragment_length is not None and not (_is_number(self.fragment_length) and self.fragment_length > 0):
            raise ValueError(f"fragment_length must be above 0 base pairs, found {self.fragment_length!r}.")
        if self.genome_size is not None and not (_is_number(self.genome_size) and self.genome_size > 0):
            raise ValueError(
                "genome_size must be a number of base pairs above 0, such as 2.9e9 for human or 2.7e9 for mouse, found "
                f"{self.genome_size!r}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and int(value) == value and value >= 1
