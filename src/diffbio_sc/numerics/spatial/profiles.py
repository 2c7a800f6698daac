"""Shapes that expression takes over a tissue: hotspot, streak, gradient, wave, foci."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

PATTERNS = ("hotspot", "streak", "gradient", "periodic", "foci")


def spatial_profile(
    places: Float[np.ndarray, "spots dimensions"], kind: str, rng: np.random.Generator
) -> Float[np.ndarray, " spots"]:
    """Draw a pattern (one of ``PATTERNS``) and return its height at each place, between 0 and 1."""
    place = (places - places.min(0)) / np.ptp(places, 0).max()
    if kind in ("hotspot", "foci"):
        number, share = (1, 0.1) if kind == "hotspot" else (6, 0.02)
        result = np.zeros(len(place))
        for _ in range(number):
            distance = ((place - place[rng.integers(len(place))]) ** 2).sum(1)
            result[distance <= np.sort(distance)[max(3, int(share * len(place))) - 1]] = 1
        return result
    angle = rng.uniform(0, 2 * np.pi if kind == "gradient" else np.pi)
    along = place @ [np.cos(angle), np.sin(angle)]
    if kind == "streak":
        return (abs(along - np.quantile(along, rng.uniform(0.15, 0.85))) < 0.07 * np.ptp(along)).astype(float)
    if kind == "gradient":
        return (along - along.min()) / np.ptp(along)
    waves = rng.uniform(3, 5) / np.ptp(place, 0).max()
    return 0.5 + 0.5 * np.sin(2 * np.pi * along * waves + rng.uniform(0, 2 * np.pi))
