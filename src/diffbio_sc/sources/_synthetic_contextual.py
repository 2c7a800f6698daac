"""Synthetic sequences, contexts and contact maps whose labels need sequence and context together."""

from __future__ import annotations

import numpy as np

from diffbio_sc._checks import whole_number
from diffbio_sc._random import as_generator

__all__ = ["build_synthetic_contextual_epigenomics_dataset"]

_MOTIF_SEED = 7  # motifs are part of the world, not of a draw from it
_MOTIF_WIDTH = 6
_LEAST_DIFFERENCE = 3  # bases in which two motifs differ, on either strand
_BASES_PER_SITE = 12
_NOISE = 0.1


def build_synthetic_contextual_epigenomics_dataset(
    *,
    n_examples: int = 16,
    sequence_length: int = 48,
    num_tf_features: int = 4,
    target_semantics: str = "binary_peak_mask",
    num_output_classes: int = 1,
    rng: int | np.random.Generator | None = 0,
) -> dict[str, np.ndarray]:
    """Build labelled sequences, each with a context and a contact map.

    Every transcription factor has a motif of six bases, the same in every data set. Each random sequence carries some
    of them, on either strand, one for every twelve bases. Its context says which factors are expressed: a motif is
    active if its factor is. So the sequence alone tells where sites are, but not which are active; the context alone
    tells no place; and contacts, high within and between all sites of one family (every second factor), tell no
    activity.

    Parameters
    ----------
    n_examples
        Number of sequences.
    sequence_length
        Their length in bases, at least 6.
    num_tf_features
        Number of transcription factors.
    target_semantics
        ``"binary_peak_mask"``: 1 on active sites. ``"chromatin_state_id"``: 0 elsewhere; of two classes, 1 is an active
        site; of more, 1 is an inactive site and those from 2 on are active sites, by family.
    num_output_classes
        Number of classes: 1 for the mask, 2 or more for states.
    rng
        Seed or numpy generator of the draw; None takes fresh entropy.

    Returns
    -------
    ``sequence`` (n_examples, sequence_length, 4), one-hot; ``tf_context`` (n_examples, num_tf_features), about 1 for
    expressed factors and about 0 for others; ``chromatin_contacts`` (n_examples, sequence_length, sequence_length),
    from 0 to 1; ``targets`` (n_examples, sequence_length).

    Raises
    ------
    ValueError
        If a size is too small, or semantics and classes do not fit.

    Examples
    --------
    >>> from diffbio_sc.sources import build_synthetic_contextual_epigenomics_dataset
    >>> data = build_synthetic_contextual_epigenomics_dataset(n_examples=4, sequence_length=24, num_tf_features=3)
    >>> data["sequence"].shape
    (4, 24, 4)
    """
    from diffbio_sc.operators.epigenomics.contextual_contract import validate_contextual_epigenomics_dataset

    n_examples = whole_number(n_examples, "n_examples")
    length = whole_number(sequence_length, "sequence_length", minimum=_MOTIF_WIDTH)
    factors = whole_number(num_tf_features, "num_tf_features")
    classes = whole_number(num_output_classes, "num_output_classes")
    draws = as_generator(rng)
    motifs = motif_bases(factors)
    sites = max(1, length // _BASES_PER_SITE)
    bases = draws.integers(0, 4, (n_examples, length))
    context = np.empty((n_examples, factors))
    targets = np.zeros((n_examples, length))
    contacts = np.empty((n_examples, length, length))
    for example in range(n_examples):
        planted = draws.permutation(np.resize(draws.permutation(factors), sites))
        starts = _spread_out(draws, sites, length)
        expressed = _expressed(draws, factors, planted, example)
        family = np.full(length, -1)
        for factor, start in zip(planted, starts, strict=True):
            where = slice(start, start + _MOTIF_WIDTH)
            motif = motifs[factor]
            bases[example, where] = motif if draws.random() < 0.5 else 3 - motif[::-1]
            family[where] = factor % 2
            targets[example, where] = _label(bool(expressed[factor]), int(factor % 2), classes)
        context[example] = expressed + draws.normal(0.0, _NOISE, factors)
        contacts[example] = _contacts(family, draws)
    data = {
        "sequence": np.eye(4, dtype=np.float32)[bases],
        "tf_context": context.astype(np.float32),
        "chromatin_contacts": contacts.astype(np.float32),
        "targets": targets.astype(np.float32 if target_semantics == "binary_peak_mask" else np.int32),
    }
    validate_contextual_epigenomics_dataset(
        data, target_semantics=target_semantics, num_output_classes=num_output_classes
    )
    return data


def motif_bases(factors: int) -> np.ndarray:
    """Motifs of transcription factors (factors, 6) as codes of bases; more factors leave the first ones as they are.

    Two motifs, on either strand, differ in three bases or more, as long as there are such.
    """
    draws, least, tries = np.random.default_rng(_MOTIF_SEED), _LEAST_DIFFERENCE, 0
    found: list[np.ndarray] = []
    while len(found) < factors:
        motif = draws.integers(0, 4, _MOTIF_WIDTH)
        others = [*found, *(3 - other[::-1] for other in found), 3 - motif[::-1]]
        if all((motif != other).sum() >= least for other in others):
            found.append(motif)
        tries += 1
        if tries % 10_000 == 0:
            least = max(0, least - 1)
    return np.array(found)


def _spread_out(draws: np.random.Generator, sites: int, length: int) -> np.ndarray:
    """Starts of sites that do not overlap, in order."""
    free = np.sort(draws.integers(0, length - sites * _MOTIF_WIDTH + 1, sites))
    return free + np.arange(sites) * _MOTIF_WIDTH


def _expressed(draws: np.random.Generator, factors: int, planted: np.ndarray, example: int) -> np.ndarray:
    """Which factors are expressed: of the planted ones at least one and not all, if there are several."""
    expressed = draws.random(factors) < 0.5
    present = np.unique(planted)
    if len(present) == 1:
        expressed[present] = example % 2 == 0
    elif expressed[present].all() or not expressed[present].any():
        expressed[draws.choice(present)] ^= True
    return expressed.astype(float)


def _label(active: bool, family: int, classes: int) -> int:
    if classes <= 2:
        return int(active)
    return 2 + family % (classes - 2) if active else 1


def _contacts(family: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Contacts that fall with distance, and are higher between bases of sites of one family."""
    at = np.arange(len(family))
    decay = 0.4 / (1.0 + np.abs(at[:, None] - at))
    together = (family[:, None] == family) & (family >= 0)
    noise = np.triu(draws.uniform(0.0, 0.1, (len(at), len(at))))
    return decay + 0.5 * together + np.maximum(noise, noise.T)
