"""Configurations of operators: frozen, keyword-only, and checked when they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """Settings of an operator: frozen, keyword-only, checked when made, equal and hashable by value.

    Lists and numpy arrays become tuples and numpy scalars become Python numbers, so that a configuration hashes (a
    compiled function is found again by it) and goes through JSON unchanged. Subclasses write :meth:`validate` from
    the ``require`` methods below.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # A frozen dataclass has no other way to normalise a field of its own.
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Make a configuration of ``fields``, refusing unknown names."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__} has no fields {unknown}; its fields are {known}.")
        return cls(**fields)

    def require(self, name: str, condition: bool, expected: str) -> None:
        """Raise ValueError unless ``condition`` holds for the field ``name``."""
        if not condition:
            raise ValueError(f"{type(self).__name__}.{name} must be {expected}, found {getattr(self, name)!r}.")

    def require_integers(self, *names: str, minimum: int = 1) -> None:
        """Require whole numbers of at least ``minimum``."""
        expected = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        for name in names:
            value = getattr(self, name)
            self.require(name, _is_integer(value) and value >= minimum, expected)

    def require_numbers(self, *names: str) -> None:
        """Require finite numbers."""
        for name in names:
            self.require(name, _is_finite_number(getattr(self, name)), "a finite number")

    def require_positive(self, *names: str, zero_allowed: bool = False) -> None:
        """Require finite numbers above zero (or not below, if ``zero_allowed``)."""
        for name in names:
            value = getattr(self, name)
            good = _is_finite_number(value) and (value >= 0 if zero_allowed else value > 0)
            self.require(name, good, "a finite number, not negative" if zero_allowed else "a finite number above 0")

    def require_fractions(self, *names: str, zero_allowed: bool = True, one_allowed: bool = True) -> None:
        """Require numbers from 0 to 1, the ends only where allowed."""
        above, below = "from 0" if zero_allowed else "above 0", "to 1" if one_allowed else "to below 1"
        for name in names:
            value = getattr(self, name)
            good = _is_finite_number(value) and 0 <= value <= 1
            good = good and (zero_allowed or value > 0) and (one_allowed or value < 1)
            self.require(name, good, f"a number {above} {below}")

    def require_one_of(self, name: str, options: Collection[Any]) -> None:
        """Require one of the values ``options``."""
        self.require(name, getattr(self, name) in options, f"one of {list(options)}")

    def require_booleans(self, *names: str) -> None:
        """Require True or False."""
        for name in names:
            self.require(name, isinstance(getattr(self, name), bool), "True or False")

    def require_sizes(self, *names: str, empty_allowed: bool = False) -> None:
        """Require sequences of positive integers, as of layer widths."""
        expected = "a list of positive integers" + ("" if empty_allowed else " with at least one entry")
        for name in names:
            value = getattr(self, name)
            good = isinstance(value, tuple) and all(_is_integer(size) and size >= 1 for size in value)
            self.require(name, good and (empty_allowed or len(value) > 0), expected)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_plain(entry) for entry in value)
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
