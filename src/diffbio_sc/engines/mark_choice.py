"""Whether a mark is narrow or broad: by how far its counts vary together, once for all samples of an experiment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffbio_sc._checks import name_heads
from diffbio_sc._logging import logger
from diffbio_sc.numerics.genome.background_host import breadth, broad_weight, level_contrast
from diffbio_sc.numerics.genome.marks import LEVEL_WINDOW

__all__ = ["BREADTH_WIDTH", "Breadth", "choose_mark", "coarsen", "measure_breadth", "tell_unguarded"]

BREADTH_WIDTH = 500  # base pairs per bin
_LIMIT = 20.0  # counts of those bins are cut at this multiple of their mean
_ENRICHED = 1.5  # contrast below which a sample shows no mark at all


class Breadth(NamedTuple):
    """How far the counts of a sample vary together.

    Attributes
    ----------
    breadth
        Covariance at 5 kb over that at 500 bp.
    contrast
        Ratio of the two levels of the sample.
    """

    breadth: float
    contrast: float

    @property
    def mark(self) -> str | None:
        """``"broad"`` or ``"narrow"``, None for a sample that shows no mark, such as an input."""
        if broad_weight(self.breadth, self.contrast) > 0.5:
            return "broad"
        return "narrow" if self.contrast >= _ENRICHED else None


def coarsen(parts: Sequence[np.ndarray], width: float) -> tuple[list[np.ndarray], float]:
    """Add up bins of ``width`` to bins of about 500 bp; the bins and their width."""
    factor = max(int(round(BREADTH_WIDTH / width)), 1)
    return [part[: len(part) // factor * factor].reshape(-1, factor).sum(1) for part in parts], factor * width


def measure_breadth(sequences: Sequence[np.ndarray], width: float) -> Breadth:
    """Breadth of a sample, where few bins of extreme counts (repeats, mitochondria) decide nothing."""
    number = sum(map(len, sequences))
    if not number:
        return Breadth(0.0, 1.0)
    limit = _LIMIT * max(sum(float(part.sum(dtype=np.float64)) for part in sequences) / number, 1.0)
    return Breadth(
        breadth(sequences, width, limit=limit), level_contrast(sequences, max(round(LEVEL_WINDOW / width), 1))
    )


def choose_mark(measured: Mapping[str, Breadth]) -> str:
    """Return ``"narrow"`` or ``"broad"``, for all samples of an experiment together, by the majority of their marks.

    Samples that show no mark have no vote. The choice is said in one line at the default verbosity, as the kind of mark
    decides what a peak is; a warning names samples that look otherwise.
    """
    if not measured:
        return "narrow"
    marks = {name: one.mark for name, one in measured.items()}
    votes = {kind: [name for name, mark in marks.items() if mark == kind] for kind in ("narrow", "broad")}
    chosen = "broad" if len(votes["broad"]) > len(votes["narrow"]) else "narrow"
    other = votes["narrow" if chosen == "broad" else "broad"]
    if other:
        warnings.warn(
            f"mode='auto' calls all samples as {chosen} marks, but {other[:5]} ({len(other)} of {len(measured)}) look "
            f"{'narrow' if chosen == 'broad' else 'broad'}: call them apart, or pass mode='narrow' or mode='broad'.",
            UserWarning,
            stacklevel=3,
        )
    what = f"{len(votes[chosen])} of {len(measured)} samples look so" if any(marks.values()) else "none shows a mark"
    if len(measured) == 1:
        only = next(iter(measured.values()))
        what = f"breadth {only.breadth:.2f}, contrast {only.contrast:.1f}{'' if only.mark else ', no clear mark'}"
    doubt = "Pass mode='narrow' if these are no domains." if chosen == "broad" else "Pass mode='broad' for domains."
    logger.warning(f"mode='auto': called as {chosen} marks ({what}). {doubt}")
    return chosen


def tell_unguarded(mark: str, names: Sequence[str]) -> None:
    """Say what cannot be known of samples that have neither a control nor a blacklist.

    Narrow marks are mostly right without, and ATAC-seq has no control: a line in the log. Of domains any may be false:
    a warning.
    """
    if not names:
        return
    of = f"of {name_heads(names)} "
    if mark == "narrow":
        logger.warning(f"Peaks {of}have neither a control nor a blacklist: repeats look like peaks.")
        return
    warnings.warn(
        f"broad marks {of}are called without a control or a blacklist: repeats, gains of copy number and slow "
        "unevenness fill long stretches as domains do, and the counts alone cannot tell which. Pass control=..., or "
        "blacklist=... for what is known.",
        UserWarning,
        stacklevel=4,
    )
