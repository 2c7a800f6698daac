from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from diffbio_sc._options import check_options

if TYPE_CHECKING:
    from anndata import AnnData

MARKS = ("H3K4me3", "H3K27ac", "H3K4me1", "H3K36me3", "H3K9me3", "H3K27me3")

# Probability of each mark, and mean length of a segment in bins.
_STATES = {
    "Active promoter": ((0.92, 0.85, 0.15, 0.03, 0.01, 0.02), 6),
    "Strong enhancer": ((0.10, 0.80, 0.85, 0.04, 0.01, 0.02), 5),
    "Weak enhancer": ((0.04, 0.08, 0.70, 0.04, 0.01, 0.05), 8),
    "Transcribed": ((0.01, 0.04, 0.06, 0.75, 0.03, 0.01), 30),
    "Heterochromatin": ((0.01, 0.01, 0.01, 0.03, 0.65, 0.04), 40),
    "Polycomb": ((0.06, 0.01, 0.10, 0.01, 0.02, 0.70), 25),
    "Quiescent": ((0.005, 0.005, 0.01, 0.01, 0.01, 0.01), 80),
}
_BACKGROUND, _SIGNAL = 0.3, 9.0  # mean counts in a bin without and with a mark
_DISPERSION = 0.5
_STANDARD_DEVIATION = 0.7

Family = Literal["bernoulli", "poisson", "negative_binomial", "gaussian"]


def simulate_chromatin_states(
    *,
    n_bins: int = 8000,
    n_states: int = 7,
    n_chromosomes: int = 4,
    n_cell_types: int = 1,
    n_replicates: int = 1,
    family: Family = "bernoulli",
    bin_size: int = 200,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Draw histone marks along a genome from a known chain of chromatin states; no download.

    The six marks and the first seven states are those by which chromatin states are commonly read: active promoters,
    strong and weak enhancers, transcribed regions, heterochromatin, Polycomb and quiescent chromatin. Each chromosome
    of each cell type is a chain of its own, with the model's transitions; replicates of a cell type have the same
    states and marks drawn anew, independently given the state.

    Parameters
    ----------
    n_bins
        Bins of the genome, shared out evenly among the chromosomes.
    n_states
        States. Beyond seven, further states have random combinations of the marks.
    n_chromosomes
        Chromosomes ``chr1``, ``chr2``, ...
    n_cell_types, n_replicates
        Cell types, and replicates of each. Their bins lie one after the other.
    family
        Emissions: ``"bernoulli"`` (present or absent), ``"poisson"`` and ``"negative_binomial"`` (counts), or
        ``"gaussian"`` (signal).
    bin_size
        Width of a bin in bases.
    rng
        Seed or generator.

    Returns
    -------
    AnnData of bins by marks:

    - ``.X``: uint8 (Bernoulli), int32 (counts) or float32 (signal)
    - ``.obs``: ``chrom``, ``start``, ``end``; ``cell_type``, ``replicate`` and ``sample`` (cell type and replicate;
      the column that tells sequences apart) and the true state ``truth``, all categories
    - ``.uns["truth"]``: the model, in the form of ``.uns["chromatin_states"]``; take it with
      ``dbio.get.chromatin_state_model(adata, key="truth")``

    Raises
    ------
    ValueError
        If a number or the family is out of range.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> adata = dbio.datasets.simulate_chromatin_states(n_bins=2000, n_replicates=2)
    >>> adata.shape, adata.obs["sample"].cat.categories.tolist()
    ((4000, 6), ['cell1_rep1', 'cell1_rep2'])
    """
    import anndata

    check_options(
        simulate_chromatin_states,
        locals(),
        n_bins="[1, inf)",
        n_states="[1, inf)",
        n_chromosomes="[1, inf)",
        n_cell_types="[1, inf)",
        n_replicates="[1, inf)",
        bin_size="[1, inf) base pairs",
    )
    n_bins, n_states, n_chromosomes, n_cell_types, n_replicates = (
        int(n_bins),
        int(n_states),
        int(n_chromosomes),
        int(n_cell_types),
        int(n_replicates),
    )
    bin_size = int(bin_size)
    if n_bins < n_chromosomes:
        raise ValueError(f"n_bins must be at least n_chromosomes, found {n_bins} and {n_chromosomes}.")
    families = ("bernoulli", "poisson", "negative_binomial", "gaussian")
    if family not in families:
        raise ValueError(f"family must be one of {families}, found {family!r}.")
    generator = np.random.default_rng(rng)
    names, presence, initial, transition = _chain(n_states, generator)
    emission, parameters = _emissions(presence, family)
    lengths = np.full(n_chromosomes, n_bins // n_chromosomes)
    lengths[: n_bins % n_chromosomes] += 1
    chrom = np.repeat(np.arange(n_chromosomes), lengths)
    start = bin_size * (np.arange(n_bins) - np.repeat(np.cumsum(lengths) - lengths, lengths))
    values, states = [], []
    for _ in range(n_cell_types):
        path = np.concatenate([_draw_path(length, initial, transition, generator) for length in lengths])
        for _ in range(n_replicates):
            values.append(_draw_marks(path, emission, parameters, family, generator))
            states.append(path)
    samples = n_cell_types * n_replicates
    cell = np.repeat(np.arange(n_cell_types), n_replicates * n_bins)
    replicate = np.tile(np.repeat(np.arange(n_replicates), n_bins), n_cell_types)
    cells = [f"cell{number}" for number in range(1, n_cell_types + 1)]
    replicates = [f"rep{number}" for number in range(1, n_replicates + 1)]
    sample_names = [f"{one}_{other}" for one in cells for other in replicates]
    places = [f"chr{code + 1}:{first}-{first + bin_size}" for code, first in zip(chrom, start, strict=True)]
    obs = pd.DataFrame(
        {
            "chrom": pd.Categorical.from_codes(
                np.tile(chrom, samples), [f"chr{number}" for number in range(1, n_chromosomes + 1)]
            ),
            "start": np.tile(start, samples),
            "end": np.tile(start, samples) + bin_size,
            "cell_type": pd.Categorical.from_codes(cell, cells),
            "replicate": pd.Categorical.from_codes(replicate, replicates),
            "sample": pd.Categorical.from_codes(np.repeat(np.arange(samples), n_bins), sample_names),
            "truth": pd.Categorical.from_codes(np.concatenate(states), names),
        },
        index=places if samples == 1 else [f"{sample}:{place}" for sample in sample_names for place in places],
    )
    adata = anndata.AnnData(np.concatenate(values), obs=obs, var=pd.DataFrame(index=list(MARKS)))
    adata.uns["truth"] = {
        "initial": initial,
        "transition": transition,
        "emission": emission,
        "emission_kind": family,
        "emission_parameters": parameters,
        "marks": np.array(MARKS),
        "states": np.array(names),
    }
    return adata


def _chain(n_states: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, probability of each mark, initial (stationary) and transition probabilities."""
    known = list(_STATES)[:n_states]
    extra = n_states - len(known)
    names = known + [f"Mixed {number}" for number in range(1, extra + 1)]
    presence = np.array([_STATES[name][0] for name in known])
    if extra:
        drawn = np.where(rng.random((extra, len(MARKS))) < 0.4, rng.uniform(0.4, 0.9, (extra, len(MARKS))), 0.02)
        presence = np.concatenate([presence, drawn])
    length = np.array([_STATES[name][1] for name in known] + [10] * extra, float)
    if n_states == 1:
        return names, presence, np.ones(1), np.ones((1, 1))
    # Where a segment ends, the next state is drawn with probabilities of its own for each state.
    leave = rng.gamma(2.0, 1.0, (n_states, n_states))
    np.fill_diagonal(leave, 0)
    leave /= leave.sum(1, keepdims=True)
    transition = leave / length[:, None]
    np.fill_diagonal(transition, 1 - 1 / length)
    values, vectors = np.linalg.eig(transition.T)
    stationary = abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return names, presence, stationary / stationary.sum(), transition


def _emissions(presence: np.ndarray, family: Family) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    if family == "bernoulli":
        return presence, {}
    if family == "gaussian":
        return 4 * presence, {"variance": np.full(presence.shape, _STANDARD_DEVIATION**2)}
    mean = _BACKGROUND + _SIGNAL * presence
    return mean, {"dispersion": np.full(presence.shape, _DISPERSION)} if family == "negative_binomial" else {}


def _draw_path(length: int, initial: np.ndarray, transition: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """States of a chain: lengths of stay, then the next state, drawn segment by segment."""
    stay = np.diag(transition)
    state = int(rng.choice(len(initial), p=initial))
    states, lengths, total = [], [], 0
    while total < length:
        states.append(state)
        lengths.append(int(rng.geometric(1 - stay[state])) if stay[state] < 1 else length)
        total += lengths[-1]
        if stay[state] < 1:
            away = transition[state] / (1 - stay[state])
            away[state] = 0
            state = int(np.searchsorted(np.cumsum(away), rng.random() * away.sum(), side="right"))
    return np.repeat(states, lengths)[:length]


def _draw_marks(
    path: np.ndarray, emission: np.ndarray, parameters: dict[str, np.ndarray], family: Family, rng: np.random.Generator
) -> np.ndarray:
    mean = emission[path]
    if family == "bernoulli":
        return (rng.random(mean.shape) < mean).astype(np.uint8)
    if family == "gaussian":
        return rng.normal(mean, np.sqrt(parameters["variance"][path])).astype(np.float32)
    if family == "negative_binomial":
        shape = 1 / parameters["dispersion"][path]
        mean = rng.gamma(shape, mean / shape)
    return rng.poisson(mean).astype(np.int32)
