from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffbio_sc.operators import Operator, OperatorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearConfig(OperatorConfig):
    n_features: int = 3
    dropout: float = 0.0


class Linear(Operator):
    """Weighted linear regression, a stand-in for a network."""

    config_class = LinearConfig
    required_keys = ("features", "targets")
    is_network = True
    loss_takes_weights = True

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros(config.n_features))
        self.intercept = nnx.Param(jnp.zeros(()))
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def __call__(self, data):
        return {"predicted": self.dropout(data["features"]) @ self.weights[...] + self.intercept[...]}

    def loss(self, data):
        weights = data.get("sample_weight", jnp.ones(data["targets"].shape))
        return jnp.sum(weights * (self(data)["predicted"] - data["targets"]) ** 2) / jnp.sum(weights)


@pytest.fixture
def make_linear():
    """Make a fresh regression operator: ``make_linear(**config)``."""

    def make(**config):
        return Linear(LinearConfig(**config), rngs=nnx.Rngs(0))

    return make


@pytest.fixture
def make_data():
    """Make a noisy linear data set of a given size."""

    def make(size=50, seed=0, noise=0.1):
        random = np.random.default_rng(seed)
        features = random.normal(size=(size, 3)).astype(np.float32)
        targets = features @ np.array([1.0, -2.0, 0.5]) + 3.0 + noise * random.normal(size=size)
        return {"features": features, "targets": targets.astype(np.float32)}

    return make
