"""What the other modalities say of proteins: a kernel regression on the embedding, in closed form.

The decoder is one map for all cells, and fitted to counts, in which cells with many reads count most. The regression
predicts log1p counts from the place that the other modalities give a cell and from
their depths, and follows what differs between kinds of cells. Its settings come from cells left out one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Float, Int

from diffbio_sc.numerics.latent.kernel_ridge import KernelRidge, fit_kernel_ridge
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.embedding import Aligned
from diffbio_sc.operators.multiomics.multiomics_vae.networks import filled

_FEWEST_CELLS = 20  # below which the decoder alone is taken
_TRIAL_CENTRES = 256  # of the kernel, to see whether depth helps


class Regression(nnx.Module):
    """Expected log1p counts of one modality from the embedding by the others.

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
        self.aligned = Aligned(config)
        self.is_fitted = FittedStatistic(device_copy(0.0, np.float32))
        # Depths of the other modalities less their means in the batch, in units of the embedding.
        self.size_means = FittedStatistic(filled((config.n_batches, modalities), 0.0))
        self.size_scale = FittedStatistic(filled((config.n_batches, modalities), 0.0))
        self.centres = FittedStatistic(filled((config.n_centres, inputs), 0.0))
        self.squared_scale = FittedStatistic(device_copy(1.0, np.float32))
        self.coefficients = FittedStatistic(filled((config.n_centres, features), 0.0))
        self.constant = FittedStatistic(filled(features, 0.0))
        self.explained = FittedStatistic(filled(features, 0.0))
        # Variance of log1p levels beyond that of counting: around what is predicted, and around the mean.
        self.spread = FittedStatistic(filled((2, features), 0.0))

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
            Counts of those.
        rng
            Generator of clusters and centres.
        """
        self.is_fitted[...] = device_copy(len(targets) >= _FEWEST_CELLS, np.float32)
        if len(targets) < _FEWEST_CELLS:
            return
        self.aligned.fit(embedding, batch, rng)
        means, spread = _moments(sizes, batch, len(self.size_means[...]))
        self.size_means[...] = device_copy(means, np.float32)
        # A standard deviation of depth, within the batch, is as long as one along a typical axis.
        scale = np.where(spread > 1e-6, embedding.std() / np.maximum(spread, 1e-6), 0.0)
        outputs, chosen = _transformed(values), []
        for factor in (0.0, 1.0):  # depth is read where it helps cells left out
            self.size_scale[...] = device_copy(factor * scale, np.float32)
            inputs = self._inputs(embedding[targets], sizes[targets], batch[targets], np)
            trial = fit_kernel_ridge(inputs, outputs, _TRIAL_CENTRES, np.random.default_rng(0))
            chosen.append((trial.explained.mean(), factor, inputs))
        _, factor, inputs = max(chosen, key=lambda one: one[0])
        self.size_scale[...] = device_copy(factor * scale, np.float32)
        fitted = fit_kernel_ridge(inputs, outputs, len(self.centres[...]), rng)
        self.centres[...] = device_copy(zero_padded(fitted.centres, self.centres.shape))
        self.coefficients[...] = device_copy(zero_padded(fitted.coefficients, self.coefficients.shape))
        self.squared_scale[...] = device_copy(fitted.squared_scale, np.float32)
        self.constant[...] = device_copy(fitted.constant, np.float32)
        self.explained[...] = device_copy(fitted.explained, np.float32)
        # Errors of cells left out: those of cells fitted to would be too small.
        total, told = outputs.var(0), np.maximum(fitted.predict(inputs), 0.0)
        left = np.minimum(1.0 - fitted.explained, 1.0) * total
        counting = [_sampling_variance(told, np).mean(0), _sampling_variance(fitted.constant, np)]
        self.spread[...] = device_copy(np.maximum([left - counting[0], total - counting[1]], 0.0), np.float32)

    def imputed(self, embedding: Any, sizes: Any, batch: Any, *, library: Any = jnp) -> Any:
        """Typical counts of cells that lack the modality, by ``library``, jax.numpy or numpy.

        Those are ``expm1`` of the expected log1p counts: what half of such cells exceed, more or less, where
        the mean count is set by the few cells with the most.
        """
        parts = [self.centres, self.squared_scale, self.coefficients, self.constant, self.explained]
        ridge = KernelRidge(*(library.asarray(part[...]) for part in parts))
        result = ridge.predict(self._inputs(embedding, sizes, batch, library), library=library)
        return library.expm1(library.maximum(result, 0.0))

    def measured(self, values: Any, imputed: Any, is_alone: Any, *, library: Any = jnp) -> Any:
        """Typical counts of cells that have the modality: between what was counted and what the others tell.

        Of a cell whose log1p level is drawn from N(f, s2) around what the regression predicts, and whose reads are
        drawn by Poisson from that level, the expected level is ``f + w (log1p(count) - f)`` with
        ``w = s2 / (s2 + e2)`` and ``e2 = m / (1 + m)**2``, the variance of a log1p count around its mean m.

        Parameters
        ----------
        values
            Counts (cells, features).
        imputed
            Values of :meth:`imputed` of the same cells.
        is_alone
            Whether a cell has no other modality (cells,); f is then the mean of the feature, s2 its variance.
        """
        spread, constant = library.asarray(self.spread[...]), library.asarray(self.constant[...])
        alone = library.asarray(is_alone)[:, None]
        level = library.where(alone, constant, library.log1p(imputed))
        between, within = library.where(alone, spread[1], spread[0]), _sampling_variance(level, library)
        weight = between / library.maximum(between + within, 1e-9)
        counted = library.log1p(library.maximum(values, 0.0))
        return library.expm1(library.maximum(level + weight * (counted - level), 0.0))

    def _inputs(self, embedding: Any, sizes: Any, batch: Any, library: Any) -> Any:
        means, scale = (library.asarray(part[...]) for part in (self.size_means, self.size_scale))
        known = library.isfinite(sizes)
        depth = library.where(known, (library.where(known, sizes, 0.0) - means[batch]) * scale[batch], 0.0)
        return library.concatenate([self.aligned(embedding, batch, library=library), depth], axis=1)


def _sampling_variance(level: Any, library: Any) -> Any:
    """Variance of log1p of a Poisson count whose typical log1p is ``level``, to first order."""
    level = library.maximum(level, 0.0)
    return library.expm1(level) * library.exp(-2.0 * level)


def _transformed(counts: Float[np.ndarray, "cells features"]) -> Float[np.ndarray, "cells features"]:
    return np.log1p(np.maximum(np.asarray(counts, np.float64), 0.0))


def _moments(
    sizes: Float[np.ndarray, "cells modalities"], batch: Int[np.ndarray, " cells"], batches: int
) -> tuple[Float[np.ndarray, "batches modalities"], Float[np.ndarray, "batches modalities"]]:
    """Mean and standard deviation of each modality's sizes in each batch; of all cells where a batch has under 2."""

    def of(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        known = np.isfinite(sizes[chosen])
        number = np.maximum(known.sum(0), 1)
        values = np.where(known, sizes[chosen], 0.0)
        mean = values.sum(0) / number
        deviation = np.where(known, values - mean, 0.0)
        return mean, np.sqrt((deviation**2).sum(0) / number), known.sum(0) > 1

    overall = of(np.ones(len(batch), bool))
    found = [of(batch == code) for code in range(batches)]
    means = np.stack([np.where(enough, mean, overall[0]) for mean, _, enough in found])
    return means, np.stack([np.where(enough, spread, overall[1]) for _, spread, enough in found])
