"""Early stopping."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass
class EarlyStopping:
    """Watches a loss, one value per epoch.

    Attributes
    ----------
    patience
        Number of epochs without a lower loss after which to stop; None never stops.
    best
        Lowest loss so far.
    waited
        Number of epochs since the lowest loss.
    """

    patience: int | None
    best: float = math.inf
    waited: int = 0

    def update(self, loss: float) -> bool:
        """Take the loss of an epoch; return whether it is the lowest so far (a non-finite one never is)."""
        lowest = math.isfinite(loss) and loss < self.best
        if lowest:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        return lowest

    @property
    def stops(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
