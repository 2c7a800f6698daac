"""Models of chromatin states in ChromHMM's text format: reading."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np

from diffbio_sc._options import check_options
from diffbio_sc.io._byte_source import PathLike, open_bytes

if TYPE_CHECKING:
    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

_FIELDS = {"probinit": 3, "transitionprobs": 4, "emissionprobs": 6}
_BELOW_ONE = np.nextafter(1.0, 0.0)


def read_chromhmm_model(path: PathLike) -> ChromatinStateModel:
    """Read a model that ChromHMM wrote (``model_15.txt``), such as those of Roadmap Epigenomics.

    Parameters
    ----------
    path
        Text file, plain or compressed by gzip, with any line ends. Its first line holds the numbers of states and
        marks, and may hold a letter for the order of the states, the log-likelihood and the number of iterations.

    Returns
    -------
    ChromatinStateModel
        Parameters in float64, with marks and states in the order of the file and states labelled ``E1``, ``E2``, ...
        Zeros of the file stay exact zeros. Pass it to :func:`diffbio_sc.tl.chromatin_states` to annotate with it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no such model: a line that cannot be read, a number out of its range, parameters that are missing
        or given twice, or probabilities that do not sum to 1. An emission matrix or a segmentation is named as such.

    Examples
    --------
    >>> import tempfile, diffbio_sc as dbio
    >>> truth = dbio.datasets.simulate_chromatin_states(n_bins=200)
    >>> with tempfile.NamedTemporaryFile(suffix=".txt") as file:
    ...     dbio.io.write_chromhmm_model(dbio.get.chromatin_state_model(truth, key="truth"), file.name)
    ...     model = dbio.io.read_chromhmm_model(file.name)
    >>> model.n_states, model.marks[:2]
    (7, ('H3K4me3', 'H3K27ac'))
    """
    from diffbio_sc.engines.chromatin_state_model import ChromatinStateModel

    check_options(read_chromhmm_model, locals())
    where = os.fspath(path)
    with open_bytes(path) as source:
        text = _decode(source.stream.read(), where)
    lines = [(number, line.split("\t")) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{where} is empty; expected a model of ChromHMM.")
    states, marks, order, log_likelihood, iterations = _header(lines[0][1], where)
    initial = np.full(states, np.nan)
    transition = np.full((states, states), np.nan)
    emission = np.full((2, states, marks), np.nan)
    names: list[str | None] = [None] * marks
    for number, fields in lines[1:]:
        line = _Line(fields, number, where)
        if line.kind == "probinit":
            line.put(initial, (line.index(1, states),))
        elif line.kind == "transitionprobs":
            line.put(transition, (line.index(1, states), line.index(2, states)))
        else:
            mark = line.index(2, marks, first=0)
            if names[mark] not in (None, fields[3]):
                raise line.error(f"calls mark {mark} {fields[3]!r}, a line before it {names[mark]!r}")
            names[mark] = fields[3]
            line.put(emission, (line.index(4, 2, first=0), line.index(1, states), mark))
    for name, values in (("probinit", initial), ("transitionprobs", transition), ("emissionprobs", emission)):
        if np.isnan(values).any():
            raise ValueError(
                f"{where} lacks {int(np.isnan(values).sum())} of {values.size} lines {name!r} for {states} states and "
                f"{marks} marks: it is cut short, or its first line is wrong."
            )
    bad = abs(emission.sum(0) - 1) > 1e-3
    if bad.any():
        state, mark = (int(index[0]) for index in np.nonzero(bad))
        raise ValueError(
            f"{where}: emission probabilities of state {state + 1} and mark {names[mark]!r} must sum to 1, found "
            f"{emission[:, state, mark].sum():.6g}."
        )
    # A mark that may be absent, however rarely, must not become one that is always there.
    present = np.where((emission[1] >= 1) & (emission[0] > 0), _BELOW_ONE, emission[1])
    try:
        return ChromatinStateModel(
            initial,
            transition,
            present,
            marks=tuple(map(str, names)),
            log_likelihood=log_likelihood,
            n_iterations=iterations,
            state_order=order,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode(data: bytes, where: str) -> str:
    if b"\x00" in data[:4096]:
        raise ValueError(f"{where} is no text file of ChromHMM.")
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="backslashreplace").read()


def _header(fields: list[str], where: str) -> tuple[int, int, str, float | None, int | None]:
    """Numbers of states and marks, letter of the order, log-likelihood and iterations, as far as they are there."""
    expected = (
        "expected the first line of a model (number of states, number of marks, and optionally a letter, the "
        "log-likelihood and the iterations, separated by tabs)"
    )
    if len(fields) < 2 or not (fields[0].strip().isdigit() and fields[1].strip().isdigit()):
        other = "; this looks like a file of emissions or segments, pass model_K.txt" if len(fields) > 2 else ""
        raise ValueError(f"{where}: {expected}, found {fields[:6]}{other}.")
    states, marks = int(fields[0]), int(fields[1])
    rest = [field.strip() for field in fields[2:]]
    order = rest.pop(0) if rest and rest[0].isalpha() and len(rest[0]) == 1 else "E"
    try:
        log_likelihood = float(rest[0]) if rest else None
        iterations = int(rest[1]) if len(rest) > 1 else None
    except ValueError as error:
        raise ValueError(f"{where}: {expected}, found {fields[:6]}.") from error
    if log_likelihood is not None and not np.isfinite(log_likelihood):
        log_likelihood = None
    if states < 1 or marks < 1:
        raise ValueError(f"{where}: a model needs at least one state and one mark, found {states} and {marks}.")
    return states, marks, order, log_likelihood, iterations


class _Line:
    """One line of parameters, with what is wrong with it said by number."""

    def __init__(self, fields: list[str], number: int, where: str):
        self.fields, self.number, self.where = fields, number, where
        self.kind = fields[0]
        if self.kind not in _FIELDS:
            raise self.error(f"begins with {self.kind!r}, expected one of {list(_FIELDS)}")
        if len(fields) != _FIELDS[self.kind]:
            raise self.error(f"has {len(fields)} fields, expected {_FIELDS[self.kind]}")

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self.where}, line {self.number} {problem}: {self.fields[:6]}.")

    def index(self, field: int, length: int, *, first: int = 1) -> int:
        """Position from 0 that a field gives, counted from ``first``."""
        text = self.fields[field].strip()
        if not text.isdigit() or not first <= int(text) < first + length:
            raise self.error(f"must hold a number from {first} to {first + length - 1} in field {field + 1}")
        return int(text) - first

    def put(self, target: np.ndarray, place: tuple[int, ...]) -> None:
        """Store the probability at the end of the line."""
        try:
            value = float(self.fields[-1])
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise self.error("must end with a probability between 0 and 1")
        if not np.isnan(target[place]):
            raise self.error("gives a parameter a second time")
        target[place] = value
