"""Adam on the vectors of a training run: rates by part, schedules, clipping and averaged weights.

The steps are those of optax's Adam, to which the tests hold them. They stand here for what ``optax.flatten`` and the
wrappers of optax do not give, each for a reason that ``benchmarks/training.py adam`` measures (multi-omics VAE of
600 + 900 features, CPU seconds):

- The *parameters*, not their gradients alone, stay one vector for each type of number from step to step:
  ``optax.flatten`` cuts its vector up again in every step, and the loop carries every parameter apart. The first epoch
  takes 5.6 s; 6.5 s with ``optax.flatten(optax.adam(rate))``, which has one rate for all, 8.6 s with ``optax.adam``.
- Rates by part are data, one number for each part: a fit at other rates finds its code, .1 s, where every rate of an
  optax optimiser is a constant of the code, which is compiled anew, 6.1 to 7.4 s. ``optax.partition`` of three has
  rates by part: 8.3 s for the first epoch, 7.3 s for one at other rates.
- A schedule is evaluated on the host for the steps of an epoch, so that any schedule meets the same compiled code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.training.storage import flatten
from diffbio_sc.training.vectors import Layout, Vectors, piecewise

#: Steps after which an average with decay d follows the weights with that decay: at step t it is (1 + t) / (10 + t).
_WARM_UP = 10.0
_DECAYS = (0.9, 0.999)  # of the running averages of the gradient and of its square


class AdamState(NamedTuple):
    """State of :class:`Adam`.

    Attributes
    ----------
    moments
        Number of steps taken, and running averages of the gradient and of its square.
    rates
        Learning rate of each part; data, so that other rates need no other code.
    average
        Average of the weights, and its decay; both empty where none is kept.
    """

    moments: optax.ScaleByAdamState
    rates: Float[Array, " parts"]
    average: Vectors
    decay: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, ICLR), with what a training run on vectors can do beside it.

    Parameters
    ----------
    learning_rate
        Rate of all parameters; or a schedule as optax has them, a function from an array of steps (from 0, skipped ones
        counted) to rates.
    factors
        Pairs of the beginning of a parameter's path, such as ``"encoders"`` or ``"decoders/0/slopes"``, and what the
        learning rate is multiplied by there. The first that fits counts.
    epsilon
        Added to the root of the average square.
    clip
        Largest global norm of a gradient; longer ones are shortened to it.
    average
        Decay of an exponential moving average of the weights, for example 0.999. Validation then looks at the average,
        and the operator is given it at the end. In the first steps the decay is lower, (1 + step) / (10 + step), so
        that the average forgets the start. Default: no average.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> optimizer = dbio.training.Adam(1e-3, factors=(("encoders", 0.1),), clip=1.0, average=0.999)
    >>> optimizer.clip
    1.0
    """

    learning_rate: float | Callable[[Any], Any] = 1e-3
    factors: tuple[tuple[str, float], ...] = ()
    epsilon: float = 1e-8
    clip: float | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"Adam.clip must be above 0, found {self.clip!r}.")
        if self.average is not None and not 0 < self.average < 1:
            raise ValueError(f"Adam.average must be between 0 and 1, both excluded, found {self.average!r}.")

    def init(self, trained: Any) -> AdamState:
        """Return the state for a tree of parameters, on the host."""
        vectors = Layout.of(trained).join(trained, library=np)
        zeros = {dtype: np.zeros_like(vector) for dtype, vector in vectors.items()}
        base = 1.0 if callable(self.learning_rate) else self.learning_rate
        rates = np.array([factor * base for factor in [*(factor for _, factor in self.factors), 1.0]])
        keeps = self.average is not None
        return AdamState(
            optax.ScaleByAdamState(np.int32(0), zeros, dict(zeros)),
            rates.astype(np.float32),
            dict(vectors) if keeps else {},
            {"decay": np.float32(self.average)} if keeps else {},
        )

    def plan(self, trained: Any) -> AdamPlan:
        """Return what is compiled of the optimiser for a tree of parameters."""
        parts = tuple(
            next((i for i, (beginning, _) in enumerate(self.factors) if _begins(path, beginning)), len(self.factors))
            for path in flatten(trained)
        )
        return AdamPlan(parts, self.epsilon, self.clip)

    def paces(self, first: int, number: int) -> Float[np.ndarray, " steps"]:
        """Return what the rates are multiplied by in some steps: the schedule; 1 without one."""
        if not callable(self.learning_rate):
            return np.ones(number, np.float32)
        values = np.asarray(self.learning_rate(np.arange(first, first + number, dtype=np.int32)), np.float32)
        return np.broadcast_to(values, (number,)).copy()


class AdamPlan(NamedTuple):
    """What is compiled of Adam.

    Attributes
    ----------
    parts
        Number of the rate that each parameter has; the rates themselves are data.
    epsilon, clip
        As of :class:`Adam`.
    """

    parts: tuple[int, ...]
    epsilon: float
    clip: float | None


def adam_step(
    plan: AdamPlan,
    layout: Layout,
    vectors: Vectors,
    gradient: Vectors,
    state: AdamState,
    pace: Float[Array, ""],
    applies: Array,
) -> tuple[Vectors, AdamState]:
    """Take one step; where ``applies`` is False nothing changes.

    Parameters
    ----------
    plan
        What is compiled.
    layout
        Layout of the parameters.
    vectors, gradient
        Parameters and their gradient.
    state
        State of :class:`Adam`.
    pace
        What the rates are multiplied by in this step.
    applies
        Whether to take the step; a scalar.
    """
    if plan.clip is not None:
        clip = optax.clip_by_global_norm(plan.clip)
        gradient = clip.update(gradient, clip.init(gradient))[0]
    steps = state.moments.count + 1
    count = steps.astype(jnp.float32)
    # A step that is not taken adds nothing, to the last bit, and each result is one pass over the vectors: choosing
    # between old and new values afterwards takes twice as long.
    taken = jnp.where(applies, 1.0, 0.0)
    first, second = taken * (1.0 - _DECAYS[0]), taken * (1.0 - _DECAYS[1])
    scale, square_scale = (-1.0 / jnp.expm1(count * float(np.log(decay))) for decay in _DECAYS)
    new, means, squares, average = {}, {}, {}, {}
    for dtype, old in vectors.items():
        mine = [number for number, kind in enumerate(layout.dtypes) if kind == dtype]
        sizes, numbers = [layout.sizes[number] for number in mine], [plan.parts[number] for number in mine]
        rate = piecewise(sizes, numbers, state.rates * (pace * taken * scale))
        slope, mean, square = jnp.where(applies, gradient[dtype], 0.0), state.moments.mu[dtype], state.moments.nu[dtype]
        mean = mean + first * (slope - mean)
        square = square + second * (slope**2 - square)
        stepped = old - rate * mean / (jnp.sqrt(square * square_scale) + plan.epsilon)
        new[dtype], means[dtype], squares[dtype] = (part.astype(old.dtype) for part in (stepped, mean, square))
        if state.average:
            share = taken * (1.0 - jnp.minimum(state.decay["decay"], (1.0 + count) / (_WARM_UP + count)))
            kept = state.average[dtype]
            average[dtype] = kept + share.astype(old.dtype) * (new[dtype] - kept)
    moments = optax.ScaleByAdamState(jnp.where(applies, steps, state.moments.count), means, squares)
    return new, AdamState(moments, state.rates, average, state.decay)


def _begins(path: str, beginning: str) -> bool:
    return path == beginning or path.startswith(f"{beginning}/")
