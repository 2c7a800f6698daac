r"""Coverage smoothed along the genome by a Gaussian whose width is learned.

The smoothed signal is the mean of the signal around each position in a Gaussian, cut at ``reach``, and divided by the
weights that lie within the track, so that its ends are not lowered. A width far below one position leaves the signal as
it is: that is the start.

Alone, the width is learned by count splitting: reads are thinned into two halves, which are independent if they are
Poisson, and one half, smoothed, predicts the other (Neufeld et al. 2024, Biostatistics 25:270).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.operators.contract import FitReport, Operator, OperatorConfig, as_float_array
from diffbio_sc.training.losses import poisson_deviance


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageSmootherConfig(OperatorConfig):
    """Settings of :class:`CoverageSmoother`.

    Parameters
    ----------
    bin_width
        Base pairs in each position.
    width
        Initial standard deviation of the Gaussian in base pairs.
    reach
        Largest distance in base pairs from which a position gets anything.
    """

    bin_width: int = 25
    width: float = 8.0
    reach: int = 1000

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("bin_width", "reach")
        self.require_positive("width")


class CoverageSmoother(Operator):
    """Coverage smoothed by a Gaussian of learned width.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; none is used.

    Notes
    -----
    Inputs of ``apply``: ``coverage`` (length,) or (batch, length), not negative.

    Outputs: ``smoothed_coverage`` of the same shape, of the same sum but for the ends of the track.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.epigenomics import CoverageSmoother, CoverageSmootherConfig
    >>> smoother = CoverageSmoother(CoverageSmootherConfig(bin_width=1, width=1.0, reach=4), rngs=nnx.Rngs(0))
    >>> smoothed = smoother({"coverage": jnp.zeros(9).at[4].set(1.0)})["smoothed_coverage"]
    >>> [round(float(value), 2) for value in smoothed[3:6]]
    [0.24, 0.4, 0.24]
    """

    config_class: ClassVar[type[OperatorConfig]] = CoverageSmootherConfig
    required_keys: ClassVar[tuple[str, ...]] = ("coverage",)
    config: CoverageSmootherConfig

    def __init__(self, config: CoverageSmootherConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.log_width = nnx.Param(jnp.float32(math.log(config.width / config.bin_width)))

    @property
    def width(self) -> float:
        """Standard deviation of the Gaussian in base pairs."""
        return float(jnp.exp(self.log_width[...])) * self.config.bin_width

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``smoothed_coverage``."""
        return {"smoothed_coverage": self._smooth(as_float_array(data, "coverage", (1, 2)))}

    def loss(self, data: Mapping[str, Any], *, key: Array | None = None) -> Float[Array, ""]:
        """Return the Poisson deviance, for each position, of one half of the reads from the other half, smoothed.

        Parameters
        ----------
        data
            ``coverage``, whole numbers of reads, each counted once.
        key
            Random key of the thinning; default a fixed one.
        """
        counts = jnp.round(as_float_array(data, "coverage", (1, 2)))
        first = jax.random.binomial(jax.random.key(0) if key is None else key, counts, 0.5).astype(counts.dtype)
        # A floor of a hundredth of the mean: a position without a read in reach is not impossible.
        floor = 0.005 * counts.mean(-1, keepdims=True)
        mean = 0.99 * self._smooth(first) + floor
        return poisson_deviance(counts - first, mean).mean()

    def fit(
        self, data: Mapping[str, Any], *, steps: int = 200, learning_rate: float = 0.05, **options: Any
    ) -> FitReport:  # type: ignore[override]
        """Lower ``loss`` by gradient descent, with the reads thinned anew in each step.

        Parameters
        ----------
        data
            As for :meth:`loss`.
        steps, learning_rate
            Of Adam.
        options
            Further arguments of :func:`diffbio_sc.training.train`.

        Returns
        -------
        History, whether the stopping rule was met, steps and seconds.
        """
        self.check_keys(data)
        arrays = {"coverage": np.atleast_2d(np.asarray(data["coverage"], np.float32))}
        settings = {"batch_size": None, "description": "smoothing", "loss": _thinned_loss, **options}
        return super().fit(arrays, max_epochs=steps, learning_rate=learning_rate, **settings)

    def _smooth(self, coverage: Float[Array, "... length"]) -> Float[Array, "... length"]:
        reach = min(max(round(self.config.reach / self.config.bin_width), 1), (coverage.shape[-1] - 1) // 2)
        offsets = jnp.arange(-reach, reach + 1, dtype=coverage.dtype)
        kernel = jnp.exp(-0.5 * jnp.square(offsets * jnp.exp(-self.log_width[...].astype(coverage.dtype))))

        def convolved(row):
            return jnp.convolve(row, kernel, mode="same")

        inside = convolved(jnp.ones(coverage.shape[-1], coverage.dtype))
        rows = coverage.reshape(-1, coverage.shape[-1])
        return (jax.vmap(convolved)(rows) / inside).reshape(coverage.shape)


def _thinned_loss(operator: CoverageSmoother, batch: dict[str, Array], key: Array) -> Array:
    return operator.loss(batch, key=key)
