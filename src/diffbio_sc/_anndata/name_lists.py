"""What messages say of names that nearly match."""

from __future__ import annotations

import re

import pandas as pd

_FEWEST_ALIKE = 0.5  # share of the shorter side that has to match after a change of names


def difference_of_names(left: pd.Index, right: pd.Index, *, left_name: str, right_name: str) -> str:
    """Return a sentence on what would make the names of two sides match, or nothing if no simple change would."""
    changes = (
        ("the number at the end ('-1')", lambda name: re.sub(r"-\d+$", "", name)),
        ("what stands before the last '_', '#' or ':'", lambda name: re.split(r"[_#:]", name)[-1]),
        ("what stands behind the first '_', '#' or ':'", lambda name: re.split(r"[_#:]", name)[0]),
        ("upper and lower case", str.upper),
    )
    for what, change in changes:
        one, other = ({change(str(name)) for name in side} for side in (left, right))
        # A change that makes names of one side the same, such as cutting all to their sample, explains nothing.
        distinct = len(one) == len(left) and len(other) == len(right)
        if distinct and len(one & other) >= _FEWEST_ALIKE * min(len(one), len(other)):
            return (
                f" They match without {what}: rename one side, so that {str(left[0])!r} of {left_name} and its cell in "
                f"{right_name} have one name."
            )
    return ""
