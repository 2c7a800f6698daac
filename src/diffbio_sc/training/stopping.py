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
        Number of epochs since the loss fell below ``reference`` by ``min_progress`` of it.
    min_progress
        Share of the loss that counts as progress.
    reference
        Loss when that was last the case.
    """

    patience: int | None
    best: float = math.inf
    waited: int = 0
    min_progress: float = 0.0
    reference: float = math.inf

    def update(self, loss: float) -> bool:
        """Take the loss of an epoch; return whether it is the lowest so far (a non-finite one never is)."""
        lowest = math.isfinite(loss) and loss < self.best
        if lowest:
            self.best = loss
        if lowest and (math.isinf(self.reference) or loss < self.reference - self.min_progress * abs(self.reference)):
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1
        return lowest

    @property
    def stops(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
