"""A contact map: counts between pairs of equal bins of a genome."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import scipy.sparse as sp


@dataclasses.dataclass(frozen=True)
class ContactMap:
    """Contacts between bins in genomic order, without missing bins between the first and last of a chromosome.

    The distance of two bins of a chromosome in base pairs is therefore the difference of their positions times the
    resolution.
    """

    counts: sp.csr_array
    """Upper triangle (bins, bins), diagonal included: raw counts, column indices sorted."""
    chrom: np.ndarray
    """Code of each bin's chromosome (int32), never falling: an index into ``chrom_names``."""
    chrom_names: tuple[str, ...]
    """Names of the chromosomes."""
    start: np.ndarray
    """Start of each bin (int64), 0-based."""
    end: np.ndarray
    """End of each bin (int64), exclusive."""

    def __post_init__(self) -> None:
        n = len(self.chrom)
        if self.counts.shape != (n, n) or len(self.start) != n or len(self.end) != n:
            raise ValueError(
                f"counts must be a square of the {n} bins, found {self.counts.shape}, {len(self.start)} starts and "
                f"{len(self.end)} ends."
            )
        if n and (np.diff(self.chrom) < 0).any():
            raise ValueError("bins must lie in order of their chromosome's code.")

    @property
    def n_bins(self) -> int:
        """Number of bins."""
        return len(self.chrom)

    @cached_property
    def resolution(self) -> int:
        """Width of the bins in base pairs; the last of a chromosome may be shorter."""
        return int((self.end - self.start).max())

    def chromosomes(self) -> list[str]:
        """Names of the chromosomes that have bins, in their order."""
        return [self.chrom_names[code] for code in np.unique(self.chrom)]

    def span(self, name: str) -> slice:
        """Positions of a chromosome's bins."""
        if name not in self.chrom_names:
            raise KeyError(f"no chromosome {name!r}; chromosomes: {list(self.chrom_names)}.")
        code = self.chrom_names.index(name)
        first, last = np.searchsorted(self.chrom, [code, code + 1])
        return slice(int(first), int(last))

    def region(self, first: int, last: int) -> ContactMap:
        """Contacts among the bins from position ``first`` up to, not including, ``last``."""
        return ContactMap(
            sp.csr_array(self.counts[first:last, first:last]),
            self.chrom[first:last],
            self.chrom_names,
            self.start[first:last],
            self.end[first:last],
        )

    def cis(self, name: str) -> ContactMap:
        """Contacts within one chromosome."""
        span = self.span(name)
        return self.region(span.start, span.stop)

    def regions(self, breaks: np.ndarray | None = None) -> list[tuple[str, int, int]]:
        """Name, first and last (exclusive) position of each region that is worked through on its own.

        Parameters
        ----------
        breaks
            Positions where a chromosome is cut further, such as at its centromere. Parts are named
            ``chr1_p``, ``chr1_q`` or, if there are more than two, ``chr1_1``, ``chr1_2``, ...
        """
        result = []
        cuts = np.unique(np.asarray([] if breaks is None else breaks, np.int64))
        for name in self.chromosomes():
            span = self.span(name)
            inner = cuts[(cuts > span.start) & (cuts < span.stop)]
            edges = [span.start, *inner.tolist(), span.stop]
            if len(edges) == 2:
                names = [name]
            elif len(edges) == 3:
                names = [f"{name}_p", f"{name}_q"]
            else:
                names = [f"{name}_{part + 1}" for part in range(len(edges) - 1)]
            result += [(part, a, b) for part, a, b in zip(names, edges[:-1], edges[1:], strict=True)]
        return result
