"""A region of the genome, as text or numbers, and the bins and contacts of a map in it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from diffbio_sc._anndata.contacts import Contacts
from diffbio_sc.engines.contacts_expected import expected_map

_REGION = re.compile(r"^(?P<chrom>.+):(?P<start>[\d,_]+)-(?P<end>[\d,_]+)$")


def parse_region(region: Any, contacts: Contacts) -> tuple[str, int, int]:
    """Chromosome, start and end of ``"chr1"``, ``"chr1:1,000-2,000"`` or ``("chr1", 1000, 2000)``."""
    chromosomes = contacts.map.chromosomes()
    if region is None:
        region = chromosomes[0]
    if isinstance(region, str):
        match = _REGION.match(region)
        if region in chromosomes:
            span = contacts.map.span(region)
            return region, int(contacts.map.start[span.start]), int(contacts.map.end[span.stop - 1])
        if match is None:
            raise ValueError(
                f"region must be a chromosome or written as 'chr1:1000-2000', found {region!r}; chromosomes: "
                f"{chromosomes[:10]}."
            )
        numbers = [int(match[side].replace(",", "").replace("_", "")) for side in ("start", "end")]
        chrom, first, last = match["chrom"], *numbers
    else:
        try:
            chrom, first, last = str(region[0]), int(region[1]), int(region[2])
        except (TypeError, IndexError, ValueError):
            raise ValueError(f"region must be text or (chromosome, start, end), found {region!r}.") from None
    if chrom not in chromosomes:
        raise ValueError(f"the map has no chromosome {chrom!r}; chromosomes: {chromosomes[:10]}.")
    if last <= first:
        raise ValueError(f"region must have start < end, found {chrom}:{first}-{last}.")
    return chrom, first, last


def bins_of_region(region: Any, contacts: Contacts) -> slice:
    """Bins of the map that overlap the region."""
    chrom, first, last = parse_region(region, contacts)
    span = contacts.map.span(chrom)
    low = int(np.searchsorted(contacts.map.end[span], first, side="right")) + span.start
    high = int(np.searchsorted(contacts.map.start[span], last, side="left")) + span.start
    if high <= low:
        raise ValueError(f"the map has no bins in {chrom}:{first}-{last}.")
    return slice(low, high)


def region_matrix(found: Contacts, bins: slice, values: str, weights: np.ndarray | None) -> np.ndarray:
    """Symmetric matrix of a region of one chromosome."""
    block: Any = found.map.counts[bins, bins].toarray()
    matrix = block + np.triu(block, 1).T
    if values == "counts":
        return matrix
    assert weights is not None
    mine = weights[bins]
    balanced = matrix * mine[:, None] * mine[None, :]
    if values == "balanced":
        return balanced
    decay = _decay_of(found, bins, weights)
    place = np.arange(len(mine))
    expected = decay[np.abs(place[:, None] - place[None, :])]
    expected = np.where(np.isfinite(balanced), expected, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return expected if values == "expected" else balanced / expected


def _decay_of(found: Contacts, bins: slice, weights: np.ndarray) -> np.ndarray:
    name = found.map.chrom_names[found.map.chrom[bins.start]]
    span = found.map.span(name)
    (decay,) = expected_map(found.map.cis(name), weights[span])
    return decay.value
