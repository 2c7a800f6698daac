"""What a pass over blocks of rows computes: several steps at once, their parts combined in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

Part = TypeVar("Part")


class Step:
    """One thing to compute from all blocks of a pass. Picklable, for workers elsewhere.

    Subclasses write ``__call__``; parts are added unless ``combine`` says otherwise.
    """

    def __call__(self, start: int, block: Any) -> Any:
        """Return the part of the block whose first row is ``start``: a float32 or float64 array, dense or CSR."""
        raise NotImplementedError(f"{type(self).__name__} is abstract: it has no __call__.")

    def combine(self, left: Any, right: Any) -> Any:
        """Combine the parts of earlier and of later blocks."""
        return left + right

    def finish(self, total: Any) -> Any:
        """Turn the combination of all parts into the result."""
        return total

    def over(self, blocks: Iterable[tuple[int, Any]]) -> Any:
        """Combine the parts of some blocks, in a fixed order."""
        return combine_in_order((self(start, block) for start, block in blocks), self.combine)


class Together(Step):
    """Several steps in one pass; the result is a tuple of theirs."""

    def __init__(self, *steps: Step):
        self.steps = steps

    def __call__(self, start: int, block: Any) -> tuple[Any, ...]:
        """Return the parts of all steps."""
        return tuple(step(start, block) for step in self.steps)

    def combine(self, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
        """Combine the parts step by step."""
        return tuple(step.combine(a, b) for step, a, b in zip(self.steps, left, right, strict=True))

    def finish(self, total: tuple[Any, ...]) -> tuple[Any, ...]:
        """Finish each step."""
        return tuple(step.finish(part) for step, part in zip(self.steps, total, strict=True))


class ByRow(Step):
    """A step with a value for each row (or none): the parts are put one below the other."""

    def combine(self, left: Any, right: Any) -> Any:
        """Put the rows of ``right`` below those of ``left``."""
        return [*(left if isinstance(left, list) else [left]), *(right if isinstance(right, list) else [right])]

    def finish(self, total: Any) -> Any:
        """Put all rows together."""
        parts = total if isinstance(total, list) else [total]
        if sp.issparse(parts[0]):
            return sp.csr_array(sp.vstack(parts, format="csr"))
        return np.concatenate(parts)


class ColumnSums(Step):
    """Sum of each column, in float64."""

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums over the block."""
        # Sparse matrices sum in their own type, whatever type is asked for.
        return np.ones(block.shape[0]) @ block if sp.issparse(block) else block.sum(0, dtype=np.float64)


class ColumnSquares(Step):
    """Sum of the squares of each column over the rows marked in ``kept``, in float64."""

    def __init__(self, kept: np.ndarray):
        self.kept = np.asarray(kept)

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums over the block."""
        marked = self.kept[start : start + block.shape[0]].astype(np.float64)
        if sp.issparse(block):
            return marked @ block.astype(np.float64).power(2)
        return marked @ np.square(block, dtype=np.float64)


class RowSums(ByRow):
    """Sum of each row, in float64, over all columns or some."""

    def __init__(self, columns: np.ndarray | None = None):
        self.columns = columns

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums of the block's rows."""
        if self.columns is not None:
            block = block[:, self.columns]
        return block @ np.ones(block.shape[1]) if sp.issparse(block) else block.sum(1, dtype=np.float64)


class GroupSums(Step):
    """Sum of the rows of each group (groups, columns), in float64; rows of code -1 are left out."""

    def __init__(self, codes: np.ndarray, groups: int):
        self.codes, self.groups = np.asarray(codes), groups

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums over the block."""
        codes = self.codes[start : start + block.shape[0]]
        kept = np.flatnonzero(codes >= 0)
        indicator = sp.csr_array((np.ones(len(kept)), (codes[kept], kept)), shape=(self.groups, block.shape[0]))
        summed = indicator @ block
        return summed.toarray() if sp.issparse(summed) else summed


class SumsOfColumnGroups(ByRow):
    """Sum of the columns of each group (rows, groups), in float64; columns of code -1 are left out."""

    def __init__(self, codes: np.ndarray, groups: int):
        kept = np.flatnonzero(np.asarray(codes) >= 0)
        self.indicator = sp.csr_array((np.ones(len(kept)), (kept, np.asarray(codes)[kept])), (len(codes), groups))

    def __call__(self, start: int, block: Any) -> np.ndarray:
        """Return the sums over the block's rows."""
        summed = block @ self.indicator
        return summed.toarray() if sp.issparse(summed) else summed


class Gather(ByRow):
    """The rows marked in ``wanted``, as CSR, of some columns: a sample that is taken while the pass goes by."""

    def __init__(self, wanted: np.ndarray, columns: np.ndarray):
        self.wanted, self.columns = wanted, columns

    def __call__(self, start: int, block: Any) -> sp.csr_array:
        """Return the block's marked rows."""
        rows = np.flatnonzero(self.wanted[start : start + block.shape[0]])
        return sp.csr_array(block[rows][:, self.columns])


def combine_in_order(parts: Iterable[Part], combine: Callable[[Part, Part], Part]) -> Part:
    """Combine neighbours, then neighbours of these, and so on: a tree that depends on the number of parts alone.

    Rounding errors grow with its depth, not with the number of parts, and few parts are held at a time.
    """
    stack: list[tuple[int, Part]] = []
    for part in parts:
        level = 0
        while stack and stack[-1][0] == level:
            part = combine(stack.pop()[1], part)
            level += 1
        stack.append((level, part))
    if not stack:
        raise ValueError("there are no blocks to combine.")
    total = stack.pop()[1]
    while stack:
        total = combine(stack.pop()[1], total)
    return total
