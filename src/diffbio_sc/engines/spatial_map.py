"""Smooth maps of genes for pictures: the mean of a gene's Gaussian process on the log scale."""

from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.spatial.slide_basis import slide_bases


def smooth_map(
    values: np.ndarray, coordinates: np.ndarray, slides: np.ndarray, fraction: float, lengthscale: float
) -> np.ndarray:
    """Mean of a gene's Gaussian process, slide by slide, around the slide's mean.

    Parameters
    ----------
    values
        Expression of the spots.
    coordinates, slides
        Places, and code of each spot's slide.
    fraction
        Fraction of spatial variance.
    lengthscale
        Lengthscale, in units of the coordinates.
    """
    fraction = float(np.clip(fraction, 0.01, 0.99))
    result = np.empty(len(values), np.float32)
    for slide, basis in enumerate(slide_bases(coordinates, slides, lengthscale)):
        inside = slides == slide
        mean = values[inside].mean()
        # The fraction is of the variance over this slide's spots, of which the kernel alone gives trace / spots.
        typical = basis.values.sum() / max(inside.sum(), 1)
        shrinkage = basis.values / (basis.values + typical * (1 - fraction) / fraction)
        result[inside] = mean + basis.vectors @ (shrinkage * (basis.vectors.T @ (values[inside] - mean)))
    return result
