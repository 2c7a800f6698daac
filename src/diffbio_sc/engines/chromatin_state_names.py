"""Names and colours of chromatin states: from their marks, or from the states of another model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

# Colour of each kind of state.
COLORS = {
    "Active_promoter": "#d55e00",
    "Poised_promoter": "#cc79a7",
    "Strong_enhancer": "#e69f00",
    "Weak_enhancer": "#f0e442",
    "Enhancer": "#e69f00",
    "Transcribed": "#009e73",
    "Heterochromatin": "#56b4e9",
    "Polycomb": "#0072b2",
    "Insulator": "#332288",
    "Repetitive": "#aa4499",
    "Quiescent": "#d9d9d9",
}
# Combinations of marks and the kind that each speaks for.
_COMBINATIONS: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(marks.split()), kind)
    for marks, kind in (
        ("h3k4me3 h3k27ac", "Active_promoter"),
        ("h3k4me3", "Active_promoter"),
        ("h3k4me3 h3k4me1", "Active_promoter"),
        ("h3k4me3 h3k4me1 h3k27ac", "Active_promoter"),
        ("h3k4me3 h3k36me3", "Active_promoter"),
        ("h3k4me3 h3k4me1 h3k27ac h3k36me3", "Active_promoter"),
        ("h3k4me3 h3k27me3", "Poised_promoter"),
        ("h3k4me3 h3k4me1 h3k27me3", "Poised_promoter"),
        ("h3k4me1 h3k27ac", "Strong_enhancer"),
        ("h3k27ac", "Strong_enhancer"),
        ("h3k4me1 h3k27ac h3k36me3", "Strong_enhancer"),
        ("h3k4me1", "Weak_enhancer"),
        ("h3k4me1 h3k36me3", "Weak_enhancer"),
        ("h3k36me3", "Transcribed"),
        ("h3k9me3", "Heterochromatin"),
        ("h3k9me3 h3k36me3", "Heterochromatin"),
        ("h3k27me3", "Polycomb"),
        ("h3k27me3 h3k4me1", "Polycomb"),
        ("ctcf", "Insulator"),
        ("", "Quiescent"),
    )
)
# Controls. Where they are present too, what is seen is the number of copies in the genome.
_CONTROLS = frozenset({"wce", "input", "control", "igg"})
_SMALLEST = 1e-3  # probabilities beyond which a ratio says nothing


class MatchedStates(NamedTuple):
    """States of a model matched to those of a reference."""

    match: Int[np.ndarray, " states"]
    """Position of the reference state; -1 for states left over."""
    distance: Float[np.ndarray, " states"]
    """Mean absolute difference of the emissions over the shared marks; NaN for states left over."""
    nearest: Int[np.ndarray, " states"]
    """Position of the reference state that is nearest, whether or not another state was matched to it."""
    shared: tuple[str, ...]
    """Marks of both, by the model's names."""


def canonical_mark(mark: str) -> str:
    """Name of a mark without case, separators and the leading histone: ``k27ac`` and ``H3K27ac`` are one mark."""
    name = re.sub(r"[^a-z0-9]", "", mark.lower())
    return f"h3{name}" if re.fullmatch(r"k\d+(me\d|ac|me)", name) else name


def state_shares(model: ChromatinStateModel) -> Float[np.ndarray, " states"]:
    """Part of the genome in each state that the transitions imply: their stationary distribution."""
    # The power of a mixture of staying and stepping has a limit also for periodic chains.
    step = 0.5 * (model.transition / model.transition.sum(1, keepdims=True) + np.eye(model.n_states))
    return np.linalg.matrix_power(step, 2**24).mean(0)


def name_states(model: ChromatinStateModel) -> tuple[list[str], list[str]]:
    """Kind and colour of each state, from its marks.

    A state is quiescent if, of all combinations of the measured marks, it is that without any mark whose probability
    rises most from the genome's mean to the state. Any other state is of the kind whose combination is most probable
    in it; where a control (WCE, input, IgG) is more often present than not it is repetitive. Without H3K27ac, strong
    and weak enhancers are one kind.

    Raises
    ------
    ValueError
        If the model has none of the marks, or its emissions are not Bernoulli.
    """
    if model.emission_kind != "bernoulli":
        raise ValueError(
            f"states are named by the presence of marks, found {model.emission_kind!r} emissions; match them to a "
            "reference of the same kind, or binarise first (dbio.pp.binarize)."
        )
    names = [canonical_mark(mark) for mark in model.marks]
    wanted = sorted(frozenset().union(*(marks for marks, _ in _COMBINATIONS)))
    known = [mark for mark in wanted if mark in names]
    if not known:
        raise ValueError(f"states are named by the marks {wanted}, found none of them in {list(model.marks)}.")
    measured = [(marks, kind) for marks, kind in _COMBINATIONS if marks <= set(known)]
    patterns = np.array([[mark in marks for mark in known] for marks, _ in measured], float)
    present = np.clip(model.emission[:, [names.index(mark) for mark in known]], _SMALLEST, 1 - _SMALLEST)
    mean = np.clip(state_shares(model) @ present, _SMALLEST, 1 - _SMALLEST)
    probability = np.log(present) @ patterns.T + np.log1p(-present) @ (1 - patterns).T
    expected = np.log(mean) @ patterns.T + np.log1p(-mean) @ (1 - patterns).T
    silent = np.argmax(probability - expected, 1) == len(measured) - 1
    chosen = np.where(silent | (len(measured) == 1), len(measured) - 1, np.argmax(probability[:, :-1], 1))
    kinds = [measured[index][1] for index in chosen]
    for column in (index for index, name in enumerate(names) if name in _CONTROLS):
        kinds = [
            "Repetitive" if often > 0.5 else kind for kind, often in zip(kinds, model.emission[:, column], strict=True)
        ]
    if "h3k27ac" not in known:
        kinds = ["Enhancer" if kind == "Weak_enhancer" else kind for kind in kinds]
    return kinds, _shades([COLORS[kind] for kind in kinds])


def _shades(colors: Sequence[str]) -> list[str]:
    """Lighter shades for the second and further states of one colour."""
    seen: dict[str, int] = {}
    shaded = []
    for color in colors:
        rank = seen.get(color, 0)
        seen[color] = rank + 1
        rgb = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)])
        lighter = np.rint(rgb + (255 - rgb) * (1 - 0.75**rank)).astype(int)
        shaded.append("#" + "".join(f"{part:02x}" for part in lighter))
    return shaded


def match_emissions(model: ChromatinStateModel, reference: ChromatinStateModel) -> MatchedStates:
    """Match states one to one, so that the sum of the emissions' differences is smallest (Hungarian algorithm).

    Marks are matched by name, without case and separators. Emissions that are not probabilities are measured in
    standard deviations of the reference's states.

    Raises
    ------
    ValueError
        If the emissions are of two families, or the models share no mark.
    """
    if model.emission_kind != reference.emission_kind:
        raise ValueError(
            f"models must have emissions of one family, found {model.emission_kind!r} and {reference.emission_kind!r}."
        )
    theirs = {canonical_mark(mark): column for column, mark in enumerate(reference.marks)}
    shared = [mark for mark in model.marks if canonical_mark(mark) in theirs]
    if not shared:
        raise ValueError(f"the models share no mark: {list(model.marks)[:10]} and {list(reference.marks)[:10]}.")
    mine = model.emission[:, [model.marks.index(mark) for mark in shared]]
    other = reference.emission[:, [theirs[canonical_mark(mark)] for mark in shared]]
    if model.emission_kind not in ("bernoulli", "multinomial"):
        spread = other.std(0)
        scale = np.where(spread > 0, spread, 1.0)
        mine, other = mine / scale, other / scale
    distance = abs(mine[:, None] - other[None]).mean(2)
    rows, columns = linear_sum_assignment(distance)
    match = np.full(len(mine), -1)
    match[rows] = columns
    matched = np.full(len(mine), np.nan)
    matched[rows] = distance[rows, columns]
    return MatchedStates(match, matched, np.argmin(distance, 1), tuple(shared))
