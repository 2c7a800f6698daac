"""Batches laid onto each other within clusters: planted shifts, and the map for new cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffbio_sc.numerics.latent.alignment import aligned, fit_alignment, n_clusters


def simulate(seed=0, cells=600, shares=((0.5, 0.3, 0.2), (0.1, 0.3, 0.6))):
    """Three types in two batches of other shares; each batch moves each type its own way."""
    rng = np.random.default_rng(seed)
    centres = 8 * np.eye(3, 5)
    shift = np.random.default_rng(9).normal(0, 1.5, (2, 3, 5))
    batch = rng.integers(0, 2, cells)
    kind = np.array([rng.choice(3, p=shares[one]) for one in batch])
    return centres[kind] + shift[batch, kind] + rng.normal(0, 0.5, (cells, 5)), batch, kind


def between_batches(latent, batch, kind):
    """Distance between the batches within each type, in standard deviations of a cell."""
    return [
        np.linalg.norm(latent[(kind == k) & (batch == 0)].mean(0) - latent[(kind == k) & (batch == 1)].mean(0)) / 0.5
        for k in range(3)
    ]


def test_types_of_two_batches_come_together_and_stay_apart_from_other_types():
    latent, batch, kind = simulate()
    assert min(between_batches(latent, batch, kind)) > 9
    found = fit_alignment(latent, batch, 2, n_clusters(600, 50), np.random.default_rng(0))
    moved = aligned(found, latent, batch)
    # Of harmonypy 0.0.10: 1.42, .56 and .83; a type of 27 cells in one batch is the hardest.
    assert max(between_batches(moved, batch, kind)) < 2
    few = aligned(fit_alignment(latent, batch, 2, 5, np.random.default_rng(0)), latent, batch)
    assert max(between_batches(few, batch, kind)) < 0.5
    centres = np.stack([moved[kind == k].mean(0) for k in range(3)])
    nearest = ((moved[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == kind).mean() > 0.99


def test_new_cells_are_moved_like_those_of_the_fit():
    latent, batch, _ = simulate()
    found = fit_alignment(latent, batch, 2, 5, np.random.default_rng(0))
    new, new_batch, kind = simulate(seed=1)
    assert max(between_batches(aligned(found, new, new_batch), new_batch, kind)) < 1
    np.testing.assert_array_equal(aligned(found, latent, batch)[:10], aligned(found, latent[:10], batch[:10]))


def test_a_type_of_one_batch_alone_is_left_where_it_is():
    latent, batch, kind = simulate(shares=((0.5, 0.5, 0.0), (0.3, 0.3, 0.4)))
    found = fit_alignment(latent, batch, 2, 20, np.random.default_rng(0))
    moved = aligned(found, latent, batch) - latent
    assert np.linalg.norm(moved[kind == 2].mean(0)) < 0.3 * np.linalg.norm(moved[kind == 0], axis=1).mean()


def test_equal_batches_are_hardly_moved():
    rng = np.random.default_rng(0)
    latent, batch = rng.normal(size=(800, 4)), rng.integers(0, 2, 800)
    found = fit_alignment(latent, batch, 2, 5, np.random.default_rng(0))
    assert np.abs(aligned(found, latent, batch) - latent).mean() < 0.15


def test_the_twin_on_arrays_is_the_same_and_has_a_gradient():
    latent, batch, _ = simulate(cells=200)
    found = fit_alignment(latent, batch, 2, 6, np.random.default_rng(0))
    on_arrays = type(found)(*(jnp.asarray(part, jnp.float32) for part in found))
    place, code = jnp.asarray(latent, jnp.float32), jnp.asarray(batch)
    np.testing.assert_allclose(
        jax.jit(lambda place: aligned(on_arrays, place, code, library=jnp))(place),
        aligned(found, latent, batch),
        rtol=1e-3,
        atol=1e-3,
    )
    slope = jax.jit(jax.grad(lambda place: aligned(on_arrays, place, code, library=jnp).sum()))(place)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0.5
