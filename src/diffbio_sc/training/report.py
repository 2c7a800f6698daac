"""What a fit did."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class FitReport(NamedTuple):
    """What a fit did.

    Attributes
    ----------
    history
        Curves by name, one value a step.
    converged
        Whether the stopping rule was met before the steps ran out.
    steps
        Steps (rounds, epochs) taken.
    seconds
        Wall time.
    """

    history: dict[str, np.ndarray]
    converged: bool
    steps: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the report in types that h5ad and zarr store."""
        history = {name: np.asarray(curve, dtype=np.float64) for name, curve in self.history.items()}
        return {
            "history": history,
            "converged": bool(self.converged),
            "steps": int(self.steps),
            "seconds": float(self.seconds),
        }

    def __repr__(self) -> str:
        ending = "converged" if self.converged else "not converged"
        curves = [
            f"{name} {curve[0]:.6g} -> {curve[-1]:.6g}" for name, curve in self.history.items() if np.size(curve) > 0
        ]
        return f"FitReport({', '.join([ending, f'{self.steps} steps', f'{self.seconds:.3g} s', *curves])})"
