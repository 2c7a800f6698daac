"""Sizes that compiled code is shared between."""

from __future__ import annotations


def bucket_size(size: int) -> int:
    """Round up to the next number with at most four binary digits, at most an eighth more."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step
