"""What the other modalities say of proteins: a kernel regression on the embedding, in closed form.

The decoder is one map for all cells, and fitted to counts, in which cells with many reads count most. The regression
predicts log1p counts (of Gaussian modalities the values) from the place that the other modalities give a cell and from
their depths, and follows what differs between kinds of cells. Its settings come from cells left out one by one.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from diffbio_sc.numerics.latent.kernel_ridge import KernelRidge, fit_kernel_ridge
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.embedding import Aligned
from diffbio_sc.operators.multiomics.multiomics_vae.networks import filled

_FEWEST_CELLS = 20  # below which the decoder alone is taken


class Regression(nnx.Module):
    """Expected log1p counts of one modality (Gaussian: values) from the embedding by the others.

    Parameters
    ----------
    modality
        Number of the modality.
    config
        Settings.
    """

    def __init__(self, modality: int, config: MultiOmicsVAEConfig):
        features, modalities = config.modality_dims[modality], len(config.modality_dims)
        inputs = config.latent_dim + modalities
        self.modality = modality
        self.logarithmic = config.modality_likelihoods[modality] != "gaussian"
        self.aligned = Aligned(config)
        self.is_fitted = FittedStatistic(jnp.float32(0.0))
        # Depths of the other modalities less their means in the batch, in units of the embedding.
        self.size_means = FittedStatistic(filled((config.n_batches, modalities), 0.0))
        self.size_scale = FittedStatistic(filled(modalities, 0.0))
        self.centres = FittedStatistic(filled((config.n_centres, inputs), 0.0))
        self.squared_scale = FittedStatistic(jnp.float32(1.0))
        self.coefficients = FittedStatistic(filled((config.n_centres, features), 0.0))
        self.constant = FittedStatistic(filled(features, 0.0))
        self.explained = FittedStatistic(filled(features, 0.0))
        # Of the transformed values by those of the decoder, for cells that have the modality.
        self.calibration = FittedStatistic(filled((2, features), 0.0))

    def fit(
        self,
        embedding: Float[np.ndarray, "cells latent"],
        sizes: Float[np.ndarray, "cells modalities"],
        batch: Int[np.ndarray, " cells"],
        targets: Int[np.ndarray, " targets"],
        values: Float[np.ndarray, "targets features"],
        rng: np.random.Generator,
    ) -> None:
        """Fit alignment and regression.

        Parameters
        ----------
        embedding
            Place of each cell by its other modalities, on the stretched axes.
        sizes
            Log of the depth of the other modalities, NaN where a cell lacks one.
        batch
            Code of each cell's batch.
        targets
            Which of the cells have the modality too.
        values
            Counts of those (Gaussian: values).
        rng
            Generator of clusters and centres.
        """
        self.is_fitted[...] = jnp.float32(len(targets) >= _FEWEST_CELLS)
        if len(targets) < _FEWEST_CELLS:
            return
        self.aligned.fit(embedding, batch, rng)
        batches, modalities = self.size_means.shape
        known = np.isfinite(sizes)
        means = np.zeros((batches, modalities))
        overall = np.where(known, sizes, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        for code in range(batches):
            here = batch == code
            number = known[here].sum(0)
            means[code] = np.where(
                number > 0, np.where(known, sizes, 0.0)[here].sum(0) / np.maximum(number, 1), overall
            )
        deviation = np.where(known, sizes - means[batch], np.nan)
        spread = np.sqrt(np.nan_to_num(np.nansum(deviation**2, 0) / np.maximum(known.sum(0), 1)))
        self.size_means[...] = jnp.asarray(means, jnp.float32)
        # A standard deviation of depth is as long as one along a typical axis.
        unit = embedding.std()
        self.size_scale[...] = jnp.asarray(np.where(spread > 1e-6, unit / np.maximum(spread, 1e-6), 0.0), jnp.float32)
        inputs = self._inputs(embedding[targets], sizes[targets], batch[targets], np)
        fitted = fit_kernel_ridge(inputs, self.transformed(values), len(self.centres[...]), rng)
        self.centres[...] = jnp.asarray(zero_padded(fitted.centres, self.centres.shape))
        self.coefficients[...] = jnp.asarray(zero_padded(fitted.coefficients, self.coefficients.shape))
        self.squared_scale[...] = jnp.float32(fitted.squared_scale)
        self.constant[...] = jnp.asarray(fitted.constant, jnp.float32)
        self.explained[...] = jnp.asarray(fitted.explained, jnp.float32)

    def calibrate(
        self, decoded: Float[np.ndarray, "cells features"], values: Float[np.ndarray, "cells features"]
    ) -> None:
        """Least squares of each feature's transformed values by those that the decoder gives the same cells."""
        told, wanted = self.transformed(decoded), self.transformed(values)
        deviation = told - told.mean(0)
        slope = (deviation * wanted).sum(0) / np.maximum((deviation**2).sum(0), 1e-9)
        slope = np.maximum(slope, 0.0)
        self.calibration[...] = jnp.asarray(np.stack([wanted.mean(0) - slope * told.mean(0), slope]), jnp.float32)

    def transformed(self, values: Float[np.ndarray, "cells features"]) -> Float[np.ndarray, "cells features"]:
        """Values on the scale of the regression."""
        values = np.asarray(values, np.float64)
        return np.log1p(np.maximum(values, 0.0)) if self.logarithmic else values

    def imputed(self, embedding: Any, sizes: Any, batch: Any, *, library: Any = jnp) -> Any:
        """Typical values of cells that lack the modality, by ``library``, jax.numpy or numpy.

        Of counts those are ``expm1`` of the expected log1p counts: what half of such cells exceed, more or less, where
        the mean count is set by the few cells with the most.
        """
        parts = [self.centres, self.squared_scale, self.coefficients, self.constant, self.explained]
        ridge = KernelRidge(*(library.asarray(part[...]) for part in parts))
        result = ridge.predict(self._inputs(embedding, sizes, batch, library), library=library)
        return library.expm1(library.maximum(result, 0.0)) if self.logarithmic else result

    def calibrated(self, decoded: Any, *, library: Any = jnp) -> Any:
        """The decoder's values on the scale of :meth:`imputed`."""
        constant, slope = library.asarray(self.calibration[...])
        if not self.logarithmic:
            return constant + slope * decoded
        return library.expm1(library.maximum(constant + slope * library.log1p(library.maximum(decoded, 0.0)), 0.0))

    def _inputs(self, embedding: Any, sizes: Any, batch: Any, library: Any) -> Any:
        means, scale = (library.asarray(part[...]) for part in (self.size_means, self.size_scale))
        known = library.isfinite(sizes)
        depth = library.where(known, (library.where(known, sizes, 0.0) - means[batch]) * scale, 0.0)
        return library.concatenate([self.aligned(embedding, batch, library=library), depth], axis=1)
