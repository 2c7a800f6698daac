"""Covariates that were estimated with an error at each spot, as far as they vary smoothly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from diffbio_sc.numerics.spatial.kriging import smooth
from diffbio_sc.numerics.spatial.layout import lengthscale_grid, spot_spacing
from diffbio_sc.numerics.spatial.representatives import representative_spots
from diffbio_sc.numerics.spatial.variance import VarianceComponents

_FITTED_SPOTS = 500  # an eigendecomposition of these for each lengthscale
_NEIGHBOURS = 24  # cells of spots in each prediction: as near to the truth as with 48, at a seventh of the time
_FEWEST_ON_A_SLIDE = 3


def smooth_covariates(
    covariates: Float[np.ndarray, "spots columns"],
    coordinates: Float[np.ndarray, "spots axes"],
    slides: Int[np.ndarray, " spots"],
    used: Bool[np.ndarray, " spots"] | None = None,
) -> Float[np.ndarray, "spots columns"]:
    """Posterior mean of each covariate under a Gaussian process of its own, by slide.

    What an estimated covariate leaves of a gene's pattern is the pattern times the error's share of the variance, and
    that share is large from spot to spot and small over wide regions. The smooth part has hardly any error; what it
    lacks of the covariate varies from spot to spot, which is no pattern. Lengthscale and noise are those of highest
    restricted likelihood.

    Parameters
    ----------
    covariates
        Rows with missing values are left as they are.
    coordinates, slides
        Places and codes of slides.
    used
        Spots to smooth, and to smooth with; others are left as they are.
    """
    usable = np.isfinite(covariates).all(1) if used is None else used & np.isfinite(covariates).all(1)
    usable &= np.bincount(slides[usable], minlength=slides.max() + 1)[slides] >= _FEWEST_ON_A_SLIDE
    result = np.array(covariates, np.float64)
    if not usable.any():
        return result
    values, places, codes = result[usable], coordinates[usable], slides[usable]
    scales = lengthscale_grid(places, codes, spot_spacing(places, codes))
    chosen = representative_spots(places, codes, size=_FITTED_SPOTS)
    intercepts = (codes[chosen, None] == np.unique(codes[chosen])).astype(np.float64)
    fit = VarianceComponents(places[chosen], scales, intercepts, codes[chosen]).fit(values[chosen])
    smoothed = np.empty_like(values)
    for code in np.unique(codes):
        inside = codes == code
        smoothed[inside] = smooth(
            values[inside],
            places[inside],
            fit.lengthscale,
            fit.noise_ratio,
            exact_spots=_FITTED_SPOTS,
            neighbours=_NEIGHBOURS,
        )
    result[usable] = smoothed
    return result
