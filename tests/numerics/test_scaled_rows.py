"""Scaled and cut rows of a dense matrix, held to the matrix written out."""

from __future__ import annotations

import numpy as np

from diffbio_sc.numerics.latent import factors, scaled_rows
from diffbio_sc.numerics.latent.scaled_rows import ScaledRows


def test_products_are_those_of_the_scaled_and_cut_matrix(monkeypatch):
    monkeypatch.setattr(scaled_rows, "_BLOCK_VALUES", 35)  # five rows
    rng = np.random.default_rng(0)
    values = rng.normal(size=(23, 7)).astype(np.float32)
    scale, limit = rng.uniform(0.5, 2.0, 7).astype(np.float32), np.full(7, 1.0)
    whole = np.minimum(values * scale, np.float32(1.0))
    assert (whole == 1.0).any()
    rows = np.array([1, 4, 5, 20, 22])
    lazy = ScaledRows(values, scale, limit)
    for matrix, wanted in ((lazy, whole), (lazy[rows], whole[rows]), (lazy[rows][np.array([2, 3])], whole[[5, 20]])):
        assert matrix.shape == wanted.shape
        assert len(matrix) == len(wanted)
        right, left = rng.normal(size=(7, 3)), rng.normal(size=(len(wanted), 2))
        np.testing.assert_allclose(matrix @ right, wanted @ right, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(matrix.T @ left, wanted.T @ left, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(matrix.column_squares(), (wanted.astype(float) ** 2).sum(0), rtol=1e-6)


def test_components_are_those_of_the_matrix_written_out():
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(200, 3)) @ rng.normal(size=(3, 40)) + rng.normal(size=(200, 40))).astype(np.float32)
    scale, limit = 1.0 / values.std(0), np.full(40, 2.0, np.float32)
    found = []
    for matrix in (np.minimum(values * scale, limit), ScaledRows(values, scale, limit)):
        found.append(factors.fit_components(matrix, np.ones((200, 1)), 5, np.random.default_rng(0)))
    np.testing.assert_allclose(found[1].noise, found[0].noise, rtol=1e-3)
    np.testing.assert_allclose(np.abs(found[1].basis), np.abs(found[0].basis), rtol=1e-2, atol=1e-3)
