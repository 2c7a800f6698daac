"""Early stopping."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass
class EarlyStopping:
    """Watches a loss, one value an epoch.

    Attributes
    ----------
    patience
        Epochs without progress after which to stop; None never stops.
    min_delta
        Fall of the loss that counts as progress.
    best
        Lowest loss so far.
    reference
        Loss at the last progress.
    waited
        Epochs since the last progress.
    """

    patience: int | None
    min_delta: float
    best: float = math.inf
    reference: float = math.inf
    waited: int = 0

    def update(self, loss: float) -> bool:
        """Take the loss of an epoch; return whether it is the lowest so far (a non-finite one never is)."""
        if math.isfinite(loss) and loss < self.reference - self.min_delta:
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1
        lowest = math.isfinite(loss) and loss < self.best
        if lowest:
            self.best = loss
        return lowest

    @property
    def stops(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
