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
