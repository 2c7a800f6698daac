"""What narrow and broad marks are to the two-state chain: enrichment, cost of a change, windows of the background.

Counts in bins and fragments share the model, not every number, and here is why. Fragments give the borders of a peak to
the base pair and every fragment counts once, so that their chain can take a lower cost of a change; it measures the
enrichment on the data themselves, between the limits below, and asks for a log-likelihood ratio besides. Bins come from
any assay and any width: their enrichment is fixed, the same as that of the operator before training. One set for both
costs something on either side: with the numbers of bins 5 of the 378 motifs among the best 700 CTCF peaks are lost
(``benchmarks/peaks.py ctcf``), with a cost of 2.5 bins make one or two more errors on 16 expert labels of H3K4me3
(``benchmarks/peaks.py labels``).

This module needs nothing but Python, so that the operator and both engines take their numbers from here.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BROAD_BINS",
    "BROAD_FRAGMENTS",
    "EXPECTED_READS",
    "LEAST_LOG10_P_BINS",
    "LEAST_LOG10_P_FRAGMENTS",
    "LEAST_LOG_ODDS_FRAGMENTS",
    "LEVEL_WINDOW",
    "LIMIT",
    "NARROW_BINS",
    "NARROW_FRAGMENTS",
    "NARROW_FOLD_LIMITS",
    "SHALLOW_CONTROL",
    "WIDEST_WINDOW",
    "Mark",
    "bins_of_window",
]


class Mark(NamedTuple):
    """A kind of mark.

    Attributes
    ----------
    fold
        Ratio of the rate in a peak to the background's.
    penalty
        Cost, in nats, of each change of state.
    windows
        Widths, in base pairs, of the windows of the background without a control.
    control_windows
        The same with a control. Windows shorter than a fragment or two show what is local to it, such as a repeat.
    own_window
        Narrowest window in which the treatment itself has a say beside a control that is shallower: see
        :meth:`diffbio_sc.numerics.genome.site_background.Background.with_uncertainty`. It is several times as wide as
        a peak of the mark. Of narrow marks the widest one that keeps every null set at 2 peaks or fewer, of 2, 3 and
        10 kb (``benchmarks/peaks.py nulls``).
    """

    fold: float
    penalty: float
    windows: tuple[int, ...]
    control_windows: tuple[int, ...]
    own_window: int


NARROW_BINS = Mark(5.0, 3.0, (10_000,), (250, 1000, 10_000), 2000)
# The fold is where measuring the enrichment starts; windows of the mean length of fragments come in with a control.
NARROW_FRAGMENTS = Mark(3.0, 2.5, (10_000,), (1000, 10_000), 2000)
NARROW_FOLD_LIMITS = (2.0, 6.0)
# Quantile of the standard normal law up to which the background of a shallow control goes: 2 in 100 places lie above.
LIMIT = 2.0
# Domains fill their own windows: without a control the background is the lower of two levels of the genome, that of
# windows of LEVEL_WINDOW. Cost and windows: benchmarks/peaks.py labels and breadths.
BROAD_BINS = Mark(5.0, 60.0, (), (10_000,), 10_000)
BROAD_FRAGMENTS = Mark(5.0, 60.0, (), (1000, 10_000), 10_000)
LEVEL_WINDOW = 2000
# Peaks below these are left out whatever their false discovery rate (benchmarks/peaks.py ctcf and yeast).
LEAST_LOG10_P_BINS = 3.0
LEAST_LOG10_P_FRAGMENTS = 2.0
LEAST_LOG_ODDS_FRAGMENTS = 5.5
# A control less than this part as deep as the treatment is called shallow in a warning; so is one without reads on a
# chromosome where so many were to be expected.
SHALLOW_CONTROL = 0.05
EXPECTED_READS = 5.0
WIDEST_WINDOW = max(NARROW_BINS.windows)
_FEWEST_BINS = 20  # that is how many WIDEST_WINDOW has with bins of 500 bp


def bins_of_window(window: float, width: float) -> int:
    """Bins of a window of the background; the widest has 20 at least, or a peak of a bin or two would fill it."""
    least = _FEWEST_BINS if window >= WIDEST_WINDOW else 1
    return max(round(window / width), least)
