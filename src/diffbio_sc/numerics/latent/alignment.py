"""Batches laid onto each other within clusters of cells, as Harmony does it, by a map that new cells can take.

Harmony (Korsunsky et al. 2019, Nature Methods 16:1289) divides cells softly into clusters that hold all batches, and
takes off each cell the offsets of its batch in its clusters. The clusters of Harmony belong to the cells that it saw.
Here they end as centres in the space before the correction, one for each batch and cluster, so that the corrected place
is a smooth function of a cell's own place and batch, the same for cells of the fit and for new ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Settings of Harmony's paper and programs.
_WIDTH = 0.1  # of a soft cluster, in cosine distance
_DIVERSITY = 2.0  # strength of the pull toward clusters in which a batch is rare
_PRIOR_CELLS = 1.0  # cells by which an offset is drawn to 0
_ROUNDS = 10
_ASSIGNMENTS = 10  # of cells to clusters in each round
_CELLS_A_CLUSTER = 30


class Alignment(NamedTuple):
    """Clusters and what each batch is moved by in them.

    Attributes
    ----------
    centres
        Direction of each cluster in each batch, before the correction; of length 1.
    log_weight
        Log of the weight of each cluster in each batch.
    offsets
        What is taken off the cells of a batch in a cluster.
    """

    centres: Float[Any, "batches clusters latent"]
    log_weight: Float[Any, "batches clusters"]
    offsets: Float[Any, "batches clusters latent"]


def n_clusters(cells: int, largest: int) -> int:
    """Number of clusters for so many cells."""
    return int(np.clip(round(cells / _CELLS_A_CLUSTER), 1, largest))


def fit_alignment(
    latent: Float[np.ndarray, "cells latent"],
    batch: Int[np.ndarray, " cells"],
    n_batches: int,
    clusters: int,
    rng: np.random.Generator,
) -> Alignment:
    """Clusters and offsets by Harmony's rounds.

    Parameters
    ----------
    latent
        Place of each cell.
    batch
        Code of each cell's batch.
    n_batches
        Number of batches; those without cells are not moved.
    clusters
        Number of clusters.
    rng
        Generator of the start of the clusters.
    """
    from scipy.cluster.vq import kmeans2

    latent = np.asarray(latent, np.float64)
    design = np.eye(n_batches)[batch]
    share = design.mean(0)
    corrected = latent
    directions = _normalised(corrected)
    centres = _normalised(kmeans2(directions, clusters, minit="++", seed=rng)[0])
    member = _softmax(_closeness(directions, centres))
    for _ in range(_ROUNDS):
        before = corrected
        directions = _normalised(corrected)
        for _ in range(_ASSIGNMENTS):
            centres = _normalised(member.T @ directions)
            close = _closeness(directions, centres)
            seen = design.T @ member
            expected = share[:, None] * member.sum(0)
            diversity = _DIVERSITY * np.log((expected + 1.0) / (seen + 1.0))
            member = 0.5 * (member + _softmax(close + diversity[batch]))
        corrected = latent - np.einsum("nk,nkd->nd", member, _offsets(latent, design, member)[batch])
        if np.abs(corrected - before).max() < 1e-3 * latent.std():
            break
    # As a map of the place before the correction: centres of each batch, then the offsets that go with them.
    total = design.T @ member
    means = np.einsum("nb,nk,nd->bkd", design, member, latent, optimize=True) / (total[..., None] + 1e-9)
    overall = np.einsum("nk,nd->kd", member, latent) / (member.sum(0)[:, None] + 1e-9)
    means = np.where(total[..., None] > 1e-3, means, overall)
    weight = np.log(np.maximum(total, 1e-3) / np.maximum(design.sum(0), 1.0)[:, None])
    result = Alignment(_normalised(means), weight, np.zeros_like(means))
    member = membership(result, latent, batch, library=np)
    offsets = _offsets(latent, design, member)
    return result._replace(offsets=offsets)


def membership(
    alignment: Alignment, latent: Float[Any, "cells latent"], batch: Int[Any, " cells"], *, library: Any
) -> Float[Any, "cells clusters"]:
    """Share of each cluster in each cell, by ``library``, numpy or jax.numpy."""
    length = library.sqrt((latent**2).sum(-1, keepdims=True) + 1e-12)
    cosine = library.einsum("nd,nkd->nk", latent / length, alignment.centres[batch])
    score = 2.0 * (cosine - 1.0) / _WIDTH + alignment.log_weight[batch]
    score = library.exp(score - score.max(-1, keepdims=True))
    return score / score.sum(-1, keepdims=True)


def aligned(
    alignment: Alignment, latent: Float[Any, "cells latent"], batch: Int[Any, " cells"], *, library: Any = np
) -> Float[Any, "cells latent"]:
    """Place of each cell after the correction, by ``library``, numpy or jax.numpy."""
    member = membership(alignment, latent, batch, library=library)
    return latent - library.einsum("nk,nkd->nd", member, alignment.offsets[batch])


def _closeness(directions: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return 2.0 * (directions @ centres.T - 1.0) / _WIDTH


def _softmax(score: np.ndarray) -> np.ndarray:
    score = np.exp(score - score.max(1, keepdims=True))
    return score / score.sum(1, keepdims=True)


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True) + 1e-12)


def _offsets(
    latent: np.ndarray, design: np.ndarray, member: np.ndarray
) -> Float[np.ndarray, "batches clusters latent"]:
    """Offset of each batch in each cluster from the cluster's own mean, by ridge regression."""
    total = design.T @ member
    sums = np.einsum("nb,nk,nd->bkd", design, member, latent, optimize=True)
    # Per cluster: constant c and offsets o_b of sum_n r_n |z_n - c - o_b|^2 + prior |o|^2, in closed form.
    shrunk = total / (total + _PRIOR_CELLS)
    means = sums / np.maximum(total, 1e-12)[..., None]
    weight = total * (1.0 - shrunk)
    constant = (weight[..., None] * means).sum(0) / np.maximum(weight.sum(0), 1e-12)[:, None]
    return shrunk[..., None] * (means - constant)
