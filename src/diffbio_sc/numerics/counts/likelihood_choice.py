"""Which likelihood fits a modality, judged by its name and simple statistics of its values."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

# Whole words of a modality's name or feature type, in lower case.
_WORDS = {
    "genes": {"rna", "gex", "gene", "genes", "mrna", "transcriptome", "cdna", "scrna", "snrna"},
    "regions": {"atac", "peak", "peaks", "chromatin", "tile", "tiles", "accessibility", "scatac", "snatac"},
    "proteins": {"prot", "protein", "proteins", "adt", "adts", "antibody", "hto", "htos", "hashtag", "hashtags"},
}

_FEW_FEATURES = 500
_MANY_FEATURES = 5_000
_DENSE_ZEROS = 0.7
_SPARSE_ZEROS = 0.9
_FEW_LARGE = 0.05


class LikelihoodChoice(NamedTuple):
    """Name of the likelihood, and why, in words."""

    likelihood: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalitySummary:
    """Statistics of a modality's values.

    Attributes
    ----------
    n_features
        Number of features.
    integer
        Whether all values are whole numbers.
    minimum, maximum
        Smallest and largest value, zeros included.
    zero_share
        Share of zeros among all values.
    large_share
        Share of values above 2 among those that are not zero.
    name
        Name of the modality, or its feature type ("Gene Expression", "Peaks", "Antibody Capture"), or both.
    """

    n_features: int
    integer: bool
    minimum: float
    maximum: float
    zero_share: float
    large_share: float
    name: str = ""


def choose_likelihood(summary: ModalitySummary) -> LikelihoodChoice:
    """Choose the likelihood of a modality.

    Values that are not counts are Gaussian. For counts the name decides if it is clear; otherwise few features with
    few zeros are taken for proteins, many features with hardly a count above 2 for regions, and the rest for genes.
    Binary values are a multinomial draw where they are sparse, as those of regions are, else Bernoulli.
    """
    about = f"{summary.n_features} features, {summary.zero_share:.0%} zeros, largest value {summary.maximum:g}"
    if not summary.integer or summary.minimum < 0:
        found = f"the smallest is {summary.minimum:g}" if summary.minimum < 0 else "they are not whole numbers"
        return LikelihoodChoice("gaussian", f"the values are not counts, {found}: taken as normalised ({about})")
    if summary.maximum <= 1:
        if summary.zero_share >= _SPARSE_ZEROS:
            reason = "values of 0 and 1, mostly 0: a draw of open regions given their number in the cell"
            return LikelihoodChoice("multinomial", f"{reason} ({about})")
        return LikelihoodChoice("bernoulli", f"values of 0 and 1 ({about})")
    words = set(re.findall("[a-z]+", summary.name.lower()))
    kinds = [kind for kind, known in _WORDS.items() if words & known]
    if len(kinds) == 1:
        kind, source = kinds[0], f"counts of {kinds[0]} by the name {summary.name!r}"
    elif summary.n_features <= _FEW_FEATURES and summary.zero_share < _DENSE_ZEROS:
        kind, source = "proteins", "counts of few features with few zeros, as of proteins"
    elif (
        summary.n_features >= _MANY_FEATURES
        and summary.zero_share >= _SPARSE_ZEROS
        and summary.large_share <= _FEW_LARGE
    ):
        kind, source = "regions", f"counts of which {summary.large_share:.1%} of the non-zeros exceed 2, as of regions"
    else:
        kind, source = "genes", "counts, as of genes"
    likelihood = {"genes": "negative_binomial", "regions": "multinomial", "proteins": "protein_mixture"}[kind]
    return LikelihoodChoice(likelihood, f"{source} ({about})")
