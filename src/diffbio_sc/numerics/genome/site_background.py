r"""Local background of a pile-up from the cut sites around each position, in units of the pile-up's height.

The background is the largest of the mean over the genome and of means over windows about the position (Zhang et al.
2008, Genome Biology 9:R137),

    lambda = max(lambda_genome, lambda_d, lambda_1k, lambda_10k)

from the sites of a control scaled to the depth of the treatment, or of the treatment itself in its widest window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Background"]


class Background(NamedTuple):
    """Windows of a local background and what turns their counts into heights of the treatment's pile-up.

    Attributes
    ----------
    windows
        Width of the windows about cut sites, in base pairs.
    scales
        Height that one cut site in the window stands for.
    floor
        Mean height over the genome.
    """

    windows: tuple[int, ...]
    scales: tuple[float, ...]
    floor: float

    def scaled(self, factor: float) -> Background:
        """The background of a treatment whose heights are multiplied by ``factor``."""
        return self._replace(scales=tuple(factor * scale for scale in self.scales), floor=factor * self.floor)

    @classmethod
    def with_control(
        cls,
        *,
        treatment_length: float,
        control_sites: int,
        fragment_length: float,
        genome_size: float,
        windows: Sequence[int] = (1000, 10_000),
    ) -> Background:
        """Background of a control, scaled to the depth of the treatment.

        Parameters
        ----------
        treatment_length
            Sum of the lengths of the treatment's fragments.
        control_sites
            Number of cut sites of the control: two a fragment, one a read.
        fragment_length
            Length d that reads are extended to, or the mean length of fragments.
        genome_size
            Mappable size of the genome.
        windows
            Windows beyond d.
        """
        d = int(fragment_length)
        ratio = treatment_length / max(control_sites * fragment_length, 1e-300)
        widths = (d, *(int(width) for width in windows))
        scales = (ratio, *(fragment_length / width * ratio for width in windows))
        return cls(widths, scales, treatment_length / genome_size)

    @classmethod
    def without_control(
        cls, *, treatment_length: float, treatment_sites: int, genome_size: float, window: int = 10_000
    ) -> Background:
        """Background of the treatment itself, in a wide window alone: near windows would hold the peak."""
        return cls(
            (int(window),), (treatment_length / (window * max(treatment_sites, 1)),), treatment_length / genome_size
        )
