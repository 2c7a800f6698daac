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
    own_scales
        Height that one cut site of the treatment itself stands for in each window, 0 for windows in which the
        treatment has no say; empty where a control is deep enough, or there is none.
    excess
        Share of the control's counting noise that a control as deep as the treatment would not have.
    per_fragment
        Cut sites of the control that one of its fragments has in a window.
    """

    windows: tuple[int, ...]
    scales: tuple[float, ...]
    floor: float
    own_scales: tuple[float, ...] = ()
    excess: float = 0.0
    per_fragment: int = 2

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

    def with_uncertainty(
        self,
        *,
        treatment_length: float,
        treatment_sites: int,
        treatment_number: int,
        control_number: int,
        control_sites: int,
        own_window: int,
    ) -> Background:
        """Take the counting noise of a control that is shallower than the treatment into the background.

        What the control shows of a window is a count c. A control r times as deep as the treatment, r < 1, has noise in
        excess of that of an equally deep one, whose largest of several windows needs no correction: variance
        (1 - r) c. The background then lies between what the control shows and the upper limit of a score interval,

            u = c + (1 - r) z^2 / 2 + z sqrt((1 - r) (c + (1 - r) z^2 / 4))

        and the window of the treatment itself tells where: it is at least the background, as it holds the peaks too.
        So the level is max(c, min(u, own window)), in units of the pile-up. Windows narrower than ``own_window`` would
        be the peak itself: there the treatment has no say.
        """
        share = control_number / max(treatment_number, 1)
        if share >= 1.0:
            return self
        own = [
            treatment_length / (window * max(treatment_sites, 1)) if window >= own_window else 0.0
            for window in self.windows
        ]
        per_fragment = max(round(control_sites / max(control_number, 1)), 1)
        return self._replace(own_scales=tuple(own), excess=1.0 - share, per_fragment=per_fragment)

    @classmethod
    def without_control(
        cls, *, treatment_length: float, treatment_sites: int, genome_size: float, window: int = 10_000
    ) -> Background:
        """Background of the treatment itself, in a wide window alone: near windows would hold the peak."""
        return cls(
            (int(window),), (treatment_length / (window * max(treatment_sites, 1)),), treatment_length / genome_size
        )
