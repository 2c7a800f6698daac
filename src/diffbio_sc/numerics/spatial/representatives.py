"""Few spots or places that stand for many."""

from __future__ import annotations

import numpy as np

from diffbio_sc._random import as_generator
from diffbio_sc.numerics.spatial.slides import slide_codes


def representative_spots(
    coordinates: np.ndarray,
    groups: np.ndarray | None = None,
    size: int = 1000,
    generator: np.random.Generator | int | None = 0,
) -> np.ndarray:
    """Choose spots on which the exact likelihood still sees all scales.

    Half are scattered over all spots, for the long lengthscales; half are about 20 small neighbourhoods, for the
    short ones, which a thinned sample no longer shows.

    Parameters
    ----------
    coordinates
        Positions (n, d).
    groups
        Slide codes (n,); neighbourhoods do not cross slides.
    size
        Number of spots to choose; all of them if there are no more.
    generator
        Seed or generator.

    Returns
    -------
    Sorted indices.
    """
    coordinates = np.asarray(coordinates, np.float64)
    spots = len(coordinates)
    if spots <= size:
        return np.arange(spots)
    codes = slide_codes(groups, spots)
    random = as_generator(generator)
    order = random.permutation(spots)
    chosen = np.zeros(spots, bool)
    chosen[order[: size - size // 2]] = True
    wanted = size // 2
    each = max(2, -(-wanted // 20))
    for centre in random.permutation(spots):
        if wanted <= 0:
            break
        distance = np.square(coordinates - coordinates[centre]).sum(1)
        distance[codes != codes[centre]] = np.inf
        nearest = np.argpartition(distance, min(each, spots - 1))[:each]
        new = nearest[~chosen[nearest] & np.isfinite(distance[nearest])][:wanted]
        chosen[new] = True
        wanted -= len(new)
    return np.flatnonzero(chosen)


def representative_places(coordinates: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """All places if they are few, else the centres of gravity of a grid's occupied squares; and the squares' side."""
    if len(coordinates) <= most:
        return coordinates, 0.0
    origin = coordinates.min(0)
    extent = coordinates.max(0) - origin
    wide = extent[extent > 0]
    if not len(wide):
        return coordinates[:1], 0.0
    side = float(np.exp(np.log(wide / most ** (1 / len(wide))).mean()))
    while True:
        squares = np.floor((coordinates - origin) / side).astype(np.int64)
        _, inverse, size = np.unique(squares, axis=0, return_inverse=True, return_counts=True)
        if len(size) <= most:
            break
        side *= 1.05
    inverse = inverse.ravel()
    sums = [np.bincount(inverse, weights=axis, minlength=len(size)) for axis in coordinates.T]
    return np.stack(sums, 1) / size[:, None], side
