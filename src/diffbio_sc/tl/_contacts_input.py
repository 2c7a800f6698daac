"""What the functions on contact maps take out of an object before any work, checked."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffbio_sc._anndata.contacts import Contacts, read_breaks, read_contacts, read_weights
from diffbio_sc.engines.contacts_expected import RegionDecay, expected_map
from diffbio_sc.numerics.genome.pixels import cis_rows

if TYPE_CHECKING:
    from anndata import AnnData

Axis = Literal["var", "obs"] | None
Breaks = Mapping[str, int | Sequence[int]] | None
SHALLOW = 100.0
"""Contacts for each bin below which boundaries and loops are scored but not called."""


@dataclasses.dataclass(frozen=True)
class BalancedMap:
    """A contact map with its weights and decay.

    Attributes
    ----------
    contacts
        Map and where its bins lie in the object.
    weights
        Balancing weights of the map's bins.
    breaks
        Bins at which chromosomes are cut.
    decays
        Decay of each region.
    depth
        Contacts within chromosomes for each usable bin, the distances that are left out not among them.
    """

    contacts: Contacts
    weights: np.ndarray
    breaks: np.ndarray | None
    decays: list[RegionDecay]
    depth: float

    @property
    def resolution(self) -> int:
        """Width of the bins in base pairs."""
        return self.contacts.map.resolution

    def is_shallow(self, what: str) -> bool:
        """Whether calls would be noise; says so."""
        if self.depth >= SHALLOW:
            return False
        warnings.warn(
            f"the map has {self.depth:.3g} contacts within chromosomes for each usable bin, fewer than {SHALLOW:.0f}: "
            f"{what} are scored but none is called. Coarser bins or pooled replicates have more.",
            UserWarning,
            stacklevel=4,
        )
        return True


def read_balanced(
    adata: AnnData,
    *,
    key: str,
    axis: Axis,
    weight_key: str,
    divisive: bool,
    ignore_diags: int,
    breaks: Breaks,
    allow_fractional: bool = False,
) -> BalancedMap:
    """Read a balanced map, and estimate the decay of its regions."""
    contacts = read_contacts(adata, key, axis=axis, allow_fractional=allow_fractional)
    weights = read_weights(adata, contacts, weight_key, divisive)
    return with_decays(contacts, weights, read_breaks(contacts, breaks), ignore_diags)


def with_decays(contacts: Contacts, weights: np.ndarray, breaks: np.ndarray | None, ignore_diags: int) -> BalancedMap:
    """Estimate the decay of the regions of a map whose weights are known."""
    decays = expected_map(contacts.map, weights, ignore_diags=ignore_diags, breaks=breaks)
    total = sum(2.0 * decay.sums.count[ignore_diags:].sum() for decay in decays)
    usable = int(np.isfinite(weights).sum())
    return BalancedMap(contacts, weights, breaks, decays, total / max(usable, 1))


def depth_of(contacts: Contacts, ignore_diags: int) -> float:
    """Contacts within chromosomes for each bin that has any."""
    total = 0.0
    bins = 0
    for name in contacts.map.chromosomes():
        span = contacts.map.span(name)
        sums, _ = cis_rows(contacts.map.counts, span.start, span.stop, ignore_diags).marginals()
        total, bins = total + float(sums.sum()), bins + int((sums > 0).sum())
    return total / max(bins, 1)


def in_bins(name: str, value: Any, resolution: int, minimum: int = 1) -> int:
    """Return a length in base pairs as a number of bins."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError(f"{name} must be a length in base pairs, found {value!r}.")
    bins = round(value / resolution)
    if bins < minimum:
        raise ValueError(
            f"{name} must be at least {minimum} bin{'s' if minimum > 1 else ''} of {resolution} bp, found {value!r} bp."
        )
    return bins
