"""From the latent vector to the embedding: axes stretched, batches laid onto each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Bool, Float, Int

from diffbio_sc.numerics.latent import alignment
from diffbio_sc.numerics.padding import zero_padded
from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.contract import FittedStatistic
from diffbio_sc.operators.multiomics.multiomics_vae.config import MultiOmicsVAEConfig
from diffbio_sc.operators.multiomics.multiomics_vae.networks import filled


class Aligned(nnx.Module):
    """Moves cells of each batch within clusters, as Harmony does; nothing where there is one batch.

    The offsets of the decoders are the same for all cells of a batch, and what a cell's modalities tell is the same map
    in every batch. What is left of a batch in the latent vectors, such as an effect on one type of cells, or that the
    cells of one batch lack a modality and so are known less well, is seen only when the cells are looked at together.
    """

    def __init__(self, config: MultiOmicsVAEConfig):
        batches, clusters = config.n_batches, config.n_clusters if config.n_batches > 1 else 1
        self.centres = FittedStatistic(filled((batches, clusters, config.latent_dim), 0.0))
        self.log_weight = FittedStatistic(filled((batches, clusters), 0.0))
        self.offsets = FittedStatistic(filled((batches, clusters, config.latent_dim), 0.0))

    def fit(
        self, latent: Float[np.ndarray, "cells latent"], batch: Int[np.ndarray, " cells"], rng: np.random.Generator
    ) -> None:
        """Find clusters and offsets."""
        batches, most = self.log_weight.shape
        if batches == 1 or len(latent) == 0:
            return
        clusters = alignment.n_clusters(len(latent), most)
        found = alignment.fit_alignment(latent, batch, batches, clusters, rng)
        # Clusters that are not used have no weight.
        weight = np.full((batches, most), -1e3)
        weight[:, :clusters] = found.log_weight
        self.centres[...] = device_copy(zero_padded(found.centres, self.centres.shape))
        self.log_weight[...] = device_copy(weight, np.float32)
        self.offsets[...] = device_copy(zero_padded(found.offsets, self.offsets.shape))

    def __call__(self, latent: Any, batch: Any, *, library: Any = jnp) -> Any:
        """Place of each cell after the correction, by ``library``, jax.numpy or numpy."""
        if len(self.log_weight[...]) == 1:
            return latent
        parts = (self.centres[...], self.log_weight[...], self.offsets[...])
        if library is np:
            parts = tuple(np.asarray(part) for part in parts)
        return alignment.aligned(alignment.Alignment(*parts), latent, batch, library=library)


def of_others(present: Bool[np.ndarray, "cells modalities"], modality: int) -> Bool[np.ndarray, "cells modalities"]:
    """Which modalities the cells have beside one."""
    others = present.copy()
    others[:, modality] = False
    return others
