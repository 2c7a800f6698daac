"""A model of chromatin states as an object: parameters, names of marks and states, and what ChromHMM's files add."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

EMISSION_KINDS = ("bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial")

EmissionKind = Literal["bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial"]

_TOLERANCE = 1e-3  # of sums of probabilities; files are written with as few as four digits


@dataclasses.dataclass(frozen=True, eq=False)
class ChromatinStateModel:
    """Hidden Markov model of chromatin states, in float64.

    Exact zeros of a loaded model mean "impossible" and stay zero.
    """

    initial: Float[np.ndarray, " states"]
    """Probability of each state in the first bin of a sequence."""
    transition: Float[np.ndarray, "states states"]
    """Probability of the next bin's state (column) given this bin's (row)."""
    emission: Float[np.ndarray, "states marks"]
    """Probability that a mark is present (Bernoulli), its mean (Poisson, negative binomial, Gaussian), or the share of
    each mark (multinomial)."""
    marks: tuple[str, ...]
    """Names of the marks, in the order of the columns."""
    states: tuple[str, ...] = ()
    """Labels of the states, in the order of the rows; default ``E1``, ``E2``, ..."""
    emission_kind: EmissionKind = "bernoulli"
    """Family of the emissions."""
    emission_parameters: Mapping[str, Float[np.ndarray, "states marks"]] = dataclasses.field(default_factory=dict)
    """Further parameters of the family by name, such as ``dispersion`` or ``variance``."""
    log_likelihood: float | None = None
    """Log-likelihood of the training data, where known."""
    n_iterations: int | None = None
    """Iterations of training, where known."""
    state_order: str = "E"
    """How the states are ordered, in ChromHMM's letter: E emissions, T transitions, F fixed (as loaded), U user."""
    colors: tuple[str, ...] = ()
    """Colour of each state as ``#rrggbb``; empty if the model has none."""

    def __post_init__(self) -> None:
        for name in ("initial", "transition", "emission"):
            values = np.array(getattr(self, name), np.float64)
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{name} of a model must be finite, found {int((~np.isfinite(values)).sum())} that are not."
                )
            object.__setattr__(self, name, values)
        if self.emission.ndim != 2 or 0 in self.emission.shape:
            raise ValueError(f"emission must be an array (states, marks), found shape {self.emission.shape}.")
        states, marks = self.emission.shape
        for name, shape in (("initial", (states,)), ("transition", (states, states))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, found {getattr(self, name).shape}.")
        self._check_names(states, marks)
        if self.emission_kind not in EMISSION_KINDS:
            raise ValueError(f"emission_kind must be one of {EMISSION_KINDS}, found {self.emission_kind!r}.")
        self._check_probabilities()
        parameters = {str(key): np.array(values, np.float64) for key, values in self.emission_parameters.items()}
        for key, values in parameters.items():
            if values.shape != self.emission.shape:
                raise ValueError(
                    f"emission_parameters[{key!r}] must have shape {self.emission.shape}, found {values.shape}."
                )
        object.__setattr__(self, "emission_parameters", parameters)

    def _check_names(self, states: int, marks: int) -> None:
        names = {
            "marks": (tuple(map(str, self.marks)), marks),
            "states": (tuple(map(str, self.states)) or tuple(f"E{number}" for number in range(1, states + 1)), states),
        }
        for field, (labels, number) in names.items():
            if len(labels) != number:
                raise ValueError(f"{field} must be {number} names, found {len(labels)}: {list(labels)[:10]}.")
            twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
            if twice:
                raise ValueError(f"{field} must be unique, found twice: {twice[:5]}.")
            object.__setattr__(self, field, labels)
        object.__setattr__(self, "colors", tuple(map(str, self.colors)))
        if self.colors and len(self.colors) != states:
            raise ValueError(f"colors must be {states} colours or none, found {len(self.colors)}.")

    def _check_probabilities(self) -> None:
        rows = {"initial": self.initial[None], "transition": self.transition}
        if self.emission_kind == "multinomial":
            rows["emission"] = self.emission
        for name, values in rows.items():
            bad = (values < 0).any(1) | (abs(values.sum(1) - 1) > _TOLERANCE)
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise ValueError(
                    f"{name} must hold probabilities that sum to 1, found {values[row].sum():.6g} with smallest "
                    f"{values[row].min():.6g} in row {row + 1} ({int(bad.sum())} such rows)."
                )
        if self.emission_kind == "bernoulli" and not ((self.emission >= 0) & (self.emission <= 1)).all():
            raise ValueError(
                f"emission of a Bernoulli model must lie between 0 and 1, found {self.emission.min():.6g} to "
                f"{self.emission.max():.6g}."
            )

    @property
    def n_states(self) -> int:
        """Number of states."""
        return len(self.states)

    @property
    def n_marks(self) -> int:
        """Number of marks."""
        return len(self.marks)

    def marginalise(self, marks: Sequence[str]) -> ChromatinStateModel:
        """Return the model of these marks alone, in this order; the others are summed out.

        Emissions are independent given the state, so a mark is summed out by leaving its column out. The shares of a
        multinomial are conditioned on the marks that stay.

        Raises
        ------
        KeyError
            If the model lacks one of the marks.
        ValueError
            If ``marks`` is empty, or no mark that stays has a share in some state of a multinomial.
        """
        wanted = tuple(map(str, marks))
        missing = [mark for mark in wanted if mark not in self.marks]
        if missing:
            raise KeyError(f"the model has no marks {missing}; its marks: {list(self.marks)}.")
        if not wanted:
            raise ValueError(f"at least one of the model's marks must stay; its marks: {list(self.marks)}.")
        columns = [self.marks.index(mark) for mark in wanted]
        emission = self.emission[:, columns]
        if self.emission_kind == "multinomial":
            total = emission.sum(1, keepdims=True)
            if (total == 0).any():
                empty = [self.states[index] for index in np.flatnonzero(total[:, 0] == 0)]
                raise ValueError(f"marks {list(wanted)} have no share in states {empty}; keep more marks.")
            emission = emission / total
        parameters = {key: values[:, columns] for key, values in self.emission_parameters.items()}
        return dataclasses.replace(
            self, marks=wanted, emission=emission, emission_parameters=parameters, log_likelihood=None
        )

    def reorder(self, order: Sequence[int] | Sequence[str]) -> ChromatinStateModel:
        """Return the model with its states in another order, given as positions or labels; labels move with them.

        Raises
        ------
        ValueError
            If ``order`` is no permutation of the states.
        """
        positions = [
            self.states.index(item) if isinstance(item, str) and item in self.states else item for item in order
        ]
        if sorted(map(str, positions)) != sorted(map(str, range(self.n_states))):
            raise ValueError(
                f"order must name each of the {self.n_states} states once, by position from 0 or label "
                f"{list(self.states)}, found {list(order)}."
            )
        index = np.array(positions, np.intp)
        return dataclasses.replace(
            self,
            initial=self.initial[index],
            transition=self.transition[np.ix_(index, index)],
            emission=self.emission[index],
            emission_parameters={key: values[index] for key, values in self.emission_parameters.items()},
            states=tuple(self.states[position] for position in index),
            colors=tuple(self.colors[position] for position in index) if self.colors else (),
            state_order="U",
        )

    def rename(self, states: Sequence[str], colors: Sequence[str] = ()) -> ChromatinStateModel:
        """Return the model with other labels, and colours, of its states."""
        return dataclasses.replace(self, states=tuple(states), colors=tuple(colors) or self.colors)
