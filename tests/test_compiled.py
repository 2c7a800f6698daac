"""Programs that are compiled quickly are what they would be otherwise; freed memory goes back to the system."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffbio_sc import _compiled


@pytest.mark.parametrize(
    ("backend", "flags", "quick"),
    [("cpu", "", True), ("cpu", "--xla_backend_optimization_level=3", False), ("gpu", "", False)],
)
def test_fewer_passes_on_cpus_unless_the_user_has_chosen_a_level(monkeypatch, backend, flags, quick):
    jit, given = jax.jit, []

    def spied(function, *, compiler_options=None, **options):
        given.append(compiler_options)
        return jit(function, compiler_options=compiler_options, **options)

    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "jit", spied)

    @_compiled.jit_quickly(static_argnames=("power",))
    def raised(values, power):
        return values**power

    for power in (2, 3):
        np.testing.assert_allclose(raised(jnp.arange(5.0), power=power), np.arange(5.0) ** power)
    assert given == [
        {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True} if quick else None
    ]


def test_memory_can_be_given_back_on_any_system(monkeypatch):
    _compiled.release_memory()
    monkeypatch.setattr(_compiled.os, "name", "nt")
    _compiled.release_memory()


def blas_threads():
    from threadpoolctl import threadpool_info

    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_its_threads_back_when_the_last_of_overlapping_users_ends():
    import scipy.linalg  # noqa: F401  # has a BLAS of its own
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        first, second = _compiled.one_blas_thread(), _compiled.one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == {2}
        with pytest.raises(ZeroDivisionError), _compiled.one_blas_thread():
            raise ZeroDivisionError
        assert blas_threads() == {2}


def test_small_factorisations_are_not_spread_over_threads(monkeypatch):
    """Threads of BLAS that wait for the next gene or the next power iteration do so actively."""
    from threadpoolctl import threadpool_limits

    import diffbio_sc as dbio
    from diffbio_sc.numerics.latent import factors
    from diffbio_sc.numerics.spatial.score_test import SpatialScoreTest

    seen = {}

    def watched(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *inputs, **more: (seen.update({name: blas_threads()}), original(*inputs, **more))[1]
        )

    watched(factors, "_leading")
    watched(SpatialScoreTest, "moments_of")
    tissue = dbio.datasets.simulate_spatial_genes(n_spots=100, n_genes=20, rng=0)
    cells = dbio.datasets.simulate_multiomics(n_cells=100, rng=0)
    with threadpool_limits(2, user_api="blas"):
        dbio.tl.spatial_genes(tissue)
        dbio.tl.multiomics_vae(cells)
        assert blas_threads() == {2}
    assert seen == {"_leading": {1}, "moments_of": {1}}
